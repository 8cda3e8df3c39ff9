//! Names to addresses, by our own DNS client: getaddrinfo runs on blocking threads, where a few dead names stall all
//! others. Knows nothing of the guard or of HTTP.
//!
//! Invariant: a name is asked for once at a time, as an absolute name (no search list), within [`LOOKUP_TIMEOUT`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{TokioResolver, system_conf};
use moka::future::Cache;
use tokio::time::timeout;

/// What a name may cost an attempt: a dead authoritative server must not eat a 15 s timeout.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// One question on the wire; two of them fit a look-up, so that one lost datagram costs a second, not the attempt.
const QUERY_TIMEOUT: Duration = Duration::from_millis(900);
/// Names remembered: more than the endpoints of a large installation, about 1 MiB.
const CACHED_NAMES: u64 = 10_000;
/// A receiver that moves is followed within five minutes whatever its TTL says.
pub(super) const MAX_TTL: Duration = Duration::from_secs(300);
/// A name that was just created is found within half a minute.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// Questions in flight to one DNS server; hickory's own 32 turns a burst of new names into errors.
const QUERIES_IN_FLIGHT: usize = 1_024;
/// An answer to anything within this time proves that the DNS server lives.
const ALIVE_FOR: Duration = Duration::from_secs(5);
/// How long a silent probe is believed.
const DOWN_FOR: Duration = Duration::from_secs(1);

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("the name has no address")]
    Name,
    #[error("no DNS server answers")]
    Down,
}

/// Failed to set the resolver up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("failed to read the system's resolver configuration: {0}")]
    System(String),
    #[error("failed to build the resolver: {0}")]
    Build(String),
}

#[derive(Clone)]
struct Answer {
    addresses: Arc<[IpAddr]>,
    valid_until: Instant,
}

struct ByTtl;

impl moka::Expiry<Box<str>, Answer> for ByTtl {
    fn expire_after_create(&self, _: &Box<str>, answer: &Answer, created: Instant) -> Option<Duration> {
        Some(answer.valid_until.saturating_duration_since(created))
    }
}

/// The resolver: cached, single flight per name.
pub struct Resolver {
    dns: TokioResolver,
    answers: Cache<Box<str>, Answer>,
    last_answer: std::sync::Mutex<Option<Instant>>,
    last_silence: tokio::sync::Mutex<Option<Instant>>,
}

impl Resolver {
    /// Asks `server`, or those of `/etc/resolv.conf`. `/etc/hosts` comes first either way.
    pub fn new(server: Option<SocketAddr>) -> Result<Resolver, SetupError> {
        let (config, mut options) = match server {
            Some(server) => (only(server), ResolverOpts::default()),
            None => system_conf::read_system_conf().map_err(|error| SetupError::System(error.to_string()))?,
        };
        options.timeout = QUERY_TIMEOUT;
        options.attempts = 1;
        options.use_hosts_file = ResolveHosts::Always;
        options.cache_size = CACHED_NAMES;
        options.positive_max_ttl = Some(MAX_TTL);
        options.negative_max_ttl = Some(MAX_NEGATIVE_TTL);
        options.max_active_requests = QUERIES_IN_FLIGHT;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        Ok(Resolver {
            dns: builder.build().map_err(|error| SetupError::Build(error.to_string()))?,
            answers: Cache::builder().max_capacity(CACHED_NAMES).expire_after(ByTtl).build(),
            last_answer: std::sync::Mutex::new(None),
            last_silence: tokio::sync::Mutex::new(None),
        })
    }

    /// Every address of `name`, never none; IPv4 first, since a cluster without an IPv6 route is the usual case.
    pub async fn lookup(&self, name: &str) -> Result<Arc<[IpAddr]>, LookupError> {
        let found = self.answers.try_get_with(name.into(), self.ask(name)).await;
        found.map(|answer| answer.addresses).map_err(|error| *error)
    }

    async fn ask(&self, name: &str) -> Result<Answer, LookupError> {
        let mut absolute = Name::from_ascii(name).map_err(|_| LookupError::Name)?;
        absolute.set_fqdn(true);
        let (v4, v6) = tokio::join!(
            timeout(LOOKUP_TIMEOUT, self.dns.lookup(absolute.clone(), RecordType::A)),
            timeout(LOOKUP_TIMEOUT, self.dns.lookup(absolute, RecordType::AAAA)),
        );
        let answers = [
            v4.unwrap_or(Err(NetError::Timeout)),
            v6.unwrap_or(Err(NetError::Timeout)),
        ];
        if answers.iter().any(answered) {
            *self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Instant::now());
        }
        let found = || answers.iter().flatten();
        let addresses: Arc<[IpAddr]> = found().flat_map(addresses).collect();
        match found().map(Lookup::valid_until).min() {
            Some(valid_until) if !addresses.is_empty() => Ok(Answer { addresses, valid_until }),
            _ if answers.iter().any(answered) || self.alive().await => Err(LookupError::Name),
            _ => Err(LookupError::Down),
        }
    }

    /// Whether the DNS server answers anything at all: then a silent name is the name's fault, not ours.
    async fn alive(&self) -> bool {
        let answered_lately = || {
            let last = *self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            last.is_some_and(|at| at.elapsed() < ALIVE_FOR)
        };
        if answered_lately() {
            return true;
        }
        let mut silence = self.last_silence.lock().await;
        if answered_lately() {
            return true;
        }
        if silence.is_some_and(|at| at.elapsed() < DOWN_FOR) {
            return false;
        }
        self.dns.clear_lookup_cache(Name::root(), RecordType::SOA);
        let probe = timeout(QUERY_TIMEOUT, self.dns.lookup(Name::root(), RecordType::SOA));
        let alive = answered(&probe.await.unwrap_or(Err(NetError::Timeout)));
        match alive {
            true => {
                let now = Some(Instant::now());
                *self.last_answer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = now;
            }
            false => *silence = Some(Instant::now()),
        }
        alive
    }
}

fn only(server: SocketAddr) -> ResolverConfig {
    let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
    udp.port = server.port();
    tcp.port = server.port();
    ResolverConfig::from_name_servers(vec![NameServerConfig::new(server.ip(), true, vec![udp, tcp])])
}

fn addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> + '_ {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr())
}

/// A response of whatever kind came back.
fn answered(result: &Result<Lookup, NetError>) -> bool {
    matches!(
        result,
        Ok(_) | Err(NetError::Dns(DnsError::ResponseCode(_) | DnsError::NoRecordsFound(_)))
    )
}
