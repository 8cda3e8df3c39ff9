//! What a look at history may cost: rows, time, and nothing of the writer's.

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
