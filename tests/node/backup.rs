//! The queue copied and restored, by the commands of docs/backup.md as they are there.

use std::fs;

use serde_json::Value;
use tidings_cluster::Page;

use super::stage::{DISPATCHER, SYSTEM, Stage};

pub fn the_queue_is_copied_by_a_pod_and_restored_into_another_volume(stage: &mut Stage) {
    stage.receiving();
    stage.suspend(true);
    let producer = stage.produce(20, 1);
    let (accepted, _) = stage.produced(&producer);

    let page = Page::read("docs/backup.md");
    let (commands, manifests) = (
        page.blocks_under("The queue", "sh"),
        page.blocks_under("The queue", "yaml"),
    );
    let [copy, stop, start] = &*commands else {
        panic!("copy, stop and start, not {commands:#?}")
    };
    let [_, pod, claim] = &*manifests else {
        panic!("a snapshot, the copying pod and the claim, not {manifests:#?}")
    };
    fs::write(stage.file("copy.yaml"), pod).unwrap();
    stage.follow(copy);
    stage.ready();
    assert!(stage.file("queue/tidings.db").is_file(), "the store was copied");

    stage.follow(stop);
    stage.until_gone("pod", DISPATCHER);
    stage.new_volume();
    // "Without `dataSource` for files"; and here volumes have no class.
    let mut claim: Value = serde_yaml::from_str(claim).unwrap();
    for name in ["dataSource", "storageClassName"] {
        assert!(claim["spec"].as_object_mut().unwrap().remove(name).is_some(), "{name}");
    }
    stage.cluster().apply(&claim.to_string()).unwrap();
    let back = page.command("kubectl cp ");
    // "By the pod above": what is between stopping and starting, the other way round.
    let lines = copy
        .lines()
        .filter(|line| !line.starts_with("kubectl scale ") && !line.contains(DISPATCHER));
    let there = |line: &str| line.starts_with("kubectl cp ");
    let steps: Vec<&str> = lines.map(|line| if there(line) { &*back } else { line }).collect();
    assert!(steps.contains(&&*back), "{steps:?}");
    stage.follow(&steps.join("\n"));
    stage.follow(start);
    stage.ready();

    let received = stage.leads().unwrap();
    assert!(received.is_disjoint(&accepted), "messages waited through all of it");
    stage.suspend(false);
    stage.until_delivered(&accepted);
    let left = stage.cluster().get(SYSTEM, "pod", "copy").unwrap();
    assert!(left.is_none(), "the page removes its pod");
}
