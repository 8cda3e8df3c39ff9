//! Receivers that are asked first, as CloudEvents' HTTP 1.1 Web Hooks for Event Delivery 1.0.2 says in section 4.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings::api::resolve::{EgressRules, Rate};
use tidings::delivery::{Fault, Grant, Judged, Outcome, Refusal, Sender};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::receiver::{Receiver, sender};
use super::team::{PATIENCE, Shared, Team, metric};

const REFUSES: &str = "HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n";
const TAKES: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn agrees(origin: &str, rate: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nallow: POST\r\nWebHook-Allowed-Origin: {origin}\r\nWebHook-Allowed-Rate: {rate}\r\n\
         content-length: 0\r\n\r\n"
    )
}

/// One request, as this receiver notes it.
#[derive(Clone, Debug)]
struct Noted {
    at: Instant,
    method: String,
    path: String,
    headers: http::HeaderMap,
}

/// A receiver that takes every message, and says to whoever asks first what it is told to.
struct Asked {
    receiver: Receiver,
    says: Arc<Mutex<String>>,
    noted: Arc<Mutex<Vec<Noted>>>,
}

impl Asked {
    async fn start(says: &str) -> Asked {
        let (says, noted) = (
            Arc::new(Mutex::new(says.to_owned())),
            Arc::<Mutex<Vec<Noted>>>::default(),
        );
        let (answer, log) = (says.clone(), noted.clone());
        let receiver = Receiver::start(move |mut connection, _| {
            let (answer, log) = (answer.clone(), log.clone());
            async move {
                while let Some(request) = connection.request().await {
                    let mut words = request.line.split(' ').map(str::to_owned);
                    let (method, path) = (words.next().unwrap(), words.next().unwrap());
                    let said = match &*method {
                        "OPTIONS" => answer.lock().unwrap().clone(),
                        _ => TAKES.to_owned(),
                    };
                    let (at, headers) = (Instant::now(), request.headers);
                    log.lock().unwrap().push(Noted {
                        at,
                        method,
                        path,
                        headers,
                    });
                    if !connection.write(said).await {
                        return;
                    }
                }
            }
        })
        .await;
        Asked { receiver, says, noted }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.receiver.address)
    }

    fn says(&self, answer: String) {
        *self.says.lock().unwrap() = answer;
    }

    fn noted(&self, method: &str) -> Vec<Noted> {
        let noted = self.noted.lock().unwrap();
        noted.iter().filter(|one| one.method == method).cloned().collect()
    }

    async fn until(&self, what: &str, method: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.noted(method).len() < count {
            assert!(
                Instant::now() < deadline,
                "never {what}: {:?}",
                self.noted.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn delivering(whe: &Value) -> (String, String) {
    let conditions = whe["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|c| c["type"] == "Delivering").unwrap();
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    (text("reason"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_delivered_before_the_receiver_agrees_and_the_condition_says_what_it_must_answer() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "handshake");
    let receiver = Asked::start(REFUSES).await;
    let spec = json!({
        "handshake": "CloudEvents",
        "rateLimit": {"requests": 3_000, "per": "1m"},
        "headers": [{"name": "X-Tenant", "value": "blue"}],
        "circuitBreaker": {"probeAfter": "1s", "probeAfterMax": "1s"},
        // One attempt: were one used up, the message would be a dead letter.
        "retry": {"schedule": []},
    });
    team.deliver_to("crm", &receiver.url("/hooks?team=a"), spec);
    for lead in ["lead-1", "lead-2", "lead-3"] {
        team.send(&shared.dispatcher, lead).await;
    }
    team.until_reason("whe", "crm", "Delivering", "HandshakeRefused");
    let (_, message) = delivering(&team.get("whe", "crm"));
    assert!(
        message.contains("status 200 and WebHook-Allowed-Origin: tidings.dev (or *), and answered with status 405"),
        "{message}"
    );
    team.until_event("crm", "HandshakeRefused");
    receiver.until("asked again", "OPTIONS", 3).await;
    let failures = team.get("whe", "crm")["status"]["delivery"]["recentFailures"].clone();
    assert_eq!(failures[0]["reason"], "HandshakeRefused", "{failures:#}");
    assert_eq!(receiver.noted("POST").len(), 0);

    receiver.says(agrees("TIDINGS.dev", "3001"));
    let whe = team.until("delivered", "whe", "crm", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == 0 && delivery["handshake"]["allowedRate"] == 3_001
    });
    let delivery = &whe["status"]["delivery"];
    assert_eq!(delivery["deadLettered"], 0, "asking uses up no attempt: {delivery:#}");
    assert!(delivery["handshake"]["grantedTime"].is_string(), "{delivery:#}");
    assert_eq!(delivering(&whe).0, "Succeeding");

    let (questions, messages) = (receiver.noted("OPTIONS"), receiver.noted("POST"));
    assert_eq!(messages.len(), 3);
    assert!(
        questions.last().unwrap().at <= messages[0].at,
        "not asked once it agreed"
    );
    for request in questions.iter().chain(&messages) {
        assert_eq!(request.path, "/hooks?team=a");
        assert_eq!(request.headers["webhook-request-origin"], "tidings.dev");
        assert_eq!(request.headers["x-tenant"], "blue");
        let asks = request.method == "OPTIONS";
        assert_eq!(request.headers.contains_key("webhook-request-rate"), asks);
        assert_eq!(request.headers.contains_key("webhook-id"), !asks);
        assert_eq!(request.headers.contains_key("webhook-signature"), !asks);
    }
    assert_eq!(questions[0].headers["webhook-request-rate"], "3000");
    for outcome in ["HandshakeRefused", "Granted"] {
        let name = format!("tidings_delivery_handshakes_total{{outcome=\"{outcome}\"}}");
        assert!(metric(&shared.dispatcher, &name) >= 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agreement_and_its_rate_outlive_a_kill_and_another_url_is_asked_anew() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let options = DispatcherOptions {
        extra_args: vec!["--origin".into(), "webhooks.example.com".into()],
        ..DispatcherOptions::default()
    };
    let mut dispatcher = tidings.start_dispatcher(&options).unwrap();
    let team = Team::open(&cluster, "handshake");
    let receiver = Asked::start(&agrees("webhooks.example.com", "120")).await;
    let asks = || json!({"handshake": "CloudEvents"});
    team.deliver_to("crm", &receiver.url("/first"), asks());
    for lead in 0..5 {
        team.send(&dispatcher, &format!("lead-{lead}")).await;
    }
    receiver.until("delivered", "POST", 5).await;
    let (asked, sent) = (receiver.noted("OPTIONS"), receiver.noted("POST"));
    assert_eq!(asked.len(), 1);
    // 120 a minute: the second half a second after the first, which waits for the agreement. A millisecond may be lost to
    // rounding.
    let took = sent[4].at - asked[0].at;
    assert!(took >= Duration::from_millis(1_995), "{took:?}");

    // What is not recorded would be sent again after the kill.
    team.until("recorded", "whe", "crm", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["pending"] == 0 && delivery["lastSuccess"].is_object()
    });
    dispatcher.restart().unwrap();
    team.send(&dispatcher, "lead-5").await;
    receiver.until("delivered after the restart", "POST", 6).await;
    let whe = team.until("shown", "whe", "crm", |whe| whe["status"]["delivery"]["pending"] == 0);
    assert_eq!(whe["status"]["delivery"]["handshake"]["allowedRate"], 120);
    assert_eq!(receiver.noted("OPTIONS").len(), 1, "what it agreed to is remembered");

    receiver.says(agrees("*", "*"));
    // Until the controller has looked, Ready is of the generation before.
    let loaded = || {
        team.until("loaded", "whe", "crm", |whe| {
            let conditions = whe["status"]["conditions"].as_array().unwrap();
            let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
            ready["status"] == "True" && ready["observedGeneration"] == whe["metadata"]["generation"]
        })
    };
    team.deliver_to("crm", &receiver.url("/second"), asks());
    loaded();
    team.send(&dispatcher, "lead-6").await;
    receiver.until("delivered there", "POST", 7).await;
    let paths: Vec<_> = receiver.noted("OPTIONS").into_iter().map(|one| one.path).collect();
    assert_eq!(paths, ["/first", "/second"]);
    team.until("shown", "whe", "crm", |whe| {
        let handshake = &whe["status"]["delivery"]["handshake"];
        handshake["grantedTime"].is_string() && handshake["allowedRate"].is_null()
    });

    // Who wants no handshake asks nothing and does not say who it is.
    team.deliver_to("crm", &receiver.url("/third"), json!({"handshake": "None"}));
    loaded();
    team.send(&dispatcher, "lead-7").await;
    receiver.until("delivered unasked", "POST", 8).await;
    assert_eq!(receiver.noted("OPTIONS").len(), 2);
    let last = receiver.noted("POST").pop().unwrap();
    assert!(last.path == "/third" && !last.headers.contains_key("webhook-request-origin"));
}

#[tokio::test]
async fn the_question_goes_the_way_of_every_request() {
    let asked = async |receiver: &Receiver, edit: &dyn Fn(&mut tidings::api::resolve::ResolvedEndpoint)| {
        let mut endpoint = receiver.endpoint();
        endpoint.handshake = true;
        edit(&mut endpoint);
        sender().ask(&Arc::new(endpoint)).await.outcome
    };
    let judged = |outcome: Outcome| match outcome {
        Outcome::Status { judged, .. } => judged,
        other => panic!("{other:?}"),
    };
    let agrees = "HTTP/1.1 200 OK\r\nwebhook-allowed-origin: tidings.dev\r\nwebhook-allowed-rate: 7\r\n\
                  content-length: 0\r\n\r\n";
    let receiver = Receiver::always(agrees).await;
    let per_minute = NonZeroU32::new(7);
    // What a success is to messages says nothing of it.
    let success = tidings::expression::Expression::compile(tidings::expression::Role::Success, "false").unwrap();
    let answered = asked(&receiver, &|endpoint| endpoint.success = Some(success.clone())).await;
    assert_eq!(judged(answered), Judged::Asked(Ok(Grant { per_minute })));
    let seen = receiver.seen.lock().unwrap().pop().unwrap();
    assert_eq!(seen.line, "OPTIONS /hooks?team=sales HTTP/1.1");
    assert!(seen.headers["x-tenant"] == "blue" && seen.body.is_empty());
    assert!(!seen.headers.contains_key("webhook-request-rate"));
    let slow = Rate {
        requests: 1,
        per: Duration::from_secs(3_600),
    };
    asked(&receiver, &|endpoint| endpoint.rate = Some(slow)).await;
    let seen = receiver.seen.lock().unwrap().pop().unwrap();
    assert_eq!(seen.headers["webhook-request-rate"], "1", "a positive number");

    let before = receiver.accepted();
    let guarded = asked(&receiver, &|endpoint| {
        endpoint.egress = Arc::new(EgressRules::default())
    })
    .await;
    assert!(matches!(guarded, Outcome::Blocked { .. }), "{guarded:?}");
    assert_eq!(receiver.accepted(), before, "no connection to a forbidden address");
    let unknown = asked(&receiver, &|endpoint| endpoint.ca = None).await;
    assert_eq!(unknown, Outcome::Fault(Fault::Certificate));

    let moved =
        Receiver::always("HTTP/1.1 307 X\r\nlocation: /\r\nwebhook-allowed-origin: *\r\ncontent-length: 0\r\n\r\n")
            .await;
    let answered = asked(&moved, &|_| {}).await;
    assert_eq!(judged(answered), Judged::Asked(Err(Refusal::Status(307))));
    assert_eq!(moved.requests(), 1, "no redirect is followed");

    let hangs = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        std::future::pending().await
    })
    .await;
    let late = asked(&hangs, &|endpoint| endpoint.timeout = Duration::from_millis(200)).await;
    assert_eq!(late, Outcome::Fault(Fault::Timeout));
}
