//! The index over subscriptions: exact type and prefix, then source; what comes after it, filters and keys of orders, is
//! asked of a [`Candidate`]. Pure.
//!
//! Owns which subscriptions of one namespace an event matches; knows nothing of endpoints, stores or Kubernetes. Invariant:
//! [`Index::find`] gives what a scan over all subscriptions would give, each once, in the order they were given.
//!
//! Costs one look-up for the exact type, one for every distinct length of a prefix that some subscription uses, and one
//! for each source map found. A trie was rejected: real manifests have two or three prefix lengths.

use std::collections::HashMap;
use std::sync::Arc;

use crate::api::resolve::{ResolvedSubscription, TypePattern};

mod candidate;
pub mod filter;
mod order;

pub use candidate::Candidate;

/// The subscriptions of one namespace, ready to be asked which match. Built anew when one changes.
#[derive(Clone, Debug)]
pub struct Index<T> {
    entries: Vec<(Arc<ResolvedSubscription>, T)>,
    any: Bucket,
    exact: HashMap<String, Bucket>,
    prefixes: HashMap<String, Bucket>,
    /// The distinct lengths of the keys of `prefixes`, ascending.
    prefix_lengths: Vec<usize>,
}

/// Positions in `entries` under one type pattern, ascending.
#[derive(Clone, Debug, Default)]
struct Bucket {
    every_source: Vec<u32>,
    by_source: HashMap<String, Vec<u32>>,
}

impl Bucket {
    fn add(&mut self, sources: &[String], position: u32) {
        if sources.is_empty() {
            push_once(&mut self.every_source, position);
        }
        for source in sources {
            push_once(self.by_source.entry(source.clone()).or_default(), position);
        }
    }

    fn collect(&self, source: &str, into: &mut Vec<u32>) {
        into.extend_from_slice(&self.every_source);
        if !self.by_source.is_empty()
            && let Some(positions) = self.by_source.get(source)
        {
            into.extend_from_slice(positions);
        }
    }
}

/// Positions come in order, so one written twice in a manifest is the last one.
fn push_once(positions: &mut Vec<u32>, position: u32) {
    if positions.last() != Some(&position) {
        positions.push(position);
    }
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Index::new([])
    }
}

impl<T> Index<T> {
    /// Indexes subscriptions with what the caller wants back.
    pub fn new(subscriptions: impl IntoIterator<Item = (Arc<ResolvedSubscription>, T)>) -> Index<T> {
        let entries: Vec<_> = subscriptions.into_iter().collect();
        let mut any = Bucket::default();
        let mut exact: HashMap<String, Bucket> = HashMap::new();
        let mut prefixes: HashMap<String, Bucket> = HashMap::new();
        for (position, (subscription, _)) in (0_u32..).zip(&entries) {
            for pattern in &subscription.event_types {
                let bucket = match pattern {
                    TypePattern::Any => &mut any,
                    TypePattern::Exact(r#type) => exact.entry(r#type.clone()).or_default(),
                    TypePattern::Prefix(prefix) => prefixes.entry(prefix.clone()).or_default(),
                };
                bucket.add(&subscription.sources, position);
            }
        }
        let mut prefix_lengths: Vec<usize> = prefixes.keys().map(String::len).collect();
        prefix_lengths.sort_unstable();
        prefix_lengths.dedup();
        Index {
            entries,
            any,
            exact,
            prefixes,
            prefix_lengths,
        }
    }

    /// What was given with every subscription that matches, in the order given to [`Index::new`].
    pub fn find<'a>(&'a self, event_type: &str, source: &str) -> impl ExactSizeIterator<Item = &'a T> {
        let mut found = Vec::new();
        self.any.collect(source, &mut found);
        if let Some(bucket) = self.exact.get(event_type) {
            bucket.collect(source, &mut found);
        }
        for &length in &self.prefix_lengths {
            if length > event_type.len() {
                break;
            }
            if let Some(bucket) = event_type.get(..length).and_then(|prefix| self.prefixes.get(prefix)) {
                bucket.collect(source, &mut found);
            }
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|position| &self.entries[position as usize].1)
    }

    /// Every subscription with what was given, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Arc<ResolvedSubscription>, &T)> {
        self.entries.iter().map(|(subscription, value)| (subscription, value))
    }
}

#[cfg(test)]
mod tests;
