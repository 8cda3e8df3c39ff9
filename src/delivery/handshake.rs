//! Whether a receiver wants messages at all: the handshake of CloudEvents' HTTP 1.1 Web Hooks for Event Delivery 1.0.2,
//! section 4. Owns its words and what an answer means; knows nothing of sockets or of when to ask. Pure.
//!
//! The asynchronous way (`WebHook-Request-Callback`) is not offered: it would need an address of ours that receivers can
//! reach. Who decides later answers a later request. Invariant: silence is no agreement, whatever the status.

use std::num::NonZeroU32;
use std::str::FromStr;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

pub const REQUEST_ORIGIN: HeaderName = HeaderName::from_static("webhook-request-origin");
pub const REQUEST_RATE: HeaderName = HeaderName::from_static("webhook-request-rate");
pub const ALLOWED_ORIGIN: HeaderName = HeaderName::from_static("webhook-allowed-origin");
pub const ALLOWED_RATE: HeaderName = HeaderName::from_static("webhook-allowed-rate");

/// Every origin, and every rate.
const ANY: &str = "*";
/// RFC 1035, section 2.3.4.
const NAME_LONGEST: usize = 253;
const LABEL_LONGEST: usize = 63;

/// Who asks: a DNS name for this installation as a whole, not for one host of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
    /// The default.
    pub const DEFAULT: &str = "tidings.dev";

    /// As it stands in requests.
    pub fn value(&self) -> &HeaderValue {
        &self.0
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Default for Origin {
    fn default() -> Origin {
        Origin(HeaderValue::from_static(Origin::DEFAULT))
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Origin, OriginError> {
        let is_label = |label: &str| {
            let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            inner && (1..=LABEL_LONGEST).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
        };
        let valid = text.len() <= NAME_LONGEST && text.split('.').all(is_label);
        let value = HeaderValue::try_from(text.to_ascii_lowercase()).ok().filter(|_| valid);
        value.map(Origin).ok_or_else(|| OriginError(text.to_owned()))
    }
}

/// A text that is no DNS name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no DNS name: write one that stands for this installation, as in webhooks.example.com")]
pub struct OriginError(String);

/// What a receiver agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Requests a minute; none: as many as the endpoint wants.
    pub per_minute: Option<NonZeroU32>,
}

/// Why an answer is no agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Not 2xx.
    Status(u16),
    /// It allows no origin.
    NoOrigin,
    /// It allows others.
    OtherOrigin,
    /// The rate it allows is none.
    Rate,
}

/// What an answer means to whoever asked as `origin`. The rate may be left out, though a request that names one should be
/// answered with one (4.2.2): the endpoint's own counts then.
pub(super) fn answer(status: u16, headers: &HeaderMap, origin: &Origin) -> Result<Grant, Refusal> {
    if !(200..=299).contains(&status) {
        return Err(Refusal::Status(status));
    }
    let mut allowed = headers.get_all(ALLOWED_ORIGIN).iter().peekable();
    if allowed.peek().is_none() {
        return Err(Refusal::NoOrigin);
    }
    let is_ours = |value: &HeaderValue| {
        let value = value.as_bytes().trim_ascii();
        value == ANY.as_bytes() || value.eq_ignore_ascii_case(origin.value().as_bytes())
    };
    if !allowed.any(is_ours) {
        return Err(Refusal::OtherOrigin);
    }
    let per_minute = match headers.get(ALLOWED_RATE) {
        None => None,
        Some(rate) => per_minute(rate).ok_or(Refusal::Rate)?,
    };
    Ok(Grant { per_minute })
}

/// A positive whole number, saturating, or any (none).
fn per_minute(rate: &HeaderValue) -> Option<Option<NonZeroU32>> {
    let text = rate.to_str().ok()?.trim();
    if text == ANY {
        return Some(None);
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().unwrap_or(u32::MAX))?;
    NonZeroU32::new(number).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(per_minute: u32) -> Result<Grant, Refusal> {
        Ok(Grant {
            per_minute: NonZeroU32::new(per_minute),
        })
    }

    #[test]
    fn only_a_2xx_that_allows_our_origin_is_an_agreement() {
        let origin: Origin = "events.example.com".parse().unwrap();
        let (ours, other) = (Some("events.example.com"), Some("events.example.org"));
        let table = [
            (200, ours, Some("120"), granted(120)),
            (204, Some("*"), Some("*"), granted(0)),
            (200, Some("Events.Example.COM"), Some("1"), granted(1)),
            (200, ours, None, granted(0)),
            (200, ours, Some("99999999999"), granted(u32::MAX)),
            (200, ours, Some("0"), Err(Refusal::Rate)),
            (200, ours, Some("-5"), Err(Refusal::Rate)),
            (200, ours, Some("1.5"), Err(Refusal::Rate)),
            (200, ours, Some(""), Err(Refusal::Rate)),
            (200, ours, Some("fast"), Err(Refusal::Rate)),
            (200, None, Some("120"), Err(Refusal::NoOrigin)),
            (200, other, Some("120"), Err(Refusal::OtherOrigin)),
            (200, Some("*.example.com"), None, Err(Refusal::OtherOrigin)),
            (200, Some(""), None, Err(Refusal::OtherOrigin)),
            (101, ours, None, Err(Refusal::Status(101))),
            (302, ours, Some("*"), Err(Refusal::Status(302))),
            (405, None, None, Err(Refusal::Status(405))),
            (429, ours, Some("*"), Err(Refusal::Status(429))),
        ];
        for (status, allowed, rate, expected) in table {
            let mut headers = HeaderMap::new();
            let values = [(ALLOWED_ORIGIN, allowed), (ALLOWED_RATE, rate)];
            for (name, value) in values.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                headers.insert(name, HeaderValue::from_static(value));
            }
            let answered = answer(status, &headers, &origin);
            assert_eq!(answered, expected, "{status} {allowed:?} {rate:?}");
        }
        let mut several = HeaderMap::new();
        for value in ["events.example.org", "events.example.com"] {
            several.append(ALLOWED_ORIGIN, HeaderValue::from_static(value));
        }
        assert_eq!(answer(200, &several, &origin), granted(0));
    }

    #[test]
    fn an_origin_is_a_dns_name() {
        for good in [Origin::DEFAULT, "a", "Webhooks.Example.com", "a-1.b--c.de"] {
            let origin: Origin = good.parse().unwrap();
            assert_eq!(origin.name(), good.to_ascii_lowercase());
        }
        let (long_label, long_name) = ("a".repeat(64), vec!["a"; 128].join("."));
        let bad = [
            "",
            ".",
            "a..b",
            "a.",
            "*",
            "https://a",
            "a b",
            "-a",
            "a-.b",
            "ä.de",
            "a_b",
        ];
        for bad in bad.into_iter().chain([&*long_label, &*long_name]) {
            let refused = bad.parse::<Origin>().unwrap_err();
            assert!(refused.to_string().contains("as in webhooks.example.com"), "{bad}");
        }
    }
}
