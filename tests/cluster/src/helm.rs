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
        self.environment(&mut command);
        command
            .args(args)
            .output()
            .with_context(|| format!("failed to run helm {}", args.join(" ")))
    }

    /// Runs a person's commands in a folder; what they said. Stops at the first that fails, and that is an error.
    ///
    /// helm is this one, and kubectl that of the cluster; both are the administrator.
    pub fn shell(&self, cluster: &Cluster, folder: &Path, script: &str) -> Result<String> {
        let kubectl = &cluster.binaries().kubectl;
        let mut path: Vec<PathBuf> = [&self.program, kubectl]
            .iter()
            .filter_map(|program| Some(program.parent()?.to_owned()))
            .collect();
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new("sh");
        self.environment(&mut command);
        let output = command
            .args(["-euc", script])
            .current_dir(folder)
            .env(
                "PATH",
                std::env::join_paths(path).context("a folder's name has a colon")?,
            )
            .env("KUBECACHEDIR", self.home.path().join("kubectl-cache"))
            .output()
            .context("failed to run a shell")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            bail!("{script}\nfailed: {said}");
        }
        Ok(said)
    }

    /// A home of its own, and the cluster that it is for.
    fn environment(&self, command: &mut Command) {
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS"] {
            command.env(name, self.home.path().join(name));
        }
        let nowhere = self.home.path().join("no-kubeconfig");
        command
            .env("KUBECONFIG", self.kubeconfig.as_deref().unwrap_or(&nowhere))
            .stdin(Stdio::null());
        die_with_parent(command);
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
