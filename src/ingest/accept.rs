//! From valid events to the store: match (index, then filters), place, accept, account.
//!
//! Invariant: a place taken from a gauge is either in the store as a fresh message or given back, also when the producer
//! hangs up meanwhile: the part that may not be torn runs to its end ([`super::whole`]), and the server waits for it.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::api::census::MAX_SUBSCRIPTIONS;
use crate::event::{Event, TraceContext, format};
use crate::ids::{MessageId, UnixMillis};
use crate::matching::Candidate;
use crate::queue::{Accepted, MAX_PENDING, NewEvent, Placement, Queue, QueueError, Quota, Target};
use crate::registry::{NamespaceView, SubscriptionEntry};

use super::metrics::Metrics;

/// Each message of an event has an id, however many of a namespace's subscriptions it matches.
const _: () = assert!(MAX_SUBSCRIPTIONS <= MessageId::PER_EVENT);

/// What all filters of one request may cost, in units of about a byte looked at: some hundred milliseconds.
const FILTERS_OF_REQUEST: u64 = 64 << 20;

/// Events with the places taken for them.
pub struct Placed {
    events: Vec<NewEvent>,
    /// By event: what each target took.
    taken: Vec<Vec<(Arc<SubscriptionEntry>, Placement)>>,
    /// Messages for which the key of an order could not be evaluated.
    unkeyed: u64,
}

impl Placed {
    /// Messages they make.
    pub fn messages(&self) -> usize {
        self.taken.iter().map(Vec::len).sum()
    }
}

/// When events are accepted, and where they stand in traces: one for each event, or none at all.
pub struct Acceptance<'a> {
    pub at: UnixMillis,
    pub traces: &'a [TraceContext],
}

/// Matches events and takes places for their messages. `news` hears of a filter that fails, or no longer does.
pub fn place(
    view: &NamespaceView,
    events: &[Event],
    metrics: &Metrics,
    acceptance: &Acceptance<'_>,
    news: impl Fn(&Arc<SubscriptionEntry>),
) -> Placed {
    let now = acceptance.at;
    let quota = Quota {
        messages: view.rules.quotas.pending_messages,
        bytes: view.rules.quotas.pending_bytes,
    };
    let passes = |candidate: &mut Candidate<'_>, subscription: &Arc<SubscriptionEntry>| {
        let Some(filter) = &subscription.spec.filter else {
            return true;
        };
        let result = candidate.passes(filter);
        if subscription.filter_health.note(&result, now) {
            news(subscription);
        }
        result.unwrap_or_else(|_| {
            metrics.filter_errors.inc();
            false
        })
    };
    let mut placed = Placed {
        events: Vec::with_capacity(events.len()),
        taken: Vec::with_capacity(events.len()),
        unkeyed: 0,
    };
    // A batch's events share what their filters may cost; one event has at most its own share.
    let mut budget = FILTERS_OF_REQUEST;
    for (position, event) in events.iter().enumerate() {
        let mut candidate = Candidate::new(event, budget);
        let found = view.subscriptions.find(&event.r#type, &event.source);
        let mut targets = Vec::with_capacity(found.len());
        let mut taken = Vec::with_capacity(found.len());
        for subscription in found {
            if !passes(&mut candidate, subscription) {
                continue;
            }
            let gauge = &subscription.endpoint_gauge;
            let placement = match subscription.mailbox {
                None => gauge.place(MAX_PENDING),
                Some(_) => gauge.place_to_be_pulled(MAX_PENDING),
            };
            targets.push(Target {
                subscription: subscription.id,
                endpoint: subscription.endpoint,
                placement,
                order: subscription.endpoint_order.load().as_deref().map(|fifo| {
                    let (key, failed) = candidate.key(fifo);
                    placed.unkeyed += u64::from(failed.is_some());
                    key
                }),
            });
            taken.push((subscription.clone(), placement));
        }
        budget = budget.saturating_sub(candidate.spent());
        placed.events.push(NewEvent {
            namespace_uid: view.uid.clone(),
            dedupe: dedupe(&view.uid, &event.source, &event.id),
            event: Arc::new(format::stored(event, now, acceptance.traces.get(position))),
            targets,
            quota,
        });
        placed.taken.push(taken);
    }
    placed
}

/// Stores events and settles their places. Run to its end: dropping it half-way would lose places.
pub(super) async fn store(queue: &dyn Queue, metrics: &Metrics, placed: Placed) -> Result<Vec<Accepted>, QueueError> {
    let answer = queue.accept(placed.events).await;
    let accepted = answer.as_deref().unwrap_or_default();
    for (i, taken) in placed.taken.iter().enumerate() {
        let new = matches!(accepted.get(i), Some(Accepted::New { .. }));
        for (subscription, placement) in taken {
            if *placement == Placement::Fresh && !new {
                subscription.endpoint_gauge.give(1);
            }
        }
    }
    metrics.unkeyed.inc_by(placed.unkeyed);
    for accepted in accepted {
        match accepted {
            Accepted::New { matched, .. } => {
                metrics.accepted.inc();
                metrics.matched.inc_by(u64::from(*matched));
                if *matched == 0 {
                    metrics.unmatched.inc();
                }
            }
            Accepted::Duplicate { .. } => {
                metrics.duplicates.inc();
            }
        }
    }
    answer
}

/// The key of deduplication: namespace, `source` and `id`, each with its length first.
fn dedupe(namespace_uid: &str, source: &str, id: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in [namespace_uid, source, id] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::problem::Problem;
    use super::*;
    use crate::api::resolve::{Delivery, Format, ResolvedSubscription, TypePattern};
    use crate::event::Data;
    use crate::expression::{Expression, Role};
    use crate::ids::{EndpointId, SubscriptionId};
    use crate::matching::Index;
    use crate::matching::filter::MAX_FILTERED;
    use crate::queue::sqlite::{Options, SqliteQueue};
    use crate::queue::{Gauge, ResourceKey};
    use crate::registry::Mailbox;

    /// A namespace where some subscriptions take every event, and their endpoint's gauge with some places.
    fn namespace(subscriptions: usize, places: i64) -> (NamespaceView, Arc<Gauge>) {
        let gauge = Arc::new(Gauge::default());
        gauge.give(places);
        let all = vec![subscription(&gauge, None, None); subscriptions];
        (namespace_of(all), gauge)
    }

    fn namespace_of(subscriptions: Vec<Arc<SubscriptionEntry>>) -> NamespaceView {
        let all = subscriptions.into_iter().map(|entry| (Arc::clone(&entry.spec), entry));
        NamespaceView {
            uid: "u1".into(),
            subscriptions: Arc::new(Index::new(all)),
            pulled: Arc::default(),
            types: Arc::new(HashMap::new()),
            rules: Arc::default(),
        }
    }

    /// One that takes every event that passes its filter.
    fn subscription(
        gauge: &Arc<Gauge>,
        filter: Option<Expression>,
        mailbox: Option<Arc<Mailbox>>,
    ) -> Arc<SubscriptionEntry> {
        let spec = Arc::new(ResolvedSubscription {
            namespace: "sales".into(),
            name: "crm".into(),
            generation: 1,
            delivery: Delivery::Push { endpoint: "crm".into() },
            event_types: vec![TypePattern::Any],
            sources: Vec::new(),
            filter,
            format: Format::StandardWebhooks,
            request: Default::default(),
            dead_letter: None,
            retry: None,
            suspend: false,
        });
        Arc::new(SubscriptionEntry {
            id: SubscriptionId(1),
            key: ResourceKey {
                namespace_uid: "u1".into(),
                name: "crm".into(),
            },
            endpoint: EndpointId(1),
            endpoint_gauge: Arc::clone(gauge),
            endpoint_order: Arc::default(),
            spec,
            filter_health: Arc::default(),
            material: Default::default(),
            dead_letter: None,
            mailbox,
            deleted: None,
        })
    }

    fn now() -> Acceptance<'static> {
        Acceptance {
            at: UnixMillis::now(),
            traces: &[],
        }
    }

    fn event(id: &str) -> Event {
        Event {
            id: id.into(),
            source: "/agents/voice".into(),
            r#type: "lead.qualified".into(),
            subject: None,
            time: None,
            datacontenttype: None,
            dataschema: None,
            extensions: Vec::new(),
            data: Data::None,
        }
    }

    #[tokio::test]
    async fn ingest_leaves_the_count_of_what_is_pending_to_the_engine_and_gives_unused_places_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (queue, _) = SqliteQueue::open(dir.path(), Options::default()).expect("a store");
        let (view, gauge) = namespace(1, 2);
        let metrics = Metrics::default();
        for (id, new) in [("a", true), ("a", false), ("b", true), ("c", true)] {
            let placed = place(&view, &[event(id)], &metrics, &now(), |_| {});
            let accepted = store(&queue, &metrics, placed).await.expect("stored");
            assert_eq!(matches!(accepted[0], Accepted::New { .. }), new, "{id}");
        }
        assert_eq!(gauge.pending(), 0, "counted once, where messages arrive");
        assert_eq!(gauge.place(MAX_PENDING), Placement::Waiting, "both places are taken");
        queue.close().await;
    }

    #[tokio::test]
    async fn a_batch_that_makes_too_many_messages_is_told_to_be_split_and_takes_no_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let (queue, _) = SqliteQueue::open(dir.path(), Options::default()).expect("a store");
        let (view, gauge) = namespace(41, 1);
        let metrics = Metrics::default();
        let batch: Vec<Event> = (0..500).map(|n| event(&n.to_string())).collect();
        let placed = place(&view, &batch, &metrics, &now(), |_| {});
        let refused = store(&queue, &metrics, placed).await.expect_err("too many");
        let problem = Problem::from(&refused);
        assert_eq!(problem.status, http::StatusCode::PAYLOAD_TOO_LARGE);
        assert!(
            problem.detail.contains("20500") && problem.detail.contains("split it"),
            "{}",
            problem.detail
        );
        assert_eq!(gauge.place(MAX_PENDING), Placement::Fresh, "its place was given back");
        queue.close().await;
    }

    #[test]
    fn beyond_a_thousand_filters_that_look_at_an_event_further_ones_fail_and_those_without_one_match() {
        let gauge = Arc::new(Gauge::default());
        let filter = Expression::compile(Role::Filter, "event.type == 'lead.qualified'").expect("it compiles");
        let filtered = |count| vec![subscription(&gauge, Some(filter.clone()), None); count];
        let placed = |all: Vec<Arc<SubscriptionEntry>>| {
            let (view, metrics) = (namespace_of(all), Metrics::default());
            // Each of two events may have as many.
            let placed = place(&view, &[event("a"), event("b")], &metrics, &now(), |_| {});
            (placed.messages(), metrics.filter_errors.get())
        };
        assert_eq!(placed(filtered(MAX_FILTERED)), (2 * MAX_FILTERED, 0));

        let (mut all, beyond) = (filtered(MAX_FILTERED), filtered(2));
        all.extend(beyond.clone());
        all.push(subscription(&gauge, None, None));
        assert_eq!(placed(all), (2 * (MAX_FILTERED + 1), 4));
        let why = beyond[0].filter_health.failing().expect("it fails");
        assert!(why.contains("more than 1000 filtered subscriptions"), "{why}");
    }

    #[tokio::test]
    async fn beyond_a_million_pending_messages_of_an_endpoint_new_ones_are_dead_letters_and_take_no_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let (queue, _) = SqliteQueue::open(dir.path(), Options::default()).expect("a store");
        let fence = queue.claim().await.expect("a fence");
        let gauges = [(); 3].map(|()| Arc::new(Gauge::default()));
        let [full, almost, other] = &gauges;
        let view = namespace_of(vec![
            subscription(full, None, None),
            subscription(full, None, Some(Arc::default())),
            subscription(almost, None, None),
            subscription(almost, None, Some(Arc::default())),
            subscription(other, None, None),
        ]);
        gauges.iter().for_each(|gauge| gauge.give(1));
        full.add_pending(MAX_PENDING);
        almost.add_pending(MAX_PENDING - 1);
        let metrics = Metrics::default();
        let placed = place(&view, &[event("a")], &metrics, &now(), |_| {});
        let placements: Vec<Placement> = placed.taken[0].iter().map(|(_, placement)| *placement).collect();
        let (dead, fresh, pulled) = (Placement::QueueFull, Placement::Fresh, Placement::Pulled);
        assert_eq!(placements, [dead, dead, fresh, pulled, fresh]);
        let accepted = store(&queue, &metrics, placed).await.expect("stored");
        assert!(
            matches!(accepted[..], [Accepted::New { matched: 5, .. }]),
            "{accepted:?}"
        );
        let backlog = queue.backlog(fence).await.expect("a backlog");
        let counted = backlog.iter().fold((0, 0), |(pending, dead), pair| {
            (pending + pair.pending, dead + pair.dead)
        });
        assert_eq!(counted, (3, 2));

        full.add_pending(-1);
        assert_eq!(
            full.place(MAX_PENDING),
            fresh,
            "its place was not taken, and there is room again"
        );
        queue.close().await;
    }
}
