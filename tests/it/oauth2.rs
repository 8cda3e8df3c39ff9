//! Tokens of OAuth 2.0 clients, against a token server and a receiver that take only what they should.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tidings::api::WebhookEndpoint;
use tidings::api::resolve::{EgressRules, Found, Lookup, Reference, References, ResolvedEndpoint, resolve_endpoint};
use tidings::delivery::{Fault, HttpsSender, OurFault, Outcome, TokenTrouble};
use tokio::net::TcpListener;

use super::credentials::{put_secret, reread};
use super::receiver::{Receiver, Seen, TRUSTED, reserve, send, sender, status};
use super::team::{Shared, Team, metric};

/// What a refusal says beside its code: it is for nobody's status.
const DETAIL: &str = "detail-of-a-refusal-6fk2";

/// What token server and receiver know of each other.
#[derive(Default)]
struct Shop {
    /// The client's secret.
    secret: String,
    /// Tokens that the receiver takes.
    valid: HashSet<String>,
    given: usize,
    /// The forms of requests for a token that were granted.
    forms: Vec<String>,
}

/// A token server and a receiver that takes its tokens.
pub struct Tokens {
    shop: Arc<Mutex<Shop>>,
    pub receiver: Receiver,
}

impl Tokens {
    /// With the client `tidings` and its secret.
    pub async fn new(secret: &str) -> Tokens {
        let shop = Arc::new(Mutex::new(Shop {
            secret: secret.to_owned(),
            ..Shop::default()
        }));
        let taken = shop.clone();
        let receiver = Receiver::start(move |mut connection, seen| {
            let shop = taken.clone();
            async move {
                while let Some(request) = connection.request().await {
                    let shown = text(&request, "authorization")
                        .strip_prefix("Bearer ")
                        .map(str::to_owned);
                    let known = shown
                        .as_ref()
                        .is_some_and(|token| shop.lock().unwrap().valid.contains(token));
                    seen.lock().unwrap().push(request);
                    // It repeats the token, which must not be kept.
                    let (status, body) = match known {
                        true => (200, String::new()),
                        false => (401, format!("unknown: {}", shown.unwrap_or_default())),
                    };
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
                    if !connection.write(answer).await {
                        return;
                    }
                }
            }
        })
        .await;
        Tokens { shop, receiver }
    }

    /// Opens the token server.
    pub async fn serve(&self, at: SocketAddr) -> Receiver {
        self.serve_on(TcpListener::bind(at).await.unwrap()).await
    }

    async fn serve_on(&self, listener: TcpListener) -> Receiver {
        let shop = self.shop.clone();
        Receiver::serve_on(Some(TRUSTED.acceptor()), listener, move |mut connection, seen| {
            let shop = shop.clone();
            async move {
                while let Some(request) = connection.request().await {
                    let (status, body) = answer(&mut shop.lock().unwrap(), &request);
                    seen.lock().unwrap().push(request);
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n");
                    // Slow enough that those who need it at once meet.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if !connection
                        .write(format!("{head}content-length: {length}\r\n\r\n{body}"))
                        .await
                    {
                        return;
                    }
                }
            }
        })
        .await
    }

    fn change_secret(&self, secret: &str) {
        self.shop.lock().unwrap().secret = secret.to_owned();
    }

    /// From now on the receiver refuses every token given so far.
    fn revoke(&self) {
        self.shop.lock().unwrap().valid.clear();
    }

    /// Tokens that the receiver takes.
    pub fn valid(&self) -> HashSet<String> {
        self.shop.lock().unwrap().valid.clone()
    }

    fn given(&self) -> usize {
        self.shop.lock().unwrap().given
    }

    fn posts(&self) -> usize {
        self.receiver.requests()
    }
}

fn text<'a>(request: &'a Seen, name: &str) -> &'a str {
    request.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn field(form: &str, name: &str) -> Option<String> {
    let mut fields = url::form_urlencoded::parse(form.as_bytes());
    fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// RFC 6749, 4.4: either way to show the client's id and secret.
fn answer(shop: &mut Shop, request: &Seen) -> (u16, String) {
    let form = String::from_utf8(request.body.clone()).unwrap();
    let pair = text(request, "authorization").strip_prefix("Basic ").map(|pair| {
        let pair = String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap();
        let (id, secret) = pair.split_once(':').unwrap();
        let decoded = |part: &str| field(&format!("x={part}"), "x");
        (decoded(id), decoded(secret))
    });
    let (id, secret) = pair.unwrap_or_else(|| (field(&form, "client_id"), field(&form, "client_secret")));
    let is_form = text(request, "content-type") == "application/x-www-form-urlencoded";
    if !is_form || field(&form, "grant_type").as_deref() != Some("client_credentials") {
        return (400, json!({"error": "unsupported_grant_type"}).to_string());
    }
    if (id.as_deref(), secret.as_deref()) != (Some("tidings"), Some(&shop.secret)) {
        let refusal = json!({"error": "invalid_client", "error_description": DETAIL});
        return (400, refusal.to_string());
    }
    shop.given += 1;
    shop.forms.push(form);
    let token = format!("token-number-{}-{:x}", shop.given, rand::random::<u64>());
    shop.valid.insert(token.clone());
    let given = json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600});
    (200, given.to_string())
}

/// `spec.auth` of the client `tidings` with the Secret `client`; `more` goes over it.
pub fn auth(token_server: SocketAddr, more: &Value) -> Value {
    let mut client = json!({
        "tokenURL": format!("https://{token_server}/oauth/token"),
        "clientID": "tidings",
        "clientSecretKeyRef": {"name": "client", "key": "secret"},
    });
    let fields = more.as_object().unwrap().clone();
    client.as_object_mut().unwrap().extend(fields);
    json!({"type": "OAuth2ClientCredentials", "oauth2ClientCredentials": client})
}

/// An endpoint as the dispatcher makes it of a manifest.
fn resolved(tokens: &Tokens, token_server: SocketAddr, secret: &str, more: &Value) -> ResolvedEndpoint {
    let endpoint: WebhookEndpoint = serde_json::from_value(json!({
        "apiVersion": "tidings.dev/v1alpha1",
        "kind": "WebhookEndpoint",
        "metadata": {"name": "crm", "namespace": "sales", "generation": 1},
        "spec": {
            "url": format!("https://{}/", tokens.receiver.address),
            "signing": {"scheme": "None"},
            "auth": auth(token_server, more),
            "tls": {"caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}},
        },
    }))
    .unwrap();
    let found = |key: &str, value: &str| {
        Lookup::Found(Found {
            labels: [("tidings.dev/use".to_owned(), "true".to_owned())]
                .into_iter()
                .collect(),
            data: [(key.to_owned(), value.as_bytes().to_vec().into())]
                .into_iter()
                .collect(),
            ..Found::default()
        })
    };
    let mut references = References::default();
    references.insert(Reference::secret("client"), found("secret", secret));
    references.insert(Reference::config_map("ca"), found("ca.crt", &TRUSTED.ca_pem));
    let egress = EgressRules {
        open_cidrs: vec!["127.0.0.0/8".parse().unwrap()],
        ..EgressRules::default()
    };
    resolve_endpoint(&endpoint, &references, &Arc::new(egress), None).unwrap()
}

/// Sends so many requests at once.
async fn send_at_once(sender: &HttpsSender, endpoint: &ResolvedEndpoint, count: usize) -> Vec<Outcome> {
    let all = (0..count).map(|_| send(sender, endpoint));
    let results = futures::future::join_all(all).await;
    results.into_iter().map(|result| result.outcome).collect()
}

/// A free port of this machine.
pub const SOMEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

#[tokio::test]
async fn a_token_is_got_once_and_kept_and_one_that_the_receiver_refuses_is_replaced_within_the_attempt() {
    let tokens = Tokens::new("s3cret:with+signs %").await;
    let server = tokens.serve(SOMEWHERE.into()).await;
    let more = json!({"scopes": ["leads:write", "leads:read"], "parameters": [{"name": "audience", "value": "https://crm.example.com/"}]});
    let endpoint = resolved(&tokens, server.address, "s3cret:with+signs %", &more);
    let sender = sender();
    let all = |outcomes: Vec<Outcome>, expected| {
        for outcome in outcomes {
            assert_eq!(status(&outcome), Some(expected), "{outcome:?}");
        }
    };
    all(send_at_once(&sender, &endpoint, 6).await, 200);
    all(send_at_once(&sender, &endpoint, 2).await, 200);
    assert_eq!((tokens.given(), tokens.posts()), (1, 8), "asked once, by all at once");
    let form = tokens.shop.lock().unwrap().forms[0].clone();
    assert_eq!(field(&form, "scope").as_deref(), Some("leads:write leads:read"));
    assert_eq!(field(&form, "audience").as_deref(), Some("https://crm.example.com/"));
    assert_eq!(field(&form, "client_secret"), None);

    tokens.revoke();
    all(send_at_once(&sender, &endpoint, 1).await, 200);
    assert_eq!(
        (tokens.given(), tokens.posts()),
        (2, 10),
        "a 401, and the same attempt with a new token"
    );

    // The other way to show the client's id is another request, so another token.
    let body = json!({"clientAuthentication": "Body"});
    let in_body = resolved(&tokens, server.address, "s3cret:with+signs %", &body);
    all(send_at_once(&sender, &in_body, 1).await, 200);
    assert_eq!(tokens.given(), 3);

    // A receiver that refuses every token costs one of them an attempt, and repeats none of them to us.
    let before = tokens.posts();
    let shop = tokens.shop.clone();
    shop.lock().unwrap().valid.clear();
    let other = Tokens::new("unused").await;
    let refusing = resolved(&other, server.address, "s3cret:with+signs %", &more);
    let outcome = send(&sender, &refusing).await.outcome;
    let Outcome::Status {
        code: 401,
        excerpt: Some(excerpt),
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(&excerpt[..], b"unknown: [not shown]");
    assert_eq!((tokens.posts(), tokens.given()), (before, 4));
    assert_eq!(other.posts(), 2);
}

#[tokio::test]
async fn a_token_server_that_is_away_is_our_fault_and_one_that_refuses_is_not() {
    let tokens = Tokens::new("right").await;
    let sender = sender();
    let outcome = async |server: SocketAddr, secret: &str| {
        let endpoint = resolved(&tokens, server, secret, &json!({}));
        send(&sender, &endpoint).await.outcome
    };
    let away = Receiver::always("HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n").await;
    let trouble = |trouble| Outcome::Ours(OurFault::Token(trouble));
    assert_eq!(outcome(away.address, "right").await, trouble(TokenTrouble::Status(503)));
    let (_reserved, refused) = reserve();
    assert_eq!(
        outcome(refused, "right").await,
        trouble(TokenTrouble::Fault(Fault::Refused))
    );
    let redirects =
        Receiver::always("HTTP/1.1 302 X\r\nlocation: https://127.0.0.1/\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(outcome(redirects.address, "right").await, Outcome::Fault(Fault::Auth));
    let server = tokens.serve(SOMEWHERE.into()).await;
    assert_eq!(outcome(server.address, "wrong").await, Outcome::Fault(Fault::Auth));
    assert_eq!(tokens.posts(), 0, "nothing is sent without a token");
    // The guard stands before the token server, too.
    let mut closed = resolved(&tokens, server.address, "right", &json!({}));
    closed.egress = Arc::default();
    let before = server.accepted();
    assert!(matches!(send(&sender, &closed).await.outcome, Outcome::Blocked { .. }));
    assert_eq!(server.accepted(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_the_token_server_and_a_changed_client_secret_is_used_without_a_restart() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "oauth2");
    let tokens = Tokens::new("first-client-secret").await;
    let asked = || {
        ["TokenUnavailable", "Given", "Auth"].map(|outcome| {
            let name = format!("tidings_delivery_token_requests_total{{outcome=\"{outcome}\"}}");
            metric(&shared.dispatcher, &name)
        })
    };
    let before = asked();
    put_secret(&team, "client", true, json!({"secret": "first-client-secret\n"}));
    let (reserved, at) = reserve();
    let spec = json!({
        "auth": auth(at, &json!({})),
        "retry": {"schedule": ["1s", "1s", "1s"]},
        "circuitBreaker": {"probeAfter": "1s", "probeAfterMax": "1s"},
    });
    team.deliver_to("crm", &format!("https://{}/", tokens.receiver.address), spec);
    team.send(&shared.dispatcher, "lead-1").await;
    team.until_reason("whe", "crm", "Delivering", "TokenUnavailable");
    let server = tokens.serve_on(reserved.listen(128).unwrap()).await;
    let whe = team.until("delivered", "whe", "crm", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["lastStatusCode"] == 200 && delivery["pending"] == 0
    });
    let delivery = &whe["status"]["delivery"];
    assert_eq!(
        (&delivery["lastFailure"], &delivery["recentFailures"]),
        (&json!(null), &json!([])),
        "{whe:#}"
    );
    assert_eq!(tokens.posts(), 1, "no attempt was made without a token");

    // The client gets another secret; the old one and all its tokens are no longer good.
    tokens.change_secret("second-client-secret");
    tokens.revoke();
    team.send(&shared.dispatcher, "lead-2").await;
    let whe = team.until("refused by the token server", "whe", "crm", |whe| {
        whe["status"]["delivery"]["lastFailure"]["reason"] == "Auth"
    });
    assert!(!whe.to_string().contains(DETAIL), "{whe:#}");
    put_secret(&team, "client", true, json!({"secret": "second-client-secret"}));
    reread(&team, "crm", "client").await;
    team.until("delivered", "whe", "crm", |whe| {
        let delivery = &whe["status"]["delivery"];
        delivery["lastStatusCode"] == 200 && delivery["pending"] == 0 && delivery["deadLettered"] == 0
    });
    // Nobody there, a token for each client secret, and the refusal between them.
    for (now, least) in asked().iter().zip([before[0] + 1.0, before[1] + 2.0, before[2] + 1.0]) {
        assert!(*now >= least, "{:?} after {before:?}", asked());
    }
    drop(server);
}
