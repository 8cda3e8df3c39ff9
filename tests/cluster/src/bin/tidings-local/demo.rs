//! `tidings-local demo`: what Tidings does, as it happens, in a Kubernetes of its own that is gone afterwards.
//!
//! One file per step. Invariant: what a step says it has checked; a claim that is not true ends the demo with an error.

mod backoff;
mod deliver;
mod kill;
mod rotate;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tidings_cluster::{
    Cluster, Controller, ControllerOptions, Dispatcher, DispatcherOptions, Inspect, Lifetime, ThrowawayCa, Tidings,
    eventually, pids,
};

use crate::interrupt;
use crate::producer::Producer;
use crate::say::{self, Steps};
use crate::team::{self, NAMESPACE};

/// How long what must come may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
const LOG_FILTER: &str = "info";

pub fn run(binary: &Path) -> Result<()> {
    let dir = Cluster::temporary_dir()?;
    interrupt::cleans_up(&dir)?;
    let shown = show(&dir, binary);
    let cleaned = pids::stop_and_remove(&dir);
    let steps = shown?;
    cleaned?;
    steps.summary();
    say::line("Everything that was started has been stopped and removed. `make up` leaves it running for you.");
    Ok(())
}

fn show(dir: &Path, binary: &Path) -> Result<Steps> {
    let mut steps = Steps::new();
    say::line("Tidings, as it happens: about half a minute. Everything runs on 127.0.0.1 and is removed at the end.");

    steps.begin("Kubernetes: etcd, kube-apiserver, kube-controller-manager");
    let cluster = Cluster::start_in(dir.to_path_buf(), Lifetime::WithParent)?;
    steps.end("a real Kubernetes API, started here");

    steps.begin("Tidings: a controller and a dispatcher, under their own ServiceAccounts");
    say::line("  $ kubectl apply --server-side -k crds");
    say::line("  $ kubectl apply --server-side -k deploy/rbac");
    let tidings = Tidings::install(&cluster, binary)?;
    let controller = tidings.start_controller(&ControllerOptions {
        log_filter: LOG_FILTER.into(),
        ..ControllerOptions::default()
    })?;
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions {
        log_filter: LOG_FILTER.into(),
        ..DispatcherOptions::default()
    })?;
    let (ca, keys) = (ThrowawayCa::new()?, dir.join("receiver-keys"));
    fs::create_dir_all(&keys).with_context(|| format!("failed to create {}", keys.display()))?;
    let inspect = tidings.start_inspect_with(&ca.server()?, &keys)?;
    say::line(format!(
        "    ingest at {}, receivers at {} (tidings inspect)",
        dispatcher.ingest_url(),
        inspect.url()
    ));
    steps.end("Tidings with the RBAC of deploy/ and nothing more");

    steps.begin("A team applies its manifests");
    say::line(
        "  The examples send to example.com. A kustomize overlay, and nothing else, points them to the receivers here",
    );
    say::line("  and names their CA; the namespace's label opens 127.0.0.1 (examples/policy.yaml).");
    team::open(&cluster, ca.pem(), &inspect.url(), say::kubectl)?;
    say::line("  All Ready, that is configured and loaded by the dispatcher:");
    say::kubectl(&cluster, &["get", "whe,evsub", "-n", NAMESPACE])?;
    steps.end("examples/ applied: endpoints and subscriptions Ready");

    let producer = Producer::new(&cluster, NAMESPACE, dispatcher.ingest_port)?;
    let mut demo = Demo {
        cluster: &cluster,
        controller,
        dispatcher,
        inspect,
        keys,
        producer,
    };
    deliver::show(&mut demo, &mut steps)?;
    backoff::show(&mut demo, &mut steps)?;
    kill::show(&mut demo, &mut steps)?;
    rotate::show(&mut demo, &mut steps)?;
    demo.still_runs()?;
    Ok(steps)
}

/// What the steps work with.
struct Demo<'a> {
    cluster: &'a Cluster,
    controller: Controller,
    dispatcher: Dispatcher,
    inspect: Inspect,
    /// The inspector's folder of keys.
    keys: PathBuf,
    producer: Producer,
}

impl Demo<'_> {
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        say::kubectl(self.cluster, args)
    }

    /// An object of the team's.
    fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let found = self.cluster.get(NAMESPACE, kind, name)?;
        found.with_context(|| format!("there is no {kind} {name}"))
    }

    /// Waits until an object of the team's is as it must be.
    fn until(&self, what: &str, kind: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        eventually(what, PATIENCE, || {
            last = self.get(kind, name)?;
            Ok(holds(&last))
        })
        .with_context(|| format!("the status of {kind}/{name} is {}", last["status"]))?;
        Ok(last)
    }

    /// Changes an endpoint's spec as a person would, and waits until the dispatcher has loaded it.
    fn patch(&self, endpoint: &str, spec: &Value) -> Result<()> {
        let patch = serde_json::json!({"spec": spec}).to_string();
        self.kubectl(&["patch", "whe", endpoint, "-n", NAMESPACE, "--type=merge", "-p", &patch])?;
        team::ready(self.cluster, &format!("whe/{endpoint}"))
    }

    /// What a receiver got of an event, once there is as much as is wanted. An event is known by `data.lead.name`, which
    /// [`lead`] sets: the Standard Webhooks body has no event id.
    fn arrived(
        &self,
        what: &str,
        enough: impl Fn(&[Value]) -> bool,
        of: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>> {
        let mut found = Vec::new();
        eventually(what, PATIENCE, || {
            found = self.inspect.requests();
            found.retain(|record| of(record));
            Ok(enough(&found))
        })
        .with_context(|| format!("{} requests arrived", found.len()))?;
        Ok(found)
    }

    /// Sends a lead of this name to the CRM and gives what the receiver got, once it is there.
    fn lead_arrives(&self, name: &str) -> Result<Value> {
        self.producer.send(&lead(name)?)?;
        let mut arrived = self.arrived(
            &format!("the delivery of {name}"),
            |all| !all.is_empty(),
            |one| names(one, name),
        )?;
        arrived.pop().context("nothing arrived")
    }

    fn still_runs(&mut self) -> Result<()> {
        for process in [
            &mut self.controller.process,
            &mut self.dispatcher.process,
            &mut self.inspect.process,
        ] {
            if let Some(status) = process.exited() {
                bail!(
                    "{} ended by itself ({status}); its log ends:\n{}",
                    process.name(),
                    process.log_tail()
                );
            }
        }
        Ok(())
    }
}

/// A lead with its transcript; the name tells it from others.
fn lead(name: &str) -> Result<Value> {
    let mut event = crate::producer::example("lead-to-crm", name)?;
    event["data"]["lead"]["name"] = name.into();
    Ok(event)
}

/// The body of a request that the inspector showed.
fn body(record: &Value) -> Value {
    let text = record["body"].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

/// Whether this request is about that lead.
fn names(record: &Value, lead: &str) -> bool {
    body(record)["data"]["lead"]["name"] == lead
}

/// Prints a line of the inspector's, in its order, without the headers; the body comes last, and is cut where it is long.
fn show_record(record: &Value) {
    let fields = [
        "time", "method", "path", "id", "attempt", "verdict", "why", "status", "bytes", "body",
    ];
    let shown: Vec<String> = fields
        .iter()
        .map(|name| format!("\"{name}\":{}", record[*name]))
        .collect();
    say::quote(&format!("{{{}}}", shown.join(",")));
}

/// A header of a request that the inspector showed.
fn header<'a>(record: &'a Value, name: &str) -> &'a str {
    let headers = record["headers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = headers.iter().find(|pair| pair[0] == name);
    found.and_then(|pair| pair[1].as_str()).unwrap_or_default()
}

/// An error unless a request's signature verified.
fn expect_verified(record: &Value) -> Result<()> {
    if record["verdict"] != "Verified" {
        bail!(
            "the receiver could not verify a signature: {} ({})",
            record["verdict"],
            record["why"]
        );
    }
    Ok(())
}

/// The reason of a condition, if it is there.
fn reason<'a>(object: &'a Value, condition: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == condition)?["reason"].as_str()
}

/// How many different ones there are.
fn distinct(ids: impl Iterator<Item = String>) -> usize {
    ids.collect::<BTreeSet<_>>().len()
}
