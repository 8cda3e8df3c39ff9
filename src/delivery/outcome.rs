//! From what the network did to a row of the outcome table. Pure: errors and header values in, verdict words out.
//!
//! Invariant: nothing here depends on the text of an error, only on its kind.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::HeaderValue;

use super::{Fault, OurFault, Outcome};

/// The classes of an answer.
pub(super) const ANSWERED: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "NotSuccessful"];
/// The classes of an attempt without an answer.
pub(super) const UNANSWERED: [&str; 14] = [
    "Dns",
    "Refused",
    "Unreachable",
    "Tls",
    "Certificate",
    "Timeout",
    "Reset",
    "Protocol",
    "Auth",
    "Blocked",
    "NoFileDescriptors",
    "NoPorts",
    "DnsDown",
    "TokenUnavailable",
];

/// The metric label of an outcome: one of those above.
pub(super) fn class(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Status { code: 200..=299, .. } if !outcome.is_success() => "NotSuccessful",
        Outcome::Status { code: 200..=299, .. } => "2xx",
        Outcome::Status { code: 300..=399, .. } => "3xx",
        Outcome::Status { code: 400..=499, .. } => "4xx",
        Outcome::Status { code: 500..=599, .. } => "5xx",
        Outcome::Status { .. } => "1xx",
        Outcome::Fault(fault) => fault.reason(),
        Outcome::Blocked { .. } => "Blocked",
        Outcome::Ours(ours) => ours.reason(),
    }
}

impl Fault {
    /// One CamelCase word: condition, Event, metric label.
    pub fn reason(self) -> &'static str {
        match self {
            Fault::Dns => "Dns",
            Fault::Refused => "Refused",
            Fault::Unreachable => "Unreachable",
            Fault::Tls => "Tls",
            Fault::Certificate => "Certificate",
            Fault::Timeout => "Timeout",
            Fault::Reset => "Reset",
            Fault::Protocol => "Protocol",
            Fault::Auth => "Auth",
        }
    }
}

impl OurFault {
    /// One CamelCase word: condition, Event, metric label.
    pub fn reason(self) -> &'static str {
        match self {
            OurFault::NoFileDescriptors => "NoFileDescriptors",
            OurFault::NoPorts => "NoPorts",
            OurFault::DnsDown => "DnsDown",
            OurFault::Token(_) => "TokenUnavailable",
        }
    }
}

/// An error of a socket, before or during TLS.
pub(super) fn of_io(error: &io::Error) -> Outcome {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Outcome::Fault(of_tls(tls));
    }
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => return Outcome::Ours(OurFault::NoFileDescriptors),
        Some(libc::EADDRNOTAVAIL) => return Outcome::Ours(OurFault::NoPorts),
        _ => {}
    }
    Outcome::Fault(match error.kind() {
        ErrorKind::ConnectionRefused => Fault::Refused,
        ErrorKind::TimedOut => Fault::Timeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => Fault::Unreachable,
        // A firewall that rejects; the network's word, not ours.
        ErrorKind::PermissionDenied | ErrorKind::InvalidInput => Fault::Unreachable,
        _ => Fault::Reset,
    })
}

/// An error of connecting to `address`. On a machine without IPv6, dialling such an address says that none is available
/// to dial from: no route, not a lack of ports.
pub(super) fn of_connect(error: &io::Error, address: IpAddr) -> Outcome {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) if address.is_ipv6() => Outcome::Fault(Fault::Unreachable),
        _ => of_io(error),
    }
}

/// An error of the TLS handshake: a connection that ends in it speaks no TLS, or not with us.
pub(super) fn of_handshake(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::UnexpectedEof => Outcome::Fault(Fault::Tls),
        _ => of_io(error),
    }
}

fn of_tls(error: &rustls::Error) -> Fault {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Fault::Certificate,
        _ => Fault::Tls,
    }
}

/// An error of an HTTP exchange on an established connection.
pub(super) fn of_http(error: &hyper::Error) -> Outcome {
    if error.is_parse() || error.is_parse_too_large() {
        return Outcome::Fault(Fault::Protocol);
    }
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return of_io(io);
        }
        source = inner.source();
    }
    Outcome::Fault(Fault::Reset)
}

/// `Retry-After` (RFC 9110, 10.2.3): digits or an HTTP-date, saturating; anything else is ignored.
pub(super) fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::TokenTrouble;

    #[test]
    fn retry_after_is_digits_or_a_date_and_nothing_else() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 12:00:00 GMT").expect("a date");
        let table = [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("1e30", None),
            ("inf", None),
            ("NaN", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Tue, 24 Nov 2026 12:00:30 GMT", Some(30)),
            ("Tue, 24 Nov 2026 11:00:00 GMT", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ];
        for (text, seconds) in table {
            let value = HeaderValue::from_str(text).expect("a header value");
            assert_eq!(retry_after(&value, now), seconds.map(Duration::from_secs), "{text:?}");
        }
        let far = HeaderValue::from_static("Fri, 31 Dec 9999 23:59:59 GMT");
        assert!(retry_after(&far, now).expect("a date") > Duration::from_secs(200_000_000_000));
        let odd = HeaderValue::from_bytes(b"\xff12").expect("obs-text");
        assert_eq!(retry_after(&odd, now), None);
    }

    #[test]
    fn each_outcome_is_of_a_class_that_is_counted_from_the_start() {
        let faults = [
            Fault::Dns,
            Fault::Refused,
            Fault::Unreachable,
            Fault::Tls,
            Fault::Certificate,
            Fault::Timeout,
            Fault::Reset,
            Fault::Protocol,
            Fault::Auth,
        ];
        let ours = [
            OurFault::NoFileDescriptors,
            OurFault::NoPorts,
            OurFault::DnsDown,
            OurFault::Token(TokenTrouble::Status(503)),
        ];
        let words: Vec<&str> = faults.map(Fault::reason).into_iter().chain(["Blocked"]).collect();
        assert_eq!([&words[..], &ours.map(OurFault::reason)].concat(), UNANSWERED);
    }

    #[test]
    fn our_own_shortages_are_not_the_receivers_fault() {
        let of = |code| of_io(&io::Error::from_raw_os_error(code));
        assert_eq!(of(libc::EMFILE), Outcome::Ours(OurFault::NoFileDescriptors));
        assert_eq!(of(libc::ENFILE), Outcome::Ours(OurFault::NoFileDescriptors));
        assert_eq!(of(libc::EADDRNOTAVAIL), Outcome::Ours(OurFault::NoPorts));
        assert_eq!(of(libc::ECONNREFUSED), Outcome::Fault(Fault::Refused));
        assert_eq!(of(libc::EHOSTUNREACH), Outcome::Fault(Fault::Unreachable));
        assert_eq!(of(libc::ENETUNREACH), Outcome::Fault(Fault::Unreachable));
        assert_eq!(of(libc::ETIMEDOUT), Outcome::Fault(Fault::Timeout));
        assert_eq!(of(libc::ECONNRESET), Outcome::Fault(Fault::Reset));
    }
}
