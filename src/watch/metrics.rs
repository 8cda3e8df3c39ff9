//! What the watches count. Labels: the four kinds, and three ways a read can fail.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::fetch::Reads;
use super::material::Trouble;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Handles into the process's registry.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    errors: Family<Kind, Counter>,
    reads: Family<Outcome, Counter>,
    loaded: Family<Kind, Gauge>,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        for result in ["Ok", "Missing", "Denied", "Away"] {
            metrics.reads.get_or_create_owned(&Outcome { result });
        }
        for kind in [
            "namespaces",
            "webhookendpoints",
            "eventsubscriptions",
            "eventtypes",
            "services",
        ] {
            metrics.errors.get_or_create_owned(&Kind { kind });
        }
        metrics.show(0, 0, 0);
        registry.register(
            "tidings_watch_errors",
            "Lists and watches that failed",
            metrics.errors.clone(),
        );
        registry.register(
            "tidings_reference_reads",
            "Secrets and ConfigMaps read, by result",
            metrics.reads.clone(),
        );
        registry.register(
            "tidings_loaded_objects",
            "Objects in use by this dispatcher",
            metrics.loaded.clone(),
        );
        metrics
    }

    /// The counter of one kind's watch errors.
    pub fn errors(&self, kind: &'static str) -> Counter {
        self.errors.get_or_create(&Kind { kind }).clone()
    }

    pub(super) fn count_reads(&self, reads: &Reads) {
        for (_, result) in reads {
            let result = match result {
                Ok(_) => "Ok",
                Err(Trouble::Missing) => "Missing",
                Err(Trouble::Denied) => "Denied",
                Err(Trouble::Away) => "Away",
            };
            self.reads.get_or_create(&Outcome { result }).inc();
        }
    }

    pub(super) fn show(&self, endpoints: usize, subscriptions: usize, types: usize) {
        for (kind, count) in [
            ("webhookendpoints", endpoints),
            ("eventsubscriptions", subscriptions),
            ("eventtypes", types),
        ] {
            self.loaded
                .get_or_create(&Kind { kind })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
