//! Deleted endpoints and subscriptions: five minutes later their messages become dead letters, unless they come back.
//!
//! Owns who is to be buried when; knows nothing of slots. After a start these are all that ever were: each costs a step,
//! after which others have their turn. Invariant: nothing is buried before every watch has synced, for until then absence
//! means nothing.

use std::collections::{BTreeSet, HashMap};
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
    /// The same, in the order in which they are buried.
    in_turn: BTreeSet<(UnixMillis, Grave)>,
    synced: bool,
}

impl Graves {
    /// Notes who was deleted or came back.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::Endpoint(entry) => {
                let grave = Grave::Endpoint(entry.id);
                match entry.state {
                    EndpointState::Deleted { at } => self.dig(grave, at),
                    // A subscription that names it keeps its messages waiting.
                    EndpointState::Usable(_)
                    | EndpointState::Unusable { .. }
                    | EndpointState::Missing
                    | EndpointState::Pulled(_) => self.close(grave),
                }
            }
            Change::Subscription(entry) => {
                let grave = Grave::Subscription(entry.id);
                match entry.deleted {
                    Some(at) => self.dig(grave, at),
                    None => self.close(grave),
                }
            }
            Change::SubscriptionGone { id, at } => self.dig(Grave::Subscription(*id), *at),
            Change::Synced => self.synced = true,
            Change::Filter(_) => {}
        }
    }

    fn dig(&mut self, grave: Grave, at: UnixMillis) {
        self.close(grave);
        self.deleted.insert(grave, at);
        self.in_turn.insert((at, grave));
    }

    fn close(&mut self, grave: Grave) {
        if let Some(at) = self.deleted.remove(&grave) {
            self.in_turn.remove(&(at, grave));
        }
    }

    /// Who is due for the longest time: the same one until it is buried whole, for the store goes on where it was.
    fn due(&self, before: UnixMillis) -> Option<(UnixMillis, Grave)> {
        let first = self.in_turn.first().copied();
        first.filter(|(at, _)| self.synced && *at <= before)
    }

    /// Nothing is left of one, unless it was deleted anew meanwhile.
    fn buried(&mut self, at: UnixMillis, grave: Grave) {
        if self.in_turn.contains(&(at, grave)) {
            self.close(grave);
        }
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
            Ok(0) => {
                graves().buried(at, grave);
                tokio::task::yield_now().await;
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(id: u32, at: i64) -> Change {
        Change::SubscriptionGone {
            id: SubscriptionId(id),
            at: UnixMillis(at),
        }
    }

    fn grave(id: u32) -> Grave {
        Grave::Subscription(SubscriptionId(id))
    }

    #[test]
    fn who_is_gone_for_the_longest_time_is_buried_first_also_of_all_that_ever_were() {
        const ALL: u32 = 200_000;
        let mut graves = Graves::default();
        (0..ALL).for_each(|id| graves.follow(&gone(id, i64::from(ALL - id))));
        let before = UnixMillis(i64::from(ALL));
        assert_eq!(graves.due(before), None, "not before every watch has synced");
        graves.follow(&Change::Synced);
        for id in (0..ALL).rev() {
            let (at, due) = graves.due(before).expect("one is left");
            assert_eq!(due, grave(id));
            graves.buried(at, due);
        }
        assert!(graves.deleted.is_empty() && graves.in_turn.is_empty());
    }

    #[test]
    fn one_that_is_deleted_anew_while_it_is_buried_has_its_time_again() {
        let mut graves = Graves::default();
        graves.follow(&Change::Synced);
        graves.follow(&gone(1, 5));
        let (at, due) = graves.due(UnixMillis(5)).expect("due");
        graves.follow(&gone(1, 8));
        graves.buried(at, due);
        assert_eq!(graves.due(UnixMillis(7)), None);
        assert_eq!(graves.due(UnixMillis(8)), Some((UnixMillis(8), grave(1))));
    }
}
