//! Moving what is committed from the WAL into the database, beside the writer.
//!
//! Invariant: idle means asleep; a checkpoint runs only after something was written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::Shared;
use super::writer::is_fatal;

/// Between two checkpoints while there is something to write.
const EVERY: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    written: bool,
    closed: bool,
}

/// What writer and checkpoint thread tell each other.
#[derive(Default)]
pub(super) struct Checkpoint {
    state: Mutex<State>,
    wake: Condvar,
    frames: AtomicU64,
}

impl Checkpoint {
    /// The writer has committed.
    pub(super) fn written(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = !state.written;
        state.written = true;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.wake.notify_one();
    }

    /// What a checkpoint answered: frames in the WAL, and how many are in the database. Negative: another one was at it.
    fn looked(&self, log: i64, done: i64) {
        if log >= 0 {
            let left = if log == done { 0 } else { log.unsigned_abs() };
            self.frames.store(left, Ordering::Relaxed);
        }
    }

    /// Frames in the WAL when it was last looked at.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until there is something to do, and a little more so that it is worth an fsync. False: closed.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.written && !state.closed {
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // `written` stays set meanwhile, so that further commits do not wake this thread.
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, EVERY, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        state.written = false;
        !state.closed
    }
}

/// The checkpoint thread.
pub(super) fn thread(conn: &Connection, shared: &Shared) {
    while shared.checkpoint.wait() {
        if shared.is_dead() {
            return;
        }
        run(conn, shared);
    }
}

/// One passive checkpoint.
pub(super) fn run(conn: &Connection, shared: &Shared) {
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(1)?, row.get(2)?));
    match conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], row) {
        Ok((log, done)) => shared.checkpoint.looked(log, done),
        Err(error) if is_fatal(&error) => shared.fatal(format!("failed to sync the store: {error}")),
        // The next write meets the same trouble, says so and tries again; nothing is lost meanwhile.
        Err(error) => tracing::debug!(%error, "failed to checkpoint the store"),
    }
}
