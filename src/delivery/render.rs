//! A request as it goes out: the endpoint's, the event's and the subscription's parts put together, and signed. Pure.
//!
//! Invariant: what an endpoint takes from a Secret is sent as it is, whatever a subscription or an event says.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::Full;

use super::tokens::Token;
use super::{Fault, Outcome, Request};
use crate::api::resolve::{ResolvedEndpoint, Target};
use crate::shaping::path::under;
use crate::signing::{HEADER_ID, HEADER_TIMESTAMP};

const WEBHOOK_ID: HeaderName = HeaderName::from_static(HEADER_ID);
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static(HEADER_TIMESTAMP);

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
    user_agent: &HeaderValue,
) -> Result<http::Request<Full<Bytes>>, Outcome> {
    let mut headers = HeaderMap::with_capacity(8 + request.headers.len() + endpoint.headers.len());
    let unusable = |what: &'static str| {
        // The resource's rules exclude it; were it to happen, waiting is kinder than a dead letter.
        tracing::error!(
            namespace = endpoint.namespace,
            endpoint = endpoint.name,
            what,
            "unusable request"
        );
        Outcome::Fault(Fault::Protocol)
    };
    let host = HeaderValue::from_str(&endpoint.target.authority).map_err(|_| unusable("host"))?;
    let path = PathAndQuery::try_from(&*path(&endpoint.target, request)).map_err(|_| unusable("path"))?;
    headers.insert(HOST, host);
    headers.insert(USER_AGENT, user_agent.clone());
    // The format's last: an endpoint's header cannot pass for an attribute of the event.
    let shaped = request.shaped.as_deref();
    let own = shaped.map_or(&[][..], |shaped| &shaped.headers);
    for (name, value) in endpoint.headers.iter().chain(&request.headers) {
        headers.insert(name, value.clone());
    }
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, token.value.clone());
    }
    for (name, value) in own {
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
    headers.insert(WEBHOOK_ID, HeaderValue::try_from(id).map_err(|_| unusable("id"))?);
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(request.timestamp));
    // Written here because the client leaves it out where there is no data, and servers answer that with 411
    // (RFC 9110, 8.6).
    headers.insert(CONTENT_LENGTH, HeaderValue::from(request.body.len()));
    let mut rendered = http::Request::new(Full::new(request.body.clone()));
    *rendered.method_mut() = shaped.map_or(Method::POST, |shaped| shaped.method.clone());
    *rendered.uri_mut() = Uri::from(path);
    *rendered.headers_mut() = headers;
    Ok(rendered)
}
