//! Tidings for some namespaces only, with the Roles that the chart has for that and nothing else.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, SYSTEM_NAMESPACE, Tidings};

use super::receiver::{Receiver, keep_answering};
use super::team::{Team, Webhooks};

const WATCHED: [&str; 2] = ["sales", "shop"];

#[tokio::test(flavor = "multi_thread")]
async fn with_roles_in_two_namespaces_tidings_works_there_and_in_no_other_and_says_so() {
    let cluster = Cluster::start().unwrap();
    let [sales, shop, other] = ["sales", "shop", "other"].map(|name| Team::open(&cluster, name));
    let tidings = Tidings::install_for(&cluster, env!("CARGO_BIN_EXE_tidings"), &WATCHED).unwrap();
    let watched: Vec<_> = WATCHED.map(|name| format!("--watch-namespace={name}").into()).to_vec();
    let _controller = tidings
        .start_controller(&ControllerOptions {
            extra_args: watched.clone(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            extra_args: watched,
            ..DispatcherOptions::default()
        })
        .unwrap();

    // What the processes may do, as the API server sees it.
    for process in ["controller", "dispatcher"] {
        let account = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:tidings-{process}");
        let may = |namespace: &str, verb: &str, what: &str| cluster.can_i(&account, namespace, verb, what).unwrap();
        for what in ["webhookendpoints.tidings.dev", "services"] {
            assert!(
                may("sales", "list", what) && may("shop", "watch", what),
                "{process}: {what}"
            );
            assert!(!may("other", "get", what), "{process}: {what}");
        }
        assert!(
            !may("other", "get", "secrets") && !may("sales", "list", "secrets"),
            "{process}"
        );
        assert!(
            may("sales", "get", "namespaces/sales") && !may("other", "get", "namespaces/other"),
            "{process}"
        );
    }

    // An endpoint elsewhere, applied before all others: whoever looked there would have seen it by the end.
    let receiver = Webhooks::start().await;
    other.endpoint("crm", &receiver.url(), json!({}));
    other.subscription("crm", "crm");

    // Each kind of what the processes watch, read, write and grant.
    shop.deliver_to("crm", &receiver.url(), json!({}));
    let at = SocketAddr::from((Ipv4Addr::new(127, 96, 77, 11), 0));
    let inside = Receiver::serve(None, at, |connection, seen| {
        keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")
    })
    .await;
    sales.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "crm"}, "spec": {
        "clusterIP": inside.address.ip(), "selector": {"app": "crm"}, "ports": [{"port": inside.address.port()}]}}),
    );
    sales.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint", "metadata": {"name": "crm"},
        "spec": {"serviceRef": {"name": "crm", "port": inside.address.port()}}}),
    );
    sales.subscription("crm", "crm");
    sales.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType", "metadata": {"name": "lead"},
        "spec": {"type": "lead.qualified", "schema": {"type": "object", "required": ["lead"]}}}),
    );
    for object in ["whe/crm", "evsub/crm", "evtype/lead"] {
        sales.ready(object);
    }
    for team in [&sales, &shop] {
        team.send(&dispatcher, "1").await;
        team.until_reason("whe", "crm", "Delivering", "Succeeding");
    }
    receiver.until("the event of shop", |arrived| arrived.len() == 1).await;
    shop.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay", "metadata": {"name": "again"},
        "spec": {"selector": {"endpointRef": {"name": "crm"}, "state": "Any"}, "ttlAfterFinished": "1s"}}),
    );
    receiver.until("the replay", |arrived| arrived.len() == 2).await;
    shop.until_gone("replay", "again");

    // For the other namespace there is an answer that says why, to whoever is known.
    let refused = other.post(&dispatcher, "1", "lead.qualified").await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (404, &json!("NamespaceNotWatched")),
        "{refused:?}"
    );
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(
        detail.contains("other is not one of them") && detail.contains("watchNamespaces"),
        "{detail}"
    );
    let whe = other.get("whe", "crm");
    assert_eq!(whe["status"], json!({"observedGeneration": -1}), "nobody looked at it");
    assert!(cluster.get("other", "secret", "crm-signing").unwrap().is_none());
    assert_eq!(inside.requests(), 1);
}
