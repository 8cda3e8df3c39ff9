//! What an accepted producer reads, and how any answer in JSON is put. Pure.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use crate::event::Event;
use crate::queue::Accepted;
use crate::schema::Violation;

/// The answer to one event.
#[derive(Debug, Serialize)]
pub struct Told<'a> {
    /// The event's own id; the random one where plain JSON came without.
    id: &'a str,
    /// How many messages it made, at its first acceptance.
    matched: u32,
    pub(super) duplicate: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Violation>,
}

impl<'a> Told<'a> {
    /// What is told of one event.
    pub fn new(event: &'a Event, accepted: Accepted, warnings: Vec<Violation>) -> Told<'a> {
        let (matched, duplicate) = match accepted {
            Accepted::New { matched, .. } => (matched, false),
            Accepted::Duplicate { matched, .. } => (matched, true),
        };
        Told {
            id: &event.id,
            matched,
            duplicate,
            warnings,
        }
    }
}

/// The body for one event.
pub fn one(told: &[Told<'_>]) -> Bytes {
    json(&told.first())
}

/// The body for a batch, in order.
pub fn batch(told: &[Told<'_>]) -> Bytes {
    #[derive(Serialize)]
    struct Batch<'a> {
        events: &'a [Told<'a>],
    }
    json(&Batch { events: told })
}

/// A body of JSON, with its status.
pub(super) fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

pub(super) fn json(value: &impl Serialize) -> Bytes {
    Bytes::from(bytes(value))
}

/// Strings and numbers into memory: nothing that can fail.
pub(super) fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
