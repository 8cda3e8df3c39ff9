//! Parts that several resources share. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use kube::core::Rule;
use serde::{Deserialize, Serialize};

/// One key of a Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// Name of the Secret. It must carry the label tidings.dev/use: "true", which its owner sets to open it for endpoints:
    /// whoever may create endpoints could otherwise send any Secret of the namespace to a URL of his own.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("a Secret", "crm-token"))]
    pub name: String,
    /// Key in the Secret's data. One trailing newline of the value is dropped.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = data_key("token"))]
    pub key: String,
}

/// A Secret in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretReference {
    /// Name of the Secret. It must carry the label tidings.dev/use: "true", which its owner sets to open it for endpoints.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("a Secret", "crm-token"))]
    pub name: String,
}

/// One key of a ConfigMap in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeyReference {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("a ConfigMap", "receiver-ca"))]
    pub name: String,
    /// Key in the ConfigMap's data.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = data_key("ca.crt"))]
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

fn object_name(of: &str, such_as: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message(&*format!(
        "write the name of {of} as it is in its metadata: lower case letters, digits, - and ., as in {such_as}"
    ))
}

fn data_key(such_as: &str) -> Rule {
    Rule::new("self.matches('^[-._A-Za-z0-9]+$')").message(&*format!(
        "write a key of the data: letters, digits, -, _ and ., as in {such_as}"
    ))
}

/// Refuses the names of headers that belong to the connection, or to the body with these `more` names.
pub(super) fn connection_header(more: &str) -> Rule {
    Rule::new(format!(
        "!(self.lowerAscii() in ['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', \
         'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade', 'expect', 'host', 'content-length', \
         'content-encoding'{more}])"
    ))
    .message("this header belongs to the connection or the body and is set by Tidings: remove it")
}

/// Refuses the names of headers that belong to a signature.
pub(super) fn signature_header() -> Rule {
    Rule::new(
        "!self.lowerAscii().startsWith('webhook-') && !(self.lowerAscii() in ['signature', 'signature-input', \
         'stripe-signature', 'x-hub-signature', 'x-hub-signature-256'])",
    )
    .message("this header belongs to the signature and is set by Tidings: remove it")
}

/// Whether a Secret or ConfigMap can have this name; [`object_name`] says the same. Requests put it into their path as it is.
pub(super) fn is_object_name(name: &str) -> bool {
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(ends) && name.ends_with(ends) && name.chars().all(|c| ends(c) || c == '-' || c == '.')
}

/// Skips `false` in a Serialize derive.
pub(super) fn is_false(value: &bool) -> bool {
    !value
}
