//! The beginning of a failed answer, without what the request told the receiver in confidence. Pure.
//!
//! Receivers repeat what they were sent: "Cannot POST /services/T000/B000/XXXX". Excerpts are stored, and Secrets never
//! reach the disk. Invariant: no value of a Secret that is in the request stands in an excerpt as it was sent; nor does the
//! path, which may be one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;

/// Bytes kept of a failure, for the person who looks for its cause.
pub const EXCERPT: usize = 1024;
/// A shorter path is no secret, and stands in too many sentences.
const PATH_AT_LEAST: usize = 8;
/// Fewer bytes of a secret at the cut end of an excerpt give nothing away.
const PART_AT_LEAST: usize = 4;
const INSTEAD: &[u8] = b"[not shown]";

/// The excerpt as it may be kept, of the answer to a request to `path` with these headers' values; none when nothing is left.
pub fn conceal<'a>(path: &str, values: impl IntoIterator<Item = &'a HeaderValue>, excerpt: &[u8]) -> Option<Bytes> {
    if excerpt.is_empty() {
        // As of every success: nothing to look for.
        return None;
    }
    let secrets = secrets(path, values);
    let mut kept = excerpt.to_vec();
    for secret in &secrets {
        kept = replace(&kept, secret);
    }
    if excerpt.len() >= EXCERPT {
        let cut = secrets.iter().map(|secret| cut_short(&kept, secret)).max().unwrap_or(0);
        kept.truncate(kept.len() - cut);
    }
    (!kept.is_empty()).then(|| kept.into())
}

/// Longest first, so that a header's value goes before the credential in it.
fn secrets<'a>(path: &str, values: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<Vec<u8>> {
    let mut secrets = Vec::new();
    if path.len() >= PATH_AT_LEAST {
        secrets.push(path.as_bytes().to_vec());
    }
    for value in values.into_iter().filter(|value| value.is_sensitive()) {
        secrets.push(value.as_bytes().to_vec());
        // `Bearer` and `Basic` before a credential (RFC 9110, 11.4), and the password in the latter.
        let Some(space) = value.as_bytes().iter().position(|byte| *byte == b' ') else {
            continue;
        };
        let credential = &value.as_bytes()[space + 1..];
        secrets.push(credential.to_vec());
        let pair = STANDARD.decode(credential).unwrap_or_default();
        if let Some(colon) = pair.iter().position(|byte| *byte == b':') {
            secrets.push(pair[colon + 1..].to_vec());
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets
}

fn replace(text: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(secret) {
            kept.extend_from_slice(INSTEAD);
            at += secret.len();
        } else {
            kept.push(text[at]);
            at += 1;
        }
    }
    kept
}

/// How many bytes at the end of `text` are the beginning of `secret`.
fn cut_short(text: &[u8], secret: &[u8]) -> usize {
    (PART_AT_LEAST..secret.len())
        .rev()
        .find(|length| text.ends_with(&secret[..*length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Vec<HeaderValue> {
        let sensitive = |value: &str| {
            let mut value = HeaderValue::try_from(value).unwrap();
            value.set_sensitive(true);
            value
        };
        vec![
            sensitive(&format!("Basic {}", STANDARD.encode("tidings:hunter2-hunter2"))),
            sensitive("k-123456789"),
            HeaderValue::from_static("sales"),
        ]
    }

    fn shown(text: &str) -> String {
        let kept = conceal("/services/T000/B000/XXXX", &values(), text.as_bytes()).unwrap_or_default();
        String::from_utf8(kept.to_vec()).unwrap()
    }

    #[test]
    fn what_the_request_told_in_confidence_is_left_out_and_the_rest_stays() {
        let basic = STANDARD.encode("tidings:hunter2-hunter2");
        for (answer, kept) in [
            ("Cannot POST /services/T000/B000/XXXX", "Cannot POST [not shown]"),
            ("k-123456789 is unknown to sales", "[not shown] is unknown to sales"),
            (&format!("Authorization: Basic {basic}!"), "Authorization: [not shown]!"),
            (&format!("bad credential {basic}"), "bad credential [not shown]"),
            (
                "wrong password hunter2-hunter2 of tidings",
                "wrong password [not shown] of tidings",
            ),
            ("", ""),
        ] {
            assert_eq!(shown(answer), kept);
        }
    }

    #[test]
    fn a_secret_that_the_excerpt_cuts_through_is_left_out_too() {
        let filler = "x".repeat(EXCERPT - "/services".len());
        assert_eq!(shown(&format!("{filler}/services")), filler);
        let whole = format!("{}/services", &filler[1..]);
        assert_eq!(shown(&whole), whole, "it ends there by itself");
    }
}
