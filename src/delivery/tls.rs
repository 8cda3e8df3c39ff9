//! TLS identities: one client configuration for each distinct CA bundle and client certificate, so that sessions and
//! connections are shared, and a renewed certificate is another identity.
//!
//! Invariant: a server's certificate is always verified, against the public roots and the endpoint's own bundle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, ClientConfig};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsConnector;

use super::sessions::Sessions;
use crate::api::resolve::ResolvedEndpoint;
use crate::tls::roots;

/// Configurations kept. Each holds the public roots (about 150 certificates' names and keys): under 200 KiB; beyond this
/// an arbitrary one is built anew when it is needed.
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
    configs: Mutex<HashMap<Identity, TlsConnector>>,
}

impl Identities {
    pub fn new() -> Identities {
        Identities {
            provider: Arc::new(provider()),
            sessions: Sessions::default(),
            configs: Mutex::new(HashMap::new()),
        }
    }

    /// The connector for what an endpoint trusts and shows.
    pub fn connector(&self, endpoint: &ResolvedEndpoint) -> Result<TlsConnector, TlsError> {
        let identity = identity(endpoint);
        let mut configs = self.configs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(connector) = configs.get(&identity) {
            return Ok(connector.clone());
        }
        let connector = TlsConnector::from(Arc::new(self.build(endpoint)?));
        if configs.len() >= CACHED_CONFIGS
            && let Some(victim) = configs.keys().next().copied()
        {
            configs.remove(&victim);
        }
        configs.insert(identity, connector.clone());
        Ok(connector)
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
