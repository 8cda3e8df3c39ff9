//! Answers of the API server, kept briefly: bounded, one question at a time per key, and still there when it is away.
//!
//! Knows nothing of what is asked. Invariant: an answer older than [`FRESH`] (or [`FRESH_REFUSAL`]) is used only while the
//! API server fails to give a new one, and never past [`STALE`].

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// How long a yes counts: a token or a rule taken away works no longer than that.
pub const FRESH: Duration = Duration::from_secs(60);
/// How long a no counts: a rule just granted works soon, and a broken client costs a question only now and then.
pub const FRESH_REFUSAL: Duration = Duration::from_secs(10);
/// How old a yes may be while the API server fails: a rolling control plane is back within minutes.
pub const STALE: Duration = Duration::from_secs(600);
/// Entries: above it the rarely used ones go.
pub const ENTRIES: u64 = 10_000;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// After a failure nobody asks again for that long: producers retry faster than an API server comes back.
const PAUSE: Duration = Duration::from_secs(2);

/// What a key stands for: a SHA-256.
pub type Key = [u8; 32];

/// The API server could not be asked, and nothing usable is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// An answer, and whether it is a yes.
pub trait Answer: Clone + Send + Sync + 'static {
    fn is_yes(&self) -> bool;
}

/// Answers by key.
pub struct Cache<A> {
    slots: moka::future::Cache<Key, Arc<Slot<A>>>,
}

struct Slot<A> {
    held: Mutex<Held<A>>,
    /// Held by whoever asks; the others wait for what he hears.
    asking: tokio::sync::Mutex<()>,
}

struct Held<A> {
    answer: Option<(A, Instant)>,
    failed: Option<Instant>,
}

impl<A: Answer> Slot<A> {
    fn new() -> Slot<A> {
        Slot {
            held: Mutex::new(Held {
                answer: None,
                failed: None,
            }),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held<A>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A: Answer> Held<A> {
    fn fresh(&self, now: Instant) -> Option<A> {
        let (answer, at) = self.answer.as_ref()?;
        let life = if answer.is_yes() { FRESH } else { FRESH_REFUSAL };
        (now.duration_since(*at) < life).then(|| answer.clone())
    }

    /// What to answer while the API server fails.
    fn stale(&self, now: Instant) -> Result<A, Unavailable> {
        match &self.answer {
            Some((answer, at)) if answer.is_yes() && now.duration_since(*at) < STALE => Ok(answer.clone()),
            _ => Err(Unavailable),
        }
    }

    fn failed_just_now(&self, now: Instant) -> bool {
        self.failed.is_some_and(|at| now.duration_since(at) < PAUSE)
    }
}

impl<A: Answer> Default for Cache<A> {
    fn default() -> Cache<A> {
        Cache {
            slots: moka::future::Cache::builder()
                .max_capacity(ENTRIES)
                .time_to_idle(STALE)
                .build(),
        }
    }
}

impl<A: Answer> Cache<A> {
    /// The answer for `key`, asked with `ask` unless a fresh one is kept; and whether it was kept.
    pub async fn get<F, E>(&self, key: Key, ask: impl FnOnce() -> F) -> Result<(A, bool), Unavailable>
    where
        F: Future<Output = Result<A, E>>,
        E: std::fmt::Display,
    {
        let slot = match self.slots.get(&key).await {
            Some(slot) => slot,
            None => self.slots.get_with(key, async { Arc::new(Slot::new()) }).await,
        };
        let failing = {
            let held = slot.lock();
            let now = Instant::now();
            if let Some(answer) = held.fresh(now) {
                return Ok((answer, true));
            }
            if held.failed_just_now(now) {
                return held.stale(now).map(|answer| (answer, true));
            }
            held.failed.is_some() && held.stale(now).is_ok()
        };
        // Known to fail, and there is something to go on with: one asks, nobody waits for him.
        let _asking = if failing {
            match slot.asking.try_lock() {
                Ok(asking) => asking,
                Err(_) => return slot.lock().stale(Instant::now()).map(|answer| (answer, true)),
            }
        } else {
            slot.asking.lock().await
        };
        {
            let held = slot.lock();
            let now = Instant::now();
            if let Some(answer) = held.fresh(now) {
                return Ok((answer, true));
            }
            if held.failed_just_now(now) {
                return held.stale(now).map(|answer| (answer, true));
            }
        }
        let failure = match timeout(PATIENCE, ask()).await {
            Ok(Ok(answer)) => {
                let mut held = slot.lock();
                held.answer = Some((answer.clone(), Instant::now()));
                held.failed = None;
                return Ok((answer, false));
            }
            Ok(Err(err)) => err.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::warn!(error = %failure, "failed to ask the API server about a producer");
        let mut held = slot.lock();
        let now = Instant::now();
        held.failed = Some(now);
        held.stale(now).map(|answer| (answer, true))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const KEY: Key = [7; 32];

    struct Server {
        asked: AtomicUsize,
    }

    impl Server {
        async fn get(&self, cache: &Cache<bool>, answer: Result<bool, &'static str>) -> Result<bool, Unavailable> {
            cache
                .get(KEY, || async {
                    self.asked.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    answer
                })
                .await
                .map(|(answer, _)| answer)
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::SeqCst)
        }
    }

    fn server() -> (Server, Cache<bool>) {
        (
            Server {
                asked: AtomicUsize::new(0),
            },
            Cache::default(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_yes_counts_for_a_minute_and_a_no_for_ten_seconds() {
        let (server, cache) = server();
        assert_eq!(server.get(&cache, Ok(true)).await, Ok(true));
        tokio::time::advance(FRESH - Duration::from_secs(1)).await;
        assert_eq!(server.get(&cache, Ok(false)).await, Ok(true));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(server.get(&cache, Ok(false)).await, Ok(false));
        tokio::time::advance(FRESH_REFUSAL).await;
        assert_eq!(server.get(&cache, Ok(true)).await, Ok(true));
        assert_eq!(server.asked(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn many_at_once_ask_once_also_when_it_fails() {
        let (server, cache) = server();
        let answers = futures::future::join_all((0..50).map(|_| server.get(&cache, Err("away")))).await;
        assert!(answers.iter().all(|answer| *answer == Err(Unavailable)));
        assert_eq!(server.asked(), 1);
        tokio::time::advance(PAUSE).await;
        let answers = futures::future::join_all((0..50).map(|_| server.get(&cache, Ok(true)))).await;
        assert!(answers.iter().all(|answer| *answer == Ok(true)));
        assert_eq!(server.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_yes_outlives_the_api_server_by_ten_minutes_and_a_no_does_not() {
        let (server, cache) = server();
        assert_eq!(server.get(&cache, Ok(true)).await, Ok(true));
        for _ in 0..9 {
            tokio::time::advance(FRESH).await;
            assert_eq!(server.get(&cache, Err("away")).await, Ok(true));
        }
        tokio::time::advance(FRESH).await;
        assert_eq!(server.get(&cache, Err("away")).await, Err(Unavailable));
        tokio::time::advance(FRESH).await;
        assert_eq!(server.get(&cache, Ok(false)).await, Ok(false));
        tokio::time::advance(FRESH_REFUSAL).await;
        assert_eq!(server.get(&cache, Err("away")).await, Err(Unavailable));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_hangs_is_given_up_and_stalls_only_its_asker() {
        let (server, cache) = server();
        assert_eq!(server.get(&cache, Ok(true)).await, Ok(true));
        tokio::time::advance(FRESH).await;
        assert_eq!(server.get(&cache, Err("away")).await, Ok(true));
        tokio::time::advance(PAUSE).await;
        let hanging = cache.get(KEY, std::future::pending::<Result<bool, &str>>);
        let other = async {
            let start = Instant::now();
            assert_eq!(server.get(&cache, Ok(true)).await, Ok(true));
            assert_eq!(start.elapsed(), Duration::ZERO);
        };
        let (hanging, ()) = tokio::join!(hanging, other);
        assert_eq!(hanging, Ok((true, true)));
    }
}
