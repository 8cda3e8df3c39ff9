//! Connections: accepts, bounds and ends them; the requests on them are [`Ingest`]'s.
//!
//! hyper directly, without a router: there are few paths, and a request costs a few microseconds. Invariants: when
//! [`serve`] returns, no connection and no accept of its own is left, and every 202 that was due has been written (or its
//! producer is gone, or [`GRACE`] is over); no connection idles for much longer than [`SPARE`] in a place that another waits
//! for, and none is cut for another's sake while it has a request in hand.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Ingest;
use super::unread::Timed;
use crate::tls::Certificate;

/// Connections at a time; further ones wait in the listen queue until the one that idles longest has made place. Each holds
/// a buffer of at most [`HEAD`], and one answer.
const CONNECTIONS: usize = 4096;
/// How long connections may idle when their places are wanted.
#[derive(Clone, Copy)]
struct Spare {
    /// Who has just connected is about to ask.
    silent: Duration,
    /// Who was answered may ask every second: of more of those than there are places some wait, and none shakes hands for
    /// every request.
    answered: Duration,
    /// A handshake takes its turn among others.
    shaking: Duration,
}

const SPARE: Spare = Spare {
    silent: Duration::from_millis(250),
    answered: Duration::from_secs(5),
    shaking: Duration::from_secs(2),
};
/// The most bytes of a request's head: 32 extensions, a token and what proxies add.
const HEAD: usize = 64 * 1024;
/// The most header fields of a request.
const FIELDS: usize = 128;
/// How long a request's head may take, and how long a connection may idle before it while places are free.
const IDLE: Duration = Duration::from_secs(120);
/// How long requests in flight have to end after the shutdown began: an accept takes milliseconds, and a producer that is
/// cut off sends again. Part of the 30 s that a pod has.
const GRACE: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until `shutdown`, then finishes the requests in flight: HTTPS with a certificate, else plain HTTP.
pub async fn serve(
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    ingest: Arc<Ingest>,
    shutdown: CancellationToken,
) {
    let (answering, closing) = (ingest.clone(), ingest.closing.clone());
    let answer = move |request: Request<Incoming>| {
        let ingest = answering.clone();
        async move { ingest.answer(request).await }
    };
    serve_in(CONNECTIONS, SPARE, listener, certificate, answer, shutdown, closing).await;
    ingest.settled().await;
}

/// In so many places, with answers of any kind; `closing` is cancelled when no more connections are accepted.
async fn serve_in<A>(
    places: usize,
    spare: Spare,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    answer: impl Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    shutdown: CancellationToken,
    closing: CancellationToken,
) where
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(places));
    let (wanted, answer) = (Arc::new(Notify::new()), Arc::new(answer));
    let aborted = CancellationToken::new();
    while let Some(stream) = next(&listener, &places, &wanted, &shutdown).await {
        let (stream, place) = stream;
        let tls = certificate.as_ref().map(|certificate| certificate.acceptor());
        let (wanted, answer) = (wanted.clone(), answer.clone());
        let (shutdown, aborted) = (shutdown.clone(), aborted.clone());
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = connection(stream, tls, &*answer, (&wanted, spare), shutdown) => {}
                () = aborted.cancelled() => {}
            }
        });
    }
    drop(listener);
    closing.cancel();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::warn!(
            left = connections.len(),
            "closing connections whose requests did not end in time"
        );
        aborted.cancel();
        connections.wait().await;
    }
}

/// The next connection with its place; none when the shutdown began.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    wanted: &Notify,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    /// A refused accept (no file descriptors) is tried again so often.
    const PAUSE: Duration = Duration::from_millis(50);
    let accept = async {
        let place = place(places, wanted).await?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(err) => {
                    tracing::warn!(error = %err, "failed to accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        accepted = accept => accepted,
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
type Wanted<'a> = (&'a Notify, Spare);

/// Ends when the place of who begins to idle now is wanted: they are told in the order in which they began.
async fn idle(wanted: &Notify, spare: Duration) {
    tokio::time::sleep(spare).await;
    wanted.notified().await;
}

/// The same for a connection on which `steps` are counted: it idles while their number is even.
async fn idle_between(steps: &AtomicU64, (wanted, spare): Wanted<'_>) {
    loop {
        let before = steps.load(Ordering::Relaxed);
        // Nothing wakes this: its own task, which has polled the requests just before, makes the steps.
        let step = poll_fn(|_| match steps.load(Ordering::Relaxed) {
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
        () = idle(wanted.0, wanted.1.shaking) => return,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, answer, wanted, shutdown).await,
        Ok(Err(err)) => tracing::debug!(error = %err, "a producer's TLS handshake failed"),
        Err(_) => tracing::debug!("a producer's TLS handshake took too long"),
    }
}

/// HTTP as it is spoken here.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD)
        .max_headers(FIELDS)
        // An answer stays what it is until it is sent, and the next request waits: flattened into one buffer it would hold
        // no share any more, and requests one behind the other would fill that buffer without end.
        .writev(true);
    http
}

async fn requests<S, A>(
    stream: S,
    answer: &impl Fn(Request<Incoming>) -> A,
    wanted: Wanted<'_>,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>>,
{
    // One when a request is taken, and one when its answer is there.
    let steps = &AtomicU64::new(0);
    let service = service_fn(|request| {
        steps.fetch_add(1, Ordering::Relaxed);
        // Not a block that awaits it: that would have its memory twice, on every connection.
        answer(request).map(move |answered| {
            steps.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(answered)
        })
    });
    let connection = http().serve_connection(TokioIo::new(Timed::new(stream)), service);
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
            if steps.load(Ordering::Relaxed) == 0 {
                return;
            }
            // Closes what idles; where an answer is still on its way, after that.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "a producer's connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

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

    /// A client that has asked three times at once, the answers that are in memory, and the connection.
    async fn asked() -> (DuplexStream, Arc<AtomicUsize>, JoinHandle<hyper::Result<()>>) {
        let (mut client, server) = tokio::io::duplex(BETWEEN);
        let there = Arc::new(AtomicUsize::new(0));
        let counted = there.clone();
        let connection = tokio::spawn(async move {
            let service = service_fn(|_| {
                counted.fetch_add(1, Ordering::Relaxed);
                let body = Bytes::from_owner(Counted(vec![b' '; ANSWER], counted.clone()));
                async { Ok::<_, Infallible>(Response::new(Full::new(body))) }
            });
            let served = http().serve_connection(TokioIo::new(Timed::new(server)), service);
            served.await
        });
        let request = "GET / HTTP/1.1\r\nhost: ingest\r\n\r\n";
        client.write_all(request.repeat(3).as_bytes()).await.expect("asked");
        (client, there, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_gets_no_second_answer_and_is_cut_off_after_a_minute() {
        let (client, there, connection) = asked().await;
        let begin = Instant::now();
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert_eq!(there.load(Ordering::Relaxed), 1, "the other answers wait, unmade");
        assert!(connection.await.expect("no panic").is_err());
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
        assert!(connection.await.expect("no panic").is_err());
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

    /// Places of a server that has few.
    const FEW: usize = 8;
    /// Longer than an idle connection keeps a place that is wanted; much shorter than [`IDLE`].
    const SOON: Duration = Duration::from_secs(2);

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
        let (shutdown, closing) = (CancellationToken::new(), CancellationToken::new());
        let spare = Spare {
            answered: SPARE.silent,
            ..SPARE
        };
        tokio::spawn(serve_in(FEW, spare, listener, None, answer, shutdown, closing));
        (address, told)
    }

    async fn connected(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("connected")
    }

    async fn ask(stream: &mut TcpStream, path: &str) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: ingest\r\n\r\n");
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
