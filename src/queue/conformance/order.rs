//! What every store must do with messages that have an order.

use super::*;

const KEY: OrderKey = OrderKey(7);

pub(super) async fn run<B: Bench>(make: &impl Fn() -> B) {
    one_message_of_a_key_goes_at_a_time(&make()).await;
    the_next_of_a_key_waits_where_that_is_wanted_due_when_its_turn_came(&make()).await;
    keys_and_endpoints_do_not_wait_for_each_other(&make()).await;
    a_blocking_dead_letter_holds_its_key_until_it_is_released_or_gone(&make()).await;
    an_order_that_is_given_up_lets_everything_go(&make()).await;
    an_order_that_is_wanted_again_half_way_holds_nothing_for_ever(&make()).await;
    burial_of_one_subscription_lets_the_others_go_on(&make()).await;
    held_messages_that_are_given_up_promote_nobody(&make()).await;
    no_later_event_overtakes_a_wide_one(&make()).await;
    events_that_make_too_many_messages_at_once_are_refused(&make()).await;
}

fn ordered(endpoint: u32, subscription: u32, key: OrderKey, placement: Placement) -> Target {
    Target {
        order: Some(key),
        ..target(endpoint, subscription, placement)
    }
}

/// Accepts one event for each target; their messages.
async fn accept(queue: &dyn Queue, targets: &[Target]) -> Vec<MessageId> {
    let usage = queue.usage().await.expect("usage");
    let id = |n: usize| format!("{}-{n}", usage.dedupe_entries);
    let events = targets
        .iter()
        .enumerate()
        .map(|(n, target)| new_event(&id(n), vec![*target]));
    let accepted = queue.accept(events.collect()).await.expect("accept");
    accepted.iter().map(|one| MessageId::new(stored(one), 0)).collect()
}

fn pending(message: MessageId, attempts: u16) -> Pending {
    Pending {
        message,
        endpoint: EndpointId(1),
        subscription: SubscriptionId(1),
        attempts,
        due: UnixMillis(0),
        again: None,
    }
}

async fn settle(queue: &dyn Queue, fence: Fence, settlement: Settlement) -> Settled {
    queue.settle(fence, vec![settlement]).await.expect("settle")[0]
}

/// Settles an attempt; the message that may go now.
async fn next(
    queue: &dyn Queue,
    fence: Fence,
    message: MessageId,
    attempts: u16,
    verdict: Verdict,
) -> Option<MessageId> {
    match settle(queue, fence, settlement(pending(message, attempts), verdict)).await {
        Settled::Promoted(next) => Some(next.message),
        Settled::Applied => None,
        other => panic!("{other:?}"),
    }
}

fn dead(message: MessageId, blocks: bool) -> Settlement {
    let reason = DeadReason::Exhausted;
    Settlement {
        blocks,
        ..settlement(pending(message, 0), Verdict::Dead { reason })
    }
}

/// What may go: fresh ones, and those that wait.
async fn going(queue: &dyn Queue, fence: Fence, endpoint: u32, subscription: u32) -> Vec<MessageId> {
    let fresh = all_fresh(queue, fence).await.into_iter();
    let mut going: Vec<MessageId> = fresh
        .filter(|one| (one.endpoint.0, one.subscription.0) == (endpoint, subscription))
        .map(|one| one.message)
        .collect();
    let waiting = queue
        .window(fence, everything(endpoint, subscription))
        .await
        .expect("window");
    going.extend(waiting.iter().map(|one| one.message));
    going
}

/// Pending, held, dead and blocking.
async fn counts(queue: &dyn Queue, fence: Fence, endpoint: u32) -> (u64, u64, u64, u64) {
    let backlog = queue.backlog(fence).await.expect("backlog");
    let of = backlog.iter().filter(|one| one.endpoint.0 == endpoint);
    of.fold((0, 0, 0, 0), |(pending, held, dead, blocking), one| {
        (
            pending + one.pending,
            held + one.held,
            dead + one.dead,
            blocking + one.blocking,
        )
    })
}

async fn one_message_of_a_key_goes_at_a_time<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let mut arrivals = queue.arrivals().expect("the first taker");
    let placements = [
        Placement::Waiting,
        Placement::Fresh,
        Placement::Waiting,
        Placement::Fresh,
    ];
    let ids = accept(&*queue, &placements.map(|placement| ordered(1, 1, KEY, placement))).await;
    let arrived = arrivals.recv().await.expect("a batch");
    let held: Vec<_> = arrived.iter().map(|one| (one.message, one.held)).collect();
    assert_eq!(held, [(ids[0], false), (ids[1], true), (ids[2], true), (ids[3], true)]);
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[0]]);
    assert_eq!(counts(&*queue, fence, 1).await, (4, 3, 0, 0));

    // A failure keeps its place.
    let wait = Verdict::Wait {
        due: UnixMillis(1_000),
        attempts: 1,
    };
    assert_eq!(next(&*queue, fence, ids[0], 0, wait).await, None);
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[0]]);

    let Settled::Promoted(second) = settle(&*queue, fence, settlement(pending(ids[0], 1), Verdict::Delivered)).await
    else {
        panic!("the next of the key is told");
    };
    let told = Pending {
        due: second.due,
        ..pending(ids[1], 0)
    };
    assert_eq!(second, told);
    assert_eq!(all_fresh(&*queue, fence).await.len(), 1, "it is fresh");
    let stale = settlement(pending(ids[0], 1), Verdict::Delivered);
    assert_eq!(
        settle(&*queue, fence, stale).await,
        Settled::Stale,
        "and nobody else is promoted"
    );
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[1]]);
    queue.close().await;
    drop(queue);

    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[1]], "after reopening");
    assert_eq!(counts(&*queue, fence, 1).await, (3, 2, 0, 0));
    let gone = settle(&*queue, fence, dead(ids[1], false)).await;
    assert!(matches!(gone, Settled::Promoted(third) if third.message == ids[2]));
    assert_eq!(next(&*queue, fence, ids[2], 0, Verdict::Delivered).await, Some(ids[3]));
    assert_eq!(next(&*queue, fence, ids[3], 0, Verdict::Delivered).await, None);
    let later = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh)]).await;
    assert_eq!(going(&*queue, fence, 1, 1).await, later, "the key is free again");
    queue.close().await;
}

async fn the_next_of_a_key_waits_where_that_is_wanted_due_when_its_turn_came<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let ids = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh); 3]).await;
    let other = accept(&*queue, &[ordered(1, 1, OrderKey(8), Placement::Waiting)]).await;
    let delivered = |message| Settlement {
        next_waits: true,
        ..settlement(pending(message, 0), Verdict::Delivered)
    };
    // Its turn comes later than the other key's.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let Settled::Promoted(second) = settle(&*queue, fence, delivered(ids[0])).await else {
        panic!("the next of the key is told");
    };
    assert_eq!(second.message, ids[1]);
    assert!(all_fresh(&*queue, fence).await.is_empty());
    assert_eq!(going(&*queue, fence, 1, 1).await, [other[0], ids[1]]);
    assert_eq!(counts(&*queue, fence, 1).await, (3, 1, 0, 0));
    queue.close().await;
    drop(queue);

    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let waiting = queue.window(fence, everything(1, 1)).await.expect("window");
    assert_eq!(waiting[1], second, "after reopening");
    let next = settle(&*queue, fence, delivered(ids[1])).await;
    assert!(matches!(next, Settled::Promoted(third) if third.message == ids[2]));
    assert_eq!(settle(&*queue, fence, delivered(ids[2])).await, Settled::Applied);
    queue.close().await;
}

async fn keys_and_endpoints_do_not_wait_for_each_other<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let targets = [
        ordered(1, 1, KEY, Placement::Fresh),
        ordered(1, 1, OrderKey(8), Placement::Fresh),
        ordered(2, 1, KEY, Placement::Fresh),
        target(1, 1, Placement::Fresh),
        target(1, 1, Placement::Fresh),
        // Two subscriptions of one endpoint share the order.
        ordered(1, 2, KEY, Placement::Fresh),
    ];
    let ids = accept(&*queue, &targets).await;
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[0], ids[1], ids[3], ids[4]]);
    assert_eq!(going(&*queue, fence, 2, 1).await, [ids[2]]);
    assert!(going(&*queue, fence, 1, 2).await.is_empty());
    for id in [ids[1], ids[3], ids[4]] {
        assert_eq!(next(&*queue, fence, id, 0, Verdict::Delivered).await, None);
    }
    assert_eq!(next(&*queue, fence, ids[0], 0, Verdict::Delivered).await, Some(ids[5]));
    assert_eq!(going(&*queue, fence, 1, 2).await, [ids[5]]);
    queue.close().await;
}

async fn a_blocking_dead_letter_holds_its_key_until_it_is_released_or_gone<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let ids = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh); 3]).await;
    assert_eq!(settle(&*queue, fence, dead(ids[0], true)).await, Settled::Blocked);
    assert!(going(&*queue, fence, 1, 1).await.is_empty());
    queue.close().await;
    drop(queue);

    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let endpoint = EndpointId(1);
    assert_eq!(counts(&*queue, fence, 1).await, (2, 2, 1, 1), "after reopening");
    let release = |release, limit| queue.release(fence, endpoint, release, limit);
    assert_eq!(release(Release::Blocked, 10).await.expect("release"), 1);
    assert_eq!(release(Release::Blocked, 10).await.expect("release"), 0);
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[1]]);
    assert_eq!(counts(&*queue, fence, 1).await, (2, 1, 1, 0));

    // A key without anything pending is blocked as well; a dead letter that is pruned blocks no longer.
    let other = accept(&*queue, &[ordered(1, 1, OrderKey(8), Placement::Fresh)]).await;
    assert_eq!(settle(&*queue, fence, dead(other[0], true)).await, Settled::Blocked);
    let behind = accept(&*queue, &[ordered(1, 1, OrderKey(8), Placement::Fresh)]).await;
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[1]]);
    let soon = UnixMillis::now().plus(Duration::from_secs(60));
    while queue.prune(soon, 4).await.expect("prune") > 0 {}
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[1], behind[0]]);
    assert_eq!(counts(&*queue, fence, 1).await, (3, 1, 0, 0));
    // Over the limit of pending messages one is a dead letter at once, and blocks nobody.
    accept(&*queue, &[ordered(1, 1, OrderKey(9), Placement::QueueFull)]).await;
    let free = accept(&*queue, &[ordered(1, 1, OrderKey(9), Placement::Fresh)]).await;
    assert!(going(&*queue, fence, 1, 1).await.contains(&free[0]));
    queue.close().await;
}

async fn an_order_that_is_given_up_lets_everything_go<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let mut targets = vec![ordered(1, 1, KEY, Placement::Fresh); 3];
    targets.extend([ordered(1, 1, OrderKey(8), Placement::Fresh); 2]);
    targets.extend([ordered(2, 1, KEY, Placement::Fresh); 2]);
    let ids = accept(&*queue, &targets).await;
    assert_eq!(settle(&*queue, fence, dead(ids[3], true)).await, Settled::Blocked);
    let old = Fence(fence.0 - 1);
    let fenced = queue.release(old, EndpointId(1), Release::Order, 2).await;
    assert!(matches!(fenced, Err(QueueError::Fenced)));
    while queue
        .release(fence, EndpointId(1), Release::Order, 2)
        .await
        .expect("release")
        > 0
    {}
    assert_eq!(counts(&*queue, fence, 1).await, (4, 0, 1, 0));
    let mut going_now = going(&*queue, fence, 1, 1).await;
    going_now.sort_unstable();
    assert_eq!(going_now, [ids[0], ids[1], ids[2], ids[4]]);
    assert_eq!(
        going(&*queue, fence, 2, 1).await,
        [ids[5]],
        "the other endpoint keeps its order"
    );
    // Those without an order stay without it.
    let later = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh)]).await;
    assert!(going(&*queue, fence, 1, 1).await.contains(&later[0]));
    assert_eq!(next(&*queue, fence, ids[0], 0, Verdict::Delivered).await, None);
    queue.close().await;
}

async fn an_order_that_is_wanted_again_half_way_holds_nothing_for_ever<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let ids = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh); 4]).await;
    let released = queue.release(fence, EndpointId(1), Release::Order, 2).await;
    assert_eq!(released.expect("release"), 2);
    // The spec says FIFO again, or the process ends: no further step comes.
    let going_now = going(&*queue, fence, 1, 1).await;
    assert_eq!(
        going_now,
        ids[..3],
        "two without an order, and the first of those that still have one"
    );
    assert_eq!(counts(&*queue, fence, 1).await, (4, 1, 0, 0));
    let later = accept(&*queue, &[ordered(1, 1, KEY, Placement::Fresh)]).await;
    assert_eq!(next(&*queue, fence, ids[0], 0, Verdict::Delivered).await, None);
    assert_eq!(next(&*queue, fence, ids[2], 0, Verdict::Delivered).await, Some(ids[3]));
    assert_eq!(
        next(&*queue, fence, ids[3], 0, Verdict::Delivered).await,
        Some(later[0])
    );

    // A dead letter that blocks the key goes on doing so.
    let ids = accept(&*queue, &[ordered(2, 1, KEY, Placement::Fresh); 3]).await;
    let blocks = Settlement {
        endpoint: EndpointId(2),
        ..dead(ids[0], true)
    };
    assert_eq!(settle(&*queue, fence, blocks).await, Settled::Blocked);
    let released = queue.release(fence, EndpointId(2), Release::Order, 1).await;
    assert_eq!(released.expect("release"), 1);
    assert_eq!(going(&*queue, fence, 2, 1).await, [ids[1]]);
    assert_eq!(counts(&*queue, fence, 2).await, (2, 1, 1, 1));
    queue.close().await;
}

async fn burial_of_one_subscription_lets_the_others_go_on<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let targets = [1, 1, 2, 1, 2].map(|subscription| ordered(1, subscription, KEY, Placement::Fresh));
    let ids = accept(&*queue, &targets).await;
    let bury = |limit| {
        queue.bury(
            fence,
            None,
            Some(SubscriptionId(1)),
            DeadReason::SubscriptionDeleted,
            limit,
        )
    };
    while bury(1).await.expect("bury") > 0 {}
    assert_eq!(going(&*queue, fence, 1, 2).await, [ids[2]]);
    assert_eq!(counts(&*queue, fence, 1).await, (2, 1, 3, 0));
    queue.close().await;
}

async fn held_messages_that_are_given_up_promote_nobody<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let targets = [
        ordered(1, 1, KEY, Placement::Fresh),
        ordered(1, 1, KEY, Placement::Fresh),
        ordered(2, 1, KEY, Placement::Fresh),
        ordered(2, 1, KEY, Placement::Fresh),
        ordered(1, 1, KEY, Placement::Fresh),
        ordered(1, 1, KEY, Placement::Fresh),
    ];
    let ids = accept(&*queue, &targets).await;
    // One of a lesser key comes first, though it is the newest, and one of another endpoint not at all.
    let more = [ordered(1, 1, OrderKey(-8), Placement::Fresh); 2];
    let lesser = accept(&*queue, &more).await;
    let found = async |after: Option<HeldPosition>, before, limit| {
        let page = queue
            .held(fence, EndpointId(1), after, before, limit)
            .await
            .expect("held");
        let ids: Vec<MessageId> = page.messages.iter().map(|one| one.message).collect();
        (ids, page.go_on)
    };
    let all = MessageId(i64::MAX);
    let (first, go_on) = found(None, all, 2).await;
    assert_eq!(first, [lesser[1], ids[1]]);
    let (then, go_on) = found(go_on, all, 1).await;
    assert_eq!(then, [ids[4]]);
    let (last, go_on) = found(go_on, all, 2).await;
    assert_eq!((last, go_on), (vec![ids[5]], None));
    assert_eq!(found(None, ids[4], 10).await, (vec![ids[1]], None));
    assert_eq!(
        next(&*queue, fence, lesser[0], 0, Verdict::Delivered).await,
        Some(lesser[1])
    );
    assert_eq!(next(&*queue, fence, lesser[1], 0, Verdict::Delivered).await, None);

    assert_eq!(settle(&*queue, fence, dead(ids[1], false)).await, Settled::Applied);
    assert_eq!(going(&*queue, fence, 1, 1).await, [ids[0]]);
    assert_eq!(counts(&*queue, fence, 1).await, (3, 2, 1, 0));
    assert_eq!(next(&*queue, fence, ids[0], 0, Verdict::Delivered).await, Some(ids[4]));
    queue.close().await;
}

async fn no_later_event_overtakes_a_wide_one<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let mut targets: Vec<Target> = (0..2 * ROUTE_AT_ONCE as u32)
        .map(|n| target(2, n, Placement::Waiting))
        .collect();
    let place = targets.len() - 1;
    targets[place] = ordered(1, 1, KEY, Placement::Fresh);
    let events = vec![
        new_event("wide", targets),
        new_event("after", vec![ordered(1, 1, KEY, Placement::Fresh)]),
    ];
    let accepted = queue.accept(events).await.expect("accept");
    let first = MessageId::new(stored(&accepted[0]), place as u32);
    assert_eq!(going(&*queue, fence, 1, 1).await, [first]);
    queue.close().await;
}

async fn events_that_make_too_many_messages_at_once_are_refused<B: Bench>(bench: &B) {
    const WIDE: u32 = 10_000;
    let queue = bench.open().await;
    let events = |last: Target| -> Vec<NewEvent> {
        let wide = (1..WIDE).map(|n| target(2, n, Placement::Waiting)).chain([last]);
        let targets: Vec<Target> = wide.collect();
        let event = |n| new_event(&format!("{:?}-{n}", last.order), targets.clone());
        (0..3).map(event).collect()
    };
    let refused = queue.accept(events(ordered(1, 1, KEY, Placement::Fresh))).await;
    assert!(matches!(refused, Err(QueueError::TooMany(n)) if n == 3 * WIDE as usize));
    assert_eq!(
        queue.usage().await.expect("usage").pending,
        0,
        "nothing of them is stored"
    );
    // What has no order is stored bit by bit.
    let accepted = queue.accept(events(target(1, 1, Placement::Fresh))).await;
    assert_eq!(accepted.expect("accept").len(), 3);
    queue.close().await;
}
