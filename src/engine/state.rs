//! All endpoints, and the slots they share. Synchronous and without I/O: every method is one step under the engine's lock.
//!
//! Owns who may start next; knows nothing of tasks, sockets or SQL. Invariant: a slot is held by exactly one attempt, and
//! an endpoint without anything due costs nothing but its place in a map.
//!
//! A window is 512 messages, not 64: at 12,000 messages a second one group commit brings more than 64 at once, and a
//! message without a place goes the indexed way, which costs the store twice as much.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{Access, Endpoint, Held};
use super::metrics::{EngineMetrics, Reason};
use super::places::give_places;
use super::subscriptions::Subscription;
use crate::api::resolve::ResolvedEndpoint;
use crate::delivery::{MAX_ANSWER, Origin};
use crate::ids::{EndpointId, MessageId, SubscriptionId, UnixMillis};
use crate::queue::{Arrival, DeadReason, MAX_PENDING, Pending, Placement, SentAgain, Settlement, StoredEvent, Verdict};
use crate::registry::{Registry, SubscriptionEntry};
use crate::schedule::handshake::Question;
use crate::schedule::health::Health;

/// Attempts under way that are not slow: about what one core's sockets and buffers bear.
const FAST_SLOTS: usize = 2_048;
/// Of them, for an endpoint's second and later attempts: the other half is for first ones, so a busy endpoint never
/// keeps a quiet one from starting.
const EXTRA_SLOTS: usize = FAST_SLOTS / 2;
/// Slow attempts, which would otherwise hold the fast slots.
const SLOW_SLOTS: usize = 512;
/// Of each class, what one namespace may hold before its endpoints come after those of others. First attempts have no such
/// share: they are one for each endpoint.
const SHARES: [usize; 3] = [usize::MAX, EXTRA_SLOTS / 2, SLOW_SLOTS / 2];
/// An endpoint's places for messages (see above).
pub(super) const WINDOW: usize = 512;
/// Below this the next page is read, so that an endpoint does not run dry meanwhile. One with fewer places than a window waits
/// until no more of them are taken than this part, or each message beyond them would have a page read.
pub(super) const LOW_WATER: usize = WINDOW / 4;
/// Bodies of fresh messages that wait in windows; beyond, they are read back when started.
const WINDOW_BODIES: usize = 32 << 20;
/// Bodies in flight.
const FLIGHT_BODIES: usize = 64 << 20;
/// Up to this many for an endpoint's second and later attempts and for slow ones: as with slots, the rest is for first ones.
const EXTRA_BODIES: usize = FLIGHT_BODIES / 2;
/// Of them, those of slow ones, which keep them for long, when one more of them starts.
const SLOW_BODIES: usize = EXTRA_BODIES / 2;
/// What a body that is still to be read may take: the default limit of ingest.
const UNREAD_BODY: usize = 256 << 10;
/// Outcomes that the store has not recorded; beyond, nothing is started and no page is read, for a crash would repeat all
/// of it.
pub(super) const UNRECORDED: usize = 10_000;

/// Where an attempt's slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Fast,
    Slow,
}

/// An attempt to be made.
#[derive(Debug)]
pub(super) struct Job {
    pub pending: Pending,
    pub event: Option<Arc<StoredEvent>>,
    pub probe: bool,
    /// The receiver is asked this first.
    pub question: Option<Question>,
    pub lane: Lane,
    pub endpoint: Arc<ResolvedEndpoint>,
    pub subscription: Arc<SubscriptionEntry>,
    pub started: UnixMillis,
    pub patience: Duration,
    /// It is slow, and there was no room for it in the slow lane.
    pub overdue: bool,
    /// Bytes of the budget of bodies, and up to where this one may fill it.
    pub reserved: usize,
    pub budget: usize,
}

#[derive(Debug)]
pub(super) struct State {
    pub registry: Arc<Registry>,
    /// Who asks receivers that are asked first.
    pub origin: Origin,
    pub metrics: EngineMetrics,
    /// Boxed: a map of thousands is a quarter empty, or more.
    pub endpoints: HashMap<EndpointId, Box<Endpoint>>,
    /// Endpoints that want a slot, by what kind their next start is: first, later, slow.
    ready: [VecDeque<EndpointId>; 3],
    /// Those of them that come after the others, for their namespace has its share.
    yielding: [VecDeque<EndpointId>; 3],
    /// What each namespace holds of the slots for later attempts and of the slow lane.
    shares: [HashMap<String, usize>; 3],
    pub fast: usize,
    /// Of those, every endpoint's beyond its first.
    extra: usize,
    pub slow: usize,
    flight_bodies: usize,
    /// Of those, in the slow lane.
    slow_bodies: usize,
    window_bodies: usize,
    /// Given to all endpoints.
    pub places: i64,
    pub timers: BTreeSet<(UnixMillis, EndpointId)>,
    /// What the task that watches time sleeps until.
    pub timer_set: Option<UnixMillis>,
    /// Which endpoints hold messages of a subscription: one, and after a recreation for another endpoint more.
    pub homes: HashMap<SubscriptionId, Vec<EndpointId>>,
    pub outbox: Vec<Settlement>,
    /// How long endpoints' history is kept, to be told to the store.
    pub retentions: Vec<(EndpointId, Duration)>,
    /// Handed to the store, not answered.
    pub settling: usize,
    pub to_page: VecDeque<EndpointId>,
    /// Endpoints whose messages are in an order that they no longer want.
    pub disordered: BTreeSet<EndpointId>,
    /// Endpoints of which held messages may be too old.
    pub holding_old: BTreeSet<EndpointId>,
    /// Endpoints of which waiting messages may be too old, behind others that are due earlier.
    pub hiding_old: BTreeSet<EndpointId>,
    /// Endpoints whose view changed.
    pub changed: HashSet<EndpointId>,
    /// Endpoints whose view is to be posted at once when its reason changed.
    pub urgent: Vec<EndpointId>,
    pub draining: bool,
    pub synced: bool,
    /// Fresh messages read at the start, that may arrive once more.
    pub loaded: HashSet<MessageId>,
}

const FIRST: usize = 0;
const LATER: usize = 1;
const SLOW: usize = 2;

impl State {
    pub fn new(registry: Arc<Registry>, metrics: EngineMetrics) -> State {
        State {
            registry,
            origin: Origin::default(),
            metrics,
            endpoints: HashMap::new(),
            ready: Default::default(),
            yielding: Default::default(),
            shares: Default::default(),
            fast: 0,
            extra: 0,
            slow: 0,
            flight_bodies: 0,
            slow_bodies: 0,
            window_bodies: 0,
            places: 0,
            timers: BTreeSet::new(),
            timer_set: None,
            homes: HashMap::new(),
            outbox: Vec::new(),
            retentions: Vec::new(),
            settling: 0,
            to_page: VecDeque::new(),
            disordered: BTreeSet::new(),
            holding_old: BTreeSet::new(),
            hiding_old: BTreeSet::new(),
            changed: HashSet::new(),
            urgent: Vec::new(),
            draining: false,
            synced: false,
            loaded: HashSet::new(),
        }
    }

    /// The endpoint, made when it is seen for the first time.
    pub fn endpoint(&mut self, id: EndpointId) -> &mut Endpoint {
        let State {
            endpoints,
            registry,
            places,
            ..
        } = self;
        endpoints.entry(id).or_insert_with(|| {
            let mut endpoint = Endpoint::new(registry.gauge(id), registry.order(id), Health::default());
            endpoint.entry = registry.endpoint(id);
            if endpoint.takes_places() {
                give_places(&mut endpoint, places);
            }
            Box::new(endpoint)
        })
    }

    /// The subscription at its endpoint, made when it is seen for the first time.
    pub fn subscription(&mut self, endpoint: EndpointId, id: SubscriptionId) -> &mut Subscription {
        self.endpoint(endpoint);
        let State {
            endpoints,
            registry,
            homes,
            ..
        } = self;
        let new = || Endpoint::new(registry.gauge(endpoint), registry.order(endpoint), Health::default());
        let known = endpoints.entry(endpoint).or_insert_with(|| Box::new(new()));
        known.subscriptions.get_or_make(id, || {
            homes.entry(id).or_default().push(endpoint);
            Subscription::new(endpoint, registry.subscription(id))
        })
    }

    /// Messages were stored just now.
    pub fn arrived(&mut self, arrivals: Vec<Arrival>, now: UnixMillis) {
        let mut touched: Vec<EndpointId> = Vec::with_capacity(4);
        for arrival in arrivals {
            if !self.loaded.is_empty() && self.loaded.contains(&arrival.message) {
                continue;
            }
            let id = arrival.endpoint;
            let paging = self.endpoint(id).paging;
            let subscription = self.subscription(id, arrival.subscription);
            subscription.view_dirty = true;
            match arrival.placement {
                Placement::QueueFull => {
                    let reason = DeadReason::QueueFull.reason();
                    subscription.dead += 1;
                    subscription.last_dead = Some((now, reason));
                    self.metrics.dead_letters.get_or_create(&Reason { reason }).inc();
                }
                _ if arrival.held => {
                    subscription.pending += 1;
                    let endpoint = self.endpoint(id);
                    endpoint.subscriptions.add_ordered(arrival.subscription, 1, 0);
                    endpoint.gauge.give(i64::from(arrival.placement == Placement::Fresh));
                    self.pends(id, arrival.message);
                    // Accepted just before the order was given up.
                    self.look_at_order(id);
                }
                Placement::Waiting => {
                    subscription.pending += 1;
                    let subscriptions = &mut self.endpoint(id).subscriptions;
                    subscriptions.note_due(arrival.subscription, now, paging);
                    self.pends(id, arrival.message);
                }
                Placement::Pulled => {
                    subscription.pending += 1;
                    subscription.ring();
                    self.pends(id, arrival.message);
                }
                Placement::Fresh => {
                    subscription.pending += 1;
                    self.pends(id, arrival.message);
                    let pending = Pending {
                        message: arrival.message,
                        endpoint: id,
                        subscription: arrival.subscription,
                        attempts: 0,
                        due: now,
                        again: None,
                    };
                    self.hold_fresh(pending, Some(arrival.event));
                    self.no_longer_idle(id);
                }
            }
            if touched.last() != Some(&id) {
                touched.push(id);
            }
        }
        for id in touched {
            self.changed.insert(id);
            self.evaluate(id, now);
        }
    }

    /// A replay made settled messages pending again.
    pub fn sent_again(&mut self, messages: &[SentAgain], now: UnixMillis) {
        for one in messages {
            let paging = self.endpoint(one.endpoint).paging;
            let subscription = self.subscription(one.endpoint, one.subscription);
            subscription.pending += 1;
            subscription.dead -= i64::from(one.was_dead);
            subscription.view_dirty = true;
            if one.pulled {
                subscription.ring();
            }
            let is_held = one.held && !one.pulled;
            let subscriptions = &mut self.endpoint(one.endpoint).subscriptions;
            subscriptions.add_ordered(one.subscription, i64::from(is_held), -i64::from(one.unblocks));
            if !one.pulled && !one.held {
                subscriptions.note_due(one.subscription, now, paging);
            }
            self.pends(one.endpoint, one.message);
            // Its endpoint may want no order any more.
            self.look_at_order(one.endpoint);
        }
        let touched: BTreeSet<EndpointId> = messages.iter().map(|one| one.endpoint).collect();
        for id in touched {
            self.changed.insert(id);
            self.evaluate(id, now);
        }
    }

    fn pends(&mut self, id: EndpointId, message: MessageId) {
        let endpoint = self.endpoint(id);
        endpoint.gauge.add_pending(1);
        endpoint.oldest = Some(endpoint.oldest.map_or(message, |oldest| oldest.min(message)));
    }

    /// Puts a fresh message into its endpoint's window.
    pub fn hold_fresh(&mut self, pending: Pending, event: Option<Arc<StoredEvent>>) {
        let event = event.filter(|event| {
            let size = event.size();
            let fits = self.window_bodies + size <= WINDOW_BODIES;
            self.window_bodies += if fits { size } else { 0 };
            fits
        });
        let held = Held {
            pending,
            event,
            fresh: true,
        };
        self.endpoint(pending.endpoint).window.push_back(held);
        self.metrics.window.inc();
    }

    /// Looks at an endpoint anew: lets go what must not be held, asks for a page, a slot or a timer.
    pub fn evaluate(&mut self, id: EndpointId, now: UnixMillis) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let access = endpoint.access(now);
        let due = endpoint.has_due(now);
        let paced = endpoint.paced_until(now);
        let mut page = false;
        let mut wake = None;
        let mut waiting = true;
        match access {
            Access::Unloaded => {}
            Access::Closed { until } => {
                wake = until;
                if !endpoint.window.is_empty() {
                    self.let_go(id, |_| true);
                }
            }
            Access::Probe => {
                let next = endpoint.next_due();
                let any = endpoint.probes_any();
                page = endpoint.seeks_probe(now);
                let next = next.filter(|next| *next > now && !any);
                wake = [next, paced].into_iter().flatten().min();
            }
            Access::Go { .. } => {
                waiting = due;
                page = due && endpoint.is_low();
                let due = endpoint.next_due().filter(|due| *due > now);
                wake = [due, paced].into_iter().flatten().min();
            }
        }
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let paced = paced.is_some();
        if paced != endpoint.paced {
            endpoint.paced = paced;
            self.metrics.rate_limited.inc_by(if paced { 1 } else { -1 });
        }
        if endpoint.gauge_waiting != Some(waiting) {
            endpoint.gauge_waiting = Some(waiting);
            endpoint.gauge.set_waiting(waiting);
        }
        if page && !endpoint.paging && !self.draining {
            endpoint.paging = true;
            self.to_page.push_back(id);
        }
        if endpoint.timer != wake {
            if let Some(before) = endpoint.timer.take() {
                self.timers.remove(&(before, id));
            }
            endpoint.timer = wake;
            self.timers.extend(wake.map(|at| (at, id)));
        }
        self.enqueue(id, now);
    }

    /// Endpoints whose time has come.
    pub fn tick_timers(&mut self, now: UnixMillis) {
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.timer = None;
            }
            self.evaluate(id, now);
        }
    }

    /// Takes messages out of a window: fresh ones become waiting ones in the store, the others wait there already.
    pub fn let_go(&mut self, id: EndpointId, which: impl Fn(&Held) -> bool) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        let (gone, stay): (VecDeque<Held>, VecDeque<Held>) =
            std::mem::take(&mut endpoint.window).into_iter().partition(which);
        endpoint.window = stay;
        for held in gone {
            self.forget_body(&held);
            let pending = held.pending;
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                return;
            };
            if held.fresh {
                endpoint.gauge.give(1);
                let verdict = Verdict::Wait {
                    due: pending.due,
                    attempts: pending.attempts,
                };
                self.hand_over(unmade(pending, verdict));
            } else {
                endpoint.release(pending.message);
                // Whatever page is being read was asked for before, and no longer says that it is held here.
                endpoint.left.remove(&pending.message);
                let Endpoint {
                    subscriptions, paging, ..
                } = &mut **endpoint;
                subscriptions.note_due(pending.subscription, pending.due, *paging);
            }
        }
    }

    /// The next message of its key may go; whether it waits in the store.
    pub fn promoted(&mut self, next: Pending, waits: bool) {
        self.subscription(next.endpoint, next.subscription);
        let endpoint = self.endpoint(next.endpoint);
        endpoint.subscriptions.add_ordered(next.subscription, -1, 0);
        if waits {
            let paging = endpoint.paging;
            endpoint.subscriptions.note_due(next.subscription, next.due, paging);
        } else {
            endpoint.gauge.give(-1);
            self.hold_fresh(next, None);
        }
    }

    /// An outcome to be recorded. A message that will wait is held until we hear that it is: the store shows it to a page
    /// as soon as it is recorded, which is earlier.
    pub fn hand_over(&mut self, mut outcome: Settlement) {
        outcome.tell = self.told_of(&outcome);
        if let Some(endpoint) = self.endpoints.get_mut(&outcome.endpoint) {
            outcome.next_waits = endpoint.is_behind();
            match outcome.verdict {
                Verdict::Wait { .. } => drop(endpoint.held.insert(outcome.message, outcome.subscription)),
                Verdict::Dead { .. } => outcome.blocks = endpoint.blocks(),
                Verdict::Delivered => {}
            }
        }
        self.outbox.push(outcome);
    }

    /// Who is told of a dead letter, if anybody.
    pub fn told_of(&self, outcome: &Settlement) -> Option<EndpointId> {
        let Verdict::Dead { reason } = outcome.verdict else {
            return None;
        };
        let known = self.endpoints.get(&outcome.endpoint)?;
        let to = known.subscriptions.get(&outcome.subscription)?.entry()?.dead_letter?;
        if !reason.is_told() || outcome.message.is_notice() {
            return None;
        }
        if self.registry.gauge(to).pending() >= MAX_PENDING {
            let reason = DeadReason::QueueFull.reason();
            self.metrics.untold.get_or_create(&Reason { reason }).inc();
            return None;
        }
        Some(to)
    }

    fn forget_body(&mut self, held: &Held) {
        self.metrics.window.dec();
        if let Some(event) = &held.event {
            self.window_bodies = self.window_bodies.saturating_sub(event.size());
        }
    }

    fn enqueue(&mut self, id: EndpointId, now: UnixMillis) {
        if let Some(endpoint) = self.endpoints.get_mut(&id)
            && endpoint.wants(now)
        {
            let class = lane_class(endpoint);
            // It may stand in another queue too, for what it wanted before: there may be no room for that for long.
            if !std::mem::replace(&mut endpoint.queued[class], true) {
                self.ready[class].push_back(id);
            }
        }
    }

    fn has_room(&self, class: usize) -> bool {
        match class {
            FIRST => self.fast < FAST_SLOTS,
            LATER => self.fast < FAST_SLOTS && self.extra < EXTRA_SLOTS,
            _ => self.slow < SLOW_SLOTS,
        }
    }

    /// The endpoint whose turn it is.
    fn next_ready(&mut self, class: usize) -> Option<EndpointId> {
        let before = self.yielding[class].front();
        if before.is_some_and(|id| !self.has_share(*id, class)) {
            return self.yielding[class].pop_front();
        }
        while let Some(id) = self.ready[class].pop_front() {
            if !self.has_share(id, class) {
                return Some(id);
            }
            self.yielding[class].push_back(id);
        }
        self.yielding[class].pop_front()
    }

    /// Whether the endpoint's namespace holds its share of a class.
    fn has_share(&self, id: EndpointId, class: usize) -> bool {
        let entry = self.endpoints.get(&id).and_then(|endpoint| endpoint.entry.as_ref());
        let held = entry.and_then(|entry| self.shares[class].get(&entry.namespace));
        held.is_some_and(|held| *held >= SHARES[class])
    }

    /// The endpoint's namespace holds one slot more of a class, or one less.
    fn share(&mut self, id: EndpointId, class: usize, by: isize) {
        let entry = self.endpoints.get(&id).and_then(|endpoint| endpoint.entry.as_ref());
        let Some(entry) = entry else { return };
        let shares = &mut self.shares[class];
        match shares.get_mut(&entry.namespace) {
            Some(1) if by < 0 => drop(shares.remove(&entry.namespace)),
            Some(held) => *held = held.saturating_add_signed(by),
            None if by > 0 => drop(shares.insert(entry.namespace.clone(), 1)),
            None => {}
        }
    }

    /// Outcomes that a crash would repeat.
    pub fn unrecorded(&self) -> usize {
        self.outbox.len() + self.settling
    }

    /// Starts what there are slots for, round robin over endpoints.
    pub fn grant(&mut self, now: UnixMillis) -> Vec<Job> {
        self.metrics.unrecorded.set(self.unrecorded() as i64);
        let mut jobs = Vec::new();
        if self.draining || self.unrecorded() >= UNRECORDED {
            return jobs;
        }
        let mut class = FIRST;
        while class <= SLOW {
            if !self.has_room(class) {
                class += 1;
                continue;
            }
            let Some(id) = self.next_ready(class) else {
                class += 1;
                continue;
            };
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            endpoint.queued[class] = false;
            if !endpoint.wants(now) {
                // It may be only by this clock that it does not: somebody else's was ahead when it was queued, and its timer
                // went with that.
                self.evaluate(id, now);
                continue;
            }
            let actual = lane_class(endpoint);
            if actual != class {
                if !std::mem::replace(&mut endpoint.queued[actual], true) {
                    self.ready[actual].push_back(id);
                }
                class = class.min(actual);
                continue;
            }
            let event = endpoint.window.front().and_then(|held| held.event.as_deref());
            let body = event.map_or(UNREAD_BODY, StoredEvent::size).max(endpoint.body);
            let needs = body + endpoint.usable().map_or(0, |resolved| answer(resolved));
            let has_place = |taken: usize, budget: usize| taken == 0 || taken + needs <= budget;
            let fits = has_place(self.flight_bodies, budget(class))
                && (class != SLOW || has_place(self.slow_bodies, SLOW_BODIES));
            if !fits {
                endpoint.queued[class] = true;
                self.ready[class].push_front(id);
                class += 1;
                continue;
            }
            if let Some(job) = self.start(id, class, needs, now) {
                jobs.push(job);
            }
            self.evaluate(id, now);
        }
        self.metrics.in_flight.set((self.fast + self.slow) as i64);
        self.metrics.slow_lane.set(self.slow as i64);
        jobs
    }

    fn start(&mut self, id: EndpointId, class: usize, reserved: usize, now: UnixMillis) -> Option<Job> {
        let endpoint = self.endpoints.get_mut(&id)?;
        let resolved = Arc::clone(endpoint.usable()?);
        let held = endpoint.window.pop_front()?;
        let pending = held.pending;
        self.forget_body(&held);
        let endpoint = self.endpoints.get_mut(&id)?;
        if held.fresh {
            endpoint.gauge.give(1);
        }
        if endpoint.is_over(&pending, self.synced, now) {
            endpoint.forget_retry(pending.due, pending.message);
            let reason = DeadReason::Expired;
            self.hand_over(unmade(pending, Verdict::Dead { reason }));
            return None;
        }
        let Some(subscription) = endpoint
            .subscriptions
            .get(&pending.subscription)
            .filter(|subscription| subscription.sends())
            .and_then(|subscription| subscription.entry().cloned())
        else {
            // Its subscription was suspended, lacks a Secret, or is not loaded: it waits.
            let verdict = Verdict::Wait {
                due: pending.due,
                attempts: pending.attempts,
            };
            self.hand_over(unmade(pending, verdict));
            return None;
        };
        self.metrics.start_lag.observe(now.since(pending.due).as_secs_f64());
        endpoint.forget_retry(pending.due, pending.message);
        let probe = endpoint.health.breaker.is_open();
        let question = endpoint.health.unanswered();
        endpoint.take_turn(now);
        if endpoint.in_flight == 0 {
            endpoint.heard = now;
        }
        endpoint.in_flight += 1;
        let lane = match class {
            SLOW => {
                endpoint.slow += 1;
                self.slow += 1;
                self.slow_bodies += reserved;
                Lane::Slow
            }
            _ => {
                self.fast += 1;
                self.extra += usize::from(endpoint.fast > 0);
                endpoint.fast += 1;
                Lane::Fast
            }
        };
        self.flight_bodies += reserved;
        let job = Job {
            pending,
            event: held.event,
            probe,
            question,
            lane,
            endpoint: resolved,
            subscription,
            started: now,
            patience: endpoint.patience(),
            overdue: false,
            reserved,
            budget: budget(class),
        };
        if class != FIRST {
            self.share(id, class, 1);
        }
        Some(job)
    }

    /// An event was read: it may be larger than was thought.
    pub fn body_read(&mut self, job: &mut Job, bytes: usize) {
        self.reserve(job, bytes.max(job.reserved));
    }

    /// What is to be sent was rendered: from now on that counts, and the answer that may be kept. False where there is no room
    /// for it; alone it always has some. The endpoint's next one waits for as much before it starts.
    pub fn body_rendered(&mut self, job: &mut Job, bytes: usize) -> bool {
        if let Some(endpoint) = self.endpoints.get_mut(&job.pending.endpoint) {
            endpoint.note_body(bytes);
        }
        let needs = bytes + answer(&job.endpoint);
        let others = self.flight_bodies.saturating_sub(job.reserved);
        let fits = needs <= job.reserved || others == 0 || others + needs <= job.budget;
        if fits {
            self.reserve(job, needs);
        }
        fits
    }

    fn reserve(&mut self, job: &mut Job, bytes: usize) {
        self.flight_bodies = (self.flight_bodies + bytes).saturating_sub(job.reserved);
        if job.lane == Lane::Slow {
            self.slow_bodies = (self.slow_bodies + bytes).saturating_sub(job.reserved);
        }
        job.reserved = bytes;
    }

    /// The attempt is slow: it goes to the slow lane if there is room, and its endpoint's next starts there in any case, so
    /// that those that hang do not fill the fast slots again that others of them left.
    pub fn demote(&mut self, job: &mut Job) {
        if job.lane == Lane::Slow || job.overdue {
            return;
        }
        if self.slow < SLOW_SLOTS {
            self.leave_fast(job.pending.endpoint);
            self.slow += 1;
            self.slow_bodies += job.reserved;
            self.share(job.pending.endpoint, SLOW, 1);
            job.lane = Lane::Slow;
        } else {
            job.overdue = true;
        }
        if let Some(endpoint) = self.endpoints.get_mut(&job.pending.endpoint) {
            endpoint.slow += 1;
        }
    }

    fn leave_fast(&mut self, id: EndpointId) {
        self.fast -= 1;
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.fast -= 1;
            if endpoint.fast > 0 {
                self.extra -= 1;
                self.share(id, LATER, -1);
            }
        }
    }

    /// Gives the attempt's slot and bytes back.
    pub fn free(&mut self, job: &Job) {
        self.flight_bodies = self.flight_bodies.saturating_sub(job.reserved);
        if let Some(endpoint) = self.endpoints.get_mut(&job.pending.endpoint) {
            endpoint.in_flight -= 1;
            endpoint.slow -= usize::from(job.lane == Lane::Slow || job.overdue);
        }
        match job.lane {
            Lane::Fast => self.leave_fast(job.pending.endpoint),
            Lane::Slow => {
                self.slow -= 1;
                self.share(job.pending.endpoint, SLOW, -1);
                self.slow_bodies = self.slow_bodies.saturating_sub(job.reserved);
            }
        }
    }
}

/// What became of a message without an attempt.
pub(super) fn unmade(pending: Pending, verdict: Verdict) -> Settlement {
    Settlement {
        message: pending.message,
        endpoint: pending.endpoint,
        subscription: pending.subscription,
        attempts: pending.attempts,
        record: None,
        verdict,
        consumed: pending.attempts,
        blocks: false,
        next_waits: false,
        tell: None,
    }
}

/// How much all bodies may take when one of this class starts.
fn budget(class: usize) -> usize {
    if class == FIRST { FLIGHT_BODIES } else { EXTRA_BODIES }
}

/// What the answer may take beside the body: it is kept where it is to be judged.
fn answer(endpoint: &ResolvedEndpoint) -> usize {
    if endpoint.success.is_some() { MAX_ANSWER } else { 0 }
}

fn lane_class(endpoint: &Endpoint) -> usize {
    match (endpoint.slow, endpoint.in_flight) {
        (0, 0) => FIRST,
        (0, _) => LATER,
        _ => SLOW,
    }
}
