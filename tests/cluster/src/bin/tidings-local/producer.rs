//! A producer: a ServiceAccount's token and events over HTTP, as an agent would send them.
//!
//! Invariant: the token is for the audience `tidings` and is never printed.

use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tidings_cluster::{Cluster, process, repository_root};

/// One that may publish what `examples/producer-rbac.yaml` grants.
pub struct Producer {
    namespace: String,
    ingest_port: u16,
    token: String,
}

/// What ingest answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// As it came.
    pub text: String,
    pub body: Value,
}

impl Producer {
    pub fn new(cluster: &Cluster, namespace: &str, ingest_port: u16) -> Result<Producer> {
        Ok(Producer {
            namespace: namespace.to_owned(),
            ingest_port,
            token: cluster.token(namespace, "agent", Some("tidings"))?,
        })
    }

    /// Posts one structured CloudEvent.
    pub fn post(&self, event: &Value) -> Result<Answer> {
        let body = event.to_string();
        let request = format!(
            "POST /v1/namespaces/{}/events HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/cloudevents+json\r\nContent-Length: {}\r\n\r\n{body}",
            self.namespace,
            self.token,
            body.len()
        );
        let (status, text) =
            process::http_exchange(self.ingest_port, request.as_bytes()).context("ingest gave no answer")?;
        let body = serde_json::from_str(&text).with_context(|| format!("ingest answered {status}: {text}"))?;
        Ok(Answer { status, text, body })
    }

    /// Posts one that must be accepted and make one message.
    pub fn send(&self, event: &Value) -> Result<Answer> {
        let answer = self.post(event)?;
        if answer.status != 202 || answer.body["matched"] != 1 {
            bail!(
                "an event was not accepted for one receiver: {} {}",
                answer.status,
                answer.text
            );
        }
        Ok(answer)
    }
}

/// The event of an example, with this id.
pub fn example(example: &str, id: &str) -> Result<Value> {
    let path = repository_root().join("examples").join(example).join("event.json");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut event: Value = serde_json::from_str(&text).with_context(|| format!("failed to read {}", path.display()))?;
    event["id"] = id.into();
    Ok(event)
}
