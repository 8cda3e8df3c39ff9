//! The administrator's policy and the guard, through the processes: conditions, waiting messages, a file that changes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings::api::policy::Policy;
use tidings_cluster::{
    Cluster, Controller, ControllerOptions, Dispatcher, DispatcherOptions, SYSTEM_NAMESPACE, Tidings, repository_root,
};

use super::dns::{Answer, Dns};
use super::receiver::Receiver;
use super::team::{PATIENCE, Team, Webhooks};

const OPEN_ALL: &str = "rules: [{namespaceSelector: {}, egress: {openCIDRs: [127.0.0.0/8, 10.9.0.0/16]}}]";
const MISSPELT: &str = "rules: [{namespaceSelector: {}, egres: {openCIDRs: [0.0.0.0/0]}}]";

fn addresses(all: &[&str]) -> Answer {
    Answer::Addresses(all.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect())
}

/// Every name is below `receiver.test`, which the receivers' certificate covers.
fn zone(name: &str, earlier: usize) -> Answer {
    match name.strip_suffix(".receiver.test") {
        Some("good") => addresses(&["127.0.0.1"]),
        Some("mixed") => addresses(&["127.0.0.1", "10.9.9.9"]),
        Some("rebinding") if earlier == 0 => addresses(&["127.0.0.1"]),
        Some("rebinding" | "private") => addresses(&["10.9.9.9"]),
        Some("metadata") => addresses(&["169.254.169.254"]),
        _ => Answer::NoSuchName,
    }
}

/// One that never keeps a connection: every attempt looks its name up and dials.
async fn receiver() -> Receiver {
    Receiver::start(|mut connection, seen| async move {
        if let Some(request) = connection.request().await {
            seen.lock().unwrap().push(request);
            connection
                .write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    })
    .await
}

async fn until_requests(receiver: &Receiver, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while receiver.requests() < count {
        assert!(
            Instant::now() < deadline,
            "{} of {count} requests came",
            receiver.requests()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// That nothing was tried: the message waits, and its coming attempt is the first.
fn assert_waits(whe: &Value) {
    let delivery = &whe["status"]["delivery"];
    let shown = (
        &delivery["pending"],
        &delivery["consecutiveFailures"],
        &delivery["recentFailures"],
    );
    assert_eq!(shown, (&json!(1), &json!(0), &json!([])), "{whe:#}");
    let coming = &delivery["retry"]["attempt"];
    assert!(coming.is_null() || coming == 1, "{whe:#}");
}

pub fn until_invalid(controller: &Controller, dispatcher: &Dispatcher, invalid: u8) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let says = |metrics: String, name: &str| metrics.lines().any(|line| line == format!("{name} {invalid}"));
        if says(controller.metrics().unwrap(), "tidings_controller_policy_invalid")
            && says(dispatcher.metrics().unwrap(), "tidings_policy_invalid")
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the policy file is never taken for {}",
            if invalid == 1 { "invalid" } else { "valid" }
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// As a mounted file changes: at once, not bit by bit.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_does_not_open_is_never_dialled_and_a_changed_file_opens_it_without_a_restart() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let dns = Dns::start(zone).await;
    let (policy, example) = (
        cluster.dir().join("policy.yaml"),
        fs::read_to_string(repository_root().join("examples/policy.yaml")).unwrap(),
    );
    fs::write(&policy, &example).unwrap();
    let controller = tidings
        .start_controller(&ControllerOptions {
            policy: policy.clone(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let options = DispatcherOptions {
        policy: policy.clone(),
        dns_server: Some(dns.address.to_string()),
        ..DispatcherOptions::default()
    };
    let dispatcher = tidings.start_dispatcher(&options).unwrap();
    let (open, closed) = (Team::open(&cluster, "open"), Team::with_labels(&cluster, "closed", &[]));
    let (welcome, forbidden) = (receiver().await, receiver().await);
    let url = |host: &str, receiver: &Receiver| format!("https://{host}:{}/", receiver.address.port());
    let named = |name: &str, receiver: &Receiver| url(&format!("{name}.receiver.test"), receiver);
    // One event to each endpoint of a team.
    let apply = |team: &Team, name: &str, url: &str| {
        team.endpoint(name, url, json!({}));
        team.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
            "spec": {"endpointRef": {"name": name}, "eventTypes": ["lead.*"], "sources": [format!("/{name}")]}}),
        );
        team.ready(&format!("evsub/{name}"));
    };
    let send = async |team: &Team, name: &str, id: &str| {
        let event = json!({"specversion": "1.0", "id": id, "source": format!("/{name}"), "type": "lead.qualified", "data": {"lead": id}});
        let answer = team.posting(&dispatcher, &event).await.unwrap();
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    };

    // A namespace that nothing is opened for.
    apply(&closed, "literal", &url("127.0.0.1", &forbidden));
    apply(&closed, "name", &named("good", &forbidden));
    closed.until_reason("whe", "literal", "Ready", "PolicyDenied");
    assert_eq!(
        closed.condition("whe", "literal", "Stalled").unwrap(),
        ("True".into(), "PolicyDenied".into())
    );
    closed.ready("whe/name");
    send(&closed, "literal", "1").await;
    send(&closed, "name", "1").await;
    for name in ["literal", "name"] {
        closed.until_reason("whe", name, "Delivering", "Blocked");
        assert_waits(&closed.until("waiting", "whe", name, |whe| whe["status"]["delivery"]["pending"] == 1));
    }
    assert_eq!(
        closed.condition("whe", "name", "Ready").unwrap().0,
        "True",
        "it is configured; what its name means is delivery"
    );

    // One that loopback is opened for: names with an address that is not, at once or later, are refused as a whole.
    for name in ["good", "mixed", "rebinding", "metadata"] {
        apply(&open, name, &named(name, &welcome));
        open.ready(&format!("whe/{name}"));
    }
    for name in ["good", "rebinding"] {
        send(&open, name, "1").await;
        open.until_reason("whe", name, "Delivering", "Succeeding");
    }
    until_requests(&welcome, 2).await;
    for (name, id) in [("mixed", "1"), ("metadata", "1"), ("rebinding", "2")] {
        send(&open, name, id).await;
        open.until_reason("whe", name, "Delivering", "Blocked");
        assert_waits(&open.until("waiting", "whe", name, |whe| whe["status"]["delivery"]["pending"] == 1));
    }
    send(&open, "good", "2").await;
    until_requests(&welcome, 3).await;
    assert_eq!(
        (welcome.accepted(), forbidden.accepted()),
        (3, 0),
        "nothing else was dialled"
    );
    assert!(dns.asked("mixed.receiver.test") > 0 && dns.asked("rebinding.receiver.test") > 1);

    // A file that is wrong, or gone, changes nothing.
    replace(&policy, MISSPELT);
    until_invalid(&controller, &dispatcher, 1);
    send(&open, "good", "3").await;
    until_requests(&welcome, 4).await;
    replace(&policy, &example);
    until_invalid(&controller, &dispatcher, 0);
    fs::remove_file(&policy).unwrap();
    until_invalid(&controller, &dispatcher, 1);
    send(&open, "good", "4").await;
    until_requests(&welcome, 5).await;
    assert_eq!(closed.condition("whe", "literal", "Ready").unwrap().1, "PolicyDenied");
    assert_eq!(forbidden.accepted(), 0);

    // A good one opens: what waited is delivered without waiting for the next look in five minutes.
    replace(&policy, OPEN_ALL);
    until_invalid(&controller, &dispatcher, 0);
    closed.ready("whe/literal");
    until_requests(&forbidden, 2).await;
    for name in ["literal", "name"] {
        closed.until_reason("whe", name, "Delivering", "Succeeding");
    }

    // And closes again; the namespace's label opens as well.
    replace(&policy, &example);
    closed.until_reason("whe", "literal", "Ready", "PolicyDenied");
    // The dispatcher reads the file at another time than the controller.
    closed.until_reason("whe", "literal", "Delivering", "Blocked");
    send(&closed, "literal", "2").await;
    closed.until("waiting", "whe", "literal", |whe| {
        whe["status"]["delivery"]["pending"] == 1
    });
    assert_eq!(forbidden.requests(), 2);
    cluster
        .kubectl_ok(&["label", "namespace", "closed", "tidings.dev/loopback=open"])
        .unwrap();
    closed.ready("whe/literal");
    until_requests(&forbidden, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_ready_while_controller_and_dispatcher_go_by_different_policies() {
    const CLOSED: &str = "rules: [{namespaceSelector: {}, secretLabel: Required}]";
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    // As kubelets do it that update a ConfigMap at different times.
    let [here, there] = ["controller", "dispatcher"].map(|name| cluster.dir().join(format!("policy-of-{name}.yaml")));
    fs::write(&here, CLOSED).unwrap();
    fs::write(&there, CLOSED).unwrap();
    let _controller = tidings
        .start_controller(&ControllerOptions {
            policy: here.clone(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            policy: there.clone(),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::open(&cluster, "differing");
    let webhooks = Webhooks::start().await;
    let waits = |name: &str| {
        team.until_reason("whe", name, "Ready", "WaitingForDispatcher");
        let whe = team.get("whe", name);
        let ready = whe["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["type"] == "Ready");
        let message = ready.unwrap()["message"].as_str().unwrap().to_owned();
        assert!(message.contains("the same policy"), "{message}");
    };
    let until_dispatcher_goes_by = |text: &str| {
        let digest = Policy::parse(text).unwrap().digest().to_string();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lease = cluster
                .get(SYSTEM_NAMESPACE, "lease", "tidings-dispatcher-0")
                .unwrap()
                .unwrap();
            if lease["metadata"]["annotations"]["tidings.dev/policy"] == digest {
                return;
            }
            assert!(Instant::now() < deadline, "the dispatcher never goes by {text}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let is_ready = |name: &str| {
        team.condition("whe", name, "Ready")
            .is_some_and(|(status, _)| status == "True")
    };
    team.endpoint("public", "https://hooks.example.com/", json!({}));
    team.ready("whe/public");
    team.endpoint("crm", &webhooks.url(), json!({}));
    team.subscription("crm", "crm");
    team.until_reason("whe", "crm", "Ready", "PolicyDenied");

    // Opened here first: what could be sent by the new policy alone is not Ready, and what was Ready stays so.
    replace(&here, OPEN_ALL);
    waits("crm");
    team.endpoint("new", &webhooks.url(), json!({}));
    waits("new");
    assert!(is_ready("public"));
    replace(&there, OPEN_ALL);
    for object in ["whe/crm", "whe/new", "evsub/crm"] {
        team.ready(object);
    }
    team.send(&dispatcher, "1").await;
    webhooks.until("delivered", |all| all.len() == 1).await;

    // Closed there first.
    replace(&there, CLOSED);
    until_dispatcher_goes_by(CLOSED);
    team.endpoint("late", &webhooks.url(), json!({}));
    waits("late");
    assert!(is_ready("crm") && is_ready("new") && is_ready("public"));
    replace(&here, CLOSED);
    for name in ["late", "crm", "new"] {
        team.until_reason("whe", name, "Ready", "PolicyDenied");
    }
    assert!(is_ready("public"));
}
