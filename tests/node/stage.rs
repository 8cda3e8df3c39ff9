//! The node with Tidings on it, and a team's namespace with a receiver and producers in pods.
//!
//! Invariant: what a test asks for is there when its method returns, whatever an earlier test left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tidings_cluster::image::Image;
use tidings_cluster::node::Node;
use tidings_cluster::{Cluster, Helm, eventually, repository_root};

use super::produce::TOKEN;

/// A debug build, pods and a rollout on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Where Tidings is installed, and how the release is called.
pub const SYSTEM: &str = "tidings-system";
pub const RELEASE: &str = "tidings";
/// The team's namespace.
pub const TEAM: &str = "shop";
/// The pods of the release.
pub const DISPATCHER: &str = "tidings-dispatcher-0";
pub const CONTROLLERS: &str = "app.kubernetes.io/component=controller";

/// Both namespaces admit nothing less.
const RESTRICTED: (&str, &str) = ("pod-security.kubernetes.io/enforce", "restricted");
pub const REPOSITORY: &str = "ghcr.io/tidings/tidings";
const IMAGE: &str = concat!("ghcr.io/tidings/tidings:", env!("CARGO_PKG_VERSION"));
/// The same image under another name: what an upgrade rolls out.
pub const NEXT_TAG: &str = "next";
const PRODUCER: &str = "example.com/producer:1";
/// docs/backup.md calls it so.
const TAR: &str = "registry.example.com/busybox:1.37";

pub struct Stage {
    pub node: Node,
    pub helm: Helm,
    /// Where a person sits who follows a page: in a clone of the repository.
    desk: PathBuf,
    producers: u32,
}

impl Stage {
    /// The node with the images; nothing is installed yet.
    pub fn set() -> Stage {
        let image = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .with_file_name("image")
            .join("tidings.tar");
        assert!(image.is_file(), "{} is missing: run make image", image.display());
        let node = Node::start().unwrap();
        node.load(&image).unwrap();
        node.tag(IMAGE, &IMAGE.replace(env!("CARGO_PKG_VERSION"), NEXT_TAG))
            .unwrap();
        node.load(&producer_image(node.cluster().dir())).unwrap();
        node.load(&tar_image(node.cluster().dir())).unwrap();
        let helm = Helm::of(node.cluster()).unwrap();
        for namespace in [SYSTEM, TEAM] {
            node.cluster().create_namespace(namespace, &[RESTRICTED]).unwrap();
        }
        let stage = Stage {
            desk: desk(node.cluster().dir()),
            node,
            helm,
            producers: 0,
        };
        stage.new_volume();
        stage.open_team();
        stage
    }

    pub fn cluster(&self) -> &Cluster {
        self.node.cluster()
    }

    /// Installs the chart with its own values, whatever values an earlier test left.
    pub fn install(&self) -> String {
        let installed = self.release("upgrade", &["--install", "--reset-values"]);
        self.ready();
        installed
    }

    /// `helm COMMAND tidings CHART`, and waits as helm does.
    pub fn release(&self, command: &str, more: &[&str]) -> String {
        let chart = Helm::chart();
        let mut args = vec![command, RELEASE, chart.to_str().unwrap(), "--namespace", SYSTEM];
        args.extend(["--wait", "--timeout=5m"]);
        args.extend(more);
        self.helm.ok(&args).unwrap()
    }

    /// Runs commands of a page as they are there; what they said.
    pub fn follow(&self, commands: &str) -> String {
        let said = self.helm.shell(self.cluster(), &self.desk, commands);
        said.unwrap_or_else(|error| {
            self.tell();
            panic!("{error:#}")
        })
    }

    /// A file that a page's commands name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.desk.join(name)
    }

    /// The volume of the queue, new and empty, as a storage class makes one for a claim: here nobody else does.
    pub fn new_volume(&self) {
        let delete = ["delete", "pv", "queue", "--ignore-not-found"];
        self.cluster().kubectl_ok(&delete).unwrap();
        fs::remove_dir_all(self.node.volume("queue").unwrap()).unwrap();
        let volume = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "queue"},
            "spec": {
                "capacity": {"storage": "10Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": self.node.volume("queue").unwrap()},
            },
        });
        self.cluster().apply(&volume.to_string()).unwrap();
    }

    /// Waits until an object of the release is no more.
    pub fn until_gone(&self, kind: &str, name: &str) {
        self.cluster()
            .wait_for(SYSTEM, &format!("{kind}/{name}"), "delete", PATIENCE)
            .unwrap();
    }

    /// Waits until the pods of the release are Ready.
    pub fn ready(&self) {
        for workload in ["statefulset/tidings-dispatcher", "deployment/tidings-controller"] {
            self.rolled_out(SYSTEM, workload);
        }
    }

    fn rolled_out(&self, namespace: &str, workload: &str) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        let args = ["rollout", "status", workload, "-n", namespace, &timeout];
        let waited = self.cluster().kubectl_ok(&args);
        waited.unwrap_or_else(|error| {
            self.tell();
            panic!("{error:#}")
        });
    }

    /// Installed, the team's endpoint and subscription Ready, and its receiver in a pod that verifies with its key.
    pub fn receiving(&self) {
        self.install();
        let endpoint = json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
            "metadata": {"name": "crm", "namespace": TEAM},
            "spec": {"serviceRef": {"name": "receiver", "port": 80, "path": "/hooks/leads"}},
        });
        let subscription = json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": TEAM},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"]},
        });
        for manifest in [endpoint, subscription] {
            self.cluster().apply(&manifest.to_string()).unwrap();
        }
        for object in ["whe/crm", "evsub/leads"] {
            self.cluster()
                .wait_for(TEAM, object, "condition=Ready", PATIENCE)
                .unwrap();
        }
        self.cluster().apply(&receiver().to_string()).unwrap();
        self.rolled_out(TEAM, "deployment/receiver");
    }

    /// Starts a producer's pod that posts so many events, so many milliseconds apart; its name.
    pub fn produce(&mut self, count: u32, pause: u32) -> String {
        self.producers += 1;
        let name = format!("producer-{}", self.producers);
        let service = self
            .cluster()
            .get(SYSTEM, "service", "tidings-dispatcher")
            .unwrap()
            .unwrap();
        let spec = &service["spec"];
        let (address, port) = (spec["clusterIP"].as_str().unwrap(), &spec["ports"][0]["port"]);
        let token = json!({"serviceAccountToken": {"path": "token", "audience": "tidings", "expirationSeconds": 600}});
        let mut pod = pod_spec(json!({
            "name": "producer",
            "image": PRODUCER,
            "args": [format!("{address}:{port}"), TEAM.to_owned(), name.clone(), count.to_string(), pause.to_string()],
            "volumeMounts": [{"name": "token", "mountPath": Path::new(TOKEN).parent().unwrap()}],
        }));
        pod["volumes"] = json!([{"name": "token", "projected": {"sources": [token]}}]);
        pod["serviceAccountName"] = json!("agent");
        pod["restartPolicy"] = json!("Never");
        let manifest =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": TEAM}, "spec": pod});
        self.cluster().apply(&manifest.to_string()).unwrap();
        name
    }

    /// Waits until a producer has had so many events accepted.
    pub fn until_accepted(&self, producer: &str, count: usize) {
        let wait = eventually("events being accepted", PATIENCE, || {
            Ok(self.accepted(producer)?.len() >= count)
        });
        wait.unwrap_or_else(|error| {
            self.tell();
            panic!("{error:#}: {}", self.logs(producer).unwrap_or_default())
        });
    }

    /// Waits until a producer is done: what was accepted, and the longest time in which nothing was.
    pub fn produced(&self, producer: &str) -> (BTreeSet<String>, Duration) {
        let done = self.cluster().wait_for(
            TEAM,
            &format!("pod/{producer}"),
            "jsonpath={.status.phase}=Succeeded",
            PATIENCE,
        );
        done.unwrap_or_else(|error| {
            self.tell();
            panic!("{error:#}: {}", self.logs(producer).unwrap_or_default())
        });
        let log = self.logs(producer).unwrap();
        let gap = log.lines().find_map(|line| line.strip_prefix("gap ")).unwrap();
        (
            self.accepted(producer).unwrap(),
            Duration::from_millis(gap.parse().unwrap()),
        )
    }

    fn accepted(&self, producer: &str) -> anyhow::Result<BTreeSet<String>> {
        let log = self.logs(producer)?;
        Ok(log
            .lines()
            .filter_map(|line| line.strip_prefix("accepted "))
            .map(str::to_owned)
            .collect())
    }

    fn logs(&self, pod: &str) -> anyhow::Result<String> {
        self.cluster().kubectl_ok(&["logs", pod, "-n", TEAM])
    }

    /// What the receiver was sent so far, each request as `tidings inspect` prints it.
    pub fn received(&self) -> anyhow::Result<Vec<Value>> {
        let log = self.logs("deployment/receiver")?;
        Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Waits until everything accepted has been received and nothing waits any more, and every signature was right.
    pub fn until_delivered(&self, accepted: &BTreeSet<String>) {
        let settled = eventually("all that was accepted being delivered", PATIENCE, || {
            let endpoint = self.cluster().get(TEAM, "whe", "crm")?.unwrap_or_default();
            Ok(endpoint["status"]["delivery"]["pending"] == 0 && self.leads()?.is_superset(accepted))
        });
        if let Err(error) = settled {
            let leads = self.leads().unwrap_or_default();
            let lost: Vec<&String> = accepted.difference(&leads).take(10).collect();
            self.tell();
            panic!("{error:#}; not received, for example: {lost:?}");
        }
        for request in self.received().unwrap() {
            assert_eq!(request["verdict"], "Verified", "{request:#}");
        }
    }

    /// The leads that the receiver was told of.
    pub fn leads(&self) -> anyhow::Result<BTreeSet<String>> {
        let requests = self.received()?;
        let lead = |request: &Value| -> Option<String> {
            let body: Value = serde_json::from_str(request["body"].as_str()?).ok()?;
            Some(body["data"]["lead"].as_str()?.to_owned())
        };
        Ok(requests.iter().filter_map(lead).collect())
    }

    /// Holds messages back, from its return on, or lets them go.
    pub fn suspend(&self, suspend: bool) {
        let patch = json!({"spec": {"suspend": suspend}}).to_string();
        let args = ["patch", "whe", "crm", "-n", TEAM, "--type=merge", "-p", &patch];
        self.cluster().kubectl_ok(&args).unwrap();
        if suspend {
            let reason = r#"jsonpath={.status.conditions[?(@.type=="Delivering")].reason}=Suspended"#;
            self.cluster().wait_for(TEAM, "whe/crm", reason, PATIENCE).unwrap();
        }
    }

    /// What a person would look at when something is wrong.
    pub fn tell(&self) {
        for args in [
            &["get", "pods,pvc,pv,whe,evsub", "-A", "-o", "wide"][..],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["logs", "-n", SYSTEM, DISPATCHER, "--tail=40"],
            &["logs", "-n", SYSTEM, "-l", CONTROLLERS, "--tail=20"],
        ] {
            match self.cluster().kubectl_ok(args) {
                Ok(shown) => eprintln!("$ kubectl {}\n{shown}", args.join(" ")),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }

    /// The receiver's Service, and a ServiceAccount that may publish.
    fn open_team(&self) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "receiver", "namespace": TEAM},
            "spec": {"selector": {"app": "receiver"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        self.cluster().apply(&service.to_string()).unwrap();
        self.cluster()
            .create_producer(TEAM, "agent", &["lead.qualified"])
            .unwrap();
    }
}

/// `tidings inspect` with the endpoint's keys.
fn receiver() -> Value {
    let mut pod = pod_spec(json!({
        "name": "receiver",
        "image": IMAGE,
        "args": ["inspect", "--listen=[::]:8080", "--secret-file=/keys"],
        "readinessProbe": {"httpGet": {"path": "/requests", "port": 8080}, "periodSeconds": 2},
        "volumeMounts": [{"name": "keys", "mountPath": "/keys", "readOnly": true}],
    }));
    pod["volumes"] = json!([{"name": "keys", "secret": {"secretName": "crm-signing"}}]);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "receiver", "namespace": TEAM},
        "spec": {
            "selector": {"matchLabels": {"app": "receiver"}},
            "template": {"metadata": {"labels": {"app": "receiver"}}, "spec": pod},
        },
    })
}

/// A pod of one container that the restricted Pod Security Standard admits.
fn pod_spec(mut container: Value) -> Value {
    container["imagePullPolicy"] = json!("Never");
    container["securityContext"] = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}});
    json!({
        "containers": [container],
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 1,
    })
}

/// This program, as the producers' pods run it.
fn producer_image(dir: &Path) -> PathBuf {
    let (program, archive) = (dir.join("produce"), dir.join("producer.tar"));
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let image = Image {
        name: PRODUCER,
        program: &program,
        beside: &[],
        labels: Default::default(),
    };
    image.write(&archive).unwrap();
    archive
}

/// What a page takes an image for that "has tar": this machine's own, under the name that the page gives it.
fn tar_image(dir: &Path) -> PathBuf {
    let archive = dir.join("tar.tar");
    let [tar, sleep, test] = ["tar", "sleep", "test"].map(|name| {
        let folders = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
        folders.into_iter().find(|path| path.is_file()).unwrap()
    });
    let image = Image {
        name: TAR,
        program: &tar,
        beside: &[&sleep, &test],
        labels: Default::default(),
    };
    image.write(&archive).unwrap();
    archive
}

/// A folder with what a person takes from the repository.
fn desk(dir: &Path) -> PathBuf {
    let desk = dir.join("desk");
    fs::create_dir(&desk).unwrap();
    for name in ["charts", "crds", "deploy"] {
        symlink(repository_root().join(name), desk.join(name)).unwrap();
    }
    desk
}
