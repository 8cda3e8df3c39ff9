//! Up to which `resourceVersion` everything of a kind is loaded.
//!
//! The controller says Ready once this has passed the version at which it saw a generation. Invariant: never beyond an
//! object that was seen and is not yet in the registry.

use std::collections::BTreeMap;

use crate::kubernetes::scope::{Part, Scope};

/// Progress of one kind, watch by watch: versions of one say nothing about what another has seen.
#[derive(Debug)]
pub struct Tracks {
    each: BTreeMap<Part, Versions>,
}

impl Tracks {
    /// Nothing seen yet.
    pub fn of(scope: &Scope) -> Tracks {
        Tracks {
            each: scope
                .parts()
                .into_iter()
                .map(|part| (part, Versions::default()))
                .collect(),
        }
    }

    /// The one that sees this namespace.
    pub fn of_namespace(&mut self, namespace: &str) -> &mut Versions {
        let part = self.each.keys().find(|part| part.has(namespace)).cloned();
        self.each.entry(part.unwrap_or_default()).or_default()
    }

    /// The one of this watch.
    pub fn of_part(&mut self, part: &Part) -> &mut Versions {
        self.each.entry(part.clone()).or_default()
    }

    /// Up to where everything is loaded, for each watch.
    pub fn done(&self) -> BTreeMap<Part, Option<u64>> {
        self.each
            .iter()
            .map(|(part, versions)| (part.clone(), versions.done()))
            .collect()
    }

    /// Whether every watch has brought its first complete list.
    pub fn are_listed(&self) -> bool {
        self.each.values().all(Versions::is_listed)
    }
}

/// Progress of one watch.
#[derive(Debug, Default)]
pub struct Versions {
    /// The highest version seen; none before the first complete list.
    seen: Option<u64>,
    /// Versions of what was seen and is not loaded yet, by key: the lowest holds back.
    pending: BTreeMap<(String, String), u64>,
}

impl Versions {
    /// A complete list: its highest version counts, also where it is lower than before (a restored cluster).
    pub fn listed(&mut self, highest: u64) {
        self.seen = Some(highest);
    }

    /// An object was seen at `version` and is to be loaded. The earliest version not yet loaded counts.
    pub fn saw(&mut self, key: (String, String), version: u64) {
        self.passed(version);
        self.pending.entry(key).or_insert(version);
    }

    /// A version was seen that needs no loading.
    pub fn passed(&mut self, version: u64) {
        if let Some(seen) = self.seen.as_mut() {
            *seen = version.max(*seen);
        }
    }

    /// The object is in the registry as last seen, or is gone.
    pub fn loaded(&mut self, key: &(String, String)) {
        self.pending.remove(key);
    }

    /// Everything up to here is loaded; none before the first complete list.
    pub fn done(&self) -> Option<u64> {
        let seen = self.seen?;
        Some(match self.pending.values().min() {
            Some(first) => seen.min(first.saturating_sub(1)),
            None => seen,
        })
    }

    /// Whether the first complete list has come.
    pub fn is_listed(&self) -> bool {
        self.seen.is_some()
    }
}

/// An object's version as a number (comparable by the API's contract since Kubernetes 1.35, and in practice before);
/// zero when it has none.
pub fn number(version: Option<&str>) -> u64 {
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> (String, String) {
        ("team".into(), name.into())
    }

    #[test]
    fn nothing_counts_before_the_first_complete_list() {
        let mut versions = Versions::default();
        versions.passed(7);
        assert_eq!(versions.done(), None);
        versions.listed(5);
        assert_eq!(versions.done(), Some(5));
    }

    #[test]
    fn what_waits_holds_back_until_it_is_loaded() {
        let mut versions = Versions::default();
        versions.listed(10);
        versions.saw(key("a"), 11);
        versions.saw(key("b"), 12);
        versions.saw(key("a"), 13);
        assert_eq!(versions.done(), Some(10), "a is still waited for since 11");
        versions.loaded(&key("a"));
        assert_eq!(versions.done(), Some(11));
        versions.loaded(&key("b"));
        assert_eq!(versions.done(), Some(13));
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(number(Some("1000")) > number(Some("999")));
        assert_eq!(number(None), 0);
    }
}
