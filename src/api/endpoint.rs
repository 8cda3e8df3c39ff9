//! `WebhookEndpoint`: where to send. Doc comments here are what `kubectl explain` shows.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::auth::{Auth, ClientCertificate};
use super::common::{ConfigMapKeyReference, SecretKeyReference, connection_header, is_false, signature_header};
use super::duration::ApiDuration;
use super::limits::{CircuitBreaker, DisableAfter, RateLimit};
use super::ordering::Ordering;
use super::retry::Retry;
use super::service::ServiceReference;
use super::status::EndpointStatus;

/// Where messages are sent, how they are signed, and when a failed one is tried again.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidings.dev",
    version = "v1alpha1",
    kind = "WebhookEndpoint",
    plural = "webhookendpoints",
    shortname = "whe",
    category = "tidings",
    namespaced,
    status = "EndpointStatus",
    derive = "PartialEq",
    doc = "A receiver of webhooks: its URL, how requests to it are signed, and when a failed one is tried again. EventSubscriptions of the same namespace say which events go to it.",
    validation = Rule::new("self.metadata.name.size() <= 52").message("metadata.name must have at most 52 characters: choose a shorter name (the signing Secret's name is made from it)"),
    validation = Rule::new("[has(self.spec.url), has(self.spec.urlFrom), has(self.spec.serviceRef)].filter(is, is).size() == 1").message("an endpoint needs exactly one of url, urlFrom and serviceRef: write one and remove the others"),
    validation = Rule::new("!has(self.spec.serviceRef) || self.spec.serviceRef.scheme == 'HTTPS' || !has(self.spec.tls) || (has(self.spec.auth) && has(self.spec.auth.oauth2ClientCredentials))").message("tls is of no use with serviceRef.scheme HTTP, which the default is, unless auth asks a token server: remove tls, or write scheme: HTTPS"),
    validation = Rule::new("!has(self.spec.auth) || !has(self.spec.headers) || !self.spec.headers.exists(h, h.name.lowerAscii() == 'authorization')").message("auth sets the header Authorization: remove it from headers, or remove auth"),
    printcolumn(name = "Target", type_ = "string", json_path = ".status.target", description = "Scheme and host that requests go to"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Configured and loaded; says nothing about the receiver"),
    printcolumn(name = "State", type_ = "string", json_path = r#".status.conditions[?(@.type=="Delivering")].reason"#, description = "How delivery goes"),
    printcolumn(name = "Last-Code", type_ = "integer", json_path = ".status.delivery.lastStatusCode", description = "Status of the receiver's last answer"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.delivery.pending", description = "Messages not yet settled"),
    printcolumn(name = "Next-Retry", type_ = "string", json_path = ".status.delivery.retry.nextAttemptTime", description = "When the message due first is tried again"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.delivery.deadLettered", priority = 1, description = "Dead letters kept"),
    printcolumn(name = "Fails", type_ = "integer", json_path = ".status.delivery.consecutiveFailures", priority = 1, description = "Failed attempts since the last success"),
    printcolumn(name = "Oldest", type_ = "date", json_path = ".status.delivery.oldestPendingTime", priority = 1, description = "Age of the oldest message not yet settled"),
    printcolumn(name = "Last-Success", type_ = "date", json_path = ".status.delivery.lastSuccess.time", priority = 1, description = "When the receiver last accepted a message"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.signing.secretName", priority = 1, description = "The Secret that holds the signing key")
)]
#[serde(rename_all = "camelCase")]
pub struct WebhookEndpointSpec {
    /// Where requests go: an absolute https URL without user name, password or fragment. Addresses that are private,
    /// loopback, link-local or otherwise not globally reachable are refused unless the administrator opened them; that is
    /// checked on the address actually dialled. Redirects are never followed. An endpoint has one of url, urlFrom and
    /// serviceRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(
        validation = Rule::new("isURL(self) && url(self).getScheme() == 'https'").message("url must be an absolute https URL, as in https://hooks.example.com/leads"),
        validation = Rule::new("!isURL(self) || url(self).getHostname() != ''").message("url must name a host, as in https://hooks.example.com/leads"),
        validation = Rule::new(r"!self.matches('^[A-Za-z]+://([^/?#]*\\.|[^/?#]*\\.:[0-9]*|[^/?#]*%[^/?#]*)([/?#]|$)')").message("url must name its host without a trailing dot or a zone, as in https://hooks.example.com/leads"),
        validation = Rule::new("!self.matches('^[A-Za-z]+://[^/?#]*@')").message("url must not hold a user name or password: put credentials in a Secret and name it in headers[].secretKeyRef"),
        validation = Rule::new("!self.contains('#')").message("url must not have a fragment: remove # and what follows, it is never sent")
    )]
    pub url: Option<String>,

    /// Where requests go, from a Secret: for receivers whose URL is itself the secret. Only scheme, host and port are ever
    /// shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_from: Option<UrlSource>,

    /// Where requests go, within the cluster: a Service of the same namespace, at its cluster address. Plain HTTP is allowed
    /// here and nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_ref: Option<Box<ServiceReference>>,

    /// How requests show who sends them, beside the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Box<Auth>>,

    /// Headers sent with every request, at most 32. Names are unique without regard to case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(h, self.exists_one(g, g.name.lowerAscii() == h.name.lowerAscii()))").message("headers must have different names without regard to case: remove all but one")
    )]
    pub headers: Vec<Header>,

    /// How the receiver's certificate is checked, and what is shown to it. Without it: against the public roots, and
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<Tls>>,

    /// How requests are signed. Without it: Standard Webhooks, with a key that is generated into the Secret
    /// <endpoint>-signing.
    #[serde(default)]
    #[x_kube(
        validation = Rule::new("self.scheme != 'None' || !(has(self.secretRef) || has(self.rotation) || has(self.secretTemplate) || self.deletionPolicy == 'Delete')").message("with signing.scheme None nothing is signed and there is no key: remove the other fields of signing"),
        validation = Rule::new("!(self.scheme == 'GitHub' && has(self.rotation))").message("signing.rotation cannot be used with signing.scheme GitHub: its requests carry one signature, so two keys cannot overlap; remove it"),
        validation = Rule::new("!(has(self.secretRef) && has(self.rotation))").message("signing.rotation cannot be used with signing.secretRef: remove it, and rotate by writing the new key before the old one into your Secret"),
        validation = Rule::new("!(has(self.secretRef) && has(self.secretTemplate))").message("signing.secretTemplate cannot be used with signing.secretRef: set labels and annotations on your Secret itself"),
        validation = Rule::new("!(has(self.secretRef) && self.deletionPolicy == 'Delete')").message("signing.deletionPolicy Delete cannot be used with signing.secretRef: your own Secret is never deleted, remove the field")
    )]
    pub signing: Signing,

    /// How long one attempt may take, from connecting to the complete head of the answer: 1s to 60s.
    #[serde(default = "default_timeout")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('60s')").message("timeout must be from 1s to 60s"))]
    pub timeout: ApiDuration,

    /// When a failed message is tried again.
    #[serde(default)]
    pub retry: Retry,

    /// The most attempts under way at a time: 1 to 256. How many really are adapts to the receiver: it begins with few,
    /// grows with successes and halves when the receiver is slow or throttles.
    #[serde(default = "default_max_in_flight")]
    #[schemars(range(min = 1, max = 256))]
    pub max_in_flight: i32,

    /// How many requests the receiver wants. Without it as many as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,

    /// Whether the receiver is asked whether it wants messages before the first one is sent. None: it is not. CloudEvents:
    /// as HTTP 1.1 Web Hooks for Event Delivery, a specification of CloudEvents, says. The url is sent an OPTIONS request
    /// with the header WebHook-Request-Origin (tidings.dev, unless the administrator set another name) and, with rateLimit,
    /// WebHook-Request-Rate. An answer with a status 2xx and WebHook-Allowed-Origin, which is that name or *, agrees. Until
    /// then messages wait, use up no attempt, and the question is put again as a probe of circuitBreaker is.
    /// WebHook-Allowed-Rate, a number of requests a minute or *, is obeyed beside rateLimit. It is asked again when the URL
    /// or rateLimit changes.
    #[serde(default)]
    pub handshake: Handshake,

    /// In what order messages go out. Without it in any.
    #[serde(default)]
    pub ordering: Ordering,

    /// Which answers mean that the receiver has the message, where the status alone does not tell: a CEL expression over
    /// response.status and response.body (at most 64 KiB of it, JSON where it is JSON, else a string), such as
    /// response.status == 200 && response.body.ok == true. An answer for which it is false or fails is tried again like one
    /// with a bad status. Without it every 2xx is a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub success: Option<String>,

    /// When attempts stop because the receiver is broken, and how it is probed meanwhile.
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,

    /// An endpoint that failed for this long without one success is disabled: 1h to 720h, or Never. It is enabled again by
    /// a change of its spec or by the annotation tidings.dev/enable-requested-at. Its messages wait, until retry.maxAge.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == 'Never' || (duration(self) >= duration('1h') && duration(self) <= duration('720h'))").message("disableAfter must be from 1h to 720h, or Never"))]
    pub disable_after: DisableAfter,

    /// How long delivered messages and dead letters are kept after they were settled, to be looked at and sent again: 1s to
    /// 720h. They go within a sixteenth of it after that, an hour at most. Delivered ones go sooner when the store is nearly
    /// full.
    #[serde(default = "default_retention")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('720h')").message("retention must be from 1s to 720h"))]
    pub retention: ApiDuration,

    /// While true nothing is sent: events still match, and their messages wait without using up attempts.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
}

/// Whether the receiver is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Handshake {
    #[default]
    None,
    CloudEvents,
}

/// One header of every request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.secretKeyRef)").message("a header needs exactly one of value and secretKeyRef: write one and remove the other"))]
pub struct Header {
    /// Name of the header. Names that belong to the connection, the body or the signature are refused.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_|~-]+$"))]
    #[x_kube(validation = connection_header(", 'content-type'"), validation = signature_header())]
    pub name: String,
    /// The value as it stands: visible ASCII, without white space at its ends. For anything secret use secretKeyRef.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), regex(pattern = r"^[!-~]([ -~\t]*[!-~])?$"))]
    pub value: Option<String>,
    /// The value from a Secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyReference>,
}

/// Where a URL is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct UrlSource {
    /// In a Secret of the same namespace: an absolute https URL as url takes it.
    pub secret_key_ref: SecretKeyReference,
}

/// How the receiver's certificate is checked, and what is shown to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.caBundle) || has(self.clientCertificate)").message("tls needs caBundle or clientCertificate: write one, or remove tls"))]
pub struct Tls {
    /// Certificates, PEM of at most 256 KiB, that are trusted in addition to the public roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)").message("tls.caBundle needs exactly one of secretKeyRef and configMapKeyRef: write one and remove the other"))]
    pub ca_bundle: Option<CaBundleSource>,
    /// The certificate that is shown to a receiver that asks for one (mutual TLS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
}

/// Where a bundle of certificates is: exactly one of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaBundleSource {
    /// In a Secret of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyReference>,
    /// In a ConfigMap of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<ConfigMapKeyReference>,
}

/// How requests are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signing {
    /// StandardWebhooks: headers webhook-id, webhook-timestamp and webhook-signature as in Standard Webhooks 1.0.0, with
    /// HMAC-SHA256. StandardWebhooksEd25519: the same with Ed25519 (v1a), whose receivers need only the public key, which is
    /// in status. GitHub: the header X-Hub-Signature-256 of GitHub's webhooks. Stripe: the header Stripe-Signature of
    /// Stripe's webhooks. None: no signature. webhook-id and webhook-timestamp are sent with all of them. Cannot be changed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("signing.scheme cannot be changed: create another WebhookEndpoint with the new scheme"))]
    pub scheme: SigningScheme,
    /// A key of your own instead of a generated one: whsec_ and the base64 of 24 to 64 bytes, or for Ed25519 whsk_ and the
    /// base64 of a seed and its public key. Several keys are separated
    /// by white space, the current one first; every request is signed with all of them. With GitHub and Stripe the value is
    /// one key, taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyReference>,
    /// What becomes of the generated Secret when the endpoint is deleted. Retain keeps it, and an endpoint created again
    /// under the same name signs with the same key. Delete removes it.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Labels and annotations of the generated Secret. What leaves the template leaves the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_template: Option<SecretTemplate>,
    /// When the generated key is replaced; not with GitHub. Without it only on request, by the annotation tidings.dev/rotate-requested-at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("!has(self.interval) || duration(self.interval) >= duration('1h')").message("signing.rotation.interval must be at least 1h"),
        validation = Rule::new("duration(self.overlap) >= duration('1s')").message("signing.rotation.overlap must be at least 1s"),
        validation = Rule::new("!has(self.interval) || duration(self.overlap) + duration(self.overlap) <= duration(self.interval)").message("signing.rotation.overlap must be at most half of interval: set overlap (24h unless set), as in interval 2h with overlap 1h")
    )]
    pub rotation: Option<Rotation>,
}

/// A signing scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SigningScheme {
    #[default]
    StandardWebhooks,
    StandardWebhooksEd25519,
    GitHub,
    Stripe,
    None,
}

/// What becomes of the generated Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    #[default]
    Retain,
    Delete,
}

/// Metadata of the generated Secret. Nothing is copied from the endpoint itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretTemplate {
    /// Labels, at most 32. The prefix tidings.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}))]
    #[x_kube(
        validation = Rule::new("self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))").message("names in secretTemplate.labels must be valid label names, as in app.kubernetes.io/part-of"),
        validation = Rule::new("self.all(k, !k.startsWith('tidings.dev/'))").message("names in secretTemplate.labels must not begin with tidings.dev/: choose another prefix")
    )]
    pub labels: BTreeMap<String, String>,
    /// Annotations, at most 32. The prefix tidings.dev/ is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(
        validation = Rule::new("self.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))").message("names in secretTemplate.annotations must be valid annotation names, as in example.com/owner"),
        validation = Rule::new("self.all(k, !k.startsWith('tidings.dev/'))").message("names in secretTemplate.annotations must not begin with tidings.dev/: choose another prefix")
    )]
    pub annotations: BTreeMap<String, String>,
}

/// When the generated key is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// The age at which a key is replaced, from 1h. Without it a key is replaced only on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<ApiDuration>,
    /// How long requests are signed with both keys, so that receivers can take over the new one: from 1s, at most half of
    /// interval.
    #[serde(default = "default_overlap")]
    pub overlap: ApiDuration,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation {
            interval: None,
            overlap: default_overlap(),
        }
    }
}

impl WebhookEndpointSpec {
    /// What the API server makes of a manifest that names only a URL.
    pub fn to(url: &str) -> WebhookEndpointSpec {
        WebhookEndpointSpec {
            url: Some(url.to_owned()),
            url_from: None,
            service_ref: None,
            auth: None,
            headers: Vec::new(),
            tls: None,
            signing: Signing::default(),
            timeout: default_timeout(),
            retry: Retry::default(),
            max_in_flight: default_max_in_flight(),
            rate_limit: None,
            handshake: Handshake::None,
            ordering: Ordering::default(),
            success: None,
            circuit_breaker: CircuitBreaker::default(),
            disable_after: DisableAfter::default(),
            retention: default_retention(),
            suspend: false,
        }
    }
}

fn default_timeout() -> ApiDuration {
    ApiDuration::from("15s")
}

fn default_retention() -> ApiDuration {
    ApiDuration::from("72h")
}

fn default_overlap() -> ApiDuration {
    ApiDuration::from("24h")
}

fn default_max_in_flight() -> i32 {
    64
}
