//! Tokens of OAuth 2.0 clients: kept until shortly before they expire, asked for once at a time.
//!
//! Owns what a token server's answer means and how long a token counts; knows nothing of sockets. Invariant: no token is
//! shown or stored, and nothing of an answer but its status and a registered error code (RFC 6749, 5.2) is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http_body_util::Full;
use moka::future::Cache;
use serde::Deserialize;

use super::tls::Identity;
use super::{Fault, OurFault, Outcome, TokenTrouble};
use crate::api::resolve::TokenRequest;

/// A token server's whole answer: apart from an attempt's own time, since it is no fault of the receiver.
pub(super) const TOKEN_TIME: Duration = Duration::from_secs(10);
/// An answer is a token and a few words; tokens with many claims have 4 KiB or so.
pub(super) const MAX_ANSWER: usize = 32 * 1024;
/// Bytes of tokens kept: some 10,000 of usual size.
const CACHED: u64 = 16 << 20;
/// A token whose answer does not say how long it counts (RFC 6749, 5.1, recommends that it does).
const UNSAID: Duration = Duration::from_secs(300);
/// Whatever an answer says.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A token is not used in the last tenth of its time, at most this: it must not expire on its way.
const MARGIN: Duration = Duration::from_secs(60);

/// For whom a token is.
type Key = ([u8; 32], Identity);

/// A token as a request carries it.
pub(super) struct Token {
    /// `Bearer <token>`, marked sensitive.
    pub(super) value: HeaderValue,
    pub(super) obtained: Instant,
    valid_for: Duration,
}

struct ByLifetime;

impl moka::Expiry<Key, Arc<Token>> for ByLifetime {
    fn expire_after_create(&self, _: &Key, token: &Arc<Token>, _: Instant) -> Option<Duration> {
        Some(token.valid_for)
    }
}

/// Tokens by request and TLS identity.
pub(super) struct Tokens {
    cache: Cache<Key, Arc<Token>>,
}

impl Tokens {
    pub(super) fn new() -> Tokens {
        let size = |_: &Key, token: &Arc<Token>| u32::try_from(token.value.len() + 256).unwrap_or(u32::MAX);
        Tokens {
            cache: Cache::builder()
                .max_capacity(CACHED)
                .weigher(size)
                .expire_after(ByLifetime)
                .build(),
        }
    }

    /// The kept token, or what `ask` gets: one at a time for a key, whoever waits for it.
    pub(super) async fn get(
        &self,
        key: Key,
        ask: impl Future<Output = Result<Token, Outcome>>,
    ) -> Result<Arc<Token>, Outcome> {
        let asked = self.cache.try_get_with(key, async { ask.await.map(Arc::new) }).await;
        asked.map_err(|error| Outcome::clone(&error))
    }

    /// The receiver refused this token. One that was got after it stays.
    pub(super) async fn refused(&self, key: &Key, token: &Arc<Token>) {
        if self.cache.get(key).await.is_some_and(|kept| Arc::ptr_eq(&kept, token)) {
            self.cache.invalidate(key).await;
        }
    }
}

/// The request as it goes out; none when it cannot be written, which the resource's rules exclude.
pub(super) fn render(request: &TokenRequest, user_agent: &HeaderValue) -> Option<http::Request<Full<Bytes>>> {
    let path = PathAndQuery::try_from(request.target.path.as_str()).ok()?;
    let mut rendered = http::Request::post(path).body(Full::new(request.form.clone())).ok()?;
    let headers = rendered.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&request.target.authority).ok()?);
    headers.insert(USER_AGENT, user_agent.clone());
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(CONTENT_TYPE, form);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(request.form.len()));
    if let Some(value) = &request.authorization {
        headers.insert(AUTHORIZATION, value.clone());
    }
    Some(rendered)
}

/// What no answer means: the token server is away, which is not the receiver's fault.
pub(super) fn unanswered(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Fault(fault) => Outcome::Ours(OurFault::Token(TokenTrouble::Fault(fault))),
        other => other,
    }
}

/// What an answer means: a token, a server that is away, or one that refuses the client.
pub(super) fn answered(status: u16, body: &[u8]) -> Result<Token, Outcome> {
    match status {
        200..=299 => token(body).ok_or(Outcome::Fault(Fault::Auth)),
        408 | 429 | 500..=599 => Err(Outcome::Ours(OurFault::Token(TokenTrouble::Status(status)))),
        _ => Err(Outcome::Fault(Fault::Auth)),
    }
}

/// RFC 6749, 5.1. No Debug: it holds the token.
#[derive(Deserialize)]
struct Given {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<serde_json::Value>,
}

fn token(body: &[u8]) -> Option<Token> {
    let given: Given = serde_json::from_slice(body).ok()?;
    let is_bearer = given.token_type.is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    if !is_bearer || given.access_token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::try_from(format!("Bearer {}", given.access_token)).ok()?;
    value.set_sensitive(true);
    Some(Token {
        value,
        obtained: Instant::now(),
        valid_for: lifetime(given.expires_in.as_ref()),
    })
}

/// How long a token is used. Some servers write the number as a string.
fn lifetime(expires_in: Option<&serde_json::Value>) -> Duration {
    let said = match expires_in {
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
        None => None,
    };
    let whole = said.map_or(UNSAID, |seconds: f64| {
        // Negative, or no number: it counts for this attempt alone. Without bound: for the longest.
        let seconds = seconds.max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST)
    });
    let whole = whole.min(LONGEST);
    whole - (whole / 10).min(MARGIN)
}

/// The registered code of a refusal, if it is one (RFC 6749, 5.2; RFC 8707): the only words of an answer that are told.
pub(super) fn error_code(body: &[u8]) -> Option<&'static str> {
    const CODES: [&str; 7] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
    ];
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let refusal: Refusal = serde_json::from_slice(body).ok()?;
    CODES.into_iter().find(|code| *code == refusal.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(expires_in: &str) -> u64 {
        let body = format!(r#"{{"access_token":"t","token_type":"bearer","expires_in":{expires_in}}}"#);
        token(body.as_bytes()).unwrap().valid_for.as_secs()
    }

    #[test]
    fn a_token_is_used_until_shortly_before_it_expires_and_a_day_at_most() {
        for (said, used) in [
            ("3600", 3540),
            ("\"3600\"", 3540),
            ("100", 90),
            ("0", 0),
            ("-5", 0),
            ("1e300", 86_340),
            ("null", 270),
            ("\"soon\"", 270),
        ] {
            assert_eq!(seconds(said), used, "{said}");
        }
        let token = token(br#"{"access_token":"t.0-_~+/="}"#).unwrap();
        assert_eq!(token.value, "Bearer t.0-_~+/=");
        assert!(token.value.is_sensitive());
    }

    #[test]
    fn what_is_no_bearer_token_is_a_refusal_and_a_server_in_trouble_is_none() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            r#"{"access_token":"t","token_type":"DPoP"}"#,
            "{\"access_token\":\"a\\nb\"}",
        ] {
            assert_eq!(
                answered(200, body.as_bytes()).err(),
                Some(Outcome::Fault(Fault::Auth)),
                "{body}"
            );
        }
        for status in [302, 400, 401, 404] {
            assert_eq!(
                answered(status, b"").err(),
                Some(Outcome::Fault(Fault::Auth)),
                "{status}"
            );
        }
        for status in [408, 429, 500, 503] {
            let ours = Outcome::Ours(OurFault::Token(TokenTrouble::Status(status)));
            assert_eq!(answered(status, b"").err(), Some(ours));
        }
    }

    #[test]
    fn only_registered_words_of_a_refusal_are_told() {
        assert_eq!(
            error_code(br#"{"error":"invalid_client","error_description":"s3cret"}"#),
            Some("invalid_client")
        );
        assert_eq!(error_code(br#"{"error":"s3cret"}"#), None);
        assert_eq!(error_code(b"s3cret"), None);
    }
}
