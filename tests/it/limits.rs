//! What an endpoint's receiver is spared, as its spec says: rate, attempts in flight, retries, the breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use serde_json::json;
use tidings_cluster::Dispatcher;

use super::receiver::reserve;
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

/// Posts so many events together, and waits until the receiver has them; what arrived.
async fn all_at_once(team: &Team<'_>, dispatcher: &Dispatcher, receiver: &Webhooks, count: usize) -> Vec<Arrived> {
    join_all((0..count).map(async |number| team.send(dispatcher, &format!("lead-{number}")).await)).await;
    receiver.until("everything", |all| all.len() >= count).await;
    receiver.arrived()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_gets_as_many_at_a_time_as_max_in_flight_says_and_no_more() {
    const MOST: usize = 5;
    const TAKES: Duration = Duration::from_millis(200);
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "in-flight");
    let receiver = Webhooks::answering_after(reserve().0, |_, _| (TAKES, 200)).await;
    team.deliver_to("crm", &receiver.url(), json!({"maxInFlight": MOST}));
    let arrived = all_at_once(&team, &shared.dispatcher, &receiver, 12 * MOST).await;
    // Each holds its slot for as long as the receiver takes: those that arrive within that time are there together.
    let together = |count: usize| {
        arrived
            .windows(count)
            .any(|some| some[count - 1].at - some[0].at < TAKES)
    };
    assert!(!together(MOST + 1), "more than {MOST} at a time");
    assert!(together(MOST), "never {MOST} at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_gets_no_more_a_second_than_its_rate() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "rate");
    let receiver = Webhooks::start().await;
    let rate = json!({"rateLimit": {"requests": 10, "per": "1s"}});
    team.deliver_to("crm", &receiver.url(), rate);
    let begun = Instant::now();
    let limited = until("an endpoint that waits for its rate", async || {
        metric(&shared.dispatcher, "tidings_endpoints_rate_limited") >= 1.0
    });
    let (arrived, ()) = join(all_at_once(&team, &shared.dispatcher, &receiver, 40), limited).await;
    // Ten at once, and thirty at ten a second.
    for (number, one) in arrived.iter().enumerate() {
        let least = Duration::from_millis(100).mul_f64(number.saturating_sub(10) as f64);
        let after = one.at - begun;
        assert!(after >= least, "number {number} came after {after:?}");
    }
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
