//! Replays: walking over what is settled, oldest first, and making it pending again.
//!
//! A step looks on the thread for history, then moves what it found in one transaction, together with the replay's own row.
//! What was settled when a replay began is meant, by whatever clock it was. While the clock is behind one that was ahead,
//! that is also what is settled later of the events that were there.
//! Invariant: a step that finds the row where it did not leave it changes nothing, so that no message is moved twice.

use std::time::Instant;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::history::{Budget, range};
use super::order::{HELD, WAITING};
use super::transaction::{Refusal, Transaction};
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::{Phase, Progress, ReplayStep, Selection, SentAgain};

const COLUMNS: &str = "id, began, phase, cursor, matched, sent, succeeded, failed, until, last";

/// A replay's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    id: i64,
    cursor: MessageId,
    /// What was settled before is meant,
    until: UnixMillis,
    /// of events up to this one.
    last: EventId,
    progress: Progress,
}

impl Ticket {
    /// Where one starts that begins now, when everything was settled before `settled`, of events up to `last`.
    pub(super) fn new(now: UnixMillis, settled: UnixMillis, last: EventId) -> Ticket {
        Ticket {
            id: 0,
            cursor: MessageId(0),
            // What is settled in this millisecond may be its own.
            until: if settled.0 > now.0 + 1 { settled } else { now },
            last,
            progress: Progress {
                began: now,
                phase: Phase::Counting,
                matched: 0,
                sent: 0,
                succeeded: 0,
                failed: 0,
            },
        }
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Ticket> {
        let count = |at: usize| {
            row.get::<_, i64>(at)
                .map(|count| u64::try_from(count).unwrap_or_default())
        };
        Ok(Ticket {
            id: row.get(0)?,
            cursor: MessageId(row.get(3)?),
            until: UnixMillis(row.get(8)?),
            last: EventId(row.get(9)?),
            progress: Progress {
                began: UnixMillis(row.get(1)?),
                phase: match row.get::<_, i64>(2)? {
                    0 => Phase::Counting,
                    1 => Phase::Sending,
                    _ => Phase::Sent,
                },
                matched: count(4)?,
                sent: count(5)?,
                succeeded: count(6)?,
                failed: count(7)?,
            },
        })
    }

    fn find(conn: &Connection, ticket: &str) -> rusqlite::Result<Option<Ticket>> {
        let mut find = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM replay WHERE ticket = ?"))?;
        find.query_row([ticket], Ticket::read).optional()
    }
}

/// Every replay that is known, by ticket.
pub(super) fn all(conn: &Connection) -> rusqlite::Result<Vec<(String, Progress)>> {
    let mut all = conn.prepare_cached(&format!("SELECT {COLUMNS}, ticket FROM replay ORDER BY id"))?;
    let rows = all.query_map([], |row| Ok((row.get(10)?, Ticket::read(row)?.progress)))?;
    rows.collect()
}

/// What a look found, from where, and where the next one goes on.
pub(super) struct Looked {
    from: Ticket,
    found: Vec<SentAgain>,
    cursor: MessageId,
    finished: bool,
}

impl Looked {
    /// What there is to tell where nothing is to be written.
    pub(super) fn unmoved(&self) -> Option<Progress> {
        let moves = self.from.id == 0 || self.finished || self.cursor != self.from.cursor || !self.found.is_empty();
        (!moves).then_some(self.from.progress)
    }
}

/// Looks from where the replay is, or begins as `new`, for one budget; while it sends, for at most `limit` messages.
pub(super) fn look(
    conn: &Connection,
    ticket: &str,
    selection: &Selection,
    limit: usize,
    new: Ticket,
    budget: Budget,
) -> rusqlite::Result<Looked> {
    let from = Ticket::find(conn, ticket)?.unwrap_or(new);
    let limit = match from.progress.phase {
        Phase::Counting => usize::MAX,
        Phase::Sending => limit,
        Phase::Sent => 0,
    };
    let mut looked = Looked {
        from,
        found: Vec::new(),
        cursor: from.cursor,
        finished: false,
    };
    if limit > 0 {
        match &selection.ids {
            Some(ids) => {
                let ids = ids.range(MessageId(from.cursor.0 + 1)..);
                let ids = ids.take_while(|id| id.event() <= from.last).map(|id| (id.0, id.0 + 1));
                walk(conn, selection, ids, limit, budget, &mut looked)?;
            }
            None => {
                let (low, high) = range(selection.from, selection.until);
                let end = MessageId::new(EventId(from.last.0 + 1), 0);
                let all = (low.max(from.cursor.0 + 1), high.min(end.0));
                walk(conn, selection, std::iter::once(all), limit, budget, &mut looked)?;
            }
        }
    }
    Ok(looked)
}

/// Walks ranges of ids in order: from the first on, and below the second.
fn walk(
    conn: &Connection,
    selection: &Selection,
    ranges: impl Iterator<Item = (i64, i64)>,
    limit: usize,
    budget: Budget,
    looked: &mut Looked,
) -> rusqlite::Result<()> {
    let started = Instant::now();
    let until = looked.from.until;
    let snapshot = conn.unchecked_transaction()?;
    // Whether a message is dead or delivered: it is in one table only. `at`: what was settled since is not meant.
    let mut settled = snapshot.prepare_cached(
        "SELECT id, ep, sub, at, 1 FROM dead WHERE id >= ?1 AND id < ?2
         UNION ALL SELECT id, ep, sub, at, 0 FROM settled WHERE id >= ?1 AND id < ?2 ORDER BY id",
    )?;
    let mut rows = 0;
    for (low, high) in ranges {
        let mut walked = settled.query(params![low, high])?;
        while let Some(row) = walked.next()? {
            rows += 1;
            let one = SentAgain {
                message: MessageId(row.get(0)?),
                endpoint: EndpointId(row.get(1)?),
                subscription: SubscriptionId(row.get(2)?),
                was_dead: row.get(4)?,
                unblocks: false,
                held: false,
                pulled: false,
            };
            looked.cursor = one.message;
            let is_meant = match one.was_dead {
                true => selection.dead,
                false => selection.delivered,
            };
            if is_meant
                && row.get::<_, i64>(3)? < until.0
                && selection.endpoints.contains(&one.endpoint)
                && selection.subscriptions.contains(&one.subscription)
                && selection.ids.as_ref().is_none_or(|ids| ids.contains(&one.message))
            {
                looked.found.push(SentAgain {
                    pulled: selection.pulled.contains(&one.endpoint),
                    ..one
                });
            }
            if looked.found.len() >= limit || rows >= budget.rows || started.elapsed() >= budget.time {
                return Ok(());
            }
        }
    }
    looked.finished = true;
    Ok(())
}

impl Transaction<'_, '_> {
    /// Takes a look's findings over, unless the replay has moved since.
    pub(super) fn replay(&mut self, ticket: &str, looked: &Looked) -> Result<ReplayStep, Refusal> {
        let mut sent = Vec::new();
        let known = match Ticket::find(self.conn(), ticket)? {
            Some(known) => known,
            None => {
                let new = looked.from;
                let mut begin = self.conn().prepare_cached(
                    "INSERT INTO replay(ticket, began, until, last, phase, cursor, matched, sent, succeeded, failed)
                     VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, 0)",
                )?;
                begin.execute(params![ticket, new.progress.began.0, new.until.0, new.last.0])?;
                Ticket {
                    id: self.conn().last_insert_rowid(),
                    until: new.until,
                    ..Ticket::new(new.progress.began, new.until, new.last)
                }
            }
        };
        let mut progress = known.progress;
        let moved = (known.cursor, known.progress.phase) != (looked.from.cursor, looked.from.progress.phase);
        if moved || progress.began != looked.from.progress.began {
            return Ok(ReplayStep { progress, sent });
        }
        let (next, cursor) = match (progress.phase, looked.finished) {
            (Phase::Counting, true) => (Phase::Sending, MessageId(0)),
            (Phase::Sending, true) => (Phase::Sent, looked.cursor),
            (phase, _) => (phase, looked.cursor),
        };
        match progress.phase {
            Phase::Counting => progress.matched += looked.found.len() as u64,
            Phase::Sending => {
                for one in &looked.found {
                    sent.extend(self.send_again(known.id, *one)?);
                }
                progress.sent += sent.len() as u64;
            }
            Phase::Sent => {}
        }
        progress.phase = next;
        let mut update = self
            .conn()
            .prepare_cached("UPDATE replay SET phase = ?, cursor = ?, matched = ?, sent = ? WHERE id = ?")?;
        update.execute(params![
            progress.phase as i64,
            cursor.0,
            progress.matched as i64,
            progress.sent as i64,
            known.id
        ])?;
        Ok(ReplayStep { progress, sent })
    }

    /// Makes a settled message pending, with all its attempts before it and in the order it had. None: it is settled no
    /// longer.
    fn send_again(&mut self, replay: i64, mut one: SentAgain) -> rusqlite::Result<Option<SentAgain>> {
        let pair = (one.endpoint, one.subscription);
        let take = match one.was_dead {
            true => "DELETE FROM dead WHERE id = ? RETURNING okey, blocks",
            false => "DELETE FROM settled WHERE id = ? RETURNING okey, 0",
        };
        let mut take = self.conn().prepare_cached(take)?;
        let taken = take
            .query_row([one.message.0], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get(1)?)))
            .optional()?;
        let Some((order, unblocks)) = taken else {
            return Ok(None);
        };
        let mut size = self
            .conn()
            .prepare_cached("SELECT length(attrs) + length(body) FROM event WHERE id = ?")?;
        let bytes: u32 = size.query_row([one.message.event().0], |row| row.get(0))?;
        let due = match one.pulled {
            true => self.place()?,
            false => self.now,
        };
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO message(id, sub, ep, state, attempt, due, bytes, okey, replay, again)
             VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?)",
        )?;
        insert.execute(params![
            one.message.0,
            one.subscription.0,
            one.endpoint.0,
            if order.is_some() { HELD } else { WAITING },
            due.0,
            bytes,
            order,
            replay,
            self.now.0
        ])?;
        self.effects.stored.push((pair, one.message, bytes));
        if one.was_dead {
            self.effects.buried.push((pair, -1, bytes));
        }
        if let Some(key) = order {
            self.effects.ordered.push((pair, 1, -i64::from(unblocks)));
            // Held like any other of its key, unless it is the one to go.
            let next = self.promote(one.endpoint, OrderKey(key), WAITING)?;
            one.held = next.is_none_or(|next| next.message != one.message);
        }
        one.unblocks = unblocks;
        Ok(Some(one))
    }

    /// A message that a replay sent is settled.
    pub(super) fn replayed(&mut self, replay: i64, delivered: bool) -> rusqlite::Result<()> {
        let count = match delivered {
            true => "UPDATE replay SET succeeded = succeeded + 1 WHERE id = ?",
            false => "UPDATE replay SET failed = failed + 1 WHERE id = ?",
        };
        // Nothing where the replay is forgotten already.
        self.conn().prepare_cached(count)?.execute([replay])?;
        Ok(())
    }

    /// Forgets a replay; what it sent goes on.
    pub(super) fn forget_replay(&mut self, ticket: &str) -> rusqlite::Result<()> {
        let mut forget = self.conn().prepare_cached("DELETE FROM replay WHERE ticket = ?")?;
        forget.execute([ticket]).map(drop)
    }
}
