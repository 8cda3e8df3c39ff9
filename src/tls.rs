//! The certificate that a server of ours shows: read from files, and again when they change. And whom our clients trust.
//!
//! Owns reading; who listens, or connects, is the caller's. Invariant: files that cannot be used change nothing: the certificate before
//! them is shown, the log says so once, and the metric for as long as it lasts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are read: a mounted Secret changes within a minute anyway.
pub const READ_EVERY: Duration = Duration::from_secs(5);

/// The public roots, and those of one's own in PEM.
pub fn roots(own: Option<&[u8]>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(own) = own {
        // A certificate that cannot be used is left out; what it would have signed then fails.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(own).flatten());
    }
    roots
}

/// Certificate chain and private key, both PEM: what cert-manager puts into a Secret as `tls.crt` and `tls.key`.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// Reads both, once.
    pub async fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        self.read().await?.acceptor()
    }

    async fn read(&self) -> anyhow::Result<Pem<'_>> {
        let read = async |path: &PathBuf| {
            let read = tokio::fs::read(path).await;
            read.with_context(|| format!("failed to read {}", path.display()))
        };
        Ok(Pem {
            files: self,
            certificate: read(&self.certificate).await?,
            key: read(&self.key).await?,
        })
    }
}

/// What the files hold. Not shown, not even by Debug.
struct Pem<'a> {
    files: &'a TlsFiles,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Pem<'_> {
    fn digest(&self) -> [u8; 32] {
        let both = Sha256::new().chain_update(&self.certificate).chain_update(&self.key);
        both.finalize().into()
    }

    /// Refuses a key that is not the certificate's: the two files do not change at the same instant.
    fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let name = self.files.certificate.display();
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("failed to read certificates from {name}"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .with_context(|| format!("failed to read a private key from {}", self.files.key.display()))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .with_context(|| format!("failed to use the certificate in {name} with its key"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The certificate that is shown now.
pub struct Certificate {
    files: TlsFiles,
    shown: ArcSwap<Shown>,
    /// 1 while the files are not usable and the certificate before them is shown.
    invalid: Gauge,
}

struct Shown {
    acceptor: TlsAcceptor,
    digest: [u8; 32],
}

impl Certificate {
    /// Reads it for the first time: then what cannot be used is an error.
    pub async fn new(files: TlsFiles, invalid: Gauge) -> anyhow::Result<Certificate> {
        let pem = files.read().await?;
        let (acceptor, digest) = (pem.acceptor()?, pem.digest());
        Ok(Certificate {
            shown: ArcSwap::from_pointee(Shown { acceptor, digest }),
            files,
            invalid,
        })
    }

    /// For the next connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.shown.load().acceptor.clone()
    }

    /// Reads it again and again until `shutdown`. Connections that are open keep the one they began with.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
            match self.refresh().await {
                Ok(changed) => {
                    self.invalid.set(0);
                    if changed {
                        tracing::info!(file = %self.files.certificate.display(), "the certificate changed");
                    }
                }
                Err(error) => {
                    if self.invalid.set(1) == 0 {
                        let error = format!("{error:#}");
                        tracing::error!(error, "the certificate is not usable: the one before it is shown");
                    }
                }
            }
        }
    }

    /// Whether there is another one.
    async fn refresh(&self) -> anyhow::Result<bool> {
        let pem = self.files.read().await?;
        let digest = pem.digest();
        if digest == self.shown.load().digest {
            return Ok(false);
        }
        let acceptor = pem.acceptor()?;
        self.shown.store(Arc::new(Shown { acceptor, digest }));
        Ok(true)
    }
}
