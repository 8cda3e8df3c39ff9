//! The programs of others: the control plane's from `KUBEBUILDER_ASSETS` where set, helm from `TIDINGS_HELM`, Prometheus from
//! `TIDINGS_PROMETHEUS`, else built once from the Go modules pinned beside this crate, into a cache outside the clone.
//!
//! Knows which programs there are and at which version, and not how they are built. Invariant: `TIDINGS_KUBERNETES` chooses
//! a Kubernetes of the table or is refused, and what it chose is what runs.

mod module;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use module::{Module, Program};

/// A Kubernetes with its etcd: the minor version and the patch, whose go.mod is in `kubernetes/`.
macro_rules! kubernetes {
    ($minor:literal, $patch:literal) => {
        Module {
            title: "Kubernetes",
            version: concat!("1.", $minor, ".", $patch),
            go_mod: include_str!(concat!("../kubernetes/1.", $minor, "/go.mod")),
            go_sum: include_str!(concat!("../kubernetes/1.", $minor, "/go.sum")),
            sources: &[],
            ldflags: concat!(
                "-s -w -X k8s.io/component-base/version.gitVersion=v1.",
                $minor,
                ".",
                $patch,
                " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=",
                $minor
            ),
            tags: "",
            takes: "6 minutes",
        }
    };
}

/// Those that a release is tested on, each at the newest patch that is published as a Go module. README.md says so.
const KUBERNETES: [Module; 4] = [
    kubernetes!("34", "4"),
    kubernetes!("35", "4"),
    kubernetes!("36", "3"),
    kubernetes!("37", "2"),
];
/// The one that the tests run on unless told otherwise.
const USUAL: &str = "1.36";
/// Chooses another by its minor version, such as 1.34.
const CHOICE: &str = "TIDINGS_KUBERNETES";

/// A module of its own: it would move Kubernetes' pins.
const HELM: Module = Module {
    title: "Helm",
    version: "4.3.1",
    go_mod: include_str!("../helm/go.mod"),
    go_sum: include_str!("../helm/go.sum"),
    sources: &[],
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    tags: "",
    takes: "3 minutes",
};

/// Judges of what we show and change: libraries of others, each in a program of a page.
const JUDGES: Module = Module {
    title: "Judges",
    version: "1",
    go_mod: include_str!("../judges/go.mod"),
    go_sum: include_str!("../judges/go.sum"),
    sources: &[
        ("kstatus/main.go", include_str!("../judges/kstatus/main.go")),
        ("crdify/main.go", include_str!("../judges/crdify/main.go")),
    ],
    ldflags: "-s -w",
    tags: "",
    takes: "half a minute",
};

/// Without the clouds' service discoveries, which are most of it, and without its web pages, which npm would have to build.
const PROMETHEUS: Module = Module {
    title: "Prometheus",
    version: "3.16.0",
    go_mod: include_str!("../prometheus/go.mod"),
    go_sum: include_str!("../prometheus/go.sum"),
    sources: &[],
    ldflags: "-s -w -X github.com/prometheus/common/version.Version=3.16.0",
    tags: "remove_all_sd",
    takes: "2 minutes",
};

/// Where each program is.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        built_as: "server",
    },
    Program {
        name: "kube-apiserver",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        built_as: "kube-apiserver",
    },
    Program {
        name: "kube-controller-manager",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        built_as: "kube-controller-manager",
    },
    Program {
        name: "kubectl",
        package: "k8s.io/kubernetes/cmd/kubectl",
        built_as: "kubectl",
    },
];

const HELM_PROGRAM: Program = Program {
    name: "helm",
    package: "helm.sh/helm/v4/cmd/helm",
    built_as: "helm",
};

const PROMETHEUS_PROGRAM: Program = Program {
    name: "prometheus",
    package: "github.com/prometheus/prometheus/cmd/prometheus",
    built_as: "prometheus",
};

const PROMTOOL_PROGRAM: Program = Program {
    name: "promtool",
    package: "github.com/prometheus/prometheus/cmd/promtool",
    built_as: "promtool",
};

const JUDGE_PROGRAMS: [Program; 2] = [
    Program {
        name: "kstatus",
        package: "./kstatus",
        built_as: "kstatus",
    },
    Program {
        name: "crdify",
        package: "./crdify",
        built_as: "crdify",
    },
];

/// What a node runs beside the control plane's programs; always built, envtest has none of them.
const NODE_PROGRAMS: [Program; 3] = [
    Program {
        name: "kubelet",
        package: "k8s.io/kubernetes/cmd/kubelet",
        built_as: "kubelet",
    },
    Program {
        name: "kube-scheduler",
        package: "k8s.io/kubernetes/cmd/kube-scheduler",
        built_as: "kube-scheduler",
    },
    Program {
        name: "kube-proxy",
        package: "k8s.io/kubernetes/cmd/kube-proxy",
        built_as: "kube-proxy",
    },
];

/// Where a node's programs are.
#[derive(Clone, Debug)]
pub(crate) struct NodePrograms {
    pub kubelet: PathBuf,
    pub scheduler: PathBuf,
    pub proxy: PathBuf,
}

/// The value of a variable that says something.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The Kubernetes of `TIDINGS_KUBERNETES`, else the usual one.
fn kubernetes() -> Result<&'static Module> {
    let minor = set(CHOICE).unwrap_or_else(|| USUAL.into());
    let of_minor = |module: &&Module| module.version.rsplit_once('.').is_some_and(|(own, _)| own == minor);
    KUBERNETES.iter().find(of_minor).with_context(|| {
        let known: Vec<&str> = KUBERNETES.iter().map(|module| module.version).collect();
        format!("{CHOICE}={minor}: there are pins of {} only", known.join(", "))
    })
}

/// The envtest folder, unless a Kubernetes was chosen.
fn assets() -> Option<PathBuf> {
    set("KUBEBUILDER_ASSETS")
        .filter(|_| set(CHOICE).is_none())
        .map(PathBuf::from)
}

/// Finds or builds a node's programs.
pub(crate) fn node() -> Result<NodePrograms> {
    let kubernetes = kubernetes()?;
    let target = kubernetes.dir()?;
    kubernetes.ensure(|| {
        NODE_PROGRAMS
            .iter()
            .filter(|p| !target.join(p.name).is_file())
            .collect()
    })?;
    Ok(NodePrograms {
        kubelet: target.join("kubelet"),
        scheduler: target.join("kube-scheduler"),
        proxy: target.join("kube-proxy"),
    })
}

/// The real helm: from `TIDINGS_HELM` where set, else built once.
pub fn helm() -> Result<PathBuf> {
    match set("TIDINGS_HELM") {
        Some(path) => Ok(path.into()),
        None => one(&HELM, &HELM_PROGRAM),
    }
}

/// The real Prometheus: from the folder `TIDINGS_PROMETHEUS` where set, else built once.
pub(crate) fn prometheus() -> Result<PathBuf> {
    of_prometheus(&PROMETHEUS_PROGRAM)
}

/// Its promtool, likewise.
pub(crate) fn promtool() -> Result<PathBuf> {
    of_prometheus(&PROMTOOL_PROGRAM)
}

fn of_prometheus(program: &Program) -> Result<PathBuf> {
    match set("TIDINGS_PROMETHEUS") {
        Some(dir) => Ok(PathBuf::from(dir).join(program.name)),
        None => one(&PROMETHEUS, program),
    }
}

/// A judge by its name.
pub(crate) fn judge(name: &str) -> Result<PathBuf> {
    let program = JUDGE_PROGRAMS.iter().find(|program| program.name == name);
    one(&JUDGES, program.with_context(|| format!("there is no judge {name}"))?)
}

/// A program of a module, found or built.
fn one(module: &Module, program: &Program) -> Result<PathBuf> {
    let path = module.dir()?.join(program.name);
    module.ensure(|| if path.is_file() { Vec::new() } else { vec![program] })?;
    Ok(path)
}

impl Binaries {
    /// Finds or builds all of them. The first build takes minutes and reports its progress on standard error.
    pub fn ensure() -> Result<Binaries> {
        let assets = assets();
        let kubernetes = kubernetes()?;
        let target = kubernetes.dir()?;
        let place = |name: &str| -> PathBuf {
            assets
                .as_ref()
                .map(|dir| dir.join(name))
                .filter(|path| path.is_file())
                .unwrap_or_else(|| target.join(name))
        };
        kubernetes.ensure(|| PROGRAMS.iter().filter(|p| !place(p.name).is_file()).collect())?;
        Ok(Binaries {
            etcd: place("etcd"),
            kube_apiserver: place("kube-apiserver"),
            kube_controller_manager: place("kube-controller-manager"),
            kubectl: place("kubectl"),
        })
    }

    /// The version that an API server of these must show (1.36.3); none where they are envtest's, which may be any.
    pub fn kubernetes_version(&self) -> Result<Option<&'static str>> {
        let version = kubernetes()?.version;
        Ok(assets().is_none().then_some(version))
    }
}
