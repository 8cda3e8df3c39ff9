//! What changes while an attempt is under way, or while messages wait for one.

use serde_json::json;

use super::*;
use crate::api::resolve::resolve_subscription;
use crate::engine::endpoint::Access;
use crate::queue::Verdict;
use crate::report::board::{Board, SubscriptionView};

fn state() -> State {
    let (registry, _changes) = Registry::new(8);
    State::new(Arc::new(registry), EngineMetrics::default())
}

fn load(state: &mut State, now: UnixMillis, edit: impl FnOnce(&mut ResolvedEndpoint)) {
    let mut spec = resolved("crm");
    edit(&mut spec);
    load_endpoint(state, ENDPOINT, "crm", EndpointState::Usable(Arc::new(spec)), now);
}

fn hold(state: &mut State, number: i64, now: UnixMillis) {
    state.hold_fresh(message(number, now), None);
    state.evaluate(ENDPOINT, now);
}

#[test]
fn what_an_attempt_met_under_the_spec_before_closes_nothing_under_the_new_one() {
    let now = UnixMillis::now();
    let blocked = || {
        End::Answered(AttemptResult {
            took: Duration::ZERO,
            outcome: Outcome::Blocked {
                address: [10, 0, 0, 1].into(),
            },
        })
    };
    for end in [
        || answered(410, Duration::ZERO),
        || answered(503, Duration::ZERO),
        blocked,
    ] {
        for generation in [1, 2] {
            let mut state = state();
            load(&mut state, now, |spec| spec.breaker.open_after = 1);
            load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
            hold(&mut state, 1, now);
            let job = state.grant(now).pop().expect("an attempt");
            load(&mut state, now, |spec| spec.generation = generation);
            state.complete(&job, end(), now, 0.0);
            let is_open = matches!(state.endpoints[&ENDPOINT].access(now), Access::Go { .. });
            assert_eq!(is_open, generation == 2, "{:?}", end());
            let Verdict::Wait { due, attempts } = state.outbox[0].verdict else {
                panic!("{:?}", state.outbox[0].verdict)
            };
            // What cost no attempt is tried at once.
            assert!(generation == 1 || attempts == 1 || due == now, "{due:?}");
        }
    }
}

#[test]
fn an_endpoint_that_waits_for_its_rate_is_not_forgotten_where_two_clocks_differ() {
    let now = UnixMillis::now();
    let mut state = state();
    load(&mut state, now, |spec| {
        spec.rate = Some(Rate {
            requests: 1,
            per: Duration::from_secs(10),
        });
    });
    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    // A bucket begins empty.
    let begun = now.plus(Duration::from_secs(10));
    hold(&mut state, 1, begun);
    let job = state.grant(begun).pop().expect("an attempt");
    state.complete(&job, answered(200, Duration::ZERO), begun, 0.0);
    hold(&mut state, 2, begun);
    let turn = begun.plus(Duration::from_secs(10));
    // Whoever looks at it is a moment ahead of whoever gives out slots.
    state.evaluate(ENDPOINT, turn);
    assert!(state.grant(UnixMillis(turn.0 - 1)).is_empty());
    let later = turn.plus(Duration::from_secs(1));
    state.tick_timers(later);
    assert_eq!(state.grant(later).len(), 1);
}

#[test]
fn a_probe_whose_message_could_not_be_read_is_looked_for_again_though_nothing_is_due_for_an_hour() {
    let now = UnixMillis::now();
    let mut state = state();
    load(&mut state, now, |spec| {
        spec.breaker.open_after = 1;
        spec.retry.schedule = vec![Duration::from_secs(3_600)];
    });
    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    hold(&mut state, 1, now);
    let job = state.grant(now).pop().expect("an attempt");
    state.complete(&job, answered(503, Duration::ZERO), now, 0.0);
    let outcomes = std::mem::take(&mut state.outbox);
    state.recorded(&outcomes, &[queue::Settled::Applied], now);
    let probe_at = state.endpoints[&ENDPOINT].timer.expect("a probe is to come");
    assert!(probe_at < now.plus(Duration::from_secs(600)));
    state.tick_timers(probe_at);
    let request = state.next_page(probe_at).expect("any message will do");
    assert!(state.due(probe_at).is_empty(), "a page is being read");
    state.page_failed(&request);
    assert_eq!(state.due(probe_at), [ENDPOINT]);
}

#[tokio::test]
async fn what_a_subscription_is_made_again_with_for_another_endpoint_does_not_go_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(dir.path()).await;
    let own = |spec: &mut ResolvedSubscription| {
        let manifest = json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": "team", "generation": 1},
            "spec": {"endpointRef": {"name": "after"}, "eventTypes": ["*"], "request": {"body": "event.data"}},
        });
        spec.request = resolve_subscription(&serde_json::from_value(manifest).unwrap())
            .unwrap()
            .request;
    };
    let before = world.endpoint_with("before", |spec| spec.suspend = true).await;
    let after = world.endpoint("after").await;
    world.send(before, 1).await;
    world.subscribe_with(after, resource_key("after"), own).await;
    world.subscribe_with(after, resource_key("before"), own).await;
    let resumed = EndpointState::Usable(Arc::new(resolved("before")));
    world.put_endpoint(before, resource_key("before"), resumed).await;
    world.send(after, 1).await;
    world
        .until("both", |world| {
            ["before", "after"].map(|name| world.script.count(name)) == [1, 1]
        })
        .await;
    assert_eq!(*world.script.shaped.lock().unwrap(), ["after"]);
}

#[tokio::test]
async fn a_subscription_is_posted_once_after_a_start_and_once_more_when_it_is_deleted() {
    let now = UnixMillis::now();
    let (mut state, board) = (state(), Board::default());
    load(&mut state, now, |_| {});
    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    let entry = |state: &State| subscription_entry(&state.registry, SUBSCRIPTION, ENDPOINT, resource_key("crm"));
    let first = entry(&state);
    state.registry.put_subscription(Arc::new(first)).await;
    state.post_all(&board, now);
    let (view, urgent) = board.take().await.subscriptions[&SUBSCRIPTION].clone();
    assert_eq!(
        (view, urgent),
        (SubscriptionView::default(), false),
        "nothing has happened to it"
    );

    load_subscription(&mut state, SUBSCRIPTION, ENDPOINT, "crm", now);
    state.post_all(&board, now);
    assert!(board.take().await.subscriptions.is_empty());

    let mut deleted = entry(&state);
    deleted.deleted = Some(now);
    state.subscription_changed(Arc::new(deleted), now);
    state.post_all(&board, now);
    assert!(board.take().await.subscriptions[&SUBSCRIPTION].0.is_news);
}
