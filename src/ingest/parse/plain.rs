//! Plain JSON: `?type=&source=` in the query, the id in `Idempotency-Key`; for producers that know no CloudEvents. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderName;
use http::header::CONTENT_TYPE;

use super::{Head, ParseError, single};
use crate::event::{Data, Event, rules};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The event's type, where there is one.
pub(super) fn event_type(query: Option<&str>) -> Option<Cow<'_, str>> {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut types = pairs.filter(|(name, _)| name == "type").map(|(_, value)| value);
    let (value, None) = (types.next()?, types.next()) else {
        return None;
    };
    Some(value)
}

/// The event of a plain JSON request.
pub(super) fn event(head: Head<'_>, body: Bytes, random_id: impl FnOnce() -> String) -> Result<Event, ParseError> {
    let mut r#type = None;
    let mut source = None;
    for (name, value) in url::form_urlencoded::parse(head.query.unwrap_or_default().as_bytes()) {
        let slot = match name.as_ref() {
            "type" => &mut r#type,
            "source" => &mut source,
            _ => {
                return Err(ParseError::invalid(
                    "plain JSON takes the query parameters type and source only; send CloudEvents for more attributes",
                ));
            }
        };
        if slot.replace(value.into_owned()).is_some() {
            return Err(ParseError::invalid(
                "the query parameters type and source must occur once",
            ));
        }
    }
    let (Some(r#type), Some(source)) = (r#type, source) else {
        return Err(ParseError::invalid(
            "plain JSON needs ?type= and ?source= in the URL; a CloudEvent needs ce- headers or Content-Type: \
             application/cloudevents+json",
        ));
    };
    let id = match single(head.headers, &IDEMPOTENCY_KEY)? {
        // The draft standard makes it a quoted string; most clients send it bare.
        Some(key) => key
            .strip_prefix('"')
            .and_then(|key| key.strip_suffix('"'))
            .unwrap_or(key)
            .to_owned(),
        None => random_id(),
    };
    rules::id(&id).map_err(|_| format!("Idempotency-Key must have 1 to {} printable bytes", rules::MAX_ID))?;
    let datacontenttype = single(head.headers, &CONTENT_TYPE)?.map(str::to_owned);
    let data = match body.is_empty() {
        true => Data::None,
        false => Data::new(datacontenttype.as_deref(), body)?,
    };
    Event {
        id,
        source,
        r#type,
        subject: None,
        time: None,
        datacontenttype,
        dataschema: None,
        extensions: Vec::new(),
        data,
    }
    .checked()
    .map_err(ParseError::from)
}
