//! Turns: so that many futures that compute a lot do not stand before the others in the runtime's queue.
//!
//! Knows nothing of what it lets pass. Invariant: whoever waits for bytes holds no turn, so a peer that says nothing keeps
//! nobody waiting.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio::sync::Semaphore;

/// Lets some of the futures that pass be polled before everything else that is ready has had its turn.
#[derive(Debug)]
pub(super) struct Turns {
    free: Semaphore,
}

impl Turns {
    /// So many polls, then whatever else is ready.
    pub(super) fn new(at_once: usize) -> Turns {
        Turns {
            free: Semaphore::new(at_once),
        }
    }

    /// Runs `future`; each of its polls takes a turn, and comes when the runtime has gone round once.
    pub(super) async fn pass<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            let turn = self.free.acquire().await;
            tokio::task::yield_now().await;
            let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
            drop(turn);
            if let Poll::Ready(output) = polled {
                return output;
            }
            // Nothing is awaited between that poll and this, so no wake is lost.
            woken().await;
        }
    }
}

/// Waits for the task to be woken, whoever does it: the future polled last has left its waker.
async fn woken() {
    let mut waited = false;
    poll_fn(|_| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    /// Counts its polls, and is over at the third; the first two are followed by a wake of its own.
    async fn three_polls(polls: Arc<AtomicUsize>) {
        for _ in 0..2 {
            polls.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        polls.fetch_add(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn a_thousand_that_compute_let_others_go_in_between() {
        let (turns, polls) = (Arc::new(Turns::new(4)), Arc::new(AtomicUsize::new(0)));
        let crowd: Vec<_> = (0..1_000)
            .map(|_| {
                let (turns, polls) = (turns.clone(), polls.clone());
                tokio::spawn(async move { turns.pass(three_polls(polls)).await })
            })
            .collect();
        let quiet = tokio::spawn({
            let polls = polls.clone();
            async move { polls.load(Ordering::Relaxed) }
        });
        let before = quiet.await.unwrap();
        assert!(before <= 4, "{before} polls before the one that came last");
        for one in crowd {
            one.await.unwrap();
        }
        assert_eq!(polls.load(Ordering::Relaxed), 3_000);
    }

    #[tokio::test]
    async fn those_that_wait_for_a_silent_peer_hold_up_nobody() {
        let turns = Arc::new(Turns::new(1));
        let answer = Arc::new(Notify::new());
        let silent = tokio::spawn({
            let (turns, answer) = (turns.clone(), answer.clone());
            async move { turns.pass(answer.notified()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(turns.pass(async { 7 }).await, 7);
        assert!(!silent.is_finished());
        answer.notify_one();
        silent.await.unwrap();
    }
}
