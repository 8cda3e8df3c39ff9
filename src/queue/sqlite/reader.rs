//! Reading beside the writer: two threads with connections of their own, and the questions they answer.
//!
//! Invariant: a reader never writes, and holds a snapshot only as long as a bounded number of rows takes, so that the WAL
//! can be folded back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use super::order::{FRESH, HELD};
use super::tally::{Counts, Pair};
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::{
    Backlog, Given, HeldPage, HeldPosition, Pending, Pull, QueueError, ResourceKey, StoredEvent, Window,
};

/// Threads that read: one may scan while the other loads bodies.
pub(super) const READERS: usize = 2;
/// Questions that may wait; beyond it a caller waits a moment to ask.
const WAITING: usize = 1_024;
/// Rows walked in one snapshot.
pub(super) const ROWS: usize = 200_000;

type Question = Box<dyn FnOnce(&Connection) + Send>;

/// Where questions are put.
#[derive(Clone)]
pub(super) struct Readers {
    questions: mpsc::SyncSender<Question>,
}

/// Where the reading threads take them.
pub(super) type Questions = Arc<Mutex<mpsc::Receiver<Question>>>;

impl Readers {
    pub(super) fn new() -> (Readers, Questions) {
        let (questions, taken) = mpsc::sync_channel(WAITING);
        (Readers { questions }, Arc::new(Mutex::new(taken)))
    }

    /// Asks, and waits for the answer. Meanwhile it could ask no more, so that a question nobody waits for any more does not
    /// keep the threads from ending.
    pub(super) async fn ask<T, F>(self, read: F) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let mut question: Question = Box::new(move |conn| {
            // Who asked may have gone: his question costs nothing then.
            if !reply.is_closed() {
                let _ = reply.send(answer_to(read, conn));
            }
        });
        loop {
            question = match self.questions.try_send(question) {
                Ok(()) => break,
                Err(mpsc::TrySendError::Full(back)) => back,
                Err(mpsc::TrySendError::Disconnected(_)) => return Err(QueueError::Closed),
            };
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(self);
        answer.await.unwrap_or(Err(QueueError::Closed))
    }
}

/// A panic is this question's error. Its thread goes on: a reader has nothing that could be left half changed, and ended by
/// one message that it cannot read it would answer nothing any more, or the process end again after each restart.
fn answer_to<T>(read: impl FnOnce(&Connection) -> rusqlite::Result<T>, conn: &Connection) -> Result<T, QueueError> {
    match catch_unwind(AssertUnwindSafe(|| read(conn))) {
        Ok(result) => result.map_err(|error| QueueError::Read(error.to_string())),
        Err(_panic) => {
            tracing::error!("a reader of the store panicked; it goes on with the next question");
            Err(QueueError::Read("the reader panicked".to_owned()))
        }
    }
}

/// Whether a reading thread rests after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    Never,
    /// So that also under constant questions half of the time no snapshot is held, and the WAL can start over.
    AsLongAsItRead,
}

/// A reading thread: ends when nobody can ask any more.
pub(super) fn thread(conn: &Connection, questions: &Questions, rest: Rest) {
    loop {
        let next = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(question) => {
                let started = Instant::now();
                question(conn);
                if rest == Rest::AsLongAsItRead {
                    std::thread::sleep(started.elapsed());
                }
            }
            Err(mpsc::RecvError) => return,
        }
    }
}

pub(super) fn event(conn: &Connection, event: EventId) -> rusqlite::Result<Option<StoredEvent>> {
    let mut statement = conn.prepare_cached("SELECT attrs, body FROM event WHERE id = ?")?;
    statement
        .query_row([event.0], |row| {
            Ok(StoredEvent {
                attributes: row.get::<_, Vec<u8>>(0)?.into(),
                body: row.get::<_, Vec<u8>>(1)?.into(),
            })
        })
        .optional()
}

pub(super) fn window(conn: &Connection, window: &Window) -> rusqlite::Result<Vec<Pending>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, attempt, due, again FROM message WHERE state = 1 AND ep = ?1 AND sub = ?2 AND due >= ?3 AND due <= ?4
             AND (due > ?3 OR id > ?5)
         ORDER BY due, id LIMIT ?6",
    )?;
    let (due, after) = window.after.unwrap_or((UnixMillis(i64::MIN), MessageId(i64::MIN)));
    let limit = i64::try_from(window.limit).unwrap_or(i64::MAX);
    let parameters = params![
        window.endpoint.0,
        window.subscription.0,
        due.0,
        window.until.0,
        after.0,
        limit
    ];
    statement
        .query_map(parameters, |row| {
            Ok(Pending {
                message: MessageId(row.get(0)?),
                endpoint: window.endpoint,
                subscription: window.subscription,
                attempts: row.get(1)?,
                due: UnixMillis(row.get(2)?),
                again: row.get::<_, Option<i64>>(3)?.map(UnixMillis),
            })
        })?
        .collect()
}

pub(super) fn pull(conn: &Connection, pull: &Pull) -> rusqlite::Result<Given> {
    // In this order: the index has the messages in theirs.
    let mut statement = conn.prepare_cached(
        "SELECT m.id, m.attempt, m.due, m.again, e.attrs, e.body
         FROM message m CROSS JOIN event e ON e.id = m.id >> ?6
         WHERE m.state = 1 AND m.ep = ?1 AND m.sub = ?2 AND m.due >= ?3 AND (m.due > ?3 OR m.id > ?4)
         ORDER BY m.due, m.id LIMIT ?5",
    )?;
    let limit = i64::try_from(pull.limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = statement.query(params![
        pull.endpoint.0,
        pull.subscription.0,
        pull.after.due.0,
        pull.after.message.0,
        limit,
        MessageId::ORDINAL_BITS
    ])?;
    let mut given = Given {
        messages: Vec::new(),
        more: false,
    };
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let event = StoredEvent {
            attributes: row.get::<_, Vec<u8>>(4)?.into(),
            body: row.get::<_, Vec<u8>>(5)?.into(),
        };
        bytes += event.size();
        if given.messages.len() == pull.limit || (bytes > pull.bytes && !given.messages.is_empty()) {
            given.more = true;
            break;
        }
        let pending = Pending {
            message: MessageId(row.get(0)?),
            endpoint: pull.endpoint,
            subscription: pull.subscription,
            attempts: row.get(1)?,
            due: UnixMillis(row.get(2)?),
            again: row.get::<_, Option<i64>>(3)?.map(UnixMillis),
        };
        given.messages.push((pending, Arc::new(event)));
    }
    Ok(given)
}

/// What a bounded walk over the messages found, and where to go on.
pub(super) struct Walk<T> {
    pub(super) found: Vec<T>,
    pub(super) go_on: Option<MessageId>,
}

/// Walks messages after `after` in id order; `pick` says which count.
fn walk<T>(
    conn: &Connection,
    after: MessageId,
    limit: usize,
    mut pick: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
) -> rusqlite::Result<Walk<T>> {
    let mut statement =
        conn.prepare_cached("SELECT id, ep, sub, state, attempt, due, again FROM message WHERE id > ? ORDER BY id")?;
    let mut rows = statement.query([after.0])?;
    let mut found = Vec::new();
    let mut walked = 0;
    while let Some(row) = rows.next()? {
        walked += 1;
        if let Some(one) = pick(row)? {
            found.push(one);
        }
        if walked == ROWS || found.len() >= limit {
            return Ok(Walk {
                found,
                go_on: Some(MessageId(row.get(0)?)),
            });
        }
    }
    Ok(Walk { found, go_on: None })
}

fn pending(row: &rusqlite::Row<'_>) -> rusqlite::Result<Pending> {
    Ok(Pending {
        message: MessageId(row.get(0)?),
        endpoint: EndpointId(row.get(1)?),
        subscription: SubscriptionId(row.get(2)?),
        attempts: row.get(4)?,
        due: UnixMillis(row.get(5)?),
        again: row.get::<_, Option<i64>>(6)?.map(UnixMillis),
    })
}

pub(super) fn fresh(conn: &Connection, after: MessageId, limit: usize) -> rusqlite::Result<Walk<Pending>> {
    walk(conn, after, limit, |row| {
        if row.get::<_, i64>(3)? == FRESH {
            pending(row).map(Some)
        } else {
            Ok(None)
        }
    })
}

/// Walks what of an endpoint has an order, in the index alone: what is held of a key behind a message, and later keys.
/// In two parts, for SQLite does not begin in the middle of a key.
pub(super) const ORDERED: &str = "
    SELECT okey, state, id FROM message WHERE ep = ?1 AND okey = ?2 AND state = 2 AND id > ?3
    UNION ALL SELECT okey, state, id FROM message WHERE ep = ?1 AND okey > ?2 ORDER BY okey, state, id";

/// Messages of an endpoint held behind others, with ids before one.
pub(super) fn held(
    conn: &Connection,
    endpoint: EndpointId,
    after: Option<HeldPosition>,
    before: MessageId,
    limit: usize,
) -> rusqlite::Result<HeldPage> {
    const START: (OrderKey, MessageId) = (OrderKey(i64::MIN), MessageId(i64::MIN));
    let (key, message) = after.map_or(START, |after| (after.key, after.message));
    let mut ordered = conn.prepare_cached(ORDERED)?;
    let mut whole = conn.prepare_cached("SELECT id, ep, sub, state, attempt, due, again FROM message WHERE id = ?")?;
    let mut rows = ordered.query(params![endpoint.0, key.0, message.0])?;
    let mut messages = Vec::new();
    let mut walked = 0;
    while let Some(row) = rows.next()? {
        walked += 1;
        let is_held = row.get::<_, i64>(1)? == HELD;
        let message = MessageId(row.get(2)?);
        if is_held && message < before {
            messages.push(whole.query_row([message.0], pending)?);
        }
        if walked == ROWS || messages.len() >= limit {
            let go_on = HeldPosition {
                key: OrderKey(row.get(0)?),
                message: if is_held { message } else { START.1 },
            };
            return Ok(HeldPage {
                messages,
                go_on: Some(go_on),
            });
        }
    }
    Ok(HeldPage { messages, go_on: None })
}

pub(super) fn to_bury(
    conn: &Connection,
    after: MessageId,
    endpoint: Option<EndpointId>,
    subscription: Option<SubscriptionId>,
    limit: usize,
) -> rusqlite::Result<Walk<(MessageId, Pair, u16)>> {
    walk(conn, after, limit, |row| {
        let one = pending(row)?;
        let meant = endpoint.is_none_or(|wanted| wanted == one.endpoint)
            && subscription.is_none_or(|wanted| wanted == one.subscription);
        Ok(meant.then_some((one.message, (one.endpoint, one.subscription), one.attempts)))
    })
}

/// One pair's backlog; the oldest is looked for from where it was known last, so the walk moves forward only.
pub(super) fn backlog(conn: &Connection, pair: Pair, counts: Counts) -> rusqlite::Result<Backlog> {
    let (endpoint, subscription) = pair;
    let mut statement = conn.prepare_cached("SELECT min(due) FROM message WHERE state = 1 AND ep = ? AND sub = ?")?;
    let min_due: Option<i64> = statement.query_row([endpoint.0, subscription.0], |row| row.get(0))?;
    let oldest = match counts.oldest {
        Some(known) => {
            let walked = to_bury(conn, MessageId(known.0 - 1), Some(endpoint), Some(subscription), 1)?;
            walked.found.first().map(|(message, ..)| *message).or(walked.go_on)
        }
        None => None,
    };
    Ok(Backlog {
        endpoint,
        subscription,
        pending: counts.pending,
        dead: counts.dead,
        held: counts.held,
        blocking: counts.blocking,
        min_due: min_due.map(UnixMillis),
        oldest,
    })
}

pub(super) fn resources(conn: &Connection, sql: &str) -> rusqlite::Result<Vec<(ResourceKey, u32)>> {
    conn.prepare(sql)?
        .query_map([], |row| {
            Ok((
                ResourceKey {
                    namespace_uid: row.get(1)?,
                    name: row.get(2)?,
                },
                row.get(0)?,
            ))
        })?
        .collect()
}

pub(super) fn states(conn: &Connection) -> rusqlite::Result<Vec<(EndpointId, bytes::Bytes)>> {
    conn.prepare("SELECT ep, state FROM endpoint_state")?
        .query_map([], |row| {
            Ok((EndpointId(row.get(0)?), row.get::<_, Vec<u8>>(1)?.into()))
        })?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_that_panics_in_the_middle_is_an_error_and_the_next_one_is_answered() {
        let (readers, questions) = Readers::new();
        let thread = std::thread::spawn(move || {
            let conn = Connection::open_in_memory().expect("a database");
            thread(&conn, &questions, Rest::AsLongAsItRead);
        });
        let panics = |conn: &Connection| {
            let snapshot = conn.unchecked_transaction()?;
            let mut numbers = snapshot.prepare_cached("SELECT 1 UNION ALL SELECT 2")?;
            numbers.query_row([], |_| -> rusqlite::Result<i64> { panic!("a row that cannot be") })
        };
        let failed = readers.clone().ask(panics).await;
        assert!(matches!(failed, Err(QueueError::Read(_))), "{failed:?}");
        let next = readers.clone().ask(|conn| {
            assert!(conn.is_autocommit(), "its snapshot is held no longer");
            let snapshot = conn.unchecked_transaction()?;
            snapshot.query_row("SELECT 3", [], |row| row.get::<_, i64>(0))
        });
        assert_eq!(next.await.expect("answered"), 3);
        drop(readers);
        thread.join().expect("it ended by itself");
    }
}
