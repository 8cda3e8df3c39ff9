//! Idle connections, by where they lead and whom they trust; bounded in number and age.
//!
//! Invariant: a connection is handed out only if its peer passes the egress rules of the endpoint that asks, as they are
//! now: two namespaces may share a receiver's name and not an administrator's leave to reach it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connection::Connection;
use super::tls::Identity;
use crate::api::address::{forbidden, forbidden_to_services};
use crate::api::resolve::{EgressRules, Host, ServiceRoute};

/// What connections must have in common to be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
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
}

struct Idle {
    connection: Connection,
    order: u64,
    since: Instant,
}

#[derive(Default)]
struct Inner {
    by_key: HashMap<Arc<Key>, VecDeque<Idle>>,
    /// Oldest first; the numbers are unique and rise.
    by_age: BTreeMap<u64, Arc<Key>>,
    next: u64,
}

pub(super) struct Pool {
    inner: Mutex<Inner>,
    sockets: Arc<Semaphore>,
    bounds: Bounds,
}

impl Pool {
    pub(super) fn new(bounds: Bounds) -> Pool {
        Pool {
            inner: Mutex::default(),
            sockets: Arc::new(Semaphore::new(bounds.sockets)),
            bounds,
        }
    }

    /// A connection that is still open, the one used last first.
    pub(super) async fn take(&self, key: &Key, rules: &Arc<EgressRules>) -> Option<Connection> {
        loop {
            let idle = self.lock().pop(key)?;
            let mut connection = idle.connection;
            if idle.since.elapsed() >= self.bounds.idle_time {
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
            let mut inner = self.lock();
            inner.push(key, connection);
            (inner.by_age.len() > self.bounds.idle).then(|| inner.pop_oldest())
        };
        drop(evicted);
    }

    /// Leave to open a socket; an idle connection gives way. None: all are in use.
    pub(super) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.sockets.clone().try_acquire_owned() {
            return Some(permit);
        }
        drop(self.lock().pop_oldest());
        self.sockets.clone().try_acquire_owned().ok()
    }

    /// Closes what has been idle for too long.
    pub(super) fn sweep(&self, now: Instant) {
        loop {
            let expired = {
                let mut inner = self.lock();
                match inner.oldest() {
                    Some(since) if now.saturating_duration_since(since) >= self.bounds.idle_time => inner.pop_oldest(),
                    _ => return,
                }
            };
            drop(expired);
        }
    }

    pub(super) fn idle(&self) -> usize {
        self.lock().by_age.len()
    }

    pub(super) fn open(&self) -> usize {
        self.bounds.sockets - self.sockets.available_permits()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn push(&mut self, key: Key, connection: Connection) {
        let order = self.next;
        self.next += 1;
        let key = match self.by_key.get_key_value(&key) {
            Some((kept, _)) => kept.clone(),
            None => Arc::new(key),
        };
        self.by_age.insert(order, key.clone());
        let idle = Idle {
            connection,
            order,
            since: Instant::now(),
        };
        self.by_key.entry(key).or_default().push_back(idle);
    }

    fn pop(&mut self, key: &Key) -> Option<Idle> {
        let same = self.by_key.get_mut(key)?;
        let idle = same.pop_back();
        if same.is_empty() {
            self.by_key.remove(key);
        }
        self.by_age.remove(&idle.as_ref()?.order);
        idle
    }

    fn pop_oldest(&mut self) -> Option<Idle> {
        let (_, key) = self.by_age.pop_first()?;
        let same = self.by_key.get_mut(&key)?;
        let idle = same.pop_front();
        if same.is_empty() {
            self.by_key.remove(&key);
        }
        idle
    }

    fn oldest(&self) -> Option<Instant> {
        let (_, key) = self.by_age.first_key_value()?;
        Some(self.by_key.get(key)?.front()?.since)
    }
}
