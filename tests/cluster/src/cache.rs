//! The cache outside the clone: where it is, who may write to it now, and how progress is told.
//!
//! Invariant: what is found under a name in the cache is whole: it is made elsewhere and renamed.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
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

/// What is installed into a folder of the cache, once.
pub(crate) struct Folder<'a> {
    /// The folder's name begins with it.
    pub name: &'a str,
    /// As people call it.
    pub title: &'a str,
    /// The pins: path in the folder and content. Other pins are another folder.
    pub files: &'a [(&'a str, &'a str)],
}

impl Folder<'_> {
    /// Finds the folder, or makes it: `fill` runs in one that holds the files.
    pub fn ensure(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let root = dir()?;
        let contents: Vec<&str> = self.files.iter().map(|(_, content)| *content).collect();
        let folder = root.join(format!("{}-{}", self.name, digest(&contents)));
        // Written last: a virtual environment knows its own path, so it cannot be built elsewhere and renamed.
        let done = folder.join(".complete");
        if done.is_file() {
            return Ok(folder);
        }
        fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
        let _lock = lock(&root.join(format!(".{}.lock", self.name)), self.title)?;
        if done.is_file() {
            return Ok(folder);
        }
        let _ = fs::remove_dir_all(&folder);
        for (name, content) in self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&folder))
                .and_then(|()| fs::write(&path, content))
                .with_context(|| format!("failed to write {}", path.display()))?;
        }
        say(&format!("installing {} ...", self.title));
        fill(&folder)?;
        fs::write(&done, "").with_context(|| format!("failed to mark {} as installed", self.title))?;
        Ok(folder)
    }
}

/// Runs a program in this folder to its end; the error has what it said.
pub(crate) fn run(dir: &Path, program: &str, args: &[&str]) -> Result<()> {
    // A relative program is looked up from our own directory, not the child's.
    let path = if program.contains('/') {
        dir.join(program)
    } else {
        program.into()
    };
    let output = Command::new(path)
        .args(args)
        .current_dir(dir)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .output()
        .with_context(|| format!("failed to run {program}, which the tests need"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed: {}{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// A virtual environment in `dir/venv` with what `dir/requirements.txt` pins.
pub(crate) fn venv(dir: &Path) -> Result<()> {
    run(dir, "python3", &["-m", "venv", "venv"])?;
    let install = ["-m", "pip", "install", "--quiet", "-r", "requirements.txt"];
    run(dir, "venv/bin/python", &install)
}

/// `node_modules` of what `package-lock.json` in this folder pins.
pub(crate) fn node_modules(dir: &Path) -> Result<()> {
    run(dir, "npm", &["ci", "--no-audit", "--no-fund", "--loglevel=error"])
}
