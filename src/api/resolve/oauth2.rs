//! How an endpoint's tokens are asked for: the client credentials grant of OAuth 2.0 (RFC 6749, 4.4).
//!
//! Owns the request's form; knows nothing of tokens themselves. Invariant: no message holds anything of a value that was
//! read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_encode};
use sha2::{Digest as _, Sha256};

use super::credentials::spoilt;
use super::target::target;
use super::{EgressRules, References, Target, TokenRequest, Unresolved};
use crate::api::auth::{Auth, AuthType, ClientAuthentication, OAuth2ClientCredentials};

/// All but what RFC 3986 calls unreserved: servers that do not decode credentials find most of them as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn encoded(value: &[u8]) -> PercentEncode<'_> {
    percent_encode(value, ENCODED)
}

/// Where tokens are given, where there are any.
pub(super) fn token_target<'a>(
    auth: &'a Auth,
    egress: &EgressRules,
) -> Result<Option<(&'a OAuth2ClientCredentials, Target)>, Unresolved> {
    match (auth.kind, &auth.oauth2) {
        (AuthType::OAuth2ClientCredentials, Some(client)) => match target(&client.token_url, egress) {
            Ok(target) => Ok(Some((client, target))),
            Err(mut unresolved) => {
                unresolved.message = format!("auth.oauth2ClientCredentials.tokenURL: {}", unresolved.message);
                Err(unresolved)
            }
        },
        (AuthType::Bearer | AuthType::Basic, None) => Ok(None),
        _ => Err(Unresolved::invalid("auth needs what its type says, and nothing else")),
    }
}

/// The request for a token (RFC 6749, 4.4.2, with the client's credentials as 2.3.1 has them).
pub(super) fn token_request(
    client: &OAuth2ClientCredentials,
    target: Target,
    namespace: &str,
    references: &References,
) -> Result<TokenRequest, Unresolved> {
    let id = match (&client.client_id, &client.client_id_secret_key_ref) {
        (Some(id), None) => id.as_bytes(),
        (None, Some(from)) => match references.secret_value(namespace, from)? {
            [] => return Err(spoilt(from, "it is empty")),
            id => id,
        },
        _ => {
            return Err(Unresolved::invalid(
                "auth.oauth2ClientCredentials needs exactly one of clientID and clientIDSecretKeyRef",
            ));
        }
    };
    let from = &client.client_secret_key_ref;
    let secret = references.secret_value(namespace, from)?;
    if secret.is_empty() {
        return Err(spoilt(from, "it is empty"));
    }
    let mut form = "grant_type=client_credentials".to_owned();
    let mut add = |name: &str, value: &[u8]| form.extend(["&", name, "=", &encoded(value).to_string()]);
    if !client.scopes.is_empty() {
        add("scope", client.scopes.join(" ").as_bytes());
    }
    for parameter in &client.parameters {
        add(&parameter.name, parameter.value.as_bytes());
    }
    let authorization = match client.client_authentication {
        ClientAuthentication::Body => {
            add("client_id", id);
            add("client_secret", secret);
            None
        }
        ClientAuthentication::Basic => {
            let pair = STANDARD.encode(format!("{}:{}", encoded(id), encoded(secret)));
            let mut value = HeaderValue::try_from(format!("Basic {pair}"))
                .map_err(|_| spoilt(from, "it cannot be sent in a header"))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    let mut digest = Sha256::new();
    let shown = authorization.as_ref().map_or(&[][..], HeaderValue::as_bytes);
    let place = [target.origin.as_bytes(), target.path.as_bytes()].concat();
    for part in [namespace.as_bytes(), &place, form.as_bytes(), shown] {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    Ok(TokenRequest {
        target,
        form: form.into(),
        authorization,
        digest: digest.finalize().into(),
    })
}
