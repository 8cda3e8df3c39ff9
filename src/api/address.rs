//! Which addresses nobody may send to unless the administrator opened them: the one place of that list. Pure.
//!
//! Called with literals in a `url` when a resource is resolved, and with the address actually dialled when a connection
//! is made. Invariant: whatever is not known to be globally reachable is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::resolve::EgressRules;

/// IPv4 ranges that are refused: IANA's IPv4 Special-Purpose Address Registry without what it calls globally reachable
/// (192.0.0.9 and .10 are refused with their block: no webhook lives there), multicast, and clouds' metadata services.
const IPV4: &[(Ipv4Addr, u8, &str)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network (0.0.0.0/8)"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private (10.0.0.0/8)"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "shared address space (100.64.0.0/10)"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback (127.0.0.0/8)"),
    (
        Ipv4Addr::new(168, 63, 129, 16),
        32,
        "a cloud's metadata service (168.63.129.16)",
    ),
    (
        Ipv4Addr::new(169, 254, 0, 0),
        16,
        "link-local, metadata services included (169.254.0.0/16)",
    ),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private (172.16.0.0/12)"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments (192.0.0.0/24)"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation (192.0.2.0/24)"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay (192.88.99.0/24)"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private (192.168.0.0/16)"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking (198.18.0.0/15)"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation (198.51.100.0/24)"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation (203.0.113.0/24)"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast (224.0.0.0/4)"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved (240.0.0.0/4)"),
];

/// IPv6 ranges that are refused: IANA's IPv6 Special-Purpose Address Registry, every form that carries an IPv4 address
/// (mapped, compatible, NAT64, 6to4, Teredo), and multicast. Whatever lies outside 2000::/3 is refused after these.
const IPV6: &[(Ipv6Addr, u8, &str)] = &[
    (v6(0, 0, 0, 0, 0, 0xffff), 96, "IPv4-mapped (::ffff:0:0/96)"),
    (Ipv6Addr::LOCALHOST, 128, "loopback (::1)"),
    (v6(0, 0, 0, 0, 0, 0), 8, "reserved (::/8)"),
    (v6(0x64, 0xff9b, 0, 0, 0, 0), 96, "NAT64 (64:ff9b::/96)"),
    (v6(0x64, 0xff9b, 1, 0, 0, 0), 48, "local NAT64 (64:ff9b:1::/48)"),
    (v6(0x100, 0, 0, 0, 0, 0), 64, "discard-only (100::/64)"),
    (
        v6(0x2001, 0, 0, 0, 0, 0),
        23,
        "protocol assignments, Teredo included (2001::/23)",
    ),
    (v6(0x2001, 0xdb8, 0, 0, 0, 0), 32, "documentation (2001:db8::/32)"),
    (v6(0x2002, 0, 0, 0, 0, 0), 16, "6to4 (2002::/16)"),
    (v6(0x3fff, 0, 0, 0, 0, 0), 20, "documentation (3fff::/20)"),
    (v6(0x5f00, 0, 0, 0, 0, 0), 16, "segment routing (5f00::/16)"),
    (v6(0xfc00, 0, 0, 0, 0, 0), 7, "unique local (fc00::/7)"),
    (v6(0xfe80, 0, 0, 0, 0, 0), 10, "link-local (fe80::/10)"),
    (v6(0xfec0, 0, 0, 0, 0, 0), 10, "site-local (fec0::/10)"),
    (v6(0xff00, 0, 0, 0, 0, 0), 8, "multicast (ff00::/8)"),
];

/// The first six groups; the last two are zero.
const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, f, 0, 0)
}

/// Why nothing may be sent to what the administrator closed.
pub const CLOSED: &str = "closed (egress.closedCIDRs)";

/// Why nothing may be sent to `ip`, or `None` when it may: it is globally reachable and the administrator did not close it,
/// or he opened it.
///
/// An IPv4-mapped address counts as opened or closed when its IPv4 address is.
pub fn forbidden(ip: IpAddr, egress: &EgressRules) -> Option<&'static str> {
    if egress.closed_cidrs.iter().any(|closed| closed.contains(ip)) {
        return Some(CLOSED);
    }
    unopened(ip, egress)
}

fn unopened(ip: IpAddr, egress: &EgressRules) -> Option<&'static str> {
    let why = special(ip)?;
    if egress.open_cidrs.iter().any(|open| open.contains(ip)) {
        return None;
    }
    Some(why)
}

/// Why not even a Service may be sent to at `ip`, or `None`: unlike others, Services have private addresses, and those of the
/// cluster may be closed to whoever writes them into a URL. So the rest of the list holds for them, whatever a cluster is
/// configured to give them.
pub fn forbidden_to_services(ip: IpAddr, egress: &EgressRules) -> Option<&'static str> {
    let is_private = match ip {
        IpAddr::V4(ip) => ip.is_private() || same_prefix_v4(ip, Ipv4Addr::new(100, 64, 0, 0), 10),
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    if is_private { None } else { unopened(ip, egress) }
}

/// What kind of address `ip` is, where it is none of the globally reachable: as [`forbidden`] says it, without the range,
/// which of some ranges is the address.
pub fn kind(ip: IpAddr) -> Option<&'static str> {
    let why = special(ip)?;
    Some(why.split_once(" (").map_or(why, |(kind, _)| kind))
}

fn special(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => IPV4
            .iter()
            .find(|(network, prefix, _)| same_prefix_v4(ip, *network, *prefix))
            .map(|(_, _, why)| *why),
        IpAddr::V6(ip) => {
            let listed = IPV6
                .iter()
                .find(|(network, prefix, _)| same_prefix_v6(ip, *network, *prefix))
                .map(|(_, _, why)| *why);
            let global_unicast = ip.segments()[0] & 0xe000 == 0x2000;
            listed.or((!global_unicast).then_some("not global unicast (outside 2000::/3)"))
        }
    }
}

/// Whether the first `prefix` bits are the same; a prefix above 32 never is.
pub(super) fn same_prefix_v4(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    let differing = a.to_bits() ^ b.to_bits();
    prefix <= 32 && differing.leading_zeros() >= u32::from(prefix)
}

/// Whether the first `prefix` bits are the same; a prefix above 128 never is.
pub(super) fn same_prefix_v6(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    let differing = a.to_bits() ^ b.to_bits();
    prefix <= 128 && differing.leading_zeros() >= u32::from(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "169.254.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "64:ff9b:1:ffff::1",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:1::1",
        "2001:1ff::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002::1",
        "3fff::1",
        "3fff:fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "4000::1",
        "8000::1",
    ];

    const REACHABLE: &[&str] = &[
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "168.63.129.17",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.31.196.1",
        "192.175.48.1",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2606:4700:4700::1111",
        "2620:4f:8000::1",
        "2a00:1450::1",
        "3ffe::1",
    ];

    #[test]
    fn everything_that_is_not_globally_reachable_is_refused() {
        for text in REFUSED {
            let ip: IpAddr = text.parse().unwrap();
            assert!(forbidden(ip, &EgressRules::default()).is_some(), "{text}");
        }
    }

    #[test]
    fn the_kind_of_an_address_says_no_digit_of_it() {
        for text in REFUSED {
            let kind = kind(text.parse().unwrap()).unwrap();
            assert!(
                !kind.is_empty() && !kind.contains(['(', '.', ':', '/']),
                "{text}: {kind}"
            );
        }
        assert_eq!(kind("10.20.30.40".parse().unwrap()), Some("private"));
        assert_eq!(kind("8.8.8.8".parse().unwrap()), None);
    }

    #[test]
    fn globally_reachable_addresses_pass_up_to_the_edges_of_the_ranges() {
        for text in REACHABLE {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(forbidden(ip, &EgressRules::default()), None, "{text}");
        }
    }

    #[test]
    fn what_the_administrator_opened_passes_also_in_its_mapped_form_and_nothing_else_does() {
        let egress = EgressRules {
            open_cidrs: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            ..EgressRules::default()
        };
        for text in ["127.0.0.1", "::ffff:127.0.0.1", "::1"] {
            assert_eq!(forbidden(text.parse().unwrap(), &egress), None, "{text}");
        }
        for text in ["10.0.0.1", "::ffff:10.0.0.1", "::2", "64:ff9b::7f00:1", "2002:7f00:1::"] {
            assert!(forbidden(text.parse().unwrap(), &egress).is_some(), "{text}");
        }
    }

    #[test]
    fn what_the_administrator_closed_is_refused_to_urls_also_where_it_is_open_and_not_to_services() {
        let cidrs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let egress = EgressRules {
            open_cidrs: cidrs(&["10.0.0.0/8"]),
            closed_cidrs: cidrs(&["10.1.0.0/16", "2a05:d018:100::/56", "34.1.0.0/16"]),
            ..EgressRules::default()
        };
        for text in ["10.1.0.1", "::ffff:10.1.0.1", "2a05:d018:100::1", "34.1.2.3"] {
            assert_eq!(forbidden(text.parse().unwrap(), &egress), Some(CLOSED), "{text}");
            if !text.starts_with("::") {
                assert_eq!(forbidden_to_services(text.parse().unwrap(), &egress), None, "{text}");
            }
        }
        for text in ["10.2.0.1", "2a05:d018:200::1", "34.2.0.1"] {
            assert_eq!(forbidden(text.parse().unwrap(), &egress), None, "{text}");
        }
    }
}
