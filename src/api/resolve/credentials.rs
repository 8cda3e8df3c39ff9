//! What an endpoint shows of itself: the header `Authorization`, a client certificate; and a URL that is a secret.
//!
//! Invariant: no message holds anything of a value that was read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use super::references::without_newline;
use super::target::target;
use super::{ClientIdentity, EgressRules, References, Target, Unresolved};
use crate::api::auth::{Auth, AuthType, ClientCertificate};
use crate::api::common::SecretKeyReference;
use crate::api::conditions::reasons;

/// The longest URL, as the schema has it for `url`.
const MAX_URL: usize = 2048;
/// The longest chain or key, in bytes: some certificates of the longest kind.
pub(super) const LONGEST_PEM: usize = 64 << 10;
/// The keys of a Secret of the type kubernetes.io/tls.
pub(super) const CERTIFICATE: &str = "tls.crt";
pub(super) const PRIVATE_KEY: &str = "tls.key";

pub(super) fn spoilt(from: &SecretKeyReference, why: &str) -> Unresolved {
    let SecretKeyReference { name, key } = from;
    Unresolved::waiting(reasons::SECRET_INVALID, format!("key {key} of Secret {name}: {why}"))
}

/// The value of the header `Authorization`; none where it is a token that is yet to be got.
pub(super) fn authorization(
    auth: &Auth,
    namespace: &str,
    references: &References,
) -> Result<Option<HeaderValue>, Unresolved> {
    let (from, value) = match (auth.kind, &auth.bearer, &auth.basic) {
        (AuthType::OAuth2ClientCredentials, None, None) => return Ok(None),
        (AuthType::Bearer, Some(bearer), None) => {
            let from = &bearer.secret_key_ref;
            let token = references.secret_value(namespace, from)?;
            if token.is_empty() {
                return Err(spoilt(from, "it is empty"));
            }
            (from, [b"Bearer ", token].concat())
        }
        (AuthType::Basic, None, Some(basic)) => {
            if basic.username.contains(':') {
                return Err(Unresolved::invalid("auth.basic.username must not hold a colon"));
            }
            let from = &basic.password_secret_key_ref;
            let password = references.secret_value(namespace, from)?;
            let pair = STANDARD.encode([basic.username.as_bytes(), b":", password].concat());
            (from, format!("Basic {pair}").into_bytes())
        }
        _ => return Err(Unresolved::invalid("auth needs what its type says, and nothing else")),
    };
    let mut value = HeaderValue::from_bytes(&value)
        .map_err(|_| spoilt(from, "it holds control characters, which no header can carry"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// The certificate to show, if chain and key are what they should be and belong together.
pub(super) fn client_identity(
    certificate: &ClientCertificate,
    namespace: &str,
    references: &References,
) -> Result<ClientIdentity, Unresolved> {
    let place = |key: &str| SecretKeyReference {
        name: certificate.secret_ref.name.clone(),
        key: key.to_owned(),
    };
    let (chain_at, key_at) = (place(CERTIFICATE), place(PRIVATE_KEY));
    let pem = |at| {
        references
            .secret_bytes(namespace, at, LONGEST_PEM)
            .map(|pem| without_newline(pem))
    };
    let (chain_pem, key_pem) = (pem(&chain_at)?, pem(&key_at)?);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|_| spoilt(&chain_at, "it is no valid PEM"))?;
    if chain.is_empty() {
        let why = "it holds no certificate: write PEM that begins with -----BEGIN CERTIFICATE-----";
        return Err(spoilt(&chain_at, why));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| spoilt(&key_at, "it holds no private key as PEM"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
        .map_err(|_| spoilt(&key_at, "it is no key for the certificate in tls.crt"))?;
    let mut digest = Sha256::new();
    digest.update(chain_pem);
    digest.update([0]);
    digest.update(key_pem);
    Ok(ClientIdentity {
        chain,
        key,
        digest: digest.finalize().into(),
    })
}

/// The target that a Secret names. What is wrong with it is the Secret's fault, and nothing of it is told.
pub(super) fn secret_target(
    from: &SecretKeyReference,
    namespace: &str,
    references: &References,
    egress: &EgressRules,
) -> Result<Target, Unresolved> {
    let value = references.secret_value(namespace, from)?;
    let text = std::str::from_utf8(value).map_err(|_| spoilt(from, "it is not text"))?;
    if text.len() > MAX_URL {
        return Err(spoilt(from, "it is longer than 2,048 characters"));
    }
    let target = target(text, egress).map_err(|unresolved| match unresolved.reason {
        reasons::INVALID_SPEC => spoilt(from, &unresolved.message),
        _ => unresolved,
    })?;
    Ok(Target {
        is_secret: true,
        ..target
    })
}
