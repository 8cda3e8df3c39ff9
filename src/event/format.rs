//! What the store keeps of an event, and what a receiver gets: an event rendered in one of the formats. Pure.
//!
//! Rendering runs once an attempt, so it copies each byte at most once into one buffer and never parses data: in a body of
//! ours JSON goes out byte for byte as the producer sent it, text as a JSON string, anything else as base64; where the data
//! is the body nothing is copied. Invariant: what [`stored`] made,
//! [`accepted_event`] and [`render`] read back, also in a later version (fields are only ever added).

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use crate::api::resolve::Format;
use crate::event::text::Text;
use crate::event::{Data, Event, TraceContext};
use crate::ids::UnixMillis;
use crate::queue::StoredEvent;

mod binary;

/// A body with the headers that its format brings; `webhook-*` headers are added when it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// None where there is no data to say it of.
    pub content_type: Option<HeaderValue>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The exact bytes to sign and send.
    pub body: Bytes,
}

/// Why a stored event cannot be rendered: its message is a dead letter `Unrenderable`.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The store holds something that [`attributes`] did not write.
    #[error("failed to read the stored attributes: {0}")]
    Attributes(#[from] serde_json::Error),
    /// An attribute cannot be a header.
    #[error("the attribute {0} cannot be sent as a header")]
    Header(String),
    /// Data kept as text is not UTF-8.
    #[error("the stored text is not UTF-8")]
    NotUtf8,
}

/// The kind of data as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    None,
    Json,
    Text,
    Binary,
}

/// Attributes as they are written.
#[derive(Serialize)]
struct Written<'a> {
    accepted: i64,
    kind: Kind,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dataschema: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extensions: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a TraceContext>,
}

/// Attributes as they are read: borrowed from the stored bytes.
#[derive(Deserialize)]
struct Read<'a> {
    accepted: i64,
    kind: Kind,
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    source: Text<'a>,
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow, default)]
    subject: Option<Text<'a>>,
    #[serde(borrow, default)]
    time: Option<Text<'a>>,
    #[serde(borrow, default)]
    datacontenttype: Option<Text<'a>>,
    #[serde(borrow, default)]
    dataschema: Option<Text<'a>>,
    #[serde(borrow, default)]
    extensions: BTreeMap<Text<'a>, Text<'a>>,
}

/// Compact JSON of all attributes, the kind of data, the time of acceptance and the place in a trace, where it has one.
pub fn attributes(event: &Event, accepted: UnixMillis, trace: Option<&TraceContext>) -> Bytes {
    let written = Written {
        accepted: accepted.0,
        kind: match event.data {
            Data::None => Kind::None,
            Data::Json(_) => Kind::Json,
            Data::Text(_) => Kind::Text,
            Data::Binary(_) => Kind::Binary,
        },
        id: &event.id,
        source: &event.source,
        r#type: &event.r#type,
        subject: event.subject.as_deref(),
        time: event.time.as_deref(),
        datacontenttype: event.datacontenttype.as_deref(),
        dataschema: event.dataschema.as_deref(),
        extensions: event.extensions.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        trace,
    };
    // Strings and integers into memory: neither the types nor a Vec can fail.
    Bytes::from(serde_json::to_vec(&written).unwrap_or_default())
}

/// An event as the store takes it. Data is copied: it may be a small part of a large request, which it would keep in memory
/// for as long as its messages wait.
pub fn stored(event: &Event, accepted: UnixMillis, trace: Option<&TraceContext>) -> StoredEvent {
    StoredEvent {
        attributes: attributes(event, accepted, trace),
        body: Bytes::copy_from_slice(event.data.bytes()),
    }
}

/// The event and its time of acceptance back from the store.
pub fn accepted_event(stored: &StoredEvent) -> Result<(Event, UnixMillis), RenderError> {
    let read: Read<'_> = serde_json::from_slice(&stored.attributes)?;
    let body = stored.body.clone();
    let event = Event {
        id: read.id.into_string(),
        source: read.source.into_string(),
        r#type: read.r#type.into_string(),
        subject: read.subject.map(Text::into_string),
        time: read.time.map(Text::into_string),
        datacontenttype: read.datacontenttype.map(Text::into_string),
        dataschema: read.dataschema.map(Text::into_string),
        extensions: read
            .extensions
            .into_iter()
            .map(|(k, v)| (k.into_string(), v.into_string()))
            .collect(),
        data: match read.kind {
            Kind::None => Data::None,
            Kind::Json => Data::Json(body),
            Kind::Text => Data::Text(body),
            Kind::Binary => Data::Binary(body),
        },
    };
    Ok((event, UnixMillis(read.accepted)))
}

/// Where it stands in a trace. Asked for only while there are traces: it reads the attributes once more.
pub fn trace_context(stored: &StoredEvent) -> Option<TraceContext> {
    #[derive(Deserialize)]
    struct Traced {
        trace: Option<TraceContext>,
    }
    let read: Traced = serde_json::from_slice(&stored.attributes).ok()?;
    read.trace
}

/// What a listing shows of an event: borrowed from the stored bytes.
#[derive(Debug, Deserialize)]
pub struct Shown<'a> {
    /// When it was accepted, milliseconds since 1970.
    #[serde(default)]
    pub accepted: i64,
    #[serde(borrow)]
    pub(crate) id: Text<'a>,
    #[serde(borrow, default)]
    pub(crate) source: Text<'a>,
    #[serde(borrow)]
    pub(crate) r#type: Text<'a>,
}

/// Reads it from attributes as they are stored.
pub fn head(attributes: &[u8]) -> Result<Shown<'_>, RenderError> {
    Ok(serde_json::from_slice(attributes)?)
}

/// Whether attributes as they are stored are those of an event of this type and with this id, where asked.
pub fn is_of(attributes: &[u8], event_type: Option<&str>, id: Option<&str>) -> bool {
    if event_type.is_none() && id.is_none() {
        return true;
    }
    head(attributes).is_ok_and(|head| {
        event_type.is_none_or(|wanted| wanted == head.r#type.as_str())
            && id.is_none_or(|wanted| wanted == head.id.as_str())
    })
}

/// Renders a stored event for a receiver.
pub fn render(format: Format, stored: &StoredEvent) -> Result<Rendered, RenderError> {
    let read: Read<'_> = serde_json::from_slice(&stored.attributes)?;
    let whole = |content_type, body| Rendered {
        content_type: Some(HeaderValue::from_static(content_type)),
        headers: Vec::new(),
        body: Bytes::from(body),
    };
    Ok(match format {
        Format::StandardWebhooks => whole("application/json", standard_webhooks(&read, &stored.body)?),
        Format::CloudEventsStructured => whole("application/cloudevents+json", structured(&read, &stored.body)?),
        Format::CloudEventsBinary => Rendered {
            content_type: media_type(&read)?,
            headers: binary::headers(&read)?,
            body: stored.body.clone(),
        },
        Format::Raw => Rendered {
            content_type: media_type(&read)?,
            headers: Vec::new(),
            body: stored.body.clone(),
        },
    })
}

/// The media type of the data alone: its own, else what its kind is. Without data and without a type of its own: none.
fn media_type(read: &Read<'_>) -> Result<Option<HeaderValue>, RenderError> {
    if let Some(own) = &read.datacontenttype {
        let value = HeaderValue::from_str(own.as_str());
        return value
            .map(Some)
            .map_err(|_| RenderError::Header("datacontenttype".to_owned()));
    }
    Ok(match read.kind {
        Kind::None => None,
        Kind::Json => Some(HeaderValue::from_static("application/json")),
        Kind::Text => Some(HeaderValue::from_static("text/plain; charset=utf-8")),
        Kind::Binary => Some(HeaderValue::from_static("application/octet-stream")),
    })
}

/// The payload that Standard Webhooks 1.0.0 recommends: always these three members, so a receiver's type needs no
/// optional one. An event without data has `"data":null`; binary data is the member `data_base64` instead, as in
/// CloudEvents.
fn standard_webhooks(read: &Read<'_>, body: &[u8]) -> Result<Vec<u8>, RenderError> {
    let mut out = Vec::with_capacity(capacity(read, body));
    out.extend_from_slice(b"{\"type\":");
    string(&mut out, read.r#type.as_str());
    out.extend_from_slice(b",\"timestamp\":");
    match &read.time {
        Some(time) => string(&mut out, time.as_str()),
        None => string(&mut out, &rfc3339(UnixMillis(read.accepted))),
    }
    if !data(&mut out, read.kind, body)? {
        out.extend_from_slice(b",\"data\":null");
    }
    out.push(b'}');
    Ok(out)
}

/// The JSON event format of CloudEvents 1.0. Extensions are strings, the one type that every binding can carry.
fn structured(read: &Read<'_>, body: &[u8]) -> Result<Vec<u8>, RenderError> {
    let mut out = Vec::with_capacity(capacity(read, body));
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
    string(&mut out, read.id.as_str());
    out.extend_from_slice(b",\"source\":");
    string(&mut out, read.source.as_str());
    out.extend_from_slice(b",\"type\":");
    string(&mut out, read.r#type.as_str());
    let optional = [
        ("subject", &read.subject),
        ("time", &read.time),
        ("datacontenttype", &read.datacontenttype),
        ("dataschema", &read.dataschema),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            member(&mut out, name, value.as_str());
        }
    }
    for (name, value) in &read.extensions {
        member(&mut out, name.as_str(), value.as_str());
    }
    data(&mut out, read.kind, body)?;
    out.push(b'}');
    Ok(out)
}

/// Room for everything unless escapes make it longer: then the buffer grows once.
fn capacity(read: &Read<'_>, body: &[u8]) -> usize {
    /// Names of members, quotes, braces and a timestamp.
    const FRAME: usize = 256;
    let length = |text: &Option<Text<'_>>| text.as_ref().map_or(0, |t| t.as_str().len());
    let attributes = read.id.as_str().len()
        + read.source.as_str().len()
        + read.r#type.as_str().len()
        + length(&read.subject)
        + length(&read.time)
        + length(&read.datacontenttype)
        + length(&read.dataschema)
        + read
            .extensions
            .iter()
            .map(|(name, value)| name.as_str().len() + value.as_str().len() + 8)
            .sum::<usize>();
    let data = match read.kind {
        Kind::None => 0,
        Kind::Json => body.len(),
        Kind::Text => body.len() + body.len() / 16,
        Kind::Binary => body.len() / 3 * 4 + 4,
    };
    FRAME + attributes + data
}

/// Writes `,"data":...` or `,"data_base64":"..."`; false when there is no data.
fn data(out: &mut Vec<u8>, kind: Kind, body: &[u8]) -> Result<bool, RenderError> {
    match kind {
        Kind::None => return Ok(false),
        Kind::Json => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(body);
        }
        Kind::Text => {
            out.extend_from_slice(b",\"data\":");
            string(out, std::str::from_utf8(body).map_err(|_| RenderError::NotUtf8)?);
        }
        Kind::Binary => {
            out.extend_from_slice(b",\"data_base64\":\"");
            let start = out.len();
            let length = base64::encoded_len(body.len(), true).unwrap_or(0);
            out.resize(start + length, 0);
            let written = BASE64.encode_slice(body, &mut out[start..]).unwrap_or(0);
            out.truncate(start + written);
            out.push(b'"');
        }
    }
    Ok(true)
}

/// Writes `,"name":"value"`; names of attributes are letters and digits.
fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    string(out, value);
}

/// Writes a JSON string. A Vec takes whatever is written, so there is no error to report.
fn string(out: &mut Vec<u8>, text: &str) {
    let _ = serde_json::to_writer(out, text);
}

/// RFC 3339 in UTC with milliseconds.
pub fn rfc3339(at: UnixMillis) -> Cow<'static, str> {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(timestamp) => Cow::Owned(format!("{timestamp:.3}")),
        // Outside of the years that RFC 3339 can write; no clock of ours is there.
        Err(_) => Cow::Borrowed("1970-01-01T00:00:00.000Z"),
    }
}

#[cfg(test)]
mod tests;
