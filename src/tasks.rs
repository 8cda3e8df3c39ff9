//! Tasks that a process cannot do without.
//!
//! Invariant: each is owned; one that ends by itself is told by its name, so that the process ends rather than goes on without
//! it, and none outlives its owner.

use std::collections::HashMap;
use std::future::pending;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

/// Running tasks, by name.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts one in the runtime that is entered now.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.running.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Returns when one ends, and says which and how. For as long as none was asked to.
    pub async fn ended(&mut self) -> String {
        match self.running.join_next_with_id().await {
            Some(ended) => self.how(ended),
            None => pending().await,
        }
    }

    /// Waits until all have ended, as they were asked to; what goes on for longer than `within` is dropped where it stands.
    pub async fn finish(mut self, within: Duration) {
        let all = async {
            while let Some(ended) = self.running.join_next_with_id().await {
                let has_panicked = ended.is_err();
                let how = self.how(ended);
                if has_panicked {
                    tracing::error!("{how}");
                }
            }
        };
        if tokio::time::timeout(within, all).await.is_err() {
            let left: Vec<_> = self.names.values().collect();
            tracing::warn!(?left, "did not end in time");
        }
    }

    fn how(&mut self, ended: Result<(Id, ()), JoinError>) -> String {
        let (id, how) = match ended {
            Ok((id, ())) => (id, "ended by itself"),
            Err(error) => (error.id(), "panicked"),
        };
        let name = self.names.remove(&id).unwrap_or_default();
        format!("{name} {how}")
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_or_panics_is_named_and_while_all_run_nothing_is() {
        let mut tasks = Tasks::default();
        assert!(tokio::time::timeout(LONG, tasks.ended()).await.is_err(), "none");
        tasks.spawn("the heartbeat", pending());
        tasks.spawn("the writer", async { panic!("on purpose") });
        assert_eq!(tasks.ended().await, "the writer panicked");
        assert!(tokio::time::timeout(LONG, tasks.ended()).await.is_err());
        tasks.spawn("the reader", async {});
        assert_eq!(tasks.ended().await, "the reader ended by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_all_is_waited_for_and_of_one_that_hangs_not_for_ever() {
        let begin = Instant::now();
        let mut tasks = Tasks::default();
        tasks.spawn("short", tokio::time::sleep(LONG / 2));
        tasks.finish(LONG).await;
        assert!(begin.elapsed() < LONG);
        let mut tasks = Tasks::default();
        tasks.spawn("long", pending());
        tasks.finish(LONG).await;
        assert!(begin.elapsed() < 2 * LONG);
    }
}
