//! What a consumer gets: messages as they would be posted, and where to go on. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::query;
use crate::event::format::{self, RenderError, rfc3339};
use crate::ids::{SubscriptionId, UnixMillis};
use crate::ingest::messages::shown::{Body, Named, headers};
use crate::queue::{Pending, Place, StoredEvent};
use crate::registry::SubscriptionEntry;

/// The answer to a pull.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    messages: Vec<Message>,
    /// The place of the last message: what a further pull goes on after, and what acknowledges all until there.
    cursor: String,
    /// There is more after it now.
    more: bool,
    #[serde(skip_serializing_if = "is_false")]
    suspended: bool,
}

/// A message.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Message {
    id: String,
    event: Named,
    accepted_time: String,
    headers: BTreeMap<String, String>,
    #[serde(flatten)]
    body: Body,
}

/// The answer to an acknowledgement.
#[derive(Debug, Serialize)]
pub(super) struct Acknowledged {
    /// How many messages waited until now.
    pub acknowledged: u64,
}

impl Page {
    /// Renders messages; those that cannot be, with why, are left out.
    pub(super) fn new(
        entry: &SubscriptionEntry,
        given: &[(Pending, Arc<StoredEvent>)],
        more: bool,
    ) -> (Page, Vec<(Pending, String)>) {
        let mut messages = Vec::with_capacity(given.len());
        let mut unrenderable = Vec::new();
        for (pending, event) in given {
            match message(entry, pending, event) {
                Ok(message) => messages.push(message),
                Err(error) => unrenderable.push((*pending, error.to_string())),
            }
        }
        let last = given.last().map_or(Place::START, |(last, _)| Place::of(last));
        let page = Page {
            messages,
            cursor: query::cursor(entry.id, last),
            more,
            suspended: false,
        };
        (page, unrenderable)
    }

    /// Nothing waits, or nothing may be given.
    pub(super) fn empty(subscription: SubscriptionId, after: Place, suspended: bool) -> Page {
        Page {
            messages: Vec::new(),
            cursor: query::cursor(subscription, after),
            more: false,
            suspended,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.messages.len() as u64
    }
}

fn message(entry: &SubscriptionEntry, pending: &Pending, event: &StoredEvent) -> Result<Message, RenderError> {
    let head = format::head(&event.attributes)?;
    let rendered = format::render(entry.spec.format, event)?;
    Ok(Message {
        id: pending.message.to_string(),
        accepted_time: rfc3339(UnixMillis(head.accepted)).into_owned(),
        event: head.into(),
        headers: headers(pending.message, &rendered, None),
        body: Body::new(&rendered.body),
    })
}

fn is_false(value: &bool) -> bool {
    !value
}
