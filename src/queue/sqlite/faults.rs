//! A disk that fails on demand: a SQLite VFS over the default one, for tests.
//!
//! It refuses writes, fails fsync, and remembers what has been synced, so that a test can cut the power. Invariant: the
//! image after a cut holds everything that was synced, and of the rest whatever the caller's dice say.

#![expect(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "a VFS is a table of C functions"
)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rusqlite::ffi;

/// Name of the VFS.
pub(crate) const NAME: &str = "tidings-faults";

/// One directory's disk.
#[derive(Default)]
pub(crate) struct Disk {
    /// What every write answers: a SQLite code, 0 for success.
    pub(crate) write_fails: AtomicI32,
    /// Every fsync fails.
    pub(super) sync_fails: AtomicBool,
    /// An fsync that answers success and does nothing.
    pub(super) sync_lies: AtomicBool,
    files: Mutex<HashMap<PathBuf, Image>>,
}

#[derive(Default)]
struct Image {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => {
                if to.len() < at + data.len() {
                    to.resize(at + data.len(), 0);
                }
                to[*at..at + data.len()].copy_from_slice(data);
            }
            Change::Truncate(size) => to.resize(*size, 0),
        }
    }
}

impl Disk {
    /// The disk under `dir`, whose files are opened through the VFS from now on.
    pub(crate) fn under(dir: &Path) -> Arc<Disk> {
        register();
        let disk = Arc::new(Disk::default());
        disks().push((dir.to_owned(), Arc::clone(&disk)));
        disk
    }

    /// Cuts the power: writes to `dir` what survives. `keep` says of each change that was not synced whether it did.
    pub(super) fn cut(&self, dir: &Path, mut keep: impl FnMut() -> bool) {
        for (path, image) in self.files().iter() {
            let mut bytes = image.durable.clone();
            image
                .pending
                .iter()
                .filter(|_| keep())
                .for_each(|change| change.apply(&mut bytes));
            let name = path.file_name().expect("a file");
            std::fs::write(dir.join(name), bytes).expect("write the image");
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<PathBuf, Image>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, path: &Path, change: Change) {
        self.files().entry(path.to_owned()).or_default().pending.push(change);
    }
}

fn disks() -> MutexGuard<'static, Vec<(PathBuf, Arc<Disk>)>> {
    static DISKS: Mutex<Vec<(PathBuf, Arc<Disk>)>> = Mutex::new(Vec::new());
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What lies behind the default VFS's own file structure.
struct Trailer {
    real: *const ffi::sqlite3_io_methods,
    /// Kept for as long as the file points at it.
    _methods: Box<ffi::sqlite3_io_methods>,
    disk: Arc<Disk>,
    path: PathBuf,
}

struct DefaultVfs(*mut ffi::sqlite3_vfs);
unsafe impl Send for DefaultVfs {}
unsafe impl Sync for DefaultVfs {}

fn default_vfs() -> *mut ffi::sqlite3_vfs {
    static DEFAULT: OnceLock<DefaultVfs> = OnceLock::new();
    DEFAULT
        .get_or_init(|| DefaultVfs(unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) }))
        .0
}

fn register() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| unsafe {
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
        let mut vfs = std::ptr::read(default_vfs());
        vfs.szOsFile = trailer_offset() + size_of::<*mut Trailer>() as c_int;
        vfs.pNext = std::ptr::null_mut();
        vfs.zName = c"tidings-faults".as_ptr();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        // Lives as long as the process: SQLite keeps the pointer.
        assert_eq!(ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 0), ffi::SQLITE_OK);
    });
}

fn trailer_offset() -> c_int {
    unsafe { ((*default_vfs()).szOsFile + 7) & !7 }
}

unsafe fn slot(file: *mut ffi::sqlite3_file) -> *mut *mut Trailer {
    unsafe { file.cast::<u8>().add(trailer_offset() as usize).cast() }
}

unsafe fn trailer<'a>(file: *mut ffi::sqlite3_file) -> &'a Trailer {
    unsafe { &**slot(file) }
}

unsafe fn path_of(name: *const c_char) -> PathBuf {
    PathBuf::from(unsafe { CStr::from_ptr(name) }.to_str().expect("UTF-8"))
}

fn disk_of(path: &Path) -> Option<Arc<Disk>> {
    disks()
        .iter()
        .rev()
        .find(|(dir, _)| path.starts_with(dir))
        .map(|(_, disk)| Arc::clone(disk))
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    unsafe {
        let code = ((*default_vfs()).xOpen.expect("xOpen"))(vfs, name, file, flags, out);
        let disk = (!name.is_null())
            .then(|| path_of(name))
            .and_then(|path| Some((disk_of(&path)?, path)));
        let (ffi::SQLITE_OK, Some((disk, path))) = (code, disk) else {
            return code;
        };
        // The default VFS's functions go on working on its own structure; only these four go through here.
        let real = (*file).pMethods;
        let mut methods = Box::new(*real);
        methods.xClose = Some(close);
        methods.xWrite = Some(write);
        methods.xTruncate = Some(truncate);
        methods.xSync = Some(sync);
        (*file).pMethods = &*methods;
        *slot(file) = Box::into_raw(Box::new(Trailer {
            real,
            _methods: methods,
            disk,
            path,
        }));
        code
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    unsafe {
        let path = path_of(name);
        if let Some(disk) = disk_of(&path) {
            disk.files().remove(&path);
        }
        ((*default_vfs()).xDelete.expect("xDelete"))(vfs, name, sync)
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        let trailer = Box::from_raw(*slot(file));
        (*file).pMethods = trailer.real;
        ((*trailer.real).xClose.expect("xClose"))(file)
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    len: c_int,
    at: ffi::sqlite3_int64,
) -> c_int {
    unsafe {
        let trailer = trailer(file);
        let code = trailer.disk.write_fails.load(Ordering::SeqCst);
        if code != ffi::SQLITE_OK {
            return code;
        }
        let code = ((*trailer.real).xWrite.expect("xWrite"))(file, data, len, at);
        if code == ffi::SQLITE_OK {
            let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len as usize).to_vec();
            trailer.disk.change(&trailer.path, Change::Write(at as usize, bytes));
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    unsafe {
        let trailer = trailer(file);
        trailer.disk.change(&trailer.path, Change::Truncate(size as usize));
        ((*trailer.real).xTruncate.expect("xTruncate"))(file, size)
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        let trailer = trailer(file);
        if trailer.disk.sync_fails.load(Ordering::SeqCst) {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        if trailer.disk.sync_lies.load(Ordering::SeqCst) {
            return ffi::SQLITE_OK;
        }
        let code = ((*trailer.real).xSync.expect("xSync"))(file, flags);
        if code == ffi::SQLITE_OK {
            let mut files = trailer.disk.files();
            let image = files.entry(trailer.path.clone()).or_default();
            for change in std::mem::take(&mut image.pending) {
                change.apply(&mut image.durable);
            }
        }
        code
    }
}
