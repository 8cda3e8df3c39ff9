//! What the engine counts. Owns the metrics and their closed sets of labels; knows nothing of endpoints.
//!
//! Invariant: no label value comes from an event, a receiver or an object's name; nothing here is per endpoint. What can be
//! counted is there from the start, with zero: the first of something is seen as a rise.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::queue::{Backlog, DeadReason};
use crate::schedule::decide::REASONS;

/// Why nobody is told of a dead letter, as the store counts it.
pub const STORE_FULL: &str = "StoreFull";

/// One word of a closed set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

/// The engine's metrics.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    pub delivered: Counter<u64, AtomicU64>,
    pub failed: Family<Reason, Counter>,
    pub dead_letters: Family<Reason, Counter>,
    pub told: Counter,
    pub untold: Family<Reason, Counter>,
    pub breaker_opened: Counter<u64, AtomicU64>,
    pub in_flight: Gauge,
    pub slow_lane: Gauge,
    pub window: Gauge,
    pub rate_limited: Gauge,
    pub unrecorded: Gauge,
    pub held: Gauge,
    pub blocked_keys: Gauge,
    /// Due until started.
    pub start_lag: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        EngineMetrics {
            delivered: Counter::default(),
            failed: Family::default(),
            dead_letters: Family::default(),
            told: Counter::default(),
            untold: Family::default(),
            breaker_opened: Counter::default(),
            in_flight: Gauge::default(),
            slow_lane: Gauge::default(),
            window: Gauge::default(),
            rate_limited: Gauge::default(),
            unrecorded: Gauge::default(),
            held: Gauge::default(),
            blocked_keys: Gauge::default(),
            start_lag: Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0]),
        }
    }
}

impl EngineMetrics {
    /// What is held in order, by a count of the store.
    pub fn show_order(&self, backlogs: &[Backlog]) {
        let sum =
            |count: fn(&Backlog) -> u64| i64::try_from(backlogs.iter().map(count).sum::<u64>()).unwrap_or(i64::MAX);
        self.held.set(sum(|backlog| backlog.held));
        self.blocked_keys.set(sum(|backlog| backlog.blocking));
    }

    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> EngineMetrics {
        let metrics = EngineMetrics::default();
        for reason in REASONS.into_iter().filter(|reason| *reason != "Delivered") {
            metrics.failed.get_or_create_owned(&Reason { reason });
        }
        for reason in DeadReason::ALL {
            let reason = reason.reason();
            metrics.dead_letters.get_or_create_owned(&Reason { reason });
        }
        for reason in [STORE_FULL, DeadReason::QueueFull.reason()] {
            metrics.untold.get_or_create_owned(&Reason { reason });
        }
        registry.register(
            "tidings_deliveries",
            "Messages answered with a 2xx, or acknowledged by the consumer that pulled them",
            metrics.delivered.clone(),
        );
        registry.register(
            "tidings_attempts_failed",
            "Attempts without a 2xx, and attempts that could not be made, by reason",
            metrics.failed.clone(),
        );
        registry.register(
            "tidings_dead_letters",
            "Messages that became dead letters, by reason",
            metrics.dead_letters.clone(),
        );
        registry.register(
            "tidings_dead_letters_told",
            "Dead letters of which a subscription's deadLetter endpoint is told",
            metrics.told.clone(),
        );
        registry.register(
            "tidings_dead_letters_untold",
            "Dead letters of which a subscription's deadLetter endpoint is not told, by reason",
            metrics.untold.clone(),
        );
        registry.register(
            "tidings_breakers_opened",
            "Circuit breakers that opened",
            metrics.breaker_opened.clone(),
        );
        registry.register(
            "tidings_attempts_in_flight",
            "Attempts under way, both lanes",
            metrics.in_flight.clone(),
        );
        registry.register(
            "tidings_slow_lane",
            "Attempts under way in the slow lane",
            metrics.slow_lane.clone(),
        );
        registry.register(
            "tidings_window_messages",
            "Messages held in memory to be started",
            metrics.window.clone(),
        );
        registry.register(
            "tidings_endpoints_rate_limited",
            "Endpoints with something to send that wait for their rate limit",
            metrics.rate_limited.clone(),
        );
        registry.register(
            "tidings_outcomes_unrecorded",
            "Outcomes not yet durable",
            metrics.unrecorded.clone(),
        );
        registry.register(
            "tidings_messages_held",
            "Messages that wait for one before them with the same key of ordering, as of the last count",
            metrics.held.clone(),
        );
        registry.register(
            "tidings_keys_blocked",
            "Keys of ordering whose messages wait behind a dead letter, as of the last count",
            metrics.blocked_keys.clone(),
        );
        registry.register(
            "tidings_start_lag_seconds",
            "From a message's due time to the start of its attempt",
            metrics.start_lag.clone(),
        );
        metrics
    }
}
