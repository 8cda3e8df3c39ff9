//! The guard: which addresses an attempt may dial. It owns the decision "all or nothing" over an answer of the resolver;
//! the list of ranges itself is `api::address`, which the controller uses too.
//!
//! Invariant: an address is dialled only if it was an argument here, under the rules of the endpoint of this attempt.

use std::net::IpAddr;

use crate::api::address::{forbidden, forbidden_to_services};
use crate::api::resolve::EgressRules;

/// An address that may not be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forbidden {
    pub address: IpAddr,
    /// The range it belongs to.
    pub range: &'static str,
}

/// Passes all of `addresses` or none: one forbidden address among good ones is how an attacker waits for the retry that
/// picks it.
pub fn check(addresses: &[IpAddr], rules: &EgressRules) -> Result<(), Forbidden> {
    all_or_none(addresses, |address| forbidden(address, rules))
}

/// The same for the addresses that the cluster gave to a Service.
pub fn check_service(addresses: &[IpAddr], rules: &EgressRules) -> Result<(), Forbidden> {
    all_or_none(addresses, |address| forbidden_to_services(address, rules))
}

fn all_or_none(addresses: &[IpAddr], why: impl Fn(IpAddr) -> Option<&'static str>) -> Result<(), Forbidden> {
    match addresses.iter().find_map(|&address| Some((address, why(address)?))) {
        Some((address, range)) => Err(Forbidden { address, range }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_forbidden_address_among_good_ones_forbids_the_whole_answer() {
        let rules = EgressRules::default();
        assert_eq!(check(&[ip("93.184.216.34"), ip("2606:2800:220:1::1")], &rules), Ok(()));
        for bad in [
            "127.0.0.1",
            "::1",
            "169.254.169.254",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "0.0.0.0",
        ] {
            let found = check(&[ip("93.184.216.34"), ip(bad)], &rules).expect_err(bad);
            assert_eq!(found.address, ip(bad));
        }
    }
}
