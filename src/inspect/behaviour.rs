//! Receivers that the inspector can play, chosen by path and query. Pure.
//!
//! | request | answer |
//! |---|---|
//! | any path | 200 |
//! | `/status/503` | that status, 200 to 599 |
//! | `/fail/2` | 500 to the first two requests with a `webhook-id`, then 200 |
//! | `?status=429` | with `/fail/N`: the status of its failures |
//! | `?ms=1500` | any of them after that time, at most [`MAX_DELAY`] |
//! | `?retry-after=30` | this header with every status but 2xx |
//! | `OPTIONS` with `WebHook-Request-Origin` | the handshake of CloudEvents: a 2xx agrees to whoever asks |
//! | `?allowed-rate=60` | so many requests a minute; else as many as are asked for, or any number |

use std::time::Duration;

/// Twice the longest timeout an endpoint can have.
pub const MAX_DELAY: Duration = Duration::from_secs(120);

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behaviour {
    pub status: u16,
    pub delay: Duration,
    pub retry_after: Option<String>,
    /// The answer to a handshake.
    pub allowed_rate: Option<String>,
}

/// Reads a request's path and query; `earlier` requests had the same `webhook-id`.
pub fn of(path: &str, query: &str, earlier: u32) -> Behaviour {
    let parameter = |name: &str| {
        let mut found = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.into_owned())
    };
    let as_status = |text: &str| text.parse().ok().filter(|code| (200..=599).contains(code));
    let mut segments = path.trim_start_matches('/').split('/');
    let status = match (segments.next(), segments.next()) {
        (Some("status"), Some(code)) => as_status(code).unwrap_or(200),
        (Some("fail"), Some(times)) if earlier < times.parse().unwrap_or(0) => {
            parameter("status").as_deref().and_then(as_status).unwrap_or(500)
        }
        _ => 200,
    };
    let delay = parameter("ms")
        .and_then(|text| text.parse().ok())
        .map_or(Duration::ZERO, Duration::from_millis);
    let retry_after = parameter("retry-after").filter(|_| !(200..=299).contains(&status));
    Behaviour {
        status,
        delay: delay.min(MAX_DELAY),
        retry_after,
        allowed_rate: parameter("allowed-rate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_query_choose_the_receiver() {
        let table = [
            ("/", "", 0, 200, 0),
            ("/crm/hooks", "team=a", 0, 200, 0),
            ("/status/503", "", 7, 503, 0),
            ("/status/204", "ms=20", 0, 204, 20),
            ("/status/99", "", 0, 200, 0),
            ("/status/600", "", 0, 200, 0),
            ("/status/x", "", 0, 200, 0),
            ("/fail/2", "", 0, 500, 0),
            ("/fail/2", "", 1, 500, 0),
            ("/fail/2", "", 2, 200, 0),
            ("/fail/1", "status=429&ms=5", 0, 429, 5),
            ("/fail/x", "", 0, 200, 0),
            ("/slow", "ms=1500", 0, 200, 1500),
            ("/slow", "ms=99999999999", 0, 200, 120_000),
            ("/slow", "ms=-1", 0, 200, 0),
        ];
        for (path, query, earlier, status, ms) in table {
            let found = of(path, query, earlier);
            let expected = (status, Duration::from_millis(ms));
            assert_eq!((found.status, found.delay), expected, "{path}?{query} after {earlier}");
        }
        assert_eq!(
            of("/status/429", "retry-after=30", 0).retry_after.as_deref(),
            Some("30")
        );
        assert_eq!(of("/", "retry-after=30", 0).retry_after, None);
        assert_eq!(of("/", "allowed-rate=60", 0).allowed_rate.as_deref(), Some("60"));
    }
}
