//! What a team has stored under the definitions of a release (`tests/releases/`) stays readable, reconciled and editable
//! under today's, whichever documented way brought them.

mod compatible;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Helm, Tidings, eventually};

use super::chart::{documents, path};
use super::team::{PATIENCE, TYPES, Team, Webhooks};

/// A release whose definitions and objects are kept.
struct Release {
    name: String,
    folder: PathBuf,
}

impl Release {
    fn all() -> Vec<Release> {
        let folders = fs::read_dir(path("tests/releases")).unwrap();
        let folders = folders.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let release = |folder: PathBuf| Release {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            folder,
        };
        let all: Vec<Release> = folders.map(release).collect();
        assert!(!all.is_empty());
        all
    }

    /// The file of each definition.
    fn definitions(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.folder.join("crds")).unwrap();
        files.map(|entry| entry.unwrap().path()).collect()
    }

    /// Its kinds, separated by commas as kubectl takes them.
    fn kinds(&self) -> String {
        let kind = |file: PathBuf| {
            let definition = documents(&fs::read_to_string(file).unwrap()).remove(0);
            definition["spec"]["names"]["kind"].as_str().unwrap().to_owned()
        };
        let kinds: Vec<String> = self.definitions().into_iter().map(kind).collect();
        kinds.join(",")
    }

    fn objects(&self) -> String {
        fs::read_to_string(self.folder.join("objects.yaml")).unwrap()
    }

    /// A namespace to test in.
    fn namespace(&self, what: &str) -> String {
        format!("{what}-{}", self.name.replace('.', "-"))
    }
}

/// Waits until what was applied is served.
fn until_served(cluster: &Cluster, release: &Release) {
    for file in release.definitions() {
        let name = format!("crd/{}.tidings.dev", file.file_stem().unwrap().to_str().unwrap());
        cluster
            .wait_for("default", &name, "condition=Established", PATIENCE)
            .unwrap();
    }
    eventually("the kinds in discovery", PATIENCE, || {
        Ok(cluster.kubectl(&["get", &release.kinds(), "-A"])?.status.success())
    })
    .unwrap();
}

/// All objects of a release's kinds in a namespace, by kind and name.
fn stored(cluster: &Cluster, namespace: &str, release: &Release) -> BTreeMap<(String, String), Value> {
    let args = ["get", &release.kinds(), "-n", namespace, "-o", "json"];
    let list: Value = serde_json::from_str(&cluster.kubectl_ok(&args).unwrap()).unwrap();
    let name = |object: &Value, at: &str| object.pointer(at).unwrap().as_str().unwrap().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|object| ((name(object, "/kind"), name(object, "/metadata/name")), object.clone()))
        .collect()
}

/// Whether everything in `old` is in `new`; new defaults may have come.
fn contains(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => old
            .iter()
            .all(|(name, value)| new.get(name).is_some_and(|new| contains(new, value))),
        _ => new == old,
    }
}

fn assert_all_read(cluster: &Cluster, namespace: &str, release: &Release, before: &BTreeMap<(String, String), Value>) {
    let after = stored(cluster, namespace, release);
    assert!(after.keys().eq(before.keys()));
    for (key, old) in before {
        let new = &after[key];
        assert_eq!(new["metadata"]["uid"], old["metadata"]["uid"], "{key:?}");
        assert_eq!(new["metadata"]["generation"], old["metadata"]["generation"], "{key:?}");
        assert!(
            contains(&new["spec"], &old["spec"]),
            "{key:?}: {:#}\nwas {:#}",
            new["spec"],
            old["spec"]
        );
    }
}

/// What was applied once is applied again, and then each object is edited in a field that its release has.
fn assert_all_take_edits(cluster: &Cluster, namespace: &str, release: &Release) {
    let applied = cluster
        .kubectl_with_input(&["apply", "-n", namespace, "-f", "-"], &release.objects())
        .unwrap();
    let said = String::from_utf8_lossy(&applied.stdout).into_owned() + &String::from_utf8_lossy(&applied.stderr);
    assert!(applied.status.success() && !said.contains("Warning"), "{said}");
    assert!(said.lines().all(|line| line.ends_with(" unchanged")), "{said}");
    let keys: Vec<(String, String)> = stored(cluster, namespace, release).into_keys().collect();
    for kind in release.kinds().split(',') {
        let edit = match kind {
            "WebhookEndpoint" => json!({"timeout": "29s"}),
            "EventSubscription" => json!({"sources": ["/edited"]}),
            "EventType" => json!({"description": "edited"}),
            "Replay" => json!({"ttlAfterFinished": "29h"}),
            kind => panic!("name a field of {kind} that is edited"),
        };
        let patch = json!({"metadata": {"annotations": {"example.com/edited": "yes"}}, "spec": edit}).to_string();
        let names: Vec<&str> = keys
            .iter()
            .filter(|(own, _)| own == kind)
            .map(|(_, name)| &**name)
            .collect();
        assert!(!names.is_empty(), "{}: objects.yaml has no {kind}", release.name);
        let args = [
            &["patch", kind],
            &names[..],
            &["-n", namespace, "--type=merge", "-p", &patch],
        ]
        .concat();
        let said = cluster.kubectl_ok(&args).unwrap();
        assert_eq!(
            said.lines().filter(|line| line.ends_with(" patched")).count(),
            names.len(),
            "{said}"
        );
    }
}

/// What `docs/install.md` says where the definitions are not the chart's: `kubectl apply --server-side -k crds`, which
/// [`Tidings::install`] runs. And a rule that becomes stricter later locks nobody out: Kubernetes looks at what an edit changes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_release_stored_is_read_reconciled_delivered_and_edited_after_kubectl_brought_new_definitions() {
    for release in Release::all() {
        let cluster = Cluster::start().unwrap();
        for file in release.definitions() {
            cluster
                .kubectl_ok(&["apply", "--server-side", "-f", file.to_str().unwrap()])
                .unwrap();
        }
        until_served(&cluster, &release);
        let team = Team::open(&cluster, &release.namespace("kubectl"));
        let webhooks = Webhooks::start().await;
        cluster
            .kubectl_with_input(&["apply", "-n", &team.namespace, "-f", "-"], &release.objects())
            .unwrap();
        team.endpoint("live", &webhooks.url(), json!({}));
        team.subscription("live", "live");
        let before = stored(&cluster, &team.namespace, &release);
        assert!(before.len() > 20, "{}: the objects are there", release.name);

        let tidings = Tidings::install(&cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
        assert_all_read(&cluster, &team.namespace, &release, &before);

        let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
        // What else matches goes to hosts that nobody is to be asked for.
        let options = DispatcherOptions {
            dns_server: Some("127.0.0.1:9".into()),
            ..DispatcherOptions::default()
        };
        let dispatcher = tidings.start_dispatcher(&options).unwrap();
        team.ready("whe/live");
        team.ready("evsub/live");
        let answer = team.post(&dispatcher, "after", TYPES[0]).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        webhooks
            .until("the event after the upgrade", |all| {
                all.iter().any(|one| one.event == "after")
            })
            .await;
        let all_looked_at = || {
            let looked_at = |object: &Value| object["status"]["observedGeneration"] == object["metadata"]["generation"];
            stored(&cluster, &team.namespace, &release).values().all(looked_at)
        };
        eventually("a look at every object", PATIENCE, || Ok(all_looked_at())).unwrap();
        assert_all_take_edits(&cluster, &team.namespace, &release);
        eventually("a look at every edit", PATIENCE, || Ok(all_looked_at())).unwrap();

        // As a later release would: no URL is as long as that any more.
        let stricter = json!([{"op": "replace", "value": 10,
            "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/url/maxLength"}]);
        let patch = |kind: &str, name: &str, how: &str, patch: &Value| {
            let patch = patch.to_string();
            let args = ["patch", kind, name, "-n", &team.namespace, how, "-p", &patch];
            cluster.kubectl(&args).unwrap()
        };
        let definition = "webhookendpoints.tidings.dev";
        assert!(patch("crd", definition, "--type=json", &stricter).status.success());
        let edit = |spec: Value| patch("whe", "minimal", "--type=merge", &json!({"spec": spec}));
        eventually("the stricter rule", PATIENCE, || {
            Ok(!edit(json!({"url": "https://hooks.example.com/other"})).status.success())
        })
        .unwrap();
        let edited = edit(json!({"timeout": "28s"}));
        assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    }
}

/// A chart of the release: today's with its definitions.
fn chart_of(release: &Release, into: &Path) -> PathBuf {
    let chart = into.join(format!("chart-{}", release.name));
    let copied = std::process::Command::new("cp")
        .arg("-R")
        .args([&Helm::chart(), &chart])
        .status();
    assert!(copied.unwrap().success());
    let folder = chart.join("files/crds");
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    for file in release.definitions() {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    chart
}

#[test]
fn what_a_release_stored_is_read_and_edited_after_helm_upgraded_the_chart_and_read_after_it_rolled_back() {
    for release in Release::all() {
        let cluster = Cluster::start().unwrap();
        let helm = Helm::of(&cluster).unwrap();
        let in_system = ["tidings", "-n", "tidings-system"];
        let old = chart_of(&release, helm.home());
        helm.ok(&[
            &["install"],
            &in_system[..],
            &[old.to_str().unwrap(), "--create-namespace"],
        ]
        .concat())
            .unwrap();
        until_served(&cluster, &release);
        let namespace = release.namespace("helm");
        cluster.create_namespace(&namespace, &[]).unwrap();
        let apply = |manifest: &str| {
            let args = ["apply", "-n", &namespace, "-f", "-"];
            cluster.kubectl_with_input(&args, manifest).unwrap()
        };
        assert!(apply(&release.objects()).status.success());
        let before = stored(&cluster, &namespace, &release);

        let chart = Helm::chart();
        helm.ok(&[&["upgrade"], &in_system[..], &[chart.to_str().unwrap()]].concat())
            .unwrap();
        assert_all_read(&cluster, &namespace, &release, &before);
        // A field that only the new definitions have: the API server serves them a moment after it took them.
        let patch = |kind: &str, name: &str, patch: &str| {
            let args = ["patch", kind, name, "-n", &namespace, "--type=merge", "-p", patch];
            cluster.kubectl(&args).unwrap()
        };
        eventually("the new field", PATIENCE, || {
            patch("whe", "minimal", r#"{"spec": {"retention": "1h"}}"#);
            let endpoint = cluster.get(&namespace, "whe", "minimal")?;
            Ok(endpoint.is_some_and(|endpoint| endpoint["spec"]["retention"] == "1h"))
        })
        .unwrap();
        assert_all_take_edits(&cluster, &namespace, &release);

        let stored_now = stored(&cluster, &namespace, &release);
        helm.ok(&[&["rollback"], &in_system[..], &["1"]].concat()).unwrap();
        eventually("the old definitions", PATIENCE, || {
            let endpoint = cluster.get(&namespace, "whe", "minimal")?;
            Ok(endpoint.is_some_and(|endpoint| endpoint["spec"].get("retention").is_none()))
        })
        .unwrap();
        assert!(
            stored(&cluster, &namespace, &release).keys().eq(stored_now.keys()),
            "all are read"
        );
        assert!(
            patch("whe", "minimal", r#"{"spec": {"timeout": "27s"}}"#)
                .status
                .success()
        );
    }
}
