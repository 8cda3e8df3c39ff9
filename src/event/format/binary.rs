//! The binary content mode of the HTTP binding of CloudEvents 1.0.2 (3.1): attributes as `ce-` headers.
//!
//! Owns the encoding of header values; knows nothing of data. Invariant: ingest reads back what is written here.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::{Read, RenderError};

/// All attributes but `datacontenttype`, which is the header `content-type`.
pub(super) fn headers(read: &Read<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, RenderError> {
    let mut headers = Vec::with_capacity(8 + read.extensions.len());
    headers.push((
        HeaderName::from_static("ce-specversion"),
        HeaderValue::from_static("1.0"),
    ));
    let attributes = [
        ("ce-id", Some(&read.id)),
        ("ce-source", Some(&read.source)),
        ("ce-type", Some(&read.r#type)),
        ("ce-subject", read.subject.as_ref()),
        ("ce-time", read.time.as_ref()),
        ("ce-dataschema", read.dataschema.as_ref()),
    ];
    for (name, value) in attributes {
        if let Some(value) = value {
            headers.push((HeaderName::from_static(name), encoded(name, value.as_str())?));
        }
    }
    for (name, value) in &read.extensions {
        let name = name.as_str();
        let header = HeaderName::try_from(format!("ce-{name}")).map_err(|_| RenderError::Header(name.to_owned()))?;
        headers.push((header, encoded(name, value.as_str())?));
    }
    Ok(headers)
}

/// What a header's value cannot hold as it is (3.1.3.2): white space, the double quote, the percent sign, and with
/// [`utf8_percent_encode`] everything outside of ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

fn encoded(name: &str, value: &str) -> Result<HeaderValue, RenderError> {
    let encoded = Cow::from(utf8_percent_encode(value, ENCODED));
    HeaderValue::from_str(&encoded).map_err(|_| RenderError::Header(name.to_owned()))
}
