//! Binary content mode (HTTP binding, 3.1): attributes in `ce-` headers, `Content-Type` as `datacontenttype`. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode;

use super::{ParseError, single};
use crate::event::{Data, Event, rules};

const TYPE: HeaderName = HeaderName::from_static("ce-type");

/// The event's type, where there is one.
pub(super) fn event_type(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let mut values = headers.get_all(&TYPE).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    decoded("type", value.as_bytes()).ok()
}

/// The event of a request in binary mode.
pub(super) fn event(headers: &HeaderMap, body: Bytes) -> Result<Event, ParseError> {
    let mut id = None;
    let mut source = None;
    let mut r#type = None;
    let mut specversion = None;
    let mut subject = None;
    let mut time = None;
    let mut dataschema = None;
    let mut extensions: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else {
            continue;
        };
        let value = decoded(attribute, value.as_bytes())?;
        let slot = match attribute {
            "id" => &mut id,
            "source" => &mut source,
            "type" => &mut r#type,
            "specversion" => &mut specversion,
            "subject" => &mut subject,
            "time" => &mut time,
            "dataschema" => &mut dataschema,
            extension => {
                rules::extension_name(extension)?;
                rules::extension_value(extension, &value)?;
                if extensions.len() == rules::MAX_EXTENSIONS {
                    return Err(ParseError::invalid(format!(
                        "at most {} extension attributes are taken",
                        rules::MAX_EXTENSIONS
                    )));
                }
                extensions.push((extension.to_owned(), value.into_owned()));
                continue;
            }
        };
        if slot.replace(value.into_owned()).is_some() {
            return Err(ParseError::invalid(format!(
                "the header ce-{attribute} must occur once"
            )));
        }
    }
    extensions.sort_unstable();
    if extensions.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(ParseError::invalid("each ce- header must occur once"));
    }
    let required = |name: &str, value: Option<String>| value.ok_or_else(|| format!("the header ce-{name} is missing"));
    if required("specversion", specversion)? != "1.0" {
        return Err(ParseError::invalid("specversion must be 1.0"));
    }
    let datacontenttype = single(headers, &CONTENT_TYPE)?.map(str::to_owned);
    let id = required("id", id)?;
    let source = required("source", source)?;
    let r#type = required("type", r#type)?;
    let data = if body.is_empty() {
        Data::None
    } else {
        if let Some(datacontenttype) = &datacontenttype {
            rules::datacontenttype(datacontenttype)?;
        }
        Data::new(datacontenttype.as_deref(), body)?
    };
    Event {
        id,
        source,
        r#type,
        subject,
        time,
        datacontenttype,
        dataschema,
        extensions,
        data,
    }
    .checked()
    .map_err(ParseError::from)
}

/// A header's value as the attribute's string: quotes undone (RFC 9110, 5.6.4), then percent-decoded once (HTTP binding,
/// 3.1.3.2). Raw UTF-8 is taken as it is, as SDKs that do not encode send it.
fn decoded<'a>(attribute: &str, value: &'a [u8]) -> Result<Cow<'a, str>, ParseError> {
    let not_utf8 = || ParseError::invalid(format!("the header ce-{} must be UTF-8", shown(attribute)));
    let plain = !value.iter().any(|b| matches!(b, b'%' | b'"'));
    if plain {
        return std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| not_utf8());
    }
    let unquoted = unquoted(value);
    // The crate takes a lone % for itself: then what follows would be read as more than was meant.
    let mut escapes = unquoted.split(|byte| *byte == b'%').skip(1);
    if !escapes.all(|after| after.len() >= 2 && after[..2].iter().all(u8::is_ascii_hexdigit)) {
        return Err(broken_encoding(attribute));
    }
    let decoded = percent_decode(&unquoted).collect();
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| not_utf8())
}

fn broken_encoding(attribute: &str) -> ParseError {
    ParseError::invalid(format!(
        "the header ce-{} has a % that begins no percent-encoding: write it %25",
        shown(attribute)
    ))
}

/// A quoted string without its quotes and backslashes; anything else as it is.
fn unquoted(value: &[u8]) -> Cow<'_, [u8]> {
    let [b'"', inner @ .., b'"'] = value else {
        return Cow::Borrowed(value);
    };
    if !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => out.extend(bytes.next()),
            other => out.push(*other),
        }
    }
    Cow::Owned(out)
}

/// A name that is safe and short enough to repeat.
fn shown(attribute: &str) -> &str {
    if rules::extension_name(attribute).is_ok() || rules::RESERVED.contains(&attribute) {
        attribute
    } else {
        "?"
    }
}
