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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
                    EndpointState::Usable(_)
                    | EndpointState::Unusable { .. }
                    | EndpointState::Missing
                    | EndpointState::Pulled(_) => self.deleted.remove(&grave),
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

    /// Who is due for the longest time: the same one until it is buried whole, for the store goes on where it was.
    fn due(&self, before: UnixMillis) -> Option<(UnixMillis, Grave)> {
        let deleted = self.deleted.iter().map(|(grave, at)| (*at, *grave));
        deleted.min().filter(|(at, _)| self.synced && *at <= before)
    }
}

/// Buries a chunk of who is due for the longest time; how many messages.
pub(super) async fn bury(core: &Arc<Core>) -> u64 {
    let after = i64::try_from(core.bury_after.as_millis()).unwrap_or(i64::MAX);
    let before = UnixMillis(core.clock.now().0.saturating_sub(after));
    let graves = || core.graves.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some((at, grave)) = graves().due(before) else {
            return 0;
        };
        let (endpoint, subscription, reason) = match grave {
            Grave::Endpoint(id) => (Some(id), None, DeadReason::EndpointDeleted),
            Grave::Subscription(id) => (None, Some(id), DeadReason::SubscriptionDeleted),
        };
        match core.queue.bury(core.fence, endpoint, subscription, reason, CHUNK).await {
            // The next, unless it was deleted anew meanwhile.
            Ok(0) => graves().deleted.retain(|known, since| (*known, *since) != (grave, at)),
            Ok(count) => {
                let reason = reason.reason();
                let dead = core
                    .metrics
                    .dead_letters
                    .get_or_create(&super::metrics::Reason { reason });
                dead.inc_by(count);
                return count;
            }
            Err(error) => {
                tracing::warn!(%error, "failed to bury messages of a deleted resource; tried again");
                return 0;
            }
        }
    }
}
