//! Slots, in simulated time: what a thousand endpoints that hang cost twenty that are well.

use std::collections::BTreeMap;

use super::*;
use crate::engine::state::{Job, Lane};
use crate::ids::EventId;
use crate::queue::{Arrival, MAX_PENDING, Pending, Placement, Settled, StoredEvent};

const HEALTHY: u32 = 20;
const HANGING: u32 = 1_000;
/// Milliseconds of the simulation.
const LENGTH: i64 = 12_000;
/// How long a healthy receiver takes, and how often it gets a message: it needs twenty attempts at a time.
const ANSWERS_AFTER: i64 = 100;
const EVERY: i64 = 5;
/// What a hanging one gets: more than its attempts at a time.
const MESSAGES: i64 = 40;

enum Happens {
    Arrives,
    /// An attempt is older than its patience.
    IsSlow(usize),
    Ends(usize),
}

/// The engine's state, with its tasks, its store and its clock played by the test.
struct Simulation {
    state: State,
    began: UnixMillis,
    /// Whether what is slow goes to the slow lane.
    demotes: bool,
    agenda: BTreeMap<(i64, usize), Happens>,
    jobs: Vec<Option<Job>>,
    count: usize,
    /// So many hang, or answer as late as this, and get so many messages each.
    hanging: u32,
    late: Option<i64>,
    messages: i64,
    /// From a healthy endpoint's message to its attempt, from this time on.
    waits: Vec<i64>,
    measured: i64,
}

impl Simulation {
    /// `grown`: every endpoint was well before, and its limit has grown.
    fn new(demotes: bool, grown: bool) -> Simulation {
        let (registry, _changes) = Registry::new(8);
        let mut simulation = Simulation {
            state: State::new(Arc::new(registry), EngineMetrics::default()),
            began: UnixMillis::now(),
            demotes,
            agenda: BTreeMap::new(),
            jobs: Vec::new(),
            count: 0,
            hanging: HANGING,
            late: None,
            messages: MESSAGES,
            waits: Vec::new(),
            measured: 1_000,
        };
        for id in 0..HEALTHY + HANGING {
            simulation.endpoint(id);
            let limit = &mut simulation.state.endpoint(EndpointId(id)).health.limit;
            if grown || id < HEALTHY {
                (0..64).for_each(|_| limit.grow(true));
            }
        }
        simulation
    }

    fn endpoint(&mut self, id: u32) {
        let name = if id < HEALTHY { "healthy" } else { "hanging" };
        let (name, began) = (format!("{name}-{id}"), self.began);
        let usable = EndpointState::Usable(Arc::new(resolved(&name)));
        load_endpoint(&mut self.state, EndpointId(id), &name, usable, began);
        load_subscription(&mut self.state, SubscriptionId(id), EndpointId(id), &name, began);
    }

    fn plan(&mut self, at: i64, happens: Happens) {
        self.count += 1;
        self.agenda.insert((at, self.count), happens);
    }

    fn message(&mut self, id: u32, now: UnixMillis) {
        self.count += 1;
        let event = EventId::next(EventId(0), now.0 / 1000);
        let pending = Pending {
            message: MessageId::new(EventId(event.0 + self.count as i64), 0),
            endpoint: EndpointId(id),
            subscription: SubscriptionId(id),
            attempts: 0,
            due: now,
            again: None,
        };
        self.state.hold_fresh(pending, None);
        self.state.evaluate(EndpointId(id), now);
    }

    /// A message is stored, as ingest places it.
    fn stored(&mut self, id: u32, now: UnixMillis) -> Arrival {
        self.count += 1;
        let event = EventId::next(EventId(0), now.0 / 1000);
        Arrival {
            message: MessageId::new(EventId(event.0 + self.count as i64), 0),
            endpoint: EndpointId(id),
            subscription: SubscriptionId(id),
            placement: self.state.registry.gauge(EndpointId(id)).place(MAX_PENDING),
            held: false,
            event: Arc::new(StoredEvent {
                attributes: Default::default(),
                body: Default::default(),
            }),
        }
    }

    fn run(mut self) -> Vec<i64> {
        for _ in 0..self.messages {
            (HEALTHY..HEALTHY + self.hanging).for_each(|id| self.message(id, self.began));
        }
        self.plan(0, Happens::Arrives);
        while let Some(((at, _), happens)) = self.agenda.pop_first()
            && at < LENGTH
        {
            let now = self.began.plus(Duration::from_millis(at.unsigned_abs()));
            match happens {
                Happens::Arrives => {
                    (0..HEALTHY).for_each(|id| self.message(id, now));
                    self.plan(at + EVERY, Happens::Arrives);
                }
                Happens::IsSlow(number) => {
                    if let Some(job) = &mut self.jobs[number] {
                        self.state.demote(job);
                    }
                }
                Happens::Ends(number) => {
                    let job = self.jobs[number].take().expect("it ends once");
                    let late = self.late.filter(|_| job.pending.endpoint.0 >= HEALTHY);
                    let took = Duration::from_millis(late.unwrap_or(ANSWERS_AFTER).unsigned_abs());
                    self.state.complete(&job, answered(200, took), now, 0.0);
                    let outcomes = std::mem::take(&mut self.state.outbox);
                    let answers = vec![Settled::Applied; outcomes.len()];
                    self.state.recorded(&outcomes, &answers, now);
                }
            }
            for job in self.state.grant(now) {
                self.start(job, at, now);
            }
        }
        self.waits.sort_unstable();
        self.waits
    }

    fn start(&mut self, mut job: Job, at: i64, now: UnixMillis) {
        assert!(self.state.body_rendered(&mut job, 1_024));
        let number = self.jobs.len();
        let patience = at + job.patience.as_millis() as i64;
        if job.pending.endpoint.0 < HEALTHY {
            if at >= self.measured {
                self.waits.push(now.0 - job.pending.due.0);
            }
            self.plan(at + ANSWERS_AFTER, Happens::Ends(number));
        } else if self.demotes {
            // Unless it is late only, it ends with its timeout, after the simulation.
            self.plan(patience, Happens::IsSlow(number));
            self.late
                .into_iter()
                .for_each(|late| self.plan(at + late, Happens::Ends(number)));
        }
        self.jobs.push(Some(job));
    }
}

fn p99(waits: &[i64]) -> i64 {
    waits[waits.len() * 99 / 100]
}

#[test]
fn a_thousand_endpoints_that_hang_take_no_slot_from_healthy_ones_whether_at_once_or_from_the_start() {
    let expected = (i64::from(HEALTHY) * (LENGTH - 1_000) / EVERY) as usize;
    for grown in [false, true] {
        let waits = Simulation::new(true, grown).run();
        assert_eq!(waits.len(), expected, "all were started");
        assert_eq!(p99(&waits), 0, "grown {grown}");
        let naive = Simulation::new(false, grown).run();
        assert!(
            naive.len() < expected && p99(&naive) > 1_000,
            "without the slow lane they would wait: {} of {expected} started, p99 {} ms",
            naive.len(),
            p99(&naive)
        );
    }
}

/// An endpoint of so many attempts at a time, with a receiver that takes so long.
fn grown(state: &mut State, id: EndpointId, namespace: &str, usual: Duration, now: UnixMillis) {
    let name = id.0.to_string();
    let mut endpoint = resolved(&name);
    endpoint.max_in_flight = 256;
    let entry = EndpointEntry {
        id,
        key: resource_key(&name),
        namespace: namespace.into(),
        gauge: state.registry.gauge(id),
        state: EndpointState::Usable(Arc::new(endpoint)),
    };
    state.endpoint_changed(Arc::new(entry), now);
    load_subscription(state, SubscriptionId(id.0), id, &name, now);
    let endpoint = state.endpoint(id);
    endpoint.note_success(usual);
    (0..256).for_each(|_| endpoint.health.limit.grow(true));
}

#[test]
fn endpoints_that_always_answer_late_do_not_keep_the_fast_slots() {
    const LATE: i64 = 5_000;
    let mut simulation = Simulation::new(true, true);
    // Together they want more than all slots for second and later attempts.
    (simulation.hanging, simulation.late, simulation.messages) = (5, Some(LATE), 1_000);
    let (began, usual) = (simulation.began, Duration::from_millis(LATE.unsigned_abs()));
    for id in HEALTHY..HEALTHY + simulation.hanging {
        grown(&mut simulation.state, EndpointId(id), "team", usual, began);
    }
    // What they got before they were known to be slow has ended by then, and what waited meanwhile was sent.
    simulation.measured = 8_000;
    let waits = simulation.run();
    assert_eq!(waits.len() as i64, i64::from(HEALTHY) * (LENGTH - 8_000) / EVERY);
    assert_eq!(p99(&waits), 0);
}

#[test]
fn a_receiver_that_always_takes_seconds_has_its_attempts_at_a_time_from_the_slow_lane() {
    let began = UnixMillis::now();
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    grown(&mut state, ENDPOINT, "team", Duration::from_secs(5), began);
    let mut lanes = Vec::new();
    // A message each second.
    for second in 0..5 {
        let now = began.plus(Duration::from_secs(second));
        state.hold_fresh(message(second as i64, now), None);
        state.evaluate(ENDPOINT, now);
        let mut job = state.grant(now).pop().expect("it is started at once");
        lanes.push(job.lane);
        assert!(job.patience < Duration::from_secs(2), "{:?}", job.patience);
        if second == 1 {
            // By now the first one is, too.
            state.demote(&mut job);
        }
    }
    assert_eq!(lanes, [Lane::Fast, Lane::Fast, Lane::Slow, Lane::Slow, Lane::Slow]);
}

/// Starts what there are slots for.
fn start_all(state: &mut State, now: UnixMillis) -> Vec<Job> {
    let mut started = Vec::new();
    loop {
        let mut jobs = state.grant(now);
        if jobs.is_empty() {
            return started;
        }
        // Small bodies: they are not what there is too little of.
        assert!(jobs.iter_mut().all(|job| state.body_rendered(job, 1_024)));
        started.append(&mut jobs);
    }
}

/// Five endpoints of a namespace take all slots of a kind and want more; so does one of another namespace, which gets all
/// that they give back.
fn yields(lane: Lane) {
    const GREEDY: u32 = 5;
    const MODEST: EndpointId = EndpointId(GREEDY);
    const WANTED: i64 = 200;
    let now = UnixMillis::now();
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let hold = |state: &mut State, id: EndpointId, number: i64| {
        let pending = Pending {
            endpoint: id,
            subscription: SubscriptionId(id.0),
            ..message(number, now)
        };
        state.hold_fresh(pending, None);
        state.evaluate(id, now);
    };
    for id in (0..GREEDY).map(EndpointId) {
        grown(&mut state, id, "greedy", Duration::from_millis(100), now);
        (0..1_000).for_each(|number| hold(&mut state, id, 10 * number + i64::from(id.0)));
    }
    let mut under_way = start_all(&mut state, now);
    if lane == Lane::Slow {
        under_way.iter_mut().for_each(|job| state.demote(job));
    }
    grown(&mut state, MODEST, "modest", Duration::from_millis(100), now);
    (0..WANTED).for_each(|number| hold(&mut state, MODEST, 10 * number + i64::from(MODEST.0)));
    let mut got = start_all(&mut state, now);
    if lane == Lane::Slow {
        got.iter_mut().for_each(|job| state.demote(job));
    }
    let ends: Vec<Job> = under_way
        .extract_if(.., |job| job.lane == lane)
        .take(WANTED as usize)
        .collect();
    for job in ends {
        state.complete(&job, answered(200, Duration::from_millis(100)), now, 0.0);
        got.extend(start_all(&mut state, now));
    }
    let modest = got.iter().filter(|job| job.pending.endpoint == MODEST).count();
    assert_eq!(modest as i64, WANTED, "of the {lane:?} lane");
}

#[test]
fn a_namespace_that_holds_half_of_the_slots_yields_to_others() {
    yields(Lane::Fast);
    yields(Lane::Slow);
}

#[test]
fn what_arrives_for_endpoints_that_hang_is_not_read_back_message_by_message() {
    let mut simulation = Simulation::new(true, false);
    let now = simulation.began;
    // What waits in the store, by endpoint.
    let mut rows: HashMap<EndpointId, Vec<Pending>> = HashMap::new();
    let (mut waiting, mut pages) = (0, 0);
    for _ in 0..MESSAGES {
        for id in HEALTHY..HEALTHY + HANGING {
            let arrival = simulation.stored(id, now);
            if arrival.placement == Placement::Waiting {
                waiting += 1;
                rows.entry(arrival.endpoint).or_default().push(Pending {
                    message: arrival.message,
                    endpoint: arrival.endpoint,
                    subscription: arrival.subscription,
                    attempts: 0,
                    due: now,
                    again: None,
                });
            }
            simulation.state.arrived(vec![arrival], now);
            let jobs = simulation.state.grant(now);
            simulation.jobs.extend(jobs.into_iter().map(Some));
            while let Some(request) = simulation.state.next_page(now) {
                pages += 1;
                let known = rows.get(&request.endpoint).cloned().unwrap_or_default();
                let of = SubscriptionId(request.endpoint.0);
                let page = known.into_iter().take(request.limits[&of]).collect();
                simulation.state.paged(&request, vec![(of, page)], now);
            }
        }
    }
    assert!(waiting > 10 * HANGING, "{waiting} waited: there were too many places");
    assert!(pages <= 3 * HANGING, "{pages} pages were read of {waiting} messages");
}
