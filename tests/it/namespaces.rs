//! Tidings for some namespaces only, with the Roles that the chart has for that and nothing else.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, SYSTEM_NAMESPACE, Tidings, repository_root};

use super::receiver::{Receiver, keep_answering};
use super::team::{PATIENCE, Team, Webhooks, metric, until};

const WATCHED: [&str; 2] = ["sales", "shop"];

fn watching(namespaces: &[&str]) -> Vec<OsString> {
    namespaces
        .iter()
        .map(|name| format!("--watch-namespace={name}").into())
        .collect()
}

fn controller() -> ControllerOptions {
    ControllerOptions {
        extra_args: watching(&WATCHED),
        ..ControllerOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_roles_in_two_namespaces_tidings_works_there_and_in_no_other_and_says_so() {
    let cluster = Cluster::start().unwrap();
    let [sales, shop, other] = ["sales", "shop", "other"].map(|name| Team::open(&cluster, name));
    let tidings = Tidings::install_for(&cluster, env!("CARGO_BIN_EXE_tidings"), &WATCHED).unwrap();
    let _controller = tidings.start_controller(&controller()).unwrap();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            extra_args: watching(&WATCHED),
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_for_a_namespace_waits_while_it_is_not_named_and_goes_on_when_it_is_again() {
    let cluster = Cluster::start().unwrap();
    let [sales, shop] = WATCHED.map(|name| Team::open(&cluster, name));
    let tidings = Tidings::install_for(&cluster, env!("CARGO_BIN_EXE_tidings"), &WATCHED).unwrap();
    let mut watching_both = tidings.start_controller(&controller()).unwrap();
    let naming = |namespaces: &[&str]| {
        let mut extra_args = watching(namespaces);
        extra_args.push("--keep-deleted-seconds=1".into());
        let options = DispatcherOptions {
            data_dir: Some(cluster.dir().join("narrowed")),
            extra_args,
            ..DispatcherOptions::default()
        };
        tidings.start_dispatcher(&options).unwrap()
    };

    let receiver = Webhooks::start().await;
    let mut both = naming(&WATCHED);
    for team in [&sales, &shop] {
        team.deliver_to("crm", &receiver.url(), json!({"suspend": true}));
        team.send(&both, "1").await;
    }
    assert!(both.terminate(PATIENCE).unwrap().success());

    // Deleted in one, in the other no longer seen. One that is deleted has a second to come back.
    sales.delete("evsub", "crm");
    sales.delete("whe", "crm");
    shop.endpoint("crm", &receiver.url(), json!({"suspend": false}));
    let mut one = naming(&WATCHED[..1]);
    let buried = r#"tidings_dead_letters_total{reason="EndpointDeleted"}"#;
    until("the end of what was deleted", async || metric(&one, buried) == 1.0).await;
    assert_eq!(receiver.arrived().len(), 0);
    assert!(one.terminate(PATIENCE).unwrap().success());

    let _both = naming(&WATCHED);
    receiver.until("what waited", |arrived| arrived.len() == 1).await;

    // Who narrows the controller, too, takes away himself what it granted before, as docs/install.md says.
    assert!(watching_both.process.terminate(PATIENCE).unwrap().success());
    let options = ControllerOptions {
        extra_args: watching(&WATCHED[..1]),
        ..ControllerOptions::default()
    };
    let _watching_one = tidings.start_controller(&options).unwrap();
    let dispatcher = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:tidings-dispatcher");
    let may_read = || {
        cluster
            .can_i(&dispatcher, "shop", "get", "secrets/crm-signing")
            .unwrap()
    };
    assert!(may_read());
    let label = "app.kubernetes.io/managed-by=tidings-controller";
    let delete = ["delete", "roles,rolebindings", "-n", "shop", "-l", label];
    cluster.kubectl_ok(&delete).unwrap();
    until("no right to read", async || !may_read()).await;
    let page = std::fs::read_to_string(repository_root().join("docs/install.md")).unwrap();
    assert!(page.contains(&format!("kubectl {}", delete.join(" ").replace("shop", "NAMESPACE"))));
}
