//! `helm upgrade`, `rollback`, `uninstall`, and installed again.

use std::collections::BTreeSet;
use std::time::Duration;

use super::stage::{NEXT_TAG, RELEASE, SYSTEM, Stage, TEAM};

pub fn upgrade_and_rollback_lose_nothing_while_messages_wait_and_producers_send(stage: &mut Stage) {
    stage.receiving();
    let before = revision(stage);
    stage.suspend(true);
    let waiting = stage.produce(200, 1);
    let (mut accepted, _) = stage.produced(&waiting);

    let mut gaps: Vec<Duration> = Vec::new();
    for upgrade in [true, false] {
        let producer = stage.produce(300, 50);
        stage.until_accepted(&producer, 10);
        if upgrade {
            stage.release("upgrade", &["--set", &format!("image.tag={NEXT_TAG}")]);
            assert!(dispatcher_image(stage).ends_with(NEXT_TAG));
        } else {
            stage
                .helm
                .ok(&[
                    "rollback",
                    RELEASE,
                    &before,
                    "--namespace",
                    SYSTEM,
                    "--wait",
                    "--timeout=5m",
                ])
                .unwrap();
            assert!(!dispatcher_image(stage).ends_with(NEXT_TAG));
        }
        stage.ready();
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

    let said = stage
        .helm
        .run(&["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout=5m"])
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
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

fn revision(stage: &Stage) -> String {
    let status = stage
        .helm
        .ok(&["status", RELEASE, "--namespace", SYSTEM, "-o", "json"])
        .unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["version"].to_string()
}

fn dispatcher_image(stage: &Stage) -> String {
    let pod = stage
        .cluster()
        .get(SYSTEM, "pod", super::stage::DISPATCHER)
        .unwrap()
        .unwrap();
    pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
}
