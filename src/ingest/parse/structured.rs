//! Structured and batched content mode: the JSON event format of CloudEvents 1.0.2. Pure.
//!
//! The document is read once; data is a slice of it, never a parsed value. A member that occurs twice is refused: what was
//! authorised must be what every later reader sees.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{MAX_BATCH_EVENTS, ParseError};
use crate::event::text::Text;
use crate::event::{Data, Event, media, rules};

/// The event of a structured request.
pub(super) fn event(body: &Bytes) -> Result<Event, ParseError> {
    from_document(body, utf8(body)?)
}

/// The events of a batch, valid as a whole.
pub(super) fn batch(body: &Bytes, max_event: usize) -> Result<Vec<Event>, ParseError> {
    let documents: Documents<'_> = serde_json::from_str(utf8(body)?).map_err(|err| malformed(&err))?;
    if documents.0.len() > MAX_BATCH_EVENTS {
        return Err(ParseError::TooLarge {
            event: None,
            detail: format!("a batch has at most {MAX_BATCH_EVENTS} events"),
        });
    }
    let mut events = Vec::with_capacity(documents.0.len());
    for (position, document) in documents.0.iter().enumerate() {
        if document.get().len() > max_event {
            return Err(ParseError::TooLarge {
                event: Some(position),
                detail: format!("an event has at most {max_event} bytes"),
            });
        }
        events.push(from_document(body, document.get()).map_err(|err| err.at(position))?);
    }
    Ok(events)
}

/// An array's elements, unparsed; at most one more than a batch may have.
struct Documents<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Documents<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Documents<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of CloudEvents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Documents<'de>, A::Error> {
                let mut documents = Vec::new();
                while let Some(element) = elements.next_element::<&'de RawValue>()? {
                    if documents.len() <= MAX_BATCH_EVENTS {
                        documents.push(element);
                    }
                }
                Ok(Documents(documents))
            }
        }

        deserializer.deserialize_seq(Elements)
    }
}

/// The members of one document.
#[derive(Default)]
struct Members<'a> {
    specversion: Option<Text<'a>>,
    id: Option<Text<'a>>,
    source: Option<Text<'a>>,
    r#type: Option<Text<'a>>,
    subject: Option<Text<'a>>,
    time: Option<Text<'a>>,
    datacontenttype: Option<Text<'a>>,
    dataschema: Option<Text<'a>>,
    data: Option<&'a RawValue>,
    data_base64: Option<Text<'a>>,
    extensions: Vec<(String, Option<String>)>,
}

fn from_document(body: &Bytes, document: &str) -> Result<Event, ParseError> {
    let members: Members<'_> = serde_json::from_str(document).map_err(|err| malformed(&err))?;
    let required =
        |name: &str, value: Option<Text<'_>>| value.map(Text::into_string).ok_or_else(|| format!("{name} is missing"));
    if required("specversion", members.specversion)? != "1.0" {
        return Err(ParseError::invalid("specversion must be \"1.0\""));
    }
    let datacontenttype = members.datacontenttype.map(Text::into_string);
    if let Some(datacontenttype) = &datacontenttype {
        rules::datacontenttype(datacontenttype)?;
    }
    let mut extensions: Vec<(String, String)> = members
        .extensions
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
        .collect();
    extensions.sort_unstable();
    Event {
        id: required("id", members.id)?,
        source: required("source", members.source)?,
        r#type: required("type", members.r#type)?,
        subject: members.subject.map(Text::into_string),
        time: members.time.map(Text::into_string),
        dataschema: members.dataschema.map(Text::into_string),
        extensions,
        data: data(body, datacontenttype.as_deref(), members.data, members.data_base64)?,
        datacontenttype,
    }
    .checked()
    .map_err(ParseError::from)
}

/// The data of a document (JSON format, 3.1): `data` is JSON where the media type is JSON or missing, else a string with
/// the data's text; `data_base64` is bytes of any media type.
fn data(
    body: &Bytes,
    datacontenttype: Option<&str>,
    data: Option<&RawValue>,
    data_base64: Option<Text<'_>>,
) -> Result<Data, ParseError> {
    match (data, data_base64) {
        (None, None) => Ok(Data::None),
        (Some(_), Some(_)) => Err(ParseError::invalid("data and data_base64 exclude each other")),
        (Some(raw), None) if media::kind(datacontenttype) == media::Kind::Json => {
            Ok(Data::Json(body.slice_ref(raw.get().as_bytes())))
        }
        (Some(raw), None) => {
            let text: String = serde_json::from_str(raw.get()).map_err(|_| {
                "data must be a string, because its media type is not JSON (or send data_base64)".to_owned()
            })?;
            Ok(Data::new(datacontenttype, Bytes::from(text))?)
        }
        (None, Some(text)) => {
            let bytes = BASE64
                .decode(text.as_str())
                .map_err(|_| "data_base64 must be base64 with padding (RFC 4648, 4)".to_owned())?;
            // Without a media type nothing says that it is JSON: bytes stay bytes.
            match datacontenttype {
                Some(media) => Ok(Data::new(Some(media), Bytes::from(bytes))?),
                None => Ok(Data::Binary(Bytes::from(bytes))),
            }
        }
    }
}

/// An attribute's value in its string form (CloudEvents 1.0.2, 3.1); null is the same as no attribute.
struct Attribute(Option<String>);

impl<'de> Deserialize<'de> for Attribute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = Attribute;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a boolean or a 32-bit integer as the value of an extension attribute")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Attribute, E> {
                Ok(Attribute(Some(text.to_owned())))
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Attribute, E> {
                Ok(Attribute(Some(value.to_string())))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Attribute, E> {
                let value =
                    i32::try_from(value).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))?;
                Ok(Attribute(Some(value.to_string())))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Attribute, E> {
                let value = i32::try_from(value)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))?;
                Ok(Attribute(Some(value.to_string())))
            }

            fn visit_unit<E: Error>(self) -> Result<Attribute, E> {
                Ok(Attribute(None))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Document;

        impl<'de> Visitor<'de> for Document {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CloudEvent as a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                // One bit a known member: a null counts as seen.
                let mut seen = 0_u16;
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    let (bit, slot) = match name.as_str() {
                        "specversion" => (0, &mut members.specversion),
                        "id" => (1, &mut members.id),
                        "source" => (2, &mut members.source),
                        "type" => (3, &mut members.r#type),
                        "subject" => (4, &mut members.subject),
                        "time" => (5, &mut members.time),
                        "datacontenttype" => (6, &mut members.datacontenttype),
                        "dataschema" => (7, &mut members.dataschema),
                        "data_base64" => (8, &mut members.data_base64),
                        "data" => {
                            if members.data.replace(map.next_value()?).is_some() {
                                return Err(A::Error::custom("data occurs twice"));
                            }
                            continue;
                        }
                        extension => {
                            extension_member(&mut members.extensions, extension, &mut map)?;
                            continue;
                        }
                    };
                    if seen & 1 << bit != 0 {
                        return Err(A::Error::custom(format_args!("{} occurs twice", name.as_str())));
                    }
                    seen |= 1 << bit;
                    *slot = map.next_value()?;
                }
                Ok(members)
            }
        }

        deserializer.deserialize_map(Document)
    }
}

fn extension_member<'de, A: MapAccess<'de>>(
    extensions: &mut Vec<(String, Option<String>)>,
    name: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    rules::extension_name(name).map_err(A::Error::custom)?;
    if extensions.iter().any(|(before, _)| before == name) {
        return Err(A::Error::custom(format_args!("{name} occurs twice")));
    }
    if extensions.len() == rules::MAX_EXTENSIONS {
        return Err(A::Error::custom(format_args!(
            "at most {} extension attributes are taken",
            rules::MAX_EXTENSIONS
        )));
    }
    let Attribute(value) = map.next_value()?;
    if let Some(value) = &value {
        rules::extension_value(name, value).map_err(A::Error::custom)?;
    }
    extensions.push((name.to_owned(), value));
    Ok(())
}

fn utf8(body: &[u8]) -> Result<&str, ParseError> {
    std::str::from_utf8(body)
        .map_err(|err| ParseError::invalid(format!("the body is not UTF-8 at byte {}", err.valid_up_to())))
}

/// serde_json's sentences may quote a scalar of the document; it goes to its producer, cut to a sane length.
fn malformed(err: &serde_json::Error) -> ParseError {
    const LONGEST: usize = 300;
    let mut detail = format!("the body is not a CloudEvent in JSON: {err}");
    if detail.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0);
        detail.truncate(end);
        detail.push_str("...");
    }
    ParseError::invalid(detail)
}
