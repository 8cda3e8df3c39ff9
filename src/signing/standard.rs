//! Standard Webhooks 1.0.0: `v1`, HMAC-SHA256 over `{id}.{timestamp}.{body}`, and the check a receiver makes.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use http::HeaderValue;
use sha2::Sha256;

use super::{SigningKey, SigningKeys};

/// The message's id, the same in every attempt.
pub const HEADER_ID: &str = "webhook-id";
/// The attempt's time, seconds since 1970.
pub const HEADER_TIMESTAMP: &str = "webhook-timestamp";
/// The space-separated list of signatures.
pub const HEADER_SIGNATURE: &str = "webhook-signature";

/// The base64 of a SHA-256 MAC is 44 characters; `v1,` and a space go before each.
const ENTRY: usize = 48;
/// The most signatures looked at: a receiver's work must not grow with what a sender writes.
const MAX_SIGNATURES: usize = 32;

/// The value of `webhook-signature`: one `v1,<base64>` per key, the current key's first.
///
/// `id` must hold no `.` (message ids do not); `timestamp` is in seconds since 1970.
pub fn sign_v1(keys: &SigningKeys, id: &str, timestamp: i64, body: &[u8]) -> HeaderValue {
    let prefix = format!("{id}.{timestamp}.");
    let mut list = String::with_capacity(keys.keys.len() * ENTRY);
    for key in &keys.keys {
        if !list.is_empty() {
            list.push(' ');
        }
        list.push_str("v1,");
        let tag = mac(key, &prefix, body).finalize().into_bytes();
        STANDARD.encode_string(tag, &mut list);
    }
    HeaderValue::try_from(list).expect("base64, commas and spaces are legal in a header value")
}

/// The three headers of a request as they arrived; `None` where one is missing or not text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a> {
    pub id: Option<&'a str>,
    pub timestamp: Option<&'a str>,
    pub signature: Option<&'a str>,
}

impl<'a> Headers<'a> {
    /// Takes the three out of a request's headers.
    pub fn of(headers: &'a http::HeaderMap) -> Headers<'a> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Headers {
            id: text(HEADER_ID),
            timestamp: text(HEADER_TIMESTAMP),
            signature: text(HEADER_SIGNATURE),
        }
    }
}

/// Verifies a request as a receiver does: any `v1` signature that any key made will do.
///
/// `now` is in seconds since 1970; a timestamp further than `tolerance` from it, in either direction, is refused.
pub fn verify(
    keys: &SigningKeys,
    headers: Headers<'_>,
    body: &[u8],
    now: i64,
    tolerance: Duration,
) -> Result<(), VerifyError> {
    let id = headers.id.ok_or(VerifyError::Missing(HEADER_ID))?;
    let text = headers.timestamp.ok_or(VerifyError::Missing(HEADER_TIMESTAMP))?;
    let signatures = headers.signature.ok_or(VerifyError::Missing(HEADER_SIGNATURE))?;
    if id.is_empty() || id.contains('.') {
        return Err(VerifyError::Id);
    }
    let timestamp: i64 = text.parse().map_err(|_| VerifyError::Timestamp)?;
    let tolerance = i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX);
    let age = now.saturating_sub(timestamp);
    if age > tolerance {
        return Err(VerifyError::TooOld { seconds: age });
    }
    if age < tolerance.saturating_neg() {
        return Err(VerifyError::TooNew {
            seconds: age.saturating_neg(),
        });
    }
    // What was signed holds the timestamp as it was written.
    let prefix = format!("{id}.{text}.");
    let mut seen_v1 = false;
    for entry in signatures.split(' ').take(MAX_SIGNATURES) {
        let Some(encoded) = entry.strip_prefix("v1,") else {
            continue;
        };
        seen_v1 = true;
        let Ok(tag) = STANDARD.decode(encoded) else {
            continue;
        };
        if keys
            .keys
            .iter()
            .any(|key| mac(key, &prefix, body).verify_slice(&tag).is_ok())
        {
            return Ok(());
        }
    }
    Err(if seen_v1 {
        VerifyError::NoMatch
    } else {
        VerifyError::NoV1
    })
}

fn mac(key: &SigningKey, prefix: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = key.mac();
    mac.update(prefix.as_bytes());
    mac.update(body);
    mac
}

/// Why a request does not verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the header {0} is missing or not text")]
    Missing(&'static str),
    #[error("webhook-id is empty or contains a dot")]
    Id,
    #[error("webhook-timestamp is not a whole number of seconds since 1970")]
    Timestamp,
    #[error("webhook-timestamp is {seconds} s in the past: too old, or the receiver's clock is ahead")]
    TooOld { seconds: i64 },
    #[error("webhook-timestamp is {seconds} s in the future: the receiver's clock is behind")]
    TooNew { seconds: i64 },
    #[error("webhook-signature holds no v1 signature")]
    NoV1,
    #[error("no signature matches: another key, or the body was changed on its way")]
    NoMatch,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const KEY_B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const TOLERANCE: Duration = Duration::from_secs(300);

    struct Vector(&'static str, &'static str, i64, &'static str, &'static str);
    const A: Vector = Vector(
        KEY_A,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    );
    const B: Vector = Vector(
        KEY_B,
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1_649_367_553,
        r#"{"email":"test@example.com","username":"test_user"}"#,
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    );

    fn keys(text: &str) -> SigningKeys {
        SigningKeys::parse(Some("k"), text).unwrap()
    }

    #[test]
    fn the_published_vectors_are_signed_and_verified() {
        for Vector(key, id, timestamp, body, expected) in [A, B] {
            let keys = keys(key);
            let signature = sign_v1(&keys, id, timestamp, body.as_bytes());
            assert_eq!(signature, expected);
            let headers = Headers {
                id: Some(id),
                timestamp: Some(&timestamp.to_string()),
                signature: Some(expected),
            };
            assert_eq!(verify(&keys, headers, body.as_bytes(), timestamp, TOLERANCE), Ok(()));
        }
    }

    #[test]
    fn every_key_signs_with_the_current_one_first_and_either_key_verifies() {
        let both = keys(&format!("{KEY_B} {KEY_A}"));
        let list = sign_v1(&both, A.1, A.2, A.3.as_bytes());
        let list = list.to_str().unwrap();
        let entries: Vec<&str> = list.split(' ').collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1], A.4);
        let time = A.2.to_string();
        let headers = Headers {
            id: Some(A.1),
            timestamp: Some(&time),
            signature: Some(list),
        };
        for key in [KEY_A, KEY_B] {
            assert_eq!(verify(&keys(key), headers, A.3.as_bytes(), A.2, TOLERANCE), Ok(()));
        }
    }

    #[test]
    fn each_reason_not_to_verify_has_its_own_error() {
        let keys = keys(KEY_A);
        let time = A.2.to_string();
        let good = Headers {
            id: Some(A.1),
            timestamp: Some(&time),
            signature: Some(A.4),
        };
        let body = A.3.as_bytes();
        let check = |headers, body, now| verify(&keys, headers, body, now, TOLERANCE).unwrap_err();
        let cases = [
            (Headers { id: None, ..good }, VerifyError::Missing(HEADER_ID)),
            (
                Headers {
                    timestamp: None,
                    ..good
                },
                VerifyError::Missing(HEADER_TIMESTAMP),
            ),
            (
                Headers {
                    signature: None,
                    ..good
                },
                VerifyError::Missing(HEADER_SIGNATURE),
            ),
            (
                Headers {
                    id: Some("a.b"),
                    ..good
                },
                VerifyError::Id,
            ),
            (
                Headers {
                    timestamp: Some("soon"),
                    ..good
                },
                VerifyError::Timestamp,
            ),
            (
                Headers {
                    signature: Some("v1a,abc v2,x"),
                    ..good
                },
                VerifyError::NoV1,
            ),
            (
                Headers {
                    signature: Some(B.4),
                    ..good
                },
                VerifyError::NoMatch,
            ),
            (
                Headers {
                    signature: Some("v1,???"),
                    ..good
                },
                VerifyError::NoMatch,
            ),
        ];
        for (headers, error) in cases {
            assert_eq!(check(headers, body, A.2), error);
        }
        assert_eq!(check(good, b"{}", A.2), VerifyError::NoMatch);
        assert_eq!(check(good, body, A.2 + 301), VerifyError::TooOld { seconds: 301 });
        assert_eq!(check(good, body, A.2 - 301), VerifyError::TooNew { seconds: 301 });
        assert_eq!(verify(&keys, good, body, A.2 + 300, TOLERANCE), Ok(()));
    }
}
