//! One parsed CloudEvents 1.0 event, as ingest accepts it and the queue keeps it. Pure.
//!
//! Invariant: an [`Event`] is valid (required attributes present and bounded, JSON data well formed); later stages
//! never parse it again. Formats that a receiver gets are rendered from it in [`format`].

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub mod format;
pub mod media;
pub mod rules;
pub(crate) mod text;

/// One CloudEvents 1.0 event (<https://github.com/cloudevents/spec>, section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `id`: 1 to 256 bytes; with `source` the key of deduplication.
    pub id: String,
    /// `source`: a URI reference, 1 to 1,024 bytes.
    pub source: String,
    /// `type`: 1 to 253 bytes.
    pub r#type: String,
    /// `subject`, at most 1,024 bytes.
    pub subject: Option<String>,
    /// `time` as the producer wrote it (RFC 3339).
    pub time: Option<String>,
    /// `datacontenttype`, a media type.
    pub datacontenttype: Option<String>,
    /// `dataschema`, a URI.
    pub dataschema: Option<String>,
    /// Extension attributes by name, sorted; values in their CloudEvents string form.
    pub extensions: Vec<(String, String)>,
    /// The payload.
    pub data: Data,
}

/// The payload, by what a receiver's JSON can hold of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// No data at all.
    None,
    /// Well-formed JSON text, byte for byte as the producer sent it.
    Json(Bytes),
    /// UTF-8 text of another media type: a JSON string in structured formats.
    Text(Bytes),
    /// Anything else: base64 in structured formats.
    Binary(Bytes),
}

/// Where an event stands in a trace, in the words of W3C Trace Context: what is kept of it between the request that brought it
/// and those that take it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// `traceparent`.
    pub parent: String,
    /// `tracestate`; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state: String,
}

impl Event {
    /// An extension attribute's value.
    pub fn extension(&self, name: &str) -> Option<&str> {
        let at = self.extensions.binary_search_by(|(own, _)| own.as_str().cmp(name));
        at.ok().map(|at| self.extensions[at].1.as_str())
    }

    /// The event, if its attributes are valid ([`rules`]); extensions and data are checked where they are made.
    pub fn checked(self) -> Result<Event, rules::Refused> {
        rules::id(&self.id)?;
        rules::source(&self.source)?;
        rules::r#type(&self.r#type)?;
        if let Some(subject) = &self.subject {
            rules::subject(subject)?;
        }
        if let Some(time) = &self.time {
            rules::time(time)?;
        }
        if let Some(datacontenttype) = &self.datacontenttype {
            rules::datacontenttype(datacontenttype)?;
        }
        if let Some(dataschema) = &self.dataschema {
            rules::dataschema(dataschema)?;
        }
        Ok(self)
    }
}

impl Data {
    /// Data of a media type: well-formed JSON where it says JSON (without a media type, too), UTF-8 text where it says
    /// text, else bytes. Only its form is checked; nothing is parsed to a value.
    pub fn new(datacontenttype: Option<&str>, bytes: Bytes) -> Result<Data, rules::Refused> {
        match media::kind(datacontenttype) {
            media::Kind::Json => {
                well_formed(&bytes).map_err(|err| {
                    if datacontenttype.is_some() {
                        format!("data must be the JSON that its media type announces: {err}")
                    } else {
                        format!("data without a media type must be JSON: {err}")
                    }
                })?;
                Ok(Data::Json(bytes))
            }
            media::Kind::Text if std::str::from_utf8(&bytes).is_ok() => Ok(Data::Text(bytes)),
            media::Kind::Text | media::Kind::Binary => Ok(Data::Binary(bytes)),
        }
    }

    /// The payload's bytes; empty for [`Data::None`].
    pub fn bytes(&self) -> &Bytes {
        static EMPTY: Bytes = Bytes::new();
        match self {
            Data::None => &EMPTY,
            Data::Json(bytes) | Data::Text(bytes) | Data::Binary(bytes) => bytes,
        }
    }
}

/// Whether bytes are one JSON text in UTF-8. Iterative: no nesting makes it recurse.
fn well_formed(bytes: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|err| format!("not UTF-8 at byte {}", err.valid_up_to()))?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map(|_| ())
        .map_err(|err| err.to_string())
}
