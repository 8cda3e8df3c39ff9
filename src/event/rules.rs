//! What makes attributes of an event valid: the rules of CloudEvents 1.0.2, sections 3 and 4, with our bounds. Pure.
//!
//! Every check answers with a sentence that says what to send instead. It never repeats a value: values are the producer's,
//! and the sentence may be logged.

/// The longest `id`: room for two UUIDs, a hash or a URL, and still a small dedupe entry.
pub const MAX_ID: usize = 256;
/// The longest `source`, `subject` and `dataschema`: what fits a URL in practice.
pub const MAX_SOURCE: usize = 1024;
pub const MAX_SUBJECT: usize = 1024;
pub const MAX_DATASCHEMA: usize = 1024;
/// The longest `type`: the longest name of a Kubernetes object, since RBAC names types as resources.
pub const MAX_TYPE: usize = 253;
/// The longest `time`: RFC 3339 with nanoseconds and an offset is 35.
pub const MAX_TIME: usize = 48;
/// The longest `datacontenttype`, parameters included.
pub const MAX_DATACONTENTTYPE: usize = 255;
/// Extensions: their number, and the length of a name and of a value (CloudEvents asks for names of 20 at most, and
/// tracing's `tracestate` is the longest value in use, 512).
pub const MAX_EXTENSIONS: usize = 32;
pub const MAX_EXTENSION_NAME: usize = 64;
pub const MAX_EXTENSION_VALUE: usize = 2048;

/// Names that are attributes of the specification or of its bindings, so never an extension's.
pub const RESERVED: &[&str] = &[
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "data",
];

/// Why an attribute is refused: a sentence that begins with its name.
pub type Refused = String;

/// `id`: not empty, bounded, no control characters.
pub fn id(value: &str) -> Result<(), Refused> {
    text("id", value, MAX_ID)
}

/// `source`: a URI reference (RFC 3986), so percent-encoded where it holds anything else.
pub fn source(value: &str) -> Result<(), Refused> {
    text("source", value, MAX_SOURCE)?;
    uri_reference("source", value)
}

/// `type`: not empty, bounded, no control characters. RBAC compares it byte for byte, so `*` alone would read as a wildcard.
pub fn r#type(value: &str) -> Result<(), Refused> {
    text("type", value, MAX_TYPE)?;
    if value == "*" {
        return Err("type must name one type: `*` is a pattern".into());
    }
    Ok(())
}

/// `subject`: not empty, bounded, no control characters.
pub fn subject(value: &str) -> Result<(), Refused> {
    text("subject", value, MAX_SUBJECT)
}

/// `time`: RFC 3339 with date, time and offset, all within range.
pub fn time(value: &str) -> Result<(), Refused> {
    if value.len() <= MAX_TIME && rfc3339(value.as_bytes()).is_some() {
        Ok(())
    } else {
        Err("time must be an RFC 3339 timestamp like 2026-11-24T03:00:00Z".into())
    }
}

/// `dataschema`: an absolute URI.
pub fn dataschema(value: &str) -> Result<(), Refused> {
    text("dataschema", value, MAX_DATASCHEMA)?;
    uri_reference("dataschema", value)?;
    let scheme = value.split_once(':').map_or("", |(scheme, _)| scheme);
    let valid = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    if valid {
        Ok(())
    } else {
        Err("dataschema must be an absolute URI, with its scheme".into())
    }
}

/// `datacontenttype`: a media type with optional parameters (RFC 2045), printable ASCII.
pub fn datacontenttype(value: &str) -> Result<(), Refused> {
    if value.len() > MAX_DATACONTENTTYPE {
        return Err(format!("datacontenttype must have at most {MAX_DATACONTENTTYPE} bytes"));
    }
    if super::media::essence(value).is_none() || !value.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Err("datacontenttype must be a media type like application/json".into());
    }
    Ok(())
}

/// The name of an extension: lower-case letters and digits (CloudEvents 1.0.2, 3: naming conventions).
pub fn extension_name(name: &str) -> Result<(), Refused> {
    let valid = (1..=MAX_EXTENSION_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !valid {
        return Err(format!(
            "names of extension attributes must be 1 to {MAX_EXTENSION_NAME} lower-case letters and digits"
        ));
    }
    if RESERVED.contains(&name) {
        return Err(format!("{name} cannot be an extension attribute"));
    }
    Ok(())
}

/// The value of an extension in its string form.
pub fn extension_value(name: &str, value: &str) -> Result<(), Refused> {
    if value.len() > MAX_EXTENSION_VALUE {
        return Err(format!("{name} must have at most {MAX_EXTENSION_VALUE} bytes"));
    }
    characters(name, value)
}

fn text(name: &str, value: &str, most: usize) -> Result<(), Refused> {
    if value.is_empty() || value.len() > most {
        return Err(format!("{name} must have 1 to {most} bytes"));
    }
    characters(name, value)
}

/// CloudEvents' String excludes control characters and noncharacters.
fn characters(name: &str, value: &str) -> Result<(), Refused> {
    let printable = value.bytes().all(|b| matches!(b, b' '..=b'~'));
    if printable || !value.chars().any(refused_character) {
        Ok(())
    } else {
        Err(format!(
            "{name} must not hold control characters or Unicode noncharacters"
        ))
    }
}

fn refused_character(c: char) -> bool {
    let point = u32::from(c);
    c.is_control() || (0xFDD0..=0xFDEF).contains(&point) || point & 0xFFFE == 0xFFFE
}

/// The characters of RFC 3986, complete percent-encodings, at most one fragment.
fn uri_reference(name: &str, value: &str) -> Result<(), Refused> {
    let bytes = value.as_bytes();
    let mut fragments = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let valid = match byte {
            b'%' => bytes
                .get(i + 1..i + 3)
                .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
            b'#' => {
                fragments += 1;
                fragments == 1
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => true,
            other => b"-._~:/?[]@!$&'()*+,;=".contains(other),
        };
        if !valid {
            return Err(format!(
                "{name} must be a URI reference: percent-encode what RFC 3986 does not allow (byte {i})"
            ));
        }
    }
    Ok(())
}

/// RFC 3339, 5.6, with the day of the month and the leap second's hour left unchecked only where it says so.
fn rfc3339(text: &[u8]) -> Option<()> {
    let number = |at: usize, length: usize| -> Option<u32> {
        text.get(at..at + length)?.iter().try_fold(0, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0'))
        })
    };
    let is = |at: usize, one_of: &[u8]| -> Option<()> { one_of.contains(text.get(at)?).then_some(()) };
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    is(4, b"-")?;
    is(7, b"-")?;
    is(10, b"Tt")?;
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    is(13, b":")?;
    is(16, b":")?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut at = 19;
    if text.get(at) == Some(&b'.') {
        at += 1;
        let start = at;
        while text.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        if at == start {
            return None;
        }
    }
    match text.get(at)? {
        b'Z' | b'z' => at += 1,
        b'+' | b'-' => {
            is(at + 3, b":")?;
            if number(at + 1, 2)? > 23 || number(at + 4, 2)? > 59 {
                return None;
            }
            at += 6;
        }
        _ => return None,
    }
    (at == text.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        for good in [
            "2026-11-24T03:00:00Z",
            "2026-11-24t03:00:00.123456789z",
            "2024-02-29T23:59:60+05:30",
            "0000-01-01T00:00:00-00:00",
        ] {
            assert_eq!(time(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "2026-11-24",
            "2026-11-24 03:00:00Z",
            "2026-11-24T03:00:00",
            "2026-11-24T03:00:00.Z",
            "2026-02-29T03:00:00Z",
            "2026-13-01T03:00:00Z",
            "2026-11-24T24:00:00Z",
            "2026-11-24T03:00:00+0530",
            "2026-11-24T03:00:00Z ",
            "2026-11-24T03:00:00+24:00",
            "+026-11-24T03:00:00Z",
            "٢026-11-24T03:00:00Z",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_are_uri_references() {
        for good in [
            "/crm",
            "https://a.example/x?y=z#f",
            "urn:uuid:6e8bc430",
            "a%20b",
            "//[::1]/x",
            "crm",
        ] {
            assert_eq!(source(good), Ok(()), "{good}");
        }
        for bad in ["", "my crm", "a%2", "a%zz", "é", "a#b#c", "<a>", "a\\b", "a\nb"] {
            assert!(source(bad).is_err(), "{bad}");
        }
        assert!(source(&"a".repeat(MAX_SOURCE)).is_ok());
        assert!(source(&"a".repeat(MAX_SOURCE + 1)).is_err());
    }

    #[test]
    fn text_has_no_control_characters() {
        for bad in ["", "a\0", "a\u{7f}", "a\u{85}", "\u{fdd0}", "\u{1fffe}"] {
            assert!(id(bad).is_err() && subject(bad).is_err(), "{bad:?}");
        }
        assert!(id("größe 7").is_ok());
        assert!(r#type("*").is_err());
        assert!(r#type("com.example.*").is_ok(), "an odd name, but a name");
    }

    #[test]
    fn extension_names_are_lower_case_letters_and_digits() {
        for good in ["a", "traceparent", "x1"] {
            assert_eq!(extension_name(good), Ok(()), "{good}");
        }
        for bad in ["", "traceParent", "a-b", "a_b", "é", "data", "id", "specversion"] {
            assert!(extension_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dataschema_is_absolute() {
        assert!(dataschema("https://a.example/s").is_ok());
        assert!(dataschema("/s").is_err());
        assert!(dataschema("1s:x").is_err());
    }
}
