//! Standard Webhooks 1.0.0: `v1`, HMAC-SHA256 over `{id}.{timestamp}.{body}`.

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

/// The MAC over a prefix and a body.
pub(super) fn mac(key: &SigningKey, prefix: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = key.mac();
    mac.update(prefix.as_bytes());
    mac.update(body);
    mac
}

/// Key, id, time, body and signature, as the specification has them.
#[cfg(test)]
pub(super) const VECTORS: [(&str, &str, i64, &str, &str); 2] = [
    (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1_649_367_553,
        r#"{"email":"test@example.com","username":"test_user"}"#,
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_vectors_are_signed() {
        for (key, id, timestamp, body, expected) in VECTORS {
            let keys = SigningKeys::parse(Some("k"), key).unwrap();
            assert_eq!(sign_v1(&keys, id, timestamp, body.as_bytes()), expected);
        }
    }

    #[test]
    fn every_key_signs_with_the_current_one_first() {
        let [(a, id, timestamp, body, expected), (b, ..)] = VECTORS;
        let both = SigningKeys::parse(Some("k"), &format!("{b} {a}")).unwrap();
        let list = sign_v1(&both, id, timestamp, body.as_bytes());
        let entries: Vec<&str> = list.to_str().unwrap().split(' ').collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1], expected);
    }
}
