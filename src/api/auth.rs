//! How an endpoint's requests show who sends them. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{SecretKeyReference, SecretReference};

/// How requests show who sends them, beside the signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'Bearer') == has(self.bearer)").message("auth.bearer belongs to auth.type Bearer: write both or neither"),
    validation = Rule::new("(self.type == 'Basic') == has(self.basic)").message("auth.basic belongs to auth.type Basic: write both or neither")
)]
pub struct Auth {
    /// Bearer: a token (RFC 6750). Basic: a user name and a password (RFC 7617).
    #[serde(rename = "type")]
    pub kind: AuthType,
    /// For type Bearer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
    /// For type Basic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
}

/// A way to show who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthType {
    Bearer,
    Basic,
}

/// A token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BearerAuth {
    /// The token in a Secret of the same namespace. It is sent as Authorization: Bearer <token>.
    pub secret_key_ref: SecretKeyReference,
}

/// A user name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The user name, without a colon.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[ -9;-~]+$"))]
    pub username: String,
    /// The password in a Secret of the same namespace.
    pub password_secret_key_ref: SecretKeyReference,
}

/// The certificate that Tidings shows to the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// A Secret with the keys tls.crt (the certificate and its chain, PEM) and tls.key (PEM), as of the type
    /// kubernetes.io/tls. A renewed certificate is used without a restart.
    pub secret_ref: SecretReference,
}
