//! The watches: they keep the stores and put what a change touches into the queue.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::{Context, Key, Stores};
use super::subscription::endpoints_of;
use crate::api::census::{Census, MAX_SUBSCRIPTIONS};
use crate::api::conditions::{READY, reasons};
use crate::api::resolve::subscription_references;
use crate::api::{EventSubscription, EventType, Replay, WebhookEndpoint};
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
    endpoints: Writer<WebhookEndpoint>,
    subscriptions: Writer<EventSubscription>,
    event_types: Writer<EventType>,
    replays: Writer<Replay>,
    namespaces: Writer<Namespace>,
    leases: Writer<Lease>,
}

impl Writers {
    /// Empty stores.
    pub fn new() -> (Writers, Stores) {
        let (endpoints, endpoints_writer) = reflector::store();
        let (subscriptions, subscriptions_writer) = reflector::store();
        let (event_types, event_types_writer) = reflector::store();
        let (replays, replays_writer) = reflector::store();
        let (namespaces, namespaces_writer) = reflector::store();
        let (leases, leases_writer) = reflector::store();
        (
            Writers {
                endpoints: endpoints_writer,
                subscriptions: subscriptions_writer,
                event_types: event_types_writer,
                replays: replays_writer,
                namespaces: namespaces_writer,
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

/// Starts every watch; does nothing when called again.
pub fn start(context: &Arc<Context>, tasks: &mut JoinSet<anyhow::Result<()>>) {
    let Some(writers) = context.writers.lock().unwrap_or_else(|e| e.into_inner()).take() else {
        return;
    };
    let client = || context.client.clone();
    let all = watcher::Config::default();
    let dispatchers = watcher::Config::default().labels(&format!("{}={}", lease::COMPONENT_LABEL, lease::DISPATCHER));
    let own = &context.config.namespace;
    tasks.spawn(watch(
        context.clone(),
        Api::all(client()),
        all.clone(),
        writers.endpoints,
        Some(|context| &context.endpoints),
        touch_endpoint,
    ));
    tasks.spawn(watch(
        context.clone(),
        Api::all(client()),
        all.clone(),
        writers.subscriptions,
        Some(|context| &context.subscriptions),
        touch_subscription,
    ));
    tasks.spawn(watch(
        context.clone(),
        Api::all(client()),
        all.clone(),
        writers.event_types,
        None,
        touch_event_type,
    ));
    tasks.spawn(watch(
        context.clone(),
        Api::all(client()),
        all.clone(),
        writers.replays,
        None,
        touch_replay,
    ));
    tasks.spawn(watch_services(context.clone(), Api::all(client())));
    tasks.spawn(watch(
        context.clone(),
        Api::all(client()),
        all,
        writers.namespaces,
        None,
        touch_namespace,
    ));
    // The fleet is looked at by the tick: liveness is a matter of time, not only of changes.
    tasks.spawn(watch(
        context.clone(),
        Api::namespaced(client(), own),
        dispatchers,
        writers.leases,
        None,
        |_, _: &Lease| {},
    ));
}

/// Waits for the first complete list of every kind.
pub async fn synced(context: &Context) -> anyhow::Result<()> {
    let stores = &context.stores;
    stores.namespaces.wait_until_ready().await?;
    stores.endpoints.wait_until_ready().await?;
    stores.subscriptions.wait_until_ready().await?;
    stores.event_types.wait_until_ready().await?;
    stores.replays.wait_until_ready().await?;
    stores.leases.wait_until_ready().await?;
    let mut services = context.services.subscribe();
    services.wait_for(|services| services.is_listed()).await?;
    Ok(())
}

async fn watch<K>(
    context: Arc<Context>,
    api: Api<K>,
    config: watcher::Config,
    mut writer: Writer<K>,
    census: Option<fn(&Context) -> &Mutex<Census>>,
    touch: fn(&Context, &K),
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
        // Before the store has it: whoever finds an object there finds it counted.
        if let Some(census) = census {
            let mut census = census(&context).lock().unwrap_or_else(|e| e.into_inner());
            match &event {
                watcher::Event::Apply(object) | watcher::Event::InitApply(object) => census.put(object),
                watcher::Event::Delete(object) => {
                    census.remove(&object.namespace().unwrap_or_default(), &object.name_any());
                }
                watcher::Event::Init | watcher::Event::InitDone => {}
            }
        }
        writer.apply_watcher_event(&event);
        match &event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => touch(&context, object),
            watcher::Event::InitDone => {
                // Also what went while the watch was interrupted.
                let mut known: Vec<Arc<K>> = store.state();
                if let Some(census) = census {
                    let mut census = census(&context).lock().unwrap_or_else(|e| e.into_inner());
                    let gone = before_relist
                        .iter()
                        .filter(|old| store.get(&ObjectRef::from_obj(&***old)).is_none());
                    gone.for_each(|old| census.remove(&old.namespace().unwrap_or_default(), &old.name_any()));
                }
                known.append(&mut before_relist);
                known.iter().for_each(|object| touch(&context, object));
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
        }
    }
    Ok(())
}

/// Services are kept by a few words each, not as objects.
async fn watch_services(context: Arc<Context>, api: Api<Service>) -> anyhow::Result<()> {
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
        context.services.send_modify(|services| change = services.apply(event));
        touch_those_that_name(&context, &change);
    }
    Ok(())
}

/// Endpoints whose Service may be another one now.
fn touch_those_that_name(context: &Context, change: &Change) {
    let is_meant = |endpoint: &WebhookEndpoint| match (change, &endpoint.spec.service_ref) {
        (Change::None, _) | (_, None) => false,
        (Change::Any, Some(_)) => true,
        (Change::One((namespace, name)), Some(reference)) => {
            reference.name == *name && endpoint.metadata.namespace.as_deref() == Some(namespace)
        }
    };
    if *change == Change::None {
        return;
    }
    for endpoint in context.stores.endpoints.state_filter(is_meant) {
        let key = Key::Endpoint(endpoint.namespace().unwrap_or_default(), endpoint.name_any());
        context.queue.add(key, Instant::now());
    }
}

fn touch_endpoint(context: &Context, endpoint: &WebhookEndpoint) {
    let now = Instant::now();
    let (namespace, name) = (endpoint.namespace().unwrap_or_default(), endpoint.name_any());
    let subscriptions = context.stores.subscriptions.state_filter(|s| {
        endpoints_of(s).any(|named| named == name) && s.namespace().as_deref() == Some(namespace.as_str())
    });
    // Whether the endpoint exists is all that a subscription wants to know of it.
    let exists = context.endpoint(&namespace, &name).is_some();
    for subscription in subscriptions {
        if !exists || misses_endpoint(&subscription) {
            context
                .queue
                .add(Key::Subscription(namespace.clone(), subscription.name_any()), now);
        }
    }
    if let Some(limit) = context.rules(&namespace).and_then(|rules| rules.quotas.endpoints) {
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
    let namespace = event_type.namespace();
    let same = context
        .stores
        .event_types
        .state_filter(|other| other.spec.r#type == event_type.spec.r#type && other.namespace() == namespace);
    let namespace = namespace.unwrap_or_default();
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
    let endpoints = context.endpoints_of(&name);
    for endpoint in &endpoints {
        context.queue.add(Key::Endpoint(name.clone(), endpoint.name_any()), now);
    }
    let naming = context.naming_subscriptions_of(&name);
    for subscription in &naming {
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
    use super::*;

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
