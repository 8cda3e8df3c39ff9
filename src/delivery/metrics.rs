//! Delivery's metrics. Labels are the outcome classes and nothing of a receiver or a tenant: their number is fixed.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::outcome::{ANSWERED, UNANSWERED, class};
use super::{Judged, Outcome};
use crate::api::conditions::reasons::HANDSHAKE_REFUSED;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Class {
    outcome: &'static str,
}

/// Counters of attempts and connections; clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    attempts: Family<Class, Counter>,
    duration: Histogram,
    tokens: Family<Class, Counter>,
    handshakes: Family<Class, Counter>,
    pub(super) opened: Counter,
    pub(super) resumed: Counter,
    pub(super) reused: Counter,
    pub(super) resent: Counter,
    pub(super) idle: Gauge,
    pub(super) sockets: Gauge,
}

/// Upper bounds in seconds, from a receiver next door to the longest timeout.
const DURATIONS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 60.0];

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            attempts: Family::default(),
            duration: Histogram::new(DURATIONS),
            tokens: Family::default(),
            handshakes: Family::default(),
            opened: Counter::default(),
            resumed: Counter::default(),
            reused: Counter::default(),
            resent: Counter::default(),
            idle: Gauge::default(),
            sockets: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers everything under `tidings_delivery_...`.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        // What can be counted is there from the start: the first of something is seen as a rise.
        let families = [
            (&metrics.attempts, &ANSWERED[..]),
            (&metrics.tokens, &["Given"]),
            (&metrics.handshakes, &["Granted", HANDSHAKE_REFUSED]),
        ];
        for (family, answered) in families {
            for outcome in answered.iter().chain(&UNANSWERED) {
                family.get_or_create_owned(&Class { outcome });
            }
        }
        let registry = registry.sub_registry_with_prefix("tidings_delivery");
        registry.register("attempts", "Requests to receivers by outcome", metrics.attempts.clone());
        let help = "Seconds from the start of an attempt to the complete head of its answer, or its failure";
        registry.register("attempt_duration_seconds", help, metrics.duration.clone());
        let help = "Requests to token servers by outcome";
        registry.register("token_requests", help, metrics.tokens.clone());
        let help = "Questions whether a receiver wants messages, by outcome";
        registry.register("handshakes", help, metrics.handshakes.clone());
        registry.register(
            "connections_opened",
            "Connections dialled to receivers",
            metrics.opened.clone(),
        );
        let help = "Dialled connections whose TLS handshake resumed a session";
        registry.register("connections_resumed", help, metrics.resumed.clone());
        registry.register(
            "connections_reused",
            "Requests sent on a kept connection",
            metrics.reused.clone(),
        );
        let help = "Requests sent again at once because a kept connection had been closed";
        registry.register("requests_resent", help, metrics.resent.clone());
        registry.register(
            "connections_idle",
            "Kept connections without a request",
            metrics.idle.clone(),
        );
        registry.register("connections_open", "Connections to receivers", metrics.sockets.clone());
        metrics
    }

    pub(super) fn token(&self, failure: Option<&Outcome>) {
        let outcome = failure.map_or("Given", class);
        self.tokens.get_or_create(&Class { outcome }).inc();
    }

    pub(super) fn handshake(&self, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Status {
                judged: Judged::Asked(Ok(_)),
                ..
            } => "Granted",
            // Not `Refused`, which is a connection that was.
            Outcome::Status { .. } => HANDSHAKE_REFUSED,
            _ => class(outcome),
        };
        self.handshakes.get_or_create(&Class { outcome }).inc();
    }

    pub(super) fn attempt(&self, outcome: &Outcome, took: Duration) {
        self.attempts
            .get_or_create(&Class {
                outcome: class(outcome),
            })
            .inc();
        self.duration.observe(took.as_secs_f64());
    }
}
