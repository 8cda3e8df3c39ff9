//! TLS sessions that receivers offered for resumption (RFC 8446, section 4.6.1): a resumed handshake verifies no certificate
//! and costs half. Where many endpoints share a host, an outage ends with as many handshakes at once.
//!
//! Invariant: all sessions together are bounded, and a session is used once, by the configuration that got it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

use super::kept::Kept;

/// Sessions kept, of 3-5 KiB each with the server's certificates: 10 MiB at most. The oldest gives way.
const MAX_SESSIONS: usize = 2_048;
/// And of one server, which may offer several with each connection.
const MAX_OF_ONE: usize = 1_024;
/// TLS 1.2 has one session for a server. So many servers, times 8, of each configuration.
const TLS12: usize = 512;

/// A configuration and a server of it.
type Key = (u64, ServerName<'static>);
type Shared = Arc<Mutex<Kept<Key, Tls13ClientSessionValue>>>;

/// The sessions of all configurations.
#[derive(Default)]
pub(super) struct Sessions {
    kept: Shared,
    configurations: AtomicU64,
}

impl Sessions {
    /// The store of one more configuration.
    pub(super) fn resumption(&self) -> Resumption {
        Resumption::store(Arc::new(Store {
            configuration: self.configurations.fetch_add(1, Ordering::Relaxed),
            kept: self.kept.clone(),
            others: ClientSessionMemoryCache::new(TLS12),
        }))
    }
}

/// One configuration's view.
struct Store {
    configuration: u64,
    kept: Shared,
    others: ClientSessionMemoryCache,
}

impl Store {
    fn kept(&self) -> MutexGuard<'_, Kept<Key, Tls13ClientSessionValue>> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Sessions are secrets.
impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl ClientSessionStore for Store {
    fn insert_tls13_ticket(&self, server: ServerName<'static>, session: Tls13ClientSessionValue) {
        let key = (self.configuration, server);
        let mut kept = self.kept();
        if kept.of(&key) >= MAX_OF_ONE {
            kept.pop_oldest_of(&key);
        } else if kept.len() >= MAX_SESSIONS {
            kept.pop_oldest();
        }
        kept.push(key, session);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().pop(&(self.configuration, server.clone()))
    }

    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.others.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.others.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.others.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.others.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.others.remove_tls12_session(server);
    }
}
