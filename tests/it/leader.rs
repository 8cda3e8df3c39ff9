//! Two controllers: one leads, the other takes over, and nothing is written twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, Controller, ControllerOptions, DispatcherOptions, SYSTEM_NAMESPACE, Tidings};

use super::team::{PATIENCE, Team};
use tidings_cluster::Writes;

const ENDPOINTS: usize = 40;
const URL: &str = "https://127.0.0.1:9/hooks";

fn start(tidings: &Tidings, identity: &str) -> Controller {
    let options = ControllerOptions {
        identity: identity.into(),
        ..ControllerOptions::default()
    };
    tidings.start_controller(&options).unwrap()
}

pub fn holder(cluster: &Cluster) -> String {
    let lease = cluster
        .get(SYSTEM_NAMESPACE, "lease", "tidings-controller")
        .unwrap()
        .unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a controller of this identity leads.
pub fn until_leads(cluster: &Cluster, controller: &Controller, identity: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leads = controller
            .metrics()
            .unwrap()
            .lines()
            .any(|line| line == "tidings_controller_leader 1");
        if leads && holder(cluster).starts_with(&format!("{identity}_")) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{identity} never leads; the Lease is {}'s",
            holder(cluster)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that Tidings keeps in a namespace: kind and name to version.
fn versions(cluster: &Cluster, namespace: &str) -> BTreeMap<String, String> {
    let kinds = "whe,evsub,evtype,secret,role,rolebinding,events.events.k8s.io";
    let list: Value = serde_json::from_str(
        &cluster
            .kubectl_ok(&["get", kinds, "-n", namespace, "-o", "json"])
            .unwrap(),
    )
    .unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let name = format!("{}/{}", text(&item["kind"]), text(&item["metadata"]["name"]));
            (name, text(&item["metadata"]["resourceVersion"]))
        })
        .collect()
}

fn endpoints(namespace: &str) -> String {
    let items = (0..ENDPOINTS).flat_map(|n| {
        let name = format!("crm-{n}");
        [
            json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
             "metadata": {"name": name, "namespace": namespace}, "spec": {"url": URL}}),
            json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
             "metadata": {"name": name, "namespace": namespace},
             "spec": {"endpointRef": {"name": name}, "eventTypes": ["lead.*"]}}),
        ]
    });
    json!({"apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>()}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_in_the_middle_of_its_work_the_other_finishes_it_and_writes_nothing_twice() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let mut first = start(&tidings, "first");
    let second = start(&tidings, "second");
    let _dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "many");
    until_leads(&cluster, &first, "first");
    let at_start = Writes::so_far(&cluster);

    cluster.apply(&endpoints("many")).unwrap();
    let half = Instant::now() + PATIENCE;
    while versions(&cluster, "many")
        .keys()
        .filter(|name| name.starts_with("Secret/"))
        .count()
        < ENDPOINTS / 2
    {
        assert!(Instant::now() < half, "the first never got half way");
    }
    first.process.kill9();
    until_leads(&cluster, &second, "second");
    for n in 0..ENDPOINTS {
        team.ready(&format!("whe/crm-{n}"));
        team.ready(&format!("evsub/crm-{n}"));
    }
    let written = Writes::so_far(&cluster).since(&at_start);
    assert_eq!(
        written.with_verb("POST", "secrets"),
        ENDPOINTS as u64,
        "each Secret is created once: {written:?}"
    );
    assert_eq!(
        written.with_verb("PATCH", "secrets") + written.with_verb("APPLY", "secrets"),
        0,
        "and never changed: {written:?}"
    );
    // Nothing was wrong with any of them, so there is nothing to tell.
    for reason in ["Resolved", "SigningKeyLost", "SigningKeyAdopted"] {
        let told = team.all_events(reason).into_iter();
        let told: Vec<Value> = told
            .filter(|event| event["regarding"]["kind"] == "WebhookEndpoint")
            .collect();
        assert!(told.is_empty(), "{told:?}");
    }

    // A new leader that finds everything done writes nothing at all.
    let settled = until_still(&cluster, "many");
    let before = Writes::so_far(&cluster);
    first.process.start_again().unwrap();
    first.wait_ready().unwrap();
    let mut second = second;
    let status = second.process.terminate(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    let holder = holder(&cluster);
    assert!(
        !holder.starts_with("second_"),
        "handed over, not left to run out: {holder}"
    );
    until_leads(&cluster, &first, "first");
    team.endpoint("late", URL, json!({}));
    team.ready("whe/late");
    let after = versions(&cluster, "many");
    let changed: Vec<&String> = settled
        .iter()
        .filter(|(name, version)| after.get(*name) != Some(version))
        .map(|(name, _)| name)
        .collect();
    // The Role that names the Secret of `late` may be one that was there.
    let changed: Vec<&&String> = changed
        .iter()
        .filter(|name| !name.starts_with("Role/tidings-dispatcher-"))
        .collect();
    assert!(changed.is_empty(), "{changed:?} were written again");
    let written = Writes::so_far(&cluster).since(&before);
    assert_eq!(written.with_verb("POST", "secrets"), 1, "that of `late`: {written:?}");
}

/// Waits until nothing is written any more.
fn until_still(cluster: &Cluster, namespace: &str) -> BTreeMap<String, String> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = versions(cluster, namespace);
    let mut since = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = versions(cluster, namespace);
        if now != before {
            (before, since) = (now, Instant::now());
        }
        if since.elapsed() > Duration::from_secs(4) {
            return before;
        }
        assert!(Instant::now() < deadline, "it never comes to rest");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_while_another_took_over_writes_nothing_more() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let first = start(&tidings, "first");
    let second = start(&tidings, "second");
    let _dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "frozen");
    until_leads(&cluster, &first, "first");
    team.endpoint("crm", URL, json!({}));
    team.ready("whe/crm");

    first.process.signal(libc::SIGSTOP);
    until_leads(&cluster, &second, "second");
    team.endpoint("late", URL, json!({}));
    team.ready("whe/late");
    team.delete("whe", "crm");
    let grant = |name: &str| versions(&cluster, "frozen").contains_key(&format!("Role/{name}"));
    let role = tidings_role("crm-signing");
    if role != tidings_role("late-signing") {
        let deadline = Instant::now() + PATIENCE;
        while grant(&role) {
            assert!(Instant::now() < deadline, "{role} is never taken away");
        }
    }
    let settled = until_still(&cluster, "frozen");
    first.process.signal(libc::SIGCONT);
    let deadline = Instant::now() + PATIENCE;
    while !first.process.log().contains("no longer leading")
        && !first.process.log().contains("failed to renew the Lease")
    {
        assert!(
            Instant::now() < deadline,
            "it never notices: {}",
            first.process.log_tail()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(until_still(&cluster, "frozen"), settled);
    assert!(holder(&cluster).starts_with("second_"));
}

/// The Role of the shard of a name.
fn tidings_role(name: &str) -> String {
    tidings::controller::grants::shard_name(tidings::controller::grants::shard_of(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_api_server_costs_the_leader_its_lease_and_not_its_life() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let mut controller = start(&tidings, "only");
    let _dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "outage");
    team.endpoint("before", URL, json!({}));
    team.ready("whe/before");

    cluster.stop_api_server();
    let deadline = Instant::now() + PATIENCE;
    while !controller.process.log().contains("no longer leading") {
        assert!(
            Instant::now() < deadline,
            "it never gives up: {}",
            controller.process.log_tail()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.start_api_server().unwrap();
    until_leads(&cluster, &controller, "only");
    controller.wait_ready().unwrap();
    team.endpoint("after", URL, json!({}));
    team.subscription("after", "after");
    for object in ["whe/after", "evsub/after"] {
        team.ready(object);
    }
    assert_eq!(team.condition("whe", "before", "Ready").unwrap().0, "True");
    assert!(controller.process.is_running());
}
