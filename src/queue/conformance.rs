//! What every store must do, as tests over a function that opens (or reopens) one.
//!
//! Invariant: nothing here knows which store it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::*;

mod notices;
mod order;
mod pull;
mod replay;

/// A store under test: opened, closed and opened again over the same data.
#[async_trait]
pub(crate) trait Bench: Send + Sync {
    /// Opens the store; what was there before is there again.
    async fn open(&self) -> Arc<dyn Queue>;
}

/// An event whose key follows from `id`.
pub(crate) fn new_event(id: &str, targets: Vec<Target>) -> NewEvent {
    let digest = Sha256::digest(id.as_bytes());
    let mut dedupe = [0; 16];
    dedupe.copy_from_slice(&digest[..16]);
    NewEvent {
        namespace_uid: Arc::from("ns"),
        dedupe,
        event: Arc::new(StoredEvent {
            attributes: Bytes::from(format!("{{\"id\":\"{id}\"}}")),
            body: Bytes::from(format!("body of {id}")),
        }),
        targets,
        quota: Quota::default(),
    }
}

pub(crate) fn target(endpoint: u32, subscription: u32, placement: Placement) -> Target {
    Target {
        subscription: SubscriptionId(subscription),
        endpoint: EndpointId(endpoint),
        placement,
        order: None,
    }
}

fn record(status: Option<u16>) -> AttemptRecord {
    AttemptRecord {
        at: UnixMillis::now(),
        took: Duration::from_millis(12),
        status,
        reason: "Status",
        excerpt: Some(Bytes::from_static(b"no")),
    }
}

pub(crate) fn settlement(pending: Pending, verdict: Verdict) -> Settlement {
    Settlement {
        message: pending.message,
        endpoint: pending.endpoint,
        subscription: pending.subscription,
        attempts: pending.attempts,
        record: Some(record(Some(if verdict == Verdict::Delivered { 200 } else { 500 }))),
        verdict,
        consumed: pending.attempts + 1,
        blocks: false,
        next_waits: false,
        tell: None,
    }
}

fn everything(endpoint: u32, subscription: u32) -> Window {
    Window {
        endpoint: EndpointId(endpoint),
        subscription: SubscriptionId(subscription),
        after: None,
        until: UnixMillis(i64::MAX),
        limit: 1_000_000,
    }
}

async fn all_fresh(queue: &dyn Queue, fence: Fence) -> Vec<Pending> {
    queue.fresh(fence, MessageId(0), 1_000_000).await.expect("fresh")
}

fn stored(accepted: &Accepted) -> EventId {
    match accepted {
        Accepted::New { event, .. } => *event,
        Accepted::Duplicate { .. } => panic!("a duplicate: {accepted:?}"),
    }
}

/// Runs the whole suite; each part over a store of its own.
pub(crate) async fn run<B: Bench>(make: impl Fn() -> B) {
    accepted_events_are_there_after_reopening(&make()).await;
    the_same_event_gets_its_first_answer(&make()).await;
    outcomes_apply_once(&make()).await;
    the_window_is_in_due_order_and_pages(&make()).await;
    older_fences_fail(&make()).await;
    ids_of_resources_stay(&make()).await;
    arrivals_carry_the_event(&make()).await;
    wide_events_are_routed_whole(&make()).await;
    an_event_with_too_many_targets_is_refused_whole(&make()).await;
    a_namespace_over_its_quota_is_refused_whole_until_something_settles(&make()).await;
    what_is_to_be_routed_counts_for_a_quota_at_once_and_once(&make()).await;
    order::run(&make).await;
    notices::run(&make).await;
    burial_takes_what_is_pending(&make()).await;
    pruning_leaves_what_is_pending(&make()).await;
    history_goes_after_its_endpoints_time(&make()).await;
    messages_are_listed_newest_first_in_every_state(&make()).await;
    a_listing_pages_whole_and_filters(&make()).await;
    replay::run(&make).await;
    pull::run(&make).await;
    states_are_replaced(&make()).await;
    a_closed_store_takes_nothing(&make()).await;
}

async fn accepted_events_are_there_after_reopening<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let targets = vec![
        target(1, 1, Placement::Fresh),
        target(2, 2, Placement::Waiting),
        target(3, 3, Placement::QueueFull),
    ];
    let accepted = queue
        .accept(vec![new_event("a", targets), new_event("b", vec![])])
        .await
        .expect("accept");
    let event = stored(&accepted[0]);
    assert_eq!(
        accepted[1],
        Accepted::New {
            event: stored(&accepted[1]),
            matched: 0
        }
    );
    queue.close().await;
    drop(queue);

    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let read = queue.event(event).await.expect("event").expect("is stored");
    assert_eq!(&read.body[..], b"body of a");
    assert_eq!(&read.attributes[..], b"{\"id\":\"a\"}");
    let fresh = all_fresh(&*queue, fence).await;
    assert_eq!(fresh.len(), 1);
    assert_eq!(fresh[0].message, MessageId::new(event, 0));
    assert_eq!(fresh[0].endpoint, EndpointId(1));
    let waiting = queue.window(fence, everything(2, 2)).await.expect("window");
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].message, MessageId::new(event, 1));
    assert!(queue.window(fence, everything(3, 3)).await.expect("window").is_empty());
    let mut backlog = queue.backlog(fence).await.expect("backlog");
    backlog.sort_by_key(|one| one.endpoint);
    let counts: Vec<_> = backlog
        .iter()
        .map(|one| (one.endpoint.0, one.pending, one.dead))
        .collect();
    assert_eq!(counts, [(1, 1, 0), (2, 1, 0), (3, 0, 1)]);
    assert_eq!(backlog[0].min_due, None);
    assert_eq!(backlog[0].oldest, Some(MessageId::new(event, 0)));
    assert_eq!(backlog[1].min_due, Some(waiting[0].due));
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.pending, usage.dead, usage.dedupe_entries), (2, 1, 2));
    queue.close().await;
}

async fn the_same_event_gets_its_first_answer<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let both = queue
        .accept(vec![
            new_event("a", vec![target(1, 1, Placement::Fresh)]),
            new_event("a", vec![]),
        ])
        .await
        .expect("accept");
    let event = stored(&both[0]);
    let first = Accepted::Duplicate { event, matched: 1 };
    assert_eq!(both[1], first, "within one call");
    assert_eq!(
        queue.accept(vec![new_event("a", vec![])]).await.expect("accept"),
        [first]
    );
    queue.close().await;
    drop(queue);
    let queue = bench.open().await;
    assert_eq!(
        queue.accept(vec![new_event("a", vec![])]).await.expect("accept"),
        [first],
        "after reopening"
    );
    let other = queue.accept(vec![new_event("b", vec![])]).await.expect("accept");
    assert!(stored(&other[0]) > event, "ids rise");
    queue.close().await;
}

async fn outcomes_apply_once<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let targets = (1..=4).map(|n| target(n, n, Placement::Fresh)).collect();
    queue.accept(vec![new_event("a", targets)]).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    let due = UnixMillis(1_000);
    let verdicts = [
        Verdict::Delivered,
        Verdict::Wait { due, attempts: 1 },
        Verdict::Dead {
            reason: DeadReason::Exhausted,
        },
        Verdict::Delivered,
    ];
    let settlements: Vec<_> = fresh
        .iter()
        .zip(verdicts)
        .map(|(one, verdict)| settlement(*one, verdict))
        .collect();
    let settled = queue.settle(fence, settlements.clone()).await.expect("settle");
    assert_eq!(settled, [Settled::Applied; 4]);
    let again = queue.settle(fence, settlements).await.expect("settle");
    assert_eq!(again, [Settled::Stale; 4]);

    assert!(all_fresh(&*queue, fence).await.is_empty());
    let waiting = queue.window(fence, everything(2, 2)).await.expect("window");
    assert_eq!(
        waiting,
        [Pending {
            attempts: 1,
            due,
            ..fresh[1]
        }]
    );
    // A wait that consumes nothing moves the due time only, and is told apart by nothing: it may apply again.
    let later = UnixMillis(2_000);
    let unconsumed = settlement(
        waiting[0],
        Verdict::Wait {
            due: later,
            attempts: 1,
        },
    );
    assert_eq!(
        queue.settle(fence, vec![unconsumed]).await.expect("settle"),
        [Settled::Applied]
    );
    let delivered = settlement(waiting[0], Verdict::Delivered);
    assert_eq!(
        queue.settle(fence, vec![delivered]).await.expect("settle"),
        [Settled::Applied]
    );
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.pending, usage.dead), (0, 1));
    queue.close().await;
}

async fn the_window_is_in_due_order_and_pages<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let events = (0..20)
        .map(|n| new_event(&n.to_string(), vec![target(1, 1, Placement::Fresh)]))
        .collect();
    queue.accept(events).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    // Falling due times, each shared by two.
    let settlements = fresh
        .iter()
        .enumerate()
        .map(|(n, one)| {
            settlement(
                *one,
                Verdict::Wait {
                    due: UnixMillis(100 - n as i64 / 2),
                    attempts: 1,
                },
            )
        })
        .collect();
    queue.settle(fence, settlements).await.expect("settle");
    let all = queue.window(fence, everything(1, 1)).await.expect("window");
    assert_eq!(all.len(), 20);
    assert!(all.is_sorted_by_key(|one| (one.due, one.message)));
    let mut paged = Vec::new();
    let mut after = None;
    loop {
        let page = queue
            .window(
                fence,
                Window {
                    after,
                    limit: 3,
                    ..everything(1, 1)
                },
            )
            .await
            .expect("window");
        let Some(last) = page.last() else { break };
        after = Some((last.due, last.message));
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let until = UnixMillis(92);
    let due = queue
        .window(
            fence,
            Window {
                until,
                ..everything(1, 1)
            },
        )
        .await
        .expect("window");
    assert_eq!(due, all[..4]);
    assert!(queue.window(fence, everything(1, 2)).await.expect("window").is_empty());
    queue.close().await;
}

async fn older_fences_fail<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let old = queue.claim().await.expect("claim");
    queue
        .accept(vec![new_event("a", vec![target(1, 1, Placement::Fresh)])])
        .await
        .expect("accept");
    let fresh = all_fresh(&*queue, old).await;
    let new = queue.claim().await.expect("claim");
    let outcome = vec![settlement(fresh[0], Verdict::Delivered)];
    assert!(matches!(
        queue.settle(old, outcome.clone()).await,
        Err(QueueError::Fenced)
    ));
    assert!(matches!(queue.backlog(old).await, Err(QueueError::Fenced)));
    assert!(matches!(
        queue.put_endpoint_states(old, vec![]).await,
        Err(QueueError::Fenced)
    ));
    assert_eq!(queue.settle(new, outcome).await.expect("settle"), [Settled::Applied]);
    queue.close().await;
    drop(queue);
    let queue = bench.open().await;
    assert!(matches!(queue.endpoint_states(old).await, Err(QueueError::Fenced)));
    assert!(queue.claim().await.expect("claim").0 > new.0);
    queue.close().await;
}

async fn ids_of_resources_stay<B: Bench>(bench: &B) {
    let key = |name: &str| ResourceKey {
        namespace_uid: "ns".to_owned(),
        name: name.to_owned(),
    };
    let queue = bench.open().await;
    let first = queue
        .intern_endpoints(vec![key("a"), key("b"), key("a")])
        .await
        .expect("intern");
    assert_eq!(first[0], first[2]);
    assert_ne!(first[0], first[1]);
    let subscriptions = queue.intern_subscriptions(vec![key("a")]).await.expect("intern");
    queue.close().await;
    drop(queue);
    let queue = bench.open().await;
    assert_eq!(
        queue.intern_endpoints(vec![key("b"), key("a")]).await.expect("intern"),
        [first[1], first[0]]
    );
    let (endpoints, known) = queue.known().await.expect("known");
    assert_eq!(endpoints, [(key("a"), first[0]), (key("b"), first[1])]);
    assert_eq!(known, [(key("a"), subscriptions[0])]);
    queue.close().await;
}

async fn arrivals_carry_the_event<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let mut arrivals = queue.arrivals().expect("the first taker");
    assert!(queue.arrivals().is_none());
    let targets = vec![
        target(1, 1, Placement::Fresh),
        target(2, 2, Placement::QueueFull),
        target(3, 3, Placement::Waiting),
    ];
    let new = new_event("a", targets);
    let accepted = queue.accept(vec![new.clone(), new.clone()]).await.expect("accept");
    let batch = arrivals.recv().await.expect("a batch");
    let event = stored(&accepted[0]);
    let seen: Vec<_> = batch
        .iter()
        .map(|one| (one.message, one.endpoint.0, one.placement))
        .collect();
    let wanted = [
        (MessageId::new(event, 0), 1, Placement::Fresh),
        (MessageId::new(event, 1), 2, Placement::QueueFull),
        (MessageId::new(event, 2), 3, Placement::Waiting),
    ];
    assert_eq!(seen, wanted, "dead letters over the limit are told too");
    assert!(Arc::ptr_eq(&batch[0].event, &new.event));
    queue.close().await;
}

async fn wide_events_are_routed_whole<B: Bench>(bench: &B) {
    const WIDE: u32 = 2 * ROUTE_AT_ONCE as u32 + 300;
    let queue = bench.open().await;
    let mut arrivals = queue.arrivals().expect("the first taker");
    let fence = queue.claim().await.expect("claim");
    let targets = (0..WIDE).map(|n| target(n % 7, n, Placement::Fresh)).collect();
    let accepted = queue.accept(vec![new_event("wide", targets)]).await.expect("accept");
    assert_eq!(
        accepted[0],
        Accepted::New {
            event: stored(&accepted[0]),
            matched: WIDE
        }
    );
    while queue.route(fence, 100).await.expect("route") > 0 {}
    let fresh = all_fresh(&*queue, fence).await;
    assert_eq!(fresh.len() as u32, WIDE);
    for (ordinal, one) in fresh.iter().enumerate() {
        assert_eq!(one.message, MessageId::new(stored(&accepted[0]), ordinal as u32));
        assert_eq!(
            (one.subscription.0, one.endpoint.0),
            (ordinal as u32, ordinal as u32 % 7)
        );
    }
    let mut arrived = 0;
    while arrived < WIDE as usize {
        arrived += arrivals.recv().await.expect("arrivals").len();
    }
    assert_eq!(arrived, WIDE as usize);
    assert_eq!(queue.usage().await.expect("usage").pending, u64::from(WIDE));
    queue.close().await;
}

async fn an_event_with_too_many_targets_is_refused_whole<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let targets = |n| (0..n).map(|n| target(1, n, Placement::QueueFull)).collect();
    let most = MessageId::PER_EVENT as u32;
    let both = vec![new_event("small", targets(1)), new_event("wide", targets(most + 1))];
    assert!(matches!(queue.accept(both).await, Err(QueueError::TooWide(n)) if n == most as usize + 1));
    assert_eq!(
        queue.usage().await.expect("usage").dead,
        0,
        "nothing of the call is stored"
    );
    let answers = queue
        .accept(vec![new_event("small", targets(1))])
        .await
        .expect("accept");
    stored(&answers[0]);
    queue.close().await;
}

async fn what_is_to_be_routed_counts_for_a_quota_at_once_and_once<B: Bench>(bench: &B) {
    const WIDE: u32 = 2 * ROUTE_AT_ONCE as u32 + 300;
    let mut queue = bench.open().await;
    let mine = ResourceKey {
        namespace_uid: "ns".to_owned(),
        name: "mine".to_owned(),
    };
    let endpoint = queue.intern_endpoints(vec![mine]).await.expect("intern")[0];
    let to_so_many = |id: &str, count: u32| NewEvent {
        quota: Quota {
            messages: Some(u64::from(WIDE) + 2),
            bytes: None,
        },
        ..new_event(
            id,
            (0..count)
                .map(|n| Target {
                    endpoint,
                    ..target(0, n, Placement::Fresh)
                })
                .collect(),
        )
    };
    let is_over = |answer| matches!(answer, Err(QueueError::OverQuota { .. }));
    queue.accept(vec![to_so_many("wide", WIDE)]).await.expect("accept");
    assert!(
        is_over(queue.accept(vec![to_so_many("three", 3)]).await),
        "all of it counts"
    );
    // Also where it is found unrouted on opening.
    queue.close().await;
    drop(queue);
    queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    assert!(
        is_over(queue.accept(vec![to_so_many("three", 3)]).await),
        "all of it still counts"
    );
    queue
        .accept(vec![to_so_many("one", 1)])
        .await
        .expect("there is room for two");
    while queue.route(fence, 100).await.expect("route") > 0 {}
    queue
        .accept(vec![to_so_many("another", 1)])
        .await
        .expect("routed, it counts once");
    assert!(is_over(queue.accept(vec![to_so_many("no more", 1)]).await));
    queue.close().await;
}

async fn a_namespace_over_its_quota_is_refused_whole_until_something_settles<B: Bench>(bench: &B) {
    let mut queue = bench.open().await;
    let mut fence = queue.claim().await.expect("claim");
    let key = |namespace: &str, name: &str| ResourceKey {
        namespace_uid: namespace.to_owned(),
        name: name.to_owned(),
    };
    let ids = queue
        .intern_endpoints(vec![key("ns", "mine"), key("ns", "mine-too"), key("other", "theirs")])
        .await
        .expect("intern");
    let to = |endpoint: usize, placement| Target {
        endpoint: ids[endpoint],
        ..target(0, 1, placement)
    };
    let event = |id: &str, endpoints: &[usize], quota| NewEvent {
        quota,
        ..new_event(id, endpoints.iter().map(|at| to(*at, Placement::Fresh)).collect())
    };
    let messages = |limit| Quota {
        messages: Some(limit),
        bytes: None,
    };
    let refused = |answer: Result<Vec<Accepted>, QueueError>| match answer {
        Err(QueueError::OverQuota { quota, limit }) => (quota, limit),
        other => panic!("it was not refused: {other:?}"),
    };

    // Without a quota nothing is refused, and what was stored then counts afterwards.
    let other = NewEvent {
        namespace_uid: Arc::from("other"),
        ..event("theirs", &[2, 2, 2], Quota::default())
    };
    queue
        .accept(vec![event("a", &[0, 1], Quota::default()), other])
        .await
        .expect("accept");
    let both = vec![event("b", &[0], messages(3)), event("c", &[1], messages(3))];
    assert_eq!(
        refused(queue.accept(both).await),
        ("pendingMessages", 3),
        "all or nothing"
    );
    queue
        .accept(vec![event("b", &[0], messages(3))])
        .await
        .expect("there is room for one");
    assert_eq!(
        refused(queue.accept(vec![event("c", &[1], messages(3))]).await),
        ("pendingMessages", 3)
    );
    let again = queue.accept(vec![event("b", &[0], messages(3))]).await.expect("accept");
    assert!(
        matches!(again[..], [Accepted::Duplicate { .. }]),
        "it is known: {again:?}"
    );
    let none = queue.accept(vec![event("d", &[], messages(3))]).await;
    assert!(none.is_ok(), "it makes no message");
    let dead = NewEvent {
        targets: vec![to(0, Placement::QueueFull)],
        ..event("e", &[], messages(3))
    };
    assert!(queue.accept(vec![dead]).await.is_ok(), "a dead letter is not pending");

    // Counted anew from what lies there.
    queue.close().await;
    drop(queue);
    queue = bench.open().await;
    fence = {
        assert!(fence.0 > 0);
        queue.claim().await.expect("claim")
    };
    assert_eq!(
        refused(queue.accept(vec![event("c", &[1], messages(3))]).await),
        ("pendingMessages", 3)
    );
    let size = event("a", &[], Quota::default()).event;
    let size = (size.attributes.len() + size.body.len()) as u64;
    let bytes = Quota {
        messages: None,
        bytes: Some(size * 4 - 1),
    };
    assert_eq!(
        refused(queue.accept(vec![event("c", &[1], bytes)]).await),
        ("pendingBytes", size * 4 - 1)
    );

    // What settles, in whatever way, makes room; what waits again does not.
    let pending = all_fresh(&*queue, fence).await;
    let mine: Vec<Pending> = pending.into_iter().filter(|one| one.endpoint != ids[2]).collect();
    let wait = Verdict::Wait {
        due: UnixMillis(0),
        attempts: 1,
    };
    queue
        .settle(fence, vec![settlement(mine[0], wait)])
        .await
        .expect("settle");
    assert_eq!(
        refused(queue.accept(vec![event("c", &[1], messages(3))]).await),
        ("pendingMessages", 3)
    );
    let stale = settlement(mine[0], Verdict::Delivered);
    let delivered = settlement(mine[1], Verdict::Delivered);
    queue.settle(fence, vec![stale, delivered]).await.expect("settle");
    assert_eq!(
        refused(queue.accept(vec![event("c", &[1, 1], messages(3))]).await),
        ("pendingMessages", 3),
        "one settled, and a stale outcome counts for nothing"
    );
    queue
        .accept(vec![event("c", &[1], bytes)])
        .await
        .expect("there is room again");
    let dead = Verdict::Dead {
        reason: DeadReason::Exhausted,
    };
    queue
        .settle(fence, vec![settlement(mine[2], dead)])
        .await
        .expect("settle");
    let buried = queue
        .bury(fence, Some(ids[1]), None, DeadReason::EndpointDeleted, 10)
        .await
        .expect("bury");
    assert_eq!(buried, 1);
    assert_eq!(
        refused(queue.accept(vec![event("f", &[0, 0], messages(2))]).await),
        ("pendingMessages", 2)
    );
    queue
        .accept(vec![event("f", &[0], messages(2))])
        .await
        .expect("one is pending");
    queue.close().await;
}

async fn burial_takes_what_is_pending<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let events = (0..30)
        .map(|n| {
            let placement = if n % 2 == 0 {
                Placement::Fresh
            } else {
                Placement::Waiting
            };
            new_event(
                &n.to_string(),
                vec![
                    target(1, 1, placement),
                    target(1, 2, placement),
                    target(2, 3, placement),
                ],
            )
        })
        .collect();
    queue.accept(events).await.expect("accept");
    let mut buried = 0;
    loop {
        let more = queue
            .bury(fence, None, Some(SubscriptionId(2)), DeadReason::SubscriptionDeleted, 7)
            .await
            .expect("bury");
        assert!(more <= 7);
        buried += more;
        if more == 0 {
            break;
        }
    }
    assert_eq!(buried, 30);
    while queue
        .bury(fence, Some(EndpointId(1)), None, DeadReason::EndpointDeleted, 11)
        .await
        .expect("bury")
        > 0
    {}
    let mut backlog = queue.backlog(fence).await.expect("backlog");
    backlog.sort_by_key(|one| one.subscription);
    let counts: Vec<_> = backlog
        .iter()
        .map(|one| (one.subscription.0, one.pending, one.dead))
        .collect();
    assert_eq!(counts, [(1, 0, 30), (2, 0, 30), (3, 30, 0)]);
    queue.close().await;
}

async fn pruning_leaves_what_is_pending<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let events = (0..10)
        .map(|n| new_event(&n.to_string(), vec![target(1, 1, Placement::Fresh)]))
        .collect();
    let accepted = queue.accept(events).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    let settlements = fresh
        .iter()
        .enumerate()
        .filter(|(n, _)| n % 3 != 0)
        .map(|(n, one)| {
            let dead = Verdict::Dead {
                reason: DeadReason::Refused,
            };
            settlement(*one, if n % 3 == 1 { Verdict::Delivered } else { dead })
        })
        .collect();
    queue.settle(fence, settlements).await.expect("settle");
    assert_eq!(
        queue.prune(UnixMillis(0), 100).await.expect("prune"),
        0,
        "nothing is that old"
    );
    let soon = UnixMillis::now().plus(Duration::from_secs(60));
    while queue.prune(soon, 4).await.expect("prune") > 0 {}
    for (n, answer) in accepted.iter().enumerate() {
        let there = queue.event(stored(answer)).await.expect("event").is_some();
        assert_eq!(there, n % 3 == 0, "event {n}");
    }
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.pending, usage.dead), (4, 0));
    let again = queue.accept(vec![new_event("1", vec![])]).await.expect("accept");
    assert_eq!(
        again[0],
        Accepted::Duplicate {
            event: stored(&accepted[1]),
            matched: 1
        },
        "the key outlives history"
    );
    queue.close().await;
}

async fn history_goes_after_its_endpoints_time<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let second = Duration::from_secs(1);
    queue.keep(fence, vec![(EndpointId(1), second)]).await.expect("keep");
    // Of the first endpoint alone, of both, and of the second alone; and one that the first has not settled.
    let targets = [vec![1], vec![1, 2], vec![2], vec![1]];
    let events = targets.iter().enumerate().map(|(n, endpoints)| {
        let target = |endpoint: &u32| target(*endpoint, *endpoint, Placement::Fresh);
        new_event(&n.to_string(), endpoints.iter().map(target).collect())
    });
    let accepted = queue.accept(events.collect()).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    let (waits, over) = fresh.split_last().expect("five messages");
    let dead = Verdict::Dead {
        reason: DeadReason::Refused,
    };
    let outcomes = over.iter().map(|one| settlement(*one, dead)).collect();
    queue.settle(fence, outcomes).await.expect("settle");
    let until = async |wanted: &[(u32, u64, u64)]| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut left = queue.backlog(fence).await.expect("backlog");
            left.retain(|one| (one.pending, one.dead) != (0, 0));
            left.sort_by_key(|one| one.endpoint);
            let left: Vec<_> = left.iter().map(|one| (one.endpoint.0, one.pending, one.dead)).collect();
            if left == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{left:?} is never {wanted:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until(&[(1, 1, 0), (2, 0, 2)]).await;
    for (answer, there) in accepted.iter().zip([false, true, true, true]) {
        let found = queue.event(stored(answer)).await.expect("event");
        assert_eq!(found.is_some(), there, "{answer:?}");
    }
    // What waited is kept from when it is settled, and what is kept shorter now goes though it was looked at before.
    let outcome = settlement(*waits, Verdict::Delivered);
    queue.settle(fence, vec![outcome]).await.expect("settle");
    let told = vec![(EndpointId(2), second)];
    let refused = queue.keep(Fence(0), told.clone()).await;
    assert!(matches!(refused, Err(QueueError::Fenced)), "{refused:?}");
    queue.keep(fence, told).await.expect("keep");
    until(&[]).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    for answer in &accepted {
        while queue.event(stored(answer)).await.expect("event").is_some() {
            assert!(Instant::now() < deadline, "{answer:?} stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    queue.close().await;
}

/// Endpoint 1 and subscription 1 of the namespace `ns`, and two of `other`.
async fn named(queue: &dyn Queue) {
    let key = |ns: &str, name: &str| ResourceKey {
        namespace_uid: ns.to_owned(),
        name: name.to_owned(),
    };
    let keys = |prefix: &str| {
        vec![
            key("ns", &format!("{prefix}-1")),
            key("ns", &format!("{prefix}-2")),
            key("other", &format!("{prefix}-1")),
        ]
    };
    let endpoints = queue.intern_endpoints(keys("e")).await.expect("intern");
    let subscriptions = queue.intern_subscriptions(keys("s")).await.expect("intern");
    assert_eq!(endpoints, [1, 2, 3].map(EndpointId));
    assert_eq!(subscriptions, [1, 2, 3].map(SubscriptionId));
}

fn search(namespace_uid: &str) -> Search {
    Search {
        namespace_uid: namespace_uid.to_owned(),
        ..Search::default()
    }
}

async fn messages_are_listed_newest_first_in_every_state<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    named(&*queue).await;
    let targets = vec![
        target(1, 1, Placement::Fresh),
        target(1, 1, Placement::Fresh),
        target(2, 2, Placement::Fresh),
        target(2, 2, Placement::Waiting),
        target(3, 3, Placement::Fresh),
    ];
    let accepted = queue.accept(vec![new_event("a", targets)]).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    let due = UnixMillis(77);
    let dead = Verdict::Dead {
        reason: DeadReason::Exhausted,
    };
    let again = Pending {
        attempts: 1,
        due,
        ..fresh[1]
    };
    for (one, verdict) in [
        (fresh[0], Verdict::Delivered),
        (fresh[1], Verdict::Wait { due, attempts: 1 }),
        (again, dead),
        (fresh[2], Verdict::Wait { due, attempts: 1 }),
    ] {
        queue
            .settle(fence, vec![settlement(one, verdict)])
            .await
            .expect("settle");
    }
    let page = queue.list(search("ns"), None, 100).await.expect("list");
    assert_eq!(page.go_on, None);
    let seen: Vec<_> = page
        .found
        .iter()
        .map(|kept| (kept.message, &*kept.endpoint, &*kept.subscription, kept.attempts))
        .collect();
    let id = |ordinal| MessageId::new(stored(&accepted[0]), ordinal);
    let wanted = [
        (id(3), "e-2", "s-2", 0),
        (id(2), "e-2", "s-2", 1),
        (id(1), "e-1", "s-1", 2),
        (id(0), "e-1", "s-1", 1),
    ];
    assert_eq!(seen, wanted, "of another namespace there is nothing");
    assert!(page.found.iter().all(|kept| &kept.attributes[..] == b"{\"id\":\"a\"}"));
    let states: Vec<_> = page.found.iter().map(|kept| kept.standing.state().word()).collect();
    assert_eq!(states, ["pending", "pending", "dead", "delivered"]);
    assert_eq!(page.found[1].standing, Standing::Pending { due });
    assert!(matches!(&page.found[2].standing, Standing::Dead { reason, .. } if reason == "Exhausted"));
    let Standing::Delivered { status, took, .. } = page.found[3].standing else {
        panic!("delivered")
    };
    assert_eq!((status, took), (Some(200), Some(Duration::from_millis(12))));

    for kept in &page.found {
        assert_eq!(queue.get("ns", kept.message).await.expect("get").as_ref(), Some(kept));
        assert_eq!(queue.get("other", kept.message).await.expect("get"), None);
    }
    let foreign = queue
        .get("other", id(4))
        .await
        .expect("get")
        .expect("of the other namespace");
    assert_eq!(
        (&*foreign.endpoint, foreign.subscription_id),
        ("e-1", SubscriptionId(3))
    );
    assert_eq!(queue.get("ns", id(5)).await.expect("get"), None);
    let failed = queue.attempts(id(1)).await.expect("attempts");
    assert_eq!(failed.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2]);
    let last = &failed[1];
    assert_eq!(
        (last.took, last.status, &*last.reason, last.excerpt.as_deref()),
        (Duration::from_millis(12), Some(500), "Status", Some(&b"no"[..]))
    );
    assert!(
        queue.attempts(id(0)).await.expect("attempts").is_empty(),
        "only failures are kept"
    );
    queue.close().await;
}

async fn a_listing_pages_whole_and_filters<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    named(&*queue).await;
    let events = (0..40)
        .map(|n| {
            let mut event = new_event(&n.to_string(), vec![target(n % 3 + 1, n % 3 + 1, Placement::Fresh)]);
            event.event = Arc::new(StoredEvent {
                attributes: Bytes::from(format!("{{\"id\":\"{}\",\"type\":\"t{}\"}}", n / 2, n % 5)),
                body: Bytes::new(),
            });
            event
        })
        .collect();
    queue.accept(events).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await;
    let settled = fresh
        .iter()
        .step_by(2)
        .map(|one| settlement(*one, Verdict::Delivered))
        .collect();
    queue.settle(fence, settled).await.expect("settle");
    let all = queue.list(search("ns"), None, 100).await.expect("list").found;
    assert_eq!(all.len(), 27);
    assert!(all.is_sorted_by(|a, b| a.message > b.message));
    let mut paged = Vec::new();
    let mut before = None;
    loop {
        let page = queue.list(search("ns"), before, 4).await.expect("list");
        assert!(page.found.len() <= 4);
        paged.extend(page.found);
        before = page.go_on;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(paged, all);

    let found = async |search: Search| queue.list(search, None, 100).await.expect("list").found;
    let ns = || search("ns");
    let of = |pick: &dyn Fn(&Kept) -> bool| all.iter().filter(|kept| pick(kept)).cloned().collect::<Vec<_>>();
    for state in MessageState::ALL {
        let state_only = Search {
            state: Some(state),
            ..ns()
        };
        assert_eq!(found(state_only).await, of(&|kept| kept.standing.state() == state));
    }
    let endpoint = Search {
        endpoint: Some("e-2".to_owned()),
        ..ns()
    };
    assert_eq!(found(endpoint).await, of(&|kept| kept.endpoint == "e-2"));
    let both = Search {
        endpoint: Some("e-2".to_owned()),
        subscription: Some("s-1".to_owned()),
        ..ns()
    };
    assert!(found(both).await.is_empty());
    let of_type = Search {
        event_type: Some("t3".to_owned()),
        ..ns()
    };
    let typed = found(of_type.clone()).await;
    assert_eq!(typed, of(&|kept| kept.attributes.ends_with(b"\"t3\"}")));
    let of_id = Search {
        event_id: Some("9".to_owned()),
        ..of_type
    };
    let one = found(of_id).await;
    assert_eq!(one.len(), 1);
    assert_eq!(&one[0].attributes[..], b"{\"id\":\"9\",\"type\":\"t3\"}");
    let second = UnixMillis(all[0].message.event().unix_seconds() * 1000);
    let later = UnixMillis(second.0 + 5_000);
    for (from, until, count) in [
        (None, Some(later), all.len()),
        (Some(later), None, 0),
        (Some(UnixMillis(i64::MAX)), None, 0),
        (Some(UnixMillis(i64::MIN)), Some(UnixMillis(i64::MAX)), all.len()),
        (Some(UnixMillis(0)), Some(UnixMillis(second.0 - 60_000)), 0),
    ] {
        let between = Search { from, until, ..ns() };
        assert_eq!(found(between).await.len(), count, "{from:?} {until:?}");
    }
    queue.close().await;
}

async fn states_are_replaced<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let state = |text: &'static str| Bytes::from_static(text.as_bytes());
    let put = vec![(EndpointId(1), state("a")), (EndpointId(2), state("b"))];
    queue.put_endpoint_states(fence, put).await.expect("put");
    queue
        .put_endpoint_states(fence, vec![(EndpointId(1), state("c"))])
        .await
        .expect("put");
    let mut states = queue.endpoint_states(fence).await.expect("states");
    states.sort();
    assert_eq!(states, [(EndpointId(1), state("c")), (EndpointId(2), state("b"))]);
    queue.close().await;
}

async fn a_closed_store_takes_nothing<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    queue.close().await;
    assert!(matches!(
        queue.accept(vec![new_event("a", vec![])]).await,
        Err(QueueError::Closed)
    ));
    assert!(matches!(queue.event(EventId(1)).await, Err(QueueError::Closed)));
}
