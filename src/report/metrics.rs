//! What the status writer counts. Labels: two kinds of write, three results; those of endpoints are the [fleet](super::fleet)'s.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::fleet::Fleet;

/// What can become of a write.
const WRITES: [(&str, &str); 5] = [
    ("Status", "Applied"),
    ("Status", "Outdated"),
    ("Status", "Failed"),
    ("Event", "Applied"),
    ("Event", "Failed"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    result: &'static str,
}

/// Handles into the process's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    writes: Family<Write, Counter>,
    /// Objects whose status is outdated.
    pub dirty: Gauge,
    /// Seconds from a transition to its being written.
    pub lag: Histogram,
    /// Events that the budget had no room for.
    pub dropped_events: Counter,
    /// How endpoints stand.
    pub fleet: Fleet,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Metrics {
        let metrics = Metrics {
            writes: Family::default(),
            dirty: Gauge::default(),
            lag: Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
            dropped_events: Counter::default(),
            fleet: Fleet::default(),
        };
        for (kind, result) in WRITES {
            metrics.writes.get_or_create_owned(&Write { kind, result });
        }
        registry.register_collector(Box::new(metrics.fleet.clone()));
        registry.register(
            "tidings_status_writes",
            "Writes to the API server by the status writer",
            metrics.writes.clone(),
        );
        registry.register(
            "tidings_status_dirty_objects",
            "Objects whose status is outdated",
            metrics.dirty.clone(),
        );
        registry.register(
            "tidings_status_transition_lag_seconds",
            "From a transition to its being written",
            metrics.lag.clone(),
        );
        registry.register(
            "tidings_status_dropped_events",
            "Kubernetes Events that the budget had no room for",
            metrics.dropped_events.clone(),
        );
        metrics
    }

    pub(super) fn wrote(&self, kind: &'static str, result: &'static str) {
        self.writes.get_or_create(&Write { kind, result }).inc();
    }
}
