//! Messages with the same key go out in the order they were accepted, whatever fails and whoever dies; keys do not wait for
//! each other.

use std::collections::HashMap;
use std::sync::Arc;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_keys_keep_their_order_over_kills_and_failures() {
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
    let retry = json!({"schedule": ["200ms", "200ms", "200ms", "200ms"], "jitter": 0});
    team.deliver_to(
        "billing",
        &receiver.url(),
        json!({"ordering": {"mode": "FIFO", "key": "event.subject"}, "retry": retry}),
    );

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
        // Among messages that are sent, that are tried again, and that are held behind those.
        let sent = kill * KEYS * EACH / (KILLS + 1);
        receiver.until("a part of it", |all| all.len() >= sent).await;
        dispatcher.kill9();
        dispatcher.restart().unwrap();
    }
    for producer in join_all(producers).await {
        producer.unwrap();
    }
    receiver
        .until("everything", |all| delivered(all).len() == KEYS * EACH)
        .await;
    let arrived = receiver.arrived();
    let places = delivered(&arrived);
    for key in 0..KEYS {
        let of_key: Vec<usize> = (0..EACH).map(|number| places[id(key, number).as_str()]).collect();
        assert!(of_key.is_sorted(), "key {key} was delivered in the order {of_key:?}");
    }
    team.until("delivered", "whe", "billing", |whe| {
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
