//! From pod to pod.

use super::stage::{Stage, TEAM};

pub fn an_event_from_a_pod_with_a_projected_token_reaches_a_receiver_in_another_pod(stage: &mut Stage) {
    stage.receiving();
    let producer = stage.produce(5, 10);
    let (accepted, _) = stage.produced(&producer);
    assert_eq!(accepted.len(), 5);
    stage.until_delivered(&accepted);
    let shown = stage.cluster().kubectl_ok(&["get", "whe,evsub", "-n", TEAM]).unwrap();
    assert!(shown.contains("Succeeding") && shown.contains("Resolved"), "{shown}");
    assert!(shown.contains("http://receiver.shop.svc"), "{shown}");
    for request in stage.received().unwrap() {
        assert_eq!(request["path"], "/hooks/leads", "{request:#}");
    }
}
