//! Replays: from `Replay` objects to messages that are pending again, and back to the objects' status.
//!
//! Owns the watch of Replays, how fast each goes, and their whole status; knows nothing of SQL or of attempts: a message that
//! is sent again is the engine's, as any other. What a replay has done is in the store, by the object's UID as its ticket, so
//! a restart goes on where it was. One task a replay that has not ended. Invariant: a Replay that has ended is never begun
//! anew, and nothing of the store is forgotten before its object is gone from a complete list.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch as latest;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::Replay;
use crate::engine::Again;
use crate::kubernetes::budget::Budget;
use crate::queue::{Fence, Queue};
use crate::registry::Registry;
use crate::watch::source::{Step, steps};

pub mod metrics;
mod run;
mod select;
mod status;

use metrics::Metrics;

/// Status writes of all replays: a share of what the dispatcher may write that leaves endpoints theirs.
const WRITES_PER_SECOND: u32 = 2;
/// At once: a replay's beginning and end show without waiting.
const WRITE_BURST: u32 = 10;
/// How long what is known of deleted Replays stays in the store after it could not be forgotten.
const FORGET_AGAIN: Duration = Duration::from_secs(10);

/// What replays work with.
pub struct Tools {
    pub client: Client,
    pub queue: Arc<dyn Queue>,
    pub fence: Fence,
    pub registry: Arc<Registry>,
    pub again: Again,
    pub metrics: Metrics,
}

/// What all replays share.
struct Shared {
    tools: Tools,
    writes: Budget,
}

/// A replay that runs.
struct Running {
    object: latest::Sender<Arc<Replay>>,
    stop: CancellationToken,
}

/// Runs until `shutdown`.
pub async fn follow(tools: Tools, shutdown: CancellationToken) {
    let events = watcher(Api::<Replay>::all(tools.client.clone()), watcher::Config::default());
    let mut steps = std::pin::pin!(steps("replays", events, tools.metrics.watch_errors.clone()));
    let shared = Arc::new(Shared {
        tools,
        writes: Budget::new(WRITES_PER_SECOND, WRITE_BURST),
    });
    let mut replays = Replays {
        shared,
        running: HashMap::new(),
        known: None,
        forgotten: true,
        tasks: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(step) = steps.next() => replays.take(step),
            Some(ended) = replays.tasks.join_next() => replays.ended(ended),
            () = tokio::time::sleep(FORGET_AGAIN), if !replays.forgotten => {}
        }
        replays.forget().await;
    }
    replays.tasks.shutdown().await;
}

/// The Replays there are.
struct Replays {
    shared: Arc<Shared>,
    /// By UID.
    running: HashMap<String, Running>,
    /// UIDs of all there are; none before the first complete list.
    known: Option<HashSet<String>>,
    /// The store knows of none that is gone.
    forgotten: bool,
    tasks: JoinSet<String>,
}

impl Replays {
    fn take(&mut self, step: Step<Replay>) {
        match step {
            Step::Listed(list) => {
                let uids: HashSet<String> = list.iter().filter_map(ResourceExt::uid).collect();
                self.running.retain(|uid, running| {
                    let stays = uids.contains(uid);
                    if !stays {
                        running.stop.cancel();
                    }
                    stays
                });
                self.known = Some(uids);
                self.forgotten = false;
                list.into_iter().for_each(|replay| self.put(replay));
            }
            Step::Put(replay) => {
                if let (Some(known), Some(uid)) = (&mut self.known, replay.uid()) {
                    known.insert(uid);
                }
                self.put(*replay);
            }
            Step::Gone(replay) => {
                let uid = replay.uid().unwrap_or_default();
                if let Some(running) = self.running.remove(&uid) {
                    running.stop.cancel();
                }
                if let Some(known) = &mut self.known {
                    known.remove(&uid);
                }
                self.forgotten = false;
            }
        }
    }

    fn put(&mut self, replay: Replay) {
        let Some(uid) = replay.uid() else { return };
        let replay = Arc::new(replay);
        if let Some(running) = self.running.get(&uid) {
            running.object.send_replace(replay);
            return;
        }
        if matches!(status::after_the_end(&replay), status::AfterTheEnd::Done) {
            return;
        }
        let (object, watched) = latest::channel(replay);
        let stop = CancellationToken::new();
        let run = run::Run::new(Arc::clone(&self.shared), uid.clone(), watched);
        let running = Running {
            object,
            stop: stop.clone(),
        };
        self.running.insert(uid.clone(), running);
        self.tasks.spawn(async move {
            // Dropped at an await: a step of the store is done or not, whether anybody waits for it or not.
            let _ended_or_stopped = stop.run_until_cancelled(run.whole()).await;
            uid
        });
        self.shared.tools.metrics.running.inc();
    }

    fn ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        self.shared.tools.metrics.running.dec();
        match ended {
            // Its object, which says that it has ended, may come once more: it is not begun anew.
            Ok(uid) => drop(self.running.remove(&uid)),
            Err(error) => tracing::error!(%error, "a replay's task ended unexpectedly"),
        }
    }

    /// Forgets what the store knows of Replays that are gone.
    async fn forget(&mut self) {
        let Some(known) = self.known.as_ref().filter(|_| !self.forgotten) else {
            return;
        };
        let Tools { queue, fence, .. } = &self.shared.tools;
        let forget = async {
            for (ticket, _) in queue.replays().await? {
                if !known.contains(&ticket) {
                    queue.forget_replay(*fence, &ticket).await?;
                }
            }
            Ok::<_, crate::queue::QueueError>(())
        };
        match forget.await {
            Ok(()) => self.forgotten = true,
            Err(error) => tracing::warn!(%error, "failed to forget deleted Replays; tried again"),
        }
    }
}
