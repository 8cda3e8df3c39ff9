//! Producers that post until they are told to stop, and send again what had no answer, as producers do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidings_cluster::Dispatcher;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::team::{PATIENCE, Post, TYPES, Team, lead, metric};

/// What producers know.
#[derive(Default)]
struct Ledger {
    acknowledged: Vec<String>,
    /// Sent, without an answer or with a 503: sent again under the same id.
    unanswered: VecDeque<String>,
}

/// Producers over one or several lives of a dispatcher.
#[derive(Default)]
pub struct Load {
    ledger: Arc<Mutex<Ledger>>,
    running: Vec<JoinHandle<()>>,
    stop: CancellationToken,
}

impl Load {
    /// Starts this many producers; `id` names the events: by producer, and by its own count from 0.
    pub fn start(
        &mut self,
        team: &Team<'_>,
        dispatcher: &Dispatcher,
        producers: usize,
        id: impl Fn(usize, usize) -> String + Clone + Send + 'static,
    ) {
        self.stop = CancellationToken::new();
        for producer in 0..producers {
            let (id, ledger, stop) = (id.clone(), self.ledger.clone(), self.stop.clone());
            let post = team.poster(dispatcher);
            self.running.push(tokio::spawn(async move {
                for n in 0.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    let again = ledger.lock().unwrap().unanswered.pop_front();
                    let id = again.unwrap_or_else(|| id(producer, n));
                    send(&post, id, &ledger).await;
                }
            }));
        }
    }

    /// Tells the producers to stop, and waits until they have.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        for producer in self.running.drain(..) {
            producer.await.unwrap();
        }
    }

    /// Sends what had no answer until it has one, so that every event is accounted for.
    pub async fn send_what_is_left(&self, team: &Team<'_>, dispatcher: &Dispatcher) {
        let post = team.poster(dispatcher);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let next = self.ledger.lock().unwrap().unanswered.pop_front();
            let Some(id) = next else { return };
            assert!(Instant::now() < deadline, "{id} was never accepted");
            send(&post, id, &self.ledger).await;
        }
    }

    /// The events that were answered with 202 or 200.
    pub fn acknowledged(&self) -> Vec<String> {
        self.ledger.lock().unwrap().acknowledged.clone()
    }
}

async fn send(post: &impl Fn(&Value) -> Post, id: String, ledger: &Mutex<Ledger>) {
    let answer = post(&lead(&id, TYPES[0])).await;
    let pause = {
        let mut ledger = ledger.lock().unwrap();
        match answer {
            Ok(answer) if matches!(answer.status, 200 | 202) => {
                assert_eq!(answer.body["matched"], 1, "{answer:?}");
                ledger.acknowledged.push(id);
                false
            }
            Ok(answer) if answer.status == 503 => {
                assert!(answer.retry_after.is_some_and(|seconds| seconds > 0), "{answer:?}");
                ledger.unanswered.push_back(id);
                true
            }
            Ok(answer) => panic!("{id} was refused: {answer:?}"),
            Err(_) => {
                ledger.unanswered.push_back(id);
                true
            }
        }
    };
    if pause {
        // Less than it asks for, and more than nothing.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the dispatcher says that nothing is under way and every outcome is recorded.
pub async fn until_quiet(dispatcher: &Dispatcher, quiet: impl Fn() -> bool) {
    let in_hand =
        || metric(dispatcher, "tidings_attempts_in_flight") + metric(dispatcher, "tidings_outcomes_unrecorded");
    let deadline = Instant::now() + PATIENCE;
    // Twice: an attempt may begin between the reading of two numbers.
    while !(quiet() && in_hand() == 0.0 && quiet() && in_hand() == 0.0) {
        assert!(Instant::now() < deadline, "it was never quiet");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
