//! The YAML in fenced blocks: the API server takes the manifests (a server-side dry run), and what is a part of one is taken in
//! its place.

use serde::Deserialize as _;
use serde_json::{Value, json};
use tidings::api::policy::Policy;
use tidings_cluster::{Cluster, Helm, Page};

use super::super::manifests::cluster;
use super::none;

/// Kinds of products that are not in our test cluster.
const FOREIGN: [&str; 7] = [
    "kustomize.config.k8s.io",
    "argoproj.io",
    "cert-manager.io",
    "kustomize.toolkit.fluxcd.io",
    "external-secrets.io",
    "snapshot.storage.k8s.io",
    "sources.knative.dev",
];

#[test]
fn every_manifest_is_accepted_by_the_api_server_whole_or_in_its_place() {
    let cluster = &*cluster("pages");
    for namespace in ["tidings-system", "sales", "shop"] {
        cluster.create_namespace(namespace, &[]).unwrap();
    }
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for page in Page::all() {
        for block in page.blocks() {
            // What a command is given, with its variables.
            let text = match &*block.language {
                "yaml" => block.text.clone(),
                "sh" | "console" => heredocs(&block.text),
                _ => continue,
            };
            for part in text.split("# or\n") {
                for document in serde_yaml::Deserializer::from_str(part) {
                    let document = match Value::deserialize(document) {
                        Ok(Value::Null) => continue,
                        Ok(document) => document,
                        Err(error) => {
                            wrong.push(format!("{}: {error}", block.at));
                            continue;
                        }
                    };
                    tried += 1;
                    if let Err(error) = accepted(cluster, &document) {
                        wrong.push(format!("{}: {error}\n{document}", block.at));
                    }
                }
            }
        }
    }
    none(&wrong);
    assert!(tried > 20, "only {tried} were found");
}

/// What stands between `<<END` and `END`.
fn heredocs(text: &str) -> String {
    let mut found = String::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (true, "END") => inside = false,
            (true, line) => {
                let line = line.replace("$TIDINGS_INSPECT_URL", "https://127.0.0.1:8443");
                found.push_str(&line);
                found.push('\n');
            }
            (false, line) if line.contains("<<END") => {
                inside = true;
                found.push_str("---\n");
            }
            _ => {}
        }
    }
    found
}

fn accepted(cluster: &Cluster, document: &Value) -> Result<(), String> {
    let version = document["apiVersion"].as_str();
    if version.is_some_and(|version| FOREIGN.iter().any(|group| version.starts_with(group))) {
        return Ok(());
    }
    let Some(fields) = document.as_object() else {
        return Err("that is no manifest".into());
    };
    if version.is_some() {
        return dry_run(cluster, document);
    }
    let of = |kind: &str, part: &str| {
        let crds = serde_json::to_value(tidings::api::crd::crds()).unwrap();
        let crd = crds
            .as_array()
            .unwrap()
            .iter()
            .find(|crd| crd["spec"]["names"]["kind"] == kind)
            .cloned();
        crd.unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part].clone()
    };
    let fits = |schema: &Value| fields.keys().all(|field| schema["properties"].get(field).is_some());
    if fields.contains_key("rules") {
        return Policy::parse(&document.to_string())
            .map(drop)
            .map_err(|error| error.to_string());
    }
    if let Some(status) = document.get("status") {
        return named(&of("WebhookEndpoint", "status"), status, "status");
    }
    if fits(&of("EventSubscription", "spec")) {
        let mut spec = json!({"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"]});
        spec.as_object_mut().unwrap().extend(fields.clone());
        return dry_run(cluster, &manifest("EventSubscription", spec));
    }
    if fits(&of("WebhookEndpoint", "spec")) {
        let mut spec = document.clone();
        if !["url", "urlFrom", "serviceRef"]
            .iter()
            .any(|target| fields.contains_key(*target))
        {
            spec["url"] = json!("https://crm.example.com/");
        }
        return dry_run(cluster, &manifest("WebhookEndpoint", spec));
    }
    // The chart's values, then: its own schema refuses what is misspelt.
    let helm = Helm::offline().unwrap();
    let values = helm.home().join("values.yaml");
    std::fs::write(&values, document.to_string()).unwrap();
    let chart = Helm::chart();
    let args = [
        "template",
        "tidings",
        chart.to_str().unwrap(),
        "-f",
        values.to_str().unwrap(),
    ];
    helm.ok(&args).map(drop).map_err(|error| format!("{error:#}"))
}

fn manifest(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": kind, "metadata": {"name": "part"}, "spec": spec})
}

fn dry_run(cluster: &Cluster, manifest: &Value) -> Result<(), String> {
    let mut args = vec!["create", "--dry-run=server", "--validate=strict", "-f", "-"];
    if manifest["metadata"]["namespace"].is_null() {
        args.extend(["-n", "pages"]);
    }
    let output = cluster.kubectl_with_input(&args, &manifest.to_string()).unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Every field of it is in the schema.
fn named(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    match value {
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            let path = format!("{path}.{name}");
            match schema["properties"].get(name) {
                None => Err(format!("there is no {path}")),
                Some(schema) => named(schema, value, &path),
            }
        }),
        Value::Array(items) => items.iter().try_for_each(|item| named(&schema["items"], item, path)),
        _ => Ok(()),
    }
}
