//! The connections of producers; how they are bounded is `listen`'s, the requests on them are [`Ingest`]'s.
//!
//! Invariant: when [`serve`] returns, no connection and no accept of its own is left, and every 202 that was due has been
//! written (or its producer is gone, or [`GRACE`] is over).

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Ingest;
use super::unread::READ_WITHIN;
use crate::listen::serve::{self, Entrance, Limits, Spare};
use crate::tls::Certificate;

/// Connections at a time. Each holds a buffer for a head, and one answer.
pub const CONNECTIONS: usize = 4096;
/// How long connections may idle when their places are wanted.
const SPARE: Spare = Spare {
    // Who has just connected is about to ask.
    silent: Duration::from_millis(250),
    // Who was answered may ask every second: of more of those than there are places some wait, and none shakes hands for
    // every request.
    answered: Duration::from_secs(5),
    // A handshake takes its turn among others.
    shaking: Duration::from_secs(2),
};
/// The most bytes of a request's head: a token, what proxies add, and a dozen of the longest extensions. Every connection may
/// hold as much before it shows a token, and twice that where requests follow each other.
const HEAD: usize = 32 * 1024;
/// The most header fields of a request.
const FIELDS: usize = 128;
/// How long a request's head may take from its first byte on: it is a packet or two.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a connection may idle while places are free.
const IDLE: Duration = Duration::from_secs(120);
/// How long requests in flight have to end after the shutdown began: an accept takes milliseconds, and a producer that is
/// cut off sends again. Part of the 30 s that a pod has.
pub const GRACE: Duration = Duration::from_secs(5);

const LIMITS: Limits = Limits {
    places: CONNECTIONS,
    spare: SPARE,
    head: HEAD,
    fields: FIELDS,
    head_time: HEAD_TIME,
    idle: IDLE,
    read_within: READ_WITHIN,
    grace: GRACE,
};

/// Serves so many connections at a time until `shutdown`, then finishes the requests in flight: HTTPS with a certificate, else
/// plain HTTP.
pub async fn serve(
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    ingest: Arc<Ingest>,
    places: usize,
    shutdown: CancellationToken,
) {
    let (answering, closing) = (ingest.clone(), ingest.closing.clone());
    let answer = move |request: Request<Incoming>| {
        let ingest = answering.clone();
        async move { ingest.answer(request).await }
    };
    let entrance = Entrance {
        listener,
        certificate,
        limits: Limits { places, ..LIMITS },
    };
    serve::serve(entrance, answer, shutdown, closing).await;
    ingest.settled().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_without_end_hold_what_docs_sizing_says_and_not_for_long() {
        let sizing = include_str!("../../docs/sizing.md");
        let mebibytes = LIMITS.places * LIMITS.head / (1 << 20);
        let said = format!("{mebibytes} ({} at worst)", 2 * mebibytes);
        assert!(sizing.contains(&said), "{said}");
        assert!(LIMITS.head_time < SPARE.answered * 3);
    }
}
