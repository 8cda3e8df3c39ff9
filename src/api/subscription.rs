//! `EventSubscription`: which events of its namespace go to one endpoint. Doc comments here are what `kubectl explain`
//! shows.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{EndpointReference, is_false};
use super::duration::ApiDuration;
use super::request::{DeadLetter, RequestShape};
use super::retry::Retry;
use super::status::SubscriptionStatus;

/// Which events of its namespace are sent to one endpoint, or kept for a consumer that pulls them, and in what form.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidings.dev",
    version = "v1alpha1",
    kind = "EventSubscription",
    plural = "eventsubscriptions",
    shortname = "evsub",
    category = "tidings",
    namespaced,
    status = "SubscriptionStatus",
    derive = "PartialEq",
    selectable = ".spec.endpointRef.name",
    doc = "Which events of its namespace are sent to one WebhookEndpoint, or kept for a consumer that pulls them, and in what form.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters: choose a shorter name"),
    validation = Rule::new("self.spec.delivery == 'Pull' || has(self.spec.endpointRef)").message("endpointRef must name the WebhookEndpoint that events go to; without an endpoint, set delivery: Pull, and consumers pull them"),
    validation = Rule::new("self.spec.delivery != 'Pull' || !has(self.spec.endpointRef)").message("with delivery: Pull nothing is sent to an endpoint: remove endpointRef, or set delivery: Push"),
    validation = Rule::new("self.spec.delivery != 'Pull' || !has(self.spec.request)").message("with delivery: Pull no request is made: remove request, and choose the form of messages by format"),
    validation = Rule::new("self.spec.delivery != 'Pull' || !has(self.spec.retry)").message("with delivery: Pull there are no attempts: remove retry; how long messages wait for their consumer is pull.maxAge"),
    validation = Rule::new("self.spec.delivery == 'Pull' || !has(self.spec.pull)").message("pull has no effect without delivery: Pull: set that, or remove pull"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpointRef.name", description = "The WebhookEndpoint that events go to; none where they are pulled"),
    printcolumn(name = "Types", type_ = "string", json_path = ".spec.eventTypes", description = "Types of events that match"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Loaded: an event sent now is matched"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.delivery.pending", description = "Messages not yet settled"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.delivery.deadLettered", description = "Dead letters kept"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Delivery", type_ = "string", json_path = ".spec.delivery", priority = 1, description = "Push or Pull"),
    printcolumn(name = "Oldest", type_ = "date", json_path = ".status.delivery.oldestPendingTime", priority = 1, description = "With Pull: age of the oldest message that waits for its consumer")
)]
#[serde(rename_all = "camelCase")]
pub struct EventSubscriptionSpec {
    /// How messages get to whoever wants them. Push: they are sent to the WebhookEndpoint that endpointRef names. Pull: they
    /// wait for a consumer that asks for them over HTTP, with its own ServiceAccount, and acknowledges what it has. Cannot be
    /// changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("delivery cannot be changed: create another EventSubscription with the other delivery, and delete this one when its messages are gone"))]
    pub delivery: DeliveryMode,

    /// The WebhookEndpoint, in the same namespace, that events go to; with delivery: Pull there is none. Cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("endpointRef cannot be changed: create another EventSubscription for the other endpoint"))]
    pub endpoint_ref: Option<EndpointReference>,

    /// With delivery: Pull, how long messages wait and are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullOptions>,

    /// Types of events that match, 1 to 64 entries: exact (lead.qualified), every type that begins with a prefix (lead.*
    /// matches lead.qualified and lead.score.changed), or every type (*).
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new(r"self.all(t, t == '*' || t.matches('^[^*\\s]+$') || t.matches('^[^*\\s]+\\.\\*$'))").message("each of eventTypes must be an exact type (lead.qualified), a prefix that ends in .* (lead.*), or * for every type")
    )]
    pub event_types: Vec<String>,

    /// Sources of events that match, exactly as producers write them, at most 64. Without it every source matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub sources: Vec<String>,

    /// Which of these events match: a CEL expression that is true for them, such as event.data.score > 80. It sees event:
    /// its attributes (event.type, event.source, event.subject, extensions by their names) and event.data. At most 1024
    /// bytes. An event for which it fails, because of a field that is not there for example, does not match, and the
    /// condition FilterFailing says so: has(event.data.score) && event.data.score > 80 does not fail. While a new filter
    /// is invalid the last valid one stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub filter: Option<String>,

    /// What the receiver or consumer gets. StandardWebhooks: a JSON body {"type", "timestamp", "data"}. CloudEventsStructured: the
    /// whole CloudEvent as application/cloudevents+json. CloudEventsBinary: the data as the body under its own media type,
    /// and the attributes in ce- headers. Raw: the data alone, under its own media type.
    #[serde(default)]
    pub format: PayloadFormat,

    /// The request, for receivers with a shape of their own: its method, path, headers and body. Without it a POST to the
    /// endpoint's URL with the body that format makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<RequestShape>>,

    /// When a failed message of this subscription is tried again. It replaces the endpoint's retry as a whole: what it
    /// leaves out has its default, not the endpoint's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,

    /// Who is told, once, when a message of this subscription becomes a dead letter because its attempts are used up, it is
    /// too old (with delivery: Pull, older than pull.maxAge), its receiver refused it, or no request can be made of it. What is told of is never told of again: a
    /// dead letter of such a message makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<Box<DeadLetter>>,

    /// While true nothing is sent for this subscription, and nothing can be pulled: events still match, and their messages
    /// wait without using up attempts.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
}

/// How messages get to whoever wants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeliveryMode {
    #[default]
    Push,
    Pull,
}

/// How long messages that are pulled wait, and are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PullOptions {
    /// A message that nobody has acknowledged for so long is a dead letter Expired: 1m to 168h, counted from its acceptance.
    #[serde(default = "default_max_age")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')").message("pull.maxAge must be from 1m to 168h"))]
    pub max_age: ApiDuration,
    /// How long acknowledged messages and dead letters are kept, for listings and replays: 1s to 720h.
    #[serde(default = "default_retention")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('720h')").message("pull.retention must be from 1s to 720h"))]
    pub retention: ApiDuration,
}

impl Default for PullOptions {
    fn default() -> PullOptions {
        PullOptions {
            max_age: default_max_age(),
            retention: default_retention(),
        }
    }
}

fn default_max_age() -> ApiDuration {
    ApiDuration::from("72h")
}

fn default_retention() -> ApiDuration {
    ApiDuration::from("72h")
}

/// What the receiver gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PayloadFormat {
    #[default]
    StandardWebhooks,
    CloudEventsStructured,
    CloudEventsBinary,
    Raw,
}
