//! What an endpoint's receiver is spared, as its spec says: rate, attempts in flight, retries, the breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::receiver::Receiver;
use super::team::{Arrived, Shared, Team, Webhooks, metric, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_status_named_in_never_retry_makes_a_dead_letter_of_its_message_after_one_attempt() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "never-retry");
    let receiver = Webhooks::answering(|event, _| if event == "bad" { 422 } else { 200 }).await;
    team.deliver_to("crm", &receiver.url(), json!({"retry": {"neverRetry": [400, 422]}}));
    team.send(&shared.dispatcher, "bad").await;
    team.send(&shared.dispatcher, "good").await;

    team.until("a dead letter", "evsub", "crm", |evsub| {
        let delivery = &evsub["status"]["delivery"];
        delivery["deadLettered"] == 1 && delivery["pending"] == 0 && delivery["lastDeadLetter"]["reason"] == "Refused"
    });
    assert_eq!((receiver.times("bad"), receiver.times("good")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn exponential_waits_replace_the_schedule() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "exponential");
    let receiver = Webhooks::answering(|_, _| 400).await;
    let growing = json!({"initial": "200ms", "factor": "2", "max": "300ms", "attempts": 4});
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"retry": {"exponential": growing, "jitter": 0}}),
    );
    team.send(&shared.dispatcher, "lead-1").await;
    team.until("a dead letter", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["lastDeadLetter"]["reason"] == "Exhausted"
    });
    let arrived = receiver.arrived();
    assert_eq!(arrived.len(), 4);
    let least = [200, 300, 300].map(Duration::from_millis);
    for (two, least) in arrived.windows(2).zip(least) {
        // Due times are milliseconds: one may be lost between the answer and the next arrival.
        let waited = two[1].at - two[0].at + Duration::from_millis(5);
        assert!(waited >= least, "{waited:?} is less than {least:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_gets_no_more_at_a_time_than_max_in_flight_and_no_more_a_second_than_its_rate() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "in-flight");
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let receiver = {
        let (now, most) = (now.clone(), most.clone());
        Receiver::start(move |mut connection, seen| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                while let Some(request) = connection.request().await {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    seen.lock().unwrap().push(request);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    if !connection.write("HTTP/1.1 204 No Content\r\n\r\n").await {
                        return;
                    }
                }
            }
        })
        .await
    };
    let url = format!("https://{}/", receiver.address);
    let limits = json!({"maxInFlight": 2, "rateLimit": {"requests": 10, "per": "1s"}});
    team.deliver_to("crm", &url, limits);
    let started = std::time::Instant::now();
    for number in 0..40 {
        team.send(&shared.dispatcher, &format!("lead-{number}")).await;
    }
    let limited = async || metric(&shared.dispatcher, "tidings_endpoints_rate_limited") >= 1.0;
    until("an endpoint that waits for its rate", limited).await;
    team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["pending"] == 0 && receiver.requests() == 40
    });
    assert!(
        most.load(Ordering::SeqCst) <= 2,
        "{} at once",
        most.load(Ordering::SeqCst)
    );
    // Ten at once, and thirty at ten a second.
    assert!(
        started.elapsed() >= Duration::from_millis(2_900),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_of_its_own_opens_at_the_first_fault_and_is_probed_soon() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "own-breaker");
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    let answer = move |_: &str, _| if is_down.load(Ordering::SeqCst) { 503 } else { 200 };
    let receiver = Webhooks::answering(answer).await;
    let breaker = json!({"openAfter": 1, "probeAfter": "1s", "probeAfterMax": "1s"});
    let retry = json!({"schedule": [], "jitter": 0});
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"circuitBreaker": breaker, "retry": retry, "disableAfter": "Never"}),
    );
    let opened = metric(&shared.dispatcher, "tidings_breakers_opened_total");
    team.send(&shared.dispatcher, "lead-1").await;
    team.until_reason("whe", "crm", "Delivering", "CircuitOpen");
    assert!(metric(&shared.dispatcher, "tidings_breakers_opened_total") > opened);
    down.store(false, Ordering::SeqCst);
    let succeeded = |all: &[Arrived]| all.last().is_some_and(|one| one.status == 200);
    receiver.until("the probe that succeeds", succeeded).await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
}
