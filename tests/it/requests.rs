//! Requests of a receiver's own shape: what arrives, with which Secrets, and what becomes of what cannot be sent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tidings::delivery::{Outcome, Sender};
use tidings::shaping::Shaped;

use super::keys::keys;
use super::messages::Reader;
use super::receiver::{Connection, Log, Receiver, Seen, keep_answering, request, sender, status};
use super::secrets::{granted, secret};
use super::team::{PATIENCE, Shared, Team, lead, metric};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Applies a subscription of the team's leads with a request.
fn subscribe(team: &Team, name: &str, endpoint: &str, request: Value) {
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
        "spec": {"endpointRef": {"name": endpoint}, "eventTypes": ["lead.*"], "request": request}}),
    );
}

/// Has the controller look at a subscription's Secrets now.
fn look(team: &Team, subscription: &str) {
    let request = format!("tidings.dev/reconcile-requested-at={:x}", rand::random::<u64>());
    let args = [
        "annotate",
        "evsub",
        subscription,
        "-n",
        &team.namespace,
        "--overwrite",
        &request,
    ];
    team.cluster.kubectl_ok(&args).unwrap();
}

fn body_of(request: &Seen) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_made_with_the_secrets_of_its_subscription_and_waits_for_them() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "shaped");
    let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, OK)).await;
    let headers = json!([{"name": "x-tenant", "value": "blue"}, {"name": "x-team", "value": "sales"}]);
    let url = format!("https://{}/data/v60?tenant=blue", receiver.address);
    team.endpoint("pager", &url, json!({"headers": headers}));
    team.ready("whe/pager");
    let shape = json!({
        "method": "PATCH",
        "path": "'Lead/' + event.id.urlEncode() + '?dry=1'",
        "headers": [{"name": "X-Team", "value": "event.type"}, {"name": "X-Key", "value": "'key ' + secrets.routingKey"}],
        "body": "{'routing_key': secrets.routingKey, 'summary': event.data.lead}",
        "secrets": [{"name": "routingKey", "secretKeyRef": {"name": "routing", "key": "key"}}],
    });
    subscribe(&team, "page", "pager", shape);
    team.until_reason("evsub", "page", "Ready", "SecretNotFound");

    // Not Ready, and yet it matches: the message waits, and uses up no attempt.
    team.send(&shared.dispatcher, "lead 1").await;
    team.until("pending", "evsub", "page", |evsub| {
        evsub["status"]["delivery"]["pending"] == 1
    });
    team.apply(&secret("routing", false, json!({"key": "r-key-1\n"})));
    look(&team, "page");
    team.until_reason("evsub", "page", "Ready", "SecretNotAllowed");
    assert_eq!(receiver.requests(), 0);
    team.apply(&secret("routing", true, json!({"key": "r-key-1\n"})));
    look(&team, "page");
    team.ready("evsub/page");
    team.until("delivered", "evsub", "page", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
    assert!(granted(&team).contains("secrets/routing"));
    {
        let seen = receiver.seen.lock().unwrap();
        let [request] = &seen[..] else {
            panic!("{} requests", seen.len())
        };
        assert_eq!(request.line, "PATCH /data/v60/Lead/lead%201?tenant=blue&dry=1 HTTP/1.1");
        assert_eq!(body_of(request), json!({"routing_key": "r-key-1", "summary": "lead 1"}));
        for (name, value) in [
            ("content-type", "application/json"),
            ("x-team", "lead.qualified"),
            ("x-tenant", "blue"),
            ("x-key", "key r-key-1"),
        ] {
            assert_eq!(request.headers[name], value);
        }
        let key = keys(&team, "pager").current;
        let verified = Webhook::new(&key).unwrap().verify(&request.body, &request.headers);
        verified.expect("the signature is over the body that was sent");
    }

    // Another value is used without a restart.
    team.apply(&secret("routing", true, json!({"key": "r-key-2"})));
    look(&team, "page");
    let version = team.get("secret", "routing")["metadata"]["resourceVersion"].clone();
    team.until("told of the new version", "evsub", "page", |evsub| {
        evsub["status"]["references"][0]["resourceVersion"] == version
    });
    let deadline = Instant::now() + PATIENCE;
    let mut number = 1;
    loop {
        number += 1;
        assert!(Instant::now() < deadline, "the new value is never used");
        team.send(&shared.dispatcher, &format!("lead {number}")).await;
        team.until("delivered", "evsub", "page", |evsub| {
            evsub["status"]["delivery"]["pending"] == 0
        });
        let seen = receiver.seen.lock().unwrap();
        if body_of(seen.last().unwrap())["routing_key"] == "r-key-2" {
            break;
        }
    }

    // What is no longer named is no longer granted.
    subscribe(&team, "page", "pager", json!({"body": "event.data"}));
    let deadline = Instant::now() + PATIENCE;
    while granted(&team).contains("secrets/routing") {
        assert!(Instant::now() < deadline, "it is granted for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_request_leaves_the_last_valid_one_in_force_and_what_cannot_be_rendered_is_a_dead_letter() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "unrenderable");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, OK)).await;
    team.endpoint("crm", &format!("https://{}/hooks", receiver.address), json!({}));
    subscribe(
        &team,
        "crm",
        "crm",
        json!({"path": "event.data.lead", "body": "{'lead': event.data.lead}"}),
    );
    team.ready("whe/crm");
    team.ready("evsub/crm");
    team.send(&shared.dispatcher, "1").await;
    team.until("delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });

    subscribe(
        &team,
        "crm",
        "crm",
        json!({"path": "event.data.lead", "body": "{'lead': event.data.lead"}),
    );
    let stalled = team.until("stalled", "evsub", "crm", |evsub| {
        let conditions = evsub["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .iter()
            .any(|c| c["type"] == "Stalled" && c["reason"] == "InvalidRequest")
    });
    let message = stalled["status"]["conditions"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.starts_with("request.body: line 1, column"), "{message}");
    // A stranger's event does not leave the endpoint's path; that message dies, and says why without a word of the event.
    team.send(&shared.dispatcher, "../admin").await;
    team.send(&shared.dispatcher, "2").await;
    team.until("one dead", "evsub", "crm", |evsub| {
        let delivery = &evsub["status"]["delivery"];
        delivery["pending"] == 0 && delivery["lastDeadLetter"]["reason"] == "Unrenderable"
    });
    {
        let seen = receiver.seen.lock().unwrap();
        let lines: Vec<&str> = seen.iter().map(|request| request.line.as_str()).collect();
        assert_eq!(lines, ["POST /hooks/1 HTTP/1.1", "POST /hooks/2 HTTP/1.1"]);
        assert_eq!(body_of(&seen[1]), json!({"lead": "2"}), "the last valid request");
    }
    reader.until_allowed().await;
    let dead = reader.until("state=dead", 1).await;
    let id = dead[0]["id"].as_str().unwrap();
    let attempts = reader.get(&format!("/{id}/attempts")).await.body;
    let attempt = &attempts["attempts"][0];
    assert_eq!(attempt["reason"], "Unrenderable");
    let why = attempt["excerpt"].as_str().unwrap();
    assert!(
        why.starts_with("request.path gives what no path can be") && !why.contains("admin"),
        "{why}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_shown_as_it_is_sent_but_for_the_values_of_secrets() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "shown-shaped");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    let receiver = Receiver::always(OK).await;
    team.apply(&secret("routing", true, json!({"key": "r-key-1"})));
    team.endpoint("pager", &format!("https://{}/v2/enqueue", receiver.address), json!({}));
    let shape = json!({"path": "'a/b'", "body": "{'routing_key': secrets.k, 'lead': event.data.lead}",
        "secrets": [{"name": "k", "secretKeyRef": {"name": "routing", "key": "key"}}]});
    subscribe(&team, "page", "pager", shape);
    team.ready("whe/pager");
    team.ready("evsub/page");
    let answer = team.posting(&shared.dispatcher, &lead("7", "lead.lost")).await.unwrap();
    assert_eq!(answer.status, 202);
    reader.until_allowed().await;
    let id = reader.until("", 1).await[0]["id"].as_str().unwrap().to_owned();
    let shown = reader.get(&format!("/{id}")).await.body["request"].clone();
    let sent = json!({"method": "POST", "path": "a/b", "body": r#"{"lead":"7","routing_key":"[not shown]"}"#,
        "headers": {"content-type": "application/json", "webhook-id": id}});
    assert_eq!(shown, sent);
}

/// Answers 400 with all that it was told.
async fn echo(mut connection: Connection, seen: Log) {
    while let Some(request) = connection.request().await {
        let mut told = format!("{} {:?} ", request.line, request.headers).into_bytes();
        told.extend_from_slice(&request.body);
        seen.lock().unwrap().push(request);
        let head = format!("HTTP/1.1 400 X\r\ncontent-length: {}\r\n\r\n", told.len());
        if !connection.write([head.as_bytes(), &told].concat()).await {
            return;
        }
    }
}

#[tokio::test]
async fn a_subscription_overrides_no_secret_of_its_endpoint_and_nothing_confidential_stays_of_an_answer() {
    let receiver = Receiver::start(echo).await;
    let mut endpoint = receiver.endpoint();
    endpoint.target.path = "/services/T000/XXXX?code=c-12345678".into();
    let mut token = HeaderValue::from_static("Bearer t-12345678");
    token.set_sensitive(true);
    endpoint.headers.push((http::header::AUTHORIZATION, token));
    let own =
        |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let secrets = {
        let manifest = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "s"},
            "spec": {"endpointRef": {"name": "e"}, "eventTypes": ["*"], "request": {"secrets": [
                {"name": "k", "secretKeyRef": {"name": "routing", "key": "key"}}]}}});
        let subscription = serde_json::from_value(manifest).unwrap();
        let found = tidings::api::resolve::Found {
            data: [("key".to_owned(), b"r-key \"1\"".to_vec().into())]
                .into_iter()
                .collect(),
            ..Default::default()
        };
        let mut read = tidings::api::resolve::References::under(tidings::api::policy::SecretLabel::NotRequired);
        let reference = tidings::api::resolve::Reference::secret("routing");
        read.insert(reference, tidings::api::resolve::Lookup::Found(found));
        let resolved = tidings::api::resolve::resolve_subscription(&subscription).unwrap();
        let tidings::api::resolve::RequestForm::Shaped(form) = resolved.request else {
            panic!("{resolved:?}")
        };
        tidings::api::resolve::resolve_secrets(&form, "n", &read).unwrap()
    };
    let mut sent = request(json!({"routing_key": "r-key \"1\"", "lead": 7}).to_string());
    sent.headers.push(own("ce-id", "7"));
    sent.shaped = Some(Box::new(Shaped {
        method: Method::PUT,
        path: Some("leads/7?key=r-key%20%221%22".into()),
        headers: vec![
            own("authorization", "Bearer forged"),
            own("x-tenant", "green"),
            own("ce-id", "forged"),
        ],
        secrets: Arc::new(secrets),
    }));
    let result = sender().send(&Arc::new(endpoint), sent).await;
    assert_eq!(status(&result.outcome), Some(400), "{result:?}");
    let seen = receiver.seen.lock().unwrap();
    let line = "PUT /services/T000/XXXX/leads/7?code=c-12345678&key=r-key%20%221%22 HTTP/1.1";
    assert_eq!(seen[0].line, line);
    for (name, value) in [
        ("authorization", "Bearer t-12345678"),
        ("x-tenant", "green"),
        ("ce-id", "7"),
    ] {
        assert_eq!(seen[0].headers[name], value);
    }
    let Outcome::Status { excerpt, .. } = result.outcome else {
        panic!("{result:?}")
    };
    let excerpt = String::from_utf8_lossy(&excerpt.unwrap()).into_owned();
    for secret in ["XXXX", "c-12345678", "t-12345678", "r-key"] {
        assert!(!excerpt.contains(secret), "{secret} in {excerpt}");
    }
    assert!(excerpt.contains("green") && excerpt.contains("\"lead\":7"), "{excerpt}");
}

/// The requests of a receiver by what their path ends with.
fn at<'a>(seen: &'a [Seen], path: &str) -> Vec<&'a Seen> {
    seen.iter().filter(|request| request.line.contains(path)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_told_of_once_and_what_tells_of_it_is_not() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "told");
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    // Everybody refuses everything.
    let receiver = Receiver::always("HTTP/1.1 422 X\r\ncontent-length: 0\r\n\r\n").await;
    let refuses = json!({"retry": {"neverRetry": [422]}});
    for name in ["crm", "ops", "pager"] {
        team.endpoint(name, &format!("https://{}/{name}", receiver.address), refuses.clone());
        team.ready(&format!("whe/{name}"));
    }
    let told = |name: &str, dead_letter: Value| {
        team.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
            "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"], "deadLetter": dead_letter}}),
        );
    };
    told("plain", json!({"endpointRef": {"name": "ops"}}));
    let body = "{'text': message.subscription + ': ' + message.reason, 'status': message.lastStatusCode, 'lead': event.data.lead}";
    told(
        "shaped",
        json!({"endpointRef": {"name": "nobody"}, "request": {"body": body}}),
    );
    team.ready("evsub/plain");
    team.until_reason("evsub", "shaped", "Ready", "EndpointNotFound");
    told(
        "shaped",
        json!({"endpointRef": {"name": "pager"}, "request": {"body": body}}),
    );
    team.ready("evsub/shaped");
    let before = metric(&shared.dispatcher, "tidings_dead_letters_told_total");
    let answer = team.posting(&shared.dispatcher, &lead("7", "lead.lost")).await.unwrap();
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(2)), "{answer:?}");

    // Two dead letters, each told of, and both of those refused: no more than that.
    reader.until_allowed().await;
    let dead = reader.until("state=dead", 4).await;
    assert!(reader.until("state=pending", 0).await.is_empty());
    assert!(metric(&shared.dispatcher, "tidings_dead_letters_told_total") >= before + 2.0);
    let seen = receiver.seen.lock().unwrap();
    let counts = ["/crm", "/ops", "/pager"].map(|path| at(&seen, path).len());
    assert_eq!(counts, [2, 1, 1]);
    let ops = body_of(at(&seen, "/ops")[0]);
    assert_eq!(ops["type"], "tidings.deadletter");
    let message = &ops["data"]["message"];
    let named = dead
        .iter()
        .find(|one| one["subscription"] == "plain" && one["endpoint"] == "crm");
    assert_eq!(message["id"], named.unwrap()["id"]);
    let rest = ["subscription", "endpoint", "attempts", "reason", "lastStatusCode"].map(|name| message[name].clone());
    assert_eq!(
        rest,
        [json!("plain"), json!("crm"), json!(1), json!("Refused"), json!(422)]
    );
    let event = &ops["data"]["event"];
    assert_eq!((&event["id"], &event["data"]), (&json!("7"), &json!({"lead": "7"})));
    let pager = body_of(at(&seen, "/pager")[0]);
    assert_eq!(pager, json!({"text": "shaped: Refused", "status": 422, "lead": "7"}));
    let key = keys(&team, "pager").current;
    let request = at(&seen, "/pager")[0];
    let verified = Webhook::new(&key).unwrap().verify(&request.body, &request.headers);
    verified.expect("the endpoint that is told signs as it does otherwise");
}
