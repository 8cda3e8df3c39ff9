//! Ready means configured and loaded: a POST that follows it at once makes a message.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde_json::{Value, json};
use tidings::api::{EventSubscription, WebhookEndpoint};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings, process};
use tokio::sync::mpsc;

use super::admin;
use super::team::{Answer, PATIENCE, Team, Webhooks};

const PAIRS: usize = 1_000;
const AT_A_TIME: usize = 50;
const NAMESPACES: usize = 4;
/// A thousand pairs are nine thousand writes: at the usual 50 a second they would take three minutes.
const WRITES_PER_SECOND: &str = "1000";

/// An endpoint and a subscription of one name, for events of a source of their own.
fn pair(namespace: &str, name: &str, url: &str) -> [Value; 2] {
    [
        json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
         "metadata": {"name": name, "namespace": namespace},
         "spec": {"url": url, "tls": {"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}}}}),
        json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
         "metadata": {"name": name, "namespace": namespace},
         "spec": {"endpointRef": {"name": name}, "eventTypes": ["lead.*"], "sources": [source(name)]}}),
    ]
}

fn list(items: impl IntoIterator<Item = Value>) -> String {
    let items: Vec<Value> = items.into_iter().collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn source(name: &str) -> String {
    format!("/pairs/{name}")
}

fn event(name: &str) -> Value {
    json!({"specversion": "1.0", "id": name, "source": source(name), "type": "lead.qualified", "data": {"lead": name}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_right_after_ready_always_makes_a_message_that_is_delivered() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let controller_options = ControllerOptions {
        extra_args: ["--writes-per-second", WRITES_PER_SECOND].map(OsString::from).into(),
        ..ControllerOptions::default()
    };
    let _controller = tidings.start_controller(&controller_options).unwrap();
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let teams: Vec<Team> = (0..NAMESPACES)
        .map(|n| Team::open(&cluster, &format!("pairs-{n}")))
        .collect();
    let receiver = Webhooks::start().await;
    let (pairs, prepared) = mpsc::unbounded_channel();
    let (answered, mut answers) = mpsc::unbounded_channel();
    let poster = tokio::spawn(post_when_ready(admin::client(&cluster).await, prepared, answered));
    let hiccups = tokio::spawn(hiccups(dispatcher.process.pid().unwrap()));

    for batch in (0..PAIRS).step_by(AT_A_TIME) {
        let mut items = Vec::new();
        for n in batch..batch + AT_A_TIME {
            let (team, name) = (&teams[n % NAMESPACES], format!("pair-{n}"));
            items.extend(pair(&team.namespace, &name, &receiver.url()));
            let post = team.posting(&dispatcher, &event(&name));
            pairs.send((name, post.boxed())).ok().unwrap();
        }
        let create = ["create", "-f", "-"];
        let applied = tokio::task::block_in_place(|| cluster.kubectl_with_input(&create, &list(items))).unwrap();
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        for done in 0..AT_A_TIME {
            let answer = tokio::time::timeout(PATIENCE, answers.recv()).await;
            let Ok(Some((name, answer))) = answer else {
                panic!("of the pairs from {batch} on only {done} of {AT_A_TIME} became Ready");
            };
            let answer: Answer = answer;
            assert_eq!(
                (answer.status, &answer.body["matched"]),
                (202, &json!(1)),
                "{name}: {answer:?}"
            );
        }
    }
    poster.abort();
    hiccups.abort();
    dispatcher.process.signal(libc::SIGCONT);
    receiver
        .until("every event delivered", |all| {
            all.iter().map(|arrived| &arrived.event).collect::<HashSet<_>>().len() == PAIRS
        })
        .await;
}

/// Freezes the dispatcher again and again: what it has to load comes late, and a Ready that did not wait for it is caught.
async fn hiccups(dispatcher: u32) {
    loop {
        process::signal(dispatcher, libc::SIGSTOP);
        tokio::time::sleep(Duration::from_millis(300)).await;
        process::signal(dispatcher, libc::SIGCONT);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

type Post = BoxFuture<'static, reqwest::Result<Answer>>;

/// Follows both kinds, and posts for a pair at the moment its second half is seen Ready.
async fn post_when_ready(
    client: kube::Client,
    mut prepared: mpsc::UnboundedReceiver<(String, Post)>,
    answered: mpsc::UnboundedSender<(String, Answer)>,
) {
    let endpoints = admin::watch::<WebhookEndpoint>(&client).map(|endpoint| {
        let conditions = endpoint.status.as_ref().map(|s| s.conditions.as_slice());
        (is_ready(conditions, &endpoint), "whe", endpoint.name_any())
    });
    let subscriptions = admin::watch::<EventSubscription>(&client).map(|subscription| {
        let conditions = subscription.status.as_ref().map(|s| s.conditions.as_slice());
        (is_ready(conditions, &subscription), "evsub", subscription.name_any())
    });
    let mut seen = futures::stream::select(endpoints, subscriptions);
    let mut posts = HashMap::new();
    let mut ready = HashSet::new();
    while let Some((is_ready, kind, name)) = seen.next().await {
        while let Ok((name, post)) = prepared.try_recv() {
            posts.insert(name, post);
        }
        if !is_ready || !ready.insert((kind, name.clone())) {
            continue;
        }
        if ready.contains(&("whe", name.clone())) && ready.contains(&("evsub", name.clone())) {
            let (post, answered) = (posts.remove(&name).unwrap(), answered.clone());
            tokio::spawn(async move { answered.send((name, post.await.unwrap())) });
        }
    }
}

fn is_ready<K: ResourceExt>(conditions: Option<&[Condition]>, object: &K) -> bool {
    let generation = object.meta().generation;
    let conditions = conditions.unwrap_or_default().iter();
    let mut ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True");
    ready.any(|c| c.observed_generation == generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_ready_while_the_dispatcher_hangs_or_is_gone_and_what_was_stays_so() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "waiting");
    let receiver = Webhooks::start().await;
    let apply = |name: &str| cluster.apply(&list(pair("waiting", name, &receiver.url()))).unwrap();
    let waits = |kind: &str, name: &str| {
        team.condition(kind, name, "Ready") == Some(("Unknown".into(), "WaitingForDispatcher".into()))
    };
    apply("before");
    team.ready("whe/before");
    team.ready("evsub/before");

    // It hangs: its Lease still counts for a while, but nothing new is loaded.
    dispatcher.process.signal(libc::SIGSTOP);
    apply("during");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let endpoint = team.get("whe", "during");
        let ready = endpoint["status"]["conditions"]
            .as_array()
            .and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
        assert!(ready.is_none_or(|c| c["status"] != "True"), "{endpoint:#}");
        if ready.is_some_and(|c| c["message"].as_str().unwrap().contains("no dispatcher is running")) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the dispatcher is never taken for dead: {endpoint:#}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(waits("whe", "during") && waits("evsub", "during"));
    for kind in ["whe", "evsub"] {
        assert_eq!(
            team.condition(kind, "before", "Ready"),
            Some(("True".into(), "Resolved".into())),
            "{kind}"
        );
    }
    dispatcher.process.signal(libc::SIGCONT);
    for object in ["whe/during", "evsub/during"] {
        team.ready(object);
    }
    let answer = team.posting(&dispatcher, &event("during")).await.unwrap();
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");

    // It is gone: a new object waits, and so does a new generation of an old one.
    dispatcher.terminate(PATIENCE).unwrap();
    apply("after");
    cluster
        .kubectl_ok(&[
            "patch",
            "whe",
            "during",
            "-n",
            "waiting",
            "--type=merge",
            "-p",
            r#"{"spec":{"timeout":"20s"}}"#,
        ])
        .unwrap();
    team.until_reason("whe", "after", "Ready", "WaitingForDispatcher");
    team.until_reason("evsub", "after", "Ready", "WaitingForDispatcher");
    team.until_reason("whe", "during", "Ready", "WaitingForDispatcher");
    let stalls = team.condition("whe", "after", "Stalled");
    assert_eq!(
        (
            stalls,
            team.condition("whe", "after", "Reconciling").unwrap().0.as_str()
        ),
        (None, "True")
    );
    for (kind, name) in [("whe", "before"), ("evsub", "before"), ("evsub", "during")] {
        assert_eq!(
            team.condition(kind, name, "Ready").unwrap().0,
            "True",
            "{kind}/{name} was loaded before"
        );
    }
    dispatcher.restart().unwrap();
    for object in ["whe/after", "evsub/after", "whe/during"] {
        team.ready(object);
    }
    let answer = team.posting(&dispatcher, &event("after")).await.unwrap();
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    receiver
        .until("both delivered", |all| {
            ["during", "after"].iter().all(|e| all.iter().any(|a| a.event == *e))
        })
        .await;
}
