//! What a refused producer reads: RFC 9457 problem documents, each with a sentence that says what to do. Pure.
//!
//! `type` is left out (it is then `about:blank`, and `title` the status's phrase); `reason` is one word for programs.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::auth::{AuthError, Identity, Rule, Unavailable};
use super::declared::Unanswered;
use super::parse::ParseError;
use crate::queue::{ACCEPT_AT_ONCE, QueueError};
use crate::schema::Violation;

/// The quota that ingest itself counts.
pub const EVENTS_PER_SECOND: &str = "eventsPerSecond";

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub status: StatusCode,
    /// One word.
    pub reason: &'static str,
    pub detail: String,
    /// The position in a batch.
    pub event: Option<usize>,
    /// Where the data breaks its schema.
    pub errors: Vec<Violation>,
    /// Seconds.
    pub retry_after: Option<u32>,
    /// The method that a path takes.
    pub allow: Option<&'static str>,
    /// The quota of the namespace that is used up.
    pub quota: Option<Box<OverQuota>>,
}

/// A quota of the administrator's policy, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OverQuota {
    pub name: &'static str,
    pub limit: u64,
}

/// When to try again after the API server, the watches or a write failed: they are tried again each second or two.
const SOON: u32 = 2;
/// When to try again while the store is full: deliveries and pruning take a while to make room.
const LATER: u32 = 10;

impl Problem {
    pub fn new(status: StatusCode, reason: &'static str, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            reason,
            detail: detail.into(),
            event: None,
            errors: Vec::new(),
            retry_after: None,
            allow: None,
            quota: None,
        }
    }

    fn retry(mut self, seconds: u32) -> Problem {
        self.retry_after = Some(seconds);
        self
    }

    /// 503 before every watch has synced.
    pub fn not_synced() -> Problem {
        let detail = "this dispatcher is still loading endpoints and subscriptions";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "NotSynced", detail).retry(SOON)
    }

    /// 503 where requests being read hold all the memory meant for them.
    pub fn busy() -> Problem {
        let detail = "too many requests are being read";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", detail).retry(SOON)
    }

    /// 503 where the store has not looked in time.
    pub fn looks_too_slow() -> Problem {
        let detail = "the store has too much to look at before this";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", detail).retry(SOON)
    }

    /// 405, with the method there is.
    pub fn not_allowed(method: &'static str, detail: &str) -> Problem {
        Problem {
            allow: Some(method),
            ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", detail)
        }
    }

    /// 404 of a message.
    pub fn no_message() -> Problem {
        let detail = "the namespace has no such message: it may be older than what is kept";
        Problem::new(StatusCode::NOT_FOUND, "MessageNotFound", detail)
    }

    /// 500: our own fault.
    pub fn internal(detail: &str) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", detail)
    }

    /// 503 of a store that cannot be read.
    pub fn unread(err: &QueueError) -> Problem {
        let (reason, detail) = match err {
            QueueError::Fenced | QueueError::Closed => ("ShuttingDown", "this dispatcher is ending"),
            _ => ("StoreFailed", "the store cannot be read"),
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail).retry(SOON)
    }

    /// 429 where the producer's own requests hold what he may have, or what all of his namespace may.
    pub fn share_used_up() -> Problem {
        let detail = "requests of this producer, or of others of its namespace, that are being read hold the memory they \
                      may have together: wait for their answers";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyBodies", detail).retry(SOON)
    }

    /// 429 where answers that the caller, or others of its namespace, do not read hold what they may.
    pub fn answers_unread() -> Problem {
        let detail = "answers that this caller, or others of its namespace, have not read to their end hold the memory they \
                      may have together: read them";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyBodies", detail).retry(SOON)
    }

    /// 413 of the whole body.
    pub fn too_large(limit: usize) -> Problem {
        let detail = format!("the body must have at most {limit} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail)
    }

    /// 413 of a batch whose events take too long to be checked.
    pub fn too_much_to_check() -> Problem {
        let detail = "the events of the batch are too much to check against their EventTypes at once: split it";
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail)
    }

    /// 404 of a namespace.
    pub fn no_namespace() -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "NamespaceNotFound", "there is no such namespace")
    }

    /// 404 of a namespace of which nothing is known here.
    pub fn not_watched(namespace: &str) -> Problem {
        let detail = format!(
            "this Tidings is installed for some namespaces only, and {namespace} is not one of them: ask the administrator to \
             add it (watchNamespaces of the chart, --watch-namespace of the processes)"
        );
        Problem::new(StatusCode::NOT_FOUND, "NamespaceNotWatched", detail)
    }

    /// 422: data that does not fit its declared type.
    pub fn does_not_fit(event_type: &str, event: Option<usize>, errors: Vec<Violation>) -> Problem {
        let detail = format!("the data does not fit the schema of EventType {event_type}");
        Problem {
            event,
            errors,
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "SchemaViolation", detail)
        }
    }

    /// 422: the administrator's policy takes declared types only.
    pub fn undeclared(event_type: &str, namespace: &str, event: Option<usize>) -> Problem {
        let detail = format!(
            "no EventType in namespace {namespace} declares {event_type}, and the administrator's policy takes events of \
             declared types only: create an EventType with spec.type {event_type}"
        );
        Problem {
            event,
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "UndeclaredType", detail)
        }
    }

    /// 429: the namespace has what the administrator's policy lets it have.
    pub fn over_quota(quota: OverQuota, seconds: u32) -> Problem {
        let OverQuota { name, limit } = quota;
        let detail = format!(
            "the administrator's policy gives the namespace a quota of {limit} {}, and it is used up: nothing was accepted",
            match name {
                EVENTS_PER_SECOND => "events a second",
                "pendingBytes" => "bytes in pending messages",
                _ => "pending messages",
            }
        );
        Problem {
            quota: Some(Box::new(quota)),
            ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "OverQuota", detail).retry(seconds)
        }
    }

    /// 413: a batch that no second has room for.
    pub fn over_quota_for_ever(events: usize, per_second: u32) -> Problem {
        let detail = format!(
            "the batch has {events} events, and the administrator's policy gives the namespace a quota of {per_second} \
             events a second: send at most {per_second} in one batch"
        );
        Problem {
            quota: Some(Box::new(OverQuota {
                name: EVENTS_PER_SECOND,
                limit: per_second.into(),
            })),
            ..Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail)
        }
    }

    /// 503: it is declared, and checked a moment later.
    pub fn not_loaded(event_type: &str, event: Option<usize>) -> Problem {
        let detail = format!("EventType {event_type} is being loaded: nothing was accepted");
        Problem {
            event,
            ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, "NotLoaded", detail).retry(SOON)
        }
    }

    /// 403, with the commands that grant what is missing.
    pub fn may_not_publish(identity: &Identity, namespace: &str, event_type: &str) -> Problem {
        let role = format!("publish-{}", object_name(event_type));
        let binding = role_binding(&role, identity, namespace);
        let detail = format!(
            "{} may not publish events of type {event_type} in namespace {namespace}. Missing rule: verb publish on \
             eventtypes.tidings.dev, resource name {event_type}. To grant it:\n\
             kubectl create role {role} --namespace={namespace} --verb=publish --resource=eventtypes.tidings.dev \
             --resource-name={}\n{binding}",
            identity.username,
            quoted(event_type)
        );
        Problem::new(StatusCode::FORBIDDEN, "MissingRule", detail)
    }

    /// 403, with the commands that grant what is missing.
    pub fn may_not_read(identity: &Identity, namespace: &str, rule: Rule<'_>) -> Problem {
        let (role, verb) = ("read-messages", rule.verb);
        let binding = role_binding(role, identity, namespace);
        let detail = format!(
            "{} may not {verb} messages in namespace {namespace}. Missing rule: verb {verb} on \
             eventsubscriptions.tidings.dev/messages; the roles edit and admin have it. To grant reading alone:\n\
             kubectl create role {role} --namespace={namespace} --verb=get,list \
             --resource=eventsubscriptions.tidings.dev/messages\n{binding}",
            identity.username,
        );
        Problem::new(StatusCode::FORBIDDEN, "MissingRule", detail)
    }

    /// 403, with the commands that grant what is missing.
    pub fn may_not_pull(identity: &Identity, namespace: &str, subscription: &str, rule: Rule<'_>) -> Problem {
        let role = format!("pull-{subscription}");
        let binding = role_binding(&role, identity, namespace);
        let detail = format!(
            "{} may not {} messages of EventSubscription {subscription} in namespace {namespace}. Missing rule: verb {} on \
             eventsubscriptions.tidings.dev/pull, resource name {subscription}; the roles edit and admin have it. To grant \
             pulling (get) and acknowledging (update) alone:\n\
             kubectl create role {role} --namespace={namespace} --verb=get,update \
             --resource=eventsubscriptions.tidings.dev/pull --resource-name={subscription}\n{binding}",
            identity.username,
            match rule.verb {
                "get" => "pull",
                _ => "acknowledge",
            },
            rule.verb,
        );
        Problem::new(StatusCode::FORBIDDEN, "MissingRule", detail)
    }

    /// 404 of a subscription.
    pub fn no_subscription(name: &str) -> Problem {
        let detail = format!("the namespace has no EventSubscription {name}, or none that is valid");
        Problem::new(StatusCode::NOT_FOUND, "SubscriptionNotFound", detail)
    }

    /// 409 of a subscription whose messages are sent to an endpoint.
    pub fn is_pushed(name: &str) -> Problem {
        let detail = format!(
            "the messages of EventSubscription {name} are sent to its endpoint: only with delivery: Pull they can be pulled"
        );
        Problem::new(StatusCode::CONFLICT, "NotPull", detail)
    }

    /// 429 where messages of the namespace are read as often at a time as they may be.
    pub fn too_many_reads(limit: usize) -> Problem {
        let detail = format!(
            "{limit} requests are reading messages of this namespace, which is as many as may at a time, and more wait: ask \
             for one after the other"
        );
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyReads", detail).retry(SOON)
    }

    /// 429 where events of the namespace are being checked.
    pub fn too_many_checks(limit: usize) -> Problem {
        let detail = format!(
            "{limit} request of this namespace has events that take long to be checked against their EventTypes, which is as \
             many as may at a time, and more wait: send such events one after the other"
        );
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyChecks", detail).retry(SOON)
    }

    /// 429 where the namespace's consumers wait as often as they may.
    pub fn too_many_polls(limit: usize) -> Problem {
        let detail = format!(
            "{limit} requests wait for messages of this namespace, which is as many as may: let one consumer wait once, or \
             ask without wait"
        );
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "TooManyPolls", detail).retry(SOON)
    }

    /// 503 of a store that could not record an acknowledgement.
    pub fn not_acknowledged(err: &QueueError) -> Problem {
        let (reason, detail) = match err {
            QueueError::Fenced | QueueError::Closed => ("ShuttingDown", "this dispatcher is ending"),
            _ => ("StoreFailed", "the store cannot be written"),
        };
        let detail = format!("{detail}: acknowledge again, what is not acknowledged is given again");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail).retry(SOON)
    }

    /// The document with its headers.
    pub fn response(&self) -> Response<Full<Bytes>> {
        #[derive(Serialize)]
        struct Document<'a> {
            title: &'a str,
            status: u16,
            reason: &'a str,
            detail: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            event: Option<usize>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            errors: &'a [Violation],
            #[serde(skip_serializing_if = "Option::is_none")]
            quota: Option<&'a OverQuota>,
        }
        let document = Document {
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            reason: self.reason,
            detail: &self.detail,
            event: self.event,
            errors: &self.errors,
            quota: self.quota.as_deref(),
        };
        // Strings and numbers into memory: nothing that can fail.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(method) = self.allow {
            headers.insert(ALLOW, HeaderValue::from_static(method));
        }
        response
    }
}

impl From<AuthError> for Problem {
    fn from(err: AuthError) -> Problem {
        match err {
            AuthError::Missing => Problem::new(StatusCode::UNAUTHORIZED, "NoToken", err.to_string()),
            AuthError::Refused => Problem::new(StatusCode::UNAUTHORIZED, "InvalidToken", err.to_string()),
            AuthError::Unavailable => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, "AuthUnavailable", err.to_string()).retry(SOON)
            }
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(_: Unavailable) -> Problem {
        let detail = "the Kubernetes API could not be asked what this caller may do";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "AuthUnavailable", detail).retry(SOON)
    }
}

impl From<Unanswered> for Problem {
    fn from(err: Unanswered) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "TypesUnavailable", err.to_string()).retry(SOON)
    }
}

impl From<ParseError> for Problem {
    fn from(err: ParseError) -> Problem {
        let (status, reason, event, detail) = match err {
            ParseError::Unsupported(detail) => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", None, detail)
            }
            ParseError::Invalid { event, detail } => (StatusCode::BAD_REQUEST, "InvalidEvent", event, detail),
            ParseError::TooLarge { event, detail } => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", event, detail),
        };
        Problem {
            event,
            ..Problem::new(status, reason, detail)
        }
    }
}

impl From<&QueueError> for Problem {
    /// What the store says of its disk is for the operator's log, not for producers.
    fn from(err: &QueueError) -> Problem {
        let (reason, detail, seconds) = match err {
            QueueError::OverQuota { quota, limit } => {
                let quota = OverQuota {
                    name: quota,
                    limit: *limit,
                };
                return Problem::over_quota(quota, LATER);
            }
            QueueError::TooMany(messages) => {
                let detail = format!(
                    "the batch makes {messages} messages at once, and may make {ACCEPT_AT_ONCE}: split it. Nothing was accepted"
                );
                return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLarge", detail);
            }
            QueueError::Full(_) => ("StoreFull", "the store is full: nothing was accepted", LATER),
            QueueError::TooWide(_) | QueueError::Write(_) | QueueError::Read(_) => {
                ("StoreFailed", "the store cannot be written: nothing was accepted", SOON)
            }
            QueueError::Fenced | QueueError::Closed => {
                ("ShuttingDown", "this dispatcher is ending: nothing was accepted", SOON)
            }
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason, detail).retry(seconds)
    }
}

/// The command that binds a role to who asks.
fn role_binding(role: &str, identity: &Identity, namespace: &str) -> String {
    let (subject, binding) = match identity.service_account() {
        Some((in_namespace, name)) => (
            format!("--serviceaccount={}", quoted(&format!("{in_namespace}:{name}"))),
            format!("{role}-{in_namespace}-{}", object_name(name)),
        ),
        None => (
            format!("--user={}", quoted(&identity.username)),
            format!("{role}-{}", object_name(&identity.username)),
        ),
    };
    format!("kubectl create rolebinding {binding} --namespace={namespace} --role={role} {subject}")
}

/// An argument as a shell takes it: quoted where it is not plain.
fn quoted(argument: &str) -> String {
    let plain = argument
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'/' | b'@'));
    if plain {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// A piece of an object's name: lower-case letters, digits, dots and dashes, ending in neither of the latter.
fn object_name(text: &str) -> String {
    /// Leaves room for what stands before and after it.
    const LONGEST: usize = 63;
    let name: String = text
        .chars()
        .take(LONGEST)
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '.' | '-') => c,
            _ => '-',
        })
        .collect();
    match name.trim_matches(['.', '-']) {
        "" => "events".to_owned(),
        trimmed => trimmed.replace("..", "."),
    }
}
