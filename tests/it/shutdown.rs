//! SIGTERM drains within the pod's grace time and hands nothing back twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::load::{Load, until_quiet};
use super::receiver::reserve;
use super::team::{Team, Webhooks};

/// What a pod gets unless it asks for more.
const GRACE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_dispatcher_that_is_told_to_stop_finishes_what_is_under_way_and_repeats_none_of_it() {
    const ANSWER_TIME: Duration = Duration::from_millis(400);
    /// What was under way arrives by then, on a machine that stands still meanwhile; it drains for longer.
    const STARTED_BY: Duration = Duration::from_secs(10);
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "stopping");
    let over = Arc::new(AtomicBool::new(false));
    // At the end it answers at once: what a fast machine has sent meanwhile would else take minutes.
    let at_once = over.clone();
    let answer_time = move || {
        if at_once.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            ANSWER_TIME
        }
    };
    let receiver = Webhooks::answering_after(reserve().0, move |_, _| (answer_time(), 200)).await;
    team.deliver_to("crm", &receiver.url(), json!({}));

    let mut load = Load::default();
    for life in 0..3 {
        let before = receiver.arrived().len();
        load.start(&team, &dispatcher, 4, move |producer, n| {
            format!("lead-{life}-{producer}-{n}")
        });
        receiver
            .until("a good deal of load", |all| all.len() > before + 60)
            .await;
        let told = Instant::now();
        let status = dispatcher.terminate(GRACE).unwrap();
        assert!(status.success(), "{status}");
        load.stop().await;
        let under_way = receiver
            .arrived()
            .iter()
            .filter(|one| one.at + ANSWER_TIME > told)
            .count();
        assert!(under_way > 0, "nothing was under way when it was told to stop");
        let connections = receiver.connections().await;
        let late = receiver
            .arrived()
            .iter()
            .filter(|one| one.at > told + STARTED_BY)
            .count();
        assert_eq!(
            late, 0,
            "attempts were started while it drained, over {connections} connections"
        );
        dispatcher.restart().unwrap();
    }
    over.store(true, Ordering::Relaxed);
    load.send_what_is_left(&team, &dispatcher).await;
    let acknowledged = load.acknowledged();
    until_quiet(&dispatcher, || {
        acknowledged.iter().all(|event| receiver.times(event) > 0)
    })
    .await;
    team.until("all delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
    let mut times: HashMap<String, usize> = HashMap::new();
    for one in receiver.arrived() {
        *times.entry(one.event).or_default() += 1;
    }
    let again: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(
        again.is_empty(),
        "all were answered with 200, and these came again: {again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_outlasts_the_drain_is_cut_off_not_counted_and_made_again() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let options = DispatcherOptions {
        extra_args: vec!["--drain-seconds".into(), "1".into()],
        ..DispatcherOptions::default()
    };
    let mut dispatcher = tidings.start_dispatcher(&options).unwrap();
    let team = Team::open(&cluster, "cut-off");
    let hangs_once = |_: &str, earlier| (Duration::from_secs(if earlier == 0 { 120 } else { 0 }), 200);
    let receiver = Webhooks::answering_after(reserve().0, hangs_once).await;
    // A single attempt: had the one that was cut off counted, there would be no other.
    let more = json!({"timeout": "60s", "retry": {"schedule": []}});
    team.deliver_to("crm", &receiver.url(), more);
    team.send(&dispatcher, "lead-1").await;
    receiver.until("the attempt", |all| all.len() == 1).await;
    let status = dispatcher.terminate(GRACE).unwrap();
    assert!(status.success(), "{status}");

    dispatcher.restart().unwrap();
    receiver.until("the attempt again", |all| all.len() == 2).await;
    let whe = team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["pending"] == 0 && whe["status"]["delivery"]["lastStatusCode"] == 200
    });
    let failures = &whe["status"]["delivery"]["consecutiveFailures"];
    assert!(failures.is_null() || failures == 0, "{whe:#}");
    let arrived = receiver.arrived();
    assert_eq!(arrived[0].message, arrived[1].message);
}
