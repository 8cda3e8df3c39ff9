//! The way of one event, whole: manifests applied, an event posted, a signed request verified, and kubectl shows it.

use std::time::Duration;

use serde_json::json;
use standardwebhooks::Webhook;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::receiver::{Receiver, keep_answering};
use super::team::{Team, Webhooks};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_becomes_a_signed_request_that_the_receivers_own_library_verifies() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "sales");
    let receiver = Receiver::start(|connection, seen| {
        keep_answering(connection, seen, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    team.deliver_to("crm", &format!("https://{}/hooks/leads", receiver.address), json!({}));

    let answer = team.post(&dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    let again = team.post(&dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!(
        (again.status, &again.body["duplicate"]),
        (200, &json!(true)),
        "{again:?}"
    );
    assert_eq!(again.body["id"], answer.body["id"], "the first answer again");

    team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["pending"] == 0 && whe["status"]["delivery"]["lastStatusCode"] == 200
    });
    assert_eq!(receiver.requests(), 1, "the duplicate made no message");
    let seen = receiver.seen.lock().unwrap();
    let secret = cluster
        .kubectl_ok(&[
            "get",
            "secret",
            "crm-signing",
            "-n",
            "sales",
            "-o",
            "go-template={{.data.current | base64decode}}",
        ])
        .unwrap();
    Webhook::new(&secret)
        .unwrap()
        .verify(&seen[0].body, &seen[0].headers)
        .expect("the published library verifies it");
    let body: serde_json::Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(
        (&body["type"], &body["data"]["lead"]),
        (&json!("lead.qualified"), &json!("lead-1"))
    );

    let shown = cluster.kubectl_ok(&["get", "whe,evsub", "-n", "sales"]).unwrap();
    assert!(shown.contains("Succeeding") && shown.contains("Resolved"), "{shown}");
    let status = dispatcher.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_message_is_tried_again_after_one_and_ten_seconds_and_kubectl_shows_the_backoff() {
    // Its own: where a thousand objects become Ready beside it, status in between waits for its turn.
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "backoff");
    let receiver = Webhooks::answering(|_, earlier| if earlier < 2 { 500 } else { 200 }).await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    team.send(&dispatcher, "lead-1").await;

    let object = team.until("in backoff", "whe", "crm", |whe| {
        whe["status"]["delivery"]["retry"]["attempt"] == 3
    });
    let delivery = &object["status"]["delivery"];
    assert_eq!(
        (&delivery["pending"], &delivery["lastStatusCode"]),
        (&json!(1), &json!(500))
    );
    assert_eq!(delivery["recentFailures"][0]["statusCode"], 500);
    receiver.until("three attempts", |all| all.len() == 3).await;
    let arrived = receiver.arrived();
    let waits: Vec<f64> = arrived
        .windows(2)
        .map(|two| (two[1].at - two[0].at).as_secs_f64())
        .collect();
    // Upwards there is room for a machine that stands still.
    assert!(
        (1.0..23.0).contains(&waits[0]) && (10.0..33.0).contains(&waits[1]),
        "{waits:?}"
    );
    assert!(
        arrived.iter().all(|one| one.message == arrived[0].message),
        "the same webhook-id"
    );
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
}
