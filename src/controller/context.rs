//! What every reconcile shares.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, ArcSwapOption};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Config;
use super::conditions::transition;
use super::fleet::Fleet;
use super::grants::apply::Known;
use super::grants::{Grantee, Wanted};
use super::memory::Memory;
use super::metrics::Write;
use super::queue::{Namespaced, Queue};
use super::references::References;
use super::stored::Stored;
use super::watches::Writers;
use super::work::Failures;
use crate::api::census::Census;
use crate::api::policy::{NamespaceRules, Policy};
use crate::api::resolve::FoundService;
use crate::api::{EventSubscription, EventType, Replay, WebhookEndpoint};
use crate::clock::Clock;
use crate::kubernetes::budget::Budget;
use crate::kubernetes::events::{self, Happening, Kind, Reporter};
use crate::kubernetes::lease::Liveness;
use crate::kubernetes::services::Services;

/// What there is to reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Namespace and name.
    Endpoint(String, String),
    Subscription(String, String),
    EventType(String, String),
    Replay(String, String),
    /// The dispatcher's Roles in a namespace.
    Grants(String),
}

impl Key {
    /// The metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            Key::Endpoint(..) => "endpoint",
            Key::Subscription(..) => "subscription",
            Key::EventType(..) => "eventtype",
            Key::Replay(..) => "replay",
            Key::Grants(..) => "grants",
        }
    }
}

impl Namespaced for Key {
    fn namespace(&self) -> &str {
        match self {
            Key::Endpoint(namespace, _)
            | Key::Subscription(namespace, _)
            | Key::EventType(namespace, _)
            | Key::Replay(namespace, _)
            | Key::Grants(namespace) => namespace,
        }
    }
}

/// The watched objects.
pub struct Stores {
    pub endpoints: Stored<WebhookEndpoint>,
    pub subscriptions: Stored<EventSubscription>,
    pub event_types: Stored<EventType>,
    pub replays: Stored<Replay>,
    pub namespaces: Stored<Namespace>,
    pub leases: Store<Lease>,
}

/// What the policy says of a namespace.
pub struct Rules {
    pub said: Arc<NamespaceRules>,
    /// Digest of the policy that says it: dispatchers must go by the same one.
    pub policy: Arc<str>,
}

/// The grants in one namespace.
#[derive(Default)]
pub struct Granted {
    /// The namespace's UID: one that is made anew under its name has none of the Roles of before.
    uid: Option<String>,
    /// What the dispatcher may read for certain; whoever asks does not wait for what is being written.
    pub covered: ArcSwapOption<Wanted>,
    /// Held by whoever writes them.
    pub work: tokio::sync::Mutex<Grants>,
}

impl Granted {
    /// Those of a namespace; none are known of another one under the same name.
    fn of(all: &mut HashMap<String, Arc<Granted>>, namespace: &str, uid: Option<String>) -> Arc<Granted> {
        let granted = all.entry(namespace.to_owned()).or_default();
        if granted.uid != uid {
            *granted = Arc::new(Granted {
                uid,
                ..Granted::default()
            });
        }
        granted.clone()
    }
}

/// What is known of them.
#[derive(Default)]
pub struct Grants {
    pub known: Known,
    /// When they were written or checked last.
    pub written: Option<Instant>,
    /// When they are to be checked: somebody else may have changed them.
    pub check: Option<Instant>,
    /// Endpoints that asked to be looked at, and the values they did it with.
    pub asked: BTreeSet<(String, String)>,
}

/// One leadership's state: a new leader begins with the policy alone and reads everything else.
pub struct Context {
    pub config: Arc<Config>,
    pub client: Client,
    pub stores: Stores,
    pub services: watch::Sender<Services>,
    pub writers: Mutex<Option<Writers>>,
    pub queue: Queue<Key>,
    pub failures: Failures,
    pub budget: Budget,
    pub references: References,
    pub memory: Memory,
    /// The last valid one.
    pub policy: ArcSwap<Policy>,
    /// Which endpoints and which subscriptions count where only so many may.
    pub endpoints: Mutex<Census>,
    pub subscriptions: Mutex<Census>,
    pub fleet: Mutex<Fleet>,
    pub liveness: Mutex<Liveness>,
    /// What waits for a dispatcher to load it.
    pub waiting: Mutex<BTreeSet<Key>>,
    pub granted: Mutex<HashMap<String, Arc<Granted>>>,
    pub grantee: Grantee,
    pub clock: Clock,
    reporter: Reporter,
}

impl Context {
    /// Nothing read yet but the policy.
    pub fn new(config: Arc<Config>, policy: Arc<Policy>) -> Context {
        let (writers, stores) = Writers::new(&config.scope);
        Context {
            client: config.client.clone(),
            stores,
            services: watch::Sender::new(Services::of(&config.scope)),
            writers: Mutex::new(Some(writers)),
            queue: Queue::default(),
            failures: Failures::default(),
            budget: Budget::new(config.writes_per_second, super::WRITE_BURST),
            references: References::default(),
            memory: Memory::default(),
            policy: ArcSwap::new(policy),
            endpoints: Mutex::default(),
            subscriptions: Mutex::default(),
            fleet: Mutex::default(),
            liveness: Mutex::default(),
            waiting: Mutex::default(),
            granted: Mutex::default(),
            grantee: Grantee {
                namespace: config.namespace.clone(),
                service_account: config.dispatcher_service_account.clone(),
            },
            clock: Clock::System,
            reporter: Reporter {
                controller: "tidings.dev/controller",
                instance: config.identity.clone(),
            },
            config,
        }
    }

    /// With nothing configured but where the API server is.
    #[cfg(test)]
    pub fn alone(client: Client) -> Context {
        let config = Config {
            client,
            namespace: "tidings-system".into(),
            identity: "one".into(),
            policy: None,
            scope: crate::kubernetes::scope::Scope::default(),
            dispatcher_service_account: "tidings-dispatcher".into(),
            writes_per_second: 50,
            metrics: super::metrics::Metrics::default(),
            gate: crate::telemetry::health::Health::of("controller").gate("controller", "a test"),
        };
        Context::new(Arc::new(config), Arc::default())
    }

    /// The time that keys are made and retired by: a jump of the system's counts only when it lasts.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.clock.now().0).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// A namespace's labels, for the policy; none when it is gone or going.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        let namespace = self.stores.namespaces.get(&ObjectRef::new(name))?;
        namespace.metadata.deletion_timestamp.is_none().then_some(namespace)
    }

    /// What the policy says of a namespace, while it exists.
    pub fn rules(&self, namespace: &str) -> Option<Rules> {
        let namespace = self.namespace(namespace)?;
        let policy = self.policy.load();
        Some(Rules {
            said: policy.rules_for(namespace.labels()),
            policy: policy.digest().clone(),
        })
    }

    /// An endpoint, if it exists.
    pub fn endpoint(&self, namespace: &str, name: &str) -> Option<Arc<WebhookEndpoint>> {
        self.stores.endpoints.get(&ObjectRef::new(name).within(namespace))
    }

    /// A Service, if it exists.
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<FoundService>> {
        self.services.borrow().get(namespace, name).cloned()
    }

    /// Takes one write from the budget and counts it.
    pub async fn spend(&self, what: &'static str) {
        self.budget.take().await;
        self.config.metrics.writes.get_or_create(&Write { what }).inc();
    }

    /// Tells Kubernetes of a transition; that it could not is no reason to fail.
    pub async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, happening: &Happening) {
        let regarding: ObjectReference = object.object_ref(&());
        self.spend("event").await;
        if let Err(error) = events::publish(&self.client, &self.reporter, regarding, happening).await {
            tracing::warn!(reason = happening.reason, %error, "failed to create an Event");
        }
    }

    /// Tells of a changed Ready, where it is worth an Event.
    pub async fn tell_of_ready<K: Resource<DynamicType = ()>>(
        &self,
        key: &Key,
        object: &K,
        previous: &[Condition],
        new: &[Condition],
    ) {
        if let Some(happening) = transition(previous, new, self.memory.told_of_trouble(key)) {
            let is_trouble = happening.kind == Kind::Warning;
            self.memory.update(key, |seen| seen.told_of_trouble = is_trouble);
            self.tell(object, &happening).await;
        }
    }

    /// The grants of a namespace.
    pub fn granted(&self, namespace: &str) -> Arc<Granted> {
        let uid = self.namespace(namespace).and_then(|namespace| namespace.uid());
        let mut all = self.granted.lock().unwrap_or_else(|e| e.into_inner());
        Granted::of(&mut all, namespace, uid)
    }

    /// Has `key` looked at when a dispatcher has loaded more, or no longer.
    pub fn wait_for_dispatcher(&self, key: Key, waits: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        if waits {
            waiting.insert(key);
        } else {
            waiting.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_granted_in_a_namespace_is_forgotten_when_another_one_has_its_name() {
        let mut all = HashMap::new();
        let first = Granted::of(&mut all, "team", Some("1".into()));
        first.covered.store(Some(Arc::new(Wanted::default())));
        let is_covered = |granted: &Granted| granted.covered.load().is_some();
        assert!(is_covered(&Granted::of(&mut all, "team", Some("1".into()))));
        assert!(!is_covered(&Granted::of(&mut all, "other", Some("2".into()))));
        assert!(!is_covered(&Granted::of(&mut all, "team", Some("3".into()))));
        assert_eq!(all.len(), 2);
    }
}
