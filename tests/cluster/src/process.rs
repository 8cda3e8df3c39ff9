//! Child processes that end with us: spawned, logged to a file, killed, restarted.
//!
//! On Linux the kernel kills a child when the *thread* that forked it ends (`PR_SET_PDEATHSIG`), so one thread, which
//! lives as long as the process, forks all of them: a panic, Ctrl-C or `kill -9` leaves nothing behind. Children lead
//! process groups of their own, so Ctrl-C at a terminal reaches us, not them in the middle of their work.
//!
//! Invariant: a [`Process`] that is dropped is dead and reaped; one started [`Lifetime::Daemon`] is not touched.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::pids;

/// How often a condition is looked at again while waiting for it.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// How long a server may say nothing: one that works is slow only where the machine stands still.
const SILENCE: Duration = Duration::from_secs(30);
/// A free port can be taken by somebody else before it is bound.
const START_ATTEMPTS: u32 = 4;
/// How much of a log goes into an error message.
const LOG_TAIL: usize = 4_000;

/// When a child ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// With this process, however it ends.
    WithParent,
    /// When somebody stops it by its process id: it outlives this process.
    Daemon,
}

type Job = (Command, Sender<io::Result<Child>>);

/// The thread that forks: it never ends, so its children get no death signal before the whole process goes.
static FORKER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::Builder::new()
        .name("forker".into())
        .spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        })
        .expect("the first thread of a test harness can be started");
    Mutex::new(sender)
});

/// Spawns nothing any more, and nothing is being spawned when this returns: for who stops everything and then exits.
pub fn spawn_no_more() {
    std::mem::forget(FORKER.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
}

/// Spawns `command` in a process group of its own.
pub(crate) fn spawn(mut command: Command, lifetime: Lifetime) -> io::Result<Child> {
    match lifetime {
        Lifetime::WithParent => {
            command.process_group(0);
            die_with_parent(&mut command);
        }
        // A session of its own: closing the terminal does not end it either.
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        Lifetime::Daemon => unsafe {
            command.pre_exec(|| match libc::setsid() {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        },
    }
    let (answer, child) = mpsc::channel();
    let forker = FORKER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    forker
        .send((command, answer))
        .map_err(|_| io::Error::other("the forking thread has ended"))?;
    child
        .recv()
        .map_err(|_| io::Error::other("the forking thread has ended"))?
}

/// The child is killed when the thread that spawns it ends: with the process, or before, so that thread must wait for it.
#[cfg(target_os = "linux")]
pub(crate) fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe; nothing else runs between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
                return Err(io::Error::last_os_error());
            }
            // We may have died before the line above took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::other("the parent is gone"));
            }
            Ok(())
        });
    }
}

/// Elsewhere children are stopped by `Drop` only.
#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_parent(_command: &mut Command) {}

/// How to start a process, again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// For messages and the log's file name.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(String, OsString)>,
    /// Standard output and error are appended here; its process id is in a file beside it.
    pub log: PathBuf,
    pub lifetime: Lifetime,
}

impl Spec {
    /// The same program, in which a write beyond the limit of file sizes is an error and no signal.
    pub fn ignoring_file_size_signal(mut self) -> Spec {
        let program = std::mem::replace(&mut self.program, "/bin/sh".into());
        let script = ["-c".into(), "trap '' XFSZ; exec \"$0\" \"$@\"".into(), program.into()];
        self.args.splice(0..0, script);
        self
    }

    /// The same program with a file system of its own, in memory and of this size, over `dir`: made anew at each start, and
    /// seen from outside below `/proc/<pid>/root`. Where user namespaces are forbidden it does not start.
    pub fn with_small_volume(mut self, dir: &Path, bytes: u64) -> Spec {
        let program = std::mem::replace(&mut self.program, "unshare".into());
        let script = format!("mount -t tmpfs -o size={bytes} tmpfs \"$0\" && exec \"$@\"");
        let command = ["--user", "--map-root-user", "--mount", "/bin/sh", "-c", &script];
        let command = command.iter().map(OsString::from).chain([dir.into(), program.into()]);
        self.args.splice(0..0, command.collect::<Vec<_>>());
        self
    }
}

/// A running (or stopped) child.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Option<Child>,
}

impl Process {
    /// Starts it.
    pub fn start(spec: Spec) -> Result<Process> {
        let mut process = Process::stopped(spec);
        process.start_again()?;
        Ok(process)
    }

    /// One that is to be started later.
    pub(crate) fn stopped(spec: Spec) -> Process {
        Process { spec, child: None }
    }

    /// Starts it again with the same arguments; its log goes on. Fails when it still runs.
    pub fn start_again(&mut self) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.spec.name);
        }
        let name = &self.spec.name;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.spec.log)
            .with_context(|| format!("failed to open {}", self.spec.log.display()))?;
        let mut command = Command::new(&self.spec.program);
        command
            .args(&self.spec.args)
            .envs(self.spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(
                log.try_clone()
                    .with_context(|| format!("failed to share the log of {name}"))?,
            )
            .stderr(log);
        pids::record(&mut command, &self.spec.log)
            .with_context(|| format!("failed to record the process id of {name}"))?;
        self.child = Some(
            spawn(command, self.spec.lifetime)
                .with_context(|| format!("failed to start {name} ({})", self.spec.program.display()))?,
        );
        Ok(())
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// How it was started.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The same; a change counts from the next start.
    pub fn spec_mut(&mut self) -> &mut Spec {
        &mut self.spec
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.spec.log
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.spec.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The log's end, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(LOG_TAIL);
        String::from_utf8_lossy(&log.as_bytes()[from..]).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.exited().is_none() && self.child.is_some()
    }

    /// How it ended, if it did by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// `kill -9` on it and its group, and waits until it is gone. Twice is no error.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Ok(None) = child.try_wait() {
                signal_group(child.id(), libc::SIGKILL);
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }

    /// SIGTERM, then waits for it to end by itself; an error (and SIGKILL) when it does not in time.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        let Some(child) = self.child.as_mut() else {
            bail!("{} does not run", self.spec.name);
        };
        signal(child.id(), libc::SIGTERM);
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = child.try_wait().context("failed to wait for a child")? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let (name, tail) = (self.spec.name.clone(), self.log_tail());
                self.kill9();
                bail!("{name} did not end within {within:?} after SIGTERM; its log ends:\n{tail}");
            }
            thread::sleep(POLL_EVERY);
        }
    }

    /// Sends it a signal, SIGSTOP for example.
    pub fn signal(&self, number: libc::c_int) {
        if let Some(pid) = self.pid() {
            signal(pid, number);
        }
    }

    /// From now on it can write files up to this size only (none: any size): what is beyond fails with EFBIG. A process
    /// that does not ignore SIGXFSZ is killed instead; see [`Spec::ignoring_file_size_signal`].
    #[cfg(target_os = "linux")]
    pub fn limit_file_size(&self, bytes: Option<u64>) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.spec.name))?;
        let pid = libc::pid_t::try_from(pid).context("a process id is out of range")?;
        let limit = libc::rlimit {
            rlim_cur: bytes.unwrap_or(libc::RLIM_INFINITY),
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: reads one struct of ours and writes nothing.
        match unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).context("failed to limit the size of a process's files"),
        }
    }

    /// Waits until `ready` says so; an error with the log's end when the process exits first or time is up.
    pub fn wait_until(&mut self, what: &str, within: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if ready() {
                return Ok(());
            }
            if let Some(status) = self.exited() {
                bail!(
                    "{} ended ({status}) before {what}; its log ends:\n{}",
                    self.spec.name,
                    self.log_tail()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} was not {what} within {within:?}; its log ends:\n{}",
                    self.spec.name,
                    self.log_tail()
                );
            }
            thread::sleep(POLL_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.spec.lifetime == Lifetime::WithParent {
            self.kill9();
        }
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, number: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: kill takes two numbers; a process that is gone is an error we need not see.
        unsafe { libc::kill(pid, number) };
    }
}

/// Sends a signal to a child's whole group.
pub fn signal_group(pid: u32, number: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: as above; every child of ours leads a group of its own, so this reaches nobody else.
        unsafe { libc::killpg(pid, number) };
    }
}

/// Whether a process with this id exists.
pub fn exists(pid: u32) -> bool {
    // SAFETY: signal 0 only looks.
    libc::pid_t::try_from(pid).is_ok_and(|pid| unsafe { libc::kill(pid, 0) } == 0)
}

/// Where we look for ports: below those that Linux gives to outgoing connections and to whoever asks for any port (from
/// 32768 by default), so that no connection takes one between our look and the bind, or connects to itself while we wait for
/// a listener there. Below the node ports of Kubernetes (from 30000) too.
const PORTS: Range<u16> = 12_000..30_000;

/// A loopback port that was free a moment ago, and that this process is not given again soon. Whoever binds it must be
/// ready to lose the race against another process, and try another.
pub fn free_port() -> Result<u16> {
    /// How many were looked at; another process begins somewhere else.
    static LOOKED_AT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(7_919)));
    let span = u32::from(PORTS.end - PORTS.start);
    for _ in PORTS {
        let offset = LOOKED_AT.fetch_add(1, Ordering::Relaxed) % span;
        let port = PORTS.start + u16::try_from(offset).context("a port outside of its range")?;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).context("failed to find a free port"),
        }
    }
    bail!("no port of 127.0.0.1 from {} to {} is free", PORTS.start, PORTS.end - 1)
}

/// Tries again with other ports when somebody took one between our look and the bind.
pub(crate) fn with_free_ports<T>(mut start: impl FnMut() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains("ddress already in use") => {
                attempt += 1
            }
            other => return other,
        }
    }
}

/// The status of a plain-HTTP GET on loopback, if there was an answer; see [`http_get`].
pub fn http_status(port: u16, path: &str) -> Option<u16> {
    http_get(port, path)?.0.into()
}

/// Status and body of a plain-HTTP GET on loopback (metrics, readiness), if there was an answer: none where nobody listens, or
/// falls silent for half a minute.
pub fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let head = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    http_exchange(port, head.as_bytes())
}

/// A POST of this JSON, after whose answer the server closes the connection.
pub(crate) fn post_request(path: &str, json: &serde_json::Value) -> String {
    let body = json.to_string();
    let length = body.len();
    format!(
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// Status and body of the answer to one request on a plain-HTTP connection of its own on loopback.
pub fn http_exchange(port: u16, request: &[u8]) -> Option<(u16, String)> {
    http_exchange_with(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), request, SILENCE)
}

/// The same with a server anywhere that may say nothing for so long.
pub fn http_exchange_with(address: SocketAddr, request: &[u8], silence: Duration) -> Option<(u16, String)> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(silence)).ok()?;
    exchange(stream, request)
}

/// The same on a connection that is there; the server closes it.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Option<(u16, String)> {
    stream.write_all(request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Writes a file only its owner can read.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("failed to create {}", path.display()))?;
    file.write_all(content.as_bytes())
        .with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{TcpListener, free_port};

    #[test]
    fn a_free_port_is_none_that_an_outgoing_connection_gets_and_is_given_once() {
        // Linux' default (net.ipv4.ip_local_port_range): where somebody widened it, there may be no such port.
        const FIRST_OUTGOING: u16 = 32_768;
        let taken = TcpListener::bind(("127.0.0.1", free_port().unwrap() + 1));
        let ports: Vec<u16> = (0..100).map(|_| free_port().unwrap()).collect();
        assert!(ports.iter().all(|port| *port < FIRST_OUTGOING), "{ports:?}");
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 100, "{ports:?}");
        if let Ok(taken) = taken {
            assert!(
                !ports.contains(&taken.local_addr().unwrap().port()),
                "one that somebody listens on"
            );
        }
    }
}
