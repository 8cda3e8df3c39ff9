//! The controller process: what is not on the way of an event. It provisions and rotates signing Secrets, grants the
//! dispatcher access to exactly the named Secrets, and sets every condition but Delivering.
//!
//! A reconcile is its step list: dereference (I/O), validate and resolve (pure), build (pure), apply (I/O), status (I/O);
//! one folder per resource. Only the leader watches and writes. Invariant: what is as it should be is not written again,
//! so that an idle system writes nothing but its Lease.

pub mod conditions;
mod context;
mod dereference;
mod endpoint;
mod event_type;
pub mod fleet;
pub mod grants;
mod index;
mod memory;
pub mod metrics;
mod queue;
mod references;
mod replay;
mod standing;
mod stored;
mod subscription;
mod watches;
mod work;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use kube::{Api, Client};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::api::names::CONTROLLER as FIELD_MANAGER;
use crate::clock;
use crate::config;
use crate::descriptors;
use crate::kubernetes::lease::{self, Claim};
use crate::kubernetes::scope::Scope;
use crate::tasks::Tasks;
use crate::telemetry::health::Gate;

use context::Context;

/// The Lease that controllers compete for.
pub const LEASE_NAME: &str = "tidings-controller";
/// Writes a second, all kinds together.
pub const WRITES_PER_SECOND: u32 = 50;
/// Writes at once: a namespace of endpoints applied together.
const WRITE_BURST: u32 = 100;
/// Reconciles in flight: each waits for the API server most of its time.
const WORKERS: usize = 16;

/// How the controller is to run.
pub struct Config {
    pub client: Client,
    /// The namespace Tidings runs in: its Leases and the dispatcher's ServiceAccount are there.
    pub namespace: String,
    /// This replica, in Leases and Events; a random part is added, so that no two processes share one.
    pub identity: String,
    /// The administrator's policy file: nothing is done before it was valid once. Without one nothing is opened.
    pub policy: Option<PathBuf>,
    /// The namespaces whose objects are looked at.
    pub scope: Scope,
    /// The ServiceAccount that Secrets are granted to.
    pub dispatcher_service_account: String,
    /// Writes a second.
    pub writes_per_second: u32,
    pub metrics: metrics::Metrics,
    /// Readiness: open while this replica waits as a candidate or leads with every watch synced, by a valid policy.
    pub gate: Gate,
}

/// Runs until `shutdown`: competes for the Lease once it has a valid policy, and works while it leads.
///
/// One without a policy must not lead: it would judge by none, and keep out a replica that still has the last valid one.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    descriptors::raise();
    let identity = format!("{}_{:08x}", config.identity, rand::random::<u32>());
    let config = Arc::new(config);
    let invalid = config.metrics.policy_invalid.clone();
    let (policies, following) = config::follow(config.policy.as_deref(), invalid, CancellationToken::new());
    let mut tasks = Tasks::default();
    tasks.spawn("the reader of the policy", following);
    // Also while this replica waits to lead.
    tasks.spawn("the clock", clock::watch_system());
    let ending = shutdown.child_token();
    let mut competing = pin!(compete(config, identity, policies, ending.clone()));
    let why = tokio::select! {
        ended = &mut competing => return ended,
        why = tasks.ended() => why,
    };
    ending.cancel();
    competing.await?;
    anyhow::bail!("{why}")
}

/// Waits for the first policy, then for the Lease, again and again until `shutdown`.
async fn compete(
    config: Arc<Config>,
    identity: String,
    mut policies: config::Latest,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    config.gate.close(config::NO_POLICY);
    let first = shutdown.run_until_cancelled(config::first(&mut policies));
    let Some(mut policy) = first.await.flatten() else {
        return Ok(());
    };
    while !shutdown.is_cancelled() {
        config.gate.open();
        let claim = Claim {
            api: Api::namespaced(config.client.clone(), &config.namespace),
            name: LEASE_NAME.to_owned(),
            identity: identity.clone(),
            labels: [(lease::COMPONENT_LABEL.to_owned(), "controller".to_owned())].into(),
        };
        let Some(leadership) = lease::lead(claim, &shutdown).await else {
            break;
        };
        config.metrics.leader.set(1);
        config.gate.close("the watches have not synced");
        let stop = CancellationToken::new();
        policy = policies.borrow_and_update().clone().unwrap_or(policy);
        let context = Arc::new(Context::new(config.clone(), policy.clone()));
        let mut work = tokio::spawn(work(context, policies.clone(), stop.clone()));
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            () = leadership.lost.cancelled() => None,
            ended = &mut work => Some(ended),
        };
        config.metrics.leader.set(0);
        match ended {
            // Nothing may be written any more: what is under way is dropped where it stands.
            None if leadership.lost.is_cancelled() => stop_now(work).await,
            None => {
                stop.cancel();
                tokio::select! {
                    _ = &mut work => leadership.vacate().await,
                    () = leadership.lost.cancelled() => stop_now(work).await,
                }
            }
            Some(result) => {
                leadership.vacate().await;
                result??;
                anyhow::bail!("the controller's work ended by itself");
            }
        }
        config.metrics.stand_by();
    }
    Ok(())
}

/// Drops what is under way, and waits until it is.
async fn stop_now(work: JoinHandle<anyhow::Result<()>>) {
    work.abort();
    // That it was cancelled is what was asked for.
    drop(work.await);
}

/// The watches and the workers, for as long as this replica leads. Dropping it ends all of them.
async fn work(context: Arc<Context>, policies: config::Latest, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    watches::start(&context, &mut tasks);
    let synced = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        synced = watches::synced(&context) => synced,
        Some(ended) = tasks.join_next() => { ended??; anyhow::bail!("a watch ended by itself") }
    };
    synced?;
    context.config.gate.open();
    tracing::info!("every watch has synced");
    tasks.spawn(work::tick(context.clone()));
    tasks.spawn(work::follow_policy(context.clone(), policies));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn(work::worker(context.clone(), stop.clone()));
    }
    tokio::select! {
        // Workers finish what they hold, so that no write is torn from its status.
        () = stop.cancelled() => while workers.join_next().await.is_some() {},
        Some(ended) = tasks.join_next() => { ended??; anyhow::bail!("a watch ended by itself") }
        Some(ended) = workers.join_next() => { ended?; anyhow::bail!("a worker ended by itself") }
    }
    Ok(())
}
