//! What Tidings shows to Prometheus and Grafana, judged by the real Prometheus and promtool.

mod alerts;
mod chart;
mod dashboard;
mod metrics;

use std::collections::{BTreeMap, BTreeSet};

use super::chart::path;

/// A row of `docs/metrics.md`.
struct Documented {
    kind: String,
    labels: String,
}

/// Every metric that is documented, by name.
fn documented() -> BTreeMap<String, Documented> {
    let page = std::fs::read_to_string(path("docs/metrics.md")).unwrap();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let of = |rest: &str| {
        let (kind, rest) = rest.split_once(" | ")?;
        let labels = rest.split_once('|')?.0.trim().to_owned();
        let kind = kind.to_owned();
        Some(Documented { kind, labels })
    };
    rows.filter_map(|(name, rest)| Some((name.to_owned(), of(rest)?)))
        .collect()
}

/// The words of a text that may be names of metrics.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("tidings_") || word.starts_with("process_"));
    ours.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}
