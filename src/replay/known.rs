//! Which Replays there are, by UID, as the watches saw them. Pure.
//!
//! Invariant: before every watch has brought a complete list nothing is known, of what is there or of what is gone; and where
//! only some namespaces are watched, gone is what was seen to go.

use std::collections::{BTreeMap, HashSet};

use crate::kubernetes::scope::{Part, Scope};

pub(super) struct Known {
    /// None before the first complete list.
    parts: BTreeMap<Part, Option<HashSet<String>>>,
    /// Seen to go, and not forgotten yet.
    went: HashSet<String>,
    sees_all: bool,
}

impl Known {
    /// Nothing is.
    pub(super) fn of(scope: &Scope) -> Known {
        Known {
            parts: scope.parts().into_iter().map(|part| (part, None)).collect(),
            went: HashSet::new(),
            sees_all: scope.is_all(),
        }
    }

    /// A complete list; those of the one before that it lacks.
    pub(super) fn listed(&mut self, part: &Part, uids: HashSet<String>) -> Vec<String> {
        let before = self.parts.get(part).cloned().flatten().unwrap_or_default();
        let missing: Vec<String> = before.difference(&uids).cloned().collect();
        self.went.extend(missing.iter().cloned());
        self.parts.insert(part.clone(), Some(uids));
        missing
    }

    pub(super) fn put(&mut self, part: &Part, uid: String) {
        if let Some(Some(uids)) = self.parts.get_mut(part) {
            uids.insert(uid);
        }
    }

    pub(super) fn remove(&mut self, part: &Part, uid: &str) {
        if let Some(Some(uids)) = self.parts.get_mut(part) {
            uids.remove(uid);
        }
        self.went.insert(uid.to_owned());
    }

    /// Whether anything is known.
    pub(super) fn is_complete(&self) -> bool {
        self.parts.values().all(Option::is_some)
    }

    /// Whether it is there for certain.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.is_complete() && self.contains(uid)
    }

    /// Whether it is gone for certain.
    pub(super) fn lacks(&self, uid: &str) -> bool {
        self.is_complete() && !self.contains(uid)
    }

    /// Whether nothing need be kept of it.
    pub(super) fn may_be_forgotten(&self, uid: &str) -> bool {
        self.lacks(uid) && (self.sees_all || self.went.contains(uid))
    }

    /// What could be was forgotten.
    pub(super) fn forgotten(&mut self) {
        self.went.clear();
    }

    fn contains(&self, uid: &str) -> bool {
        self.parts.values().flatten().any(|uids| uids.contains(uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_gone_before_every_watch_has_brought_its_list() {
        let scope = Scope::of(["sales", "shop"].map(str::to_owned));
        let parts = scope.parts();
        let mut known = Known::of(&scope);
        let uids = |all: &[&str]| all.iter().map(|uid| (*uid).to_owned()).collect::<HashSet<_>>();
        assert_eq!(known.listed(&parts[0], uids(&["a", "b"])), [""; 0]);
        assert!(!known.has("a") && !known.lacks("c"), "shop may have it");
        known.listed(&parts[1], uids(&["c"]));
        assert!(known.has("a") && known.has("c") && known.lacks("d"));
        assert_eq!(known.listed(&parts[0], uids(&["a"])), ["b"]);
        assert!(known.lacks("b") && known.has("c"), "another namespace's stay");
        known.put(&parts[1], "d".to_owned());
        known.remove(&parts[1], "c");
        assert!(known.has("d") && known.lacks("c"));
        assert!(known.may_be_forgotten("b") && known.may_be_forgotten("c"));
        assert!(
            !known.may_be_forgotten("e"),
            "it may be in a namespace that is not watched"
        );
        let mut all = Known::of(&Scope::default());
        all.listed(&Part::All, uids(&["a"]));
        assert!(all.may_be_forgotten("e") && !all.may_be_forgotten("a"));
    }
}
