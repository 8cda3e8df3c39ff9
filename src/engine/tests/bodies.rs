//! What bodies in flight may take, step by step.

use super::*;
use crate::delivery::MAX_ANSWER;
use crate::engine::state::Job;
use crate::expression::{Expression, Role};
use crate::queue::{Pending, Settled, StoredEvent, Verdict};

const MIB: usize = 1 << 20;
/// The budget, and what of it is for endpoints' second and later attempts.
const ALL: usize = 64 * MIB;
const EXTRA: usize = 32 * MIB;
/// The longest body that an expression makes of an event.
const RENDERED: usize = MIB;
const GREEDY: u32 = 4;
const QUIET: EndpointId = EndpointId(9);

/// Endpoints of 256 attempts at a time, and a quiet one.
fn state(success: Option<&Expression>, now: UnixMillis) -> State {
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    for id in (0..GREEDY).map(EndpointId).chain([QUIET]) {
        let name = id.0.to_string();
        let mut endpoint = resolved(&name);
        endpoint.max_in_flight = 256;
        endpoint.success = success.cloned();
        load_endpoint(&mut state, id, &name, EndpointState::Usable(Arc::new(endpoint)), now);
        load_subscription(&mut state, SubscriptionId(id.0), id, &name, now);
        let limit = &mut state.endpoint(id).health.limit;
        (0..256).for_each(|_| limit.grow(true));
    }
    state
}

/// A small event for the endpoint.
fn event(state: &mut State, endpoint: EndpointId, number: u32, now: UnixMillis) {
    let pending = Pending {
        endpoint,
        subscription: SubscriptionId(endpoint.0),
        ..message(number.into(), now)
    };
    let event = StoredEvent {
        attributes: Bytes::new(),
        body: Bytes::from_static(&[b'a'; 250]),
    };
    state.hold_fresh(pending, Some(Arc::new(event)));
    state.evaluate(endpoint, now);
}

fn held(under_way: &[Job]) -> usize {
    under_way.iter().map(|job| job.reserved).sum()
}

/// What the store has of messages that wait, by endpoint.
type Rows = HashMap<EndpointId, Vec<Pending>>;

/// The store records what there is to be recorded, and pages are read of it.
fn record(state: &mut State, rows: &mut Rows, now: UnixMillis) {
    let outcomes = std::mem::take(&mut state.outbox);
    for outcome in &outcomes {
        let rows = rows.entry(outcome.endpoint).or_default();
        rows.retain(|row| row.message != outcome.message);
        if let Verdict::Wait { due, attempts } = outcome.verdict {
            rows.push(Pending {
                message: outcome.message,
                endpoint: outcome.endpoint,
                subscription: outcome.subscription,
                attempts,
                due,
                again: None,
            });
        }
    }
    state.recorded(&outcomes, &vec![Settled::Applied; outcomes.len()], now);
    while let Some(request) = state.next_page(now) {
        let page = rows.get(&request.endpoint).cloned().unwrap_or_default();
        let of = SubscriptionId(request.endpoint.0);
        state.paged(&request, vec![(of, page)], now);
    }
}

/// Starts what there is room for, all of it before the first is rendered. How many had no room then.
fn start(state: &mut State, under_way: &mut Vec<Job>, now: UnixMillis) -> usize {
    let mut crowded = 0;
    for mut job in state.grant(now) {
        match state.body_rendered(&mut job, RENDERED) {
            true => under_way.push(job),
            false => {
                crowded += 1;
                state.complete(&job, End::Crowded, now, 0.0);
            }
        }
    }
    crowded
}

fn end(state: &mut State, job: &Job, now: UnixMillis) {
    state.complete(job, answered(200, Duration::from_millis(100)), now, 0.0);
}

#[test]
fn bodies_that_grow_when_rendered_never_hold_more_than_the_budget_and_all_are_sent() {
    let now = UnixMillis::now();
    let mut state = state(None, now);
    let messages = 100 * GREEDY;
    for number in 0..messages {
        event(&mut state, EndpointId(number % GREEDY), number, now);
    }
    let (mut rows, mut under_way) = (Rows::new(), Vec::new());
    let (mut crowded, mut sent) = (start(&mut state, &mut under_way, now), 0);
    assert!(crowded > 0 && held(&under_way) > EXTRA / 2, "they all began small");
    // Somebody else's first attempt has room in any case.
    event(&mut state, QUIET, messages, now);
    let quiet = state.grant(now).pop().expect("it is started");
    assert_eq!(quiet.pending.endpoint, QUIET);
    under_way.push(quiet);
    while !under_way.is_empty() {
        assert!(held(&under_way) <= ALL, "{} bytes are held", held(&under_way));
        end(&mut state, &under_way.remove(0), now);
        sent += 1;
        record(&mut state, &mut rows, now);
        crowded += start(&mut state, &mut under_way, now);
    }
    assert_eq!(sent, messages + 1, "each once, and none is left");
    assert!(crowded < messages as usize, "{crowded} were rendered in vain");
}

#[test]
fn a_body_alone_has_room_however_long_it_is() {
    let now = UnixMillis::now();
    let mut state = state(None, now);
    event(&mut state, QUIET, 1, now);
    let mut job = state.grant(now).pop().expect("it is started");
    assert!(state.body_rendered(&mut job, 2 * ALL));
}

#[test]
fn what_may_be_kept_of_answers_counts_where_they_are_judged() {
    let now = UnixMillis::now();
    let success = Expression::compile(Role::Success, "response.status == 200").unwrap();
    let mut state = state(Some(&success), now);
    let messages = 200 * GREEDY;
    for number in 0..messages {
        event(&mut state, EndpointId(number % GREEDY), number, now);
    }
    let under_way = state.grant(now);
    assert!(under_way.iter().all(|job| job.reserved > MAX_ANSWER));
    assert!(held(&under_way) <= ALL, "{} bytes are held", held(&under_way));
    assert!(under_way.len() < messages as usize);
}

#[test]
fn slow_bodies_leave_room_for_others() {
    let now = UnixMillis::now();
    let mut state = state(None, now);
    for number in 0..100 * GREEDY {
        event(&mut state, EndpointId(number % GREEDY), number, now);
    }
    let (mut rows, mut under_way) = (Rows::new(), Vec::new());
    start(&mut state, &mut under_way, now);
    under_way.iter_mut().for_each(|job| state.demote(job));
    // Some end, and what is left would leave room for more of them.
    for job in under_way.split_off(20) {
        end(&mut state, &job, now);
    }
    record(&mut state, &mut rows, now);
    assert!(state.grant(now).is_empty(), "no slow one more");
    (1_000..1_002).for_each(|number| event(&mut state, QUIET, number, now));
    assert_eq!(state.grant(now).len(), 2, "its first, and another");
}
