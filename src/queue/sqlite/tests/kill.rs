//! A process that writes under load and is killed: what it acknowledged is there.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::ids::EventId;

/// Set for the child of [`what_was_acknowledged_survives_kill_9`]: the directory, and a prefix for ids.
const CHILD: &str = "TIDINGS_TEST_CRASH_DIR";

#[test]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let prefix = std::process::id();
    runtime().block_on(async {
        let queue = Arc::new(open(Path::new(&dir), options()));
        let fence = queue.claim().await.expect("claim");
        three_endpoints(&queue).await;
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move {
                    for n in 0.. {
                        let new = new_event(&format!("{prefix}-{worker}-{n}"), vec![target(1, 1, Placement::Fresh)]);
                        let [Accepted::New { event, .. }] = queue.accept(vec![new]).await.expect("accept")[..] else {
                            panic!("a duplicate")
                        };
                        println!("A {}", event.0);
                        let one = Pending {
                            message: MessageId::new(event, 0),
                            endpoint: EndpointId(1),
                            subscription: SubscriptionId(1),
                            attempts: 0,
                            due: UnixMillis(0),
                            again: None,
                        };
                        let (word, verdict) = match n % 3 {
                            0 => ("S", Verdict::Delivered),
                            1 => (
                                "W",
                                Verdict::Wait {
                                    due: UnixMillis(77),
                                    attempts: 1,
                                },
                            ),
                            _ => continue,
                        };
                        queue
                            .settle(fence, vec![settlement(one, verdict)])
                            .await
                            .expect("settle");
                        println!("{word} {}", event.0);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.expect("joined");
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = Directory::new();
    let mut accepted = HashSet::new();
    let mut settled = HashSet::new();
    let mut waits = HashSet::new();
    for round in 0..5_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this binary"))
            .args([
                "--exact",
                "queue::sqlite::tests::kill::child_that_is_killed",
                "--nocapture",
            ])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("start the child");
        let stop_at = 150 + round as usize * 83;
        let lines = BufReader::new(child.stdout.take().expect("stdout")).split(b'\n');
        for (count, line) in lines.enumerate() {
            let line = String::from_utf8(line.expect("a line")).expect("text");
            // What was in the pipe when the kill came was acknowledged too; the last line may be cut short.
            if let Some((word, Ok(id))) = line.split_once(' ').map(|(word, id)| (word, id.parse::<i64>())) {
                match word {
                    "A" => drop(accepted.insert(id)),
                    "S" => drop(settled.insert(id)),
                    "W" => drop(waits.insert(id)),
                    _ => {}
                }
            }
            if count == stop_at {
                child.kill().expect("kill -9");
            }
        }
        child.wait().expect("gone");
        runtime().block_on(async {
            let queue = open(dir.path(), options());
            let fence = queue.claim().await.expect("claim");
            let there = pending(&queue, fence).await;
            let by_event: HashMap<i64, Pending> = there.values().map(|one| (one.message.event().0, *one)).collect();
            for event in &accepted {
                let kept = queue.event(EventId(*event)).await.expect("event").is_some();
                assert!(kept, "round {round}: event {event} is lost");
                if settled.contains(event) {
                    assert!(
                        !by_event.contains_key(event),
                        "round {round}: {event} was delivered and is back"
                    );
                }
                if waits.contains(event) {
                    let one = by_event.get(event).expect("still waits");
                    assert_eq!(
                        (one.attempts, one.due),
                        (1, UnixMillis(77)),
                        "round {round}: counts survive"
                    );
                }
            }
            let mut probe = new_event(&format!("probe-{round}"), vec![target(1, 1, Placement::Fresh)]);
            probe.quota = full_quota(&queue, &there, probe.clone()).await;
            queue
                .accept(vec![probe])
                .await
                .expect("it just fits: nothing is counted that is not there");
            queue.close().await;
        });
    }
    assert!(accepted.len() > 500, "{}", accepted.len());
}
