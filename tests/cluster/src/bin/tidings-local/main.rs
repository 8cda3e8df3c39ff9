//! `tidings-local`: what `make demo`, `make up` and `make down` run. A real Kubernetes on this machine, Tidings in it
//! under its own ServiceAccounts, `tidings inspect` as the receiver of the examples.
//!
//! Knows the cluster and the command line of `tidings`, nothing of its code. Invariant: whatever ends it, what it started
//! and did not promise to leave running is stopped, and its directory removed.

mod demo;
mod down;
mod interrupt;
mod keys;
mod producer;
mod say;
mod state;
mod team;
mod up;

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tidings_cluster::repository_root;

#[derive(Debug, Parser)]
#[command(about = "A real Kubernetes on this machine, and Tidings in it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The `tidings` to run; by default the release build
    #[arg(long, global = true, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where `up` keeps its state; by default `local` in cargo's target directory
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows what Tidings does, as it happens, and cleans up after itself
    Demo,
    /// Leaves Kubernetes, Tidings and an inspector running, and prints how to use them
    Up,
    /// Stops what `up` started; twice is no error
    Down,
    /// Keeps a folder of receivers' keys in step with the cluster's signing Secrets (`up` runs this)
    #[command(hide = true)]
    Keys(keys::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            interrupt::yield_to();
            eprintln!("\ntidings-local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let dir = || absolute(cli.dir.clone().unwrap_or_else(|| target_dir().join("local")));
    match cli.command {
        Command::Demo => demo::run(&binary(cli.binary)?),
        Command::Up => up::run(&dir()?, &binary(cli.binary)?),
        Command::Down => down::run(&dir()?),
        Command::Keys(args) => keys::run(&args),
    }
}

/// The `tidings` to run; an error that says how to build it.
fn binary(given: Option<PathBuf>) -> Result<PathBuf> {
    let path = absolute(given.unwrap_or_else(|| target_dir().join("release/tidings")))?;
    if !path.is_file() {
        bail!("there is no {}: build it with `make release`", path.display());
    }
    Ok(path)
}

/// Cargo's target directory: the one this program was built in.
fn target_dir() -> PathBuf {
    let exe = env::current_exe().unwrap_or_default();
    exe.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| repository_root().join("target"), Path::to_path_buf)
}

fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("failed to find {}", path.display()))
}
