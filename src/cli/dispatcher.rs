//! `tidings dispatcher`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Common, api_server, beside_telemetry};
use crate::delivery::Origin;
use crate::dispatcher::{self, Config, metrics::Metrics};
use crate::engine::BURY_AFTER;
use crate::ingest::auth::DEFAULT_AUDIENCE;
use crate::ingest::parse::{DEFAULT_MAX_EVENT, LARGEST_MAX_EVENT};
use crate::kubernetes::scope::Scope;
use crate::report::plan::RATE;
use crate::telemetry::Health;
use crate::tls::TlsFiles;
use crate::traces;

/// How long attempts may go on after SIGTERM: with what ingest has in hand (5 s), the last outcomes (5 s) and the last
/// status (2 s) within a pod's usual 30 s.
const DRAIN_SECONDS: u64 = 15;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// Where producers post events
    #[arg(long, default_value = "[::]:8080")]
    ingest_listen: SocketAddr,
    /// The certificate chain of the ingest address, PEM, read again when it changes; without it plain HTTP
    #[arg(long, value_name = "FILE", requires = "ingest_tls_key")]
    ingest_tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", requires = "ingest_tls_cert")]
    ingest_tls_key: Option<PathBuf>,
    /// The directory of the store: a local or block volume of this process alone
    #[arg(long, default_value = "/var/lib/tidings")]
    data_dir: PathBuf,
    /// Bytes at which producers are refused; by default 80 % of the volume
    #[arg(long, value_name = "BYTES")]
    store_limit: Option<u64>,
    /// An audience that producers' tokens may be for; may be given several times
    #[arg(long, default_value = DEFAULT_AUDIENCE)]
    audience: Vec<String>,
    /// The largest body of one event
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MAX_EVENT as u64,
          value_parser = clap::value_parser!(u64).range(1..=LARGEST_MAX_EVENT as u64))]
    max_event_bytes: u64,
    /// The DNS server to ask for receivers' names; by default those of /etc/resolv.conf
    #[arg(long, value_name = "ADDRESS:PORT")]
    dns_server: Option<SocketAddr>,
    /// The DNS name under which receivers of endpoints with a handshake are asked, one for the whole installation
    #[arg(long, value_name = "NAME", default_value = Origin::DEFAULT)]
    origin: Origin,
    /// Writes of status and Events to the API server a second
    #[arg(long, default_value_t = RATE, value_parser = clap::value_parser!(u32).range(1..))]
    status_writes_per_second: u32,
    /// How long a deleted endpoint or subscription may come back and find its messages, before they become dead letters
    #[arg(long, value_name = "SECONDS", default_value_t = BURY_AFTER.as_secs())]
    keep_deleted_seconds: u64,
    /// How long attempts under way may go on after SIGTERM; less than the pod's grace period
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_SECONDS)]
    drain_seconds: u64,
}

pub(super) async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Args { common, .. } = args;
    let (mut registry, health) = (Registry::default(), Health::of("dispatcher"));
    let metrics = Metrics::register(&mut registry);
    let config = Config {
        kubernetes: api_server().await?,
        namespace: common.namespace,
        identity: common.identity,
        ingest: args.ingest_listen,
        ingest_tls: args
            .ingest_tls_cert
            .zip(args.ingest_tls_key)
            .map(|(certificate, key)| TlsFiles { certificate, key }),
        audiences: args.audience,
        max_event: usize::try_from(args.max_event_bytes).unwrap_or(LARGEST_MAX_EVENT),
        data_dir: args.data_dir,
        store_limit: args.store_limit,
        policy: common.policy,
        scope: Scope::of(common.watch_namespace),
        dns_server: args.dns_server,
        origin: args.origin,
        status_writes_per_second: args.status_writes_per_second,
        bury_after: Duration::from_secs(args.keep_deleted_seconds),
        drain: Duration::from_secs(args.drain_seconds),
        traces: traces::Settings::read(|name| std::env::var(name).ok())?,
        metrics,
        gate: health.gate("dispatcher", dispatcher::NOT_SYNCED),
    };
    let process = dispatcher::run(config, shutdown);
    beside_telemetry(common.metrics_listen, registry, health, process).await
}
