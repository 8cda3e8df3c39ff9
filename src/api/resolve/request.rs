//! An `EventSubscription`'s `request`: its expressions compiled, and the values of the Secrets that they read.
//!
//! Invariant: no message holds anything of a value that was read, and Debug shows none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderName, Method};

use super::credentials::spoilt;
use super::endpoint::header_name;
use super::found::{LONGEST_VALUE, Used, Uses};
use super::{Reference, References, Unresolved};
use crate::api::EventSubscription;
use crate::api::common::{SecretKeyReference, is_object_name};
use crate::api::conditions::reasons;
use crate::api::request::{DeadLetter, RequestMethod, RequestShape};
use crate::expression::{Expression, Role};

/// How a subscription's requests are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RequestForm {
    /// As its format has it.
    #[default]
    Plain,
    Shaped(Arc<ResolvedRequest>),
    /// Not known: what is written is invalid, and nothing before it is known. Messages wait.
    Unknown,
}

/// A request of a receiver's own shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedRequest {
    pub method: Method,
    pub path: Option<Expression>,
    pub headers: Vec<(HeaderName, Expression)>,
    /// None: the format's.
    pub body: Option<Expression>,
    pub secrets: Vec<(String, SecretKeyReference)>,
}

impl ResolvedRequest {
    /// Every Secret that must be read before a request can be made, and what is used of it.
    pub fn uses(&self) -> Uses {
        uses(self.secrets.iter().map(|(_, from)| from))
    }

    /// Values that say only that they are not shown.
    pub fn hidden(&self) -> RequestSecrets {
        let hidden = |(name, _): &(String, SecretKeyReference)| (name.clone(), "[not shown]".to_owned());
        RequestSecrets(self.secrets.iter().map(hidden).collect())
    }
}

/// Who is told of a subscription's dead letters, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterTarget {
    /// The endpoint's name, in the same namespace.
    pub endpoint: String,
    /// None: the default.
    pub body: Option<Expression>,
}

/// The values of `request.secrets`, by name. Debug shows none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RequestSecrets(Vec<(String, String)>);

impl RequestSecrets {
    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for RequestSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestSecrets(redacted)")
    }
}

/// Every Secret that a subscription names, as [`super::references_of`] has it for an endpoint.
pub fn subscription_references(subscription: &EventSubscription) -> Vec<Reference> {
    let uses = subscription_uses(subscription).into_iter();
    uses.map(|(reference, _)| reference).collect()
}

/// The same, with what is used of each.
pub fn subscription_uses(subscription: &EventSubscription) -> Uses {
    let secrets = subscription.spec.request.iter().flat_map(|request| &request.secrets);
    uses(secrets.map(|secret| &secret.secret_key_ref))
}

fn uses<'a>(named: impl Iterator<Item = &'a SecretKeyReference>) -> Uses {
    let mut all: BTreeMap<Reference, Used> = BTreeMap::new();
    for from in named.filter(|from| is_object_name(&from.name)) {
        let used = all.entry(Reference::secret(&from.name)).or_default();
        used.key(&from.key, LONGEST_VALUE);
    }
    all.into_iter().collect()
}

/// The values of a request's Secrets, or why one is missing. `references` must hold what
/// [`ResolvedRequest::uses`] names.
pub fn resolve_secrets(
    request: &ResolvedRequest,
    namespace: &str,
    references: &References,
) -> Result<RequestSecrets, Unresolved> {
    let value = |(name, from): &(String, SecretKeyReference)| {
        let bytes = references.secret_value(namespace, from)?;
        let text = std::str::from_utf8(bytes).map_err(|_| spoilt(from, "it is not text"))?;
        Ok((name.clone(), text.to_owned()))
    };
    let values: Result<_, Unresolved> = request.secrets.iter().map(value).collect();
    values.map(RequestSecrets)
}

/// The request with its expressions compiled.
pub(super) fn request(shape: &RequestShape) -> Result<ResolvedRequest, Unresolved> {
    let mut headers: Vec<(HeaderName, Expression)> = Vec::with_capacity(shape.headers.len());
    for header in &shape.headers {
        let name = own_name(&header.name, shape.body.is_some())?;
        if headers.iter().any(|(other, _)| *other == name) {
            return Err(invalid(format!("header {name} is given twice: remove one")));
        }
        let place = format!("request.headers, {}", header.name);
        headers.push((name, compile(Role::Text, &place, &header.value)?));
    }
    let path = shape.path.as_deref();
    let body = shape.body.as_deref();
    let mut secrets: Vec<(String, SecretKeyReference)> = Vec::with_capacity(shape.secrets.len());
    for secret in &shape.secrets {
        let (name, from) = (&secret.name, &secret.secret_key_ref);
        if !is_object_name(&from.name) {
            let name = &from.name;
            return Err(invalid(format!("request.secrets: {name:?} is no name of a Secret")));
        }
        if secrets.iter().any(|(other, _)| other == name) {
            return Err(invalid(format!("request.secrets: {name} is given twice: remove one")));
        }
        secrets.push((name.clone(), from.clone()));
    }
    Ok(ResolvedRequest {
        method: match shape.method {
            RequestMethod::Post => Method::POST,
            RequestMethod::Put => Method::PUT,
            RequestMethod::Patch => Method::PATCH,
        },
        path: path
            .map(|source| compile(Role::Text, "request.path", source))
            .transpose()?,
        headers,
        body: body
            .map(|source| compile(Role::Body, "request.body", source))
            .transpose()?,
        secrets,
    })
}

/// The same of a `deadLetter`.
pub(super) fn dead_letter(spec: &DeadLetter) -> Result<DeadLetterTarget, Unresolved> {
    let body = spec.request.as_ref().map(|request| &request.body);
    Ok(DeadLetterTarget {
        endpoint: spec.endpoint_ref.name.clone(),
        body: body
            .map(|source| compile(Role::DeadLetter, "deadLetter.request.body", source))
            .transpose()?,
    })
}

/// A header that a subscription may set: `content-type` of a body that it builds, too.
fn own_name(name: &str, builds_body: bool) -> Result<HeaderName, Unresolved> {
    if name.eq_ignore_ascii_case(CONTENT_TYPE.as_str()) && builds_body {
        return Ok(CONTENT_TYPE);
    }
    header_name(name).map_err(|unresolved| invalid(format!("request.headers: {}", unresolved.message)))
}

fn compile(role: Role, place: &str, source: &str) -> Result<Expression, Unresolved> {
    Expression::compile(role, source).map_err(|error| invalid(format!("{place}: {error}")))
}

fn invalid(what: String) -> Unresolved {
    Unresolved::stalled(
        reasons::INVALID_REQUEST,
        format!("{what}. Until it is mended the last valid request stays in force"),
    )
}
