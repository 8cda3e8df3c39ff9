//! The control plane: etcd, kube-apiserver and kube-controller-manager on loopback, in a directory of their own.
//!
//! Invariant: two clusters share nothing but the programs; what one leaves behind when its process was killed is removed
//! by the next that starts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::json;

pub use crate::process::Lifetime;

use crate::Binaries;
use crate::certificates::{ServerCertificate, ThrowawayCa, signing_key};
use crate::kubectl::{base64, eventually};
use crate::leaks;
use crate::node;
use crate::process::{Process, Spec, free_port, write_private};
use crate::proxy::Proxy;

/// Three seconds alone; far more when eight builds share two cores.
const START_WITHIN: Duration = Duration::from_secs(120);
/// A free port can be taken by somebody else before it is bound.
const START_ATTEMPTS: u32 = 4;
const DIR_PREFIX: &str = "tidings-cluster-";
/// kube-controller-manager's controllers that the resources' life depends on, where there are no pods.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
                           root-ca-certificate-publisher-controller,clusterrole-aggregation-controller,\
                           validatingadmissionpolicy-status-controller";

/// What a control plane is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Resources, which need the API server and few controllers: all of it on loopback.
    Alone,
    /// Pods too: a node reaches it, and it reaches the node.
    WithNode,
}

/// A running control plane. Dropping it stops it and removes its directory (but not one started as a daemon).
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    lifetime: Lifetime,
    binaries: Binaries,
    server_url: String,
    ca_pem: String,
    etcd_port: u16,
    etcd: Mutex<Process>,
    api_server: Mutex<Process>,
    controller_manager: Mutex<Process>,
    /// Started by the first who asks.
    proxy: Mutex<Option<Arc<Proxy>>>,
    /// Held as long as the directory is in use.
    _lock: File,
}

static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();

impl Cluster {
    /// Starts a cluster of one's own in a temporary directory, and waits until it is ready.
    pub fn start() -> Result<Cluster> {
        Cluster::start_in(Cluster::temporary_dir()?, Lifetime::WithParent)
    }

    /// A temporary directory for a cluster of one's own; those of clusters whose process was killed are removed.
    pub fn temporary_dir() -> Result<PathBuf> {
        sweep();
        let dir = tempfile::Builder::new()
            .prefix(DIR_PREFIX)
            .tempdir()
            .context("failed to create the cluster's directory")?;
        Ok(dir.keep())
    }

    /// The cluster that all tests of this process share, started by the first that asks. Use a namespace of your own.
    pub fn shared() -> Result<&'static Cluster> {
        let started = SHARED.get_or_init(|| {
            // SAFETY: registers a plain function; it runs once, at exit.
            unsafe { libc::atexit(stop_shared) };
            Cluster::start().map_err(|error| format!("{error:#}"))
        });
        started
            .as_ref()
            .map_err(|error| anyhow!("the shared cluster did not start: {error}"))
    }

    /// Starts a cluster in this (empty) directory.
    pub fn start_in(dir: PathBuf, lifetime: Lifetime) -> Result<Cluster> {
        Cluster::start_as(dir, lifetime, Shape::Alone)
    }

    pub(crate) fn start_as(dir: PathBuf, lifetime: Lifetime, shape: Shape) -> Result<Cluster> {
        let binaries = Binaries::ensure()?;
        for name in ["etcd", "logs", "pki"] {
            fs::create_dir_all(dir.join(name)).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let lock = lock(&dir)?;

        let pki = Pki::create(&dir.join("pki"))?;
        let mut attempt = 1;
        let (ports, etcd, api_server) = loop {
            match start_servers(&dir, &binaries, lifetime, shape) {
                Ok(started) => break started,
                Err(error) if attempt < START_ATTEMPTS && format!("{error:#}").contains("address already in use") => {
                    attempt += 1;
                    let _ = fs::remove_dir_all(dir.join("etcd"));
                }
                Err(error) => return Err(error),
            }
        };
        let server_url = format!("https://127.0.0.1:{}", ports.api);
        let controller_manager = Spec {
            name: "kube-controller-manager".into(),
            program: binaries.kube_controller_manager.clone(),
            args: controller_manager_args(&dir, shape),
            env: Vec::new(),
            log: dir.join("logs/kube-controller-manager.log"),
            lifetime,
        };
        let credentials = |certificate: &ServerCertificate| {
            json!({
                "client-certificate-data": base64(&certificate.certificate_pem),
                "client-key-data": base64(&certificate.key_pem),
            })
        };
        // kubeconfigs need the cluster's address, and the controller manager needs its kubeconfig: so it starts last.
        let cluster = Cluster {
            server_url,
            ca_pem: pki.ca_pem.clone(),
            etcd_port: ports.etcd,
            etcd: Mutex::new(etcd),
            api_server: Mutex::new(api_server),
            controller_manager: Mutex::new(Process::stopped(controller_manager)),
            proxy: Mutex::default(),
            binaries,
            lifetime,
            dir,
            _lock: lock,
        };
        cluster.write_kubeconfig(&cluster.kubeconfig_path(), "admin", credentials(&pki.admin))?;
        let manager_config = cluster.dir.join("pki/controller-manager.kubeconfig");
        cluster.write_kubeconfig(
            &manager_config,
            "controller-manager",
            credentials(&pki.controller_manager),
        )?;
        for (name, certificate) in &pki.node {
            let path = cluster.dir.join(format!("pki/{name}.kubeconfig"));
            cluster.write_kubeconfig(&path, name, credentials(certificate))?;
        }
        cluster.await_api_server()?;
        held(&cluster.controller_manager).start_again()?;
        eventually("the controller manager at work", START_WITHIN, || {
            Ok(cluster.get("default", "serviceaccount", "default")?.is_some())
        })?;
        Ok(cluster)
    }

    /// The cluster's directory: kubeconfigs, logs, etcd's data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where logs go, those of Tidings' processes too.
    pub fn logs_dir(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The administrator's kubeconfig (a client certificate of `system:masters`): for tests, never for Tidings.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// `https://127.0.0.1:port`; the same after the API server was stopped and started again.
    pub fn server_url(&self) -> &str {
        &self.server_url
    }

    /// The API server's CA.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The programs it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// How its processes end.
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// The process ids of what runs now.
    pub fn pids(&self) -> Vec<u32> {
        [&self.etcd, &self.api_server, &self.controller_manager]
            .iter()
            .filter_map(|process| held(process).pid())
            .collect()
    }

    /// Whether all of it runs.
    pub(crate) fn is_whole(&self) -> bool {
        let mut processes = [&self.etcd, &self.api_server, &self.controller_manager].into_iter();
        processes.all(|process| held(process).is_running())
    }

    pub(crate) fn etcd_port(&self) -> u16 {
        self.etcd_port
    }

    /// Kills the API server; what watches it sees its connections break. etcd keeps everything.
    pub fn stop_api_server(&self) {
        held(&self.api_server).kill9();
    }

    /// Starts the API server again at the same address, and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        held(&self.api_server).start_again()?;
        self.await_api_server()?;
        let mut manager = held(&self.controller_manager);
        if !manager.is_running() {
            manager.kill9();
            manager.start_again()?;
        }
        Ok(())
    }

    /// Status and body of the API server's answer to a GET as administrator.
    pub(crate) fn ask(&self, path: &str) -> Result<(u16, String)> {
        self.proxy()?.get(path)
    }

    pub(crate) fn proxy(&self) -> Result<Arc<Proxy>> {
        let mut started = held(&self.proxy);
        match &*started {
            Some(proxy) => Ok(proxy.clone()),
            None => Ok(started.insert(Arc::new(Proxy::start(self)?)).clone()),
        }
    }

    /// Stops everything and removes the directory. Twice is no error.
    pub fn stop(&self) {
        *held(&self.proxy) = None;
        for process in [&self.controller_manager, &self.api_server, &self.etcd] {
            held(process).kill9();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// Fails the test whose processes logged a secret.
    pub(crate) fn assert_no_secret_was_logged(&self) {
        fail_for(&self.leaks());
    }

    /// The places of secrets in its logs; one more where they cannot be read, for then nobody knows.
    fn leaks(&self) -> Vec<String> {
        let logs = self.logs_dir();
        leaks::in_files(&logs).unwrap_or_else(|error| vec![format!("{} cannot be read: {error}", logs.display())])
    }

    /// The places of secrets in Events and in Tidings' objects, where its kinds are installed.
    fn shown_leaks(&self) -> Result<Vec<String>> {
        let ours = self.kubectl_ok(&["api-resources", "--api-group=tidings.dev", "--verbs=list", "-o", "name"])?;
        let kinds: Vec<&str> = ours.lines().chain(["events.events.k8s.io"]).collect();
        let kinds = kinds.join(",");
        let shown = self.kubectl_ok(&["get", &kinds, "-A", "-o", "yaml", "--request-timeout=60s"])?;
        let lines = leaks::lines_with_secrets(&mut shown.as_bytes())?;
        Ok(lines
            .iter()
            .map(|line| format!("line {line} of kubectl get {kinds}"))
            .collect())
    }

    pub(crate) fn await_api_server(&self) -> Result<()> {
        let mut api_server = held(&self.api_server);
        api_server.wait_until("ready", START_WITHIN, || {
            self.ask("/readyz").is_ok_and(|(status, _)| status == 200)
        })
    }
}

impl Drop for Cluster {
    /// Fails the test whose processes logged a secret.
    fn drop(&mut self) {
        // One that was stopped before was looked at before.
        if self.lifetime == Lifetime::WithParent && self.dir.exists() {
            let leaks = self.leaks();
            self.stop();
            fail_for(&leaks);
        }
    }
}

fn fail_for(leaks: &[String]) {
    assert!(
        leaks.is_empty() || thread::panicking(),
        "secrets were logged, or nobody knows: {leaks:#?}"
    );
}

/// A static is never dropped; without this the shared cluster's directory would stay until the next run's sweep. Fails the
/// whole run when its processes logged a secret, or show one in Kubernetes.
extern "C" fn stop_shared() {
    if let Some(Ok(cluster)) = SHARED.get() {
        let mut leaks = cluster.leaks();
        match cluster.shown_leaks() {
            Ok(shown) => leaks.extend(shown),
            Err(error) => leaks.push(format!("Kubernetes cannot be looked at: {error:#}")),
        }
        cluster.stop();
        if !leaks.is_empty() {
            eprintln!("secrets were shown, or nobody knows: {leaks:#?}");
            // SAFETY: ends the process, which is exiting.
            unsafe { libc::_exit(1) };
        }
    }
}

/// Takes the directory's lock before it is seen under its name, so that a sweep never finds it free.
fn lock(dir: &Path) -> Result<File> {
    let taking = dir.join(".lock-new");
    let file = File::create(&taking).context("failed to create the cluster's lock")?;
    file.try_lock().context("the cluster's directory is in use")?;
    fs::rename(&taking, dir.join(".lock")).context("failed to name the cluster's lock")?;
    Ok(file)
}

/// Removes directories of clusters whose process was killed: their lock is free.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(DIR_PREFIX) {
            continue;
        }
        // Without a lock file it is one that starts at this moment.
        if File::open(entry.path().join(".lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A lock poisoned by a failed test still guards a process that must be stopped.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct Pki {
    ca_pem: String,
    admin: ServerCertificate,
    controller_manager: ServerCertificate,
    /// Of what runs on a node.
    node: [(&'static str, ServerCertificate); 3],
}

impl Pki {
    fn create(dir: &Path) -> Result<Pki> {
        let ca = ThrowawayCa::named("tidings test cluster")?;
        let names = [
            "127.0.0.1",
            "::1",
            "localhost",
            "10.96.0.1",
            "kubernetes.default.svc",
            node::ADDRESS,
        ];
        let serving = ca.server_for(&names)?;
        let to_kubelet = ca.client("kube-apiserver", Some("system:masters"))?;
        write_private(&dir.join("to-kubelet.crt"), &to_kubelet.certificate_pem)?;
        write_private(&dir.join("to-kubelet.key"), &to_kubelet.key_pem)?;
        write_private(&dir.join("ca.crt"), ca.pem())?;
        write_private(&dir.join("apiserver.crt"), &serving.certificate_pem)?;
        write_private(&dir.join("apiserver.key"), &serving.key_pem)?;
        let (private, public) = signing_key()?;
        write_private(&dir.join("service-account.key"), &private)?;
        write_private(&dir.join("service-account.pub"), &public)?;
        Ok(Pki {
            ca_pem: ca.pem().to_owned(),
            admin: ca.client("tidings-admin", Some("system:masters"))?,
            controller_manager: ca.client("system:kube-controller-manager", None)?,
            node: [
                (
                    "kubelet",
                    ca.client(&format!("system:node:{}", node::NAME), Some("system:nodes"))?,
                ),
                ("kube-scheduler", ca.client("system:kube-scheduler", None)?),
                ("kube-proxy", ca.client("system:kube-proxy", None)?),
            ],
        })
    }
}

struct Ports {
    etcd: u16,
    peer: u16,
    api: u16,
}

/// etcd and the API server, up to the point where both have bound their ports.
fn start_servers(
    dir: &Path,
    binaries: &Binaries,
    lifetime: Lifetime,
    shape: Shape,
) -> Result<(Ports, Process, Process)> {
    let ports = Ports {
        etcd: free_port()?,
        peer: free_port()?,
        api: free_port()?,
    };
    let spec = |name: &str, program: &Path, args: Vec<String>| Spec {
        name: name.into(),
        program: program.to_owned(),
        args: args.into_iter().map(Into::into).collect(),
        env: Vec::new(),
        log: dir.join(format!("logs/{name}.log")),
        lifetime,
    };
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.peer);
    let etcd_args = vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        "--unsafe-no-fsync".into(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--log-level=warn".into(),
    ];
    let pki = |file: &str| dir.join("pki").join(file).display().to_string();
    let mut api_args = vec![
        format!("--etcd-servers={client}"),
        format!("--secure-port={}", ports.api),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", pki("service-account.pub")),
        format!("--service-account-signing-key-file={}", pki("service-account.key")),
        "--allow-privileged=true".into(),
    ];
    api_args.extend(match shape {
        Shape::Alone => vec![
            // Where a test can listen: nothing routes to Services without a node.
            "--service-cluster-ip-range=127.96.0.0/16".into(),
            "--bind-address=127.0.0.1".into(),
            "--authorization-mode=RBAC".into(),
            "--endpoint-reconciler-type=none".into(),
        ],
        Shape::WithNode => vec![
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--bind-address=0.0.0.0".into(),
            format!("--advertise-address={}", node::ADDRESS),
            "--authorization-mode=Node,RBAC".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--kubelet-client-certificate={}", pki("to-kubelet.crt")),
            format!("--kubelet-client-key={}", pki("to-kubelet.key")),
        ],
    });
    let mut etcd = Process::start(spec("etcd", &binaries.etcd, etcd_args))?;
    let mut api_server = Process::start(spec("kube-apiserver", &binaries.kube_apiserver, api_args))?;
    let listening = |process: &mut Process, port: u16| {
        process.wait_until("listening", START_WITHIN, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
    };
    let mut started = listening(&mut etcd, ports.etcd).and_then(|()| listening(&mut api_server, ports.api));
    if started.is_ok() && (etcd.exited().is_some() || api_server.exited().is_some()) {
        started = Err(anyhow!("address already in use: another process answers at our port"));
    }
    if let Err(error) = started {
        // A daemon is not stopped by Drop.
        etcd.kill9();
        api_server.kill9();
        return Err(error);
    }
    Ok((ports, etcd, api_server))
}

fn controller_manager_args(dir: &Path, shape: Shape) -> Vec<std::ffi::OsString> {
    let pki = |file: &str| dir.join("pki").join(file).display().to_string();
    [
        format!("--kubeconfig={}", pki("controller-manager.kubeconfig")),
        "--leader-elect=false".into(),
        // Each controller under its own bootstrap role: the manager's own has too little for the garbage collector.
        "--use-service-account-credentials=true".into(),
        format!("--service-account-private-key-file={}", pki("service-account.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        match shape {
            Shape::Alone => format!("--controllers={CONTROLLERS}"),
            Shape::WithNode => "--allocate-node-cidrs=false".into(),
        },
        // No port: nobody asks it.
        "--secure-port=0".into(),
    ]
    .into_iter()
    .map(Into::into)
    .collect()
}
