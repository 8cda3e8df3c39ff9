//! Large values that many objects refer to, a bundle of certificates above all, held once.
//!
//! Invariant: what is shared is equal in everything, and is here only while somebody holds it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::api::resolve::{Found, Reference};
use crate::watch::fetch::Reads;

/// Smaller ones cost as much to be found again.
const LARGE: usize = 1 << 10;
/// Places that are looked through for those that nobody holds any more, at least.
const FEWEST: usize = 64;

/// What was read last under each name, by namespace.
#[derive(Debug, Default)]
pub struct Shared {
    held: HashMap<(String, Reference), Weak<Found>>,
    look_at: usize,
}

impl Shared {
    /// Puts what is held already in place of what was read.
    pub fn share(&mut self, namespace: &str, reads: &mut Reads) {
        for (reference, result) in reads {
            let Ok((_, found)) = result else { continue };
            if found.size() < LARGE {
                continue;
            }
            let key = (namespace.to_owned(), reference.clone());
            match self.held.get(&key).and_then(Weak::upgrade) {
                Some(before) if before == *found => *found = before,
                _ => drop(self.held.insert(key, Arc::downgrade(found))),
            }
        }
        if self.held.len() > self.look_at {
            self.held.retain(|_, found| found.strong_count() > 0);
            self.look_at = FEWEST.max(2 * self.held.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(version: &str, bytes: usize) -> Reads {
        let found = Found {
            resource_version: version.to_owned(),
            data: [("ca.crt".to_owned(), vec![7; bytes].into())].into_iter().collect(),
            ..Found::default()
        };
        vec![(Reference::config_map("ca"), Ok((version.to_owned(), Arc::new(found))))]
    }

    #[test]
    fn what_is_large_and_equal_is_held_once_for_a_namespace_and_no_longer_than_it_is_held() {
        let mut shared = Shared::default();
        let mut share = |namespace: &str, version: &str, bytes: usize| {
            let mut reads = read(version, bytes);
            shared.share(namespace, &mut reads);
            reads.pop().unwrap().1.unwrap().1
        };
        let (one, other) = (share("a", "1", LARGE), share("a", "1", LARGE));
        assert!(Arc::ptr_eq(&one, &other));
        for different in [share("b", "1", LARGE), share("a", "2", LARGE)] {
            assert!(!Arc::ptr_eq(&one, &different));
        }
        let small = || read("1", LARGE - 1);
        for n in 0..2 * FEWEST {
            share(&n.to_string(), "1", LARGE);
        }
        shared.share("c", &mut small());
        assert!(shared.held.len() <= FEWEST + 1, "{}", shared.held.len());
    }
}
