//! Requests of a receiver's own shape: from an event and a subscription's expressions to method, path, headers and body.
//! Pure.
//!
//! Owns what a rendered request may be; knows nothing of endpoints: an expression sees neither their URL nor their headers.
//! Events come from strangers, so what they put into a path or header is checked ([`path`]). Invariant: no error repeats
//! anything of an event or of a Secret.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method};

use crate::api::resolve::{Format, RequestSecrets, ResolvedRequest};
use crate::blocking::beside_the_worker;
use crate::event::format::{self, RenderError, Rendered, accepted_event};
use crate::expression::{EvaluationError, Expression, Scope};
use crate::queue::StoredEvent;

pub mod notice;
pub mod path;

/// The longest body that is sent: as long as an event's data can be.
const BODY_LONGEST: usize = 1 << 20;
/// The longest value of a header, as an endpoint's.
const HEADER_LONGEST: usize = 4096;

/// A request that is not the format's.
#[derive(Clone, Debug)]
pub struct Shaped {
    pub method: Method,
    /// What to put behind the endpoint's path ([`path::under`]).
    pub path: Option<String>,
    /// In place of the endpoint's of the same name that are no secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What may stand in it and must not be shown.
    pub secrets: Arc<RequestSecrets>,
}

/// Why there is no request: its message is a dead letter `Unrenderable`.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error(transparent)]
    Event(#[from] RenderError),
    #[error("{place}: {error}")]
    Expression { place: String, error: EvaluationError },
    #[error("request.path gives what no path can be: {0}")]
    Path(&'static str),
    #[error(
        "request.headers, {0}: the value must be visible ASCII of at most 4096 characters: encode it, for example with urlEncode()"
    )]
    Header(HeaderName),
    #[error("{0} gives more than 1 MiB: send less of the event")]
    TooLarge(&'static str),
}

/// Renders a stored event as the subscription wants it.
pub fn shape(
    request: &ResolvedRequest,
    format: Format,
    secrets: &Arc<RequestSecrets>,
    stored: &StoredEvent,
) -> Result<(Rendered, Box<Shaped>), ShapeError> {
    // Once for all its expressions, each of which may take long.
    beside_the_worker(|| shaped(request, format, secrets, stored))
}

fn shaped(
    request: &ResolvedRequest,
    format: Format,
    secrets: &Arc<RequestSecrets>,
    stored: &StoredEvent,
) -> Result<(Rendered, Box<Shaped>), ShapeError> {
    let (event, _) = accepted_event(stored)?;
    let scope = Scope::event(&event).with_secrets(secrets.iter());
    let path = request
        .path
        .as_ref()
        .map(|path| text("request.path", path, &scope))
        .transpose()?;
    if let Some(path) = &path {
        path::check(path).map_err(ShapeError::Path)?;
    }
    let mut rendered = match &request.body {
        None => format::render(format, stored)?,
        Some(body) => Rendered {
            content_type: Some(json_type()),
            headers: Vec::new(),
            body: self::body("request.body", body, &scope)?,
        },
    };
    let mut headers = Vec::with_capacity(request.headers.len());
    for (name, expression) in &request.headers {
        let value = header(name, expression, &scope, !secrets.is_empty())?;
        match *name == CONTENT_TYPE {
            true => rendered.content_type = Some(value),
            false => headers.push((name.clone(), value)),
        }
    }
    let shaped = Box::new(Shaped {
        method: request.method.clone(),
        path,
        headers,
        secrets: Arc::clone(secrets),
    });
    Ok((rendered, shaped))
}

fn text(place: &str, expression: &Expression, scope: &Scope<'_>) -> Result<String, ShapeError> {
    expression.text(scope).map_err(|error| ShapeError::Expression {
        place: place.to_owned(),
        error,
    })
}

fn header(
    name: &HeaderName,
    expression: &Expression,
    scope: &Scope<'_>,
    sensitive: bool,
) -> Result<HeaderValue, ShapeError> {
    let text = text(&format!("request.headers, {name}"), expression, scope)?;
    if text.len() > HEADER_LONGEST {
        return Err(ShapeError::Header(name.clone()));
    }
    let mut value = HeaderValue::from_str(text.trim()).map_err(|_| ShapeError::Header(name.clone()))?;
    value.set_sensitive(sensitive);
    Ok(value)
}

fn json_type() -> HeaderValue {
    HeaderValue::from_static("application/json")
}

/// The JSON that an expression builds, as text.
fn body(place: &'static str, expression: &Expression, scope: &Scope<'_>) -> Result<Bytes, ShapeError> {
    let failed = |error| ShapeError::Expression {
        place: place.to_owned(),
        error,
    };
    let text = expression.json(scope).map_err(failed)?.to_string();
    match text.len() > BODY_LONGEST {
        true => Err(ShapeError::TooLarge(place)),
        false => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests;
