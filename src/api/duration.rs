//! Durations as manifests write them: GEP-2257, `1h30m`, `500ms`.
//!
//! Invariant: the text is kept as written, so that applying what was read changes nothing.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The longest text the format allows: four parts of five digits and two letters fit.
const MAX_LENGTH: usize = 32;
/// Parts of one duration (GEP-2257).
const MAX_PARTS: usize = 4;
/// Digits of one part (GEP-2257).
const MAX_DIGITS: usize = 5;

/// A duration in the format of GEP-2257: up to four parts of digits and `h`, `m`, `s` or `ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ApiDuration(pub String);

impl ApiDuration {
    /// The length of time; an error for what the API server would have refused.
    pub fn parse(&self) -> Result<Duration, DurationError> {
        parse(&self.0).ok_or_else(|| DurationError(self.0.chars().take(MAX_LENGTH).collect()))
    }
}

impl From<&str> for ApiDuration {
    fn from(text: &str) -> ApiDuration {
        ApiDuration(text.to_owned())
    }
}

fn parse(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > MAX_LENGTH {
        return None;
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..MAX_PARTS {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: write up to four parts of digits and h, m, s or ms, as in 1h30m or 500ms")]
pub struct DurationError(String);

impl JsonSchema for ApiDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": MAX_LENGTH,
            "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_gep_2257_says() {
        for (text, millis) in [
            ("0s", 0),
            ("15s", 15_000),
            ("1h30m", 5_400_000),
            ("1h2m3s4ms", 3_723_004),
            ("500ms", 500),
            ("99999h", 359_996_400_000),
            ("1s1s", 2_000),
        ] {
            let parsed = ApiDuration::from(text).parse();
            assert_eq!(parsed, Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "1",
            "s",
            "1d",
            "1.5s",
            "-1s",
            "100000s",
            "1s2s3s4s5s",
            "1 s",
            "1S",
            "1us",
        ] {
            assert!(ApiDuration::from(text).parse().is_err(), "{text:?}");
        }
    }
}
