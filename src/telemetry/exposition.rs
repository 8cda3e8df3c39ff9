//! What `/metrics` is written in: OpenMetrics for who asks for it, as Prometheus does, else the older text format, which every
//! tool reads (`curl ... | promtool check metrics`).
//!
//! Invariant: both say the same; a counter's samples end in `_total` in both.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A way to write metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// The one that a request's `Accept` asks for.
    pub fn accepted(accept: Option<&str>) -> Format {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Text,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Everything in the registry.
    pub fn write(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut written = String::new();
        text::encode(&mut written, registry)?;
        Ok(match self {
            Format::OpenMetrics => written,
            Format::Text => plain(&written),
        })
    }
}

/// The older format: a counter is called as its samples are, and nothing marks the end.
fn plain(openmetrics: &str) -> String {
    let mut plain = String::with_capacity(openmetrics.len() + 1024);
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        // The type comes behind the help.
        let described = line.strip_prefix("# HELP ").zip(lines.peek().copied());
        let named = described.and_then(|(help, next)| {
            let ((name, help), (same, kind)) = (help.split_once(' ')?, next.strip_prefix("# TYPE ")?.split_once(' ')?);
            (name == same && kind == "counter").then_some((name, help))
        });
        if let Some((name, help)) = named {
            lines.next();
            plain.push_str(&format!("# HELP {name}_total {help}\n# TYPE {name}_total counter\n"));
        } else if !line.starts_with("# EOF") && !line.starts_with("# UNIT ") {
            plain.push_str(line);
            plain.push('\n');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn who_does_not_ask_for_openmetrics_gets_the_older_format() {
        let mut registry = Registry::default();
        registry.register("sent", "What was sent", Counter::<u64>::default());
        registry.register("waits", "What waits", Gauge::<i64>::default());
        let older = Format::accepted(Some("*/*")).write(&registry).expect("written");
        assert_eq!(
            older,
            "# HELP sent_total What was sent.\n# TYPE sent_total counter\nsent_total 0\n\
             # HELP waits What waits.\n# TYPE waits gauge\nwaits 0\n"
        );
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.7";
        let open = Format::accepted(Some(prometheus));
        assert_eq!(open, Format::OpenMetrics);
        let open = open.write(&registry).expect("written");
        assert!(
            open.starts_with("# HELP sent What was sent.\n") && open.ends_with("# EOF\n"),
            "{open}"
        );
        assert_eq!(Format::accepted(None), Format::Text);
    }
}
