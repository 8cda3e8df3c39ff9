//! What was kept of namespaces that are gone: delivered history, dead letters, and states of endpoints.
//!
//! An endpoint of one is marked in the store, and the events since it was made are walked over once, a bounded step at a
//! time; then nothing of it is left, and its mark says so. Those that are marked meanwhile have the next walk together, so
//! there is one at a time, however many namespaces come and go. A restart begins the walk anew.
//! Rejected: an index of what was delivered by endpoint, which every message would pay for.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use super::prune::{END, ROWS, events, remove};
use super::transaction::Transaction;
use crate::ids::{EndpointId, EventId, UnixMillis};

/// In `retention`: to be walked for, and nothing of it is left.
const MARKED: i64 = -1;
const GONE: i64 = 0;

/// The walk, as far as it is committed.
#[derive(Debug)]
pub(super) struct Purge {
    /// Whose rows go.
    of: HashSet<EndpointId>,
    /// Events up to here were looked at; [`END`]: all, and marks are to be replaced.
    after: EventId,
    /// Whose rows go in the next walk, and the last event before each was made.
    next: Vec<(EndpointId, EventId)>,
}

/// What a transaction does to it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marked: Vec<(EndpointId, EventId)>,
    after: Option<EventId>,
    gone: Vec<EndpointId>,
}

impl Marks {
    pub(super) fn clear(&mut self) {
        self.marked.clear();
        self.after = None;
        self.gone.clear();
    }
}

impl Purge {
    /// What the store says is to be walked for.
    pub(super) fn read(conn: &Connection) -> rusqlite::Result<Purge> {
        let mut marked = conn.prepare(
            "SELECT endpoint.id, endpoint.since FROM retention JOIN endpoint ON endpoint.id = retention.ep WHERE seconds = ?",
        )?;
        let marked = marked.query_map([MARKED], |row| Ok((EndpointId(row.get(0)?), EventId(row.get(1)?))))?;
        let mut purge = Purge {
            of: HashSet::new(),
            after: END,
            next: marked.collect::<rusqlite::Result<_>>()?,
        };
        purge.begin();
        Ok(purge)
    }

    /// After the commit. Whether there is anything new to do.
    pub(super) fn remember(&mut self, marks: &mut Marks) -> bool {
        let is_new = !marks.marked.is_empty();
        self.next.append(&mut marks.marked);
        self.after = marks.after.take().unwrap_or(self.after);
        for endpoint in marks.gone.drain(..) {
            self.of.remove(&endpoint);
        }
        if self.of.is_empty() && !self.next.is_empty() {
            self.begin();
        }
        is_new
    }

    fn begin(&mut self) {
        let since = self.next.iter().map(|(_, since)| *since);
        self.after = since.min().unwrap_or(END);
        self.of = self.next.drain(..).map(|(endpoint, _)| endpoint).collect();
    }
}

/// UIDs of the namespaces that have endpoints without a mark.
pub(super) fn namespaces(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut known =
        conn.prepare("SELECT DISTINCT ns FROM endpoint WHERE id NOT IN (SELECT ep FROM retention WHERE seconds <= 0)")?;
    known.query_map([], |row| row.get(0))?.collect()
}

/// Endpoints of these without a mark.
pub(super) fn endpoints(conn: &Connection, namespaces: &[String]) -> rusqlite::Result<Vec<EndpointId>> {
    let mut of = conn
        .prepare("SELECT id FROM endpoint WHERE ns = ? AND id NOT IN (SELECT ep FROM retention WHERE seconds <= 0)")?;
    let mut all = Vec::new();
    for namespace in namespaces {
        for id in of.query_map([namespace], |row| Ok(EndpointId(row.get(0)?)))? {
            all.push(id?);
        }
    }
    Ok(all)
}

/// Nothing of these is kept any more; how many they are.
pub(super) fn mark(transaction: &mut Transaction<'_, '_>, endpoints: &[EndpointId]) -> rusqlite::Result<u64> {
    let conn = transaction.conn();
    let mut put = conn.prepare("INSERT OR REPLACE INTO retention(ep, seconds) VALUES (?, ?)")?;
    let mut since = conn.prepare("SELECT since FROM endpoint WHERE id = ?")?;
    for &endpoint in endpoints {
        put.execute(params![endpoint.0, MARKED])?;
        let since = since.query_row([endpoint.0], |row| Ok(EventId(row.get(0)?)))?;
        transaction.effects.purge.marked.push((endpoint, since));
        // How long it kept its own says nothing any more of when to look.
        let default = transaction.memory.retentions.default;
        transaction.effects.retentions.push((endpoint, default));
    }
    Ok(endpoints.len() as u64)
}

/// One bounded step. True: there is nothing to do.
pub(super) fn step(transaction: &mut Transaction<'_, '_>) -> rusqlite::Result<bool> {
    let memory = transaction.memory;
    let Purge { of, after, .. } = &memory.purge;
    if of.is_empty() {
        return Ok(true);
    }
    if *after == END {
        let conn = transaction.conn();
        let mut put = conn.prepare("UPDATE retention SET seconds = ? WHERE ep = ?")?;
        let mut forget = conn.prepare("DELETE FROM endpoint_state WHERE ep = ?")?;
        for endpoint in of.iter().take(ROWS) {
            put.execute(params![GONE, endpoint.0])?;
            forget.execute([endpoint.0])?;
            transaction.effects.purge.gone.push(*endpoint);
        }
        return Ok(false);
    }
    let now = transaction.now;
    let found = events(transaction.conn(), *after, END)?;
    let expires = |_, endpoint: EndpointId, _| match of.contains(&endpoint) {
        true => now,
        false => UnixMillis(i64::MAX),
    };
    let pruned = remove(transaction, found, *after, now, expires, ROWS)?;
    transaction.effects.purge.after = Some(if pruned.finished { END } else { pruned.cursor });
    Ok(false)
}
