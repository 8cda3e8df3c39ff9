//! A producer's trace goes on to the receiver and to a collector, over OTLP as a collector speaks it; and costs nobody
//! anything where there is none, or where it is away.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::load::until_quiet;
use super::receiver::{Log, Receiver, TRUSTED, keep_answering};
use super::team::{PATIENCE, Shared, Team, lead, metric};

const PRODUCERS_SPAN: &str = "00f067aa0ba902b7";
/// In a URL, in a header for the collector: in no span and no log.
const SECRET: &str = "hush-9f1c";

/// What a receiver got.
#[derive(Clone, Debug)]
struct Got {
    headers: HeaderMap,
    event: String,
    status: u16,
}

/// A receiver that answers 503 while it is told to.
struct Hooks {
    receiver: Receiver,
    down: Arc<AtomicBool>,
    seen: Arc<std::sync::Mutex<Vec<Got>>>,
}

impl Hooks {
    async fn start() -> Hooks {
        let (down, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::<std::sync::Mutex<Vec<Got>>>::default(),
        );
        let (is_down, log) = (down.clone(), seen.clone());
        let receiver = Receiver::start(move |mut connection, _: Log| {
            let (is_down, log) = (is_down.clone(), log.clone());
            async move {
                while let Some(request) = connection.request().await {
                    let status = if is_down.load(Ordering::Relaxed) { 503 } else { 200 };
                    let body: Value = serde_json::from_slice(&request.body).unwrap();
                    let lead = body["data"]["lead"].as_str().or(body["lead"].as_str());
                    log.lock().unwrap().push(Got {
                        headers: request.headers,
                        event: lead.unwrap().to_owned(),
                        status,
                    });
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                    if !connection.write(answer).await {
                        return;
                    }
                }
            }
        })
        .await;
        Hooks { receiver, down, seen }
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/hooks?key={SECRET}", self.receiver.address.port())
    }

    /// Waits until an event was answered with this.
    async fn until(&self, event: &str, status: u16) -> Got {
        let found = || {
            let seen = self.seen.lock().unwrap();
            seen.iter()
                .find(|got| got.event == event && got.status == status)
                .cloned()
        };
        until(&format!("{event} with {status}"), found).await
    }
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "there was never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A collector, as far as its protocol goes.
struct Collector(Receiver);

impl Collector {
    async fn start() -> Collector {
        const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, TAKEN)).await;
        Collector(receiver)
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let seen = self.0.seen.lock().unwrap();
        let read = seen.iter().map(|request| {
            assert_eq!(request.line, "POST /v1/traces HTTP/1.1");
            assert_eq!(request.headers["content-type"], "application/x-protobuf");
            assert_eq!(request.headers["x-api-key"], SECRET);
            ExportTraceServiceRequest::decode(&request.body[..]).unwrap()
        });
        read.collect()
    }

    /// The spans of a trace, as they began.
    fn spans(&self, trace: &str) -> Vec<Span> {
        let of_resources = self.requests().into_iter().flat_map(|request| request.resource_spans);
        let of_scopes = of_resources.flat_map(|spans| spans.scope_spans);
        let mut spans: Vec<Span> = of_scopes.flat_map(|spans| spans.spans).collect();
        spans.retain(|span| hex(&span.trace_id) == trace);
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }

    async fn until(&self, trace: &str, spans: usize) -> Vec<Span> {
        let found = || Some(self.spans(trace)).filter(|found| found.len() >= spans);
        until(&format!("{spans} spans of {trace}"), found).await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(of: &[KeyValue], key: &str) -> Option<String> {
    let found = of.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        Any::BoolValue(is) => Some(is.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// What tests look at of a span.
fn told(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_else(|| panic!("no {key} in {span:#?}"))
}

/// `timeout`: how long one request to the collector may take, in milliseconds.
fn environment(endpoint: &str, timeout: &str) -> Vec<(String, OsString)> {
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_HEADERS", &format!("x-api-key={SECRET}")),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout),
    ]
    .map(|(name, value)| (name.to_owned(), value.into()))
    .to_vec()
}

/// Posts an event in a trace of the producer's; `sampled` is its flags.
async fn post(team: &Team<'_>, dispatcher: &Dispatcher, id: &str, trace: &str, flags: &str) {
    let response = reqwest::Client::new()
        .post(dispatcher.events_url(&team.namespace))
        .bearer_auth(team.token())
        .header("content-type", "application/cloudevents+json")
        .header("traceparent", format!("00-{trace}-{PRODUCERS_SPAN}-{flags}"))
        .header("tracestate", "vendor=opaque")
        .body(lead(id, "lead.qualified").to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_trace_goes_on_over_a_failure_a_kill_and_a_retry_to_the_receiver_and_a_collector() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const UNSAMPLED: &str = "11111111111111111111111111111111";
    const LAST: &str = "22222222222222222222222222222222";
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let collector = Collector::start().await;
    let authority = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authority.path(), &TRUSTED.ca_pem).unwrap();
    let mut extra_env = environment(&format!("https://127.0.0.1:{}", collector.0.address.port()), "10000");
    extra_env.push(("OTEL_EXPORTER_OTLP_CERTIFICATE".into(), authority.path().into()));
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            extra_env,
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::open(&cluster, "traced");
    let hooks = Hooks::start().await;
    hooks.down.store(true, Ordering::Relaxed);
    team.deliver_to(
        "crm",
        &hooks.url(),
        json!({"retry": {"schedule": ["20s", "20s"], "jitter": 0}}),
    );

    post(&team, &dispatcher, "first", TRACE, "01").await;
    let failed = hooks.until("first", 503).await;
    collector.until(TRACE, 3).await;
    until_quiet(&dispatcher, || true).await;
    dispatcher.kill9();
    hooks.down.store(false, Ordering::Relaxed);
    dispatcher.restart().unwrap();
    let delivered = hooks.until("first", 200).await;
    let spans = collector.until(TRACE, 4).await;

    let [request, enqueue, first, second] = &spans[..] else {
        panic!("not four spans: {spans:#?}");
    };
    assert_eq!(hex(&request.parent_span_id), PRODUCERS_SPAN);
    assert_eq!(
        [request, enqueue, first, second].map(|span| (span.name.as_str(), span.kind())),
        [
            ("POST /v1/namespaces/{namespace}/events", SpanKind::Server),
            ("enqueue", SpanKind::Producer),
            ("POST", SpanKind::Client),
            ("POST", SpanKind::Client)
        ]
    );
    assert_eq!(told(request, "http.response.status_code"), "202");
    assert_eq!(enqueue.parent_span_id, request.span_id);
    assert_eq!(
        (told(enqueue, "cloudevents.event_id"), told(enqueue, "tidings.messages")),
        ("first".into(), "1".into())
    );
    for (attempt, number, status, got) in [(first, "1", "503", &failed), (second, "2", "200", &delivered)] {
        assert_eq!(attempt.parent_span_id, enqueue.span_id, "also after a kill");
        assert_eq!(told(attempt, "tidings.attempt"), number);
        assert_eq!(told(attempt, "http.response.status_code"), status);
        assert_eq!(
            told(attempt, "messaging.message.id"),
            got.headers["webhook-id"].to_str().unwrap()
        );
        assert_eq!(told(attempt, "server.address"), "127.0.0.1");
        let wanted = format!("00-{TRACE}-{}-01", hex(&attempt.span_id));
        assert_eq!(got.headers["traceparent"], wanted.as_str());
        assert_eq!(got.headers["tracestate"], "vendor=opaque");
    }
    assert_eq!(told(first, "error.type"), "503");
    assert_eq!(first.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!(told(second, "http.request.resend_count"), "1");
    assert_eq!(attribute(&second.attributes, "error.type"), None);

    // Not sampled: it goes on, and nothing is told.
    post(&team, &dispatcher, "quiet", UNSAMPLED, "00").await;
    let quiet = hooks.until("quiet", 200).await;
    let parent = quiet.headers["traceparent"].to_str().unwrap();
    assert!(
        parent.starts_with(&format!("00-{UNSAMPLED}-")) && parent.ends_with("-00"),
        "{parent}"
    );
    assert!(!parent.contains(PRODUCERS_SPAN), "the receiver's parent is the attempt");

    // What was not sent when it is told to stop is sent before it ends; where the collector is too slow for it, that is told.
    post(&team, &dispatcher, "last", LAST, "01").await;
    hooks.until("last", 200).await;
    let status = dispatcher.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
    let told_late = dispatcher
        .process
        .log()
        .contains("the last spans could not be exported in time");
    assert!(
        collector.spans(LAST).len() == 3 || told_late,
        "{:#?}",
        collector.spans(LAST)
    );
    assert!(collector.spans(UNSAMPLED).is_empty());

    let requests = collector.requests();
    for resource in requests.iter().flat_map(|request| &request.resource_spans) {
        let resource = &resource.resource.as_ref().unwrap().attributes;
        assert_eq!(
            attribute(resource, "service.name").as_deref(),
            Some("tidings-dispatcher")
        );
        assert_eq!(attribute(resource, "service.instance.id").as_deref(), Some("0"));
    }
    let everything = format!("{requests:?}");
    for secret in [SECRET, team.token()] {
        assert!(!everything.contains(secret), "in a span");
        assert!(!dispatcher.process.log().contains(secret), "in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
    const EVENTS: usize = 40;
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    // It takes connections and never says a word.
    let hanging = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hanging.local_addr().unwrap());
    let mut dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            // A second is enough to see that nobody waits for it.
            extra_env: environment(&endpoint, "1000"),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::open(&cluster, "untold");
    let hooks = Hooks::start().await;
    team.deliver_to("crm", &hooks.url(), json!({}));
    for n in 0..EVENTS {
        team.send(&dispatcher, &format!("lead-{n}")).await;
    }
    for n in 0..EVENTS {
        // Without a trace of the producer's it begins one of its own.
        assert!(
            hooks
                .until(&format!("lead-{n}"), 200)
                .await
                .headers
                .contains_key("traceparent")
        );
    }
    let dropped = || {
        let shown = dispatcher.metrics().unwrap();
        let line = shown
            .lines()
            .find_map(|line| line.strip_prefix(r#"tidings_traces_spans_dropped_total{reason="ExportFailed"} "#));
        line.map(|value| value.parse::<usize>().unwrap())
            .filter(|dropped| *dropped > 0)
    };
    until("a dropped span", dropped).await;
    assert_eq!(metric(&dispatcher, "tidings_traces_spans_exported_total"), 0.0);
    let status = dispatcher.terminate(Duration::from_secs(30)).unwrap();
    assert!(status.success(), "{status}");
    drop(hanging);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_an_events_own_context_is_an_attribute_like_others_and_no_header_is_added() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "untraced");
    let hooks = Hooks::start().await;
    team.endpoint("crm", &hooks.url(), json!({}));
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "crm"},
        "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"], "format": "CloudEventsBinary"}}),
    );
    team.ready("whe/crm");
    team.ready("evsub/crm");
    let own = format!("00-{TRACE}-{PRODUCERS_SPAN}-01");
    let mut event = lead("plain", "lead.qualified");
    event["traceparent"] = json!(own);
    assert_eq!(team.posting(&shared.dispatcher, &event).await.unwrap().status, 202);
    post(&team, &shared.dispatcher, "header", TRACE, "01").await;

    let plain = hooks.until("plain", 200).await.headers;
    assert_eq!(plain["ce-traceparent"], own.as_str());
    let header = hooks.until("header", 200).await.headers;
    for headers in [&plain, &header] {
        assert!(
            !headers.contains_key("traceparent") && !headers.contains_key("tracestate"),
            "{headers:?}"
        );
    }
    assert_eq!(metric(&shared.dispatcher, "tidings_traces_spans_exported_total"), 0.0);
}
