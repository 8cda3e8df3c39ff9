//! A request as it goes out: the endpoint's, the event's and the subscription's parts put together, and signed. Pure.
//!
//! Invariant: what an endpoint takes from a Secret is sent as it is, whatever a subscription or an event says.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::Full;

use super::handshake::{Origin, REQUEST_ORIGIN, REQUEST_RATE};
use super::tokens::Token;
use super::{Fault, Outcome, Request};
use crate::api::resolve::{Rate, ResolvedEndpoint, Target};
use crate::shaping::path::under;
use crate::signing::{HEADER_ID, HEADER_TIMESTAMP};

const WEBHOOK_ID: HeaderName = HeaderName::from_static(HEADER_ID);
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static(HEADER_TIMESTAMP);

/// Who sends.
pub(super) struct Own {
    pub(super) user_agent: HeaderValue,
    pub(super) origin: Origin,
}

/// The request's path and query.
pub(super) fn path<'a>(target: &'a Target, request: &Request) -> Cow<'a, str> {
    match request.shaped.as_ref().and_then(|shaped| shaped.path.as_deref()) {
        Some(more) => Cow::Owned(under(&target.path, more)),
        None => Cow::Borrowed(&target.path),
    }
}

/// Whether a subscription's header counts: it is no secret of the endpoint, and no attribute of the event.
fn may_set(name: &HeaderName, endpoint: &ResolvedEndpoint, request: &Request, token: Option<&Token>) -> bool {
    let secret = endpoint
        .headers
        .iter()
        .any(|(own, value)| own == name && value.is_sensitive());
    let of_format = request.headers.iter().any(|(own, _)| own == name);
    let of_token = token.is_some() && name == AUTHORIZATION;
    !(secret || of_format || of_token)
}

/// The request as it goes out, signed over the exact bytes of its body.
pub(super) fn render(
    endpoint: &ResolvedEndpoint,
    request: &Request,
    token: Option<&Token>,
    own: &Own,
) -> Result<http::Request<Full<Bytes>>, Outcome> {
    let mut headers = head(endpoint, own, 8 + request.headers.len() + endpoint.headers.len())?;
    // The format's last: an endpoint's header cannot pass for an attribute of the event.
    let shaped = request.shaped.as_deref();
    let more = shaped.map_or(&[][..], |shaped| &shaped.headers);
    for (name, value) in &request.headers {
        headers.insert(name, value.clone());
    }
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, token.value.clone());
    }
    for (name, value) in more {
        if may_set(name, endpoint, request, token) {
            headers.insert(name, value.clone());
        }
    }
    if let Some(content_type) = &request.content_type {
        headers.insert(CONTENT_TYPE, content_type.clone());
    }
    let id = request.message.to_string();
    if let Some((name, value)) = endpoint.signing.sign(&id, request.timestamp, &request.body) {
        headers.insert(name, value);
    }
    headers.insert(
        WEBHOOK_ID,
        HeaderValue::try_from(id).map_err(|_| unusable(endpoint, "id"))?,
    );
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(request.timestamp));
    let method = shaped.map_or(Method::POST, |shaped| shaped.method.clone());
    let path = path(&endpoint.target, request);
    whole(endpoint, method, &path, headers, request.body.clone())
}

/// Whether the receiver wants messages: to the endpoint's own URL, with its own headers, about no event and so unsigned.
pub(super) fn question(
    endpoint: &ResolvedEndpoint,
    token: Option<&Token>,
    own: &Own,
) -> Result<http::Request<Full<Bytes>>, Outcome> {
    let mut headers = head(endpoint, own, 8 + endpoint.headers.len())?;
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, token.value.clone());
    }
    if let Some(rate) = endpoint.rate.map(Rate::per_minute) {
        headers.insert(REQUEST_RATE, HeaderValue::from(rate));
    }
    whole(endpoint, Method::OPTIONS, &endpoint.target.path, headers, Bytes::new())
}

/// What every request to the endpoint has.
fn head(endpoint: &ResolvedEndpoint, own: &Own, room: usize) -> Result<HeaderMap, Outcome> {
    let mut headers = HeaderMap::with_capacity(room);
    let host = HeaderValue::from_str(&endpoint.target.authority).map_err(|_| unusable(endpoint, "host"))?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, own.user_agent.clone());
    for (name, value) in &endpoint.headers {
        headers.insert(name, value.clone());
    }
    if endpoint.handshake {
        headers.insert(REQUEST_ORIGIN, own.origin.value().clone());
    }
    Ok(headers)
}

fn whole(
    endpoint: &ResolvedEndpoint,
    method: Method,
    path: &str,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<http::Request<Full<Bytes>>, Outcome> {
    let path = PathAndQuery::try_from(path).map_err(|_| unusable(endpoint, "path"))?;
    // Written here because the client leaves it out where there is no data, and servers answer that with 411
    // (RFC 9110, 8.6).
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let mut rendered = http::Request::new(Full::new(body));
    *rendered.method_mut() = method;
    *rendered.uri_mut() = Uri::from(path);
    *rendered.headers_mut() = headers;
    Ok(rendered)
}

/// The resource's rules exclude it; were it to happen, waiting is kinder than a dead letter.
fn unusable(endpoint: &ResolvedEndpoint, what: &'static str) -> Outcome {
    tracing::error!(
        namespace = endpoint.namespace,
        endpoint = endpoint.name,
        what,
        "unusable request"
    );
    Outcome::Fault(Fault::Protocol)
}
