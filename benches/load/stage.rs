//! The real thing that is measured: a Kubernetes control plane, Tidings in it, a team's namespace.
//!
//! Owns what stands before a measurement begins; knows nothing of loads. Invariant: every part has a dispatcher, a store
//! and a namespace of its own, so that none measures what another left behind.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tempfile::TempDir;
use tidings_cluster::{
    Cluster, Controller, ControllerOptions, Dispatcher, DispatcherOptions, OPEN_LOOPBACK_LABEL, ServerCertificate,
    ThrowawayCa, Tidings,
};

use crate::machine::{self, GivingWay};
use crate::wire::Door;

/// How long what must come may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// As in production: what a person would run with.
const LOG_FILTER: &str = "info";

/// A cluster with Tidings installed and its controller running.
pub struct Stage<'a> {
    cluster: &'a Cluster,
    tidings: Tidings<'a>,
    controller: Controller,
    ca: ThrowawayCa,
    /// Removed with all stores when it is dropped; the cluster's own directory is removed by the cluster.
    data: Option<TempDir>,
}

impl<'a> Stage<'a> {
    /// Installs Tidings; stores will be below `data`, or the cluster's own directory.
    pub fn set(cluster: &'a Cluster, data: Option<&Path>) -> Result<Stage<'a>> {
        let within = |dir: &Path| {
            std::fs::create_dir_all(dir)
                .and_then(|()| tempfile::Builder::new().prefix("tidings-bench-").tempdir_in(dir))
                .with_context(|| format!("failed to create a directory in {}", dir.display()))
        };
        let data = data.map(within).transpose()?;
        let tidings = Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings"))?;
        let controller = tidings.start_controller(&ControllerOptions {
            log_filter: LOG_FILTER.into(),
            ..ControllerOptions::default()
        })?;
        Ok(Stage {
            cluster,
            tidings,
            controller,
            ca: ThrowawayCa::new()?,
            data,
        })
    }

    /// Where stores lie.
    pub fn data_dir(&self) -> &Path {
        self.data.as_ref().map_or(self.cluster.dir(), TempDir::path)
    }

    /// A dispatcher with an empty store.
    pub fn dispatcher(&self, part: &str) -> Result<Dispatcher> {
        let data_dir = self.data_dir().join(format!("bench-{part}"));
        self.tidings.start_dispatcher(&DispatcherOptions {
            data_dir: Some(data_dir),
            log_filter: LOG_FILTER.into(),
            ..DispatcherOptions::default()
        })
    }

    /// A certificate for a receiver, of the CA that every namespace here trusts.
    pub fn certificate(&self) -> Result<ServerCertificate> {
        self.ca.server()
    }

    /// CPU that everything beside dispatcher and bench has used so far: etcd, API server, controllers.
    pub fn control_plane_cpu(&self) -> Duration {
        self.control_plane().into_iter().map(machine::cpu).sum()
    }

    /// Makes all that give way, until it is dropped: in a cluster the API server has cores of its own, and what it does with a
    /// status that it is told must not be measured as the dispatcher's.
    pub fn control_plane_gives_way(&self) -> GivingWay {
        machine::give_way(self.control_plane())
    }

    fn control_plane(&self) -> Vec<u32> {
        let controller = self.controller.process.pid();
        self.cluster.pids().into_iter().chain(controller).collect()
    }

    /// A namespace that may send to loopback, with a producer for these types and the receivers' CA.
    pub fn team(&self, namespace: &str, types: &[&str]) -> Result<Team<'_>> {
        self.cluster.create_namespace(namespace, &[OPEN_LOOPBACK_LABEL])?;
        self.cluster.create_producer(namespace, "producer", types)?;
        let team = Team {
            cluster: self.cluster,
            namespace: namespace.to_owned(),
            token: self.cluster.token(namespace, "producer", Some("tidings"))?,
        };
        team.apply(
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "receiver-ca"},
            "data": {"ca.crt": self.ca.pem()}}),
        )?;
        Ok(team)
    }
}

/// A team's namespace.
pub struct Team<'a> {
    cluster: &'a Cluster,
    namespace: String,
    token: String,
}

impl Team<'_> {
    fn apply(&self, manifest: &Value) -> Result<()> {
        let mut manifest = manifest.clone();
        manifest["metadata"]["namespace"] = json!(self.namespace);
        self.cluster.apply(&manifest.to_string()).map(drop)
    }

    /// An endpoint and a subscription of one event type to it, both Ready.
    pub fn deliver(&self, name: &str, event_type: &str, url: &str, suspend: bool) -> Result<()> {
        self.deliver_with(name, event_type, url, json!({"suspend": suspend}))
    }

    /// The same, with more in the endpoint's spec.
    pub fn deliver_with(&self, name: &str, event_type: &str, url: &str, spec: Value) -> Result<()> {
        for manifest in self.manifests(name, event_type, url, &spec) {
            self.apply(&manifest)?;
        }
        for object in [format!("whe/{name}"), format!("evsub/{name}")] {
            self.cluster
                .wait_for(&self.namespace, &object, "condition=Ready", PATIENCE)?;
        }
        Ok(())
    }

    /// Many of them (name, type, URL) with one command, all Ready.
    pub fn deliver_many(&self, all: impl Iterator<Item = (String, String, String)>, spec: &Value) -> Result<()> {
        let items: Vec<Value> = all
            .flat_map(|(name, event_type, url)| self.manifests(&name, &event_type, &url, spec))
            .map(|mut manifest| {
                manifest["metadata"]["namespace"] = json!(self.namespace);
                manifest
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        self.cluster.apply(&list)?;
        for kind in ["whe", "evsub"] {
            let namespace = self.namespace.as_str();
            let args = [
                "wait",
                "-n",
                namespace,
                kind,
                "--all",
                "--for=condition=Ready",
                "--timeout=600s",
            ];
            self.cluster.kubectl_ok(&args)?;
        }
        Ok(())
    }

    fn manifests(&self, name: &str, event_type: &str, url: &str, spec: &Value) -> [Value; 2] {
        let ca = json!({"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}});
        let mut endpoint = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
            "metadata": {"name": name}, "spec": spec});
        endpoint["spec"]["url"] = json!(url);
        endpoint["spec"]["tls"] = ca;
        let subscription = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": name}, "spec": {"endpointRef": {"name": name}, "eventTypes": [event_type]}});
        [endpoint, subscription]
    }

    /// Lets a suspended endpoint send.
    pub fn resume(&self, endpoint: &str) -> Result<()> {
        let patch = json!({"spec": {"suspend": false}}).to_string();
        let (object, namespace) = (format!("whe/{endpoint}"), self.namespace.as_str());
        self.cluster
            .kubectl_ok(&["patch", &object, "-n", namespace, "--type=merge", "-p", &patch])?;
        Ok(())
    }

    /// What a receiver verifies an endpoint's signatures with, as its owner would read it.
    pub fn verifier(&self, endpoint: &str) -> Result<Webhook> {
        let (name, namespace) = (format!("{endpoint}-signing"), self.namespace.as_str());
        let show = "go-template={{.data.current | base64decode}}";
        let secret = self
            .cluster
            .kubectl_ok(&["get", "secret", &name, "-n", namespace, "-o", show])?;
        Webhook::new(secret.trim()).context("failed to read the signing Secret")
    }

    /// Where its producer posts.
    pub fn door(&self, dispatcher: &Dispatcher) -> Door {
        Door {
            port: dispatcher.ingest_port,
            namespace: self.namespace.clone(),
            token: self.token.clone(),
        }
    }
}
