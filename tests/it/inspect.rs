//! `tidings inspect` as a receiver: what the sender sends it shows, verdict and all, over HTTPS.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::Value;
use tidings::api::resolve::{Host, ResolvedEndpoint};
use tidings::delivery::{Fault, Outcome, Sender};
use tidings::ids::MessageId;
use tidings::inspect::{Config, Inspector, TlsFiles};
use tidings::signing::SigningKeys;
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
        let secret = files.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        let config = Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: Some(TlsFiles { certificate, key }),
            secret_files: vec![secret],
            secrets: None,
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
    slow.timeout = Duration::from_millis(300);
    assert_eq!(send(&sender, &slow).await.outcome, Outcome::Fault(Fault::Timeout));
    assert_eq!(
        inspect.requests().await[0]["verdict"],
        "Verified",
        "it arrived all the same"
    );
}
