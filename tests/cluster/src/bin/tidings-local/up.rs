//! `tidings-local up`: leaves Kubernetes, Tidings and an inspector running, and says how to use them.
//!
//! Invariant: when it fails or is interrupted, nothing it started is left.

use std::env;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tidings_cluster::process::{Process, Spec};
use tidings_cluster::{
    Cluster, ControllerOptions, DispatcherOptions, Lifetime, OPEN_LOOPBACK_LABEL, ThrowawayCa, Tidings, eventually,
    pids,
};

use crate::state::{self, Daemon, Ready, State};
use crate::team::{self, NAMESPACE};
use crate::{interrupt, producer, say};

const READY_WITHIN: Duration = Duration::from_secs(60);
/// No trace here: a person reads these logs.
const LOG_FILTER: &str = "info";
/// The file with an event's data, for the printed `curl`.
const DATA_FILE: &str = "lead.json";

pub fn run(dir: &Path, binary: &Path) -> Result<()> {
    let _lock = state::lock(dir)?;
    if let Some(known) = State::read(dir) {
        if state::control_plane_runs(dir) {
            return resume(dir, known);
        }
        say::line("The Kubernetes of an earlier `make up` has ended: starting anew.");
    }
    interrupt::cleans_up(dir)?;
    let started = start(dir, binary);
    if started.is_err() {
        pids::stop_and_remove(dir)?;
    }
    usage(dir, &started?);
    Ok(())
}

/// All of it runs, or some of Tidings was killed: that is started again on its data, at its address.
fn resume(dir: &Path, known: State) -> Result<()> {
    let mut again = Vec::new();
    for (name, daemon) in known.daemons() {
        // One that was killed a moment ago may still be there.
        eventually(&format!("{name} ready, or gone"), READY_WITHIN, || {
            Ok(daemon.pid().is_none() || daemon.is_ready())
        })
        .with_context(|| format!("look at {}, or `make down` first", daemon.spec.log.display()))?;
        if daemon.pid().is_none() {
            Process::start(daemon.spec.clone())?.wait_until("ready", READY_WITHIN, || daemon.is_ready())?;
            again.push(name);
        }
    }
    match again[..] {
        [] => say::line("Tidings is already up. (`make down` first, to start anew.)"),
        _ => say::line(format!("Started again: {}.", again.join(", "))),
    }
    known.write(dir)?;
    usage(dir, &known);
    Ok(())
}

fn start(dir: &Path, binary: &Path) -> Result<State> {
    // What an `up` that was killed left.
    pids::stop_and_remove(dir)?;
    let begun = Instant::now();
    say::line("Starting etcd, kube-apiserver and kube-controller-manager ...");
    let cluster = Cluster::start_in(dir.to_path_buf(), Lifetime::Daemon)?;
    say::line(
        "Installing Tidings: kubectl apply --server-side -k crds, then -k deploy/rbac; then a controller and a dispatcher ...",
    );
    let tidings = Tidings::install(&cluster, binary)?;
    let controller = tidings.start_controller(&ControllerOptions {
        log_filter: LOG_FILTER.into(),
        ..ControllerOptions::default()
    })?;
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions {
        log_filter: LOG_FILTER.into(),
        ..DispatcherOptions::default()
    })?;
    let ca = ThrowawayCa::new()?;
    let ca_file = state::ca_file(dir);
    fs::write(&ca_file, ca.pem()).with_context(|| format!("failed to write {}", ca_file.display()))?;
    let keys_dir = dir.join("receiver-keys");
    fs::create_dir_all(&keys_dir).with_context(|| format!("failed to create {}", keys_dir.display()))?;
    let inspect = tidings.start_inspect_with(&ca.server()?, &keys_dir)?;
    let keys = Process::start(follower(&cluster, &keys_dir)?)?;

    say::line(format!(
        "Applying examples/ in the namespace {NAMESPACE}, with the inspector as their receiver ..."
    ));
    team::open(&cluster, ca.pem(), &inspect.url(), say::kubectl_silently)?;
    for (_, endpoint) in team::EXAMPLES {
        eventually("the inspector's key", READY_WITHIN, || {
            Ok(keys_dir.join(format!("{NAMESPACE}.{endpoint}-signing")).is_file())
        })?;
    }
    let data = producer::example("lead-to-crm", "")?["data"].take();
    fs::write(dir.join(DATA_FILE), format!("{data:#}\n")).context("failed to write the event's data")?;

    let daemon = |process: &Process, ready| Daemon {
        spec: process.spec().clone(),
        ready,
    };
    let state = State {
        controller: daemon(&controller.process, Ready::Readyz(controller.metrics_port)),
        dispatcher: daemon(&dispatcher.process, Ready::Readyz(dispatcher.metrics_port)),
        inspect: daemon(&inspect.process, Ready::Listens(inspect.port)),
        keys: daemon(&keys, Ready::Runs),
        ingest_url: dispatcher.ingest_url(),
        inspect_url: inspect.url(),
        kubectl_dir: cluster
            .binaries()
            .kubectl
            .parent()
            .unwrap_or(Path::new("/"))
            .to_path_buf(),
    };
    state.write(dir)?;
    say::line(format!("Up after {}.", say::seconds(begun.elapsed())));
    Ok(state)
}

/// This program again, as what keeps the inspector's keys in step.
fn follower(cluster: &Cluster, keys_dir: &Path) -> Result<Spec> {
    Ok(Spec {
        name: "keys".into(),
        program: env::current_exe().context("failed to find this program")?,
        args: vec![
            "keys".into(),
            "--kubectl".into(),
            cluster.binaries().kubectl.clone().into(),
            "--into".into(),
            keys_dir.into(),
        ],
        env: vec![
            ("KUBECONFIG".into(), cluster.kubeconfig_path().into()),
            ("KUBECACHEDIR".into(), cluster.dir().join("kubectl-cache").into()),
        ],
        log: cluster.logs_dir().join("keys.log"),
        lifetime: cluster.lifetime(),
    })
}

/// How to use what runs. Everything to be pasted works in any POSIX shell, from any directory.
fn usage(dir: &Path, state: &State) {
    let env_file = say::shell_word(&state::env_file(dir).display().to_string());
    let data_file = say::shell_word(&dir.join(DATA_FILE).display().to_string());
    let note = match on_path("kubectl") {
        true => "",
        false => "  (this Kubernetes' own; the env file puts it on PATH)",
    };
    say::line(format!(
        r#"
KUBECONFIG  {kubeconfig}
kubectl     {kubectl}{note}
ingest      {ingest}
inspector   {inspect}  (CA: {ca})
logs        {logs}

Send an event (to be pasted; the token lives for an hour):

  . {env_file}
  TOKEN=$(kubectl create token agent -n {NAMESPACE} --audience=tidings)
  curl -i "$TIDINGS_INGEST_URL/v1/namespaces/{NAMESPACE}/events?type=lead.qualified&source=/agents/voice" \
    -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -d @{data_file}

See that it arrived, and what its signature is worth:

  kubectl get whe,evsub -n {NAMESPACE}
  curl --cacert "$TIDINGS_CA_FILE" "$TIDINGS_INSPECT_URL/requests"

The inspector knows every generated key, also after a rotation and of endpoints you add. It is on 127.0.0.1, so only
namespaces with the label {label}={open} may send to it (examples/policy.yaml); in others an endpoint shows
PolicyDenied. Its CA goes into an endpoint's tls.caBundle; in {NAMESPACE} it is the ConfigMap receiver-ca.

`make up` starts again what you kill (kill -9 $TIDINGS_DISPATCHER_PID). Tokens of Tidings' own live for 24 hours.
`make down` stops and removes all of it."#,
        kubeconfig = dir.join("kubeconfig").display(),
        kubectl = state.kubectl_dir.join("kubectl").display(),
        ingest = state.ingest_url,
        inspect = state.inspect_url,
        ca = state::ca_file(dir).display(),
        logs = dir.join("logs").display(),
        label = OPEN_LOOPBACK_LABEL.0,
        open = OPEN_LOOPBACK_LABEL.1,
    ));
}

fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
