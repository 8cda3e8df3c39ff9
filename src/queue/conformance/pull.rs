//! Messages that wait for a consumer.

use super::*;
use crate::queue::replay::{Phase, Selection};
use crate::queue::{Given, Place, Pull};

pub(super) async fn run<B: Bench>(make: &impl Fn() -> B) {
    messages_are_given_in_pages_until_they_are_acknowledged(&make()).await;
    an_outcome_counts_for_its_own_subscription_alone(&make()).await;
    what_becomes_pending_later_is_behind_all_that_was_seen(&make()).await;
    what_is_sent_again_is_behind_all_that_was_seen(&make()).await;
}

fn pull(after: Place, limit: usize) -> Pull {
    Pull {
        endpoint: EndpointId(1),
        subscription: SubscriptionId(1),
        after,
        limit,
        bytes: usize::MAX,
    }
}

async fn given(queue: &dyn Queue, pull: Pull) -> Given {
    queue.pull(pull).await.expect("pull")
}

fn ids(given: &Given) -> Vec<MessageId> {
    given.messages.iter().map(|(pending, _)| pending.message).collect()
}

/// Everything after a place, and the place of the last of it.
async fn follow(queue: &dyn Queue, after: &mut Place) -> Vec<MessageId> {
    let mut seen = Vec::new();
    loop {
        let page = given(queue, pull(*after, 7)).await;
        seen.extend(ids(&page));
        if let Some((last, _)) = page.messages.last() {
            assert!(Place::of(last) > *after);
            *after = Place::of(last);
        }
        if !page.more {
            return seen;
        }
    }
}

async fn messages_are_given_in_pages_until_they_are_acknowledged<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let mut all = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        let targets = vec![target(1, 1, Placement::Pulled), target(2, 2, Placement::Waiting)];
        let accepted = queue.accept(vec![new_event(name, targets)]).await.expect("accept");
        all.push(MessageId::new(stored(&accepted[0]), 0));
    }
    queue.close().await;
    drop(queue);
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let first = given(&*queue, pull(Place::START, 2)).await;
    assert_eq!((ids(&first), first.more), (all[..2].to_vec(), true));
    assert_eq!(&first.messages[1].1.body[..], b"body of b");
    let after = Place::of(&first.messages[1].0);
    let rest = given(&*queue, pull(after, 3)).await;
    assert_eq!((ids(&rest), rest.more), (all[2..].to_vec(), false));
    let narrow = Pull {
        bytes: 1,
        ..pull(after, 3)
    };
    let one = given(&*queue, narrow).await;
    assert_eq!(
        (ids(&one), one.more),
        (vec![all[2]], true),
        "one message however large it is"
    );
    let again = given(&*queue, pull(Place::START, 9)).await;
    assert_eq!(ids(&again), all, "giving changes nothing");

    let outcomes = [0, 2].map(|n| settlement(again.messages[n].0, Verdict::Delivered));
    queue.settle(fence, outcomes.to_vec()).await.expect("settle");
    let left = given(&*queue, pull(Place::START, 9)).await;
    assert_eq!(ids(&left), [all[1], all[3], all[4]]);
    queue.close().await;
}

async fn an_outcome_counts_for_its_own_subscription_alone<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let targets = vec![target(1, 1, Placement::Pulled), target(2, 2, Placement::Pulled)];
    queue.accept(vec![new_event("a", targets)]).await.expect("accept");
    let (own, _) = given(&*queue, pull(Place::START, 9)).await.messages.remove(0);
    for (endpoint, subscription) in [(1, 2), (2, 1), (2, 2)] {
        let stranger = Pending {
            endpoint: EndpointId(endpoint),
            subscription: SubscriptionId(subscription),
            ..own
        };
        let outcome = vec![settlement(stranger, Verdict::Delivered)];
        assert_eq!(queue.settle(fence, outcome).await.expect("settle"), [Settled::Stale]);
    }
    assert_eq!(queue.usage().await.expect("usage").pending, 2);
    queue.close().await;
}

async fn what_becomes_pending_later_is_behind_all_that_was_seen<B: Bench>(bench: &B) {
    const WIDE: u32 = 4 * ROUTE_AT_ONCE as u32;
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let (mut after, mut seen, mut expected) = (Place::START, Vec::new(), 0);
    for round in 0..8 {
        // The last of its targets are made in later transactions, with ids before those of newer events.
        let pair = |n| match n % 100 {
            99 => target(1, 1, Placement::Pulled),
            _ => target(2, n, Placement::Pulled),
        };
        let wide = new_event(&format!("wide-{round}"), (0..WIDE).map(pair).collect());
        let narrow = new_event(&format!("narrow-{round}"), vec![target(1, 1, Placement::Pulled)]);
        queue.accept(vec![wide]).await.expect("accept");
        seen.extend(follow(&*queue, &mut after).await);
        queue.accept(vec![narrow]).await.expect("accept");
        seen.extend(follow(&*queue, &mut after).await);
        expected += WIDE as usize / 100 + 1;
    }
    while queue.route(fence, ROUTE_AT_ONCE).await.expect("route") > 0 {}
    seen.extend(follow(&*queue, &mut after).await);
    assert_eq!(seen.len(), expected, "whoever follows sees everything");
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), expected, "and everything once");
    queue.close().await;
}

async fn what_is_sent_again_is_behind_all_that_was_seen<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let events = ["a", "b"].map(|name| new_event(name, vec![target(1, 1, Placement::Pulled)]));
    queue.accept(events.to_vec()).await.expect("accept");
    let mut after = Place::START;
    let seen = follow(&*queue, &mut after).await;
    let (first, _) = given(&*queue, pull(Place::START, 1)).await.messages.remove(0);
    let reason = DeadReason::Expired;
    queue
        .settle(fence, vec![settlement(first, Verdict::Dead { reason })])
        .await
        .expect("settle");
    let one = || Arc::new([EndpointId(1)].into());
    let selection = Selection {
        endpoints: one(),
        subscriptions: Arc::new([SubscriptionId(1)].into()),
        pulled: one(),
        dead: true,
        ..Selection::default()
    };
    // Only what was settled before the replay began is meant, to the millisecond.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let mut sent = Vec::new();
    loop {
        let step = queue.replay(fence, "again", &selection, 10).await.expect("step");
        sent.extend(step.sent);
        if step.progress.phase == Phase::Sent {
            break;
        }
    }
    assert_eq!((sent.len(), sent[0].message, sent[0].pulled), (1, seen[0], true));
    assert_eq!(follow(&*queue, &mut after).await, [seen[0]]);
    let all = given(&*queue, pull(Place::START, 9)).await;
    assert_eq!(ids(&all), [seen[1], seen[0]]);
    queue.close().await;
}
