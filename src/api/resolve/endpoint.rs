//! A `WebhookEndpoint` with what it refers to, to a [`ResolvedEndpoint`].

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use kube::ResourceExt as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::credentials::{CERTIFICATE, LONGEST_PEM, PRIVATE_KEY, authorization, client_identity, secret_target};
use super::found::{LONGEST_VALUE, Used, Uses};
use super::limits::{breaker, disable_after, duration, number, rate, resolve_retry};
use super::oauth2::{token_request, token_target};
use super::ordering::resolve_ordering;
use super::references::{within, without_newline};
use super::target::target;
use super::{
    CaBundle, EgressRules, FoundService, Reference, References, ResolvedEndpoint, Target, Unresolved, service,
};
use crate::api::common::{SecretKeyReference, is_object_name};
use crate::api::conditions::reasons;
use crate::api::endpoint::{CaBundleSource, Handshake, Header, SigningScheme};
use crate::api::status::ENABLE_REQUEST_LONGEST;
use crate::api::{WebhookEndpoint, names};
use crate::expression::{Expression, Role};
use crate::signing::{KeyError, Scheme, Signer};

/// The longest CA bundle, in bytes: all public roots have less. Each is parsed to a TLS configuration, on the way of an event.
const LONGEST_BUNDLE: usize = 256 * 1024;
/// Names that belong to the connection, the body or the signature; the resource's rules say the same. Those that begin
/// with [`OWN_PREFIX`] join them.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "signature",
    "signature-input",
    "stripe-signature",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-hub-signature",
    "x-hub-signature-256",
];
/// The headers of Standard Webhooks.
const OWN_PREFIX: &str = "webhook-";

/// How the endpoint's requests are signed.
pub fn scheme(endpoint: &WebhookEndpoint) -> Scheme {
    match endpoint.spec.signing.scheme {
        SigningScheme::StandardWebhooks => Scheme::StandardWebhooks,
        SigningScheme::StandardWebhooksEd25519 => Scheme::Ed25519,
        SigningScheme::GitHub => Scheme::GitHub,
        SigningScheme::Stripe => Scheme::Stripe,
        SigningScheme::None => Scheme::None,
    }
}

/// The Secret that holds the signing key: the endpoint's own choice, or the generated one; none where nothing is signed.
pub fn signing_reference(endpoint: &WebhookEndpoint) -> Option<Reference> {
    match (&endpoint.spec.signing.secret_ref, scheme(endpoint)) {
        (_, Scheme::None) => None,
        (Some(chosen), _) => Some(Reference::secret(&chosen.name)),
        (None, _) => Some(Reference::secret(names::signing_secret(&endpoint.name_any()))),
    }
}

/// Every Secret and ConfigMap that must be read before the endpoint can be resolved, each once, in a fixed order. What no
/// object can be called is left out, so that no request is made of it.
pub fn references_of(endpoint: &WebhookEndpoint) -> Vec<Reference> {
    uses_of(endpoint).into_iter().map(|(reference, _)| reference).collect()
}

/// The same, with what is used of each.
pub fn uses_of(endpoint: &WebhookEndpoint) -> Uses {
    let named = named_by(endpoint).into_iter();
    named.filter(|(reference, _)| is_object_name(&reference.name)).collect()
}

/// Everything that the endpoint names.
fn named_by(endpoint: &WebhookEndpoint) -> BTreeMap<Reference, Used> {
    let spec = &endpoint.spec;
    let mut all: BTreeMap<Reference, Used> = BTreeMap::new();
    let mut add = |reference, key: &str, longest| all.entry(reference).or_default().key(key, longest);
    let auth = spec.auth.as_deref();
    let client = || auth.and_then(|auth| auth.oauth2.as_ref());
    let values = [
        auth.and_then(|auth| auth.bearer.as_ref())
            .map(|bearer| &bearer.secret_key_ref),
        auth.and_then(|auth| auth.basic.as_ref())
            .map(|basic| &basic.password_secret_key_ref),
        client().and_then(|client| client.client_id_secret_key_ref.as_ref()),
        client().map(|client| &client.client_secret_key_ref),
        spec.url_from.as_ref().map(|from| &from.secret_key_ref),
        spec.signing
            .secret_ref
            .as_ref()
            .filter(|_| scheme(endpoint) != Scheme::None),
    ];
    let headers = spec.headers.iter().filter_map(|header| header.secret_key_ref.as_ref());
    for from in values.into_iter().flatten().chain(headers) {
        add(Reference::secret(&from.name), &from.key, LONGEST_VALUE);
    }
    let bundle = spec.tls.as_ref().and_then(|tls| tls.ca_bundle.as_ref());
    if let Some(from) = bundle.and_then(|bundle| bundle.secret_key_ref.as_ref()) {
        add(Reference::secret(&from.name), &from.key, LONGEST_BUNDLE);
    }
    if let Some(from) = bundle.and_then(|bundle| bundle.config_map_key_ref.as_ref()) {
        add(Reference::config_map(&from.name), &from.key, LONGEST_BUNDLE);
    }
    if let Some(client) = spec.tls.as_ref().and_then(|tls| tls.client_certificate.as_ref()) {
        for key in [CERTIFICATE, PRIVATE_KEY] {
            add(Reference::secret(&client.secret_ref.name), key, LONGEST_PEM);
        }
    }
    if let (None, Some(generated)) = (&spec.signing.secret_ref, signing_reference(endpoint)) {
        all.entry(generated).or_default().sign();
    }
    all
}

fn check_names(endpoint: &WebhookEndpoint) -> Result<(), Unresolved> {
    match named_by(endpoint).into_keys().find(|r| !is_object_name(&r.name)) {
        Some(Reference { kind, name }) => Err(Unresolved::invalid(format!(
            "{name:?} is no name of a {kind:?}: write it as it is in its metadata, lower case letters, digits, - and ."
        ))),
        None => Ok(()),
    }
}

/// The endpoint as delivery uses it, or why it cannot be used.
///
/// `references` must hold what [`references_of`] names; `egress` is what the policy opens for the namespace; `service` is the
/// one that `serviceRef` names, if it exists. What is wrong with the spec itself is told before what is wrong with its
/// references.
pub fn resolve_endpoint(
    endpoint: &WebhookEndpoint,
    references: &References,
    egress: &Arc<EgressRules>,
    service: Option<&FoundService>,
) -> Result<ResolvedEndpoint, Unresolved> {
    let namespace = endpoint.namespace().unwrap_or_default();
    let spec = &endpoint.spec;
    let url = match (&spec.url, &spec.url_from, &spec.service_ref) {
        (Some(url), None, None) => Url::Written(target(url, egress)?),
        (None, Some(from), None) => Url::Secret(&from.secret_key_ref),
        (None, None, Some(reference)) => Url::Service(service::place(reference, &namespace, egress)?),
        _ => {
            return Err(Unresolved::invalid(
                "an endpoint needs exactly one of url, urlFrom and serviceRef",
            ));
        }
    };
    check_names(endpoint)?;
    let timeout = duration("timeout", &spec.timeout)?;
    let retry = resolve_retry(&spec.retry)?;
    let max_in_flight = number("maxInFlight", spec.max_in_flight)?;
    let rate = spec.rate_limit.as_ref().map(rate).transpose()?;
    let breaker = breaker(&spec.circuit_breaker)?;
    let disable_after = disable_after(&spec.disable_after)?;
    let success = spec.success.as_deref().map(success).transpose()?;
    let retention = duration("retention", &spec.retention)?;
    resolve_ordering(&spec.ordering)?;
    let names = header_names(&spec.headers)?;
    if spec.auth.is_some() && names.contains(&AUTHORIZATION) {
        return Err(Unresolved::invalid(
            "auth sets the header Authorization: remove it from headers, or remove auth",
        ));
    }
    let token = spec.auth.as_ref().map(|auth| token_target(auth, egress)).transpose()?;
    let target = match url {
        Url::Written(target) => target,
        Url::Secret(key) => secret_target(key, &namespace, references, egress)?,
        Url::Service(place) => place.at(service, egress)?,
    };
    let signing = signing(endpoint, &namespace, references)?;
    let values = spec
        .headers
        .iter()
        .map(|header| header_value(header, &namespace, references));
    let mut headers = names
        .into_iter()
        .zip(values)
        .map(|(name, value)| Ok((name, value?)))
        .collect::<Result<Vec<_>, Unresolved>>()?;
    if let Some(auth) = &spec.auth {
        let value = authorization(auth, &namespace, references)?;
        headers.extend(value.map(|value| (AUTHORIZATION, value)));
    }
    let token = token
        .flatten()
        .map(|(client, target)| token_request(client, target, &namespace, references));
    let tls = spec.tls.as_ref();
    let ca = match tls.and_then(|tls| tls.ca_bundle.as_ref()) {
        Some(bundle) => Some(Arc::new(ca_bundle(bundle, &namespace, references)?)),
        None => None,
    };
    let client = match tls.and_then(|tls| tls.client_certificate.as_ref()) {
        Some(certificate) => Some(Arc::new(client_identity(certificate, &namespace, references)?)),
        None => None,
    };
    Ok(ResolvedEndpoint {
        name: endpoint.name_any(),
        namespace,
        uid: endpoint.uid().unwrap_or_default(),
        generation: endpoint.metadata.generation.unwrap_or_default(),
        target,
        headers,
        token: token.transpose()?.map(Arc::new),
        ca,
        client,
        signing: Arc::new(signing),
        timeout,
        retry,
        max_in_flight,
        rate,
        breaker,
        disable_after,
        success,
        handshake: spec.handshake == Handshake::CloudEvents,
        retention,
        suspend: spec.suspend,
        egress: Arc::clone(egress),
        enable_request: enable_request(endpoint),
    })
}

/// Where the URL is: in the spec, or still to be read.
enum Url<'a> {
    Written(Target),
    Secret(&'a SecretKeyReference),
    Service(service::Place<'a>),
}

fn success(source: &str) -> Result<Expression, Unresolved> {
    Expression::compile(Role::Success, source).map_err(|error| Unresolved::invalid(format!("success: {error}")))
}

/// The annotation, cut to what `handledEnableRequest` can hold.
fn enable_request(endpoint: &WebhookEndpoint) -> Option<String> {
    let value = endpoint.annotations().get(names::ENABLE_REQUESTED)?;
    Some(value.chars().take(ENABLE_REQUEST_LONGEST).collect())
}

fn header_names(headers: &[Header]) -> Result<Vec<HeaderName>, Unresolved> {
    let mut names: Vec<HeaderName> = Vec::with_capacity(headers.len());
    for Header { name, .. } in headers {
        let parsed = header_name(name)?;
        if names.contains(&parsed) {
            return Err(Unresolved::invalid(format!("header {name} is given twice: remove one")));
        }
        names.push(parsed);
    }
    Ok(names)
}

/// A header that is not Tidings' own.
pub(super) fn header_name(name: &str) -> Result<HeaderName, Unresolved> {
    let parsed =
        HeaderName::try_from(name).map_err(|_| Unresolved::invalid(format!("{name:?} is no valid header name")))?;
    match OWN_HEADERS.contains(&parsed.as_str()) || parsed.as_str().starts_with(OWN_PREFIX) {
        true => Err(Unresolved::invalid(format!(
            "header {name} is set by Tidings: remove it"
        ))),
        false => Ok(parsed),
    }
}

fn header_value(header: &Header, namespace: &str, references: &References) -> Result<HeaderValue, Unresolved> {
    let name = &header.name;
    match (&header.value, &header.secret_key_ref) {
        (Some(value), None) => HeaderValue::from_str(value)
            .map_err(|_| Unresolved::invalid(format!("the value of header {name} must be visible ASCII"))),
        (None, Some(wanted)) => {
            let bytes = references.secret_value(namespace, wanted)?;
            let mut value = HeaderValue::from_bytes(bytes).map_err(|_| {
                let (secret, key) = (&wanted.name, &wanted.key);
                Unresolved::waiting(
                    reasons::SECRET_INVALID,
                    format!(
                        "key {key} of Secret {secret} cannot be the value of header {name}: it holds control characters"
                    ),
                )
            })?;
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err(Unresolved::invalid(format!(
            "header {name} needs exactly one of value and secretKeyRef"
        ))),
    }
}

fn ca_bundle(source: &CaBundleSource, namespace: &str, references: &References) -> Result<CaBundle, Unresolved> {
    let (pem, reason, place) = match (&source.secret_key_ref, &source.config_map_key_ref) {
        (Some(wanted), None) => (
            references.secret_bytes(namespace, wanted, LONGEST_BUNDLE)?,
            reasons::SECRET_INVALID,
            format!("key {} of Secret {}", wanted.key, wanted.name),
        ),
        (None, Some(wanted)) => (
            references.config_map_bytes(wanted, LONGEST_BUNDLE)?,
            reasons::CONFIG_MAP_INVALID,
            format!("key {} of ConfigMap {}", wanted.key, wanted.name),
        ),
        _ => {
            return Err(Unresolved::invalid(
                "tls.caBundle needs exactly one of secretKeyRef and configMapKeyRef",
            ));
        }
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| Unresolved::waiting(reason, format!("{place} is no valid PEM")))?;
    let mut roots = rustls::RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(certificates);
    if usable == 0 {
        return Err(Unresolved::waiting(
            reason,
            format!("{place} holds no certificate: write PEM that begins with -----BEGIN CERTIFICATE-----"),
        ));
    }
    Ok(CaBundle {
        pem: pem.clone(),
        digest: Sha256::digest(pem).into(),
    })
}

fn signing(endpoint: &WebhookEndpoint, namespace: &str, references: &References) -> Result<Signer, Unresolved> {
    let scheme = scheme(endpoint);
    let Some(reference) = signing_reference(endpoint) else {
        return Ok(Signer::None);
    };
    let name = &reference.name;
    let invalid = |key: &str, error: &KeyError| {
        Unresolved::waiting(reasons::SECRET_INVALID, format!("key {key} of Secret {name}: {error}"))
    };
    if let Some(chosen) = &endpoint.spec.signing.secret_ref {
        let value = references.secret_value(namespace, chosen)?;
        return scheme.read(value).map_err(|error| invalid(&chosen.key, &error));
    }
    let secret = references.object(&reference)?;
    if secret.r#type.as_deref() != Some(names::SIGNING_SECRET_TYPE) {
        return Err(Unresolved::stalled(
            reasons::SECRET_CONFLICT,
            format!(
                "Secret {name} exists but was not generated by Tidings (its type is not {}): rename or delete it, or name \
                 your own key in signing.secretRef",
                names::SIGNING_SECRET_TYPE
            ),
        ));
    }
    let mut keys: Vec<&[u8]> = Vec::with_capacity(2);
    for key in [names::CURRENT, names::PREVIOUS] {
        match secret.data.get(key) {
            Some(value) => {
                let value = within(value, LONGEST_VALUE).map_err(|why| {
                    let message = format!("key {key} of Secret {name}: {why}");
                    Unresolved::waiting(reasons::SECRET_INVALID, message)
                })?;
                let value = without_newline(value);
                scheme.fingerprint(value).map_err(|error| invalid(key, &error))?;
                keys.push(value);
            }
            None if key == names::CURRENT => {
                return Err(Unresolved::waiting(
                    reasons::SECRET_KEY_MISSING,
                    format!("Secret {name} has no key {key}"),
                ));
            }
            None => {}
        }
    }
    let id = |annotation: &str| secret.annotations.get(annotation).map(String::as_str);
    scheme
        .read_each(&[id(names::CURRENT_ID), id(names::PREVIOUS_ID)], &keys)
        .map_err(|error| invalid(names::CURRENT, &error))
}
