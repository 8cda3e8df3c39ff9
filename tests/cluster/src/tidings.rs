//! Tidings in the cluster: its resources and RBAC installed, its processes running as children.
//!
//! Knows the command line of `tidings` and nothing of its code. Invariant: a Tidings process gets the kubeconfig of its
//! own ServiceAccount, never the administrator's, so whatever works here works with the RBAC of `deploy/`, which is the chart's.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::certificates::ServerCertificate;
use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::kubectl::{eventually, repository_root};
use crate::process::{Process, Spec, free_port, http_get, http_status, with_free_ports, write_private};

/// The folder of an inspector's raw secrets, within that of its keys.
pub const RAW_KEYS: &str = "raw";
/// Where Tidings' ServiceAccounts and Leases live.
pub const SYSTEM_NAMESPACE: &str = "tidings-system";
/// A namespace with this label may send to loopback under `examples/policy.yaml`.
pub const OPEN_LOOPBACK_LABEL: (&str, &str) = ("tidings.dev/loopback", "open");

/// A debug build on a machine that compiles something else at the same time.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Of the chart: who the processes are, and what they may do.
const RBAC_TEMPLATES: [&str; 5] = [
    "templates/controller/serviceaccount.yaml",
    "templates/controller/rbac.yaml",
    "templates/controller/admission.yaml",
    "templates/dispatcher/serviceaccount.yaml",
    "templates/dispatcher/rbac.yaml",
];

const KINDS: [&str; 4] = ["webhookendpoints", "eventsubscriptions", "eventtypes", "replays"];

/// Tidings installed in a cluster: CRDs and `deploy/rbac` applied.
#[derive(Debug)]
pub struct Tidings<'a> {
    cluster: &'a Cluster,
    binary: PathBuf,
    started: AtomicU32,
}

/// How to start a controller.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Its name in the leader's Lease.
    pub identity: String,
    /// The administrator's policy; `examples/policy.yaml` by default.
    pub policy: PathBuf,
    /// `RUST_LOG`.
    pub log_filter: String,
    /// More arguments, after all others.
    pub extra_args: Vec<OsString>,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        ControllerOptions {
            identity: "controller-0".into(),
            policy: repository_root().join("examples/policy.yaml"),
            log_filter: LOG_FILTER.into(),
            extra_args: Vec::new(),
        }
    }
}

/// How to start a dispatcher.
#[derive(Clone, Debug)]
pub struct DispatcherOptions {
    /// Its name: the Lease is `tidings-dispatcher-<identity>`.
    pub identity: String,
    /// Where its queue is; a directory of its own below the cluster's by default.
    pub data_dir: Option<PathBuf>,
    /// The administrator's policy; `examples/policy.yaml` by default.
    pub policy: PathBuf,
    /// `host:port` of the DNS server to ask; the system's by default.
    pub dns_server: Option<String>,
    /// `RUST_LOG`.
    pub log_filter: String,
    /// More arguments, after all others.
    pub extra_args: Vec<OsString>,
    /// More variables of its environment.
    pub extra_env: Vec<(String, OsString)>,
}

impl Default for DispatcherOptions {
    fn default() -> Self {
        DispatcherOptions {
            identity: "0".into(),
            data_dir: None,
            policy: repository_root().join("examples/policy.yaml"),
            dns_server: None,
            log_filter: LOG_FILTER.into(),
            extra_args: Vec::new(),
            extra_env: Vec::new(),
        }
    }
}

/// Everything of our own, so that a scan of the logs finds what could leak; of others what a person would want.
const LOG_FILTER: &str = "info,tidings=trace";

impl<'a> Tidings<'a> {
    /// Applies the CRDs and `deploy/rbac`, and waits until the kinds are served. `binary` is the built `tidings`, in tests
    /// `env!("CARGO_BIN_EXE_tidings")`.
    pub fn install(cluster: &'a Cluster, binary: impl Into<PathBuf>) -> Result<Tidings<'a>> {
        install_manifests(cluster)?;
        Ok(Tidings::installed(cluster, binary))
    }

    /// The same where it was installed before, as in every cluster that is [lent](Cluster::lend).
    pub fn installed(cluster: &'a Cluster, binary: impl Into<PathBuf>) -> Tidings<'a> {
        Tidings {
            cluster,
            binary: binary.into(),
            started: AtomicU32::new(0),
        }
    }

    /// The same with what the chart has for these namespaces alone, which must exist: Roles in them instead of `deploy/rbac`.
    pub fn install_for(cluster: &'a Cluster, binary: impl Into<PathBuf>, namespaces: &[&str]) -> Result<Tidings<'a>> {
        let watched = format!("watchNamespaces={}", serde_json::to_string(namespaces)?);
        let chart = Helm::chart();
        let chart = chart.to_str().context("the repository's path is not UTF-8")?;
        let mut args = vec![
            "template",
            "tidings",
            chart,
            "-n",
            SYSTEM_NAMESPACE,
            "--set-json",
            &watched,
        ];
        for template in RBAC_TEMPLATES {
            args.extend(["--show-only", template]);
        }
        let rendered = Helm::offline()?.ok(&args)?;
        cluster.create_namespace(SYSTEM_NAMESPACE, &[])?;
        cluster.apply(&rendered)?;
        install_definitions(cluster)?;
        Ok(Tidings::installed(cluster, binary))
    }

    /// The cluster it is installed in.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Starts a controller under the ServiceAccount `tidings-controller` and waits until it is ready.
    pub fn start_controller(&self, options: &ControllerOptions) -> Result<Controller> {
        let kubeconfig = self.cluster.kubeconfig_for(SYSTEM_NAMESPACE, "tidings-controller")?;
        let name = self.unique_name("controller", &options.identity);
        with_free_ports(|| {
            let metrics_port = free_port()?;
            let mut args = arguments(&[
                "controller",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--identity",
                &options.identity,
                "--metrics-listen",
                &format!("127.0.0.1:{metrics_port}"),
                "--policy",
            ]);
            args.push(options.policy.clone().into());
            args.extend(options.extra_args.iter().cloned());
            let process = Process::start(self.spec(&name, args, &kubeconfig, &options.log_filter))?;
            let mut controller = Controller { process, metrics_port };
            controller.wait_ready()?;
            Ok(controller)
        })
    }

    /// Starts a dispatcher under the ServiceAccount `tidings-dispatcher` and waits until it is ready.
    pub fn start_dispatcher(&self, options: &DispatcherOptions) -> Result<Dispatcher> {
        let kubeconfig = self.cluster.kubeconfig_for(SYSTEM_NAMESPACE, "tidings-dispatcher")?;
        let name = self.unique_name("dispatcher", &options.identity);
        let data_dir = options
            .data_dir
            .clone()
            .unwrap_or_else(|| self.cluster.dir().join("data").join(&name));
        fs::create_dir_all(&data_dir).with_context(|| format!("failed to create {}", data_dir.display()))?;
        with_free_ports(|| {
            let (metrics_port, ingest_port) = (free_port()?, free_port()?);
            let mut args = arguments(&[
                "dispatcher",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--identity",
                &options.identity,
                "--metrics-listen",
                &format!("127.0.0.1:{metrics_port}"),
                "--ingest-listen",
                &format!("127.0.0.1:{ingest_port}"),
                "--policy",
            ]);
            args.push(options.policy.clone().into());
            args.push("--data-dir".into());
            args.push(data_dir.clone().into());
            if let Some(server) = &options.dns_server {
                args.extend(arguments(&["--dns-server", server]));
            }
            args.extend(options.extra_args.iter().cloned());
            let mut spec = self.spec(&name, args, &kubeconfig, &options.log_filter);
            spec.env.extend(options.extra_env.iter().cloned());
            let process = Process::start(spec)?;
            let mut dispatcher = Dispatcher {
                process,
                metrics_port,
                ingest_port,
                data_dir: data_dir.clone(),
            };
            dispatcher.wait_ready()?;
            Ok(dispatcher)
        })
    }

    /// Starts `tidings inspect` with this certificate; `secrets` are the `whsec_` values it verifies with.
    pub fn start_inspect(&self, certificate: &ServerCertificate, secrets: &[&str]) -> Result<Inspect> {
        let name = self.unique_name("inspect", "0");
        let keys = self.cluster.dir().join(&name).join("keys");
        fs::create_dir_all(&keys).with_context(|| format!("failed to create {}", keys.display()))?;
        for (n, secret) in secrets.iter().enumerate() {
            write_private(&keys.join(format!("secret-{n}")), secret)?;
        }
        self.inspect(&name, certificate, &keys)
    }

    /// The same with a folder of files of keys, and of raw secrets in [`RAW_KEYS`] within, read again whenever they change.
    pub fn start_inspect_with(&self, certificate: &ServerCertificate, keys: &Path) -> Result<Inspect> {
        self.inspect(&self.unique_name("inspect", "0"), certificate, keys)
    }

    fn inspect(&self, name: &str, certificate: &ServerCertificate, keys: &Path) -> Result<Inspect> {
        let dir = self.cluster.dir().join(name);
        fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
        let (certificate_file, key_file) = (dir.join("tls.crt"), dir.join("tls.key"));
        write_private(&certificate_file, &certificate.certificate_pem)?;
        write_private(&key_file, &certificate.key_pem)?;
        with_free_ports(|| {
            let port = free_port()?;
            let mut args = arguments(&["inspect", "--listen", &format!("127.0.0.1:{port}"), "--tls-cert"]);
            args.push(certificate_file.clone().into());
            args.push("--tls-key".into());
            args.push(key_file.clone().into());
            args.push("--secret-file".into());
            args.push(keys.into());
            args.push("--raw-secret-file".into());
            args.push(keys.join(RAW_KEYS).into());
            let mut spec = self.spec(name, args, Path::new("/nonexistent"), "info");
            spec.env.retain(|(name, _)| name != "KUBECONFIG");
            let mut process = Process::start(spec)?;
            process.wait_until("listening", READY_WITHIN, || {
                std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            })?;
            Ok(Inspect { process, port })
        })
    }

    fn unique_name(&self, kind: &str, identity: &str) -> String {
        format!("{kind}-{identity}-{}", self.started.fetch_add(1, Ordering::Relaxed))
    }

    fn spec(&self, name: &str, args: Vec<OsString>, kubeconfig: &Path, log_filter: &str) -> Spec {
        Spec {
            name: format!("tidings {name}"),
            program: self.binary.clone(),
            args,
            env: vec![
                ("KUBECONFIG".into(), kubeconfig.into()),
                ("RUST_LOG".into(), log_filter.into()),
                ("RUST_BACKTRACE".into(), "1".into()),
            ],
            log: self.cluster.logs_dir().join(format!("{name}.log")),
            lifetime: self.cluster.lifetime(),
        }
    }
}

/// Applies the CRDs and everything in `deploy/` but the pods, as an administrator would, and waits until the kinds are served.
pub(crate) fn install_manifests(cluster: &Cluster) -> Result<()> {
    apply_folder(cluster, "deploy/rbac")?;
    install_definitions(cluster)
}

fn apply_folder(cluster: &Cluster, folder: &str) -> Result<()> {
    let folder = repository_root().join(folder);
    let folder = folder.to_str().context("the repository's path is not UTF-8")?;
    cluster.kubectl_ok(&["apply", "--server-side", "-k", folder])?;
    Ok(())
}

fn install_definitions(cluster: &Cluster) -> Result<()> {
    apply_folder(cluster, "crds")?;
    // What discovery lists is Established.
    eventually("the kinds of tidings.dev in discovery", READY_WITHIN, || {
        let (_, listed) = cluster.ask("/apis/tidings.dev/v1alpha1")?;
        Ok(KINDS.iter().all(|kind| listed.contains(&format!("\"{kind}\""))))
    })
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    pub process: Process,
    pub metrics_port: u16,
}

/// A running dispatcher.
#[derive(Debug)]
pub struct Dispatcher {
    pub process: Process,
    pub metrics_port: u16,
    pub ingest_port: u16,
    pub data_dir: PathBuf,
}

/// A running `tidings inspect`; its log is its JSON lines.
#[derive(Debug)]
pub struct Inspect {
    pub process: Process,
    pub port: u16,
}

impl Inspect {
    /// `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// What it has printed so far, one JSON object a request.
    pub fn requests(&self) -> Vec<serde_json::Value> {
        let log = self.process.log();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Controller {
    /// Waits for `/readyz`.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_ready(&mut self.process, self.metrics_port)
    }

    /// Its metrics in the text format.
    pub fn metrics(&self) -> Result<String> {
        metrics(self.metrics_port)
    }
}

impl Dispatcher {
    /// Waits for `/readyz`.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_ready(&mut self.process, self.metrics_port)
    }

    /// Its metrics in the text format.
    pub fn metrics(&self) -> Result<String> {
        metrics(self.metrics_port)
    }

    /// Where events of a namespace are posted.
    pub fn events_url(&self, namespace: &str) -> String {
        format!("{}/v1/namespaces/{namespace}/events", self.ingest_url())
    }

    /// `http://127.0.0.1:port`; the same after a restart.
    pub fn ingest_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ingest_port)
    }

    /// `kill -9`: nothing it had in hand is finished.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// SIGTERM, and the time a pod would give it.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.process.terminate(within)
    }

    /// Starts it again on the same data, at the same addresses, and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill9();
        self.process.start_again()?;
        self.wait_ready()
    }
}

fn wait_ready(process: &mut Process, port: u16) -> Result<()> {
    process.wait_until("ready", READY_WITHIN, || http_status(port, "/readyz") == Some(200))
}

fn metrics(port: u16) -> Result<String> {
    match http_get(port, "/metrics") {
        Some((200, body)) => Ok(body),
        Some((status, _)) => bail!("/metrics answered {status}"),
        None => bail!("/metrics did not answer"),
    }
}

fn arguments(args: &[&str]) -> Vec<OsString> {
    args.iter().map(Into::into).collect()
}
