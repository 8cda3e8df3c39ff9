//! What is to be reconciled, and when: each key at most once in the queue and at most once in work.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A queue of keys by due time. Bounded by the number of objects that exist.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    due: BTreeSet<(Instant, K)>,
    at: HashMap<K, Instant>,
    in_work: HashSet<K>,
}

impl<K: Clone + Ord + Hash> Default for Queue<K> {
    fn default() -> Self {
        Queue {
            state: Mutex::new(State {
                due: BTreeSet::new(),
                at: HashMap::new(),
                in_work: HashSet::new(),
            }),
            changed: Notify::new(),
        }
    }
}

impl<K: Clone + Ord + Hash> Queue<K> {
    /// Has `key` looked at by `at`; an earlier time that was asked for stays.
    pub fn add(&self, key: K, at: Instant) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(before) = state.at.get(&key).copied() {
            if before <= at {
                return;
            }
            state.due.remove(&(before, key.clone()));
        }
        state.at.insert(key.clone(), at);
        state.due.insert((at, key));
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for the next key that is due and not in work. Give it back with [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            match self.take(Instant::now()) {
                Ok(key) => {
                    // There may be more: wake another worker.
                    self.changed.notify_one();
                    return key;
                }
                Err(Some(at)) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                Err(None) => changed.await,
            }
        }
    }

    /// The work on `key` is over; what was asked for meanwhile may start.
    pub fn done(&self, key: &K) {
        self.state.lock().unwrap_or_else(|e| e.into_inner()).in_work.remove(key);
        self.changed.notify_one();
    }

    fn take(&self, now: Instant) -> Result<K, Option<Instant>> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        let next = state.due.iter().find(|(_, key)| !state.in_work.contains(key)).cloned();
        match next {
            Some((at, key)) if at <= now => {
                state.due.remove(&(at, key.clone()));
                state.at.remove(&key);
                state.in_work.insert(key.clone());
                Ok(key)
            }
            other => Err(other.map(|(at, _)| at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_the_queue_once_at_its_earliest_time_and_never_in_work_twice() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add("a", start + Duration::from_secs(9));
        queue.add("a", start + Duration::from_secs(2));
        queue.add("a", start + Duration::from_secs(5));
        queue.add("b", start + Duration::from_secs(1));
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.add("a", start);
        queue.add("c", start + Duration::from_secs(3));
        assert_eq!(queue.next().await, "c", "a is in work");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
    }
}
