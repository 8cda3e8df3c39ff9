//! Replays: from `Replay` objects to messages that are pending again, and back to the objects' status.
//!
//! Owns the watch of Replays, how fast each goes, and their whole status; knows nothing of SQL or of attempts: a message that
//! is sent again is the engine's, as any other. What a replay has done is in the store, by the object's UID as its ticket, so
//! a restart goes on where it was. One task a replay that runs; the others wait in [`line`]. One that only waits (for an endpoint
//! that is suspended, for its rate) gives its place to others that want it, and gets one again in its turn. Invariant: a Replay that has ended
//! is never begun anew, and nothing of the store is forgotten before its object is gone from a complete list and its task has
//! ended.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::stream::{StreamExt, select_all};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::{Semaphore, watch as latest};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::api::Replay;
use crate::api::replay::ReplayStatus;
use crate::engine::Again;
use crate::ids::UnixMillis;
use crate::kubernetes::budget::Budget;
use crate::kubernetes::events::{Happening, Reporter, publish};
use crate::kubernetes::scope::{Part, Scope};
use crate::queue::{Fence, Queue};
use crate::registry::Registry;
use crate::watch::source::{Step, steps};

mod happening;
mod known;
mod line;
pub mod metrics;
mod run;
mod select;
mod show;
mod status;

use known::Known;
use line::Line;
use metrics::Metrics;
use run::Run;
use status::{AfterTheEnd, after_the_end, queued};

/// Status writes of all replays: a share of what the dispatcher may write that leaves endpoints theirs.
const WRITES_PER_SECOND: u32 = 2;
/// At once: a replay's beginning and end show without waiting.
const WRITE_BURST: u32 = 10;
/// Status writes of those that wait for others to end, besides: however many they are, they take nothing from those that run.
const QUEUED_PER_SECOND: u32 = 1;
/// Events of all replays: one that cannot be told at once is left out, for the status says the same.
const EVENTS_PER_SECOND: u32 = 1;
const EVENT_BURST: u32 = 20;
/// Looks of replays at a time: the store makes all looks one after another, and whoever reads messages waits for these alone.
const LOOKS: usize = 2;
/// After a status could not be written.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// How long what is known of deleted Replays stays in the store after it could not be forgotten.
const FORGET_AGAIN: Duration = Duration::from_secs(10);

/// What replays work with.
pub struct Tools {
    pub client: Client,
    pub queue: Arc<dyn Queue>,
    pub fence: Fence,
    pub registry: Arc<Registry>,
    /// The namespaces whose Replays are run.
    pub scope: Scope,
    pub again: Again,
    pub reporter: Reporter,
    pub metrics: Metrics,
}

/// What all replays share.
struct Shared {
    tools: Tools,
    writes: Budget,
    queued_writes: Budget,
    events: Budget,
    looks: Semaphore,
}

impl Shared {
    /// Creates an Event, if there is room for one.
    async fn tell(&self, replay: &Replay, happening: &Happening) {
        let Tools {
            client,
            reporter,
            metrics,
            ..
        } = &self.tools;
        if self.events.try_take().is_err() {
            metrics.dropped_events.inc();
            return;
        }
        if let Err(error) = publish(client, reporter, replay.object_ref(&()), happening).await {
            metrics.dropped_events.inc();
            tracing::warn!(replay = replay.name_any(), %error, "failed to create an Event");
        }
    }
}

/// A replay that runs.
struct Running {
    namespace: String,
    task: Id,
    object: latest::Sender<Arc<Replay>>,
    stop: CancellationToken,
    /// Others want its place.
    wanted: Arc<AtomicBool>,
}

/// Runs until `shutdown`.
pub async fn follow(tools: Tools, shutdown: CancellationToken) {
    let known = Known::of(&tools.scope);
    let of_part = |part: Part| {
        let events = watcher(part.api::<Replay>(&tools.client), watcher::Config::default());
        let steps = steps("replays", events, tools.metrics.watch_errors.clone());
        steps.map(move |step| (part.clone(), step)).boxed()
    };
    let mut steps = select_all(tools.scope.parts().into_iter().map(of_part));
    let shared = Arc::new(Shared {
        tools,
        writes: Budget::new(WRITES_PER_SECOND, WRITE_BURST),
        queued_writes: Budget::new(QUEUED_PER_SECOND, WRITE_BURST),
        events: Budget::new(EVENTS_PER_SECOND, EVENT_BURST),
        looks: Semaphore::new(LOOKS),
    });
    let mut replays = Replays {
        shared,
        line: Line::default(),
        running: HashMap::new(),
        aside: HashMap::new(),
        untold: BTreeMap::new(),
        known,
        gone: HashSet::new(),
        forgotten: true,
        tasks: JoinSet::new(),
        telling: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some((part, step)) = steps.next() => replays.take(&part, step),
            Some(ended) = replays.tasks.join_next_with_id() => replays.ended(ended),
            Some(told) = replays.telling.join_next() => replays.told(told),
            () = tokio::time::sleep(FORGET_AGAIN), if !replays.forgotten => {}
        }
        replays.start();
        replays.tell();
        replays.forget().await;
    }
    replays.tasks.shutdown().await;
    replays.telling.shutdown().await;
}

/// The Replays there are.
struct Replays {
    shared: Arc<Shared>,
    line: Line,
    /// By UID, until the task has ended.
    running: HashMap<String, Running>,
    /// By UID those that gave way to others, and wait in the line.
    aside: HashMap<String, Run>,
    /// By UID those that wait or have ended and whose status does not say what it should.
    untold: BTreeMap<String, Arc<Replay>>,
    known: Known,
    /// UIDs of those whose task has ended after they were gone: a step of it may reach the store after a look at what it knows.
    gone: HashSet<String>,
    /// The store knows of none that is gone.
    forgotten: bool,
    /// The UID, and the replay itself where it gave way.
    tasks: JoinSet<(String, Option<Run>)>,
    /// At most one write of a status.
    telling: JoinSet<Option<(String, Arc<Replay>)>>,
}

impl Replays {
    fn take(&mut self, part: &Part, step: Step<Replay>) {
        match step {
            Step::Listed(list) => {
                let uids: HashSet<String> = list.iter().filter_map(ResourceExt::uid).collect();
                let missing = self.known.listed(part, uids);
                missing.iter().for_each(|uid| self.leave(uid));
                self.forgotten = false;
                list.into_iter().for_each(|replay| self.put(replay));
            }
            Step::Put(replay) => {
                if let Some(uid) = replay.uid() {
                    self.known.put(part, uid);
                }
                self.put(*replay);
            }
            Step::Gone(replay) => {
                let uid = replay.uid().unwrap_or_default();
                self.leave(&uid);
                self.known.remove(part, &uid);
                self.forgotten = false;
            }
        }
    }

    /// Its object is gone.
    fn leave(&mut self, uid: &str) {
        if let Some(running) = self.running.get(uid) {
            running.stop.cancel();
        }
        self.line.remove(uid);
        self.aside.remove(uid);
        self.untold.remove(uid);
    }

    fn put(&mut self, replay: Replay) {
        let Some(uid) = replay.uid() else { return };
        let replay = Arc::new(replay);
        if let Some(running) = self.running.get(&uid) {
            running.object.send_replace(replay);
            return;
        }
        match after_the_end(&replay) {
            AfterTheEnd::NotYet => self.line.put(&uid, Arc::clone(&replay)),
            AfterTheEnd::Observe(_) | AfterTheEnd::Done => {
                self.line.remove(&uid);
                self.aside.remove(&uid);
            }
        }
        // Whether it waits is known only once those that may run have been started.
        self.untold.insert(uid, replay);
    }

    /// Starts those that may run, once all are known: those that had begun go first.
    fn start(&mut self) {
        if !self.known.is_complete() {
            return;
        }
        while let Some(replay) = self.line.next() {
            let uid = replay.uid().unwrap_or_default();
            self.untold.remove(&uid);
            let namespace = replay.namespace().unwrap_or_default();
            let (object, watched) = latest::channel(replay);
            let stop = CancellationToken::new();
            let wanted = Arc::<AtomicBool>::default();
            let run = match self.aside.remove(&uid) {
                Some(run) => run.again(watched, Arc::clone(&wanted)),
                None => Run::new(Arc::clone(&self.shared), uid.clone(), watched, Arc::clone(&wanted)),
            };
            let (stopped, ticket) = (stop.clone(), uid.clone());
            let task = self.tasks.spawn(async move {
                // Dropped at an await: a step of the store is done or not, whether anybody waits for it or not.
                let gave_way = stopped.run_until_cancelled(run.whole()).await;
                (ticket, gave_way.flatten())
            });
            let running = Running {
                namespace,
                task: task.id(),
                object,
                stop,
                wanted,
            };
            self.running.insert(uid, running);
        }
        for running in self.running.values() {
            let wanted = self.line.is_wanted(&running.namespace);
            running.wanted.store(wanted, Ordering::Relaxed);
        }
        self.count();
    }

    fn count(&self) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.shared.tools.metrics;
        metrics.running.set(count(self.running.len()));
        metrics.queued.set(count(self.line.uids().count()));
    }

    /// Writes the status of one that waits, or of one that has ended and was changed since.
    fn tell(&mut self) {
        while self.telling.is_empty()
            && self.known.is_complete()
            && let Some((uid, replay)) = self.untold.pop_first()
        {
            let Some(status) = self.to_tell(&uid, &replay) else {
                continue;
            };
            let shared = Arc::clone(&self.shared);
            self.telling.spawn(async move {
                shared.queued_writes.take().await;
                match show::write(&shared.tools.client, &replay, &status).await {
                    Some(_) => None,
                    None => {
                        tokio::time::sleep(TELL_AGAIN).await;
                        Some((uid, replay))
                    }
                }
            });
        }
    }

    fn to_tell(&self, uid: &str, replay: &Replay) -> Option<ReplayStatus> {
        let status = match after_the_end(replay) {
            AfterTheEnd::Done => return None,
            AfterTheEnd::Observe(status) => *status,
            // What one says that gave way still holds: it waits for what becomes of its messages.
            AfterTheEnd::NotYet if self.aside.contains_key(uid) => return None,
            AfterTheEnd::NotYet => {
                self.line.get(uid)?;
                queued(replay, Timestamp::now())
            }
        };
        (!show::is_shown(replay, &status)).then_some(status)
    }

    fn told(&mut self, told: Result<Option<(String, Arc<Replay>)>, JoinError>) {
        // A newer form that came meanwhile is the one to tell; of one that runs, or is gone, nothing is.
        if let Ok(Some((uid, replay))) = told
            && self.known.has(&uid)
            && !self.running.contains_key(&uid)
        {
            self.untold.entry(uid).or_insert(replay);
        }
    }

    fn ended(&mut self, ended: Result<(Id, (String, Option<Run>)), JoinError>) {
        let (task, gave_way) = match ended {
            Ok((task, (_, gave_way))) => (task, gave_way),
            Err(error) => {
                tracing::error!(%error, "a replay's task ended unexpectedly");
                (error.id(), None)
            }
        };
        let uid = self.running.iter().find(|(_, running)| running.task == task);
        let Some(uid) = uid.map(|(uid, _)| uid.clone()) else {
            return;
        };
        let Some(running) = self.running.remove(&uid) else {
            return;
        };
        self.line.ended(&running.namespace);
        if self.known.lacks(&uid) {
            self.gone.insert(uid);
            self.forgotten = false;
        } else if running.stop.is_cancelled() {
            // A list that was behind did not have it.
            self.put(Replay::clone(&running.object.borrow()));
        } else if let Some(run) = gave_way {
            let replay = Arc::clone(&running.object.borrow());
            self.line.put_back(&uid, replay, UnixMillis::now());
            self.aside.insert(uid, run);
        }
    }

    /// Forgets what the store knows of Replays that are gone.
    async fn forget(&mut self) {
        if self.forgotten || !self.known.is_complete() {
            return;
        }
        let known = &self.known;
        let Tools { queue, fence, .. } = &self.shared.tools;
        let forget = async {
            for (ticket, _) in queue.replays().await? {
                // What still runs may yet write its row: it is forgotten after its end.
                if known.may_be_forgotten(&ticket)
                    && !self.running.contains_key(&ticket)
                    && !self.gone.contains(&ticket)
                {
                    queue.forget_replay(*fence, &ticket).await?;
                }
            }
            for ticket in &self.gone {
                queue.forget_replay(*fence, ticket).await?;
            }
            Ok::<_, crate::queue::QueueError>(())
        };
        match forget.await {
            Ok(()) => {
                self.forgotten = true;
                self.gone.clear();
                self.known.forgotten();
            }
            Err(error) => tracing::warn!(%error, "failed to forget deleted Replays; tried again"),
        }
    }
}
