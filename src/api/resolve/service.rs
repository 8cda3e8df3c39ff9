//! A Service of the endpoint's namespace, to a target at its cluster addresses.
//!
//! Owns what is used of a Service, and which Services may be sent to. Invariant: what is dialled is an address that the
//! cluster gave to the Service, at a port that it has; no name is looked up, and nobody but Kubernetes chooses the address.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::target::{path_and_query, refused_host};
use super::{EgressRules, Host, ServiceRoute, Target, Unresolved};
use crate::api::address;
use crate::api::conditions::reasons;
use crate::api::egress::Services;
use crate::api::service::{ServiceReference, ServiceScheme};

/// What is used of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundService {
    pub resource_version: String,
    form: Form,
    /// None of a headless one.
    addresses: Arc<[IpAddr]>,
    /// Those of TCP.
    ports: Box<[u16]>,
}

/// Who chooses the addresses behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    /// Kubernetes, from the pods of the namespace.
    #[default]
    Selecting,
    /// Whoever writes EndpointSlices.
    WithoutSelector,
    /// Whoever writes the Service.
    ExternalName,
}

impl FoundService {
    /// Takes from a Service what is used of it.
    pub fn new(resource_version: &str, spec: &ServiceSpec) -> FoundService {
        let form = match (spec.type_.as_deref(), &spec.selector) {
            (Some("ExternalName"), _) => Form::ExternalName,
            (_, Some(selector)) if !selector.is_empty() => Form::Selecting,
            _ => Form::WithoutSelector,
        };
        // All of them; where they are not told, the first. Of a headless one the text is `None`.
        let given = match spec.cluster_ips.as_deref() {
            Some(all @ [_, ..]) => all,
            _ => spec.cluster_ip.as_slice(),
        };
        let tcp = spec
            .ports
            .iter()
            .flatten()
            .filter(|port| is_tcp(port.protocol.as_deref()));
        FoundService {
            resource_version: resource_version.to_owned(),
            form,
            addresses: given.iter().filter_map(|text| text.parse().ok()).collect(),
            ports: tcp.filter_map(|port| u16::try_from(port.port).ok()).collect(),
        }
    }
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

/// A target but for its addresses: what the spec and the policy say of it is in order.
pub(super) struct Place<'a> {
    reference: &'a ServiceReference,
    target: Target,
}

/// What `serviceRef` names, unless it or the administrator's policy is against it.
pub(super) fn place<'a>(
    reference: &'a ServiceReference,
    namespace: &str,
    egress: &EgressRules,
) -> Result<Place<'a>, Unresolved> {
    let name = &reference.name;
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(is_letter) {
        return Err(Unresolved::invalid(format!(
            "{name:?} is no name of a Service: write it as it is in its metadata, as in crm"
        )));
    }
    let port = match u16::try_from(reference.port) {
        Ok(port) if port > 0 => port,
        _ => return Err(Unresolved::invalid("serviceRef.port must be from 1 to 65535")),
    };
    if egress.services == Services::Deny {
        return Err(Unresolved::stalled(
            reasons::POLICY_DENIED,
            "the administrator's policy lets no endpoint of this namespace send to a Service by serviceRef: use url, or ask \
             the administrator (egress.services of the policy file)",
        ));
    }
    let name = format!("{name}.{namespace}.svc");
    let (scheme, usual, tls) = match reference.scheme {
        ServiceScheme::Http => ("http", 80, false),
        ServiceScheme::Https => ("https", 443, true),
    };
    let authority = match port == usual {
        true => name.clone(),
        false => format!("{name}:{port}"),
    };
    let origin = format!("{scheme}://{authority}");
    let path = match reference.path.starts_with('/') {
        true => url::Url::parse(&format!("{origin}{}", reference.path)).ok(),
        false => None,
    };
    let path = path.filter(|url| url.fragment().is_none());
    let path = path.as_ref().and_then(path_and_query).ok_or_else(|| {
        Unresolved::invalid("serviceRef.path must be a path that begins with /, without a fragment, as in /hooks/leads")
    })?;
    let host = Host::Name(name);
    refused_host("serviceRef", &host, port, egress)?;
    Ok(Place {
        reference,
        target: Target {
            host,
            port,
            path,
            is_secret: false,
            authority,
            origin,
            service: Some(Arc::new(ServiceRoute {
                addresses: Arc::default(),
                tls,
            })),
        },
    })
}

impl Place<'_> {
    /// The target, if the Service is one that may be sent to.
    pub(super) fn at(self, found: Option<&FoundService>, egress: &EgressRules) -> Result<Target, Unresolved> {
        let Place { reference, mut target } = self;
        let (name, port) = (&reference.name, target.port);
        let found = found.ok_or_else(|| {
            Unresolved::waiting(
                reasons::SERVICE_NOT_FOUND,
                format!("Service {name} does not exist in this namespace"),
            )
        })?;
        let not_allowed = |why: String| Err(Unresolved::waiting(reasons::SERVICE_NOT_ALLOWED, why));
        match found.form {
            Form::Selecting => {}
            Form::ExternalName => {
                return not_allowed(format!(
                    "Service {name} is of type ExternalName, which could lead anywhere: write the name it stands for as an \
                     https URL in url"
                ));
            }
            Form::WithoutSelector => {
                return not_allowed(format!(
                    "Service {name} has no selector, so its addresses could be anybody's: give it a selector of pods of this \
                     namespace, or write an https URL in url"
                ));
            }
        }
        if found.addresses.is_empty() {
            return not_allowed(format!(
                "Service {name} is headless: name one that has a cluster address (without clusterIP: None)"
            ));
        }
        if !found.ports.contains(&port) {
            let ports: Vec<String> = found.ports.iter().map(u16::to_string).collect();
            return Err(Unresolved::waiting(
                reasons::SERVICE_PORT_MISSING,
                format!(
                    "Service {name} has no TCP port {port}: write one of its spec.ports[].port in serviceRef.port ({})",
                    match ports.is_empty() {
                        true => "it has none".to_owned(),
                        false => ports.join(", "),
                    }
                ),
            ));
        }
        let refused = |ip: &IpAddr| Some((*ip, address::forbidden_to_services(*ip, egress)?));
        if let Some((ip, why)) = found.addresses.iter().find_map(refused) {
            return Err(Unresolved::stalled(
                reasons::POLICY_DENIED,
                format!(
                    "Service {name} has the cluster address {ip}, which is {why}: ask the administrator to open it for this \
                     namespace (egress.openCIDRs of the policy file)"
                ),
            ));
        }
        let tls = target.service.is_some_and(|service| service.tls);
        target.service = Some(Arc::new(ServiceRoute {
            addresses: Arc::clone(&found.addresses),
            tls,
        }));
        Ok(target)
    }
}
