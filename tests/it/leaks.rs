//! No secret in what the processes log (at trace level), measure, report or tell, whatever goes wrong with it, nor on the
//! dispatcher's disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidings_cluster::{
    Cluster, Controller, ControllerOptions, Dispatcher, DispatcherOptions, SYSTEM_NAMESPACE, Tidings,
};

use super::keys::{keys, look, until_keys};
use super::receiver::{NEXT_SECRET, Receiver, SECRET};
use super::team::{PATIENCE, TYPES, Team};

/// Values that must not show, by what they are.
#[derive(Default)]
struct Scan {
    secrets: BTreeMap<String, String>,
}

impl Scan {
    fn add(&mut self, what: &str, value: &str) {
        assert!(value.len() >= 12, "{what} is too short to be told from other text");
        self.secrets.insert(what.to_owned(), value.to_owned());
    }

    /// The ways in which a value would show: as it is, as a Secret's data, as Debug of its bytes, in hexadecimal.
    fn forms(value: &str) -> Vec<String> {
        let bytes: Vec<String> = value.bytes().map(|byte| byte.to_string()).collect();
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms = vec![value.to_owned(), STANDARD.encode(value), bytes.join(", "), hex];
        if let Some(encoded) = value.strip_prefix("whsec_") {
            forms.push(encoded.to_owned());
            if let Ok(key) = STANDARD.decode(encoded) {
                let bytes: Vec<String> = key.iter().map(u8::to_string).collect();
                forms.extend([bytes.join(", "), key.iter().map(|byte| format!("{byte:02x}")).collect()]);
            }
        }
        // A token's signature alone is the secret part of it.
        if value.split('.').count() == 3 {
            forms.extend(value.rsplit('.').next().map(str::to_owned));
        }
        forms
    }

    /// Which secrets are in a text.
    fn find(&self, place: &str, text: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(text);
        let mut found = Vec::new();
        for (what, value) in &self.secrets {
            for form in Scan::forms(value) {
                if let Some(at) = text.find(&form) {
                    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                    let before: String = text[line..at].chars().take(300).collect();
                    found.push(format!("{what} in {place}, after {before:?}"));
                }
            }
        }
        found
    }

    /// Which are in the files of a directory.
    fn find_in(&self, dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(self.find_in(&path));
            } else {
                found.extend(self.find(&path.display().to_string(), &fs::read(&path).unwrap()));
            }
        }
        found
    }

    /// Which are in anything that somebody without access to Secrets can see.
    fn find_everywhere(&self, cluster: &Cluster, controller: &Controller, dispatcher: &Dispatcher) -> Vec<String> {
        let mut found = self.find_in(&cluster.logs_dir());
        found.extend(self.find("what Kubernetes shows", shown(cluster).as_bytes()));
        for (place, metrics) in [
            ("controller", controller.metrics()),
            ("dispatcher", dispatcher.metrics()),
        ] {
            found.extend(self.find(&format!("metrics of the {place}"), metrics.unwrap().as_bytes()));
        }
        found.extend(self.find_in(&dispatcher.data_dir));
        found
    }
}

/// All that Tidings writes in Kubernetes but Secrets.
fn shown(cluster: &Cluster) -> String {
    let kinds = "events.events.k8s.io,whe,evsub,evtype,leases,roles,rolebindings";
    cluster.kubectl_ok(&["get", kinds, "-A", "-o", "yaml"]).unwrap()
}

fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": {"tidings.dev/use": "true"}}, "stringData": {key: value}})
}

const HEADER: &str = "header-value-4f8Zq1LwNs7";
const CHANGED_HEADER: &str = "changed-value-9sKd02Lmz1x";
const UNUSABLE_HEADER: &str = "control-\u{1}-value-77aGd02Lmz1x";
const UNUSABLE_KEY: &str = "whsec_this-is-no-base64-Zk29sLq8";
const UNOPENED: &str = "unopened-value-Qm3v8Lx0pR";
const ANSWER: &str = "what-the-receiver-says-5h2Kd9";

/// Answers by its path, with a body and a header that must not be repeated in status.
async fn receiver() -> Receiver {
    Receiver::start(|mut connection, _| async move {
        while let Some(request) = connection.request().await {
            let status = request
                .line
                .split(' ')
                .nth(1)
                .unwrap()
                .trim_start_matches('/')
                .to_owned();
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

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_in_logs_at_trace_level_metrics_status_events_or_on_the_dispatchers_disk() {
    let cluster = Cluster::start().unwrap();
    let tidings = Tidings::install(&cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
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
    team.until_reason("whe", "control", "Ready", "SecretInvalid");
    team.until_reason("whe", "unopened", "Ready", "SecretNotAllowed");
    team.until_reason("whe", "nokey", "Ready", "SecretInvalid");
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
        ("answers-410", "Disabled"),
        ("answers-401", "CircuitOpen"),
        ("untrusted", "Backoff"),
        ("refused", "CircuitOpen"),
    ] {
        team.until_reason("whe", name, "Delivering", reason);
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
