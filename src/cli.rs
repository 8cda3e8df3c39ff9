//! The command line: what was typed becomes a process's configuration, and the process runs until it is told to stop.
//!
//! One file per process. What was typed (`Args`) is one type, what is usable (`Config`) belongs to the process. Invariant:
//! no secret is an argument, because every user of a machine can read arguments.

mod controller;
mod crds;
mod dispatcher;
mod inspect;

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use prometheus_client::registry::Registry as Metrics;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::kubernetes;
use crate::listen::listen;
use crate::telemetry::logs::{self, LogFormat};
use crate::telemetry::process::Process as ProcessMetrics;
use crate::telemetry::{self, Health};

#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    about = "Outgoing webhooks for Kubernetes: durable, signed, retried"
)]
struct Cli {
    #[command(subcommand)]
    process: Process,
    #[command(flatten)]
    logs: Logs,
}

#[derive(Debug, Subcommand)]
enum Process {
    /// Watches the resources, provisions and rotates signing Secrets, sets conditions
    Controller(controller::Args),
    /// Takes events in, stores them durably, delivers them, reports how delivery stands
    Dispatcher(Box<dispatcher::Args>),
    /// A receiver that shows each request, with its signature's verdict and why
    Inspect(inspect::Args),
    /// Prints the CustomResourceDefinitions
    Crds(crds::Args),
}

#[derive(Debug, Args)]
struct Logs {
    /// What is logged to standard error, in the syntax of RUST_LOG
    #[arg(long, global = true, env = "RUST_LOG", default_value = logs::DEFAULT_FILTER, hide_default_value = true)]
    log: String,
    /// How a record is written
    #[arg(long, global = true, env = "TIDINGS_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// What controller and dispatcher share.
#[derive(Debug, Args)]
struct Common {
    /// The namespace Tidings runs in: its Leases are there
    #[arg(long, env = "POD_NAMESPACE", default_value = "tidings-system")]
    namespace: String,
    /// The name of this replica, in Leases and Events
    #[arg(long, env = "POD_NAME")]
    identity: String,
    /// Where /metrics, /livez and /readyz are served
    #[arg(long, default_value = "[::]:9090")]
    metrics_listen: SocketAddr,
    /// The administrator's policy file: nothing is done before it was valid once; without the flag every address that is not
    /// globally reachable is refused
    #[arg(long)]
    policy: Option<std::path::PathBuf>,
    /// A namespace that is watched, instead of all; may be given several times, and is the same for every process
    #[arg(long, value_name = "NAME")]
    watch_namespace: Vec<String>,
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            eprintln!("tidings: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    logs::init(cli.logs.log_format, &cli.logs.log)
        .context("--log (or RUST_LOG) is not a filter such as info,tidings=debug")?;
    match cli.process {
        Process::Controller(args) => block_on(|shutdown| controller::run(args, shutdown)),
        Process::Dispatcher(args) => block_on(|shutdown| dispatcher::run(*args, shutdown)),
        Process::Inspect(args) => block_on(|shutdown| inspect::run(args, shutdown)),
        Process::Crds(args) => crds::run(&args),
    }
}

/// Runs a process on a runtime of its own until it ends; the first SIGTERM or SIGINT asks it to, the second ends it.
fn block_on<F>(process: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    // Without a choice rustls panics where two providers are linked; an error means that one was made before.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let signals = listen_for_signals(shutdown.clone()).context("failed to listen for signals")?;
        tokio::select! {
            ended = process(shutdown) => ended,
            () = signals => anyhow::bail!("a second signal ended the process at once"),
        }
    })
}

/// Cancels `shutdown` at the first signal and returns at the second.
fn listen_for_signals(shutdown: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if shutdown.is_cancelled() {
                return;
            }
            tracing::info!("asked to stop");
            shutdown.cancel();
        }
    })
}

/// How long to wait for the API server at the start: a pod that is restarted meanwhile only waits longer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// A client of the API server: of the pod's ServiceAccount, or of KUBECONFIG.
async fn connect() -> anyhow::Result<kube::Client> {
    kubernetes::client(api_server().await?)
}

/// Where the API server is, and who asks it.
async fn api_server() -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::infer()
        .await
        .context("failed to find the Kubernetes API: run in a pod, or set KUBECONFIG")?;
    config.connect_timeout = Some(CONNECT_PATIENCE);
    Ok(config)
}

/// Serves metrics and health beside `process` until it ends. What the process counts is in `metrics` by now.
async fn beside_telemetry(
    address: SocketAddr,
    mut metrics: Metrics,
    health: Health,
    process: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    metrics.register_collector(Box::new(ProcessMetrics));
    metrics.register_collector(Box::new(health.clone()));
    let listener = listen(address)?;
    let stop = CancellationToken::new();
    let server = tokio::spawn(telemetry::serve(listener, Arc::new(metrics), health, stop.clone()));
    let ended = process.await;
    stop.cancel();
    // A scrape in hand may end; a client that keeps its connection open may not hold the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), server).await;
    ended
}

/// Writes a file, or says which one could not be written.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
