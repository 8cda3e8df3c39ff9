//! What the API server says, without a kubectl for each question: by one `kubectl proxy` for a cluster.
//!
//! Tests look at objects many times a second until they are as they must be; a kubectl for each look is most of what they
//! would cost. Invariant: it asks at a socket that only this user may write to.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::Cluster;
use crate::process::{Lifetime, Process, Spec, exchange, post_request};

const START_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Bytes that a socket's path may have (unix(7)).
const LONGEST: usize = 107;

/// A running `kubectl proxy`.
#[derive(Debug)]
pub(crate) struct Proxy {
    socket: PathBuf,
    _process: Process,
    _elsewhere: Option<TempDir>,
}

impl Proxy {
    pub fn start(cluster: &Cluster) -> Result<Proxy> {
        let mut socket = cluster.dir().join("proxy.sock");
        let mut elsewhere = None;
        if socket.as_os_str().len() > LONGEST {
            let dir = tempfile::tempdir().context("failed to create the proxy's directory")?;
            socket = dir.path().join("proxy.sock");
            elsewhere = Some(dir);
        }
        let mut process = Process::start(Spec {
            name: "kubectl-proxy".into(),
            program: cluster.binaries().kubectl.clone(),
            args: vec!["proxy".into(), "--unix-socket".into(), socket.clone().into()],
            env: vec![("KUBECONFIG".into(), cluster.kubeconfig_path().into())],
            log: cluster.logs_dir().join("kubectl-proxy.log"),
            lifetime: Lifetime::WithParent,
        })?;
        process.wait_until("listening", START_WITHIN, || UnixStream::connect(&socket).is_ok())?;
        Ok(Proxy {
            socket,
            _process: process,
            _elsewhere: elsewhere,
        })
    }

    /// Status and body of the API server's answer to a GET.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.exchange(path, &format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    }

    /// Status and body of the API server's answer to a POST of this JSON.
    pub fn post(&self, path: &str, json: &Value) -> Result<(u16, String)> {
        self.exchange(path, &post_request(path, json))
    }

    fn exchange(&self, path: &str, request: &str) -> Result<(u16, String)> {
        let asked = || {
            let stream = UnixStream::connect(&self.socket).ok()?;
            stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
            exchange(stream, request.as_bytes())
        };
        asked().with_context(|| format!("kubectl proxy gave no answer for {path}"))
    }
}

/// The path of a namespace's objects of a kind, as tests name it; none of one that they look at seldom.
pub(crate) fn path(namespace: &str, kind: &str) -> Option<String> {
    let (api, plural) = match kind {
        "whe" => ("apis/tidings.dev/v1alpha1", "webhookendpoints"),
        "evsub" => ("apis/tidings.dev/v1alpha1", "eventsubscriptions"),
        "evtype" => ("apis/tidings.dev/v1alpha1", "eventtypes"),
        "replay" => ("apis/tidings.dev/v1alpha1", "replays"),
        "secret" => ("api/v1", "secrets"),
        "configmap" => ("api/v1", "configmaps"),
        "serviceaccount" => ("api/v1", "serviceaccounts"),
        "event" => ("apis/events.k8s.io/v1", "events"),
        "role" => ("apis/rbac.authorization.k8s.io/v1", "roles"),
        _ => return None,
    };
    Some(format!("/{api}/namespaces/{namespace}/{plural}"))
}

/// The object or list of an answer; none where the object is not there.
pub(crate) fn found((status, body): (u16, String)) -> Result<Option<Value>> {
    let object: Value = serde_json::from_str(&body).with_context(|| format!("the API server said {status}: {body}"))?;
    match status {
        200 => Ok(Some(object)),
        // Of a kind that is not served the answer names no object.
        404 if object["details"]["name"].is_string() => Ok(None),
        _ => bail!("the API server said {status}: {body}"),
    }
}
