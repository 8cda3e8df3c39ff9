//! `tidings inspect`: a receiver that shows each request it gets, with its signature's verdict and why, as JSON lines on
//! stdout, as JSON at `GET /requests` and as a page at `GET /`. It can play receivers that fail (see [`behaviour`]).
//!
//! Knows nothing of the dispatcher: what it says about a signature is what any receiver would find. Invariant: whatever
//! arrives is bounded in number and size, escaped where it is shown, and no header that may carry a secret is shown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub mod behaviour;
pub mod keys;
mod page;
mod record;
mod service;

use keys::{Form, Keys};
use service::Service;

use crate::listen::listen;
use crate::signing::VerifyingKey;
use crate::tls::TlsFiles;

/// Open connections; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 1_024;
/// How long a TLS handshake or the head of a request may take; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long requests in hand may go on when the process is told to stop.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// A pause after a failed accept (no file descriptors): without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the inspector is set up.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// With it HTTPS, else plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Files of keys, or folders of such files; read again when they change, so that a rotation is seen.
    pub secret_files: Vec<(Form, PathBuf)>,
    /// Keys given once, from the environment.
    pub secrets: Vec<VerifyingKey>,
}

/// Listens and serves until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    Inspector::bind(config).await?.serve(shutdown).await;
    Ok(())
}

/// A bound inspector.
pub struct Inspector {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    service: Arc<Service>,
}

impl Inspector {
    /// Binds the address and reads certificate and keys. A key file may be missing (a Secret that is yet to come); one
    /// that holds something else than keys is an error.
    pub async fn bind(config: Config) -> anyhow::Result<Inspector> {
        let tls = match &config.tls {
            None => None,
            Some(files) => Some(files.acceptor().await?),
        };
        let keys = Keys::new(config.secrets, config.secret_files)?;
        let listener = listen(config.listen)?;
        Ok(Inspector {
            listener,
            tls,
            service: Arc::new(Service::new(keys)),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`; requests in hand may end.
    pub async fn serve(self, shutdown: CancellationToken) {
        if let Ok(address) = self.address() {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            tracing::info!(url = %format_args!("{scheme}://{address}/"), "inspector listens");
        }
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (service, tls, shutdown) = (self.service.clone(), self.tls.clone(), shutdown.clone());
            connections.spawn(async move {
                connection(stream, tls, service, shutdown).await;
                drop(place);
            });
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        // What is left is aborted when the set is dropped.
        let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, place))
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, service: Arc<Service>, shutdown: CancellationToken) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, service, shutdown).await,
        Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, service, shutdown).await,
            Ok(Err(error)) => tracing::info!(%error, "a TLS handshake failed"),
            Err(_) => tracing::info!("a TLS handshake took too long"),
        },
    }
}

async fn http<S>(stream: S, service: Arc<Service>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut serving = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service_fn(|request| service.answer(request)))
    );
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
