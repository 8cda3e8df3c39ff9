//! What ingest counts: bounded labels only (status codes from a list), no label that a producer controls.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The codes ingest answers with; any other counts as 500.
const CODES: [u16; 14] = [200, 202, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503];

/// The quotas for which a request is refused.
const QUOTAS: [&str; 3] = ["pendingMessages", "pendingBytes", "eventsPerSecond"];

/// From a group commit on a fast disk to the longest wait for the API server.
const ACK_SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Counters of one ingest.
#[derive(Debug)]
pub struct Metrics {
    /// By position in [`CODES`]: no hashing per request.
    requests: [Counter<u64, AtomicU64>; CODES.len()],
    by_code: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>>,
    pub(super) accepted: Counter,
    pub(super) duplicates: Counter,
    pub(super) unmatched: Counter,
    pub(super) matched: Counter,
    pub(super) unkeyed: Counter,
    pub(super) filter_errors: Counter,
    pub(super) bytes: Counter,
    over_quota: Family<Vec<(&'static str, &'static str)>, Counter>,
    pub(super) auth_hits: Counter,
    pub(super) auth_misses: Counter,
    ack: Histogram,
    looks: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>>,
    pulls: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>>,
    pub(super) polls_waiting: Gauge,
    pub(super) given: Counter,
    acknowledgements: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>>,
    pub(super) messages_acknowledged: Counter,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let by_code: Family<Vec<(&'static str, String)>, Counter<u64, AtomicU64>> = Family::default();
        let requests = CODES.map(|code| by_code.get_or_create_owned(&vec![("code", code.to_string())]));
        Metrics {
            requests,
            by_code,
            accepted: Counter::default(),
            duplicates: Counter::default(),
            unmatched: Counter::default(),
            matched: Counter::default(),
            unkeyed: Counter::default(),
            filter_errors: Counter::default(),
            bytes: Counter::default(),
            over_quota: Family::default(),
            auth_hits: Counter::default(),
            auth_misses: Counter::default(),
            ack: Histogram::new(ACK_SECONDS),
            looks: Family::default(),
            pulls: Family::default(),
            polls_waiting: Gauge::default(),
            given: Counter::default(),
            acknowledgements: Family::default(),
            messages_acknowledged: Counter::default(),
        }
    }
}

impl Metrics {
    /// Puts every metric into a process's registry.
    pub fn register(&self, registry: &mut Registry) {
        for family in [&self.looks, &self.pulls, &self.acknowledgements] {
            family.get_or_create_owned(&vec![("code", "200".to_owned())]);
        }
        for quota in QUOTAS {
            self.over_quota.get_or_create_owned(&vec![("quota", quota)]);
        }
        let registry = registry.sub_registry_with_prefix("tidings_ingest");
        registry.register("requests", "Requests by status code", self.by_code.clone());
        registry.register("events_accepted", "Events stored, durably", self.accepted.clone());
        registry.register(
            "events_duplicate",
            "Events that were stored before",
            self.duplicates.clone(),
        );
        registry.register(
            "events_unmatched",
            "Stored events that no subscription wanted",
            self.unmatched.clone(),
        );
        registry.register("messages", "Messages made of stored events", self.matched.clone());
        registry.register(
            "messages_without_key",
            "Messages for which an endpoint's ordering.key failed: they share one key",
            self.unkeyed.clone(),
        );
        registry.register(
            "filter_errors",
            "Evaluations of a subscription's filter that failed: the event did not match",
            self.filter_errors.clone(),
        );
        registry.register("body_bytes", "Bytes of request bodies read", self.bytes.clone());
        registry.register(
            "over_quota",
            "Requests refused for a quota of their namespace, by quota",
            self.over_quota.clone(),
        );
        registry.register(
            "auth_cache_hits",
            "Requests whose token was known",
            self.auth_hits.clone(),
        );
        registry.register(
            "auth_cache_misses",
            "Requests whose token was asked about",
            self.auth_misses.clone(),
        );
        registry.register(
            "looks",
            "Requests for messages and attempts, by status code",
            self.looks.clone(),
        );
        registry.register(
            "pulls",
            "Requests for messages that are pulled, by status code",
            self.pulls.clone(),
        );
        registry.register(
            "polls_waiting",
            "Requests that wait for messages to pull",
            self.polls_waiting.clone(),
        );
        registry.register(
            "messages_pulled",
            "Messages given to consumers that pull, again ones included",
            self.given.clone(),
        );
        registry.register(
            "acknowledgements",
            "Acknowledgements of consumers that pull, by status code",
            self.acknowledgements.clone(),
        );
        registry.register(
            "messages_acknowledged",
            "Messages that consumers acknowledged, each once",
            self.messages_acknowledged.clone(),
        );
        registry.register(
            "ack_seconds",
            "From a request's head to its 200 or 202",
            self.ack.clone(),
        );
    }

    /// One answered request for messages that are pulled.
    pub(super) fn pulled(&self, code: StatusCode) {
        self.pulls
            .get_or_create(&vec![("code", code.as_str().to_owned())])
            .inc();
    }

    /// One answered acknowledgement.
    pub(super) fn acknowledged(&self, code: StatusCode) {
        self.acknowledgements
            .get_or_create(&vec![("code", code.as_str().to_owned())])
            .inc();
    }

    /// One answered GET.
    pub(super) fn looked(&self, code: StatusCode) {
        self.looks
            .get_or_create(&vec![("code", code.as_str().to_owned())])
            .inc();
    }

    /// One request refused for a quota.
    pub(super) fn over_quota(&self, quota: &'static str) {
        self.over_quota.get_or_create_owned(&vec![("quota", quota)]).inc();
    }

    /// One answered request.
    pub(super) fn answered(&self, code: StatusCode, took: Duration) {
        let known = CODES.iter().position(|known| *known == code.as_u16());
        let other = CODES.iter().position(|known| *known == 500).unwrap_or(0);
        self.requests[known.unwrap_or(other)].inc();
        if code.is_success() {
            self.ack.observe(took.as_secs_f64());
        }
    }
}
