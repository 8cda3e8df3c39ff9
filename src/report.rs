//! What the dispatcher tells Kubernetes: status, Events, what it has loaded.
//!
//! Reads the [`board`], writes through a budget; never on the way of an event. Invariant: writes are bounded whatever the
//! event rate, and nothing secret, large or receiver-controlled is in them.

pub mod board;
pub mod fleet;
pub mod loaded;
pub mod metrics;
pub mod plan;
pub mod view;
pub mod writer;

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::kubernetes::events::Reporter;
use crate::tasks::Tasks;
use crate::watch::Loaded;
use crate::watch::objects::Objects;
use board::Board;
use metrics::Metrics;
use writer::{Tools, Writer};

/// Who reports in Events.
const REPORTING_CONTROLLER: &str = "tidings.dev/dispatcher";

/// As this process appears in Events; `identity` is unique to it.
pub fn reporter(identity: String) -> Reporter {
    Reporter {
        controller: REPORTING_CONTROLLER,
        instance: identity,
    }
}

/// What report needs.
pub struct ReportConfig {
    pub client: Client,
    pub board: Arc<Board>,
    /// Of the watches: what status is compared with.
    pub objects: Arc<Objects>,
    /// Of the watches: what the Lease says.
    pub loaded: watch::Receiver<Loaded>,
    /// Where the Lease lies: the dispatcher's own namespace.
    pub namespace: String,
    /// Unique to this process: the pod's name.
    pub identity: String,
    pub metrics: Metrics,
    /// Writes of status and Events, together.
    pub writes_per_second: u32,
}

/// Starts the status writer and the Lease. They run until `shutdown`: then writes under way are finished, and the Lease is
/// vacated.
pub fn start(config: ReportConfig, tasks: &mut Tasks, shutdown: CancellationToken) {
    let writer = Writer::new(Tools {
        client: config.client.clone(),
        board: config.board,
        objects: config.objects,
        reporter: reporter(config.identity.clone()),
        metrics: config.metrics,
        writes_per_second: config.writes_per_second,
    });
    tasks.spawn("the writer of status", writer.run(shutdown.clone()));
    let (client, loaded) = (config.client, config.loaded);
    tasks.spawn("the heartbeat of the Lease", async move {
        loaded::keep(client, &config.namespace, &config.identity, loaded, shutdown).await;
    });
}
