//! What is told of a dead letter: as the subscription's `deadLetter` has it, or the default. Pure.

use serde_json::{Value as Json, json};

use super::{ShapeError, body, json_type};
use crate::api::names::is_pulled;
use crate::api::resolve::{DeadLetterTarget, Format};
use crate::event::format::{self, Rendered, accepted_event, rfc3339};
use crate::expression::Scope;
use crate::queue::{Notice, StoredEvent};

/// The type of the default body.
const TYPE: &str = "tidings.deadletter";

/// Renders what is told of a dead letter; `stored` is its event.
pub fn notice(told: Option<&DeadLetterTarget>, notice: &Notice, stored: &StoredEvent) -> Result<Rendered, ShapeError> {
    let message = message(notice);
    let body = match told.and_then(|told| told.body.as_ref()) {
        Some(expression) => {
            let (event, _) = accepted_event(stored)?;
            body(
                "deadLetter.request.body",
                expression,
                &Scope::event(&event).with_message(&message),
            )?
        }
        None => {
            let structured = format::render(Format::CloudEventsStructured, stored)?;
            // As the producer wrote it: numbers and names are not touched.
            let head = json!({"type": TYPE, "timestamp": rfc3339(notice.at)}).to_string();
            let message = message.to_string();
            let parts = [
                head.trim_end_matches('}').as_bytes(),
                br#","data":{"message":"#,
                message.as_bytes(),
                br#","event":"#,
                &structured.body,
                b"}}",
            ];
            parts.concat().into()
        }
    };
    Ok(Rendered {
        content_type: Some(json_type()),
        headers: Vec::new(),
        body,
    })
}

fn message(notice: &Notice) -> Json {
    let mut message = json!({
        "id": notice.message.to_string(),
        "subscription": notice.subscription,
        "attempts": notice.attempts,
        "reason": notice.reason,
    });
    if !is_pulled(&notice.endpoint) {
        message["endpoint"] = json!(notice.endpoint);
    }
    if let Some(status) = notice.status {
        message["lastStatusCode"] = json!(status);
    }
    message
}
