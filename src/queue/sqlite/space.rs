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
/// And above which, when none is left, dead letters do.
const LETTERS_PERCENT: u64 = 90;
/// Share of the limit that a namespace may keep in dead letters whatever others do, in percent.
pub(super) const SHARE_PERCENT: u64 = 1;

/// What gives way before its time, so that there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    Nothing,
    History,
    /// Where there is no history, dead letters.
    Letters,
}

pub(super) struct Space {
    dir: PathBuf,
    pub(super) limit: u64,
    keep_free: u64,
    used: AtomicU64,
    /// Bytes of the file's own free pages.
    reusable: AtomicU64,
    /// Bytes free on the volume.
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
            reusable: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            looked: Mutex::default(),
        }
    }

    /// Why no event can be taken in, if so.
    pub(super) fn full(&self, now: Instant) -> Option<String> {
        self.look_at_volume(now);
        let free = self.free.load(Ordering::Relaxed);
        // The file never shrinks: what it has room for itself takes nothing from the volume.
        let reusable = self.reusable.load(Ordering::Relaxed);
        // But what is written passes through the log, which does.
        if free.saturating_add(reusable) < self.keep_free || free < self.keep_free / 4 {
            return Some(format!(
                "{free} bytes are free on the volume, {} are kept",
                self.keep_free
            ));
        }
        let used = self.used.load(Ordering::Relaxed);
        (used >= self.limit).then(|| format!("{used} bytes are used of {}", self.limit))
    }

    fn look_at_volume(&self, now: Instant) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if is_time(&mut looked.volume, now)
            && let Ok((free, _)) = open::volume(&self.dir)
        {
            self.free.store(free, Ordering::Relaxed);
        }
    }

    /// Looks at the store's own pages; what should give way. Of dead letters no more go than must: each time it looks.
    pub(super) fn used(&self, conn: &Connection) -> Pressure {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if is_time(&mut looked.pages, Instant::now()) || self.pressure() == Pressure::Letters {
            self.measure(conn);
        }
        self.pressure()
    }

    /// Reads the numbers of pages in use and of free ones, which are used again and never given back to the volume.
    pub(super) fn measure(&self, conn: &Connection) {
        let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap_or(0) as u64;
        let (all, free, size) = (
            number("PRAGMA page_count"),
            number("PRAGMA freelist_count"),
            number("PRAGMA page_size"),
        );
        self.used.store(all.saturating_sub(free) * size, Ordering::Relaxed);
        self.reusable.store(free * size, Ordering::Relaxed);
    }

    fn pressure(&self) -> Pressure {
        let used = self.used.load(Ordering::Relaxed) / 100;
        let is_over = |percent| used >= self.limit / 100 * percent / 100;
        match (is_over(LETTERS_PERCENT), is_over(PRESSURE_PERCENT)) {
            (true, _) => Pressure::Letters,
            (false, true) => Pressure::History,
            (false, false) => Pressure::Nothing,
        }
    }

    /// Bytes used and free now, on the volume and in the file together.
    pub(super) fn now(&self) -> (u64, u64) {
        let free = open::volume(&self.dir).map_or(0, |(free, _)| free);
        let reusable = self.reusable.load(Ordering::Relaxed);
        (self.used.load(Ordering::Relaxed), free.saturating_add(reusable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_the_file_has_filled_has_room_again_once_the_file_has() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let conn = Connection::open(dir.path().join("a.db")).unwrap();
        conn.execute_batch("CREATE TABLE t(x)").unwrap();
        conn.execute("INSERT INTO t VALUES (zeroblob(8 << 20))", ()).unwrap();
        let space = Space::new(dir.path().to_owned(), u64::MAX, 256 * MIB);
        let now = Instant::now();
        space.looked.lock().unwrap().volume = Some(now);
        space.free.store(250 * MIB, Ordering::Relaxed);
        space.measure(&conn);
        assert!(space.full(now).unwrap().contains("are free on the volume"));
        conn.execute("DELETE FROM t", ()).unwrap();
        space.measure(&conn);
        assert_eq!(space.full(now), None);
        space.free.store(240 * MIB, Ordering::Relaxed);
        assert!(space.full(now).is_some(), "eight of its own are not enough");
        space.reusable.store(500 * MIB, Ordering::Relaxed);
        assert_eq!(space.full(now), None);
        space.free.store(60 * MIB, Ordering::Relaxed);
        assert!(space.full(now).is_some(), "the log must fit");
    }
}
