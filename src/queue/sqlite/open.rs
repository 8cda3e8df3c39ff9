//! Opening the store: the directory's lock, the kind of file system, the first reading of what lies there.
//!
//! Invariant: when it succeeds, this process alone holds the directory, and SQLite has confirmed its durability.

use std::fs::{File, TryLockError};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::Options;
use super::dedupe::{Dedupe, MAX_SEGMENTS, rows_per_segment};
use super::order::HELD;
use super::prune::Retentions;
use super::purge::Purge;
use super::schema;
use super::spaces::Spaces;
use super::tally::Tally;
use super::transaction::{pending, unpack};
use crate::ids::{EndpointId, EventId, MessageId, SubscriptionId, UnixMillis};

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("failed to use the directory {path}: {error}")]
    Directory { path: PathBuf, error: std::io::Error },
    #[error("the store in {0} is in use by another process: a store has one dispatcher")]
    Locked(PathBuf),
    #[error("the store in {path} lies on {kind}, which does not keep fsync's promise: use a local or block volume")]
    FileSystem { path: PathBuf, kind: &'static str },
    #[error("the store is not as durable as it must be: {0}")]
    Durability(String),
    #[error("the store has version {found}, this program knows {wanted}")]
    Version { found: i64, wanted: i64 },
    #[error("failed to {doing} the store: {error}")]
    Sqlite {
        doing: &'static str,
        error: rusqlite::Error,
    },
    #[error("failed to start a thread of the store: {0}")]
    Thread(std::io::Error),
}

impl OpenError {
    pub(super) fn sqlite(doing: &'static str) -> impl Fn(rusqlite::Error) -> OpenError {
        move |error| OpenError::Sqlite { doing, error }
    }
}

/// What was found on opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Unsettled messages.
    pub pending: u64,
    /// Dead letters kept.
    pub dead: u64,
    /// Keys of deduplication.
    pub dedupe_entries: u64,
    /// Bytes at which producers are refused.
    pub limit: u64,
    /// How long opening took.
    pub took: Duration,
}

/// The first SQLite without the WAL-reset corruption with two checkpointers.
const SQLITE_AT_LEAST: i32 = 3_051_003;

/// File systems whose fsync or locks cannot be relied on, by the magic number of `statfs(2)`.
const REFUSED: [(i64, &str); 5] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x6573_5546, "FUSE"),
];

/// Name of the database file in the store's directory.
pub(super) const FILE: &str = "tidings.db";

/// Makes the directory where needed, locks it and checks what it lies on.
pub(super) fn directory(dir: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::Directory {
        path: dir.to_owned(),
        error,
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let handle = File::open(dir).map_err(failed)?;
    if let Some(kind) = refused_file_system(&handle).map_err(failed)? {
        return Err(OpenError::FileSystem {
            path: dir.to_owned(),
            kind,
        });
    }
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    handle.sync_all().map_err(failed)?;
    Ok(lock)
}

fn refused_file_system(handle: &File) -> std::io::Result<Option<&'static str>> {
    // SAFETY: statfs is plain old data that fstatfs fills in; the descriptor is open for the call.
    let magic = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(handle.as_raw_fd(), &mut stat) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        stat.f_type as i64 & 0xffff_ffff
    };
    Ok(refused_kind(magic))
}

fn refused_kind(magic: i64) -> Option<&'static str> {
    REFUSED
        .iter()
        .find(|(refused, _)| *refused == magic)
        .map(|(_, kind)| *kind)
}

/// Free and total bytes of the volume that holds `dir`.
pub(super) fn volume(dir: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain old data that statvfs(3) fills in; the path is a valid C string for the call.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &mut stat) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let block = stat.f_frsize as u64;
        Ok((stat.f_bavail as u64 * block, stat.f_blocks as u64 * block))
    }
}

/// A connection to the store's file, by the VFS of the options where one is given.
pub(super) fn connect(dir: &Path, options: &Options) -> rusqlite::Result<Connection> {
    // NO_MUTEX: each connection stays within one thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = match options.vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(dir.join(FILE), flags, vfs)?,
        None => Connection::open_with_flags(dir.join(FILE), flags)?,
    };
    // Checkpoints and the writer meet only at the moment of a WAL restart.
    conn.busy_timeout(Duration::from_secs(5))?;
    Ok(conn)
}

/// The writer's connection, checked.
pub(super) fn writer(dir: &Path, options: &Options) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < SQLITE_AT_LEAST {
        return Err(OpenError::Durability(format!(
            "SQLite {} may corrupt a WAL that two threads checkpoint",
            rusqlite::version()
        )));
    }
    let conn = connect(dir, options).map_err(OpenError::sqlite("open"))?;
    schema::prepare_writer(&conn)?;
    Ok(conn)
}

/// What the writer holds in memory, read from disk.
pub(super) struct Memory {
    pub(super) last_event: EventId,
    /// The last one of the process before.
    pub(super) inherited: EventId,
    pub(super) next_seen: i64,
    pub(super) fence: u64,
    pub(super) place: UnixMillis,
    /// Later than everything in the store was settled, and what the store itself says of that.
    pub(super) settled: UnixMillis,
    pub(super) settled_until: UnixMillis,
    pub(super) dedupe: Dedupe,
    pub(super) tally: Tally,
    pub(super) spaces: Spaces,
    pub(super) unrouted: u64,
    pub(super) retentions: Retentions,
    pub(super) purge: Purge,
}

/// Reads what lies in the store: counters, keys of deduplication, the last ids.
pub(super) fn recover(conn: &Connection, retention: Duration) -> Result<Memory, OpenError> {
    read_memory(conn, retention).map_err(OpenError::sqlite("read"))
}

fn read_memory(conn: &Connection, retention: Duration) -> rusqlite::Result<Memory> {
    let number = |sql: &str| {
        conn.query_row(sql, [], |row| row.get::<_, Option<i64>>(0))
            .map(|n| n.unwrap_or(0))
    };
    // The newest row of `seen` is never removed, so the last id is known even when everything else was pruned.
    let newest = number("SELECT max(seq) FROM seen")?;
    let last_seen = number(&format!("SELECT max(event) FROM seen WHERE seq = {newest}"))?;
    // Copies that tell of dead letters have no row in `seen`.
    let last_event = last_seen.max(number("SELECT max(id) FROM event")?);
    let next_seen = newest + 1;
    let fence = number("SELECT value FROM meta WHERE key = 'fence'")? as u64;
    let place = UnixMillis(number("SELECT value FROM meta WHERE key = 'place'")?);
    let settled = UnixMillis(number("SELECT value FROM meta WHERE key = 'settled'")?);

    let mut dedupe = Dedupe::default();
    let from = next_seen - (MAX_SEGMENTS as u64 * rows_per_segment()) as i64;
    let mut rows = conn.prepare("SELECT seq, hash, event FROM seen WHERE seq > ? ORDER BY seq")?;
    let mut rows = rows.query([from])?;
    while let Some(row) = rows.next()? {
        if let Ok(key) = row.get_ref(1)?.as_blob()?.try_into() {
            dedupe.insert(&key, row.get(0)?, EventId(row.get(2)?).unix_seconds());
        }
    }

    let mut tally = Tally::default();
    let mut spaces = Spaces::default();
    let mut rows = conn.prepare("SELECT id, ns FROM endpoint")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        spaces.place(EndpointId(row.get(0)?), row.get_ref(1)?.as_str()?);
    }
    let mut rows = conn.prepare("SELECT id, ep, sub, bytes, state FROM message")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let pair = (EndpointId(row.get(1)?), SubscriptionId(row.get(2)?));
        tally.found_pending(pair, MessageId(row.get(0)?));
        spaces.add(pair.0, 1, row.get(3)?);
        tally.order(pair, i64::from(row.get::<_, i64>(4)? == HELD), 0);
    }
    let mut rows = conn.prepare("SELECT ep, sub, blocks, bytes FROM dead")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let pair = (EndpointId(row.get(0)?), SubscriptionId(row.get(1)?));
        tally.add(pair, 0, 1);
        spaces.bury(pair.0, 1, row.get(3)?);
        tally.order(pair, 0, row.get(2)?);
    }
    let mut unrouted = 0;
    let mut rows = conn.prepare(
        "SELECT u.done, u.targets, length(e.attrs) + length(e.body) FROM unrouted u JOIN event e ON e.id = u.event
         WHERE u.done >= 0",
    )?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        unrouted += 1;
        let targets = unpack(row.get_ref(1)?.as_blob()?);
        for endpoint in pending(targets.get(row.get::<_, u32>(0)? as usize..).unwrap_or_default()) {
            spaces.add(endpoint, 1, row.get(2)?);
        }
    }
    Ok(Memory {
        last_event: EventId(last_event),
        inherited: EventId(last_event),
        next_seen,
        fence,
        place,
        settled,
        settled_until: settled,
        dedupe,
        tally,
        spaces,
        unrouted,
        retentions: Retentions::read(conn, retention)?,
        purge: Purge::read(conn)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_and_user_space_file_systems_are_refused_by_their_magic() {
        for (magic, kind) in [(0x6969, "NFS"), (0xff53_4d42, "SMB"), (0x6573_5546, "FUSE")] {
            assert_eq!(refused_kind(magic), Some(kind));
        }
        for magic in [0xef53, 0x5846_5342, 0x0102_1994, 0x794c_7630] {
            assert_eq!(refused_kind(magic), None, "{magic:x}");
        }
    }
}
