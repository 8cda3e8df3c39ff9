//! Measurements, for a release build: `cargo test --release --lib measure_ -- --ignored --nocapture --test-threads=1`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::queue::StoredEvent;

fn cpu() -> Duration {
    // SAFETY: rusage is plain old data that getrusage fills in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    Duration::from_micros(micros(usage.ru_utime) + micros(usage.ru_stime))
}

/// Prints messages/s and CPU: 64 producers, one event a call, each settled in its own call. `TIDINGS_BENCH_DIR`: where.
#[test]
#[ignore = "a measurement, for a release build"]
fn measure_accept_and_settle() {
    let dir = match std::env::var("TIDINGS_BENCH_DIR") {
        Ok(path) => Directory(tempfile::tempdir_in(path).expect("a directory")),
        Err(_) => Directory::new(),
    };
    runtime().block_on(async {
        let queue = Arc::new(open(dir.path(), options()));
        let fence = queue.claim().await.expect("claim");
        let mut arrivals = queue.arrivals().expect("arrivals");
        let settled = Arc::new(AtomicU64::new(0));
        let settler = tokio::spawn({
            let (queue, settled) = (Arc::clone(&queue), Arc::clone(&settled));
            async move {
                while let Some(batch) = arrivals.recv().await {
                    let outcomes: Vec<_> = batch
                        .iter()
                        .map(|one| {
                            let pending = Pending {
                                message: one.message,
                                endpoint: one.endpoint,
                                subscription: one.subscription,
                                attempts: 0,
                                due: UnixMillis(0),
                                again: None,
                            };
                            settlement(pending, Verdict::Delivered)
                        })
                        .collect();
                    let (queue, settled) = (Arc::clone(&queue), Arc::clone(&settled));
                    tokio::spawn(async move {
                        let count = outcomes.len() as u64;
                        queue.settle(fence, outcomes).await.expect("settle");
                        settled.fetch_add(count, Ordering::Relaxed);
                    });
                }
            }
        });
        let seconds = 8;
        let (started, cpu_before) = (Instant::now(), cpu());
        let producers: Vec<_> = (0..64)
            .map(|producer| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move {
                    let body = bytes::Bytes::from(vec![7; 1024]);
                    let mut count = 0_u64;
                    while started.elapsed() < Duration::from_secs(seconds) {
                        let mut event = new_event(&format!("{producer}-{count}"), vec![target(1, 1, Placement::Fresh)]);
                        let stored = StoredEvent {
                            attributes: vec![b'a'; 200].into(),
                            body: body.clone(),
                        };
                        event.event = Arc::new(stored);
                        queue.accept(vec![event]).await.expect("accept");
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut accepted = 0;
        for producer in producers {
            accepted += producer.await.expect("joined");
        }
        let (took, used) = (started.elapsed(), cpu() - cpu_before);
        println!(
            "accepted {accepted}, settled {} in {took:?}: {:.0} messages/s, {:.1} us CPU a message (load included)",
            settled.load(Ordering::Relaxed),
            accepted as f64 / took.as_secs_f64(),
            used.as_micros() as f64 / accepted as f64,
        );
        queue.close().await;
        settler.abort();
    });
}

/// Prints how long a restart with a million waiting messages takes, and the memory.
#[test]
#[ignore = "a measurement, for a release build"]
fn measure_a_million_pending() {
    let dir = Directory::new();
    runtime().block_on(async {
        let queue = open(dir.path(), options());
        let started = Instant::now();
        for n in 0..2_000 {
            let events = (0..500)
                .map(|m| new_event(&format!("{n}-{m}"), vec![target(n % 10, n % 10, Placement::Waiting)]))
                .collect();
            queue.accept(events).await.expect("accept");
        }
        println!("stored in {:?}", started.elapsed());
        queue.close().await;
        drop(queue);
        let (queue, recovered) = SqliteQueue::open(dir.path(), options()).expect("open");
        println!("{recovered:?}");
        let fence = queue.claim().await.expect("claim");
        let started = Instant::now();
        let backlog = queue.backlog(fence).await.expect("backlog");
        println!("backlog of {} pairs in {:?}", backlog.len(), started.elapsed());
        let started = Instant::now();
        let fresh = queue.fresh(fence, MessageId(0), usize::MAX).await.expect("fresh");
        println!("fresh ({}) in {:?}", fresh.len(), started.elapsed());
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        status
            .lines()
            .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"))
            .for_each(|line| println!("{line}"));
        queue.close().await;
    });
}
