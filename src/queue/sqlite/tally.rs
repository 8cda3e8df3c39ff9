//! How many messages are pending and dead, by endpoint and subscription.
//!
//! Owns counters only: read once from disk on opening, moved after each commit. Invariant: equal to what the tables hold
//! whenever no commit is under way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use crate::ids::{EndpointId, MessageId, SubscriptionId};

/// What one message belongs to.
pub(super) type Pair = (EndpointId, SubscriptionId);

/// Counts of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) pending: u64,
    pub(super) dead: u64,
    /// Pending, and held behind another of their key.
    pub(super) held: u64,
    /// Dead, and blocking their key.
    pub(super) blocking: u64,
    /// No unsettled message is older; where none is, nothing is known.
    pub(super) oldest: Option<MessageId>,
}

/// Counts by pair, and their sums.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pairs: HashMap<Pair, Counts>,
    /// Pending messages, where there are any.
    of_endpoints: HashMap<EndpointId, u64>,
    of_subscriptions: HashMap<SubscriptionId, u64>,
    pub(super) pending: u64,
    pub(super) dead: u64,
}

impl Tally {
    /// Counts one message read from disk, in id order.
    pub(super) fn found_pending(&mut self, pair: Pair, message: MessageId) {
        self.add(pair, 1, 0);
        if let Some(counts) = self.pairs.get_mut(&pair) {
            counts.oldest.get_or_insert(message);
        }
    }

    /// Moves the counts of a pair.
    pub(super) fn add(&mut self, pair: Pair, pending: i64, dead: i64) {
        self.pending = self.pending.saturating_add_signed(pending);
        self.dead = self.dead.saturating_add_signed(dead);
        if pending != 0 {
            move_by(&mut self.of_endpoints, pair.0, pending);
            move_by(&mut self.of_subscriptions, pair.1, pending);
        }
        let counts = self.pairs.entry(pair).or_default();
        counts.pending = counts.pending.saturating_add_signed(pending);
        counts.dead = counts.dead.saturating_add_signed(dead);
        if counts.pending == 0 {
            counts.oldest = None;
            if counts.dead == 0 {
                self.pairs.remove(&pair);
            }
        }
    }

    /// Moves what of the counts stands in an order. After [`Tally::add`]: what is held is pending, what blocks is dead.
    pub(super) fn order(&mut self, pair: Pair, held: i64, blocking: i64) {
        if let Some(counts) = self.pairs.get_mut(&pair) {
            counts.held = counts.held.saturating_add_signed(held);
            counts.blocking = counts.blocking.saturating_add_signed(blocking);
        }
    }

    /// A message was stored, or is pending again: then it may be older than all others of its pair.
    pub(super) fn stored(&mut self, pair: Pair, message: MessageId) {
        self.add(pair, 1, 0);
        if let Some(counts) = self.pairs.get_mut(&pair) {
            counts.oldest = Some(counts.oldest.map_or(message, |oldest| oldest.min(message)));
        }
    }

    /// Remembers that nothing unsettled of `pair` is older than `message`.
    pub(super) fn not_older(&mut self, pair: Pair, message: MessageId) {
        if let Some(counts) = self.pairs.get_mut(&pair)
            && counts.oldest.is_some_and(|oldest| oldest < message)
        {
            counts.oldest = Some(message);
        }
    }

    /// Every pair with anything.
    pub(super) fn pairs(&self) -> Vec<(Pair, Counts)> {
        self.pairs.iter().map(|(pair, counts)| (*pair, *counts)).collect()
    }

    /// Pending messages of an endpoint, a subscription, or both.
    pub(super) fn pending_of(&self, endpoint: Option<EndpointId>, subscription: Option<SubscriptionId>) -> u64 {
        let counted = match (endpoint, subscription) {
            (None, None) => Some(self.pending),
            (Some(endpoint), None) => self.of_endpoints.get(&endpoint).copied(),
            (None, Some(subscription)) => self.of_subscriptions.get(&subscription).copied(),
            (Some(endpoint), Some(subscription)) => {
                let counts = self.pairs.get(&(endpoint, subscription));
                counts.map(|counts| counts.pending)
            }
        };
        counted.unwrap_or(0)
    }
}

fn move_by<K: Eq + Hash>(counts: &mut HashMap<K, u64>, key: K, by: i64) {
    match counts.entry(key) {
        Entry::Occupied(mut known) => {
            let count = known.get().saturating_add_signed(by);
            match count {
                0 => drop(known.remove()),
                _ => *known.get_mut() = count,
            }
        }
        Entry::Vacant(new) => {
            if let Ok(count @ 1..) = u64::try_from(by) {
                new.insert(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_is_counted_by_endpoint_and_by_subscription_and_forgotten_when_nothing_is() {
        let pair = |endpoint, subscription| (EndpointId(endpoint), SubscriptionId(subscription));
        let mut tally = Tally::default();
        tally.stored(pair(1, 1), MessageId(1));
        tally.stored(pair(1, 2), MessageId(2));
        tally.found_pending(pair(2, 2), MessageId(3));
        tally.add(pair(3, 3), 0, 1);
        let pending = |tally: &Tally| {
            [1, 2, 3].map(|id| {
                let endpoint = tally.pending_of(Some(EndpointId(id)), None);
                (endpoint, tally.pending_of(None, Some(SubscriptionId(id))))
            })
        };
        assert_eq!(pending(&tally), [(2, 1), (1, 2), (0, 0)]);
        assert_eq!(tally.pending_of(Some(EndpointId(1)), Some(SubscriptionId(2))), 1);
        assert_eq!(tally.pending_of(None, None), 3);
        tally.add(pair(1, 1), -1, 1);
        tally.add(pair(1, 2), -1, 0);
        tally.add(pair(2, 2), -1, 0);
        assert_eq!(pending(&tally), [(0, 0); 3]);
        assert!(tally.of_endpoints.is_empty() && tally.of_subscriptions.is_empty());
    }
}
