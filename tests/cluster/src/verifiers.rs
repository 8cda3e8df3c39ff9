//! The libraries that receivers verify with in Python and JavaScript (of Standard Webhooks, of GitHub's and Stripe's
//! webhooks, and of Ed25519), installed once into the cache.
//!
//! Invariant: the versions are those pinned beside this crate, in `verifiers/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache;

const REQUIREMENTS: &str = include_str!("../verifiers/requirements.txt");
const PACKAGE: &str = include_str!("../verifiers/package.json");
const PACKAGE_LOCK: &str = include_str!("../verifiers/package-lock.json");

/// Where the libraries are.
#[derive(Clone, Debug)]
pub struct Verifiers {
    /// A Python interpreter that imports `standardwebhooks` and `cryptography`.
    pub python: PathBuf,
    /// A folder whose `node_modules` has `standardwebhooks`, `stripe` and `@octokit/webhooks-methods`: run `node` with it as
    /// the working directory.
    pub node_dir: PathBuf,
}

impl Verifiers {
    /// Finds or installs both; needs python3 and npm.
    pub fn ensure() -> Result<Verifiers> {
        let root = cache::dir()?;
        let dir = root.join(format!(
            "verifiers-{}",
            cache::digest(&[REQUIREMENTS, PACKAGE, PACKAGE_LOCK])
        ));
        let found = Verifiers {
            python: dir.join("venv/bin/python"),
            node_dir: dir.clone(),
        };
        // Written last: a virtual environment knows its own path, so it cannot be built elsewhere and renamed.
        let done = dir.join(".complete");
        if done.is_file() {
            return Ok(found);
        }
        fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
        let _lock = cache::lock(&root.join(".verifiers.lock"), "the signature libraries")?;
        if done.is_file() {
            return Ok(found);
        }
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
        for (name, content) in [
            ("requirements.txt", REQUIREMENTS),
            ("package.json", PACKAGE),
            ("package-lock.json", PACKAGE_LOCK),
        ] {
            fs::write(dir.join(name), content).with_context(|| format!("failed to write {name}"))?;
        }
        cache::say("installing the libraries of Python and JavaScript that verify signatures ...");
        run(&dir, "python3", &["-m", "venv", "venv"])?;
        run(
            &dir,
            "venv/bin/python",
            &["-m", "pip", "install", "--quiet", "-r", "requirements.txt"],
        )?;
        run(&dir, "npm", &["ci", "--no-audit", "--no-fund", "--loglevel=error"])?;
        fs::write(&done, "").context("failed to mark the libraries as installed")?;
        Ok(found)
    }
}

fn run(dir: &Path, program: &str, args: &[&str]) -> Result<()> {
    // A relative program is looked up from our own directory, not the child's.
    let path = if program.contains('/') {
        dir.join(program)
    } else {
        program.into()
    };
    let output = Command::new(path)
        .args(args)
        .current_dir(dir)
        .output()
        .with_context(|| format!("failed to run {program}: it is needed to verify signatures as receivers do"))?;
    if !output.status.success() {
        bail!(
            "{program} {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
