use super::*;
use crate::api::auth::{Auth, AuthType, BasicAuth, BearerAuth, ClientCertificate};
use crate::api::common::SecretReference;
use crate::api::endpoint::UrlSource;

fn opened(data: &[(&str, &str)]) -> Lookup {
    secret("Opaque", true, data)
}

#[test]
fn auth_becomes_a_sensitive_header_and_excludes_one_written_by_hand() {
    let mut endpoint = endpoint("https://hooks.example.com/");
    let bearer = BearerAuth {
        secret_key_ref: reference("token", "value"),
    };
    let basic = BasicAuth {
        username: "tidings".to_owned(),
        password_secret_key_ref: reference("token", "value"),
    };
    let of = |kind, bearer, basic| {
        Some(Box::new(Auth {
            kind,
            bearer,
            basic,
            oauth2: None,
        }))
    };
    let mut references = generated();
    references.insert(Reference::secret("token"), opened(&[("value", "very-secret\n")]));
    for (auth, header) in [
        (of(AuthType::Bearer, Some(bearer.clone()), None), "Bearer very-secret"),
        (
            of(AuthType::Basic, None, Some(basic.clone())),
            "Basic dGlkaW5nczp2ZXJ5LXNlY3JldA==",
        ),
    ] {
        endpoint.spec.auth = auth;
        assert!(references_of(&endpoint).contains(&Reference::secret("token")));
        let resolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap();
        let (name, value) = resolved.headers.last().unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("authorization", header));
        let shown = format!("{resolved:?}");
        assert!(!shown.contains("very-secret") && !shown.contains("dGlkaW5n"), "{shown}");
    }
    for (lookup, reason) in [
        (opened(&[("value", "\n")]), reasons::SECRET_INVALID),
        (opened(&[("value", "two\nlines")]), reasons::SECRET_INVALID),
        (
            opened(&[("value", &"a".repeat((8 << 10) + 1))]),
            reasons::SECRET_INVALID,
        ),
        (opened(&[]), reasons::SECRET_KEY_MISSING),
        (
            secret("Opaque", false, &[("value", "very-secret")]),
            reasons::SECRET_NOT_ALLOWED,
        ),
    ] {
        endpoint.spec.auth = of(AuthType::Bearer, Some(bearer.clone()), None);
        references.insert(Reference::secret("token"), lookup);
        let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reason, false), "{unresolved}");
    }
    references.insert(Reference::secret("token"), opened(&[("value", "very-secret")]));
    let mut twice = endpoint.clone();
    twice
        .spec
        .headers
        .extend(with_header("authorization", Some("x"), None).spec.headers);
    let mut mixed = endpoint.clone();
    mixed.spec.auth = of(AuthType::Basic, Some(bearer.clone()), Some(basic.clone()));
    let mut colon = endpoint.clone();
    colon.spec.auth = of(
        AuthType::Basic,
        None,
        Some(BasicAuth {
            username: "a:b".to_owned(),
            ..basic
        }),
    );
    for broken in [twice, mixed, colon] {
        let unresolved = resolve_endpoint(&broken, &references, &closed(), None).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reasons::INVALID_SPEC, true));
    }
}

#[test]
fn a_url_from_a_secret_shows_its_host_and_nothing_more() {
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.url = None;
    endpoint.spec.url_from = Some(UrlSource {
        secret_key_ref: reference("hook", "url"),
    });
    let mut references = generated();
    let mut resolve = |lookup: Lookup| {
        references.insert(Reference::secret("hook"), lookup);
        resolve_endpoint(&endpoint, &references, &closed(), None)
    };
    assert!(references_of(&endpoint).contains(&Reference::secret("hook")));
    let resolved = resolve(opened(&[(
        "url",
        "https://hooks.example.com/very-secret?very=secret\n",
    )]))
    .unwrap();
    assert_eq!(resolved.target.path, "/very-secret?very=secret");
    assert!(resolved.target.is_secret);
    assert_eq!(resolved.target.origin, "https://hooks.example.com");
    assert!(!format!("{resolved:?}").contains("very"), "{resolved:?}");
    for (url, reason) in [
        ("http://hooks.example.com/very-secret", reasons::SECRET_INVALID),
        ("very-secret", reasons::SECRET_INVALID),
        ("https://very:secret@example.com/", reasons::SECRET_INVALID),
        ("https://169.254.169.254/very-secret", reasons::POLICY_DENIED),
    ] {
        let unresolved = resolve(opened(&[("url", url)])).unwrap_err();
        assert_eq!(unresolved.reason, reason, "{url}");
        assert!(!unresolved.message.contains("very"), "{unresolved}");
    }
    endpoint.spec.url = Some("https://hooks.example.com/".to_owned());
    let both = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
    assert_eq!(both.reason, reasons::INVALID_SPEC);
    endpoint.spec.url = None;
    endpoint.spec.url_from = None;
    let neither = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
    assert_eq!(neither.reason, reasons::INVALID_SPEC);
}

#[test]
fn a_client_certificate_and_its_key_must_belong_together() {
    let make = || rcgen::generate_simple_self_signed(vec!["tidings".to_owned()]).unwrap();
    let (one, other) = (make(), make());
    let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
    let other_key = other.signing_key.serialize_pem();
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.tls = Some(Box::new(Tls {
        ca_bundle: None,
        client_certificate: Some(ClientCertificate {
            secret_ref: SecretReference {
                name: "client".to_owned(),
            },
        }),
    }));
    let mut references = generated();
    let mut resolve = |lookup: Lookup| {
        references.insert(Reference::secret("client"), lookup);
        resolve_endpoint(&endpoint, &references, &closed(), None)
    };
    let resolved = resolve(opened(&[("tls.crt", &certificate), ("tls.key", &key)])).unwrap();
    let shown = resolved.client.unwrap();
    assert_eq!(shown.chain.len(), 1);
    assert_eq!(format!("{shown:?}"), "ClientIdentity(redacted)");
    let other_pair = [("tls.crt", other.cert.pem()), ("tls.key", other_key.clone())];
    let other_pair = other_pair.each_ref().map(|(name, value)| (*name, value.as_str()));
    let renewed = resolve(opened(&other_pair)).unwrap().client.unwrap();
    assert_ne!(shown.digest, renewed.digest);
    for (lookup, reason) in [
        (
            opened(&[("tls.crt", &certificate), ("tls.key", &other_key)]),
            reasons::SECRET_INVALID,
        ),
        (opened(&[("tls.crt", "x"), ("tls.key", &key)]), reasons::SECRET_INVALID),
        (
            opened(&[("tls.crt", &certificate), ("tls.key", "x")]),
            reasons::SECRET_INVALID,
        ),
        (opened(&[("tls.crt", &certificate)]), reasons::SECRET_KEY_MISSING),
        (
            secret(
                "kubernetes.io/tls",
                false,
                &[("tls.crt", &certificate), ("tls.key", &key)],
            ),
            reasons::SECRET_NOT_ALLOWED,
        ),
    ] {
        let unresolved = resolve(lookup).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reason, false), "{unresolved}");
    }
}

#[test]
fn what_no_object_can_be_called_is_never_asked_for_and_is_the_specs_fault() {
    let named = |name: &str| with_header("x-team", None, Some(reference(name, "token")));
    for name in [
        "crm token",
        "team/crm",
        "crm?x",
        "../../other/secrets/x",
        "..",
        "Crm",
        "crm-",
        "",
    ] {
        let endpoint = named(name);
        assert_eq!(references_of(&endpoint), [Reference::secret("crm-signing")], "{name}");
        let mut references = generated();
        references.insert(Reference::secret(name), secret("Opaque", true, &[("token", "t")]));
        let unresolved = resolve_endpoint(&endpoint, &references, &closed(), None).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reasons::INVALID_SPEC, true),
            "{name}"
        );
    }
    assert!(references_of(&named("0.crm-token.v1")).contains(&Reference::secret("0.crm-token.v1")));
}

#[test]
fn a_request_for_a_token_holds_what_the_spec_says_and_shows_none_of_it() {
    let client = |more: serde_json::Value| {
        let mut client = serde_json::json!({
            "tokenURL": "https://login.example.com/token",
            "clientID": "tidings 1",
            "clientSecretKeyRef": {"name": "client", "key": "secret"},
        });
        client
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let mut endpoint = endpoint("https://hooks.example.com/");
        let auth = serde_json::json!({"type": "OAuth2ClientCredentials", "oauth2ClientCredentials": client});
        endpoint.spec.auth = Some(serde_json::from_value(auth).unwrap());
        endpoint
    };
    let mut references = generated();
    let values = [("secret", "very/secret~\n"), ("id", "tidings 1"), ("empty", "")];
    references.insert(Reference::secret("client"), opened(&values));
    let resolved = |more| resolve_endpoint(&client(more), &references, &closed(), None);
    let token = |more| resolved(more).unwrap().token.unwrap();

    let basic = token(serde_json::json!({"scopes": ["a", "b"], "parameters": [{"name": "audience", "value": "x&y"}]}));
    assert_eq!(basic.form, "grant_type=client_credentials&scope=a%20b&audience=x%26y");
    // printf 'tidings%%201:very%%2Fsecret~' | base64
    assert_eq!(
        basic.authorization.as_ref().unwrap(),
        "Basic dGlkaW5ncyUyMDE6dmVyeSUyRnNlY3JldH4="
    );
    let body = token(serde_json::json!({"clientAuthentication": "Body"}));
    let form = "grant_type=client_credentials&client_id=tidings%201&client_secret=very%2Fsecret~";
    assert_eq!((&body.form[..], &body.authorization), (form.as_bytes(), &None));
    assert_ne!(basic.digest, body.digest);
    let from_secret = serde_json::json!({"clientID": null, "clientIDSecretKeyRef": {"name": "client", "key": "id"}, "clientAuthentication": "Body"});
    assert_eq!(token(from_secret).digest, body.digest, "the same request");
    let shown = format!("{:?}", resolved(serde_json::json!({})).unwrap());
    assert!(!shown.contains("very") && !shown.contains("dGlkaW5n"), "{shown}");

    for (more, reason, message) in [
        (
            serde_json::json!({"tokenURL": "http://x.example/"}),
            reasons::INVALID_SPEC,
            "tokenURL: url must begin with https",
        ),
        (
            serde_json::json!({"tokenURL": "https://10.0.0.1/"}),
            reasons::POLICY_DENIED,
            "tokenURL: url names 10.0.0.1",
        ),
        (
            serde_json::json!({"clientID": null}),
            reasons::INVALID_SPEC,
            "exactly one of clientID",
        ),
        (
            serde_json::json!({"clientSecretKeyRef": {"name": "client", "key": "empty"}}),
            reasons::SECRET_INVALID,
            "it is empty",
        ),
        (
            serde_json::json!({"clientSecretKeyRef": {"name": "client", "key": "none"}}),
            reasons::SECRET_KEY_MISSING,
            "none",
        ),
    ] {
        let unresolved = resolved(more).unwrap_err();
        assert_eq!(unresolved.reason, reason);
        assert!(unresolved.message.contains(message), "{unresolved}");
    }
}
