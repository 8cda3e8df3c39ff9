//! TLS identities: one client configuration for each distinct CA bundle and client certificate, so that sessions and
//! connections are shared, and a renewed certificate is another identity.
//!
//! Invariants: a server's certificate is always verified, against the public roots and the endpoint's own bundle; nobody waits
//! while a configuration is built, and one endpoint's never costs others that of the public roots.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ClientConfig};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsConnector;

use super::kept::Kept;
use super::sessions::Sessions;
use crate::api::resolve::ResolvedEndpoint;
use crate::blocking::beside_the_worker;
use crate::tls::roots;

/// Configurations kept beside that of the public roots alone. Each holds these (about 150 certificates' names and keys) and
/// an endpoint's: under 400 KiB. Beyond this the one unused for longest is built anew when it is needed.
const CACHED_CONFIGS: usize = 256;

/// Says which connections may be shared: none is the public roots alone, and no certificate of ours.
pub type Identity = Option<[u8; 32]>;

/// The identity that an endpoint's connections have.
pub fn identity(endpoint: &ResolvedEndpoint) -> Identity {
    let ca = endpoint.ca.as_ref().map(|ca| ca.digest);
    match &endpoint.client {
        None => ca,
        Some(client) => {
            let both = [ca.unwrap_or_default(), client.digest].concat();
            Some(Sha256::digest(both).into())
        }
    }
}

/// Failed to build a TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to configure TLS: {0}")]
    Config(#[from] rustls::Error),
}

/// Builds and keeps client configurations.
pub struct Identities {
    provider: Arc<CryptoProvider>,
    sessions: Sessions,
    configs: Configs<TlsConnector>,
}

impl Identities {
    pub fn new() -> Identities {
        Identities {
            provider: Arc::new(provider()),
            sessions: Sessions::default(),
            configs: Configs::default(),
        }
    }

    /// The connector for what an endpoint trusts and shows.
    pub fn connector(&self, endpoint: &ResolvedEndpoint) -> Result<TlsConnector, TlsError> {
        self.configs.get(identity(endpoint), || {
            let config = beside_the_worker(|| self.build(endpoint))?;
            Ok(TlsConnector::from(Arc::new(config)))
        })
    }

    fn build(&self, endpoint: &ResolvedEndpoint) -> Result<ClientConfig, TlsError> {
        let roots = roots(endpoint.ca.as_ref().map(|ca| &ca.pem[..]));
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &endpoint.client {
            Some(client) => builder.with_client_auth_cert(client.chain.clone(), client.key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = self.sessions.resumption();
        Ok(config)
    }
}

/// What is kept of configurations.
struct Configs<T> {
    public: OnceLock<T>,
    own: Mutex<Kept<[u8; 32], T>>,
}

impl<T> Default for Configs<T> {
    fn default() -> Configs<T> {
        Configs {
            public: OnceLock::new(),
            own: Mutex::default(),
        }
    }
}

impl<T: Clone> Configs<T> {
    /// The one that is kept, else a new one. Several may build the same at once: the first one is kept.
    fn get<E>(&self, identity: Identity, build: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let Some(digest) = identity else {
            return match self.public.get() {
                Some(kept) => Ok(kept.clone()),
                None => build().map(|built| self.public.get_or_init(|| built).clone()),
            };
        };
        if let Some(kept) = used(&mut self.own(), digest) {
            return Ok(kept);
        }
        let built = build()?;
        let mut own = self.own();
        if let Some(kept) = used(&mut own, digest) {
            return Ok(kept);
        }
        own.push(digest, built.clone());
        if own.len() > CACHED_CONFIGS {
            own.pop_oldest();
        }
        Ok(built)
    }

    fn own(&self) -> MutexGuard<'_, Kept<[u8; 32], T>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that is kept, from now on the one that was used last.
fn used<T: Clone>(own: &mut Kept<[u8; 32], T>, digest: [u8; 32]) -> Option<T> {
    let kept = own.pop(&digest)?;
    own.push(digest, kept.clone());
    Some(kept)
}

/// Named, not the process's default: kube and reqwest in the same binary may install another.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As in Go and in browsers: its hash is SHA-256, which processors compute, and a handshake hashes a lot.
    let first = CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != first);
    provider
}

impl Default for Identities {
    fn default() -> Identities {
        Identities::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    /// Of the public roots, or of the n-th bundle.
    fn identity(n: usize) -> Identity {
        (n > 0).then(|| Sha256::digest(n.to_le_bytes()).into())
    }

    #[test]
    fn whoever_has_a_bundle_of_his_own_costs_nobody_the_public_roots_and_himself_what_is_unused_for_longest() {
        let (configs, builds) = (Configs::default(), Cell::new(0));
        let get = |n| {
            let got: Result<usize, Infallible> = configs.get(identity(n), || {
                builds.set(builds.get() + 1);
                Ok(n)
            });
            assert_eq!(got, Ok(n));
            builds.get()
        };
        assert_eq!(get(0), 1);
        for n in 1..=CACHED_CONFIGS {
            assert_eq!(get(n), n + 1);
            assert_eq!(get(1), n + 1, "used all the time");
        }
        let all = builds.get();
        assert_eq!(get(CACHED_CONFIGS + 1), all + 1);
        assert_eq!((get(0), get(1), get(3)), (all + 1, all + 1, all + 1));
        assert_eq!(get(2), all + 2, "it gave way");
    }

    #[test]
    fn while_one_is_built_others_are_found_and_the_first_of_two_is_kept() {
        let configs = Configs::default();
        let get = |n, value| configs.get::<Infallible>(identity(n), || Ok(value));
        let built = configs.get::<Infallible>(identity(1), || {
            assert_eq!((get(2, "other"), get(0, "public")), (Ok("other"), Ok("public")));
            assert_eq!(get(1, "first"), Ok("first"));
            Ok("second")
        });
        assert_eq!((built, get(1, "third")), (Ok("first"), Ok("first")));
        assert_eq!(configs.own().len(), 2);
    }

    #[test]
    fn what_cannot_be_built_is_not_kept() {
        let configs = Configs::default();
        for n in [0, 1] {
            assert_eq!(configs.get(identity(n), || Err("no")), Err("no"));
            assert_eq!(configs.get::<&str>(identity(n), || Ok(1)), Ok(1));
        }
    }
}
