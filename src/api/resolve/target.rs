//! A URL's text, parsed as the URL standard says (so `127.1`, octal and hexadecimal hosts are addresses), to a target.

use http::uri::PathAndQuery;
use url::Url;

use super::{EgressRules, Host, Target, Unresolved};
use crate::api::address;
use crate::api::conditions::reasons;

/// RFC 1035, section 2.3.4, without the trailing dot. `status.target` holds no longer one either.
const NAME_LONGEST: usize = 253;

/// The target, unless the text is no usable https URL or names an address that is not opened.
pub(super) fn target(text: &str, egress: &EgressRules) -> Result<Target, Unresolved> {
    let url = Url::parse(text).map_err(|error| {
        Unresolved::invalid(format!(
            "url cannot be parsed ({error}): write an absolute https URL, as in https://hooks.example.com/leads"
        ))
    })?;
    let refuse = |message: &str| Err(Unresolved::invalid(message));
    if url.scheme() != "https" {
        return refuse("url must begin with https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("url must not hold a user name or password: use headers[].secretKeyRef");
    }
    if url.fragment().is_some() {
        return refuse("url must not have a fragment: remove # and what follows");
    }
    let host = match url.host() {
        Some(url::Host::Domain(name)) if name.ends_with('.') => {
            return refuse("url must name its host without a trailing dot");
        }
        Some(url::Host::Domain(name)) if name.len() > NAME_LONGEST => {
            return refuse("url must name a host of at most 253 characters: no DNS name is longer");
        }
        Some(host) => Host::from(host.to_owned()),
        None => return refuse("url must name a host"),
    };
    let port = match url.port_or_known_default() {
        None | Some(0) => return refuse("url must name a port from 1 to 65535, or none for 443"),
        Some(port) => port,
    };
    let Some(path) = path_and_query(&url) else {
        return refuse("url's path or query holds characters that must be percent-encoded");
    };
    if let Host::Address(ip) = host
        && let Some(why) = address::forbidden(ip, egress)
    {
        let why = match why {
            address::CLOSED => format!(
                "url names {ip}, which the administrator closed (egress.closedCIDRs of the policy file): use another address"
            ),
            why => format!(
                "url names {ip}, which is not globally reachable, {why}: use another address, or ask the administrator to \
                 open it for this namespace (egress.openCIDRs of the policy file)"
            ),
        };
        return Err(Unresolved::stalled(reasons::POLICY_DENIED, why));
    }
    refused_host("url", &host, port, egress)?;
    let name = url.host_str().unwrap_or_default();
    let authority = match url.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    Ok(Target {
        origin: format!("https://{authority}"),
        host,
        port,
        path,
        is_secret: false,
        authority,
        service: None,
    })
}

/// The request target, unless it holds what no request line can.
pub(super) fn path_and_query(url: &Url) -> Option<String> {
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    PathAndQuery::try_from(path.as_str()).is_ok().then_some(path)
}

/// Refuses what the policy's narrowing leaves out.
pub(super) fn refused_host(named_in: &str, host: &Host, port: u16, egress: &EgressRules) -> Result<(), Unresolved> {
    match egress.refusal(named_in, host, port) {
        Some(why) => Err(Unresolved::stalled(reasons::POLICY_DENIED, why)),
        None => Ok(()),
    }
}
