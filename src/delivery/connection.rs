//! One HTTP/1.1 connection to a receiver, by TLS or (to a Service) plain, driven by the attempt that uses it: no task of its
//! own, so nothing to own, and no hand-over between threads. Dropping it closes the socket.
//!
//! Invariant: an idle connection is not polled; [`Connection::ready`] finds out whether the peer has closed it meanwhile.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::api::resolve::EgressRules;

/// The longest head of an answer: four times what common servers allow for a request's.
const MAX_HEAD: usize = 32 * 1024;
/// Header fields of an answer.
const MAX_HEADERS: usize = 100;
/// Interim responses (1xx) before the final one; a receiver that goes on sends no answer.
pub(super) const MAX_INTERIM: u32 = 8;

/// What only the bytes on the wire tell.
#[derive(Default)]
struct Observed {
    received: AtomicBool,
    interim: AtomicU32,
}

/// Encrypted, or plain.
pub(super) type Stream = Either<TlsStream<TcpStream>, TcpStream>;

struct Wire {
    stream: Stream,
    observed: Arc<Observed>,
}

/// Boxed: it holds the TLS state and moves between attempts and the pool.
type Driver = Box<http1::Connection<TokioIo<Wire>, Full<Bytes>>>;

/// An established connection and its place in the limit of sockets.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: Option<Driver>,
    observed: Arc<Observed>,
    pub(super) peer: IpAddr,
    pub(super) opened: Instant,
    /// The rules under which `peer` was passed last.
    pub(super) passed: Arc<EgressRules>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) async fn open(
        stream: Stream,
        peer: IpAddr,
        passed: Arc<EgressRules>,
        permit: OwnedSemaphorePermit,
    ) -> Result<Connection, hyper::Error> {
        let observed = Arc::new(Observed::default());
        let wire = Wire {
            stream,
            observed: observed.clone(),
        };
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .handshake(TokioIo::new(wire))
            .await?;
        Ok(Connection {
            sender,
            driver: Some(Box::new(driver)),
            observed,
            peer,
            opened: Instant::now(),
            passed,
            _permit: permit,
        })
    }

    /// Sends a request and waits for the complete head of its answer.
    pub(super) async fn request(
        &mut self,
        mut request: http::Request<Full<Bytes>>,
    ) -> Result<http::Response<Incoming>, hyper::Error> {
        self.observed.received.store(false, Ordering::Relaxed);
        self.observed.interim.store(0, Ordering::Relaxed);
        let observed = self.observed.clone();
        hyper::ext::on_informational(&mut request, move |_| {
            observed.interim.fetch_add(1, Ordering::Relaxed);
        });
        let mut answer = pin!(self.sender.send_request(request));
        poll_fn(|context| {
            drive(&mut self.driver, context);
            answer.as_mut().poll(context)
        })
        .await
    }

    /// Whether any byte of an answer to the last request came.
    pub(super) fn received(&self) -> bool {
        self.observed.received.load(Ordering::Relaxed)
    }

    /// More interim responses than allowed to the last request.
    pub(super) fn too_many_interim(&self) -> bool {
        self.observed.interim.load(Ordering::Relaxed) > MAX_INTERIM
    }

    /// Reads the body up to `cap` bytes; the first `keep` of them go to `excerpt`, which holds them also when this future
    /// is dropped half way. True: it ended within the cap.
    pub(super) async fn drain(&mut self, body: Incoming, keep: usize, cap: usize, excerpt: &mut BytesMut) -> bool {
        let mut body = pin!(body);
        let mut total = 0;
        while !body.is_end_stream() {
            let frame = poll_fn(|context| {
                drive(&mut self.driver, context);
                body.as_mut().poll_frame(context)
            });
            let data = match frame.await {
                None => break,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            total += data.len();
            excerpt.extend_from_slice(&data[..data.len().min(keep.saturating_sub(excerpt.len()))]);
            if total > cap {
                return false;
            }
        }
        true
    }

    /// Whether the next request can be sent. Never waits.
    pub(super) async fn ready(&mut self) -> bool {
        poll_fn(|context| {
            drive(&mut self.driver, context);
            let ready = matches!(self.sender.poll_ready(context), Poll::Ready(Ok(())));
            Poll::Ready(ready && self.driver.is_some())
        })
        .await
    }
}

/// Lets the connection do what it can; once it is over it is dropped, which settles what still waits for it. Its error,
/// if any, has gone to the request.
fn drive(driver: &mut Option<Driver>, context: &mut Context<'_>) {
    if let Some(connection) = driver
        && Pin::new(connection).poll(context).is_ready()
    {
        *driver = None;
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.observed.interim.load(Ordering::Relaxed) > MAX_INTERIM {
            return Poll::Ready(Err(io::Error::other("too many interim responses")));
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.observed.received.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
