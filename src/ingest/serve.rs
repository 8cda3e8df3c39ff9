//! Connections: accepts, bounds and ends them; the requests on them are [`Ingest`]'s.
//!
//! hyper directly, without a router: there are few paths, and a request costs a few microseconds. Invariant: when
//! [`serve`] returns, no connection and no accept of its own is left, and every 202 that was due has been written (or its
//! producer is gone, or [`GRACE`] is over).

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Ingest;
use super::unread::Timed;
use crate::tls::Certificate;

/// Connections at a time; further ones wait in the listen queue. Each holds a buffer of at most [`HEAD`], and one answer.
const CONNECTIONS: usize = 4096;
/// The most bytes of a request's head: 32 extensions, a token and what proxies add.
const HEAD: usize = 64 * 1024;
/// The most header fields of a request.
const FIELDS: usize = 128;
/// How long a request's head may take, and how long a connection may idle before it.
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
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let aborted = CancellationToken::new();
    while let Some(stream) = next(&listener, &places, &shutdown).await {
        let (stream, place) = stream;
        let tls = certificate.as_ref().map(|certificate| certificate.acceptor());
        let (ingest, shutdown, aborted) = (ingest.clone(), shutdown.clone(), aborted.clone());
        connections.spawn(async move {
            let _place = place;
            tokio::select! {
                () = connection(stream, tls, ingest, shutdown) => {}
                () = aborted.cancelled() => {}
            }
        });
    }
    drop(listener);
    ingest.closing.cancel();
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::warn!(
            left = connections.len(),
            "closing connections whose requests did not end in time"
        );
        aborted.cancel();
        connections.wait().await;
    }
    ingest.settled().await;
}

/// The next connection with its place; none when the shutdown began.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    /// A refused accept (no file descriptors) is tried again so often.
    const PAUSE: Duration = Duration::from_millis(50);
    let accept = async {
        let place = places.clone().acquire_owned().await.ok()?;
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

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, ingest: Arc<Ingest>, shutdown: CancellationToken) {
    // Without it a small answer waits for the acknowledgement of the one before.
    if let Err(err) = stream.set_nodelay(true) {
        tracing::debug!(error = %err, "failed to set TCP_NODELAY");
    }
    let Some(tls) = tls else {
        return requests(stream, ingest, shutdown).await;
    };
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => shaken,
        () = shutdown.cancelled() => return,
    };
    match shaken {
        Ok(Ok(stream)) => requests(stream, ingest, shutdown).await,
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

async fn requests<S>(stream: S, ingest: Arc<Ingest>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let ingest = ingest.clone();
        async move { Ok::<_, Infallible>(ingest.answer(request).await) }
    });
    let connection = http().serve_connection(TokioIo::new(Timed::new(stream)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::Response;
    use http_body_util::Full;
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
}
