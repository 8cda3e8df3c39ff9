//! Suspended, disabled, deleted and created again: messages wait, and nobody's attempts are used up by it.

use serde_json::{Value, json};

use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::team::{Shared, Team, Webhooks, metric, until};

fn subscription(name: &str, endpoint: &str, event_type: &str, suspend: bool) -> Value {
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
        "spec": {"endpointRef": {"name": endpoint}, "eventTypes": [event_type], "suspend": suspend}})
}

fn pending(object: &Value) -> &Value {
    &object["status"]["delivery"]["pending"]
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_endpoint_or_a_subscription_is_suspended_its_messages_wait_and_the_others_go_on() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "suspended");
    let receiver = Webhooks::start().await;
    team.endpoint("crm", &receiver.url(), json!({"suspend": true}));
    team.subscription("crm", "crm");
    team.ready("whe/crm");
    team.ready("evsub/crm");
    team.until_reason("whe", "crm", "Delivering", "Suspended");
    team.send(&shared.dispatcher, "waits").await;
    team.until("waiting", "whe", "crm", |whe| *pending(whe) == 1);
    assert_eq!(receiver.arrived().len(), 0);
    team.endpoint("crm", &receiver.url(), json!({"suspend": false}));
    receiver
        .until("delivered", |all| all.iter().any(|a| a.event == "waits"))
        .await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");

    // Sixty-four messages of a suspended subscription, and more, stand in nobody's way.
    team.apply(&subscription("crm", "crm", "lead.lost", true));
    team.apply(&subscription("other", "crm", "lead.qualified", false));
    team.ready("evsub/crm");
    team.ready("evsub/other");
    for n in 0..70 {
        let answer = team.post(&shared.dispatcher, &format!("held-{n}"), "lead.lost").await;
        assert_eq!(
            (answer.status, &answer.body["matched"]),
            (202, &json!(1)),
            "events still match"
        );
    }
    team.send(&shared.dispatcher, "passes").await;
    receiver
        .until("passed", |all| all.iter().any(|a| a.event == "passes"))
        .await;
    team.until("waiting", "evsub", "crm", |evsub| *pending(evsub) == 70);
    assert_eq!(receiver.arrived().len(), 2, "nothing of the suspended one was sent");
    team.apply(&subscription("crm", "crm", "lead.lost", false));
    receiver.until("all", |all| all.len() == 72).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_disables_its_endpoint_until_somebody_asks_or_changes_it() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "gone");
    let receiver = Webhooks::answering(|event, earlier| match event {
        "first" | "second" if earlier == 0 => 410,
        _ => 200,
    })
    .await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    team.send(&shared.dispatcher, "first").await;
    team.until_reason("whe", "crm", "Delivering", "Disabled");
    assert_eq!(
        team.condition("whe", "crm", "Ready").unwrap().0,
        "True",
        "a receiver's end fails no rollout"
    );
    team.until_event("crm", "Disabled");
    team.send(&shared.dispatcher, "later").await;
    team.until("both waiting", "whe", "crm", |whe| *pending(whe) == 2);
    assert_eq!(
        (receiver.times("first"), receiver.times("later")),
        (1, 0),
        "nothing is sent to it any more"
    );

    team.ask("crm", "enable");
    receiver
        .until("both delivered", |all| {
            all.iter().filter(|a| a.status == 200).count() == 2
        })
        .await;
    let asked = team.get("whe", "crm")["metadata"]["annotations"]["tidings.dev/enable-requested-at"].clone();
    team.until("enabled", "whe", "crm", |whe| {
        whe["status"]["delivery"]["handledEnableRequest"] == asked && *pending(whe) == 0
    });
    let arrived = receiver.arrived();
    assert_eq!(
        arrived[0].message,
        arrived.iter().rfind(|a| a.event == "first").unwrap().message,
        "the same message"
    );

    // Once more: the request that was handled enables no second time, a newer generation does.
    team.send(&shared.dispatcher, "second").await;
    team.until_reason("whe", "crm", "Delivering", "Disabled");
    team.endpoint("crm", &receiver.url(), json!({"timeout": "20s"}));
    receiver
        .until("delivered", |all| {
            all.iter().any(|a| a.event == "second" && a.status == 200)
        })
        .await;
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_and_created_again_keeps_its_messages() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "replaced");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({"suspend": true}));
    for n in 0..3 {
        team.send(&shared.dispatcher, &format!("kept-{n}")).await;
    }
    team.until("waiting", "whe", "crm", |whe| *pending(whe) == 3);

    team.delete("whe", "crm");
    team.until_reason("evsub", "crm", "Ready", "EndpointNotFound");
    team.send(&shared.dispatcher, "kept-3").await;
    team.until("still there", "evsub", "crm", |evsub| {
        *pending(evsub) == 4 && evsub["status"]["delivery"]["deadLettered"] == 0
    });
    team.endpoint("crm", &receiver.url(), json!({"suspend": true}));
    team.ready("whe/crm");
    team.ready("evsub/crm");
    team.until("shown again", "whe", "crm", |whe| *pending(whe) == 4);

    team.delete("evsub", "crm");
    let answer = team.post(&shared.dispatcher, "unmatched", "lead.qualified").await;
    assert_eq!(answer.status, 202);
    team.subscription("crm", "crm");
    team.ready("evsub/crm");
    team.endpoint("crm", &receiver.url(), json!({}));
    receiver
        .until("all of them", |all| {
            (0..4).all(|n| all.iter().any(|a| a.event == format!("kept-{n}")))
        })
        .await;
    team.until("settled", "evsub", "crm", |evsub| {
        *pending(evsub) == 0 && evsub["status"]["delivery"]["deadLettered"] == 0
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_created_again_never_sees_the_messages_of_its_namesake() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "namesake");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({"suspend": true}));
    team.send(&shared.dispatcher, "theirs").await;
    team.until("waiting", "whe", "crm", |whe| *pending(whe) == 1);
    let args = ["delete", "namespace", "namesake", "--timeout=60s"];
    shared.cluster.kubectl_ok(&args).unwrap();

    let team = Team::open(shared.cluster, "namesake");
    team.deliver_to("crm", &receiver.url(), json!({}));
    // The same event is a new one here: whoever was told of it before was somebody else.
    team.send(&shared.dispatcher, "theirs").await;
    team.send(&shared.dispatcher, "ours").await;
    receiver
        .until("ours", |all| all.iter().any(|a| a.event == "ours"))
        .await;
    team.until("delivered", "whe", "crm", |whe| {
        *pending(whe) == 0 && whe["status"]["delivery"]["lastStatusCode"] == 200
    });
    assert_eq!((receiver.times("theirs"), receiver.times("ours")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_a_namespace_goes_with_it() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let options = DispatcherOptions {
        extra_args: vec!["--keep-deleted-seconds=1".into()],
        ..DispatcherOptions::default()
    };
    let dispatcher = tidings.start_dispatcher(&options).unwrap();
    let receiver = Webhooks::answering(|_, _| 422).await;
    let teams = ["leaves", "stays"].map(|name| Team::open(&cluster, name));
    for team in &teams {
        team.deliver_to("crm", &receiver.url(), json!({"retry": {"neverRetry": [422]}}));
        team.deliver_to("later", &receiver.url(), json!({"suspend": true}));
        let answer = team.post(&dispatcher, "1", "lead.qualified").await;
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(2)));
        team.until("one of each", "evsub", "crm", |evsub| {
            evsub["status"]["delivery"]["deadLettered"] == 1
        });
        team.until("waiting", "evsub", "later", |evsub| *pending(evsub) == 1);
    }
    let [dead, waiting] = ["tidings_store_dead_letters", "tidings_store_pending_messages"];
    until("what is kept of both", async || {
        (metric(&dispatcher, dead), metric(&dispatcher, waiting)) == (2.0, 2.0)
    })
    .await;
    cluster
        .kubectl_ok(&["delete", "namespace", "leaves", "--timeout=60s"])
        .unwrap();
    until("what is kept of one", async || {
        (metric(&dispatcher, dead), metric(&dispatcher, waiting)) == (1.0, 1.0)
    })
    .await;
}
