//! Idle connections, by where they lead and whom they trust; bounded in number and age.
//!
//! Invariants: a connection is handed out only to the namespace that it was opened for, because at a receiver that misreads
//! requests what is left of one would be the beginning of the next; and only if its peer passes the egress rules of the
//! endpoint that asks, as they are now.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Connection;
use super::kept::Kept;
use super::tls::Identity;
use crate::api::address::{forbidden, forbidden_to_services};
use crate::api::resolve::{EgressRules, Host, ServiceRoute};

/// What connections must have in common to be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) host: Host,
    pub(super) port: u16,
    /// A host by this name that is looked up is another one, and so is the Service when it has other addresses.
    pub(super) service: Option<Arc<ServiceRoute>>,
    pub(super) identity: Identity,
}

/// The pool's bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) sockets: usize,
    pub(super) idle: usize,
    pub(super) idle_time: Duration,
    /// From its opening: a connection that is always busy would lead for ever where its name once led.
    pub(super) age: Duration,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

pub(super) struct Pool {
    idle: Mutex<Kept<Key, Idle>>,
    sockets: Arc<Semaphore>,
    bounds: Bounds,
}

impl Pool {
    pub(super) fn new(bounds: Bounds) -> Pool {
        Pool {
            idle: Mutex::default(),
            sockets: Arc::new(Semaphore::new(bounds.sockets)),
            bounds,
        }
    }

    /// A connection that is still open, the one used last first.
    pub(super) async fn take(&self, key: &Key, rules: &Arc<EgressRules>) -> Option<Connection> {
        loop {
            let idle = self.lock().pop(key)?;
            let mut connection = idle.connection;
            if idle.since.elapsed() >= self.bounds.idle_time || connection.opened.elapsed() >= self.bounds.age {
                continue;
            }
            if !Arc::ptr_eq(&connection.passed, rules) && *connection.passed != **rules {
                let why = match key.service {
                    Some(_) => forbidden_to_services(connection.peer, rules),
                    None => forbidden(connection.peer, rules),
                };
                if why.is_some() {
                    continue;
                }
                connection.passed = rules.clone();
            }
            if connection.ready().await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request; the one unused for longest gives way.
    pub(super) fn put(&self, key: Key, connection: Connection) {
        let evicted = {
            let mut kept = self.lock();
            let since = Instant::now();
            kept.push(key, Idle { connection, since });
            (kept.len() > self.bounds.idle).then(|| kept.pop_oldest())
        };
        drop(evicted);
    }

    /// Leave to open a socket; an idle connection gives way. None: all are in use.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.sockets.clone().try_acquire_owned() {
            return Some(permit);
        }
        self.evict();
        self.sockets.clone().try_acquire_owned().ok()
    }

    /// Closes the connection that is unused for longest; false where none is idle.
    pub(super) fn evict(&self) -> bool {
        let evicted = self.lock().pop_oldest();
        evicted.is_some()
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&self, now: Instant) {
        loop {
            let expired = {
                let mut kept = self.lock();
                match kept.oldest() {
                    Some(idle) if now.saturating_duration_since(idle.since) >= self.bounds.idle_time => {
                        kept.pop_oldest()
                    }
                    _ => return,
                }
            };
            drop(expired);
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn open(&self) -> usize {
        self.bounds.sockets - self.sockets.available_permits()
    }

    fn lock(&self) -> MutexGuard<'_, Kept<Key, Idle>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::either::Either;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        sockets: 4,
        idle: 2,
        idle_time: Duration::from_secs(90),
        age: Duration::from_secs(300),
    };

    fn key(namespace: &str) -> Key {
        Key {
            namespace: namespace.into(),
            host: Host::Name("crm.example.com".into()),
            port: 443,
            service: None,
            identity: None,
        }
    }

    /// A connection, and its other side.
    async fn connection(pool: &Pool) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let permit = pool.permit().unwrap();
        let opened = Connection::open(Either::Right(stream), address.ip(), Arc::default(), permit).await;
        (opened.unwrap(), peer)
    }

    #[tokio::test]
    async fn an_idle_connection_gives_its_descriptor_and_where_none_is_idle_nothing_does() {
        let pool = Pool::new(BOUNDS);
        assert!(!pool.evict());
        let (connection, _peer) = connection(&pool).await;
        pool.put(key("sales"), connection);
        assert_eq!((pool.idle(), pool.open()), (1, 1));
        assert!(pool.evict());
        assert_eq!((pool.idle(), pool.open()), (0, 0));
        assert!(!pool.evict());
    }
    #[tokio::test]
    async fn a_connection_that_one_namespace_opened_serves_no_other() {
        let (pool, rules) = (Pool::new(BOUNDS), Arc::default());
        let (connection, _peer) = connection(&pool).await;
        pool.put(key("sales"), connection);
        assert!(pool.take(&key("shop"), &rules).await.is_none());
        assert!(pool.take(&key("sales"), &rules).await.is_some());
    }
}
