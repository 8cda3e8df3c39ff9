//! The controller's metrics: bounded labels only, no names of objects.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What was reconciled, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reconcile {
    pub kind: &'static str,
    pub result: &'static str,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Write {
    pub what: &'static str,
}

/// The controller's counters and gauges; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub reconciles: Family<Reconcile, Counter>,
    pub writes: Family<Write, Counter>,
    pub leader: Gauge,
    pub live_dispatchers: Gauge,
    pub policy_invalid: Gauge,
}

impl Metrics {
    /// This replica leads no longer: what only a leader knows is not said by it any more. The policy file every replica
    /// reads.
    pub fn stand_by(&self) {
        self.leader.set(0);
        self.live_dispatchers.set(0);
    }

    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        for kind in ["endpoint", "subscription", "eventtype", "replay", "grants"] {
            for result in ["ok", "outdated", "error"] {
                self.reconciles.get_or_create_owned(&Reconcile { kind, result });
            }
        }
        for what in ["secret", "grant", "status", "event", "delete"] {
            self.writes.get_or_create_owned(&Write { what });
        }
        let registry = registry.sub_registry_with_prefix("tidings_controller");
        registry.register("reconciles", "Reconciles by kind and result", self.reconciles.clone());
        registry.register(
            "writes",
            "Writes to the API server by what was written",
            self.writes.clone(),
        );
        registry.register("leader", "1 while this replica leads", self.leader.clone());
        registry.register(
            "live_dispatchers",
            "Dispatcher replicas whose Lease is alive, as the leader sees it",
            self.live_dispatchers.clone(),
        );
        registry.register(
            "policy_invalid",
            "1 while the policy file cannot be used: the one before it counts, if there was one",
            self.policy_invalid.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_leads_no_longer_says_nothing_that_only_a_leader_knows() {
        let metrics = Metrics::default();
        for gauge in [&metrics.leader, &metrics.live_dispatchers, &metrics.policy_invalid] {
            gauge.set(1);
        }
        metrics.stand_by();
        assert_eq!((metrics.leader.get(), metrics.live_dispatchers.get()), (0, 0));
        assert_eq!(metrics.policy_invalid.get(), 1, "the file is no better for it");
    }
}
