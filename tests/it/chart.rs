//! The chart, by the real helm: what it renders, what it refuses, and what of it is kept in `deploy/`.
//!
//! `make manifests` writes what these tests compare with.

mod deploy;
mod gitops;
mod hardened;
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tidings::api::crd;
use tidings::api::policy::Policy;
use tidings_cluster::{Helm, repository_root};

/// With this set, what is kept is written instead of compared.
const WRITE: &str = "TIDINGS_WRITE_MANIFESTS";
const NAMESPACE: &str = "tidings-system";
/// Sets of values in `tests/chart/`.
const SETS: [&str; 4] = ["defaults", "everything", "given", "namespaces"];

pub fn path(name: &str) -> PathBuf {
    repository_root().join(name)
}

/// What helm makes of the chart with `more` arguments.
pub fn render(more: &[&str]) -> String {
    let chart = Helm::chart();
    let args = ["template", "tidings", chart.to_str().unwrap(), "-n", NAMESPACE];
    Helm::offline().unwrap().ok(&[&args[..], more].concat()).unwrap()
}

/// With a set of values.
pub fn render_set(set: &str) -> String {
    let values = path(&format!("tests/chart/{set}.values.yaml"));
    render(&["-f", values.to_str().unwrap()])
}

/// The documents of a YAML stream that are not empty.
pub fn documents(text: &str) -> Vec<Value> {
    let all = serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    all.filter(|document| !document.is_null()).collect()
}

/// The object of this kind and name.
pub fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// Deployment and StatefulSet.
fn workloads(objects: &[Value]) -> Vec<&Value> {
    let pods = |object: &&Value| object["spec"]["template"].is_object();
    let found: Vec<&Value> = objects.iter().filter(pods).collect();
    assert_eq!(found.len(), 2);
    found
}

/// Compares with the file that is kept, or writes it.
pub fn kept(file: &Path, text: &str) {
    if std::env::var_os(WRITE).is_some() {
        fs::write(file, text).unwrap();
        return;
    }
    let kept = fs::read_to_string(file).unwrap_or_default();
    let different = kept.lines().zip(text.lines()).find(|(kept, new)| kept != new);
    assert!(
        kept == text,
        "{} has drifted, first at {different:?}; look at it, and write it anew with: make manifests",
        file.display()
    );
}

#[test]
fn helm_finds_nothing_to_say_about_the_chart() {
    let chart = Helm::chart();
    for set in SETS {
        let values = path(&format!("tests/chart/{set}.values.yaml"));
        let args = [
            "lint",
            "--strict",
            chart.to_str().unwrap(),
            "-f",
            values.to_str().unwrap(),
        ];
        let said = Helm::offline().unwrap().ok(&args).unwrap();
        assert!(
            said.contains("0 chart(s) failed") && !said.contains("[WARNING]"),
            "{said}"
        );
    }
}

#[test]
fn the_chart_renders_what_is_kept() {
    for set in SETS {
        let values = path(&format!("tests/chart/{set}.values.yaml"));
        let without_definitions = ["-f", values.to_str().unwrap(), "--set", "crds.enabled=false"];
        let rendered = render(&without_definitions);
        kept(&path(&format!("tests/chart/{set}.rendered.yaml")), &rendered);
    }
}

#[test]
fn the_charts_definitions_are_the_types_and_stay_unless_told_otherwise() {
    for (set, policy) in [("defaults", Some("keep")), ("everything", None)] {
        let rendered = documents(&render_set(set));
        for own in crd::crds() {
            let name = own.metadata.name.as_deref().unwrap();
            let rendered = object(&rendered, "CustomResourceDefinition", name).clone();
            let rendered: CustomResourceDefinition = serde_json::from_value(rendered).unwrap();
            assert!(rendered.spec == own.spec, "{name}: make crds");
            let annotations = rendered.metadata.annotations.unwrap_or_default();
            assert_eq!(
                annotations.get("helm.sh/resource-policy").map(String::as_str),
                policy,
                "{set}"
            );
        }
    }
}

/// What the chart tells Artifact Hub: the list under this annotation.
fn told(annotation: &str) -> Vec<Value> {
    let chart = documents(&fs::read_to_string(Helm::chart().join("Chart.yaml")).unwrap()).remove(0);
    let text = chart["annotations"][format!("artifacthub.io/{annotation}")]
        .as_str()
        .unwrap();
    documents(text).remove(0).as_array().unwrap().clone()
}

#[test]
fn what_artifact_hub_is_told_is_what_the_chart_installs() {
    let rendered = documents(&render(&[]));
    for workload in workloads(&rendered) {
        let image = &workload["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(*image, told("images")[0]["image"]);
        assert_eq!(*image, concat!("ghcr.io/tidings/tidings:", env!("CARGO_PKG_VERSION")));
    }
    let names = |all: &[Value], at: &str| -> BTreeSet<String> {
        let names = all
            .iter()
            .map(|one| one.pointer(at).unwrap().as_str().unwrap().to_owned());
        names.collect()
    };
    let kinds: BTreeSet<String> = crd::crds().into_iter().map(|own| own.spec.names.kind).collect();
    assert_eq!(names(&told("crds"), "/kind"), kinds);
    assert_eq!(names(&told("crdsExamples"), "/kind"), kinds);
    for told in told("crds") {
        object(&rendered, "CustomResourceDefinition", told["name"].as_str().unwrap());
    }
}

#[test]
fn a_bad_value_is_refused_with_its_sentence() {
    let (helm, chart) = (Helm::offline().unwrap(), Helm::chart());
    let text = fs::read_to_string(path("tests/chart/bad-values.yaml")).unwrap();
    let file = helm.home().join("values.yaml");
    let mut tried = 0;
    let mut failures = Vec::new();
    for document in text.split("---\n") {
        let sentence = document
            .lines()
            .find_map(|line| line.strip_prefix("# refused: "))
            .unwrap();
        fs::write(&file, document).unwrap();
        let args = [
            "template",
            "tidings",
            chart.to_str().unwrap(),
            "-f",
            file.to_str().unwrap(),
        ];
        let output = helm.run(&args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() || !said.contains(sentence) {
            failures.push(format!("{document}{said}"));
        }
        tried += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(tried > 20, "the table is read whole");
}

#[test]
fn the_processes_take_the_arguments_that_the_chart_gives_them() {
    for set in SETS {
        for workload in workloads(&documents(&render_set(set))) {
            let container = &workload["spec"]["template"]["spec"]["containers"][0];
            let args = container["args"]
                .as_array()
                .unwrap()
                .iter()
                .map(|arg| arg.as_str().unwrap());
            // What comes before --help is looked at; a plain run would want a cluster.
            let ran = Command::new(env!("CARGO_BIN_EXE_tidings"))
                .args(args)
                .arg("--help")
                .output()
                .unwrap();
            assert!(ran.status.success(), "{set}: {}", String::from_utf8_lossy(&ran.stderr));
        }
    }
    let refused = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["dispatcher", "--max-event-bytes=1048577", "--help"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2), "what is wrong before --help is refused");
}

#[test]
fn the_policy_in_the_values_is_the_policy_that_the_processes_read() {
    let policy = |set: &str, name: &str| {
        let objects = documents(&render_set(set));
        let text = object(&objects, "ConfigMap", name)["data"]["policy.yaml"]
            .as_str()
            .unwrap()
            .to_owned();
        Policy::parse(&text).unwrap()
    };
    assert_eq!(policy("defaults", "tidings-policy"), Policy::default());
    let values = fs::read_to_string(path("tests/chart/everything.values.yaml")).unwrap();
    let values = &documents(&values)[0];
    let meant = Policy::parse(&values["policy"].to_string()).unwrap();
    assert_ne!(meant, Policy::default());
    assert_eq!(policy("everything", "platform-hooks-policy"), meant);
}

#[test]
fn what_helm_takes_of_a_policy_is_what_the_processes_take() {
    let rule = json!({
        "namespaceSelector": {"matchExpressions": [
            {"key": "team", "operator": "In", "values": ["crm"]},
            {"key": "team", "operator": "NotIn", "values": ["chat", "voice"]},
            {"key": "locked", "operator": "DoesNotExist"},
            {"key": "team", "operator": "Exists", "values": []},
        ]},
        "egress": {
            "openCIDRs": ["0.0.0.0/0", "10.0.0.0/8", "192.168.254.255/32", "::/0", "::1/128", "fd00::/8", "fd00:20::/48",
                "1:2:3:4:5:6:7:8/128", "1:2:3:4:5:6:7::/112", "::ffff:10.0.0.0/104", "FE80::/10"],
            "hosts": ["hooks.example.com", "*.example.com", "*.Example.org", "localhost", "bücher.example", "10.1.2.3",
                "[fd00::1]", "crm.sales.svc", "xn--bcher-kva.example", "a_b.example"],
        },
    });
    let policy = json!({"rules": [rule]}).to_string();
    Policy::parse(&policy).unwrap();
    render(&["--set-json", &format!("policy={policy}")]);
    let text = fs::read_to_string(path("tests/chart/bad-values.yaml")).unwrap();
    let refused = documents(&text).into_iter().filter_map(|values| {
        let alone = values["policyConfigMap"].is_null() && values["policy"].is_object();
        alone.then(|| values["policy"].to_string())
    });
    let refused: Vec<String> = refused.collect();
    assert!(refused.len() > 12, "the table is read whole");
    for policy in refused {
        assert!(Policy::parse(&policy).is_err(), "helm refuses what is good: {policy}");
    }
}

/// The chart's values, and the names of all.
fn values() -> (Value, BTreeSet<String>) {
    fn leaves(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value.as_object() {
            Some(map) if !map.is_empty() => {
                for (name, child) in map {
                    leaves(child, &format!("{at}.{name}"), found);
                }
            }
            _ => drop(found.insert(at.trim_start_matches('.').to_owned())),
        }
    }
    let values = documents(&fs::read_to_string(Helm::chart().join("values.yaml")).unwrap()).remove(0);
    let mut all = BTreeSet::new();
    leaves(&values, "", &mut all);
    // These are passed on whole.
    let whole = [
        "metrics.dashboard.labels",
        "podSecurityContext",
        "securityContext",
        "controller.resources",
        "dispatcher.resources",
    ];
    let all = all.into_iter().map(|leaf| {
        whole
            .iter()
            .find(|w| leaf.starts_with(&format!("{w}.")))
            .map_or(leaf.clone(), |w| (*w).to_owned())
    });
    let all = all.collect();
    (values, all)
}

#[test]
fn every_value_is_something_else_in_some_set() {
    let (values, mut all) = values();
    for set in SETS {
        let text = fs::read_to_string(path(&format!("tests/chart/{set}.values.yaml"))).unwrap();
        let of_set = documents(&text).remove(0);
        all.retain(|leaf| {
            let at = format!("/{}", leaf.replace('.', "/"));
            let (default, set) = (values.pointer(&at), of_set.pointer(&at));
            set.is_none() || set == default
        });
    }
    assert_eq!(all, BTreeSet::new(), "no rendering shows what these do");
}

#[test]
fn every_value_is_in_the_schema_and_in_the_charts_readme() {
    let (_, all) = values();
    let readme = fs::read_to_string(Helm::chart().join("README.md")).unwrap();
    let documented: BTreeSet<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(documented, all);
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(Helm::chart().join("values.schema.json")).unwrap()).unwrap();
    for leaf in &all {
        let mut at = &schema;
        for name in leaf.split('.') {
            if let Some(definition) = at["$ref"].as_str() {
                at = schema.pointer(definition.trim_start_matches('#')).unwrap();
            }
            at = &at["properties"][name];
            assert!(at.is_object(), "{leaf} is not in values.schema.json");
        }
    }
}
