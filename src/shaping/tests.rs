use serde_json::{Value, json};

use super::*;
use crate::api::EventSubscription;
use crate::api::resolve::{Found, Reference, References, RequestForm, resolve_secrets, resolve_subscription};
use crate::event::{Data, Event};
use crate::ids::UnixMillis;

fn event(data: Data) -> StoredEvent {
    let event = Event {
        id: "lead/7".into(),
        source: "/agents/voice".into(),
        r#type: "lead.qualified".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: vec![("tenant".into(), "acme".into())],
        data,
    };
    format::stored(&event, UnixMillis(1_795_000_000_000), None)
}

fn lead() -> StoredEvent {
    let data = json!({"name": "Zoë", "score": 91, "tags": ["a", "b"], "note": "x".repeat(10)});
    event(Data::Json(data.to_string().into()))
}

/// What a subscription with this `request` makes of an event, with a Secret that holds `r-key` under `key`.
fn shaped(request: Value, event: &StoredEvent) -> Result<(Rendered, Box<Shaped>), ShapeError> {
    let subscription: EventSubscription = serde_json::from_value(json!({
        "apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "s", "namespace": "n"},
        "spec": {"endpointRef": {"name": "e"}, "eventTypes": ["*"], "request": request},
    }))
    .unwrap();
    let resolved = resolve_subscription(&subscription).unwrap();
    let RequestForm::Shaped(request) = &resolved.request else {
        panic!("{resolved:?}")
    };
    let mut references = References::under(crate::api::policy::SecretLabel::NotRequired);
    let found = Found {
        data: [("key".to_owned(), b"r-key\n".to_vec().into())].into_iter().collect(),
        ..Found::default()
    };
    references.insert(Reference::secret("pager"), crate::api::resolve::Lookup::Found(found));
    let secrets = Arc::new(resolve_secrets(request, "n", &references).unwrap());
    shape(request, resolved.format, &secrets, event)
}

fn with_secret(mut request: Value) -> Value {
    request["secrets"] = json!([{"name": "routingKey", "secretKeyRef": {"name": "pager", "key": "key"}}]);
    request
}

#[test]
fn method_path_headers_and_body_are_as_the_receiver_wants_them() {
    let request = with_secret(json!({
        "method": "PATCH",
        "path": "'Lead/' + event.id.urlEncode() + '?dry=' + string(event.data.score)",
        "headers": [
            {"name": "X-Tenant", "value": "event.tenant"},
            {"name": "X-Score", "value": "event.data.score"},
            {"name": "Content-Type", "value": "'application/vnd.crm+json'"},
        ],
        "body": "{'routing_key': secrets.routingKey, 'name': event.data.name, 'tags': event.data.tags.map(t, t + '!')}",
    }));
    let (rendered, shaped) = shaped(request, &lead()).unwrap();
    let body: Value = serde_json::from_slice(&rendered.body).unwrap();
    assert_eq!(
        body,
        json!({"routing_key": "r-key", "name": "Zoë", "tags": ["a!", "b!"]})
    );
    assert_eq!(rendered.content_type.unwrap(), "application/vnd.crm+json");
    assert_eq!(shaped.method, Method::PATCH);
    assert_eq!(shaped.path.as_deref(), Some("Lead/lead%2F7?dry=91"));
    let headers: Vec<_> = shaped
        .headers
        .iter()
        .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("x-tenant", "acme"), ("x-score", "91")]);
    assert!(!format!("{shaped:?}").contains("r-key"), "{shaped:?}");
}

#[test]
fn without_a_body_of_its_own_it_is_the_formats_and_a_body_is_json_unless_said_otherwise() {
    let (rendered, _) = shaped(json!({"method": "PUT"}), &lead()).unwrap();
    let plain = format::render(Format::StandardWebhooks, &lead()).unwrap();
    assert_eq!((rendered.body, rendered.content_type), (plain.body, plain.content_type));
    let (rendered, _) = shaped(json!({"body": "[event.data.score, null]"}), &lead()).unwrap();
    assert_eq!(rendered.content_type.unwrap(), "application/json");
    assert_eq!(&rendered.body[..], b"[91,null]");
}

#[test]
fn what_no_request_can_carry_is_told_without_a_word_of_the_event() {
    let strange = |data: Value| event(Data::Json(data.to_string().into()));
    let big = json!({"text": "s3cret".repeat(200_000)});
    for (request, data, told) in [
        (
            json!({"body": "event.data.absent"}),
            json!({}),
            "request.body: there is no absent",
        ),
        (
            json!({"body": "{'a': event.data.text}"}),
            big.clone(),
            "request.body gives more than 1 MiB",
        ),
        (
            json!({"path": "event.data.text"}),
            json!({"text": "../s3cret"}),
            "request.path gives what no path can be",
        ),
        (
            json!({"path": "event.data.text.urlEncode()"}),
            json!({"text": ".."}),
            "a segment . or ..",
        ),
        (
            json!({"path": "event.data.text"}),
            json!({"text": "s3cret s3cret"}),
            "put what comes from the event through urlEncode()",
        ),
        (
            json!({"headers": [{"name": "x-name", "value": "event.data.text"}]}),
            json!({"text": "s3cret\r\nx-evil: 1"}),
            "request.headers, x-name: the value must be visible ASCII",
        ),
        (
            json!({"headers": [{"name": "x-name", "value": "event.data.text"}]}),
            json!({"text": "s3cret".repeat(1000)}),
            "request.headers, x-name: the value must be visible ASCII of at most 4096",
        ),
        (
            json!({"path": "event.data"}),
            json!({"s3cret": 1}),
            "request.path: it must be a string",
        ),
    ] {
        let error = shaped(request.clone(), &strange(data)).unwrap_err().to_string();
        assert!(error.contains(told), "{request}: {error}");
        assert!(!error.contains("s3cret"), "{request}: {error}");
    }
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    assert!(shaped(json!({"body": "event.data"}), &event(Data::Json(deep.into()))).is_err());
}
