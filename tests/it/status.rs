//! Status: what it shows, and that it costs the API server next to nothing, whatever happens to the messages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings, eventually};
use tokio::task::JoinSet;

use super::receiver::Receiver;
use super::team::{PATIENCE, Shared, Team, Webhooks, metric, until_within};
use tidings_cluster::{Writes, etcd_writes};

/// The dispatcher's budget, as the documentation has it: writes a second, and at once.
const RATE: f64 = 10.0;
const BURST: f64 = 20.0;
const FLAPPING: usize = 50;
const MOST_WAITING: u64 = 2_000;
const UNDER_LOAD: Duration = Duration::from_secs(20);
const AT_REST: Duration = Duration::from_secs(12);

/// What status writing costs: Kubernetes Events included.
fn reported(writes: &Writes) -> u64 {
    [
        "webhookendpoints/status",
        "eventsubscriptions/status",
        "eventtypes/status",
        "events",
    ]
    .iter()
    .map(|r| writes.of(r))
    .sum()
}

/// What a receiver answered.
#[derive(Clone, Default)]
struct Answered {
    all: Arc<AtomicU64>,
    with_200: Arc<AtomicU64>,
}

/// A receiver whose every path answers 500 and 200 in turn while `flaps` holds, else 200.
async fn flapping(flaps: Arc<AtomicBool>, answered: Answered) -> Receiver {
    let turns = Arc::new(Mutex::new(HashMap::<String, u64>::new()));
    Receiver::start(move |mut connection, _| {
        let (flaps, answered, turns) = (flaps.clone(), answered.clone(), turns.clone());
        async move {
            while let Some(request) = connection.request().await {
                let turn = {
                    let mut turns = turns.lock().unwrap();
                    let turn = turns.entry(request.line).or_default();
                    *turn += 1;
                    *turn
                };
                answered.all.fetch_add(1, Ordering::SeqCst);
                let status = if flaps.load(Ordering::SeqCst) && turn % 2 == 1 {
                    500
                } else {
                    answered.with_200.fetch_add(1, Ordering::SeqCst);
                    200
                };
                if !connection
                    .write(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"))
                    .await
                {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_endpoints_that_flap_under_load_stay_within_the_budget_and_an_idle_system_writes_leases_only() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let mut controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            log_filter: "info".into(),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::open(&cluster, "flapping");
    let (flaps, answered) = (Arc::new(AtomicBool::new(true)), Answered::default());
    let receiver = flapping(flaps.clone(), answered.clone()).await;
    let url = |n: usize| format!("https://{}/{n}", receiver.address);
    let names: Vec<String> = (0..FLAPPING).map(|n| format!("crm-{n}")).collect();
    let retry = json!({"retry": {"schedule": vec!["100ms"; 30], "jitter": 0}});
    team.deliver_to_all((0..FLAPPING).map(|n| (names[n].clone(), url(n), retry.clone())));
    let (stop, events) = (tokio_util::sync::CancellationToken::new(), Arc::<AtomicU64>::default());
    let mut producers = JoinSet::new();
    for producer in 0..8 {
        let (post, stop, events, delivered) = (
            team.poster(&dispatcher),
            stop.clone(),
            events.clone(),
            answered.with_200.clone(),
        );
        producers.spawn(async move {
            let mut sent = 0;
            while !stop.is_cancelled() {
                // However slow the machine is, what waits can be delivered in the time that is left for it.
                let messages = events.load(Ordering::SeqCst) * FLAPPING as u64;
                if messages.saturating_sub(delivered.load(Ordering::SeqCst)) > MOST_WAITING {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                events.fetch_add(1, Ordering::SeqCst);
                let id = format!("{producer}-{sent}");
                let event = json!({"specversion": "1.0", "id": id, "source": "/agents/voice", "type": "lead.qualified", "data": {"lead": id}});
                let answer = post(&event).await.unwrap();
                assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(FLAPPING)), "{answer:?}");
                sent += 1;
            }
            sent
        });
    }
    // Every one of them has failed, and the queue of transitions is full, before anything is counted.
    team.until("in trouble", "whe", "crm-0", |whe| {
        whe["status"]["delivery"]["lastFailure"].is_object()
    });
    let (since, before, answered_before) = (
        Instant::now(),
        Writes::so_far(&cluster),
        answered.all.load(Ordering::SeqCst),
    );
    tokio::time::sleep(UNDER_LOAD).await;
    let written = Writes::so_far(&cluster).since(&before);
    let most = RATE * since.elapsed().as_secs_f64() + BURST;
    let attempts = answered.all.load(Ordering::SeqCst) - answered_before;
    println!(
        "{} writes (at most {most:.0}) while {attempts} attempts were made: {:?}",
        reported(&written),
        written.stored()
    );
    assert!(reported(&written) as f64 <= most, "{written:?}");
    // On a busy machine the API server takes fewer than the budget allows.
    assert!(
        reported(&written) as f64 >= RATE * UNDER_LOAD.as_secs_f64() / 10.0,
        "they did flap: {written:?}"
    );
    assert!(attempts > 1_000, "there was load: {attempts} attempts");

    // It ends, is delivered, and comes to rest.
    stop.cancel();
    flaps.store(false, Ordering::SeqCst);
    while let Some(sent) = producers.join_next().await {
        assert!(sent.unwrap() > 0);
    }
    for name in &names {
        team.until("delivered", "whe", name, |whe| {
            whe["status"]["delivery"]["pending"] == 0 && whe["status"]["delivery"]["consecutiveFailures"] == 0
        });
    }
    until_at_rest(&cluster);
    writes_leases_only(&cluster);

    // Also after both processes were started again: what is unchanged is not written.
    let (before, shown) = (Writes::so_far(&cluster), team.get("whe", "crm-0"));
    dispatcher.restart().unwrap();
    controller.process.terminate(PATIENCE).unwrap();
    controller.process.start_again().unwrap();
    controller.wait_ready().unwrap();
    let leads = Instant::now() + PATIENCE;
    while !controller.metrics().unwrap().contains("tidings_controller_leader 1") {
        assert!(Instant::now() < leads, "it never leads again");
    }
    tokio::time::sleep(AT_REST).await;
    let written = Writes::so_far(&cluster).since(&before).stored();
    let now = team.get("whe", "crm-0");
    assert_eq!(
        written.keys().collect::<Vec<_>>(),
        ["leases"],
        "after a restart: {written:?}, from {shown:#} to {now:#}"
    );

    // One endpoint alone, after all that: its transition shows at once.
    flaps.store(true, Ordering::SeqCst);
    team.endpoint("alone", &url(999), json!({"retry": {"schedule": ["5m"]}}));
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "alone"},
        "spec": {"endpointRef": {"name": "alone"}, "eventTypes": ["lead.lost"]}}),
    );
    team.delete_all("evsub", &names);
    team.ready("whe/alone");
    team.ready("evsub/alone");
    team.until_reason("whe", "alone", "Delivering", "NoAttempts");
    let answer = team.post(&dispatcher, "alone", "lead.lost").await;
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    let failed = Instant::now();
    team.until_reason("whe", "alone", "Delivering", "Backoff");
    println!("one endpoint alone showed its transition within {:?}", failed.elapsed());
    // What is no transition waits for half a minute.
    assert!(failed.elapsed() < Duration::from_secs(25), "{:?}", failed.elapsed());
    team.until_event("alone", "Backoff");
}

/// Waits until there was no status write for longer than the interval between two of one object.
fn until_at_rest(cluster: &Cluster) {
    let longer_than_the_interval = Duration::from_secs(34);
    let deadline = Instant::now() + 3 * PATIENCE;
    let (mut before, mut since) = (reported(&Writes::so_far(cluster)), Instant::now());
    while since.elapsed() < longer_than_the_interval {
        assert!(Instant::now() < deadline, "it never comes to rest");
        std::thread::sleep(Duration::from_millis(500));
        let now = reported(&Writes::so_far(cluster));
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
}

/// Nothing but Leases is written for a while, by what the API server was asked and by what it asked of etcd.
fn writes_leases_only(cluster: &Cluster) {
    let (before, first) = (Writes::so_far(cluster), etcd_writes(cluster));
    std::thread::sleep(AT_REST);
    let (last, written) = (etcd_writes(cluster), Writes::so_far(cluster).since(&before).stored());
    println!("at rest for {AT_REST:?}: {written:?}");
    assert_eq!(written.keys().collect::<Vec<_>>(), ["leases"], "{written:?}");
    let stored: Vec<&String> = last
        .iter()
        .filter(|(what, count)| first.get(*what) != Some(count))
        .map(|(what, _)| what)
        .collect();
    // The API server notes its own address there, every ten seconds.
    let known = ["leases", "apiServerPeerIPInfo"];
    assert!(
        stored.iter().all(|resource| known.contains(&resource.as_str())),
        "{stored:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_columns_show_how_delivery_stands_and_nothing_that_is_not_documented() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "shown");
    let receiver = Webhooks::answering(|event, _| if event.starts_with("bad") { 500 } else { 200 }).await;
    team.deliver_to("crm", &receiver.url(), json!({"retry": {"schedule": []}}));
    team.send(&shared.dispatcher, "good").await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
    team.send(&shared.dispatcher, "bad-1").await;
    team.until("dead", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["deadLettered"] == 1
    });
    let whe = team.until("in backoff", "whe", "crm", |whe| {
        whe["status"]["delivery"]["deadLettered"] == 1
    });
    let evsub = team.get("evsub", "crm");

    let status = &whe["status"];
    assert_eq!(
        fields(status),
        [
            "conditions",
            "delivery",
            "observedGeneration",
            "references",
            "signing",
            "target"
        ]
    );
    let delivery = &status["delivery"];
    assert_eq!(
        fields(delivery),
        [
            "consecutiveFailures",
            "deadLettered",
            "failingSince",
            "lastFailure",
            "lastStatusCode",
            "lastSuccess",
            "observedGeneration",
            "observedTime",
            "pending",
            "recentFailures",
            "signing"
        ]
    );
    assert_eq!(
        (
            &delivery["pending"],
            &delivery["consecutiveFailures"],
            &delivery["lastStatusCode"]
        ),
        (&json!(0), &json!(1), &json!(500))
    );
    assert_eq!(
        (
            &delivery["lastFailure"]["reason"],
            &delivery["lastFailure"]["statusCode"]
        ),
        (&json!("ServerError"), &json!(500))
    );
    let message = receiver
        .arrived()
        .iter()
        .find(|a| a.event == "bad-1")
        .unwrap()
        .message
        .clone();
    assert_eq!(delivery["recentFailures"][0]["messageID"], json!(message));
    assert_eq!(delivery["signing"]["keyID"], status["signing"]["keys"][0]["id"]);
    assert_eq!(
        status["target"],
        json!(format!("https://127.0.0.1:{}", receiver.port()))
    );
    let referenced: BTreeSet<&str> = status["references"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert_eq!(referenced, BTreeSet::from(["crm-signing", "receiver-ca"]));
    assert_eq!(
        (
            &evsub["status"]["delivery"]["lastDeadLetter"]["reason"],
            &evsub["status"]["delivery"]["pending"]
        ),
        (&json!("Exhausted"), &json!(0))
    );

    let columns = |args: &[&str]| {
        table(
            &shared
                .cluster
                .kubectl_ok(&[&["get"], args, &["-n", "shown"]].concat())
                .unwrap(),
        )
    };
    let shown = columns(&["whe"]);
    assert_eq!(
        shown.keys().collect::<Vec<_>>(),
        [
            "AGE",
            "LAST-CODE",
            "NAME",
            "NEXT-RETRY",
            "PENDING",
            "READY",
            "STATE",
            "TARGET"
        ]
    );
    assert_eq!(
        (
            shown["READY"].as_str(),
            shown["STATE"].as_str(),
            shown["LAST-CODE"].as_str(),
            shown["PENDING"].as_str()
        ),
        ("True", "Backoff", "500", "0")
    );
    let wide = columns(&["whe", "-o", "wide"]);
    assert_eq!(
        (wide["DEAD"].as_str(), wide["FAILS"].as_str(), wide["SECRET"].as_str()),
        ("1", "1", "crm-signing")
    );
    assert!(wide.contains_key("OLDEST") && wide.contains_key("LAST-SUCCESS"));
    let shown = columns(&["evsub"]);
    assert_eq!(
        shown.keys().collect::<Vec<_>>(),
        ["AGE", "DEAD", "ENDPOINT", "NAME", "PENDING", "READY", "REASON", "TYPES"]
    );
    assert_eq!(
        (
            shown["ENDPOINT"].as_str(),
            shown["READY"].as_str(),
            shown["REASON"].as_str(),
            shown["DEAD"].as_str()
        ),
        ("crm", "True", "Resolved", "1")
    );
    let all = shared
        .cluster
        .kubectl_ok(&["get", "tidings", "-n", "shown", "-o", "name"])
        .unwrap();
    assert_eq!(all.lines().count(), 2, "the category: {all}");
    let by_endpoint = [
        "get",
        "evsub",
        "-n",
        "shown",
        "-o",
        "name",
        "--field-selector",
        "spec.endpointRef.name=crm",
    ];
    assert_eq!(
        shared.cluster.kubectl_ok(&by_endpoint).unwrap().trim(),
        "eventsubscription.tidings.dev/crm"
    );

    // kstatus must not call an object current that no controller has looked at.
    let new = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "new", "namespace": "shown"},
        "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]}});
    let args = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
    let created = shared.cluster.kubectl_with_input(&args, &new.to_string()).unwrap();
    let created: Value = serde_json::from_slice(&created.stdout).unwrap();
    assert_eq!(created["status"], json!({"observedGeneration": -1}));
}

const REFUSAL: &str = "no status in this namespace";

/// An admission policy that refuses what the dispatcher writes into the status of the endpoints of one namespace.
fn refusing_status(namespace: &str) -> Value {
    let name = format!("{namespace}-refuses");
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name}, "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{"apiGroups": ["tidings.dev"], "apiVersions": ["*"],
                "operations": ["UPDATE"], "resources": ["webhookendpoints/status"]}]},
            "matchConditions": [{"name": "dispatcher",
                "expression": "request.userInfo.username.endsWith(':tidings-dispatcher')"}],
            "validations": [{"expression": "false", "message": REFUSAL}]}});
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}}});
    json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]})
}

/// Waits until that policy is in force, by what the API server would say to the dispatcher of this endpoint.
fn until_refused(team: &Team<'_>, endpoint: &str) {
    let patch = [
        "patch",
        "whe",
        endpoint,
        "-n",
        &team.namespace,
        "--subresource=status",
        "--type=merge",
        "--patch={\"status\":{\"observedGeneration\":0}}",
        "--dry-run=server",
        // It may patch and not get, as kubectl does before.
        "--as=system:serviceaccount:tidings-system:tidings-dispatcher",
        "--as-group=system:masters",
    ];
    eventually("a refused status", PATIENCE, || {
        let said = team.cluster.kubectl(&patch)?;
        Ok(String::from_utf8_lossy(&said.stderr).contains(REFUSAL))
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_the_api_server_refuses_delay_no_transition_of_another_namespace_and_are_written_when_it_takes_them()
 {
    const REFUSED: usize = 50;
    /// The longest pause after a refusal.
    const LONGEST_PAUSE: Duration = Duration::from_secs(300);
    let shared = Shared::get();
    let (refused, other) = (
        Team::open(shared.cluster, "status-refused"),
        Team::open(shared.cluster, "beside-refused"),
    );
    refused.endpoint("probe", "https://127.0.0.1:9/hooks", json!({}));
    refused.until_reason("whe", "probe", "Delivering", "NoAttempts");
    shared
        .cluster
        .apply(&refusing_status("status-refused").to_string())
        .unwrap();
    until_refused(&refused, "probe");
    other.endpoint("crm", "https://127.0.0.1:9/hooks", json!({}));
    other.ready("whe/crm");
    let named = |n| (format!("crm-{n}"), "https://127.0.0.1:9/hooks".to_owned(), json!({}));
    refused.endpoints((0..REFUSED).map(named));
    let failed = || {
        metric(
            &shared.dispatcher,
            r#"tidings_status_writes_total{kind="Status",result="Failed"}"#,
        )
    };
    let before = failed();
    until_within(3 * PATIENCE, "two refusals of each", async || {
        failed() >= before + 2.0 * REFUSED as f64
    })
    .await;

    // A handled request is a transition: five of them, one after the other.
    for _ in 0..5 {
        other.ask("crm", "enable");
        other.until("told that it is handled", "whe", "crm", |whe| {
            let asked = &whe["metadata"]["annotations"]["tidings.dev/enable-requested-at"];
            whe["status"]["delivery"]["handledEnableRequest"] == *asked
        });
    }

    let binding = ["delete", "validatingadmissionpolicybinding", "status-refused-refuses"];
    shared.cluster.kubectl_ok(&binding).unwrap();
    let within = LONGEST_PAUSE + PATIENCE;
    refused.until_reason_within(within, "whe", "crm-0", "Delivering", "NoAttempts");
}

fn fields(value: &Value) -> Vec<&str> {
    let mut fields: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    fields
}

/// The one row of kubectl's table: column to value. Columns begin where their names do.
fn table(text: &str) -> BTreeMap<String, String> {
    let mut lines = text.lines();
    let (head, row) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!(lines.next(), None, "one row: {text}");
    let names: Vec<&str> = head.split_whitespace().collect();
    let starts: Vec<usize> = names
        .iter()
        .scan(0, |from, name| {
            let at = *from + head[*from..].find(name).unwrap();
            *from = at + name.len();
            Some(at)
        })
        .collect();
    let mut table = BTreeMap::new();
    for (n, name) in names.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(row.len()).min(row.len());
        table.insert((*name).to_owned(), row[starts[n].min(end)..end].trim().to_owned());
    }
    table
}
