//! Media types, as far as an event needs them: what kind of data they announce. Pure.

/// The kind of data that a media type announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `application/json`, `text/json` and every `+json`.
    Json,
    /// Every other `text/`, and XML.
    Text,
    /// Anything else.
    Binary,
}

/// `type/subtype` of a media type, without its parameters; none where it is not one.
pub fn essence(value: &str) -> Option<&str> {
    let essence = value.split(';').next().unwrap_or_default().trim();
    let (kind, subtype) = essence.split_once('/')?;
    (token(kind) && token(subtype)).then_some(essence)
}

/// The kind of data of a media type; without one it is JSON (CloudEvents 1.0.2, JSON format, 3.1).
pub fn kind(datacontenttype: Option<&str>) -> Kind {
    let Some(essence) = datacontenttype.map(|value| essence(value).unwrap_or_default()) else {
        return Kind::Json;
    };
    let (kind, subtype) = essence.split_once('/').unwrap_or_default();
    if subtype.eq_ignore_ascii_case("json") || ends_with(subtype, "+json") {
        Kind::Json
    } else if kind.eq_ignore_ascii_case("text") || subtype.eq_ignore_ascii_case("xml") || ends_with(subtype, "+xml") {
        Kind::Text
    } else {
        Kind::Binary
    }
}

fn ends_with(text: &str, suffix: &str) -> bool {
    text.len()
        .checked_sub(suffix.len())
        .and_then(|at| text.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

/// A token of RFC 9110, 5.6.2.
fn token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_follows_the_media_type() {
        for (media, expected) in [
            ("application/json", Kind::Json),
            ("Application/JSON; charset=utf-8", Kind::Json),
            ("application/vnd.lead+json", Kind::Json),
            ("text/json", Kind::Json),
            ("text/plain;charset=utf-8", Kind::Text),
            ("application/xml", Kind::Text),
            ("image/svg+xml", Kind::Text),
            ("application/octet-stream", Kind::Binary),
            ("application/jsonl", Kind::Binary),
        ] {
            assert_eq!(kind(Some(media)), expected, "{media}");
        }
        assert_eq!(kind(None), Kind::Json);
        for bad in ["", "json", "a/b/c", "/json", "text/", "text /plain", "te xt/plain"] {
            assert_eq!(essence(bad), None, "{bad}");
        }
    }
}
