//! Receivers for tests: a throwaway CA, raw servers (by TLS, or plain) that behave as badly as a test asks, and the endpoint
//! for them.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{HandshakeKind, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::Digest;
use tidings::api::resolve::{BreakerPolicy, CaBundle, EgressRules, Host, ResolvedEndpoint, RetryPolicy, Target};
use tidings::delivery::metrics::Metrics;
use tidings::delivery::{AttemptResult, Config, HttpsSender, Outcome, Request, Sender};
use tidings::ids::MessageId;
use tidings::signing::SigningKeys;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
pub const NEXT_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// A certificate for the names that tests use, and the authority that signed it.
pub struct Identity {
    pub ca_pem: String,
    pub cert_pem: String,
    pub key_pem: String,
}

impl Identity {
    pub fn new(valid_until_year: i32) -> Identity {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let names = [
            "localhost",
            "127.0.0.1",
            "127.0.0.2",
            "::1",
            "*.receiver.test",
            "crm.sales.svc",
        ]
        .map(String::from);
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(valid_until_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        Identity {
            ca_pem: authority.pem(),
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    pub fn bundle(&self) -> Arc<CaBundle> {
        let pem = self.ca_pem.clone().into_bytes();
        Arc::new(CaBundle {
            digest: sha2::Sha256::digest(&pem).into(),
            pem: pem.into(),
        })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor_for(|builder| builder.with_no_client_auth())
    }

    /// One that takes only clients with a certificate of this authority.
    pub fn acceptor_of_clients(&self, authority_pem: &str) -> TlsAcceptor {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        self.acceptor_for(|builder| builder.with_client_cert_verifier(verifier))
    }

    fn acceptor_for(
        &self,
        clients: impl FnOnce(
            rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>,
        ) -> rustls::ConfigBuilder<ServerConfig, WantsServerCert>,
    ) -> TlsAcceptor {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes())
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = clients(builder).with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // As common servers do: what resumes a session is in the client's ticket, and nothing is kept here.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

pub static TRUSTED: LazyLock<Identity> = LazyLock::new(|| Identity::new(2090));
pub static EXPIRED: LazyLock<Identity> = LazyLock::new(|| Identity::new(2021));

/// A request as it arrived.
pub struct Seen {
    pub line: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// What a receiver has seen, shared with its behaviour.
pub type Log = Arc<Mutex<Vec<Seen>>>;

/// An accepted connection.
pub struct Connection {
    /// From 0, in the order of arrival.
    pub number: usize,
    pub stream: Either<TlsStream<TcpStream>, TcpStream>,
}

impl Connection {
    /// The next request, or none at the end of the connection.
    pub async fn request(&mut self) -> Option<Seen> {
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap().to_string();
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.append(
                HeaderName::try_from(name).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
        while bytes.len() < head + length {
            // A sender that is killed cuts its body off.
            if self.stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        }
        Some(Seen {
            line,
            headers,
            body: bytes[head..head + length].to_vec(),
        })
    }

    /// False when the sender has gone, as it may.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Whether the handshake resumed a session.
    pub fn resumed(&self) -> bool {
        let Either::Left(stream) = &self.stream else {
            return false;
        };
        stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Closes with RST.
    pub fn reset(self) {
        let stream = match &self.stream {
            Either::Left(stream) => stream.get_ref().0,
            Either::Right(stream) => stream,
        };
        stream.set_zero_linger().unwrap();
    }
}

/// A loopback port that nobody else gets and that refuses connections until it is listened on.
///
/// A listener that was closed would not do: a child that another test is just starting still has it open.
pub fn reserve() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A server that hands every connection to a behaviour; stopped when dropped.
pub struct Receiver {
    pub address: SocketAddr,
    /// Who connected, in order.
    accepted: Arc<Mutex<Vec<SocketAddr>>>,
    pub seen: Log,
    task: JoinHandle<()>,
}

impl Receiver {
    pub async fn start<F, B>(behaviour: F) -> Receiver
    where
        F: Fn(Connection, Log) -> B + Send + Sync + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        Receiver::with(&TRUSTED, (Ipv4Addr::LOCALHOST, 0).into(), behaviour).await
    }

    pub async fn with<F, B>(identity: &Identity, at: SocketAddr, behaviour: F) -> Receiver
    where
        F: Fn(Connection, Log) -> B + Send + Sync + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        Receiver::serve(Some(identity.acceptor()), at, behaviour).await
    }

    /// Without an acceptor it speaks plain HTTP.
    pub async fn serve<F, B>(acceptor: Option<TlsAcceptor>, at: SocketAddr, behaviour: F) -> Receiver
    where
        F: Fn(Connection, Log) -> B + Send + Sync + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        Receiver::serve_on(acceptor, TcpListener::bind(at).await.unwrap(), behaviour).await
    }

    /// On an address that is taken already.
    pub async fn serve_on<F, B>(acceptor: Option<TlsAcceptor>, listener: TcpListener, behaviour: F) -> Receiver
    where
        F: Fn(Connection, Log) -> B + Send + Sync + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let (accepted, seen) = (Arc::<Mutex<Vec<_>>>::default(), Log::default());
        let task = tokio::spawn({
            let (accepted, seen) = (accepted.clone(), seen.clone());
            let behaviour = Arc::new(behaviour);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, from)) = listener.accept().await {
                    let number = {
                        let mut accepted = accepted.lock().unwrap();
                        accepted.push(from);
                        accepted.len() - 1
                    };
                    let (acceptor, seen, behaviour) = (acceptor.clone(), seen.clone(), behaviour.clone());
                    connections.spawn(async move {
                        let stream = match acceptor {
                            Some(acceptor) => acceptor.accept(stream).await.map(Either::Left),
                            None => Ok(Either::Right(stream)),
                        };
                        if let Ok(stream) = stream {
                            behaviour(Connection { number, stream }, seen).await;
                        }
                    });
                }
            }
        });
        Receiver {
            address,
            accepted,
            seen,
            task,
        }
    }

    /// Answers every request on a connection with the same bytes, and keeps it open.
    pub async fn always(answer: &'static str) -> Receiver {
        Receiver::start(move |connection, seen| keep_answering(connection, seen, answer)).await
    }

    pub fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    /// The number of the connection from this address, once it is accepted; `since` so many were (ports come again).
    pub fn connection_from(&self, address: SocketAddr, since: usize) -> Option<usize> {
        let accepted = self.accepted.lock().unwrap();
        let found = accepted[since..].iter().position(|from| *from == address)?;
        Some(since + found)
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn endpoint(&self) -> ResolvedEndpoint {
        endpoint(Host::Address(self.address.ip()), self.address.port())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn keep_answering(mut connection: Connection, seen: Log, answer: &'static str) {
    while let Some(request) = connection.request().await {
        seen.lock().unwrap().push(request);
        if !connection.write(answer).await {
            return;
        }
    }
}

/// An endpoint that trusts the tests' CA, in a namespace where loopback is open.
pub fn endpoint(host: Host, port: u16) -> ResolvedEndpoint {
    let name = match &host {
        Host::Name(name) => name.clone(),
        Host::Address(IpAddr::V4(address)) => address.to_string(),
        Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
    };
    ResolvedEndpoint {
        namespace: "sales".into(),
        name: "crm".into(),
        uid: "5d0c".into(),
        generation: 1,
        target: Target {
            host,
            port,
            path: "/hooks?team=sales".into(),
            is_secret: false,
            authority: format!("{name}:{port}"),
            origin: format!("https://{name}:{port}"),
            service: None,
        },
        headers: vec![(HeaderName::from_static("x-tenant"), HeaderValue::from_static("blue"))],
        token: None,
        ca: Some(TRUSTED.bundle()),
        client: None,
        signing: Arc::new(SigningKeys::parse(Some("k1"), SECRET).unwrap().into()),
        timeout: Duration::from_secs(10),
        retry: RetryPolicy {
            schedule: vec![Duration::from_secs(1)],
            jitter_percent: 0,
            ..RetryPolicy::default()
        },
        max_in_flight: 64,
        rate: None,
        breaker: BreakerPolicy::default(),
        disable_after: None,
        success: None,
        handshake: false,
        retention: Duration::from_secs(72 * 3600),
        suspend: false,
        egress: Arc::new(EgressRules {
            open_cidrs: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            ..EgressRules::default()
        }),
        enable_request: None,
    }
}

pub fn sender() -> HttpsSender {
    HttpsSender::new(Config::default(), Metrics::default()).unwrap()
}

pub fn sender_with_dns(server: SocketAddr) -> HttpsSender {
    let config = Config {
        dns_server: Some(server),
        ..Config::default()
    };
    HttpsSender::new(config, Metrics::default()).unwrap()
}

pub fn request(body: impl Into<Bytes>) -> Request {
    Request {
        message: MessageId(0x5_4c53_1234_5678),
        content_type: Some(HeaderValue::from_static("application/json")),
        headers: Vec::new(),
        body: body.into(),
        timestamp: tidings::ids::UnixMillis::now().0 / 1000,
        shaped: None,
    }
}

pub async fn send(sender: &HttpsSender, endpoint: &ResolvedEndpoint) -> AttemptResult {
    sender
        .send(
            &Arc::new(endpoint.clone()),
            request(r#"{"type":"lead.qualified","data":{"name":"Zoë"}}"#),
        )
        .await
}

pub fn status(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Status { code, .. } => Some(*code),
        _ => None,
    }
}
