//! What consumers ask: where to go on, how many messages, how long to wait; and what they have got. Pure.
//!
//! Invariant: a cursor that was not made for this subscription is refused, never guessed at.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde::Deserialize;

use crate::api::duration::ApiDuration;
use crate::ids::{MessageId, SubscriptionId, UnixMillis};
use crate::ingest::problem::Problem;
use crate::queue::Place;

/// Messages of an answer unless asked otherwise.
const LIMIT: usize = 100;
/// The most messages of an answer, and ids of an acknowledgement.
const LARGEST_LIMIT: usize = 500;
/// The longest wait: proxies close what is silent for longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The form of a cursor: another one is refused instead of guessed at.
const FORM: u8 = 1;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    /// Only what is after it.
    pub after: Place,
    pub limit: usize,
    pub wait: Duration,
}

/// What a consumer has got.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Acknowledgement {
    /// Everything up to it,
    pub until: Option<Place>,
    /// and these.
    pub ids: Vec<MessageId>,
}

/// Reads the query of a pull.
pub(super) fn pull(query: Option<&str>, subscription: SubscriptionId) -> Result<Query, Problem> {
    let (mut after, mut limit, mut wait) = (None, None, None);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let is_first = match &*name {
            // As a shell script sends it that has none yet.
            "cursor" if value.is_empty() => after.replace(Place::START).is_none(),
            "cursor" => after.replace(read_cursor(&value, subscription)?).is_none(),
            "limit" => limit.replace(read_limit(&value)?).is_none(),
            "wait" => wait.replace(read_wait(&value)?).is_none(),
            _ => {
                return Err(invalid(
                    "InvalidQuery",
                    "the query parameters are limit, wait and cursor",
                ));
            }
        };
        if !is_first {
            let detail = format!("the query parameter {name} must occur once");
            return Err(invalid("InvalidQuery", detail));
        }
    }
    Ok(Query {
        after: after.unwrap_or(Place::START),
        limit: limit.unwrap_or(LIMIT),
        wait: wait.unwrap_or_default(),
    })
}

/// Reads the body of an acknowledgement.
pub(super) fn acknowledgement(body: &[u8], subscription: SubscriptionId) -> Result<Acknowledgement, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        cursor: Option<String>,
        ids: Option<Vec<String>>,
    }
    let refused = |detail: &str| invalid("InvalidAcknowledgement", detail);
    let written: Written = serde_json::from_slice(body).map_err(|_| {
        refused("the body must be JSON with the cursor of an answer, {\"cursor\": \"...\"}, or with ids, {\"ids\": [\"msg_...\"]}")
    })?;
    if written.cursor.is_none() && written.ids.is_none() {
        return Err(refused("the body must have cursor, ids or both"));
    }
    let ids = written.ids.unwrap_or_default();
    if ids.len() > LARGEST_LIMIT {
        return Err(refused("ids must hold at most 500 ids"));
    }
    let ids = ids.iter().map(|id| MessageId::parse(id)).collect::<Option<_>>();
    Ok(Acknowledgement {
        until: written
            .cursor
            .map(|cursor| read_cursor(&cursor, subscription))
            .transpose()?,
        ids: ids.ok_or_else(|| refused("ids must hold the ids of messages: msg_ and 13 characters"))?,
    })
}

/// The opaque word for a place among a subscription's messages.
pub(super) fn cursor(subscription: SubscriptionId, place: Place) -> String {
    let mut bytes = vec![FORM];
    bytes.extend_from_slice(&subscription.0.to_be_bytes());
    bytes.extend_from_slice(&place.due.0.to_be_bytes());
    bytes.extend_from_slice(&place.message.0.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(cursor: &str, subscription: SubscriptionId) -> Result<Place, Problem> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (form, rest) = bytes.split_first()?;
        let (of, rest) = rest.split_first_chunk::<4>()?;
        let (due, rest) = rest.split_first_chunk::<8>()?;
        let message = <[u8; 8]>::try_from(rest).ok()?;
        let is_meant = *form == FORM && u32::from_be_bytes(*of) == subscription.0;
        is_meant.then(|| Place {
            due: UnixMillis(i64::from_be_bytes(*due)),
            message: MessageId(i64::from_be_bytes(message)),
        })
    };
    read().ok_or_else(|| {
        let detail = "cursor must be the cursor of an answer to a pull from this subscription: to begin with the oldest \
                      message that is not acknowledged, leave it out";
        invalid("InvalidCursor", detail)
    })
}

fn read_limit(value: &str) -> Result<usize, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=LARGEST_LIMIT).contains(limit));
    limit.ok_or_else(|| {
        let detail = format!("limit must be a number from 1 to {LARGEST_LIMIT}");
        invalid("InvalidQuery", detail)
    })
}

fn read_wait(value: &str) -> Result<Duration, Problem> {
    let wait = ApiDuration::from(value).parse().ok();
    wait.filter(|wait| *wait <= LONGEST_WAIT)
        .ok_or_else(|| invalid("InvalidQuery", "wait must be a duration from 0s to 60s, as in 30s"))
}

fn invalid(reason: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, reason, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: SubscriptionId = SubscriptionId(7);
    const PLACE: Place = Place {
        due: UnixMillis(1_795_593_600_123),
        message: MessageId(0x0123_4567_89ab_cdef),
    };

    #[test]
    fn a_cursor_leads_back_to_its_place_in_its_own_subscription() {
        let cursor = cursor(OWN, PLACE);
        let query = pull(Some(&format!("limit=7&wait=30s&cursor={cursor}")), OWN).unwrap();
        let wanted = Query {
            after: PLACE,
            limit: 7,
            wait: Duration::from_secs(30),
        };
        assert_eq!(query, wanted);
        let read = acknowledgement(format!(r#"{{"cursor":"{cursor}"}}"#).as_bytes(), OWN).unwrap();
        assert_eq!((read.until, read.ids), (Some(PLACE), vec![]));
        let begin = Query {
            after: Place::START,
            limit: LIMIT,
            wait: Duration::ZERO,
        };
        assert_eq!(pull(None, OWN).unwrap(), begin);
        assert_eq!(pull(Some("cursor="), OWN).unwrap(), begin);
        assert_eq!(
            pull(Some(&format!("cursor={cursor}")), SubscriptionId(8))
                .unwrap_err()
                .reason,
            "InvalidCursor"
        );
    }

    #[test]
    fn ids_are_those_of_messages() {
        let id = PLACE.message.to_string();
        let read = acknowledgement(format!(r#"{{"ids":["{id}","{id}"]}}"#).as_bytes(), OWN).unwrap();
        assert_eq!((read.until, read.ids), (None, vec![PLACE.message; 2]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        let short = &cursor(OWN, PLACE)[1..];
        let mangled = format!("cursor={short}");
        for (query, says) in [
            ("limit=0", "from 1 to 500"),
            ("limit=501", "from 1 to 500"),
            ("wait=61s", "from 0s to 60s"),
            ("wait=30", "as in 30s"),
            (&*mangled, "leave it out"),
            ("cursor=latest", "leave it out"),
            ("timeout=3s", "limit, wait and cursor"),
            ("wait=1s&wait=2s", "must occur once"),
        ] {
            let problem = pull(Some(query), OWN).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(says), "{query}: {}", problem.detail);
        }
        let many = format!(
            r#"{{"ids":[{}]}}"#,
            vec![format!("\"{}\"", PLACE.message); 501].join(",")
        );
        for (body, says) in [
            ("", "must be JSON"),
            ("[]", "must be JSON"),
            ("{}", "cursor, ids or both"),
            (r#"{"id":"msg_1"}"#, "must be JSON"),
            (r#"{"ids":["lead-1"]}"#, "msg_ and 13 characters"),
            (r#"{"cursor":"lead-1"}"#, "leave it out"),
            (&*many, "at most 500"),
        ] {
            let problem = acknowledgement(body.as_bytes(), OWN).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(says), "{body}: {}", problem.detail);
        }
    }
}
