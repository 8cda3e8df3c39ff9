//! Which hosts and ports a namespace may send to, where the administrator's policy names some. Pure.
//!
//! Narrows only: an address that is not globally reachable stays refused ([`super::address`]) whatever is named here.
//! Invariant: hosts are compared as the URL standard parses them, so that no spelling passes for another one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::resolve::{EgressRules, Host};

/// Hosts that a message names; of the others it tells how many there are.
const SHOWN: usize = 8;

/// Whether endpoints may send to Services of their namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Services {
    #[default]
    Allow,
    Deny,
}

/// Hosts that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// This name or address alone.
    Exact(Host),
    /// `*.example.com` keeps `.example.com`: every name below it, at any depth, and not the name itself.
    Below(String),
}

impl HostPattern {
    fn allows(&self, host: &Host) -> bool {
        match (self, host) {
            (HostPattern::Exact(allowed), host) => allowed == host,
            (HostPattern::Below(suffix), Host::Name(name)) => {
                name.len() > suffix.len() && name.ends_with(suffix.as_str())
            }
            (HostPattern::Below(_), Host::Address(_)) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<HostPattern, HostError> {
        let malformed = || HostError(text.to_owned());
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        if name.contains('*') || name.ends_with('.') {
            return Err(malformed());
        }
        match (below, url::Host::parse(name).map_err(|_| malformed())?) {
            (true, url::Host::Domain(name)) => Ok(HostPattern::Below(format!(".{name}"))),
            (true, _) => Err(malformed()),
            (false, host) => Ok(HostPattern::Exact(host.into())),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => host.fmt(f),
            HostPattern::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// A text that names no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host: write it alone, as in hooks.example.com, or *.example.com for every name below example.com")]
pub struct HostError(String);

impl EgressRules {
    /// Why nothing may be sent there, in a sentence for the endpoint's owner, who wrote it in `named_in`; none when it may.
    pub fn refusal(&self, named_in: &str, host: &Host, port: u16) -> Option<String> {
        let denied = |what: &str, allowed: String, field: &str| {
            format!(
                "the administrator's policy lets endpoints of this namespace send to {allowed} only, and {named_in} names {what}: \
                 use one of them, or ask the administrator for another (egress.{field} of the policy file)"
            )
        };
        if let Some(hosts) = &self.hosts
            && !hosts.iter().any(|allowed| allowed.allows(host))
        {
            return Some(denied(&host.to_string(), listed(hosts), "hosts"));
        }
        if let Some(ports) = &self.ports
            && !ports.contains(&port)
        {
            let allowed = format!("port {}", listed(ports));
            return Some(denied(&format!("port {port}"), allowed, "ports"));
        }
        None
    }
}

fn listed<T: fmt::Display>(all: &[T]) -> String {
    let shown: Vec<String> = all.iter().take(SHOWN).map(T::to_string).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(hosts: Option<&[&str]>, ports: Option<&[u16]>) -> EgressRules {
        EgressRules {
            hosts: hosts.map(|hosts| hosts.iter().map(|text| text.parse().unwrap()).collect()),
            ports: ports.map(<[u16]>::to_vec),
            ..EgressRules::default()
        }
    }

    fn host(text: &str) -> Host {
        url::Host::parse(text).unwrap().into()
    }

    #[test]
    fn only_named_hosts_and_names_below_a_wildcard_are_allowed() {
        let rules = rules(
            Some(&[
                "hooks.example.com",
                "*.Example.org",
                "bücher.example",
                "10.1.2.3",
                "[fd00::1]",
            ]),
            None,
        );
        for (name, allowed) in [
            ("hooks.example.com", true),
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("xn--bcher-kva.example", true),
            ("10.1.2.3", true),
            ("0x0a.1.2.3", true),
            ("[fd00::1]", true),
            ("example.org", false),
            ("badexample.org", false),
            ("a.hooks.example.com", false),
            ("hooks.example.com.evil.example", false),
            ("10.1.2.4", false),
        ] {
            assert_eq!(rules.refusal("url", &host(name), 443).is_none(), allowed, "{name}");
        }
    }

    #[test]
    fn a_refusal_names_what_is_allowed_and_where_that_is_said() {
        let rules = rules(Some(&["a.example"]), Some(&[443, 8443]));
        let refusal = |name: &str, port| rules.refusal("url", &host(name), port);
        assert_eq!(refusal("a.example", 8443), None);
        let hosts = refusal("b.example", 443).unwrap();
        assert!(
            hosts.contains("send to a.example only") && hosts.contains("b.example") && hosts.contains("egress.hosts"),
            "{hosts}"
        );
        let ports = refusal("a.example", 80).unwrap();
        assert!(
            ports.contains("send to port 443, 8443 only")
                && ports.contains("port 80")
                && ports.contains("egress.ports"),
            "{ports}"
        );
        let many: Vec<String> = (0..20).map(|n| format!("h{n}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let told = super::tests::rules(Some(&many), None)
            .refusal("url", &host("b.example"), 443)
            .unwrap();
        assert!(told.contains("h7.example and 12 more"), "{told}");
    }

    #[test]
    fn what_is_no_host_is_refused_and_says_what_to_write() {
        for text in [
            "",
            "*",
            "*.",
            "a.*",
            "*a.example",
            "a.example.",
            "a.example:443",
            "https://a.example",
            "a b",
            "*.10.0.0.1",
        ] {
            let error = text.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.contains("*.example.com"), "{text}: {error}");
        }
    }
}
