//! Bodies that do not come: what a producer can hold of the dispatcher's memory with a token and nothing else.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::receiver::{Receiver, keep_answering};
use super::team::{Answer, PATIENCE, Shared, TYPES, Team, lead};

/// The largest batch.
const BATCH: usize = 4 * 1024 * 1024;
const BATCH_TYPE: &str = "application/cloudevents-batch+json";

fn head(namespace: &str, token: &str, content_type: &str, more: &str, length: usize) -> String {
    format!(
        "POST /v1/namespaces/{namespace}/events HTTP/1.1\r\nhost: ingest\r\nauthorization: Bearer {token}\r\n\
         content-type: {content_type}\r\n{more}content-length: {length}\r\n\r\n"
    )
}

async fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut answer = Vec::new();
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8_lossy(&answer);
    text.split(' ').nth(1)?.parse().ok()
}

/// Sends all but the last byte of the largest batch, and waits for the answer; again and again.
async fn never_finish(port: u16, head: String, refused: Arc<AtomicUsize>) {
    let chunk = vec![b' '; 64 * 1024];
    loop {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
            return;
        };
        let (mut reading, mut writing) = stream.split();
        let write = async {
            writing.write_all(head.as_bytes()).await?;
            let mut left = BATCH - 1;
            while left > 0 {
                let next = left.min(chunk.len());
                writing.write_all(&chunk[..next]).await?;
                left -= next;
            }
            std::future::pending::<std::io::Result<()>>().await
        };
        let mut answer = [0; 16];
        tokio::select! {
            _broken = write => {}
            read = reading.read(&mut answer) => {
                if read.is_ok_and(|read| read > 12) && &answer[9..12] == b"429" {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_that_never_finish_their_bodies_keep_nobody_out() {
    let Shared {
        cluster, dispatcher, ..
    } = Shared::get();
    let team = Team::open(cluster, "not-kept-out");
    let receiver = Receiver::start(|connection, seen| {
        keep_answering(connection, seen, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    team.deliver_to("crm", &format!("https://{}/", receiver.address), json!({}));

    // Three accounts of one namespace, without any right to publish: together they would hold half as much again as there is.
    cluster.create_namespace("never-finish", &[]).unwrap();
    let (refused, mut hostile) = (Arc::<AtomicUsize>::default(), JoinSet::new());
    for account in ["a", "b", "c"] {
        cluster
            .kubectl_ok(&["create", "serviceaccount", account, "-n", "never-finish"])
            .unwrap();
        let token = cluster.token("never-finish", account, Some("tidings")).unwrap();
        let head = head("not-kept-out", &token, BATCH_TYPE, "", BATCH);
        for _ in 0..8 {
            hostile.spawn(never_finish(dispatcher.ingest_port, head.clone(), refused.clone()));
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while refused.load(Ordering::Relaxed) < 8 {
        assert!(Instant::now() < deadline, "nobody was told that his share is used up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // The team posts small events and a large batch, and every one is taken.
    for n in 0..20 {
        team.send(dispatcher, &format!("small-{n}")).await;
    }
    let events: Vec<_> = (0..20)
        .map(|n| {
            let mut event = lead(&format!("large-{n}"), TYPES[0]);
            event["data"]["text"] = json!("x".repeat(64 * 1024));
            event
        })
        .collect();
    let request = reqwest::Client::new()
        .post(dispatcher.events_url(&team.namespace))
        .bearer_auth(team.token())
        .header("content-type", BATCH_TYPE)
        .body(json!(events).to_string());
    let answer = Answer::of(request.send().await.unwrap()).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(hostile.len(), 24, "all of them are still at it");
    hostile.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_the_right_is_refused_before_its_body_where_the_head_tells_the_type() {
    let Shared {
        cluster, dispatcher, ..
    } = Shared::get();
    let team = Team::open(cluster, "refused-early");
    let plain = head("refused-early", team.token(), "application/json", "", 200_000);
    let plain = plain.replace("/events ", "/events?source=/a&type=order.paid ");
    let attributes = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /a\r\nce-type: order.paid\r\n";
    let binary = head("refused-early", team.token(), "application/json", attributes, 200_000);
    for head in [plain, binary] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, dispatcher.ingest_port))
            .await
            .unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let answered = tokio::time::timeout(PATIENCE, status(&mut stream)).await.unwrap();
        assert_eq!(answered, Some(403), "no byte of the body was sent");
    }
}
