//! Who has places for messages in memory, step by step.

use super::*;
use crate::ids::EventId;
use crate::queue::{Arrival, Gauge, Placement, Settled, StoredEvent};

const MINUTE: Duration = Duration::from_secs(60);

fn state() -> State {
    let (registry, _changes) = Registry::new(8);
    State::new(Arc::new(registry), EngineMetrics::default())
}

fn loaded(state: &mut State, id: EndpointId, endpoint: EndpointState, now: UnixMillis) {
    let name = id.0.to_string();
    load_endpoint(state, id, &name, endpoint, now);
    load_subscription(state, SubscriptionId(id.0), id, &name, now);
}

fn usable() -> EndpointState {
    EndpointState::Usable(Arc::new(resolved("crm")))
}

/// As many messages as begin in memory are accepted.
fn room(gauge: &Gauge) -> i64 {
    let taken = (0..).take_while(|_| gauge.place(i64::MAX) == Placement::Fresh);
    let room = taken.count() as i64;
    gauge.give(room);
    room
}

fn arrival(endpoint: EndpointId, number: u32, now: UnixMillis) -> Arrival {
    Arrival {
        message: MessageId::new(EventId::next(EventId(0), now.0 / 1000), number),
        endpoint,
        subscription: SubscriptionId(endpoint.0),
        placement: Placement::Fresh,
        held: false,
        event: Arc::new(StoredEvent {
            attributes: Bytes::new(),
            body: Bytes::new(),
        }),
    }
}

#[test]
fn idle_endpoints_have_places_for_those_that_come_later() {
    let mut state = state();
    let now = UnixMillis::now();
    for id in 0..2_000 {
        loaded(&mut state, EndpointId(id), usable(), now);
    }
    let newest = EndpointId(1_999);
    assert_eq!(room(&state.registry.gauge(newest)), 1, "they are all given");

    let busy = EndpointId(0);
    let later = now.plus(6 * MINUTE);
    state.endpoint(busy).heard = later;
    for id in 0..2_000 {
        state.reclaim(EndpointId(id), later, BURY_AFTER);
    }
    assert_eq!(room(&state.registry.gauge(busy)), 512, "it is not idle");
    assert!(state.places < 15_000, "{}", state.places);

    // The first message of a burst goes as before, and makes room for the rest.
    let gauge = state.registry.gauge(newest);
    assert_eq!(gauge.place(i64::MAX), Placement::Fresh);
    state.arrived(vec![arrival(newest, 0, later)], later);
    assert_eq!(state.grant(later).len(), 1);
    assert_eq!(room(&gauge), 16);
    state.widen(newest);
    assert_eq!(room(&gauge), 512);
}

#[test]
fn while_endpoints_are_few_each_keeps_its_places_however_idle() {
    let mut state = state();
    let now = UnixMillis::now();
    loaded(&mut state, EndpointId(1), usable(), now);
    let later = now.plus(600 * MINUTE);
    state.reclaim(EndpointId(1), later, BURY_AFTER);
    assert_eq!(room(&state.registry.gauge(EndpointId(1))), 512);
}

#[test]
fn a_deleted_endpoint_has_no_places_and_is_forgotten_when_it_is_buried() {
    let mut state = state();
    let (id, now) = (EndpointId(1), UnixMillis::now());
    loaded(&mut state, id, usable(), now);
    let gauge = state.registry.gauge(id);
    assert_eq!(gauge.place(i64::MAX), Placement::Fresh);
    state.arrived(vec![arrival(id, 0, now)], now);
    loaded(&mut state, id, EndpointState::Deleted { at: now }, now);
    assert!(state.grant(now).is_empty());
    assert_eq!((state.places, room(&gauge)), (0, 0));

    let shown = |state: &mut State| {
        state.changed.clear();
        state.endpoint(id).health_dirty = false;
    };
    let buried = now.plus(BURY_AFTER);
    let is_known = |state: &State| state.endpoints.contains_key(&id);
    shown(&mut state);
    state.reclaim(id, buried, BURY_AFTER);
    assert!(is_known(&state), "its message waits");
    let outcomes = std::mem::take(&mut state.outbox);
    state.recorded(&outcomes, &[Settled::Stale], now);
    state.counted(id, &[], buried);
    shown(&mut state);
    state.reclaim(id, now, BURY_AFTER);
    assert!(is_known(&state), "it may come back");
    state.reclaim(id, buried, BURY_AFTER);
    assert!(!is_known(&state) && state.homes.is_empty() && state.timers.is_empty());

    loaded(&mut state, id, usable(), buried);
    assert_eq!((state.places, room(&gauge)), (512, 512));
}
