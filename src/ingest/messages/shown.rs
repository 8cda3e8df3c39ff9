//! How messages are shown: as JSON. Pure.
//!
//! Invariant: nothing is shown that comes from a Secret: an endpoint's headers, URL and signature are made when a message
//! is sent and are kept nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::query;
use crate::api::names::is_pulled;
use crate::api::resolve::{Format, RequestForm, ResolvedSubscription};
use crate::event::format::{self, RenderError, Rendered, rfc3339};
use crate::ids::{MessageId, UnixMillis};
use crate::queue::{Kept, KeptAttempt, Notice, Page, Standing, StoredEvent};
use crate::shaping::{self, Shaped, shape};

/// A page.
#[derive(Debug, Serialize)]
pub(super) struct Listed {
    messages: Vec<One<Named>>,
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    go_on: Option<String>,
}

impl Listed {
    pub(super) fn new(page: &Page) -> Result<Listed, RenderError> {
        let messages = page.found.iter().map(|kept| {
            let head = format::head(&kept.attributes)?;
            Ok(One::new(kept, UnixMillis(head.accepted), head.into()))
        });
        Ok(Listed {
            messages: messages.collect::<Result<_, RenderError>>()?,
            go_on: page.go_on.map(query::token),
        })
    }
}

/// A message; its event by name or whole.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct One<E> {
    id: String,
    state: &'static str,
    /// None of one that is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    subscription: String,
    event: E,
    accepted_time: String,
    attempts: u16,
    /// Of a pending one: when it is tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settled_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
}

impl<E> One<E> {
    fn new(kept: &Kept, accepted: UnixMillis, event: E) -> One<E> {
        let mut one = One {
            id: kept.message.to_string(),
            state: kept.standing.state().word(),
            endpoint: (!is_pulled(&kept.endpoint)).then(|| kept.endpoint.clone()),
            subscription: kept.subscription.clone(),
            event,
            accepted_time: rfc3339(accepted).into_owned(),
            attempts: kept.attempts,
            due_time: None,
            settled_time: None,
            reason: None,
            status_code: None,
            duration_ms: None,
        };
        match &kept.standing {
            Standing::Pending { due } => one.due_time = Some(rfc3339(*due).into_owned()),
            Standing::Delivered { at, status, took } => {
                one.settled_time = Some(rfc3339(*at).into_owned());
                one.status_code = *status;
                one.duration_ms = took.map(millis);
            }
            Standing::Dead { at, reason } => {
                one.settled_time = Some(rfc3339(*at).into_owned());
                one.reason = Some(reason.clone());
            }
        }
        one
    }
}

/// An event in a listing.
#[derive(Debug, Serialize)]
pub(in crate::ingest) struct Named {
    id: String,
    source: String,
    r#type: String,
}

impl From<format::Shown<'_>> for Named {
    fn from(head: format::Shown<'_>) -> Named {
        Named {
            id: head.id.into_string(),
            source: head.source.into_string(),
            r#type: head.r#type.into_string(),
        }
    }
}

/// A message with its event, and with what its receiver gets.
#[derive(Debug, Serialize)]
pub(super) struct Whole {
    #[serde(flatten)]
    message: One<Box<RawValue>>,
    /// None once the subscription is deleted: it says the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<Request>,
}

/// What is sent, but for what belongs to the endpoint (its URL, its own headers and the signature) and for the values of
/// Secrets that the subscription's expressions read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    /// None of one that is pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// What the subscription puts behind the endpoint's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    headers: BTreeMap<String, String>,
    #[serde(flatten)]
    body: Body,
}

/// Bytes: as text where they are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::ingest) enum Body {
    Body(String),
    BodyBase64(String),
}

impl Body {
    pub(in crate::ingest) fn new(bytes: &Bytes) -> Body {
        match std::str::from_utf8(bytes) {
            Ok(text) => Body::Body(text.to_owned()),
            Err(_) => Body::BodyBase64(BASE64.encode(bytes)),
        }
    }
}

impl Whole {
    pub(super) fn new(
        kept: &Kept,
        event: &StoredEvent,
        spec: Option<&ResolvedSubscription>,
        notice: Option<&Notice>,
    ) -> Result<Whole, RenderError> {
        let accepted = UnixMillis(format::head(&event.attributes)?.accepted);
        let structured = format::render(Format::CloudEventsStructured, event)?;
        let structured = String::from_utf8_lossy(&structured.body).into_owned();
        // One that cannot be rendered has nothing to show: it is a dead letter `Unrenderable`.
        let told = |notice| {
            let told = spec.and_then(|spec| spec.dead_letter.as_ref());
            let rendered = shaping::notice::notice(told, notice, event).ok()?;
            Some(request(kept, &rendered, None))
        };
        let sent = |spec: &ResolvedSubscription| match &spec.request {
            RequestForm::Plain => Some(request(kept, &format::render(spec.format, event).ok()?, None)),
            RequestForm::Shaped(shaped) => {
                let (rendered, shaped) = shape(shaped, spec.format, &Arc::new(shaped.hidden()), event).ok()?;
                Some(request(kept, &rendered, Some(&shaped)))
            }
            RequestForm::Unknown => None,
        };
        let request = match notice {
            Some(notice) => told(notice),
            None => spec.and_then(sent),
        };
        Ok(Whole {
            message: One::new(kept, accepted, RawValue::from_string(structured)?),
            request,
        })
    }
}

fn request(kept: &Kept, rendered: &Rendered, shaped: Option<&Shaped>) -> Request {
    let method = shaped.map_or("POST".to_owned(), |shaped| shaped.method.to_string());
    Request {
        method: (!is_pulled(&kept.endpoint)).then_some(method),
        path: shaped.and_then(|shaped| shaped.path.clone()),
        headers: headers(kept.message, rendered, shaped),
        body: Body::new(&rendered.body),
    }
}

/// The headers that come with a message, but for what belongs to an endpoint.
pub(in crate::ingest) fn headers(
    message: MessageId,
    rendered: &Rendered,
    shaped: Option<&Shaped>,
) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let shaped_headers = shaped.iter().flat_map(|shaped| &shaped.headers);
    let own = shaped_headers
        .chain(&rendered.headers)
        .map(|(name, value)| (name.to_string(), text(value)));
    let mut headers: BTreeMap<String, String> = own.collect();
    headers.insert("webhook-id".to_owned(), message.to_string());
    if let Some(content_type) = &rendered.content_type {
        headers.insert("content-type".to_owned(), text(content_type));
    }
    headers
}

/// The failures of a message.
#[derive(Debug, Serialize)]
pub(super) struct Attempts {
    attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    number: u16,
    time: String,
    duration_ms: u64,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
    /// The beginning of what the receiver answered, as text; of a request that could not be rendered, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    excerpt: Option<String>,
}

impl Attempts {
    pub(super) fn new(attempts: &[KeptAttempt]) -> Attempts {
        let attempts = attempts.iter().map(|attempt| Attempt {
            number: attempt.number,
            time: rfc3339(attempt.at).into_owned(),
            duration_ms: millis(attempt.took),
            reason: attempt.reason.clone(),
            status_code: attempt.status,
            excerpt: attempt
                .excerpt
                .as_deref()
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
        });
        Attempts {
            attempts: attempts.collect(),
        }
    }
}

fn millis(took: std::time::Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
