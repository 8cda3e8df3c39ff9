//! Tables over [`resolve_endpoint`] and [`resolve_subscription`].

use std::collections::BTreeMap;

use super::*;
use crate::api::common::{ConfigMapKeyReference, EndpointReference, SecretKeyReference};
use crate::api::conditions::reasons;
use crate::api::endpoint::{CaBundleSource, Header, SigningScheme, Tls};
use crate::api::retry::Retry;
use crate::api::subscription::PayloadFormat;
use crate::api::{EventSubscription, EventSubscriptionSpec, WebhookEndpoint, WebhookEndpointSpec, names};
use crate::signing::Key as _;
use crate::signing::{Scheme, SigningKey, SigningKeys};

mod credentials;
mod limits;
mod services;

const SECRET_TEXT: &str = "Bearer very-secret";

fn endpoint(url: &str) -> WebhookEndpoint {
    let mut endpoint = WebhookEndpoint::new("crm", WebhookEndpointSpec::to(url));
    endpoint.metadata.namespace = Some("sales".to_owned());
    endpoint.metadata.generation = Some(3);
    endpoint
}

fn secret(r#type: &str, opened: bool, data: &[(&str, &str)]) -> Lookup {
    let label = (names::USE_LABEL.to_owned(), names::USE_LABEL_VALUE.to_owned());
    Lookup::Found(Found {
        resource_version: "7".to_owned(),
        labels: opened.then_some(label).into_iter().collect(),
        r#type: Some(r#type.to_owned()),
        data: data
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec().into()))
            .collect(),
        ..Found::default()
    })
}

fn key_text(byte: u8) -> String {
    SigningKey::generate([byte; 32]).to_text()
}

fn generated() -> References {
    let mut references = References::default();
    let key = key_text(1);
    let secret = secret(names::SIGNING_SECRET_TYPE, false, &[("current", &key)]);
    references.insert(Reference::secret("crm-signing"), secret);
    references
}

fn keys(resolved: &ResolvedEndpoint) -> &SigningKeys {
    resolved.signing.keys().expect("it signs")
}

fn closed() -> Arc<EgressRules> {
    Arc::default()
}

fn reference(name: &str, key: &str) -> SecretKeyReference {
    SecretKeyReference {
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn with_header(name: &str, value: Option<&str>, from: Option<SecretKeyReference>) -> WebhookEndpoint {
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.headers.push(Header {
        name: name.to_owned(),
        value: value.map(str::to_owned),
        secret_key_ref: from,
    });
    endpoint
}

#[test]
fn a_minimal_endpoint_resolves_with_the_defaults() {
    let resolved = resolve_endpoint(
        &endpoint("https://Hooks.Example.com/a/b?c=d"),
        &generated(),
        &closed(),
        None,
    )
    .unwrap();
    assert_eq!(resolved.generation, 3);
    assert_eq!((resolved.namespace.as_str(), resolved.name.as_str()), ("sales", "crm"));
    assert_eq!(
        resolved.target,
        Target {
            host: Host::Name("hooks.example.com".to_owned()),
            port: 443,
            path: "/a/b?c=d".to_owned(),
            is_secret: false,
            authority: "hooks.example.com".to_owned(),
            origin: "https://hooks.example.com".to_owned(),
            service: None,
        }
    );
    assert_eq!(resolved.timeout, Duration::from_secs(15));
    assert_eq!(resolved.retry.schedule, [1, 10, 60, 300].map(Duration::from_secs));
    assert_eq!(resolved.retry.jitter_percent, 10);
    assert_eq!(resolved.retry.retry_after_max, Duration::from_secs(3600));
    assert_eq!(keys(&resolved).keys.len(), 1);
    assert!(resolved.headers.is_empty() && resolved.ca.is_none() && !resolved.suspend);
}

#[test]
fn a_port_and_an_ipv6_host_show_in_authority_and_origin() {
    let egress = Arc::new(EgressRules {
        open_cidrs: vec!["::1/128".parse().unwrap()],
        ..EgressRules::default()
    });
    let resolved = resolve_endpoint(&endpoint("https://[::1]:8443"), &generated(), &egress, None).unwrap();
    assert_eq!(resolved.target.host, Host::Address("::1".parse().unwrap()));
    assert_eq!(resolved.target.authority, "[::1]:8443");
    assert_eq!(resolved.target.origin, "https://[::1]:8443");
    assert_eq!((resolved.target.port, resolved.target.path.as_str()), (8443, "/"));
}

#[test]
fn urls_that_cannot_be_used_are_stalled_with_a_reason() {
    let long = format!("https://{}com/", "a.".repeat(126));
    for (url, reason) in [
        (long.as_str(), reasons::INVALID_SPEC),
        ("http://example.com/", reasons::INVALID_SPEC),
        ("example.com", reasons::INVALID_SPEC),
        ("https://user@example.com/", reasons::INVALID_SPEC),
        ("https://:pw@example.com/", reasons::INVALID_SPEC),
        ("https://example.com/#part", reasons::INVALID_SPEC),
        ("https://example.com./", reasons::INVALID_SPEC),
        ("https://example.com:0/", reasons::INVALID_SPEC),
        ("https://[fe80::1%25eth0]/", reasons::INVALID_SPEC),
        ("https://127.0.0.1/", reasons::POLICY_DENIED),
        ("https://127.1/", reasons::POLICY_DENIED),
        ("https://0177.0.0.1/", reasons::POLICY_DENIED),
        ("https://2130706433/", reasons::POLICY_DENIED),
        ("https://0x7f.1/", reasons::POLICY_DENIED),
        ("https://127.0.0.1./", reasons::POLICY_DENIED),
        ("https://[::ffff:10.0.0.1]/", reasons::POLICY_DENIED),
        ("https://[64:ff9b::a00:1]/", reasons::POLICY_DENIED),
        ("https://169.254.169.254/latest", reasons::POLICY_DENIED),
    ] {
        let unresolved = resolve_endpoint(&endpoint(url), &generated(), &closed(), None).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reason, true),
            "{url}: {unresolved}"
        );
    }
}

#[test]
fn a_host_may_have_253_characters_and_a_request_to_enable_is_cut_to_what_status_holds() {
    let host = format!("{}c", "a.".repeat(126));
    let mut endpoint = endpoint(&format!("https://{host}/"));
    let asked = (names::ENABLE_REQUESTED.to_owned(), "ä".repeat(300));
    endpoint.metadata.annotations = Some(BTreeMap::from([asked]));
    let resolved = resolve_endpoint(&endpoint, &generated(), &closed(), None).unwrap();
    assert_eq!((host.len(), resolved.target.host), (253, Host::Name(host)));
    assert_eq!(resolved.enable_request, Some("ä".repeat(256)));
}

#[test]
fn an_opened_literal_resolves_however_it_is_written() {
    let egress = Arc::new(EgressRules {
        open_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..EgressRules::default()
    });
    for url in ["https://127.1:8443/x", "https://2130706433:8443/x"] {
        let resolved = resolve_endpoint(&endpoint(url), &generated(), &egress, None).unwrap();
        assert_eq!(resolved.target.host, Host::Address("127.0.0.1".parse().unwrap()));
        assert_eq!(resolved.target.authority, "127.0.0.1:8443");
    }
}

#[test]
fn the_generated_secret_gives_its_id_and_both_keys_and_nothing_else_is_taken_for_it() {
    let endpoint = endpoint("https://hooks.example.com/");
    let name = Reference::secret("crm-signing");
    assert_eq!(references_of(&endpoint), std::slice::from_ref(&name));
    let resolve = |lookup: Lookup| {
        let mut references = References::default();
        references.insert(name.clone(), lookup);
        resolve_endpoint(&endpoint, &references, &closed(), None)
    };
    let (one, two) = (key_text(1), key_text(2));
    let own = names::SIGNING_SECRET_TYPE;

    let Lookup::Found(mut found) = secret(own, false, &[("current", &two), ("previous", &one)]) else {
        unreachable!()
    };
    found.annotations.insert(names::CURRENT_ID.to_owned(), "k2".to_owned());
    let resolved = resolve(Lookup::Found(found)).unwrap();
    let signing = keys(&resolved);
    assert_eq!(signing.current_id(), "k2");
    assert_eq!(
        signing.keys,
        [SigningKey::generate([2; 32]), SigningKey::generate([1; 32])]
    );

    let reason = |lookup| {
        let unresolved = resolve(lookup).unwrap_err();
        (unresolved.reason, unresolved.stalled)
    };
    assert_eq!(reason(Lookup::NotFound), (reasons::SECRET_NOT_FOUND, false));
    assert_eq!(reason(Lookup::Denied), (reasons::SECRET_ACCESS_DENIED, false));
    assert_eq!(
        reason(secret("Opaque", true, &[("current", &one)])),
        (reasons::SECRET_CONFLICT, true)
    );
    assert_eq!(
        reason(secret(own, false, &[("previous", &one)])),
        (reasons::SECRET_KEY_MISSING, false)
    );
    assert_eq!(
        reason(secret(own, false, &[("current", "x")])),
        (reasons::SECRET_INVALID, false)
    );
    let bad_previous = [("current", one.as_str()), ("previous", "whsec_short")];
    assert_eq!(
        reason(secret(own, false, &bad_previous)),
        (reasons::SECRET_INVALID, false)
    );
}

#[test]
fn a_chosen_signing_secret_may_hold_several_keys_and_must_be_opened() {
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.signing.secret_ref = Some(reference("mine", "keys"));
    assert_eq!(references_of(&endpoint), [Reference::secret("mine")]);
    let text = format!("{}\n{}\n", key_text(2), key_text(1));
    let mut references = References::default();
    references.insert(Reference::secret("mine"), secret("Opaque", true, &[("keys", &text)]));
    let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
    let signing = keys(&resolved);
    assert_eq!(signing.keys.len(), 2);
    assert_eq!(signing.current_id(), signing.keys[0].fingerprint());

    references.insert(Reference::secret("mine"), secret("Opaque", false, &[("keys", &text)]));
    let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
    assert_eq!(
        (unresolved.reason, unresolved.stalled),
        (reasons::SECRET_NOT_ALLOWED, false)
    );
    assert!(
        unresolved
            .message
            .ends_with("kubectl label secret mine -n sales tidings.dev/use=true"),
        "{unresolved}"
    );
}

#[test]
fn raw_keys_are_one_key_and_without_a_scheme_no_secret_is_read() {
    let mut endpoint = endpoint("https://hooks.example.com/");
    for scheme in [SigningScheme::GitHub, SigningScheme::Stripe] {
        endpoint.spec.signing.scheme = scheme;
        endpoint.spec.signing.secret_ref = Some(reference("mine", "key"));
        let mut references = References::default();
        references.insert(
            Reference::secret("mine"),
            secret("Opaque", true, &[("key", "two words\n"), ("empty", "\n")]),
        );
        let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
        assert_eq!(keys(&resolved).keys, [SigningKey::raw(b"two words").unwrap()]);
        endpoint.spec.signing.secret_ref = Some(reference("mine", "empty"));
        let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
        assert_eq!(unresolved.reason, reasons::SECRET_INVALID);

        endpoint.spec.signing.secret_ref = None;
        let own = names::SIGNING_SECRET_TYPE;
        let generated = Scheme::GitHub.generate([3; 32]);
        let lookup = secret(own, false, &[("current", &generated), ("previous", "older")]);
        references.insert(Reference::secret("crm-signing"), lookup);
        let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
        assert_eq!(keys(&resolved).keys.len(), 2);
    }
    endpoint.spec.signing.scheme = SigningScheme::None;
    assert_eq!(references_of(&endpoint), []);
    let resolved = resolve_endpoint(&endpoint, &References::default(), &closed(), None).unwrap();
    assert_eq!(resolved.signing.current_id(), None);
}

#[test]
fn a_header_from_a_secret_loses_one_newline_and_stays_out_of_debug() {
    let endpoint = with_header("Authorization", None, Some(reference("token", "value")));
    assert_eq!(
        references_of(&endpoint),
        [Reference::secret("crm-signing"), Reference::secret("token")]
    );
    let mut references = generated();
    let with_newline = format!("{SECRET_TEXT}\n");
    references.insert(
        Reference::secret("token"),
        secret("Opaque", true, &[("value", &with_newline)]),
    );
    let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
    assert_eq!(resolved.headers[0].0, "authorization");
    assert_eq!(resolved.headers[0].1, SECRET_TEXT);
    for shown in [format!("{resolved:?}"), format!("{references:?}")] {
        assert!(!shown.contains("very-secret") && !shown.contains("whsec_"), "{shown}");
    }

    let two_lines = format!("{SECRET_TEXT}\nsecond");
    for (lookup, reason) in [
        (
            secret("Opaque", true, &[("value", two_lines.as_str())]),
            reasons::SECRET_INVALID,
        ),
        (
            secret("Opaque", true, &[("other", SECRET_TEXT)]),
            reasons::SECRET_KEY_MISSING,
        ),
        (
            secret("Opaque", false, &[("other", SECRET_TEXT)]),
            reasons::SECRET_NOT_ALLOWED,
        ),
        (Lookup::NotFound, reasons::SECRET_NOT_FOUND),
        (Lookup::Denied, reasons::SECRET_ACCESS_DENIED),
    ] {
        references.insert(Reference::secret("token"), lookup);
        let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reason, false), "{unresolved}");
        assert!(!unresolved.message.contains("very-secret"), "{unresolved}");
    }
}

#[test]
fn headers_that_tidings_sets_itself_are_refused() {
    for name in [
        "Host",
        "webhook-id",
        "Webhook-Anything",
        "Content-Type",
        "TE",
        "X-Hub-Signature-256",
        "a b",
        "",
    ] {
        let unresolved =
            resolve_endpoint(&with_header(name, Some("x"), None), &generated(), &closed(), None).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reasons::INVALID_SPEC, true),
            "{name}"
        );
    }
    let mut twice = with_header("X-Team", Some("a"), None);
    twice
        .spec
        .headers
        .extend(with_header("x-team", Some("b"), None).spec.headers);
    assert!(resolve_endpoint(&twice, &generated(), &closed(), None).is_err());
}

#[test]
fn a_ca_bundle_needs_a_certificate_in_it() {
    let ca = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = ca.cert.pem();
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.tls = Some(Box::new(Tls {
        ca_bundle: Some(CaBundleSource {
            secret_key_ref: None,
            config_map_key_ref: Some(ConfigMapKeyReference {
                name: "ca".to_owned(),
                key: "ca.crt".to_owned(),
            }),
        }),
        client_certificate: None,
    }));
    let name = Reference::config_map("ca");
    assert!(references_of(&endpoint).contains(&name));
    let mut references = generated();
    references.insert(name.clone(), secret("", false, &[("ca.crt", &pem)]));
    let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
    assert_eq!(resolved.ca.unwrap().pem, pem.as_bytes());

    let private = ca.signing_key.serialize_pem();
    let long = pem.repeat(256 * 1024 / pem.len() + 1);
    for (lookup, reason) in [
        (secret("", false, &[("ca.crt", "")]), reasons::CONFIG_MAP_INVALID),
        (
            secret("", false, &[("ca.crt", private.as_str())]),
            reasons::CONFIG_MAP_INVALID,
        ),
        (
            secret("", false, &[("ca.crt", long.as_str())]),
            reasons::CONFIG_MAP_INVALID,
        ),
        (secret("", false, &[("other", "")]), reasons::CONFIG_MAP_KEY_MISSING),
        (Lookup::NotFound, reasons::CONFIG_MAP_NOT_FOUND),
        (Lookup::Denied, reasons::CONFIG_MAP_ACCESS_DENIED),
    ] {
        references.insert(name.clone(), lookup);
        let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reason, false), "{unresolved}");
    }
}

#[test]
fn patterns_of_a_subscription_are_any_exact_or_prefix() {
    let subscription = |types: &[&str]| {
        EventSubscription::new(
            "s",
            EventSubscriptionSpec {
                delivery: Default::default(),
                endpoint_ref: Some(EndpointReference { name: "crm".to_owned() }),
                pull: None,
                event_types: types.iter().map(|t| (*t).to_owned()).collect(),
                sources: vec!["/calls".to_owned()],
                filter: None,
                format: PayloadFormat::CloudEventsStructured,
                request: None,
                dead_letter: None,
                retry: None,
                suspend: true,
            },
        )
    };
    let resolved = resolve_subscription(&subscription(&["*", "lead.qualified", "lead.*", "a.b.*"])).unwrap();
    assert_eq!(
        resolved.event_types,
        [
            TypePattern::Any,
            TypePattern::Exact("lead.qualified".to_owned()),
            TypePattern::Prefix("lead.".to_owned()),
            TypePattern::Prefix("a.b.".to_owned()),
        ]
    );
    let to_crm = Delivery::Push {
        endpoint: "crm".to_owned(),
    };
    assert_eq!((&resolved.delivery, resolved.suspend), (&to_crm, true));
    assert_eq!(resolved.format, Format::CloudEventsStructured);
    assert_eq!(resolved.retry, None, "the endpoint's");
    let mut own = subscription(&["*"]);
    own.spec.retry = Some(Retry {
        schedule: vec!["5s".into()],
        ..Retry::default()
    });
    let policy = RetryPolicy {
        schedule: vec![Duration::from_secs(5)],
        ..RetryPolicy::default()
    };
    assert_eq!(resolve_subscription(&own).unwrap().retry, Some(policy));
    own.spec.retry = Some(Retry {
        max_age: "soon".into(),
        ..Retry::default()
    });
    assert_eq!(resolve_subscription(&own).unwrap_err().reason, reasons::INVALID_SPEC);
    for types in [
        &[][..],
        &[""],
        &["lead*"],
        &["*.lead"],
        &["a*b"],
        &["a b"],
        &[".*"],
        &["**"],
    ] {
        let unresolved = resolve_subscription(&subscription(types)).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reasons::INVALID_SPEC, true),
            "{types:?}"
        );
    }
}

#[test]
fn an_invalid_request_says_why_and_the_last_valid_one_stays_in_force() {
    let subscription = |generation: i64, request: serde_json::Value| -> EventSubscription {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": "s", "namespace": "n", "generation": generation},
            "spec": {"endpointRef": {"name": "e"}, "eventTypes": [format!("type.{generation}")], "request": request},
        }))
        .unwrap()
    };
    let valid = resolve_subscription(&subscription(1, serde_json::json!({"body": "{'a': 1}"}))).unwrap();
    for (request, told) in [
        (serde_json::json!({"body": "{'a': "}), "request.body: line 1, column"),
        (
            serde_json::json!({"path": "event.id +"}),
            "request.path: line 1, column",
        ),
        (serde_json::json!({"body": "response.status"}), "request.body: "),
        (
            serde_json::json!({"headers": [{"name": "X-A", "value": "nosuch(1)"}]}),
            "request.headers, X-A: ",
        ),
        (
            serde_json::json!({"headers": [{"name": "Webhook-Id", "value": "'a'"}]}),
            "header Webhook-Id is set by Tidings",
        ),
        (
            serde_json::json!({"headers": [{"name": "Content-Type", "value": "'a/b'"}]}),
            "header Content-Type is set by Tidings",
        ),
        (
            serde_json::json!({"secrets": [{"name": "a", "secretKeyRef": {"name": "../b", "key": "k"}}]}),
            "is no name of a Secret",
        ),
    ] {
        let spoilt = subscription(2, request.clone());
        let why = resolve_subscription(&spoilt).unwrap_err();
        assert_eq!((why.reason, why.stalled), (reasons::INVALID_REQUEST, true), "{why}");
        assert!(why.message.contains(told), "{request}: {why}");
        let in_force = resolve_with_last(&spoilt, &why, Some(&valid)).unwrap();
        assert_eq!(in_force.request, valid.request);
        assert_eq!(
            in_force.event_types,
            [TypePattern::Exact("type.2".into())],
            "all else is new"
        );
        let nothing_known = resolve_with_last(&spoilt, &why, None).unwrap();
        assert_eq!(nothing_known.request, RequestForm::Unknown);
    }
}

#[test]
fn what_an_endpoint_uses_of_secrets_is_enough_to_resolve_it_and_says_the_same_of_values_that_are_too_long() {
    let ca = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (ca.cert.pem(), ca.signing_key.serialize_pem());
    let from = |key: &str| serde_json::json!({"name": "all", "key": key});
    let of = |token: &str, signing: serde_json::Value| -> WebhookEndpoint {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
            "metadata": {"name": "crm", "namespace": "sales"},
            "spec": {
                "urlFrom": {"secretKeyRef": from("url")},
                "signing": signing,
                "headers": [{"name": "x-team", "secretKeyRef": from("header")}],
                "auth": {"type": "OAuth2ClientCredentials", "oauth2ClientCredentials": {
                    "tokenURL": "https://login.example.com/token",
                    "clientIDSecretKeyRef": from("id"), "clientSecretKeyRef": from(token)}},
                "tls": {"caBundle": {"secretKeyRef": from("ca")}, "clientCertificate": {"secretRef": {"name": "all"}}},
            },
        }))
        .unwrap()
    };
    let own = key_text(1);
    let long = "a".repeat((8 << 10) + 1);
    let read = |reference: &Reference, used: &Used| {
        let (r#type, data) = match reference.name.as_str() {
            "all" => (
                "Opaque",
                vec![
                    ("url", "https://hooks.example.com/"),
                    ("header", "h"),
                    ("id", "i"),
                    ("secret", "s"),
                    ("long", &long),
                    ("ca", &certificate),
                    ("tls.crt", &certificate),
                    ("tls.key", &key),
                    ("mine", &own),
                    ("rest", &long),
                ],
            ),
            _ => (
                names::SIGNING_SECRET_TYPE,
                vec![("current", own.as_str()), ("rest", &long)],
            ),
        };
        let data = data
            .into_iter()
            .map(|(key, value)| (key.to_owned(), k8s_openapi::ByteString(value.into())));
        let mut secret = k8s_openapi::api::core::v1::Secret {
            type_: Some(r#type.to_owned()),
            data: Some(data.collect()),
            ..Default::default()
        };
        let label = (names::USE_LABEL.to_owned(), names::USE_LABEL_VALUE.to_owned());
        secret.metadata.labels = (reference.name == "all").then(|| [label].into());
        Found::of_secret(secret, used, crate::api::policy::SecretLabel::Required)
    };
    let resolve = |endpoint: &WebhookEndpoint| {
        let mut references = References::default();
        for (reference, used) in uses_of(endpoint) {
            let found = read(&reference, &used);
            assert!(!found.data.contains_key("rest"), "{reference:?}");
            references.insert(reference, Lookup::Found(found));
        }
        resolve_endpoint(endpoint, &references, &closed(), None)
    };
    for signing in [serde_json::json!({}), serde_json::json!({"secretRef": from("mine")})] {
        let resolved = resolve(&of("secret", signing)).unwrap();
        assert_eq!(keys(&resolved).keys, [SigningKey::generate([1; 32])]);
        assert!(resolved.ca.is_some() && resolved.client.is_some() && resolved.token.is_some());
    }
    let unresolved = resolve(&of("long", serde_json::json!({}))).unwrap_err();
    assert_eq!(
        unresolved.message,
        "key long of Secret all: it has 8193 bytes, at most 8192 can be used"
    );
}
