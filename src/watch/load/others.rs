//! Subscriptions, declared types, and the namespaces' views made of them.
//!
//! Invariant: a subscription edited to something invalid keeps its last valid form, and of two objects for one type the
//! oldest counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kube::ResourceExt;

use super::Loader;
use crate::api::census::{Age, MAX_SUBSCRIPTIONS, age};
use crate::api::names::{is_pulled, pulled};
use crate::api::resolve::{Delivery, PullPolicy, ResolvedSubscription, resolve_subscription, resolve_with_last};
use crate::api::{EventSubscription, EventSubscriptionSpec, EventType};
use crate::ids::EndpointId;
use crate::matching::Index;
use crate::queue::ResourceKey;
use crate::registry::{EndpointState, Material, NamespaceView, SubscriptionEntry};
use crate::schema::TypeRule;
use crate::watch::world::{Key, Kind, Space};

/// A declared type.
#[derive(Debug)]
pub struct Declared {
    name: String,
    /// The oldest object of a type counts.
    age: Age,
    generation: Option<i64>,
    /// None until a schema of it compiled.
    rule: Option<Arc<TypeRule>>,
}

impl Declared {
    /// A schema that does not compile leaves the last one that did (of the same object) in use.
    fn new(object: &EventType, before: Option<&Declared>) -> Declared {
        let age = age(object);
        let rule = match TypeRule::compile(&object.spec) {
            Ok(rule) => Some(Arc::new(rule)),
            Err(error) => {
                tracing::info!(namespace = object.namespace(), name = object.name_any(), %error, "an EventType does not compile");
                before
                    .filter(|before| before.age == age)
                    .and_then(|before| before.rule.clone())
            }
        };
        Declared {
            name: object.spec.r#type.clone(),
            age,
            generation: object.metadata.generation,
            rule,
        }
    }

    fn is_of(&self, object: &EventType) -> bool {
        self.generation == object.metadata.generation && self.age.1 == object.uid().unwrap_or_default()
    }
}

impl Loader {
    /// Subscriptions and types that went.
    pub(super) async fn lose_others(&mut self) {
        let at = self.tools.clock.now();
        for key in std::mem::take(&mut self.world.subscriptions.gone) {
            let Some(entry) = self.subscriptions.remove(&key) else {
                continue;
            };
            self.tools.objects.remove_subscription(entry.id);
            self.drop_holding(&key);
            // It stays known for as long as something of it is kept: not so the values of its Secrets.
            let gone = SubscriptionEntry {
                deleted: Some(at),
                material: Material::default(),
                ..SubscriptionEntry::clone(&entry)
            };
            self.tools.registry.put_subscription(Arc::new(gone)).await;
            self.world.views.insert(key.0);
        }
        for key in std::mem::take(&mut self.world.types.gone) {
            self.types.remove(&key);
            self.world.views.insert(key.0);
        }
    }

    pub(super) async fn load_subscriptions(&mut self) {
        for key in self.world.subscriptions.dirty.clone() {
            self.load_subscription(&key).await;
        }
    }

    async fn load_subscription(&mut self, key: &Key) {
        let Some(object) = self.world.subscriptions.objects.get(key).cloned() else {
            return;
        };
        let target = target(key, &object.spec);
        let Some((resource, endpoint_resource)) = self.resource_key(key).zip(self.resource_key(&target)) else {
            return;
        };
        let ids = self
            .subscription_ids
            .get(&resource)
            .zip(self.endpoint_ids.get(&endpoint_resource));
        let Some((id, endpoint)) = ids.map(|(id, endpoint)| (*id, *endpoint)) else {
            return;
        };
        self.tools.objects.put_subscription(id, object.clone());
        let spec = self.resolved(key, &object);
        match spec.as_ref().map(|spec| &spec.delivery) {
            Some(Delivery::Pull(policy)) => self.put_pulled(endpoint, endpoint_resource, &key.0, *policy).await,
            Some(Delivery::Push { .. }) | None => self.put_missing(endpoint, &target, endpoint_resource).await,
        }
        if let Some(spec) = spec {
            let material = self.material(key, &object, &spec);
            let dead_letter = self.dead_letter(key, &spec).await;
            let before = self.subscriptions.get(key);
            let entry = SubscriptionEntry {
                id,
                key: resource,
                endpoint,
                endpoint_gauge: self.tools.registry.gauge(endpoint),
                endpoint_order: self.tools.registry.order(endpoint),
                filter_health: before
                    .filter(|before| before.spec.filter == spec.filter)
                    .map(|before| before.filter_health.clone())
                    .unwrap_or_default(),
                mailbox: matches!(spec.delivery, Delivery::Pull(_)).then(|| self.tools.registry.mailbox(id)),
                spec,
                material,
                dead_letter,
                deleted: None,
            };
            if before.is_none_or(|before| !is_same(before, &entry)) {
                let entry = Arc::new(entry);
                self.tools.registry.put_subscription(entry.clone()).await;
                self.subscriptions.insert(key.clone(), entry);
                self.world.views.insert(key.0.clone());
            }
        }
        match self.holdings.get(key).is_none_or(|holding| holding.material.is_read()) {
            true => self.world.subscriptions.loaded(key),
            false => self.world.subscriptions.known(key),
        }
    }

    /// As it is in force: its last valid form, where what is written is invalid.
    fn resolved(&self, key: &Key, object: &EventSubscription) -> Option<Arc<ResolvedSubscription>> {
        let before = self.subscriptions.get(key).map(|entry| &entry.spec);
        if let Some(before) = before
            && object.metadata.generation == Some(before.generation)
        {
            return Some(Arc::clone(before));
        }
        let unresolved = match resolve_subscription(object) {
            Ok(spec) => return Some(Arc::new(spec)),
            Err(unresolved) => unresolved,
        };
        tracing::info!(
            namespace = key.0,
            name = key.1,
            reason = unresolved.reason,
            "a subscription is invalid: its last valid form stays in use"
        );
        resolve_with_last(object, &unresolved, before.map(AsRef::as_ref)).map(Arc::new)
    }

    /// The endpoint that is told of dead letters; its messages wait while it does not exist.
    async fn dead_letter(&self, key: &Key, spec: &ResolvedSubscription) -> Option<EndpointId> {
        let target = (key.0.clone(), spec.dead_letter.as_ref()?.endpoint.clone());
        let resource = self.resource_key(&target)?;
        let id = self.endpoint_ids.get(&resource).copied()?;
        self.put_missing(id, &target, resource).await;
        Some(id)
    }

    /// In place of an endpoint: here messages wait for their consumer.
    async fn put_pulled(&self, id: EndpointId, resource: ResourceKey, namespace: &str, policy: PullPolicy) {
        let known = self.tools.registry.endpoint(id);
        if !known.is_some_and(|known| matches!(known.state, EndpointState::Pulled(before) if before == policy)) {
            self.put_endpoint(id, resource, namespace, EndpointState::Pulled(policy))
                .await;
        }
    }

    /// A subscription may name an endpoint that does not exist: the engine lets its messages wait.
    async fn put_missing(&self, id: EndpointId, key: &Key, resource: ResourceKey) {
        if is_pulled(&key.1) {
            return;
        }
        let exists = self.world.endpoints.objects.contains_key(key);
        if self.world.endpoints.versions.are_listed() && !exists && self.tools.registry.endpoint(id).is_none() {
            self.put_endpoint(id, resource, &key.0, EndpointState::Missing).await;
        }
    }

    pub(super) fn load_types(&mut self) {
        for key in self.world.types.dirty.clone() {
            if !self.world.spaces.contains_key(&key.0) {
                continue;
            }
            if let Some(object) = self.world.types.objects.get(&key) {
                let before = self.types.get(&key);
                if before.is_none_or(|before| !before.is_of(object)) {
                    let declared = Declared::new(object, before);
                    self.types.insert(key.clone(), declared);
                    self.world.views.insert(key.0.clone());
                }
            }
            self.world.types.loaded(&key);
        }
    }

    /// The policy changed: what refers to Secrets is resolved anew, and what it says of other things is in the views.
    pub(super) fn policy_changed(&mut self) {
        let Some(policy) = self.policies.borrow_and_update().clone() else {
            return;
        };
        self.policy = policy;
        self.world.touch_endpoints();
        self.world.subscriptions.dirty.extend(self.holdings.keys().cloned());
        for (name, space) in &self.world.spaces {
            let rules = self.policy.rules_for(&space.labels);
            let view = self.tools.registry.namespace(name);
            if view.is_none_or(|view| view.rules != rules) {
                self.world.views.insert(name.clone());
            }
        }
    }

    /// Builds the views that changed, and puts them up together.
    pub(super) fn build_views(&mut self) {
        let names = std::mem::take(&mut self.world.views);
        if names.is_empty() {
            return;
        }
        let views: Vec<_> = names
            .into_iter()
            .map(|name| {
                let view = self.view(&name);
                (name, view)
            })
            .collect();
        self.tools.registry.put_namespaces(views);
    }

    fn view(&self, name: &str) -> Option<NamespaceView> {
        let space = self.world.spaces.get(name)?;
        let from = (name.to_owned(), String::new());
        let subscriptions = self
            .subscriptions
            .range(from.clone()..)
            .take_while(|((n, _), _)| n == name);
        let waiting = self
            .subscriptions
            .range(from.clone()..)
            .take_while(|((n, _), _)| n == name)
            .filter(|(_, entry)| entry.mailbox.is_some())
            .map(|((_, name), entry)| (name.clone(), entry.id));
        let types = self
            .types
            .range(from..)
            .take_while(|((n, _), _)| n == name)
            .map(|(_, declared)| declared);
        Some(NamespaceView {
            uid: space.uid.clone(),
            subscriptions: Arc::new(Index::new(
                counted(&self.world.subscriptions, name, MAX_SUBSCRIPTIONS, subscriptions)
                    .map(|entry| (entry.spec.clone(), entry.clone())),
            )),
            pulled: Arc::new(waiting.collect()),
            types: Arc::new(that_count(types)),
            rules: self.policy.rules_for(&space.labels),
        })
    }

    /// After the first complete lists: what the store knows and the cluster no longer has.
    pub(super) async fn tell_of_the_gone(&mut self) {
        let at = self.tools.clock.now();
        let names: HashMap<&str, &str> = self
            .world
            .spaces
            .iter()
            .map(|(name, space)| (&*space.uid, name.as_str()))
            .collect();
        let entries = self.subscriptions.values();
        // Of one that was made anew to be pushed, what waited to be pulled is still its own.
        let left = |entry: &SubscriptionEntry| {
            let left = ResourceKey {
                namespace_uid: entry.key.namespace_uid.clone(),
                name: pulled(&entry.key.name),
            };
            self.endpoint_ids.get(&left).copied()
        };
        let named: BTreeSet<EndpointId> = entries
            .flat_map(|entry| [Some(entry.endpoint), entry.dead_letter, left(entry)])
            .flatten()
            .collect();
        let mut gone = Vec::new();
        for (resource, id) in &self.endpoint_ids {
            let is_kept = named.contains(id) || self.is_out_of_sight(resource);
            // What is pulled is its subscription's, and buried with it.
            if is_pulled(&resource.name) && !is_kept {
                continue;
            }
            if self.tools.registry.endpoint(*id).is_some() || self.by_id.contains_key(id) {
                continue;
            }
            // Whether one that a subscription still names was deleted or never created is not known after a restart:
            // waiting loses nothing, and ends with the messages' age. Of one in a namespace that is not watched (any more)
            // nothing is known at all.
            let state = if is_kept {
                EndpointState::Missing
            } else {
                EndpointState::Deleted { at }
            };
            let namespace = names
                .get(resource.namespace_uid.as_str())
                .copied()
                .unwrap_or_default()
                .to_owned();
            gone.push((*id, resource.clone(), namespace, state));
        }
        for (id, resource, namespace, state) in gone {
            self.put_endpoint(id, resource, &namespace, state).await;
        }
        for (resource, id) in &self.subscription_ids {
            if self.tools.registry.subscription(*id).is_none() && !self.is_out_of_sight(resource) {
                self.tools.registry.subscription_gone(*id, at).await;
            }
        }
    }

    /// Whether it may be in a namespace that is not watched: the store knows namespaces by their UIDs.
    fn is_out_of_sight(&self, resource: &ResourceKey) -> bool {
        let is_of = |space: &Space| *space.uid == *resource.namespace_uid;
        !self.tools.scope.is_all() && !self.world.spaces.values().any(is_of)
    }
}

/// Where a subscription's messages go: an endpoint, or what stands for one in the store.
pub(super) fn target(key: &Key, spec: &EventSubscriptionSpec) -> Key {
    let name = match &spec.endpoint_ref {
        Some(endpoint) => endpoint.name.clone(),
        None => pulled(&key.1),
    };
    (key.0.clone(), name)
}

/// The subscriptions of a namespace that events are matched against: the oldest `limit`.
fn counted<'a, T>(
    world: &Kind<EventSubscription>,
    namespace: &str,
    limit: usize,
    all: impl Iterator<Item = (&'a Key, T)>,
) -> impl Iterator<Item = T> {
    let youngest = world.census.youngest_that_counts(namespace, limit);
    all.filter(move |(key, _)| {
        let age = world.objects.get(*key).map(|object| age(&**object));
        youngest
            .as_ref()
            .is_none_or(|youngest| age.is_some_and(|age| age <= *youngest))
    })
    .map(|(_, entry)| entry)
}

fn is_same(before: &SubscriptionEntry, now: &SubscriptionEntry) -> bool {
    before.id == now.id
        && before.endpoint == now.endpoint
        && before.material == now.material
        && before.dead_letter == now.dead_letter
        && (Arc::ptr_eq(&before.spec, &now.spec) || before.spec == now.spec)
}

/// The rule of each type: of its oldest object. While that one does not compile, events of the type are not checked.
fn that_count<'a>(types: impl Iterator<Item = &'a Declared>) -> HashMap<String, Option<Arc<TypeRule>>> {
    let mut oldest: BTreeMap<&str, &Declared> = BTreeMap::new();
    for declared in types {
        let kept = oldest.entry(&declared.name).or_insert(declared);
        if declared.age < kept.age {
            *kept = declared;
        }
    }
    oldest
        .into_iter()
        .map(|(name, declared)| (name.to_owned(), declared.rule.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::names::{USE_LABEL, USE_LABEL_VALUE};
    use crate::api::resolve::{Found, Reference};
    use crate::kubernetes::scope::{Part, Scope};
    use crate::watch::load::Who;
    use crate::watch::source::Step;
    use crate::watch::world::{Input, World};

    #[test]
    fn events_are_matched_against_the_oldest_subscriptions_of_a_namespace_and_no_more() {
        let subscription = |name: &str, second: u32| -> EventSubscription {
            serde_json::from_value(
                json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
                "metadata": {"name": name, "namespace": "sales", "uid": name,
                    "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
                "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]}}),
            )
            .unwrap()
        };
        let mut world = World::of(&Scope::default());
        let listed = [("a", 3), ("b", 1), ("c", 2)].map(|(name, second)| subscription(name, second));
        world.apply(Input::Subscriptions(Part::All, Step::Listed(listed.to_vec())));
        let names = |world: &World, limit| -> Vec<String> {
            let all = world.subscriptions.objects.keys().map(|key| (key, key.1.clone()));
            counted(&world.subscriptions, "sales", limit, all).collect()
        };
        assert_eq!(names(&world, 3), ["a", "b", "c"]);
        assert_eq!(names(&world, 2), ["b", "c"]);
        world.apply(Input::Subscriptions(
            Part::All,
            Step::Gone(Box::new(subscription("c", 2))),
        ));
        assert_eq!(names(&world, 2), ["a", "b"], "the next in line is matched");
    }

    #[tokio::test]
    async fn what_nobody_can_pull_any_more_grows_old_unless_it_is_buried_with_its_subscription() {
        let dir = tempfile::tempdir().unwrap();
        let mut loader = Loader::alone(dir.path(), Scope::of(["sales".to_owned()]));
        let resource = |uid: &str, name: &str| ResourceKey {
            namespace_uid: uid.to_owned(),
            name: name.to_owned(),
        };
        let left = [("u1", "remade/pull"), ("u1", "gone/pull"), ("u2", "leads/pull")];
        let left = left.map(|(uid, name)| resource(uid, name));
        let ids = loader.tools.queue.intern_endpoints(left.to_vec()).await.unwrap();
        loader.endpoint_ids.extend(left.into_iter().zip(ids.iter().copied()));

        let space = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "sales", "uid": "u1", "resourceVersion": "9"}});
        let pushed = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": "remade", "namespace": "sales", "generation": 1},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]}});
        let part = || Part::One("sales".into());
        let space = Step::Put(serde_json::from_value(space).unwrap());
        loader.world.apply(Input::Namespaces(part(), space));
        let pushed = Step::Put(serde_json::from_value(pushed).unwrap());
        loader.world.apply(Input::Subscriptions(part(), pushed));
        loader.load().await;
        loader.tell_of_the_gone().await;
        let grows_old = |id: &EndpointId| {
            let entry = loader.tools.registry.endpoint(*id);
            entry.map(|entry| matches!(entry.state, EndpointState::Missing))
        };
        let grow_old: Vec<_> = ids.iter().map(grows_old).collect();
        assert_eq!(grow_old, [Some(true), None, Some(true)]);
    }

    #[tokio::test]
    async fn of_a_subscription_that_went_no_value_of_a_secret_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut loader = Loader::alone(dir.path(), Scope::default());
        let space = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "sales", "uid": "u1", "resourceVersion": "9"}});
        let space = serde_json::from_value(space).unwrap();
        loader.world.apply(Input::Namespaces(Part::All, Step::Put(space)));
        let shaped: EventSubscription = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": "sales", "generation": 1},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"], "request": {
                "body": "secrets.token",
                "secrets": [{"name": "token", "secretKeyRef": {"name": "crm", "key": "token"}}],
            }},
        }))
        .unwrap();
        let put = Step::Put(Box::new(shaped.clone()));
        loader.world.apply(Input::Subscriptions(Part::All, put));
        loader.load().await;
        let found = Found {
            labels: [(USE_LABEL.to_owned(), USE_LABEL_VALUE.to_owned())]
                .into_iter()
                .collect(),
            data: [("token".to_owned(), b"very-secret".to_vec().into())]
                .into_iter()
                .collect(),
            ..Found::default()
        };
        let who = Who::Subscription(("sales".to_owned(), "leads".to_owned()));
        let read = (Reference::secret("crm"), Ok(("1".to_owned(), Arc::new(found))));
        loader.finish(Ok((who, vec![read])));
        loader.load().await;
        let id = *loader.subscription_ids.values().next().unwrap();
        let material = |loader: &Loader| loader.tools.registry.subscription(id).unwrap().material.clone();
        let Material::Ready(secrets) = material(&loader) else {
            panic!("{:?}", material(&loader))
        };
        assert_eq!(secrets.iter().collect::<Vec<_>>(), [("token", "very-secret")]);

        loader
            .world
            .apply(Input::Subscriptions(Part::All, Step::Gone(Box::new(shaped))));
        loader.load().await;
        assert_eq!(material(&loader), Material::default());
        assert_eq!(Arc::strong_count(&secrets), 1, "nobody else holds them");
    }
}
