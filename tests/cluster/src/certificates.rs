//! Certificates that nobody else trusts: the control plane's, and the throwaway CA of receivers.
//!
//! Invariant: a private key is written to a file only inside the directory of the cluster that uses it.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

/// Long enough for a cluster that `make up` left running over a holiday, short enough to be plainly a test's.
const VALID_FOR: Duration = Duration::days(30);
/// Clocks of one machine agree, but a certificate of this very second has surprised verifiers.
const VALID_BEFORE: Duration = Duration::hours(1);

/// A CA for receivers on this machine; its servers are called 127.0.0.1, ::1 and localhost.
pub struct ThrowawayCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server's certificate and key, both PEM.
#[derive(Clone)]
pub struct ServerCertificate {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerCertificate(..)")
    }
}

impl fmt::Debug for ThrowawayCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ThrowawayCa(..)")
    }
}

impl ThrowawayCa {
    /// A new CA with a new key.
    pub fn new() -> Result<ThrowawayCa> {
        ThrowawayCa::named("Tidings throwaway CA")
    }

    pub(crate) fn named(name: &str) -> Result<ThrowawayCa> {
        let key = KeyPair::generate().context("failed to generate a CA key")?;
        let mut params = parameters(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).context("failed to sign the CA")?.pem();
        Ok(ThrowawayCa {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// The CA's certificate, for a `caBundle` ConfigMap or `curl --cacert`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for 127.0.0.1, ::1 and localhost.
    pub fn server(&self) -> Result<ServerCertificate> {
        self.server_for(&["127.0.0.1", "::1", "localhost"])
    }

    /// A certificate for these IP addresses and DNS names.
    pub fn server_for(&self, names: &[&str]) -> Result<ServerCertificate> {
        let mut params = parameters(names.first().copied().unwrap_or("server"), None);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(
                    (*name).try_into().context("failed to read a DNS name")?,
                )),
            })
            .collect::<Result<_>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A client certificate as Kubernetes reads it: the common name is the user, the organisation a group.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<ServerCertificate> {
        let mut params = parameters(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<ServerCertificate> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("failed to generate a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("failed to sign a certificate")?;
        Ok(ServerCertificate {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// A key pair of its own, private (PKCS#8) and public, both PEM: signs ServiceAccount tokens.
pub(crate) fn signing_key() -> Result<(String, String)> {
    let key = KeyPair::generate().context("failed to generate the ServiceAccount signing key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn parameters(common_name: &str, organisation: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - VALID_BEFORE;
    params.not_after = OffsetDateTime::now_utc() + VALID_FOR;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params
}
