//! What is pulled: acknowledged by its consumers, and whether there are any.
//!
//! Owns the way from an acknowledgement to the store and to the counts; knows nothing of HTTP. A message that is pulled is in
//! no window, has no timer and is never read here but when it has grown too old. Invariant: what was acknowledged is durable
//! before whoever acknowledged it hears so.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::endpoint::Endpoint;
use super::state::{State, unmade};
use super::subscriptions::Subscription;
use crate::ids::{EndpointId, MessageId, SubscriptionId, UnixMillis};
use crate::queue::{AttemptRecord, DeadReason, Pending, Place, QueueError, Settled, Settlement, Verdict, Window};
use crate::report::board::Unconsumed;
use crate::schedule::decide::accepted_at;

/// Messages acknowledged in one transaction.
const CHUNK: usize = 500;
/// Messages that wait for so long while none is acknowledged have no consumer: pauses of a rollout are shorter.
const UNCONSUMED_AFTER: Duration = Duration::from_secs(300);

/// For whoever hears from consumers.
#[derive(Clone)]
pub struct Consumed {
    pub(super) core: Arc<Core>,
}

/// Whose messages.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
}

impl Consumed {
    /// These are delivered: how many of them still waited.
    pub async fn acknowledge(&self, of: Pair, messages: &[MessageId]) -> Result<u64, QueueError> {
        let mut acknowledged = 0;
        for chunk in messages.chunks(CHUNK) {
            let outcomes = chunk.iter().map(|message| delivered(of, *message)).collect();
            acknowledged += self.record(outcomes).await?;
        }
        Ok(acknowledged)
    }

    /// Everything up to a place is delivered: how many messages that were.
    pub async fn acknowledge_until(&self, of: Pair, last: Place) -> Result<u64, QueueError> {
        let (mut acknowledged, mut after) = (0, None);
        loop {
            let window = Window {
                endpoint: of.endpoint,
                subscription: of.subscription,
                after,
                until: last.due,
                limit: CHUNK,
            };
            let page = self.core.queue.window(self.core.fence, window).await?;
            let outcomes: Vec<_> = page
                .iter()
                .filter(|pending| Place::of(pending) <= last)
                .map(|pending| delivered(of, pending.message))
                .collect();
            if !outcomes.is_empty() {
                // Some may have been acknowledged by somebody else meanwhile: that says nothing of those after them.
                acknowledged += self.record(outcomes).await?;
            }
            let Some(end) = page.last().filter(|_| page.len() == CHUNK) else {
                return Ok(acknowledged);
            };
            after = Some((end.due, end.message));
        }
    }

    /// These cannot be given to anybody; why.
    pub async fn unrenderable(&self, messages: Vec<(Pending, String)>) -> Result<(), QueueError> {
        let reason = DeadReason::Unrenderable;
        let now = self.core.clock.now();
        let outcomes = messages.into_iter().map(|(pending, why)| Settlement {
            record: Some(AttemptRecord {
                at: now,
                took: Duration::ZERO,
                status: None,
                reason: reason.reason(),
                excerpt: Some(why.into()),
            }),
            ..unmade(pending, Verdict::Dead { reason })
        });
        self.record(outcomes.collect()).await.map(drop)
    }

    /// How many outcomes were applied.
    async fn record(&self, mut outcomes: Vec<Settlement>) -> Result<u64, QueueError> {
        {
            let state = self.core.lock();
            for outcome in &mut outcomes {
                outcome.tell = state.told_of(outcome);
            }
        }
        let answers = self.core.queue.settle(self.core.fence, outcomes.clone()).await?;
        let now = self.core.clock.now();
        let applied = self.core.step(|state| state.consumed(&outcomes, &answers, now));
        Ok(applied)
    }
}

fn delivered(of: Pair, message: MessageId) -> Settlement {
    // Nothing that is pulled is ever attempted.
    let pending = Pending {
        message,
        endpoint: of.endpoint,
        subscription: of.subscription,
        attempts: 0,
        due: UnixMillis::default(),
        again: None,
    };
    unmade(pending, Verdict::Delivered)
}

impl State {
    /// The store has recorded what a consumer acknowledged, or cannot be given.
    fn consumed(&mut self, outcomes: &[Settlement], answers: &[Settled], now: UnixMillis) -> u64 {
        self.recorded(outcomes, answers, now);
        let mut applied = 0;
        for (outcome, answer) in outcomes.iter().zip(answers) {
            if *answer == Settled::Stale {
                continue;
            }
            applied += 1;
            if outcome.verdict == Verdict::Delivered {
                self.metrics.delivered.inc();
                if let Some(endpoint) = self.endpoints.get_mut(&outcome.endpoint) {
                    endpoint.heard = now;
                }
            }
        }
        applied
    }

    /// Time passes: what nobody consumes is to be shown.
    pub fn look_at_consumers(&mut self, now: UnixMillis) {
        let mut turned = Vec::new();
        for (id, endpoint) in &mut self.endpoints {
            if endpoint.pulled().is_none() {
                continue;
            }
            let unconsumed = endpoint.unconsumed(now);
            for known in endpoint.subscriptions.values_mut() {
                if known.unconsumed_posted != unconsumed {
                    known.view_dirty = true;
                    turned.push(*id);
                }
            }
        }
        for id in turned {
            self.note_change(id);
        }
    }
}

impl Endpoint {
    /// Whether what is pulled here waits for nobody.
    pub fn unconsumed(&self, now: UnixMillis) -> Option<Unconsumed> {
        self.pulled()?;
        let is_long_ago = |at: UnixMillis| now.since(at) >= UNCONSUMED_AFTER;
        let oldest = self.oldest.map(accepted_at)?;
        let mut subscriptions = self.subscriptions.values().filter(|known| known.pending > 0);
        let entry = subscriptions.find_map(Subscription::entry)?;
        let mailbox = entry.mailbox.as_ref()?;
        if entry.spec.suspend || !is_long_ago(oldest) || !is_long_ago(self.heard) {
            return None;
        }
        Some(match is_long_ago(mailbox.last_pull()) {
            true => Unconsumed::NotPulled,
            false => Unconsumed::NotAcknowledged,
        })
    }
}
