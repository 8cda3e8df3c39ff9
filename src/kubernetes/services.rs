//! The Services of the cluster, as far as endpoints may use them: a few words of each, whatever a Service holds.
//!
//! Knows nothing of endpoints. Invariant: what is missing after a complete list is gone, and an interrupted watch takes
//! nothing away.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use super::scope::{Part, Scope};
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
    watches: BTreeMap<Part, Progress>,
}

/// How far one watch is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// What a list has brought so far.
    listing: BTreeMap<Key, Arc<FoundService>>,
    /// The highest version seen; none before the first complete list.
    seen: Option<u64>,
}

impl Services {
    /// None seen yet.
    pub fn of(scope: &Scope) -> Services {
        Services {
            found: BTreeMap::new(),
            watches: scope
                .parts()
                .into_iter()
                .map(|part| (part, Progress::default()))
                .collect(),
        }
    }

    /// Takes one event of a watch in.
    pub fn apply(&mut self, part: &Part, event: Event<Named>) -> Change {
        let watch = self.watches.entry(part.clone()).or_default();
        match event {
            Event::Init => {
                watch.listing.clear();
                Change::None
            }
            Event::InitApply((key, found)) => {
                watch.listing.insert(key, found);
                Change::None
            }
            Event::InitDone => {
                let mut listing = std::mem::take(&mut watch.listing);
                let highest = listing.values().map(|found| number(found)).max();
                watch.seen = watch.seen.max(highest).or(Some(0));
                self.found.retain(|(namespace, _), _| !part.has(namespace));
                self.found.append(&mut listing);
                Change::Any
            }
            Event::Apply((key, found)) => {
                watch.seen = watch.seen.max(Some(number(&found)));
                let before = self.found.insert(key.clone(), Arc::clone(&found));
                match before == Some(found) {
                    true => Change::None,
                    false => Change::One(key),
                }
            }
            Event::Delete((key, found)) => {
                watch.seen = watch.seen.max(Some(number(&found)));
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

    /// Whether every watch has brought a complete list.
    pub fn is_listed(&self) -> bool {
        self.watches.values().all(|watch| watch.seen.is_some())
    }

    /// Whether those of a namespace are as they were at this version, or later.
    pub fn has_seen(&self, namespace: &str, version: Option<&str>) -> bool {
        let version = version.and_then(|version| version.parse::<u64>().ok());
        let watch = self.watches.iter().find(|(part, _)| part.has(namespace));
        let seen = watch.and_then(|(_, watch)| watch.seen);
        seen.is_some_and(|seen| version.is_none_or(|version| version <= seen))
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
        let mut services = Services::of(&Scope::default());
        let mut apply = |event| services.apply(&Part::All, found(event));
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
        assert_eq!(services.apply(&Part::All, found(Event::InitDone)), Change::Any);
        assert!(services.get("team", "b").is_none() && services.get("team", "a").is_some());
        let gone = services.apply(&Part::All, found(Event::Delete(service("a", "11"))));
        assert_eq!((gone, services.get("team", "a")), (Change::One(key("a")), None));
    }

    #[test]
    fn what_was_seen_counts_from_the_first_complete_list_and_never_falls() {
        let mut services = Services::of(&Scope::default());
        assert!(!services.has_seen("team", None) && !services.is_listed());
        services.apply(&Part::All, Event::InitDone);
        assert!(
            services.has_seen("team", None) && !services.has_seen("team", Some("7")),
            "an empty list"
        );
        services.apply(&Part::All, found(Event::Apply(service("a", "7"))));
        assert!(services.has_seen("team", Some("7")) && !services.has_seen("team", Some("8")));
        services.apply(&Part::All, found(Event::Delete(service("a", "8"))));
        services.apply(&Part::All, Event::Init);
        services.apply(&Part::All, Event::InitDone);
        assert!(services.has_seen("team", Some("8")));
    }
}
