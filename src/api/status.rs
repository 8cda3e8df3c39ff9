//! Status of the resources. Two writers with disjoint fields: the dispatcher owns `delivery` and the conditions
//! `Delivering`, `KeysBlocked`, `FilterFailing` and `Unconsumed`, the controller everything else.
//!
//! Invariant: an absent field is not serialised, since a null in server-side apply would be owned.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How many failures `recentFailures` keeps.
pub const RECENT_FAILURES: usize = 5;

/// How many characters `handledEnableRequest` holds: its schema's bound.
pub const ENABLE_REQUEST_LONGEST: usize = 256;

/// Whether the controller has looked at no generation yet: the default of the schema is -1.
pub fn is_unseen(observed_generation: Option<i64>) -> bool {
    observed_generation.is_none_or(|generation| generation < 1)
}

/// What is known of a WebhookEndpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// The generation of the spec that the controller looked at last; -1 before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (configured and loaded), Reconciling, Stalled, KeyRotating, Delivering (how it goes with the receiver), and KeysBlocked
    /// (messages wait behind a dead letter).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Scheme and host that requests go to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub target: Option<String>,
    /// The signing key in use; ids and times only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<Box<SigningStatus>>,
    /// Secrets and ConfigMaps that are read for this endpoint, and the Service that it sends to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    pub references: Vec<ReferenceStatus>,
    /// How delivery goes, as of observedTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<EndpointDelivery>,
}

/// The signing key in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SigningStatus {
    /// The Secret that holds the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub secret_name: Option<String>,
    /// The keys that requests are signed with, current first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub keys: Vec<KeyStatus>,
    /// When the current key will be replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation_time: Option<Time>,
}

/// One signing key, without its material.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// The key's public id.
    #[schemars(length(max = 64))]
    pub id: String,
    /// When the key was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_time: Option<Time>,
    /// The public key, whpk_..., of an Ed25519 key: what receivers verify with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub public_key: Option<String>,
    /// When requests stop being signed with this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_time: Option<Time>,
}

/// A Secret, ConfigMap or Service that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReferenceStatus {
    /// Secret, ConfigMap or Service.
    pub kind: ReferenceKind,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The version that was read last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub resource_version: Option<String>,
}

/// What kind of object is referred to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ReferenceKind {
    ConfigMap,
    Secret,
    Service,
}

/// How delivery to an endpoint goes. Counters are as of observedTime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDelivery {
    /// The generation of the spec that is in use for delivery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When the numbers here were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_time: Option<Time>,
    /// The key that requests are signed with first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<DeliverySigning>,
    /// What the receiver agreed to, with spec.handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake: Option<HandshakeStatus>,
    /// Messages not yet settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    /// When the oldest of them was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_pending_time: Option<Time>,
    /// Dead letters kept now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// Of those pending, how many wait for one before them with the same key of ordering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<i64>,
    /// Keys of ordering whose messages wait behind a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_keys: Option<i64>,
    /// Failed attempts since the last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<i64>,
    /// Since when attempts fail without a success between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Time>,
    /// Status of the receiver's last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status_code: Option<i32>,
    /// The last success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<LastSuccess>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// The coming attempt of the message that is due first, while one waits to be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryStatus>,
    /// The last failures, at most 5, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub recent_failures: Vec<RecentFailure>,
    /// The value of tidings.dev/enable-requested-at that was handled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub handled_enable_request: Option<String>,
}

/// The key that requests are signed with first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliverySigning {
    /// The key's public id.
    #[serde(rename = "keyID")]
    #[schemars(length(max = 64))]
    pub key_id: String,
    /// Since when it is in use.
    pub since: Time,
}

/// What the receiver agreed to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandshakeStatus {
    /// When it did.
    pub granted_time: Time,
    /// The requests a minute that it allows; absent when it allows any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_rate: Option<i64>,
}

/// The last success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastSuccess {
    /// When it was.
    pub time: Time,
}

/// The last failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// When it was.
    pub time: Time,
    /// Status of the answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// The coming attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryStatus {
    /// Its number, from 1.
    pub attempt: i32,
    /// When it is due.
    pub next_attempt_time: Time,
}

/// One of the last failures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecentFailure {
    /// When it was.
    pub time: Time,
    /// The webhook-id of the message.
    #[serde(rename = "messageID")]
    #[schemars(length(max = 64))]
    pub message_id: String,
    /// Status of the answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<i32>,
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// What is known of an EventSubscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStatus {
    /// The generation of the spec that the controller looked at last; -1 before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (valid and loaded) and Stalled; FilterFailing, while the filter has no answer for events; and Unconsumed, while
    /// messages that are pulled wait and nobody takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The newest generation that was valid. Its filter is in force while a newer one is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_valid: Option<LastValid>,
    /// Secrets that are read for this subscription.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["kind".into(), "name".into()]))]
    pub references: Vec<ReferenceStatus>,
    /// How delivery goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<SubscriptionDelivery>,
}

/// A generation that was valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastValid {
    /// Which.
    pub generation: i64,
    /// Its filter, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub filter: Option<String>,
}

/// How delivery for a subscription goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionDelivery {
    /// Messages not yet settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<i64>,
    /// With delivery: Pull, when the oldest of them was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_pending_time: Option<Time>,
    /// Dead letters kept now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_lettered: Option<i64>,
    /// The newest dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_dead_letter: Option<LastDeadLetter>,
}

/// The newest dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastDeadLetter {
    /// When it became one.
    pub time: Time,
    /// One word.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// What is known of an EventType.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventTypeStatus {
    /// The generation of the spec that the controller looked at last; -1 before it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready (compiled and loaded) and Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
