//! What leaves the store: delivered history and dead letters past their time, keys of deduplication past the window.
//!
//! Invariant: an event with an unsettled message is never touched, and one commit removes a bounded number of rows.

use std::time::{Duration, Instant};

use rusqlite::params;

use super::dedupe::Dedupe;
use super::order::WAITING;
use super::transaction::{DEDUPE_WINDOW_SECONDS, Transaction};
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};

/// Rows removed in one commit: a few hundred microseconds.
const ROWS: usize = 256;
/// Events looked at in one commit.
const EVENTS: usize = 128;
/// Steps over events that must stay, within one call of `Queue::prune`.
pub(super) const STEPS: usize = 64;
/// When there was nothing more to remove, look again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Under pressure delivered events go, but not within this time: a little history for whoever looks.
const UNDER_PRESSURE_KEEP: Duration = Duration::from_secs(60);

/// How old what is removed must be.
#[derive(Clone, Copy)]
pub(super) struct Cutoffs {
    pub(super) settled: UnixMillis,
    pub(super) dead: UnixMillis,
}

pub(super) struct Pruner {
    retention: Duration,
    next: Instant,
    under_pressure: bool,
    /// Events up to here were looked at in this pass.
    cursor: EventId,
    /// Rows of `seen` below `keep_seen` may go; those below `seen` are gone.
    seen: Option<i64>,
    keep_seen: i64,
}

/// What one look found.
pub(super) struct Pruned {
    pub(super) rows: usize,
    pub(super) cursor: EventId,
    pub(super) finished: bool,
}

impl Pruner {
    pub(super) fn new(retention: Duration, now: Instant) -> Pruner {
        Pruner {
            retention,
            next: now,
            under_pressure: false,
            cursor: EventId(0),
            seen: None,
            keep_seen: 0,
        }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Tells whether the store nears its limit: then history goes before its time.
    pub(super) fn pressure(&mut self, under_pressure: bool) {
        if under_pressure && !self.under_pressure {
            self.next = Instant::now();
            self.cursor = EventId(0);
        }
        self.under_pressure = under_pressure;
    }

    /// Drops keys of deduplication past the window from memory; their rows follow.
    pub(super) fn after_commit(&mut self, dedupe: &mut Dedupe, now: UnixMillis) {
        dedupe.expire(now.0 / 1000 - DEDUPE_WINDOW_SECONDS);
        if let Some(first) = dedupe.first_row() {
            self.keep_seen = first;
        }
    }

    /// One bounded step, when it is time.
    pub(super) fn run(&mut self, transaction: &mut Transaction<'_, '_>) -> rusqlite::Result<()> {
        if !self.is_due() {
            return Ok(());
        }
        let now = transaction.now;
        let before =
            |age: Duration| UnixMillis(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let dead = before(self.retention);
        let settled = if self.under_pressure {
            before(UNDER_PRESSURE_KEEP.min(self.retention))
        } else {
            dead
        };
        let pruned = history(transaction, self.cursor, Cutoffs { settled, dead }, ROWS)?;
        self.cursor = pruned.cursor;
        let seen_done = self.seen(transaction)?;
        if pruned.finished {
            self.cursor = EventId(0);
        }
        if pruned.finished && seen_done {
            self.next = Instant::now()
                + if self.under_pressure {
                    Duration::from_secs(1)
                } else {
                    LOOK_AGAIN
                };
        }
        Ok(())
    }

    fn seen(&mut self, transaction: &mut Transaction<'_, '_>) -> rusqlite::Result<bool> {
        let conn = transaction.conn();
        let from = match self.seen {
            Some(seen) => seen,
            None => conn
                .query_row("SELECT min(seq) FROM seen", [], |row| row.get::<_, Option<i64>>(0))?
                .unwrap_or(0),
        };
        let until = self.keep_seen.min(from + ROWS as i64);
        if until > from {
            conn.execute("DELETE FROM seen WHERE seq >= ? AND seq < ?", params![from, until])?;
        }
        // Wrong by one step after a rollback, which the next opening puts right.
        self.seen = Some(until.max(from));
        Ok(until >= self.keep_seen)
    }
}

/// Removes whole events from `after` on, of which nothing is pending and nothing younger than `cutoffs`.
pub(super) fn history(
    transaction: &mut Transaction<'_, '_>,
    after: EventId,
    cutoffs: Cutoffs,
    rows: usize,
) -> rusqlite::Result<Pruned> {
    let conn = transaction.conn();
    let newest = cutoffs.settled.0.max(cutoffs.dead.0) / 1000 + 1;
    let mut events = conn.prepare(
        "SELECT id FROM event WHERE id > ? AND id < ? AND NOT EXISTS (SELECT 1 FROM unrouted u WHERE u.event = event.id)
         ORDER BY id LIMIT ?",
    )?;
    let found: Vec<i64> = events
        .query_map(
            params![after.0, newest << EventId::SEQUENCE_BITS, EVENTS as i64],
            |row| row.get(0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    let mut pruned = Pruned {
        rows: 0,
        cursor: after,
        finished: found.len() < EVENTS,
    };
    if found.is_empty() {
        return Ok(pruned);
    }
    let mut busy = conn.prepare(
        "SELECT EXISTS (SELECT 1 FROM message WHERE id BETWEEN ?1 AND ?2)
             OR EXISTS (SELECT 1 FROM settled WHERE id BETWEEN ?1 AND ?2 AND at >= ?3)
             OR EXISTS (SELECT 1 FROM dead WHERE id BETWEEN ?1 AND ?2 AND at >= ?4)",
    )?;
    let mut dead = conn.prepare("DELETE FROM dead WHERE id BETWEEN ? AND ? RETURNING ep, sub, okey, blocks")?;
    let mut settled = conn.prepare("DELETE FROM settled WHERE id BETWEEN ? AND ?")?;
    let mut attempts = conn.prepare("DELETE FROM attempt WHERE message BETWEEN ? AND ?")?;
    let mut event = conn.prepare("DELETE FROM event WHERE id = ?")?;
    let mut unblocked = Vec::new();
    for id in found {
        if pruned.rows >= rows {
            pruned.finished = false;
            break;
        }
        let first = MessageId::new(EventId(id), 0).0;
        let last = first + (1 << MessageId::ORDINAL_BITS) - 1;
        pruned.cursor = EventId(id);
        if busy.query_row(params![first, last, cutoffs.settled.0, cutoffs.dead.0], |row| {
            row.get(0)
        })? {
            continue;
        }
        let mut gone = dead.query(params![first, last])?;
        while let Some(row) = gone.next()? {
            let pair = (EndpointId(row.get(0)?), SubscriptionId(row.get(1)?));
            transaction.effects.buried.push((pair, -1));
            if row.get(3)? {
                transaction.effects.ordered.push((pair, 0, -1));
                unblocked.extend(row.get::<_, Option<i64>>(2)?.map(|key| (pair.0, OrderKey(key))));
            }
            pruned.rows += 1;
        }
        drop(gone);
        for (endpoint, key) in unblocked.drain(..) {
            transaction.promote(endpoint, key, WAITING)?;
        }
        pruned.rows += settled.execute(params![first, last])?;
        pruned.rows += attempts.execute(params![first, last])?;
        pruned.rows += event.execute(params![id])?;
    }
    Ok(pruned)
}
