//! What happens to pods and nodes.

use serde_json::Value;

use super::stage::{CONTROLLERS, DISPATCHER, PATIENCE, SYSTEM, Stage};

pub fn deleted_pods_lose_nothing_under_load(stage: &mut Stage) {
    stage.receiving();
    let producer = stage.produce(500, 20);
    stage.until_accepted(&producer, 20);
    delete(stage, DISPATCHER);
    let leader = leader(stage);
    delete(stage, &leader);
    stage.ready();
    let (accepted, gap) = stage.produced(&producer);
    assert_eq!(accepted.len(), 500);
    stage.until_delivered(&accepted);
    tidings_cluster::eventually("another leader", PATIENCE, || Ok(self::leader(stage) != leader)).unwrap();
    eprintln!("producers waited {gap:?} while the dispatcher's pod was replaced");
}

pub fn a_restart_of_the_kubelet_loses_nothing_under_load(stage: &mut Stage) {
    stage.receiving();
    let before = uid(stage);
    let producer = stage.produce(300, 20);
    stage.until_accepted(&producer, 20);
    stage.node.restart_kubelet().unwrap();
    let (accepted, _) = stage.produced(&producer);
    stage.until_delivered(&accepted);
    stage.ready();
    assert_eq!(uid(stage), before, "the pod went on meanwhile");
}

fn delete(stage: &Stage, pod: &str) {
    let args = ["delete", "pod", pod, "-n", SYSTEM, "--force", "--grace-period=0"];
    stage.cluster().kubectl_ok(&args).unwrap();
}

fn leader(stage: &Stage) -> String {
    let lease = stage
        .cluster()
        .get(SYSTEM, "lease", "tidings-controller")
        .unwrap()
        .unwrap();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let pods = stage
        .cluster()
        .kubectl_ok(&["get", "pods", "-n", SYSTEM, "-l", CONTROLLERS, "-o", "name"])
        .unwrap();
    let held = pods
        .lines()
        .filter_map(|pod| pod.strip_prefix("pod/"))
        .find(|pod| holder.starts_with(pod));
    held.unwrap_or_default().to_owned()
}

fn uid(stage: &Stage) -> Value {
    let pod = stage.cluster().get(SYSTEM, "pod", DISPATCHER).unwrap().unwrap();
    pod["metadata"]["uid"].clone()
}
