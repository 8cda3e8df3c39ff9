//! How all endpoints stand, as metrics: how many for each reason of `Delivering`, and of those in trouble which, since when,
//! why, how much waits and when it is tried again. Of subscriptions, how many are in trouble.
//!
//! Fed with the board's views; knows nothing of attempts or of what is written to status. Invariant: however many endpoints
//! there are and whatever happens to them, at most [`SHOWN`] are named at a time, with labels from closed sets beside their
//! name; one that is well is not named.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::board::{Delivering, EndpointView, SubscriptionView, Unconsumed};
use crate::api::WebhookEndpoint;
use crate::api::conditions::{DELIVERING, FALSE, FILTER_FAILING, UNCONSUMED, reasons};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};

/// So many are named: their series are then about as many as all others of the dispatcher.
pub const SHOWN: usize = 100;
/// An endpoint that delivers is in trouble, too, while something waits for this long.
const BEHIND: Duration = Duration::from_secs(300);

/// How endpoints stand; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    endpoints: Arc<Mutex<HashMap<EndpointId, Standing>>>,
    /// Those in trouble.
    subscriptions: Arc<Mutex<HashMap<SubscriptionId, Neglect>>>,
}

/// What is wrong with a subscription.
#[derive(Clone, Copy, Debug)]
struct Neglect {
    unconsumed: Option<Unconsumed>,
    filter_fails: bool,
}

/// One endpoint.
#[derive(Debug)]
struct Standing {
    delivering: Delivering,
    trouble: Option<Box<Trouble>>,
}

/// What is to be known of an endpoint that does not deliver, or not fast enough.
#[derive(Clone, Debug, PartialEq)]
struct Trouble {
    namespace: String,
    name: String,
    delivering: Delivering,
    /// The last failure's word, where it is what keeps the endpoint from delivering.
    last_failure: &'static str,
    last_status: Option<u16>,
    whose: Whose,
    since: UnixMillis,
    pending: u64,
    oldest: Option<UnixMillis>,
    next_try: Option<UnixMillis>,
    dead: u64,
    blocked_keys: u64,
}

/// Who can end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Who runs the receiver, or its token server.
    Receiver,
    /// Who owns the manifest: its URL, its Secrets, its limits.
    Owner,
    /// It delivers, and what waits gets older: its rate, a slow receiver, or a dispatcher that does not keep up.
    Unclear,
}

impl Whose {
    fn word(self) -> &'static str {
        match self {
            Whose::Receiver => "receiver",
            Whose::Owner => "owner",
            Whose::Unclear => "unclear",
        }
    }

    fn of(view: &EndpointView, last_failure: &str) -> Whose {
        match view.delivering {
            Delivering::Suspended
            | Delivering::SecretUnavailable
            | Delivering::ServiceUnavailable
            | Delivering::Blocked => Whose::Owner,
            Delivering::Disabled | Delivering::TokenUnavailable | Delivering::HandshakeRefused => Whose::Receiver,
            Delivering::CircuitOpen | Delivering::Backoff => match last_failure {
                "Auth" | "Unauthorized" | "Redirect" | "SuccessUndecided" => Whose::Owner,
                _ => Whose::Receiver,
            },
            Delivering::Succeeding | Delivering::NoAttempts if view.blocked_keys > 0 => Whose::Owner,
            Delivering::Succeeding | Delivering::NoAttempts => Whose::Unclear,
        }
    }
}

impl Trouble {
    fn of(object: &WebhookEndpoint, view: &EndpointView, now: UnixMillis) -> Option<Trouble> {
        let behind = view.oldest_pending.filter(|oldest| now.since(*oldest) >= BEHIND);
        let troubled = match view.delivering {
            Delivering::Succeeding | Delivering::NoAttempts => behind.is_some() || view.blocked_keys > 0,
            Delivering::Suspended => view.pending > 0,
            _ => true,
        };
        if !troubled {
            return None;
        }
        let failing = matches!(
            view.delivering,
            Delivering::CircuitOpen | Delivering::Backoff | Delivering::Disabled
        );
        let failure = view.last_failure.as_ref().filter(|_| failing);
        let last_failure = failure.map_or("", |failure| failure.reason);
        let since = view.failing_since.or_else(|| not_delivering_since(object)).or(behind);
        Some(Trouble {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
            delivering: view.delivering,
            last_failure,
            last_status: failure.and_then(|failure| failure.status),
            whose: Whose::of(view, last_failure),
            since: since.unwrap_or(now),
            pending: view.pending,
            oldest: view.oldest_pending,
            next_try: view.next_try,
            dead: view.dead_lettered,
            blocked_keys: view.blocked_keys,
        })
    }

    /// Who is named first where there are too many: where something waits before where nothing does, and more before less. By
    /// powers of ten, so that those named stay the same from one scrape to the next; then who is new in it.
    fn rank(&self) -> (bool, u32, UnixMillis) {
        let is_live = !matches!(self.delivering, Delivering::Disabled | Delivering::Suspended);
        (
            is_live && self.pending > 0,
            self.pending.checked_ilog10().unwrap_or(0),
            self.since,
        )
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("endpoint_namespace", &self.namespace), ("endpoint_name", &self.name)]
    }
}

/// As its status says.
fn not_delivering_since(object: &WebhookEndpoint) -> Option<UnixMillis> {
    let conditions = &object.status.as_ref()?.conditions;
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == DELIVERING && condition.status == FALSE)?;
    Some(UnixMillis(found.last_transition_time.0.as_millisecond()))
}

impl Fleet {
    /// Notes how an endpoint stands; without an object it is gone.
    pub fn note(&self, id: EndpointId, object: Option<&WebhookEndpoint>, view: &EndpointView, now: UnixMillis) {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = object else {
            endpoints.remove(&id);
            return;
        };
        let mut trouble = Trouble::of(object, view, now).map(Box::new);
        // Status may be written later than this is shown: it began when it was noted first.
        let before = endpoints.get(&id).and_then(|standing| standing.trouble.as_deref());
        if let (Some(trouble), Some(before)) = (&mut trouble, before) {
            trouble.since = trouble.since.min(before.since);
        }
        let delivering = view.delivering;
        endpoints.insert(id, Standing { delivering, trouble });
    }

    /// Notes how a subscription stands.
    pub fn note_subscription(&self, id: SubscriptionId, exists: bool, view: &SubscriptionView) {
        let neglect = Neglect {
            unconsumed: view.unconsumed,
            filter_fails: view.filter_failing.is_some(),
        };
        let mut subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        if exists && (neglect.unconsumed.is_some() || neglect.filter_fails) {
            subscriptions.insert(id, neglect);
        } else {
            subscriptions.remove(&id);
        }
    }

    /// The numbers of subscriptions by what is wrong with them.
    fn neglects(&self) -> [(&'static str, &'static str, i64); 3] {
        let subscriptions = self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |holds: fn(&Neglect) -> bool| {
            let found = subscriptions.values().filter(|neglect| holds(neglect));
            i64::try_from(found.count()).unwrap_or(i64::MAX)
        };
        [
            (
                UNCONSUMED,
                Unconsumed::NotPulled.reason(),
                count(|neglect| neglect.unconsumed == Some(Unconsumed::NotPulled)),
            ),
            (
                UNCONSUMED,
                Unconsumed::NotAcknowledged.reason(),
                count(|neglect| neglect.unconsumed == Some(Unconsumed::NotAcknowledged)),
            ),
            (
                FILTER_FAILING,
                reasons::EVALUATION_ERROR,
                count(|neglect| neglect.filter_fails),
            ),
        ]
    }

    /// The numbers by reason, those in trouble that are named, and how many are not.
    fn look(&self) -> (Vec<(&'static str, i64)>, Vec<Trouble>, i64) {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut troubles: Vec<&Trouble> = Vec::new();
        let mut counts = Delivering::ALL.map(|delivering| (delivering.reason(), 0));
        for standing in endpoints.values() {
            let counted = counts
                .iter_mut()
                .find(|(reason, _)| *reason == standing.delivering.reason());
            if let Some((_, count)) = counted {
                *count += 1;
            }
            troubles.extend(standing.trouble.as_deref());
        }
        troubles.sort_by(|a, b| b.rank().cmp(&a.rank()).then_with(|| a.labels().cmp(&b.labels())));
        let unnamed = i64::try_from(troubles.len().saturating_sub(SHOWN)).unwrap_or(i64::MAX);
        (
            counts.to_vec(),
            troubles.into_iter().take(SHOWN).cloned().collect(),
            unnamed,
        )
    }
}

/// What is shown of each that is named: a name, what it means, and the value.
type Shown = (&'static str, &'static str, fn(&Trouble) -> Option<f64>);

const SERIES: [Shown; 7] = [
    (
        "tidings_endpoint_trouble_since_timestamp_seconds",
        "Since when it is in trouble",
        |trouble| Some(seconds(trouble.since)),
    ),
    ("tidings_endpoint_pending_messages", "What waits for it", |trouble| {
        Some(trouble.pending as f64)
    }),
    (
        "tidings_endpoint_oldest_pending_timestamp_seconds",
        "When the oldest message that waits for it was accepted",
        |trouble| trouble.oldest.map(seconds),
    ),
    (
        "tidings_endpoint_next_attempt_timestamp_seconds",
        "When something is sent to it next",
        |trouble| trouble.next_try.map(seconds),
    ),
    (
        "tidings_endpoint_last_failure_status_code",
        "The status of the answer that it failed with last",
        |trouble| trouble.last_status.map(f64::from),
    ),
    (
        "tidings_endpoint_dead_letters",
        "Dead letters of it that are kept",
        |trouble| Some(trouble.dead as f64),
    ),
    (
        "tidings_endpoint_blocked_keys",
        "Keys of ordering whose messages wait behind a dead letter",
        |trouble| Some(trouble.blocked_keys as f64),
    ),
];

fn seconds(at: UnixMillis) -> f64 {
    at.0 as f64 / 1_000.0
}

impl Collector for Fleet {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (counts, troubles, unnamed) = self.look();
        let gauge = ConstGauge::new(unnamed);
        let help = "Endpoints by the reason of their condition Delivering";
        let mut family = encoder.encode_descriptor("tidings_endpoints", help, None, gauge.metric_type())?;
        for (reason, count) in counts {
            ConstGauge::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        let help = "Subscriptions in trouble, by condition and reason";
        let mut family =
            encoder.encode_descriptor("tidings_subscriptions_in_trouble", help, None, gauge.metric_type())?;
        for (condition, reason, count) in self.neglects() {
            let labels = [("condition", condition), ("reason", reason)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Endpoints in trouble that are not named, for there are too many";
        gauge.encode(encoder.encode_descriptor(
            "tidings_endpoints_in_trouble_unnamed",
            help,
            None,
            gauge.metric_type(),
        )?)?;
        let help = "1 for an endpoint that does not deliver, or not fast enough: why, and who can end it";
        let mut family = encoder.encode_descriptor("tidings_endpoint_trouble", help, None, gauge.metric_type())?;
        for trouble in &troubles {
            let [namespace, name] = trouble.labels();
            let labels = [
                namespace,
                name,
                ("reason", trouble.delivering.reason()),
                ("last_failure", trouble.last_failure),
                ("whose", trouble.whose.word()),
            ];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, value) in SERIES {
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for trouble in &troubles {
                if let Some(value) = value(trouble) {
                    ConstGauge::new(value).encode(family.encode_family(&trouble.labels())?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
