//! What is known of one request, and the last ones of them. Pure.
//!
//! Invariant: the ring is bounded in number, its entries in size, and headers outside [`SHOWN_HEADERS`] are shown by
//! name and length only: an endpoint's own headers carry credentials.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use serde::Serialize;

use crate::signing::{Signature, VerifyError, VerifyingKey};

/// Requests kept for the page and `GET /requests`.
const KEPT: usize = 200;
/// Bytes of a body that are shown; 200 of them are 3 MiB.
const SHOWN_BODY: usize = 16 * 1024;
/// Bytes of a header's value, and of a path, that are shown.
const SHOWN_VALUE: usize = 1_024;
/// Ids whose requests are counted, for `/fail/N` and the column of attempts; the oldest are forgotten.
const COUNTED_IDS: usize = 10_000;
/// The longest id that is counted: ours have 17 bytes.
const COUNTED_ID: usize = 256;
/// What the published libraries allow (Standard Webhooks 1.0.0).
const TOLERANCE: Duration = Duration::from_secs(300);
/// Headers whose values are shown.
const SHOWN_HEADERS: [&str; 14] = [
    "accept",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "stripe-signature",
    "user-agent",
    "webhook-id",
    "webhook-request-origin",
    "webhook-request-rate",
    "webhook-signature",
    "webhook-timestamp",
    "x-hub-signature-256",
];

/// What a signature is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    Verified,
    /// There is no key to verify with.
    Unchecked,
    NoSignature,
    WrongSignature,
    StaleTimestamp,
    Malformed,
}

/// A verdict, why, and which key matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub why: String,
}

/// One request, as shown.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// RFC 3339, UTC, to the millisecond.
    pub time: String,
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `webhook-id`, if any.
    pub id: Option<String>,
    /// How many requests with this id there were, this one included.
    pub attempt: u32,
    pub verdict: Verdict,
    pub why: String,
    /// What was answered.
    pub status: u16,
    /// The body's length.
    pub bytes: usize,
    pub headers: Vec<(String, String)>,
    /// The body's beginning: as text, or else in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub body_truncated: bool,
}

/// What is said of a request that asks whether messages are wanted.
pub fn of_handshake() -> Judgement {
    Judgement {
        verdict: Verdict::Unchecked,
        why: "a handshake is about no message, and is not signed".to_owned(),
    }
}

/// Judges a request's signature as a receiver does. `now` is in seconds since 1970.
pub fn judge(keys: &[VerifyingKey], headers: &HeaderMap, body: &[u8], now: i64) -> Judgement {
    let judged = |verdict, why| Judgement { verdict, why };
    if keys.is_empty() {
        let why = "no key was given to verify with: use --secret-file, or --raw-secret-file";
        return judged(Verdict::Unchecked, why.to_owned());
    }
    let mut error = None;
    for (index, key) in keys.iter().enumerate() {
        match key.verify(headers, body, now, TOLERANCE) {
            Ok(()) => {
                let (one, all) = (index + 1, keys.len());
                let why = format!("signed with key {one} of {all} ({})", key.fingerprint());
                return judged(Verdict::Verified, why);
            }
            // Of a key that is for what the request carries.
            Err(why) if Signature::of(headers).any(|carried| key.is_for(carried)) => error = Some(why),
            Err(why) => drop(error.get_or_insert(why)),
        }
    }
    if let Some(unknown) = no_key_for(keys, headers) {
        return judged(Verdict::Unchecked, unknown);
    }
    let error = error.unwrap_or(VerifyError::NoMatch);
    let verdict = match error {
        VerifyError::Missing(_) | VerifyError::NoneOf { .. } => Verdict::NoSignature,
        VerifyError::NoMatch => Verdict::WrongSignature,
        VerifyError::TooOld { .. } | VerifyError::TooNew { .. } => Verdict::StaleTimestamp,
        VerifyError::Id | VerifyError::Timestamp(_) => Verdict::Malformed,
    };
    judged(verdict, error.to_string())
}

/// What a request is signed with, where no key is for any of it.
fn no_key_for(keys: &[VerifyingKey], headers: &HeaderMap) -> Option<String> {
    let carried = Signature::of(headers).next()?;
    if Signature::of(headers).any(|carried| keys.iter().any(|key| key.is_for(carried))) {
        return None;
    }
    let how = match carried {
        Signature::V1 => "a whsec_ key in a --secret-file",
        Signature::V1a => "a whpk_ key in a --secret-file",
        Signature::GitHub | Signature::Stripe => "a --raw-secret-file",
    };
    let (header, version) = (carried.header(), carried.version());
    Some(format!(
        "{header} holds a {version} signature, and no key given is for it: use {how}"
    ))
}

/// Headers as they are shown: names, and those values that are never credentials.
pub fn shown_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let shown = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let value = match SHOWN_HEADERS.contains(&name.as_str()) {
            true => cut(&String::from_utf8_lossy(value.as_bytes()), SHOWN_VALUE).to_string(),
            false => format!("({} bytes, not shown)", value.len()),
        };
        (name.to_string(), value)
    };
    headers.iter().map(shown).collect()
}

impl Record {
    /// Puts the body's beginning in, as text where it is text.
    pub fn show_body(&mut self, body: &[u8]) {
        self.bytes = body.len();
        self.body_truncated = body.len() > SHOWN_BODY;
        match std::str::from_utf8(body) {
            Ok(text) => self.body = Some(cut(text, SHOWN_BODY).to_string()),
            Err(_) => self.body_base64 = Some(STANDARD.encode(&body[..body.len().min(SHOWN_BODY)])),
        }
    }
}

/// A path as it is kept.
pub fn shown_path(path: &str) -> String {
    cut(path, SHOWN_VALUE).to_string()
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// The last requests and the counts of their ids.
#[derive(Debug, Default)]
pub struct Ring {
    records: VecDeque<Arc<Record>>,
    counts: HashMap<Arc<str>, u32>,
    order: VecDeque<Arc<str>>,
    /// Requests since the start.
    pub total: u64,
}

impl Ring {
    /// How many requests with this id came before, counting this one from now on.
    pub fn count(&mut self, id: Option<&str>) -> u32 {
        let Some(id) = id.filter(|id| id.len() <= COUNTED_ID) else {
            return 0;
        };
        if let Some(count) = self.counts.get_mut(id) {
            *count = count.saturating_add(1);
            return *count - 1;
        }
        if self.order.len() >= COUNTED_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        let id: Arc<str> = id.into();
        self.order.push_back(id.clone());
        self.counts.insert(id, 1);
        0
    }

    pub fn push(&mut self, record: Arc<Record>) {
        self.total += 1;
        self.records.truncate(KEPT - 1);
        self.records.push_front(record);
    }

    /// Newest first.
    pub fn records(&self) -> Vec<Arc<Record>> {
        self.records.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::Scheme;
    use http::HeaderValue;

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn key(text: &str) -> VerifyingKey {
        VerifyingKey::parse(text).unwrap()
    }

    fn vector() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", HeaderValue::from_static("msg_p5jXN8AQM9LWM0D4loKWxJek"));
        headers.insert("webhook-timestamp", HeaderValue::from_static("1614265330"));
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        headers.insert("webhook-signature", HeaderValue::from_static(signature));
        headers
    }

    #[test]
    fn every_verdict_has_its_cause() {
        let (keys, body, at) = ([key(B), key(A)], br#"{"test": 2432232314}"#, 1_614_265_330);
        let verdict = |headers: &HeaderMap, body: &[u8], now| judge(&keys, headers, body, now).verdict;
        let judged = judge(&keys, &vector(), body, at);
        assert_eq!(judged.verdict, Verdict::Verified);
        assert!(judged.why.starts_with("signed with key 2 of 2"), "{}", judged.why);
        assert_eq!(judge(&[], &vector(), body, at).verdict, Verdict::Unchecked);
        assert_eq!(judge(&[key(B)], &vector(), body, at).verdict, Verdict::WrongSignature);
        assert_eq!(verdict(&vector(), b"{}", at), Verdict::WrongSignature);
        assert_eq!(verdict(&vector(), body, at + 301), Verdict::StaleTimestamp);
        assert_eq!(verdict(&vector(), body, at - 301), Verdict::StaleTimestamp);
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut headers = vector();
            headers.remove(name);
            assert_eq!(verdict(&headers, body, at), Verdict::NoSignature, "{name}");
        }
        let mut headers = vector();
        headers.insert("webhook-timestamp", HeaderValue::from_static("yesterday"));
        assert_eq!(verdict(&headers, body, at), Verdict::Malformed);
    }

    #[test]
    fn a_signature_of_any_style_has_its_verdict_and_one_that_no_key_is_for_is_unchecked() {
        let at = 1_700_000_000;
        let [standard, pair] = [Scheme::StandardWebhooks, Scheme::Ed25519].map(|scheme| scheme.generate([7; 32]));
        let raw = "of GitHub, or of Stripe";
        let sent = |scheme: Scheme, key: &str| {
            let signed = scheme.read(key.as_bytes()).unwrap().sign("msg_1", at, b"{}").unwrap();
            let mut headers = HeaderMap::from_iter([signed]);
            headers.insert("webhook-id", HeaderValue::from_static("msg_1"));
            headers.insert("webhook-timestamp", HeaderValue::from(at));
            headers
        };
        let all = [key(&standard), key(&pair), VerifyingKey::raw(raw.as_bytes()).unwrap()];
        for (scheme, text, own, flag) in [
            (Scheme::StandardWebhooks, &*standard, 0, "a whsec_ key"),
            (Scheme::Ed25519, &*pair, 1, "a whpk_ key"),
            (Scheme::GitHub, raw, 2, "a --raw-secret-file"),
            (Scheme::Stripe, raw, 2, "a --raw-secret-file"),
        ] {
            let headers = sent(scheme, text);
            let judged = judge(&all, &headers, b"{}", at);
            assert_eq!(judged.verdict, Verdict::Verified, "{scheme:?}: {}", judged.why);
            assert!(judged.why.starts_with(&format!("signed with key {} of 3", own + 1)));
            assert_eq!(
                judge(&all, &headers, b"[]", at).verdict,
                Verdict::WrongSignature,
                "{scheme:?}"
            );
            let old = judge(&all, &headers, b"{}", at + 301).verdict;
            let timeless = scheme == Scheme::GitHub;
            assert_eq!(
                old,
                if timeless {
                    Verdict::Verified
                } else {
                    Verdict::StaleTimestamp
                },
                "{scheme:?}"
            );
            let others: Vec<VerifyingKey> = all.iter().filter(|key| **key != all[own]).cloned().collect();
            let judged = judge(&others, &headers, b"{}", at);
            assert_eq!(judged.verdict, Verdict::Unchecked, "{scheme:?}");
            assert!(judged.why.contains(flag), "{}", judged.why);
        }
        assert_eq!(judge(&all, &HeaderMap::new(), b"{}", at).verdict, Verdict::NoSignature);
    }

    #[test]
    fn headers_that_may_carry_a_credential_show_their_length_only() {
        let mut headers = vector();
        headers.insert("authorization", HeaderValue::from_static("Bearer hunter2"));
        headers.insert("x-tenant", HeaderValue::from_static("hunter2"));
        let shown = shown_headers(&headers);
        assert!(shown.contains(&("webhook-timestamp".into(), "1614265330".into())));
        assert!(shown.contains(&("authorization".into(), "(14 bytes, not shown)".into())));
        assert!(!format!("{shown:?}").contains("hunter2"));
    }

    #[test]
    fn the_ring_and_its_counts_are_bounded() {
        let mut ring = Ring::default();
        for number in 0..COUNTED_IDS + 10 {
            assert_eq!(ring.count(Some(&number.to_string())), 0);
        }
        assert_eq!((ring.counts.len(), ring.order.len()), (COUNTED_IDS, COUNTED_IDS));
        assert_eq!(ring.count(Some("10009")), 1, "a late one is remembered");
        assert_eq!(ring.count(Some("10009")), 2);
        assert_eq!(ring.count(Some("0")), 0, "an early one is forgotten");
        assert_eq!((ring.count(None), ring.count(Some(&"x".repeat(300)))), (0, 0));
    }
}
