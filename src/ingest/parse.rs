//! From a request's head and body to valid events: the HTTP binding of CloudEvents 1.0.2, and plain JSON. Pure.
//!
//! The content mode is decided from the head alone ([`Mode::of`]), so that the limit is known before the body is read.
//! Invariant: an [`Event`] that leaves here is valid as a whole; nothing of a request with one bad part does.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName};

use crate::event::{Event, media, rules};

mod binary;
mod plain;
mod structured;

/// The largest body of one event unless configured otherwise: what the spec's interoperability floor (64 KiB) needs, four
/// times over.
pub const DEFAULT_MAX_EVENT: usize = 256 * 1024;
/// The most that [`DEFAULT_MAX_EVENT`] may be raised to: one writer batch of the store.
pub const LARGEST_MAX_EVENT: usize = 1024 * 1024;
/// The largest batch in bytes, and in events: one transaction that commits within tens of milliseconds.
pub const MAX_BATCH: usize = 4 * 1024 * 1024;
pub const MAX_BATCH_EVENTS: usize = 500;

/// How a request carries its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Attributes in `ce-` headers, the data as the body.
    Binary,
    /// One `application/cloudevents+json` document.
    Structured,
    /// One `application/cloudevents-batch+json` array.
    Batch,
    /// JSON data as the body; `type` and `source` in the query, the id in `Idempotency-Key`.
    Plain,
}

/// What was in the request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one a request; the usual request has one event, and boxing it costs an allocation"
)]
pub enum Events {
    One(Event),
    Batch(Vec<Event>),
}

impl Events {
    /// All events, in order.
    pub fn as_slice(&self) -> &[Event] {
        match self {
            Events::One(event) => std::slice::from_ref(event),
            Events::Batch(events) => events,
        }
    }
}

/// Why a request was refused. Sentences name attributes and positions, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// 415: no content mode has this media type or encoding.
    #[error("{0}")]
    Unsupported(String),
    /// 400: something is wrong with the request or with one event (its position in a batch).
    #[error("{detail}")]
    Invalid { event: Option<usize>, detail: String },
    /// 413: one event of a batch, or their number.
    #[error("{detail}")]
    TooLarge { event: Option<usize>, detail: String },
}

impl ParseError {
    fn invalid(detail: impl Into<String>) -> ParseError {
        ParseError::Invalid {
            event: None,
            detail: detail.into(),
        }
    }

    /// Says which event of a batch it was.
    fn at(self, position: usize) -> ParseError {
        match self {
            ParseError::Invalid { detail, .. } => ParseError::Invalid {
                event: Some(position),
                detail,
            },
            ParseError::TooLarge { detail, .. } => ParseError::TooLarge {
                event: Some(position),
                detail,
            },
            unsupported => unsupported,
        }
    }
}

impl From<String> for ParseError {
    fn from(detail: String) -> ParseError {
        ParseError::invalid(detail)
    }
}

impl Mode {
    /// The content mode of a request.
    pub fn of(headers: &HeaderMap) -> Result<Mode, ParseError> {
        if headers
            .get(CONTENT_ENCODING)
            .is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"))
        {
            return Err(ParseError::Unsupported(
                "send the body without a Content-Encoding".into(),
            ));
        }
        let content_type = single(headers, &CONTENT_TYPE)?.unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        // Anything that begins so is CloudEvents in some format (HTTP binding, 3: determining the mode).
        if let Some(format) = strip_prefix_ignoring_case(essence, "application/cloudevents") {
            return match format.to_ascii_lowercase().as_str() {
                "+json" | "" => Ok(Mode::Structured),
                "-batch+json" | "-batch" => Ok(Mode::Batch),
                _ => Err(ParseError::Unsupported(
                    "of the CloudEvents formats only JSON is taken: application/cloudevents+json or \
                     application/cloudevents-batch+json"
                        .into(),
                )),
            };
        }
        if headers.keys().any(|name| name.as_str().starts_with("ce-")) {
            return Ok(Mode::Binary);
        }
        if !essence.is_empty() && media::kind(Some(essence)) == media::Kind::Json {
            return Ok(Mode::Plain);
        }
        Err(ParseError::Unsupported(
            "send Content-Type: application/json with ?type= and ?source=, or CloudEvents 1.0: ce- headers, \
             application/cloudevents+json or application/cloudevents-batch+json"
                .into(),
        ))
    }

    /// The largest body, given that of one event.
    pub fn limit(self, max_event: usize) -> usize {
        match self {
            Mode::Batch => MAX_BATCH,
            Mode::Binary | Mode::Structured | Mode::Plain => max_event,
        }
    }
}

/// The head of a request, as far as events need it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
}

/// The type of the one event, where the head tells it and it can be one: it is what [`parse`] gives the event then.
pub fn announced_type<'a>(mode: Mode, head: Head<'a>) -> Option<Cow<'a, str>> {
    let announced = match mode {
        Mode::Binary => binary::event_type(head.headers),
        Mode::Plain => plain::event_type(head.query),
        Mode::Structured | Mode::Batch => None,
    };
    announced.filter(|announced| rules::r#type(announced).is_ok())
}

/// Parses a body in its mode. `random_id` is asked for an id where plain JSON comes without `Idempotency-Key`.
pub fn parse(
    mode: Mode,
    head: Head<'_>,
    body: Bytes,
    max_event: usize,
    random_id: impl FnOnce() -> String,
) -> Result<Events, ParseError> {
    match mode {
        Mode::Binary => binary::event(head.headers, body).map(Events::One),
        Mode::Structured => structured::event(&body).map(Events::One),
        Mode::Batch => structured::batch(&body, max_event).map(Events::Batch),
        Mode::Plain => plain::event(head, body, random_id).map(Events::One),
    }
}

/// The one value of a header as text; two of them would let one reader see what another does not.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ParseError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ParseError::invalid(format!("the header {name} must occur once")));
    }
    std::str::from_utf8(value.as_bytes())
        .map(Some)
        .map_err(|_| ParseError::invalid(format!("the header {name} must be UTF-8")))
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, tail) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(tail)
}

#[cfg(test)]
mod tests;
