//! Tracing records to standard error, as text or JSON lines.
//!
//! Invariant: standard output stays free for what a command prints, and no filter lets a Secret out: kube's client writes
//! answers of the API server whole, at levels from warning to trace, so its records are never taken; what it fails at comes
//! back as an error, and is told by whoever asked.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object a line, for a collector.
    Json,
}

/// What is written when neither the flag nor the environment says otherwise.
pub const DEFAULT_FILTER: &str = "info,kube=warn,hyper=warn,tower=warn,hickory_resolver=error,hickory_proto=error";

/// Where kube's client writes what the API server answered.
const ANSWERS: &str = "kube_client::client";

/// Installs the process's subscriber: `filter` in the syntax of `RUST_LOG`. A second call changes nothing.
pub fn init(format: LogFormat, filter: &str) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let no_answers = filter_fn(|record| !record.target().starts_with(ANSWERS));
    let registry = tracing_subscriber::registry().with(filter).with(no_answers);
    let installed = match format {
        LogFormat::Text => registry
            .with(layer.with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
        LogFormat::Json => registry
            .with(layer.json().flatten_event(true).with_current_span(false))
            .try_init(),
    };
    if installed.is_err() {
        tracing::debug!("a tracing subscriber was installed before");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_filter_parses() {
        EnvFilter::builder().parse(DEFAULT_FILTER).expect("a filter");
    }
}
