//! The watches: they keep the stores and put what a change touches into the queue.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::{Context, Key, Stores};
use super::index::{By, Indexed};
use super::stored::Stored;
use crate::api::census::{Census, MAX_SUBSCRIPTIONS};
use crate::api::conditions::{READY, reasons};
use crate::api::resolve::subscription_references;
use crate::api::{EventSubscription, EventType, Replay, WebhookEndpoint};
use crate::kubernetes::scope::{Part, Scope};
use crate::kubernetes::services::{self, Change};
use crate::kubernetes::{lease, slim};

/// Within which grants left over are looked for in namespaces without endpoints, at the least.
const LEFTOVERS_WITHIN: Duration = Duration::from_secs(30);
/// For each namespace: eighty reads a second in the long run.
const LEFTOVERS_EACH: Duration = Duration::from_millis(200);
/// How finely they are spread.
const SLOTS: u32 = 1 << 12;

/// The writing halves of the stores.
pub struct Writers {
    endpoints: Parts<WebhookEndpoint>,
    subscriptions: Parts<EventSubscription>,
    event_types: Parts<EventType>,
    replays: Parts<Replay>,
    namespaces: Parts<Namespace>,
    leases: Writer<Lease>,
}

/// One for each watch.
type Parts<K> = Vec<(Part, Writer<K>)>;

impl Writers {
    /// Empty stores.
    pub fn new(scope: &Scope) -> (Writers, Stores) {
        let (endpoints, endpoints_writers) = Stored::of(scope);
        let (subscriptions, subscriptions_writers) = Stored::of(scope);
        let (event_types, event_types_writers) = Stored::of(scope);
        let (replays, replays_writers) = Stored::of(scope);
        let (namespaces, namespaces_writers) = Stored::of(scope);
        let (leases, leases_writer) = reflector::store();
        (
            Writers {
                endpoints: endpoints_writers,
                subscriptions: subscriptions_writers,
                event_types: event_types_writers,
                replays: replays_writers,
                namespaces: namespaces_writers,
                leases: leases_writer,
            },
            Stores {
                endpoints,
                subscriptions,
                event_types,
                replays,
                namespaces,
                leases,
            },
        )
    }
}

/// What a change of an object of the kind leads to.
struct Follow<K> {
    /// Whoever finds an object in the store finds it counted.
    keep: fn(&Context, &Seen<K>),
    touch: fn(&Context, &K),
}

/// What a watch has seen.
enum Seen<'a, K> {
    /// An object, before the store has it: its last version, if there was one, and this one, if there is one.
    One(Option<&'a K>, Option<&'a K>),
    /// All that there is in this part, after the store has it.
    All(&'a Part, &'a [Arc<K>]),
}

/// Starts every watch; does nothing when called again.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<anyhow::Result<()>>) {
    let Some(writers) = context.writers.lock().unwrap_or_else(|e| e.into_inner()).take() else {
        return;
    };
    let follow = Follow {
        keep: |context, seen| {
            index(&context.stores.endpoints, seen);
            count(&context.endpoints, seen);
        },
        touch: touch_endpoint,
    };
    watch_parts(context, tasks, writers.endpoints, &follow);
    let follow = Follow {
        keep: |context, seen| {
            index(&context.stores.subscriptions, seen);
            count(&context.subscriptions, seen);
        },
        touch: touch_subscription,
    };
    watch_parts(context, tasks, writers.subscriptions, &follow);
    let follow = Follow {
        keep: |context, seen| index(&context.stores.event_types, seen),
        touch: touch_event_type,
    };
    watch_parts(context, tasks, writers.event_types, &follow);
    let follow = Follow {
        keep: |_, _| {},
        touch: touch_replay,
    };
    watch_parts(context, tasks, writers.replays, &follow);
    for part in context.config.scope.parts() {
        tasks.spawn(watch_services(context.clone(), part));
    }
    for (part, writer) in writers.namespaces {
        let api = Api::all(context.client.clone());
        let follow = Follow {
            keep: |_, _| {},
            touch: touch_namespace,
        };
        tasks.spawn(watch(
            context.clone(),
            part.clone(),
            api,
            part.namespaces(),
            writer,
            follow,
        ));
    }
    // The fleet is looked at by the tick: liveness is a matter of time, not only of changes.
    let dispatchers = watcher::Config::default().labels(&format!("{}={}", lease::COMPONENT_LABEL, lease::DISPATCHER));
    let own = Api::namespaced(context.client.clone(), &context.config.namespace);
    let follow = Follow {
        keep: |_, _| {},
        touch: |_, _: &Lease| {},
    };
    tasks.spawn(watch(
        context.clone(),
        Part::All,
        own,
        dispatchers,
        writers.leases,
        follow,
    ));
}

fn watch_parts<K>(
    context: &Arc<Context>,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    writers: Parts<K>,
    &Follow { keep, touch }: &Follow<K>,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    for (part, writer) in writers {
        let api = part.api::<K>(&context.client);
        let follow = Follow { keep, touch };
        let config = watcher::Config::default();
        tasks.spawn(watch(context.clone(), part, api, config, writer, follow));
    }
}

/// Waits for the first complete list of every kind.
pub async fn synced(context: &Context) -> anyhow::Result<()> {
    let stores = &context.stores;
    stores.namespaces.listed().await?;
    stores.endpoints.listed().await?;
    stores.subscriptions.listed().await?;
    stores.event_types.listed().await?;
    stores.replays.listed().await?;
    stores.leases.wait_until_ready().await?;
    let mut services = context.services.subscribe();
    services.wait_for(|services| services.is_listed()).await?;
    Ok(())
}

async fn watch<K>(
    context: Arc<Context>,
    part: Part,
    api: Api<K>,
    config: watcher::Config,
    mut writer: Writer<K>,
    Follow { keep, touch }: Follow<K>,
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut before_relist: Vec<Arc<K>> = Vec::new();
    let store = writer.as_reader();
    let mut events = watcher(api, config).default_backoff().modify(slim).boxed();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "a watch was interrupted");
                continue;
            }
        };
        if matches!(event, watcher::Event::Init) {
            before_relist = store.state();
        }
        match &event {
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let old = store.get(&ObjectRef::from_obj(object));
                keep(&context, &Seen::One(old.as_deref(), Some(object)));
            }
            watcher::Event::Delete(object) => {
                // What is told of it last may be another version than the one it is known by.
                let old = store.get(&ObjectRef::from_obj(object));
                keep(&context, &Seen::One(old.as_deref().or(Some(object)), None));
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        writer.apply_watcher_event(&event);
        match &event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => touch(&context, object),
            watcher::Event::InitDone => {
                let mut known: Vec<Arc<K>> = store.state();
                // A list that was interrupted may have shown what was gone when this one began.
                keep(&context, &Seen::All(&part, &known));
                // Also what went while the watch was interrupted.
                known.append(&mut before_relist);
                known.iter().for_each(|object| touch(&context, object));
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
        }
    }
    Ok(())
}

/// Has objects found by what they name.
fn index<K: Indexed + Clone + Send + Sync>(stored: &Stored<K>, seen: &Seen<K>) {
    match *seen {
        Seen::One(old, new) => stored.index.replace(old, new),
        Seen::All(part, all) => stored.index.renew(|namespace| part.has(namespace), all),
    }
}

/// Counts objects where only so many may be.
fn count<K: Resource>(census: &Mutex<Census>, seen: &Seen<K>) {
    let mut census = census.lock().unwrap_or_else(|e| e.into_inner());
    match *seen {
        Seen::One(_, Some(new)) => census.put(new),
        Seen::One(Some(old), None) => census.remove(&old.namespace().unwrap_or_default(), &old.name_any()),
        Seen::One(None, None) => {}
        Seen::All(part, all) => {
            census.clear(|namespace| part.has(namespace));
            all.iter().for_each(|object| census.put(&**object));
        }
    }
}

/// Services are kept by a few words each, not as objects.
async fn watch_services(context: Arc<Context>, part: Part) -> anyhow::Result<()> {
    let api = part.api::<Service>(&context.client);
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => services::found(event),
            Err(error) => {
                tracing::warn!(kind = "Service", %error, "a watch was interrupted");
                continue;
            }
        };
        let mut change = Change::None;
        context
            .services
            .send_modify(|services| change = services.apply(&part, event));
        touch_those_that_name(&context, &change);
    }
    Ok(())
}

/// Endpoints whose Service may be another one now.
fn touch_those_that_name(context: &Context, change: &Change) {
    let endpoints = match change {
        Change::None => Vec::new(),
        Change::One((namespace, name)) => {
            let stored = &context.stores.endpoints;
            stored.find(namespace, &By::Service(name.clone()))
        }
        Change::Any => {
            let mut all = context.stores.endpoints.state();
            all.retain(|endpoint| endpoint.spec.service_ref.is_some());
            all
        }
    };
    for endpoint in endpoints {
        let key = Key::Endpoint(endpoint.namespace().unwrap_or_default(), endpoint.name_any());
        context.queue.add(key, Instant::now());
    }
}

fn touch_endpoint(context: &Context, endpoint: &WebhookEndpoint) {
    let now = Instant::now();
    let (namespace, name) = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
    let subscriptions = context
        .stores
        .subscriptions
        .find(&namespace, &By::Endpoint(name.clone()));
    // Whether the endpoint exists is all that a subscription wants to know of it.
    let exists = context.endpoint(&namespace, &name).is_some();
    for subscription in subscriptions {
        if !exists || misses_endpoint(&subscription) {
            context
                .queue
                .add(Key::Subscription(namespace.clone(), subscription.name_any()), now);
        }
    }
    if let Some(limit) = context.rules(&namespace).and_then(|rules| rules.said.quotas.endpoints) {
        let census = context.endpoints.lock().unwrap_or_else(|e| e.into_inner());
        for other in census.at_the_limit(&namespace, limit as usize) {
            context.queue.add(Key::Endpoint(namespace.clone(), other), now);
        }
    }
    context.queue.add(Key::Grants(namespace.clone()), now);
    context.queue.add(Key::Endpoint(namespace, name), now);
}

/// Whether its status says that its endpoint does not exist, or nothing yet.
fn misses_endpoint(subscription: &EventSubscription) -> bool {
    let status = subscription.status.as_ref();
    let ready = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == READY));
    ready.is_none_or(|c| c.reason == reasons::ENDPOINT_NOT_FOUND)
}

fn touch_subscription(context: &Context, subscription: &EventSubscription) {
    let now = Instant::now();
    let namespace = subscription.namespace().unwrap_or_default();
    let census = context.subscriptions.lock().unwrap_or_else(|e| e.into_inner());
    for other in census.at_the_limit(&namespace, MAX_SUBSCRIPTIONS) {
        context.queue.add(Key::Subscription(namespace.clone(), other), now);
    }
    let status = subscription.status.as_ref();
    if !subscription_references(subscription).is_empty() || status.is_some_and(|s| !s.references.is_empty()) {
        context.queue.add(Key::Grants(namespace.clone()), now);
    }
    context
        .queue
        .add(Key::Subscription(namespace, subscription.name_any()), now);
}

fn touch_event_type(context: &Context, event_type: &EventType) {
    let now = Instant::now();
    let namespace = event_type.namespace().unwrap_or_default();
    let of_type = By::Type(event_type.spec.r#type.clone());
    let same = context.stores.event_types.find(&namespace, &of_type);
    context
        .queue
        .add(Key::EventType(namespace.clone(), event_type.name_any()), now);
    for other in same {
        context
            .queue
            .add(Key::EventType(namespace.clone(), other.name_any()), now);
    }
}

fn touch_replay(context: &Context, replay: &Replay) {
    let key = Key::Replay(replay.namespace().unwrap_or_default(), replay.name_any());
    context.queue.add(key, Instant::now());
}

/// Its labels may have changed what the policy says.
fn touch_namespace(context: &Context, namespace: &Namespace) {
    let now = Instant::now();
    let name = namespace.name_any();
    let endpoints = context.stores.endpoints.find(&name, &By::Namespace);
    for endpoint in &endpoints {
        context.queue.add(Key::Endpoint(name.clone(), endpoint.name_any()), now);
    }
    let naming = context.stores.subscriptions.find(&name, &By::Secrets);
    // One that came before its namespace could not be judged, and nothing else may ever have it looked at.
    let unseen = context.stores.subscriptions.find(&name, &By::Unseen);
    for subscription in naming.iter().chain(&unseen) {
        context
            .queue
            .add(Key::Subscription(name.clone(), subscription.name_any()), now);
    }
    let wait = match endpoints.is_empty() && naming.is_empty() {
        true => leftovers_after(&name, context.stores.namespaces.len()),
        false => Duration::ZERO,
    };
    context.queue.add(Key::Grants(name), now + wait);
}

/// When to look for grants left over in a namespace without endpoints: no hurry, and sixteen reads each. So it is spread
/// over half a minute, or over longer where there are many namespaces.
fn leftovers_after(namespace: &str, namespaces: usize) -> Duration {
    let all = LEFTOVERS_WITHIN.max(LEFTOVERS_EACH * u32::try_from(namespaces).unwrap_or(u32::MAX));
    let mut hasher = DefaultHasher::new();
    namespace.hash(&mut hasher);
    // At most SLOTS - 1.
    let slot = u32::try_from(hasher.finish() % u64::from(SLOTS)).unwrap_or_default();
    all * slot / SLOTS
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::silent_client;

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_comes_after_its_subscriptions_has_those_looked_at_that_nobody_has_seen() {
        let context = Context::alone(silent_client());
        let mut writers = context.writers.lock().unwrap().take().unwrap();
        for (name, observed) in [("old", 1), ("new", -1)] {
            let subscription: EventSubscription = serde_json::from_value(json!({
                "apiVersion": "tidings.dev/v1alpha1",
                "kind": "EventSubscription",
                "metadata": {"name": name, "namespace": "sales", "generation": 1},
                "spec": {"delivery": "Pull", "eventTypes": ["*"]},
                "status": {"observedGeneration": observed},
            }))
            .unwrap();
            index(&context.stores.subscriptions, &Seen::One(None, Some(&subscription)));
            let (_, writer) = &mut writers.subscriptions[0];
            writer.apply_watcher_event(&watcher::Event::Apply(subscription));
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sales"}});
        touch_namespace(&context, &serde_json::from_value(namespace).unwrap());
        let new = Key::Subscription("sales".into(), "new".into());
        assert_eq!(context.queue.next().await, new);
        assert_eq!(context.queue.next().await, Key::Grants("sales".into()));
    }

    #[test]
    fn leftovers_are_looked_for_at_a_bounded_rate() {
        let latest = |namespaces: usize| {
            let all = (0..namespaces).map(|n| leftovers_after(&format!("team-{n}"), namespaces));
            all.max().unwrap_or_default()
        };
        assert!(latest(50) < LEFTOVERS_WITHIN);
        assert!(latest(5_000) > Duration::from_secs(990) && latest(5_000) < LEFTOVERS_EACH * 5_000);
    }
}
