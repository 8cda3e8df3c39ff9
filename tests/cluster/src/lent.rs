//! Clusters that tests have one after the other: starting one and installing Tidings' kinds in it costs more than most tests
//! do in it.
//!
//! A test's cluster is set back to what it was before, in etcd, which is all that a cluster knows: the API server and its
//! controllers see each object go, or be as it was, as they see any other change. Invariant: whoever borrows a cluster finds
//! in it what [`Tidings::install`](crate::Tidings::install) makes, and nothing of who had it before; one that is not whole
//! any more, or cannot be set back, is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Cluster;
use crate::kubectl::{base64, eventually};
use crate::process::{http_exchange, post_request};
use crate::tidings::install_manifests;

/// How long controllers may go on making things, for namespaces that are gone or for what was installed.
const STILL_WITHIN: Duration = Duration::from_secs(60);
/// How long nothing changes where they are done with what was installed.
const STILL: Duration = Duration::from_secs(1);
/// After which nothing is made any more: a controller acts upon what it sees within this time.
const QUIET: Duration = Duration::from_millis(200);
/// Operations of one transaction, by etcd's own limit.
const OPERATIONS: usize = 128;
/// What the servers themselves write all the time.
const THEIR_OWN: [&str; 2] = ["/registry/leases/kube-system/", "/registry/masterleases/"];
const NAMESPACES: &str = "/registry/namespaces/";

/// Those that nobody has at the moment.
static IDLE: Mutex<Vec<(Cluster, Before)>> = Mutex::new(Vec::new());

/// A cluster of one's own, with Tidings' CRDs and RBAC, until this is dropped.
#[derive(Debug)]
pub struct Lent(Option<(Cluster, Before)>);

impl Lent {
    /// Sets it back to what it was when it was lent for the first time.
    pub fn set_back(&self) -> Result<()> {
        let (cluster, before) = self.parts();
        before.bring_back(cluster)
    }

    fn parts(&self) -> &(Cluster, Before) {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl Cluster {
    /// Lends a cluster with Tidings' CRDs and RBAC, of one's own until it is dropped. Take one that you
    /// [start](Cluster::start) where those must not be there.
    pub fn lend() -> Result<Lent> {
        static AT_EXIT: Once = Once::new();
        // SAFETY: registers a plain function; it runs once, at exit.
        AT_EXIT.call_once(|| unsafe {
            libc::atexit(stop_idle);
        });
        loop {
            let Some(used) = idle().pop() else { break };
            let mut lent = Lent(Some(used));
            match lent.set_back() {
                Ok(()) => return Ok(lent),
                Err(error) => {
                    eprintln!("a used cluster is stopped: {error:#}");
                    lent.0 = None;
                }
            }
        }
        let cluster = Cluster::start()?;
        install_manifests(&cluster)?;
        let before = Before::of(&cluster)?;
        Ok(Lent(Some((cluster, before))))
    }
}

impl Deref for Lent {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.parts().0
    }
}

impl Drop for Lent {
    /// Fails the test whose processes logged a secret, as a cluster's own end does.
    fn drop(&mut self) {
        let Some((cluster, before)) = self.0.take() else { return };
        // What a failed test leaves is for a person to look at, and perhaps why it failed.
        if !thread::panicking() && cluster.is_whole() {
            cluster.assert_no_secret_was_logged();
            idle().push((cluster, before));
        }
    }
}

/// A static is never dropped; without this the directories would stay until the next run's sweep.
extern "C" fn stop_idle() {
    for (cluster, _) in idle().drain(..) {
        cluster.stop();
    }
}

fn idle() -> MutexGuard<'static, Vec<(Cluster, Before)>> {
    IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What was in a cluster and its directory at a moment.
#[derive(Debug)]
struct Before {
    /// Keys and values of etcd, in base64 as its gateway gives them.
    stored: BTreeMap<String, String>,
    files: BTreeSet<OsString>,
    logs: BTreeSet<OsString>,
}

impl Before {
    fn of(cluster: &Cluster) -> Result<Before> {
        let mut stored = stored(cluster)?;
        eventually("a cluster in which nothing changes", STILL_WITHIN, || {
            thread::sleep(STILL);
            let before = std::mem::replace(&mut stored, self::stored(cluster)?);
            Ok(before == stored)
        })?;
        Ok(Before {
            stored,
            files: names(cluster.dir())?,
            logs: names(&cluster.logs_dir())?,
        })
    }

    fn bring_back(&self, cluster: &Cluster) -> Result<()> {
        remove_others(cluster.dir(), &self.files)?;
        remove_others(&cluster.logs_dir(), &self.logs)?;
        let deadline = Instant::now() + STILL_WITHIN;
        // A namespace goes first: nothing is admitted into it then, whatever a controller misses in it.
        while self.write_back(cluster)? {
            if Instant::now() > deadline {
                bail!("its objects were not as before within {STILL_WITHIN:?}");
            }
            thread::sleep(QUIET);
        }
        cluster.await_api_server()
    }

    /// Whether anything was to be written.
    fn write_back(&self, cluster: &Cluster) -> Result<bool> {
        let now = stored(cluster)?;
        let gone = now.keys().filter(|key| !self.stored.contains_key(*key));
        let changed = self.stored.iter().filter(|(key, value)| now.get(*key) != Some(*value));
        let namespaces = base64(NAMESPACES);
        // Base64 has three bytes in four letters: of these as many as are whole.
        let in_namespaces = &namespaces[..NAMESPACES.len() / 3 * 4];
        let (mut operations, others): (Vec<Value>, Vec<Value>) = gone
            .map(|key| json!({"requestDeleteRange": {"key": key}}))
            .chain(changed.map(|(key, value)| json!({"requestPut": {"key": key, "value": value}})))
            .partition(|operation| {
                let key = operation["requestDeleteRange"]["key"].as_str();
                key.is_some_and(|key| key.starts_with(in_namespaces))
            });
        operations.extend(others);
        for some in operations.chunks(OPERATIONS) {
            let answer = ask_etcd(cluster, "txn", &json!({"success": some}))?;
            if answer["succeeded"] != true {
                bail!("etcd refused a transaction: {answer}");
            }
        }
        Ok(!operations.is_empty())
    }
}

/// Everything that Kubernetes keeps, but what its servers write of themselves all the time.
fn stored(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let answer = ask_etcd(
        cluster,
        "range",
        &json!({"key": base64("/registry/"), "range_end": base64("/registry0")}),
    )?;
    let mut stored = BTreeMap::new();
    for entry in answer["kvs"].as_array().context("etcd gave no keys")? {
        let key = entry["key"].as_str().context("etcd gave no key")?;
        if !is_their_own(key)? {
            stored.insert(key.to_owned(), entry["value"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(stored)
}

fn is_their_own(key: &str) -> Result<bool> {
    use base64::Engine;
    let key = base64::engine::general_purpose::STANDARD.decode(key)?;
    Ok(THEIR_OWN.iter().any(|prefix| key.starts_with(prefix.as_bytes())))
}

/// The answer of etcd's JSON gateway, `/v3/kv/<method>`.
fn ask_etcd(cluster: &Cluster, method: &str, request: &Value) -> Result<Value> {
    let request = post_request(&format!("/v3/kv/{method}"), request);
    let answer = http_exchange(cluster.etcd_port(), request.as_bytes());
    let (status, body) = answer.context("etcd gave no answer")?;
    if status != 200 {
        bail!("etcd said {status}: {body}");
    }
    serde_json::from_str(&body).context("failed to read etcd's answer")
}

fn names(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn remove_others(dir: &Path, kept: &BTreeSet<OsString>) -> Result<()> {
    for name in names(dir)?.difference(kept) {
        let path = dir.join(name);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("failed to remove {}", path.display()))?;
    }
    Ok(())
}
