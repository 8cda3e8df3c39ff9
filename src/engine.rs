//! The engine: from stored messages to recorded outcomes.
//!
//! Owns when each attempt starts, what is held in memory, and what is told to the store and the board; knows nothing of
//! Kubernetes, of TLS or of SQL. What to do after an attempt is decided in `schedule`; this room carries it out. One lock
//! over plain state, a task per attempt under way that takes its endpoint's next message when it is done, and a task for each thing
//! that is waited for: arrivals, changes, pages, outcomes to record, time. Rejected: a task per endpoint (thousands of
//! idle ones) and a channel per attempt (a hop more on the hot path).
//! Invariant: an attempt that ended leaves one outcome; one that was cut off leaves none and is made again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::state::State;
use crate::clock::Clock;
use crate::delivery::{Origin, Sender};
use crate::ids::{EndpointId, MessageId, UnixMillis};
use crate::queue::{Arrival, Backlog, Fence, Queue, QueueError, SentAgain};
use crate::registry::{Change, Registry};
use crate::report::board::Board;
use crate::schedule::health::Health;
use crate::traces::Traces;

mod clear;
mod endpoint;
mod expiry;
mod graves;
pub mod metrics;
mod order;
mod outcome;
mod page;
mod places;
mod pull;
mod purge;
mod settle;
mod state;
mod subscriptions;
#[cfg(test)]
mod tests;
mod trace;
mod view;
mod work;

pub use self::metrics::EngineMetrics;
pub use self::pull::{Consumed, Pair};

/// Rows of fresh messages read at a time after a restart.
const FRESH_PAGE: usize = 4_096;
/// Tasks that read pages: a page waits for at most the other readers of the store.
const PAGERS: usize = 2;
/// How often what is not urgent is looked at: posts, durable states, what is to be cleared up.
const TICK: Duration = Duration::from_millis(250);
/// Endpoints of one step: it holds the lock, and a thread, for about a tenth of a millisecond.
const AT_ONCE: usize = 16;
/// Endpoints' states of one commit: of a thousand that fail together producers do not wait for all.
const STATES_AT_ONCE: usize = 64;
/// Ticks between two counts of the store: ten seconds, and what the ticks take.
const COUNT_EVERY: u32 = 40;
/// After a posted transition the next waits this long: a flapping endpoint costs twenty posts a second at most.
const URGENT_PAUSE: Duration = Duration::from_millis(50);
/// For all that is still told to the store after a drain: a disk that refuses must not hold the process.
pub const LAST_WORDS: Duration = Duration::from_secs(5);

/// What an engine works with.
pub struct EngineConfig {
    pub queue: Arc<dyn Queue>,
    pub fence: Fence,
    pub registry: Arc<Registry>,
    /// All since the registry was made, in order: they alone say what is loaded, so nothing older follows something newer.
    pub changes: mpsc::Receiver<Change>,
    pub sender: Arc<dyn Sender>,
    /// Who asks receivers that are asked first, as the sender does.
    pub origin: Origin,
    pub board: Arc<Board>,
    pub clock: Arc<Clock>,
    pub metrics: EngineMetrics,
    /// Where attempts are traced, if they are.
    pub traces: Option<Traces>,
    /// Numbers in [0, 1) for jitter.
    pub random: fn() -> f64,
    /// How long a deleted endpoint or subscription may come back and find its messages.
    pub bury_after: Duration,
    /// Whether every namespace is watched, so that one which is not there is gone.
    pub sees_all: bool,
    /// Told of each attempt that the receiver answered with 401 or 403, or its token server refused: its Secrets may have
    /// changed. Must not wait.
    pub refused: Box<dyn Fn(EndpointId) + Send + Sync>,
}

/// The default of [`EngineConfig::bury_after`]: a GitOps replace deletes and recreates within minutes.
pub const BURY_AFTER: Duration = Duration::from_secs(300);

/// What all tasks of an engine share.
pub(crate) struct Core {
    queue: Arc<dyn Queue>,
    fence: Fence,
    sender: Arc<dyn Sender>,
    board: Arc<Board>,
    clock: Arc<Clock>,
    metrics: EngineMetrics,
    traces: Option<Traces>,
    random: fn() -> f64,
    bury_after: Duration,
    refused: Box<dyn Fn(EndpointId) + Send + Sync>,
    state: Mutex<State>,
    graves: Mutex<graves::Graves>,
    /// Held while counts are taken over: an older one never follows a newer one.
    counting: tokio::sync::Mutex<()>,
    /// Turns of those whose requests expressions make.
    renderings: Semaphore,
    settler: Notify,
    timer: Notify,
    pager: Notify,
    poster: Notify,
    /// Where the engine was started: attempts run there, whoever makes one possible.
    runtime: Handle,
    /// Attempts under way.
    attempts: TaskTracker,
    /// Attempts are cut off.
    cut: CancellationToken,
    /// Everything else ends.
    stop: CancellationToken,
    /// Another process owns the partition, or the store is closed.
    lost: CancellationToken,
    /// One of the tasks that everything needs ended by itself.
    broken: CancellationToken,
}

/// One of the tasks that everything needs. Where it ends, or panics, though nobody stopped it, the engine cannot go on.
struct Needed(Arc<Core>);

impl Drop for Needed {
    fn drop(&mut self) {
        if !self.0.stop.is_cancelled() {
            self.0.lock().draining = true;
            self.0.broken.cancel();
        }
    }
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step under the lock; afterwards what it made possible is started, and who waits for it is woken.
    fn step<T>(self: &Arc<Self>, step: impl FnOnce(&mut State) -> T) -> T {
        let now = self.clock.now();
        let mut state = self.lock();
        let done = step(&mut state);
        // Under the lock: a drain that holds it knows that nothing is on its way to begin.
        for job in state.grant(now) {
            self.start(job);
        }
        self.wake(&state);
        done
    }

    fn start(self: &Arc<Self>, job: state::Job) {
        self.attempts.spawn_on(work::work(Arc::clone(self), job), &self.runtime);
    }

    /// Runs one of the tasks that everything needs.
    fn keep_up(self: &Arc<Self>, tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
        let needed = Needed(Arc::clone(self));
        tasks.spawn(async move {
            needed.0.stop.run_until_cancelled(task).await;
        });
    }

    fn wake(&self, state: &State) {
        if !state.outbox.is_empty() {
            self.settler.notify_one();
        }
        if !state.to_page.is_empty() {
            self.pager.notify_one();
        }
        if !state.urgent.is_empty() {
            self.poster.notify_one();
        }
        if state.timers.first().map(|(at, _)| *at) != state.timer_set {
            self.timer.notify_one();
        }
    }
}

/// A running engine.
pub struct Engine {
    core: Arc<Core>,
    tasks: TaskTracker,
}

impl Engine {
    /// Reads what lies in the store and begins. Nothing of an endpoint is sent before it is loaded.
    pub async fn start(config: EngineConfig) -> Result<Engine, QueueError> {
        let arrivals = config.queue.arrivals();
        let mut state = State::new(Arc::clone(&config.registry), config.metrics.clone());
        state.origin = config.origin;
        load(&mut state, &*config.queue, config.fence, &config.clock).await?;
        let core = Arc::new(Core {
            queue: config.queue,
            fence: config.fence,
            sender: config.sender,
            board: config.board,
            clock: config.clock,
            metrics: config.metrics,
            traces: config.traces,
            random: config.random,
            bury_after: config.bury_after,
            refused: config.refused,
            state: Mutex::new(state),
            graves: Mutex::default(),
            counting: tokio::sync::Mutex::default(),
            renderings: Semaphore::new(work::RENDERINGS),
            settler: Notify::new(),
            timer: Notify::new(),
            pager: Notify::new(),
            poster: Notify::new(),
            runtime: Handle::current(),
            attempts: TaskTracker::new(),
            cut: CancellationToken::new(),
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
            broken: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        if let Some(arrivals) = arrivals {
            core.keep_up(&tasks, follow_arrivals(Arc::clone(&core), arrivals));
        }
        core.keep_up(&tasks, follow_changes(Arc::clone(&core), config.changes));
        core.keep_up(&tasks, watch_time(Arc::clone(&core)));
        core.keep_up(&tasks, tick(Arc::clone(&core)));
        core.keep_up(&tasks, keep_states(Arc::clone(&core)));
        core.keep_up(&tasks, expiry::expire(Arc::clone(&core)));
        core.keep_up(&tasks, clear::clear(Arc::clone(&core)));
        if config.sees_all {
            core.keep_up(&tasks, purge::purge(Arc::clone(&core), config.registry));
        }
        core.keep_up(&tasks, post(Arc::clone(&core)));
        for _ in 0..PAGERS {
            core.keep_up(&tasks, read_pages(Arc::clone(&core)));
        }
        core.keep_up(&tasks, settle::settle(Arc::clone(&core)));
        Ok(Engine { core, tasks })
    }

    /// Returns when the engine cannot go on, and why: another process owns the partition, the store is closed, or a task
    /// ended by itself, without which what is stored would wait unseen.
    pub async fn lost(&self) -> &'static str {
        tokio::select! {
            biased;
            () = self.core.lost.cancelled() => "another dispatcher owns the store now",
            () = self.core.broken.cancelled() => "a task of the engine ended by itself",
        }
    }

    /// For whoever makes settled messages pending again in the store.
    pub fn again(&self) -> Again {
        Again {
            core: Arc::clone(&self.core),
        }
    }

    /// For whoever hears what consumers that pull have got.
    pub fn consumed(&self) -> Consumed {
        Consumed {
            core: Arc::clone(&self.core),
        }
    }

    /// Stops starting, waits for what is under way until `deadline` has passed, cuts off the rest (not counted; the next
    /// process sends it again), and records everything that ended. Whether all of it was recorded.
    pub async fn drain(self, deadline: Duration) -> bool {
        let core = &self.core;
        core.lock().draining = true;
        core.attempts.close();
        if tokio::time::timeout(deadline, core.attempts.wait()).await.is_err() {
            core.cut.cancel();
            core.attempts.wait().await;
        }
        let until = tokio::time::Instant::now() + LAST_WORDS;
        let recorded = tokio::time::timeout_at(until, settle::all_recorded(core))
            .await
            .unwrap_or(false);
        let states = core.lock().take_all_states();
        let keep = core.queue.put_endpoint_states(core.fence, states);
        let kept = match core.lost.is_cancelled() {
            true => true,
            // Handed to the store in any case: while it closes it tries its disk once more.
            false => match tokio::time::timeout_at(until, keep).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "failed to keep the endpoints' states");
                    false
                }
                Err(_late) => {
                    tracing::warn!("failed to keep the endpoints' states in time");
                    false
                }
            },
        };
        core.lock().post_all(&core.board, core.clock.now());
        core.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        recorded && kept
    }
}

/// An engine that is dropped without a drain ends like a killed process: nothing more is sent or recorded.
impl Drop for Engine {
    fn drop(&mut self) {
        self.core.lock().draining = true;
        self.core.cut.cancel();
        self.core.stop.cancel();
    }
}

/// Tells a running engine of messages that are pending again. What it is not told it finds with its next count.
#[derive(Clone)]
pub struct Again {
    core: Arc<Core>,
}

impl Again {
    /// They were made pending in the store.
    pub fn sent(&self, messages: &[SentAgain]) {
        let now = self.core.clock.now();
        self.core.step(|state| state.sent_again(messages, now));
    }
}

/// What lay in the store: counts and due times, states, and the ids of fresh messages.
async fn load(state: &mut State, queue: &dyn Queue, fence: Fence, clock: &Clock) -> Result<(), QueueError> {
    let now = clock.now();
    let backlogs = queue.backlog(fence).await?;
    for backlog in &backlogs {
        state.endpoint(backlog.endpoint).health = Health::after_restart();
    }
    for (id, stored) in queue.endpoint_states(fence).await? {
        state.endpoint(id).health = Health::restore(&stored);
    }
    state.metrics.show_order(&backlogs);
    for (id, counts) in by_endpoint(backlogs) {
        state.counted(id, &counts, now);
    }
    let mut after = MessageId(0);
    loop {
        let page = queue.fresh(fence, after, FRESH_PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.message;
        for pending in page {
            state.loaded.insert(pending.message);
            state.subscription(pending.endpoint, pending.subscription);
            state.endpoint(pending.endpoint).gauge.give(-1);
            state.hold_fresh(pending, None);
        }
    }
    Ok(())
}

async fn follow_arrivals(core: Arc<Core>, mut arrivals: mpsc::Receiver<Vec<Arrival>>) {
    while let Some(batch) = arrivals.recv().await {
        let now = core.clock.now();
        core.step(|state| state.arrived(batch, now));
    }
}

async fn follow_changes(core: Arc<Core>, mut changes: mpsc::Receiver<Change>) {
    while let Some(change) = changes.recv().await {
        let now = core.clock.now();
        core.graves
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .follow(&change);
        core.step(|state| match change {
            Change::Endpoint(entry) => state.endpoint_changed(entry, now),
            Change::Subscription(entry) => state.subscription_changed(entry, now),
            Change::Filter(entry) => state.filter_changed(&entry),
            Change::SubscriptionGone { id, .. } => state.subscription_gone(id, now),
            Change::Synced => state.all_loaded(now),
        });
    }
}

async fn watch_time(core: Arc<Core>) {
    loop {
        let next = {
            let mut state = core.lock();
            let next = state.timers.first().map(|(at, _)| *at);
            state.timer_set = next;
            next
        };
        match next {
            None => core.timer.notified().await,
            Some(at) => tokio::select! {
                () = core.timer.notified() => {}
                () = core.clock.sleep_until(at) => {
                    let now = core.clock.now();
                    core.step(|state| state.tick_timers(now));
                }
            },
        }
    }
}

async fn read_pages(core: Arc<Core>) {
    loop {
        let request = core.lock().next_page(core.clock.now());
        let Some(request) = request else {
            core.pager.notified().await;
            continue;
        };
        // The other reader goes on with what is left.
        core.pager.notify_one();
        match page::read(&*core.queue, core.fence, &request).await {
            Ok(pages) => {
                let now = core.clock.now();
                core.step(|state| state.paged(&request, pages, now));
            }
            Err(error) => {
                tracing::warn!(%error, endpoint = request.endpoint.0, "failed to read waiting messages");
                core.lock().page_failed(&request);
                settle::give_up_if_lost(&core, &error);
            }
        }
    }
}

async fn post(core: Arc<Core>) {
    loop {
        core.poster.notified().await;
        let urgent = std::mem::take(&mut core.lock().urgent);
        core.each(&urgent, |state, id, now| state.post_urgent(&core.board, id, now))
            .await;
        tokio::time::sleep(URGENT_PAUSE).await;
    }
}

async fn tick(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut count: u32 = 0;
    loop {
        ticks.tick().await;
        count = count.wrapping_add(1);
        let due = core.lock().due(core.clock.now());
        core.each(&due, State::look_again).await;
        let changed: Vec<EndpointId> = core.lock().changed.iter().copied().collect();
        core.each(&changed, |state, id, now| state.post_changed(&core.board, id, now))
            .await;
        if count.is_multiple_of(COUNT_EVERY) {
            core.recount().await;
            core.step(|state| state.look_at_consumers(core.clock.now()));
        }
    }
}

/// Keeps the states and the retentions that changed. A task of its own: while the disk refuses, the store does not answer.
async fn keep_states(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let retentions = std::mem::take(&mut core.lock().retentions);
        if !retentions.is_empty()
            && let Err(error) = core.queue.keep(core.fence, retentions.clone()).await
        {
            tracing::warn!(%error, "failed to keep endpoints' retentions; tried again");
            // Before what was said meanwhile.
            core.lock().retentions.splice(0..0, retentions);
        }
        let unkept = core.lock().unkept_states();
        for some in unkept.chunks(STATES_AT_ONCE) {
            let states = core.lock().take_states(some);
            if let Err(error) = core.queue.put_endpoint_states(core.fence, states).await {
                tracing::warn!(%error, "failed to keep endpoints' states; tried again");
                core.lock().states_not_kept(some);
            }
        }
    }
}

impl Core {
    /// A step for each of these endpoints at its own time: of a thousand of them, events have their turn in between.
    async fn each(self: &Arc<Self>, ids: &[EndpointId], mut step: impl FnMut(&mut State, EndpointId, UnixMillis)) {
        for some in ids.chunks(AT_ONCE) {
            // An earlier one would take time back: a rate would give for it twice, a pause that is over would be on again.
            let now = self.clock.now();
            self.step(|state| some.iter().for_each(|id| step(state, *id, now)));
            tokio::task::yield_now().await;
        }
    }

    /// Takes counts and the oldest messages from the store.
    async fn recount(self: &Arc<Self>) {
        let _counting = self.counting.lock().await;
        let backlogs = match self.queue.backlog(self.fence).await {
            Ok(backlogs) => backlogs,
            Err(error) => return tracing::warn!(%error, "failed to count what is pending"),
        };
        self.metrics.show_order(&backlogs);
        let mut counts = by_endpoint(backlogs);
        let known: Vec<EndpointId> = {
            let mut state = self.lock();
            // By now everything that was read at the start has arrived, had it been stored meanwhile.
            state.loaded = Default::default();
            state.endpoints.keys().copied().collect()
        };
        for id in known {
            counts.entry(id).or_default();
        }
        let ids: Vec<EndpointId> = counts.keys().copied().collect();
        self.each(&ids, |state, id, now| {
            state.counted(id, counts.get(&id).map(Vec::as_slice).unwrap_or_default(), now);
            state.sweep_expired(id, now);
            state.reclaim(id, now, self.bury_after);
        })
        .await;
    }
}

fn by_endpoint(backlogs: Vec<Backlog>) -> BTreeMap<EndpointId, Vec<Backlog>> {
    let mut counts: BTreeMap<EndpointId, Vec<Backlog>> = BTreeMap::new();
    for backlog in backlogs {
        counts.entry(backlog.endpoint).or_default().push(backlog);
    }
    counts
}
