//! The dispatcher process: puts ingest, queue, engine, delivery and report together, and takes them apart again.
//!
//! What is started later needs what was started before; a shutdown goes the way of an event, so that nothing is accepted
//! that cannot be stored and nothing is sent whose outcome cannot be recorded. Invariant: when a part that the others need
//! ends by itself the process ends too; what is on disk is then read by the next one.
//!
//! From SIGTERM on it takes 13 s and the drain, of the drain and 15 s that a pod has before it is killed: requests in hand and
//! what runs beside 5 s ([`ingest::GRACE`]), attempts the drain, outcomes 5 s ([`LAST_WORDS`](crate::engine::LAST_WORDS)), status, the Lease and spans 2 s
//! ([`LAST_REPORT`]), watches 1 s ([`LAST_LOAD`]). The store is closed within a commit.

pub mod metrics;
mod threads;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Clock};
use crate::config;
use crate::delivery::{self, HttpsSender};
use crate::descriptors::{self, Connections};
use crate::ingest::auth::Auth;
use crate::ingest::declared::Declarations;
use crate::ingest::{self, Ingest};
use crate::kubernetes;
use crate::kubernetes::scope::Scope;
use crate::listen::listen;
use crate::queue::Queue;
use crate::queue::sqlite::{Options, SqliteQueue};
use crate::replay;
use crate::report::board::Board;
use crate::report::{self, ReportConfig};
use crate::tasks::Tasks;
use crate::telemetry::health::Gate;

use crate::engine::{Engine, EngineConfig};
use crate::registry::Registry;
use crate::tls::{Certificate, TlsFiles};
use crate::traces::{self, Traces};
use crate::watch::{self, WatchConfig};
use metrics::{Metrics, StoreMetrics};
use threads::EventThreads;

/// Changes of resources that the engine has not taken yet; beyond it the watches wait.
const CHANGES: usize = 1024;
/// Why it is not ready while it loads.
pub const NOT_SYNCED: &str = "the watches have not synced";
/// How long the last status writes and the last spans may take after the shutdown began: the next process writes what is
/// missing of status.
const LAST_REPORT: Duration = Duration::from_secs(2);
/// How long the watches may go on with what they load at the end: nobody needs it any more.
const LAST_LOAD: Duration = Duration::from_secs(1);
/// How often readiness looks whether everything is loaded.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the threads of events may take to run something, three times in a row. More is a defect: only a new process helps.
const STILL: Duration = Duration::from_secs(10);
/// How often the store is asked how it stands.
const USAGE_EVERY: Duration = Duration::from_secs(5);

/// How the dispatcher is to run.
pub struct Config {
    /// The API server, and who asks it.
    pub kubernetes: kube::Config,
    /// The namespace Tidings runs in: its Lease is there.
    pub namespace: String,
    /// This replica: the pod's name.
    pub identity: String,
    /// Where producers post.
    pub ingest: SocketAddr,
    /// With it they post by HTTPS, else by plain HTTP.
    pub ingest_tls: Option<TlsFiles>,
    /// Audiences of producers' tokens; at least one.
    pub audiences: Vec<String>,
    /// The largest body of one event, in bytes.
    pub max_event: usize,
    /// The store's directory, of this process alone.
    pub data_dir: PathBuf,
    /// Bytes at which producers are refused; none: 80 % of the volume.
    pub store_limit: Option<u64>,
    /// The administrator's policy file: nothing is loaded before it was valid once. Without one nothing is opened.
    pub policy: Option<PathBuf>,
    /// The namespaces whose objects are loaded, and that events are taken for.
    pub scope: Scope,
    /// The DNS server to ask; none means those of `/etc/resolv.conf`.
    pub dns_server: Option<SocketAddr>,
    /// Who asks receivers that are asked first.
    pub origin: delivery::Origin,
    /// Writes of status and Events, together.
    pub status_writes_per_second: u32,
    /// How long a deleted endpoint or subscription may come back and find its messages.
    pub bury_after: Duration,
    /// How long attempts under way may go on after the shutdown began.
    pub drain: Duration,
    /// Where spans go; none: nothing is traced.
    pub traces: Option<traces::Settings>,
    pub metrics: Metrics,
    /// Readiness: open while events are accepted.
    pub gate: Gate,
}

/// Runs until `shutdown`, then drains.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Config { metrics, gate, .. } = &config;
    let connections = connections();
    let events = EventThreads::start().context("failed to start threads for events")?;
    let client = || kubernetes::client(config.kubernetes.clone());
    // Events that wait for a review of their producer's token do not wait for what else is asked.
    let reviewing = {
        let _there = events.enter();
        client()?
    };
    let client = client()?;
    let listener = {
        let _there = events.enter();
        listen(config.ingest)?
    };
    let certificate = match config.ingest_tls.clone() {
        None => None,
        Some(files) => Some(Arc::new(
            Certificate::new(files, metrics.certificate_invalid.clone()).await?,
        )),
    };
    let start = |settings| Traces::start(settings, &config.identity, metrics.traces.clone());
    let traces = config.traces.as_ref().map(start).transpose();
    let (traces, exporting) = traces.context("failed to set up traces")?.unzip();
    let queue = open(&config.data_dir, config.store_limit).await?;
    let fence = queue.claim().await.context("failed to claim the store")?;
    let (registry, changes) = Registry::new(CHANGES);
    let registry = Arc::new(registry);
    // Each part has an end of its own: they are stopped one after another.
    let (background, watching, reporting, accepting) = (
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
        CancellationToken::new(),
    );
    let (mut tasks, mut reports) = (Tasks::default(), Tasks::default());
    tasks.spawn(
        "the look at the store",
        show_usage(queue.clone(), metrics.store.clone(), background.clone()),
    );

    if let Some(certificate) = &certificate {
        tasks.spawn(
            "the reader of the certificate",
            certificate.clone().follow(background.clone()),
        );
    }
    let invalid = metrics.policy_invalid.clone();
    let (policy, following) = config::follow(config.policy.as_deref(), invalid, background.clone());
    tasks.spawn("the reader of the policy", following);
    let clock = Arc::new(Clock::System);
    let mut watches = watch::start(
        WatchConfig {
            client: client.clone(),
            queue: queue.clone(),
            registry: registry.clone(),
            policy: policy.clone(),
            scope: config.scope.clone(),
            clock: clock.clone(),
            metrics: metrics.watch.clone(),
        },
        watching.clone(),
    );
    let delivery = delivery::Config {
        dns_server: config.dns_server,
        origin: config.origin.clone(),
        max_sockets: connections.receivers,
        max_idle: connections.idle,
        ..delivery::Config::default()
    };
    let delivered = metrics.delivery.clone();
    let sender = events.spawn(async { HttpsSender::new(delivery, delivered) }).await?;
    let sender = sender.context("failed to set up the HTTPS client")?;
    let board = Arc::new(Board::default());
    let refresher = watches.refresher();
    let engine = events.spawn(Engine::start(EngineConfig {
        queue: queue.clone(),
        fence,
        registry: registry.clone(),
        changes,
        sender: Arc::new(sender),
        origin: config.origin.clone(),
        board: board.clone(),
        clock: clock.clone(),
        metrics: metrics.engine.clone(),
        traces: traces.clone(),
        random: rand::random::<f64>,
        bury_after: config.bury_after,
        sees_all: config.scope.is_all(),
        refused: Box::new(move |id| refresher.refresh(id)),
    }));
    let engine = engine.await?.context("failed to read the store")?;
    let replays = replay::Tools {
        client: client.clone(),
        queue: queue.clone(),
        fence,
        registry: registry.clone(),
        scope: config.scope.clone(),
        again: engine.again(),
        reporter: report::reporter(config.identity.clone()),
        metrics: metrics.replay.clone(),
    };
    tasks.spawn("the watch of replays", replay::follow(replays, background.clone()));
    report::start(
        ReportConfig {
            client: client.clone(),
            board,
            objects: watches.objects.clone(),
            loaded: watches.loaded.clone(),
            namespace: config.namespace.clone(),
            identity: config.identity.clone(),
            metrics: metrics.report.clone(),
            writes_per_second: config.status_writes_per_second,
        },
        &mut reports,
        reporting.clone(),
    );
    let auth = Auth::new(reviewing.clone(), config.audiences.clone());
    let requests = traces.map(|traces| ingest::trace::Requests {
        traces,
        https: certificate.is_some(),
    });
    let ingest = Ingest::new(
        registry.clone(),
        queue.clone(),
        auth,
        Declarations::new(reviewing),
        engine.consumed(),
        config.max_event,
        metrics.ingest.clone(),
    )
    .within(config.scope.clone())
    .timed_by(clock);
    let mut serving = events.spawn(ingest::serve(
        listener,
        certificate,
        Arc::new(ingest.traced(requests)),
        connections.producers,
        accepting.clone(),
    ));
    let loaded = open_when_loaded(registry.clone(), policy, gate.clone());
    let loading = tokio::spawn(loaded);

    let ended = tokio::select! {
        () = shutdown.cancelled() => None,
        why = engine.lost() => Some(why.to_owned()),
        () = watches.ended() => Some("the watches ended by themselves".to_owned()),
        _ = &mut serving => Some("ingest ended by itself".to_owned()),
        why = tasks.ended() => Some(why),
        why = reports.ended() => Some(why),
        () = events.stand_still(STILL) => {
            tracing::error!("the threads of events stand still: ending at once");
            // A drain would wait for them.
            std::process::exit(1);
        }
    };
    tracing::info!("draining");
    // First: nobody is to send here any more. What is loading must not open the gate again.
    loading.abort();
    drop(loading.await);
    gate.close("shutting down");
    accepting.cancel();
    background.cancel();
    let served = async {
        match serving.is_finished() {
            true => Ok(()),
            false => serving.await.context("ingest ended abnormally"),
        }
    };
    let (served, ()) = tokio::join!(served, tasks.finish(ingest::GRACE));
    served?;
    let recorded = engine.drain(config.drain).await;
    if !recorded {
        tracing::warn!("some outcomes were not recorded: those messages are sent again after the restart");
    }
    reporting.cancel();
    let last_spans = async {
        if let Some(exporting) = exporting {
            exporting.finish(LAST_REPORT).await;
        }
    };
    tokio::join!(reports.finish(LAST_REPORT), last_spans);
    watching.cancel();
    if tokio::time::timeout(LAST_LOAD, watches.join()).await.is_err() {
        tracing::warn!("the watches did not end in time");
    }
    queue.close().await;
    match ended {
        None => Ok(()),
        Some(why) => anyhow::bail!("{why}"),
    }
}

/// As many connections as there are file descriptors for.
fn connections() -> Connections {
    let delivery = delivery::Config::default();
    let wanted = Connections {
        producers: ingest::CONNECTIONS,
        receivers: delivery.max_sockets,
        idle: delivery.max_idle,
    };
    let Some(limit) = descriptors::raise() else {
        return wanted;
    };
    let connections = wanted.within(limit);
    if connections != wanted {
        let (producers, receivers, needs) = (connections.producers, connections.receivers, wanted.needs());
        tracing::warn!(
            limit,
            needs,
            producers,
            receivers,
            "there are few file descriptors, so fewer connections are made: raise the hard limit of open files (nofile) of \
             the container runtime"
        );
    }
    connections
}

/// Opens the store; it may have to read gigabytes of a log that a killed process left.
async fn open(dir: &Path, store_limit: Option<u64>) -> anyhow::Result<Arc<SqliteQueue>> {
    let options = Options {
        store_limit,
        clock: clock::system,
        ..Options::default()
    };
    let dir = dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || SqliteQueue::open(&dir, options)).await?;
    let (queue, recovered) = opened.context("failed to open the store")?;
    tracing::info!(
        pending = recovered.pending,
        dead_letters = recovered.dead,
        dedupe_entries = recovered.dedupe_entries,
        limit_bytes = recovered.limit,
        took = ?recovered.took,
        "the store is open"
    );
    Ok(Arc::new(queue))
}

/// Opens the gate once everything is loaded, which begins with a valid policy.
async fn open_when_loaded(registry: Arc<Registry>, mut policy: config::Latest, gate: Gate) {
    if policy.borrow().is_none() {
        gate.close(config::NO_POLICY);
        if config::first(&mut policy).await.is_none() {
            return;
        }
        gate.close(NOT_SYNCED);
    }
    while !registry.synced() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    gate.open();
}

async fn show_usage(queue: Arc<SqliteQueue>, metrics: StoreMetrics, shutdown: CancellationToken) {
    loop {
        match queue.usage().await {
            Ok(usage) => metrics.show(&usage),
            Err(error) => tracing::warn!(%error, "failed to look at the store"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(USAGE_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::LAST_WORDS;

    #[test]
    fn a_pod_has_longer_than_its_end_takes() {
        let chart = include_str!("../charts/tidings/templates/dispatcher/statefulset.yaml");
        let (_, beside) = chart.split_once("add $own.drainSeconds ").unwrap();
        let beside: u64 = beside.split_once(' ').unwrap().0.parse().unwrap();
        let taken = ingest::GRACE + LAST_WORDS + LAST_REPORT + LAST_LOAD;
        assert!(taken < Duration::from_secs(beside), "{taken:?}");
    }
}
