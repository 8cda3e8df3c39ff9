//! The check that a receiver makes: with the key it was given, over what arrived. Pure.
//!
//! Owns which header a kind of key is for, and why a request does not verify. Invariant: a receiver's work is bounded
//! whatever a sender writes, and no error shows key material.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac as _;
use http::HeaderMap;

use super::standard::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, mac};
use super::{Ed25519Key, Key as _, KeyError, MAX_KEYS, PublicKey, SigningKey, github, stripe, without_newline};

/// The most signatures looked at.
const MAX_SIGNATURES: usize = 32;

/// What a receiver verifies with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyingKey {
    /// `whsec_`: Standard Webhooks, `v1`.
    Symmetric(SigningKey),
    /// `whpk_`, or the public half of `whsk_`: Standard Webhooks, `v1a`.
    Public(PublicKey),
    /// A secret as it is: in the style of GitHub and of Stripe.
    Raw(SigningKey),
}

/// A signature that a request may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    V1,
    V1a,
    GitHub,
    Stripe,
}

impl Signature {
    const ALL: [Signature; 4] = [Signature::V1, Signature::V1a, Signature::GitHub, Signature::Stripe];

    /// Those that a request carries.
    pub fn of(headers: &HeaderMap) -> impl Iterator<Item = Signature> {
        let has = |signature: &Signature| match signature {
            Signature::V1 | Signature::V1a => {
                text(headers, HEADER_SIGNATURE).is_ok_and(|list| entries(list, signature.version()).next().is_some())
            }
            Signature::GitHub => headers.contains_key(github::HEADER),
            Signature::Stripe => headers.contains_key(stripe::HEADER),
        };
        Signature::ALL.into_iter().filter(has)
    }

    /// Where it is.
    pub fn header(self) -> &'static str {
        match self {
            Signature::V1 | Signature::V1a => HEADER_SIGNATURE,
            Signature::GitHub => github::HEADER,
            Signature::Stripe => stripe::HEADER,
        }
    }

    /// What it begins with.
    pub fn version(self) -> &'static str {
        match self {
            Signature::V1 | Signature::Stripe => "v1",
            Signature::V1a => "v1a",
            Signature::GitHub => "sha256",
        }
    }
}

impl VerifyingKey {
    /// Reads keys separated by white space: at least one.
    pub fn parse_all(text: &str) -> Result<Vec<VerifyingKey>, KeyError> {
        let keys: Vec<_> = text
            .split_whitespace()
            .map(VerifyingKey::parse)
            .collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(KeyError::None),
            1..=MAX_KEYS => Ok(keys),
            keys => Err(KeyError::TooMany { keys }),
        }
    }

    /// Reads `whsec_`, `whpk_`, or `whsk_` for its public half.
    pub fn parse(text: &str) -> Result<VerifyingKey, KeyError> {
        match text.split('_').next() {
            Some("whsec") => SigningKey::parse(text).map(VerifyingKey::Symmetric),
            Some("whpk") => PublicKey::parse(text).map(VerifyingKey::Public),
            Some("whsk") => Ed25519Key::parse(text).map(|pair| VerifyingKey::Public(pair.public_half())),
            _ => Err(KeyError::VerifyingPrefix),
        }
    }

    /// A secret as it is; one trailing newline of a text is dropped.
    pub fn raw(secret: &[u8]) -> Result<VerifyingKey, KeyError> {
        let secret = std::str::from_utf8(secret).map_or(secret, |text| without_newline(text).as_bytes());
        SigningKey::raw(secret).map(VerifyingKey::Raw)
    }

    /// Its short public name, as status has it.
    pub fn fingerprint(&self) -> String {
        match self {
            VerifyingKey::Symmetric(key) | VerifyingKey::Raw(key) => key.fingerprint(),
            VerifyingKey::Public(key) => key.fingerprint(),
        }
    }

    /// Whether such a signature is one of its kind.
    pub fn is_for(&self, signature: Signature) -> bool {
        match self {
            VerifyingKey::Symmetric(_) => signature == Signature::V1,
            VerifyingKey::Public(_) => signature == Signature::V1a,
            VerifyingKey::Raw(_) => matches!(signature, Signature::GitHub | Signature::Stripe),
        }
    }

    /// Verifies a request as a receiver does: any signature of its kind will do.
    ///
    /// `now` is in seconds since 1970; a time further than `tolerance` from it, in either direction, is refused.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: i64, tolerance: Duration) -> Result<(), VerifyError> {
        let time = Time { now, tolerance };
        match self {
            VerifyingKey::Symmetric(key) => standard(Signature::V1, headers, time, |prefix, tag| {
                mac(key, prefix, body).verify_slice(tag).is_ok()
            }),
            VerifyingKey::Public(key) => standard(Signature::V1a, headers, time, |prefix, signature| {
                key.verifies(&[prefix.as_bytes(), body].concat(), signature)
            }),
            VerifyingKey::Raw(key) if headers.contains_key(stripe::HEADER) => of_stripe(key, headers, body, time),
            VerifyingKey::Raw(key) => of_github(key, headers, body),
        }
    }
}

/// When a request is looked at, and how far its own time may be from that.
#[derive(Clone, Copy)]
struct Time {
    now: i64,
    tolerance: Duration,
}

impl Time {
    fn check(self, header: &'static str, at: &str) -> Result<(), VerifyError> {
        let at: i64 = at.parse().map_err(|_| VerifyError::Timestamp(header))?;
        let tolerance = i64::try_from(self.tolerance.as_secs()).unwrap_or(i64::MAX);
        let age = self.now.saturating_sub(at);
        if age > tolerance {
            return Err(VerifyError::TooOld { header, seconds: age });
        }
        if age < tolerance.saturating_neg() {
            let seconds = age.saturating_neg();
            return Err(VerifyError::TooNew { header, seconds });
        }
        Ok(())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, VerifyError> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or(VerifyError::Missing(name))
}

/// The signatures of a version in a list of Standard Webhooks.
fn entries<'a>(list: &'a str, version: &'static str) -> impl Iterator<Item = &'a str> {
    let entries = list.split(' ').take(MAX_SIGNATURES);
    entries.filter_map(move |entry| entry.strip_prefix(version)?.strip_prefix(','))
}

fn standard(
    signature: Signature,
    headers: &HeaderMap,
    time: Time,
    matches: impl Fn(&str, &[u8]) -> bool,
) -> Result<(), VerifyError> {
    let id = text(headers, HEADER_ID)?;
    let at = text(headers, HEADER_TIMESTAMP)?;
    let list = text(headers, HEADER_SIGNATURE)?;
    if id.is_empty() || id.contains('.') {
        return Err(VerifyError::Id);
    }
    time.check(HEADER_TIMESTAMP, at)?;
    // What was signed holds the timestamp as it was written.
    let prefix = format!("{id}.{at}.");
    let decoded = entries(list, signature.version()).map(|encoded| STANDARD.decode(encoded));
    one_of(
        signature,
        decoded.map(|tag| tag.is_ok_and(|tag| matches(&prefix, &tag))),
    )
}

/// `t=<seconds>,v1=<hexadecimal>`, the latter more than once while two keys are valid.
fn of_stripe(key: &SigningKey, headers: &HeaderMap, body: &[u8], time: Time) -> Result<(), VerifyError> {
    let parts = text(headers, stripe::HEADER)?.split(',').take(MAX_SIGNATURES);
    let parts: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
    let of = |wanted: &'static str| {
        parts
            .iter()
            .filter(move |(name, _)| *name == wanted)
            .map(|(_, value)| *value)
    };
    let at = of("t").next().ok_or(VerifyError::Timestamp(stripe::HEADER))?;
    time.check(stripe::HEADER, at)?;
    let prefix = format!("{at}.");
    let signatures = of(Signature::Stripe.version());
    one_of(
        Signature::Stripe,
        signatures.map(|digits| is_mac(key, &prefix, body, digits)),
    )
}

fn of_github(key: &SigningKey, headers: &HeaderMap, body: &[u8]) -> Result<(), VerifyError> {
    let value = text(headers, github::HEADER)?;
    one_of(
        Signature::GitHub,
        value
            .strip_prefix("sha256=")
            .map(|digits| is_mac(key, "", body, digits))
            .into_iter(),
    )
}

fn is_mac(key: &SigningKey, prefix: &str, body: &[u8], digits: &str) -> bool {
    bytes(digits).is_some_and(|tag| mac(key, prefix, body).verify_slice(&tag).is_ok())
}

/// Of hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    };
    pairs.map(byte).collect()
}

fn one_of(signature: Signature, mut found: impl Iterator<Item = bool>) -> Result<(), VerifyError> {
    match (found.next(), found.any(|matches| matches)) {
        (Some(true), _) | (_, true) => Ok(()),
        (Some(false), false) => Err(VerifyError::NoMatch),
        (None, false) => Err(VerifyError::NoneOf {
            header: signature.header(),
            version: signature.version(),
        }),
    }
}

/// Why a request does not verify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the header {0} is missing or not text")]
    Missing(&'static str),
    #[error("{header} holds no {version} signature")]
    NoneOf {
        header: &'static str,
        version: &'static str,
    },
    #[error("webhook-id is empty or contains a dot")]
    Id,
    #[error("the time in {0} is not a whole number of seconds since 1970")]
    Timestamp(&'static str),
    #[error("the time in {header} is {seconds} s in the past: too old, or the receiver's clock is ahead")]
    TooOld { header: &'static str, seconds: i64 },
    #[error("the time in {header} is {seconds} s in the future: the receiver's clock is behind")]
    TooNew { header: &'static str, seconds: i64 },
    #[error("no signature matches: another key, or the body was changed on its way")]
    NoMatch,
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::super::Scheme;
    use super::super::standard::VECTORS;
    use super::*;

    const TOLERANCE: Duration = Duration::from_secs(300);
    const RAW: &[u8] = b"It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const AT: i64 = 1_700_000_000;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        all.iter().map(pair).collect()
    }

    /// What a sender with these keys sends.
    fn sent(scheme: Scheme, keys: &[&[u8]]) -> HeaderMap {
        let (name, value) = scheme.read_each(&[], keys).unwrap().sign("msg_1", AT, BODY).unwrap();
        let mut all = headers(&[("webhook-id", "msg_1"), ("webhook-timestamp", &AT.to_string())]);
        all.insert(name, value);
        all
    }

    #[test]
    fn the_published_vectors_verify() {
        for (key, id, at, body, signature) in VECTORS {
            let at_text = at.to_string();
            let arrived = headers(&[
                ("webhook-id", id),
                ("webhook-timestamp", &at_text),
                ("webhook-signature", signature),
            ]);
            let key = VerifyingKey::parse(key).unwrap();
            assert_eq!(key.verify(&arrived, body.as_bytes(), at, TOLERANCE), Ok(()));
        }
        let v1a = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
        let arrived = headers(&[
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", v1a),
        ]);
        let private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
        let public = super::super::public_key(private).unwrap();
        for key in [private, &public] {
            let key = VerifyingKey::parse(key).unwrap();
            let body = br#"{"test": 2432232314}"#;
            assert_eq!(key.verify(&arrived, body, 1_614_265_330, TOLERANCE), Ok(()));
            assert_eq!(
                key.verify(&arrived, b"{}", 1_614_265_330, TOLERANCE),
                Err(VerifyError::NoMatch)
            );
        }
        let github = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let arrived = headers(&[("x-hub-signature-256", github)]);
        let key = VerifyingKey::raw(b"It's a Secret to Everybody\n").unwrap();
        assert_eq!(key.verify(&arrived, BODY, 0, TOLERANCE), Ok(()));
    }

    #[test]
    fn what_any_of_the_senders_keys_signed_verifies_for_a_time_and_with_no_other_key() {
        let standard = [7, 8, 9].map(|byte| Scheme::StandardWebhooks.generate([byte; 32]));
        let ed25519 = [7, 8, 9].map(|byte| Scheme::Ed25519.generate([byte; 32]));
        let raw = ["one", "whsec_two", "three"].map(str::to_owned);
        for (scheme, texts) in [
            (Scheme::StandardWebhooks, &standard),
            (Scheme::Ed25519, &ed25519),
            (Scheme::Stripe, &raw),
        ] {
            let bytes: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
            let arrived = sent(scheme, &bytes[..2]);
            let verify = |key: usize, body: &[u8], now| {
                let key = match scheme {
                    Scheme::Stripe => VerifyingKey::raw(bytes[key]),
                    _ => VerifyingKey::parse(&texts[key]),
                };
                key.unwrap().verify(&arrived, body, now, TOLERANCE)
            };
            for key in [0, 1] {
                assert_eq!(verify(key, BODY, AT + 300), Ok(()), "{scheme:?}");
                assert_eq!(verify(key, b"other", AT), Err(VerifyError::NoMatch), "{scheme:?}");
                let too = |result, seconds| match result {
                    Err(VerifyError::TooOld { seconds: by, .. } | VerifyError::TooNew { seconds: by, .. }) => {
                        by == seconds
                    }
                    _ => false,
                };
                assert!(too(verify(key, BODY, AT + 301), 301), "{scheme:?}");
                assert!(too(verify(key, BODY, AT - 302), 302), "{scheme:?}");
            }
            assert_eq!(verify(2, BODY, AT), Err(VerifyError::NoMatch), "{scheme:?}");
        }
        let arrived = sent(Scheme::GitHub, &[b"one"]);
        let verify = |key: &[u8], body| VerifyingKey::raw(key).unwrap().verify(&arrived, body, 0, TOLERANCE);
        assert_eq!(verify(b"one", BODY), Ok(()), "it carries no time");
        assert_eq!(verify(b"one", b"other"), Err(VerifyError::NoMatch));
        assert_eq!(verify(b"two", BODY), Err(VerifyError::NoMatch));
    }

    #[test]
    fn each_reason_not_to_verify_has_its_own_error() {
        let key = VerifyingKey::parse(&Scheme::StandardWebhooks.generate([7; 32])).unwrap();
        let good = [
            ("webhook-id", "msg_1"),
            ("webhook-timestamp", "1700000000"),
            ("webhook-signature", "v1,aGVsbG8="),
        ];
        let changed = |name: &'static str, value: &str| {
            let mut changed = headers(&good);
            changed.insert(name, HeaderValue::from_str(value).unwrap());
            changed
        };
        let without = |name: &str| {
            let mut without = headers(&good);
            without.remove(name);
            without
        };
        let none = |version| VerifyError::NoneOf {
            header: "webhook-signature",
            version,
        };
        for (arrived, error) in [
            (without("webhook-id"), VerifyError::Missing("webhook-id")),
            (without("webhook-timestamp"), VerifyError::Missing("webhook-timestamp")),
            (without("webhook-signature"), VerifyError::Missing("webhook-signature")),
            (changed("webhook-id", "a.b"), VerifyError::Id),
            (
                changed("webhook-timestamp", "soon"),
                VerifyError::Timestamp("webhook-timestamp"),
            ),
            (changed("webhook-signature", "v1a,abc v2,x v1"), none("v1")),
            (changed("webhook-signature", "v1,???"), VerifyError::NoMatch),
            (headers(&good), VerifyError::NoMatch),
        ] {
            assert_eq!(key.verify(&arrived, BODY, AT, TOLERANCE), Err(error), "{arrived:?}");
        }
        let raw = VerifyingKey::raw(RAW).unwrap();
        let of = |header, version| VerifyError::NoneOf { header, version };
        for (name, value, error) in [
            ("x-hub-signature-256", "sha1=00", of("x-hub-signature-256", "sha256")),
            ("x-hub-signature-256", "sha256=0", VerifyError::NoMatch),
            ("x-hub-signature-256", "sha256=zz", VerifyError::NoMatch),
            ("stripe-signature", "v1=00", VerifyError::Timestamp("stripe-signature")),
            (
                "stripe-signature",
                "t=x,v1=00",
                VerifyError::Timestamp("stripe-signature"),
            ),
            ("stripe-signature", "t=1700000000,v0=00", of("stripe-signature", "v1")),
            ("stripe-signature", "t=1700000000,v1=00,v1", VerifyError::NoMatch),
        ] {
            let arrived = headers(&[(name, value)]);
            assert_eq!(raw.verify(&arrived, BODY, AT, TOLERANCE), Err(error), "{value}");
        }
        let missing = Err(VerifyError::Missing("x-hub-signature-256"));
        assert_eq!(raw.verify(&headers(&good), BODY, AT, TOLERANCE), missing);
    }

    #[test]
    fn what_is_no_key_to_verify_with_is_refused_without_a_word_of_it() {
        for (text, error) in [
            ("", KeyError::None),
            ("hunter2", KeyError::VerifyingPrefix),
            ("whpk_hunter2", KeyError::PublicForm),
            ("whsk_hunter2", KeyError::PrivateForm),
            ("whsec_hunter2", KeyError::Base64),
        ] {
            assert_eq!(VerifyingKey::parse_all(text), Err(error.clone()), "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
        let key = Scheme::Ed25519.generate([7; 32]);
        let nine = [key.as_str(); 9].join("\n");
        assert_eq!(VerifyingKey::parse_all(&nine), Err(KeyError::TooMany { keys: 9 }));
        let key = VerifyingKey::parse(&key).unwrap();
        let pair = Ed25519Key::generate([7; 32]);
        assert_eq!(key.fingerprint(), pair.fingerprint(), "the id that status has");
        assert!(!format!("{:?}", VerifyingKey::raw(b"hunter2").unwrap()).contains("hunter2"));
    }
}
