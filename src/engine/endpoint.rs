//! One endpoint in the engine's memory: its window, its subscriptions, what is in flight. Synchronous and without I/O.
//!
//! Owns whether the endpoint may send now and what is due; knows nothing of slots. Invariant: a message id is in at most
//! one place of memory: window, flight or outbox.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::state::LOW_WATER;
use super::subscriptions::{Subscription, Subscriptions};
use crate::api::resolve::{PullPolicy, Rate, ResolvedEndpoint};
use crate::ids::{MessageId, SubscriptionId, UnixMillis};
use crate::queue::{Gauge, Pending, Release, StoredEvent};
use crate::registry::{EndpointEntry, EndpointState, OrderCell};
use crate::report::board::Delivering;
use crate::schedule::MAX_AGE;
use crate::schedule::decide::expired;
use crate::schedule::health::{Gate, Health};

/// Below this an attempt is never slow.
const PATIENCE: Duration = Duration::from_millis(250);
/// An attempt is slow when it takes this many times the usual.
const PATIENCE_FACTOR: u32 = 3;
/// From this age on it is slow whatever is usual: one that always answers late would else keep fast slots from everybody.
const PATIENCE_LONGEST: Duration = Duration::from_millis(1_500);
/// Retries remembered for status: only the first is shown.
const RETRIES_SHOWN: usize = 64;

/// A message to be started.
#[derive(Debug)]
pub(super) struct Held {
    pub pending: Pending,
    /// The event, where it came with the arrival and bodies are few.
    pub event: Option<Arc<StoredEvent>>,
    /// Stored fresh: it holds a place of the gauge, and no index knows it.
    pub fresh: bool,
}

/// Whether the endpoint may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Go {
        limit: usize,
    },
    Probe,
    Closed {
        until: Option<UnixMillis>,
    },
    /// Not loaded yet: nothing is known against it.
    Unloaded,
}

/// What of an endpoint's view is shown at once when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub delivering: Delivering,
    /// A dead letter blocks a key.
    pub blocked: bool,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub entry: Option<Arc<EndpointEntry>>,
    pub gauge: Arc<Gauge>,
    /// How its messages are accepted now, which is a moment before the entry says so.
    pub order: Arc<OrderCell>,
    /// What the gauge was last told.
    pub gauge_waiting: Option<bool>,
    /// Places given to the gauge in all.
    pub capacity: i64,
    pub health: Health,
    pub health_dirty: bool,
    pub window: VecDeque<Held>,
    /// Waiting messages of the store that are in the window, in flight or in the outbox, and whose they are.
    pub held: HashMap<MessageId, SubscriptionId>,
    /// Those that left `held` while a page was being read: the page may still show them.
    pub left: HashSet<MessageId>,
    pub paging: bool,
    /// Of whom the next pages are to show what waits, whether it may be sent or not.
    pub looks: Vec<SubscriptionId>,
    pub subscriptions: Subscriptions,
    pub in_flight: usize,
    /// Of those, in fast slots.
    pub fast: usize,
    /// Of those, slow: in the slow lane, or without room there.
    pub slow: usize,
    /// In the queues of endpoints that want a slot, by class.
    pub queued: [bool; 3],
    /// When an attempt ended, or one began while none was under way; of what is pulled, when something was acknowledged, or
    /// it was loaded.
    pub heard: UnixMillis,
    /// Counted among those that wait for their rate limit.
    pub paced: bool,
    pub timer: Option<UnixMillis>,
    /// Older due times do not count: the breaker closed, or the spec changed.
    pub overridden: bool,
    /// Those that failed since, and whose they are: their due times count.
    pub retried: HashMap<MessageId, SubscriptionId>,
    /// The usual time of a success, smoothed.
    pub usual: Duration,
    /// The largest body that was sent of late: what the next is taken to be until it is rendered.
    pub body: usize,
    pub oldest: Option<MessageId>,
    /// When all that waits was last looked at for what is too old.
    pub walked: UnixMillis,
    /// Failed messages by due time, for status: whose, and the attempts consumed.
    pub retries: BTreeMap<(UnixMillis, MessageId), (SubscriptionId, u16)>,
    pub posted: Option<(Standing, UnixMillis)>,
    /// What the store was told of how long its history is kept.
    pub retention: Option<Duration>,
}

impl Endpoint {
    pub fn new(gauge: Arc<Gauge>, order: Arc<OrderCell>, health: Health) -> Endpoint {
        Endpoint {
            entry: None,
            gauge,
            order,
            gauge_waiting: None,
            capacity: 0,
            health,
            health_dirty: false,
            window: VecDeque::new(),
            held: HashMap::new(),
            left: HashSet::new(),
            paging: false,
            looks: Vec::new(),
            subscriptions: Subscriptions::default(),
            in_flight: 0,
            fast: 0,
            slow: 0,
            queued: [false; 3],
            heard: UnixMillis(0),
            paced: false,
            timer: None,
            overridden: false,
            retried: HashMap::new(),
            usual: Duration::ZERO,
            body: 0,
            oldest: None,
            walked: UnixMillis(0),
            retries: BTreeMap::new(),
            posted: None,
            retention: None,
        }
    }

    /// How old a subscription's message may grow; none while who says it may still be loaded, for then nothing is given up.
    pub fn max_age(&self, subscription: SubscriptionId, synced: bool) -> Option<Duration> {
        let known = self.subscriptions.get(&subscription).and_then(Subscription::entry);
        let elsewhere = self
            .subscriptions
            .get(&subscription)
            .is_some_and(Subscription::is_elsewhere);
        match known.map(|entry| entry.spec.retry.as_ref().filter(|_| !elsewhere)) {
            Some(Some(own)) => return Some(own.max_age),
            None if !synced => return None,
            Some(None) | None => {}
        }
        match self.entry.as_ref().map(|entry| &entry.state) {
            Some(EndpointState::Usable(resolved)) => Some(resolved.retry.max_age),
            Some(EndpointState::Unusable { max_age, .. }) => Some(*max_age),
            Some(EndpointState::Pulled(policy)) => Some(policy.max_age),
            Some(EndpointState::Missing | EndpointState::Deleted { .. }) => Some(MAX_AGE),
            // One that exists may be loaded after every watch has synced; one that does not has an entry by then.
            None => None,
        }
    }

    /// Whether a message has grown too old: since its acceptance, or since a replay sent it again.
    pub fn is_over(&self, row: &Pending, synced: bool, now: UnixMillis) -> bool {
        let max_age = self.max_age(row.subscription, synced);
        max_age.is_some_and(|max_age| match row.again {
            Some(again) => now.since(again) >= max_age,
            None => expired(row.message, max_age, now),
        })
    }

    /// What to send to, if anything.
    pub fn usable(&self) -> Option<&Arc<ResolvedEndpoint>> {
        match &self.entry.as_ref()?.state {
            EndpointState::Usable(resolved) => Some(resolved),
            EndpointState::Unusable { .. }
            | EndpointState::Missing
            | EndpointState::Pulled(_)
            | EndpointState::Deleted { .. } => None,
        }
    }

    /// How long what is pulled waits and is kept, where this stands for a subscription whose messages are.
    pub fn pulled(&self) -> Option<PullPolicy> {
        match self.entry.as_ref()?.state {
            EndpointState::Pulled(policy) => Some(policy),
            _ => None,
        }
    }

    /// Whether its messages may begin in memory: what is pulled, and what is deleted, never do.
    pub fn takes_places(&self) -> bool {
        let state = self.entry.as_ref().map(|entry| &entry.state);
        !matches!(state, Some(EndpointState::Pulled(_) | EndpointState::Deleted { .. }))
    }

    /// Whether nothing of it is in memory, nor in the store as far as is known.
    pub fn is_empty(&self) -> bool {
        let is_busy = self.in_flight > 0 || self.paging || self.health_dirty || self.queued != [false; 3];
        let counts = |known: &Subscription| (known.pending, known.dead) == (0, 0);
        !is_busy && self.window.is_empty() && self.held.is_empty() && self.subscriptions.values().all(counts)
    }

    /// Messages held in the store behind others of their key, and dead letters that block theirs.
    pub fn ordered(&self) -> (i64, i64) {
        self.subscriptions.ordered()
    }

    /// What of it must not be ordered any more. Only a spec that can be used tells.
    pub fn to_release(&self) -> Option<Release> {
        self.usable()?;
        let (held, blocking) = self.ordered();
        match self.order.load().as_deref() {
            None => (held + blocking > 0).then_some(Release::Order),
            Some(fifo) => (!fifo.blocks && blocking > 0).then_some(Release::Blocked),
        }
    }

    /// Whether a dead letter blocks its key.
    pub fn blocks(&self) -> bool {
        self.order.load().as_deref().is_some_and(|fifo| fifo.blocks)
    }

    /// Whether what goes out alone may be sent before it is due: of a broken endpoint, but not of one that is only asked first.
    pub fn probes_any(&self) -> bool {
        self.health.breaker.is_open()
    }

    /// Whether what it is probed with is to be read from the store: where any message will do, one that is due later, too.
    pub fn seeks_probe(&self, now: UnixMillis) -> bool {
        let any = self.probes_any() && self.next_due().is_some();
        self.window.is_empty() && self.in_flight == 0 && (any || self.has_due(now))
    }

    /// Whether it has another spec, or other rules, than an attempt began with.
    pub fn is_other_than(&self, began: &ResolvedEndpoint) -> bool {
        self.usable()
            .is_some_and(|now| now.uid != began.uid || now.generation != began.generation || now.egress != began.egress)
    }

    /// Whether anything may go out at `now`.
    pub fn access(&self, now: UnixMillis) -> Access {
        if self.entry.is_none() {
            return Access::Unloaded;
        }
        match self.usable() {
            Some(resolved) if !resolved.suspend => match self.health.gate(now) {
                Gate::Go { limit } => Access::Go { limit: limit as usize },
                Gate::Probe => Access::Probe,
                Gate::Until(until) => Access::Closed { until: Some(until) },
                Gate::Disabled => Access::Closed { until: None },
            },
            _ => Access::Closed { until: None },
        }
    }

    /// Whether it would start an attempt, had it a slot.
    pub fn wants(&mut self, now: UnixMillis) -> bool {
        self.has_work(now) && self.turn(now) <= now
    }

    /// Whether it would start an attempt but for its rate limit.
    fn has_work(&self, now: UnixMillis) -> bool {
        !self.window.is_empty()
            && match self.access(now) {
                Access::Go { limit } => self.in_flight < limit && !self.is_silent(now),
                Access::Probe => self.in_flight == 0,
                Access::Closed { .. } | Access::Unloaded => false,
            }
    }

    /// How many requests may go out, if that is limited: by its spec, or by what its receiver allows.
    fn rate(&self) -> Option<Rate> {
        self.usable().and_then(|resolved| self.health.rate(resolved.rate))
    }

    /// When the rate limit lets the next request go: `now` or later.
    fn turn(&mut self, now: UnixMillis) -> UnixMillis {
        match self.rate() {
            Some(rate) => self.health.bucket.next(rate, now),
            None => now,
        }
    }

    /// When what waits only for the rate limit may go.
    pub fn paced_until(&mut self, now: UnixMillis) -> Option<UnixMillis> {
        let waits = self.rate().is_some() && self.has_work(now);
        waits.then(|| self.turn(now)).filter(|turn| *turn > now)
    }

    /// A request goes out.
    pub fn take_turn(&mut self, now: UnixMillis) {
        if let Some(rate) = self.rate() {
            self.health.bucket.take(rate, now);
        }
    }

    /// The earliest due time in the store of what may be sent and is not held here.
    pub fn next_due(&self) -> Option<UnixMillis> {
        self.subscriptions.next_due()
    }

    /// Whether the store has something to be started now. What is pulled never is.
    pub fn has_due(&self, now: UnixMillis) -> bool {
        self.pulled().is_none() && self.next_due().is_some_and(|due| self.overridden || due <= now)
    }

    /// Whether so little is left in the window that a page may be read.
    pub fn is_low(&self) -> bool {
        let places = usize::try_from(self.capacity).unwrap_or_default();
        self.window.len() <= LOW_WATER.min(places / 4)
    }

    /// Whether what may go from now on must wait in the store behind what is due there. While the window is low it need not:
    /// the page that is read then brings what was due before. So with few keys no message takes the way over a page, and with
    /// many each has its turn.
    pub fn is_behind(&self) -> bool {
        self.gauge_waiting == Some(true) && !self.is_low()
    }

    /// From this age on an attempt is slow.
    pub fn patience(&self) -> Duration {
        self.unusual().min(PATIENCE_LONGEST)
    }

    /// From this age on an attempt takes longer than they usually do.
    fn unusual(&self) -> Duration {
        PATIENCE.max(self.usual * PATIENCE_FACTOR)
    }

    /// Whether nothing of what is under way came back for half of what is unusual: then nothing more is begun until something
    /// does, if only a timeout. Of many endpoints that hang together those that are found out to be slow would else make
    /// room for more attempts at the others.
    fn is_silent(&self, now: UnixMillis) -> bool {
        self.in_flight > 0 && now.since(self.heard) >= self.unusual() / 2
    }

    /// Notes how long a success took: an eighth of it counts.
    pub fn note_success(&mut self, took: Duration) {
        self.usual = if self.usual.is_zero() {
            took
        } else {
            (self.usual * 7 + took) / 8
        };
    }

    /// Notes how long a body was as rendered: a smaller one takes an eighth off the largest.
    pub fn note_body(&mut self, bytes: usize) {
        self.body = bytes.max(self.body - self.body / 8);
    }

    /// Older due times do not count from now on.
    pub fn override_due_times(&mut self) {
        self.overridden = true;
        self.retried.clear();
    }

    /// A failed message waits until it is due.
    pub fn note_retry(&mut self, failed: &Pending) {
        let Pending {
            due,
            message,
            subscription,
            attempts,
            ..
        } = *failed;
        self.retries.insert((due, message), (subscription, attempts));
        if self.retries.len() > RETRIES_SHOWN {
            self.retries.pop_last();
        }
    }

    pub fn forget_retry(&mut self, due: UnixMillis, message: MessageId) {
        self.retries.remove(&(due, message));
    }

    /// Forgets the retries of subscriptions of which nothing is pending: the store buried their messages.
    pub fn forget_buried(&mut self) {
        let pends = |id: &SubscriptionId| self.subscriptions.get(id).is_some_and(|known| known.pending > 0);
        self.retries.retain(|_, (subscription, _)| pends(subscription));
    }

    /// Lets a message of the store go: from now on only the store knows it.
    pub fn release(&mut self, message: MessageId) {
        if self.held.remove(&message).is_some() && self.paging {
            self.left.insert(message);
        }
    }
}
