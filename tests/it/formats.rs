//! The formats in which a receiver may get an event, side by side, and a subscription's own retry.

use std::sync::Arc;

use serde_json::json;
use tidings::delivery::Sender;

use super::receiver::{Receiver, Seen, keep_answering, request, sender, status};
use super::team::{Shared, Team, Webhooks};

#[tokio::test(flavor = "multi_thread")]
async fn one_event_goes_out_in_every_format() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "formats");
    let receiver =
        Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")).await;
    // A header of the endpoint cannot pass for an attribute of the event.
    let headers = json!([{"name": "ce-id", "value": "forged"}]);
    team.endpoint(
        "crm",
        &format!("https://{}/", receiver.address),
        json!({"headers": headers}),
    );
    team.ready("whe/crm");
    let formats = ["StandardWebhooks", "CloudEventsStructured", "CloudEventsBinary", "Raw"];
    for format in formats {
        let name = format.to_ascii_lowercase();
        team.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"], "format": format}}),
        );
        team.ready(&format!("evsub/{name}"));
    }
    let event = json!({"specversion": "1.0", "id": "lead 7", "source": "/agents/voice", "type": "lead.qualified",
        "subject": "Zoë", "datacontenttype": "application/json", "partitionkey": "a%b", "data": {"lead": "7"}});
    let answer = team.posting(&shared.dispatcher, &event).await.unwrap();
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(4)), "{answer:?}");
    team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["pending"] == 0 && receiver.requests() == 4
    });

    let seen = receiver.seen.lock().unwrap();
    let header = |request: &Seen, name: &str| {
        let value = request.headers.get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let of_type = |content_type: &str, binary: bool| {
        let mut found = seen.iter().filter(|request| {
            let is_binary = request.headers.contains_key("ce-specversion");
            header(request, "content-type").as_deref() == Some(content_type) && is_binary == binary
        });
        found.next().unwrap_or_else(|| panic!("nothing came as {content_type}"))
    };
    for request in seen.iter() {
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            assert!(request.headers.contains_key(name), "{name}");
        }
    }
    let structured: serde_json::Value =
        serde_json::from_slice(&of_type("application/cloudevents+json", false).body).unwrap();
    assert_eq!(
        (&structured["id"], &structured["partitionkey"]),
        (&json!("lead 7"), &json!("a%b"))
    );
    let binary = of_type("application/json", true);
    assert_eq!(binary.body, br#"{"lead":"7"}"#);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "lead%207"),
        ("ce-source", "/agents/voice"),
        ("ce-type", "lead.qualified"),
        ("ce-subject", "Zo%C3%AB"),
        ("ce-partitionkey", "a%25b"),
    ] {
        assert_eq!(header(binary, name).as_deref(), Some(value), "{name}");
    }
    let raw = seen.iter().filter(|request| request.body == br#"{"lead":"7"}"#).count();
    assert_eq!(raw, 2, "binary and raw");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriptions_own_retry_replaces_its_endpoints() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "own-retry");
    let receiver = Webhooks::answering(|_, _| 400).await;
    let endpoints = json!({"retry": {"schedule": ["10m"], "neverRetry": [400]}});
    team.endpoint("crm", &receiver.url(), endpoints);
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "own"},
        "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"],
            "retry": {"schedule": ["100ms", "100ms"], "jitter": 0}}}),
    );
    team.ready("whe/crm");
    team.ready("evsub/own");
    team.send(&shared.dispatcher, "lead-1").await;
    // Neither the endpoint's wait of ten minutes nor its neverRetry.
    team.until("a dead letter", "evsub", "own", |evsub| {
        evsub["status"]["delivery"]["lastDeadLetter"]["reason"] == "Exhausted"
    });
    assert_eq!(receiver.times("lead-1"), 3);
}

#[tokio::test]
async fn an_empty_body_goes_out_with_its_length() {
    let receiver = Receiver::always("HTTP/1.1 204 No Content\r\n\r\n").await;
    let sent = sender().send(&Arc::new(receiver.endpoint()), request("")).await;
    assert_eq!(status(&sent.outcome), Some(204), "{sent:?}");
    assert_eq!(receiver.seen.lock().unwrap()[0].headers["content-length"], "0");
}
