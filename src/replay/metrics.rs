//! What replays count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Handles into the process's registry.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) running: Gauge,
    pub(super) queued: Gauge,
    pub(super) sent: Counter,
    pub(super) watch_errors: Counter,
    pub(super) dropped_events: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Metrics {
        let metrics = Metrics::default();
        let Metrics {
            running,
            queued,
            sent,
            watch_errors,
            dropped_events,
        } = metrics.clone();
        let registry = registry.sub_registry_with_prefix("tidings_replays");
        registry.register("running", "Replays that run", running);
        registry.register("queued", "Replays that wait for others to end", queued);
        registry.register("messages_sent", "Messages that replays made pending again", sent);
        registry.register(
            "dropped_events",
            "Kubernetes Events of Replays left out",
            dropped_events,
        );
        registry.register("watch_errors", "Failed lists and watches of Replays", watch_errors);
        metrics
    }
}
