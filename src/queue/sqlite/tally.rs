//! How many messages are pending and dead, by endpoint and subscription.
//!
//! Owns counters only: read once from disk on opening, moved after each commit. Invariant: equal to what the tables hold
//! whenever no commit is under way.

use std::collections::HashMap;

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
    pub(super) pending: u64,
    pub(super) dead: u64,
}

impl Tally {
    /// Counts one message read from disk, in id order.
    pub(super) fn found_pending(&mut self, pair: Pair, message: MessageId) {
        self.pending += 1;
        let counts = self.pairs.entry(pair).or_default();
        counts.pending += 1;
        counts.oldest.get_or_insert(message);
    }

    /// Moves the counts of a pair.
    pub(super) fn add(&mut self, pair: Pair, pending: i64, dead: i64) {
        self.pending = self.pending.saturating_add_signed(pending);
        self.dead = self.dead.saturating_add_signed(dead);
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
        self.pairs
            .iter()
            .filter(|((ep, sub), _)| {
                endpoint.is_none_or(|wanted| wanted == *ep) && subscription.is_none_or(|wanted| wanted == *sub)
            })
            .map(|(_, counts)| counts.pending)
            .sum()
    }
}
