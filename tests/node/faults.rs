//! What happens to pods and nodes.

use serde_json::Value;
use tidings_cluster::eventually;

use super::stage::{CONTROLLERS, DISPATCHER, PATIENCE, SYSTEM, Stage};

pub fn deleted_pods_lose_nothing_under_load(stage: &mut Stage) {
    stage.receiving();
    let before = uid(stage);
    let producer = stage.produce(500, 20);
    stage.until_accepted(&producer, 20);
    delete(stage, DISPATCHER);
    let leader = leader(stage, None);
    delete(stage, &leader);
    stage.ready();
    let (accepted, gap) = stage.produced(&producer);
    assert_eq!(accepted.len(), 500);
    stage.until_delivered(&accepted);
    assert_ne!(uid(stage), before, "another pod");
    assert_ne!(self::leader(stage, Some(&leader)), leader);
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

/// The pod that leads, once one does that is not `gone`: after a kill the Lease must expire first.
fn leader(stage: &Stage, gone: Option<&str>) -> String {
    let mut leader = None;
    eventually("a controller leading", PATIENCE, || {
        let lease = stage
            .cluster()
            .get(SYSTEM, "lease", "tidings-controller")?
            .unwrap_or_default();
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let pods = ["get", "pods", "-n", SYSTEM, "-l", CONTROLLERS, "-o", "name"];
        let pods = stage.cluster().kubectl_ok(&pods)?;
        let mut pods = pods.lines().filter_map(|pod| pod.strip_prefix("pod/"));
        leader = pods
            .find(|pod| holder.starts_with(pod) && gone != Some(pod))
            .map(str::to_owned);
        Ok(leader.is_some())
    })
    .unwrap();
    leader.unwrap()
}

fn uid(stage: &Stage) -> Value {
    let pod = stage.cluster().get(SYSTEM, "pod", DISPATCHER).unwrap().unwrap();
    pod["metadata"]["uid"].clone()
}
