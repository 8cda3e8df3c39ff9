//! Keys of an order, in simulated time: each has its turn, however many there are and whatever is behind it.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::engine::page::{PageRequest, Rows};
use crate::engine::state::Job;
use crate::ids::EventId;
use crate::queue::{Pending, Settled, Settlement, Verdict};

/// Messages of each key.
const MESSAGES: usize = 50;
/// How long the receiver takes: with 64 attempts at a time 6,400 messages a second.
const ANSWERS_AFTER: i64 = 10;
/// How long the store takes, for a commit or a page.
const STORES_AFTER: i64 = 4;
/// One key's first message is answered 400 once, and due again after this.
const BACKOFF: i64 = 1_000;
const FAILING: usize = 7;

enum Happens {
    Ends(usize),
    Recorded(Vec<Settlement>),
    Read(PageRequest, Vec<Rows>),
    TimeIsLookedAt,
}

/// An endpoint that ordered its messages through an outage, with its tasks, its store and its clock played by the test.
struct Simulation {
    state: State,
    began: UnixMillis,
    keys: usize,
    agenda: BTreeMap<(i64, usize), Happens>,
    jobs: Vec<Option<Job>>,
    count: usize,
    settling: bool,
    /// The store: the heads of keys that wait, by due time, and what is held behind each head.
    waiting: BTreeMap<(UnixMillis, MessageId), Pending>,
    dues: HashMap<MessageId, UnixMillis>,
    held: Vec<VecDeque<MessageId>>,
    /// How many heads went from held to waiting.
    promoted_to_wait: usize,
    pages: usize,
    /// When each attempt began: key, the message's number in it, milliseconds.
    attempts: Vec<(usize, usize, i64)>,
}

impl Simulation {
    fn new(keys: usize) -> Simulation {
        let (registry, _changes) = Registry::new(8);
        let mut simulation = Simulation {
            state: State::new(Arc::new(registry), EngineMetrics::default()),
            began: UnixMillis(1_800_000_000_000),
            keys,
            agenda: BTreeMap::new(),
            jobs: Vec::new(),
            count: 0,
            settling: false,
            waiting: BTreeMap::new(),
            dues: HashMap::new(),
            held: (0..keys)
                .map(|key| (1..MESSAGES).map(|number| message(keys, key, number)).collect())
                .collect(),
            promoted_to_wait: 0,
            pages: 0,
            attempts: Vec::new(),
        };
        let now = simulation.began;
        for key in 0..keys {
            simulation.wait(pending(message(keys, key, 0), 0, now));
        }
        let state = &mut simulation.state;
        let usable = EndpointState::Usable(Arc::new(resolved("crm")));
        load_endpoint(state, ENDPOINT, "crm", usable, now);
        load_subscription(state, SUBSCRIPTION, ENDPOINT, "crm", now);
        state.subscription(ENDPOINT, SUBSCRIPTION).pending = (keys * MESSAGES) as i64;
        let held = (keys * (MESSAGES - 1)) as i64;
        let subscriptions = &mut state.endpoint(ENDPOINT).subscriptions;
        subscriptions.add_ordered(SUBSCRIPTION, held, 0);
        note_due(state, SUBSCRIPTION, now);
        let limit = &mut state.endpoint(ENDPOINT).health.limit;
        (0..64).for_each(|_| limit.grow(true));
        state.evaluate(ENDPOINT, now);
        simulation
    }

    fn plan(&mut self, at: i64, happens: Happens) {
        self.count += 1;
        self.agenda.insert((at, self.count), happens);
    }

    fn wait(&mut self, pending: Pending) {
        self.dues.insert(pending.message, pending.due);
        self.waiting.insert((pending.due, pending.message), pending);
    }

    /// What the store says to an outcome.
    fn settle(&mut self, outcome: &Settlement, now: UnixMillis) -> Settled {
        if let Some(due) = self.dues.remove(&outcome.message) {
            self.waiting.remove(&(due, outcome.message));
        }
        if let Verdict::Wait { due, attempts } = outcome.verdict {
            self.wait(pending(outcome.message, attempts, due));
            return Settled::Applied;
        }
        let (key, _) = place(self.keys, outcome.message);
        let Some(next) = self.held[key].pop_front() else {
            return Settled::Applied;
        };
        let next = pending(next, 0, now);
        if outcome.next_waits {
            self.promoted_to_wait += 1;
            self.wait(next);
        }
        Settled::Promoted(next)
    }

    fn run(mut self) -> Simulation {
        self.plan(0, Happens::TimeIsLookedAt);
        while let Some(((at, _), happens)) = self.agenda.pop_first() {
            let now = self.began.plus(Duration::from_millis(at.unsigned_abs()));
            match happens {
                Happens::TimeIsLookedAt => self.state.tick_timers(now),
                Happens::Ends(number) => {
                    let job = self.jobs[number].take().expect("it ends once");
                    let fails = place(self.keys, job.pending.message) == (FAILING, 0) && job.pending.attempts == 0;
                    let took = Duration::from_millis(ANSWERS_AFTER.unsigned_abs());
                    let end = answered(if fails { 400 } else { 200 }, took);
                    self.state.complete(&job, end, now, 0.0);
                }
                Happens::Recorded(outcomes) => {
                    self.settling = false;
                    let answers: Vec<Settled> = outcomes.iter().map(|outcome| self.settle(outcome, now)).collect();
                    self.state.recorded(&outcomes, &answers, now);
                }
                Happens::Read(request, rows) => self.state.paged(&request, rows, now),
            }
            for job in self.state.grant(now) {
                let (key, number) = place(self.keys, job.pending.message);
                self.attempts.push((key, number, at));
                self.plan(at + ANSWERS_AFTER, Happens::Ends(self.jobs.len()));
                self.jobs.push(Some(job));
            }
            if !self.settling && !self.state.outbox.is_empty() {
                self.settling = true;
                let outcomes = std::mem::take(&mut self.state.outbox);
                self.plan(at + STORES_AFTER, Happens::Recorded(outcomes));
            }
            while let Some(request) = self.state.next_page(now) {
                self.pages += 1;
                let limit = request.limits[&SUBSCRIPTION];
                let rows = self.waiting.values().take(limit).copied().collect();
                let rows = vec![(SUBSCRIPTION, rows)];
                self.plan(at + STORES_AFTER, Happens::Read(request, rows));
            }
            if let Some((timer, _)) = self.state.timers.first().copied()
                && self.state.timer_set != Some(timer)
            {
                self.state.timer_set = Some(timer);
                self.plan((timer.0 - self.began.0).max(at), Happens::TimeIsLookedAt);
            }
        }
        self
    }
}

/// The keys' messages were accepted in turn, an hour ago.
fn message(keys: usize, key: usize, number: usize) -> MessageId {
    let first = EventId::next(EventId(0), 1_800_000_000 - 3_600);
    MessageId::new(EventId(first.0 + (number * keys + key) as i64), 0)
}

/// Its key, and its number in it.
fn place(keys: usize, of: MessageId) -> (usize, usize) {
    let number = (of.event().0 - message(keys, 0, 0).event().0) as usize;
    (number % keys, number / keys)
}

fn pending(message: MessageId, attempts: u16, due: UnixMillis) -> Pending {
    Pending {
        message,
        endpoint: ENDPOINT,
        subscription: SUBSCRIPTION,
        attempts,
        due,
        again: None,
    }
}

/// When the failing key's first message was tried, in milliseconds.
fn tries(simulation: &Simulation) -> Vec<i64> {
    let tries = simulation.attempts.iter();
    tries
        .filter(|(key, number, _)| (*key, *number) == (FAILING, 0))
        .map(|(.., at)| *at)
        .collect()
}

#[test]
fn of_more_keys_than_a_window_holds_each_has_its_turn_and_a_retry_comes_at_its_time() {
    const KEYS: usize = 2_000;
    let round = ANSWERS_AFTER * KEYS as i64 / 64;
    let done = Simulation::new(KEYS).run();
    assert_eq!(done.attempts.len(), KEYS * MESSAGES + 1, "all, and one twice");
    let heads = done.attempts.iter().filter(|(_, number, _)| *number == 0);
    let mut waited: Vec<i64> = heads.map(|(.., at)| *at).collect();
    waited.sort_unstable();
    assert!(
        waited[KEYS - 1] <= 2 * round,
        "the last key waited for {} ms, and a round takes {round}",
        waited[KEYS - 1]
    );
    let [first, second] = tries(&done)[..] else {
        panic!("it is tried twice");
    };
    let late = second - first - BACKOFF;
    assert!((0..=2 * round).contains(&late), "the retry came {late} ms late");
    // Every page fills most of the window.
    assert!(done.pages <= KEYS * MESSAGES / 256, "{} pages", done.pages);
}

#[test]
fn with_few_keys_the_next_message_of_each_takes_no_way_over_a_page() {
    const KEYS: usize = 100;
    let done = Simulation::new(KEYS).run();
    assert_eq!(done.attempts.len(), KEYS * MESSAGES + 1);
    assert_eq!(done.promoted_to_wait, 0);
    assert!(done.pages <= 5, "{} pages", done.pages);
    let [first, second] = tries(&done)[..] else {
        panic!("it is tried twice");
    };
    let late = second - first - BACKOFF;
    assert!(
        (0..=10 * ANSWERS_AFTER).contains(&late),
        "the retry came {late} ms late"
    );
}
