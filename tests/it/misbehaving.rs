//! Receivers that misbehave, each over a real socket: what an attempt makes of them, and that it ends.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tidings::api::resolve::CaBundle;
use tidings::delivery::metrics::Metrics;
use tidings::delivery::{Config, Fault, HttpsSender, Outcome, Sender};
use tokio::net::TcpListener;
use tokio::sync::Barrier;

use super::receiver::{
    Connection, EXPIRED, Receiver, Seen, TRUSTED, endpoint as endpoint_at, keep_answering, request, reserve, send,
    sender, status,
};

const NO_BODY: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn answer(code: u16, body: &str) -> String {
    format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Answers the first request of each connection with these bytes and closes.
async fn once(bytes: impl Into<Vec<u8>>) -> Receiver {
    let bytes = bytes.into();
    Receiver::start(move |mut connection, seen| {
        let bytes = bytes.clone();
        async move {
            let Some(request) = connection.request().await else {
                return;
            };
            seen.lock().unwrap().push(request);
            connection.write(&bytes).await;
        }
    })
    .await
}

async fn outcome_of(receiver: &Receiver) -> Outcome {
    send(&sender(), &receiver.endpoint()).await.outcome
}

#[tokio::test]
async fn every_status_is_told_as_it_came_and_no_redirect_is_followed() {
    let table: [(&str, u16); 16] = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HTTP/1.0 200 OK\r\n\r\nold but fine", 200),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            200,
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
            202,
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            101,
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest/meta-data/\r\ncontent-length: 0\r\n\r\n",
            302,
        ),
        ("HTTP/1.1 301 Moved\r\ncontent-length: 0\r\n\r\n", 301),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", 304),
        (
            "HTTP/1.1 307 Temporary\r\nlocation: https://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
            307,
        ),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n", 410),
        ("HTTP/1.1 413 Too Large\r\nconnection: close\r\n\r\n", 413),
        (
            "HTTP/1.1 500 Oops\r\nx-note: caf\u{e9} \u{2603}\r\ncontent-length: 0\r\n\r\n",
            500,
        ),
        ("HTTP/1.1 503 Busy\r\ncontent-length: 100\r\n\r\ncut off", 503),
        ("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut off", 200),
        ("HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n", 599),
    ];
    for (bytes, code) in table {
        let receiver = once(bytes).await;
        assert_eq!(status(&outcome_of(&receiver).await), Some(code), "{bytes}");
        assert_eq!((receiver.accepted(), receiver.requests()), (1, 1), "{bytes}");
    }
}

#[tokio::test]
async fn what_is_no_http_answer_is_a_protocol_fault() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    let huge = format!(
        "HTTP/1.1 200 OK\r\nx-huge: {}\r\ncontent-length: 0\r\n\r\n",
        "x".repeat(64 * 1024)
    );
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n",
        "x-many: y\r\n".repeat(500)
    );
    let table = [
        "HTTP/1.1 600 Beyond\r\ncontent-length: 0\r\n\r\n".to_string(),
        "HTTP/1.1 999 Beyond\r\ncontent-length: 0\r\n\r\n".to_string(),
        "HTTP/1.1 099 Below\r\ncontent-length: 0\r\n\r\n".to_string(),
        "HTTP/1.1 20 Short\r\n\r\n".to_string(),
        "SSH-2.0-OpenSSH_9.9\r\n".to_string(),
        "<html>no head at all</html>\r\n\r\n".to_string(),
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n".to_string(),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab".to_string(),
        huge,
        many,
        format!("{}{NO_BODY}", interim.repeat(9)),
        interim.repeat(100_000),
    ];
    for bytes in table {
        let receiver = once(bytes.clone()).await;
        let start = &bytes[..bytes.len().min(60)];
        assert_eq!(outcome_of(&receiver).await, Outcome::Fault(Fault::Protocol), "{start}");
    }
    let allowed = once(format!("{}{NO_BODY}", interim.repeat(8))).await;
    assert_eq!(status(&outcome_of(&allowed).await), Some(204));
}

#[tokio::test]
async fn retry_after_is_told_and_nonsense_in_it_is_not() {
    let table = [
        ("120", Some(Duration::from_secs(120))),
        ("1e30", None),
        ("inf", None),
        ("-5", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(Duration::ZERO)),
        ("99999999999999999999", Some(Duration::from_secs(u64::MAX))),
    ];
    for (value, expected) in table {
        let receiver = once(format!(
            "HTTP/1.1 429 Slow\r\nretry-after: {value}\r\ncontent-length: 0\r\n\r\n"
        ))
        .await;
        match outcome_of(&receiver).await {
            Outcome::Status {
                code: 429, retry_after, ..
            } => assert_eq!(retry_after, expected, "{value}"),
            other => panic!("{value}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_failure_keeps_the_first_kilobyte_of_its_body_and_a_success_none() {
    let long: &'static str = String::leak(answer(500, &"because ".repeat(1000)));
    let receiver = Receiver::always(long).await;
    let (sender, endpoint) = (sender(), receiver.endpoint());
    for _ in 0..2 {
        match send(&sender, &endpoint).await.outcome {
            Outcome::Status {
                code: 500,
                excerpt: Some(excerpt),
                ..
            } => {
                assert_eq!(excerpt.len(), 1024);
                assert!(excerpt.starts_with(b"because because"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(receiver.accepted(), 1, "a body within the cap keeps the connection");
    let receiver = Receiver::always("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert!(matches!(
        outcome_of(&receiver).await,
        Outcome::Status {
            code: 200,
            excerpt: None,
            ..
        }
    ));
}

#[tokio::test]
async fn endless_slow_and_packed_bodies_change_no_verdict_and_hold_nobody_up() {
    async fn endless(mut connection: Connection) {
        connection.request().await;
        connection
            .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        let chunk = format!("2000\r\n{}\r\n", "x".repeat(0x2000));
        while connection.write(&chunk).await {}
    }
    async fn drip(mut connection: Connection) {
        connection.request().await;
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
            .await;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        while connection.write("x").await {
            ticks.tick().await;
        }
    }
    async fn bomb(mut connection: Connection) {
        connection.request().await;
        let head = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 50000000\r\n\r\n";
        connection.write(head).await;
        while connection.write([0x1f; 8192]).await {}
    }
    for receiver in [
        Receiver::start(|connection, _| endless(connection)).await,
        Receiver::start(|connection, _| drip(connection)).await,
        Receiver::start(|connection, _| bomb(connection)).await,
    ] {
        let mut endpoint = receiver.endpoint();
        endpoint.timeout = Duration::from_secs(60);
        let started = Instant::now();
        assert_eq!(status(&send(&sender(), &endpoint).await.outcome), Some(200));
        assert!(started.elapsed() < endpoint.timeout / 2, "well within the timeout");
    }
}

#[tokio::test]
async fn silence_is_a_timeout_wherever_it_falls() {
    let hang = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        std::future::pending::<()>().await;
    })
    .await;
    let half_a_head = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        connection.write("HTTP/1.1 200 OK\r\nx-never-").await;
        std::future::pending::<()>().await;
    })
    .await;
    for receiver in [hang, half_a_head] {
        let mut endpoint = receiver.endpoint();
        endpoint.timeout = Duration::from_millis(300);
        let result = send(&sender(), &endpoint).await;
        assert_eq!(result.outcome, Outcome::Fault(Fault::Timeout));
        assert!(result.took >= endpoint.timeout);
    }
    // A listener that nobody accepts from: TCP connects, TLS never answers.
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut endpoint = endpoint_at(
        tidings::api::resolve::Host::Address(Ipv4Addr::LOCALHOST.into()),
        mute.local_addr().unwrap().port(),
    );
    endpoint.timeout = Duration::from_millis(300);
    assert_eq!(send(&sender(), &endpoint).await.outcome, Outcome::Fault(Fault::Timeout));
}

#[tokio::test]
async fn resets_before_during_and_after_the_answer() {
    let before = Receiver::start(|connection, _| async move { connection.reset() }).await;
    assert_eq!(outcome_of(&before).await, Outcome::Fault(Fault::Reset));
    let unanswered = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        connection.reset();
    })
    .await;
    assert_eq!(outcome_of(&unanswered).await, Outcome::Fault(Fault::Reset));
    assert_eq!(
        unanswered.accepted(),
        1,
        "a new connection that fails is not tried again"
    );
    let during = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        connection.write("HTTP/1.1 200 OK\r\nx-cut").await;
        connection.reset();
    })
    .await;
    assert_eq!(outcome_of(&during).await, Outcome::Fault(Fault::Reset));
    let after = Receiver::start(|mut connection, _| async move {
        connection.request().await;
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde")
            .await;
        connection.request().await;
        connection.reset();
    })
    .await;
    assert_eq!(status(&outcome_of(&after).await), Some(200));
    let closed = Receiver::start(|mut connection, _| async move {
        connection.request().await;
    })
    .await;
    assert_eq!(outcome_of(&closed).await, Outcome::Fault(Fault::Reset));
}

#[tokio::test]
async fn tls_that_is_expired_unknown_misnamed_or_absent() {
    let behaviour = |connection, seen| keep_answering(connection, seen, NO_BODY);
    let expired = Receiver::with(&EXPIRED, (Ipv4Addr::LOCALHOST, 0).into(), behaviour).await;
    let mut endpoint = expired.endpoint();
    endpoint.ca = Some(EXPIRED.bundle());
    assert_eq!(
        send(&sender(), &endpoint).await.outcome,
        Outcome::Fault(Fault::Certificate)
    );

    let receiver = Receiver::always(NO_BODY).await;
    let mut unknown = receiver.endpoint();
    unknown.ca = None;
    assert_eq!(
        send(&sender(), &unknown).await.outcome,
        Outcome::Fault(Fault::Certificate)
    );
    let other = Receiver::with(&TRUSTED, (Ipv4Addr::new(127, 0, 0, 3), 0).into(), behaviour).await;
    assert_eq!(
        outcome_of(&other).await,
        Outcome::Fault(Fault::Certificate),
        "a name that is not in it"
    );
    assert_eq!(receiver.requests() + other.requests() + expired.requests(), 0);

    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = plain.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
    let host = tidings::api::resolve::Host::Address(Ipv4Addr::LOCALHOST.into());
    let endpoint = endpoint_at(host.clone(), port);
    assert_eq!(send(&sender(), &endpoint).await.outcome, Outcome::Fault(Fault::Tls));
    server.abort();
    let (_reserved, refused) = reserve();
    let endpoint = endpoint_at(host, refused.port());
    assert_eq!(send(&sender(), &endpoint).await.outcome, Outcome::Fault(Fault::Refused));
}

#[tokio::test]
async fn connections_are_kept_and_shared_only_under_the_same_trust() {
    let receiver = Receiver::always(NO_BODY).await;
    let (sender, endpoint) = (sender(), receiver.endpoint());
    for _ in 0..20 {
        assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    }
    assert_eq!((receiver.accepted(), receiver.requests()), (1, 20));
    let mut distrustful = endpoint.clone();
    distrustful.ca = None;
    assert_eq!(
        send(&sender, &distrustful).await.outcome,
        Outcome::Fault(Fault::Certificate)
    );
    assert_eq!(receiver.requests(), 20);
}

#[tokio::test]
async fn as_many_connections_as_there_were_resume_their_sessions_and_only_under_the_same_trust() {
    const AT_ONCE: usize = 40;
    let (resumed, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(AT_ONCE)));
    let receiver = Receiver::start({
        let resumed = resumed.clone();
        move |mut connection, _| {
            let (resumed, all) = (resumed.clone(), all.clone());
            async move {
                resumed.fetch_add(usize::from(connection.resumed()), Ordering::Relaxed);
                connection.request().await;
                // None is used again: all of them are open.
                all.wait().await;
                connection
                    .write("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                    .await;
            }
        }
    })
    .await;
    let (sender, endpoint) = (sender(), receiver.endpoint());
    let mut otherwise = endpoint.clone();
    otherwise.ca = Some(Arc::new(CaBundle {
        digest: [1; 32],
        pem: TRUSTED.bundle().pem.clone(),
    }));
    for (endpoint, expected) in [(&endpoint, 0), (&endpoint, AT_ONCE), (&otherwise, AT_ONCE)] {
        let results = join_all((0..AT_ONCE).map(|_| send(&sender, endpoint))).await;
        assert!(results.iter().all(|result| status(&result.outcome) == Some(204)));
        assert_eq!(resumed.load(Ordering::Relaxed), expected);
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_one_resend_and_no_more() {
    // Connection 0 answers once, takes the second request and closes without a byte; the next connection answers.
    let receiver = Receiver::start(|mut connection, seen| async move {
        let answers = if connection.number == 0 { 1 } else { 9 };
        for turn in 0.. {
            let Some(request) = connection.request().await else {
                return;
            };
            seen.lock().unwrap().push(request);
            if turn >= answers || !connection.write(NO_BODY).await {
                return;
            }
        }
    })
    .await;
    let (sender, endpoint) = (sender(), receiver.endpoint());
    for _ in 0..2 {
        assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    }
    assert_eq!((receiver.accepted(), receiver.requests()), (2, 3));
    {
        let seen = receiver.seen.lock().unwrap();
        assert_eq!(
            seen[1].headers["webhook-id"], seen[2].headers["webhook-id"],
            "the same attempt"
        );
        assert_eq!(seen[1].body, seen[2].body);
    }
    // Every kept connection fails, and so does the new one: that is the receiver's fault, told after one resend.
    let hopeless = Receiver::start(|mut connection, seen| async move {
        let Some(request) = connection.request().await else {
            return;
        };
        seen.lock().unwrap().push(request);
        if connection.number == 0 {
            connection.write(NO_BODY).await;
            connection.request().await;
        }
    })
    .await;
    let endpoint = hopeless.endpoint();
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    assert_eq!(send(&sender, &endpoint).await.outcome, Outcome::Fault(Fault::Reset));
    assert_eq!(hopeless.accepted(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_answered_a_byte_is_not_resent() {
    let receiver = Receiver::start(|mut connection, seen| async move {
        for bytes in [NO_BODY, "H"] {
            let Some(request) = connection.request().await else {
                return;
            };
            seen.lock().unwrap().push(request);
            connection.write(bytes).await;
        }
    })
    .await;
    let (sender, endpoint) = (sender(), receiver.endpoint());
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    assert_eq!(send(&sender, &endpoint).await.outcome, Outcome::Fault(Fault::Reset));
    assert_eq!((receiver.accepted(), receiver.requests()), (1, 2));
}

#[tokio::test]
async fn the_request_on_the_wire_is_what_the_endpoint_asks_for() {
    let receiver = Receiver::always(NO_BODY).await;
    assert_eq!(status(&outcome_of(&receiver).await), Some(204));
    let seen = receiver.seen.lock().unwrap();
    let Seen { line, headers, body } = &seen[0];
    assert_eq!(line, "POST /hooks?team=sales HTTP/1.1");
    assert_eq!(headers["host"], receiver.address.to_string());
    assert_eq!(headers["user-agent"], concat!("tidings/", env!("CARGO_PKG_VERSION")));
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["x-tenant"], "blue");
    assert_eq!(headers["content-length"], body.len().to_string());
    for name in ["accept-encoding", "cookie", "authorization", "transfer-encoding"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn idle_connections_are_bounded_in_number_and_age() {
    let (first, second) = (Receiver::always(NO_BODY).await, Receiver::always(NO_BODY).await);
    let with = |config| HttpsSender::new(config, Metrics::default()).unwrap();
    let one = with(Config {
        max_idle: 1,
        ..Config::default()
    });
    for receiver in [&first, &second, &second, &first] {
        assert_eq!(status(&send(&one, &receiver.endpoint()).await.outcome), Some(204));
    }
    assert_eq!(
        (first.accepted(), second.accepted()),
        (2, 1),
        "the one unused for longest gave way"
    );
    let none = with(Config {
        idle_time: Duration::ZERO,
        ..Config::default()
    });
    for _ in 0..3 {
        assert_eq!(status(&send(&none, &second.endpoint()).await.outcome), Some(204));
    }
    assert_eq!(second.accepted(), 4, "too old at once");
    let age = Duration::from_millis(300);
    let fresh = with(Config {
        connection_age: age,
        ..Config::default()
    });
    let begun = Instant::now();
    while second.accepted() < 4 + 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "a busy one never ends");
        assert_eq!(status(&send(&fresh, &second.endpoint()).await.outcome), Some(204));
    }
    let opened = (second.accepted() - 4) as u128;
    assert!(
        opened <= begun.elapsed().as_millis() / age.as_millis() + 1,
        "each is used until then: {opened}"
    );
    let sockets = with(Config {
        max_sockets: 1,
        ..Config::default()
    });
    for receiver in [&first, &second] {
        assert_eq!(
            status(&send(&sockets, &receiver.endpoint()).await.outcome),
            Some(204),
            "an idle one gives way"
        );
    }
}

#[tokio::test]
async fn an_early_answer_to_a_long_body_is_told() {
    let receiver = Receiver::start(|mut connection, _| async move {
        let mut some = [0; 1024];
        tokio::io::AsyncReadExt::read_exact(&mut connection.stream, &mut some)
            .await
            .unwrap();
        connection
            .write("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .await;
        std::future::pending::<()>().await;
    })
    .await;
    let long = request(vec![b'x'; 8 * 1024 * 1024]);
    let outcome = sender()
        .send(&std::sync::Arc::new(receiver.endpoint()), long)
        .await
        .outcome;
    assert_eq!(status(&outcome), Some(413));
}
