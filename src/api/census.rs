//! Which objects of a namespace count where only so many may: the oldest. Pure.
//!
//! Controller and dispatcher both keep one, so that conditions and behaviour cannot disagree. Invariant: the order is that
//! of creation, then of UID, whatever the order in which objects were seen.

use std::collections::{BTreeSet, HashMap};

use kube::Resource;

/// The most subscriptions of a namespace that events are matched against: it bounds what one event can become, and what
/// building a namespace's index costs.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;

/// How old an object is; the lesser the older. Creation is in whole seconds: the UID decides between equals.
pub type Age = (Option<i64>, String);

/// An object's age.
pub fn age<K: Resource>(object: &K) -> Age {
    let meta = object.meta();
    let created = meta.creation_timestamp.as_ref().map(|time| time.0.as_second());
    (created, meta.uid.clone().unwrap_or_default())
}

/// The objects of one kind, by namespace and age.
#[derive(Debug, Default)]
pub struct Census {
    spaces: HashMap<String, Space>,
}

#[derive(Debug, Default)]
struct Space {
    by_age: BTreeSet<(Age, String)>,
    by_name: HashMap<String, Age>,
}

impl Census {
    /// An object exists, or exists anew under its name.
    pub fn put<K: Resource>(&mut self, object: &K) {
        let meta = object.meta();
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
            return;
        };
        let age = age(object);
        if !self.spaces.contains_key(namespace) {
            self.spaces.insert(namespace.clone(), Space::default());
        }
        let Some(space) = self.spaces.get_mut(namespace) else {
            return;
        };
        if space.by_name.get(name) == Some(&age) {
            return;
        }
        if let Some(before) = space.by_name.insert(name.clone(), age.clone()) {
            space.by_age.remove(&(before, name.clone()));
        }
        space.by_age.insert((age, name.clone()));
    }

    /// It exists no more.
    pub fn remove(&mut self, namespace: &str, name: &str) {
        let Some(space) = self.spaces.get_mut(namespace) else {
            return;
        };
        if let Some(age) = space.by_name.remove(name) {
            space.by_age.remove(&(age, name.to_owned()));
        }
        if space.by_age.is_empty() {
            self.spaces.remove(namespace);
        }
    }

    /// None of these namespaces exist, as far as is known.
    pub fn clear(&mut self, is_in: impl Fn(&str) -> bool) {
        self.spaces.retain(|namespace, _| !is_in(namespace));
    }

    /// The age of the youngest that counts where only `limit` may; none where all do.
    pub fn youngest_that_counts(&self, namespace: &str, limit: usize) -> Option<Age> {
        let space = self.spaces.get(namespace).filter(|space| space.by_age.len() > limit)?;
        let last = limit.checked_sub(1).and_then(|last| space.by_age.iter().nth(last));
        // With a limit of none nothing is old enough.
        Some(last.map_or((None, String::new()), |(age, _)| age.clone()))
    }

    /// Whether an object is younger than those that count.
    pub fn is_beyond<K: Resource>(&self, object: &K, limit: usize) -> bool {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let youngest = self.youngest_that_counts(namespace, limit);
        youngest.is_some_and(|youngest| age(object) > youngest)
    }

    /// The names on both sides of the limit: one object more or less moves one of them over it.
    pub fn at_the_limit(&self, namespace: &str, limit: usize) -> Vec<String> {
        let space = self.spaces.get(namespace).filter(|space| space.by_age.len() >= limit);
        let from = limit.saturating_sub(1);
        let names = space
            .into_iter()
            .flat_map(|space| space.by_age.iter().skip(from).take(2));
        names.map(|(_, name)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WebhookEndpoint;
    use serde_json::json;

    fn object(name: &str, uid: &str, second: u32) -> WebhookEndpoint {
        serde_json::from_value(json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
            "metadata": {"name": name, "namespace": "sales", "uid": uid,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"url": "https://hooks.example.com/"}}))
        .unwrap()
    }

    #[test]
    fn the_oldest_count_whatever_the_order_they_were_seen_in() {
        let all = [
            object("d", "4", 9),
            object("b", "2", 5),
            object("a", "1", 5),
            object("c", "3", 7),
        ];
        let mut census = Census::default();
        all.iter().for_each(|object| census.put(object));
        let beyond = |census: &Census, limit| -> Vec<&str> {
            let all = all.iter().filter(|object| census.is_beyond(*object, limit));
            all.filter_map(|object| object.metadata.name.as_deref()).collect()
        };
        assert_eq!(beyond(&census, 4), [""; 0]);
        assert_eq!(beyond(&census, 2), ["d", "c"]);
        assert_eq!(beyond(&census, 1), ["d", "b", "c"]);
        assert_eq!(beyond(&census, 0), ["d", "b", "a", "c"]);
        assert_eq!(census.at_the_limit("sales", 2), ["b", "c"]);
        assert_eq!(census.at_the_limit("sales", 4), ["d"]);
        assert_eq!(census.at_the_limit("sales", 5), [""; 0]);
        census.remove("sales", "a");
        assert_eq!(beyond(&census, 2), ["d"], "the next in line counts");
        census.put(&object("b", "5", 30));
        assert_eq!(census.at_the_limit("sales", 3), ["b"], "made anew it is the youngest");
        census.clear(|namespace| namespace == "support");
        for name in ["b", "c"] {
            census.remove("sales", name);
        }
        assert!(!census.spaces.is_empty());
        census.clear(|namespace| namespace == "sales");
        assert!(census.spaces.is_empty() && !census.is_beyond(&all[0], 0));
    }
}
