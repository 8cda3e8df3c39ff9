//! A message through its whole schedule: an outage of the receiver ends none, an answer about the message does.
//!
//! Over real processes with a schedule that is short and real; the default schedule over hours is in the engine's own tests,
//! where time is moved by hand.

use serde_json::json;

use super::receiver::reserve;
use super::team::{Shared, Team, Webhooks};

const SHORT: [&str; 4] = ["100ms", "100ms", "200ms", "200ms"];

#[tokio::test(flavor = "multi_thread")]
async fn one_message_answered_500_five_times_is_a_dead_letter_and_kubectl_says_why() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "dead-letter");
    let receiver = Webhooks::answering(|_, _| 500).await;
    team.deliver_to("crm", &receiver.url(), json!({"retry": {"schedule": SHORT}}));
    team.send(&shared.dispatcher, "lead-1").await;

    let evsub = team.until("a dead letter", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["deadLettered"] == 1
    });
    let delivery = &evsub["status"]["delivery"];
    assert_eq!(
        (&delivery["pending"], &delivery["lastDeadLetter"]["reason"]),
        (&json!(0), &json!("Exhausted"))
    );
    let whe = team.until("without anything pending", "whe", "crm", |whe| {
        whe["status"]["delivery"]["deadLettered"] == 1 && whe["status"]["delivery"]["pending"] == 0
    });
    let delivery = &whe["status"]["delivery"];
    assert_eq!(delivery["recentFailures"].as_array().unwrap().len(), 5, "{delivery:#}");
    assert_eq!(
        (
            &delivery["consecutiveFailures"],
            &delivery["lastStatusCode"],
            &delivery["lastFailure"]["reason"]
        ),
        (&json!(5), &json!(500), &json!("ServerError"))
    );
    team.until_reason("whe", "crm", "Delivering", "CircuitOpen");
    assert_eq!(
        team.condition("whe", "crm", "Ready").unwrap().0,
        "True",
        "ready is about us, not about the receiver"
    );
    let wide = ["get", "whe,evsub", "-n", &team.namespace, "-o", "wide"];
    let shown = team.cluster.kubectl_ok(&wide).unwrap();
    assert!(shown.contains("CircuitOpen") && shown.contains("DEAD"), "{shown}");
    assert_eq!(receiver.arrived().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_whose_receiver_refuses_connections_outlives_its_schedule_and_arrives_when_the_receiver_is_back() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "refusing");
    let (reserved, at) = reserve();
    let url = format!("https://{at}/hooks");
    team.deliver_to("crm", &url, json!({"retry": {"schedule": SHORT}}));
    team.send(&shared.dispatcher, "lead-1").await;

    // Five attempts failed: the schedule is over, and the message is not.
    let whe = team.until("an open circuit", "whe", "crm", |whe| {
        whe["status"]["delivery"]["consecutiveFailures"] == 5
    });
    team.until_reason("whe", "crm", "Delivering", "CircuitOpen");
    let delivery = &whe["status"]["delivery"];
    assert_eq!(
        (
            &delivery["pending"],
            &delivery["lastFailure"]["reason"],
            &delivery["retry"]["attempt"]
        ),
        (&json!(1), &json!("Refused"), &json!(5)),
        "the last attempt is kept: {delivery:#}"
    );
    assert!(
        delivery.get("deadLettered").is_none_or(|dead| dead == 0),
        "{delivery:#}"
    );

    // The breaker probes thirty seconds after it opened.
    let receiver = Webhooks::answering_on(reserved, |_, _| 200).await;
    receiver.until("the message", |all| all.len() == 1).await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
    let evsub = team.until("delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
    let dead = &evsub["status"]["delivery"]["deadLettered"];
    assert!(dead.is_null() || dead == 0, "{evsub:#}");
    assert_eq!(receiver.times("lead-1"), 1);
}
