//! What a listing is asked for: filters, a limit, and where to go on. Pure.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;

use crate::ids::{MessageId, UnixMillis};
use crate::ingest::problem::Problem;
use crate::queue::{MessageState, Search};

/// Messages of a page unless asked otherwise.
const LIMIT: usize = 100;
/// The most messages of a page: their attributes are at most 1 MiB or so.
const LARGEST_LIMIT: usize = 500;
/// The form of a token: another one is refused instead of guessed at.
const TOKEN: &[u8] = b"1";

/// One look at a namespace's messages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub search: Search,
    pub before: Option<MessageId>,
    pub limit: usize,
}

/// Reads the query of a listing.
pub(super) fn parse(query: Option<&str>, namespace_uid: &str) -> Result<Query, Problem> {
    let mut read = Query {
        search: Search {
            namespace_uid: namespace_uid.to_owned(),
            ..Search::default()
        },
        before: None,
        limit: LIMIT,
    };
    let mut seen: Vec<Cow<'_, str>> = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if seen.contains(&name) {
            return Err(refused(format!("the query parameter {name} must occur once")));
        }
        let search = &mut read.search;
        match &*name {
            "state" => search.state = Some(state(&value)?),
            "endpoint" => search.endpoint = Some(value.into_owned()),
            "subscription" => search.subscription = Some(value.into_owned()),
            "type" => search.event_type = Some(value.into_owned()),
            "id" => search.event_id = Some(value.into_owned()),
            "from" => search.from = Some(time(&name, &value)?),
            "until" => search.until = Some(time(&name, &value)?),
            "limit" => read.limit = limit(&value)?,
            "continue" => read.before = Some(position(&value)?),
            _ => {
                return Err(refused(
                    "the query parameters are state, endpoint, subscription, type, id, from, until, limit and continue",
                ));
            }
        }
        seen.push(name);
    }
    Ok(read)
}

/// Where a look takes no query.
pub(super) fn none(query: Option<&str>) -> Result<(), Problem> {
    match query.unwrap_or_default() {
        "" => Ok(()),
        _ => Err(refused("one message takes no query parameter")),
    }
}

/// The opaque word for where a listing goes on.
pub(super) fn token(before: MessageId) -> String {
    let mut bytes = TOKEN.to_vec();
    bytes.extend_from_slice(&before.0.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn position(token: &str) -> Result<MessageId, Problem> {
    let decoded = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    let id = decoded.strip_prefix(TOKEN).and_then(|id| <[u8; 8]>::try_from(id).ok());
    id.map(|id| MessageId(i64::from_be_bytes(id)))
        .ok_or_else(|| refused("continue must be the token of the page before"))
}

fn state(value: &str) -> Result<MessageState, Problem> {
    let found = MessageState::ALL.into_iter().find(|state| state.word() == value);
    found.ok_or_else(|| refused("state must be pending, delivered or dead"))
}

fn time(name: &str, value: &str) -> Result<UnixMillis, Problem> {
    match value.parse::<jiff::Timestamp>() {
        Ok(time) => Ok(UnixMillis(time.as_millisecond())),
        Err(_) => Err(refused(format!("{name} must be a time as in 2026-11-25T08:00:00Z"))),
    }
}

fn limit(value: &str) -> Result<usize, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=LARGEST_LIMIT).contains(limit));
    limit.ok_or_else(|| refused(format!("limit must be a number from 1 to {LARGEST_LIMIT}")))
}

fn refused(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "InvalidQuery", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_is_read_and_a_token_leads_back_to_its_place() {
        let before = MessageId(0x0123_4567_89ab_cdef);
        let query = format!(
            "state=dead&endpoint=crm&subscription=leads&type=lead.%2B&id=a+b&from=2026-11-25T08:00:00Z\
             &until=2026-11-25T09:00:00.5%2B01:00&limit=7&continue={}",
            token(before)
        );
        let eight = 1_795_593_600_000;
        let wanted = Query {
            search: Search {
                namespace_uid: "u".into(),
                endpoint: Some("crm".into()),
                subscription: Some("leads".into()),
                state: Some(MessageState::Dead),
                event_type: Some("lead.+".into()),
                event_id: Some("a b".into()),
                from: Some(UnixMillis(eight)),
                until: Some(UnixMillis(eight + 500)),
            },
            before: Some(before),
            limit: 7,
        };
        assert_eq!(parse(Some(&query), "u"), Ok(wanted));
        assert_eq!(parse(None, "u").unwrap().limit, LIMIT);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (query, says) in [
            ("state=lost", "pending, delivered or dead"),
            ("limit=0", "from 1 to 500"),
            ("limit=501", "from 1 to 500"),
            ("from=yesterday", "2026-11-25T08:00:00Z"),
            ("continue=abc", "the token of the page before"),
            ("continue=", "the token of the page before"),
            ("phase=dead", "state, endpoint"),
            ("state=dead&state=pending", "must occur once"),
        ] {
            let problem = parse(Some(query), "u").unwrap_err();
            assert_eq!(
                (problem.status, problem.reason),
                (StatusCode::BAD_REQUEST, "InvalidQuery")
            );
            assert!(problem.detail.contains(says), "{query}: {}", problem.detail);
        }
        assert!(none(Some("")).is_ok() && none(Some("limit=1")).is_err());
    }
}
