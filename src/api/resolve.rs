//! What controller and dispatcher both make of a resource: usable, or a reason why not. Pure: referenced values are
//! arguments. Controller and dispatcher call the same functions, so conditions and behaviour cannot disagree.
//!
//! Invariant: what is resolved is never read from the raw spec again, and no message shows a value that was referred to.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::census::MAX_SUBSCRIPTIONS;
use super::egress::{HostPattern, Services};
use crate::expression::Expression;
use crate::signing::Signer;

mod credentials;
mod endpoint;
mod found;
mod limits;
mod oauth2;
mod ordering;
mod references;
mod request;
mod service;
mod subscription;
mod target;
#[cfg(test)]
mod tests;

pub use endpoint::{references_of, resolve_endpoint, scheme, signing_reference, uses_of};
pub(crate) use found::LONGEST_VALUE;
pub use found::{Found, Used, Uses, Value};
pub use limits::resolve_retry;
pub use ordering::resolve_ordering;
pub(crate) use references::without_newline;
pub use references::{Lookup, Reference, References, ValueKind};
pub use request::{
    DeadLetterTarget, RequestForm, RequestSecrets, ResolvedRequest, resolve_secrets, subscription_references,
    subscription_uses,
};
pub use service::FoundService;
pub use subscription::{resolve_subscription, resolve_with_last};

/// Why a resource cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Unresolved {
    /// One of [`crate::api::conditions::reasons`].
    pub reason: &'static str,
    /// What to do about it; never holds a value that was referred to.
    pub message: String,
    /// Only a change of the resource (or of the policy, or a conflicting Secret's removal) helps.
    pub stalled: bool,
}

impl Unresolved {
    /// Something outside the resource is missing: it is looked at again.
    pub(crate) fn waiting(reason: &'static str, message: impl Into<String>) -> Unresolved {
        Unresolved {
            reason,
            message: message.into(),
            stalled: false,
        }
    }

    /// Looking again does not help.
    fn stalled(reason: &'static str, message: impl Into<String>) -> Unresolved {
        Unresolved {
            reason,
            message: message.into(),
            stalled: true,
        }
    }

    /// The namespace may have so many endpoints, and older ones count.
    pub fn over_quota(limit: u32) -> Unresolved {
        Unresolved::stalled(
            crate::api::conditions::reasons::POLICY_DENIED,
            format!(
                "the administrator's policy gives the namespace a quota of {limit} endpoints, and the oldest count: delete \
                 others, or ask the administrator for more (quotas.endpoints of the policy file)"
            ),
        )
    }

    /// The namespace has more subscriptions than events are matched against, and older ones count.
    pub fn too_many_subscriptions() -> Unresolved {
        Unresolved::stalled(
            crate::api::conditions::reasons::TOO_MANY_SUBSCRIPTIONS,
            format!(
                "the namespace has more than {MAX_SUBSCRIPTIONS} subscriptions, and the oldest count: no event matches this \
                 one until others are deleted"
            ),
        )
    }

    /// A spec that the resource's own rules exclude.
    fn invalid(message: impl Into<String>) -> Unresolved {
        Unresolved::stalled(crate::api::conditions::reasons::INVALID_SPEC, message)
    }
}

/// An endpoint as delivery uses it.
#[derive(Clone, Debug)]
pub struct ResolvedEndpoint {
    pub namespace: String,
    pub name: String,
    /// The object's: another one may take the name after it.
    pub uid: String,
    pub generation: i64,
    pub target: Target,
    /// Sent with every request; values from Secrets are marked sensitive (their Debug is redacted).
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Requests carry a token that is got with this.
    pub token: Option<Arc<TokenRequest>>,
    /// Trusted in addition to the public roots; none means the public roots alone.
    pub ca: Option<Arc<CaBundle>>,
    /// Shown to a receiver that asks for one.
    pub client: Option<Arc<ClientIdentity>>,
    pub signing: Arc<Signer>,
    pub timeout: Duration,
    pub retry: RetryPolicy,
    /// The ceiling of the adaptive limit.
    pub max_in_flight: u32,
    pub rate: Option<Rate>,
    pub breaker: BreakerPolicy,
    /// Failing for so long without a success disables it; none: never.
    pub disable_after: Option<Duration>,
    /// Which answers are successes; none: 2xx.
    pub success: Option<Expression>,
    /// The receiver is asked before anything is sent.
    pub handshake: bool,
    /// How long delivered messages and dead letters are kept.
    pub retention: Duration,
    pub suspend: bool,
    pub egress: Arc<EgressRules>,
    /// The value of `tidings.dev/enable-requested-at`, if any.
    pub enable_request: Option<String>,
}

/// Where requests go. Debug leaves the path out: it may be the secret itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    pub host: Host,
    pub port: u16,
    /// The request target: path and query, as written.
    pub path: String,
    /// It was read from a Secret.
    pub is_secret: bool,
    /// The `Host` header: host, and the port unless it is the scheme's own.
    pub authority: String,
    /// `scheme://host[:port]`, shown in status.
    pub origin: String,
    /// Of a Service: `host` is not looked up.
    pub service: Option<Arc<ServiceRoute>>,
}

/// How a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRoute {
    /// Its own, which the cluster gave to it; they and no others are dialled.
    pub addresses: Arc<[IpAddr]>,
    pub tls: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.origin)
    }
}

/// A host as the URL standard parses it: `127.1` and `0x7f.1` are addresses here, not names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name, lower case, without a trailing dot.
    Name(String),
    Address(IpAddr),
}

impl From<url::Host> for Host {
    fn from(host: url::Host) -> Host {
        match host {
            url::Host::Domain(name) => Host::Name(name),
            url::Host::Ipv4(ip) => Host::Address(IpAddr::V4(ip)),
            url::Host::Ipv6(ip) => Host::Address(IpAddr::V6(ip)),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(ip) => ip.fmt(f),
        }
    }
}

/// A PEM bundle and its SHA-256, by which clients are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaBundle {
    /// That of the Secret or ConfigMap: many endpoints may name one.
    pub pem: Bytes,
    pub digest: [u8; 32],
}

/// A certificate with its chain and its private key, and the SHA-256 of all, by which clients are shared.
pub struct ClientIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub digest: [u8; 32],
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(redacted)")
    }
}

/// How a token is asked for (RFC 6749, 4.4.2).
pub struct TokenRequest {
    pub target: Target,
    /// `application/x-www-form-urlencoded`.
    pub form: Bytes,
    /// The client's id and secret, where they are not in the form.
    pub authorization: Option<HeaderValue>,
    /// SHA-256 of all of it and of the namespace, by which tokens are shared.
    pub digest: [u8; 32],
}

impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenRequest({:?}, redacted)", self.target)
    }
}

/// When to try again. `schedule[i]` is the wait after attempt `i + 1`; one attempt more than waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub schedule: Vec<Duration>,
    /// Adds up to this percentage of the wait, never subtracts.
    pub jitter_percent: u8,
    /// The most that a Retry-After may ask for.
    pub retry_after_max: Duration,
    /// Statuses that refuse the message for good.
    pub never_retry: Vec<u16>,
    /// An older message is not sent any more.
    pub max_age: Duration,
}

/// Messages with the same key go out one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fifo {
    pub key: FifoKey,
    /// A dead letter blocks its key.
    pub blocks: bool,
}

impl Fifo {
    /// For a spec that wants an order and says it badly: nothing overtakes anything.
    pub fn strictest() -> Fifo {
        Fifo {
            key: FifoKey::Common,
            blocks: true,
        }
    }
}

/// What an event's key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FifoKey {
    /// Its extension `partitionkey`, else its subject, else one for all.
    Usual,
    /// One for all.
    Common,
    /// What an expression over `event` gives.
    Expression(Expression),
}

/// How many requests the receiver wants: `requests` in each `per`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub requests: u32,
    pub per: Duration,
}

impl Rate {
    /// Whole requests a minute, at least one.
    pub fn per_minute(self) -> u64 {
        let per = self.per.as_millis().max(1);
        let minute = u128::from(self.requests) * 60_000 / per;
        u64::try_from(minute).unwrap_or(u64::MAX).max(1)
    }
}

/// When the breaker opens, and how the receiver is probed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Endpoint faults in a row.
    pub open_after: u32,
    /// The wait before the first probe; it doubles with each that fails,
    pub probe_after: Duration,
    /// up to this.
    pub probe_after_max: Duration,
}

/// What the administrator opened for a namespace, and to what he narrowed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressRules {
    /// Ranges that are refused otherwise.
    pub open_cidrs: Vec<Cidr>,
    /// Ranges that are refused, also where they are opened: what is globally reachable and yet inside.
    pub closed_cidrs: Vec<Cidr>,
    /// None: every host.
    pub hosts: Option<Vec<HostPattern>>,
    /// None: every port.
    pub ports: Option<Vec<u16>>,
    pub services: Services,
}

/// An address range; IPv4-mapped addresses are compared as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

/// A subscription as matching and rendering use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedSubscription {
    pub namespace: String,
    pub name: String,
    pub generation: i64,
    pub delivery: Delivery,
    pub event_types: Vec<TypePattern>,
    /// Exact sources; empty means every source.
    pub sources: Vec<String>,
    pub filter: Option<Expression>,
    pub format: Format,
    pub request: RequestForm,
    /// Who is told of dead letters.
    pub dead_letter: Option<DeadLetterTarget>,
    /// In place of the endpoint's.
    pub retry: Option<RetryPolicy>,
    pub suspend: bool,
}

/// How messages get to whoever wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// They are sent to the endpoint of this name, in the same namespace.
    Push { endpoint: String },
    /// They wait for a consumer.
    Pull(PullPolicy),
}

/// How long messages that are pulled wait, and are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullPolicy {
    /// An older one that nobody has acknowledged is given up.
    pub max_age: Duration,
    /// How long acknowledged messages and dead letters are kept.
    pub retention: Duration,
}

/// One entry of `eventTypes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TypePattern {
    Any,
    Exact(String),
    /// `lead.*` keeps `lead.`: every type that begins with it, dots included.
    Prefix(String),
}

/// What a receiver gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// `{"type", "timestamp", "data"}` as the Standard Webhooks specification recommends.
    #[default]
    StandardWebhooks,
    /// CloudEvents 1.0 in structured mode, `application/cloudevents+json`.
    CloudEventsStructured,
    /// CloudEvents 1.0 in binary mode: data as the body, attributes in `ce-` headers.
    CloudEventsBinary,
    /// The data alone.
    Raw,
}
