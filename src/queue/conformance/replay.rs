//! What every store must do when kept messages are sent again.

use std::collections::{BTreeSet, HashSet};

use super::*;

pub(super) async fn run<B: Bench>(make: &impl Fn() -> B) {
    two_steps_at_once_send_nothing_twice(&make()).await;
    a_replay_sends_what_was_settled_before_it_once_and_counts_what_came_of_it(&make()).await;
    a_replay_goes_on_where_it_was_after_reopening(&make()).await;
    a_replay_means_exactly_what_it_selects(&make()).await;
    a_message_that_is_sent_again_takes_its_place_in_its_order(&make()).await;
}

fn of(endpoints: &[u32], subscriptions: &[u32]) -> Selection {
    Selection {
        endpoints: Arc::new(endpoints.iter().copied().map(EndpointId).collect::<HashSet<_>>()),
        subscriptions: Arc::new(
            subscriptions
                .iter()
                .copied()
                .map(SubscriptionId)
                .collect::<HashSet<_>>(),
        ),
        dead: true,
        ..Selection::default()
    }
}

/// `count` events of one message each, settled as `verdict` says of its position.
async fn settled(
    queue: &dyn Queue,
    fence: Fence,
    count: u32,
    verdict: impl Fn(u32) -> Option<Verdict>,
) -> Vec<Pending> {
    let events = (0..count).map(|n| new_event(&n.to_string(), vec![target(n % 2 + 1, n % 3 + 1, Placement::Fresh)]));
    queue.accept(events.collect()).await.expect("accept");
    let fresh = all_fresh(queue, fence).await;
    let verdicts = fresh
        .iter()
        .zip(0..)
        .filter_map(|(one, n)| Some(settlement(*one, verdict(n)?)));
    queue.settle(fence, verdicts.collect()).await.expect("settle");
    // What is settled in the millisecond in which a replay begins is not its own.
    tokio::time::sleep(Duration::from_millis(2)).await;
    fresh
}

const DEAD: Verdict = Verdict::Dead {
    reason: DeadReason::Exhausted,
};

async fn step(queue: &dyn Queue, fence: Fence, ticket: &str, selection: &Selection, limit: usize) -> ReplayStep {
    queue.replay(fence, ticket, selection, limit).await.expect("replay")
}

/// Counts, and sends everything, `limit` at a time.
async fn whole(queue: &dyn Queue, fence: Fence, ticket: &str, selection: &Selection, limit: usize) -> Vec<MessageId> {
    let mut sent = Vec::new();
    loop {
        let step = step(queue, fence, ticket, selection, limit).await;
        assert!(step.sent.len() <= limit);
        sent.extend(step.sent.iter().map(|one| one.message));
        if step.progress.phase == Phase::Sent {
            return sent;
        }
    }
}

/// Whether they start from the same place, and are one, or one after the other, nothing is sent twice and nothing is left out.
async fn two_steps_at_once_send_nothing_twice<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    named(&*queue).await;
    let all = settled(&*queue, fence, 40, |_| Some(DEAD)).await;
    let selection = of(&[1, 2], &[1, 2, 3]);
    let mut sent = Vec::new();
    loop {
        let (one, other) = tokio::join!(
            step(&*queue, fence, "r", &selection, 2),
            step(&*queue, fence, "r", &selection, 2)
        );
        sent.extend(one.sent.iter().chain(&other.sent).map(|again| again.message));
        if one.progress.phase == Phase::Sent && other.progress.phase == Phase::Sent {
            assert_eq!(other.progress.sent, 40);
            break;
        }
    }
    sent.sort_unstable();
    assert_eq!(sent, all.iter().map(|one| one.message).collect::<Vec<_>>());
    queue.close().await;
}

async fn a_replay_sends_what_was_settled_before_it_once_and_counts_what_came_of_it<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    named(&*queue).await;
    let all = settled(&*queue, fence, 12, |n| match n {
        0..6 => Some(DEAD),
        6..9 => Some(Verdict::Delivered),
        _ => None,
    })
    .await;
    let selection = of(&[1, 2], &[1, 2, 3]);
    let counted = step(&*queue, fence, "r", &selection, 2).await;
    assert_eq!((counted.progress.phase, counted.progress.matched), (Phase::Sending, 6));
    assert!(counted.sent.is_empty(), "first it counts");
    assert_eq!(queue.usage().await.expect("usage").dead, 6);
    let nothing = step(&*queue, fence, "r", &selection, 0).await;
    assert_eq!(nothing.progress, counted.progress);
    let old = Fence(fence.0 - 1);
    assert!(matches!(
        queue.replay(old, "r", &selection, 2).await,
        Err(QueueError::Fenced)
    ));

    let first = step(&*queue, fence, "r", &selection, 2).await;
    let told: Vec<_> = first.sent.iter().map(|one| (one.message, one.was_dead)).collect();
    assert_eq!(told, [(all[0].message, true), (all[1].message, true)], "oldest first");
    let usage = queue.usage().await.expect("usage");
    assert_eq!((usage.pending, usage.dead), (5, 4));
    let waiting = queue.window(fence, everything(1, 1)).await.expect("window");
    let [again] = waiting[..] else { panic!("{waiting:?}") };
    assert_eq!((again.message, again.attempts), (all[0].message, 0));
    assert_eq!(again.again, Some(again.due), "due at once, and its age starts anew");
    let backlog = queue.backlog(fence).await.expect("backlog");
    let pair = backlog
        .iter()
        .find(|one| (one.endpoint.0, one.subscription.0) == (1, 1))
        .expect("a pair");
    assert_eq!(pair.oldest, Some(all[0].message), "older than what was pending already");

    // Dead again, it is not met again, and neither is what dies meanwhile.
    queue
        .settle(fence, vec![settlement(again, DEAD), settlement(all[9], DEAD)])
        .await
        .expect("settle");
    let rest = whole(&*queue, fence, "r", &selection, 3).await;
    assert_eq!(rest, all[2..6].iter().map(|one| one.message).collect::<Vec<_>>());
    let outcomes: Vec<_> = all[1..6]
        .iter()
        .map(|one| settlement(Pending { attempts: 0, ..*one }, Verdict::Delivered))
        .collect();
    assert_eq!(
        queue.settle(fence, outcomes).await.expect("settle"),
        [Settled::Applied; 5]
    );
    let progress = step(&*queue, fence, "r", &selection, 9).await.progress;
    let counts = (progress.sent, progress.succeeded, progress.failed, progress.under_way());
    assert_eq!(counts, (6, 5, 1, 0));
    assert_eq!(queue.replays().await.expect("replays"), [("r".to_owned(), progress)]);
    let kept = queue.get("ns", all[4].message).await.expect("get").expect("kept");
    assert_eq!((kept.standing.state(), kept.attempts), (MessageState::Delivered, 1));
    assert_eq!(
        queue.attempts(all[4].message).await.expect("attempts").len(),
        1,
        "why it was dead"
    );

    queue.forget_replay(fence, "r").await.expect("forget");
    assert!(queue.replays().await.expect("replays").is_empty());
    queue.close().await;
}

async fn a_replay_goes_on_where_it_was_after_reopening<B: Bench>(bench: &B) {
    let mut queue = bench.open().await;
    let mut fence = queue.claim().await.expect("claim");
    let all = settled(&*queue, fence, 9, |_| Some(DEAD)).await;
    let selection = of(&[1, 2], &[1, 2, 3]);
    let mut sent = Vec::new();
    loop {
        let step = step(&*queue, fence, "r", &selection, 2).await;
        assert!(
            step.progress.phase == Phase::Counting || step.progress.matched == 9,
            "{:?}",
            step.progress
        );
        sent.extend(step.sent.iter().map(|one| one.message));
        assert_eq!(step.progress.sent, sent.len() as u64);
        let done = step.progress.phase == Phase::Sent;
        // One of two is bad luck: buried while it is pending again.
        let burial = queue.bury(fence, Some(EndpointId(2)), None, DeadReason::EndpointDeleted, 100);
        burial.await.expect("bury");
        queue.close().await;
        drop(queue);
        queue = bench.open().await;
        fence = queue.claim().await.expect("claim");
        if done {
            break;
        }
    }
    assert_eq!(sent, all.iter().map(|one| one.message).collect::<Vec<_>>());
    let of_one = queue.backlog(fence).await.expect("backlog");
    assert_eq!(of_one.iter().map(|one| one.pending).sum::<u64>(), 5);
    let progress = queue.replays().await.expect("replays")[0].1;
    assert_eq!((progress.failed, progress.under_way()), (4, 5));
    queue.close().await;
}

async fn a_replay_means_exactly_what_it_selects<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let all = settled(&*queue, fence, 12, |n| match n % 4 {
        0 | 1 => Some(DEAD),
        2 => Some(Verdict::Delivered),
        _ => None,
    })
    .await;
    let second = UnixMillis(all[0].message.event().unix_seconds() * 1000);
    let anything = Selection {
        delivered: true,
        ..of(&[1, 2], &[1, 2, 3])
    };
    let ids: BTreeSet<_> = [1, 2, 3, 8].map(|n| all[n].message).into();
    let selections: [(Selection, &dyn Fn(usize) -> bool); 7] = [
        (of(&[1], &[1, 2, 3]), &|n| n % 4 == 0),
        (of(&[1, 2], &[2]), &|n| n % 4 < 2 && n % 3 == 1),
        (
            Selection {
                dead: false,
                ..anything.clone()
            },
            &|n| n % 4 == 2,
        ),
        (anything.clone(), &|n| n % 4 < 3),
        (
            Selection {
                ids: Some(Arc::new(ids)),
                ..anything.clone()
            },
            &|n| [1, 2, 8].contains(&n),
        ),
        (
            Selection {
                from: Some(UnixMillis(second.0 + 60_000)),
                ..anything.clone()
            },
            &|_| false,
        ),
        (
            Selection {
                until: Some(UnixMillis(second.0 - 60_000)),
                ..anything
            },
            &|_| false,
        ),
    ];
    for (number, (selection, is_meant)) in selections.iter().enumerate() {
        let ticket = format!("r{number}");
        let wanted: Vec<_> = (0..all.len())
            .filter(|n| is_meant(*n))
            .map(|n| all[n].message)
            .collect();
        let counted = loop {
            let progress = step(&*queue, fence, &ticket, selection, 0).await.progress;
            if progress.phase != Phase::Counting {
                break progress;
            }
        };
        assert_eq!((counted.matched, counted.sent), (wanted.len() as u64, 0), "{number}");
    }
    // Sending what one of them selects takes it from the others.
    let (ids, is_meant) = &selections[4];
    let sent = whole(&*queue, fence, "r4", ids, 2).await;
    assert_eq!(
        sent,
        (0..all.len())
            .filter(|n| is_meant(*n))
            .map(|n| all[n].message)
            .collect::<Vec<_>>()
    );
    assert_eq!(whole(&*queue, fence, "r3", &selections[3].0, 100).await.len(), 9 - 3);
    queue.close().await;
}

async fn a_message_that_is_sent_again_takes_its_place_in_its_order<B: Bench>(bench: &B) {
    let queue = bench.open().await;
    let fence = queue.claim().await.expect("claim");
    let ordered = Target {
        order: Some(OrderKey(7)),
        ..target(1, 1, Placement::Fresh)
    };
    let events = (0..3).map(|n| new_event(&n.to_string(), vec![ordered]));
    queue.accept(events.collect()).await.expect("accept");
    let first = all_fresh(&*queue, fence).await[0];
    let letter = Settlement {
        blocks: true,
        ..settlement(first, DEAD)
    };
    assert_eq!(
        queue.settle(fence, vec![letter]).await.expect("settle"),
        [Settled::Blocked]
    );
    tokio::time::sleep(Duration::from_millis(2)).await;

    // The letter that blocks its key is the one to go, and the others stay behind it.
    let selection = of(&[1], &[1]);
    step(&*queue, fence, "r", &selection, 9).await;
    let sent = step(&*queue, fence, "r", &selection, 9).await.sent;
    assert_eq!(
        sent.iter()
            .map(|one| (one.message, one.unblocks, one.held))
            .collect::<Vec<_>>(),
        [(first.message, true, false)]
    );
    let counts = queue.backlog(fence).await.expect("backlog")[0];
    assert_eq!(
        (counts.pending, counts.held, counts.dead, counts.blocking),
        (3, 2, 0, 0)
    );
    // Dead once more, without blocking: the second goes.
    let Settled::Promoted(second) = queue
        .settle(fence, vec![settlement(first, DEAD)])
        .await
        .expect("settle")[0]
    else {
        panic!("the next of the key is told")
    };
    assert_eq!(second.again, None);
    tokio::time::sleep(Duration::from_millis(2)).await;

    // While another of its key is under way it is held; of those that are held it is the oldest.
    step(&*queue, fence, "r2", &selection, 9).await;
    let sent = step(&*queue, fence, "r2", &selection, 9).await.sent;
    assert_eq!((sent[0].message, sent[0].held), (first.message, true));
    let counts = queue.backlog(fence).await.expect("backlog")[0];
    assert_eq!((counts.pending, counts.held, counts.dead), (3, 2, 0));
    let settled = queue
        .settle(fence, vec![settlement(second, Verdict::Delivered)])
        .await
        .expect("settle");
    let [Settled::Promoted(again)] = settled[..] else {
        panic!("{settled:?}")
    };
    assert_eq!((again.message, again.again.is_some()), (first.message, true));

    // So is one that was delivered, also behind the one that is under way.
    let delivered = Selection {
        dead: false,
        delivered: true,
        ..selection
    };
    tokio::time::sleep(Duration::from_millis(2)).await;
    step(&*queue, fence, "r3", &delivered, 9).await;
    let sent = step(&*queue, fence, "r3", &delivered, 9).await.sent;
    assert_eq!(
        sent.iter().map(|one| (one.message, one.held)).collect::<Vec<_>>(),
        [(second.message, true)]
    );
    let settled = queue
        .settle(fence, vec![settlement(again, DEAD)])
        .await
        .expect("settle");
    let [Settled::Promoted(next)] = settled[..] else {
        panic!("{settled:?}")
    };
    assert_eq!(next.message, second.message, "before the third, which is newer");
    queue.close().await;
}
