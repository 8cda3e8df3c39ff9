//! The examples of producers in `examples/producers`, as they are there: processes with the token of a ServiceAccount in a
//! file, each of which comes through whatever ingest answers on the way, and stops where that is of no use.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Deserialize as _;
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Producers, Tidings, repository_root};

use super::messages::Reader;
use super::team::{Answer, PATIENCE, Shared, Team, Webhooks};

const EXAMPLES: [&str; 5] = ["curl", "python", "javascript", "go", "knative"];
/// Pending messages that the namespace may have: one for each example.
const QUOTA: usize = EXAMPLES.len();

fn example(path: &str) -> PathBuf {
    repository_root().join("examples/producers").join(path)
}

/// How an example is started, but for its environment and arguments.
fn command(name: &str, installed: &Producers) -> Command {
    match name {
        "curl" => Command::new(example("curl/send.sh")),
        "javascript" => {
            let mut node = Command::new("node");
            node.arg(installed.javascript.join("send.mjs"));
            node
        }
        "go" => Command::new(&installed.go),
        other => {
            let mut python = Command::new(&installed.python);
            python.arg(example(&format!("{other}/send.py")));
            python
        }
    }
}

/// One that runs, with what it has said so far.
struct Producer {
    name: &'static str,
    process: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Producer {
    /// It posts one event, whose id is its name, about a lead of that name.
    fn start(
        installed: &Producers,
        name: &'static str,
        ingest: &str,
        namespace: &str,
        token: &Path,
        event_type: &str,
        give_up_after: u32,
    ) -> Producer {
        let mut command = command(name, installed);
        command
            .args([event_type, "/agents/voice", name])
            .env("TOKEN_FILE", token)
            .env("GIVE_UP_AFTER", give_up_after.to_string());
        // What Knative tells of a sink, and nothing else of where it is.
        if name == "knative" {
            command
                .env("K_SINK", format!("{ingest}/v1/namespaces/{namespace}/events"))
                .env("K_CE_OVERRIDES", r#"{"extensions": {"region": "eu"}}"#);
        } else {
            command.env("TIDINGS_URL", ingest).env("NAMESPACE", namespace);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let data = json!({"lead": name}).to_string();
        process.stdin.take().unwrap().write_all(data.as_bytes()).unwrap();
        let said = Arc::<Mutex<String>>::default();
        let readers = vec![
            follow(process.stdout.take().unwrap(), &said),
            follow(process.stderr.take().unwrap(), &said),
        ];
        Producer {
            name,
            process,
            said,
            readers,
        }
    }

    /// Waits until it says so.
    fn until(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.said().contains(words) {
            assert!(
                Instant::now() < deadline,
                "{} never said {words}: {}",
                self.name,
                self.said()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// How it ends, and all it said.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.process.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "{} did not end: {}", self.name, self.said()),
            }
            thread::sleep(Duration::from_millis(20));
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status, self.said())
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn follow(from: impl std::io::Read + Send + 'static, into: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let into = into.clone();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut said = into.lock().unwrap();
            said.push_str(&line);
            said.push('\n');
        }
    })
}

async fn installed() -> Producers {
    let installed = tokio::task::spawn_blocking(Producers::ensure).await;
    installed.unwrap().unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_comes_through_401_429_and_503_and_stops_where_it_is_refused() {
    let installed = installed().await;
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let policy = cluster.dir().join("policy.yaml");
    let rule = json!({"namespaceSelector": {}, "egress": {"openCIDRs": ["127.0.0.0/8"]},
        "quotas": {"pendingMessages": QUOTA}});
    std::fs::write(&policy, json!({"rules": [rule]}).to_string()).unwrap();
    let _controller = tidings
        .start_controller(&ControllerOptions {
            policy: policy.clone(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            policy,
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::with_labels(&cluster, "producers", &[]);
    let webhooks = Webhooks::start().await;
    team.deliver_to("crm", &webhooks.url(), json!({"suspend": true}));
    for n in 0..QUOTA {
        team.send(&dispatcher, &format!("before-{n}")).await;
    }

    // The kubelet has not renewed the token yet.
    let tokens = tempfile::tempdir().unwrap();
    let token = tokens.path().join("token");
    std::fs::write(&token, "not-a-token").unwrap();
    let ingest = dispatcher.ingest_url();
    let start = |name, event_type: &str, give_up_after| {
        Producer::start(
            &installed,
            name,
            &ingest,
            &team.namespace,
            &token,
            event_type,
            give_up_after,
        )
    };
    let all: Vec<Producer> = EXAMPLES.map(|name| start(name, "lead.qualified", 600)).into();
    all.iter().for_each(|one| one.until("not yet: 401"));
    // As the kubelet does it: what is read is whole.
    let renewed = tokens.path().join("renewed");
    std::fs::write(&renewed, format!("{}\n", team.token())).unwrap();
    std::fs::rename(&renewed, &token).unwrap();
    // The namespace has all the messages it may have.
    all.iter().for_each(|one| one.until("not yet: 429, again in 10 s"));
    // A dispatcher that starts while the API server is away knows no endpoints.
    cluster.stop_api_server();
    dispatcher.kill9();
    dispatcher.process.start_again().unwrap();
    all.iter().for_each(|one| one.until("not yet: 503, again in 2 s"));
    cluster.start_api_server().unwrap();
    dispatcher.wait_ready().unwrap();
    team.endpoint("crm", &webhooks.url(), json!({"suspend": false}));
    for one in all {
        let (name, (status, said)) = (one.name, one.end());
        assert!(status.success(), "{name}: {status} {said}");
        let told = said.lines().find(|line| line.starts_with('{')).unwrap();
        let told: Value = serde_json::from_str(told).unwrap();
        assert_eq!(told, json!({"id": name, "matched": 1, "duplicate": false}), "{name}");
    }
    webhooks.until("all", |all| all.len() >= 2 * QUOTA).await;
    let reader = Reader::new(&team, &dispatcher, "reader", Some("edit"));
    reader.until_allowed().await;
    for name in EXAMPLES {
        assert_eq!(webhooks.times(name), 1, "{name}");
        let found = reader.until(&format!("id={name}"), 1).await;
        let message = reader.get(&format!("/{}", found[0]["id"].as_str().unwrap())).await;
        let event = &message.body["event"];
        assert_eq!(
            (&event["source"], &event["type"], &event["data"]),
            (
                &json!("/agents/voice"),
                &json!("lead.qualified"),
                &json!({"lead": name})
            ),
            "{name}"
        );
        let region = if name == "knative" { json!("eu") } else { Value::Null };
        assert_eq!(event["region"], region, "{name}");
    }

    // Nobody granted this type: asked once, and the answer says what is missing.
    let all = EXAMPLES.map(|name| start(name, "lead.unheard-of", 600));
    for one in all {
        let (name, (status, said)) = (one.name, one.end());
        assert_eq!(status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains("refused: 403") && said.contains("kubectl create role"),
            "{name}: {said}"
        );
        assert!(!said.contains("not yet"), "{name}: {said}");
    }

    // Nobody answers, for longer than it is asked to try.
    assert!(dispatcher.terminate(PATIENCE).unwrap().success());
    let all = EXAMPLES.map(|name| start(name, "lead.qualified", 1));
    for one in all {
        let (name, (status, said)) = (one.name, one.end());
        assert_eq!(status.code(), Some(75), "{name}: {said}");
        assert!(said.contains("given up: 0"), "{name}: {said}");
    }
}

/// The manifests of an example, in this namespace.
fn manifests(path: &str, namespace: &str) -> String {
    let text = std::fs::read_to_string(example(path)).unwrap();
    assert!(text.contains("namespace: sales") || text.contains("-n sales"));
    text.replace("namespace: sales", &format!("namespace: {namespace}"))
        .replace("-n sales", &format!("-n {namespace}"))
        .replace("/namespaces/sales/", &format!("/namespaces/{namespace}/"))
}

fn yaml(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    documents.map(|one| Value::deserialize(one).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn argo_events_trigger_is_one_that_it_knows_and_what_it_posts_is_accepted_once() {
    let (shared, installed) = (Shared::get(), installed().await);
    let (team, dispatcher) = (Team::open(shared.cluster, "argo"), &shared.dispatcher);
    let sensor = yaml(&manifests("argo-events/sensor.yaml", &team.namespace)).remove(0);
    fits_argo_events_models(&installed, &sensor);
    // That is no check which takes anything.
    let mut misspelt = sensor.clone();
    misspelt["spec"]["triggers"][0]["template"]["http"]["secureHeader"] = json!([]);
    assert!(checked_by_argo_events_models(&installed, &misspelt).is_err());

    // The CronJob's own command, with its own account, makes the Secret; again it renews it.
    let token = manifests("argo-events/token.yaml", &team.namespace);
    team.cluster.apply(&token).unwrap();
    let job = yaml(&token).into_iter().find(|one| one["kind"] == "CronJob").unwrap();
    let pod = &job["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().unwrap();
    let kubeconfig = team.cluster.kubeconfig_for(&team.namespace, account).unwrap();
    let kubectl = &team.cluster.binaries().kubectl;
    let path = std::env::var("PATH").unwrap();
    let command: Vec<&str> = pod["containers"][0]["command"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    for _ in 0..2 {
        let made = Command::new(command[0])
            .args(&command[1..])
            .env("KUBECONFIG", &kubeconfig)
            .env("PATH", format!("{}:{path}", kubectl.parent().unwrap().display()))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    // As Argo Events makes a request of a trigger.
    let http = &sensor["spec"]["triggers"][0]["template"]["http"];
    let url = http["url"].as_str().unwrap();
    let url = url.replace("http://tidings-dispatcher.tidings-system", &dispatcher.ingest_url());
    let event = json!({"context": {"id": "3161356"}, "data": {"body": {"name": "Ada Martin"}}});
    let post = || {
        let mut request = reqwest::Client::new().post(&url);
        for (name, value) in http["headers"].as_object().unwrap() {
            request = request.header(name, value.as_str().unwrap());
        }
        for one in http["secureHeaders"].as_array().unwrap() {
            let secret = &one["valueFrom"]["secretKeyRef"];
            let template = format!(
                "go-template={{{{.data.{} | base64decode}}}}",
                secret["key"].as_str().unwrap()
            );
            let name = secret["name"].as_str().unwrap();
            let args = ["get", "secret", name, "-n", &team.namespace, "-o", &template];
            request = request.header(one["name"].as_str().unwrap(), team.cluster.kubectl_ok(&args).unwrap());
        }
        let mut body = json!({});
        for one in http["payload"].as_array().unwrap() {
            let (src, dest) = (&one["src"], one["dest"].as_str().unwrap());
            body[dest] = match (src["contextKey"].as_str(), src["dataKey"].as_str()) {
                (Some(key), _) => event["context"][key].clone(),
                (_, Some(key)) if src["useRawData"] == true => event["data"][key].clone(),
                (_, Some(key)) => json!(event["data"][key].to_string()),
                _ => src["value"].clone(),
            };
        }
        request.body(body.to_string())
    };
    let allowed = &sensor["spec"]["triggers"][0]["policy"]["status"]["allow"];
    assert_eq!(allowed, &json!([200, 202]));
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType", "metadata": {"name": "lead"}, "spec": {
        "type": "lead.qualified", "schema": {"type": "object", "required": ["name"]}}}),
    );
    team.ready("evtype/lead");
    for status in [202, 200] {
        let answer = Answer::of(post().send().await.unwrap()).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body["id"]),
            (status, &json!("3161356")),
            "{answer:?}"
        );
    }
}

fn fits_argo_events_models(installed: &Producers, sensor: &Value) {
    checked_by_argo_events_models(installed, sensor).unwrap_or_else(|error| panic!("{error}"));
}

/// Whether the models that hera has of Argo Events' API read it, and know every field of it.
fn checked_by_argo_events_models(installed: &Producers, sensor: &Value) -> Result<(), String> {
    let mut python = Command::new(&installed.python)
        .args(["-c", MODELS])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = sensor.to_string();
    python.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// They have unions (a duration, a factor) as the objects that Go has inside, so those are left out.
const MODELS: &str = r#"
import json, sys, warnings
warnings.simplefilter("ignore")
from hera.events.models import Sensor
given = json.load(sys.stdin)
assert given.pop("apiVersion") == "argoproj.io/v1alpha1" and given.pop("kind") == "Sensor"
retry = given["spec"]["triggers"][0]["retryStrategy"]
assert retry.pop("duration") == "2s" and retry.pop("factor") == 2
known = json.loads(Sensor.parse_obj(given).json(by_alias=True, exclude_unset=True))
assert known == given, f"known is only {known}"
"#;
