//! The loader: takes in what the watches saw, reads what it refers to, and keeps the registry in step.
//!
//! One task owns all of it and alone writes the registry. It knows nothing of messages. Invariant: an object counts as
//! loaded only after the registry has it, and what cannot be loaded anew stays as it was.

mod endpoints;
mod holding;
mod others;
mod requests;
mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Loaded;
use super::fetch::{self, Reads};
use super::metrics::Metrics;
use super::objects::Objects;
use super::world::{Input, Key, World, of_namespace};
use crate::api::policy::{Policy, SecretLabel};
use crate::clock::Clock;
use crate::config;
use crate::ids::{EndpointId, SubscriptionId};
use crate::kubernetes::scope::Scope;
use crate::queue::{Queue, QueueError, ResourceKey};
use crate::registry::{Registry, SubscriptionEntry};
use endpoints::Endpoint;
use holding::Holding;
use others::Declared;
use shared::Shared;

/// Reads of Secrets and ConfigMaps at once: enough to fill the registry quickly, too few to hurt an API server that has
/// just come back.
const READS_AT_ONCE: usize = 16;
/// The least pause before a read that is a guess (one that failed, one the controller has not looked at), for each object
/// that waits for something: of ten thousand applied together, those the controller has seen to must not stand behind others.
const EACH_WAITING: Duration = Duration::from_millis(20);
/// Steps taken in before the registry is brought in step: a burst of changes builds a namespace's index once.
const STEPS_AT_ONCE: usize = 1024;
/// Due reads looked at to find those whose messages wait.
const LOOKED_AT: usize = 1024;
/// How long the first readiness waits for the Secrets of all endpoints; those still missing are loaded as they come.
const FIRST_READS: Duration = Duration::from_secs(2);
/// How long an endpoint waits to see its Service as the controller saw it, and holds back what is seen after it: two watches
/// of one API server are this far apart only when one of them does not work.
const SERVICE_PATIENCE: Duration = Duration::from_secs(10);
/// The pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What the loader works with.
pub struct Tools {
    pub client: kube::Client,
    pub queue: Arc<dyn Queue>,
    pub registry: Arc<Registry>,
    pub scope: Scope,
    pub clock: Arc<Clock>,
    pub objects: Arc<Objects>,
    pub loaded: watch::Sender<Loaded>,
    pub metrics: Metrics,
}

/// Whose references are read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Endpoint(Key),
    Subscription(Key),
}

impl Who {
    fn namespace(&self) -> &str {
        match self {
            Who::Endpoint((namespace, _)) | Who::Subscription((namespace, _)) => namespace,
        }
    }
}

/// The loader.
pub struct Loader {
    tools: Tools,
    /// The administrator's policy, by which everything in the registry was resolved.
    policy: Arc<Policy>,
    /// What it is to be.
    policies: config::Latest,
    world: World,
    /// Boxed: a map of thousands is a third empty.
    endpoints: BTreeMap<Key, Box<Endpoint>>,
    subscriptions: BTreeMap<Key, Arc<SubscriptionEntry>>,
    /// Of the subscriptions that refer to Secrets.
    holdings: BTreeMap<Key, Holding>,
    shared: Shared,
    types: BTreeMap<Key, Declared>,
    endpoint_ids: HashMap<ResourceKey, EndpointId>,
    subscription_ids: HashMap<ResourceKey, SubscriptionId>,
    by_id: HashMap<EndpointId, Key>,
    timers: BTreeSet<(Instant, Who)>,
    store_retry: Option<Instant>,
    listed_at: Option<Instant>,
}

impl Loader {
    /// `policy` is what `policies` said first.
    pub fn new(tools: Tools, policy: Arc<Policy>, policies: config::Latest) -> Loader {
        Loader {
            world: World::of(&tools.scope),
            tools,
            policy,
            policies,
            endpoints: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            holdings: BTreeMap::new(),
            shared: Shared::default(),
            types: BTreeMap::new(),
            endpoint_ids: HashMap::new(),
            subscription_ids: HashMap::new(),
            by_id: HashMap::new(),
            timers: BTreeSet::new(),
            store_retry: None,
            listed_at: None,
        }
    }

    /// With a store in this directory, and an API server that answers nothing.
    #[cfg(test)]
    fn alone(dir: &std::path::Path, scope: crate::kubernetes::scope::Scope) -> Loader {
        use crate::queue::sqlite::{Options, SqliteQueue};

        let (queue, _) = SqliteQueue::open(dir, Options::default()).unwrap();
        let tools = Tools {
            client: crate::kubernetes::silent_client(),
            queue: Arc::new(queue),
            registry: Arc::new(crate::registry::Registry::new(1).0),
            scope,
            clock: Arc::new(Clock::System),
            objects: Arc::default(),
            loaded: tokio::sync::watch::channel(Loaded::default()).0,
            metrics: Metrics::default(),
        };
        Loader::new(tools, Arc::default(), tokio::sync::watch::channel(None).1)
    }

    /// Runs until `shutdown`.
    pub async fn run(
        mut self,
        steps: BoxStream<'static, Input>,
        mut refresh: mpsc::Receiver<EndpointId>,
        shutdown: CancellationToken,
    ) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.recall() => {}
        }
        let mut steps = steps.ready_chunks(STEPS_AT_ONCE);
        let mut reads: JoinSet<(Who, Reads)> = JoinSet::new();
        loop {
            let next = self.next_timer(reads.len() < READS_AT_ONCE);
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(chunk) = steps.next() => chunk.into_iter().for_each(|input| self.world.apply(input)),
                Some(read) = reads.join_next() => {
                    self.finish(read);
                    while let Some(read) = reads.try_join_next() {
                        self.finish(read);
                    }
                }
                Some(id) = refresh.recv() => self.refresh(id),
                Ok(()) = self.policies.changed() => self.policy_changed(),
                () = until(next) => {}
            }
            self.load().await;
            self.start_reads(&mut reads);
            self.announce().await;
        }
    }

    /// Reads which ids the store has given; tries until it can.
    async fn recall(&mut self) {
        loop {
            match self.tools.queue.known().await {
                Ok((endpoints, subscriptions)) => {
                    self.endpoint_ids.extend(endpoints);
                    self.subscription_ids.extend(subscriptions);
                    return;
                }
                Err(error) => tracing::error!(%error, "failed to read the known endpoints"),
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }

    fn finish(&mut self, read: Result<(Who, Reads), tokio::task::JoinError>) {
        let (who, mut reads) = match read {
            Ok(read) => read,
            Err(error) => return tracing::error!(%error, "a read of references ended unexpectedly"),
        };
        self.tools.metrics.count_reads(&reads);
        self.shared.share(who.namespace(), &mut reads);
        let pace = self.pace();
        if let Some(holding) = self.holding(&who) {
            holding.material.finish(reads, Instant::now(), pace);
            self.touch(who);
        }
    }

    /// The least pause before what nobody asked for is read.
    fn pace(&self) -> Duration {
        EACH_WAITING * u32::try_from(self.timers.len()).unwrap_or(u32::MAX)
    }

    fn holding(&mut self, who: &Who) -> Option<&mut Holding> {
        match who {
            Who::Endpoint(key) => self.endpoints.get_mut(key).map(|endpoint| &mut endpoint.holding),
            Who::Subscription(key) => self.holdings.get_mut(key),
        }
    }

    /// Has it loaded anew.
    fn touch(&mut self, who: Who) {
        match who {
            Who::Endpoint(key) => self.world.endpoints.dirty.insert(key),
            Who::Subscription(key) => self.world.subscriptions.dirty.insert(key),
        };
    }

    /// What the endpoint refers to, and what the requests of its subscriptions do. A receiver that refuses everything asks
    /// for it with each answer: whether it may is known from the endpoint alone.
    fn refresh(&mut self, id: EndpointId) {
        let now = Instant::now();
        let Some(key) = self.by_id.get(&id).cloned() else {
            return;
        };
        let endpoint = Who::Endpoint(key.clone());
        if !self
            .holding(&endpoint)
            .is_some_and(|holding| holding.material.refresh(now))
        {
            return;
        }
        self.reschedule(&endpoint);
        let is_for = |key: &&Key| self.subscriptions.get(*key).is_some_and(|entry| entry.endpoint == id);
        let of_namespace = of_namespace(&self.holdings, &key.0).map(|(key, _)| key);
        let subscriptions: Vec<Who> = of_namespace.filter(is_for).cloned().map(Who::Subscription).collect();
        for who in subscriptions {
            if self.holding(&who).is_some_and(|holding| holding.material.refresh(now)) {
                self.reschedule(&who);
            }
        }
    }

    /// Brings the registry in step with the world.
    async fn load(&mut self) {
        self.touch_those_with_a_quota();
        self.lose_endpoints().await;
        self.lose_others().await;
        self.store_retry = match self.intern().await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, "the store gave no ids: new resources wait");
                Some(Instant::now() + STORE_PAUSE)
            }
        };
        self.load_endpoints().await;
        // Those of an endpoint need not wait until the filters of thousands of subscriptions are compiled.
        self.tell_of_endpoints();
        self.load_subscriptions().await;
        self.load_types();
        self.build_views();
    }

    /// Gets ids for what has none: durable before anything refers to them.
    async fn intern(&mut self) -> Result<(), QueueError> {
        let mut endpoints = BTreeSet::new();
        let mut subscriptions = BTreeSet::new();
        for key in &self.world.endpoints.dirty {
            endpoints.extend(self.resource_key(key));
        }
        for key in &self.world.subscriptions.dirty {
            let Some(subscription) = self.world.subscriptions.objects.get(key) else {
                continue;
            };
            endpoints.extend(self.resource_key(&others::target(key, &subscription.spec)));
            if let Some(told) = &subscription.spec.dead_letter {
                endpoints.extend(self.resource_key(&(key.0.clone(), told.endpoint_ref.name.clone())));
            }
            subscriptions.extend(self.resource_key(key));
        }
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .filter(|k| !self.endpoint_ids.contains_key(k))
            .collect();
        let subscriptions: Vec<_> = subscriptions
            .into_iter()
            .filter(|k| !self.subscription_ids.contains_key(k))
            .collect();
        if !endpoints.is_empty() {
            let ids = self.tools.queue.intern_endpoints(endpoints.clone()).await?;
            self.endpoint_ids.extend(endpoints.into_iter().zip(ids));
        }
        if !subscriptions.is_empty() {
            let ids = self.tools.queue.intern_subscriptions(subscriptions.clone()).await?;
            self.subscription_ids.extend(subscriptions.into_iter().zip(ids));
        }
        Ok(())
    }

    /// The identity in the store; none while the namespace is unknown.
    fn resource_key(&self, key: &Key) -> Option<ResourceKey> {
        let space = self.world.spaces.get(&key.0)?;
        Some(ResourceKey {
            namespace_uid: space.uid.to_string(),
            name: key.1.clone(),
        })
    }

    /// Starts the reads that are due; endpoints whose messages wait come first.
    fn start_reads(&mut self, reads: &mut JoinSet<(Who, Reads)>) {
        let free = READS_AT_ONCE.saturating_sub(reads.len());
        if free == 0 {
            return;
        }
        let now = Instant::now();
        let due = self.timers.iter().take_while(|(at, _)| *at <= now).take(LOOKED_AT);
        let mut due: Vec<(bool, Who)> = due.map(|(_, who)| (!self.has_pending(who), who.clone())).collect();
        due.sort();
        for (_, who) in due {
            let label = self.secret_label(who.namespace());
            let Some(holding) = self.holding(&who) else {
                continue;
            };
            if holding.material.due().is_some_and(|at| at <= now) {
                if reads.len() >= READS_AT_ONCE {
                    break;
                }
                holding.material.start();
                let uses = holding.uses.clone();
                let (client, reader) = (self.tools.client.clone(), who.clone());
                reads.spawn(async move {
                    let read = fetch::read(&client, reader.namespace(), uses, label).await;
                    (reader, read)
                });
            } else {
                // Its patience ended: it is published as it is.
                self.touch(who.clone());
            }
            self.reschedule(&who);
        }
    }

    /// What the policy says of the label. Of a namespace that is not known yet nothing is kept without it.
    fn secret_label(&self, namespace: &str) -> SecretLabel {
        let space = self.world.spaces.get(namespace);
        space.map_or_else(SecretLabel::default, |space| {
            self.policy.rules_for(&space.labels).secret_label
        })
    }

    fn has_pending(&self, who: &Who) -> bool {
        let id = match who {
            Who::Endpoint(key) => self.endpoints.get(key).and_then(|endpoint| endpoint.id),
            Who::Subscription(key) => self.subscriptions.get(key).map(|entry| entry.endpoint),
        };
        id.is_some_and(|id| self.tools.registry.gauge(id).pending() > 0)
    }

    /// Keeps the timers in step with what is read.
    fn reschedule(&mut self, who: &Who) {
        let next = match who {
            Who::Endpoint(key) => self.endpoints.get(key).and_then(|endpoint| endpoint.next_timer()),
            Who::Subscription(key) => self.holdings.get(key).and_then(|holding| holding.material.due()),
        };
        let Some(holding) = self.holding(who) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut holding.timer, next) {
            self.timers.remove(&(before, who.clone()));
        }
        if let Some(next) = next {
            self.timers.insert((next, who.clone()));
        }
    }

    /// When to wake without being told: an endpoint's timer (of those due only if a read may start), the first
    /// readiness, the store.
    fn next_timer(&self, may_read: bool) -> Option<Instant> {
        let now = Instant::now();
        let timer = if may_read {
            self.timers.first().map(|(at, _)| *at)
        } else {
            self.timers
                .range((now, Who::Endpoint(Key::default()))..)
                .next()
                .map(|(at, _)| *at)
        };
        let first = self
            .listed_at
            .filter(|_| !self.tools.registry.synced())
            .map(|at| at + FIRST_READS);
        [timer, first, self.store_retry].into_iter().flatten().min()
    }

    /// Tells how far it is with endpoints, unless all is to be resolved by another policy first.
    fn tell_of_endpoints(&self) {
        let endpoints = self.world.endpoints.versions.done();
        self.tools.loaded.send_if_modified(|before| {
            let is_new = before.policy.as_ref() == Some(self.policy.digest()) && before.endpoints != endpoints;
            if is_new {
                before.endpoints = endpoints;
            }
            is_new
        });
    }

    /// Tells how far it is: the versions for the Lease, and once, that everything is loaded.
    async fn announce(&mut self) {
        let loaded = Loaded {
            namespaces: self.world.namespaces.done(),
            endpoints: self.world.endpoints.versions.done(),
            subscriptions: self.world.subscriptions.versions.done(),
            types: self.world.types.versions.done(),
            policy: Some(self.policy.digest().clone()),
        };
        self.tools.loaded.send_if_modified(|before| {
            let is_new = *before != loaded;
            *before = loaded;
            is_new
        });
        self.tools
            .metrics
            .show(self.endpoints.len(), self.subscriptions.len(), self.types.len());
        if self.tools.registry.synced() || !self.world.is_listed() {
            return;
        }
        let now = Instant::now();
        let listed_at = *self.listed_at.get_or_insert(now);
        let all_read = self
            .endpoints
            .values()
            .all(|endpoint| endpoint.holding.material.is_read())
            && self.world.services.is_listed();
        let is_loaded = self.store_retry.is_none() && self.world.subscriptions.dirty.is_empty();
        if is_loaded && (all_read || now >= listed_at + FIRST_READS) {
            self.tell_of_the_gone().await;
            self.tools.registry.set_synced().await;
            tracing::info!(
                endpoints = self.endpoints.len(),
                subscriptions = self.subscriptions.len(),
                types = self.types.len(),
                "loaded"
            );
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
