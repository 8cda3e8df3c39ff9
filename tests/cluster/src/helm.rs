//! helm as a person runs it, with nothing of this machine's own: no repositories, no plugins, no cache.
//!
//! Invariant: it reaches no network but the cluster it is given.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::die_with_parent;
use crate::{Cluster, binaries, repository_root};

/// helm with a home of its own.
#[derive(Debug)]
pub struct Helm {
    program: PathBuf,
    home: tempfile::TempDir,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// For what needs no cluster: `lint`, `template`, `package`.
    pub fn offline() -> Result<Helm> {
        Ok(Helm {
            program: binaries::helm()?,
            home: tempfile::tempdir().context("failed to create helm's home")?,
            kubeconfig: None,
        })
    }

    /// As administrator of this cluster.
    pub fn of(cluster: &Cluster) -> Result<Helm> {
        Ok(Helm {
            kubeconfig: Some(cluster.kubeconfig_path()),
            ..Helm::offline()?
        })
    }

    /// The chart in this repository.
    pub fn chart() -> PathBuf {
        repository_root().join("charts/tidings")
    }

    /// A folder of this helm's own, gone with it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs helm, whatever comes out.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"] {
            command.env(name, self.home.path().join(name));
        }
        let nowhere = self.home.path().join("no-kubeconfig");
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig.as_deref().unwrap_or(&nowhere))
            .stdin(Stdio::null());
        die_with_parent(&mut command);
        command
            .output()
            .with_context(|| format!("failed to run helm {}", args.join(" ")))
    }

    /// Runs helm; its standard output, or an error with its standard error.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        if !output.status.success() {
            bail!(
                "helm {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
