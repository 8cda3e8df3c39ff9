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
use crate::tls::Certificate;

/// Connections at a time; further ones wait in the listen queue. Each holds a buffer of at most [`HEAD`].
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

async fn requests<S>(stream: S, ingest: Arc<Ingest>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let closed = CancellationToken::new();
    let service = service_fn(|request| {
        let (ingest, closed) = (ingest.clone(), &closed);
        async move { Ok::<_, Infallible>(ingest.answer(request, closed).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(HEAD)
        .max_headers(FIELDS)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed.cancelled() => return,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(err) = ended {
        tracing::debug!(error = %err, "a producer's connection ended");
    }
}
