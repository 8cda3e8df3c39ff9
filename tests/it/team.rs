//! A team's namespace in a real cluster: its producer, its manifests, its receivers.
//!
//! What a team does is done as a team does it: kubectl for manifests, a ServiceAccount token and HTTP for events.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{
    Cluster, Controller, ControllerOptions, Dispatcher, DispatcherOptions, OPEN_LOOPBACK_LABEL, Tidings,
};
use tokio::net::{TcpSocket, TcpStream};

use super::receiver::{Receiver, Seen, TRUSTED, reserve};

/// How long what must come may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The types that a team's producer may publish.
pub const TYPES: [&str; 2] = ["lead.qualified", "lead.lost"];

/// Controller and dispatcher in the shared cluster, for tests that break neither.
pub struct Shared {
    pub cluster: &'static Cluster,
    pub controller: Controller,
    pub dispatcher: Dispatcher,
}

impl Shared {
    /// The one of this test run.
    pub fn get() -> &'static Shared {
        static SHARED: OnceLock<Shared> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cluster = Cluster::shared().unwrap();
            let tidings = Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
            Shared {
                cluster,
                controller: tidings.start_controller(&ControllerOptions::default()).unwrap(),
                dispatcher: tidings.start_dispatcher(&DispatcherOptions::default()).unwrap(),
            }
        })
    }
}

/// A namespace with a producer `agent` and the receivers' CA in the ConfigMap `receiver-ca`.
pub struct Team<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
    token: String,
    http: reqwest::Client,
}

impl<'a> Team<'a> {
    /// One that may send to loopback.
    pub fn open(cluster: &'a Cluster, namespace: &str) -> Team<'a> {
        Team::with_labels(cluster, namespace, &[OPEN_LOOPBACK_LABEL])
    }

    /// One with these labels.
    pub fn with_labels(cluster: &'a Cluster, namespace: &str, labels: &[(&str, &str)]) -> Team<'a> {
        let [account, role, binding] = tidings_cluster::producer(namespace, "agent", &TYPES);
        let trusted = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "receiver-ca", "namespace": namespace}, "data": {"ca.crt": TRUSTED.ca_pem}});
        let manifests = [
            tidings_cluster::namespace(namespace, labels),
            account,
            role,
            binding,
            trusted,
        ];
        cluster.apply_all(&manifests).unwrap();
        Team {
            cluster,
            namespace: namespace.to_owned(),
            token: cluster.token(namespace, "agent", Some("tidings")).unwrap(),
            http: reqwest::Client::new(),
        }
    }

    /// `kubectl apply` of one manifest, in this namespace.
    pub fn apply(&self, manifest: &Value) {
        self.apply_all(std::slice::from_ref(manifest));
    }

    /// The same of several together.
    fn apply_all(&self, manifests: &[Value]) {
        let mut manifests = manifests.to_vec();
        for manifest in &mut manifests {
            manifest["metadata"]["namespace"] = json!(self.namespace);
        }
        self.cluster.apply_all(&manifests).unwrap();
    }

    /// Applies an endpoint that trusts the receivers' CA; `more` goes over its spec.
    pub fn endpoint(&self, name: &str, url: &str, more: Value) {
        self.apply(&endpoint(name, url, more));
    }

    /// The same for several together: name, URL, and what goes over the spec.
    pub fn endpoints(&self, endpoints: impl IntoIterator<Item = (String, String, Value)>) {
        let manifests = endpoints
            .into_iter()
            .map(|(name, url, more)| endpoint(&name, &url, more));
        self.apply_all(&manifests.collect::<Vec<_>>());
    }

    /// Applies a subscription of all the team's types.
    pub fn subscription(&self, name: &str, endpoint: &str) {
        self.apply(&subscription(name, endpoint));
    }

    /// Applies an endpoint and a subscription of its name, and waits until both are Ready.
    pub fn deliver_to(&self, name: &str, url: &str, more: Value) {
        self.deliver_to_all([(name.to_owned(), url.to_owned(), more)]);
    }

    /// The same for several together.
    pub fn deliver_to_all(&self, endpoints: impl IntoIterator<Item = (String, String, Value)>) {
        let mut manifests = Vec::new();
        let mut objects = Vec::new();
        for (name, url, more) in endpoints {
            manifests.extend([endpoint(&name, &url, more), subscription(&name, &name)]);
            objects.extend(["whe", "evsub"].map(|kind| format!("{kind}/{name}")));
        }
        self.apply_all(&manifests);
        objects.iter().for_each(|object| self.ready(object));
    }

    /// What `kubectl wait --for=condition=Ready` waits for, of `kind/name`.
    pub fn ready(&self, object: &str) {
        let (kind, name) = object.split_once('/').unwrap();
        self.until("Ready", kind, name, |object| {
            let is_met = |condition: &Value| {
                condition["type"] == "Ready"
                    && condition["status"] == "True"
                    && condition["observedGeneration"] == object["metadata"]["generation"]
            };
            let conditions = object["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(is_met))
        });
    }

    /// An object of ours as JSON.
    pub fn get(&self, kind: &str, name: &str) -> Value {
        let found = self.cluster.get(&self.namespace, kind, name).unwrap();
        found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// Status and reason of a condition.
    pub fn condition(&self, kind: &str, name: &str, condition: &str) -> Option<(String, String)> {
        let object = self.get(kind, name);
        let conditions = object["status"]["conditions"].as_array()?.clone();
        let found = conditions.into_iter().find(|c| c["type"] == condition)?;
        Some((
            found["status"].as_str()?.to_owned(),
            found["reason"].as_str()?.to_owned(),
        ))
    }

    /// Waits until an object's JSON is as it must be; also where the API server does not answer for a while.
    pub fn until(&self, what: &str, kind: &str, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.until_within(PATIENCE, what, kind, name, holds)
    }

    /// The same, at most this long.
    pub fn until_within(
        &self,
        within: Duration,
        what: &str,
        kind: &str,
        name: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + within;
        loop {
            let looked = self.cluster.get(&self.namespace, kind, name);
            match looked.map(|found| found.unwrap_or_else(|| panic!("there is no {kind} {name}"))) {
                Ok(object) if holds(&object) => return object,
                _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Ok(object) => panic!(
                    "{kind}/{name} was never {what}: its status is {}\n{}\n{object:#}",
                    object["status"],
                    self.processes()
                ),
                Err(error) => panic!("{kind}/{name} cannot be looked at: {error:#}\n{}", self.processes()),
            }
        }
    }

    /// What the processes say of themselves: their Leases, and the end of their logs.
    fn processes(&self) -> String {
        let leases = self.cluster.kubectl_ok(&[
            "get",
            "leases",
            "-n",
            "tidings-system",
            "-o",
            r#"jsonpath={range .items[*]}{.metadata.name} {.spec.renewTime} {.metadata.annotations}{"\n"}{end}"#,
        ]);
        let mut said = leases.unwrap_or_else(|error| format!("{error:#}"));
        let is_ours = |name: &str| name.starts_with("controller") || name.starts_with("dispatcher");
        let logs = std::fs::read_dir(self.cluster.logs_dir())
            .into_iter()
            .flatten()
            .flatten();
        for log in logs.filter(|log| is_ours(&log.file_name().to_string_lossy())) {
            let text = std::fs::read(log.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            said += &format!(
                "{}:\n{}\n",
                log.path().display(),
                lines[lines.len().saturating_sub(15)..].join("\n")
            );
        }
        said
    }

    /// Asks something of an endpoint anew: `reconcile`, `rotate`, `revoke-previous` or `enable`.
    pub fn ask(&self, endpoint: &str, what: &str) {
        let request = format!("tidings.dev/{what}-requested-at={:x}", rand::random::<u64>());
        let args = [
            "annotate",
            "whe",
            endpoint,
            "-n",
            &self.namespace,
            "--overwrite",
            &request,
        ];
        self.cluster.kubectl_ok(&args).unwrap();
    }

    /// `kubectl delete`, and waits until it is gone.
    pub fn delete(&self, kind: &str, name: &str) {
        self.delete_all(kind, &[name.to_owned()]);
    }

    /// The same of several together.
    pub fn delete_all(&self, kind: &str, names: &[String]) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let args = [&["delete", kind, "-n", &self.namespace], &names[..]].concat();
        self.cluster.kubectl_ok(&args).unwrap();
    }

    /// Waits until somebody else has deleted an object.
    pub fn until_gone(&self, kind: &str, name: &str) {
        let object = format!("{kind}/{name}");
        self.cluster
            .wait_for(&self.namespace, &object, "delete", PATIENCE)
            .unwrap();
    }

    /// The Kubernetes Events of a reason.
    pub fn all_events(&self, reason: &str) -> Vec<Value> {
        let mut events = self.cluster.list(&self.namespace, "event").unwrap();
        events.retain(|event| event["reason"] == reason);
        events
    }

    /// Those that regard an object of this name.
    pub fn events(&self, name: &str, reason: &str) -> Vec<Value> {
        let mut events = self.all_events(reason);
        events.retain(|event| event["regarding"]["name"] == name);
        events
    }

    /// Waits for such an Event.
    pub fn until_event(&self, name: &str, reason: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events(name, reason).pop() {
                return event;
            }
            assert!(Instant::now() < deadline, "there is no Event {reason} of {name}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for a condition's reason.
    pub fn until_reason(&self, kind: &str, name: &str, condition: &str, reason: &str) {
        self.until_reason_within(PATIENCE, kind, name, condition, reason);
    }

    /// The same, at most this long.
    pub fn until_reason_within(&self, within: Duration, kind: &str, name: &str, condition: &str, reason: &str) {
        self.until_within(within, reason, kind, name, |object| {
            let conditions = object["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|c| c["type"] == condition && c["reason"] == reason))
        });
    }

    /// Posts one event with this id: a structured CloudEvent, with the producer's token.
    pub async fn post(&self, dispatcher: &Dispatcher, id: &str, event_type: &str) -> Answer {
        self.try_post(dispatcher, id, event_type)
            .await
            .unwrap_or_else(|error| panic!("ingest gave no answer: {error}"))
    }

    /// The same, where the dispatcher may be gone.
    pub async fn try_post(&self, dispatcher: &Dispatcher, id: &str, event_type: &str) -> reqwest::Result<Answer> {
        let event = lead(id, event_type);
        self.posting(dispatcher, &event).await
    }

    /// Posts one structured CloudEvent, in a task of its own if need be.
    pub fn posting(
        &self,
        dispatcher: &Dispatcher,
        event: &Value,
    ) -> impl Future<Output = reqwest::Result<Answer>> + Send + use<> {
        self.poster(dispatcher)(event)
    }

    /// The same for many events, without holding on to the team.
    pub fn poster(&self, dispatcher: &Dispatcher) -> impl Fn(&Value) -> Post + Send + Sync + use<> {
        let (http, url, token) = (
            self.http.clone(),
            dispatcher.events_url(&self.namespace),
            self.token.clone(),
        );
        move |event| {
            let request = http
                .post(&url)
                .bearer_auth(&token)
                .header("content-type", "application/cloudevents+json")
                .body(event.to_string());
            Box::pin(async move { Answer::of(request.send().await?).await })
        }
    }

    /// Posts an event that must make a message; again where the machine stood still.
    pub async fn send(&self, dispatcher: &Dispatcher, id: &str) {
        let post = async || self.post(dispatcher, id, TYPES[0]).await;
        let answer = again_while(Answer::is_for_slowness, post).await;
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
    }

    /// Waits until its events are taken, where it posts before anything of the namespace is Ready. Posts one.
    pub async fn until_allowed(&self, dispatcher: &Dispatcher) {
        let answer = once_allowed(async || self.post(dispatcher, "allowed", TYPES[0]).await).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    }

    /// The producer's token.
    pub fn token(&self) -> &str {
        &self.token
    }
}

/// A post under way.
pub type Post = Pin<Box<dyn Future<Output = reqwest::Result<Answer>> + Send>>;

/// A number without labels that the dispatcher shows.
pub fn metric(dispatcher: &Dispatcher, name: &str) -> f64 {
    let shown = dispatcher.metrics().unwrap();
    let line = shown
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("there is no {name} in\n{shown}"));
    line.trim().parse().unwrap()
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, holds).await;
}

/// The same, at most this long.
pub async fn until_within(within: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The answer to who asks until he may: the dispatcher hears of a namespace, and the API server that it asks of a rule, later
/// than kubectl returns; and a refusal is remembered for ten seconds.
pub async fn once_allowed(ask: impl AsyncFnMut() -> Answer) -> Answer {
    again_while(
        |answer| matches!(answer.status, 403 | 404) || answer.is_for_slowness(),
        ask,
    )
    .await
}

/// The first answer that is not to be asked for again.
async fn again_while(again: impl Fn(&Answer) -> bool, mut ask: impl AsyncFnMut() -> Answer) -> Answer {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if !again(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A structured CloudEvent of this type about this lead.
pub fn lead(id: &str, event_type: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/agents/voice", "type": event_type, "data": {"lead": id}})
}

/// What ingest said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Seconds.
    pub retry_after: Option<u64>,
    pub body: Value,
}

impl Answer {
    /// Whether it asks to try again only since somebody did not answer in time: nothing is accepted then.
    fn is_for_slowness(&self) -> bool {
        let reasons = ["AuthUnavailable", "TypesUnavailable", "Busy"];
        self.status == 503 && self.retry_after.is_some() && reasons.iter().any(|reason| self.body["reason"] == *reason)
    }

    /// Reads it.
    pub async fn of(response: reqwest::Response) -> reqwest::Result<Answer> {
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|v| v.to_str().ok()?.parse().ok());
        let body = response.text().await?;
        Ok(Answer {
            status,
            retry_after,
            body: serde_json::from_str(&body).unwrap_or(Value::String(body)),
        })
    }
}

/// An endpoint that trusts the receivers' CA; `more` goes over its spec.
fn endpoint(name: &str, url: &str, more: Value) -> Value {
    let mut spec =
        json!({"url": url, "tls": {"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}}});
    merge(&mut spec, more);
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
        "metadata": {"name": name}, "spec": spec})
}

/// A subscription of all the team's types.
fn subscription(name: &str, endpoint: &str) -> Value {
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
        "metadata": {"name": name}, "spec": {"endpointRef": {"name": endpoint}, "eventTypes": ["lead.*"]}})
}

/// RFC 7396, enough of it for specs.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// An arrived webhook.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub at: Instant,
    /// The connection it came over, by order of acceptance.
    pub connection: usize,
    /// `webhook-id`.
    pub message: String,
    /// `data.lead` of the body: the id of the event that [`Team::post`] sent.
    pub event: String,
    /// What was answered.
    pub status: u16,
}

#[derive(Default)]
struct Arrivals {
    all: Vec<Arrived>,
    times: HashMap<String, usize>,
}

/// A receiver that answers each request with a status, chosen by the event's id and how often it came before.
pub struct Webhooks {
    receiver: Receiver,
    arrivals: Arc<Mutex<Arrivals>>,
}

impl Webhooks {
    /// One that is well.
    pub async fn start() -> Webhooks {
        Webhooks::answering(|_, _| 200).await
    }

    /// One that answers as told: the event's id, and how many requests for it came before.
    pub async fn answering(answer: impl Fn(&str, usize) -> u16 + Send + Sync + 'static) -> Webhooks {
        Webhooks::answering_on(reserve().0, answer).await
    }

    /// The same, at a port that was reserved for it.
    pub async fn answering_on(at: TcpSocket, answer: impl Fn(&str, usize) -> u16 + Send + Sync + 'static) -> Webhooks {
        Webhooks::answering_after(at, move |event, earlier| (Duration::ZERO, answer(event, earlier))).await
    }

    /// The same, with how long each answer takes.
    pub async fn answering_after(
        at: TcpSocket,
        answer: impl Fn(&str, usize) -> (Duration, u16) + Send + Sync + 'static,
    ) -> Webhooks {
        let arrivals = Arc::<Mutex<Arrivals>>::default();
        let (log, answer) = (arrivals.clone(), Arc::new(answer));
        let receiver = Receiver::serve_on(
            Some(TRUSTED.acceptor()),
            at.listen(1024).unwrap(),
            move |mut connection, _| {
                let (log, answer) = (log.clone(), answer.clone());
                async move {
                    while let Some(request) = connection.request().await {
                        let (after, status) = note(&log, connection.number, &request, &*answer);
                        if !after.is_zero() {
                            tokio::time::sleep(after).await;
                        }
                        if !connection
                            .write(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"))
                            .await
                        {
                            return;
                        }
                    }
                }
            },
        )
        .await;
        Webhooks { receiver, arrivals }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/hooks", self.port())
    }

    pub fn port(&self) -> u16 {
        self.receiver.address.port()
    }

    /// Everything so far, in order of arrival.
    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrivals.lock().unwrap().all.clone()
    }

    /// How often an event came.
    pub fn times(&self, event: &str) -> usize {
        self.arrivals.lock().unwrap().times.get(event).copied().unwrap_or(0)
    }

    /// Once every connection made before this call is accepted: how many there are. Called when a dispatcher is dead and
    /// before the next starts, it says which of them a connection (and what arrived over it) belongs to.
    pub async fn connections(&self) -> usize {
        // The listen queue is in order: when this one is accepted, all before it are.
        let before = self.receiver.accepted();
        let last = TcpStream::connect(self.receiver.address).await.unwrap();
        let from = last.local_addr().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(number) = self.receiver.connection_from(from, before) {
                return number + 1;
            }
            assert!(Instant::now() < deadline, "a connection was never accepted");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until what arrived is as it must be.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Arrived]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.arrivals.lock().unwrap().all) {
            if Instant::now() >= deadline {
                let arrived = self.arrived();
                panic!(
                    "it never came to {what}; {} arrived, the last: {:?}",
                    arrived.len(),
                    arrived.last()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn note(
    log: &Mutex<Arrivals>,
    connection: usize,
    request: &Seen,
    answer: &dyn Fn(&str, usize) -> (Duration, u16),
) -> (Duration, u16) {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    let event = body["data"]["lead"].as_str().unwrap().to_owned();
    let mut log = log.lock().unwrap();
    let times = log.times.entry(event.clone()).or_default();
    let (after, status) = answer(&event, *times);
    *times += 1;
    log.all.push(Arrived {
        at: Instant::now(),
        connection,
        message: request.headers["webhook-id"].to_str().unwrap().to_owned(),
        event,
        status,
    });
    (after, status)
}
