//! It goes on delivering with the API server stopped; one that starts meanwhile waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tidings_cluster::process::http_status;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::load::until_quiet;
use super::team::{PATIENCE, TYPES, Team, Webhooks, metric};

/// Answers of the API server about producers are asked anew after a minute: past it they are stale.
const FRESH: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_delivered_and_retried_with_the_api_server_stopped_and_status_catches_up() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "away");
    let answer = |event: &str, earlier| match event.split('-').next() {
        Some("flaky") if earlier == 0 => 500,
        Some("stuck") => 500,
        _ => 200,
    };
    let receiver = Webhooks::answering(answer).await;
    team.deliver_to("crm", &receiver.url(), json!({"retry": {"schedule": ["1s", "24h"]}}));
    team.send(&dispatcher, "before").await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
    let before = team.get("whe", "crm")["status"]["delivery"]["lastSuccess"]["time"].clone();

    cluster.stop_api_server();
    let stopped = Instant::now();
    let mut sent = 0;
    while stopped.elapsed() < FRESH + Duration::from_secs(5) {
        for kind in ["fine", "flaky"] {
            team.send(&dispatcher, &format!("{kind}-{sent}")).await;
        }
        sent += 1;
        let all = move |kind: &str| (0..sent).map(move |n| format!("{kind}-{n}")).collect::<Vec<_>>();
        let (fine, flaky) = (all("fine"), all("flaky"));
        until_quiet(&dispatcher, || {
            fine.iter().all(|event| receiver.times(event) == 1) && flaky.iter().all(|event| receiver.times(event) == 2)
        })
        .await;
    }
    let unknown = team.post(&dispatcher, "lost", TYPES[1]).await;
    assert_eq!(
        (unknown.status, &unknown.body["reason"], unknown.retry_after),
        (503, &json!("AuthUnavailable"), Some(2)),
        "what was never asked cannot be answered: {unknown:?}"
    );
    assert_eq!(
        http_status(dispatcher.metrics_port, "/readyz"),
        Some(200),
        "it stays ready"
    );
    let of_endpoints = r#"tidings_watch_errors_total{kind="webhookendpoints"}"#;
    for failed in [of_endpoints, "tidings_replays_watch_errors_total"] {
        assert!(metric(&dispatcher, failed) >= 1.0, "{failed}");
    }
    team.send(&dispatcher, "stuck-1").await;
    receiver
        .until("two attempts", |all| {
            all.iter().filter(|one| one.event == "stuck-1").count() == 2
        })
        .await;

    cluster.start_api_server().unwrap();
    let whe = team.until("told about", "whe", "crm", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == 1 && delivery["lastStatusCode"] == 500 && delivery["retry"]["attempt"] == 3
    });
    assert_ne!(whe["status"]["delivery"]["lastSuccess"]["time"], before, "{whe:#}");
    team.until_reason("whe", "crm", "Delivering", "Backoff");
    team.send(&dispatcher, "after").await;
    receiver
        .until("what came after", |all| all.iter().any(|one| one.event == "after"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_starts_with_the_api_server_stopped_takes_nothing_in_until_it_is_back_and_loses_nothing() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "starting");
    let well = Arc::new(AtomicBool::new(false));
    let receiver = Webhooks::answering({
        let well = well.clone();
        move |_, _| if well.load(Ordering::SeqCst) { 200 } else { 422 }
    })
    .await;
    // None is tried again before the process is killed.
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"retry": {"schedule": ["15s", "2s", "2s", "2s"], "jitter": 0}}),
    );
    for n in 0..20 {
        team.send(&dispatcher, &format!("lead-{n}")).await;
    }
    receiver.until("an attempt each", |all| all.len() >= 20).await;
    until_quiet(&dispatcher, || true).await;
    dispatcher.kill9();
    cluster.stop_api_server();
    well.store(true, Ordering::SeqCst);
    let before = receiver.arrived().len();

    dispatcher.process.start_again().unwrap();
    // Its readiness is served, and says no; ingest answers, and says when to try again.
    let deadline = Instant::now() + PATIENCE;
    let mut refused = 0;
    while refused < 10 {
        assert!(Instant::now() < deadline, "ingest was never there to refuse");
        assert_eq!(dispatcher.process.exited(), None, "{}", dispatcher.process.log_tail());
        if let Ok(answer) = team.try_post(&dispatcher, "lead-20", TYPES[0]).await {
            assert_eq!(
                (answer.status, &answer.body["reason"], answer.retry_after),
                (503, &json!("NotSynced"), Some(2)),
                "{answer:?}"
            );
            assert_eq!(http_status(dispatcher.metrics_port, "/readyz"), Some(503));
            refused += 1;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(receiver.arrived().len(), before, "it cannot know where to send");

    cluster.start_api_server().unwrap();
    dispatcher.wait_ready().unwrap();
    team.send(&dispatcher, "lead-20").await;
    receiver
        .until("everything", |all| {
            all.iter().filter(|one| one.status == 200).count() == 21
        })
        .await;
    team.until("delivered", "evsub", "crm", |evsub| {
        let delivery = &evsub["status"]["delivery"];
        delivery["pending"] == 0 && (delivery["deadLettered"].is_null() || delivery["deadLettered"] == 0)
    });
    assert!(
        (0..20).all(|n| receiver.times(&format!("lead-{n}")) == 2),
        "a failed attempt and a good one each"
    );
}
