//! Dead letters are sent again by an object: with the same webhook-id, at its rate, over a kill; and it ends as a Job does.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::messages::Reader;
use super::team::{Arrived, PATIENCE, Shared, TYPES, Team, Webhooks, metric, until};

fn replay(team: &Team<'_>, name: &str, spec: Value) {
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay", "metadata": {"name": name}, "spec": spec}),
    );
}

/// `kubectl wait` for its end; its status.
fn complete(team: &Team<'_>, name: &str) -> Value {
    let object = format!("replay/{name}");
    let waited = team
        .cluster
        .wait_for(&team.namespace, &object, "condition=Complete", 2 * PATIENCE);
    waited.unwrap_or_else(|error| panic!("{error:#}\n{:#}", team.get("replay", name)));
    team.get("replay", name)["status"].clone()
}

fn counts(status: &Value) -> [i64; 4] {
    ["matched", "sent", "succeeded", "failed"].map(|field| status[field].as_i64().unwrap_or(-1))
}

/// Waits until the endpoint `crm` has so many dead letters.
async fn until_dead(reader: &Reader, count: usize) {
    reader.until("state=dead&endpoint=crm&limit=500", count).await;
}

/// How often each event came, and by which webhook-ids.
fn by_event(arrived: &[Arrived]) -> HashMap<&str, (usize, HashSet<&str>)> {
    let mut all: HashMap<&str, (usize, HashSet<&str>)> = HashMap::new();
    for one in arrived {
        let known = all.entry(&one.event).or_default();
        known.0 += 1;
        known.1.insert(&one.message);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_sent_again_with_its_webhook_id_and_a_dry_run_sends_nothing() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "replays");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    // Refused the first time; `doomed` for ever.
    let webhooks = Webhooks::answering(|event, earlier| match event {
        "doomed" => 422,
        _ if earlier == 0 => 422,
        _ => 200,
    })
    .await;
    team.deliver_to("crm", &webhooks.url(), json!({"retry": {"neverRetry": [422]}}));
    team.deliver_to("other", &webhooks.url(), json!({"suspend": true}));
    for id in ["one", "two", "doomed"] {
        team.post(&shared.dispatcher, id, TYPES[0]).await;
    }
    until_dead(&reader, 3).await;

    let of_crm = json!({"endpointRef": {"name": "crm"}});
    replay(&team, "dry", json!({"selector": of_crm, "dryRun": true}));
    let status = complete(&team, "dry");
    assert_eq!(counts(&status), [3, 0, 0, 0], "{status:#}");
    assert_eq!(status["conditions"][0]["reason"], "DryRun");
    assert_eq!(webhooks.arrived().len(), 3, "nothing was sent");

    let before = metric(&shared.dispatcher, "tidings_replays_messages_sent_total");
    replay(&team, "again", json!({"selector": of_crm}));
    let status = complete(&team, "again");
    assert_eq!(counts(&status), [3, 3, 2, 1], "{status:#}");
    assert_eq!(
        (&status["phase"], &status["observedGeneration"]),
        (&json!("Complete"), &json!(1))
    );
    assert!(status["startTime"].is_string() && status["completionTime"].is_string());
    assert!(metric(&shared.dispatcher, "tidings_replays_messages_sent_total") >= before + 3.0);
    let arrived = webhooks.arrived();
    for (event, (times, ids)) in by_event(&arrived) {
        assert_eq!((times, ids.len()), (2, 1), "{event}: the same webhook-id");
    }
    until_dead(&reader, 1).await;

    // Delivered ones by id, of a subscription; what its dead letters are stays.
    let message = &arrived.iter().find(|one| one.event == "one").unwrap().message;
    let of_one = json!({"subscriptionRef": {"name": "crm"}, "state": "Delivered", "ids": [message]});
    replay(&team, "one", json!({"selector": of_one, "ttlAfterFinished": "0s"}));
    team.until_gone("replay", "one");
    assert_eq!(webhooks.times("one"), 3);
    assert_eq!((webhooks.times("two"), webhooks.times("doomed")), (2, 2));

    // What has ended is not begun anew, also where more would fit.
    team.post(&shared.dispatcher, "three", TYPES[0]).await;
    until_dead(&reader, 2).await;
    replay(&team, "again", json!({"selector": of_crm, "ttlAfterFinished": "720h"}));
    replay(
        &team,
        "three",
        json!({"selector": {"endpointRef": {"name": "crm"}, "from": "2200-01-01T00:00:00Z"}}),
    );
    assert_eq!(counts(&complete(&team, "three")), [0, 0, 0, 0]);
    assert_eq!(counts(&complete(&team, "again")), [3, 3, 2, 1]);
    assert_eq!(webhooks.times("three"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_names_what_does_not_exist_waits_a_moment_and_fails_as_stalled() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "replays-missing");
    let webhooks = Webhooks::start().await;
    replay(&team, "late", json!({"selector": {"subscriptionRef": {"name": "crm"}}}));
    team.until_reason("replay", "late", "Reconciling", "SubscriptionNotFound");
    team.deliver_to("crm", &webhooks.url(), json!({}));
    assert_eq!(counts(&complete(&team, "late")), [0, 0, 0, 0]);
    replay(&team, "never", json!({"selector": {"endpointRef": {"name": "nobody"}}}));
    team.until_reason("replay", "never", "Failed", "EndpointNotFound");
    team.until_reason("replay", "never", "Stalled", "EndpointNotFound");
    let status = team.get("replay", "never")["status"].clone();
    assert!(status["completionTime"].is_string(), "{status:#}");
    assert_eq!(
        status["conditions"].as_array().unwrap().len(),
        2,
        "Reconciling no longer: {status:#}"
    );
}

/// How many run in a namespace at a time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_replays_of_a_namespace_run_and_one_that_waits_says_so_and_starts_when_another_ends() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "replays-queued");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    let webhooks = Webhooks::answering(|_, _| 422).await;
    team.deliver_to("crm", &webhooks.url(), json!({"retry": {"neverRetry": [422]}}));
    dead_letters(&team, &shared.dispatcher).await;
    until_dead(&reader, LETTERS).await;
    // So slow that none of them ends, and none only waits for long.
    let of_crm = json!({"endpointRef": {"name": "crm"}});
    let slow = json!({"selector": of_crm, "rate": {"requests": 1, "per": "3s"}});
    for n in 0..AT_ONCE {
        replay(&team, &format!("slow-{n}"), slow.clone());
        team.until_reason("replay", &format!("slow-{n}"), "Reconciling", "Sending");
    }
    for name in ["waits", "waits-too"] {
        replay(&team, name, json!({"selector": of_crm, "dryRun": true}));
        team.until_reason("replay", name, "Reconciling", "Queued");
    }
    let status = team.get("replay", "waits")["status"].clone();
    assert_eq!(
        (&status["phase"], &status["observedGeneration"]),
        (&json!("Queued"), &json!(1)),
        "{status:#}"
    );
    let shown = |name: &str| metric(&shared.dispatcher, name);
    until("all of them counted", async || {
        shown("tidings_replays_running") >= AT_ONCE as f64 && shown("tidings_replays_queued") >= 2.0
    })
    .await;
    // One that is deleted gives its place away.
    team.delete("replay", "slow-1");
    for name in ["waits", "waits-too"] {
        let [matched, sent, ..] = counts(&complete(&team, name));
        assert!(matched > 0 && sent == 0, "{name}: {matched}, {sent}");
    }
    assert_eq!(team.get("replay", "slow-0")["status"]["phase"], "Sending");
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_that_only_wait_give_their_places_to_others_and_end_when_their_endpoint_goes_on() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "replays-aside");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    let webhooks = Webhooks::answering(|_, earlier| if earlier == 0 { 422 } else { 200 }).await;
    let spec = |suspend: bool| json!({"retry": {"neverRetry": [422]}, "suspend": suspend});
    team.deliver_to("crm", &webhooks.url(), spec(false));
    for n in 0..AT_ONCE {
        team.post(&shared.dispatcher, &format!("lead-{n}"), TYPES[0]).await;
    }
    until_dead(&reader, AT_ONCE).await;
    team.endpoint("crm", &webhooks.url(), spec(true));
    team.until_reason("whe", "crm", "Delivering", "Suspended");
    let of_crm = json!({"endpointRef": {"name": "crm"}});
    for (n, letter) in webhooks.arrived().iter().enumerate() {
        let selector = json!({"endpointRef": {"name": "crm"}, "ids": [letter.message]});
        replay(&team, &format!("waits-{n}"), json!({"selector": selector}));
        team.until("sent", "replay", &format!("waits-{n}"), |object| {
            object["status"]["sent"] == 1
        });
    }
    replay(&team, "other", json!({"selector": of_crm, "dryRun": true}));
    assert_eq!(counts(&complete(&team, "other")), [0, 0, 0, 0], "all are pending");
    for n in 0..AT_ONCE {
        let status = team.get("replay", &format!("waits-{n}"))["status"].clone();
        assert_eq!(status["phase"], "Sending", "{status:#}");
    }
    assert_eq!(
        webhooks.arrived().len(),
        AT_ONCE,
        "nothing is sent to a suspended endpoint"
    );

    team.endpoint("crm", &webhooks.url(), spec(false));
    for n in 0..AT_ONCE {
        assert_eq!(counts(&complete(&team, &format!("waits-{n}"))), [1, 1, 1, 0]);
    }
}

/// Dead letters, how fast they are sent again, and how many of them before the kill.
const LETTERS: usize = 160;
const EACH_SECOND: usize = 20;
const BEFORE_THE_KILL: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_keeps_its_rate_and_goes_on_after_a_kill_until_every_message_was_sent() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "replayed");
    let reader = Reader::new(&team, &dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    let webhooks = Webhooks::answering(|_, earlier| if earlier == 0 { 422 } else { 200 }).await;
    team.deliver_to("crm", &webhooks.url(), json!({"retry": {"neverRetry": [422]}}));
    dead_letters(&team, &dispatcher).await;
    until_dead(&reader, LETTERS).await;

    let begun = Instant::now();
    let spec = json!({"selector": {"endpointRef": {"name": "crm"}}, "rate": {"requests": EACH_SECOND}});
    replay(&team, "again", spec);
    webhooks
        .until("some are sent again", |arrived| {
            arrived.len() >= LETTERS + BEFORE_THE_KILL
        })
        .await;
    dispatcher.kill9();
    let before = webhooks.arrived().len() - LETTERS;
    assert!(before < LETTERS, "killed in the middle, after {before}");
    dispatcher.restart().unwrap();
    // What was in the store is shown, and not begun from nothing.
    let status = complete(&team, "again");
    let took = begun.elapsed();
    let all = LETTERS as i64;
    assert_eq!(counts(&status), [all, all, all, 0], "{status:#}");
    let arrived = webhooks.arrived();
    let by_event = by_event(&arrived);
    assert_eq!(by_event.len(), LETTERS);
    for (event, (times, ids)) in &by_event {
        assert!(*times >= 2 && ids.len() == 1, "{event} came {times} times, as {ids:?}");
    }
    // Only what was in flight when it was killed comes once more than it should.
    let extra = arrived.len() - 2 * LETTERS;
    assert!(
        extra <= 2 * EACH_SECOND,
        "{extra} came once more: the replay went on where it was"
    );
    // The bucket is empty at first, so each second brings no more than it says.
    let least = Duration::from_secs((LETTERS / EACH_SECOND) as u64 - 1);
    assert!(took >= least, "{LETTERS} at {EACH_SECOND} a second took {took:?}");
    // Its beginning and its end, each told once, over the kill.
    until_told(&team, "again", &["AllSent", "Started"]);
}

/// Waits for exactly these reasons in a Replay's Events.
fn until_told(team: &Team<'_>, name: &str, reasons: &[&str]) {
    let of = format!("involvedObject.name={name},involvedObject.kind=Replay");
    let shown = "jsonpath={.items[*].reason}";
    let args = [
        "get",
        "events",
        "-n",
        &team.namespace,
        "--field-selector",
        &of,
        "-o",
        shown,
    ];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = team.cluster.kubectl_ok(&args).unwrap();
        let mut told: Vec<&str> = told.split_whitespace().collect();
        told.sort_unstable();
        if told == reasons {
            return;
        }
        assert!(Instant::now() < deadline, "{told:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn dead_letters(team: &Team<'_>, dispatcher: &Dispatcher) {
    for n in 0..LETTERS {
        team.send(dispatcher, &format!("lead-{n}")).await;
    }
}
