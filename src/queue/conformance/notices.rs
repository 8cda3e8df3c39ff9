//! Messages that tell of dead letters.

use super::*;
use crate::queue::Notice;

pub(super) async fn run<B: Bench>(make: &impl Fn() -> B) {
    a_dead_letter_is_told_of_once_in_the_same_step(&make()).await;
    a_letter_and_what_tells_of_it_say_the_same_attempts(&make()).await;
}

async fn a_dead_letter_is_told_of_once_in_the_same_step<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let name = |name: &str| crate::queue::ResourceKey {
        namespace_uid: "uid".into(),
        name: name.into(),
    };
    let endpoints = queue
        .intern_endpoints(vec![name("crm"), name("pager")])
        .await
        .expect("ids");
    let subscription = queue.intern_subscriptions(vec![name("leads")]).await.expect("ids")[0];
    let (crm, pager) = (endpoints[0], endpoints[1]);
    let accepted = queue
        .accept(vec![new_event(
            "a",
            vec![target(crm.0, subscription.0, Placement::Fresh)],
        )])
        .await
        .expect("accept");
    let event = stored(&accepted[0]);
    let fresh = all_fresh(&*queue, fence).await[0];
    let reason = DeadReason::Refused;
    let dead = Settlement {
        tell: Some(pager),
        ..settlement(fresh, Verdict::Dead { reason })
    };
    let settled = queue.settle(fence, vec![dead.clone(), dead]).await.expect("settle");
    assert_eq!(settled, [Settled::Applied, Settled::Stale], "and so it is told of once");
    queue.close().await;
    drop(queue);

    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let waiting = queue
        .window(fence, everything(pager.0, subscription.0))
        .await
        .expect("window");
    let [notice] = waiting[..] else { panic!("{waiting:?}") };
    assert!(notice.message.is_notice() && !fresh.message.is_notice());
    let copy = notice.message.event();
    assert!(copy > event, "it is as old as the dead letter, not as its event");
    let body = queue.event(copy).await.expect("event").expect("is stored").body.clone();
    assert_eq!(&body[..], b"body of a");
    let told = queue.notice(copy).await.expect("notice").expect("is stored");
    let Notice { at, .. } = told;
    let expected = Notice {
        message: fresh.message,
        subscription: "leads".into(),
        endpoint: "crm".into(),
        attempts: 1,
        at,
        reason: "Refused".into(),
        status: Some(500),
    };
    assert_eq!(told, expected);
    assert_eq!(queue.notice(event).await.expect("notice"), None);
    let later = queue.accept(vec![new_event("b", vec![])]).await.expect("accept");
    assert!(stored(&later[0]) > copy, "an id is given once");

    // Nobody is told of what tells of a dead letter.
    let dead = Settlement {
        tell: Some(pager),
        ..settlement(notice, Verdict::Dead { reason })
    };
    assert_eq!(
        queue.settle(fence, vec![dead]).await.expect("settle"),
        [Settled::Applied]
    );
    assert!(
        queue
            .window(fence, everything(pager.0, subscription.0))
            .await
            .expect("window")
            .is_empty()
    );
    let pruned = queue.prune(UnixMillis(i64::MAX >> 20), 1_000).await.expect("prune");
    assert!(pruned > 0);
    assert_eq!(
        queue.notice(copy).await.expect("notice"),
        None,
        "it goes with its message"
    );
    queue.close().await;
}

async fn a_letter_and_what_tells_of_it_say_the_same_attempts<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let name = |name: &str| crate::queue::ResourceKey {
        namespace_uid: "ns".into(),
        name: name.into(),
    };
    let endpoints = queue
        .intern_endpoints(vec![name("crm"), name("pager")])
        .await
        .expect("ids");
    let subscription = queue.intern_subscriptions(vec![name("leads")]).await.expect("ids")[0];
    let (crm, pager) = (endpoints[0], endpoints[1]);
    let to_crm = vec![target(crm.0, subscription.0, Placement::Fresh)];
    queue.accept(vec![new_event("a", to_crm)]).await.expect("accept");
    let fresh = all_fresh(&*queue, fence).await[0];
    // Its record says why it cannot be made into a request: there was no attempt.
    let reason = DeadReason::Unrenderable;
    let dead = Settlement {
        consumed: fresh.attempts,
        tell: Some(pager),
        ..settlement(fresh, Verdict::Dead { reason })
    };
    queue.settle(fence, vec![dead]).await.expect("settle");
    let listed = queue.list(search("ns"), None, 100).await.expect("list").found;
    let letter = listed.iter().find(|kept| kept.message == fresh.message);
    let waiting = queue
        .window(fence, everything(pager.0, subscription.0))
        .await
        .expect("window");
    let told = queue.notice(waiting[0].message.event()).await.expect("notice");
    assert_eq!(letter.expect("it is kept").attempts, 0);
    assert_eq!(told.expect("is stored").attempts, 0);
    queue.close().await;
}
