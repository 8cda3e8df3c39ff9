//! What goes with a namespace.

use super::*;

const EVENTS: usize = 400;

fn resource(namespace_uid: &str, name: &str) -> ResourceKey {
    ResourceKey {
        namespace_uid: namespace_uid.to_owned(),
        name: name.to_owned(),
    }
}

async fn numbers(queue: &SqliteQueue, sql: &'static str) -> Vec<i64> {
    let read = move |conn: &rusqlite::Connection| {
        let mut rows = conn.prepare(sql)?;
        rows.query_map([], |row| row.get(0))?.collect()
    };
    queue.read(read).await.expect("numbers")
}

/// Waits until the rows are these.
async fn until(queue: &SqliteQueue, sql: &'static str, wanted: &[i64]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while numbers(queue, sql).await != wanted {
        let found = numbers(queue, sql).await;
        assert!(Instant::now() < deadline, "{sql}: {found:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const DELIVERED: &str = "SELECT count(*) FROM settled GROUP BY ep ORDER BY ep";
const DEAD: &str = "SELECT count(*) FROM dead GROUP BY ep ORDER BY ep";
const EVENTS_LEFT: &str = "SELECT count(*) FROM event";
const MARKS: &str = "SELECT seconds FROM retention ORDER BY ep";

#[tokio::test]
async fn what_is_kept_of_a_namespace_goes_with_it_over_a_restart_and_nothing_else_does() {
    let dir = Directory::new();
    let queue = open(dir.path(), options());
    let fence = queue.claim().await.expect("claim");
    let keys = vec![resource("gone", "a"), resource("gone", "b"), resource("stays", "a")];
    let ids = queue.intern_endpoints(keys).await.expect("intern");
    // Of each event one is delivered to, and one gives it up.
    let to = |n: usize| target(ids[n % 3].0, 1, Placement::Fresh);
    let events = (0..EVENTS).map(|n| new_event(&n.to_string(), vec![to(n), to(n + 1)]));
    queue.accept(events.collect()).await.expect("accept");
    let mut fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
    let waits = fresh.iter().rposition(|one| one.endpoint == ids[1]).expect("one of b");
    let waits = fresh.remove(waits);
    let dead = Verdict::Dead {
        reason: DeadReason::Refused,
    };
    let verdict = |one: &Pending| match one.message.0 % 2 {
        0 => Verdict::Delivered,
        _ => dead,
    };
    let outcomes = fresh.iter().map(|one| settlement(*one, verdict(one)));
    queue.settle(fence, outcomes.collect()).await.expect("settle");
    let keep = vec![(ids[0], Duration::from_secs(720 * 3600))];
    queue.keep(fence, keep).await.expect("keep");
    let (delivered, dead) = (numbers(&queue, DELIVERED).await, numbers(&queue, DEAD).await);
    assert_eq!((delivered.len(), dead.len()), (3, 3));

    // All but an endpoint of which something is pending.
    let gone = || vec!["gone".to_owned(), "never".to_owned()];
    assert_eq!(queue.purge(fence, gone()).await.expect("purge"), 1);
    queue.close().await;
    drop(queue);
    let queue = open(dir.path(), options());
    let fence = queue.claim().await.expect("claim");
    until(&queue, MARKS, &[0]).await;
    assert_eq!(numbers(&queue, DELIVERED).await, delivered[1..]);
    assert_eq!(numbers(&queue, DEAD).await, dead[1..]);
    assert_eq!(queue.namespaces(fence).await.expect("namespaces"), ["gone", "stays"]);

    let outcome = settlement(waits, Verdict::Delivered);
    queue.settle(fence, vec![outcome]).await.expect("settle");
    assert_eq!(queue.purge(fence, gone()).await.expect("purge"), 1, "the other one");
    until(&queue, MARKS, &[0, 0]).await;
    assert_eq!(numbers(&queue, DELIVERED).await, delivered[2..]);
    assert_eq!(numbers(&queue, DEAD).await, dead[2..]);
    let of_stays = EVENTS as i64 * 2 / 3;
    assert!((of_stays..=of_stays + 1).contains(&numbers(&queue, EVENTS_LEFT).await[0]));
    assert_eq!(queue.usage().await.expect("usage").dead, dead[2] as u64);
    assert_eq!(queue.namespaces(fence).await.expect("namespaces"), ["stays"]);
    assert_eq!(queue.purge(fence, gone()).await.expect("purge"), 0, "once");
    queue.close().await;
}
