//! A real node: containerd, kubelet, kube-scheduler and kube-proxy beside a control plane, for pods, probes and Services.
//!
//! Knows nothing of Tidings. Invariant: it runs inside namespaces of its own (`place.rs`), and leaves nothing behind.

mod place;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

pub use place::{enter, inside};

use crate::binaries;
use crate::cluster::{Cluster, Lifetime, Shape};
use crate::image::Image;
use crate::kubectl::eventually;
use crate::process::{Process, Spec};

/// The node's address, and the API server's.
pub(crate) const ADDRESS: &str = "10.89.0.1";
pub(crate) const NAME: &str = "node";
/// Pods' addresses.
const PODS: &str = "10.90.0.0/16";
/// Nobody answers there: what needs names brings a server of its own.
const DNS: &str = "10.96.0.10";
const PAUSE: &str = "registry.k8s.io/pause:3.10";
const PAUSE_SOURCE: &str = include_str!("../pause.c");
const READY_WITHIN: Duration = Duration::from_secs(240);

/// A cluster with one node, ready for pods. Dropping it stops all of it.
#[derive(Debug)]
pub struct Node {
    // Before the cluster: fields are dropped in this order.
    kubelet: Process,
    _others: Vec<Process>,
    dir: PathBuf,
    cluster: Cluster,
}

impl Node {
    /// Starts both, and waits until the node is Ready. Once in a process: it is the machine's one node.
    pub fn start() -> Result<Node> {
        place::furnish()?;
        let programs = binaries::node()?;
        let cluster = Cluster::start_as(Cluster::temporary_dir()?, Lifetime::WithParent, Shape::WithNode)?;
        let dir = cluster.dir().join("node");
        for name in ["cni", "volumes", "plugins"] {
            fs::create_dir_all(dir.join(name)).with_context(|| format!("failed to create {}", dir.display()))?;
        }
        let write = |name: &str, value: &serde_json::Value| {
            fs::write(dir.join(name), value.to_string()).with_context(|| format!("failed to write {name}"))
        };
        fs::write(dir.join("containerd.toml"), containerd_config(&dir)).context("failed to write containerd.toml")?;
        write("cni/10-bridge.conflist", &network(&dir))?;
        write("kubelet.json", &kubelet_config(&cluster, &dir))?;

        let start = |name: &str, program: &Path, args: Vec<String>| {
            Process::start(Spec {
                name: name.into(),
                program: program.to_owned(),
                args: args.into_iter().map(Into::into).collect(),
                env: Vec::new(),
                log: cluster.logs_dir().join(format!("{name}.log")),
                lifetime: Lifetime::WithParent,
            })
        };
        let kubeconfig = |name: &str| {
            format!(
                "--kubeconfig={}",
                cluster.dir().join(format!("pki/{name}.kubeconfig")).display()
            )
        };
        let config = dir.join("containerd.toml").display().to_string();
        let mut containerd = start("containerd", Path::new("containerd"), vec!["--config".into(), config])?;
        containerd.wait_until("listening", READY_WITHIN, || ctr(&dir, &["version"]).is_ok())?;
        load(&dir, &pause(&dir)?)?;
        let scheduler = start(
            "kube-scheduler",
            &programs.scheduler,
            vec![
                kubeconfig("kube-scheduler"),
                "--leader-elect=false".into(),
                "--secure-port=0".into(),
            ],
        )?;
        let proxy = start(
            "kube-proxy",
            &programs.proxy,
            vec![
                kubeconfig("kube-proxy"),
                "--proxy-mode=iptables".into(),
                format!("--cluster-cidr={PODS}"),
                format!("--hostname-override={NAME}"),
                "--conntrack-max-per-core=0".into(),
            ],
        )?;
        let kubelet = start(
            "kubelet",
            &programs.kubelet,
            vec![
                kubeconfig("kubelet"),
                format!("--config={}", dir.join("kubelet.json").display()),
                format!("--root-dir={}", dir.join("kubelet").display()),
                format!("--cert-dir={}", dir.join("kubelet-pki").display()),
                format!("--node-ip={ADDRESS}"),
                format!("--hostname-override={NAME}"),
            ],
        )?;
        let mut node = Node {
            kubelet,
            _others: vec![scheduler, proxy, containerd],
            dir,
            cluster,
        };
        node.await_ready()?;
        Ok(node)
    }

    /// Its control plane.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Loads an image's archive, as `ctr -n k8s.io images import` does.
    pub fn load(&self, archive: &Path) -> Result<()> {
        load(&self.dir, archive)
    }

    /// Gives a loaded image another name.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        ctr(&self.dir, &["images", "tag", image, name])
    }

    /// A folder of the node's disk, for a volume: everybody may write to it.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = self.dir.join("volumes").join(name);
        fs::create_dir_all(&folder).context("failed to create a volume")?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).context("failed to open a volume")?;
        Ok(folder)
    }

    /// Kills the kubelet and starts it again; pods go on meanwhile.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.kill9();
        self.kubelet.start_again()?;
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<()> {
        let (kubelet, cluster) = (&mut self.kubelet, &self.cluster);
        kubelet.wait_until("healthy", READY_WITHIN, || {
            crate::process::http_status(HEALTHZ_PORT, "/healthz") == Some(200)
        })?;
        let ready = || cluster.wait_for("default", &format!("node/{NAME}"), "condition=Ready", READY_WITHIN);
        eventually("the node being there", READY_WITHIN, || {
            Ok(cluster.get("default", "node", NAME)?.is_some())
        })
        .and_then(|()| ready())
        .with_context(|| format!("the kubelet's log ends:\n{}", kubelet.log_tail()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The kubelet first, or it would start pods again.
        self.kubelet.kill9();
        place::clear(&self.dir);
    }
}

const HEALTHZ_PORT: u16 = 10248;

fn socket(dir: &Path) -> PathBuf {
    dir.join("containerd.sock")
}

fn ctr(dir: &Path, args: &[&str]) -> Result<()> {
    let output = Command::new("ctr")
        .arg("--address")
        .arg(socket(dir))
        .args(["--namespace", "k8s.io"])
        .args(args)
        .output()
        .context("failed to run ctr")?;
    if !output.status.success() {
        bail!(
            "ctr {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn load(dir: &Path, archive: &Path) -> Result<()> {
    ctr(
        dir,
        &["images", "import", archive.to_str().context("a path is not UTF-8")?],
    )
}

/// The sandbox's image, whose program is compiled here: no registry is asked for anything.
fn pause(dir: &Path) -> Result<PathBuf> {
    let (source, program, archive) = (dir.join("pause.c"), dir.join("pause"), dir.join("pause.tar"));
    fs::write(&source, PAUSE_SOURCE).context("failed to write pause.c")?;
    let output = Command::new("cc")
        .args(["-static", "-Os", "-o"])
        .args([&program, &source])
        .output()
        .context("failed to run the C compiler")?;
    if !output.status.success() {
        bail!("failed to compile pause.c: {}", String::from_utf8_lossy(&output.stderr));
    }
    let image = Image {
        name: PAUSE,
        program: &program,
        beside: &[],
        labels: Default::default(),
    };
    image.write(&archive)?;
    Ok(archive)
}

fn containerd_config(dir: &Path) -> String {
    let (dir, socket) = (dir.display(), socket(dir));
    format!(
        r#"version = 2
root = "{dir}/containerd"
state = "{dir}/containerd-state"
[grpc]
  address = "{}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # Below its own score a process in a namespace may not go.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
"#,
        socket.display()
    )
}

fn network(dir: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": dir.join("addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet_config(cluster: &Cluster, dir: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": cluster.dir().join("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{}", socket(dir).display()),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        // The machine's disk and memory are not this node's alone.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "healthzPort": HEALTHZ_PORT,
        "podLogsDir": dir.join("logs"),
        "volumePluginDir": dir.join("plugins"),
        // Two rounds of probes in a test's patience.
        "syncFrequency": "10s",
    })
}
