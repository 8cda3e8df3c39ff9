//! The receivers' keys of `make up`: a folder with one file for each generated signing Secret, which the inspector reads.
//!
//! A person who adds an endpoint or rotates a key finds it verified at once: this watches, as an administrator, what a
//! receiver's owner would be told. Invariant: a file is replaced as a whole, and the files of a Secret hold exactly the keys
//! it has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tidings_cluster::RAW_KEYS;

use crate::team;

/// The pause before a watch that ended is begun again.
const AGAIN: Duration = Duration::from_secs(1);
const SIGNING_SECRETS: [&str; 5] = [
    "get",
    "secrets",
    "--all-namespaces",
    "--field-selector=type=tidings.dev/signing-key",
    "--output=json",
];

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    kubectl: PathBuf,
    #[arg(long)]
    into: PathBuf,
}

/// Follows until it is killed. A failure is told and tried again: the API server may be away.
pub fn run(args: &Args) -> Result<()> {
    loop {
        match follow(args) {
            Ok(()) => {}
            Err(error) => eprintln!("{error:#}"),
        }
        thread::sleep(AGAIN);
    }
}

/// Until the watch ends, as every watch does after a while.
fn follow(args: &Args) -> Result<()> {
    forget_the_gone(args)?;
    let mut watch = Watch(
        Command::new(&args.kubectl)
            .args(SIGNING_SECRETS)
            .args(["--watch", "--output-watch-events"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to run kubectl")?,
    );
    let stdout = watch.0.stdout.take().context("failed to read from kubectl")?;
    for event in serde_json::Deserializer::from_reader(stdout).into_iter::<Value>() {
        let event = event.context("failed to read kubectl's JSON")?;
        let (secret, name) = (&event["object"], file_name(&event["object"]));
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => team::give_keys(&args.into, &name, secret, &["current", "previous"])?,
            Some("DELETED") => team::forget_keys(&args.into, &name)?,
            _ => {}
        }
    }
    Ok(())
}

/// A child that ends with the loop it belongs to.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What was deleted while nobody watched. Files that are no Secret's (a person's own key) stay.
fn forget_the_gone(args: &Args) -> Result<()> {
    let output = Command::new(&args.kubectl)
        .args(SIGNING_SECRETS)
        .output()
        .context("failed to run kubectl")?;
    let list: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
    let there: BTreeSet<String> = list["items"].as_array().into_iter().flatten().map(file_name).collect();
    let listed = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let raw = listed(&args.into.join(RAW_KEYS)).map(name);
    // `namespace.name.current`
    let raw = raw.filter_map(|file| Some(file.rsplit_once('.')?.0.to_owned()));
    for name in listed(&args.into).map(name).chain(raw) {
        if name.contains('.') && !there.contains(&name) {
            team::forget_keys(&args.into, &name)?;
        }
    }
    Ok(())
}

/// `namespace.name`: neither has a dot of its own that would matter, because the pair is never taken apart.
fn file_name(secret: &Value) -> String {
    let part = |name: &str| secret["metadata"][name].as_str().unwrap_or_default().to_owned();
    format!("{}.{}", part("namespace"), part("name"))
}
