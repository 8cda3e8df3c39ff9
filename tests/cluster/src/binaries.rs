//! The programs of others: the control plane's from `KUBEBUILDER_ASSETS` where set, helm from `TIDINGS_HELM`, else built
//! once from the Go modules pinned beside this crate, into a cache outside the clone.
//!
//! Invariant: a program in the cache is whole (it is built elsewhere and renamed), and belongs to exactly these pins.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::{self, say};

/// Pinned together, and built in one go.
struct Module {
    /// As people call it.
    title: &'static str,
    version: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The programs must be told their version, or they call themselves v0.0.0.
    ldflags: &'static str,
    /// How long a cold build takes, for people.
    takes: &'static str,
}

const KUBERNETES: Module = Module {
    title: "Kubernetes",
    version: "1.36.3",
    go_mod: include_str!("../go.mod"),
    go_sum: include_str!("../go.sum"),
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
              -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
    takes: "6 minutes",
};

/// A module of its own: it would move Kubernetes' pins.
const HELM: Module = Module {
    title: "Helm",
    version: "4.3.1",
    go_mod: include_str!("../helm/go.mod"),
    go_sum: include_str!("../helm/go.sum"),
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    takes: "3 minutes",
};

const BUILD_PREFIX: &str = ".build-";
/// How often a long build says that it is still at work.
const PROGRESS_EVERY: Duration = Duration::from_secs(20);

/// Where each program is.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
}

/// A program, its Go package and the name `go build` gives it.
struct Program {
    name: &'static str,
    package: &'static str,
    built_as: &'static str,
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

/// Finds or builds a node's programs.
pub(crate) fn node() -> Result<NodePrograms> {
    let target = KUBERNETES.dir()?;
    KUBERNETES.ensure(|| {
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
    if let Some(path) = env::var_os("TIDINGS_HELM").filter(|v| !v.is_empty()) {
        return Ok(path.into());
    }
    let path = HELM.dir()?.join(HELM_PROGRAM.name);
    HELM.ensure(|| {
        if path.is_file() {
            Vec::new()
        } else {
            vec![&HELM_PROGRAM]
        }
    })?;
    Ok(path)
}

impl Binaries {
    /// Finds or builds all of them. The first build takes minutes and reports its progress on standard error.
    pub fn ensure() -> Result<Binaries> {
        let assets = env::var_os("KUBEBUILDER_ASSETS")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        let target = KUBERNETES.dir()?;
        let place = |name: &str| -> PathBuf {
            assets
                .as_ref()
                .map(|dir| dir.join(name))
                .filter(|path| path.is_file())
                .unwrap_or_else(|| target.join(name))
        };
        KUBERNETES.ensure(|| PROGRAMS.iter().filter(|p| !place(p.name).is_file()).collect())?;
        Ok(Binaries {
            etcd: place("etcd"),
            kube_apiserver: place("kube-apiserver"),
            kube_controller_manager: place("kube-controller-manager"),
            kubectl: place("kubectl"),
        })
    }
}

impl Module {
    /// Where its programs are kept.
    fn dir(&self) -> Result<PathBuf> {
        let name = self.title.to_lowercase();
        let pins = cache::digest(&[self.go_mod, self.go_sum]);
        Ok(cache::dir()?.join(format!("{name}-{}-{pins}", self.version)))
    }

    /// Builds what is missing, unless another process does.
    fn ensure<'a>(&self, missing: impl Fn() -> Vec<&'a Program>) -> Result<()> {
        if missing().is_empty() {
            return Ok(());
        }
        let target = self.dir()?;
        fs::create_dir_all(&target).with_context(|| format!("failed to create {}", target.display()))?;
        let _lock = cache::lock(&target.join(".lock"), self.title)?;
        // Whoever held the lock before may have built them.
        match missing() {
            missing if missing.is_empty() => Ok(()),
            missing => build(self, &target, &missing),
        }
    }
}

/// Called under the lock, so a build directory that is there belongs to a process that was killed.
fn build(module: &Module, target: &Path, programs: &[&Program]) -> Result<()> {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(BUILD_PREFIX) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let dir = tempfile::Builder::new()
        .prefix(BUILD_PREFIX)
        .tempdir_in(target)
        .context("failed to create a build directory")?;
    fs::write(dir.path().join("go.mod"), module.go_mod).context("failed to write go.mod")?;
    fs::write(dir.path().join("go.sum"), module.go_sum).context("failed to write go.sum")?;
    let names: Vec<&str> = programs.iter().map(|p| p.name).collect();
    say(&format!(
        "building {} {} ({}) from its Go modules, about {} the first time ...",
        module.title,
        module.version,
        names.join(", "),
        module.takes
    ));

    let log_path = dir.path().join("build.log");
    let log = File::create(&log_path).context("failed to create the build log")?;
    let mut command = Command::new("go");
    command
        .args(["build", "-trimpath", "-ldflags", module.ldflags, "-o", "bin/"])
        .args(programs.iter().map(|p| p.package))
        .current_dir(dir.path())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("failed to share the build log")?)
        .stderr(log);
    let begun = Instant::now();
    let mut child = crate::process::spawn(command, crate::process::Lifetime::WithParent).context(
        "failed to run `go`: install Go 1.26 (https://go.dev/dl), or point KUBEBUILDER_ASSETS at etcd, kube-apiserver, \
         kube-controller-manager and kubectl, and TIDINGS_HELM at helm",
    )?;
    let mut said = begun;
    let status = loop {
        if let Some(status) = child.try_wait().context("failed to wait for `go build`")? {
            break status;
        }
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            say(&format!(
                "  still building after {} s{}",
                begun.elapsed().as_secs(),
                log.lines().last().map(|line| format!(" ({line})")).unwrap_or_default()
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let log = fs::read_to_string(&log_path).unwrap_or_default();
        let from = log.len().saturating_sub(4_000);
        bail!(
            "failed to build {} ({status}):\n{}",
            module.title,
            String::from_utf8_lossy(&log.as_bytes()[from..])
        );
    }
    for program in programs {
        fs::rename(dir.path().join("bin").join(program.built_as), target.join(program.name))
            .with_context(|| format!("failed to move {} into the cache", program.name))?;
    }
    say(&format!(
        "built in {} s, kept in {}",
        begun.elapsed().as_secs(),
        target.display()
    ));
    Ok(())
}
