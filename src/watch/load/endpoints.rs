//! Endpoints: from the watched object and what it refers to, to the registry.
//!
//! Invariant: an endpoint whose new spec refers to something never read is not sent to; one whose Secret was spoilt goes on
//! with the last values that were good.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;
use tokio::time::Instant;

use super::holding::Holding;
use super::{Loader, SERVICE_PATIENCE, Who};
use crate::api::WebhookEndpoint;
use crate::api::names::ENABLE_REQUESTED;
use crate::api::policy::NamespaceRules;
use crate::api::resolve::{
    EgressRules, Fifo, FoundService, References, ServiceRoute, Unresolved, resolve_endpoint, resolve_ordering, uses_of,
};
use crate::api::status::{ReferenceKind, is_unseen};
use crate::ids::EndpointId;
use crate::kubernetes::services::Services;
use crate::queue::ResourceKey;
use crate::registry::{EndpointEntry, EndpointState};
use crate::schedule::MAX_AGE;
use crate::watch::fetch;
use crate::watch::world::Key;

/// What the loader knows of one endpoint.
#[derive(Debug)]
pub struct Endpoint {
    object: Arc<WebhookEndpoint>,
    pub holding: Holding,
    pub id: Option<EndpointId>,
    /// How its messages are ordered, as the spec last said validly.
    fifo: Option<Arc<Fifo>>,
    /// What the registry was told last.
    told: Option<Told>,
    /// Held back for what it refers to, until its patience ends.
    patient: bool,
    service: Awaited,
}

/// Whether it is held back for its Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Awaited {
    #[default]
    No,
    Until(Instant),
    /// Waited for in vain.
    NoLonger,
}

/// Enough of what was told to see that there is no news: a status write must not reach the engine as a change.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    id: EndpointId,
    uid: Option<String>,
    generation: Option<i64>,
    enable_request: Option<String>,
    versions: Vec<Option<String>>,
    egress: Arc<EgressRules>,
    service: Option<Arc<ServiceRoute>>,
    unusable: Option<(&'static str, String)>,
}

impl Endpoint {
    fn new(object: Arc<WebhookEndpoint>, now: Instant) -> Endpoint {
        let mut endpoint = Endpoint {
            object: object.clone(),
            holding: Holding::new(now),
            id: None,
            fifo: None,
            told: None,
            patient: false,
            service: Awaited::No,
        };
        endpoint.observe(object, true, now);
        endpoint
    }

    fn observe(&mut self, object: Arc<WebhookEndpoint>, is_new_spec: bool, now: Instant) {
        let status = object.status.as_ref();
        let versions = status.map(|s| s.references.as_slice()).unwrap_or_default();
        self.holding.observe(uses_of(&object), versions, is_new_spec, now);
        if is_new_spec {
            self.fifo = match resolve_ordering(&object.spec.ordering) {
                Ok(fifo) => fifo.map(Arc::new),
                Err(_) => self.fifo.take().or_else(|| Some(Arc::new(Fifo::strictest()))),
            };
        }
        self.object = object;
    }

    fn is_unseen(&self) -> bool {
        is_unseen(
            self.object
                .status
                .as_ref()
                .and_then(|status| status.observed_generation),
        )
    }

    /// Whether the Service that it names may be older here than what the controller calls Ready. What is in use already
    /// waits for nobody, and nobody waits for ever.
    fn awaits_its_service(&mut self, services: &Services, now: Instant) -> bool {
        let is_ahead = self.is_ahead_of_its_service(services);
        self.service = match self.service {
            _ if !is_ahead => Awaited::No,
            Awaited::No => Awaited::Until(now + SERVICE_PATIENCE),
            Awaited::Until(end) if end <= now => {
                let name = self.object.name_any();
                tracing::warn!(
                    name,
                    "its Service is older here than the controller saw it: does the watch of Services fail?"
                );
                Awaited::NoLonger
            }
            before => before,
        };
        matches!(self.service, Awaited::Until(_))
    }

    fn is_ahead_of_its_service(&self, services: &Services) -> bool {
        let Some(reference) = &self.object.spec.service_ref else {
            return false;
        };
        let is_in_use = self
            .told
            .as_ref()
            .is_some_and(|told| told.generation == self.object.metadata.generation && told.unusable.is_none());
        let status = self.object.status.as_ref();
        let told = status.map(|status| status.references.as_slice()).unwrap_or_default();
        let version = fetch::version_in(told, ReferenceKind::Service, &reference.name);
        let namespace = self.object.metadata.namespace.as_deref().unwrap_or_default();
        !is_in_use && !services.has_seen(namespace, version.as_deref())
    }

    /// Whether it is held back: its Secret is being made or granted.
    fn has_patience(&mut self, now: Instant) -> bool {
        self.patient = self.told.is_none() && !self.holding.material.is_settled(self.holding.references(), now);
        self.patient
    }

    /// When something is to be done without being told: a read, or publishing as it is.
    pub fn next_timer(&self) -> Option<Instant> {
        let waits = self.patient && self.holding.material.is_read();
        let patience = waits.then(|| self.holding.material.settles_at());
        let service = match self.service {
            Awaited::Until(end) => Some(end),
            Awaited::No | Awaited::NoLonger => None,
        };
        [self.holding.material.due(), patience, service]
            .into_iter()
            .flatten()
            .min()
    }

    /// Resolves it, or says how it cannot be used.
    fn resolve(
        &mut self,
        rules: &NamespaceRules,
        over_quota: Option<u32>,
        service: Option<&FoundService>,
    ) -> EndpointState {
        let Endpoint { object, holding, .. } = self;
        let resolve = |references: &References| resolve_endpoint(object, references, &rules.egress, service);
        let resolved = match over_quota {
            Some(limit) => Err(Unresolved::over_quota(limit)),
            None => holding.resolve(rules.secret_label, resolve),
        };
        match resolved {
            Ok(resolved) => EndpointState::Usable(Arc::new(resolved)),
            Err(unresolved) => EndpointState::Unusable {
                reason: unresolved.reason,
                message: unresolved.message,
                generation: object.metadata.generation.unwrap_or(0),
                suspend: object.spec.suspend,
                max_age: object.spec.retry.max_age.parse().unwrap_or(MAX_AGE),
            },
        }
    }

    fn news(&self, id: EndpointId, state: &EndpointState, rules: &NamespaceRules) -> Told {
        Told {
            id,
            uid: self.object.metadata.uid.clone(),
            generation: self.object.metadata.generation,
            enable_request: self.object.annotations().get(ENABLE_REQUESTED).cloned(),
            versions: self.holding.versions(),
            egress: Arc::clone(&rules.egress),
            service: match state {
                EndpointState::Usable(resolved) => resolved.target.service.clone(),
                _ => None,
            },
            unusable: match state {
                EndpointState::Unusable { reason, message, .. } => Some((reason, message.clone())),
                _ => None,
            },
        }
    }
}

impl Loader {
    /// Where a namespace has a quota of endpoints, one that comes or goes may decide about others.
    pub(super) fn touch_those_with_a_quota(&mut self) {
        let endpoints = &self.world.endpoints;
        let new = endpoints.dirty.iter().filter(|key| !self.endpoints.contains_key(*key));
        let spaces: BTreeSet<String> = endpoints.gone.iter().chain(new).map(|key| key.0.clone()).collect();
        for name in spaces {
            let space = self.world.spaces.get(&name);
            if space.is_some_and(|space| self.policy.rules_for(&space.labels).quotas.endpoints.is_some()) {
                self.world.endpoints.touch(&name);
            }
        }
    }

    /// Endpoints that went: the engine buries their messages five minutes later, unless a namesake comes.
    pub(super) async fn lose_endpoints(&mut self) {
        for key in std::mem::take(&mut self.world.endpoints.gone) {
            let Some(endpoint) = self.endpoints.remove(&key) else {
                continue;
            };
            if let Some(timer) = endpoint.holding.timer {
                self.timers.remove(&(timer, Who::Endpoint(key.clone())));
            }
            let Some(id) = endpoint.id else { continue };
            self.by_id.remove(&id);
            self.tools.objects.remove_endpoint(id);
            let before = self.tools.registry.endpoint(id);
            // The name may be another namespace's by now.
            let is_its = |resource: &ResourceKey| self.endpoint_ids.get(resource) == Some(&id);
            let resource = before
                .map(|entry| entry.key.clone())
                .or_else(|| self.resource_key(&key).filter(is_its));
            if let Some(resource) = resource {
                let at = self.tools.clock.now();
                self.put_endpoint(id, resource, &key.0, EndpointState::Deleted { at })
                    .await;
            }
        }
    }

    pub(super) async fn load_endpoints(&mut self) {
        for key in self.world.endpoints.dirty.clone() {
            self.see_endpoint(&key);
            let Some(space) = self.world.spaces.get(&key.0) else {
                continue;
            };
            let rules = self.policy.rules_for(&space.labels);
            self.load_endpoint(&key, &rules).await;
            self.reschedule(&Who::Endpoint(key));
        }
    }

    /// Notes the object as it is now.
    fn see_endpoint(&mut self, key: &Key) {
        let Some(object) = self.world.endpoints.objects.get(key).cloned() else {
            return;
        };
        let (now, pace) = (Instant::now(), self.pace());
        match self.endpoints.get_mut(key) {
            None => {
                let mut endpoint = Endpoint::new(object, now);
                if endpoint.is_unseen() {
                    // Its Secret and its grant are most likely on their way: the controller's status tells.
                    endpoint.holding.material.not_before(now + pace);
                }
                self.endpoints.insert(key.clone(), Box::new(endpoint));
            }
            Some(endpoint) if Arc::ptr_eq(&endpoint.object, &object) => {}
            Some(endpoint) => {
                let is_new_spec = endpoint.object.metadata.generation != object.metadata.generation;
                endpoint.observe(object, is_new_spec, now);
            }
        }
        self.reschedule(&Who::Endpoint(key.clone()));
    }

    async fn load_endpoint(&mut self, key: &Key, rules: &NamespaceRules) {
        let Some(resource) = self.resource_key(key) else { return };
        let Some(id) = self.endpoint_ids.get(&resource).copied() else {
            return;
        };
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        endpoint.id = Some(id);
        self.by_id.insert(id, key.clone());
        // Before anything else of it is usable: messages are accepted already.
        self.tools.registry.order(id).store(endpoint.fifo.clone());
        self.tools.objects.put_endpoint(id, endpoint.object.clone());
        endpoint.holding.heed(rules.secret_label, Instant::now());
        if !endpoint.holding.material.is_read() {
            // Its read, when it ends, has it loaded anew. One that the controller has not looked at holds back no others.
            match endpoint.told.is_none() && endpoint.is_unseen() {
                true => self.world.endpoints.loaded(key),
                false => self.world.endpoints.known(key),
            }
            return;
        }
        if endpoint.has_patience(Instant::now()) {
            // The controller does not call it Ready before, and no message of it is tried before. It must not hold back the
            // others.
            self.world.endpoints.loaded(key);
            return;
        }
        if endpoint.awaits_its_service(&self.world.services, Instant::now()) {
            // The watch of Services brings it, and has the endpoint loaded anew.
            self.world.endpoints.known(key);
            return;
        }
        let census = &self.world.endpoints.census;
        let is_beyond = |limit: &u32| census.is_beyond(&*endpoint.object, *limit as usize);
        let over_quota = rules.quotas.endpoints.filter(is_beyond);
        let named = endpoint.object.spec.service_ref.as_ref();
        let service = named.and_then(|named| self.world.services.get(&key.0, &named.name));
        let state = endpoint.resolve(rules, over_quota, service.map(Arc::as_ref));
        let told = endpoint.news(id, &state, rules);
        if endpoint.told.as_ref() != Some(&told) {
            endpoint.told = Some(told);
            self.put_endpoint(id, resource, &key.0, state).await;
        }
        self.world.endpoints.loaded(key);
    }

    pub(super) async fn put_endpoint(&self, id: EndpointId, key: ResourceKey, namespace: &str, state: EndpointState) {
        let entry = EndpointEntry {
            id,
            key,
            namespace: namespace.to_owned(),
            gauge: self.tools.registry.gauge(id),
            state,
        };
        self.tools.registry.put_endpoint(entry).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::api::core::v1::Namespace;
    use kube::core::PartialObjectMeta;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::EventSubscription;
    use crate::api::conditions::reasons;
    use crate::api::names::{USE_LABEL, USE_LABEL_VALUE};
    use crate::api::policy::SecretLabel;
    use crate::api::resolve::{Found, Reference};
    use crate::clock::Clock;
    use crate::ids::UnixMillis;
    use crate::kubernetes::scope::{Part, Scope};
    use crate::watch::material::Trouble;
    use crate::watch::source::Step;
    use crate::watch::world::Input;

    fn found(is_open: bool, data: &[(&str, &str)]) -> Found {
        let label = (USE_LABEL.to_owned(), USE_LABEL_VALUE.to_owned());
        let bytes = |(key, value): &(&str, &str)| ((*key).to_owned(), value.as_bytes().to_vec().into());
        Found {
            labels: is_open.then_some(label).into_iter().collect(),
            data: data.iter().map(bytes).collect(),
            ..Found::default()
        }
    }

    fn object(spec: Value) -> WebhookEndpoint {
        serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "WebhookEndpoint",
            "metadata": {"name": "crm", "namespace": "sales", "generation": 1},
            "spec": spec,
        }))
        .unwrap()
    }

    /// An endpoint whose token is in one Secret and whose header is in another.
    fn endpoint() -> Endpoint {
        let from = |name: &str| json!({"name": name, "key": "value"});
        let object = object(json!({
            "url": "https://hooks.example.com/",
            "signing": {"scheme": "None"},
            "auth": {"type": "Bearer", "bearer": {"secretKeyRef": from("token")}},
            "headers": [{"name": "x-team", "secretKeyRef": from("header")}],
        }));
        Endpoint::new(Arc::new(object), Instant::now())
    }

    /// What the registry would be told after these Secrets were read.
    fn state(endpoint: &mut Endpoint, version: &str, token: Found, header: Found) -> EndpointState {
        let read = |name: &str, found| (Reference::secret(name), Ok((version.to_owned(), Arc::new(found))));
        endpoint.holding.material.start();
        let reads = vec![read("token", token), read("header", header)];
        endpoint.holding.material.finish(reads, Instant::now(), Duration::ZERO);
        endpoint.resolve(&NamespaceRules::default(), None, None)
    }

    #[test]
    fn a_spoilt_secret_goes_on_with_its_last_good_value_but_opens_no_other_secret() {
        let mut endpoint = endpoint();
        let good = || found(true, &[("value", "a")]);
        let spoilt = || found(true, &[]);
        assert!(matches!(
            state(&mut endpoint, "1", good(), good()),
            EndpointState::Usable(_)
        ));
        assert!(matches!(
            state(&mut endpoint, "2", good(), spoilt()),
            EndpointState::Usable(_)
        ));
        assert!(matches!(
            state(&mut endpoint, "3", spoilt(), spoilt()),
            EndpointState::Usable(_)
        ));
        for (token, header) in [
            (found(false, &[("value", "a")]), spoilt()),
            (spoilt(), found(false, &[("value", "a")])),
            (found(false, &[]), spoilt()),
        ] {
            let state = state(&mut endpoint, "4", token, header);
            assert!(matches!(state, EndpointState::Unusable { .. }), "{state:?}");
        }
        assert!(
            matches!(state(&mut endpoint, "5", good(), spoilt()), EndpointState::Usable(_)),
            "opened again"
        );
    }

    #[test]
    fn patience_has_a_timer_and_so_has_waiting_for_a_service() {
        let mut endpoint = endpoint();
        endpoint.id = Some(EndpointId(1));
        let now = Instant::now();
        let denied = ["token", "header"].map(|name| (Reference::secret(name), Err(Trouble::Denied)));
        endpoint.holding.material.start();
        endpoint.holding.material.finish(denied.to_vec(), now, Duration::ZERO);
        endpoint.holding.material.start();
        let settles_at = endpoint.holding.material.settles_at();
        assert!(endpoint.has_patience(now));
        assert_eq!(endpoint.next_timer(), Some(settles_at));
        assert!(!endpoint.has_patience(settles_at));
        assert_eq!(endpoint.next_timer(), None);

        let spec = json!({"serviceRef": {"name": "receiver", "port": 80}, "signing": {"scheme": "None"}});
        let mut endpoint = Endpoint::new(Arc::new(object(spec)), now);
        endpoint.id = Some(EndpointId(2));
        let mut services = Services::of(&Scope::default());
        assert!(!endpoint.has_patience(now) && endpoint.awaits_its_service(&services, now));
        let end = now + SERVICE_PATIENCE;
        assert_eq!(endpoint.next_timer(), Some(end));
        assert!(endpoint.awaits_its_service(&services, end - Duration::from_millis(1)));
        for later in [end, end + SERVICE_PATIENCE] {
            assert!(
                !endpoint.awaits_its_service(&services, later),
                "it holds back no others for ever"
            );
            assert_eq!(endpoint.next_timer(), None);
        }
        services.apply(&Part::All, Event::Init);
        services.apply(&Part::All, Event::InitDone);
        assert!(!endpoint.awaits_its_service(&services, end));
        assert_eq!(endpoint.service, Awaited::No, "of the next change it is patient again");
    }

    #[tokio::test]
    async fn in_a_namespace_made_anew_nothing_goes_on_under_the_ids_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut loader = Loader::alone(dir.path(), Scope::default());
        let space = |uid: &str| -> Box<PartialObjectMeta<Namespace>> {
            let metadata = json!({"name": "sales", "uid": uid, "resourceVersion": "9"});
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})).unwrap()
        };
        let put = |uid: &str| Input::Namespaces(Part::All, Step::Put(space(uid)));
        let gone = |uid: &str| Input::Namespaces(Part::All, Step::Gone(space(uid)));
        let endpoint = object(json!({"url": "https://hooks.example.com/", "signing": {"scheme": "None"}}));
        let subscription: EventSubscription = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": "sales", "generation": 1},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]},
        }))
        .unwrap();
        // Whether the endpoint and the subscription that have ids of this namespace are deleted.
        let are_deleted = |loader: &Loader, uid: &str| {
            let key = |name: &str| ResourceKey {
                namespace_uid: uid.to_owned(),
                name: name.to_owned(),
            };
            let registry = &loader.tools.registry;
            let endpoint = registry.endpoint(loader.endpoint_ids[&key("crm")]).unwrap();
            let subscription = registry.subscription(loader.subscription_ids[&key("leads")]).unwrap();
            let is_deleted = matches!(endpoint.state, EndpointState::Deleted { .. });
            (is_deleted, subscription.deleted.is_some())
        };
        for input in [
            put("u1"),
            Input::Endpoints(Part::All, Step::Put(Box::new(endpoint))),
            Input::Subscriptions(Part::All, Step::Put(Box::new(subscription))),
        ] {
            loader.world.apply(input);
        }
        loader.load().await;
        assert_eq!(are_deleted(&loader, "u1"), (false, false));

        // Of the first one it is missed that it went; the endpoint and the subscription are seen as they were all the while.
        loader.world.apply(put("u2"));
        loader.load().await;
        assert_eq!(are_deleted(&loader, "u1"), (true, true));
        assert_eq!(are_deleted(&loader, "u2"), (false, false));
        loader.world.apply(gone("u2"));
        loader.world.apply(put("u3"));
        loader.load().await;
        assert_eq!(are_deleted(&loader, "u2"), (true, true));
        assert_eq!(are_deleted(&loader, "u3"), (false, false));
        assert_eq!(loader.by_id.len(), 1);
        loader.world.apply(gone("u3"));
        loader.load().await;
        assert_eq!(are_deleted(&loader, "u3"), (true, true));
        assert!(loader.endpoints.is_empty() && loader.subscriptions.is_empty() && loader.by_id.is_empty());
    }

    #[tokio::test]
    async fn what_goes_is_deleted_at_the_engines_time_whatever_the_system_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut loader = Loader::alone(dir.path(), Scope::default());
        let now = UnixMillis(1_800_000_000_000);
        loader.tools.clock = Arc::new(Clock::manual(now));
        let space = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "sales", "uid": "u1", "resourceVersion": "9"}});
        let space = Step::Put(serde_json::from_value(space).unwrap());
        let endpoint = object(json!({"url": "https://hooks.example.com/", "signing": {"scheme": "None"}}));
        let subscription: EventSubscription = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": "sales", "generation": 1},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]},
        }))
        .unwrap();
        loader.world.apply(Input::Namespaces(Part::All, space));
        let put = Step::Put(Box::new(endpoint.clone()));
        loader.world.apply(Input::Endpoints(Part::All, put));
        let put = Step::Put(Box::new(subscription.clone()));
        loader.world.apply(Input::Subscriptions(Part::All, put));
        loader.load().await;
        let gone = Step::Gone(Box::new(endpoint));
        loader.world.apply(Input::Endpoints(Part::All, gone));
        let gone = Step::Gone(Box::new(subscription));
        loader.world.apply(Input::Subscriptions(Part::All, gone));
        loader.load().await;
        let registry = &loader.tools.registry;
        let endpoint = registry
            .endpoint(*loader.endpoint_ids.values().next().unwrap())
            .unwrap();
        assert!(
            matches!(endpoint.state, EndpointState::Deleted { at } if at == now),
            "{endpoint:?}"
        );
        let subscription = registry.subscription(*loader.subscription_ids.values().next().unwrap());
        assert_eq!(subscription.unwrap().deleted, Some(now));
    }

    #[test]
    fn what_was_left_out_for_want_of_the_label_is_read_once_none_is_asked_for() {
        let mut endpoint = endpoint();
        let now = Instant::now();
        let withheld = || Found {
            withheld: true,
            ..Found::default()
        };
        let closed = state(&mut endpoint, "1", withheld(), found(true, &[("value", "a")]));
        assert!(
            matches!(closed, EndpointState::Unusable { reason, .. } if reason == reasons::SECRET_NOT_ALLOWED),
            "{closed:?}"
        );
        endpoint.holding.heed(SecretLabel::Required, now);
        assert_eq!(endpoint.holding.material.due(), None);
        let rules = NamespaceRules {
            secret_label: SecretLabel::NotRequired,
            ..NamespaceRules::default()
        };
        let unread = endpoint.resolve(&rules, None, None);
        assert!(
            matches!(unread, EndpointState::Unusable { reason, .. } if reason == reasons::SECRET_UNAVAILABLE),
            "{unread:?}"
        );
        endpoint.holding.heed(rules.secret_label, now);
        assert_eq!(endpoint.holding.material.due(), Some(now));
        assert!(!endpoint.holding.material.is_read(), "it is loaded after that read");
        // While it cannot be read nothing is hurried.
        let away = (Reference::secret("token"), Err(Trouble::Away));
        endpoint.holding.material.start();
        endpoint.holding.material.finish(vec![away], now, Duration::ZERO);
        let due = endpoint.holding.material.due();
        endpoint.holding.heed(rules.secret_label, now);
        assert!(due > Some(now) && endpoint.holding.material.due() == due);
    }

    #[test]
    fn a_key_that_is_used_only_now_is_as_it_is_where_another_secret_is_spoilt() {
        let mut endpoint = endpoint();
        let good = || found(true, &[("value", "a")]);
        state(&mut endpoint, "1", good(), good());
        let mut changed = WebhookEndpoint::clone(&endpoint.object);
        let auth = changed.spec.auth.as_mut().unwrap();
        auth.bearer.as_mut().unwrap().secret_key_ref.key = "new".to_owned();
        endpoint.observe(Arc::new(changed), true, Instant::now());
        let token = found(true, &[("new", "b")]);
        let EndpointState::Usable(resolved) = state(&mut endpoint, "2", token, found(true, &[])) else {
            panic!("the header has its last good value")
        };
        let values: Vec<&str> = resolved
            .headers
            .iter()
            .map(|(_, value)| value.to_str().unwrap())
            .collect();
        assert_eq!(values, ["a", "Bearer b"]);
    }
}
