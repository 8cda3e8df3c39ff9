//! From valid events to the store: match, place, accept, account.
//!
//! Invariant: a place taken from a gauge is either in the store as a fresh message or given back, also when the producer
//! hangs up meanwhile: the part that may not be torn runs as a task of its own, which the server waits for.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::dispatcher::registry::{NamespaceView, SubscriptionEntry};
use crate::event::{Event, format};
use crate::ids::UnixMillis;
use crate::queue::{Accepted, NewEvent, Placement, Queue, QueueError, Target};

use super::metrics::Metrics;

/// Pending messages of one endpoint: over it new ones are dead letters `QueueFull`, the event's other messages go on.
pub const MAX_PENDING: i64 = 1_000_000;

/// Events with the places taken for them.
pub(super) struct Placed {
    events: Vec<NewEvent>,
    /// By event: what each target took.
    taken: Vec<Vec<(Arc<SubscriptionEntry>, Placement)>>,
}

/// Matches events and takes places for their messages.
pub(super) fn place(view: &NamespaceView, events: &[Event], now: UnixMillis) -> Placed {
    let mut placed = Placed {
        events: Vec::with_capacity(events.len()),
        taken: Vec::with_capacity(events.len()),
    };
    for event in events {
        let found = view.subscriptions.find(&event.r#type, &event.source);
        let mut targets = Vec::with_capacity(found.len());
        let mut taken = Vec::with_capacity(found.len());
        for subscription in found {
            let placement = subscription.endpoint_gauge.place(MAX_PENDING);
            targets.push(Target {
                subscription: subscription.id,
                endpoint: subscription.endpoint,
                placement,
            });
            taken.push((subscription.clone(), placement));
        }
        placed.events.push(NewEvent {
            namespace_uid: view.uid.clone(),
            dedupe: dedupe(&view.uid, &event.source, &event.id),
            event: Arc::new(format::stored(event, now)),
            targets,
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
            let gauge = &subscription.endpoint_gauge;
            match placement {
                Placement::Fresh if !new => gauge.give(1),
                Placement::Fresh | Placement::Waiting if new => gauge.add_pending(1),
                Placement::Fresh | Placement::Waiting | Placement::QueueFull => {}
            }
        }
    }
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
