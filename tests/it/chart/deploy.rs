//! `deploy/`: plain YAML for those who do not use helm, made of the chart.

use std::fs;

use serde_json::Value;
use tidings::api::crd;

use super::gitops::kustomized;
use super::{documents, kept, object, path, render};
use crate::it::chart::NAMESPACE;

/// Files of `deploy/`, and the chart's templates they are made of.
const FILES: [(&str, &[&str]); 4] = [
    (
        "rbac/controller.yaml",
        &[
            "controller/serviceaccount.yaml",
            "controller/rbac.yaml",
            "controller/admission.yaml",
        ],
    ),
    (
        "rbac/dispatcher.yaml",
        &["dispatcher/serviceaccount.yaml", "dispatcher/rbac.yaml"],
    ),
    ("rbac/aggregated.yaml", &["aggregated.yaml"]),
    (
        "operator/workloads.yaml",
        &[
            "policy.yaml",
            "controller/deployment.yaml",
            "dispatcher/service.yaml",
            "dispatcher/statefulset.yaml",
            "poddisruptionbudgets.yaml",
        ],
    ),
];
/// What keeps GitOps from deleting a definition, as in `crds/kustomization.yaml`.
const KEPT: &str = "metadata:
  annotations:
    kustomize.toolkit.fluxcd.io/prune: disabled
    argocd.argoproj.io/sync-options: Prune=false,Delete=false
";
const MADE: &str = "# Made of charts/tidings by `make manifests`.\n";

/// What one template renders to, without what only helm wants to know.
fn plain(template: &str) -> String {
    let rendered = render(&["--show-only", &format!("templates/{template}")]);
    let helms = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    let lines = rendered.lines().filter(|line| {
        let line = line.trim_start();
        !line.is_empty() && !helms.iter().any(|start| line.starts_with(start))
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn files() -> Vec<(&'static str, String)> {
    let made = |templates: &[&str]| templates.iter().map(|template| plain(template)).collect::<String>();
    FILES
        .iter()
        .map(|(name, templates)| (*name, format!("{MADE}{}", made(templates))))
        .collect()
}

#[test]
fn deploy_is_made_of_the_chart() {
    let files = files();
    for (name, text) in &files {
        kept(&path("deploy").join(name), text);
    }
    let namespace = fs::read_to_string(path("deploy/rbac/namespace.yaml")).unwrap();
    let made = files
        .iter()
        .map(|(_, text)| text.strip_prefix(MADE).unwrap())
        .collect::<String>();
    let definitions = crd::yaml().replace("\nmetadata:\n", &format!("\n{KEPT}"));
    let install = format!("{MADE}---\n{namespace}---\n{definitions}{made}");
    kept(&path("deploy/install.yaml"), &install);
}

#[test]
fn each_way_to_install_has_the_same_objects() {
    fn names(mut objects: Vec<Value>) -> Vec<(String, String)> {
        objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"]["name"].to_string()));
        let name = |object: &Value| (object["kind"].to_string(), object["metadata"]["name"].to_string());
        objects.iter().map(name).collect()
    }
    let mut chart = documents(&render(&[]));
    let install = documents(&fs::read_to_string(path("deploy/install.yaml")).unwrap());
    // helm makes the namespace itself (--create-namespace).
    chart.push(object(&install, "Namespace", NAMESPACE).clone());
    let chart = names(chart);
    assert_eq!(names(install), chart, "deploy/install.yaml");
    assert_eq!(names(kustomized("deploy")), chart, "kubectl kustomize deploy");
}
