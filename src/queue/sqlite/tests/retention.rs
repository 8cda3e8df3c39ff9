//! How long history is kept, over days of a clock of its own.

use super::*;
use crate::ids::EventId;

static AHEAD: AtomicI64 = AtomicI64::new(0);
const HOUR: i64 = 3_600_000;

fn clock() -> UnixMillis {
    UnixMillis(UnixMillis::now().0 + AHEAD.load(Ordering::SeqCst))
}

/// The store as a process finds it so many hours after now.
fn opened_after(dir: &Directory, hours: i64) -> SqliteQueue {
    AHEAD.store(hours * HOUR, Ordering::SeqCst);
    let options = Options { clock, ..options() };
    open(dir.path(), options)
}

/// Which events are there.
async fn there(queue: &SqliteQueue, events: &[EventId]) -> Vec<usize> {
    let mut there = Vec::new();
    for (n, event) in events.iter().enumerate() {
        if queue.event(*event).await.expect("event").is_some() {
            there.push(n);
        }
    }
    there
}

/// Waits until these are left, and looks a while longer whether they stay.
async fn left(dir: &Directory, hours: i64, events: &[EventId], expected: &[usize]) {
    let queue = opened_after(dir, hours);
    let deadline = Instant::now() + Duration::from_secs(20);
    while there(&queue, events).await != expected {
        let found = there(&queue, events).await;
        assert!(
            Instant::now() < deadline,
            "after {hours} hours {found:?}, not {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert_eq!(there(&queue, events).await, expected, "after {hours} hours");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    queue.close().await;
}

#[tokio::test]
async fn what_is_kept_short_or_long_goes_at_its_own_time_over_restarts_also_when_it_was_settled_late() {
    let dir = Directory::new();
    let queue = opened_after(&dir, 0);
    let fence = queue.claim().await.expect("claim");
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    // Endpoint 1 is kept an hour, 2 three days (nobody said), 3 thirty days.
    let told = vec![(EndpointId(1), hours(1)), (EndpointId(3), hours(720))];
    queue.keep(fence, told).await.expect("keep");
    let targets = [vec![1], vec![2], vec![3], vec![1, 2, 3], vec![2], vec![1]];
    let events = targets.iter().enumerate().map(|(n, endpoints)| {
        let target = |endpoint: &u32| target(*endpoint, 1, Placement::Fresh);
        new_event(&n.to_string(), endpoints.iter().map(target).collect())
    });
    let accepted = queue.accept(events.collect()).await.expect("accept");
    let event = |answer: &Accepted| match answer {
        Accepted::New { event, .. } | Accepted::Duplicate { event, .. } => *event,
    };
    let events: Vec<EventId> = accepted.iter().map(event).collect();
    let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
    let settle = async |queue: &SqliteQueue, fence, which: &[usize]| {
        let of = |one: &&Pending| which.iter().any(|n| events[*n] == one.message.event());
        let outcomes = fresh.iter().filter(of).map(|one| {
            let mut outcome = settlement(*one, Verdict::Delivered);
            if let Some(record) = &mut outcome.record {
                // An attempt may take long: what it settles is kept from its end on.
                record.at = UnixMillis(clock().0 - 2 * HOUR);
            }
            outcome
        });
        queue.settle(fence, outcomes.collect()).await.expect("settle");
    };
    settle(&queue, fence, &[0, 1, 2, 3]).await;
    queue.close().await;
    drop(queue);
    left(&dir, 0, &events, &[0, 1, 2, 3, 4, 5]).await;
    left(&dir, 2, &events, &[1, 2, 3, 4, 5]).await;
    left(&dir, 71, &events, &[1, 2, 3, 4, 5]).await;
    // Settled after nearly three days: kept from then on.
    let queue = opened_after(&dir, 71);
    let fence = queue.claim().await.expect("claim");
    settle(&queue, fence, &[4, 5]).await;
    queue.close().await;
    drop(queue);
    left(&dir, 91, &events, &[2, 3, 4]).await;
    left(&dir, 140, &events, &[2, 3, 4]).await;
    left(&dir, 163, &events, &[2, 3]).await;
    left(&dir, 719, &events, &[2, 3]).await;
    left(&dir, 722, &events, &[]).await;
}
