//! Deleted endpoints and subscriptions: five minutes later their messages become dead letters, unless they come back.
//!
//! Owns who is to be buried when; knows nothing of slots. Invariant: nothing is buried before every watch has synced, for
//! until then absence means nothing.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::Core;
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::queue::DeadReason;
use crate::registry::{Change, EndpointState};

/// Messages buried in one transaction.
const CHUNK: usize = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grave {
    Endpoint(EndpointId),
    Subscription(SubscriptionId),
}

/// Who was deleted, and when.
#[derive(Debug, Default)]
pub(super) struct Graves {
    deleted: HashMap<Grave, UnixMillis>,
    synced: bool,
}

impl Graves {
    /// Notes who was deleted or came back.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::Endpoint(entry) => {
                let grave = Grave::Endpoint(entry.id);
                match entry.state {
                    EndpointState::Deleted { at } => self.deleted.insert(grave, at),
                    // A subscription that names it keeps its messages waiting.
                    EndpointState::Usable(_) | EndpointState::Unusable { .. } | EndpointState::Missing => {
                        self.deleted.remove(&grave)
                    }
                };
            }
            Change::Subscription(entry) => {
                let grave = Grave::Subscription(entry.id);
                match entry.deleted {
                    Some(at) => self.deleted.insert(grave, at),
                    None => self.deleted.remove(&grave),
                };
            }
            Change::SubscriptionGone { id, at } => {
                self.deleted.insert(Grave::Subscription(*id), *at);
            }
            Change::Synced => self.synced = true,
            Change::Filter(_) => {}
        }
    }

    fn due(&self, before: UnixMillis) -> Vec<Grave> {
        let due = |(grave, at): (&Grave, &UnixMillis)| (*at <= before).then_some(*grave);
        match self.synced {
            true => self.deleted.iter().filter_map(due).collect(),
            false => Vec::new(),
        }
    }
}

/// Buries who is due.
pub(super) async fn bury(core: &Arc<Core>) {
    let after = i64::try_from(core.bury_after.as_millis()).unwrap_or(i64::MAX);
    let before = UnixMillis(core.clock.now().0.saturating_sub(after));
    let due = core.graves.lock().unwrap_or_else(PoisonError::into_inner).due(before);
    let mut buried = 0;
    for grave in due {
        let (endpoint, subscription, reason) = match grave {
            Grave::Endpoint(id) => (Some(id), None, DeadReason::EndpointDeleted),
            Grave::Subscription(id) => (None, Some(id), DeadReason::SubscriptionDeleted),
        };
        loop {
            // It may have come back meanwhile.
            let still = core.graves.lock().unwrap_or_else(PoisonError::into_inner).due(before);
            if !still.contains(&grave) {
                break;
            }
            match core.queue.bury(core.fence, endpoint, subscription, reason, CHUNK).await {
                Ok(0) => {
                    let mut graves = core.graves.lock().unwrap_or_else(PoisonError::into_inner);
                    graves.deleted.remove(&grave);
                    break;
                }
                Ok(count) => {
                    buried += count;
                    let reason = reason.reason();
                    let dead = core
                        .metrics
                        .dead_letters
                        .get_or_create(&super::metrics::Reason { reason });
                    dead.inc_by(count);
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to bury messages of a deleted resource; tried again");
                    break;
                }
            }
        }
    }
    if buried > 0 {
        core.recount().await;
    }
}
