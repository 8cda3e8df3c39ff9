//! `tidings controller`.

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Common, beside_telemetry, connect};
use crate::controller::{self, Config, WRITES_PER_SECOND, metrics::Metrics};
use crate::kubernetes::scope::Scope;
use crate::telemetry::Health;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    common: Common,
    /// The ServiceAccount of the dispatcher, in the same namespace: Secrets are granted to it
    #[arg(long, default_value = "tidings-dispatcher")]
    dispatcher_service_account: String,
    /// Writes to the API server a second, all kinds together
    #[arg(long, default_value_t = WRITES_PER_SECOND, value_parser = clap::value_parser!(u32).range(1..))]
    writes_per_second: u32,
}

pub(super) async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Args { common, .. } = args;
    let (mut registry, health, metrics) = (Registry::default(), Health::of("controller"), Metrics::default());
    metrics.register(&mut registry);
    let config = Config {
        client: connect().await?,
        namespace: common.namespace,
        identity: common.identity,
        policy: common.policy,
        scope: Scope::of(common.watch_namespace),
        dispatcher_service_account: args.dispatcher_service_account,
        writes_per_second: args.writes_per_second,
        metrics,
        gate: health.gate("controller", "starting"),
    };
    let process = controller::run(config, shutdown);
    beside_telemetry(common.metrics_listen, registry, health, process).await
}
