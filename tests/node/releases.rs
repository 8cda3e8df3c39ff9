//! Upgraded, rolled back, removed and installed again, by the commands of docs/install.md as they are there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::Duration;

use serde_json::json;
use tidings_cluster::{Helm, Page, eventually};

use super::stage::{DISPATCHER, NEXT_TAG, PATIENCE, RELEASE, REPOSITORY, SYSTEM, Stage, TEAM};

pub fn upgrade_and_rollback_lose_nothing_while_messages_wait_and_producers_send(stage: &mut Stage) {
    stage.receiving();
    let page = Page::read("docs/install.md");
    stage.suspend(true);
    let waiting = stage.produce(200, 1);
    let (mut accepted, _) = stage.produced(&waiting);

    let mut gaps: Vec<Duration> = Vec::new();
    for upgrade in [true, false] {
        let producer = stage.produce(300, 50);
        stage.until_accepted(&producer, 10);
        if upgrade {
            fs::write(stage.file("values.yaml"), next()).unwrap();
            stage.follow(&page.block("Upgrading", "sh"));
            stage.ready();
            assert!(dispatcher_image(stage).ends_with(NEXT_TAG));
        } else {
            stage.follow(&page.command("helm rollback "));
            stage.ready();
            assert!(!dispatcher_image(stage).ends_with(NEXT_TAG));
        }
        let (more, gap) = stage.produced(&producer);
        assert_eq!(more.len(), 300);
        accepted.extend(more);
        gaps.push(gap);
    }
    let received = stage.leads().unwrap();
    assert!(received.is_disjoint(&accepted), "messages waited through both");
    stage.suspend(false);
    stage.until_delivered(&accepted);
    eprintln!("producers waited {gaps:?} while the dispatcher was replaced");
}

pub fn uninstall_keeps_queue_keys_and_definitions_and_a_second_install_picks_up_where_it_was(stage: &mut Stage) {
    stage.receiving();
    stage.suspend(true);
    let producer = stage.produce(50, 1);
    let (accepted, _): (BTreeSet<String>, _) = stage.produced(&producer);
    let key = |stage: &Stage| stage.cluster().get(TEAM, "secret", "crm-signing").unwrap().unwrap()["data"].clone();
    let signed_with = key(stage);

    let said = stage.follow(&Page::read("docs/install.md").block("Removing", "sh"));
    assert!(
        said.contains("kept") && said.contains("webhookendpoints"),
        "it says what it leaves: {said}"
    );
    let cluster = stage.cluster();
    assert!(
        cluster
            .get(SYSTEM, "statefulset", "tidings-dispatcher")
            .unwrap()
            .is_none()
    );
    assert!(
        cluster
            .get(SYSTEM, "pvc", "data-tidings-dispatcher-0")
            .unwrap()
            .is_some()
    );
    assert!(cluster.get(TEAM, "whe", "crm").unwrap().is_some());
    assert!(key(stage) == signed_with, "the key is the same");

    stage.install();
    assert!(key(stage) == signed_with, "a second install takes the key over");
    assert!(stage.leads().unwrap().is_disjoint(&accepted));
    stage.suspend(false);
    stage.until_delivered(&accepted);
}

pub fn a_store_of_another_version_is_not_opened_and_is_replaced_as_the_page_says(stage: &mut Stage) {
    stage.receiving();
    deliver(stage);
    let page = Page::read("docs/install.md");
    let upgrades = page.blocks_under("Upgrading", "sh");
    let [_, replace] = &*upgrades else {
        panic!("an upgrade, and one of the store's version, not {upgrades:#?}")
    };

    // As a release with another version would have left it.
    stage.follow(&page.block("Removing", "sh"));
    stage.until_gone("pod", DISPATCHER);
    another_version(stage);
    let chart = Helm::chart();
    let install = ["install", RELEASE, chart.to_str().unwrap(), "--namespace", SYSTEM];
    stage.helm.ok(&install).unwrap();
    eventually("the dispatcher ending", PATIENCE, || {
        let log = stage.cluster().kubectl_ok(&["logs", DISPATCHER, "-n", SYSTEM])?;
        anyhow::ensure!(log.contains("the store has version"), "{log}");
        Ok(true)
    })
    .unwrap();

    fs::write(stage.file("values.yaml"), next()).unwrap();
    stage.follow(replace);
    stage.new_volume();
    stage.ready();
    assert!(dispatcher_image(stage).ends_with(NEXT_TAG));
    deliver(stage);
}

pub fn what_is_removed_for_good_is_gone_and_the_page_installs_it_anew(stage: &mut Stage) {
    stage.receiving();
    let page = Page::read("docs/install.md");
    let ways = page.blocks_under("Removing", "sh");
    let [helm, without, for_good] = &*ways else {
        panic!("with helm, without, and for good, not {ways:#?}")
    };
    // Once each way: without helm after an installation with it, which it takes over.
    stage.follow(helm);
    stage.follow("kubectl apply --server-side --force-conflicts -f deploy/install.yaml");
    stage.ready();
    deliver(stage);
    stage.follow(without);
    stage.until_gone("pod", DISPATCHER);
    let shown = |args: &[&str]| {
        stage
            .cluster()
            .kubectl_ok(&[&["get", "-o", "name"], args].concat())
            .unwrap()
    };
    let kinds = "deploy,sts,svc,cm,pdb,sa,role,rolebinding,networkpolicy,pod";
    eventually("nothing of it running, or able to", PATIENCE, || {
        let left = shown(&[kinds, "-n", SYSTEM, "-l", "app.kubernetes.io/name=tidings"]);
        anyhow::ensure!(left.is_empty(), "{left}");
        Ok(true)
    })
    .unwrap();
    for (namespace, kind, name) in [
        (SYSTEM, "pvc", "data-tidings-dispatcher-0"),
        (TEAM, "whe", "crm"),
        (TEAM, "secret", "crm-signing"),
    ] {
        assert!(
            stage.cluster().get(namespace, kind, name).unwrap().is_some(),
            "{name} is kept"
        );
    }

    stage.follow(for_good);
    let granted = "app.kubernetes.io/managed-by=tidings-controller";
    for left in [
        shown(&["pvc,leases", "-n", SYSTEM]),
        shown(&["roles,rolebindings", "-A", "-l", granted]),
        shown(&["secrets", "-A", "--field-selector=type=tidings.dev/signing-key"]),
    ] {
        assert_eq!(left, "");
    }
    let definitions = shown(&["crd,clusterroles,clusterrolebindings,validatingadmissionpolicies"]);
    assert!(!definitions.contains("tidings"), "{definitions}");

    // The namespace stays with whoever made it; here somebody begins at the beginning.
    stage.cluster().kubectl_ok(&["delete", "namespace", SYSTEM]).unwrap();
    // It knows the old key.
    let receiver = ["delete", "deployment", "receiver", "-n", TEAM, "--cascade=foreground"];
    stage.cluster().kubectl_ok(&receiver).unwrap();
    stage.new_volume();
    let install = page.block("With helm", "sh");
    stage.follow(&install.replace("registry.example.com/tidings", REPOSITORY));
    stage.receiving();
    deliver(stage);
}

/// Sends some events, and waits until they are delivered.
fn deliver(stage: &mut Stage) {
    let producer = stage.produce(5, 10);
    let (accepted, _) = stage.produced(&producer);
    stage.until_delivered(&accepted);
}

/// The values of the next release.
fn next() -> String {
    json!({"image": {"repository": REPOSITORY, "tag": NEXT_TAG}}).to_string()
}

/// Writes another version into the store of a dispatcher that has ended: SQLite's `user_version`, in the file's header.
fn another_version(stage: &Stage) {
    let store = stage.node.volume("queue").unwrap().join("tidings.db");
    let mut store = fs::File::options().write(true).open(store).unwrap();
    store.seek(SeekFrom::Start(60)).unwrap();
    store.write_all(&9999_u32.to_be_bytes()).unwrap();
}

fn dispatcher_image(stage: &Stage) -> String {
    let pod = stage.cluster().get(SYSTEM, "pod", DISPATCHER).unwrap().unwrap();
    pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}
