//! Who the producer is, and what it may publish: TokenReview and SubjectAccessReview, cached.
//!
//! Knows nothing of events but their type's name. Invariant: a token is never kept, logged or shown, only its SHA-256 is;
//! an answer that the API server did not give is never a 401 or 403.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::places::Places;
use super::problem::Problem;
use crate::api::names;
use crate::ids::UnixMillis;

pub mod cache;

pub use cache::Unavailable;

/// The audience of producers' tokens unless configured otherwise.
pub const DEFAULT_AUDIENCE: &str = "tidings";
/// The longest token: twice the largest ServiceAccount token seen; a header this long is refused before hashing.
const LONGEST_TOKEN: usize = 8 * 1024;
/// Questions about tokens at a time: strangers with made-up ones must not become the API server's load.
const TOKENS: usize = 16;
/// Questions about access at a time: apart from those, so that strangers leave these to producers.
const QUESTIONS: usize = 32;
/// Of them about the producers of one namespace, two batches' worth: whoever publishes under ever new types leaves turns to
/// others. The namespace that is asked for has no share: strangers to it could use it up.
const QUESTIONS_EACH: usize = 2 * super::GRANTS_AT_ONCE;

/// A producer as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub username: String,
    uid: Option<String>,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
    /// SHA-256 over all of the above: what a grant is cached under.
    digest: cache::Key,
    /// The token's own end (`exp`): what is cached of it counts for nothing afterwards.
    expires: Option<UnixMillis>,
}

impl Identity {
    /// Namespace and name, where it is a ServiceAccount.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        self.username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
    }

    /// The namespace of a ServiceAccount; of anybody else his own name.
    pub(super) fn home(&self) -> &str {
        self.service_account()
            .map_or(self.username.as_str(), |(namespace, _)| namespace)
    }
}

/// What a Role may grant to callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    pub verb: &'static str,
    resource: &'static str,
    subresource: Option<&'static str>,
    name: Option<&'a str>,
}

impl<'a> Rule<'a> {
    pub const GET_MESSAGES: Rule<'static> = Rule::messages("get");
    pub const LIST_MESSAGES: Rule<'static> = Rule::messages("list");

    /// To publish events of a type.
    pub fn publish(event_type: &'a str) -> Rule<'a> {
        Rule {
            verb: "publish",
            resource: "eventtypes",
            subresource: None,
            name: Some(event_type),
        }
    }

    /// To get the messages of a subscription that are pulled.
    pub fn pull(subscription: &'a str) -> Rule<'a> {
        Rule::pulled("get", subscription)
    }

    /// To acknowledge them.
    pub fn acknowledge(subscription: &'a str) -> Rule<'a> {
        Rule::pulled("update", subscription)
    }

    fn pulled(verb: &'static str, subscription: &'a str) -> Rule<'a> {
        Rule {
            verb,
            resource: "eventsubscriptions",
            subresource: Some("pull"),
            name: Some(subscription),
        }
    }

    const fn messages(verb: &'static str) -> Rule<'static> {
        Rule {
            verb,
            resource: "eventsubscriptions",
            subresource: Some("messages"),
            name: None,
        }
    }
}

/// Why a request is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// 401: there is no bearer token.
    #[error("send Authorization: Bearer with a ServiceAccount token")]
    Missing,
    /// 401: the API server does not accept it, for none of the audiences.
    #[error("the token is not valid, has expired, or is for another audience")]
    Refused,
    /// 503: the API server did not answer.
    #[error("the Kubernetes API could not be asked about the token")]
    Unavailable,
}

impl From<Unavailable> for AuthError {
    fn from(_: Unavailable) -> AuthError {
        AuthError::Unavailable
    }
}

/// Asks the API server, and remembers.
pub struct Auth {
    reviewer: Reviewer,
    audiences: Vec<String>,
    tokens: cache::Cache<Option<Arc<Identity>>>,
    grants: cache::Cache<bool>,
    token_questions: Semaphore,
    access_questions: Places,
}

enum Reviewer {
    Cluster(kube::Client),
    #[cfg(test)]
    Table(fixed::Table),
}

/// What went wrong between us and the API server. Its text never holds a token: kube's errors show answers only.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the answer has no status")]
    NoStatus,
    #[error("too many questions at once")]
    Busy,
}

impl cache::Answer for Option<Arc<Identity>> {
    fn is_yes(&self) -> bool {
        self.is_some()
    }
}

impl cache::Answer for bool {
    fn is_yes(&self) -> bool {
        *self
    }
}

impl Auth {
    /// Over a client of the dispatcher; tokens must be for one of `audiences` (not empty).
    pub fn new(client: kube::Client, audiences: Vec<String>) -> Auth {
        Auth::over(Reviewer::Cluster(client), audiences)
    }

    fn over(reviewer: Reviewer, audiences: Vec<String>) -> Auth {
        Auth {
            reviewer,
            audiences,
            tokens: cache::Cache::default(),
            grants: cache::Cache::default(),
            token_questions: Semaphore::new(TOKENS),
            access_questions: Places::of(QUESTIONS, QUESTIONS_EACH, Problem::too_many_reads),
        }
    }

    /// The producer behind a request, and whether that was cached.
    pub async fn authenticate(&self, headers: &HeaderMap, now: UnixMillis) -> Result<(Arc<Identity>, bool), AuthError> {
        let token = bearer(headers)?;
        let key: cache::Key = Sha256::digest(token.as_bytes()).into();
        let (identity, cached) = self.tokens.get(key, || self.review_token(token)).await?;
        match identity {
            // What the API server says now is by its own clock, and it knows the token's end.
            Some(identity) if !cached || identity.expires.is_none_or(|at| at > now) => Ok((identity, cached)),
            _ => Err(AuthError::Refused),
        }
    }

    /// Whether who asks may do this in this namespace.
    pub async fn may(&self, identity: &Identity, namespace: &str, rule: Rule<'_>) -> Result<bool, Unavailable> {
        let mut hash = Sha256::new();
        hash.update(identity.digest);
        part(&mut hash, namespace.as_bytes());
        part(&mut hash, rule.name.unwrap_or_default().as_bytes());
        // Publishing, asked with every event, is what is meant when nothing follows.
        if let Some(subresource) = rule.subresource {
            part(&mut hash, subresource.as_bytes());
            part(&mut hash, rule.verb.as_bytes());
        }
        let key: cache::Key = hash.finalize().into();
        let ask = || self.review_access(identity, namespace, rule);
        self.grants.get(key, ask).await.map(|(allowed, _)| allowed)
    }

    async fn review_token(&self, token: &str) -> Result<Option<Arc<Identity>>, ReviewError> {
        let _question = self.question().await?;
        match &self.reviewer {
            Reviewer::Cluster(client) => self.ask_about_token(client, token).await,
            #[cfg(test)]
            Reviewer::Table(table) => table.token(token).await,
        }
    }

    async fn ask_about_token(&self, client: &kube::Client, token: &str) -> Result<Option<Arc<Identity>>, ReviewError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(self.audiences.clone()),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status;
        let status = status.ok_or(ReviewError::NoStatus)?;
        // Without audiences in the answer the token was checked against the API server's own, not against ours.
        let ours = status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|a| self.audiences.contains(a));
        if status.authenticated != Some(true) || !ours {
            return Ok(None);
        }
        Ok(status.user.and_then(|user| identity(user, token)).map(Arc::new))
    }

    async fn review_access(&self, identity: &Identity, namespace: &str, rule: Rule<'_>) -> Result<bool, ReviewError> {
        let question = self.access_questions.take(identity.home()).await;
        let _question = question.map_err(|_| ReviewError::Busy)?;
        match &self.reviewer {
            Reviewer::Cluster(client) => ask_about_access(client, identity, namespace, rule).await,
            #[cfg(test)]
            Reviewer::Table(table) => table.access(&identity.username, namespace, rule).await,
        }
    }

    /// A turn to ask about a token.
    async fn question(&self) -> Result<tokio::sync::SemaphorePermit<'_>, ReviewError> {
        /// Shorter than a question's own patience, so that a full house is told from a silent server.
        const WAIT: Duration = Duration::from_secs(2);
        match tokio::time::timeout(WAIT, self.token_questions.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(ReviewError::Busy),
        }
    }
}

async fn ask_about_access(
    client: &kube::Client,
    identity: &Identity,
    namespace: &str,
    rule: Rule<'_>,
) -> Result<bool, ReviewError> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(identity.username.clone()),
            uid: identity.uid.clone(),
            groups: Some(identity.groups.clone()),
            extra: Some(identity.extra.clone()),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(rule.verb.to_owned()),
                group: Some(names::GROUP.to_owned()),
                version: Some(names::VERSION.to_owned()),
                resource: Some(rule.resource.to_owned()),
                subresource: rule.subresource.map(str::to_owned),
                name: rule.name.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let status = api.create(&PostParams::default(), &review).await?.status;
    let status = status.ok_or(ReviewError::NoStatus)?;
    Ok(status.allowed && status.denied != Some(true))
}

/// The bearer token of a request (RFC 6750, 2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(AuthError::Missing);
    };
    let value = value.to_str().map_err(|_| AuthError::Missing)?;
    let (scheme, token) = value.split_once(' ').ok_or(AuthError::Missing)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(AuthError::Missing);
    }
    if token.len() > LONGEST_TOKEN {
        return Err(AuthError::Refused);
    }
    Ok(token)
}

pub(super) fn identity(user: UserInfo, token: &str) -> Option<Identity> {
    let username = user.username.filter(|name| !name.is_empty())?;
    let groups = user.groups.unwrap_or_default();
    let extra = user.extra.unwrap_or_default();
    let mut hash = Sha256::new();
    part(&mut hash, username.as_bytes());
    part(&mut hash, user.uid.as_deref().unwrap_or_default().as_bytes());
    for group in &groups {
        part(&mut hash, group.as_bytes());
    }
    for (name, values) in &extra {
        part(&mut hash, b"");
        part(&mut hash, name.as_bytes());
        for value in values {
            part(&mut hash, value.as_bytes());
        }
    }
    Some(Identity {
        username,
        uid: user.uid,
        groups,
        extra,
        digest: hash.finalize().into(),
        expires: expiry(token),
    })
}

/// Length first, so that two parts never read as one.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// `exp` of a JWT that the API server has accepted; none for other tokens.
fn expiry(token: &str) -> Option<UnixMillis> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: f64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(UnixMillis((claims.exp * 1000.0) as i64))
}

#[cfg(test)]
pub(crate) mod fixed;
