//! The watches: from the cluster's resources to the registry.
//!
//! Owns five kube watches, of the cluster or of each namespace that is named (namespaces by metadata only, Services by a few
//! fields), the reads of what endpoints refer to, and the ids the store gives; knows nothing of messages or of delivery.
//! Invariant: while the API server is away everything that was loaded stays in use, and absence means deletion only after a
//! complete list.

pub mod fetch;
pub mod load;
pub mod material;
pub mod metrics;
pub mod objects;
pub mod source;
pub mod versions;
pub mod world;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt, select_all};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::core::NamespaceResourceScope;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::conditions::{OF_DISPATCHER, READY};
use crate::api::names::ENABLE_REQUESTED;
use crate::api::{EventSubscription, EventType, WebhookEndpoint};
use crate::clock::Clock;
use crate::config;
use crate::ids::EndpointId;
use crate::kubernetes::scope::{Part, Scope};
use crate::kubernetes::services;
use crate::queue::Queue;
use crate::registry::Registry;
use load::{Loader, Tools};
use metrics::Metrics;
use objects::Objects;
use source::{Step, calm, steps};
use world::Input;

/// Requests to read an endpoint's Secrets anew that wait; more are dropped, since the next refusal asks again.
const REFRESHES: usize = 1024;

/// What the watches need.
pub struct WatchConfig {
    pub client: kube::Client,
    pub queue: Arc<dyn Queue>,
    pub registry: Arc<Registry>,
    /// The administrator's policy: nothing is loaded before there is one, and a change resolves every endpoint anew.
    pub policy: config::Latest,
    /// The namespaces that are watched.
    pub scope: Scope,
    /// The engine's, which judges by it when what was deleted is buried.
    pub clock: Arc<Clock>,
    pub metrics: Metrics,
}

/// The `resourceVersion` up to which everything that one watch sees is in the registry; none before its first complete list.
pub type Done = BTreeMap<Part, Option<u64>>;

/// Per kind, how far its watches are, and by which policy all of it was resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub namespaces: Done,
    pub endpoints: Done,
    pub subscriptions: Done,
    pub types: Done,
    /// The policy's digest; none before there is one.
    pub policy: Option<Arc<str>>,
}

/// The running watches.
#[derive(Debug)]
pub struct WatchHandle {
    /// The watched objects, for the status writer.
    pub objects: Arc<Objects>,
    /// How far they are.
    pub loaded: watch::Receiver<Loaded>,
    refresh: mpsc::Sender<EndpointId>,
    task: JoinHandle<()>,
}

/// Asks for an endpoint's references to be read anew. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct Refresher {
    refresh: mpsc::Sender<EndpointId>,
}

impl Refresher {
    /// The receiver answered 401 or 403: reads anew, at most every 30 s an endpoint.
    pub fn refresh(&self, id: EndpointId) {
        // Full or closed: the next refusal asks again, or nobody needs it any more.
        let _dropped = self.refresh.try_send(id);
    }
}

impl WatchHandle {
    /// See [`Refresher`].
    pub fn refresher(&self) -> Refresher {
        Refresher {
            refresh: self.refresh.clone(),
        }
    }

    /// Returns when the watches ended before `shutdown`, which they do not.
    pub async fn ended(&mut self) {
        if let Err(error) = (&mut self.task).await {
            tracing::error!(%error, "the watches ended unexpectedly");
        }
    }

    /// Waits for the end, after `shutdown`.
    pub async fn join(mut self) {
        if !self.task.is_finished() {
            self.ended().await;
        }
    }
}

/// Starts the watches; they run until `shutdown`.
pub fn start(config: WatchConfig, shutdown: CancellationToken) -> WatchHandle {
    let objects = Arc::new(Objects::default());
    let (loaded_sender, loaded) = watch::channel(Loaded::default());
    let (refresh, refreshes) = mpsc::channel(REFRESHES);
    let steps = inputs(&config.client, &config.scope, &config.metrics);
    let tools = Tools {
        client: config.client,
        queue: config.queue,
        registry: config.registry,
        scope: config.scope,
        clock: config.clock,
        objects: objects.clone(),
        loaded: loaded_sender,
        metrics: config.metrics,
    };
    let mut policy = config.policy;
    let task = tokio::spawn(async move {
        if let Some(Some(first)) = shutdown.run_until_cancelled(config::first(&mut policy)).await {
            let loader = Loader::new(tools, first, policy);
            loader.run(steps, refreshes, shutdown).await;
        }
    });
    WatchHandle {
        objects,
        loaded,
        refresh,
        task,
    }
}

fn inputs(client: &kube::Client, scope: &Scope, metrics: &Metrics) -> BoxStream<'static, Input> {
    let of_part = |part: Part| {
        [
            follow_namespaces(&part, client, metrics),
            follow::<WebhookEndpoint>("webhookendpoints", &part, client, metrics, lean, Input::Endpoints),
            follow::<EventSubscription>(
                "eventsubscriptions",
                &part,
                client,
                metrics,
                |_| {},
                Input::Subscriptions,
            ),
            follow::<EventType>("eventtypes", &part, client, metrics, |_| {}, Input::Types),
            follow_services(&part, client, metrics),
        ]
    };
    select_all(scope.parts().into_iter().flat_map(of_part)).boxed()
}

fn follow_namespaces(part: &Part, client: &kube::Client, metrics: &Metrics) -> BoxStream<'static, Input> {
    let api = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    let events = watcher(api, part.namespaces());
    let part = part.clone();
    steps("namespaces", events, metrics.errors("namespaces"))
        .map(move |step| Input::Namespaces(part.clone(), step))
        .boxed()
}

fn follow_services(part: &Part, client: &kube::Client, metrics: &Metrics) -> BoxStream<'static, Input> {
    let events = watcher(part.api::<Service>(client), watcher::Config::default());
    let part = part.clone();
    calm("services", events, metrics.errors("services"))
        .map(move |event| Input::Services(part.clone(), services::found(event)))
        .boxed()
}

/// Leaves out what only others read, of annotations and of status: of ten thousand endpoints it takes megabytes.
fn lean(endpoint: &mut WebhookEndpoint) {
    endpoint.annotations_mut().retain(|name, _| name == ENABLE_REQUESTED);
    if let Some(status) = &mut endpoint.status {
        status.target = None;
        status.signing = None;
        let is_read = |type_: &str| type_ == READY || OF_DISPATCHER.contains(&type_);
        status.conditions.retain(|condition| is_read(&condition.type_));
        status.conditions.shrink_to_fit();
        status.references.shrink_to_fit();
    }
}

fn follow<K>(
    plural: &'static str,
    part: &Part,
    client: &kube::Client,
    metrics: &Metrics,
    lean: fn(&mut K),
    input: fn(Part, Step<K>) -> Input,
) -> BoxStream<'static, Input>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(part.api::<K>(client), watcher::Config::default()).modify(lean);
    let part = part.clone();
    steps(plural, events, metrics.errors(plural))
        .map(move |step| input(part.clone(), step))
        .boxed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

    #[test]
    fn an_endpoint_is_held_with_what_the_dispatcher_reads_of_its_status() {
        let all = ["Ready", "Reconciling", "KeyRotating", "Delivering"];
        let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let conditions = all.map(condition);
        let mut endpoint: WebhookEndpoint = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "WebhookEndpoint",
            "metadata": {"name": "crm", "annotations": {ENABLE_REQUESTED: "1", LAST_APPLIED: "{}"}},
            "spec": {"url": "https://hooks.example.com/"},
            "status": {
                "observedGeneration": 1,
                "conditions": conditions,
                "target": "https://hooks.example.com",
                "references": [{"kind": "Secret", "name": "crm-signing", "resourceVersion": "5"}],
                "delivery": {"pending": 3},
            },
        }))
        .unwrap();
        lean(&mut endpoint);
        assert_eq!(endpoint.annotations().keys().collect::<Vec<_>>(), [ENABLE_REQUESTED]);
        let status = endpoint.status.unwrap();
        let types: Vec<&str> = status
            .conditions
            .iter()
            .map(|condition| condition.type_.as_str())
            .collect();
        assert_eq!(types, ["Ready", "Delivering"]);
        assert_eq!((status.observed_generation, status.references.len()), (Some(1), 1));
        assert_eq!(status.delivery.unwrap().pending, Some(3));
        assert_eq!(status.target, None);
    }
}
