//! What one does with a cluster from outside: kubectl, kubeconfigs and tokens, as a person would.
//!
//! Invariant: nothing here speaks to the API server but the real kubectl, of which one that runs on ([`proxy`]) answers what is asked
//! again and again.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Cluster;
use crate::process::{die_with_parent, write_private};
use crate::proxy;

/// How long tokens in kubeconfigs live: longer than any test run, `make up` included for a working day.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// The root of the repository, where `deploy/`, `crds/` and `examples/` are.
pub fn repository_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

impl Cluster {
    /// A kubectl command as administrator, to be completed, run and waited for by this thread: it ends with it.
    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(&self.binaries().kubectl);
        command
            .env("KUBECONFIG", self.kubeconfig_path())
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"))
            .stdin(Stdio::null());
        die_with_parent(&mut command);
        command
    }

    /// Runs kubectl as administrator, whatever comes out.
    pub fn kubectl(&self, args: &[&str]) -> Result<Output> {
        self.kubectl_command()
            .args(args)
            .output()
            .with_context(|| format!("failed to run kubectl {}", args.join(" ")))
    }

    /// Runs kubectl as administrator; its standard output, or an error with its standard error.
    pub fn kubectl_ok(&self, args: &[&str]) -> Result<String> {
        succeeded(self.kubectl(args)?, args)
    }

    /// Runs kubectl with `input` as its standard input, whatever comes out.
    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut child = self
            .kubectl_command()
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to run kubectl {}", args.join(" ")))?;
        let mut stdin = child.stdin.take().context("failed to write to kubectl")?;
        let input = input.to_owned();
        // A refused request may close the pipe early; what kubectl says about it is the answer.
        let writer = thread::spawn(move || {
            let _ = stdin.write_all(input.as_bytes());
        });
        let output = child.wait_with_output().context("failed to wait for kubectl")?;
        let _ = writer.join();
        Ok(output)
    }

    /// `kubectl apply -f -`, whatever comes out: for manifests that must be refused.
    pub fn try_apply(&self, yaml: &str) -> Result<Output> {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml)
    }

    /// `kubectl apply -f -` that must succeed.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        succeeded(self.try_apply(yaml)?, &["apply", "-f", "-"])
    }

    /// An object as JSON, if it exists.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        if let Some(path) = proxy::path(namespace, kind) {
            return proxy::found(self.ask(&format!("{path}/{name}"))?);
        }
        let args = ["get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found"];
        let text = self.kubectl_ok(&args)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        Ok(Some(
            serde_json::from_str(&text).context("failed to read kubectl's JSON")?,
        ))
    }

    /// All objects of a kind in a namespace.
    pub fn list(&self, namespace: &str, kind: &str) -> Result<Vec<Value>> {
        let path = proxy::path(namespace, kind).with_context(|| format!("no path is known of {kind}"))?;
        let mut list = proxy::found(self.ask(&path)?)?.unwrap_or_default();
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("this is no list of {kind}"),
        }
    }

    /// `kubectl wait --for=...`, at most this long.
    pub fn wait_for(&self, namespace: &str, object: &str, condition: &str, within: Duration) -> Result<()> {
        let (wanted, timeout) = (format!("--for={condition}"), format!("--timeout={}s", within.as_secs()));
        self.kubectl_ok(&["wait", "-n", namespace, object, &wanted, &timeout])?;
        Ok(())
    }

    /// Waits until kubectl knows these kinds (`whe,evsub`): discovery may list one later than its definition is Established.
    pub fn wait_for_kinds(&self, kinds: &str, within: Duration) -> Result<()> {
        eventually(&format!("{kinds} in discovery"), within, || {
            self.kubectl_ok(&["get", kinds, "-A"])?;
            Ok(true)
        })
    }

    /// `kubectl apply -f -` of these together, in this order.
    pub fn apply_all(&self, manifests: &[Value]) -> Result<String> {
        self.apply(&json!({"apiVersion": "v1", "kind": "List", "items": manifests}).to_string())
    }

    /// Creates a namespace with labels (`key=value`).
    pub fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.apply(&namespace(name, labels).to_string())?;
        Ok(())
    }

    /// A ServiceAccount that may publish events of these types in its namespace: what `examples/producer-rbac.yaml` grants.
    pub fn create_producer(&self, namespace: &str, name: &str, event_types: &[&str]) -> Result<()> {
        self.apply_all(&producer(namespace, name, event_types))?;
        Ok(())
    }

    /// A real token of a ServiceAccount, for one audience (`None`: the API server's own).
    pub fn token(&self, namespace: &str, service_account: &str, audience: Option<&str>) -> Result<String> {
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audience.as_slice(), "expirationSeconds": TOKEN_LIFETIME.as_secs()}});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token");
        let (status, body) = self.proxy()?.post(&path, &request)?;
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        let token = answer["status"]["token"].as_str();
        let token =
            token.with_context(|| format!("the API server gave no token of {service_account}: {status} {body}"))?;
        Ok(token.to_owned())
    }

    /// A kubeconfig with a real token of this ServiceAccount; waits for the ServiceAccount to exist.
    pub fn kubeconfig_for(&self, namespace: &str, service_account: &str) -> Result<PathBuf> {
        let token = self.token(namespace, service_account, None)?;
        let path = self.dir().join(format!("kubeconfig-{namespace}-{service_account}"));
        self.write_kubeconfig(&path, service_account, json!({"token": token}))?;
        Ok(path)
    }

    pub(crate) fn write_kubeconfig(&self, path: &Path, user: &str, credentials: Value) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tidings",
            "clusters": [{"name": "tidings", "cluster": {
                "server": self.server_url(),
                "certificate-authority-data": base64(self.ca_pem()),
            }}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "tidings", "context": {"cluster": "tidings", "user": user}}],
        });
        let text = serde_yaml::to_string(&config).context("failed to write a kubeconfig")?;
        write_private(path, &text)
    }

    /// Whether `user` (`system:serviceaccount:ns:name`) may do this, by `kubectl auth can-i`.
    pub fn can_i(&self, user: &str, namespace: &str, verb: &str, resource: &str) -> Result<bool> {
        let impersonate = format!("--as={user}");
        let output = self.kubectl(&["auth", "can-i", verb, resource, "-n", namespace, &impersonate])?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => bail!(
                "kubectl auth can-i said neither yes nor no: {other} {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }
}

/// Waits for a condition that a probe answers; the error names what was awaited.
pub fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let last = holds();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = last.err().map(|error| format!(": {error:#}")).unwrap_or_default();
            bail!("{what} did not come true within {within:?}{why}");
        }
        thread::sleep(POLL_EVERY);
    }
}

/// A namespace with labels (`key=value`).
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A ServiceAccount and what lets it publish events of these types in its namespace.
pub fn producer(namespace: &str, name: &str, event_types: &[&str]) -> [Value; 3] {
    let rule = json!({
        "apiGroups": ["tidings.dev"], "resources": ["eventtypes"], "verbs": ["publish"], "resourceNames": event_types,
    });
    let metadata = json!({"name": name, "namespace": namespace});
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": [rule]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]}),
    ]
}

pub(crate) fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn succeeded(output: Output, args: &[&str]) -> Result<String> {
    if !output.status.success() {
        bail!(
            "kubectl {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
