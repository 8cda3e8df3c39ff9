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
    validation = Rule::new("(self.type == 'Basic') == has(self.basic)").message("auth.basic belongs to auth.type Basic: write both or neither"),
    validation = Rule::new("(self.type == 'OAuth2ClientCredentials') == has(self.oauth2ClientCredentials)").message("auth.oauth2ClientCredentials belongs to auth.type OAuth2ClientCredentials: write both or neither")
)]
pub struct Auth {
    /// Bearer: a token (RFC 6750). Basic: a user name and a password (RFC 7617). OAuth2ClientCredentials: tokens that a token
    /// server gives (RFC 6749, 4.4).
    #[serde(rename = "type")]
    pub kind: AuthType,
    /// For type Bearer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerAuth>,
    /// For type Basic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
    /// For type OAuth2ClientCredentials.
    #[serde(default, rename = "oauth2ClientCredentials", skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2ClientCredentials>,
}

/// A way to show who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthType {
    Bearer,
    Basic,
    OAuth2ClientCredentials,
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

/// A client's credentials at a token server. Its token is sent as Authorization: Bearer <token>, is kept until shortly before
/// it expires, and is asked for anew once when the receiver answers 401.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.clientID) != has(self.clientIDSecretKeyRef)").message("auth.oauth2ClientCredentials needs exactly one of clientID and clientIDSecretKeyRef: write one and remove the other"))]
pub struct OAuth2ClientCredentials {
    /// Where tokens are given: an absolute https URL. It is reached as the receiver is: the same addresses are refused, its
    /// certificate is checked with tls.caBundle too, and tls.clientCertificate is shown if it asks for one.
    #[serde(rename = "tokenURL")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() == 'https' && url(self).getHostname() != ''").message("tokenURL must be an absolute https URL, as in https://login.example.com/oauth/token"),
        validation = Rule::new("!self.matches('^[A-Za-z]+://[^/?#]*@')").message("tokenURL must not hold a user name or password: write clientID and clientSecretKeyRef"),
        validation = Rule::new("!self.contains('#')").message("tokenURL must not have a fragment: remove # and what follows, it is never sent")
    )]
    pub token_url: String,
    /// The client's id.
    #[serde(default, rename = "clientID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[ -~]+$"))]
    pub client_id: Option<String>,
    /// The client's id in a Secret of the same namespace, for providers that hand out both in one.
    #[serde(default, rename = "clientIDSecretKeyRef", skip_serializing_if = "Option::is_none")]
    pub client_id_secret_key_ref: Option<SecretKeyReference>,
    /// The client's secret in a Secret of the same namespace.
    pub client_secret_key_ref: SecretKeyReference,
    /// How the client shows its id and secret to the token server. Basic: in the header Authorization (RFC 6749, 2.3.1), which
    /// every server takes that keeps to the RFC. Body: as client_id and client_secret in the form, which some want instead.
    #[serde(default)]
    pub client_authentication: ClientAuthentication,
    /// What is asked for, at most 32; sent as scope, separated by spaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 256), regex(pattern = r"^[!#-\[\]-~]+$"))
    )]
    pub scopes: Vec<String>,
    /// Further fields of the form, at most 16, as providers want them: audience (Auth0), resource (RFC 8707). Nothing secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub parameters: Vec<TokenParameter>,
}

/// Where the client's id and secret are in a request for a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientAuthentication {
    #[default]
    Basic,
    Body,
}

/// A field of the form that asks for a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenParameter {
    /// Its name, as in audience.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9._-]+$"))]
    #[x_kube(validation = Rule::new("!(self in ['grant_type', 'scope', 'client_id', 'client_secret', 'client_assertion', 'client_assertion_type'])").message("this field of the form is set by Tidings: remove it, and write scopes, clientID and clientSecretKeyRef"))]
    pub name: String,
    /// Its value.
    #[schemars(length(min = 1, max = 2048), regex(pattern = r"^[ -~]+$"))]
    pub value: String,
}

/// The certificate that Tidings shows to the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// A Secret with the keys tls.crt (the certificate and its chain, PEM) and tls.key (PEM), as of the type
    /// kubernetes.io/tls. A renewed certificate is used without a restart.
    pub secret_ref: SecretReference,
}
