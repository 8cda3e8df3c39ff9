//! Threads of their own for the way of an event: ingest, engine, delivery.
//!
//! What is told to Kubernetes and read from it costs milliseconds at a time, for thousands of endpoints many of them. On the
//! same threads an event would wait for that, and with it what arrives on sockets: a thread that computes looks at none, and
//! the others sleep. Invariant: what runs here answers in microseconds, or says so (`blocking`).

use std::io;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};
use tokio::task::JoinHandle;

/// In a row. One alone may be a process that was stopped and goes on.
const MISSES: u32 = 3;

/// The threads; they end when it is dropped, whatever still runs there.
pub struct EventThreads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl EventThreads {
    /// Starts a thread for each core.
    pub fn start() -> io::Result<EventThreads> {
        let runtime = Builder::new_multi_thread().thread_name("events").enable_all().build()?;
        Ok(EventThreads {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs there.
    pub fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.handle.spawn(work)
    }

    /// What is set up until it is dropped has its tasks there.
    pub fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Returns when they stand still: three times in a row nothing was run within `patience`. To be awaited elsewhere.
    pub async fn stand_still(&self, patience: Duration) {
        let mut misses = 0;
        while misses < MISSES {
            let asked = Instant::now();
            match tokio::time::timeout(patience, self.spawn(async {})).await {
                Ok(_ran) => {
                    misses = 0;
                    tokio::time::sleep(patience.saturating_sub(asked.elapsed())).await;
                }
                Err(_late) => misses += 1,
            }
        }
    }
}

impl Drop for EventThreads {
    fn drop(&mut self) {
        // Dropped as it is it would wait, which nothing within a runtime may.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn threads_that_stand_still_are_noticed_and_idle_ones_are_not() {
        let threads = EventThreads::start().unwrap();
        let patience = Duration::from_millis(200);
        let noticed = |within| tokio::time::timeout(within, threads.stand_still(patience));
        assert!(noticed(Duration::from_secs(1)).await.is_err());
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            threads.spawn(async { std::thread::sleep(Duration::from_secs(10)) });
        }
        noticed(Duration::from_secs(5)).await.unwrap();
    }
}
