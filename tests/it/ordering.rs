//! Messages with the same key go out in the order they were accepted, whatever fails and whoever dies; keys do not wait for
//! each other.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::team::{Arrived, PATIENCE, Post, Shared, TYPES, Team, Webhooks, lead, metric};

const KEYS: usize = 1_000;
const EACH: usize = 4;
const PRODUCERS: usize = 8;
const KILLS: usize = 4;

fn id(key: usize, number: usize) -> String {
    format!("{key}-{number}")
}

/// Of the events, each fiftieth: the first of some keys, the second of others, and so on. None where a key has none.
fn doomed(key: usize) -> Option<usize> {
    Some(key % 50).filter(|number| *number < EACH)
}

fn is_doomed(event: &str) -> bool {
    let (key, number) = key_and_number(event);
    doomed(key) == Some(number)
}

fn key_and_number(event: &str) -> (usize, usize) {
    let (key, number) = event.split_once('-').unwrap();
    (key.parse().unwrap(), number.parse().unwrap())
}

/// An event about `subject`.
fn about(subject: &str, id: &str) -> Value {
    let mut event = lead(id, TYPES[0]);
    event["subject"] = json!(subject);
    event
}

/// Posts until it is acknowledged: the next event of its key comes after it.
async fn acknowledged(post: &impl Fn(&Value) -> Post, event: &Value) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match post(event).await {
            Ok(answer) if matches!(answer.status, 200 | 202) => return,
            Ok(answer) if answer.status != 503 => panic!("{answer:?}"),
            _ => {}
        }
        assert!(Instant::now() < deadline, "{event} was never accepted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// When each event was delivered for the first time, as a place in the order of arrival.
fn delivered(arrived: &[Arrived]) -> HashMap<&str, usize> {
    let mut places = HashMap::new();
    for (place, one) in arrived.iter().enumerate().filter(|(_, one)| one.status == 200) {
        places.entry(one.event.as_str()).or_insert(place);
    }
    places
}

/// Of each key exactly these many events came, in their order: one that came again came before the next.
fn assert_in_order(arrived: &[Arrived], count: impl Fn(usize) -> usize) {
    let mut came = vec![Vec::new(); KEYS];
    for one in arrived {
        let (key, number) = key_and_number(&one.event);
        came[key].push(number);
    }
    for (key, mut came) in came.into_iter().enumerate() {
        came.dedup();
        let wanted: Vec<usize> = (0..count(key)).collect();
        assert_eq!(came, wanted, "the order of key {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_keys_keep_their_order_over_kills_failures_and_dead_letters() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "ordered");
    // Every tenth event is refused the first time.
    let receiver = Webhooks::answering(|event, earlier| {
        let refused = earlier == 0 && event.bytes().map(u32::from).sum::<u32>().is_multiple_of(10);
        if refused { 422 } else { 200 }
    })
    .await;
    // Every fiftieth is refused for good, until this one is mended.
    let is_mended = Arc::new(AtomicBool::new(false));
    let refusing = || {
        let is_mended = is_mended.clone();
        Webhooks::answering(move |event, _| {
            let refused = is_doomed(event) && !is_mended.load(Ordering::SeqCst);
            if refused { 422 } else { 200 }
        })
    };
    let (skipping, blocking) = (refusing().await, refusing().await);
    let again = json!({"schedule": ["200ms", "200ms", "200ms", "200ms"], "jitter": 0});
    let never = |on_exhausted: &str| {
        json!({"ordering": {"mode": "FIFO", "key": "event.subject", "onExhausted": on_exhausted},
            "retry": {"neverRetry": [422]}})
    };
    let tenth = json!({"ordering": {"mode": "FIFO", "key": "event.subject"}, "retry": again});
    team.deliver_to_all([
        ("billing".to_owned(), receiver.url(), tenth),
        ("skips".to_owned(), skipping.url(), never("Skip")),
        ("blocks".to_owned(), blocking.url(), never("Block")),
    ]);

    let post = Arc::new(team.poster(&dispatcher));
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|producer| {
            let post = post.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    for key in (producer..KEYS).step_by(PRODUCERS) {
                        acknowledged(&*post, &about(&format!("account-{key}"), &id(key, number))).await;
                    }
                }
            })
        })
        .collect();
    for kill in 1..=KILLS {
        // Among messages that are sent, that are tried again, that are refused, and that are held behind those.
        let sent = kill * KEYS * EACH / (KILLS + 1);
        receiver.until("a part of it", |all| all.len() >= sent).await;
        for refusing in [&skipping, &blocking] {
            let is_refused = |all: &[Arrived]| all.iter().any(|one| one.status == 422);
            refusing.until("some are refused", is_refused).await;
        }
        dispatcher.kill9();
        dispatcher.restart().unwrap();
    }
    for producer in join_all(producers).await {
        producer.unwrap();
    }
    receiver
        .until("everything", |all| delivered(all).len() == KEYS * EACH)
        .await;
    assert_in_order(&receiver.arrived(), |_| EACH);
    until_nothing_waits(&team, "billing");
    let dead = (0..KEYS).filter_map(doomed).count();

    // Where it skips, a key goes on behind its dead letter.
    team.until("through", "whe", "skips", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == 0 && delivery["deadLettered"] == dead && delivery["blockedKeys"].is_null()
    });
    let arrived = skipping.arrived();
    assert_eq!(delivered(&arrived).len(), KEYS * EACH - dead);
    assert_in_order(&arrived, |_| EACH);

    // Where it blocks, nothing comes behind a dead letter.
    let until_doomed = |key: usize| doomed(key).map_or(EACH, |number| number + 1);
    let held = KEYS * EACH - (0..KEYS).map(until_doomed).sum::<usize>();
    team.until("blocked", "whe", "blocks", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == held && delivery["held"] == held && delivery["deadLettered"] == dead
    });
    assert_in_order(&blocking.arrived(), until_doomed);

    // And goes on in its order when the dead letter was sent again.
    is_mended.store(true, Ordering::SeqCst);
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "Replay", "metadata": {"name": "mended"},
        "spec": {"selector": {"endpointRef": {"name": "blocks"}}, "rate": {"requests": 1_000}}}),
    );
    blocking
        .until("what was held", |all| delivered(all).len() == KEYS * EACH)
        .await;
    assert_in_order(&blocking.arrived(), |_| EACH);
    until_nothing_waits(&team, "blocks");
}

/// Until nothing is pending at an endpoint, and no key of it is held or blocked.
fn until_nothing_waits(team: &Team<'_>, endpoint: &str) {
    team.until("nothing that waits", "whe", endpoint, |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == 0 && delivery["held"].is_null() && delivery["blockedKeys"].is_null()
    });
}

async fn send(team: &Team<'_>, dispatcher: &Dispatcher, subject: &str, id: &str) {
    let answer = team.posting(dispatcher, &about(subject, id)).await.unwrap();
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_blocks_its_key_where_everybody_sees_it_until_the_order_may_skip_it() {
    let shared = Shared::get();
    let (team, dispatcher) = (Team::open(shared.cluster, "ordering"), &shared.dispatcher);
    let receiver = Webhooks::answering(|event, _| if event.starts_with("bad") { 422 } else { 200 }).await;
    let retry = json!({"neverRetry": [422]});
    team.deliver_to(
        "billing",
        &receiver.url(),
        json!({"ordering": {"mode": "FIFO"}, "retry": retry}),
    );
    for (subject, id) in [("a", "bad-1"), ("a", "a-2"), ("a", "a-3"), ("b", "b-1")] {
        send(&team, dispatcher, subject, id).await;
    }
    receiver
        .until("the other key", |all| all.iter().any(|one| one.event == "b-1"))
        .await;
    team.until_reason("whe", "billing", "KeysBlocked", "DeadLetter");
    team.until_event("billing", "KeysBlocked");
    team.until("blocked", "whe", "billing", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["held"] == 2 && delivery["blockedKeys"] == 1 && delivery["deadLettered"] == 1
    });
    assert_eq!((receiver.times("a-2"), receiver.times("a-3")), (0, 0));
    // A key that is no expression is told, and what is accepted meanwhile keeps the order that was valid.
    let wrong = json!({"ordering": {"mode": "FIFO", "key": "event."}, "retry": retry});
    team.endpoint("billing", &receiver.url(), wrong);
    team.until_reason("whe", "billing", "Ready", "InvalidSpec");
    let deadline = Instant::now() + PATIENCE;
    while metric(dispatcher, "tidings_keys_blocked") < 1.0 || metric(dispatcher, "tidings_messages_held") < 2.0 {
        assert!(Instant::now() < deadline, "the metrics never say so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let skip = json!({"ordering": {"mode": "FIFO", "onExhausted": "Skip"}, "retry": retry});
    team.endpoint("billing", &receiver.url(), skip);
    receiver
        .until("those behind it", |all| delivered(all).contains_key("a-3"))
        .await;
    send(&team, dispatcher, "a", "bad-4").await;
    send(&team, dispatcher, "a", "a-5").await;
    receiver
        .until("what skips", |all| delivered(all).contains_key("a-5"))
        .await;
    let arrived = receiver.arrived();
    let places = delivered(&arrived);
    assert!(places["a-2"] < places["a-3"] && places["a-3"] < places["a-5"]);
    team.until("free", "whe", "billing", |whe| {
        let conditions = whe["status"]["conditions"].as_array().unwrap();
        let delivery = &whe["status"]["delivery"];
        conditions.iter().all(|condition| condition["type"] != "KeysBlocked")
            && delivery["blockedKeys"].is_null()
            && delivery["deadLettered"] == 2
            && delivery["pending"] == 0
    });

    // An event that has no key goes out all the same, and is counted.
    let by_account = json!({"ordering": {"mode": "FIFO", "key": "event.data.account"}, "retry": retry});
    team.endpoint("billing", &receiver.url(), by_account);
    team.ready("whe/billing");
    let before = metric(dispatcher, "tidings_ingest_messages_without_key_total");
    send(&team, dispatcher, "a", "keyless").await;
    assert_eq!(
        metric(dispatcher, "tidings_ingest_messages_without_key_total"),
        before + 1.0
    );
    receiver
        .until("the one without a key", |all| delivered(all).contains_key("keyless"))
        .await;
}
