//! Who runs in a cluster's directory: beside each child's log is a file with its process id, locked as long as it lives.
//!
//! The child inherits the lock and writes its own id before it becomes the program, so whatever was started can be found
//! and stopped by another process later, however the one that started it ended, and an id that was given to a stranger
//! since is never taken for ours. Invariant: a signal goes only to a process that holds its file's lock at that moment.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::signal_group;

const POLL_EVERY: Duration = Duration::from_millis(10);
/// After SIGKILL; longer only where the kernel waits for a disk.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// The file of the process that writes this log.
fn beside(log: &Path) -> PathBuf {
    log.with_extension("pid")
}

/// Makes the child of `command` leave its id beside its log. Waits for an earlier one that writes the same log.
pub(crate) fn record(command: &mut Command, log: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(beside(log))?;
    file.lock()?;
    file.set_len(0)?;
    // SAFETY: fcntl, getpid and write are async-signal-safe; nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let fd = file.as_raw_fd();
            if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            let mut digits = [0; 11];
            let text = decimal(libc::getpid().unsigned_abs(), &mut digits);
            if libc::write(fd, text.as_ptr().cast(), text.len()) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}

/// A number and a newline, without an allocation.
fn decimal(mut number: u32, buffer: &mut [u8; 11]) -> &[u8] {
    let mut at = buffer.len() - 1;
    buffer[at] = b'\n';
    loop {
        at -= 1;
        // A digit fits a byte.
        buffer[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

/// The id of the process that writes this log, while it lives.
pub fn running(log: &Path) -> Option<u32> {
    alive(&beside(log))
}

fn alive(pid_file: &Path) -> Option<u32> {
    let file = File::open(pid_file).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        // Empty for the moment between the lock and the child's own hand.
        match fs::read_to_string(pid_file).ok()?.trim().parse() {
            Ok(pid) => return Some(pid),
            Err(_) if Instant::now() < deadline => thread::sleep(POLL_EVERY),
            Err(_) => return None,
        }
    }
}

/// `kill -9` on everything that was started in this directory of logs and still runs, and waits until it is gone.
pub fn stop_all(logs: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(logs) else {
        return Ok(());
    };
    let files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
        .collect();
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let left: Vec<u32> = files.iter().filter_map(|file| alive(file)).collect();
        if left.is_empty() {
            return Ok(());
        }
        for pid in &left {
            signal_group(*pid, libc::SIGKILL);
        }
        if Instant::now() >= deadline {
            bail!("processes {left:?} did not end within {GONE_WITHIN:?} after SIGKILL");
        }
        thread::sleep(POLL_EVERY);
    }
}

/// Stops everything that runs in a cluster's directory and removes the directory. Nothing there is no error.
pub fn stop_and_remove(dir: &Path) -> Result<()> {
    stop_all(&dir.join("logs"))?;
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Lifetime, Process, Spec};

    #[test]
    fn a_process_is_found_by_its_log_while_it_lives_and_stopped_by_who_never_started_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/sleeper.log");
        fs::create_dir(dir.path().join("logs")).unwrap();
        assert_eq!(running(&log), None);
        for lifetime in [Lifetime::WithParent, Lifetime::Daemon] {
            let mut process = Process::start(Spec {
                name: "sleeper".into(),
                program: "sleep".into(),
                args: vec!["1000".into()],
                env: Vec::new(),
                log: log.clone(),
                lifetime,
            })
            .unwrap();
            assert_eq!(running(&log), process.pid());
            stop_all(&dir.path().join("logs")).unwrap();
            assert_eq!(running(&log), None, "also before anybody has waited for it");
            assert!(!process.is_running());
        }
        // A stranger now has the number: the lock says that it is not ours.
        fs::write(beside(&log), std::process::id().to_string()).unwrap();
        assert_eq!(running(&log), None);
        stop_and_remove(dir.path()).unwrap();
        assert!(!dir.path().exists());
        stop_and_remove(dir.path()).unwrap();
    }
}
