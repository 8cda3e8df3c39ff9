//! What became of an event, as somebody with a token and curl sees it: lists, one message, its failures, and who may not.

use std::time::Instant;

use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};
use tidings_cluster::Dispatcher;

use super::receiver::Receiver;
use super::team::{Answer, PATIENCE, Shared, TYPES, Team, Webhooks, once_allowed, until};

/// Somebody who reads messages.
pub struct Reader {
    http: Client,
    url: String,
    token: String,
}

impl Reader {
    /// A ServiceAccount of this name in the team's namespace, with this built-in role or none.
    pub fn new(team: &Team<'_>, dispatcher: &Dispatcher, name: &str, role: Option<&str>) -> Reader {
        let namespace = &*team.namespace;
        let kubectl = |args: &[&str]| team.cluster.kubectl_ok(args).unwrap();
        kubectl(&["create", "serviceaccount", name, "-n", namespace]);
        if let Some(role) = role {
            let (role, account) = (
                format!("--clusterrole={role}"),
                format!("--serviceaccount={namespace}:{name}"),
            );
            kubectl(&["create", "rolebinding", name, "-n", namespace, &role, &account]);
        }
        Reader {
            http: Client::new(),
            url: format!("{}/v1/namespaces/{namespace}/messages", dispatcher.ingest_url()),
            token: team.cluster.token(namespace, name, Some("tidings")).unwrap(),
        }
    }

    pub async fn get(&self, rest: &str) -> Answer {
        let request = self.http.get(format!("{}{rest}", self.url)).bearer_auth(&self.token);
        Answer::of(request.send().await.unwrap()).await.unwrap()
    }

    /// A listing, once the caller's role counts; in one piece however many pages it takes.
    pub async fn list(&self, query: &str) -> Vec<Value> {
        let (mut all, mut go_on) = (Vec::new(), String::new());
        loop {
            let answer = self.get(&format!("?{query}{go_on}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            all.extend(answer.body["messages"].as_array().unwrap().clone());
            match answer.body["continue"].as_str() {
                Some(token) => go_on = format!("&continue={token}"),
                None => return all,
            }
        }
    }

    /// Waits until a listing holds so many.
    pub async fn until(&self, query: &str, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.list(query).await;
            if all.len() == count {
                return all;
            }
            assert!(Instant::now() < deadline, "{query}: {all:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Asks until it may.
    pub async fn until_allowed(&self) {
        let answer = once_allowed(async || self.get("").await).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn ids(messages: &[Value]) -> Vec<&str> {
    messages
        .iter()
        .map(|one| one["event"]["id"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_by_state_endpoint_type_and_time_page_by_page() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "messages");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    let webhooks = Webhooks::answering(|event, _| if event.starts_with("bad") { 422 } else { 200 }).await;
    team.deliver_to("crm", &webhooks.url(), json!({"retry": {"neverRetry": [422]}}));
    team.deliver_to("later", &webhooks.url(), json!({"suspend": true}));
    for id in ["good-1", "bad-1", "good-2", "bad-2"] {
        let answer = team.post(&shared.dispatcher, id, TYPES[0]).await;
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(2)));
    }
    // In another second than the others, which times of a query are to tell apart.
    let second = || Timestamp::now().as_second();
    let last = second();
    until("the next second", async || second() > last).await;
    team.post(&shared.dispatcher, "lost", TYPES[1]).await;
    reader.until_allowed().await;

    let dead = reader.until("state=dead", 2).await;
    assert_eq!(ids(&dead), ["bad-2", "bad-1"], "newest first");
    for one in &dead {
        let known = (&one["endpoint"], &one["subscription"], &one["reason"], &one["attempts"]);
        assert_eq!(
            known,
            (&json!("crm"), &json!("crm"), &json!("Refused"), &json!(1)),
            "{one}"
        );
        assert_eq!(one["event"]["type"], TYPES[0]);
    }
    let delivered = reader.until("state=delivered", 3).await;
    assert_eq!(ids(&delivered), ["lost", "good-2", "good-1"]);
    assert_eq!(
        (&delivered[0]["statusCode"], &delivered[0]["attempts"]),
        (&json!(200), &json!(1))
    );
    let arrived = webhooks.arrived();
    let id_of = |event: &str| &arrived.iter().find(|one| one.event == event).unwrap().message;
    assert_eq!(delivered[0]["id"], **id_of("lost"), "its webhook-id");
    let pending = reader.list("state=pending").await;
    assert_eq!(ids(&pending), ["lost", "bad-2", "good-2", "bad-1", "good-1"]);
    assert!(
        pending
            .iter()
            .all(|one| one["endpoint"] == "later" && one["dueTime"].is_string())
    );

    let all = reader.list("limit=500").await;
    assert_eq!(all.len(), 10);
    assert_eq!(reader.list("limit=3").await, all, "in pages of three");
    assert_eq!(reader.list("endpoint=later").await, pending);
    assert_eq!(reader.list("subscription=crm").await.len(), 5);
    assert_eq!(
        ids(&reader.list(&format!("type={}&state=pending", TYPES[1])).await),
        ["lost"]
    );
    assert_eq!(ids(&reader.list("id=bad-1").await), ["bad-1", "bad-1"]);
    assert!(reader.list("from=2200-01-01T00:00:00Z").await.is_empty());
    assert!(reader.list("until=2020-01-01T00:00:00Z").await.is_empty());
    assert_eq!(
        reader
            .list("from=2020-01-01T00:00:00Z&until=2200-01-01T00:00:00Z")
            .await,
        all
    );
    // Both ends are included.
    let (younger, older) = all.split_at(2);
    assert_eq!(ids(younger), ["lost", "lost"]);
    let second_of = |message: &Value| {
        let accepted: Timestamp = message["acceptedTime"].as_str().unwrap().parse().unwrap();
        Timestamp::from_second(accepted.as_second()).unwrap()
    };
    let (from, until) = (second_of(&younger[0]), second_of(&older[0]));
    assert!(until < from);
    assert_eq!(reader.list(&format!("from={from}")).await, younger);
    assert_eq!(reader.list(&format!("until={until}")).await, older);
    assert!(reader.list("endpoint=nobody").await.is_empty());
    let refused = reader.get("?phase=dead").await;
    assert_eq!((refused.status, &refused.body["reason"]), (400, &json!("InvalidQuery")));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_shows_what_is_sent_without_secrets_and_its_attempts_show_why_they_failed() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "one-message");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("admin"));
    let receiver = Receiver::always("HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\nno such lead").await;
    team.apply(&json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "crm-token", "labels": {"tidings.dev/use": "true"}}, "stringData": {"token": "t0p-s3cret"}}));
    let more = json!({"retry": {"neverRetry": [400]}, "auth": {"type": "Bearer",
        "bearer": {"secretKeyRef": {"name": "crm-token", "key": "token"}}}});
    team.deliver_to("crm", &format!("https://{}/hooks", receiver.address), more);
    team.send(&shared.dispatcher, "lead-1").await;
    reader.until_allowed().await;
    let dead = reader.until("state=dead", 1).await;
    let id = dead[0]["id"].as_str().unwrap();

    let one = reader.get(&format!("/{id}")).await;
    assert_eq!(one.status, 200, "{one:?}");
    let seen = receiver.seen.lock().unwrap().pop().unwrap();
    assert!(seen.headers["authorization"].to_str().unwrap().contains("t0p-s3cret"));
    assert!(!one.body.to_string().contains("s3cret"), "{:#}", one.body);
    assert_eq!(
        one.body["request"]["body"],
        *String::from_utf8_lossy(&seen.body),
        "the bytes that were sent"
    );
    for name in ["webhook-id", "content-type"] {
        assert_eq!(
            one.body["request"]["headers"][name],
            *seen.headers[name].to_str().unwrap()
        );
    }
    let event = &one.body["event"];
    assert_eq!(
        (&event["specversion"], &event["data"]),
        (&json!("1.0"), &json!({"lead": "lead-1"}))
    );
    for field in [
        "id",
        "state",
        "endpoint",
        "subscription",
        "attempts",
        "acceptedTime",
        "settledTime",
        "reason",
    ] {
        assert_eq!(one.body[field], dead[0][field], "{field}");
    }

    let attempts = reader.get(&format!("/{id}/attempts")).await;
    let attempts = attempts.body["attempts"].as_array().unwrap().clone();
    assert_eq!(attempts.len(), 1);
    let failed = &attempts[0];
    assert_eq!(
        (&failed["number"], &failed["statusCode"]),
        (&json!(1), &json!(400)),
        "{failed}"
    );
    assert_eq!(failed["excerpt"], "no such lead");
    assert!(failed["time"].is_string() && failed["durationMs"].is_u64() && failed["reason"].is_string());

    for unknown in ["/msg_0000000000000", "/msg_0000000000000/attempts", "/lead-1"] {
        let answer = reader.get(unknown).await;
        assert_eq!(
            (answer.status, &answer.body["reason"]),
            (404, &json!("MessageNotFound")),
            "{unknown}"
        );
    }
    let neighbour = Team::open(shared.cluster, "one-message-beside");
    let stranger = Reader::new(&neighbour, &shared.dispatcher, "reader", Some("edit"));
    stranger.until_allowed().await;
    assert!(stranger.list("").await.is_empty());
    assert_eq!(
        stranger.get(&format!("/{id}")).await.status,
        404,
        "it is another namespace's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_reads_messages_and_the_refusal_has_the_commands_that_grant_it() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "reading");
    let viewer = Reader::new(&team, &shared.dispatcher, "viewer", Some("view"));
    let account = format!("system:serviceaccount:{}:viewer", team.namespace);
    let may = |verb: &str, resource: &str| team.cluster.can_i(&account, &team.namespace, verb, resource).unwrap();
    // The aggregation controller fills the built-in roles a moment after ours are applied.
    let deadline = Instant::now() + PATIENCE;
    while !may("list", "eventsubscriptions.tidings.dev") {
        assert!(Instant::now() < deadline, "the roles were not aggregated");
    }
    let refused = viewer.get("").await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (403, &json!("MissingRule")),
        "{refused:?}"
    );
    for path in ["/msg_0000000000000", "/msg_0000000000000/attempts"] {
        assert_eq!(viewer.get(path).await.status, 403, "{path}");
    }
    let detail = refused.body["detail"].as_str().unwrap();
    let commands: Vec<&str> = detail
        .lines()
        .filter_map(|line| line.strip_prefix("kubectl "))
        .collect();
    assert_eq!(commands.len(), 2, "{detail}");
    for command in commands {
        team.cluster
            .kubectl_ok(&command.split(' ').collect::<Vec<_>>())
            .unwrap();
    }
    viewer.until_allowed().await;

    let nobody = Reader {
        token: "made.up.token".to_owned(),
        ..viewer
    };
    assert_eq!(nobody.get("").await.status, 401);
    let posted = nobody
        .http
        .post(&nobody.url)
        .bearer_auth(&nobody.token)
        .send()
        .await
        .unwrap();
    assert_eq!(
        (posted.status().as_u16(), &posted.headers()["allow"]),
        (405, &"GET".parse().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_endpoint_keeps_for_a_second_goes_and_what_another_keeps_of_the_same_events_stays() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "retention");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    let webhooks = Webhooks::answering(|event, _| if event.starts_with("bad") { 422 } else { 200 }).await;
    let refuses = json!({"retry": {"neverRetry": [422]}});
    team.deliver_to("long", &webhooks.url(), refuses.clone());
    team.deliver_to("short", &webhooks.url(), refuses);
    reader.until_allowed().await;
    for id in ["good-1", "bad-1"] {
        let answer = team.post(&shared.dispatcher, id, TYPES[0]).await;
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(2)));
    }
    reader.until("state=delivered", 2).await;
    reader.until("state=dead", 2).await;
    // What is there already goes too when it is kept shorter from now on.
    team.endpoint(
        "short",
        &webhooks.url(),
        json!({"retry": {"neverRetry": [422]}, "retention": "1s"}),
    );
    reader.until("endpoint=short", 0).await;
    let kept = reader.list("endpoint=long").await;
    assert_eq!(ids(&kept), ["bad-1", "good-1"]);
    let whole = reader.get(&format!("/{}", kept[1]["id"].as_str().unwrap())).await;
    assert_eq!(whole.status, 200, "its event is there: {whole:?}");
}
