//! Parts that several resources share. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret. It must carry the label tidings.dev/use: "true", which its owner sets to open it for endpoints:
    /// whoever may create endpoints could otherwise send any Secret of the namespace to a URL of his own.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the Secret's data. One trailing newline of the value is dropped.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret. It must carry the label tidings.dev/use: "true", which its owner sets to open it for endpoints.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyReference {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in the ConfigMap's data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A WebhookEndpoint in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReference {
    /// Name of the WebhookEndpoint. It need not exist yet: messages wait for it.
    #[schemars(length(min = 1, max = 52))]
    pub name: String,
}

/// Skips `false` in a Serialize derive.
pub(super) fn is_false(value: &bool) -> bool {
    !value
}
