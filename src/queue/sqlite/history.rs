//! Looking at what is kept: bounded walks over all messages, on a thread of its own.
//!
//! Messages lie in three tables by the same key, and none of them is indexed by endpoint but the dead letters: an index on
//! history would cost the happy path more than everything else it does. So a look walks, newest first, and stops when its
//! budget is spent. Invariant: a snapshot is held for one budget, and the thread rests as long as it read, so that the WAL
//! can always be folded back.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Row, Rows, params};

use crate::event::format;
use crate::ids::{EventId, MessageId, SubscriptionId, UnixMillis};
use crate::queue::{Kept, KeptAttempt, MessageState, Page, Search, Standing};

/// What one look may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) rows: usize,
    pub(super) time: Duration,
}

/// A longer look grew the WAL without end in measurements (170 MiB in 6 s).
pub(super) const LOOK: Budget = Budget {
    rows: super::reader::ROWS,
    time: Duration::from_millis(100),
};

/// The last second that an id can say.
const LAST_SECOND: i64 = i64::MAX >> (EventId::SEQUENCE_BITS + MessageId::ORDINAL_BITS);

/// A row of one of the three tables.
struct Found {
    message: MessageId,
    endpoint: u32,
    subscription: u32,
    attempts: u16,
    standing: Standing,
}

/// Names by id: what of the namespace is meant.
struct Names {
    endpoints: HashMap<u32, String>,
    subscriptions: HashMap<u32, String>,
}

impl Names {
    fn of(conn: &Connection, search: &Search) -> rusqlite::Result<Names> {
        let ns = &search.namespace_uid;
        Ok(Names {
            endpoints: names(conn, "endpoint", ns, search.endpoint.as_deref())?,
            subscriptions: names(conn, "subscription", ns, search.subscription.as_deref())?,
        })
    }

    fn kept(&self, found: Found) -> Option<Kept> {
        Some(Kept {
            message: found.message,
            endpoint: self.endpoints.get(&found.endpoint)?.clone(),
            subscription: self.subscriptions.get(&found.subscription)?.clone(),
            subscription_id: SubscriptionId(found.subscription),
            attempts: found.attempts,
            standing: found.standing,
            attributes: bytes::Bytes::new(),
        })
    }
}

fn names(conn: &Connection, table: &str, ns: &str, name: Option<&str>) -> rusqlite::Result<HashMap<u32, String>> {
    let sql = format!("SELECT id, name FROM {table} WHERE ns = ?1 AND (?2 IS NULL OR name = ?2)");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params![ns, name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// One look: messages older than `before`, newest first, at most `limit`.
pub(super) fn list(
    conn: &Connection,
    search: &Search,
    before: Option<MessageId>,
    limit: usize,
    budget: Budget,
) -> rusqlite::Result<Page> {
    let mut page = Page {
        found: Vec::new(),
        go_on: None,
    };
    let names = Names::of(conn, search)?;
    if names.endpoints.is_empty() || names.subscriptions.is_empty() {
        return Ok(page);
    }
    let started = Instant::now();
    // All tables as of one moment: a message that is settled meanwhile is found once.
    let snapshot = conn.unchecked_transaction()?;
    let (low, high) = range(search.from, search.until);
    let high = before.map_or(high, |before| high.min(before.0));
    let mut statements = Vec::new();
    let wanted = MessageState::ALL
        .into_iter()
        .filter(|state| search.state.is_none_or(|one| one == *state));
    for state in wanted {
        statements.push((state, snapshot.prepare_cached(newest_first(state))?));
    }
    let mut walks = Vec::new();
    for (state, statement) in &mut statements {
        walks.push(Walk::begin(*state, statement.query(params![low, high])?)?);
    }
    let mut attributes = snapshot.prepare_cached("SELECT attrs FROM event WHERE id = ?")?;
    let mut last: Option<(EventId, bytes::Bytes)> = None;
    let mut rows = 0;
    while let Some(newest) = walks
        .iter_mut()
        .filter(|walk| walk.head.is_some())
        .max_by_key(|walk| walk.at())
    {
        let Some(found) = newest.take()? else { break };
        let message = found.message;
        rows += 1;
        if let Some(mut kept) = names.kept(found) {
            let event = message.event();
            if last.as_ref().is_none_or(|(known, _)| *known != event) {
                rows += 1;
                let read: Option<Vec<u8>> = attributes.query_row([event.0], |row| row.get(0)).optional()?;
                last = Some((event, read.unwrap_or_default().into()));
            }
            if let Some((_, attributes)) = &last
                && format::is_of(attributes, search.event_type.as_deref(), search.event_id.as_deref())
            {
                kept.attributes = attributes.clone();
                page.found.push(kept);
            }
        }
        let spent = rows >= budget.rows || started.elapsed() >= budget.time;
        if page.found.len() >= limit || spent {
            page.go_on = walks.iter().any(|walk| walk.head.is_some()).then_some(message);
            break;
        }
    }
    Ok(page)
}

/// Ids of what was accepted then: from the first on, and below the second.
pub(super) fn range(from: Option<UnixMillis>, until: Option<UnixMillis>) -> (i64, i64) {
    let second = |at: UnixMillis, more: i64| {
        let seconds = at.0.div_euclid(1000).clamp(0, LAST_SECOND - 1) + more;
        MessageId::new(EventId(seconds << EventId::SEQUENCE_BITS), 0).0
    };
    let low = from.map_or(0, |from| second(from, 0));
    let high = until.map_or(i64::MAX, |until| second(until, 1));
    (low, high)
}

fn newest_first(state: MessageState) -> &'static str {
    match state {
        MessageState::Pending => {
            "SELECT id, ep, sub, attempt, due FROM message WHERE id >= ? AND id < ? ORDER BY id DESC"
        }
        MessageState::Delivered => {
            "SELECT id, ep, sub, attempts, at, code, ms FROM settled WHERE id >= ? AND id < ? ORDER BY id DESC"
        }
        MessageState::Dead => {
            "SELECT id, ep, sub, attempts, at, reason FROM dead WHERE id >= ? AND id < ? ORDER BY id DESC"
        }
    }
}

/// One table's rows, the next of them read already.
struct Walk<'s> {
    state: MessageState,
    rows: Rows<'s>,
    head: Option<Found>,
}

impl<'s> Walk<'s> {
    fn begin(state: MessageState, rows: Rows<'s>) -> rusqlite::Result<Walk<'s>> {
        let mut walk = Walk {
            state,
            rows,
            head: None,
        };
        walk.take()?;
        Ok(walk)
    }

    fn at(&self) -> Option<MessageId> {
        self.head.as_ref().map(|found| found.message)
    }

    fn take(&mut self) -> rusqlite::Result<Option<Found>> {
        let next = match self.rows.next()? {
            Some(row) => Some(found(self.state, row)?),
            None => None,
        };
        Ok(std::mem::replace(&mut self.head, next))
    }
}

fn found(state: MessageState, row: &Row<'_>) -> rusqlite::Result<Found> {
    let at = UnixMillis(row.get(4)?);
    Ok(Found {
        message: MessageId(row.get(0)?),
        endpoint: row.get(1)?,
        subscription: row.get(2)?,
        attempts: row.get(3)?,
        standing: match state {
            MessageState::Pending => Standing::Pending { due: at },
            MessageState::Delivered => Standing::Delivered {
                at,
                status: row.get(5)?,
                took: row.get::<_, Option<i64>>(6)?.map(millis),
            },
            MessageState::Dead => Standing::Dead {
                at,
                reason: row.get(5)?,
            },
        },
    })
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

/// One message of the namespace, whatever its state.
pub(super) fn get(conn: &Connection, namespace_uid: &str, message: MessageId) -> rusqlite::Result<Option<Kept>> {
    let search = Search {
        namespace_uid: namespace_uid.to_owned(),
        ..Search::default()
    };
    let one = Some(MessageId(message.0.saturating_add(1)));
    let page = list(conn, &search, one, 1, Budget { rows: 1, ..LOOK })?;
    Ok(page.found.into_iter().find(|kept| kept.message == message))
}

/// The failures kept of a message, oldest first.
pub(super) fn attempts(conn: &Connection, message: MessageId) -> rusqlite::Result<Vec<KeptAttempt>> {
    let mut statement =
        conn.prepare_cached("SELECT n, at, ms, code, reason, excerpt FROM attempt WHERE message = ? ORDER BY at, n")?;
    let rows = statement.query_map([message.0], |row| {
        Ok(KeptAttempt {
            number: row.get(0)?,
            at: UnixMillis(row.get(1)?),
            took: millis(row.get(2)?),
            status: row.get(3)?,
            reason: row.get(4)?,
            excerpt: row.get::<_, Option<Vec<u8>>>(5)?.map(bytes::Bytes::from),
        })
    })?;
    rows.collect()
}
