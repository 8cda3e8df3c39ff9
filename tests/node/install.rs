//! `helm install`.

use serde_json::Value;

use super::stage::{SYSTEM, Stage};

pub fn pods_are_ready_under_the_restricted_standard_with_the_charts_own_values(stage: &mut Stage) {
    let notes = stage.install();
    assert!(notes.contains("kubectl"), "its notes end with what to do next: {notes}");
    let namespace = stage.cluster().get("default", "namespace", SYSTEM).unwrap().unwrap();
    assert_eq!(
        namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"],
        "restricted"
    );

    let pods = stage
        .cluster()
        .kubectl_ok(&["get", "pods", "-n", SYSTEM, "-o", "json"])
        .unwrap();
    let pods: Value = serde_json::from_str(&pods).unwrap();
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 3, "two controllers and the dispatcher");
    for pod in pods {
        let (container, status) = (&pod["spec"]["containers"][0], &pod["status"]["containerStatuses"][0]);
        for probe in ["livenessProbe", "readinessProbe"] {
            assert!(container[probe]["httpGet"].is_object(), "{container:#}");
        }
        assert_eq!(
            (&status["ready"], &status["restartCount"]),
            (&true.into(), &0.into()),
            "{status:#}"
        );
    }
    let claim = stage
        .cluster()
        .get(SYSTEM, "pvc", "data-tidings-dispatcher-0")
        .unwrap()
        .unwrap();
    assert_eq!(claim["status"]["phase"], "Bound");
    let queue = stage.node.volume("queue").unwrap();
    assert!(queue.join("tidings.db").is_file(), "the queue is on the volume");
}
