//! Sending kept messages again: the words.
//!
//! Knows nothing of who asks, or how fast it may go. Invariant: what a replay has done is in the store, and is moved in the
//! same transaction as the messages are: a crash loses no message and sends none a second time.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::ids::{EndpointId, MessageId, SubscriptionId, UnixMillis};

/// Which settled messages are sent again.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only of these endpoints: those that exist.
    pub endpoints: Arc<HashSet<EndpointId>>,
    /// Only of these subscriptions: those that exist.
    pub subscriptions: Arc<HashSet<SubscriptionId>>,
    /// Of the endpoints, those whose messages are pulled.
    pub pulled: Arc<HashSet<EndpointId>>,
    pub dead: bool,
    pub delivered: bool,
    /// Accepted in this second or later.
    pub from: Option<UnixMillis>,
    /// Accepted before the end of this second.
    pub until: Option<UnixMillis>,
    /// Only these.
    pub ids: Option<Arc<BTreeSet<MessageId>>>,
}

/// How far a replay is. Only what was settled before it began is meant, also by a clock that was ahead then, and it goes one
/// way: none of its own messages is met again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub began: UnixMillis,
    pub phase: Phase,
    /// Messages that fit when they were counted.
    pub matched: u64,
    /// Messages that are pending again, or were.
    pub sent: u64,
    /// Of those, delivered since.
    pub succeeded: u64,
    /// Of those, dead letters again.
    pub failed: u64,
}

impl Progress {
    /// Sent, and not settled yet.
    pub fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.succeeded + self.failed)
    }
}

/// What a replay does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Counts what fits.
    Counting,
    /// Makes what fits pending again, oldest first.
    Sending,
    /// Everything that fits was sent.
    Sent,
}

/// What one bounded step of a replay did.
#[derive(Clone, Debug)]
pub struct ReplayStep {
    pub progress: Progress,
    /// Messages that are pending since this step.
    pub sent: Vec<SentAgain>,
}

/// A message that is pending again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentAgain {
    pub message: MessageId,
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// It was a dead letter; else it was delivered.
    pub was_dead: bool,
    /// Its key waits no longer for somebody to look at it: it was the dead letter that blocked it.
    pub unblocks: bool,
    /// It is behind another message of its key.
    pub held: bool,
    /// It waits for a consumer.
    pub pulled: bool,
}
