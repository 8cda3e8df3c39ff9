//! A team's namespace: its producer, the CA of its receivers, and the examples with their receivers on this machine.
//!
//! Invariant: the examples are applied as they are in `examples/`, through a kustomize overlay that changes nothing but
//! where they send and whom they trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tidings_cluster::{Cluster, OPEN_LOOPBACK_LABEL, RAW_KEYS, process, repository_root};

use crate::say::Kubectl;

/// The namespace of the examples: `examples/producer-rbac.yaml` names it.
pub const NAMESPACE: &str = "sales";
/// The examples, and the endpoint each has.
pub const EXAMPLES: [(&str, &str); 2] = [("lead-to-crm", "crm"), ("escalation-to-chat", "chat")];
const SUBSCRIPTIONS: [&str; 2] = ["leads-to-crm", "escalations-to-chat"];
/// Generous: the machine may be building something at the same time.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Creates the namespace, applies the examples and waits until they are Ready. `inspector` is where they send:
/// `https://127.0.0.1:port`.
pub fn open(cluster: &Cluster, ca_pem: &str, inspector: &str, kubectl: Kubectl) -> Result<()> {
    let overlay = write_overlay(cluster.dir(), ca_pem, inspector)?;
    let (key, value) = OPEN_LOOPBACK_LABEL;
    kubectl(cluster, &["create", "namespace", NAMESPACE])?;
    kubectl(cluster, &["label", "namespace", NAMESPACE, &format!("{key}={value}")])?;
    kubectl(cluster, &["apply", "-f", "examples/producer-rbac.yaml"])?;
    let overlay = overlay.to_str().context("the overlay's path is not UTF-8")?;
    kubectl(cluster, &["apply", "-k", overlay])?;
    for (_, endpoint) in EXAMPLES {
        ready(cluster, &format!("whe/{endpoint}"))?;
    }
    for subscription in SUBSCRIPTIONS {
        ready(cluster, &format!("evsub/{subscription}"))?;
    }
    Ok(())
}

/// `kubectl wait` until an object's newest generation is Ready.
pub fn ready(cluster: &Cluster, object: &str) -> Result<()> {
    cluster.wait_for(NAMESPACE, object, "condition=Ready", READY_WITHIN)
}

/// The overlay: a folder that a person can look at, and apply again.
fn write_overlay(dir: &Path, ca_pem: &str, inspector: &str) -> Result<PathBuf> {
    let overlay = dir.join("examples");
    fs::create_dir_all(&overlay).with_context(|| format!("failed to create {}", overlay.display()))?;
    let mut patches = Vec::new();
    for (example, endpoint) in EXAMPLES {
        let link = overlay.join(example);
        std::os::unix::fs::symlink(repository_root().join("examples").join(example), &link)
            .with_context(|| format!("failed to create {}", link.display()))?;
        let operations = json!([
            {"op": "replace", "path": "/spec/url", "value": format!("{inspector}/{endpoint}")},
            {"op": "add", "path": "/spec/tls", "value": {"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}}},
        ]);
        patches.push(json!({
            "target": {"kind": "WebhookEndpoint", "name": endpoint},
            "patch": serde_yaml::to_string(&operations).context("failed to write a patch")?,
        }));
    }
    let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "receiver-ca"}, "data": {"ca.crt": ca_pem}});
    write_yaml(&overlay.join("receiver-ca.yaml"), &ca)?;
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": ["receiver-ca.yaml", EXAMPLES[0].0, EXAMPLES[1].0],
        "patches": patches,
    });
    write_yaml(&overlay.join("kustomization.yaml"), &kustomization)?;
    Ok(overlay)
}

fn write_yaml(path: &Path, value: &Value) -> Result<()> {
    let text = serde_yaml::to_string(value).context("failed to write YAML")?;
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// Gives the receiver of an endpoint the keys of its signing Secret that are named (`current`, `previous`): into files of
/// the inspector's folder of keys, each replaced as a whole; what has no text form of its own goes into [`RAW_KEYS`].
pub fn give_keys(keys: &Path, receiver: &str, secret: &Value, names: &[&str]) -> Result<()> {
    let mut text = String::new();
    let mut files = Vec::new();
    for name in names {
        let key = secret["data"][*name].as_str().and_then(decode);
        match key {
            Some(key) if key.starts_with("whsec_") || key.starts_with("whsk_") => text = format!("{text}{key}\n"),
            raw => files.push((raw_file(keys, receiver, name), raw.unwrap_or_default())),
        }
    }
    files.push((keys.join(receiver), text));
    files.iter().try_for_each(|(file, text)| replace(file, text))
}

/// Takes a receiver's keys away; none there is no error.
pub fn forget_keys(keys: &Path, receiver: &str) -> Result<()> {
    let raw = ["current", "previous"].map(|name| raw_file(keys, receiver, name));
    raw.iter()
        .chain([&keys.join(receiver)])
        .try_for_each(|file| replace(file, ""))
}

fn raw_file(keys: &Path, receiver: &str, name: &str) -> PathBuf {
    keys.join(RAW_KEYS).join(format!("{receiver}.{name}"))
}

/// As a whole; removes it where there is no text.
fn replace(file: &Path, text: &str) -> Result<()> {
    if text.is_empty() {
        return match fs::remove_file(file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {}", file.display()))
            }
            _ => Ok(()),
        };
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let fresh = file.with_file_name(format!(".{name}"));
    fs::create_dir_all(file.parent().unwrap_or(file)).context("failed to create a folder of keys")?;
    process::write_private(&fresh, text)?;
    fs::rename(&fresh, file).with_context(|| format!("failed to write {}", file.display()))
}

/// A Secret's value where it is text.
fn decode(value: &str) -> Option<String> {
    use base64::Engine;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value).ok()?;
    String::from_utf8(bytes).ok()
}
