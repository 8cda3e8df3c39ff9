//! Ten thousand endpoints applied at once: what they cost the API server, how long until all are Ready, what both processes
//! hold in memory, and that nothing but Leases is written afterwards.
//!
//! Has a cluster of its own, since the budgets of writes, which are flags, are raised: at 50 and 10 a second they would be
//! all that is measured. Roles and RoleBindings are not counted with the endpoints' writes: they are a namespace's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tidings::api::WebhookEndpoint;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings, Writes};

use crate::table::{Section, Target};
use crate::{Options, machine, say};

/// Endpoints of one namespace: it has sixteen Roles for them, whatever their number.
const TOGETHER: usize = 100;
/// Requests of the one who applies them, at a time.
const AT_ONCE: usize = 16;
/// Writes a second of each process here: more than the API server takes.
const WRITES_PER_SECOND: &str = "2000";
/// How long nothing but Leases may be written.
const IDLE: Duration = Duration::from_secs(30);
/// An installation that makes none of them Ready for so long is not measured any further.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures.
pub fn run(options: &Options) -> Result<Section> {
    let count = options.endpoints;
    say("starting a Kubernetes of its own for many endpoints");
    let cluster = Cluster::start()?;
    let tidings = Tidings::install(&cluster, env!("CARGO_BIN_EXE_tidings"))?;
    let flags = |name: &str| -> Vec<OsString> { vec![name.into(), WRITES_PER_SECOND.into()] };
    let controller = tidings.start_controller(&ControllerOptions {
        log_filter: "info".into(),
        extra_args: flags("--writes-per-second"),
        ..ControllerOptions::default()
    })?;
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions {
        log_filter: "info".into(),
        extra_args: flags("--status-writes-per-second"),
        ..DispatcherOptions::default()
    })?;
    for n in 0..count.div_ceil(TOGETHER) {
        cluster.create_namespace(&namespace(n * TOGETHER), &[])?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("failed to start a runtime")?;
    let client = runtime.block_on(client(&cluster))?;

    say(&format!("{count} endpoints"));
    let (begin, before) = (Instant::now(), Writes::so_far(&cluster));
    runtime.block_on(apply(&client, count))?;
    let applied = begin.elapsed();
    runtime.block_on(until_ready(&client, count))?;
    let ready = begin.elapsed();
    say("all are Ready; until nothing is written any more");
    until_still(&cluster)?;
    let written = Writes::so_far(&cluster).since(&before);
    let (by_controller, by_dispatcher) = (controller.metrics()?, dispatcher.metrics()?);
    let peak = |pid: Option<u32>| machine::peak_mib(pid.unwrap_or(0));
    let (controller_peak, dispatcher_peak) = (peak(controller.process.pid()), peak(dispatcher.process.pid()));
    say(&format!("{} s of rest", IDLE.as_secs()));
    let rest = Writes::so_far(&cluster);
    std::thread::sleep(IDLE);
    let rest: BTreeMap<_, _> = Writes::so_far(&cluster).since(&rest).stored();
    let idle: u64 = rest.iter().filter(|(what, _)| *what != "leases").map(|(_, n)| n).sum();

    let mut section = Section::new(
        "scale",
        format!(
            "{count} endpoints applied at once, {TOGETHER} a namespace; budgets of writes raised to {WRITES_PER_SECOND}/s by flags"
        ),
    );
    let each = |total: f64| total / count as f64;
    let of = |metrics: &str, name: &str, label: &str| sum(metrics, name, label);
    let writes = |what: &str| of(&by_controller, "tidings_controller_writes_total", what);
    section.note("applied", "applied after", applied.as_secs_f64(), "s");
    section.note("ready", "all Ready after", ready.as_secs_f64(), "s");
    section.line(
        "controllerWrites",
        "controller's writes for each (Secret, status, Events)",
        each(writes("\"secret\"") + writes("\"status\"") + writes("\"event\"")),
        "",
        Some(Target::AtMost(3.0)),
    );
    section.note(
        "grants",
        "its writes of Roles and RoleBindings, in all",
        writes("\"grant\""),
        "",
    );
    section.line(
        "dispatcherWrites",
        "dispatcher's writes for each (status, Events)",
        each(of(&by_dispatcher, "tidings_status_writes_total", "")),
        "",
        Some(Target::AtMost(1.0)),
    );
    section.note(
        "conflicts",
        "of both, writes that met a newer object",
        of(&by_dispatcher, "tidings_status_writes_total", "Outdated")
            + of(&by_controller, "tidings_controller_reconciles_total", "outdated"),
        "",
    );
    section.note(
        "seen",
        "status writes for each, as the API server counts them",
        each(written.of("webhookendpoints/status") as f64),
        "",
    );
    section.line(
        "idle",
        format!("writes but of Leases in {} s of rest", IDLE.as_secs()),
        idle as f64,
        "",
        Some(Target::AtMost(0.0)),
    );
    let most = Some(Target::AtMost(150.0));
    section.line(
        "controllerMemory",
        "controller's memory, peak",
        controller_peak,
        "MiB",
        most,
    );
    section.line(
        "dispatcherMemory",
        "dispatcher's memory, peak",
        dispatcher_peak,
        "MiB",
        most,
    );
    Ok(section)
}

fn namespace(endpoint: usize) -> String {
    format!("many-{}", endpoint / TOGETHER)
}

async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig_path()).context("failed to read the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn apply(client: &Client, count: usize) -> Result<()> {
    let create = async |n: usize| -> Result<()> {
        let manifest = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
            "metadata": {"name": format!("crm-{n}"), "namespace": namespace(n)},
            "spec": {"url": format!("https://hooks-{n}.example.com/")}});
        let endpoint: WebhookEndpoint = serde_json::from_value(manifest)?;
        let api: Api<WebhookEndpoint> = Api::namespaced(client.clone(), &namespace(n));
        api.create(&PostParams::default(), &endpoint).await?;
        Ok(())
    };
    stream::iter(0..count)
        .map(create)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
        .context("failed to apply the endpoints")
}

async fn until_ready(client: &Client, count: usize) -> Result<()> {
    let all: Api<WebhookEndpoint> = Api::all(client.clone());
    let (mut most, mut since) = (0, Instant::now());
    loop {
        // From the API server's cache: looking costs etcd nothing.
        let listed = all.list(&ListParams::default().match_any()).await?;
        let is_ready = |endpoint: &&WebhookEndpoint| {
            let conditions = endpoint.status.as_ref().map(|status| status.conditions.as_slice());
            let mut conditions = conditions.unwrap_or_default().iter();
            conditions.any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let ready = listed.items.iter().filter(is_ready).count();
        if ready == count {
            return Ok(());
        }
        if ready > most {
            (most, since) = (ready, Instant::now());
            say(&format!("{ready} are Ready"));
        }
        if since.elapsed() > PATIENCE {
            let waits = listed.items.iter().find(|endpoint| !is_ready(endpoint));
            let name = waits.map(ResourceExt::name_any).unwrap_or_default();
            bail!("{ready} of {count} are Ready, and no more become so: {name} for one");
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
}

/// Waits until nothing but Leases was written for some seconds.
fn until_still(cluster: &Cluster) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = Writes::so_far(cluster);
        std::thread::sleep(Duration::from_secs(5));
        let written = Writes::so_far(cluster).since(&before).stored();
        if written.keys().all(|what| what == "leases") {
            return Ok(());
        }
        if Instant::now() > deadline {
            say(&format!("it is never still: {written:?}"));
            return Ok(());
        }
    }
}

/// The sum of a metric's values whose labels hold a text.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.fold(0.0, |sum, value| sum + value)
}
