//! The libraries that receivers verify with in Python, JavaScript and Java (of Standard Webhooks, of Svix's, GitHub's and
//! Stripe's webhooks, and of Ed25519), installed once into the cache.
//!
//! Invariant: the versions are those pinned beside this crate, in `verifiers/`. Svix's for JavaScript is the last that runs on
//! Node.js 20, as the others do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::cache::{self, Folder};

const FILES: [(&str, &str); 3] = [
    ("requirements.txt", include_str!("../verifiers/requirements.txt")),
    ("package.json", include_str!("../verifiers/package.json")),
    ("package-lock.json", include_str!("../verifiers/package-lock.json")),
];
/// Coordinates and checksum, in two lines.
const JAR: &str = include_str!("../verifiers/jar.txt");

/// Where the libraries are.
#[derive(Clone, Debug)]
pub struct Verifiers {
    /// A Python interpreter that imports `standardwebhooks`, `svix` and `cryptography`.
    pub python: PathBuf,
    /// A folder whose `node_modules` has `standardwebhooks`, `svix`, `stripe` and `@octokit/webhooks-methods`: run `node` with
    /// it as the working directory.
    pub node_dir: PathBuf,
}

impl Verifiers {
    /// Finds or installs both; needs python3 and npm.
    pub fn ensure() -> Result<Verifiers> {
        let folder = Folder {
            name: "verifiers",
            title: "the libraries of Python and JavaScript that verify signatures",
            files: &FILES,
        };
        let dir = folder.ensure(|dir| {
            cache::venv(dir)?;
            cache::node_modules(dir)
        })?;
        Ok(Verifiers {
            python: dir.join("venv/bin/python"),
            node_dir: dir,
        })
    }

    /// Java's library as a jar; `None` where there is no JDK or no Maven.
    pub fn jar() -> Result<Option<PathBuf>> {
        let runs = |program: &str| Command::new(program).arg("-version").output().is_ok();
        if !runs("javac") || !runs("mvn") {
            return Ok(None);
        }
        let folder = Folder {
            name: "verifiers-java",
            title: "the library of Java that verifies signatures",
            files: &[("jar.txt", JAR)],
        };
        let dir = folder.ensure(fetch_jar)?;
        Ok(Some(dir.join("library.jar")))
    }
}

fn fetch_jar(dir: &Path) -> Result<()> {
    let (artifact, checksum) = JAR.trim().split_once('\n').context("jar.txt has two lines")?;
    let copy = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";
    let artifact = format!("-Dartifact={artifact}");
    let flags = ["-DoutputDirectory=.", "-Dmdep.stripVersion=true"];
    cache::run(
        dir,
        "mvn",
        &["--batch-mode", "--quiet", copy, &artifact, flags[0], flags[1]],
    )?;
    let jar = dir.join("standardwebhooks.jar");
    let bytes = fs::read(&jar).with_context(|| format!("failed to read {}", jar.display()))?;
    let found: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(found == checksum, "{artifact} has the checksum {found}, not {checksum}");
    fs::rename(&jar, dir.join("library.jar")).context("failed to name the library")
}
