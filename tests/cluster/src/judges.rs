//! What others make of what we show and change: kstatus (Flux, helm and Argo CD's cousins wait by it) of an object, and
//! crdify of a changed CustomResourceDefinition. Their own Go code, in programs of a page (`judges/`).
//!
//! Invariant: nothing is judged here; an answer is what the program said.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::binaries::judge;
use crate::process::die_with_parent;

/// What kstatus says of an object: `Current`, `InProgress`, `Failed`, `Terminating`, ...
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Kstatus {
    /// By the library of sigs.k8s.io/cli-utils.
    pub upstream: String,
    /// By the fork that Flux and helm are built with.
    pub flux: String,
    /// Why.
    pub message: String,
}

/// Of each object, in their order.
pub fn kstatus(objects: &[Value]) -> Result<Vec<Kstatus>> {
    let input: String = objects.iter().map(|object| format!("{object}\n")).collect();
    let said = ask(Command::new(judge("kstatus")?), &input)?;
    let verdicts: Vec<Kstatus> = serde_json::Deserializer::from_str(&said)
        .into_iter()
        .collect::<Result<_, _>>()
        .context("failed to read what kstatus said")?;
    if verdicts.len() != objects.len() {
        bail!("kstatus judged {} of {} objects", verdicts.len(), objects.len());
    }
    Ok(verdicts)
}

/// What crdify says of a definition that becomes another; the files hold one each. `config` is crdify's.
pub fn crdify(config: &Path, old: &Path, new: &Path) -> Result<Value> {
    let mut command = Command::new(judge("crdify")?);
    command.args([config, old, new]);
    serde_json::from_str(&ask(command, "")?).context("failed to read what crdify said")
}

fn ask(mut command: Command, input: &str) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command
        .spawn()
        .with_context(|| format!("failed to run {}", command.get_program().display()))?;
    let mut stdin = child.stdin.take().context("failed to write to the judge")?;
    let input = input.to_owned();
    // A judge that cannot read on closes the pipe early; what it says about it is the answer.
    let writer = thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().context("failed to wait for the judge")?;
    let _ = writer.join();
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
