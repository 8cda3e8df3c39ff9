//! `EventSubscription`: which events of its namespace go to one endpoint. Doc comments here are what `kubectl explain`
//! shows.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{EndpointReference, is_false};
use super::request::{DeadLetter, RequestShape};
use super::retry::Retry;
use super::status::SubscriptionStatus;

/// Which events of its namespace are sent to one endpoint, and in what form.
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
    doc = "Which events of its namespace are sent to one WebhookEndpoint, and in what form.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters: choose a shorter name"),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".spec.endpointRef.name", description = "The WebhookEndpoint that events go to"),
    printcolumn(name = "Types", type_ = "string", json_path = ".spec.eventTypes", description = "Types of events that match"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Loaded: an event sent now is matched"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.delivery.pending", description = "Messages not yet settled"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.delivery.deadLettered", description = "Dead letters kept"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EventSubscriptionSpec {
    /// The WebhookEndpoint, in the same namespace, that events go to. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("endpointRef cannot be changed: create another EventSubscription for the other endpoint"))]
    pub endpoint_ref: EndpointReference,

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

    /// What the receiver gets. StandardWebhooks: a JSON body {"type", "timestamp", "data"}. CloudEventsStructured: the
    /// whole CloudEvent as application/cloudevents+json. CloudEventsBinary: the data as the body under its own media type,
    /// and the attributes in ce- headers. Raw: the data alone, under its own media type.
    #[serde(default)]
    pub format: PayloadFormat,

    /// The request, for receivers with a shape of their own: its method, path, headers and body. Without it a POST to the
    /// endpoint's URL with the body that format makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestShape>,

    /// When a failed message of this subscription is tried again. It replaces the endpoint's retry as a whole: what it
    /// leaves out has its default, not the endpoint's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,

    /// Who is told, once, when a message of this subscription becomes a dead letter because its attempts are used up, it is
    /// too old, its receiver refused it, or no request can be made of it. What is told of is never told of again: a
    /// dead letter of such a message makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,

    /// While true nothing is sent for this subscription: events still match, and their messages wait without using up
    /// attempts.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
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
