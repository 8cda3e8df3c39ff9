//! The recipes of `examples/recipes`, as they are there, each against a server that takes what that product's documentation
//! says it takes, and says no as that product does.
//!
//! Invariant: of a recipe's manifests only scheme, host and port of URLs are changed, and a CA is added.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize as _;
use serde_json::{Value, json};
use sha2::Sha256;
use tidings_cluster::repository_root;

use super::messages::Reader;
use super::receiver::{Receiver, Seen};
use super::team::{PATIENCE, Shared, Team, once_allowed};

mod billing;

/// Status and body.
type Answer = (u16, String);

/// What a product knows already: addresses, external ids, event ids.
type Known = HashSet<String>;

struct Recipe {
    folder: &'static str,
    endpoint: &'static str,
    product: fn(&mut Known, &Seen) -> Answer,
    /// What the product says first, whatever it is sent: passing trouble in its own words.
    trouble: Option<(u16, &'static str)>,
    refused: Refused,
    /// To: the example (twice with trouble), the example again under another id, the one that is refused.
    statuses: &'static [u16],
}

enum Refused {
    /// A good event, in these words; a dead letter.
    InWords(u16, &'static str),
    /// An event that is no good: what is wrong with it, and the words; a dead letter.
    For(fn(&mut Value), &'static str),
    /// The same, where the product's status does not tell what passes from what does not: it is tried again.
    ForNow(fn(&mut Value), &'static str),
    Never,
}

const RECIPES: [Recipe; 9] = [
    Recipe {
        folder: "slack",
        endpoint: "slack",
        product: slack,
        trouble: Some((500, "rollup_error")),
        refused: Refused::InWords(400, "invalid_payload"),
        statuses: &[500, 200, 200, 400],
    },
    Recipe {
        folder: "slack-api",
        endpoint: "slack-api",
        product: slack_api,
        trouble: Some((200, r#"{"ok":false,"error":"internal_error"}"#)),
        refused: Refused::Never,
        statuses: &[200, 200, 200],
    },
    Recipe {
        folder: "teams",
        endpoint: "teams",
        product: teams,
        trouble: Some((
            429,
            r#"{"error":{"code":"WorkflowTriggerRequestThrottled","message":"..."}}"#,
        )),
        refused: Refused::InWords(
            400,
            r#"{"error":{"code":"TriggerInputSchemaMismatch","message":"..."}}"#,
        ),
        statuses: &[429, 202, 202, 400],
    },
    Recipe {
        folder: "pagerduty",
        endpoint: "pagerduty",
        product: pagerduty,
        trouble: Some((429, "")),
        refused: Refused::For(|event| event["data"]["reason"] = json!(""), "payload.summary"),
        statuses: &[429, 202, 202, 400],
    },
    Recipe {
        folder: "hubspot",
        endpoint: "hubspot",
        product: hubspot,
        trouble: Some((429, r#"{"status":"error","errorType":"RATE_LIMIT"}"#)),
        refused: Refused::For(
            |event| event["data"]["lead"]["email"] = json!("nobody"),
            "VALIDATION_ERROR",
        ),
        statuses: &[429, 200, 200, 400],
    },
    Recipe {
        folder: "salesforce",
        endpoint: "salesforce",
        product: salesforce,
        trouble: Some((
            400,
            r#"[{"errorCode":"UNABLE_TO_LOCK_ROW","message":"unable to obtain exclusive access"}]"#,
        )),
        refused: Refused::ForNow(
            |event| event["data"]["lead"]["name"] = json!(""),
            "REQUIRED_FIELD_MISSING",
        ),
        statuses: &[400, 201, 204, 400],
    },
    Recipe {
        folder: "github-style",
        endpoint: "ci",
        product: github,
        trouble: Some((500, "")),
        refused: Refused::Never,
        statuses: &[500, 200, 200],
    },
    Recipe {
        folder: "ordered-billing",
        endpoint: "ledger",
        product: ledger,
        trouble: Some((503, "")),
        refused: Refused::For(|event| event["data"]["amount"] = json!(129), "amount"),
        statuses: &[503, 201, 201, 422],
    },
    Recipe {
        folder: "audit-archive",
        endpoint: "archive",
        product: archive,
        trouble: Some((503, "")),
        refused: Refused::Never,
        statuses: &[503, 204, 204],
    },
];

fn header<'a>(seen: &'a Seen, name: &str) -> &'a str {
    seen.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// The body of a request with this first line; null if it is another, or no JSON.
fn body(seen: &Seen, line: &str) -> Value {
    if seen.line != format!("{line} HTTP/1.1") || !header(seen, "content-type").starts_with("application/json") {
        return Value::Null;
    }
    serde_json::from_slice(&seen.body).unwrap_or_default()
}

/// A string of at least one and at most so many characters.
fn is_text(value: &Value, most: usize) -> bool {
    value
        .as_str()
        .is_some_and(|text| !text.trim().is_empty() && text.chars().count() <= most)
}

/// The example's words, escaped: as they were they would call the channel.
fn is_escaped(text: &Value) -> bool {
    text.as_str()
        .is_some_and(|text| text.contains("&lt;!channel&gt; &amp; a person"))
}

fn slack(_: &mut Known, seen: &Seen) -> Answer {
    let body = body(seen, "POST /services/T00000000/B00000000/your-token");
    match &body["text"] {
        _ if !body.is_object() => (400, "invalid_payload".into()),
        text if !is_text(text, 40_000) => (400, "no_text".into()),
        text if !is_escaped(text) => (400, "invalid_payload".into()),
        _ => (200, "ok".into()),
    }
}

fn slack_api(_: &mut Known, seen: &Seen) -> Answer {
    let body = body(seen, "POST /api/chat.postMessage");
    let error = match (header(seen, "authorization"), &body["channel"], &body["text"]) {
        ("Bearer your-bot-token", channel, _) if channel != "C0123456789" => "channel_not_found",
        ("Bearer your-bot-token", _, text) if !is_text(text, 40_000) || !is_escaped(text) => "no_text",
        ("Bearer your-bot-token", ..) => return (200, json!({"ok": true, "ts": "1764000000.000100"}).to_string()),
        _ => "invalid_auth",
    };
    (200, json!({"ok": false, "error": error}).to_string())
}

fn teams(_: &mut Known, seen: &Seen) -> Answer {
    let path = "/powerautomate/automations/direct/workflows/your-workflow/triggers/manual/paths/invoke";
    let query = "api-version=1&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=your-signature";
    let body = body(seen, &format!("POST {path}?{query}"));
    let attachment = &body["attachments"][0];
    let card = &attachment["content"];
    let elements = card["body"].as_array().cloned().unwrap_or_default();
    let fits = body["type"] == "message"
        && attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        && card["type"] == "AdaptiveCard"
        && is_text(&card["version"], 8)
        && !elements.is_empty()
        && elements.iter().all(|element| match element["type"].as_str() {
            // It takes Markdown, so nothing that a customer said may be in it.
            Some("TextBlock") => element["text"] == "Somebody waits for a person",
            Some("RichTextBlock") => {
                let mut runs = element["inlines"].as_array().into_iter().flatten();
                runs.all(|run| run["type"] == "TextRun" && is_text(&run["text"], 28_000))
            }
            _ => false,
        });
    if fits && seen.body.len() <= 28 * 1024 {
        return (202, String::new());
    }
    (
        400,
        json!({"error": {"code": "TriggerInputSchemaMismatch"}}).to_string(),
    )
}

fn pagerduty(_: &mut Known, seen: &Seen) -> Answer {
    let body = body(seen, "POST /v2/enqueue");
    let payload = &body["payload"];
    let one_of = |value: &Value, names: &[&str]| value.as_str().is_some_and(|value| names.contains(&value));
    let fields = [
        ("routing_key", body["routing_key"] == "your-key-with-its-32-characters-"),
        (
            "event_action",
            one_of(&body["event_action"], &["trigger", "acknowledge", "resolve"]),
        ),
        ("dedup_key", is_text(&body["dedup_key"], 255)),
        ("payload.summary", is_text(&payload["summary"], 1024)),
        ("payload.source", is_text(&payload["source"], 1024)),
        (
            "payload.severity",
            one_of(&payload["severity"], &["critical", "error", "warning", "info"]),
        ),
        ("payload.timestamp", is_text(&payload["timestamp"], 64)),
        ("payload.custom_details", payload["custom_details"].is_object()),
    ];
    let wrong: Vec<&str> = fields.iter().filter(|field| !field.1).map(|field| field.0).collect();
    if wrong.is_empty() {
        let said = json!({"status": "success", "message": "Event processed", "dedup_key": body["dedup_key"]});
        return (202, said.to_string());
    }
    let said = json!({"status": "invalid event", "message": "Event object is invalid", "errors": wrong});
    (400, said.to_string())
}

fn hubspot(_: &mut Known, seen: &Seen) -> Answer {
    let refused = |status, category: &str| (status, json!({"status": "error", "category": category}).to_string());
    if header(seen, "authorization") != "Bearer your-service-key" {
        return refused(401, "INVALID_AUTHENTICATION");
    }
    let body = body(seen, "POST /crm/objects/2026-03/contacts/batch/upsert");
    let input = &body["inputs"][0];
    let Some(properties) = input["properties"].as_object() else {
        return refused(400, "VALIDATION_ERROR");
    };
    let email = properties["email"].as_str().unwrap_or_default();
    let names = ["email", "lastname", "phone", "company"];
    let are_known = properties
        .iter()
        .all(|(name, value)| names.contains(&&**name) && is_text(value, 1_000));
    if !are_known || !email.contains('@') || input["idProperty"] != "email" || input["id"] != email {
        return refused(400, "VALIDATION_ERROR");
    }
    let contact = json!({"id": "512", "properties": properties});
    (200, json!({"status": "COMPLETE", "results": [contact]}).to_string())
}

fn salesforce(known: &mut Known, seen: &Seen) -> Answer {
    let refused = |status, code: &str| (status, json!([{"errorCode": code, "message": "..."}]).to_string());
    if header(seen, "authorization") != "Bearer 00D-session" {
        return refused(401, "INVALID_SESSION_ID");
    }
    let body = body(seen, "PATCH /services/data/v62.0/sobjects/Lead/Conversation__c/c-2041");
    let Some(fields) = body.as_object() else {
        return refused(404, "NOT_FOUND");
    };
    if header(seen, "sforce-duplicate-rule-header") != "allowSave=true" {
        return refused(400, "DUPLICATES_DETECTED");
    }
    let limits = [
        ("LastName", 80),
        ("Company", 255),
        ("Phone", 40),
        ("Email", 80),
        ("LeadSource", 255),
        ("Description", 32_000),
    ];
    for (name, value) in fields {
        match limits.iter().find(|(known, _)| known == name) {
            None => return refused(400, "INVALID_FIELD"),
            Some((_, most)) if value.as_str().is_none_or(|text| text.chars().count() > *most) => {
                return refused(400, "STRING_TOO_LONG");
            }
            Some(_) => {}
        }
    }
    let transcript = "agent: Good morning, how can I help?\ncaller: We are 40 people and need a quote this month.";
    if ["LastName", "Company"].iter().any(|name| !is_text(&body[name], 255)) || body["Description"] != transcript {
        return refused(400, "REQUIRED_FIELD_MISSING");
    }
    match known.insert(seen.line.clone()) {
        true => (
            201,
            json!({"id": "00Q000000000001", "success": true, "errors": []}).to_string(),
        ),
        false => (204, String::new()),
    }
}

/// `POST /services/oauth2/token`; Salesforce says nothing of when a token expires.
fn salesforce_token(seen: &Seen) -> Answer {
    let form: HashSet<(String, String)> = url::form_urlencoded::parse(&seen.body).into_owned().collect();
    let fields = [
        ("grant_type", "client_credentials"),
        ("client_id", "your-consumer-key"),
        ("client_secret", "your-consumer-secret"),
    ];
    if fields
        .iter()
        .all(|(name, value)| form.contains(&((*name).to_owned(), (*value).to_owned())))
    {
        return (
            200,
            json!({"access_token": "00D-session", "token_type": "Bearer"}).to_string(),
        );
    }
    (400, json!({"error": "invalid_client_id"}).to_string())
}

fn github(known: &mut Known, seen: &Seen) -> Answer {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"your-shared-secret").unwrap();
    mac.update(&seen.body);
    let digest: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if header(seen, "x-hub-signature-256") != format!("sha256={digest}") {
        return (401, "signatures didn't match".into());
    }
    let lead = body(seen, "POST /webhooks");
    let is_new = known.insert(header(seen, "x-github-delivery").to_owned());
    match header(seen, "x-github-event") == "lead.qualified" && is_new && lead["lead"]["name"] == "Ada Martin" {
        true => (200, String::new()),
        false => (400, String::new()),
    }
}

fn ledger(_: &mut Known, seen: &Seen) -> Answer {
    let event: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let is_event = seen.line == "POST /v1/entries HTTP/1.1"
        && header(seen, "content-type").starts_with("application/cloudevents+json")
        && event["specversion"] == "1.0"
        && ["id", "source", "type"].iter().all(|name| is_text(&event[name], 256));
    // Decimal text, since a float is no money.
    if !is_event || !event["data"]["amount"].is_string() {
        return (422, "amount".into());
    }
    (201, String::new())
}

fn archive(_: &mut Known, seen: &Seen) -> Answer {
    let attributes = [
        ("ce-specversion", "1.0"),
        ("ce-source", "/agents/voice"),
        ("ce-type", "lead.qualified"),
        ("ce-subject", "lead/2041"),
    ];
    let has_all = attributes.iter().all(|(name, value)| header(seen, name) == *value);
    let data = body(seen, "POST /events");
    match has_all && header(seen, "ce-id").starts_with("lead-2041") && data["lead"]["score"] == 87 {
        true => (204, String::new()),
        false => (400, String::new()),
    }
}

/// A product's server: says the words that are due, else what the product says.
struct Server {
    receiver: Receiver,
    due: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Server {
    async fn start(product: fn(&mut Known, &Seen) -> Answer) -> Server {
        let (due, statuses) = (
            Arc::<Mutex<VecDeque<(u16, &'static str)>>>::default(),
            Arc::<Mutex<Vec<u16>>>::default(),
        );
        let (words, log, known) = (due.clone(), statuses.clone(), Arc::<Mutex<Known>>::default());
        let receiver = Receiver::start(move |mut connection, seen| {
            let (words, log, known) = (words.clone(), log.clone(), known.clone());
            async move {
                while let Some(request) = connection.request().await {
                    let (status, body) = if request.line == "POST /services/oauth2/token HTTP/1.1" {
                        salesforce_token(&request)
                    } else {
                        let due = words.lock().unwrap().pop_front();
                        let answer = due.map(|(status, body)| (status, body.to_owned()));
                        let answer = answer.unwrap_or_else(|| product(&mut known.lock().unwrap(), &request));
                        log.lock().unwrap().push(answer.0);
                        answer
                    };
                    seen.lock().unwrap().push(request);
                    // 204 has no body, and no length.
                    let length = match status {
                        204 => String::new(),
                        _ => format!("content-length: {}\r\n", body.len()),
                    };
                    if !connection
                        .write(format!("HTTP/1.1 {status} X\r\n{length}\r\n{body}"))
                        .await
                    {
                        return;
                    }
                }
            }
        })
        .await;
        Server {
            receiver,
            due,
            statuses,
        }
    }

    fn says(&self, words: (u16, &'static str)) {
        self.due.lock().unwrap().push_back(words);
    }
}

/// Every URL goes to this address; its path and query stay.
pub fn towards(address: SocketAddr, value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with("https://") => {
            let mut url = url::Url::parse(text).unwrap();
            url.set_ip_host(address.ip()).unwrap();
            url.set_port(Some(address.port())).unwrap();
            *text = url.into();
        }
        Value::Object(fields) => fields.values_mut().for_each(|value| towards(address, value)),
        _ => {}
    }
}

/// Applies a recipe's manifests and waits until they are Ready. Gives the objects of ours.
fn apply(team: &Team, folder: &str, address: SocketAddr) -> Vec<(&'static str, String)> {
    let file = repository_root().join(format!("examples/recipes/{folder}/recipe.yaml"));
    let text = fs::read_to_string(file).unwrap();
    let mut ours = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let mut manifest = Value::deserialize(document).unwrap();
        towards(address, &mut manifest);
        let name = manifest["metadata"]["name"].as_str().unwrap().to_owned();
        match manifest["kind"].as_str().unwrap() {
            "WebhookEndpoint" => {
                manifest["spec"]["tls"] =
                    json!({"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}});
                ours.push(("whe", name));
            }
            "EventSubscription" => ours.push(("evsub", name)),
            _ => {}
        }
        team.apply(&manifest);
    }
    for (kind, name) in &ours {
        team.ready(&format!("{kind}/{name}"));
    }
    ours
}

/// Posts an event, once the producer's new right counts.
async fn post(team: &Team<'_>, shared: &Shared, event: &Value) {
    let answer = once_allowed(async || team.posting(&shared.dispatcher, event).await.unwrap()).await;
    assert!(
        answer.status == 202 && answer.body["matched"].as_u64() > Some(0),
        "{event}: {answer:?}"
    );
}

/// Waits until the message of an event is in a state, and its failed attempts are as many. Gives those.
async fn settled(reader: &Reader, recipe: &Recipe, event: &Value, state: &str, failed: usize) -> Vec<Value> {
    let query = format!(
        "endpoint={}&id={}&state={state}",
        recipe.endpoint,
        event["id"].as_str().unwrap()
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let message = reader.until(&query, 1).await.remove(0);
        let id = message["id"].as_str().unwrap();
        let attempts = reader.get(&format!("/{id}/attempts")).await.body["attempts"].clone();
        let attempts = attempts.as_array().cloned().unwrap_or_default();
        if attempts.len() >= failed {
            return attempts;
        }
        assert!(Instant::now() < deadline, "{query}: {message} {attempts:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn try_out(team: &Team<'_>, shared: &Shared, reader: &Reader, recipe: &Recipe) {
    let server = Server::start(recipe.product).await;
    let ours = apply(team, recipe.folder, server.receiver.address);
    let file = repository_root().join(format!("examples/recipes/{}/event.json", recipe.folder));
    let mut event: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let own = |event: &mut Value, what: &str| {
        event["id"] = json!(format!("{}-{}-{what}", event["id"].as_str().unwrap(), recipe.folder));
    };

    // The example goes through, after what passes.
    own(&mut event, "a");
    recipe.trouble.into_iter().for_each(|words| server.says(words));
    post(team, shared, &event).await;
    let failed = usize::from(recipe.trouble.is_some());
    let attempts = settled(reader, recipe, &event, "delivered", failed).await;
    assert_eq!(attempts.len(), failed, "{attempts:?}");
    if let Some((status, words)) = recipe.trouble {
        assert_eq!(attempts[0]["statusCode"], status, "{attempts:?}");
        assert_eq!(attempts[0]["excerpt"].as_str().unwrap_or_default(), words);
    }
    // The same under another id: what the product has already is no failure.
    own(&mut event, "b");
    post(team, shared, &event).await;
    settled(reader, recipe, &event, "delivered", 0).await;
    // What the product will never take.
    own(&mut event, "c");
    let (state, words) = match recipe.refused {
        Refused::InWords(status, words) => {
            server.says((status, words));
            ("dead", words)
        }
        Refused::For(spoil, words) => {
            spoil(&mut event);
            ("dead", words)
        }
        Refused::ForNow(spoil, words) => {
            spoil(&mut event);
            ("pending", words)
        }
        Refused::Never => ("", ""),
    };
    if !state.is_empty() {
        post(team, shared, &event).await;
        let attempts = settled(reader, recipe, &event, state, 1).await;
        let excerpt = attempts[0]["excerpt"].as_str().unwrap();
        assert!(excerpt.contains(words), "{attempts:?}");
    }
    // One that is tried again may have come more often by now.
    let statuses = server.statuses.lock().unwrap().clone();
    assert_eq!(statuses[..recipe.statuses.len()], *recipe.statuses, "{}", recipe.folder);
    let again = matches!(recipe.refused, Refused::ForNow(..));
    assert!(again || statuses.len() == recipe.statuses.len(), "{statuses:?}");
    for (kind, name) in ours {
        team.delete(kind, &name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recipe_is_understood_by_its_product_and_understands_its_refusals() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "recipes");
    let types = ["conversation.escalated", "lead.qualified", "invoice.created"];
    team.cluster.create_producer(&team.namespace, "agent", &types).unwrap();
    let reader = Reader::new(&team, &shared.dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    let folders = fs::read_dir(repository_root().join("examples/recipes")).unwrap();
    assert_eq!(folders.count(), RECIPES.len(), "each recipe is tried");
    for recipe in &RECIPES {
        try_out(&team, shared, &reader, recipe).await;
    }
}
