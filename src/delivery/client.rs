//! The HTTPS client: one attempt from a rendered request to an [`Outcome`]. HTTP/1.1 on kept connections, no proxy, no
//! redirect, every address through the guard.
//!
//! Invariant: a request is sent at most twice, and the second time only when a kept connection had been closed before any
//! byte of an answer. An attempt has one request, and a second only with a new token after a 401.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::RETRY_AFTER;
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::either::Either;

use super::connection::Connection;
use super::excerpt::{EXCERPT, Told, conceal};
use super::metrics::Metrics;
use super::pool::{Bounds, Key, Pool};
use super::render::{Own, path, question, render};
use super::resolver::{LookupError, MAX_TTL, Resolver, SetupError};
use super::tls::{Identities, identity};
use super::tokens::{self, TOKEN_TIME, Token, Tokens};
use super::turns::Turns;
use super::{AttemptResult, Fault, Judged, Origin, OurFault, Outcome, Request, Sender, guard, handshake, outcome};
use crate::api::resolve::{Host, ResolvedEndpoint, Target, TokenRequest};
use crate::expression::{Expression, Scope};

/// Body bytes read from an answer before the connection is closed instead: a page of error text, not a download.
pub const MAX_ANSWER: usize = 64 * 1024;
/// How long a body may take once the verdict is known: it decides only about the excerpt and the connection.
const DRAIN_TIME: Duration = Duration::from_millis(500);
/// Addresses of one name that are tried; with more, none would get enough of the timeout.
const MAX_DIALLED: usize = 8;
/// How often idle connections are looked through for old ones.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How the client is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The DNS server to ask; none means those of `/etc/resolv.conf`.
    pub dns_server: Option<SocketAddr>,
    pub user_agent: HeaderValue,
    /// Who asks receivers that are asked first.
    pub origin: Origin,
    /// Open sockets, idle ones included.
    pub max_sockets: usize,
    /// Idle connections; the one unused for longest is closed first.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub idle_time: Duration,
    /// How long after its opening a connection may be used again.
    pub connection_age: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dns_server: None,
            user_agent: HeaderValue::from_static(concat!("tidings/", env!("CARGO_PKG_VERSION"))),
            origin: Origin::default(),
            // Slots in flight (2,560) and idle ones, with room for those that close.
            max_sockets: 8_192,
            // About 40 KiB each with TLS: 80 MiB at most.
            max_idle: 2_048,
            // Longer than the usual 60 and 75 s of servers would only find closed connections.
            idle_time: Duration::from_secs(90),
            // As long as an answer of the DNS is believed at most.
            connection_age: MAX_TTL,
        }
    }
}

/// The sender in production.
pub struct HttpsSender {
    resolver: Resolver,
    identities: Identities,
    pool: Arc<Pool>,
    tokens: Tokens,
    handshakes: Turns,
    own: Own,
    metrics: Metrics,
    sweeper: JoinHandle<()>,
}

impl HttpsSender {
    /// Must be called within a Tokio runtime: it starts the task that closes old idle connections, and stops it when
    /// dropped.
    pub fn new(config: Config, metrics: Metrics) -> Result<HttpsSender, SetupError> {
        let bounds = Bounds {
            sockets: config.max_sockets,
            idle: config.max_idle,
            idle_time: config.idle_time,
            age: config.connection_age,
        };
        let pool = Arc::new(Pool::new(bounds));
        let sweeper = tokio::spawn({
            let (pool, metrics) = (pool.clone(), metrics.clone());
            async move {
                let mut ticks = tokio::time::interval(SWEEP_EVERY);
                loop {
                    ticks.tick().await;
                    pool.sweep(std::time::Instant::now());
                    metrics.idle.set(i64::try_from(pool.idle()).unwrap_or(i64::MAX));
                    metrics.sockets.set(i64::try_from(pool.open()).unwrap_or(i64::MAX));
                }
            }
        });
        Ok(HttpsSender {
            resolver: Resolver::new(config.dns_server)?,
            identities: Identities::new(),
            pool,
            tokens: Tokens::new(),
            // One for each thread, of 0.1 ms or so: a thousand endpoints that are tried at once would else hold up all others for
            // as long as their handshakes take together, and an event waits several times on its way.
            handshakes: Turns::new(Handle::current().metrics().num_workers()),
            own: Own {
                user_agent: config.user_agent,
                origin: config.origin,
            },
            metrics,
            sweeper,
        })
    }

    /// Sends, on a kept connection if there is one, and waits for the head of the answer.
    async fn exchange(
        &self,
        to: &Route<'_>,
        rendered: impl Fn() -> Result<http::Request<Full<Bytes>>, Outcome>,
        deadline: Instant,
    ) -> Result<(Connection, http::Response<Incoming>), Outcome> {
        if let Some(mut kept) = self.pool.take(&to.key, &to.endpoint.egress).await {
            self.metrics.reused.inc();
            match kept.request(rendered()?).await {
                Ok(answer) => return answered(kept, answer),
                Err(_) if !kept.received() => self.metrics.resent.inc(),
                Err(error) => return Err(failed(&kept, &error)),
            };
        }
        // Boxed: rare and large, it would make every attempt's future as large.
        let mut connection = Box::pin(self.dial(to, deadline)).await?;
        match connection.request(rendered()?).await {
            Ok(answer) => answered(connection, answer),
            Err(error) => Err(failed(&connection, &error)),
        }
    }

    /// A new connection: look-up, guard, TCP, TLS. What the guard passed is what is dialled; no second look-up.
    async fn dial(&self, to: &Route<'_>, deadline: Instant) -> Result<Connection, Outcome> {
        let Route { target, endpoint, .. } = to;
        let server = match &target.host {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| Outcome::Fault(Fault::Dns))?,
        };
        let addresses = self.passed(target, endpoint).await?;
        let connector = match &target.service {
            Some(service) if !service.tls => None,
            _ => Some(self.identities.connector(endpoint).map_err(|error| {
                tracing::error!(%error, "no TLS configuration");
                Outcome::Fault(Fault::Tls)
            })?),
        };
        let permit = self.pool.permit().ok_or(Outcome::Ours(OurFault::NoFileDescriptors))?;
        let (stream, peer) = match connect(&addresses, target.port, deadline).await {
            // Its descriptor is one that this connection may have.
            Err(Outcome::Ours(OurFault::NoFileDescriptors)) if self.pool.evict() => {
                connect(&addresses, target.port, deadline).await?
            }
            connected => connected?,
        };
        self.metrics.opened.inc();
        let stream = match connector {
            Some(connector) => {
                let shaken = self.handshakes.pass(connector.connect(server, stream)).await;
                let stream = shaken.map_err(|error| outcome::of_handshake(&error))?;
                if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    self.metrics.resumed.inc();
                }
                Either::Left(stream)
            }
            None => Either::Right(stream),
        };
        Connection::open(stream, peer, endpoint.egress.clone(), permit)
            .await
            .map_err(|error| outcome::of_http(&error))
    }

    /// The target's addresses, if all of them may be dialled.
    async fn passed(&self, target: &Target, endpoint: &ResolvedEndpoint) -> Result<Arc<[IpAddr]>, Outcome> {
        let (addresses, checked) = match (&target.service, &target.host) {
            (Some(service), _) => {
                let addresses = service.addresses.clone();
                let checked = guard::check_service(&addresses, &endpoint.egress);
                (addresses, checked)
            }
            (None, host) => {
                let addresses = match host {
                    Host::Address(address) => Arc::new([*address]),
                    Host::Name(name) => self.resolver.lookup(name).await.map_err(no_address)?,
                };
                let checked = guard::check(&addresses, &endpoint.egress);
                (addresses, checked)
            }
        };
        match checked {
            Ok(()) => Ok(addresses),
            Err(found) => Err(Outcome::Blocked { address: found.address }),
        }
    }

    async fn run(&self, endpoint: &ResolvedEndpoint, errand: Errand<'_>) -> AttemptResult {
        match &endpoint.token {
            None => {
                self.post(endpoint, errand, None, Instant::now() + endpoint.timeout)
                    .await
            }
            Some(wanted) => Box::pin(self.post_with_token(endpoint, errand, wanted)).await,
        }
    }

    /// One request to the receiver, with the token that it wants, if any.
    async fn post(
        &self,
        endpoint: &ResolvedEndpoint,
        errand: Errand<'_>,
        token: Option<&Token>,
        deadline: Instant,
    ) -> AttemptResult {
        let started = Instant::now();
        let to = Route::new(&endpoint.target, endpoint);
        let rendered = || match errand {
            Errand::Deliver(request) => render(endpoint, request, token, &self.own),
            Errand::Ask => question(endpoint, token, &self.own),
        };
        let exchanged = timeout_at(deadline, self.exchange(&to, rendered, deadline)).await;
        let took = started.elapsed();
        let outcome = match exchanged {
            Ok(Ok((connection, answer))) => {
                let said = Said { errand, token };
                self.finish(to, said, connection, answer, deadline).await
            }
            Ok(Err(outcome)) => outcome,
            Err(_) => Outcome::Fault(Fault::Timeout),
        };
        match errand {
            Errand::Deliver(_) => self.metrics.attempt(&outcome, took),
            Errand::Ask => self.metrics.handshake(&outcome),
        }
        AttemptResult { took, outcome }
    }

    /// An attempt with a token. One that the receiver refuses is replaced once, unless it was got just now. What token
    /// servers take is not of the attempt's time.
    async fn post_with_token(
        &self,
        endpoint: &ResolvedEndpoint,
        errand: Errand<'_>,
        wanted: &TokenRequest,
    ) -> AttemptResult {
        let started = std::time::Instant::now();
        let none = |outcome| AttemptResult {
            took: Duration::ZERO,
            outcome,
        };
        let token = match self.token(endpoint, wanted).await {
            Ok(token) => token,
            Err(outcome) => return none(outcome),
        };
        let first = self
            .post(endpoint, errand, Some(&token), Instant::now() + endpoint.timeout)
            .await;
        if !matches!(first.outcome, Outcome::Status { code: 401, .. }) || token.obtained >= started {
            return first;
        }
        self.tokens.refused(&(wanted.digest, identity(endpoint)), &token).await;
        let token = match self.token(endpoint, wanted).await {
            Ok(token) => token,
            Err(outcome) => return none(outcome),
        };
        let left = endpoint.timeout.saturating_sub(first.took);
        let second = self.post(endpoint, errand, Some(&token), Instant::now() + left).await;
        AttemptResult {
            took: first.took + second.took,
            ..second
        }
    }

    async fn token(&self, endpoint: &ResolvedEndpoint, wanted: &TokenRequest) -> Result<Arc<Token>, Outcome> {
        let key = (wanted.digest, identity(endpoint));
        self.tokens
            .get(key, Box::pin(self.ask_for_token(endpoint, wanted)))
            .await
    }

    /// Asks the token server, behind the same guard and with the same TLS as the receiver.
    async fn ask_for_token(&self, endpoint: &ResolvedEndpoint, wanted: &TokenRequest) -> Result<Token, Outcome> {
        let deadline = Instant::now() + TOKEN_TIME;
        let to = Route::new(&wanted.target, endpoint);
        let rendered = || tokens::render(wanted, &self.own.user_agent).ok_or(Outcome::Fault(Fault::Auth));
        let exchange = async {
            let (mut connection, answer) = self.exchange(&to, rendered, deadline).await?;
            let (head, body) = answer.into_parts();
            let mut text = BytesMut::new();
            if !connection
                .drain(body, tokens::MAX_ANSWER, tokens::MAX_ANSWER, &mut text)
                .await
            {
                return Err(Outcome::Fault(Fault::Reset));
            }
            Ok((connection, head.status.as_u16(), text))
        };
        let asked = match timeout_at(deadline, exchange).await {
            Ok(asked) => asked,
            Err(_late) => Err(Outcome::Fault(Fault::Timeout)),
        };
        let token = match asked {
            Err(outcome) => Err(tokens::unanswered(outcome)),
            Ok((mut connection, status, text)) => {
                if connection.ready().await {
                    self.pool.put(to.key, connection);
                }
                let token = tokens::answered(status, &text);
                if token.is_err() {
                    let (namespace, name, error) = (&endpoint.namespace, &endpoint.name, tokens::error_code(&text));
                    tracing::warn!(
                        namespace,
                        endpoint = name,
                        status,
                        error,
                        "the token server gave no token"
                    );
                }
                token
            }
        };
        self.metrics.token(token.as_ref().err());
        token
    }

    /// The verdict is in the head, unless the endpoint has an expression for it; else the body is read for the excerpt and to
    /// keep the connection.
    async fn finish(
        &self,
        to: Route<'_>,
        said: Said<'_>,
        mut connection: Connection,
        answer: http::Response<Incoming>,
        deadline: Instant,
    ) -> Outcome {
        let Route { endpoint, key, .. } = to;
        let (head, body) = answer.into_parts();
        let code = head.status.as_u16();
        let retry_after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| outcome::retry_after(value, SystemTime::now()));
        let asked = match said.errand {
            Errand::Deliver(_) => None,
            Errand::Ask => Some(handshake::answer(code, &head.headers, &self.own.origin)),
        };
        let by_status = asked.map_or(Judged::ByStatus, Judged::Asked);
        let mut excerpt = BytesMut::new();
        if code == 101 {
            // The protocol was switched to one nobody asked for: whatever follows is not HTTP.
            return Outcome::Status {
                code,
                retry_after,
                judged: by_status,
                excerpt: None,
            };
        }
        let success = endpoint.success.as_ref().filter(|_| asked.is_none());
        let (keep, until) = match success {
            Some(_) => (MAX_ANSWER, deadline),
            None if head.status.is_success() || asked.is_some() => (0, deadline.min(Instant::now() + DRAIN_TIME)),
            None => (EXCERPT, deadline.min(Instant::now() + DRAIN_TIME)),
        };
        let drained = timeout_at(until, connection.drain(body, keep, MAX_ANSWER, &mut excerpt)).await;
        if drained == Ok(true) && connection.ready().await {
            self.pool.put(key, connection);
        }
        let judged = match (success, drained) {
            (None, _) => by_status,
            (Some(_), Err(_late)) => return Outcome::Fault(Fault::Timeout),
            // It ended before its end; one that is longer than the cap is judged by its beginning.
            (Some(_), Ok(false)) if excerpt.len() < MAX_ANSWER => return Outcome::Fault(Fault::Reset),
            (Some(success), Ok(_)) => judge(success, code, &excerpt),
        };
        match judged {
            Judged::Success => excerpt.clear(),
            _ => excerpt.truncate(EXCERPT),
        }
        Outcome::Status {
            code,
            retry_after,
            judged,
            excerpt: said.conceal(endpoint, &excerpt),
        }
    }
}

impl Drop for HttpsSender {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

#[async_trait::async_trait]
impl Sender for HttpsSender {
    async fn send(&self, endpoint: &Arc<ResolvedEndpoint>, request: Request) -> AttemptResult {
        self.run(endpoint, Errand::Deliver(&request)).await
    }

    async fn ask(&self, endpoint: &Arc<ResolvedEndpoint>) -> AttemptResult {
        self.run(endpoint, Errand::Ask).await
    }
}

/// Where a request goes, and on whose behalf: whose rules, roots and certificate count.
struct Route<'a> {
    target: &'a Target,
    endpoint: &'a ResolvedEndpoint,
    key: Key,
}

/// What a request is for.
#[derive(Clone, Copy)]
enum Errand<'a> {
    Deliver(&'a Request),
    /// Whether the receiver wants messages at all.
    Ask,
}

/// What the receiver was told.
struct Said<'a> {
    errand: Errand<'a>,
    token: Option<&'a Token>,
}

impl Said<'_> {
    /// What of an answer may be kept.
    fn conceal(&self, endpoint: &ResolvedEndpoint, excerpt: &[u8]) -> Option<Bytes> {
        if excerpt.is_empty() {
            // As of every success: nothing to look for.
            return None;
        }
        let Errand::Deliver(request) = self.errand else {
            return None;
        };
        let shaped = request.shaped.as_deref();
        let own = endpoint.headers.iter();
        let headers = own.chain(shaped.iter().flat_map(|shaped| &shaped.headers));
        let values = headers
            .map(|(_, value)| value)
            .chain(self.token.map(|token| &token.value));
        let values = values.chain(&request.content_type);
        let secrets = shaped.iter().flat_map(|shaped| shaped.secrets.iter());
        let told = Told {
            path: &path(&endpoint.target, request),
            own_path: &endpoint.target.path,
            own_is_secret: endpoint.target.is_secret,
            secrets: secrets.map(|(_, value)| value).collect(),
        };
        conceal(&told, values, excerpt)
    }
}

impl<'a> Route<'a> {
    fn new(target: &'a Target, endpoint: &'a ResolvedEndpoint) -> Route<'a> {
        let key = Key {
            namespace: endpoint.namespace.clone(),
            host: target.host.clone(),
            port: target.port,
            service: target.service.clone(),
            identity: identity(endpoint),
        };
        Route { target, endpoint, key }
    }
}

fn judge(success: &Expression, code: u16, body: &[u8]) -> Judged {
    match success.test(&Scope::response(code, body)) {
        Ok(true) => Judged::Success,
        Ok(false) => Judged::Failure,
        Err(_) => Judged::Undecided,
    }
}

fn answered(
    connection: Connection,
    answer: http::Response<Incoming>,
) -> Result<(Connection, http::Response<Incoming>), Outcome> {
    // RFC 9110, 15: three digits, the first from 1 to 5.
    match connection.too_many_interim() || answer.status().as_u16() >= 600 {
        true => Err(Outcome::Fault(Fault::Protocol)),
        false => Ok((connection, answer)),
    }
}

fn failed(connection: &Connection, error: &hyper::Error) -> Outcome {
    match connection.too_many_interim() {
        true => Outcome::Fault(Fault::Protocol),
        false => outcome::of_http(error),
    }
}

fn no_address(error: LookupError) -> Outcome {
    match error {
        LookupError::Name => Outcome::Fault(Fault::Dns),
        LookupError::Down => Outcome::Ours(OurFault::DnsDown),
    }
}

/// Tries the addresses in order; each gets an equal share of the time that is left.
async fn connect(addresses: &[IpAddr], port: u16, deadline: Instant) -> Result<(TcpStream, IpAddr), Outcome> {
    let tried = addresses.len().min(MAX_DIALLED);
    let mut failure = Outcome::Fault(Fault::Unreachable);
    for (index, &address) in addresses[..tried].iter().enumerate() {
        let left = u32::try_from(tried - index).unwrap_or(1);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        failure = match timeout(share, TcpStream::connect((address, port))).await {
            Err(_) => Outcome::Fault(Fault::Timeout),
            Ok(Err(error)) => outcome::of_connect(&error, address),
            Ok(Ok(stream)) => {
                // Fails only on a socket that is already dead, which the handshake will say better.
                let _ = stream.set_nodelay(true);
                return Ok((stream, address));
            }
        };
    }
    Err(failure)
}
