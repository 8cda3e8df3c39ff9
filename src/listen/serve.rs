//! HTTP/1.1 on a port of ours: accepts, bounds and ends connections; what is answered is the caller's.
//!
//! hyper directly, without a router: there are few paths, and a request costs a few microseconds. Invariants: when
//! [`serve`] returns no connection is left, and every answer that was due has been written (or its reader is gone, or
//! [`Limits::grace`] is over); no connection idles for much longer than [`Spare`] in a place that another waits for, and none
//! is cut for another's sake while it has a request in hand; none holds more than a head, and an answer, that does not end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::timed::{Patience, Steps, Timed};
use crate::tls::Certificate;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further ones wait in the listen queue until the one that idles longest has made place.
    pub places: usize,
    pub spare: Spare,
    /// The most bytes of a request's head, 8 KiB at least. A connection's buffer grows to that, and where requests follow each
    /// other to twice that.
    pub head: usize,
    /// The most header fields of a request.
    pub fields: usize,
    /// How long a head may take from its first byte on.
    pub head_time: Duration,
    /// How long a connection may idle while places are free.
    pub idle: Duration,
    /// How long an answer may take to be read.
    pub read_within: Duration,
    /// How long requests in hand have to end after the shutdown began.
    pub grace: Duration,
}

/// How long connections may idle when their places are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Spare {
    /// Before the first request.
    pub silent: Duration,
    /// After an answer.
    pub answered: Duration,
    /// In a TLS handshake.
    pub shaking: Duration,
}

/// Where connections come in: by TLS with a certificate, else plain.
pub struct Entrance {
    pub listener: TcpListener,
    pub certificate: Option<Arc<Certificate>>,
    pub limits: Limits,
}

/// Serves until `shutdown`, then finishes the requests in hand; `closing` is cancelled when no more connections are accepted.
pub async fn serve<A>(
    entrance: Entrance,
    answer: impl Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    shutdown: CancellationToken,
    closing: CancellationToken,
) where
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let limits = entrance.limits;
    let connections = TaskTracker::new();
    let (wanted, answer) = (Arc::new(Notify::new()), Arc::new(answer));
    let mut accepting = Accepting {
        listener: entrance.listener,
        places: Arc::new(Semaphore::new(limits.places)),
        wanted: wanted.clone(),
        told: None,
    };
    let aborted = CancellationToken::new();
    while let Some((stream, place)) = shutdown.run_until_cancelled(accepting.next()).await.flatten() {
        let tls = entrance.certificate.as_ref().map(|certificate| certificate.acceptor());
        let (wanted, answer) = (wanted.clone(), answer.clone());
        let (shutdown, aborted) = (shutdown.clone(), aborted.clone());
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = connection(stream, tls, &*answer, (&wanted, limits), shutdown) => {}
                () = aborted.cancelled() => {}
            }
        });
    }
    drop(accepting);
    closing.cancel();
    connections.close();
    if tokio::time::timeout(limits.grace, connections.wait()).await.is_err() {
        tracing::warn!(
            left = connections.len(),
            "closing connections whose requests did not end in time"
        );
        aborted.cancel();
        connections.wait().await;
    }
}

struct Accepting {
    listener: TcpListener,
    places: Arc<Semaphore>,
    wanted: Arc<Notify>,
    /// When the log said last that an accept was refused.
    told: Option<Instant>,
}

impl Accepting {
    /// The next connection with its place.
    async fn next(&mut self) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        /// A refused accept (no file descriptors) is tried again so often.
        const PAUSE: Duration = Duration::from_millis(50);
        /// And told so often.
        const TELL_AGAIN: Duration = Duration::from_secs(60);
        let place = place(&self.places, &self.wanted).await?;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(err) => {
                    if self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
                        tracing::warn!(error = %err, "failed to accept a connection");
                        self.told = Some(Instant::now());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A place: a free one, else that of the connection that idles longest.
async fn place(places: &Arc<Semaphore>, wanted: &Notify) -> Option<OwnedSemaphorePermit> {
    /// Who was told to go may have an answer to write before: then another one is told.
    const AGAIN: Duration = Duration::from_millis(100);
    loop {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        wanted.notify_one();
        if let Ok(place) = tokio::time::timeout(AGAIN, places.clone().acquire_owned()).await {
            return place.ok();
        }
    }
}

/// Who hears that a place is wanted, and when it gives its own.
type Wanted<'a> = (&'a Notify, Limits);

/// Ends when the place of who begins to idle now is wanted: they are told in the order in which they began.
async fn idle(wanted: &Notify, spare: Duration) {
    tokio::time::sleep(spare).await;
    wanted.notified().await;
}

/// The same for a connection on which steps are made: it idles while their number is even.
async fn idle_between(steps: &Steps, (wanted, Limits { spare, .. }): Wanted<'_>) {
    loop {
        let before = steps.made();
        // Nothing wakes this: its own task, which has polled the requests just before, makes the steps.
        let step = poll_fn(|_| match steps.made() {
            now if now == before => Poll::Pending,
            _ => Poll::Ready(()),
        });
        tokio::select! {
            biased;
            () = step => {}
            () = idle(wanted, if before == 0 { spare.silent } else { spare.answered }), if before.is_multiple_of(2) => return,
        }
    }
}

async fn connection<A>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    answer: &impl Fn(Request<Incoming>) -> A,
    wanted: Wanted<'_>,
    shutdown: CancellationToken,
) where
    A: Future<Output = Response<Full<Bytes>>>,
{
    // Without it a small answer waits for the acknowledgement of the one before.
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(error = %err, "failed to set TCP_NODELAY");
    }
    let Some(tls) = tls else {
        return requests(stream, answer, wanted, shutdown).await;
    };
    let shaken = tokio::select! {
        biased;
        shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => shaken,
        () = shutdown.cancelled() => return,
        () = idle(wanted.0, wanted.1.spare.shaking) => return,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, answer, wanted, shutdown).await,
        Ok(Err(err)) => tracing::debug!(error = %err, "a client's TLS handshake failed"),
        Err(_) => tracing::debug!("a client's TLS handshake took too long"),
    }
}

async fn requests<S, A>(
    stream: S,
    answer: &impl Fn(Request<Incoming>) -> A,
    wanted: Wanted<'_>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    A: Future<Output = Response<Full<Bytes>>>,
{
    let (steps, limits) = (&Steps::default(), wanted.1);
    let service = service_fn(|request| {
        steps.step();
        // Not a block that awaits it: that would have its memory twice, on every connection.
        answer(request).map(move |answered| {
            steps.step();
            Ok::<_, Infallible>(answered)
        })
    });
    let patience = Patience {
        head: limits.head_time,
        read: limits.read_within,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(limits.head)
        .max_headers(limits.fields)
        // An answer stays what it is until it is sent, and the next request waits: flattened into one buffer it would hold
        // no share any more, and requests one behind the other would fill that buffer without end.
        .writev(true)
        .serve_connection(TokioIo::new(Timed::new(stream, steps, patience)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        // First: a request that is there is taken before its connection is looked upon as idle.
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = idle_between(steps, wanted) => {
            // Silent so far, or within its first head: hyper would wait for the rest.
            if steps.made() == 0 {
                return;
            }
            // Closes what idles; where an answer is still on its way, after that.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "a client's connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;

    /// Of an answer; many times what lies between server and client.
    const ANSWER: usize = 1 << 20;
    const BETWEEN: usize = 16 * 1024;

    /// An answer's memory, counted while it is there.
    struct Counted(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Long enough to tell each from the others.
    const LIMITS: Limits = Limits {
        places: 8,
        spare: Spare {
            silent: Duration::from_millis(250),
            answered: Duration::from_millis(250),
            shaking: Duration::from_secs(2),
        },
        head: 8 * 1024,
        fields: 16,
        head_time: Duration::from_secs(10),
        idle: Duration::from_secs(120),
        read_within: Duration::from_secs(60),
        grace: Duration::from_secs(5),
    };
    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: us\r\n\r\n";

    /// A client, and its connection on which everything is answered so.
    fn served<A>(answer: impl Fn(Request<Incoming>) -> A + Send + Sync + 'static) -> (DuplexStream, JoinHandle<()>)
    where
        A: Future<Output = Response<Full<Bytes>>> + Send,
    {
        let (client, server) = tokio::io::duplex(BETWEEN);
        let connection = tokio::spawn(async move {
            let wanted = Notify::new();
            requests(server, &answer, (&wanted, LIMITS), CancellationToken::new()).await;
        });
        (client, connection)
    }

    /// A client that has asked three times at once, the answers that are in memory, and the connection.
    async fn asked() -> (DuplexStream, Arc<AtomicUsize>, JoinHandle<()>) {
        let there = Arc::new(AtomicUsize::new(0));
        let counted = there.clone();
        let (mut client, connection) = served(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            let body = Bytes::from_owner(Counted(vec![b' '; ANSWER], counted.clone()));
            async { Response::new(Full::new(body)) }
        });
        client.write_all(REQUEST.repeat(3).as_bytes()).await.expect("asked");
        (client, there, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_gets_no_second_answer_and_is_cut_off_after_a_minute() {
        let (client, there, connection) = asked().await;
        let begin = Instant::now();
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(there.load(Ordering::Relaxed), 1, "the other answers wait, unmade");
        connection.await.expect("no panic");
        assert!(begin.elapsed() < Duration::from_secs(61), "{:?}", begin.elapsed());
        assert_eq!(there.load(Ordering::Relaxed), 0, "its memory is given back");
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_a_little_now_and_then_is_cut_off_too() {
        let (mut client, there, connection) = asked().await;
        let begin = Instant::now();
        let mut some = [0; BETWEEN];
        while client.read(&mut some).await.expect("a stream") > 0 {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        connection.await.expect("no panic");
        assert!(begin.elapsed() < Duration::from_secs(90), "{:?}", begin.elapsed());
        assert_eq!(there.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_each_answer_in_time_gets_all_of_them() {
        let (mut client, _, _connection) = asked().await;
        let (mut read, mut some) = (0, vec![0; ANSWER]);
        while read < 3 * ANSWER {
            // An answer takes half of its minute, and all of them together longer than one.
            tokio::time::sleep(Duration::from_millis(450)).await;
            let n = client.read(&mut some).await.expect("a stream");
            assert!(n > 0, "it was cut off after {read} bytes");
            read += n;
        }
    }

    /// A client whose requests are answered at once, and its connection.
    fn small() -> (DuplexStream, JoinHandle<()>) {
        served(|_| async { Response::new(Full::new(Bytes::from_static(b"here"))) })
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_drips_is_cut_off_soon_after_it_began_and_idling_between_requests_is_not() {
        let (mut client, connection) = small();
        let mut some = [0; 512];
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(100)).await;
            client.write_all(REQUEST.as_bytes()).await.expect("it is still open");
            assert!(client.read(&mut some).await.expect("an answer") > 0);
        }
        tokio::time::sleep(Duration::from_secs(100)).await;
        let begin = Instant::now();
        for byte in REQUEST.bytes() {
            if client.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        connection.await.expect("no panic");
        assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_is_cut_off_when_it_has_idled_long_enough() {
        let (client, connection) = small();
        let begin = Instant::now();
        connection.await.expect("no panic");
        let took = begin.elapsed();
        assert!(took >= LIMITS.idle && took < LIMITS.idle + LIMITS.head_time, "{took:?}");
        drop(client);
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let (mut client, connection) = small();
        let endless = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(LIMITS.head));
        client.write_all(endless.as_bytes()).await.expect("taken");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        connection.await.expect("no panic");
    }

    /// Places of a server that has few.
    const FEW: usize = LIMITS.places;
    /// Much longer than an idle connection keeps a place that is wanted, on a busy machine too; much shorter than it idles
    /// otherwise.
    const SOON: Duration = Duration::from_secs(20);

    /// A server in [`FEW`] places. What asks for `/held` is answered when told.
    async fn few() -> (SocketAddr, Arc<Notify>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let told = Arc::new(Notify::new());
        let answer = {
            let told = told.clone();
            move |request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    if request.uri().path() == "/held" {
                        told.notified().await;
                    }
                    Response::new(Full::new(Bytes::from_static(b"here")))
                }
            }
        };
        let entrance = Entrance {
            listener,
            certificate: None,
            limits: LIMITS,
        };
        tokio::spawn(serve(
            entrance,
            answer,
            CancellationToken::new(),
            CancellationToken::new(),
        ));
        (address, told)
    }

    async fn connected(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("connected")
    }

    async fn ask(stream: &mut TcpStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: us\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
    }

    /// What it reads next; nothing when it was closed.
    async fn read(stream: &mut TcpStream) -> String {
        let mut some = [0; 512];
        let read = tokio::time::timeout(SOON, stream.read(&mut some)).await;
        let n = read.expect("answered or closed soon").unwrap_or(0);
        String::from_utf8_lossy(&some[..n]).into_owned()
    }

    async fn is_answered(stream: &mut TcpStream) -> bool {
        read(stream).await.starts_with("HTTP/1.1 200 ")
    }

    #[tokio::test]
    async fn who_is_silent_makes_place_for_who_asks_and_whoever_idles_longest_first() {
        let (address, _) = few().await;
        let mut silent = Vec::new();
        for _ in 0..FEW {
            silent.push(connected(address).await);
        }
        // A part of a head is no request yet.
        silent[0].write_all(b"GET / HTTP/1.1\r\n").await.expect("written");
        let mut ninth = connected(address).await;
        ask(&mut ninth, "/").await;
        assert!(is_answered(&mut ninth).await);
        assert_eq!(read(&mut silent[0]).await, "", "the first one makes place");
        ask(&mut silent[FEW - 1], "/").await;
        assert!(is_answered(&mut silent[FEW - 1]).await, "the last one keeps its own");
    }

    #[tokio::test]
    async fn who_was_answered_and_idles_makes_place_too() {
        let (address, _) = few().await;
        let mut kept = Vec::new();
        for _ in 0..2 * FEW {
            let mut one = connected(address).await;
            ask(&mut one, "/").await;
            assert!(is_answered(&mut one).await, "after {}", kept.len());
            kept.push(one);
        }
        assert_eq!(read(&mut kept[0]).await, "", "the first one makes place");
        ask(&mut kept[2 * FEW - 1], "/").await;
        assert!(is_answered(&mut kept[2 * FEW - 1]).await, "the last one keeps its own");
    }

    #[tokio::test]
    async fn a_request_in_hand_keeps_its_place_while_all_others_make_place() {
        let (address, told) = few().await;
        let mut asking = connected(address).await;
        ask(&mut asking, "/held").await;
        let mut silent = Vec::new();
        for _ in 0..2 * FEW {
            silent.push(connected(address).await);
        }
        for one in &mut silent[..FEW] {
            assert_eq!(read(one).await, "");
        }
        told.notify_one();
        assert!(is_answered(&mut asking).await);
    }
}
