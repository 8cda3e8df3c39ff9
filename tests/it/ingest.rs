//! What a producer sees of ingest: every way to carry an event, and every refusal, over the real process.
//!
//! Tokens, rules and EventTypes are real; the sentences of single parse errors are tested beside the parser.

use std::time::Instant;

use reqwest::{Client, Method, RequestBuilder, header};
use serde_json::{Value, json};
use tidings_cluster::Cluster;

use super::receiver::{Receiver, keep_answering};
use super::team::{PATIENCE, Shared, TYPES, Team};

const CLOUD_EVENT: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// An answer as a producer's HTTP library gives it.
#[derive(Debug)]
struct Heard {
    status: u16,
    headers: header::HeaderMap,
    body: Value,
}

impl Heard {
    /// The problem document that every refusal is.
    fn problem(&self, status: u16, reason: &str) -> &Value {
        assert_eq!(
            (self.status, &self.body["reason"]),
            (status, &json!(reason)),
            "{self:?}"
        );
        assert_eq!(self.body["status"], status, "the status is repeated: {self:?}");
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        let text = |name: &str| self.body[name].as_str().is_some_and(|text| !text.is_empty());
        assert!(text("title") && text("detail"), "{self:?}");
        &self.body
    }

    /// An accepted event: its id, and whether it was one already.
    fn accepted(&self, duplicate: bool) -> &str {
        let status = if duplicate { 200 } else { 202 };
        assert_eq!(
            (self.status, &self.body["duplicate"]),
            (status, &json!(duplicate)),
            "{self:?}"
        );
        self.body["id"].as_str().unwrap()
    }
}

async fn hear(request: RequestBuilder) -> Heard {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.text().await.unwrap();
    Heard {
        status,
        headers,
        body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
    }
}

/// A producer of one team.
struct Producer {
    http: Client,
    url: String,
    token: String,
}

impl Producer {
    fn of(team: &Team<'_>) -> Producer {
        Producer {
            http: Client::new(),
            url: Shared::get().dispatcher.events_url(&team.namespace),
            token: team.token().to_owned(),
        }
    }

    fn request(&self, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        let request = self.http.post(&self.url).bearer_auth(&self.token);
        request.header(header::CONTENT_TYPE, content_type).body(body)
    }

    async fn post(&self, content_type: &str, body: &Value) -> Heard {
        hear(self.request(content_type, body.to_string())).await
    }

    async fn plain(&self, query: &str, key: Option<&str>, body: &str) -> Heard {
        let url = format!("{}?{query}", self.url);
        let mut request = self.http.post(url).bearer_auth(&self.token);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.header(header::CONTENT_TYPE, "application/json");
        hear(request.body(body.to_owned())).await
    }
}

fn event(id: &str, event_type: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/agents/voice", "type": event_type, "data": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_may_come_as_binary_structured_or_batched_cloudevents_or_as_plain_json() {
    let team = Team::open(Shared::get().cluster, "carried");
    let receiver = Receiver::start(|connection, seen| {
        keep_answering(connection, seen, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    team.deliver_to("crm", &format!("https://{}/hooks", receiver.address), json!({}));
    let producer = Producer::of(&team);
    let binary = |id: &str, content_type: &str, body: Vec<u8>| {
        producer
            .request(content_type, body)
            .header("ce-specversion", "1.0")
            .header("ce-id", id)
            .header("ce-source", "/agents/voice")
            .header("ce-type", TYPES[0])
    };

    let heard = hear(binary("binary", "application/json", br#"{"way":"binary"}"#.to_vec())).await;
    assert_eq!((heard.accepted(false), &heard.body["matched"]), ("binary", &json!(1)));
    hear(binary("text", "text/plain", b"a word".to_vec()))
        .await
        .accepted(false);
    hear(binary("bytes", "application/octet-stream", vec![0, 255]))
        .await
        .accepted(false);
    let structured = event("structured", TYPES[0], json!({"way": "structured"}));
    assert_eq!(
        producer.post(CLOUD_EVENT, &structured).await.accepted(false),
        "structured"
    );
    let batch = json!([event("batched", TYPES[0], json!({"way": "batch"}))]);
    let heard = producer.post(BATCH, &batch).await;
    assert_eq!(
        (heard.status, &heard.body["events"][0]["id"]),
        (202, &json!("batched")),
        "{heard:?}"
    );
    let query = "type=lead.qualified&source=%2Fforms";
    let heard = producer.plain(query, Some("form-1"), r#"{"way":"plain"}"#).await;
    assert_eq!(heard.accepted(false), "form-1");

    // The same event again is answered as the first was, whichever way it comes; without a key it is another.
    assert_eq!(
        producer
            .plain(query, Some("\"form-1\""), r#"{"way":"plain"}"#)
            .await
            .accepted(true),
        "form-1"
    );
    assert_eq!(producer.post(BATCH, &batch).await.status, 200);
    let again = hear(binary("structured", "application/json", b"{}".to_vec())).await;
    assert_eq!(
        (again.accepted(true), &again.body["matched"]),
        ("structured", &json!(1))
    );
    let random = [
        producer.plain(query, None, "{}").await,
        producer.plain(query, None, "{}").await,
    ];
    assert_ne!(random[0].accepted(false), random[1].accepted(false));

    team.until("delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0 && receiver.requests() >= 8
    });
    let bodies: Vec<Value> = {
        let seen = receiver.seen.lock().unwrap();
        seen.iter()
            .map(|seen| serde_json::from_slice(&seen.body).unwrap())
            .collect()
    };
    assert_eq!(bodies.len(), 8, "{bodies:?}");
    assert!(
        bodies
            .iter()
            .all(|body| body["type"] == TYPES[0] && body["timestamp"].is_string()),
        "{bodies:?}"
    );
    for way in ["binary", "structured", "batch", "plain"] {
        let ways = bodies.iter().filter(|body| body["data"] == json!({"way": way}));
        assert_eq!(ways.count(), 1, "{way}: {bodies:?}");
    }
    assert!(bodies.iter().any(|body| body["data"] == "a word"), "{bodies:?}");
    assert!(bodies.iter().any(|body| body["data_base64"] == "AP8="), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_in_order_and_stored_whole_or_not_at_all() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "batches");
    team.until_allowed(&shared.dispatcher).await;
    let producer = Producer::of(&team);
    let one = |id: &str| event(id, TYPES[0], json!({}));
    let told = |heard: &Heard| -> Vec<(String, bool)> {
        let events = heard.body["events"].as_array().unwrap_or_else(|| panic!("{heard:?}"));
        let told = events
            .iter()
            .map(|told| (told["id"].as_str().unwrap().to_owned(), told["duplicate"] == true));
        told.collect()
    };
    let expect = |pairs: &[(&str, bool)]| -> Vec<(String, bool)> {
        pairs
            .iter()
            .map(|(id, duplicate)| ((*id).to_owned(), *duplicate))
            .collect()
    };
    let heard = producer
        .post(BATCH, &json!([one("c"), one("a"), one("c"), one("b")]))
        .await;
    assert_eq!(heard.status, 202);
    assert_eq!(
        told(&heard),
        expect(&[("c", false), ("a", false), ("c", true), ("b", false)])
    );
    let heard = producer.post(BATCH, &json!([one("d"), one("a")])).await;
    assert_eq!(
        (heard.status, told(&heard)),
        (202, expect(&[("d", false), ("a", true)]))
    );
    let heard = producer.post(BATCH, &json!([one("b"), one("a")])).await;
    assert_eq!((heard.status, told(&heard)), (200, expect(&[("b", true), ("a", true)])));

    let foreign = event("f", "invoice.paid", json!({}));
    let refused = producer.post(BATCH, &json!([one("e"), foreign, one("g")])).await;
    let detail = refused.problem(403, "MissingRule")["detail"].as_str().unwrap();
    assert!(
        detail.contains("invoice.paid") && !detail.contains(TYPES[0]),
        "{detail}"
    );
    let broken = json!({"specversion": "1.0", "id": "h", "type": TYPES[0]});
    let refused = producer.post(BATCH, &json!([one("e"), broken])).await;
    assert_eq!(refused.problem(400, "InvalidEvent")["event"], 1, "which of them it was");
    let many: Vec<Value> = (0..501).map(|n| one(&format!("many-{n}"))).collect();
    producer.post(BATCH, &json!(many)).await.problem(413, "TooLarge");
    let heard = producer.post(BATCH, &json!([one("e"), one("g"), one("many-0")])).await;
    let new = expect(&[("e", false), ("g", false), ("many-0", false)]);
    assert_eq!(told(&heard), new, "nothing of a refused batch was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_401_and_a_producer_without_the_rule_gets_the_commands_that_grant_it() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "granting");
    team.until_allowed(&shared.dispatcher).await;
    let mut producer = Producer::of(&team);
    let body = event("1", "conversation.escalated", json!({}));

    let nobody = producer
        .http
        .post(&producer.url)
        .header(header::CONTENT_TYPE, CLOUD_EVENT);
    let heard = hear(nobody.body(body.to_string())).await;
    heard.problem(401, "NoToken");
    assert_eq!(heard.headers[header::WWW_AUTHENTICATE], "Bearer");
    let granted = std::mem::replace(&mut producer.token, "made.up.token".into());
    producer.post(CLOUD_EVENT, &body).await.problem(401, "InvalidToken");
    producer.token = team
        .cluster
        .token(&team.namespace, "agent", Some("somebody-else"))
        .unwrap();
    producer.post(CLOUD_EVENT, &body).await.problem(401, "InvalidToken");
    producer.token = granted;

    let agent = format!("system:serviceaccount:{}:agent", team.namespace);
    let may = |event_type: &str| may_publish(team.cluster, &agent, &team.namespace, event_type);
    assert!(may(TYPES[0]) && !may("conversation.escalated"));
    let heard = producer.post(CLOUD_EVENT, &body).await;
    let detail = heard.problem(403, "MissingRule")["detail"].as_str().unwrap();
    assert!(
        detail.contains("verb publish on eventtypes.tidings.dev, resource name conversation.escalated")
            && detail.contains(&agent),
        "{detail}"
    );

    // What it prints is what an administrator types.
    let commands: Vec<Vec<&str>> = detail
        .lines()
        .filter_map(|line| line.strip_prefix("kubectl "))
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!(commands.len(), 2, "{detail}");
    for command in commands {
        team.cluster.kubectl_ok(&command).unwrap();
    }
    assert!(may("conversation.escalated"));
    // The refusal is remembered for ten seconds.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let heard = producer.post(CLOUD_EVENT, &body).await;
        if heard.status != 403 {
            heard.accepted(false);
            break;
        }
        assert!(Instant::now() < deadline, "{heard:?}");
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
}

fn may_publish(cluster: &Cluster, user: &str, namespace: &str, event_type: &str) -> bool {
    cluster
        .can_i(user, namespace, "publish", &format!("eventtypes/{event_type}"))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_a_problem_document_with_a_status_of_its_own() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "wrong");
    team.until_allowed(&shared.dispatcher).await;
    let producer = Producer::of(&team);
    let good = event("1", TYPES[0], json!({}));
    let base = shared.dispatcher.ingest_url();
    let other = |method: Method, path: &str| {
        let request = producer
            .http
            .request(method, format!("{base}{path}"))
            .bearer_auth(&producer.token);
        hear(request.header(header::CONTENT_TYPE, CLOUD_EVENT).body(good.to_string()))
    };
    other(Method::POST, "/v1/namespaces/wrong")
        .await
        .problem(404, "NotFound");
    other(Method::POST, "/v1/namespaces/no-such-place/events")
        .await
        .problem(404, "NamespaceNotFound");
    let heard = other(Method::GET, "/v1/namespaces/wrong/events").await;
    heard.problem(405, "MethodNotAllowed");
    assert_eq!(heard.headers[header::ALLOW], "POST");

    for (content_type, body) in [
        (CLOUD_EVENT, "{"),
        (
            CLOUD_EVENT,
            r#"{"specversion":"0.3","id":"1","source":"/a","type":"lead.qualified"}"#,
        ),
        (
            CLOUD_EVENT,
            r#"{"specversion":"1.0","id":"","source":"/a","type":"lead.qualified"}"#,
        ),
        (CLOUD_EVENT, r#"{"specversion":"1.0","id":"1","type":"lead.qualified"}"#),
        (BATCH, r#"{"not":"an array"}"#),
        ("application/json", "{}"),
    ] {
        let heard = hear(producer.request(content_type, body)).await;
        heard.problem(400, "InvalidEvent");
    }
    for query in ["type=lead.qualified", "type=lead.qualified&source=/a&id=1"] {
        producer.plain(query, None, "{}").await.problem(400, "InvalidEvent");
    }
    for content_type in ["application/xml", "text/plain", "application/cloudevents+avro"] {
        let heard = hear(producer.request(content_type, "<a/>")).await;
        heard.problem(415, "UnsupportedMediaType");
    }
    let packed = producer
        .request(CLOUD_EVENT, good.to_string())
        .header(header::CONTENT_ENCODING, "gzip");
    hear(packed).await.problem(415, "UnsupportedMediaType");

    // Announced in the head, and found out on the way: no Content-Length.
    let large = event("1", TYPES[0], json!("x".repeat(256 * 1024))).to_string();
    let pieces: Vec<Result<Vec<u8>, std::io::Error>> = large.as_bytes().chunks(8192).map(|c| Ok(c.to_vec())).collect();
    hear(producer.request(CLOUD_EVENT, large.clone()))
        .await
        .problem(413, "TooLarge");
    let streamed = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    hear(producer.request(CLOUD_EVENT, streamed))
        .await
        .problem(413, "TooLarge");

    let heard = producer.post(CLOUD_EVENT, &good).await;
    assert_eq!(
        (heard.accepted(false), &heard.body["matched"]),
        ("1", &json!(0)),
        "nobody wants it, and that is told"
    );
    assert_eq!(heard.headers[header::CONTENT_TYPE], "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_does_not_fit_its_declared_type_is_refused_with_the_place_or_warned_about() {
    let team = Team::open(Shared::get().cluster, "declared-with-schema");
    let schema = json!({
        "type": "object",
        "required": ["lead"],
        "properties": {"lead": {"type": "string"}, "score": {"type": "object", "properties": {"value": {"maximum": 100}}}},
    });
    for (name, event_type, validation) in [("strict", TYPES[0], "Reject"), ("lenient", TYPES[1], "Warn")] {
        team.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType", "metadata": {"name": name},
            "spec": {"type": event_type, "schema": schema, "validation": validation}}),
        );
        team.ready(&format!("evtype/{name}"));
    }
    let producer = Producer::of(&team);
    let bad = json!({"lead": "l-1", "score": {"value": 101}});
    let heard = producer.post(CLOUD_EVENT, &event("1", TYPES[0], bad.clone())).await;
    let problem = heard.problem(422, "SchemaViolation");
    assert_eq!(problem["errors"][0]["pointer"], "/score/value", "{problem}");
    assert!(
        problem["errors"][0]["detail"]
            .as_str()
            .is_some_and(|detail| !detail.is_empty()),
        "{problem}"
    );
    assert!(!problem.to_string().contains("101"), "never the value: {problem}");

    let good = event("2", TYPES[0], json!({"lead": "l-2"}));
    let batch = json!([good, event("3", TYPES[0], json!({}))]);
    let heard = producer.post(BATCH, &batch).await;
    let problem = heard.problem(422, "SchemaViolation");
    assert_eq!(
        (&problem["event"], &problem["errors"][0]["pointer"]),
        (&json!(1), &json!("")),
        "{problem}"
    );
    producer.post(CLOUD_EVENT, &good).await.accepted(false);

    let heard = producer.post(CLOUD_EVENT, &event("4", TYPES[1], bad)).await;
    heard.accepted(false);
    assert_eq!(heard.body["warnings"][0]["pointer"], "/score/value", "{heard:?}");
}
