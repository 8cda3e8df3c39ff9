//! The Services of the cluster, as far as endpoints may use them: a few words of each, whatever a Service holds.
//!
//! Knows nothing of endpoints. Invariant: what is missing after a complete list is gone, and an interrupted watch takes
//! nothing away.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use crate::api::resolve::FoundService;

/// Namespace and name.
pub type Key = (String, String);
/// A Service by its key.
pub type Named = (Key, Arc<FoundService>);

/// Which Services are not as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    One(Key),
    /// After a complete list.
    Any,
}

/// As a watch saw them.
#[derive(Clone, Debug, Default)]
pub struct Services {
    found: BTreeMap<Key, Arc<FoundService>>,
    /// What a list has brought so far.
    listing: BTreeMap<Key, Arc<FoundService>>,
    /// The highest version seen; none before the first complete list.
    seen: Option<u64>,
}

impl Services {
    /// Takes one event in.
    pub fn apply(&mut self, event: Event<Named>) -> Change {
        match event {
            Event::Init => {
                self.listing.clear();
                Change::None
            }
            Event::InitApply((key, found)) => {
                self.listing.insert(key, found);
                Change::None
            }
            Event::InitDone => {
                self.found = std::mem::take(&mut self.listing);
                let highest = self.found.values().map(|found| number(found)).max();
                self.seen = self.seen.max(highest).or(Some(0));
                Change::Any
            }
            Event::Apply((key, found)) => {
                self.seen = self.seen.max(Some(number(&found)));
                let before = self.found.insert(key.clone(), Arc::clone(&found));
                match before == Some(found) {
                    true => Change::None,
                    false => Change::One(key),
                }
            }
            Event::Delete((key, found)) => {
                self.seen = self.seen.max(Some(number(&found)));
                match self.found.remove(&key) {
                    Some(_) => Change::One(key),
                    None => Change::None,
                }
            }
        }
    }

    /// The Service, if it exists.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<FoundService>> {
        self.found.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Whether a complete list has come.
    pub fn is_listed(&self) -> bool {
        self.seen.is_some()
    }

    /// Whether they are as they were at this version, or later.
    pub fn has_seen(&self, version: Option<&str>) -> bool {
        let version = version.and_then(|version| version.parse::<u64>().ok());
        self.seen
            .is_some_and(|seen| version.is_none_or(|version| version <= seen))
    }
}

/// Zero where a version is no number.
fn number(found: &FoundService) -> u64 {
    found.resource_version.parse().unwrap_or(0)
}

/// Keeps of an event's Service what is used.
pub fn found(event: Event<Service>) -> Event<Named> {
    let named = |service: Service| {
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        let version = service.metadata.resource_version.unwrap_or_default();
        let found = FoundService::new(&version, &service.spec.unwrap_or_default());
        (key, Arc::new(found))
    };
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(service) => Event::InitApply(named(service)),
        Event::Apply(service) => Event::Apply(named(service)),
        Event::Delete(service) => Event::Delete(named(service)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, version: &str) -> Service {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "team", "name": name, "resourceVersion": version},
            "spec": {"selector": {"app": name}, "clusterIP": "10.96.0.7", "ports": [{"port": 80}]}}))
        .expect("a Service")
    }

    fn key(name: &str) -> Key {
        ("team".into(), name.into())
    }

    #[test]
    fn a_complete_list_replaces_and_an_interrupted_one_takes_nothing_away() {
        let mut services = Services::default();
        let mut apply = |event| services.apply(found(event));
        for event in [
            Event::Init,
            Event::InitApply(service("a", "3")),
            Event::InitApply(service("b", "5")),
        ] {
            assert_eq!(apply(event), Change::None);
        }
        assert_eq!(apply(Event::InitDone), Change::Any);
        assert_eq!(apply(Event::Apply(service("a", "3"))), Change::None, "as it was");
        assert_eq!(apply(Event::Apply(service("a", "9"))), Change::One(key("a")));
        assert_eq!(apply(Event::Init), Change::None);
        assert_eq!(apply(Event::InitApply(service("a", "9"))), Change::None);
        assert!(services.get("team", "b").is_some(), "the list is not complete");
        assert_eq!(services.apply(found(Event::InitDone)), Change::Any);
        assert!(services.get("team", "b").is_none() && services.get("team", "a").is_some());
        let gone = services.apply(found(Event::Delete(service("a", "11"))));
        assert_eq!((gone, services.get("team", "a")), (Change::One(key("a")), None));
    }

    #[test]
    fn what_was_seen_counts_from_the_first_complete_list_and_never_falls() {
        let mut services = Services::default();
        assert!(!services.has_seen(None) && !services.is_listed());
        services.apply(Event::InitDone);
        assert!(
            services.has_seen(None) && !services.has_seen(Some("7")),
            "an empty list"
        );
        services.apply(found(Event::Apply(service("a", "7"))));
        assert!(services.has_seen(Some("7")) && !services.has_seen(Some("8")));
        services.apply(found(Event::Delete(service("a", "8"))));
        services.apply(Event::Init);
        services.apply(Event::InitDone);
        assert!(services.has_seen(Some("8")));
    }
}
