//! Address ranges in their text form, `10.0.0.0/8`. Pure; knows nothing of what a range means.
//!
//! Invariant: a [`Cidr`] made by parsing has no bit set behind its prefix, and an IPv4-mapped range is kept as IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::address::{same_prefix_v4, same_prefix_v6};
use super::resolve::Cidr;

/// Bits in front of the IPv4 address in its IPv4-mapped form.
const MAPPED_PREFIX: u8 = 96;

impl Cidr {
    /// Whether the range holds `ip`; an IPv4-mapped address is looked up as the IPv4 address it carries.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => same_prefix_v4(ip, network, self.prefix),
            (IpAddr::V6(network), IpAddr::V6(ip)) => same_prefix_v6(ip, network, self.prefix),
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Cidr, CidrError> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let mut address: IpAddr = address.parse().map_err(|_| malformed())?;
        let mut prefix: u8 = prefix.parse().map_err(|_| malformed())?;
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
            && prefix >= MAPPED_PREFIX
        {
            address = IpAddr::V4(v4);
            prefix -= MAPPED_PREFIX;
        }
        let network = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            _ => return Err(malformed()),
        };
        if network != address {
            let meant = Cidr {
                address: network,
                prefix,
            };
            return Err(CidrError::HostBits(text.to_owned(), meant));
        }
        Ok(Cidr { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Why a text is no address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    #[error("{0:?} is no address range: write an address and a prefix length, as in 10.0.0.0/8 or fd00::/8")]
    Malformed(String),
    #[error("{0} has bits set behind its prefix: write {1}, or a longer prefix")]
    HostBits(String, Cidr),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_holds_its_addresses_to_both_edges() {
        let range = cidr("172.16.0.0/12");
        for (ip, inside) in [
            ("172.16.0.0", true),
            ("172.31.255.255", true),
            ("::ffff:172.16.0.1", true),
            ("172.32.0.0", false),
            ("172.15.255.255", false),
            ("::1", false),
        ] {
            assert_eq!(range.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        assert!(cidr("0.0.0.0/0").contains("255.1.2.3".parse().unwrap()));
        assert!(cidr("::/0").contains("fe80::1".parse().unwrap()));
        assert!(
            !cidr("::/0").contains("::ffff:1.2.3.4".parse().unwrap()),
            "mapped is IPv4"
        );
        assert!(cidr("::1/128").contains("::1".parse().unwrap()));
    }

    #[test]
    fn a_mapped_range_is_kept_as_ipv4() {
        assert_eq!(cidr("::ffff:10.0.0.0/104"), cidr("10.0.0.0/8"));
    }

    #[test]
    fn what_is_no_range_is_refused_and_says_what_to_write() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "a/8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
        ] {
            assert_eq!(
                text.parse::<Cidr>(),
                Err(CidrError::Malformed(text.to_owned())),
                "{text}"
            );
        }
        let error = "10.1.2.3/8".parse::<Cidr>().unwrap_err();
        assert!(error.to_string().contains("write 10.0.0.0/8"), "{error}");
    }
}
