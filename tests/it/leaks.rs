//! No secret in what the processes log (at trace level), measure, report or tell, whatever goes wrong with it, nor on the
//! dispatcher's disk.

use std::fs;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, SYSTEM_NAMESPACE, Tidings};

use super::keys::{keys, look, until_keys};
use super::oauth2::{SOMEWHERE, Tokens, auth};
use super::receiver::{NEXT_SECRET, Receiver, SECRET, TRUSTED};
use super::scan::{Scan, shown};
use super::team::{PATIENCE, TYPES, Team};

fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"tidings.dev/use": "true"}}, "stringData": {key: value}})
}

const HEADER: &str = "header-value-4f8Zq1LwNs7";
const CHANGED_HEADER: &str = "changed-value-9sKd02Lmz1x";
const UNUSABLE_HEADER: &str = "control-\u{1}-value-77aGd02Lmz1x";
const UNUSABLE_KEY: &str = "whsec_this-is-no-base64-Zk29sLq8";
const BEARER: &str = "bearer-value-8sLq2Zm4Kd";
const PASSWORD: &str = "password-value-3Xv7Qp1Ts";
const CLIENT_SECRET: &str = "client-secret-7Gd2Kq9Rv";
const OTHER_CLIENT_SECRET: &str = "client-secret-1Mw8Xe3Pz";
const URL_KEY: &str = "hook-key-6Rt9Wn2Yb5";
const UNUSABLE_URL: &str = "http://plain.example/hook-key-2Hj4Vc8Mx1";
const GITHUB_KEY: &str = "raw-key-9Fe3Lk7Ub2";
const UNOPENED: &str = "unopened-value-Qm3v8Lx0pR";
const QUOTED_KEY: &str = "whsec_cXVvdGVkIGluIGEgcmVmdXNhbCwgMzIgYnl0ZXM=";
const ANSWER: &str = "what-the-receiver-says-5h2Kd9";

/// Answers by its path, with a body and a header that must not be repeated in status.
async fn receiver() -> Receiver {
    Receiver::start(|mut connection, _| async move {
        while let Some(request) = connection.request().await {
            let path = request.line.split(' ').nth(1).unwrap();
            let status = path.trim_start_matches('/').split('?').next().unwrap();
            let answer = format!(
                "HTTP/1.1 {status} {ANSWER}\r\nx-note: {ANSWER}\r\ncontent-length: {}\r\n\r\n{ANSWER}",
                ANSWER.len()
            );
            if !connection.write(answer).await {
                return;
            }
        }
    })
    .await
}

/// Has the API server refuse the signing Secret of an endpoint with a sentence that quotes a key; returns when it does.
fn refuse_signing_secret_of(team: &Team<'_>, endpoint: &str) {
    let name = format!("{endpoint}-signing");
    let kind = |kind: &str, spec: Value| {
        let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "quotes"}, "spec": spec});
        team.cluster.apply(&object.to_string()).unwrap();
    };
    let secrets = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["secrets"]});
    kind(
        "ValidatingAdmissionPolicy",
        json!({
            "matchConstraints": {"resourceRules": [secrets]},
            "validations": [{
                "expression": format!("object.metadata.name != '{name}'"),
                "message": format!("data.current is {QUOTED_KEY}, which may not be"),
            }],
        }),
    );
    kind(
        "ValidatingAdmissionPolicyBinding",
        json!({"policyName": "quotes", "validationActions": ["Deny"]}),
    );
    let deadline = Instant::now() + PATIENCE;
    let attempt = [
        "create",
        "secret",
        "generic",
        &name,
        "-n",
        &team.namespace,
        "--dry-run=server",
    ];
    while team.cluster.kubectl(&attempt).unwrap().status.success() {
        assert!(Instant::now() < deadline, "the policy was never in force");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_in_logs_at_trace_level_metrics_status_events_or_on_the_dispatchers_disk() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    // Everything that any library says, too.
    let mut controller = tidings
        .start_controller(&ControllerOptions {
            log_filter: "trace".into(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            log_filter: "trace".into(),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::open(&cluster, "leaks");
    let receiver = receiver().await;
    let url = |status: u16| format!("https://{}/{status}", receiver.address);
    let with_header = |name: &str| json!({"headers": [{"name": "authorization", "secretKeyRef": {"name": name, "key": "token"}}], "retry": {"schedule": ["1s"]}});
    let mut scan = Scan::default();
    for (what, value) in [
        ("a header", HEADER),
        ("a changed header", CHANGED_HEADER),
        ("an unusable header", UNUSABLE_HEADER),
        ("an unusable key", UNUSABLE_KEY),
        ("an unopened Secret", UNOPENED),
        ("a bearer's token", BEARER),
        ("a password", PASSWORD),
        ("an OAuth client's secret", CLIENT_SECRET),
        ("an OAuth client's wrong secret", OTHER_CLIENT_SECRET),
        ("a URL's key", URL_KEY),
        ("an unusable URL", UNUSABLE_URL),
        ("a key of another scheme", GITHUB_KEY),
        ("a key that a refusal quotes", QUOTED_KEY),
        ("Basic credentials", &STANDARD.encode(format!("tidings:{PASSWORD}"))),
        ("a private key", TRUSTED.key_pem.lines().nth(1).unwrap()),
        ("a key of one's own", SECRET),
        ("another key of one's own", NEXT_SECRET),
        ("the producer's token", team.token()),
    ] {
        scan.add(what, value);
    }
    for account in ["controller", "dispatcher"] {
        let kubeconfig = fs::read_to_string(
            cluster
                .dir()
                .join(format!("kubeconfig-{SYSTEM_NAMESPACE}-tidings-{account}")),
        )
        .unwrap();
        let config: Value = serde_yaml::from_str(&kubeconfig).unwrap();
        scan.add(
            &format!("the {account}'s token"),
            config["users"][0]["user"]["token"].as_str().unwrap(),
        );
    }

    // Endpoints that go well, and those that meet every kind of trouble with a Secret or a receiver.
    team.apply(&secret("crm-token", "token", HEADER));
    team.apply(&secret("own", "keys", &format!("{SECRET} {NEXT_SECRET}")));
    team.apply(&secret("control", "token", UNUSABLE_HEADER));
    team.apply(&secret("nokey", "keys", UNUSABLE_KEY));
    let mut unopened = secret("unopened", "token", UNOPENED);
    unopened["metadata"]["labels"] = json!({});
    team.apply(&unopened);
    team.deliver_to("well", &url(200), with_header("crm-token"));
    for status in [401, 410, 500] {
        team.deliver_to(&format!("answers-{status}"), &url(status), with_header("crm-token"));
    }
    team.deliver_to(
        "own",
        &url(200),
        json!({"signing": {"secretRef": {"name": "own", "key": "keys"}}}),
    );
    team.deliver_to(
        "untrusted",
        &url(200),
        json!({"tls": null, "headers": with_header("crm-token")["headers"]}),
    );
    team.deliver_to("refused", "https://127.0.0.1:9/", with_header("crm-token"));
    team.endpoint("control", &url(200), with_header("control"));
    team.endpoint("unopened", &url(200), with_header("unopened"));
    team.endpoint(
        "nokey",
        &url(200),
        json!({"signing": {"secretRef": {"name": "nokey", "key": "keys"}}}),
    );
    // The other ways to show oneself, each used and each refused.
    let reference = |name: &str, key: &str| json!({"secretKeyRef": {"name": name, "key": key}});
    team.apply(&secret("bearer", "token", BEARER));
    team.apply(&secret("basic", "password", PASSWORD));
    team.apply(&secret("hook", "url", &format!("{}?key={URL_KEY}", url(200))));
    team.apply(&secret(
        "hook-away",
        "url",
        &format!("https://127.0.0.1:9/?key={URL_KEY}"),
    ));
    team.apply(&secret("hook-unusable", "url", UNUSABLE_URL));
    team.apply(&secret("github", "key", GITHUB_KEY));
    let mut client = secret("client", "tls.crt", &TRUSTED.cert_pem);
    client["stringData"]["tls.key"] = json!(TRUSTED.key_pem);
    team.apply(&client);
    let mut broken = secret("client-broken", "tls.crt", &TRUSTED.cert_pem);
    broken["stringData"]["tls.key"] = json!(TRUSTED.key_pem.replacen("BEGIN", "BEGUN", 1));
    team.apply(&broken);
    let basic = json!({"username": "tidings", "passwordSecretKeyRef": {"name": "basic", "key": "password"}});
    let github = json!({"scheme": "GitHub", "secretRef": {"name": "github", "key": "key"}});
    for (name, more) in [
        (
            "bearer",
            json!({"auth": {"type": "Bearer", "bearer": reference("bearer", "token")}}),
        ),
        ("basic", json!({"auth": {"type": "Basic", "basic": basic}})),
        ("hook", json!({"url": null, "urlFrom": reference("hook", "url")})),
        (
            "hook-away",
            json!({"url": null, "urlFrom": reference("hook-away", "url")}),
        ),
        (
            "client",
            json!({"tls": {"clientCertificate": {"secretRef": {"name": "client"}}}}),
        ),
        ("github", json!({"signing": github})),
    ] {
        team.deliver_to(name, &url(200), more);
    }
    let tokens = Tokens::new(CLIENT_SECRET).await;
    let token_server = tokens.serve(SOMEWHERE.into()).await;
    for (name, value) in [("oauth2", CLIENT_SECRET), ("oauth2-refused", OTHER_CLIENT_SECRET)] {
        team.apply(&secret(name, "secret", value));
        let client = json!({"clientSecretKeyRef": {"name": name, "key": "secret"}, "clientAuthentication": "Body"});
        let auth = json!({"auth": auth(token_server.address, &client)});
        team.deliver_to(name, &format!("https://{}/", tokens.receiver.address), auth);
    }
    let unusable = json!({"url": null, "urlFrom": reference("hook-unusable", "url")});
    team.endpoint("hook-unusable", &url(200), unusable);
    let broken = json!({"tls": {"clientCertificate": {"secretRef": {"name": "client-broken"}}}});
    team.endpoint("client-broken", &url(200), broken);
    team.until_reason("whe", "hook-unusable", "Ready", "SecretInvalid");
    team.until_reason("whe", "client-broken", "Ready", "SecretInvalid");
    team.until_reason("whe", "control", "Ready", "SecretInvalid");
    team.until_reason("whe", "unopened", "Ready", "SecretNotAllowed");
    team.until_reason("whe", "nokey", "Ready", "SecretInvalid");
    // An admission policy that quotes what was to be written, as its author pleases.
    refuse_signing_secret_of(&team, "quoted");
    team.endpoint("quoted", &url(200), json!({}));
    team.until_reason("whe", "quoted", "Ready", "SecretAccessDenied");
    scan.add("a generated key", &keys(&team, "well").current);
    scan.add("a key that will be lost", &keys(&team, "refused").current);

    let post = |id: &'static str, event_type| team.post(&dispatcher, id, event_type);
    assert_eq!(post("first", TYPES[0]).await.status, 202);
    assert_eq!(post("forbidden", "another.type").await.status, 403);
    let http = reqwest::Client::new();
    let other_audience = cluster.token("leaks", "agent", None).unwrap();
    let garbled = format!("{}x", team.token());
    scan.add("a token for another audience", &other_audience);
    scan.add("a token that is none", &garbled);
    for token in [&other_audience, &garbled] {
        let request = http
            .post(dispatcher.events_url("leaks"))
            .bearer_auth(token)
            .header("content-type", "application/cloudevents+json");
        let event = json!({"specversion": "1.0", "id": "x", "source": "/s", "type": TYPES[0]});
        assert_eq!(request.body(event.to_string()).send().await.unwrap().status(), 401);
    }
    for (name, reason) in [
        ("well", "Succeeding"),
        ("own", "Succeeding"),
        ("bearer", "Succeeding"),
        ("basic", "Succeeding"),
        ("hook", "Succeeding"),
        ("hook-away", "Backoff"),
        ("client", "Succeeding"),
        ("oauth2", "Succeeding"),
        ("oauth2-refused", "Backoff"),
        ("github", "Succeeding"),
        ("answers-410", "Disabled"),
        ("answers-401", "CircuitOpen"),
        ("untrusted", "Backoff"),
        ("refused", "CircuitOpen"),
    ] {
        team.until_reason("whe", name, "Delivering", reason);
    }

    for token in tokens.valid() {
        scan.add("a token", &token);
    }

    // Rotated, edited by hand, lost, changed; processes killed, and the API server away.
    team.ask("well", "rotate");
    let rotated = until_keys(&team, "in its overlap", "well", |k| k.expires().is_some());
    scan.add("a rotated key", &rotated.current);
    let edit = json!({"stringData": {"current": UNUSABLE_KEY}}).to_string();
    cluster
        .kubectl_ok(&[
            "patch",
            "secret",
            "answers-500-signing",
            "-n",
            "leaks",
            "--type=merge",
            "-p",
            &edit,
        ])
        .unwrap();
    look(&team, "answers-500");
    team.until_reason("whe", "answers-500", "Ready", "SecretInvalid");
    team.delete("secret", "refused-signing");
    look(&team, "refused");
    team.until_event("refused", "SigningKeyLost");
    scan.add("a key made anew", &keys(&team, "refused").current);
    team.apply(&secret("crm-token", "token", CHANGED_HEADER));
    look(&team, "well");
    cluster.stop_api_server();
    let away = Instant::now();
    while team
        .try_post(&dispatcher, &format!("away-{:?}", away.elapsed()), TYPES[0])
        .await
        .unwrap()
        .status
        != 202
    {
        assert!(
            away.elapsed() < PATIENCE,
            "cached answers serve while the API server is away"
        );
    }
    cluster.start_api_server().unwrap();
    dispatcher.restart().unwrap();
    controller.process.terminate(PATIENCE).unwrap();
    controller.process.start_again().unwrap();
    controller.wait_ready().unwrap();
    team.endpoint("last", &url(200), with_header("crm-token"));
    team.ready("whe/last");
    scan.add("the last key", &keys(&team, "last").current);

    let found = scan.find_everywhere(&cluster, &controller, &dispatcher);
    assert!(found.is_empty(), "{found:#?}");
    let shown = shown(&cluster);
    assert!(
        shown.contains("SecretInvalid") && shown.contains("recentFailures"),
        "there was something to look at"
    );
    assert!(
        !shown.contains(ANSWER),
        "what a receiver says is not repeated in status or Events"
    );

    // The scan sees what it looks for: in each form, and in each place.
    for (what, value) in &scan.secrets {
        for form in Scan::forms(value) {
            assert!(
                !scan.find("here", format!("a line\nof: {form}.").as_bytes()).is_empty(),
                "{what} as {form:?}"
            );
        }
    }
    let planted = cluster.logs_dir().join("planted.log");
    fs::write(&planted, format!("trace: {HEADER}\n")).unwrap();
    cluster
        .kubectl_ok(&[
            "annotate",
            "whe",
            "last",
            "-n",
            "leaks",
            &format!("planted={CHANGED_HEADER}"),
        ])
        .unwrap();
    fs::write(dispatcher.data_dir.join("planted"), STANDARD.encode(SECRET)).unwrap();
    let found = scan.find_everywhere(&cluster, &controller, &dispatcher);
    for (what, place) in [
        ("a header", "planted.log"),
        ("a changed header", "what Kubernetes shows"),
        ("a key of one's own", "planted"),
    ] {
        assert!(
            found
                .iter()
                .any(|found| found.starts_with(&format!("{what} in ")) && found.contains(place)),
            "{what}: {found:#?}"
        );
    }
}
