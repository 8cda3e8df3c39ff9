//! `tidings inspect` as a receiver: what the sender sends it shows, verdict and all, over HTTPS.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::Value;
use tidings::api::resolve::{Host, ResolvedEndpoint};
use tidings::delivery::{Fault, Grant, Judged, Outcome, Refusal, Sender};
use tidings::ids::MessageId;
use tidings::inspect::keys::Form;
use tidings::inspect::{Config, Inspector};
use tidings::signing::{Scheme, SigningKeys, public_key};
use tidings::tls::TlsFiles;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::receiver::{NEXT_SECRET, SECRET, TRUSTED, endpoint, request, send, sender, status};

struct Running {
    files: tempfile::TempDir,
    port: u16,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start() -> Running {
        let files = tempfile::tempdir().unwrap();
        let (certificate, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
        std::fs::write(&certificate, &TRUSTED.cert_pem).unwrap();
        std::fs::write(&key, &TRUSTED.key_pem).unwrap();
        let (secret, raw) = (files.path().join("secret"), files.path().join("raw"));
        std::fs::write(&secret, SECRET).unwrap();
        let config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: Some(TlsFiles { certificate, key }),
            secret_files: vec![(Form::Text, secret), (Form::Raw, raw)],
            secrets: Vec::new(),
        };
        let inspector = Inspector::bind(config).await.unwrap();
        let (port, shutdown) = (inspector.address().unwrap().port(), CancellationToken::new());
        let task = tokio::spawn(inspector.serve(shutdown.clone()));
        Running {
            files,
            port,
            shutdown,
            task,
        }
    }

    fn endpoint(&self, path: &str) -> ResolvedEndpoint {
        let mut endpoint = endpoint(Host::Address(Ipv4Addr::LOCALHOST.into()), self.port);
        endpoint.target.path = path.into();
        endpoint
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        let authority = reqwest::Certificate::from_pem(TRUSTED.ca_pem.as_bytes()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([authority])
            .no_proxy()
            .build()
            .unwrap();
        client
            .get(format!("https://127.0.0.1:{}{path}", self.port))
            .send()
            .await
            .unwrap()
    }

    /// Newest first.
    async fn requests(&self) -> Vec<Value> {
        serde_json::from_slice(&self.get("/requests").await.bytes().await.unwrap()).unwrap()
    }
}

#[tokio::test]
async fn each_request_is_shown_with_its_verdict_and_no_credential() {
    let inspect = Running::start().await;
    let sender = sender();
    let mut endpoint = inspect.endpoint("/crm/hooks");
    endpoint.headers.push((
        HeaderName::from_static("x-api-key"),
        HeaderValue::from_static("hunter2"),
    ));
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(200));

    endpoint.signing = Arc::new(SigningKeys::parse(None, NEXT_SECRET).unwrap().into());
    let markup = sender.send(&Arc::new(endpoint.clone()), request("<b>bold</b>")).await;
    assert_eq!(status(&markup.outcome), Some(200));

    // The receiver's owner changes the key: seen without a restart.
    std::fs::write(inspect.files.path().join("secret"), format!("{NEXT_SECRET} {SECRET}")).unwrap();
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(200));

    let requests = inspect.requests().await;
    let verdicts: Vec<_> = requests
        .iter()
        .map(|request| request["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts, ["Verified", "WrongSignature", "Verified"], "newest first");
    assert!(
        requests[0]["why"]
            .as_str()
            .unwrap()
            .starts_with("signed with key 1 of 2")
    );
    assert_eq!(requests[0]["attempt"], 3);
    assert!(requests[0]["body"].as_str().unwrap().contains("Zoë"));

    let page = inspect.get("/").await;
    assert!(
        page.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'")
    );
    let page = page.text().await.unwrap();
    assert!(page.contains("WrongSignature") && page.contains("x-api-key"));
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
    for text in [page, serde_json::to_string(&requests).unwrap()] {
        assert!(!text.contains("hunter2") && !text.contains(&SECRET[6..]));
    }

    inspect.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), inspect.task)
        .await
        .expect("it stops")
        .unwrap();
}

#[tokio::test]
async fn what_is_sent_in_the_style_of_others_has_its_verdict_too() {
    let inspect = Running::start().await;
    let sender = sender();
    let pairs = [1, 2].map(|byte| Scheme::Ed25519.generate([byte; 32]));
    let all = |raw: &'static str, pair: &str| {
        [
            (Scheme::Ed25519, pair.to_owned()),
            (Scheme::GitHub, raw.to_owned()),
            (Scheme::Stripe, raw.to_owned()),
        ]
    };
    let raw = ["whsec_of_Stripe", "of GitHub"];
    let deliver = async |keys: [(Scheme, String); 3]| {
        for (scheme, key) in keys {
            let mut endpoint = inspect.endpoint("/crm");
            endpoint.signing = Arc::new(scheme.read(key.as_bytes()).unwrap());
            assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(200));
        }
        let mut requests = inspect.requests().await;
        requests.truncate(3);
        requests.reverse();
        requests
    };
    let verdicts = |requests: &[Value]| -> Vec<String> {
        let verdict = |request: &Value| request["verdict"].as_str().unwrap().to_owned();
        requests.iter().map(verdict).collect()
    };
    let unknown = deliver(all(raw[0], &pairs[0])).await;
    assert_eq!(verdicts(&unknown), ["Unchecked"; 3], "there is a whsec_ key only");
    assert!(unknown[1]["why"].as_str().unwrap().contains("use a --raw-secret-file"));

    // The receiver holds the public half.
    let public = public_key(&pairs[0]).unwrap();
    std::fs::write(inspect.files.path().join("secret"), format!("{SECRET} {public}")).unwrap();
    std::fs::write(inspect.files.path().join("raw"), raw[0]).unwrap();
    let known = deliver(all(raw[0], &pairs[0])).await;
    assert_eq!(verdicts(&known), ["Verified"; 3]);
    let headers = known[2]["headers"].as_array().unwrap();
    let shown = |name: &str| {
        headers
            .iter()
            .any(|header| header[0] == name && header[1].as_str().unwrap().contains("v1="))
    };
    assert!(shown("stripe-signature"), "{headers:?}");
    let others = deliver(all(raw[1], &pairs[1])).await;
    assert_eq!(verdicts(&others), ["WrongSignature"; 3]);
    let all = serde_json::to_string(&inspect.requests().await).unwrap();
    assert!(raw.iter().all(|raw| !all.contains(raw)));
}

#[tokio::test]
async fn it_plays_receivers_that_fail_are_slow_or_throttle() {
    let inspect = Running::start().await;
    let sender = sender();
    let flaky = Arc::new(inspect.endpoint("/fail/2"));
    for id in [7, 8] {
        for expected in [500, 500, 200, 200] {
            let mut one = request("{}");
            one.message = MessageId(id);
            assert_eq!(status(&sender.send(&flaky, one).await.outcome), Some(expected));
        }
    }
    match send(&sender, &inspect.endpoint("/status/429?retry-after=30"))
        .await
        .outcome
    {
        Outcome::Status {
            code: 429, retry_after, ..
        } => assert_eq!(retry_after, Some(Duration::from_secs(30))),
        other => panic!("{other:?}"),
    }
    let mut slow = inspect.endpoint("/slow?ms=60000");
    slow.timeout = Duration::from_secs(5);
    assert_eq!(send(&sender, &slow).await.outcome, Outcome::Fault(Fault::Timeout));
    let newest = &inspect.requests().await[0];
    assert_eq!(
        (&newest["path"], &newest["verdict"]),
        (&"/slow?ms=60000".into(), &"Verified".into()),
        "it arrived all the same"
    );
}

#[tokio::test]
async fn whoever_asks_first_is_agreed_with_unless_the_path_says_otherwise() {
    let inspect = Running::start().await;
    let sender = sender();
    let granted = |rate| {
        Ok(Grant {
            per_minute: std::num::NonZeroU32::new(rate),
        })
    };
    let asked_for = Some(tidings::api::resolve::Rate {
        requests: 2,
        per: Duration::from_secs(1),
    });
    let table = [
        ("/crm", None, granted(0)),
        ("/crm", asked_for, granted(120)),
        ("/crm?allowed-rate=60", asked_for, granted(60)),
        ("/crm?allowed-rate=soon", None, Err(Refusal::Rate)),
        ("/fail/3", None, granted(0)),
        ("/status/405", None, Err(Refusal::Status(405))),
    ];
    for (path, rate, expected) in table {
        let mut endpoint = inspect.endpoint(path);
        (endpoint.handshake, endpoint.rate) = (true, rate);
        match sender.ask(&Arc::new(endpoint)).await.outcome {
            Outcome::Status { judged, .. } => assert_eq!(judged, Judged::Asked(expected), "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
    let shown = &inspect.requests().await[1];
    assert_eq!(
        (&shown["method"], &shown["verdict"]),
        (&"OPTIONS".into(), &"Unchecked".into())
    );
    let origin = Value::from(vec!["webhook-request-origin", "tidings.dev"]);
    assert!(shown["headers"].as_array().unwrap().contains(&origin), "{shown:#}");
}
