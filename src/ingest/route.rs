//! The paths there are, and the method each takes. Pure.

use http::{Method, StatusCode};

use super::problem::Problem;
use crate::api::names::MAX_NAME;
use crate::ids::MessageId;

/// What a request is about, in one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// Events are posted.
    Events,
    /// Kept messages are listed.
    Messages,
    /// One of them.
    Message(MessageId),
    /// Its failed attempts.
    Attempts(MessageId),
    /// What waits for the consumers of the subscription of this name.
    Pull(&'a str),
    /// They have got it.
    Acknowledge(&'a str),
    /// The namespace's public keys, for anybody.
    PublicKeys,
}

/// The namespace and what is asked of it.
pub(super) fn route<'a>(method: &Method, path: &'a str) -> Result<(&'a str, Route<'a>), Problem> {
    let mut parts = path.strip_prefix("/v1/namespaces/").unwrap_or_default().split('/');
    let namespace = parts.next().unwrap_or_default();
    let route = match [parts.next(), parts.next(), parts.next(), parts.next()] {
        [Some("events"), None, ..] => Route::Events,
        [Some("jwks.json"), None, ..] => Route::PublicKeys,
        [Some("messages"), None, ..] => Route::Messages,
        [Some("messages"), Some(id), None, _] => Route::Message(message(id)?),
        [Some("messages"), Some(id), Some("attempts"), None] => Route::Attempts(message(id)?),
        [Some("subscriptions"), Some(name), Some("pull"), None] if is_name(name) => Route::Pull(name),
        [Some("subscriptions"), Some(name), Some("ack"), None] if is_name(name) => Route::Acknowledge(name),
        _ => return Err(unknown()),
    };
    if namespace.is_empty() {
        return Err(unknown());
    }
    match route {
        Route::Events if method != Method::POST => Err(Problem::not_allowed("POST", "events are posted: use POST")),
        Route::Messages | Route::Message(_) | Route::Attempts(_) if method != Method::GET => {
            Err(Problem::not_allowed("GET", "messages are read: use GET"))
        }
        Route::Pull(_) if method != Method::GET => Err(Problem::not_allowed("GET", "messages are pulled: use GET")),
        Route::Acknowledge(_) if method != Method::POST => {
            Err(Problem::not_allowed("POST", "messages are acknowledged: use POST"))
        }
        Route::PublicKeys if method != Method::GET => Err(Problem::not_allowed("GET", "public keys are read: use GET")),
        _ => Ok((namespace, route)),
    }
}

/// Whether an object can have this name: it is asked about, and shown in commands.
fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

fn message(id: &str) -> Result<MessageId, Problem> {
    let detail = "a message's id is its webhook-id: msg_ and 13 characters";
    MessageId::parse(id).ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "MessageNotFound", detail))
}

fn unknown() -> Problem {
    let detail = "events are posted to /v1/namespaces/{namespace}/events; messages are read at \
                  /v1/namespaces/{namespace}/messages[/{id}[/attempts]], pulled at subscriptions/{name}/pull beside them \
                  and acknowledged at subscriptions/{name}/ack, and public keys are at jwks.json";
    Problem::new(StatusCode::NOT_FOUND, "NotFound", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_takes_one_method_and_no_other_path_is_there() {
        let id = "msg_0D1N400000001";
        let message = MessageId::parse(id).unwrap();
        for (path, method, wanted) in [
            ("events", Method::POST, Route::Events),
            ("jwks.json", Method::GET, Route::PublicKeys),
            ("messages", Method::GET, Route::Messages),
            ("subscriptions/leads/pull", Method::GET, Route::Pull("leads")),
            ("subscriptions/leads/ack", Method::POST, Route::Acknowledge("leads")),
            (&format!("messages/{id}"), Method::GET, Route::Message(message)),
            (
                &format!("messages/{id}/attempts"),
                Method::GET,
                Route::Attempts(message),
            ),
        ] {
            let path = format!("/v1/namespaces/shop/{path}");
            assert_eq!(route(&method, &path), Ok(("shop", wanted)), "{path}");
            let refused = route(&Method::DELETE, &path).unwrap_err();
            assert_eq!(
                (refused.status.as_u16(), refused.allow),
                (405, Some(method.as_str())),
                "{path}"
            );
        }
        for path in [
            "/",
            "/v1/namespaces//events",
            "/v1/namespaces/shop",
            "/v1/namespaces/shop/events/",
            "/v1/namespaces/shop/events/more",
            "/v2/namespaces/shop/events",
            "/v1/namespaces/shop/subscriptions/leads",
            "/v1/namespaces/shop/subscriptions//pull",
            "/v1/namespaces/shop/subscriptions/Leads/pull",
            "/v1/namespaces/shop/subscriptions/leads/pull/",
            "/v1/namespaces/shop/messages/msg_short",
            "/v1/namespaces/shop/messages/msg_0D1N400000001/attempts/1",
        ] {
            assert_eq!(
                route(&Method::POST, path).unwrap_err().status,
                StatusCode::NOT_FOUND,
                "{path}"
            );
        }
    }
}
