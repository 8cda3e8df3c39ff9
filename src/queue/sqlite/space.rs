//! Whether there is room: the store's own files against its limit, and what is free on the volume.
//!
//! Invariant: producers are refused while outcomes still fit.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::open;

/// Free space kept on the volume for outcomes and the WAL.
pub(super) const KEEP_FREE: u64 = 256 << 20;
/// How old a look at the volume may be.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Share of the limit above which delivered history gives way, in percent.
const PRESSURE_PERCENT: u64 = 80;

pub(super) struct Space {
    dir: PathBuf,
    pub(super) limit: u64,
    keep_free: u64,
    used: AtomicU64,
    free: AtomicU64,
    looked: Mutex<Looked>,
}

/// When the volume and the store's own pages were looked at last.
#[derive(Default)]
struct Looked {
    volume: Option<Instant>,
    pages: Option<Instant>,
}

/// Whether it is time to look again; then it counts as done.
fn is_time(last: &mut Option<Instant>, now: Instant) -> bool {
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= LOOK_EVERY);
    if due {
        *last = Some(now);
    }
    due
}

impl Space {
    pub(super) fn new(dir: PathBuf, limit: u64, keep_free: u64) -> Space {
        Space {
            dir,
            limit,
            keep_free,
            used: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            looked: Mutex::default(),
        }
    }

    /// Why no event can be taken in, if so.
    pub(super) fn full(&self, now: Instant) -> Option<String> {
        self.look_at_volume(now);
        let used = self.used.load(Ordering::Relaxed);
        if used >= self.limit {
            return Some(format!("{used} bytes are used of {}", self.limit));
        }
        let free = self.free.load(Ordering::Relaxed);
        (free < self.keep_free).then(|| format!("{free} bytes are free on the volume, {} are kept", self.keep_free))
    }

    fn look_at_volume(&self, now: Instant) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if is_time(&mut looked.volume, now)
            && let Ok((free, _)) = open::volume(&self.dir)
        {
            self.free.store(free, Ordering::Relaxed);
        }
    }

    /// Looks at the store's own pages; whether history should give way.
    pub(super) fn used(&self, conn: &Connection) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if is_time(&mut looked.pages, Instant::now()) {
            self.measure(conn);
        }
        self.under_pressure()
    }

    /// Reads the number of pages in use (free ones are used again, and never given back to the volume).
    pub(super) fn measure(&self, conn: &Connection) {
        let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap_or(0) as u64;
        let pages = number("PRAGMA page_count").saturating_sub(number("PRAGMA freelist_count"));
        self.used.store(pages * number("PRAGMA page_size"), Ordering::Relaxed);
    }

    pub(super) fn under_pressure(&self) -> bool {
        self.used.load(Ordering::Relaxed) / 100 >= self.limit / 100 * PRESSURE_PERCENT / 100
    }

    /// Bytes used and free now.
    pub(super) fn now(&self) -> (u64, u64) {
        let free = open::volume(&self.dir).map_or(0, |(free, _)| free);
        (self.used.load(Ordering::Relaxed), free)
    }
}
