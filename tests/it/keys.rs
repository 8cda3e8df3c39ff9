//! Signing Secrets as those see them who may read them, and receivers that verify with the published library.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::HeaderMap;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use serde_json::Value;
use standardwebhooks::Webhook;

use super::receiver::Receiver;
use super::team::{PATIENCE, Team};

/// A signing Secret as somebody with access to it sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub version: String,
    pub current: String,
    pub previous: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

impl Keys {
    pub fn of(secret: &Secret) -> Keys {
        let text = |key: &str| {
            let bytes = secret.data.as_ref()?.get(key)?;
            Some(String::from_utf8(bytes.0.clone()).unwrap())
        };
        Keys {
            version: secret.resource_version().unwrap(),
            current: text("current").unwrap_or_default(),
            previous: text("previous"),
            annotations: secret.annotations().clone(),
        }
    }

    pub fn id(&self) -> &str {
        &self.annotations["tidings.dev/current-id"]
    }

    pub fn expires(&self) -> Option<&str> {
        self.annotations.get("tidings.dev/previous-expires").map(String::as_str)
    }
}

pub fn keys(team: &Team, endpoint: &str) -> Keys {
    Keys::of(&serde_json::from_value(team.get("secret", &format!("{endpoint}-signing"))).unwrap())
}

pub fn until_keys(team: &Team, what: &str, endpoint: &str, holds: impl Fn(&Keys) -> bool) -> Keys {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = keys(team, endpoint);
        if holds(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "the Secret was never {what}: {found:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Asks for a look at the endpoint now: Secrets are looked at once a minute otherwise.
pub fn look(team: &Team, endpoint: &str) {
    team.ask(endpoint, "reconcile");
}

fn verifies(key: &str, headers: &HeaderMap, body: &[u8]) -> bool {
    Webhook::new(key).unwrap().verify(body, headers).is_ok()
}

/// A request, and whether the receiver verified it with the one key it held then.
#[derive(Clone, Debug)]
pub struct Checked {
    pub event: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub verified: bool,
}

impl Checked {
    pub fn signatures(&self) -> usize {
        self.headers["webhook-signature"].to_str().unwrap().split(' ').count()
    }

    pub fn verifies_with(&self, key: &str) -> bool {
        verifies(key, &self.headers, &self.body)
    }
}

/// A receiver that holds one key and verifies everything with it.
pub struct Checking {
    receiver: Receiver,
    pub key: Arc<Mutex<String>>,
    checked: Arc<Mutex<Vec<Checked>>>,
}

impl Checking {
    pub async fn start() -> Checking {
        let (key, checked) = (Arc::<Mutex<String>>::default(), Arc::<Mutex<Vec<Checked>>>::default());
        let (held, log) = (key.clone(), checked.clone());
        let receiver = Receiver::start(move |mut connection, _| {
            let (held, log) = (held.clone(), log.clone());
            async move {
                while let Some(request) = connection.request().await {
                    let body: Value = serde_json::from_slice(&request.body).unwrap();
                    let verified = verifies(&held.lock().unwrap(), &request.headers, &request.body);
                    log.lock().unwrap().push(Checked {
                        event: body["data"]["lead"].as_str().unwrap().to_owned(),
                        headers: request.headers,
                        body: request.body,
                        verified,
                    });
                    if !connection.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await {
                        return;
                    }
                }
            }
        })
        .await;
        Checking { receiver, key, checked }
    }

    pub fn url(&self) -> String {
        format!("https://{}/hooks", self.receiver.address)
    }

    pub fn hold(&self, key: &str) {
        *self.key.lock().unwrap() = key.to_owned();
    }

    pub fn checked(&self) -> Vec<Checked> {
        self.checked.lock().unwrap().clone()
    }

    pub async fn event(&self, event: &str) -> Checked {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.checked().into_iter().find(|c| c.event == event) {
                return found;
            }
            assert!(Instant::now() < deadline, "{event} never arrived");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn assert_all_verified(&self) {
        let checked = self.checked();
        let failed: Vec<&str> = checked
            .iter()
            .filter(|c| !c.verified)
            .map(|c| c.event.as_str())
            .collect();
        assert!(
            failed.is_empty(),
            "{} of {} failed verification: {failed:?}",
            failed.len(),
            checked.len()
        );
    }
}
