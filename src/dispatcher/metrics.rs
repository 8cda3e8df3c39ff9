//! Everything the dispatcher counts, in one registry: the rooms' own metrics, and how the store stands.
//!
//! Invariant: everything is registered before the first part starts, so that a scrape never sees half of it.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::delivery::metrics::Metrics as DeliveryMetrics;
use crate::engine::EngineMetrics;
use crate::engine::metrics::{Reason, STORE_FULL};
use crate::ingest::Metrics as IngestMetrics;
use crate::queue::Usage;
use crate::replay::metrics::Metrics as ReplayMetrics;
use crate::report::metrics::Metrics as ReportMetrics;
use crate::traces::Metrics as TraceMetrics;
use crate::watch::metrics::Metrics as WatchMetrics;

/// Handles into the process's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub ingest: Arc<IngestMetrics>,
    pub engine: EngineMetrics,
    pub delivery: DeliveryMetrics,
    pub watch: WatchMetrics,
    pub report: ReportMetrics,
    pub replay: ReplayMetrics,
    pub traces: TraceMetrics,
    pub store: StoreMetrics,
    /// 1 while the policy file cannot be used: the one before it counts, if there was one.
    pub policy_invalid: Gauge,
    /// 1 while the certificate of ingest cannot be used and the one before it is shown.
    pub certificate_invalid: Gauge,
}

/// How the store stands, as of a few seconds ago.
#[derive(Clone, Debug, Default)]
pub struct StoreMetrics {
    bytes: Gauge,
    limit: Gauge,
    volume_free: Gauge,
    pending: Gauge,
    dead: Gauge,
    dedupe_entries: Gauge,
    dedupe_window: Gauge,
    /// One of the engine's, which alone knows of other reasons.
    untold: Counter,
    dropped: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let ingest = Arc::<IngestMetrics>::default();
        ingest.register(registry);
        let policy_invalid = Gauge::default();
        registry.register(
            "tidings_policy_invalid",
            "1 while the policy file cannot be used: the one before it counts, if there was one",
            policy_invalid.clone(),
        );
        let engine = EngineMetrics::register(registry);
        let untold = engine.untold.get_or_create_owned(&Reason { reason: STORE_FULL });
        let certificate_invalid = Gauge::default();
        registry.register(
            "tidings_ingest_certificate_invalid",
            "1 while the certificate of ingest cannot be used and the one before it is shown",
            certificate_invalid.clone(),
        );
        Metrics {
            ingest,
            engine,
            delivery: DeliveryMetrics::register(registry),
            watch: WatchMetrics::new(registry),
            report: ReportMetrics::new(registry),
            replay: ReplayMetrics::register(registry),
            traces: TraceMetrics::register(registry),
            store: StoreMetrics {
                untold,
                ..StoreMetrics::register(registry)
            },
            policy_invalid,
            certificate_invalid,
        }
    }
}

impl StoreMetrics {
    fn register(registry: &mut Registry) -> StoreMetrics {
        let metrics = StoreMetrics::default();
        let registry = registry.sub_registry_with_prefix("tidings_store");
        for (name, help, gauge) in [
            ("bytes", "Bytes of the store's own files", &metrics.bytes),
            ("limit_bytes", "Bytes at which producers are refused", &metrics.limit),
            (
                "volume_free_bytes",
                "Free bytes of the volume and of the store's file",
                &metrics.volume_free,
            ),
            ("pending_messages", "Messages not settled", &metrics.pending),
            ("dead_letters", "Dead letters kept", &metrics.dead),
            (
                "dedupe_entries",
                "Events remembered against duplicates",
                &metrics.dedupe_entries,
            ),
            (
                "dedupe_window_seconds",
                "How far back duplicates are recognised",
                &metrics.dedupe_window,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "dead_letters_dropped",
            "Dead letters that went before their retention was over, because the store was nearly full",
            metrics.dropped.clone(),
        );
        metrics
    }

    /// Shows one look at the store.
    pub fn show(&self, usage: &Usage) {
        let shown = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.bytes.set(shown(usage.bytes));
        self.limit.set(shown(usage.limit));
        self.volume_free.set(shown(usage.volume_free));
        self.pending.set(shown(usage.pending));
        self.dead.set(shown(usage.dead));
        self.dedupe_entries.set(shown(usage.dedupe_entries));
        self.dedupe_window.set(shown(usage.dedupe_window.as_secs()));
        self.untold.inc_by(usage.untold.saturating_sub(self.untold.get()));
        self.dropped.inc_by(usage.dropped.saturating_sub(self.dropped.get()));
    }
}
