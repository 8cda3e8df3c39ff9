//! The examples show the whole of the API, and do what they say: every field of a spec is in one of them, every expression is
//! one, and people are told of a dead letter as the manifest has it.
//!
//! That the API server takes them is `manifests`'; the recipes have tests of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Deserialize as _;
use serde_json::{Value, json};
use tidings::api::resolve::{resolve_ordering, resolve_subscription};
use tidings::api::{EventSubscription, WebhookEndpoint};
use tidings_cluster::repository_root;

use super::receiver::{Receiver, Seen};
use super::recipes::towards;
use super::secrets::secret;
use super::team::{Shared, Team, once_allowed, until};

fn documents(text: &str) -> impl Iterator<Item = Value> {
    serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap())
}

/// The objects of ours in a folder and those below it.
fn ours(folder: &Path) -> Vec<Value> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(ours(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap();
            let is_ours = |object: &Value| object["apiVersion"] == "tidings.dev/v1alpha1";
            all.extend(documents(&text).filter(is_ours));
        }
    }
    all
}

/// Every field below this schema, by its path, and every value that its type names but the default: that one is shown by
/// leaving the field out.
fn fields(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    let values = schema["enum"].as_array().into_iter().flatten();
    all.extend(
        values
            .filter(|value| **value != schema["default"])
            .map(|value| format!("{path}: {}", value.as_str().unwrap())),
    );
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        fields(field, &path, all);
        all.insert(path);
    }
    if schema["items"].is_object() {
        fields(&schema["items"], &format!("{path}[]"), all);
    }
}

/// The same of what a manifest has.
fn shown(value: &Value, path: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                shown(value, &path, all);
                all.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| shown(item, &format!("{path}[]"), all)),
        Value::String(text) => {
            all.insert(format!("{path}: {text}"));
        }
        _ => {}
    }
}

#[test]
fn every_field_of_every_spec_and_every_value_but_defaults_is_in_an_example() {
    let mut there_are = BTreeSet::new();
    for definition in documents(&tidings::api::crd::yaml()) {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        fields(spec, kind, &mut there_are);
    }
    assert!(there_are.len() > 150, "only {} were found", there_are.len());
    let mut have = BTreeSet::new();
    for object in ours(&repository_root().join("examples")) {
        shown(&object["spec"], object["kind"].as_str().unwrap(), &mut have);
    }
    let missing: Vec<&String> = there_are.difference(&have).collect();
    assert!(missing.is_empty(), "no example has {missing:#?}");
}

#[test]
fn the_expressions_of_every_example_are_valid() {
    let mut tried = 0;
    for object in ours(&repository_root().join("examples")) {
        let resolved = match object["kind"].as_str().unwrap() {
            "EventSubscription" => {
                let subscription: EventSubscription = serde_json::from_value(object.clone()).unwrap();
                resolve_subscription(&subscription).map(drop)
            }
            "WebhookEndpoint" => {
                let endpoint: WebhookEndpoint = serde_json::from_value(object.clone()).unwrap();
                resolve_ordering(&endpoint.spec.ordering).map(drop)
            }
            _ => continue,
        };
        resolved.unwrap_or_else(|error| panic!("{error}\n{object:#}"));
        tried += 1;
    }
    assert!(tried > 30, "only {tried} were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_people_on_call_are_told_of_a_contract_that_the_erp_never_took() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "contracts");
    team.cluster
        .create_producer(&team.namespace, "agent", &["contract.signed"])
        .unwrap();
    let receiver = Receiver::start(|mut connection, seen| async move {
        while let Some(request) = connection.request().await {
            let status = if request.line.starts_with("PUT") { 422 } else { 204 };
            seen.lock().unwrap().push(request);
            let length = if status == 204 { "" } else { "content-length: 0\r\n" };
            if !connection.write(format!("HTTP/1.1 {status} X\r\n{length}\r\n")).await {
                return;
            }
        }
    })
    .await;
    team.apply(&secret("erp-client", true, json!({"key": "k-1"})));
    let mut objects = Vec::new();
    for mut object in ours(&repository_root().join("examples/contracts-to-erp")) {
        towards(receiver.address, &mut object);
        if object["kind"] == "WebhookEndpoint" {
            object["spec"]["tls"] = json!({"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}});
        }
        team.apply(&object);
        let name = object["metadata"]["name"].as_str().unwrap();
        objects.push(format!(
            "{}/{name}",
            object["kind"].as_str().unwrap().to_ascii_lowercase()
        ));
    }
    objects.iter().for_each(|object| team.ready(object));
    // Of the form that is declared, but for its number: it is taken, with a warning.
    let event = json!({"specversion": "1.0", "id": "signed-1", "source": "/contracts", "type": "contract.signed",
        "data": {"contract": "4711 a", "customer": "Martin & Sons"}});
    let answer = once_allowed(async || team.posting(&shared.dispatcher, &event).await.unwrap()).await;
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    assert!(answer.body["warnings"].is_array(), "{answer:?}");

    until("both requests", async || receiver.requests() >= 2).await;
    let seen = receiver.seen.lock().unwrap();
    let [put, told]: &[Seen; 2] = seen[..].try_into().unwrap();
    assert_eq!(put.line, "PUT /api/contracts/4711%20a HTTP/1.1");
    assert_eq!(put.headers["x-client-key"], "k-1");
    assert_eq!(told.line, "POST /hooks/on-call HTTP/1.1");
    let text = "signed-1 did not reach the ERP: Refused after 1 attempts. kubectl get evsub contracts-to-erp";
    let body: Value = serde_json::from_slice(&told.body).unwrap();
    assert_eq!(body, json!({"text": text, "status": 422}));
}
