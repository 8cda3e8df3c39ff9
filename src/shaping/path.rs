//! Paths below an endpoint's own. Pure.
//!
//! A subscription's author, and through him whoever sends events, chooses the end of a path; the endpoint's owner has chosen
//! its beginning, and his credentials go with it. Invariant: what [`check`] lets pass stays below the endpoint's path on
//! every server that resolves paths as RFC 3986 does, also on one that decodes before it resolves, decodes twice, takes a
//! backslash for a slash or cuts off what follows a semicolon.

use percent_encoding::percent_decode;

/// The longest, as an endpoint's URL.
const LONGEST: usize = 2048;
/// How often a server may decode what it got.
const DECODINGS: usize = 2;

/// Whether `text` (a path, and perhaps a query) can be put behind an endpoint's path.
pub fn check(text: &str) -> Result<(), &'static str> {
    if text.len() > LONGEST {
        return Err("more than 2048 characters");
    }
    if !has_only_url_characters(text) {
        return Err("a character that a URL cannot hold: put what comes from the event through urlEncode()");
    }
    let (path, _) = split(text);
    let path = path.strip_prefix('/').unwrap_or(path);
    let whole = path.strip_suffix('/').unwrap_or(path);
    for segment in whole.split('/') {
        if segment.is_empty() && !path.is_empty() {
            return Err("an empty segment (//): give every part of the path something to hold");
        }
        if leads_elsewhere(segment) {
            return Err("a segment . or .., or an encoded control character: nothing of an event may be one");
        }
    }
    Ok(())
}

/// The endpoint's path (and query) with a checked one behind it.
pub fn under(base: &str, more: &str) -> String {
    let ((base, base_query), (more, more_query)) = (split(base), split(more));
    let mut whole = base.to_owned();
    let more = more.strip_prefix('/').unwrap_or(more);
    if !more.is_empty() {
        if !whole.ends_with('/') {
            whole.push('/');
        }
        whole.push_str(more);
    }
    let queries = [base_query, more_query].into_iter().flatten();
    for (mark, query) in ['?', '&'].into_iter().zip(queries.filter(|query| !query.is_empty())) {
        whole.push(mark);
        whole.push_str(query);
    }
    whole
}

/// Path and query.
pub fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    }
}

/// RFC 3986, 3.3 and 3.4.
fn has_only_url_characters(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => bytes
            .get(at + 1..at + 3)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        byte => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(byte),
    })
}

/// Whether some server would read a segment as one that leads out of where it stands.
fn leads_elsewhere(segment: &str) -> bool {
    let mut bytes = segment.as_bytes().to_vec();
    for _ in 0..=DECODINGS {
        let dots = |part: &[u8]| {
            let name = part.split(|byte| *byte == b';').next().unwrap_or_default();
            name == b"." || name == b".."
        };
        let mut parts = bytes.split(|byte| matches!(byte, b'/' | b'\\'));
        if parts.any(dots) || bytes.iter().any(u8::is_ascii_control) {
            return true;
        }
        bytes = percent_decode(&bytes).collect();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_goes_below_the_endpoints_and_a_query_behind_its_own() {
        for (base, more, whole) in [
            ("/", "leads/7", "/leads/7"),
            ("/data/v60", "/Lead/7", "/data/v60/Lead/7"),
            ("/data/", "Lead/", "/data/Lead/"),
            ("/data", "?dry=1", "/data?dry=1"),
            ("/data?code=k", "Lead?x=y", "/data/Lead?code=k&x=y"),
            ("/data?code=k", "", "/data?code=k"),
            ("/data?", "a%2Fb?", "/data/a%2Fb"),
        ] {
            assert_eq!(check(more), Ok(()), "{more}");
            assert_eq!(under(base, more), whole, "{base} {more}");
        }
    }

    #[test]
    fn what_leads_out_of_the_endpoints_path_is_refused_however_it_is_written() {
        for text in [
            "..",
            "../admin",
            "a/../../admin",
            "a/..",
            "./a",
            "%2e%2e/admin",
            ".%2E/admin",
            "%252e%252e/admin",
            "..%2Fadmin",
            "x%2f..%2f..%2fadmin",
            "..%5Cadmin",
            "%252e%252e%252fadmin",
            "..;/admin",
            "..;x=y/admin",
            "%2e%2e%3b/admin",
            "//evil.example.com/",
            "/a//b",
            "a//",
            "a\\..\\b",
            "https://evil.example.com\\@",
            "a b",
            "a#b",
            "a%zz",
            "a%2",
            "Zoë",
            "a\r\nHost: evil",
            "a%0d%0aHost:%20evil",
            "a%00",
            "@evil.example.com/..",
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
        assert!(check(&"a".repeat(LONGEST + 1)).is_err());
        for text in [
            "a..b",
            "...",
            "a%2Fb",
            "@evil.example.com",
            "a;b",
            "https:",
            "x?u=../..",
            "x?u=%0A//",
        ] {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
    }

    proptest! {
        /// The URL standard's own parser, as a server's: whatever passes stays under the endpoint's path and host.
        #[test]
        fn whatever_passes_stays_below(text in "[a-z./%2eEfF5cC;?\\\\@:#&=]{0,24}") {
            if check(&text).is_ok() {
                let base = url::Url::parse("https://receiver.example.com/hooks/secret?k=v").unwrap();
                let joined = base.join(&under("/hooks/secret?k=v", &text)).unwrap();
                prop_assert_eq!(joined.host_str(), Some("receiver.example.com"));
                prop_assert!(joined.path().starts_with("/hooks/secret"), "{}", joined);
                prop_assert!(joined.query().unwrap().starts_with("k=v"));
            }
        }
    }
}
