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
pub fn one(told: &[Told<'_>]) -> Vec<u8> {
    bytes(&told.first())
}

/// The body for a batch, in order.
pub fn batch(told: &[Told<'_>]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Batch<'a> {
        events: &'a [Told<'a>],
    }
    bytes(&Batch { events: told })
}

/// The most bytes that the body for these events has, whatever becomes of them.
pub fn at_most(events: &[Event], warnings: &[Vec<Violation>]) -> usize {
    /// Names, numbers and signs of an event or a warning.
    const AROUND: usize = 64;
    /// Of one byte as JSON writes it: `\u0000`.
    const ESCAPED: usize = 6;
    let told = events.iter().map(|event| AROUND + ESCAPED * event.id.len());
    let warned = warnings.iter().flatten();
    let warned = warned.map(|one| AROUND + ESCAPED * (one.pointer.len() + one.detail.len()));
    AROUND + told.sum::<usize>() + warned.sum::<usize>()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Data;

    #[test]
    fn no_answer_is_larger_than_what_is_held_for_it() {
        let event = |id: &str| Event {
            id: id.into(),
            source: "/agents/voice".into(),
            r#type: "lead.qualified".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: Vec::new(),
            data: Data::None,
        };
        let warning = Violation {
            pointer: "/\u{1}".repeat(100),
            detail: "\u{1}\"".repeat(100),
        };
        let accepted = Accepted::New {
            event: crate::ids::EventId(1),
            matched: u32::MAX,
        };
        for (count, warnings) in [(0, 0), (1, 0), (1, 8), (500, 8)] {
            let events = vec![event(&"\"".repeat(256)); count];
            let warnings = vec![vec![warning.clone(); warnings]; count];
            let told: Vec<_> = events
                .iter()
                .zip(&warnings)
                .map(|(event, warnings)| Told::new(event, accepted, warnings.clone()))
                .collect();
            let held = at_most(&events, &warnings);
            assert!(
                batch(&told).len() <= held && one(&told).len() <= held,
                "{count}: {held}"
            );
        }
    }
}
