//! The tables of the embedded store, and the check that SQLite keeps its word about durability.
//!
//! Invariant: on the happy path a message touches no secondary index. Only waiting messages are indexed (by due time);
//! fresh ones are found by walking the primary key, once after a restart. A message's attempts are at most one row for each
//! number of its schedule, however often a probe fails that consumes none. Of the messages of one endpoint with the same
//! `okey` at most one is not held (`state` 2), and none while a dead letter with `blocks` is kept. `due` of a message that is
//! pulled is its place: greater than that of every such message committed before it.

use rusqlite::Connection;

use super::open::OpenError;

/// Bumped when the tables change; a store of another version is refused, never guessed at.
const VERSION: i64 = 12;

const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
-- `since`: the last event before it got its id.
CREATE TABLE endpoint(id INTEGER PRIMARY KEY, ns TEXT NOT NULL, name TEXT NOT NULL, since INTEGER NOT NULL, UNIQUE(ns, name));
CREATE TABLE subscription(id INTEGER PRIMARY KEY, ns TEXT NOT NULL, name TEXT NOT NULL, UNIQUE(ns, name));
CREATE TABLE endpoint_state(ep INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE event(id INTEGER PRIMARY KEY, attrs BLOB NOT NULL, body BLOB NOT NULL);
-- `done` is -1 where the rest cannot be made.
CREATE TABLE unrouted(event INTEGER PRIMARY KEY, done INTEGER NOT NULL, targets BLOB NOT NULL);
CREATE TABLE message(id INTEGER PRIMARY KEY, sub INTEGER NOT NULL, ep INTEGER NOT NULL, state INTEGER NOT NULL,
    attempt INTEGER NOT NULL, due INTEGER NOT NULL, bytes INTEGER NOT NULL, okey INTEGER, replay INTEGER, again INTEGER);
CREATE INDEX due ON message(ep, sub, due) WHERE state = 1;
CREATE INDEX fifo ON message(ep, okey, state) WHERE okey IS NOT NULL;
CREATE TABLE settled(id INTEGER PRIMARY KEY, sub INTEGER NOT NULL, ep INTEGER NOT NULL, attempts INTEGER NOT NULL,
    at INTEGER NOT NULL, code INTEGER, ms INTEGER, okey INTEGER);
CREATE TABLE attempt(message INTEGER NOT NULL, n INTEGER NOT NULL, at INTEGER NOT NULL, ms INTEGER NOT NULL, code INTEGER,
    reason TEXT NOT NULL, excerpt BLOB, PRIMARY KEY(message, n)) WITHOUT ROWID;
CREATE TABLE dead(id INTEGER PRIMARY KEY, sub INTEGER NOT NULL, ep INTEGER NOT NULL, attempts INTEGER NOT NULL,
    at INTEGER NOT NULL, reason TEXT NOT NULL, okey INTEGER, blocks INTEGER NOT NULL, bytes INTEGER NOT NULL);
CREATE INDEX blocked ON dead(ep, okey) WHERE blocks = 1;
CREATE INDEX dead_ep ON dead(ep);
CREATE INDEX dead_sub ON dead(sub);
-- What was settled before `until`, of events up to `last`, is meant.
CREATE TABLE replay(id INTEGER PRIMARY KEY AUTOINCREMENT, ticket TEXT NOT NULL UNIQUE, began INTEGER NOT NULL,
    until INTEGER NOT NULL, last INTEGER NOT NULL, phase INTEGER NOT NULL, cursor INTEGER NOT NULL,
    matched INTEGER NOT NULL, sent INTEGER NOT NULL, succeeded INTEGER NOT NULL, failed INTEGER NOT NULL);
-- `event` is a copy, of which the one message tells that `message` is a dead letter.
CREATE TABLE notice(event INTEGER PRIMARY KEY, message INTEGER NOT NULL, sub INTEGER NOT NULL, ep INTEGER NOT NULL,
    attempts INTEGER NOT NULL, at INTEGER NOT NULL, reason TEXT NOT NULL, code INTEGER);
CREATE TABLE seen(seq INTEGER PRIMARY KEY, event INTEGER NOT NULL, hash BLOB NOT NULL, matched INTEGER NOT NULL);
-- Where it is not the default. -1: the endpoint's namespace is gone, and its history is to go; 0: it is gone.
CREATE TABLE retention(ep INTEGER PRIMARY KEY, seconds INTEGER NOT NULL);
-- Events of which something must stay, and when to look at them again.
CREATE TABLE revisit(event INTEGER PRIMARY KEY, at INTEGER NOT NULL);
CREATE INDEX revisit_at ON revisit(at);
-- `swept`: every event up to it was looked at when its shortest time was over. `renewed` to `renew_until`: those of them that
-- are still to be looked at anew, and `renew_from`: what the next such look begins after. `place`: that of the messages that
-- are pulled and were made pending last. `settled`: nothing was settled so late, by whatever clock.
INSERT INTO meta(key, value) VALUES ('fence', 0), ('swept', 0), ('renewed', 0), ('renew_until', 0),
    ('renew_from', 9223372036854775807), ('place', 0), ('settled', 0);
";

/// The writer's page cache: enough for the right edge of every table and the due index's hot pages.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// A reader's page cache.
const READER_CACHE_KIB: i64 = 4 * 1024;

/// Prepares the writer's connection: makes the tables once, and refuses weaker durability than WAL with FULL.
pub(super) fn prepare_writer(conn: &Connection) -> Result<(), OpenError> {
    let failed = OpenError::sqlite("set up");
    conn.execute_batch("PRAGMA auto_vacuum = NONE;").map_err(&failed)?;
    let journal: String = conn
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(&failed)?;
    if !journal.eq_ignore_ascii_case("wal") {
        return Err(OpenError::Durability(format!("journal_mode is {journal}, not wal")));
    }
    conn.execute_batch(&format!(
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -{WRITER_CACHE_KIB};
         PRAGMA foreign_keys = OFF; PRAGMA temp_store = MEMORY;"
    ))
    .map_err(&failed)?;
    let synchronous: i64 = conn
        .query_row("PRAGMA synchronous", [], |row| row.get(0))
        .map_err(&failed)?;
    if synchronous < 2 {
        return Err(OpenError::Durability(format!(
            "synchronous is {synchronous}, not 2 (FULL)"
        )));
    }
    let version: i64 = conn
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(&failed)?;
    match version {
        0 => conn
            .execute_batch(&format!(
                "BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
            ))
            .map_err(&failed),
        VERSION => Ok(()),
        found => Err(OpenError::Version { found, wanted: VERSION }),
    }
}

/// Prepares a reader's connection: it can never write.
pub(super) fn prepare_reader(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(&format!(
        "PRAGMA query_only = ON; PRAGMA cache_size = -{READER_CACHE_KIB}; PRAGMA temp_store = MEMORY;"
    ))
}
