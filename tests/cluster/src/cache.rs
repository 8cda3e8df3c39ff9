//! The cache outside the clone: where it is, who may write to it now, and how progress is told.
//!
//! Invariant: what is found under a name in the cache is whole: it is made elsewhere and renamed.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// `$TIDINGS_CACHE_DIR`, else `$XDG_CACHE_HOME/tidings`, else `~/.cache/tidings`.
pub(crate) fn dir() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("TIDINGS_CACHE_DIR") {
        return Ok(dir);
    }
    if let Some(dir) = set("XDG_CACHE_HOME") {
        return Ok(dir.join("tidings"));
    }
    let home = set("HOME").context("failed to find a cache directory: set TIDINGS_CACHE_DIR or HOME")?;
    Ok(home.join(".cache/tidings"))
}

/// A short name for exactly these pins.
pub(crate) fn digest(pins: &[&str]) -> String {
    let mut hash = Sha256::new();
    for pin in pins {
        hash.update(pin);
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Waits until no other process works on the same thing; the lock ends with the returned file.
pub(crate) fn lock(path: &Path, what: &str) -> Result<File> {
    let file = File::create(path).with_context(|| format!("failed to create {}", path.display()))?;
    if file.try_lock().is_err() {
        say(&format!("another process builds {what}; waiting for it ..."));
        file.lock()
            .with_context(|| format!("failed to lock {}", path.display()))?;
    }
    Ok(file)
}

/// Progress goes to standard error past the test harness's capture: a silent six minutes look like a hang.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
