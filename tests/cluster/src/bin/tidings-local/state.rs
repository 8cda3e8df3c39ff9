//! What `up` leaves behind for the next `up`, for `down` and for a shell: how each process is started again, and the env
//! file.
//!
//! Invariant: written last, so a directory with a state was completely up once; one without belongs to an `up` that did
//! not get there.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tidings_cluster::pids;

use crate::say;
use tidings_cluster::process::{self, Spec};

const STATE_FILE: &str = "state.json";
const CONTROL_PLANE: [&str; 3] = ["etcd", "kube-apiserver", "kube-controller-manager"];

/// A Tidings process (or the follower of keys), and how it shows that it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub struct Daemon {
    pub spec: Spec,
    pub ready: Ready,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Ready {
    /// `/readyz` on this port answers 200.
    Readyz(u16),
    /// The port is open.
    Listens(u16),
    /// It runs.
    Runs,
}

/// All of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub controller: Daemon,
    pub dispatcher: Daemon,
    pub inspect: Daemon,
    pub keys: Daemon,
    pub ingest_url: String,
    pub inspect_url: String,
    /// The folder of the kubectl that belongs to this Kubernetes.
    pub kubectl_dir: PathBuf,
}

impl Daemon {
    pub fn pid(&self) -> Option<u32> {
        pids::running(&self.spec.log)
    }

    pub fn is_ready(&self) -> bool {
        match self.ready {
            Ready::Readyz(port) => process::http_status(port, "/readyz") == Some(200),
            Ready::Listens(port) => std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
            Ready::Runs => true,
        }
    }
}

impl State {
    /// What an earlier `up` left, if it was complete.
    pub fn read(dir: &Path) -> Option<State> {
        let text = fs::read_to_string(dir.join(STATE_FILE)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the state and the env file.
    pub fn write(&self, dir: &Path) -> Result<()> {
        process::write_private(&env_file(dir), &self.exports(dir)?)?;
        let text = serde_json::to_string_pretty(self).context("failed to write the state")?;
        process::write_private(&dir.join(STATE_FILE), &text)
    }

    /// Each with the name a person knows it by.
    pub fn daemons(&self) -> [(&'static str, &Daemon); 4] {
        [
            ("the controller", &self.controller),
            ("the dispatcher", &self.dispatcher),
            ("the inspector", &self.inspect),
            ("what follows its keys", &self.keys),
        ]
    }

    fn exports(&self, dir: &Path) -> Result<String> {
        let mut text = String::from("# Written by `make up`: source it.\n");
        let pid = |daemon: &Daemon| daemon.pid().map(|pid| pid.to_string()).unwrap_or_default();
        for (name, value) in [
            ("KUBECONFIG", dir.join("kubeconfig").display().to_string()),
            ("TIDINGS_INGEST_URL", self.ingest_url.clone()),
            ("TIDINGS_INSPECT_URL", self.inspect_url.clone()),
            ("TIDINGS_CA_FILE", ca_file(dir).display().to_string()),
            ("TIDINGS_DISPATCHER_PID", pid(&self.dispatcher)),
            ("TIDINGS_CONTROLLER_PID", pid(&self.controller)),
        ] {
            writeln!(text, "export {name}={}", say::shell_word(&value)).context("failed to write the env file")?;
        }
        text.push_str("# For machines without a kubectl: the one that was built with this Kubernetes.\n");
        let kubectl = say::shell_word(&self.kubectl_dir.display().to_string());
        writeln!(text, "command -v kubectl >/dev/null || export PATH=\"$PATH\":{kubectl}")
            .context("failed to write the env file")?;
        Ok(text)
    }
}

/// What a shell sources.
pub fn env_file(dir: &Path) -> PathBuf {
    dir.join("env")
}

/// The CA of the receivers.
pub fn ca_file(dir: &Path) -> PathBuf {
    dir.join("receiver-ca.crt")
}

/// Whether all of Kubernetes runs.
pub fn control_plane_runs(dir: &Path) -> bool {
    let log = |name: &str| dir.join(format!("logs/{name}.log"));
    CONTROL_PLANE.iter().all(|name| pids::running(&log(name)).is_some())
}

/// Keeps a second `up` or `down` from working in the same directory at the same time. The lock is on the folder around it:
/// the directory itself comes and goes.
pub fn lock(dir: &Path) -> Result<File> {
    let around = dir.parent().context("the state's directory needs a folder around it")?;
    fs::create_dir_all(around).with_context(|| format!("failed to create {}", around.display()))?;
    let file = File::open(around).with_context(|| format!("failed to open {}", around.display()))?;
    if file.try_lock().is_err() {
        bail!("another `make up` or `make down` is at work on {}", dir.display());
    }
    Ok(file)
}
