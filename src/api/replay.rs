//! `Replay`: sending kept messages again, as an object. Doc comments here are what `kubectl explain` shows.

#![expect(
    clippy::duplicated_attributes,
    reason = "every printcolumn has a type and a path of its own; the lint does not see that they are nested"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::EndpointReference;
use super::duration::ApiDuration;

/// Sends kept messages of its namespace again.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidings.dev",
    version = "v1alpha1",
    kind = "Replay",
    plural = "replays",
    category = "tidings",
    namespaced,
    status = "ReplayStatus",
    derive = "PartialEq",
    doc = "Sends kept messages of its namespace again, each with the webhook-id it had. It runs once; create another one to send again.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Queued, Counting, Sending, Complete or Failed"
    ),
    printcolumn(
        name = "Matched",
        type_ = "integer",
        json_path = ".status.matched",
        description = "Messages that fitted when they were counted"
    ),
    printcolumn(
        name = "Sent",
        type_ = "integer",
        json_path = ".status.sent",
        description = "Messages that are pending again, or were"
    ),
    printcolumn(
        name = "Succeeded",
        type_ = "integer",
        json_path = ".status.succeeded",
        description = "Of those sent, delivered since"
    ),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.failed",
        description = "Of those sent, dead letters again"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ReplaySpec {
    /// Which messages are sent again. Cannot be changed.
    #[x_kube(validation = Rule::new("self == oldSelf").message("selector cannot be changed: create another Replay"))]
    pub selector: ReplaySelector,

    /// How fast messages are handed to delivery, where their endpoint's own limits are not slow enough. It may be changed while
    /// the replay runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<ReplayRate>,

    /// While true messages are counted (status.matched), and none is sent. Cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("dryRun cannot be changed: create another Replay"))]
    pub dry_run: bool,

    /// How long after its end this object is deleted: 0s to 720h. Without it the object stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('720h')").message("ttlAfterFinished must be from 0s to 720h"))]
    pub ttl_after_finished: Option<ApiDuration>,
}

/// Which messages are meant. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.endpointRef) || has(self.subscriptionRef) || has(self.ids)").message("selector needs endpointRef, subscriptionRef or ids: say whose messages are sent again"),
    validation = Rule::new("!(has(self.endpointRef) && has(self.subscriptionRef))").message("selector takes endpointRef or subscriptionRef, not both: a subscription has one endpoint"),
    validation = Rule::new("!has(self.from) || !has(self.until) || self.from <= self.until").message("selector.from must not be later than selector.until")
)]
pub struct ReplaySelector {
    /// Messages of this WebhookEndpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_ref: Option<EndpointReference>,

    /// Messages of this EventSubscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription_ref: Option<SubscriptionReference>,

    /// DeadLetter: those that were given up. Delivered: those that the receiver took. Any: both. What is pending is sent
    /// anyway.
    #[serde(default)]
    pub state: ReplayState,

    /// Only events accepted at this time or later, in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Time>,

    /// Only events accepted at this time or earlier, in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,

    /// Only the messages with these webhook-ids, 1 to 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500), inner(length(min = 17, max = 17)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new("self.all(id, id.matches('^msg_[0-7][0-9A-HJKMNP-TV-Z]{12}$'))").message("each of ids must be a webhook-id: msg_ and 13 characters, as in msg_3B0WGYT001G00")
    )]
    pub ids: Option<Vec<String>>,
}

/// An EventSubscription in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionReference {
    /// Name of the EventSubscription.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// What became of the messages that are sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReplayState {
    #[default]
    DeadLetter,
    Delivered,
    Any,
}

/// How fast messages are handed to delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayRate {
    /// So many messages in each per, from 1 to 10000.
    #[schemars(range(min = 1, max = 10000))]
    pub requests: i32,
    /// The time that requests counts for: 1s to 1h.
    #[serde(default = "default_per")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("rate.per must be from 1s to 1h"))]
    pub per: ApiDuration,
}

fn default_per() -> ApiDuration {
    ApiDuration::from("1s")
}

/// How far a Replay is. All of it is the dispatcher's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplayStatus {
    /// The generation of the spec that the dispatcher looked at last; -1 before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Complete or Failed, once it has ended; until then Reconciling.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Queued, Counting, Sending, Complete or Failed: for people; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub phase: Option<String>,
    /// When it began; messages settled later are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Messages that fitted when they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<i64>,
    /// Messages that are pending again, or were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<i64>,
    /// Of those sent, delivered since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<i64>,
    /// Of those sent, dead letters again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<i64>,
}

impl ReplayStatus {
    /// Whether it has ended, well or not.
    pub fn is_finished(&self) -> bool {
        use super::conditions::{COMPLETE, FAILED, TRUE};
        let ended = |c: &Condition| (c.type_ == COMPLETE || c.type_ == FAILED) && c.status == TRUE;
        self.conditions.iter().any(ended)
    }
}
