//! What is held in memory, step by step: orders of events that a run meets only now and then.

use super::*;
use crate::engine::metrics::Reason;
use crate::engine::state::UNRECORDED;
use crate::queue::{Backlog, DeadReason, MAX_PENDING, Pending, SentAgain, Settled, Verdict};

const QUIET: SubscriptionId = SubscriptionId(2);

fn loaded(state: &mut State, endpoint: EndpointState, now: UnixMillis) {
    load_endpoint(state, ENDPOINT, "crm", endpoint, now);
}

/// With an endpoint that gives up what is answered with 422.
fn giving_up_at_once(now: UnixMillis) -> State {
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let mut endpoint = resolved("crm");
    endpoint.retry.never_retry = vec![422];
    loaded(&mut state, EndpointState::Usable(Arc::new(endpoint)), now);
    state
}

fn subscribed(state: &mut State, now: UnixMillis) {
    subscribed_as(SUBSCRIPTION, state, now);
}

fn subscribed_as(id: SubscriptionId, state: &mut State, now: UnixMillis) {
    load_subscription(state, id, ENDPOINT, "crm", now);
}

#[test]
fn a_message_that_is_let_go_is_held_until_we_hear_that_it_waits_in_the_store() {
    let now = UnixMillis::now();
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let usable = || EndpointState::Usable(Arc::new(resolved("crm")));
    let (fresh, waiting) = (message(1, now), message(2, now));
    loaded(&mut state, usable(), now);
    subscribed(&mut state, now);

    // A fresh message is in the window when its endpoint becomes unusable for a moment: it becomes a waiting one.
    state.hold_fresh(fresh, None);
    let unusable = EndpointState::Unusable {
        reason: "SecretNotFound",
        message: String::new(),
        generation: 1,
        suspend: false,
        max_age: Duration::from_secs(72 * 3_600),
    };
    loaded(&mut state, unusable, now);
    loaded(&mut state, usable(), now);
    let outcomes = std::mem::take(&mut state.outbox);
    assert_eq!(outcomes.len(), 1);

    // The store has recorded that, and we have not heard of it yet, when a page is read because of another message.
    note_due(&mut state, SUBSCRIPTION, now);
    state.evaluate(ENDPOINT, now);
    let request = state.next_page(now).expect("something is due");
    state.paged(&request, vec![(SUBSCRIPTION, vec![fresh, waiting])], now);
    state.recorded(&outcomes, &[Settled::Applied], now);
    while let Some(request) = state.next_page(now) {
        state.paged(&request, vec![(SUBSCRIPTION, vec![fresh, waiting])], now);
    }

    let mut held: Vec<MessageId> = state.endpoints[&ENDPOINT]
        .window
        .iter()
        .map(|held| held.pending.message)
        .collect();
    held.sort_unstable();
    assert_eq!(held, [fresh.message, waiting.message], "each would be sent once");
}

#[test]
fn no_more_expires_than_the_store_records() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    loaded(&mut state, EndpointState::Usable(Arc::new(resolved("crm"))), now);
    subscribed(&mut state, now);
    note_due(&mut state, SUBSCRIPTION, accepted);
    state.evaluate(ENDPOINT, now);

    // The disk refuses, reads go on, and there are twice as many expired messages as may wait for it.
    let rows: Vec<Pending> = (0..2 * UNRECORDED as i64)
        .map(|number| message(number, accepted))
        .collect();
    let read = |state: &mut State| {
        let request = state.next_page(now)?;
        let page = rows.iter().copied().take(request.limits[&SUBSCRIPTION]).collect();
        state.paged(&request, vec![(SUBSCRIPTION, page)], now);
        Some(())
    };
    while read(&mut state).is_some() {}
    let waiting = state.unrecorded();
    assert!(
        (UNRECORDED..UNRECORDED + 1_000).contains(&waiting),
        "{waiting} outcomes wait"
    );

    // The store records some: the rest goes on.
    let outcomes: Vec<_> = state.outbox.drain(..2_000).collect();
    state.recorded(&outcomes, &[Settled::Applied; 2_000], now);
    assert!(read(&mut state).is_some());
}

#[test]
fn a_message_that_a_replay_sent_again_is_told_of_and_only_as_old_as_that() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    loaded(&mut state, EndpointState::Usable(Arc::new(resolved("crm"))), now);
    subscribed(&mut state, now);
    state.subscription(ENDPOINT, SUBSCRIPTION).dead = 2;

    let again = Pending {
        due: now,
        again: Some(now),
        ..message(1, accepted)
    };
    let told = SentAgain {
        message: again.message,
        endpoint: ENDPOINT,
        subscription: SUBSCRIPTION,
        was_dead: true,
        unblocks: false,
        held: false,
        pulled: false,
    };
    state.sent_again(&[told], now);
    let known = state.subscription(ENDPOINT, SUBSCRIPTION);
    assert_eq!((known.pending, known.dead), (1, 1));
    let request = state.next_page(now).expect("it is due at once");
    state.paged(&request, vec![(SUBSCRIPTION, vec![again])], now);
    assert_eq!(
        state.endpoints[&ENDPOINT].window.len(),
        1,
        "accepted long ago, and to be sent"
    );
    assert!(state.outbox.is_empty());

    // As old as any message may grow, but since the replay.
    let later = now.plus(Duration::from_secs(100 * 3_600));
    assert!(state.grant(later).is_empty());
    let dead = std::mem::take(&mut state.outbox);
    let reason = DeadReason::Expired;
    assert!(
        matches!(&dead[..], [one] if one.verdict == Verdict::Dead { reason }),
        "{dead:?}"
    );
}

#[test]
fn a_dead_letter_consumed_an_attempt_only_where_one_was_made() {
    let now = UnixMillis::now();
    let mut state = giving_up_at_once(now);
    subscribed(&mut state, now);
    for (end, consumed) in [
        (End::Unrenderable("why".to_owned()), 2),
        (answered(422, Duration::ZERO), 3),
    ] {
        let tried = Pending {
            attempts: 2,
            ..message(1, now)
        };
        state.hold_fresh(tried, None);
        state.evaluate(ENDPOINT, now);
        let job = state.grant(now).pop().expect("it is started");
        state.complete(&job, end, now, 0.0);
        let outcome = state.outbox.pop().expect("an outcome");
        assert!(matches!(outcome.verdict, Verdict::Dead { .. }) && outcome.record.is_some());
        assert_eq!(outcome.consumed, consumed, "{outcome:?}");
    }
}

#[test]
fn an_endpoint_with_a_million_pending_messages_is_told_of_no_dead_letter_and_that_is_counted() {
    let now = UnixMillis::now();
    let mut state = giving_up_at_once(now);
    let pager = EndpointId(2);
    let entry = subscription_entry(&state.registry, SUBSCRIPTION, ENDPOINT, resource_key("crm"));
    let entry = SubscriptionEntry {
        dead_letter: Some(pager),
        ..entry
    };
    state.subscription_changed(Arc::new(entry), now);
    let reason = DeadReason::QueueFull.reason();
    for (number, pending, told, untold) in [(1, MAX_PENDING - 1, Some(pager), 0), (2, 1, None, 1)] {
        state.registry.gauge(pager).add_pending(pending);
        state.hold_fresh(message(number, now), None);
        state.evaluate(ENDPOINT, now);
        let job = state.grant(now).pop().expect("it is started");
        state.complete(&job, answered(422, Duration::ZERO), now, 0.0);
        let outcome = state.outbox.pop().expect("an outcome");
        assert_eq!(outcome.tell, told);
        assert_eq!(state.metrics.untold.get_or_create(&Reason { reason }).get(), untold);
    }
}

#[test]
fn what_waits_for_an_endpoint_that_is_not_loaded_yet_is_only_as_old_as_that_one_says() {
    let accepted = UnixMillis::now();
    let now = accepted.plus(Duration::from_secs(100 * 3_600));
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    let old = message(1, accepted);
    let read = |state: &mut State| {
        while let Some(request) = state.next_page(now) {
            state.paged(&request, vec![(SUBSCRIPTION, vec![old])], now);
        }
    };
    subscribed(&mut state, now);
    let waits = Backlog {
        endpoint: ENDPOINT,
        subscription: SUBSCRIPTION,
        pending: 1,
        dead: 0,
        held: 0,
        blocking: 0,
        min_due: Some(accepted),
        oldest: Some(old.message),
    };
    state.counted(ENDPOINT, &[waits], now);

    // Every watch has synced while its Secret is still being read.
    state.all_loaded(now);
    state.sweep_expired(ENDPOINT, now);
    read(&mut state);
    assert!(state.outbox.is_empty(), "{:?}", state.outbox);

    let mut week = resolved("crm");
    week.retry.max_age = Duration::from_secs(168 * 3_600);
    loaded(&mut state, EndpointState::Usable(Arc::new(week)), now);
    state.sweep_expired(ENDPOINT, now);
    read(&mut state);
    assert!(state.outbox.is_empty(), "{:?}", state.outbox);
    assert_eq!(state.endpoints[&ENDPOINT].window.len(), 1, "it is to be sent");
}

/// Rows of the store are read because something of their subscription is due.
fn read(state: &mut State, rows: Vec<Pending>, now: UnixMillis) {
    note_due(state, SUBSCRIPTION, now);
    state.evaluate(ENDPOINT, now);
    let request = state.next_page(now).expect("something is due");
    state.paged(&request, vec![(SUBSCRIPTION, rows)], now);
}

#[test]
fn what_is_given_up_is_not_shown_as_tried_again_any_more() {
    let accepted = UnixMillis::now();
    let due = accepted.plus(Duration::from_secs(1));
    let too_late = accepted.plus(Duration::from_secs(100 * 3_600));
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    loaded(&mut state, EndpointState::Usable(Arc::new(resolved("crm"))), accepted);
    subscribed(&mut state, accepted);
    state.subscription(ENDPOINT, SUBSCRIPTION).pending = 3;
    let failed: Vec<Pending> = (1..4)
        .map(|number| Pending {
            attempts: 1,
            due,
            ..message(number, accepted)
        })
        .collect();
    read(&mut state, failed.clone(), accepted);
    let shown = |state: &State| -> Vec<MessageId> {
        let retries = state.endpoints[&ENDPOINT].retries.keys();
        retries.map(|(_, message)| *message).collect()
    };
    assert_eq!(shown(&state), [1, 2, 3].map(|number| message(number, accepted).message));

    // One is in the window when it expires, one is read then, and one is buried with its subscription.
    read(&mut state, vec![failed[0]], due);
    assert!(state.grant(too_late).is_empty());
    assert_eq!(shown(&state), [failed[1].message, failed[2].message]);
    read(&mut state, vec![failed[1]], too_late);
    assert_eq!(shown(&state), [failed[2].message]);
    state.counted(ENDPOINT, &[], too_late);
    assert!(shown(&state).is_empty());
}

#[test]
fn what_waits_only_since_the_store_let_it_is_found_while_others_of_the_endpoint_are_in_memory() {
    let now = UnixMillis::now();
    let (registry, _changes) = Registry::new(8);
    let mut state = State::new(Arc::new(registry), EngineMetrics::default());
    loaded(&mut state, EndpointState::Usable(Arc::new(resolved("crm"))), now);
    subscribed(&mut state, now);
    subscribed_as(QUIET, &mut state, now);
    let busy: Vec<Pending> = (1..4).map(|number| message(number, now)).collect();
    read(&mut state, busy, now);
    assert_eq!(state.endpoints[&ENDPOINT].window.len(), 3);

    // Of the quiet one a message was held, or settled, until the store made it wait: nobody has told of it.
    let waits = |subscription, pending| Backlog {
        endpoint: ENDPOINT,
        subscription,
        pending,
        dead: 0,
        held: 0,
        blocking: 0,
        min_due: Some(now),
        oldest: None,
    };
    state.counted(ENDPOINT, &[waits(SUBSCRIPTION, 3), waits(QUIET, 1)], now);
    let request = state.next_page(now).expect("there is something that is not in memory");
    assert!(request.limits.keys().eq(&[QUIET]), "of the busy one all is");
    let found = Pending {
        subscription: QUIET,
        ..message(4, now)
    };
    state.paged(&request, vec![(QUIET, vec![found])], now);

    // The same of one that has another in memory.
    state.counted(ENDPOINT, &[waits(SUBSCRIPTION, 3), waits(QUIET, 2)], now);
    let request = state.next_page(now).expect("one of two is in memory");
    assert!(request.limits.keys().eq(&[QUIET]));
    state.paged(&request, vec![(QUIET, vec![found])], now);
    assert_eq!(state.endpoints[&ENDPOINT].window.len(), 4);
}
