//! Receivers: HTTPS from a throwaway CA, a thread of their own, and the behaviour of good and bad ones.
//!
//! Owns sockets that webhooks arrive at; knows nothing of what they mean. Invariant: the good receiver notes an event
//! before it answers, so what the dispatcher takes for delivered is in the book.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderValue};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use standardwebhooks::Webhook;
use tidings_cluster::ServerCertificate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;
use crate::{machine, wire};

/// One of so many requests has its signature verified: all of them would measure the receiver.
const VERIFY_EVERY: u32 = 1_000;

/// How a receiver treats a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// 200 at once.
    Accept,
    /// 500 at once.
    Fail,
    /// Reads and never answers.
    Hang,
    /// Accepts, and hangs once its inbox says so.
    Turn,
    /// Closes the connection with RST instead of an answer.
    Reset,
}

/// What the receivers of one part share.
pub struct Inbox {
    pub ledger: Ledger,
    /// Verifies what arrives; known once the endpoint's key is.
    pub verifier: OnceLock<Webhook>,
    pub verified: AtomicUsize,
    /// Signatures that did not verify, and requests without an event that was sent.
    pub wrong: AtomicUsize,
    /// Receivers that turn bad have.
    pub turned: AtomicBool,
}

impl Inbox {
    pub fn new(events: usize) -> Arc<Inbox> {
        Arc::new(Inbox {
            ledger: Ledger::open(events),
            verifier: OnceLock::new(),
            verified: AtomicUsize::new(0),
            wrong: AtomicUsize::new(0),
            turned: AtomicBool::new(false),
        })
    }

    fn take(&self, head: &[u8], body: &[u8]) {
        let Some(number) = wire::number(body).filter(|number| self.ledger.arrived(*number)) else {
            self.wrong.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if number.is_multiple_of(VERIFY_EVERY)
            && let Some(verifier) = self.verifier.get()
        {
            let counter = match verify(verifier, head, body) {
                Some(()) => &self.verified,
                None => &self.wrong,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn verify(verifier: &Webhook, head: &[u8], body: &[u8]) -> Option<()> {
    let mut headers = HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, HeaderValue::from_str(wire::header(head, name)?).ok()?);
    }
    verifier.verify(body, &headers).ok()
}

/// A running receiver; it ends when dropped.
pub struct Receiver {
    pub port: u16,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Receiver {
    /// Starts one on loopback, on a thread of its own. A bad one gives way, as if it had a machine of its own: what is measured is what
    /// it costs the dispatcher.
    pub fn start(certificate: &ServerCertificate, behaviour: Behaviour, inbox: Arc<Inbox>) -> Result<Receiver> {
        let acceptor = acceptor(certificate)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start a receiver's runtime")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .context("failed to bind a receiver")?;
        let port = listener.local_addr().context("failed to bind a receiver")?.port();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("receiver".into())
            .spawn(move || {
                if behaviour != Behaviour::Accept {
                    machine::give_way_here();
                }
                runtime.block_on(async {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = accept(listener, acceptor, behaviour, inbox) => {}
                    }
                });
            })
            .context("failed to start a receiver's thread")?;
        Ok(Receiver {
            port,
            stop,
            thread: Some(thread),
        })
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/hooks", self.port)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor(certificate: &ServerCertificate) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(certificate.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("failed to read the receiver's certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).context("failed to read the receiver's key")?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("failed to set up the receiver's TLS")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // As common servers do: what is needed to resume a session is in the client's ticket, however many there are.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().context("failed to set up the receiver's tickets")?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, behaviour: Behaviour, inbox: Arc<Inbox>) {
    // A dispatcher that is killed resets its connections: nothing here depends on how one ends.
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, inbox) = (acceptor.clone(), Arc::clone(&inbox));
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ended = serve(stream, behaviour, &inbox).await;
            }
        });
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, behaviour: Behaviour, inbox: &Inbox) -> std::io::Result<()> {
    let mut bytes = BytesMut::with_capacity(16 * 1024);
    loop {
        let head = loop {
            if let Some(head) = wire::parse_head(&bytes)
                && bytes.len() >= head.body + head.length
            {
                break head;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let end = head.body + head.length;
        let answer: &[u8] = match behaviour {
            Behaviour::Turn if inbox.turned.load(Ordering::Relaxed) => std::future::pending().await,
            Behaviour::Accept | Behaviour::Turn => {
                inbox.take(&bytes[..head.body], &bytes[head.body..end]);
                b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
            }
            Behaviour::Fail => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
            Behaviour::Hang => std::future::pending().await,
            Behaviour::Reset => {
                stream.get_ref().0.set_zero_linger()?;
                return Ok(());
            }
        };
        bytes.advance(end);
        stream.write_all(answer).await?;
        stream.flush().await?;
    }
}
