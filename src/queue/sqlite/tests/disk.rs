//! A disk that refuses, fails to sync, or loses power.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::ffi;

use super::super::faults::{self, Disk};
use super::super::writer::UNRECORDED;
use super::*;

fn faulty(dir: &Path) -> (Arc<Disk>, Options) {
    (
        Disk::under(dir),
        Options {
            vfs: Some(faults::NAME),
            ..options()
        },
    )
}

#[tokio::test]
async fn a_disk_that_refuses_writes_loses_nothing_and_recovers_without_a_restart() {
    for code in [ffi::SQLITE_FULL, ffi::SQLITE_IOERR_WRITE] {
        let dir = Directory::new();
        let (disk, options) = faulty(dir.path());
        let queue = Arc::new(open(dir.path(), options.clone()));
        let fence = queue.claim().await.expect("claim");
        queue
            .accept(vec![new_event("a", vec![target(1, 1, Placement::Fresh)])])
            .await
            .expect("accept");
        let fresh = queue.fresh(fence, MessageId(0), 10).await.expect("fresh");

        disk.write_fails.store(code, Ordering::SeqCst);
        let refused = queue
            .accept(vec![new_event("b", vec![target(1, 1, Placement::Fresh)])])
            .await;
        assert!(matches!(refused, Err(QueueError::Write(_))), "{refused:?}");
        let outcome = vec![settlement(fresh[0], Verdict::Delivered)];
        let settling = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.settle(fence, outcome).await }
        });
        while queue.unrecorded() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(
            queue.event(fresh[0].message.event()).await.expect("event").is_some(),
            "reads go on"
        );
        assert!(!settling.is_finished());

        disk.write_fails.store(0, Ordering::SeqCst);
        let settled = tokio::time::timeout(Duration::from_secs(10), settling)
            .await
            .expect("in time");
        assert_eq!(settled.expect("joined").expect("settle"), [Settled::Applied]);
        assert_eq!(queue.unrecorded(), 0);
        let accepted = queue
            .accept(vec![new_event("b", vec![target(1, 1, Placement::Fresh)])])
            .await
            .expect("accept");
        assert!(
            matches!(accepted[0], Accepted::New { .. }),
            "what was refused was not stored: {accepted:?}"
        );
        queue.close().await;
        let queue = open(dir.path(), options);
        let fence = queue.claim().await.expect("claim");
        assert_eq!(pending(&queue, fence).await.len(), 1);
    }
}

#[tokio::test]
async fn outcomes_beyond_the_bound_are_refused_while_the_disk_refuses() {
    let dir = Directory::new();
    let (disk, options) = faulty(dir.path());
    let queue = Arc::new(open(dir.path(), options));
    let fence = queue.claim().await.expect("claim");
    let event = new_event("a", vec![target(1, 1, Placement::Fresh)]);
    queue.accept(vec![event]).await.expect("accept");
    let fresh = queue.fresh(fence, MessageId(0), 10).await.expect("fresh");
    disk.write_fails.store(ffi::SQLITE_FULL, Ordering::SeqCst);
    let many = vec![settlement(fresh[0], Verdict::Delivered); UNRECORDED];
    let kept = tokio::spawn({
        let queue = Arc::clone(&queue);
        async move { queue.settle(fence, many).await }
    });
    while queue.unrecorded() < UNRECORDED as u64 {
        tokio::task::yield_now().await;
    }
    let more = queue
        .settle(fence, vec![settlement(fresh[0], Verdict::Delivered)])
        .await;
    assert!(matches!(more, Err(QueueError::Write(_))), "{more:?}");
    disk.write_fails.store(0, Ordering::SeqCst);
    let kept = kept.await.expect("joined").expect("settle");
    assert_eq!(kept.iter().filter(|one| **one == Settled::Applied).count(), 1);
}

#[tokio::test]
async fn a_failed_fsync_ends_the_store_and_nothing_is_acknowledged_after_it() {
    let dir = Directory::new();
    let (disk, mut options) = faulty(dir.path());
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    options.on_fatal = Arc::new(move |what| drop(told.send(what)));
    let queue = open(dir.path(), options.clone());
    queue
        .accept(vec![new_event("a", vec![target(1, 1, Placement::Fresh)])])
        .await
        .expect("accept");
    disk.sync_fails.store(true, Ordering::SeqCst);
    assert!(queue.accept(vec![new_event("b", vec![])]).await.is_err());
    let what = hears.recv().await.expect("told");
    assert!(what.contains("failed to sync"), "{what}");
    disk.sync_fails.store(false, Ordering::SeqCst);
    assert!(
        queue.accept(vec![new_event("c", vec![])]).await.is_err(),
        "also when the disk seems well again"
    );
    drop(queue);
    let queue = open(dir.path(), options);
    let fence = queue.claim().await.expect("claim");
    assert_eq!(pending(&queue, fence).await.len(), 1);
    assert!(hears.try_recv().is_err(), "told once");
}

/// Load, then the power goes at some moment: what was acknowledged before, and what is there after.
async fn cut_under_load(lies: bool, seed: u64) -> (usize, usize) {
    let dir = Directory::new();
    let (disk, options) = faulty(dir.path());
    let queue = Arc::new(open(dir.path(), options));
    disk.sync_lies.store(lies, Ordering::SeqCst);
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..8)
        .map(|producer| {
            let (queue, acknowledged, stop) = (Arc::clone(&queue), Arc::clone(&acknowledged), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    n += 1;
                    let event = new_event(&format!("{producer}-{n}"), vec![target(1, 1, Placement::Fresh)]);
                    if let [Accepted::New { event, .. }] = queue.accept(vec![event]).await.expect("accept")[..] {
                        acknowledged.lock().expect("lock").push(event);
                    }
                }
            })
        })
        .collect();
    let enough = 200 + (seed as usize * 37) % 300;
    while acknowledged.lock().expect("lock").len() < enough {
        tokio::task::yield_now().await;
    }
    let before = acknowledged.lock().expect("lock").clone();
    let image = Directory::new();
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    disk.cut(image.path(), || {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice.is_multiple_of(3)
    });
    stop.store(true, Ordering::SeqCst);
    for producer in producers {
        producer.await.expect("joined");
    }
    let Ok((restarted, _)) = SqliteQueue::open(image.path(), super::options()) else {
        return (before.len(), 0);
    };
    let fence = restarted.claim().await.expect("claim");
    let there: HashSet<_> = pending(&restarted, fence)
        .await
        .keys()
        .map(|message| message.event())
        .collect();
    (
        before.len(),
        before.iter().filter(|event| there.contains(event)).count(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_cut() {
    for seed in 0..12 {
        let (acknowledged, there) = cut_under_load(false, seed).await;
        assert_eq!(acknowledged, there, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_power_cut_would_show_a_store_that_does_not_sync() {
    let (acknowledged, there) = cut_under_load(true, 1).await;
    assert!(there < acknowledged, "{there} of {acknowledged}");
}
