//! Things kept for reuse by a key: the newest of a key is taken first, the oldest of all gives way first.
//!
//! Knows nothing of what it keeps, and sets no bound.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

/// Several values for each key, in the order in which they came.
#[derive(Debug)]
pub(super) struct Kept<K, V> {
    by_key: HashMap<Arc<K>, VecDeque<(u64, V)>>,
    /// Oldest first; the numbers are unique and rise.
    by_age: BTreeMap<u64, Arc<K>>,
    next: u64,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Kept<K, V> {
        Kept {
            by_key: HashMap::new(),
            by_age: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<K: Eq + Hash, V> Kept<K, V> {
    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }

    /// How many a key has.
    pub(super) fn of(&self, key: &K) -> usize {
        self.by_key.get(key).map_or(0, VecDeque::len)
    }

    pub(super) fn push(&mut self, key: K, value: V) {
        let order = self.next;
        self.next += 1;
        let key = match self.by_key.get_key_value(&key) {
            Some((kept, _)) => kept.clone(),
            None => Arc::new(key),
        };
        self.by_age.insert(order, key.clone());
        self.by_key.entry(key).or_default().push_back((order, value));
    }

    /// The newest of a key.
    pub(super) fn pop(&mut self, key: &K) -> Option<V> {
        let popped = self.by_key.get_mut(key)?.pop_back();
        self.forget(key, popped)
    }

    /// The oldest of all.
    pub(super) fn oldest(&self) -> Option<&V> {
        let (_, key) = self.by_age.first_key_value()?;
        Some(&self.by_key.get(key)?.front()?.1)
    }

    pub(super) fn pop_oldest(&mut self) -> Option<V> {
        let (_, key) = self.by_age.first_key_value()?;
        self.pop_oldest_of(&key.clone())
    }

    /// The oldest of a key.
    pub(super) fn pop_oldest_of(&mut self, key: &K) -> Option<V> {
        let popped = self.by_key.get_mut(key)?.pop_front();
        self.forget(key, popped)
    }

    fn forget(&mut self, key: &K, popped: Option<(u64, V)>) -> Option<V> {
        if self.of(key) == 0 {
            self.by_key.remove(key);
        }
        let (order, value) = popped?;
        self.by_age.remove(&order);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept<char, u32> {
        let mut kept = Kept::default();
        for (key, value) in [('a', 1), ('b', 2), ('a', 3), ('b', 4)] {
            kept.push(key, value);
        }
        kept
    }

    #[test]
    fn the_newest_of_a_key_is_taken_and_the_oldest_of_all_gives_way() {
        let mut kept = kept();
        assert_eq!((kept.len(), kept.of(&'a'), kept.oldest()), (4, 2, Some(&1)));
        assert_eq!(kept.pop(&'a'), Some(3));
        assert_eq!(kept.pop_oldest(), Some(1));
        assert_eq!((kept.pop(&'a'), kept.of(&'a')), (None, 0));
        assert_eq!(kept.pop_oldest_of(&'b'), Some(2));
        assert_eq!(kept.pop_oldest(), Some(4));
        assert_eq!((kept.pop_oldest(), kept.oldest(), kept.len()), (None, None, 0));
    }

    #[test]
    fn nothing_is_left_of_a_key_whose_values_are_gone() {
        let mut kept = kept();
        while kept.pop_oldest().is_some() {}
        assert!(kept.by_key.is_empty() && kept.by_age.is_empty());
    }
}
