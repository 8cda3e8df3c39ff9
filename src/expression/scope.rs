//! The variables of an evaluation, made once and used for many: JSON to CEL and back.
//!
//! Invariant: strings are borrowed from what was given wherever JSON allows it, so that a thousand filters over one event
//! copy nothing of it.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
};
use cel::common::value::Val;
use cel::objects::{Key, OptionalValue};
use cel::{Context, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;

use super::shared::Found;
use super::{ENVIRONMENT, EvaluationError};
use crate::event::{Data, Event};

/// What all expressions that look at one thing may cost together.
pub const TOGETHER: u64 = 8 << 20;

/// The variables that expressions see.
pub struct Scope<'v> {
    context: Context<'v, 'v>,
    remaining: Cell<u64>,
    spent: Cell<u64>,
    unreadable: bool,
}

impl<'v> Scope<'v> {
    fn empty() -> Scope<'v> {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.set_variable_resolver(&Found);
        Scope {
            context,
            remaining: Cell::new(TOGETHER),
            spent: Cell::new(0),
            unreadable: false,
        }
    }

    /// `event`: its attributes by name, extensions among them, and `data`: JSON as it is, text as a string, anything else as
    /// bytes; what it does not have is absent.
    pub fn event(event: &'v Event) -> Scope<'v> {
        let mut scope = Scope::empty();
        let mut fields: Vec<(&'v str, &'v str)> = vec![
            ("id", &event.id),
            ("source", &event.source),
            ("type", &event.r#type),
            ("specversion", "1.0"),
        ];
        let optional = [
            ("subject", &event.subject),
            ("time", &event.time),
            ("datacontenttype", &event.datacontenttype),
            ("dataschema", &event.dataschema),
        ];
        fields.extend(
            optional
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.as_deref()?))),
        );
        fields.extend(
            event
                .extensions
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let mut map: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = fields
            .into_iter()
            .map(|(name, value)| (CelMapKey::from(name), boxed(CelString::from(value))))
            .collect();
        let data: Option<Box<dyn Val + 'v>> = match &event.data {
            Data::None => None,
            Data::Json(text) => match serde_json::from_slice::<Read<'v>>(text) {
                Ok(Read(value)) => Some(value),
                Err(_) => {
                    scope.unreadable = true;
                    None
                }
            },
            Data::Text(text) => std::str::from_utf8(text).ok().map(|text| boxed(CelString::from(text))),
            Data::Binary(bytes) => Some(boxed(CelBytes::from(bytes.as_ref()))),
        };
        map.extend(data.map(|data| (CelMapKey::from("data"), data)));
        scope.context.add_variable_as_val("event", boxed(CelMap::from(map)));
        scope
    }

    /// `response`: its `status`, and its `body`: JSON where it is, else a string.
    pub fn response(status: u16, body: &'v [u8]) -> Scope<'v> {
        let mut scope = Scope::empty();
        let body = match serde_json::from_slice::<Read<'v>>(body) {
            Ok(Read(value)) => value,
            Err(_) => boxed(CelString::from(String::from_utf8_lossy(body).into_owned())),
        };
        let map: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::from([
            (CelMapKey::from("status"), boxed(CelInt::from(i64::from(status)))),
            (CelMapKey::from("body"), body),
        ]);
        scope.context.add_variable_as_val("response", boxed(CelMap::from(map)));
        scope
    }

    /// The same with `secrets`, by name.
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = (&'v str, &'v str)>) -> Scope<'v> {
        let secrets = secrets.into_iter();
        let map: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = secrets
            .map(|(name, value)| (CelMapKey::from(name), boxed(CelString::from(value))))
            .collect();
        self.context.add_variable_as_val("secrets", boxed(CelMap::from(map)));
        self
    }

    /// The same with `message`, any JSON.
    pub fn with_message(mut self, message: &'v Json) -> Scope<'v> {
        self.context.add_variable_as_val("message", value(message));
        self
    }

    pub(super) fn context(&self) -> &Context<'v, 'v> {
        &self.context
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// The same with less for all expressions together, for what is one of many.
    pub fn with_budget(self, budget: u64) -> Scope<'v> {
        self.remaining.set(budget.min(TOGETHER));
        self
    }

    pub(super) fn remaining(&self) -> u64 {
        self.remaining.get()
    }

    /// What expressions have cost together so far.
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    pub(super) fn spend(&self, cost: u64) {
        self.remaining.set(self.remaining.get().saturating_sub(cost));
        self.spent.set(self.spent.get().saturating_add(cost));
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope(values not shown)")
    }
}

fn boxed<'v>(value: impl Val + 'v) -> Box<dyn Val + 'v> {
    Box::new(value)
}

fn value(json: &Json) -> Box<dyn Val + '_> {
    match json {
        Json::Null => boxed(CelNull),
        Json::Bool(is) => boxed(CelBool::from(*is)),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => boxed(CelInt::from(whole)),
            (None, Some(whole)) => boxed(CelUInt::from(whole)),
            (None, None) => boxed(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(text) => boxed(CelString::from(text.as_str())),
        Json::Array(all) => boxed(CelList::from(all.iter().map(value).collect::<Vec<_>>())),
        Json::Object(all) => {
            let map: HashMap<_, _> = all
                .iter()
                .map(|(name, each)| (CelMapKey::from(name.as_str()), value(each)))
                .collect();
            boxed(CelMap::from(map))
        }
    }
}

/// JSON text as a value. Whole numbers are `int` (or `uint`, beyond it), others `double`; of a name given twice the last
/// counts.
struct Read<'v>(Box<dyn Val + 'v>);

impl<'v> Deserialize<'v> for Read<'v> {
    fn deserialize<D: Deserializer<'v>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'v> Visitor<'v> for Reader {
            type Value = Read<'v>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelNull)))
            }
            fn visit_bool<E>(self, is: bool) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelBool::from(is))))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelInt::from(number))))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Read<'v>, E> {
                Ok(Read(match i64::try_from(number) {
                    Ok(number) => boxed(CelInt::from(number)),
                    Err(_) => boxed(CelUInt::from(number)),
                }))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelDouble::from(number))))
            }
            fn visit_borrowed_str<E>(self, text: &'v str) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelString::from(text))))
            }
            fn visit_str<E>(self, text: &str) -> Result<Read<'v>, E> {
                Ok(Read(boxed(CelString::from(text.to_owned()))))
            }
            fn visit_seq<A: SeqAccess<'v>>(self, mut from: A) -> Result<Read<'v>, A::Error> {
                let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
                while let Some(Read(each)) = from.next_element()? {
                    list.push(each);
                }
                Ok(Read(boxed(CelList::from(list))))
            }
            fn visit_map<A: MapAccess<'v>>(self, mut from: A) -> Result<Read<'v>, A::Error> {
                let mut map: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> = HashMap::new();
                while let Some(Name(name)) = from.next_key()? {
                    let Read(each) = from.next_value()?;
                    map.insert(CelMapKey::String(name), each);
                }
                Ok(Read(boxed(CelMap::from(map))))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// An object's name, borrowed where it has no escapes.
struct Name<'v>(CelString<'v>);

impl<'v> Deserialize<'v> for Name<'v> {
    fn deserialize<D: Deserializer<'v>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'v> Visitor<'v> for Reader {
            type Value = Name<'v>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, text: &'v str) -> Result<Name<'v>, E> {
                Ok(Name(CelString::from(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'v>, E> {
                Ok(Name(CelString::from(text.to_owned())))
            }
        }
        from.deserialize_str(Reader)
    }
}

/// A value as JSON; names of an object in the order of the alphabet, so that the same value is the same text.
pub(super) fn json(value: &Value) -> Result<Json, EvaluationError> {
    let failed = |why: &str| EvaluationError::Failed(why.to_owned());
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(is) => Json::from(*is),
        Value::Int(number) => Json::from(*number),
        Value::UInt(number) => Json::from(*number),
        Value::Float(number) => match serde_json::Number::from_f64(*number) {
            Some(number) => Json::Number(number),
            None => return Err(failed("JSON has no infinite numbers, and no NaN")),
        },
        Value::String(text) => Json::from(text.as_str()),
        Value::Bytes(bytes) => Json::from(BASE64.encode(bytes.as_slice())),
        Value::Timestamp(time) => Json::from(time.to_rfc3339()),
        // As protobuf's JSON mapping has it: seconds.
        Value::Duration(duration) => {
            let nanos = duration.num_nanoseconds().unwrap_or(i64::MAX);
            Json::from(format!("{}s", nanos as f64 / 1e9))
        }
        Value::List(all) => all.iter().map(json).collect::<Result<_, _>>()?,
        Value::Map(all) => {
            let named = |(key, each): (&Key, &Value)| match key {
                Key::String(name) => Ok((name.to_string(), json(each)?)),
                _ => Err(failed("JSON's names are strings: write 'name': value")),
            };
            Json::Object(all.map.iter().map(named).collect::<Result<_, _>>()?)
        }
        other => match <&OptionalValue>::try_from(other) {
            Ok(optional) => optional.value().map_or(Ok(Json::Null), json)?,
            Err(_) => return Err(failed("JSON has nothing for a value of this type")),
        },
    })
}
