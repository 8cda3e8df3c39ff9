//! The chart on a real API server: what it renders is what Kubernetes' own schemas and admission take, and helm installs,
//! upgrades and removes it. Without a kubelet, so nothing runs here.
//!
//! In clusters of their own: Tidings, which runs in the shared one, would be installed twice.

use serde_json::{Value, json};
use tidings_cluster::{Cluster, Helm, define_operator_kinds, eventually};

use crate::it::team::PATIENCE;

use super::{NAMESPACE, SETS, documents, object, render_set, told, workloads};

const RESTRICTED: [(&str, &str); 2] = [
    ("pod-security.kubernetes.io/enforce", "restricted"),
    ("pod-security.kubernetes.io/warn", "restricted"),
];

fn applied(cluster: &Cluster, args: &[&str], manifest: &str) {
    let apply = [
        "apply",
        "--server-side",
        "--validate=strict",
        "--warnings-as-errors",
        "-f",
        "-",
    ];
    let output = cluster
        .kubectl_with_input(&[&apply[..], args].concat(), manifest)
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_api_server_takes_every_rendering_without_a_warning() {
    let cluster = Cluster::start().unwrap();
    cluster.create_namespace(NAMESPACE, &RESTRICTED).unwrap();
    // Where the set `everything` puts what is for others, and those that the set `namespaces` names.
    for namespace in ["monitoring", "grafana", "sales", "shop"] {
        cluster.create_namespace(namespace, &[]).unwrap();
    }
    define_operator_kinds(&cluster, PATIENCE).unwrap();
    for set in SETS {
        let rendered = render_set(set);
        applied(&cluster, &["--dry-run=server"], &rendered);
        let objects = documents(&rendered);
        for workload in workloads(&objects) {
            // A workload is only warned about; a pod is refused. What it needs is not there, and comes from elsewhere.
            let mut spec = workload["spec"]["template"]["spec"].clone();
            spec["serviceAccountName"] = json!("default");
            spec.as_object_mut().unwrap().remove("priorityClassName");
            for claim in workload["spec"]["volumeClaimTemplates"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let volume = json!({"name": claim["metadata"]["name"], "emptyDir": {}});
                spec["volumes"].as_array_mut().unwrap().push(volume);
            }
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried", "namespace": NAMESPACE}, "spec": spec});
            applied(&cluster, &["--dry-run=server"], &pod.to_string());
        }
    }
    let privileged = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"},
        "spec": {"containers": [{"name": "a", "image": "a", "securityContext": {"privileged": true}}]}});
    let refused = cluster
        .kubectl_with_input(
            &["apply", "-n", NAMESPACE, "--dry-run=server", "-f", "-"],
            &privileged.to_string(),
        )
        .unwrap();
    assert!(!refused.status.success(), "the namespace refuses what it must");

    // What Argo CD is taught goes into its ConfigMap, as docs/install.md says.
    cluster.create_namespace("argocd", &[]).unwrap();
    cluster
        .kubectl_ok(&[
            "create",
            "configmap",
            "argocd-cm",
            "-n",
            "argocd",
            "--from-literal=url=kept",
        ])
        .unwrap();
    let patch = super::path("deploy/argocd/argocd-cm.yaml");
    let args = ["patch", "configmap", "argocd-cm", "-n", "argocd", "--patch-file"];
    cluster
        .kubectl_ok(&[&args[..], &[patch.to_str().unwrap()]].concat())
        .unwrap();
    let taught = cluster.get("argocd", "configmap", "argocd-cm").unwrap().unwrap();
    assert_eq!(taught["data"]["url"], "kept");
    assert!(taught["data"]["resource.customizations.health.tidings.dev_Replay"].is_string());

    // And for real, with install.yaml over it: who starts with one can go on with the other.
    applied(&cluster, &[], &render_set("defaults"));
    let install = super::path("deploy/install.yaml");
    let args = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        install.to_str().unwrap(),
    ];
    cluster.kubectl_ok(&args).unwrap();
    cluster
        .wait_for("default", "crd/replays.tidings.dev", "condition=Established", PATIENCE)
        .unwrap();
    let examples: String = told("crdsExamples")
        .iter()
        .map(|example| format!("---\n{example}\n"))
        .collect();
    eventually("the examples of Artifact Hub", PATIENCE, || {
        let tried = cluster.kubectl_with_input(&["apply", "--dry-run=server", "-f", "-"], &examples)?;
        anyhow::ensure!(tried.status.success(), "{}", String::from_utf8_lossy(&tried.stderr));
        Ok(true)
    })
    .unwrap();
}

#[test]
fn helm_installs_upgrades_and_removes_it_and_keeps_what_must_stay() {
    let cluster = Cluster::start().unwrap();
    let helm = Helm::of(&cluster).unwrap();
    let chart = Helm::chart();
    let chart = chart.to_str().unwrap();
    let release = ["tidings", "-n", NAMESPACE];
    let installed = helm
        .ok(&[&["install"], &release[..], &[chart, "--create-namespace"]].concat())
        .unwrap();
    let last = installed.trim_end().lines().last().unwrap();
    assert_eq!(
        last.trim(),
        "kubectl rollout status -n tidings-system statefulset/tidings-dispatcher"
    );
    assert!(
        installed.contains("http://tidings-dispatcher.tidings-system/v1/namespaces/NAMESPACE/events"),
        "{installed}"
    );
    let keeps = "helm uninstall keeps the queue's volume and all signing Secrets";
    let definitions_too = ", and the CustomResourceDefinitions with every endpoint and\nsubscription.\n";
    assert!(
        installed.contains(&format!("{keeps}{definitions_too}")) && !installed.contains("DELETES"),
        "{installed}"
    );

    let endpoint = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
        "metadata": {"name": "crm", "namespace": "default"}, "spec": {"url": "https://hooks.example.com/"}});
    let definitions = "crd/webhookendpoints.tidings.dev";
    cluster
        .wait_for("default", definitions, "condition=Established", PATIENCE)
        .unwrap();
    cluster.wait_for_kinds("whe", PATIENCE).unwrap();
    cluster.apply(&endpoint.to_string()).unwrap();

    // A later chart with other values: nothing that is immutable depends on either.
    let package = ["package", chart, "--version", "9.9.9", "--app-version", "9.9.9", "-d"];
    helm.ok(&[&package[..], &[helm.home().to_str().unwrap()]].concat())
        .unwrap();
    let later = helm.home().join("tidings-9.9.9.tgz");
    let values = [
        "--set=controller.replicas=3",
        "--set=dispatcher.maxEventBytes=1048576",
        "--set=commonLabels.team=platform",
        "--set-json=policy.rules=[{\"namespaceSelector\":{},\"egress\":{\"ports\":[443]}}]",
    ];
    helm.ok(&[&["upgrade"], &release[..], &[later.to_str().unwrap()], &values[..]].concat())
        .unwrap();
    let get = |kind: &str, name: &str| cluster.get(NAMESPACE, kind, name).unwrap();
    let dispatcher = get("statefulset", "tidings-dispatcher").unwrap();
    let container = &dispatcher["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "ghcr.io/tidings/tidings:9.9.9");
    assert!(
        container["args"]
            .as_array()
            .unwrap()
            .contains(&json!("--max-event-bytes=1048576"))
    );
    assert_eq!(get("deployment", "tidings-controller").unwrap()["spec"]["replicas"], 3);
    let policy = get("configmap", "tidings-policy").unwrap();
    assert!(policy["data"]["policy.yaml"].as_str().unwrap().contains("443"));

    helm.ok(&[&["rollback"], &release[..], &["1"]].concat()).unwrap();
    assert_eq!(get("deployment", "tidings-controller").unwrap()["spec"]["replicas"], 2);

    let removed = helm.ok(&[&["uninstall"], &release[..]].concat()).unwrap();
    assert!(
        removed.contains("kept") && removed.contains("CustomResourceDefinition"),
        "{removed}"
    );
    assert!(
        cluster.get("default", "whe", "crm").unwrap().is_some(),
        "the tenants' objects are there"
    );
    let gone = |kind: &str| {
        cluster
            .kubectl_ok(&["get", kind, "-n", NAMESPACE, "-o", "name"])
            .unwrap()
    };
    for kind in [
        "deployments,statefulsets,services,poddisruptionbudgets",
        "roles,rolebindings",
    ] {
        assert_eq!(gone(kind), "", "{kind}");
    }

    // Another time, onto the definitions that were kept.
    helm.ok(&[&["install"], &release[..], &[chart]].concat()).unwrap();
    assert!(cluster.get("default", "whe", "crm").unwrap().is_some());
    let all: Value = serde_json::from_str(&helm.ok(&["list", "-n", NAMESPACE, "-o", "json"]).unwrap()).unwrap();
    assert_eq!(
        (&all[0]["name"], &all[0]["status"]),
        (&json!("tidings"), &json!("deployed"))
    );
    let objects = documents(&helm.ok(&[&["get", "manifest"], &release[..]].concat()).unwrap());
    object(&objects, "CustomResourceDefinition", "replays.tidings.dev");

    // Unless it was told not to keep them, which it says.
    let said = helm
        .ok(&[&["upgrade"], &release[..], &[chart, "--set=crds.keep=false"]].concat())
        .unwrap();
    let deletes =
        "It DELETES the CustomResourceDefinitions, and with them every endpoint and subscription of the cluster.\n";
    assert!(said.contains(&format!("{keeps}.\n{deletes}")), "{said}");
    helm.ok(&[&["uninstall"], &release[..]].concat()).unwrap();
    cluster.wait_for("default", definitions, "delete", PATIENCE).unwrap();
}
