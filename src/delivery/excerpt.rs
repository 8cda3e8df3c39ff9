//! The beginning of a failed answer, without what the request told the receiver in confidence. Pure.
//!
//! Receivers repeat what they were sent: "Cannot POST /services/T000/B000/XXXX". Excerpts are stored, and Secrets never
//! reach the disk. Invariant: no value of a Secret that is in the request stands in an excerpt as it was sent, nor as JSON,
//! HTML or a URL write it; nor does the path, and of a URL that is in a Secret no part of it, for any may be the secret.
//! What an expression makes of a value (a part, another case) is known only in a header.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::percent_decode_str;

use crate::expression::url_encoded;
use crate::shaping::path::split;

/// Bytes kept of a failure, for the person who looks for its cause.
pub const EXCERPT: usize = 1024;
/// A shorter path, or part of one, is no secret, and stands in too many sentences.
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
    /// It came from a Secret.
    pub own_is_secret: bool,
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
    let cut = match excerpt.len() >= EXCERPT {
        true => secrets
            .iter()
            .map(|secret| cut_short(excerpt, secret))
            .max()
            .unwrap_or(0),
        false => 0,
    };
    let mut is_secret = vec![false; excerpt.len()];
    for secret in &secrets {
        mark(excerpt, secret, &mut is_secret);
    }
    is_secret.truncate(excerpt.len() - cut);
    // What was found is found in what the receiver said: what stands instead may look like another secret.
    let mut kept = Vec::with_capacity(EXCERPT);
    for run in is_secret.chunk_by(|a, b| a == b).scan(0, |at, run| {
        let from = *at;
        *at += run.len();
        Some(from..*at)
    }) {
        kept.extend_from_slice(if is_secret[run.start] { INSTEAD } else { &excerpt[run] });
    }
    kept.truncate(EXCERPT);
    (!kept.is_empty()).then(|| kept.into())
}

fn secrets<'a>(told: &Told<'_>, values: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<Vec<u8>> {
    let texts = told.secrets.iter().copied().map(Cow::Borrowed).chain(of_path(told));
    let mut secrets: Vec<Vec<u8>> = texts.flat_map(|text| as_written(text.as_bytes())).collect();
    for value in values.into_iter().filter(|value| value.is_sensitive()) {
        secrets.extend(as_written(value.as_bytes()));
        // `Bearer` and `Basic` before a credential (RFC 9110, 11.4), and the password in the latter.
        let Some(space) = value.as_bytes().iter().position(|byte| *byte == b' ') else {
            continue;
        };
        let credential = &value.as_bytes()[space + 1..];
        secrets.extend(as_written(credential));
        let pair = STANDARD.decode(credential).unwrap_or_default();
        if let Some(colon) = pair.iter().position(|byte| *byte == b':') {
            secrets.extend(as_written(&pair[colon + 1..]));
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets.sort_unstable();
    secrets.dedup();
    secrets
}

/// What of path and query is left out: the whole, and of a URL that is in a Secret each segment and each value, also
/// decoded, as routers see them.
fn of_path<'a>(told: &Told<'a>) -> Vec<Cow<'a, str>> {
    let (path, query) = split(told.own_path);
    let query = query.unwrap_or_default();
    let mut parts: Vec<Cow<'a, str>> = [told.path, told.own_path, path, query].map(Cow::Borrowed).into();
    if told.own_is_secret {
        let relative = |text: &'a str| text.strip_prefix('/').unwrap_or(text);
        let values = query
            .split('&')
            .map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
        let of_secret = [told.path, told.own_path, path].into_iter().map(relative);
        let of_secret: Vec<&str> = of_secret.chain(path.split('/')).chain(values).collect();
        parts.extend(of_secret.iter().copied().map(Cow::Borrowed));
        let decoded = of_secret.into_iter().map(percent_decode_str);
        parts.extend(decoded.map(|part| part.decode_utf8_lossy()));
    }
    parts.retain(|part| part.len() >= PATH_AT_LEAST);
    parts
}

/// How expressions and receivers write a value: as it is, in JSON (where some escape slashes and some ampersands), in HTML,
/// in a URL, as bytes.
fn as_written(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut written = vec![secret.to_vec(), STANDARD.encode(secret).into_bytes()];
    if let Ok(text) = std::str::from_utf8(secret) {
        let json = serde_json::Value::from(text).to_string();
        // Without its quotes.
        let json = &json[1..json.len() - 1];
        let html = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let texts = [
            json.to_owned(),
            json.replace('/', r"\/"),
            json.replace('&', r"\u0026"),
            html.replace('"', "&quot;"),
            url_encoded(text),
        ];
        written.extend(texts.map(String::into_bytes));
    }
    written
}

/// Marks where a secret stands.
fn mark(text: &[u8], secret: &[u8], is_secret: &mut [bool]) {
    let mut from = 0;
    while let Some(at) = (from..text.len()).find(|at| text[*at..].starts_with(secret)) {
        is_secret[at..at + secret.len()].fill(true);
        from = at + secret.len();
    }
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
            sensitive("Bearer a/b+c/d=="),
            HeaderValue::from_static("sales"),
        ]
    }

    fn shown(text: &str) -> String {
        let told = Told {
            path: "/services/T000/B000/XXXX",
            own_path: "/services/T000/B000/XXXX",
            own_is_secret: false,
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
            (
                r#"{"error":"a\/b+c\/d== has expired"}"#,
                r#"{"error":"[not shown] has expired"}"#,
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
            own_is_secret: false,
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
    fn no_part_of_a_url_that_is_in_a_secret_stands_in_an_excerpt_however_receivers_write_it() {
        let own_path = "/services/T000/k-12345678?code=c%2B23456789%3D&dry=1";
        let told = |own_is_secret| Told {
            path: own_path,
            own_path,
            own_is_secret,
            secrets: Vec::new(),
        };
        for (answer, kept) in [
            (
                r#"{"message":"The route services\/T000\/k-12345678 could not be found."}"#,
                r#"{"message":"The route [not shown] could not be found."}"#,
            ),
            ("No such hook: k-12345678", "No such hook: [not shown]"),
            ("bad signature c+23456789=", "bad signature [not shown]"),
            ("bad signature c%2B23456789%3D", "bad signature [not shown]"),
            (
                "<p>/services/T000/k-12345678?code=c%2B23456789%3D&amp;dry=1</p>",
                "<p>[not shown]</p>",
            ),
            (
                r#"{"uri":"/services/T000/k-12345678?code=c%2B23456789%3D\u0026dry=1"}"#,
                r#"{"uri":"[not shown]"}"#,
            ),
            ("/login?next=%2Fservices%2FT000%2Fk-12345678", "/login?next=[not shown]"),
            ("T000 is closed", "T000 is closed"),
        ] {
            let shown = conceal(&told(true), &[], answer.as_bytes()).unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&shown), kept);
        }
        let answer = "there is no such thing among services";
        let shown = conceal(&told(false), &[], answer.as_bytes()).unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&shown),
            answer,
            "a URL that everybody may read is no secret"
        );
    }

    #[test]
    fn secrets_of_a_letter_that_stand_in_what_stands_instead_make_nothing_grow() {
        let letters: Vec<String> = " [hnostw]".chars().map(String::from).collect();
        let told = Told {
            path: "/",
            own_path: "/",
            own_is_secret: false,
            secrets: letters.iter().map(String::as_str).collect(),
        };
        let shown = |answer: &str| conceal(&told, &[], answer.as_bytes()).unwrap_or_default();
        assert_eq!(shown(&" ".repeat(EXCERPT)), INSTEAD);
        assert_eq!(shown("a b"), "a[not shown]b");
        assert_eq!(shown(&" a".repeat(EXCERPT / 2)).len(), EXCERPT);
    }

    #[test]
    fn a_secret_that_the_excerpt_cuts_through_is_left_out_too() {
        let filler = "x".repeat(EXCERPT - "/services".len());
        assert_eq!(shown(&format!("{filler}/services")), filler);
        let whole = format!("{}/services", &filler[1..]);
        assert_eq!(shown(&whole), whole, "it ends there by itself");
        // It ends as it begins: what might be cut is the end of one that is whole.
        let told = "hunter2-hunter2";
        let filler = "x".repeat(EXCERPT - told.len());
        let kept = shown(&format!("{filler}{told}"));
        assert!(!kept.contains("hunter"), "{}", &kept[filler.len()..]);
    }
}
