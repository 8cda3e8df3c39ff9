//! What is to be reconciled, and when: each key at most once in the queue and at most once in work.
//!
//! What is due goes round robin over namespaces, in each the longest due first: one that has ten thousand objects applied
//! at once holds up another's only change by one of its own.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Mutex;

use tokio::sync::Notify;
use tokio::time::Instant;

/// A key that belongs to a namespace.
pub trait Namespaced {
    fn namespace(&self) -> &str;
}

/// A queue of keys by due time. Bounded by the number of objects that exist.
#[derive(Debug)]
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    /// When each key is due, wherever it stands.
    at: HashMap<K, Instant>,
    /// Not due yet.
    later: BTreeSet<(Instant, K)>,
    /// Due, by namespace. Never empty for one that is in here.
    due: HashMap<String, BTreeSet<(Instant, K)>>,
    /// Whose turn it is: each namespace that has something due, once.
    turns: VecDeque<String>,
    /// Due, but in work.
    again: HashSet<K>,
    in_work: HashSet<K>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Queue {
            state: Mutex::new(State {
                at: HashMap::new(),
                later: BTreeSet::new(),
                due: HashMap::new(),
                turns: VecDeque::new(),
                again: HashSet::new(),
                in_work: HashSet::new(),
            }),
            changed: Notify::new(),
        }
    }
}

impl<K: Namespaced + Clone + Ord + Hash> Queue<K> {
    /// Has `key` looked at by `at`; an earlier time that was asked for stays.
    pub fn add(&self, key: K, at: Instant) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(before) = state.at.get(&key).copied() {
            if before <= at {
                return;
            }
            // Earlier than before, so it may be among those that wait only: what is due keeps its place.
            if !state.later.remove(&(before, key.clone())) {
                return;
            }
        }
        state.at.insert(key.clone(), at);
        state.later.insert((at, key));
        drop(state);
        self.changed.notify_one();
    }

    /// Waits for the next key that is due and not in work. Give it back with [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let (key, more) = self
                .state
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .take(Instant::now());
            if let Some(key) = key {
                // There may be more: wake another worker.
                self.changed.notify_one();
                return key;
            }
            match more {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// The work on `key` is over; what was asked for meanwhile may start.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.in_work.remove(key);
        if state.again.remove(key)
            && let Some(at) = state.at.get(key).copied()
        {
            state.is_due(at, key.clone());
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl<K: Namespaced + Clone + Ord + Hash> State<K> {
    /// The next key, or when there may be one.
    fn take(&mut self, now: Instant) -> (Option<K>, Option<Instant>) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((at, key)) = self.later.pop_first()
        {
            match self.in_work.contains(&key) {
                true => drop(self.again.insert(key)),
                false => self.is_due(at, key),
            }
        }
        let key = self.pop();
        if let Some(key) = &key {
            self.at.remove(key);
            self.in_work.insert(key.clone());
        }
        (key, self.later.first().map(|(at, _)| *at))
    }

    fn is_due(&mut self, at: Instant, key: K) {
        let namespace = key.namespace();
        if let Some(due) = self.due.get_mut(namespace) {
            due.insert((at, key));
            return;
        }
        self.turns.push_back(namespace.to_owned());
        self.due.insert(namespace.to_owned(), BTreeSet::from([(at, key)]));
    }

    fn pop(&mut self) -> Option<K> {
        let namespace = self.turns.pop_front()?;
        let due = self.due.get_mut(&namespace)?;
        let (_, key) = due.pop_first()?;
        match due.is_empty() {
            true => drop(self.due.remove(&namespace)),
            false => self.turns.push_back(namespace),
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A namespace and a name.
    impl Namespaced for (&str, u32) {
        fn namespace(&self) -> &str {
            self.0
        }
    }

    fn key(number: u32) -> (&'static str, u32) {
        ("team", number)
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_the_queue_once_at_its_earliest_time_and_never_in_work_twice() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add(key(1), start + Duration::from_secs(9));
        queue.add(key(1), start + Duration::from_secs(2));
        queue.add(key(1), start + Duration::from_secs(5));
        queue.add(key(2), start + Duration::from_secs(1));
        assert_eq!(queue.next().await, key(2));
        assert_eq!(queue.next().await, key(1));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.add(key(1), start);
        queue.add(key(3), start + Duration::from_secs(3));
        assert_eq!(queue.next().await, key(3), "1 is in work");
        queue.add(key(1), start);
        queue.done(&key(1));
        assert_eq!(queue.next().await, key(1));
        queue.done(&key(1));
        assert!(queue.state.lock().unwrap().at.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_with_thousands_of_changes_holds_up_no_other_one() {
        let queue = Queue::default();
        let start = Instant::now();
        for number in 0..10_000 {
            queue.add(("crowd", number), start);
        }
        assert_eq!(queue.next().await, ("crowd", 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        queue.add(("quiet", 2), Instant::now());
        queue.add(("quiet", 1), Instant::now());
        queue.add(("other", 1), Instant::now());
        let mut taken = Vec::new();
        for _ in 0..6 {
            taken.push(queue.next().await);
        }
        let expected = [
            ("crowd", 1),
            ("other", 1),
            ("quiet", 1),
            ("crowd", 2),
            ("quiet", 2),
            ("crowd", 3),
        ];
        assert_eq!(taken, expected);
        for number in 4..10_000 {
            assert_eq!(queue.next().await, ("crowd", number));
        }
        let state = queue.state.lock().unwrap();
        assert!(state.due.is_empty() && state.turns.is_empty() && state.at.is_empty());
    }
}
