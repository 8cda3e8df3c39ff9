//! A set of programs that is built from pinned Go modules, once, into the cache.
//!
//! Knows nothing of what the programs are for. Invariant: a program in the cache is whole (it is built elsewhere and
//! renamed), and belongs to exactly these pins.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::{self, say};

/// Pinned together, and built in one go.
pub(super) struct Module {
    /// As people call it.
    pub(super) title: &'static str,
    pub(super) version: &'static str,
    pub(super) go_mod: &'static str,
    pub(super) go_sum: &'static str,
    /// Go files of our own beside go.mod: where, and what is in them.
    pub(super) sources: &'static [(&'static str, &'static str)],
    /// The programs must be told their version, or they call themselves v0.0.0.
    pub(super) ldflags: &'static str,
    /// Build tags.
    pub(super) tags: &'static str,
    /// How long a cold build takes, for people.
    pub(super) takes: &'static str,
}

/// A program, its Go package and the name `go build` gives it.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) built_as: &'static str,
}

const BUILD_PREFIX: &str = ".build-";
/// How often a long build says that it is still at work.
const PROGRESS_EVERY: Duration = Duration::from_secs(20);

impl Module {
    /// Where its programs are kept.
    pub(super) fn dir(&self) -> Result<PathBuf> {
        let name = self.title.to_lowercase();
        let pins: Vec<&str> = [self.go_mod, self.go_sum]
            .into_iter()
            .chain(self.sources.iter().map(|(_, source)| *source))
            .collect();
        let pins = cache::digest(&pins);
        Ok(cache::dir()?.join(format!("{name}-{}-{pins}", self.version)))
    }

    /// Builds what is missing, unless another process does.
    pub(super) fn ensure<'a>(&self, missing: impl Fn() -> Vec<&'a Program>) -> Result<()> {
        if missing().is_empty() {
            return Ok(());
        }
        let target = self.dir()?;
        fs::create_dir_all(&target).with_context(|| format!("failed to create {}", target.display()))?;
        let _lock = cache::lock(&target.join(".lock"), self.title)?;
        // Whoever held the lock before may have built them.
        match missing() {
            missing if missing.is_empty() => Ok(()),
            missing => build(self, &target, &missing),
        }
    }
}

/// Called under the lock, so a build directory that is there belongs to a process that was killed.
fn build(module: &Module, target: &Path, programs: &[&Program]) -> Result<()> {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(BUILD_PREFIX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = tempfile::Builder::new()
        .prefix(BUILD_PREFIX)
        .tempdir_in(target)
        .context("failed to create a build directory")?;
    fs::write(dir.path().join("go.mod"), module.go_mod).context("failed to write go.mod")?;
    fs::write(dir.path().join("go.sum"), module.go_sum).context("failed to write go.sum")?;
    for (name, source) in module.sources {
        let path = dir.path().join(name);
        let folder = path.parent().unwrap_or(dir.path());
        fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
        fs::write(&path, source).with_context(|| format!("failed to write {name}"))?;
    }
    let names: Vec<&str> = programs.iter().map(|p| p.name).collect();
    say(&format!(
        "building {} {} ({}) from its Go modules, about {} the first time ...",
        module.title,
        module.version,
        names.join(", "),
        module.takes
    ));

    let log_path = dir.path().join("build.log");
    let log = File::create(&log_path).context("failed to create the build log")?;
    let mut command = Command::new("go");
    command
        .args(["build", "-trimpath", "-tags", module.tags])
        .args(["-ldflags", module.ldflags, "-o", "bin/"])
        .args(programs.iter().map(|p| p.package))
        .current_dir(dir.path())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("failed to share the build log")?)
        .stderr(log);
    let begun = Instant::now();
    let mut child = crate::process::spawn(command, crate::process::Lifetime::WithParent).context(
        "failed to run `go`: install Go 1.26 (https://go.dev/dl), or point KUBEBUILDER_ASSETS at etcd, kube-apiserver, \
         kube-controller-manager and kubectl, TIDINGS_HELM at helm, and TIDINGS_PROMETHEUS at a folder with prometheus and promtool",
    )?;
    let (mut said, mut shown) = (begun, String::new());
    let status = loop {
        if let Some(status) = child.try_wait().context("failed to wait for `go build`")? {
            break status;
        }
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            // A download that ended is told once: the compiler says nothing for minutes after the last.
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default();
            let news = match last == shown {
                true => String::new(),
                false => format!(" ({last})"),
            };
            last.clone_into(&mut shown);
            say(&format!("  still building after {} s{news}", begun.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let from = log.len().saturating_sub(4_000);
        bail!(
            "failed to build {} ({status}):\n{}",
            module.title,
            String::from_utf8_lossy(&log.as_bytes()[from..])
        );
    }
    for program in programs {
        fs::rename(dir.path().join("bin").join(program.built_as), target.join(program.name))
            .with_context(|| format!("failed to move {} into the cache", program.name))?;
    }
    say(&format!(
        "built in {} s, kept in {}",
        begun.elapsed().as_secs(),
        target.display()
    ));
    Ok(())
}
