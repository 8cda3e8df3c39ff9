//! What the API server takes and what it refuses, and with which sentence; what people see of the resources.
//!
//! In a cluster of their own: Tidings, which runs in the shared one, would write status.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tidings_cluster::Cluster;

use super::team::PATIENCE;

/// kubectl processes at once.
const AT_ONCE: usize = 4;

const BAD: [&str; 4] = [
    include_str!("../manifests/bad-endpoints.yaml"),
    include_str!("../manifests/bad-subscriptions.yaml"),
    include_str!("../manifests/bad-types.yaml"),
    include_str!("../manifests/bad-replays.yaml"),
];
const GOOD: &str = include_str!("../manifests/good.yaml");

/// A cluster with the definitions and nothing else, and an empty namespace in it. The tests of this file that run together
/// share it, and the last one stops it.
pub fn cluster(namespace: &str) -> Arc<Cluster> {
    static RUNNING: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(|e| e.into_inner());
    let cluster = running.upgrade().unwrap_or_else(|| Arc::new(installed()));
    *running = Arc::downgrade(&cluster);
    drop(running);
    cluster.create_namespace(namespace, &[]).unwrap();
    cluster
}

fn installed() -> Cluster {
    let cluster = Cluster::start().unwrap();
    // Server-side, as `deploy/` does.
    let definitions = tidings::api::crd::yaml();
    let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let applied = cluster.kubectl_with_input(&args, &definitions).unwrap();
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let kinds = ["webhookendpoints", "eventsubscriptions", "eventtypes", "replays"];
    for kind in kinds.map(|plural| format!("crd/{plural}.tidings.dev")) {
        cluster
            .kubectl_ok(&["wait", "--for=condition=Established", "--timeout=60s", &kind])
            .unwrap();
    }
    cluster.wait_for_kinds("whe,evsub,evtype,replays", PATIENCE).unwrap();
    cluster
}

/// The documents of a file, with their comments.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("---\n").filter(|document| document.contains("kind:"))
}

/// What kubectl says about a manifest; `Err` when it is refused.
fn apply(cluster: &Cluster, namespace: &str, manifest: &str) -> Result<String, String> {
    let output = cluster
        .kubectl_with_input(&["apply", "-n", namespace, "-f", "-"], manifest)
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout) + &text(&output.stderr))
    } else {
        Err(text(&output.stderr))
    }
}

#[test]
fn every_bad_manifest_is_refused_with_its_sentence() {
    let cluster = &*cluster("bad-manifests");
    let all: Vec<&str> = BAD.iter().flat_map(|file| documents(file)).collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(manifest) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let sentence = manifest.lines().find_map(|line| line.strip_prefix("# refused: "));
                    let sentence = sentence.expect("a bad manifest says why it is refused");
                    match apply(cluster, "bad-manifests", manifest) {
                        Err(refusal) if refusal.contains(sentence) => {}
                        other => failures.lock().unwrap().push(format!("{manifest}{other:?}")),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(all.len() > 70, "the tables are read whole");
}

#[test]
fn every_good_manifest_is_accepted_and_starts_without_a_status_that_looks_current() {
    let cluster = &*cluster("good-manifests");
    let applied = apply(cluster, "good-manifests", GOOD).unwrap();
    assert!(!applied.contains("Warning"), "{applied}");
    let count = documents(GOOD).count();
    assert_eq!(applied.lines().filter(|line| line.ends_with(" created")).count(), count);

    let endpoint = cluster.get("good-manifests", "whe", "minimal").unwrap().unwrap();
    assert_eq!(endpoint["status"], serde_json::json!({ "observedGeneration": -1 }));
    assert_eq!(
        endpoint["spec"]["retry"]["schedule"],
        serde_json::json!(["1s", "10s", "60s", "300s"])
    );
    for kind in ["evsub", "evtype", "replay"] {
        let object = cluster.get("good-manifests", kind, "minimal").unwrap().unwrap();
        assert_eq!(object["status"]["observedGeneration"], -1, "{kind}");
    }
    let all = cluster
        .kubectl_ok(&["get", "whe,evsub,evtype,replays", "-n", "good-manifests", "-o", "json"])
        .unwrap();
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let all = all["items"].as_array().unwrap();
    assert_eq!(all.len(), count);
    for (object, said) in all.iter().zip(tidings_cluster::kstatus(all).unwrap()) {
        assert_eq!(
            (&*said.upstream, &*said.flux),
            ("InProgress", "InProgress"),
            "{object:#}"
        );
    }
    // Applied once more nothing changes: defaults are the schema's, and no controller writes into a spec.
    let again = apply(cluster, "good-manifests", GOOD).unwrap();
    assert_eq!(
        again.lines().filter(|line| line.ends_with(" unchanged")).count(),
        count,
        "{again}"
    );
}

#[test]
fn every_example_is_accepted() {
    let cluster = &*cluster("examples");
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let mut tried = 0;
    let folders = [examples.to_owned(), format!("{examples}/recipes")];
    for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()) {
        let folder = entry.unwrap().path();
        let recipe = folder.join("recipe.yaml");
        let (flag, what) = if recipe.is_file() {
            ("-f", recipe)
        } else if folder.join("kustomization.yaml").is_file() {
            ("-k", folder)
        } else {
            continue;
        };
        let args = [
            "apply",
            "-n",
            "examples",
            "--dry-run=server",
            flag,
            what.to_str().unwrap(),
        ];
        cluster.kubectl_ok(&args).unwrap();
        tried += 1;
    }
    assert!(tried >= 15, "{tried} examples were found");
}

#[test]
fn what_may_not_change_is_refused_with_its_sentence() {
    let cluster = &*cluster("immutable");
    apply(cluster, "immutable", GOOD).unwrap();
    for (object, patch, sentence) in [
        (
            "evsub/minimal",
            r#"{"spec":{"endpointRef":{"name":"other"}}}"#,
            "endpointRef cannot be changed: create another EventSubscription for the other endpoint",
        ),
        (
            "evsub/minimal",
            r#"{"spec":{"delivery":"Pull","endpointRef":null}}"#,
            "delivery cannot be changed: create another EventSubscription with the other delivery",
        ),
        (
            "evsub/minimal",
            r#"{"spec":{"endpointRef":null}}"#,
            "endpointRef must name the WebhookEndpoint that events go to",
        ),
        (
            "evsub/pulled",
            r#"{"spec":{"delivery":"Push","endpointRef":{"name":"minimal"}}}"#,
            "delivery cannot be changed: create another EventSubscription with the other delivery",
        ),
        (
            "whe/minimal",
            r#"{"spec":{"signing":{"scheme":"GitHub"}}}"#,
            "signing.scheme cannot be changed: create another WebhookEndpoint with the new scheme",
        ),
        (
            "evtype/minimal",
            r#"{"spec":{"type":"lead.lost"}}"#,
            "type cannot be changed: create another EventType for the other type",
        ),
        (
            "replay/minimal",
            r#"{"spec":{"selector":{"state":"Any"}}}"#,
            "selector cannot be changed: create another Replay",
        ),
        (
            "replay/minimal",
            r#"{"spec":{"dryRun":true}}"#,
            "dryRun cannot be changed: create another Replay",
        ),
    ] {
        let args = ["patch", "-n", "immutable", object, "--type=merge", "-p", patch];
        let output = cluster.kubectl(&args).unwrap();
        let refusal = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && refusal.contains(sentence),
            "{object}: {refusal}"
        );
    }
    let change = r#"{"spec":{"url":"https://other.example.com/"}}"#;
    let args = ["patch", "-n", "immutable", "whe/minimal", "--type=merge", "-p", change];
    cluster.kubectl_ok(&args).unwrap();
}

/// Every object in spec and status of our kinds as kubectl calls it, with its fields.
fn objects() -> Vec<(String, Vec<String>)> {
    fn walk(schema: &serde_json::Value, at: String, found: &mut Vec<(String, Vec<String>)>) {
        for within in ["items", "additionalProperties"] {
            if schema[within].is_object() {
                return walk(&schema[within], at, found);
            }
        }
        let Some(fields) = schema["properties"].as_object() else {
            return;
        };
        for (name, child) in fields {
            walk(child, format!("{at}.{name}"), found);
        }
        found.push((at, fields.keys().cloned().collect()));
    }
    let mut found = Vec::new();
    for definition in tidings::api::crd::crds() {
        let definition = serde_json::to_value(definition).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
        walk(schema, plural.to_owned(), &mut found);
    }
    found
}

#[test]
fn kubectl_shows_the_columns_and_explains_every_field() {
    let cluster = &*cluster("shown");
    apply(cluster, "shown", GOOD).unwrap();
    let header = |kind: &str, more: &[&str]| -> Vec<String> {
        let args = [&["get", "-n", "shown", kind], more].concat();
        let table = cluster.kubectl_ok(&args).unwrap();
        table
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let narrow = [
        "NAME",
        "TARGET",
        "READY",
        "STATE",
        "LAST-CODE",
        "PENDING",
        "NEXT-RETRY",
        "AGE",
    ];
    assert_eq!(header("whe", &[]), narrow);
    let wide = ["DEAD", "FAILS", "OLDEST", "LAST-SUCCESS", "SECRET"];
    assert_eq!(header("whe", &["-o", "wide"]), [&narrow[..], &wide[..]].concat());
    assert_eq!(
        header("evsub", &[]),
        ["NAME", "ENDPOINT", "TYPES", "READY", "REASON", "PENDING", "DEAD", "AGE"]
    );
    assert_eq!(
        header("evtype", &[]),
        ["NAME", "TYPE", "VALIDATION", "READY", "REASON", "AGE"]
    );

    let by_endpoint = "--field-selector=spec.endpointRef.name=everything";
    let found = cluster
        .kubectl_ok(&["get", "evsub", "-n", "shown", by_endpoint, "-o", "name"])
        .unwrap();
    assert_eq!(found.trim(), "eventsubscription.tidings.dev/everything");
    let category = cluster
        .kubectl_ok(&["get", "tidings", "-n", "shown", "-o", "name"])
        .unwrap();
    assert_eq!(category.lines().count(), documents(GOOD).count());

    // With --recursive no description is printed at all; without, those of the fields of one object.
    let objects = objects();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((path, fields)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let text = cluster.kubectl_ok(&["explain", path]).unwrap();
                    let explained = fields.iter().all(|field| text.contains(&format!("\n  {field}\t")));
                    assert!(explained && !text.contains("<no description>"), "{path}: {text}");
                }
            });
        }
    });
    assert!(objects.len() > 70, "the definitions are read whole");
    let overlap = cluster
        .kubectl_ok(&["explain", "whe.spec.signing.rotation.overlap"])
        .unwrap();
    assert!(overlap.contains("signed with both keys"), "{overlap}");
}

#[test]
fn a_status_time_in_the_future_is_shown_as_it_is() {
    let cluster = &*cluster("columns");
    apply(cluster, "columns", GOOD).unwrap();
    let status = serde_json::json!({"status": {
        "target": "https://hooks.example.com",
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Resolved", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Delivering", "status": "False", "reason": "Backoff", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ],
        "delivery": {"pending": 3, "lastStatusCode": 503, "retry": {"attempt": 2, "nextAttemptTime": "2099-01-01T00:00:00Z"}},
    }});
    let args = [
        "patch",
        "-n",
        "columns",
        "whe/minimal",
        "--subresource=status",
        "--type=merge",
        "-p",
    ];
    cluster
        .kubectl_ok(&[&args[..], &[&status.to_string()]].concat())
        .unwrap();
    let row = cluster
        .kubectl_ok(&["get", "whe", "minimal", "-n", "columns", "--no-headers"])
        .unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        cells[..7],
        [
            "minimal",
            "https://hooks.example.com",
            "True",
            "Backoff",
            "503",
            "3",
            "2099-01-01T00:00:00Z"
        ]
    );
}
