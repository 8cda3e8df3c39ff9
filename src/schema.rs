//! Declared event types: compiled schemas, and what to do with an event that does not fit. Pure.
//!
//! JSON Schema 2020-12 as the `jsonschema` crate implements it. Decisions: `$ref` reaches only into the schema itself
//! (nothing is ever fetched); `format` is an annotation, as 2020-12 has it by default (say `pattern` to assert); `pattern`
//! runs on a linear-time engine, so look-around and back-references are refused rather than bounded; a schema is bounded in
//! size and nesting, and refused where an event could make it evaluate without end ([`work`]). Invariant: checking one
//! event takes time bounded by the schema's bound times the event's size.

use jsonschema::{Draft, PatternOptions, Validator};
use serde::Serialize;
use serde_json::Value;

use crate::api::event_type::{EventTypeSpec, Validation};
use crate::event::{Data, Event};

mod work;

use work::Bound;

/// The largest schema as compact JSON: etcd's objects are at most 1.5 MiB, and real schemas a few KiB.
pub const MAX_SCHEMA: usize = 64 * 1024;
/// The deepest nesting of a schema: the compiler recurses.
pub const MAX_DEPTH: usize = 64;
/// Violations told of one event: enough to see what is wrong.
const MAX_VIOLATIONS: usize = 8;
/// The longest sentence of one violation.
const MAX_SENTENCE: usize = 256;
/// The most work of one event: bytes of its data times what its schema compares for one place in it. Every comparison is at
/// most linear in the bytes at its place, so that this is some tenths of a second for whatever the two are made of.
const MAX_WORK: u64 = 100_000_000;
/// Work beyond which others should not wait for it on the same thread: some milliseconds.
pub const HEAVY: u64 = 2_000_000;
/// Bytes of the violations that a validator may find for us to be told some: it builds each before we see the first.
const MAX_FOUND: u64 = 64 * 1024 * 1024;
/// Bytes of a violation itself, without what it repeats.
const VIOLATION: u64 = 512;
/// Memory of one compiled pattern: a counted repetition of a counted repetition would take gigabytes.
const MAX_PATTERN: usize = 1024 * 1024;
/// Memory of the states that a pattern's run remembers, of each thread that runs it.
const PATTERN_STATES: usize = 256 * 1024;

/// A declared type's rule.
#[derive(Debug)]
pub struct TypeRule {
    validation: Validation,
    validator: Validator,
    bound: Bound,
}

/// Why a declaration is unusable: the condition `InvalidSchema` with this sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidSchema {
    pub message: String,
}

/// One place where data does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// JSON Pointer (RFC 6901) into the data; empty for the whole.
    pub pointer: String,
    /// What was expected there; never the value.
    pub detail: String,
}

/// What an event is worth against its rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    Fits,
    /// Accepted, but say so.
    Warned(Vec<Violation>),
    Rejected(Vec<Violation>),
}

impl TypeRule {
    /// Compiles a declaration, and checks its examples. Takes milliseconds for a large schema.
    pub fn compile(spec: &EventTypeSpec) -> Result<TypeRule, InvalidSchema> {
        let schema = &spec.schema;
        let invalid = |message: String| InvalidSchema { message: cut(message) };
        let size = schema.to_string().len();
        if size > MAX_SCHEMA {
            return Err(invalid(format!("the schema has {size} bytes, more than {MAX_SCHEMA}")));
        }
        if depth(schema) > MAX_DEPTH {
            return Err(invalid(format!("the schema nests deeper than {MAX_DEPTH}")));
        }
        if let Some(draft) = schema.get("$schema").and_then(Value::as_str)
            && draft.trim_end_matches('#') != "https://json-schema.org/draft/2020-12/schema"
        {
            return Err(invalid(
                "$schema must be https://json-schema.org/draft/2020-12/schema, or left out".to_owned(),
            ));
        }
        let bound = work::bounded(schema).map_err(invalid)?;
        jsonschema::draft202012::meta::validate(schema)
            .map_err(|err| invalid(format!("at {}: {}", at(err.instance_path().as_str()), err.masked())))?;
        let validator = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .should_validate_formats(false)
            .with_pattern_options(
                PatternOptions::regex()
                    .size_limit(MAX_PATTERN)
                    .dfa_size_limit(PATTERN_STATES),
            )
            .build(schema)
            .map_err(|err| invalid(format!("at {}: {err}", at(err.instance_path().as_str()))))?;
        let rule = TypeRule {
            validation: spec.validation,
            validator,
            bound,
        };
        for (i, example) in spec.examples.iter().enumerate() {
            if rule.work_of(example.to_string().len()) > MAX_WORK {
                return Err(invalid(format!(
                    "example {i} is too large for its schema, which compares up to {} things with each part of it",
                    bound.compares
                )));
            }
            if let Some(violation) = rule.violations(example).into_iter().next() {
                return Err(invalid(format!(
                    "example {i} does not fit the schema: at {}: {}",
                    at(&violation.pointer),
                    violation.detail
                )));
            }
        }
        Ok(rule)
    }

    /// Checks an event. Parses its data to a value, which only declared types cost.
    pub fn check(&self, event: &Event) -> Fit {
        if self.validation == Validation::Off {
            return Fit::Fits;
        }
        let checked = match self.work_of(bytes(event)) {
            ..=MAX_WORK => value(&event.data).map(|value| self.violations(&value)),
            _ => Err(format!(
                "the data is too large for its schema, which compares up to {} things with each part of it: at most {} bytes \
                 can be checked",
                self.bound.compares,
                MAX_WORK / self.bound.compares
            )),
        };
        let violations = checked.unwrap_or_else(|detail| {
            vec![Violation {
                pointer: String::new(),
                detail,
            }]
        });
        match (violations.is_empty(), self.validation) {
            (true, _) | (_, Validation::Off) => Fit::Fits,
            (false, Validation::Warn) => Fit::Warned(violations),
            (false, Validation::Reject) => Fit::Rejected(violations),
        }
    }

    /// What a check takes, at the most. More than [`HEAVY`] is milliseconds, and should not hold up what else its thread has
    /// to do.
    pub fn work(&self, event: &Event) -> u64 {
        match (self.validation, self.work_of(bytes(event))) {
            (Validation::Off, _) => 0,
            (_, work @ ..=MAX_WORK) => work,
            // It is refused unseen.
            _ => 0,
        }
    }

    /// Of data of so many bytes.
    fn work_of(&self, bytes: usize) -> u64 {
        self.bound.compares.saturating_mul(bytes as u64)
    }

    fn violations(&self, value: &Value) -> Vec<Violation> {
        // The happy path builds no errors.
        if self.validator.is_valid(value) {
            return Vec::new();
        }
        let each = VIOLATION + self.bound.repeats;
        if self.bound.compares.saturating_mul(told(value, each)) > MAX_FOUND {
            return vec![Violation {
                pointer: String::new(),
                detail: "the data does not fit the schema, and has too many parts to say where".to_owned(),
            }];
        }
        self.validator
            .iter_errors(value)
            .take(MAX_VIOLATIONS)
            .map(|err| Violation {
                pointer: cut(err.instance_path().as_str().to_owned()),
                detail: cut(err.masked().to_string()),
            })
            .collect()
    }
}

/// Bytes that the schema looks at.
fn bytes(event: &Event) -> usize {
    match &event.data {
        Data::Json(bytes) | Data::Text(bytes) => bytes.len(),
        Data::None | Data::Binary(_) => 0,
    }
}

/// Data as the schema sees it.
fn value(data: &Data) -> Result<Value, String> {
    match data {
        Data::Json(bytes) => serde_json::from_slice(bytes).map_err(|err| format!("the data cannot be checked: {err}")),
        Data::Text(bytes) => Ok(Value::String(String::from_utf8_lossy(bytes).into_owned())),
        Data::None => Err("the event has no data".to_owned()),
        Data::Binary(_) => Err("the data is binary, and the schema describes JSON".to_owned()),
    }
}

/// Bytes of one violation at each value in a value, itself included; `each` without the pointer to it.
fn told(value: &Value, each: u64) -> u64 {
    match value {
        // A position has at most seven digits.
        Value::Array(items) => each + items.iter().map(|item| told(item, each + 8)).sum::<u64>(),
        Value::Object(members) => {
            // `~` and `/` are written as two.
            let member = |(name, member): (&String, &Value)| told(member, each + 1 + 2 * name.len() as u64);
            each + members.iter().map(member).sum::<u64>()
        }
        _ => each,
    }
}

fn depth(value: &Value) -> usize {
    // The value came through serde_json or the API server, whose own limits keep this recursion shallow.
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn at(pointer: &str) -> &str {
    if pointer.is_empty() { "the root" } else { pointer }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_SENTENCE {
        let end = (0..=MAX_SENTENCE)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests;
