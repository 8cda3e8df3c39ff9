//! Threads of their own for the way of an event: ingest, engine, delivery.
//!
//! What is told to Kubernetes and read from it costs milliseconds at a time, for thousands of endpoints many of them. On the
//! same threads an event would wait for that, and with it what arrives on sockets: a thread that computes looks at none, and
//! the others sleep. Invariant: what runs here answers in microseconds, or says so (`blocking`).

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// The threads; they end when it is dropped, whatever still runs there.
pub struct Lane {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Lane {
    /// Starts a thread for each core.
    pub fn start() -> io::Result<Lane> {
        let runtime = Builder::new_multi_thread().thread_name("events").enable_all().build()?;
        Ok(Lane {
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
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Dropped as it is it would wait, which nothing within a runtime may.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
