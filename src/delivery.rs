//! Delivery: guard, resolver, client, attempt, outcome; from a message to a verdict.
//!
//! Owns sockets to receivers; knows nothing of the queue or of when to try. Invariant: no byte leaves for an address that
//! the guard has not passed at connect time.

pub mod client;
mod connection;
mod excerpt;
pub mod guard;
pub mod handshake;
mod kept;
pub mod metrics;
mod outcome;
mod pool;
mod render;
pub mod resolver;
mod sessions;
pub mod tls;
mod tokens;
mod turns;

pub use client::{Config, HttpsSender, MAX_ANSWER};
pub use handshake::{Grant, Origin, Refusal};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::api::resolve::ResolvedEndpoint;
use crate::ids::MessageId;
use crate::shaping::Shaped;

/// One request to be made: rendered, not yet signed.
#[derive(Clone, Debug)]
pub struct Request {
    pub message: MessageId,
    /// None where there is no data to say it of.
    pub content_type: Option<HeaderValue>,
    /// Further headers of the format.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The exact bytes that are signed and sent.
    pub body: Bytes,
    /// Seconds since 1970, the `webhook-timestamp`.
    pub timestamp: i64,
    /// What is not as every request of the endpoint.
    pub shaped: Option<Box<Shaped>>,
}

/// What one attempt came to. Failures are data, not errors.
#[derive(Clone, Debug)]
pub struct AttemptResult {
    pub took: Duration,
    pub outcome: Outcome,
}

/// The rows of the outcome table, before the schedule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer's complete head arrived. `retry_after` is parsed (RFC 9110, 10.2.3), saturating, uncapped.
    Status {
        code: u16,
        retry_after: Option<Duration>,
        judged: Judged,
        excerpt: Option<Bytes>,
    },
    /// The receiver's (or the network's) fault, without a usable answer.
    Fault(Fault),
    /// A resolved address is forbidden: no attempt was made.
    Blocked { address: std::net::IpAddr },
    /// Our own fault (no file descriptors, no ports, all DNS failing): no attempt, no breaker.
    Ours(OurFault),
}

/// What an answer is taken for beside its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// The endpoint has no `success`: 2xx is one.
    #[default]
    ByStatus,
    Success,
    Failure,
    /// `success` has no answer for this one, which is then no success.
    Undecided,
    /// It answers [`Sender::ask`], not a message.
    Asked(Result<Grant, Refusal>),
}

impl Outcome {
    /// Whether the message is delivered.
    pub fn is_success(&self) -> bool {
        matches!(
            self,
            Outcome::Status {
                code: 200..=299,
                judged: Judged::ByStatus,
                ..
            } | Outcome::Status {
                judged: Judged::Success,
                ..
            }
        )
    }
}

/// A fault with its reason word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    Dns,
    Refused,
    Unreachable,
    Tls,
    Certificate,
    Timeout,
    Reset,
    /// Status outside 100-599, a malformed or oversized head, more than 8 interim responses.
    Protocol,
    /// The token server refused the endpoint's client, or gave no token.
    Auth,
}

/// Why it is us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OurFault {
    NoFileDescriptors,
    NoPorts,
    DnsDown,
    /// The token server is away.
    Token(TokenTrouble),
}

/// How a token server is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenTrouble {
    Fault(Fault),
    Status(u16),
}

/// Sends one request to an endpoint. The dispatcher's engine holds it as a trait object, so that its decisions can be
/// tested over paused time; the one in production is the HTTPS client of this room.
#[async_trait::async_trait]
pub trait Sender: Send + Sync + 'static {
    /// One attempt within the endpoint's timeout. Never panics, never longer than timeout plus a second, and than what a token
    /// takes where one is needed.
    async fn send(&self, endpoint: &Arc<ResolvedEndpoint>, request: Request) -> AttemptResult;

    /// Asks whether the receiver wants messages at all, within the same times. An answer is judged [`Judged::Asked`].
    async fn ask(&self, endpoint: &Arc<ResolvedEndpoint>) -> AttemptResult;
}
