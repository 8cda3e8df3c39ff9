//! What the cluster has, as the watches saw it, and what of it is not in the registry yet. Pure.
//!
//! Invariant: an object is dirty or in the registry, never neither; versions advance only past what is in the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::source::Step;
use super::versions::{Tracks, number};
use crate::api::census::Census;
use crate::api::{EventSubscription, EventType, WebhookEndpoint};
use crate::kubernetes::scope::{Part, Scope};
use crate::kubernetes::services::{Change, Named, Services};

/// Namespace and name.
pub type Key = (String, String);

/// One step of one of the watches, which sees the part.
#[derive(Debug)]
pub enum Input {
    Namespaces(Part, Step<PartialObjectMeta<Namespace>>),
    Endpoints(Part, Step<WebhookEndpoint>),
    Subscriptions(Part, Step<EventSubscription>),
    Types(Part, Step<EventType>),
    Services(Part, Event<Named>),
}

/// A namespace that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    pub uid: Arc<str>,
    pub labels: BTreeMap<String, String>,
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Kind<K> {
    pub objects: BTreeMap<Key, Arc<K>>,
    /// Changed or new since it was loaded.
    pub dirty: BTreeSet<Key>,
    /// Gone, or replaced by a namesake, since it was loaded; or its namespace was.
    pub gone: BTreeSet<Key>,
    pub versions: Tracks,
    /// Which of them count where only so many may.
    pub census: Census,
}

impl<K> Kind<K> {
    fn of_scope(scope: &Scope) -> Self {
        Kind {
            objects: BTreeMap::new(),
            dirty: BTreeSet::new(),
            gone: BTreeSet::new(),
            versions: Tracks::of(scope),
            census: Census::default(),
        }
    }
}

impl<K: Resource> Kind<K> {
    fn apply(&mut self, part: &Part, step: Step<K>) {
        match step {
            Step::Listed(objects) => {
                let highest = objects
                    .iter()
                    .map(|o| number(o.meta().resource_version.as_deref()))
                    .max();
                self.versions.of_part(part).listed(highest.unwrap_or(0));
                let listed: BTreeSet<Key> = objects.iter().map(key).collect();
                let missing: Vec<Key> = self
                    .objects
                    .keys()
                    .filter(|key| part.has(&key.0) && !listed.contains(*key))
                    .cloned()
                    .collect();
                for key in missing {
                    self.remove(&key);
                }
                for object in objects {
                    self.put(object);
                }
            }
            Step::Put(object) => self.put(*object),
            Step::Gone(object) => {
                self.remove(&key(&*object));
                let version = number(object.meta().resource_version.as_deref());
                self.versions.of_part(part).passed(version);
            }
        }
    }

    fn put(&mut self, object: K) {
        let key = key(&object);
        let version = number(object.meta().resource_version.as_deref());
        if let Some(before) = self.objects.get(&key)
            && before.meta().uid != object.meta().uid
        {
            self.gone.insert(key.clone());
        }
        self.census.put(&object);
        self.versions.of_namespace(&key.0).saw(key.clone(), version);
        self.dirty.insert(key.clone());
        self.objects.insert(key, Arc::new(object));
    }

    fn remove(&mut self, key: &Key) {
        if self.objects.remove(key).is_some() {
            self.gone.insert(key.clone());
            self.census.remove(&key.0, &key.1);
        }
        self.dirty.remove(key);
        self.versions.of_namespace(&key.0).loaded(key);
    }

    /// It is in the registry as it is here.
    pub fn loaded(&mut self, key: &Key) {
        self.dirty.remove(key);
        self.versions.of_namespace(&key.0).loaded(key);
    }

    /// It is in the registry, but not yet as its version wants it: what it refers to is still to be read.
    pub fn known(&mut self, key: &Key) {
        self.dirty.remove(key);
    }

    /// The keys of one namespace.
    pub fn of<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Key> {
        of_namespace(&self.objects, namespace).map(|(key, _)| key)
    }

    /// All of a namespace went with it; those that are known still are late to go, or are of a namesake.
    fn lose(&mut self, namespace: &str) {
        let keys: Vec<Key> = self.of(namespace).cloned().collect();
        self.gone.extend(keys);
    }

    /// All of a namespace are to be loaded anew.
    pub fn touch(&mut self, namespace: &str) {
        let keys: Vec<Key> = self.of(namespace).cloned().collect();
        self.dirty.extend(keys);
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    pub spaces: BTreeMap<String, Space>,
    pub endpoints: Kind<WebhookEndpoint>,
    pub subscriptions: Kind<EventSubscription>,
    pub types: Kind<EventType>,
    pub namespaces: Tracks,
    pub services: Services,
    /// Namespaces whose view is to be built anew (or taken away).
    pub views: BTreeSet<String>,
}

impl World {
    /// Nothing seen yet.
    pub fn of(scope: &Scope) -> World {
        World {
            spaces: BTreeMap::new(),
            endpoints: Kind::of_scope(scope),
            subscriptions: Kind::of_scope(scope),
            types: Kind::of_scope(scope),
            namespaces: Tracks::of(scope),
            services: Services::of(scope),
            views: BTreeSet::new(),
        }
    }

    /// Takes one step in.
    pub fn apply(&mut self, input: Input) {
        match input {
            Input::Namespaces(part, step) => self.namespaces(&part, step),
            Input::Endpoints(part, step) => self.endpoints.apply(&part, step),
            Input::Subscriptions(part, step) => self.subscriptions.apply(&part, step),
            Input::Types(part, step) => self.types.apply(&part, step),
            Input::Services(part, event) => {
                let change = self.services.apply(&part, event);
                self.touch_those_that_name(&change);
            }
        }
    }

    /// Whether every watch has given its first complete list.
    pub fn is_listed(&self) -> bool {
        self.namespaces.are_listed()
            && self.endpoints.versions.are_listed()
            && self.subscriptions.versions.are_listed()
            && self.types.versions.are_listed()
    }

    /// The policy changed: every endpoint is resolved anew.
    pub fn touch_endpoints(&mut self) {
        self.endpoints.dirty.extend(self.endpoints.objects.keys().cloned());
    }

    /// Endpoints whose Service may be another one now.
    fn touch_those_that_name(&mut self, change: &Change) {
        let endpoints = &mut self.endpoints;
        let naming = |(key, endpoint): (&Key, &Arc<WebhookEndpoint>)| {
            let service = endpoint.spec.service_ref.as_ref()?;
            let is_meant = match change {
                Change::None => false,
                Change::One((_, name)) => service.name == *name,
                Change::Any => true,
            };
            is_meant.then(|| key.clone())
        };
        let touched: Vec<Key> = match change {
            Change::None => return,
            Change::One((namespace, _)) => of_namespace(&endpoints.objects, namespace).filter_map(naming).collect(),
            Change::Any => endpoints.objects.iter().filter_map(naming).collect(),
        };
        endpoints.dirty.extend(touched);
    }

    fn namespaces(&mut self, part: &Part, step: Step<PartialObjectMeta<Namespace>>) {
        let version = |space: &PartialObjectMeta<Namespace>| number(space.metadata.resource_version.as_deref());
        match step {
            Step::Listed(list) => {
                let highest = list.iter().map(version).max().unwrap_or(0);
                self.namespaces.of_part(part).listed(highest);
                let names: BTreeSet<String> = list.iter().map(ResourceExt::name_any).collect();
                let is_missing = |name: &&String| part.has(name) && !names.contains(*name);
                let missing: Vec<String> = self.spaces.keys().filter(is_missing).cloned().collect();
                for name in missing {
                    self.close_space(&name);
                }
                for space in list {
                    self.open_space(&space);
                }
            }
            Step::Put(space) => {
                self.namespaces.of_part(part).passed(version(&space));
                self.open_space(&space);
            }
            Step::Gone(space) => self.close_space(&space.name_any()),
        }
    }

    fn open_space(&mut self, space: &PartialObjectMeta<Namespace>) {
        let name = space.name_any();
        let new = Space {
            uid: space.uid().unwrap_or_default().into(),
            labels: space.labels().clone(),
        };
        if self.spaces.get(&name).is_some_and(|before| before.uid != new.uid) {
            // Nobody told that the one before went: what is loaded has ids of that one.
            self.close_space(&name);
        }
        let before = self.spaces.insert(name.clone(), new.clone());
        if before.as_ref() == Some(&new) {
            return;
        }
        self.endpoints.touch(&name);
        self.subscriptions.touch(&name);
        self.views.insert(name.clone());
        if before.is_none() {
            self.types.touch(&name);
        }
    }

    fn close_space(&mut self, name: &str) {
        if self.spaces.remove(name).is_some() {
            self.endpoints.lose(name);
            self.subscriptions.lose(name);
            self.views.insert(name.to_owned());
        }
    }
}

/// What there is of one namespace.
pub fn of_namespace<'a, T>(all: &'a BTreeMap<Key, T>, namespace: &str) -> impl Iterator<Item = (&'a Key, &'a T)> {
    let from = (namespace.to_owned(), String::new());
    let namespace = namespace.to_owned();
    all.range(from..).take_while(move |(key, _)| key.0 == namespace)
}

/// An object's key.
pub fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn space(name: &str, uid: &str, label: &str) -> PartialObjectMeta<Namespace> {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "uid": uid, "resourceVersion": "9", "labels": {"l": label}}}))
        .expect("a namespace")
    }

    fn event_type(name: &str, uid: &str, version: &str) -> EventType {
        serde_json::from_value(json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType",
            "metadata": {"name": name, "namespace": "team", "uid": uid, "resourceVersion": version},
            "spec": {"type": name, "schema": {}}}))
        .expect("an EventType")
    }

    fn team(name: &str) -> Key {
        ("team".into(), name.into())
    }

    fn done(world: &World) -> Option<u64> {
        world.types.versions.done()[&Part::All]
    }

    #[test]
    fn what_a_complete_list_lacks_is_gone_and_what_an_error_hides_is_not() {
        let mut world = World::of(&Scope::default());
        world.apply(Input::Types(Part::All, Step::Put(Box::new(event_type("a", "1", "3")))));
        world.apply(Input::Types(
            Part::All,
            Step::Listed(vec![event_type("a", "1", "3"), event_type("b", "2", "5")]),
        ));
        assert_eq!(done(&world), Some(2), "a is not loaded");
        world.types.loaded(&team("a"));
        world.types.loaded(&team("b"));
        assert_eq!(done(&world), Some(5));
        world.apply(Input::Types(Part::All, Step::Listed(vec![event_type("b", "2", "6")])));
        assert_eq!(world.types.gone, BTreeSet::from([team("a")]));
        assert_eq!(world.types.dirty, BTreeSet::from([team("b")]));
    }

    #[test]
    fn what_is_of_a_namespace_is_not_of_one_whose_name_goes_on() {
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
        let all = [("tea", "a"), ("team", "a"), ("team", "b"), ("team-two", "a")];
        let all: BTreeMap<Key, ()> = all.iter().map(|(namespace, name)| (key(namespace, name), ())).collect();
        let found: Vec<&Key> = of_namespace(&all, "team").map(|(key, _)| key).collect();
        assert_eq!(found, [&key("team", "a"), &key("team", "b")]);
        assert_eq!(of_namespace(&all, "te").count(), 0);
    }

    #[test]
    fn a_namesake_is_both_gone_and_new() {
        let mut world = World::of(&Scope::default());
        world.apply(Input::Types(Part::All, Step::Listed(vec![event_type("a", "1", "3")])));
        world.types.loaded(&team("a"));
        world.apply(Input::Types(Part::All, Step::Put(Box::new(event_type("a", "2", "4")))));
        assert!(world.types.gone.contains(&team("a")) && world.types.dirty.contains(&team("a")));
    }

    #[test]
    fn new_labels_touch_what_refers_to_secrets_and_a_new_uid_touches_all() {
        let mut world = World::of(&Scope::default());
        world.apply(Input::Types(Part::All, Step::Listed(vec![event_type("a", "1", "3")])));
        world.apply(Input::Namespaces(
            Part::All,
            Step::Listed(vec![space("team", "u1", "x")]),
        ));
        assert!(world.views.contains("team"));
        world.types.loaded(&team("a"));
        world.views.clear();
        world.apply(Input::Namespaces(
            Part::All,
            Step::Put(Box::new(space("team", "u1", "y"))),
        ));
        assert!(
            world.types.dirty.is_empty() && world.views.contains("team"),
            "the policy may say otherwise now"
        );
        world.apply(Input::Namespaces(
            Part::All,
            Step::Put(Box::new(space("team", "u2", "y"))),
        ));
        assert!(world.types.dirty.contains(&team("a")) && world.views.contains("team"));
        world.apply(Input::Namespaces(
            Part::All,
            Step::Gone(Box::new(space("team", "u2", "y"))),
        ));
        assert!(world.spaces.is_empty());
    }

    #[test]
    fn what_a_namespace_had_is_gone_with_it_and_also_when_only_a_namesake_of_it_is_seen() {
        let object = |kind: &str, spec: serde_json::Value| {
            json!({"apiVersion": "tidings.dev/v1alpha1", "kind": kind,
                "metadata": {"name": "a", "namespace": "team", "uid": "1", "resourceVersion": "3"}, "spec": spec})
        };
        let endpoint = object("WebhookEndpoint", json!({"url": "https://hooks.example.com/"}));
        let endpoint: WebhookEndpoint = serde_json::from_value(endpoint).expect("an endpoint");
        let subscription = json!({"endpointRef": {"name": "a"}, "eventTypes": ["*"]});
        let subscription = object("EventSubscription", subscription);
        let subscription: EventSubscription = serde_json::from_value(subscription).expect("a subscription");
        let put = |uid: &str, label: &str| Input::Namespaces(Part::All, Step::Put(Box::new(space("team", uid, label))));
        let mut world = World::of(&Scope::default());
        world.apply(Input::Endpoints(Part::All, Step::Put(Box::new(endpoint))));
        world.apply(Input::Subscriptions(Part::All, Step::Put(Box::new(subscription))));
        // Whether they are gone, and whether they are to be loaded.
        let news = |world: &mut World| {
            let a = team("a");
            let World {
                endpoints,
                subscriptions,
                ..
            } = world;
            let gone = [endpoints.gone.contains(&a), subscriptions.gone.contains(&a)];
            let dirty = [endpoints.dirty.contains(&a), subscriptions.dirty.contains(&a)];
            endpoints.gone.clear();
            subscriptions.gone.clear();
            endpoints.loaded(&a);
            subscriptions.loaded(&a);
            (gone, dirty)
        };
        world.apply(put("u1", "x"));
        assert_eq!(news(&mut world), ([false; 2], [true; 2]));
        world.apply(put("u1", "y"));
        assert_eq!(news(&mut world), ([false; 2], [true; 2]), "the labels are new");
        world.apply(put("u2", "y"));
        assert_eq!(news(&mut world), ([true; 2], [true; 2]), "a namesake");
        world.apply(Input::Namespaces(
            Part::All,
            Step::Gone(Box::new(space("team", "u2", "y"))),
        ));
        assert_eq!(news(&mut world), ([true; 2], [false; 2]));
        world.apply(put("u3", "y"));
        assert_eq!(news(&mut world), ([false; 2], [true; 2]));
    }

    #[test]
    fn a_list_of_one_namespace_says_nothing_about_another() {
        let parts = Scope::of(["team", "other"].map(str::to_owned)).parts();
        let [other, part] = &parts[..] else {
            unreachable!("two parts")
        };
        let mut world = World::of(&Scope::of(["team", "other"].map(str::to_owned)));
        world.apply(Input::Types(
            part.clone(),
            Step::Listed(vec![event_type("a", "1", "90")]),
        ));
        assert!(!world.types.versions.are_listed(), "the other namespace may have more");
        world.apply(Input::Types(other.clone(), Step::Listed(vec![])));
        assert!(world.types.versions.are_listed());
        assert!(world.types.gone.is_empty() && world.types.objects.contains_key(&team("a")));
        let done = world.types.versions.done();
        assert_eq!((done[part], done[other]), (Some(89), Some(0)), "a is not loaded");
        world.apply(Input::Namespaces(
            part.clone(),
            Step::Listed(vec![space("team", "u1", "x")]),
        ));
        world.apply(Input::Namespaces(other.clone(), Step::Listed(vec![])));
        assert!(world.spaces.contains_key("team"));
    }
}
