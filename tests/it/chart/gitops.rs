//! What kustomize and Flux are given: names that follow, and Kustomizations that find what they name.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;
use tidings::api::crd;
use tidings_cluster::Binaries;

use super::{documents, object, path, workloads};

/// `kubectl kustomize` of a folder.
pub(super) fn kustomized(folder: &str) -> Vec<Value> {
    let kubectl = Binaries::ensure().unwrap().kubectl;
    let made = Command::new(kubectl)
        .arg("kustomize")
        .arg(path(folder))
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{folder}: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    documents(&String::from_utf8(made.stdout).unwrap())
}

#[test]
fn names_in_our_resources_follow_what_kustomize_renames() {
    let objects = kustomized("tests/kustomize");
    let generated = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind).unwrap();
        found["metadata"]["name"].clone()
    };
    let (secret, config) = (generated("Secret"), generated("ConfigMap"));
    assert!(secret.as_str().unwrap().starts_with("eu-credentials-"), "{secret}");
    let endpoint = &object(&objects, "WebhookEndpoint", "eu-crm")["spec"];
    assert_eq!(endpoint["urlFrom"]["secretKeyRef"]["name"], secret);
    assert_eq!(endpoint["headers"][0]["secretKeyRef"]["name"], secret);
    assert_eq!(endpoint["headers"][1]["secretKeyRef"]["name"], "elsewhere");
    assert_eq!(endpoint["tls"]["caBundle"]["configMapKeyRef"]["name"], config);
    let inside = &object(&objects, "WebhookEndpoint", "eu-inside")["spec"];
    assert_eq!(
        inside["serviceRef"]["name"],
        object(&objects, "Service", "eu-receiver")["metadata"]["name"]
    );
    let subscription = &object(&objects, "EventSubscription", "eu-leads")["spec"];
    assert_eq!(subscription["endpointRef"]["name"], "eu-crm");
    assert_eq!(subscription["deadLetter"]["endpointRef"]["name"], "eu-crm");
    assert_eq!(subscription["request"]["secrets"][0]["secretKeyRef"]["name"], secret);
    let replay = &object(&objects, "Replay", "eu-again")["spec"];
    assert_eq!(replay["selector"]["subscriptionRef"]["name"], "eu-leads");
}

#[test]
fn every_reference_of_the_definitions_is_known_to_kustomize() {
    fn references(schema: &Value, at: &str, found: &mut Vec<String>) {
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            let here = format!("{at}/{name}");
            if name.ends_with("Ref") {
                found.push(format!("{here}/name"));
            }
            let inner = if child["items"].is_object() {
                &child["items"]
            } else {
                child
            };
            references(inner, &here, found);
        }
    }
    let mut defined = BTreeSet::new();
    for definition in crd::crds() {
        let kind = definition.spec.names.kind.clone();
        let definition = serde_json::to_value(definition).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut found = Vec::new();
        references(&schema["properties"]["spec"], "spec", &mut found);
        defined.extend(found.into_iter().map(|reference| (kind.clone(), reference)));
    }
    let text = fs::read_to_string(path("deploy/references/references.yaml")).unwrap();
    let known = documents(&text).remove(0);
    let mut listed = BTreeSet::new();
    for target in known["nameReference"].as_array().unwrap() {
        for field in target["fieldSpecs"].as_array().unwrap() {
            let text = |name: &str| field[name].as_str().unwrap().to_owned();
            listed.insert((text("kind"), text("path")));
        }
    }
    assert_eq!(listed, defined);
}

#[test]
fn gitops_deletes_neither_the_namespace_of_the_queue_nor_a_definition_with_all_that_teams_declared() {
    let install = documents(&fs::read_to_string(path("deploy/install.yaml")).unwrap());
    for (from, objects) in [("deploy", kustomized("deploy")), ("install.yaml", install)] {
        let precious = ["Namespace", "CustomResourceDefinition"].map(Value::from);
        let found: Vec<_> = objects
            .iter()
            .filter(|object| precious.contains(&object["kind"]))
            .collect();
        assert_eq!(found.len(), 1 + crd::crds().len(), "{from}");
        for object in found {
            let annotations = &object["metadata"]["annotations"];
            assert_eq!(
                annotations["kustomize.toolkit.fluxcd.io/prune"], "disabled",
                "{from}: {object:.200}"
            );
            let options = &annotations["argocd.argoproj.io/sync-options"];
            assert_eq!(options, "Prune=false,Delete=false", "{from}: {object:.200}");
        }
    }
}

#[test]
fn flux_finds_what_its_kustomizations_name() {
    let all = documents(&fs::read_to_string(path("deploy/flux/kustomizations.yaml")).unwrap());
    assert_eq!(all.len(), 3);
    let mut operator = 0;
    for (number, kustomization) in all.iter().enumerate() {
        let spec = &kustomization["spec"];
        let objects = kustomized(spec["path"].as_str().unwrap());
        let checks = spec["healthChecks"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(
            spec["wait"] == true || !checks.is_empty(),
            "the next one starts before this is healthy: {kustomization}"
        );
        for check in checks {
            let found = object(
                &objects,
                check["kind"].as_str().unwrap(),
                check["name"].as_str().unwrap(),
            );
            assert_eq!(found["apiVersion"], check["apiVersion"]);
            assert_eq!(found["metadata"]["namespace"], check["namespace"]);
        }
        if kustomization["metadata"]["name"] == "tidings" {
            let checked: Vec<_> = checks.iter().map(|check| (&check["kind"], &check["name"])).collect();
            let all = workloads(&objects).into_iter();
            let all: Vec<_> = all.map(|one| (&one["kind"], &one["metadata"]["name"])).collect();
            assert_eq!(checked, all);
            operator += 1;
        }
        let before = |name: &Value| all[..number].iter().any(|other| other["metadata"]["name"] == *name);
        let waits = spec["dependsOn"].as_array().map_or(0, Vec::len);
        assert_eq!(waits, usize::from(number > 0));
        assert!(
            spec["dependsOn"]
                .as_array()
                .into_iter()
                .flatten()
                .all(|d| before(&d["name"]))
        );
    }
    assert_eq!(operator, 1);
}
