//! The beginning of a failed answer, without what the request told the receiver in confidence. Pure.
//!
//! Receivers repeat what they were sent: "Cannot POST /services/T000/B000/XXXX". Excerpts are stored, and Secrets never
//! reach the disk. Invariant: no value of a Secret that is in the request stands in an excerpt as it was sent; nor does the
//! path, which may be one. What an expression makes of a value (a part, another case) is known only in a header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;

use crate::expression::url_encoded;
use crate::shaping::path::split;

/// Bytes kept of a failure, for the person who looks for its cause.
pub const EXCERPT: usize = 1024;
/// A shorter path is no secret, and stands in too many sentences.
const PATH_AT_LEAST: usize = 8;
/// Fewer bytes of a secret at the cut end of an excerpt give nothing away.
const PART_AT_LEAST: usize = 4;
const INSTEAD: &[u8] = b"[not shown]";

/// What a receiver was told beside headers.
pub struct Told<'a> {
    /// The request's path and query.
    pub path: &'a str,
    /// The endpoint's own, which the request's begins with.
    pub own_path: &'a str,
    /// Values of Secrets that the subscription's expressions read: they may stand in body, path or headers.
    pub secrets: Vec<&'a str>,
}

/// The excerpt as it may be kept, of the answer to a request that told this and these headers' values; none when nothing is
/// left.
pub fn conceal<'a>(
    told: &Told<'_>,
    values: impl IntoIterator<Item = &'a HeaderValue>,
    excerpt: &[u8],
) -> Option<Bytes> {
    let secrets = secrets(told, values);
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
fn secrets<'a>(told: &Told<'_>, values: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<Vec<u8>> {
    let mut secrets: Vec<Vec<u8>> = told.secrets.iter().flat_map(|secret| as_written(secret)).collect();
    let (own_path, own_query) = split(told.own_path);
    let parts = [told.path, told.own_path, own_path, own_query.unwrap_or_default()];
    let parts = parts.into_iter().filter(|part| part.len() >= PATH_AT_LEAST);
    secrets.extend(parts.map(|part| part.as_bytes().to_vec()));
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

/// How expressions write a value: as it is, in JSON, in a URL, as bytes.
fn as_written(secret: &str) -> [Vec<u8>; 4] {
    let json = serde_json::Value::from(secret).to_string();
    [
        secret.as_bytes().to_vec(),
        json.trim_matches('"').as_bytes().to_vec(),
        url_encoded(secret).into_bytes(),
        STANDARD.encode(secret).into_bytes(),
    ]
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
        let told = Told {
            path: "/services/T000/B000/XXXX",
            own_path: "/services/T000/B000/XXXX",
            secrets: Vec::new(),
        };
        let kept = conceal(&told, &values(), text.as_bytes()).unwrap_or_default();
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
    fn what_an_expression_read_is_left_out_as_it_may_stand_in_a_body_a_path_or_a_header() {
        let secret = "routing \"key\"/7";
        let told = Told {
            path: "/hooks/secret-part/leads/7?code=k-12345678&dry=1",
            own_path: "/hooks/secret-part?code=k-12345678",
            secrets: vec![secret],
        };
        for (answer, kept) in [
            (r#"unknown routing "key"/7"#, "unknown [not shown]"),
            (
                r#"{"got":{"routing_key":"routing \"key\"/7"}}"#,
                r#"{"got":{"routing_key":"[not shown]"}}"#,
            ),
            ("no route to routing%20%22key%22%2F7", "no route to [not shown]"),
            ("bytes cm91dGluZyAia2V5Ii83", "bytes [not shown]"),
            (
                "Cannot PUT /hooks/secret-part/leads/7?code=k-12345678&dry=1",
                "Cannot PUT [not shown]",
            ),
            (
                "Cannot PUT /hooks/secret-part/leads/7",
                "Cannot PUT [not shown]/leads/7",
            ),
            ("bad query code=k-12345678", "bad query [not shown]"),
        ] {
            let shown = conceal(&told, &[], answer.as_bytes()).unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&shown), kept);
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
