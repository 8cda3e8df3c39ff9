//! What a look at history may cost: rows, time, and nothing of the writer's.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::queue::sqlite::history::{self, Budget, LOOK};
use crate::queue::sqlite::open;
use crate::queue::{ResourceKey, Search};

async fn one_of_many(queue: &SqliteQueue) -> Fence {
    let key = |name: &str| ResourceKey {
        namespace_uid: name.to_owned(),
        name: name.to_owned(),
    };
    for name in ["busy", "quiet"] {
        queue.intern_endpoints(vec![key(name)]).await.expect("intern");
        queue.intern_subscriptions(vec![key(name)]).await.expect("intern");
    }
    let fence = queue.claim().await.expect("claim");
    queue
        .accept(vec![new_event("first", vec![target(2, 2, Placement::Waiting)])])
        .await
        .expect("accept");
    fence
}

async fn history_of_the_other(queue: &SqliteQueue, fence: Fence, chunks: u32, each: u32) {
    for chunk in 0..chunks {
        let events = (0..each).map(|n| new_event(&format!("{chunk}-{n}"), vec![target(1, 1, Placement::Fresh)]));
        queue.accept(events.collect()).await.expect("accept");
        let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
        let delivered = fresh.iter().map(|one| settlement(*one, Verdict::Delivered)).collect();
        queue.settle(fence, delivered).await.expect("settle");
    }
}

fn quiet() -> Search {
    Search {
        namespace_uid: "quiet".to_owned(),
        ..Search::default()
    }
}

#[tokio::test]
async fn a_look_ends_when_its_rows_are_spent_and_the_next_goes_on() {
    let dir = Directory::new();
    let queue = super::open(dir.path(), options());
    let fence = one_of_many(&queue).await;
    history_of_the_other(&queue, fence, 1, 1_000).await;
    let conn = open::connect(dir.path(), &options()).expect("connect");
    let budget = |rows| Budget {
        rows,
        time: Duration::from_secs(3600),
    };
    let (mut before, mut looks) = (None, 0);
    let found = loop {
        let page = history::list(&conn, &quiet(), before, 10, budget(100)).expect("list");
        looks += 1;
        before = page.go_on;
        if before.is_none() {
            break page.found;
        }
        assert!(page.found.is_empty(), "everything else is of another namespace");
    };
    assert_eq!((found.len(), looks), (1, 11), "1,001 rows, a hundred a look");
    let at_once = history::list(&conn, &quiet(), None, 10, budget(10_000)).expect("list");
    assert_eq!(at_once.found, found);
    let no_time = Budget {
        time: Duration::ZERO,
        ..LOOK
    };
    let page = history::list(&conn, &quiet(), None, 10, no_time).expect("list");
    assert!(
        page.found.is_empty() && page.go_on.is_some(),
        "also when its time is over"
    );
    queue.close().await;
}

/// History of the other one, older than everything there is, as it would be after so many deliveries.
fn write_history_of_the_other(dir: &Path, rows: usize) {
    let conn = open::connect(dir, &options()).expect("connect");
    let written = conn.execute(
        "INSERT INTO settled(id, sub, ep, attempts, at, code, ms)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
         SELECT (SELECT min(id) FROM message) - ?1 - 1 + i, 1, 1, 1, ?2, 200, 5 FROM n",
        rusqlite::params![rows as i64, UnixMillis::now().0],
    );
    assert_eq!(written.expect("written"), rows);
}

/// Rows that one look does not get through.
const MANY: usize = 2 * LOOK.rows + 1_000;
/// Looks to wait for, and commits that there must be for each: thousands where a look holds nobody up.
const LOOKS: usize = 12;
const COMMITS_A_LOOK: usize = 2;

#[test]
fn no_look_walks_more_than_its_rows_and_looks_without_a_pause_leave_the_writer_its_commits() {
    let dir = Directory::new();
    runtime().block_on(async {
        let queue = super::open(dir.path(), options());
        one_of_many(&queue).await;
        queue.close().await;
        drop(queue);
        write_history_of_the_other(dir.path(), MANY);
        let queue = Arc::new(super::open(dir.path(), options()));

        let (mut before, mut looks, mut found) = (None, 0, 0);
        loop {
            let page = queue.list(quiet(), before, 100).await.expect("list");
            (looks, found) = (looks + 1, found + page.found.len());
            before = page.go_on;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(found, 1);
        assert!(looks > MANY / LOOK.rows, "{MANY} rows in {looks} looks");

        let looks = Arc::new(AtomicUsize::new(0));
        let lookers: Vec<_> = (0..4)
            .map(|_| {
                let (queue, looks) = (Arc::clone(&queue), Arc::clone(&looks));
                tokio::spawn(async move {
                    let mut before = None;
                    while looks.load(Ordering::Relaxed) < LOOKS {
                        before = queue.list(quiet(), before, 100).await.expect("list").go_on;
                        looks.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut commits = 0;
        while looks.load(Ordering::Relaxed) < LOOKS {
            let event = new_event(&format!("beside-{commits}"), vec![target(1, 1, Placement::Waiting)]);
            queue.accept(vec![event]).await.expect("accept");
            commits += 1;
        }
        assert!(
            commits >= COMMITS_A_LOOK * LOOKS,
            "{commits} commits beside {LOOKS} looks"
        );
        for looker in lookers {
            looker.await.expect("joined");
        }
        queue.close().await;
    });
}

#[tokio::test]
async fn while_a_look_holds_its_snapshot_others_write_and_read_and_only_the_next_look_waits() {
    let dir = Directory::new();
    let queue = Arc::new(super::open(dir.path(), options()));
    let fence = one_of_many(&queue).await;
    let (began, begun) = tokio::sync::oneshot::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let looking = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move {
            let look = move |conn: &rusqlite::Connection| {
                let snapshot = conn.unchecked_transaction()?;
                let pending = || snapshot.query_row("SELECT count(*) FROM message", [], |row| row.get::<_, i64>(0));
                let before = pending()?;
                began.send(()).expect("the test waits");
                wait.recv().expect_err("the test only lets it go on");
                Ok((before, pending()?))
            };
            queue.look(look).await
        }
    });
    begun.await.expect("it looks");
    let next = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.list(quiet(), None, 10).await }
    });
    let others = async {
        for n in 0..50 {
            let event = new_event(&format!("beside-{n}"), vec![target(1, 1, Placement::Fresh)]);
            queue.accept(vec![event]).await.expect("accept");
            let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
            assert_eq!(fresh.len(), 1);
            queue
                .event(fresh[0].message.event())
                .await
                .expect("event")
                .expect("it is kept");
            let outcome = settlement(fresh[0], Verdict::Delivered);
            queue.settle(fence, vec![outcome]).await.expect("settle");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), others).await;
    waited.expect("the look held others up");
    assert!(!next.is_finished(), "looks have one thread, and wait for each other");
    drop(go_on);
    let counts = looking.await.expect("joined").expect("looked");
    assert_eq!(counts, (1, 1), "it saw one moment");
    let page = next.await.expect("joined").expect("list");
    assert_eq!(page.found.len(), 1);
    queue.close().await;
}

/// Prints what constant looks at five million rows of history cost whoever writes: p50 and p99 of accept with and without
/// them, the longest look, and the largest WAL. `TIDINGS_BENCH_ROWS`: another number of rows.
#[test]
#[ignore = "a measurement, for a release build"]
fn measure_looks_at_history_beside_the_writer() {
    let rows: u32 = std::env::var("TIDINGS_BENCH_ROWS").map_or(5_000_000, |rows| rows.parse().expect("a number"));
    let dir = Directory::new();
    runtime().block_on(async {
        let queue = Arc::new(super::open(dir.path(), options()));
        let fence = one_of_many(&queue).await;
        let started = Instant::now();
        history_of_the_other(&queue, fence, rows / 5_000, 5_000).await;
        println!("{rows} rows of history in {:?}", started.elapsed());
        let wal = dir.path().join(format!("{}-wal", open::FILE));
        for (round, looking) in [false, true, false, true].into_iter().enumerate() {
            let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let lookers: Vec<_> = (0..if looking { 4 } else { 0 })
                .map(|_| {
                    let (queue, stop) = (Arc::clone(&queue), Arc::clone(&stop));
                    tokio::spawn(async move {
                        let (mut before, mut looks, mut found) = (None, 0_u32, 0);
                        while !stop.load(Ordering::Relaxed) {
                            let page = queue.list(quiet(), before, 100).await.expect("list");
                            (looks, found) = (looks + 1, found + page.found.len());
                            before = page.go_on;
                        }
                        (looks, found)
                    })
                })
                .collect();
            let (mut took, mut largest) = (Vec::new(), 0);
            let started = Instant::now();
            let mut n = 0;
            while started.elapsed() < Duration::from_secs(15) {
                let events = (0..20).map(|m| new_event(&format!("{round}-{n}-{m}"), vec![target(1, 1, Placement::Waiting)]));
                let begun = Instant::now();
                queue.accept(events.collect()).await.expect("accept");
                took.push(begun.elapsed());
                n += 1;
                if n % 64 == 0 {
                    largest = std::fs::metadata(&wal).map_or(0, |wal| wal.len()).max(largest);
                }
            }
            stop.store(true, Ordering::Relaxed);
            took.sort();
            let at = |share: f64| took[(took.len() as f64 * share) as usize];
            let mut looks = Vec::new();
            for looker in lookers {
                looks.push(looker.await.expect("joined"));
            }
            println!(
                "looking {looking}: {} accepts of 20, p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}; WAL at most {} MiB; looks and found: {looks:?}",
                took.len(), at(0.5), at(0.99), at(0.999), took[took.len() - 1], largest >> 20,
            );
        }
        queue.close().await;
    });
}
