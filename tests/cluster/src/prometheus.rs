//! A real Prometheus that scrapes what it is told, promtool, and the definitions of the Prometheus Operator.
//!
//! Invariant: it keeps its data in a folder of its own, gone with it, and listens on loopback.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::binaries;
use crate::cluster::Cluster;
use crate::process::{
    Lifetime, Process, Spec, die_with_parent, free_port, http_exchange, http_status, with_free_ports,
};

const OPERATOR: &str = "github.com/prometheus-operator/prometheus-operator";
const GO_MOD: &str = include_str!("../monitoring/go.mod");
const GO_SUM: &str = include_str!("../monitoring/go.sum");
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Runs promtool with this standard input, whatever comes out.
pub fn promtool(args: &[&str], input: &str) -> Result<Output> {
    let program = binaries::promtool()?;
    let said = tempfile::NamedTempFile::new().context("failed to create a file for promtool")?;
    fs::write(said.path(), input).context("failed to write what promtool reads")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::from(said.reopen()?));
    die_with_parent(&mut command);
    command
        .output()
        .with_context(|| format!("failed to run promtool {}", args.join(" ")))
}

/// The Prometheus Operator's CustomResourceDefinitions of what the chart makes, from its Go module.
pub fn operator_definitions() -> Result<String> {
    let module = tempfile::tempdir().context("failed to create a folder")?;
    for (name, content) in [("go.mod", GO_MOD), ("go.sum", GO_SUM)] {
        fs::write(module.path().join(name), content).with_context(|| format!("failed to write {name}"))?;
    }
    let mut command = Command::new("go");
    command
        .args(["mod", "download", "-json", OPERATOR])
        .current_dir(module.path())
        .env("GOWORK", "off");
    die_with_parent(&mut command);
    let output = command.output().context("failed to run `go`: install Go 1.26")?;
    let said: Value = serde_json::from_slice(&output.stdout).context("go mod download says nothing")?;
    let dir = said["Dir"]
        .as_str()
        .with_context(|| format!("failed to get {OPERATOR}: {}", said["Error"]))?;
    let definition = |kind: &str| {
        let name = format!("{dir}/example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml");
        fs::read_to_string(&name).with_context(|| format!("failed to read {name}"))
    };
    Ok([definition("servicemonitors")?, definition("prometheusrules")?].join("---\n"))
}

/// Defines them in a cluster, as whoever runs the operator has; returns when they can be used.
pub fn define_operator_kinds(cluster: &Cluster, within: Duration) -> Result<()> {
    // Too large for the annotation of a client's apply.
    let apply = [
        "apply",
        "--server-side",
        "--validate=strict",
        "--warnings-as-errors",
        "-f",
        "-",
    ];
    let output = cluster.kubectl_with_input(&apply, &operator_definitions()?)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for kind in ["servicemonitors", "prometheusrules"] {
        let definition = format!("crd/{kind}.monitoring.coreos.com");
        cluster.wait_for("default", &definition, "condition=Established", within)?;
    }
    cluster.wait_for_kinds("servicemonitors,prometheusrules", within)
}

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    _process: Process,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Builds it where it is not there yet, which needs a network.
    pub fn ensure() -> Result<()> {
        binaries::prometheus().map(drop)
    }

    /// One with this configuration, and these files beside it.
    pub fn start(config: &str, files: &[(&str, &str)]) -> Result<Prometheus> {
        let program = binaries::prometheus()?;
        let dir = tempfile::tempdir().context("failed to create Prometheus' folder")?;
        let file = dir.path().join("prometheus.yml");
        for (name, content) in files.iter().chain(&[("prometheus.yml", config)]) {
            fs::write(dir.path().join(name), content).with_context(|| format!("failed to write {name}"))?;
        }
        let flag = |name: &str, value: PathBuf| -> OsString { format!("--{name}={}", value.display()).into() };
        let (process, port) = with_free_ports(|| {
            let port = free_port()?;
            let mut process = Process::start(Spec {
                name: "prometheus".into(),
                program: program.clone(),
                args: vec![
                    flag("config.file", file.clone()),
                    flag("storage.tsdb.path", dir.path().join("data")),
                    format!("--web.listen-address=127.0.0.1:{port}").into(),
                ],
                env: Vec::new(),
                log: dir.path().join("prometheus.log"),
                lifetime: Lifetime::WithParent,
            })?;
            process.wait_until("ready", READY_WITHIN, || http_status(port, "/-/ready") == Some(200))?;
            Ok((process, port))
        })?;
        Ok(Prometheus {
            _process: process,
            port,
            _dir: dir,
        })
    }

    /// The result of an instant query: its series, each with labels and a value.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.ask("query", &[("query", expression)])?;
        data["result"].as_array().cloned().context("no result")
    }

    /// What `/api/v1/<path>` answers to these parameters: its `data`, or its error.
    pub fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let query: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={}", percent_encoded(value)))
            .collect();
        let request = format!(
            "GET /api/v1/{path}?{} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n",
            query.join("&")
        );
        let (_, answer) =
            http_exchange(self.port, request.as_bytes()).with_context(|| format!("no answer to /api/v1/{path}"))?;
        let answer: Value = serde_json::from_str(&answer).map_err(|_| anyhow!("no JSON: {answer}"))?;
        if answer["status"] != "success" {
            bail!("{}", answer["error"]);
        }
        Ok(answer["data"].clone())
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
