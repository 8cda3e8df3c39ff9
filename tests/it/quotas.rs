//! The quotas of a namespace, through the processes: what is over them is told with the quota's name and value, and nothing
//! drifts over a kill.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::pulling::{Consumer, events, let_edit, subscribe};
use super::rules::Mounted;
use super::team::{Answer, PATIENCE, Team, Webhooks, lead};

const BATCH: &str = "application/cloudevents-batch+json";

/// A refusal for a quota, whole.
fn over_quota(answer: &Answer, name: &str, limit: u64) {
    assert_eq!(
        (answer.status, &answer.body["reason"]),
        (429, &json!("OverQuota")),
        "{answer:?}"
    );
    assert_eq!(
        answer.body["quota"],
        json!({"name": name, "limit": limit}),
        "{answer:?}"
    );
    assert!(answer.retry_after.is_some_and(|seconds| seconds > 0), "{answer:?}");
    assert!(
        answer.body["detail"].as_str().unwrap().contains(&limit.to_string()),
        "{answer:?}"
    );
}

/// Its age as Tidings compares it.
fn age(team: &Team<'_>, name: &str) -> (String, String) {
    let meta = &team.get("whe", name)["metadata"];
    let text = |field: &str| meta[field].as_str().unwrap().to_owned();
    (text("creationTimestamp"), text("uid"))
}

async fn batch<'a>(url: &str, token: &str, ids: impl IntoIterator<Item = &'a str>) -> Answer {
    let events: Vec<Value> = ids.into_iter().map(|id| lead(id, "lead.qualified")).collect();
    let request = reqwest::Client::new().post(url).bearer_auth(token);
    let request = request.header("content-type", BATCH).body(json!(events).to_string());
    Answer::of(request.send().await.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_has_what_its_quotas_give_it_and_no_more_also_after_a_kill() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let policy = |pending: u64| {
        let rule = |team: &str, quotas: Value| {
            json!({"namespaceSelector": {"matchLabels": {"team": team}}, "egress": {"openCIDRs": ["127.0.0.0/8"]},
                "quotas": quotas})
        };
        json!({"rules": [rule("few", json!({"endpoints": 2})), rule("pending", json!({"pendingMessages": pending})),
            rule("bytes", json!({"pendingBytes": 2_000})), rule("paced", json!({"eventsPerSecond": 2})),
            rule("pulled", json!({"pendingMessages": 2}))]})
        .to_string()
    };
    let mut mounted = Mounted::new(&cluster.dir().join("policy"), &policy(3));
    let _controller = tidings
        .start_controller(&ControllerOptions {
            policy: mounted.file(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            policy: mounted.file(),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = |name: &str| Team::with_labels(&cluster, name, &[("team", name)]);
    let webhooks = Webhooks::start().await;

    // Endpoints: the oldest count, and when one goes the next in line does.
    let few = team("few");
    for name in ["a", "b", "c"] {
        few.endpoint(name, &webhooks.url(), json!({}));
    }
    let mut names = ["a", "b", "c"];
    names.sort_by_key(|name| age(&few, name));
    let [first, second, third] = names;
    few.ready(&format!("whe/{first}"));
    few.ready(&format!("whe/{second}"));
    few.until_reason("whe", third, "Stalled", "PolicyDenied");
    let denied = few.get("whe", third);
    let conditions = denied["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert!(
        ready["message"].as_str().unwrap().contains("quota of 2 endpoints"),
        "{denied:#}"
    );
    few.subscription("third", third);
    few.ready("evsub/third");
    few.send(&dispatcher, "waits").await;
    few.until_reason("whe", third, "Delivering", "Blocked");
    assert_eq!(webhooks.arrived().len(), 0);
    few.delete("whe", first);
    few.ready(&format!("whe/{third}"));
    webhooks.until("delivered", |all| all.len() == 1).await;

    // Pending messages: counted over a kill, given back by deliveries; a duplicate costs nothing.
    let pending = team("pending");
    pending.deliver_to("crm", &webhooks.url(), json!({"suspend": true}));
    for id in ["1", "2"] {
        pending.send(&dispatcher, id).await;
    }
    let url = dispatcher.events_url("pending");
    over_quota(&batch(&url, pending.token(), ["3", "4"]).await, "pendingMessages", 3);
    pending.send(&dispatcher, "3").await;
    over_quota(
        &pending.post(&dispatcher, "4", "lead.qualified").await,
        "pendingMessages",
        3,
    );
    assert_eq!(pending.post(&dispatcher, "1", "lead.qualified").await.status, 200);
    dispatcher.restart().unwrap();
    over_quota(
        &pending.post(&dispatcher, "4", "lead.qualified").await,
        "pendingMessages",
        3,
    );
    let metrics = dispatcher.metrics().unwrap();
    let counted = r#"tidings_ingest_over_quota_total{quota="pendingMessages"} 1"#;
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
    pending.endpoint("crm", &webhooks.url(), json!({"suspend": false}));
    webhooks.until("all delivered", |all| all.len() == 4).await;
    let deadline = Instant::now() + PATIENCE;
    while pending.post(&dispatcher, "4", "lead.qualified").await.status != 202 {
        assert!(Instant::now() < deadline, "what was delivered is still counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A file that raises it counts without a restart.
    pending.endpoint("crm", &webhooks.url(), json!({"suspend": true}));
    pending.until("suspended", "whe", "crm", |whe| {
        whe["status"]["delivery"]["observedGeneration"] == whe["metadata"]["generation"]
    });
    for id in ["5", "6", "7"] {
        pending.send(&dispatcher, id).await;
    }
    over_quota(
        &pending.post(&dispatcher, "8", "lead.qualified").await,
        "pendingMessages",
        3,
    );
    mounted.swap(&policy(4));
    let deadline = Instant::now() + PATIENCE;
    while pending.post(&dispatcher, "8", "lead.qualified").await.status != 202 {
        assert!(Instant::now() < deadline, "the new quota never counts");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    over_quota(
        &pending.post(&dispatcher, "9", "lead.qualified").await,
        "pendingMessages",
        4,
    );

    // What waits for a consumer counts like any other until it is acknowledged, also over a kill.
    let pulled = team("pulled");
    subscribe(&pulled, "leads", json!({}));
    pulled.ready("evsub/leads");
    let consumer = Consumer::new(&pulled, &dispatcher, "consumer", "leads");
    let_edit(&pulled, "consumer");
    consumer.until_allowed().await;
    for id in ["1", "2"] {
        pulled.send(&dispatcher, id).await;
    }
    over_quota(
        &pulled.post(&dispatcher, "3", "lead.qualified").await,
        "pendingMessages",
        2,
    );
    dispatcher.restart().unwrap();
    over_quota(
        &pulled.post(&dispatcher, "3", "lead.qualified").await,
        "pendingMessages",
        2,
    );
    let given = consumer.pull("limit=1").await;
    assert_eq!(events(&given), ["1"]);
    over_quota(
        &pulled.post(&dispatcher, "3", "lead.qualified").await,
        "pendingMessages",
        2,
    );
    assert_eq!(consumer.acknowledge(&json!({"cursor": given.body["cursor"]})).await, 1);
    pulled.send(&dispatcher, "3").await;
    assert_eq!(events(&consumer.pull("").await), ["2", "3"]);

    // Bytes: a small event fits beside what waits, a large one does not.
    let bytes = team("bytes");
    bytes.deliver_to("crm", &webhooks.url(), json!({"suspend": true}));
    bytes.send(&dispatcher, "small").await;
    let mut large = lead("large", "lead.qualified");
    large["data"]["text"] = json!("x".repeat(2_000));
    over_quota(
        &bytes.posting(&dispatcher, &large).await.unwrap(),
        "pendingBytes",
        2_000,
    );
    bytes.send(&dispatcher, "small-too").await;

    // Events a second: whole batches, and no more than the bucket and what has come into it.
    let paced = team("paced");
    let url = dispatcher.events_url("paced");
    let too_many = batch(&url, paced.token(), ["a", "b", "c"]).await;
    assert_eq!(
        (too_many.status, &too_many.body["reason"]),
        (413, &json!("TooLarge")),
        "{too_many:?}"
    );
    let (begin, mut taken, mut refused) = (Instant::now(), 0, 0);
    for round in 0.. {
        let ids: Vec<[String; 2]> = (0..4).map(|n| [1, 2].map(|e| format!("{round}-{n}-{e}"))).collect();
        let batches = ids
            .iter()
            .map(|[one, two]| batch(&url, paced.token(), [one.as_str(), two]));
        for answer in futures::future::join_all(batches).await {
            match answer.status {
                202 => taken += 2,
                _ => {
                    over_quota(&answer, "eventsPerSecond", 2);
                    refused += 1;
                }
            }
        }
        if taken >= 4 && refused > 0 {
            break;
        }
        assert!(
            begin.elapsed() < PATIENCE,
            "{taken} events are taken, {refused} requests refused"
        );
    }
    assert!(
        f64::from(taken) <= 2.0 * (1.0 + begin.elapsed().as_secs_f64()) + 1.0,
        "{taken}"
    );
    // Also what was accepted before costs: the store is not asked about what comes too fast.
    let again = async |n: usize| {
        paced
            .post(&dispatcher, &format!("again-{}", n % 2), "lead.qualified")
            .await
    };
    let deadline = Instant::now() + PATIENCE;
    for n in 0..2 {
        while again(n).await.status == 429 {
            assert!(Instant::now() < deadline, "it is never accepted");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let refused = loop {
        let answers = futures::future::join_all((0..8).map(again)).await;
        if let Some(refused) = answers.into_iter().find(|answer| answer.status != 200) {
            break refused;
        }
        assert!(Instant::now() < deadline, "they pass for ever");
    };
    over_quota(&refused, "eventsPerSecond", 2);
    let few_answer = few.post(&dispatcher, "not-paced", "lead.qualified").await;
    assert_eq!(
        few_answer.status, 202,
        "another namespace's quota is its own: {few_answer:?}"
    );
}
