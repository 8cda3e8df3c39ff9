//! Bodies that do not come, and answers that nobody reads: what can be held of the dispatcher's memory with a token.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::messages::Reader;
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
    assert!(hostile.try_join_next().is_none(), "all of them are still at it");
    hostile.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_without_the_right_is_refused_before_its_body_where_the_head_tells_the_type() {
    let Shared {
        cluster, dispatcher, ..
    } = Shared::get();
    let team = Team::open(cluster, "refused-early");
    team.until_allowed(dispatcher).await;
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

/// Asks for these paths at once, again and again over one connection, and reads nothing.
async fn never_read(port: u16, token: &str, paths: &[String]) -> TcpStream {
    const TIMES: usize = 12;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.unwrap();
    let ask = |path: &String| format!("GET {path} HTTP/1.1\r\nhost: ingest\r\nauthorization: Bearer {token}\r\n\r\n");
    let all: String = paths.iter().cycle().take(TIMES).map(ask).collect();
    stream.write_all(all.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_his_answers_gets_no_more_of_them_and_is_cut_off_and_nobody_else_notices() {
    /// Twelve large answers on each: many times what a namespace may hold, and more than the kernel takes of one.
    const CONNECTIONS: usize = 32;
    /// How long an answer may take to be read.
    const READ_WITHIN: Duration = Duration::from_secs(60);
    let Shared {
        cluster, dispatcher, ..
    } = Shared::get();
    let team = Team::open(cluster, "not-reading");
    let reader = Reader::new(&team, dispatcher, "reader", Some("edit"));
    team.deliver_to("crm", "https://127.0.0.1:9/", json!({"suspend": true}));
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
        "metadata": {"name": "leads"}, "spec": {"delivery": "Pull", "eventTypes": ["lead.*"]}}),
    );
    team.ready("evsub/leads");
    // A quotation mark is two bytes in JSON, and four where that is text in JSON again.
    let mut event = lead("large", TYPES[0]);
    event["data"]["text"] = json!("\"".repeat(120_000));
    assert_eq!(team.posting(dispatcher, &event).await.unwrap().status, 202);
    reader.until_allowed().await;
    let pending = reader.until("endpoint=crm", 1).await;
    let one = format!("/{}", pending[0]["id"].as_str().unwrap());
    assert_eq!(reader.get(&one).await.status, 200);

    let namespace = format!("/v1/namespaces/{}", team.namespace);
    let paths = [
        format!("{namespace}/messages{one}"),
        format!("{namespace}/subscriptions/leads/pull"),
    ];
    let token = cluster.token(&team.namespace, "reader", Some("tidings")).unwrap();
    let begin = Instant::now();
    let mut unread = Vec::new();
    for _ in 0..CONNECTIONS {
        unread.push(never_read(dispatcher.ingest_port, &token, &paths).await);
    }
    let refused = loop {
        let answer = reader.get(&one).await;
        if answer.body["reason"] == "TooManyBodies" {
            break answer;
        }
        assert!(begin.elapsed() < READ_WITHIN, "he may hold what he likes");
    };
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused.body["detail"].as_str().unwrap().contains("read them"),
        "{refused:?}"
    );
    assert!(refused.retry_after.is_some());
    // Others read as ever.
    let beside = Team::open(cluster, "not-reading-beside");
    let other = Reader::new(&beside, dispatcher, "reader", Some("edit"));
    other.until_allowed().await;
    beside.deliver_to("crm", "https://127.0.0.1:9/", json!({"suspend": true}));
    assert_eq!(beside.posting(dispatcher, &event).await.unwrap().status, 202);
    let pending = other.until("", 1).await;
    assert_eq!(
        other
            .get(&format!("/{}", pending[0]["id"].as_str().unwrap()))
            .await
            .status,
        200
    );

    // Cut off, their memory is there again, also for this reader.
    let deadline = begin + READ_WITHIN + PATIENCE;
    while reader.get(&one).await.status != 200 {
        assert!(Instant::now() < deadline, "the memory is never given back");
    }
    let until_closed = |mut stream: TcpStream| {
        Box::pin(async move {
            let _rest = stream.read_to_end(&mut Vec::new()).await;
        })
    };
    // How many of them held the share depends on what the kernel took of each. What is read to its end may idle for longer.
    let one_closed = futures::future::select_all(unread.into_iter().map(until_closed));
    let closed = tokio::time::timeout(PATIENCE, one_closed).await;
    assert!(closed.is_ok(), "none was closed");
}
