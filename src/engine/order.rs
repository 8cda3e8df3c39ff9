//! What is held in the store because of an order, and must be no longer: the order was given up, or the message is too old.
//!
//! Owns when that is looked for; knows nothing of slots, nor who is held behind whom (the store does). Invariant: a held
//! message is never started; it leaves the store's hold by a promotion, by a release, or as a dead letter.

use std::sync::Arc;

use super::page::too_old;
use super::state::{State, UNRECORDED, unmade};
use super::{Core, TICK};
use crate::ids::{EndpointId, EventId, MessageId, UnixMillis};
use crate::queue::{DeadReason, Pending, QueueError, Release, Verdict};

/// Messages released in one transaction.
const CHUNK: usize = 1_000;
/// Held messages looked at together.
const PAGE: usize = 512;

impl State {
    /// Notes whether the endpoint's messages are in an order that it no longer wants.
    pub fn look_at_order(&mut self, id: EndpointId) {
        if self
            .endpoints
            .get(&id)
            .is_some_and(|known| known.to_release().is_some())
        {
            self.disordered.insert(id);
        }
    }

    /// Those that were noted, and what of each is to be released now.
    fn releases(&mut self) -> Vec<(EndpointId, Release)> {
        let noted = std::mem::take(&mut self.disordered).into_iter();
        noted
            .filter_map(|id| Some((id, self.endpoints.get(&id)?.to_release()?)))
            .collect()
    }

    /// Which of an endpoint's held messages may be too old: those before this id.
    fn too_old_before(&self, id: EndpointId, now: UnixMillis) -> Option<MessageId> {
        let endpoint = self.endpoints.get(&id)?;
        let holding = endpoint.subscriptions.iter().filter(|(_, known)| known.held > 0);
        let ages = holding.filter_map(|(subscription, _)| endpoint.max_age(*subscription, self.synced));
        let age = i64::try_from(ages.min()?.as_millis()).ok()?;
        let second = now.0.saturating_sub(age).div_euclid(1000) + 1;
        (second > 0).then(|| MessageId::new(EventId(second << EventId::SEQUENCE_BITS), 0))
    }

    /// Gives up those of a page that are too old. They were never next, so they block nothing.
    fn expire_held(&mut self, page: &[Pending], now: UnixMillis) {
        for row in page {
            let Some(endpoint) = self.endpoints.get_mut(&row.endpoint) else {
                continue;
            };
            let max_age = endpoint.max_age(row.subscription, self.synced);
            if max_age.is_some_and(|max_age| too_old(row, max_age, now)) {
                let reason = DeadReason::Expired;
                let mut outcome = unmade(*row, Verdict::Dead { reason });
                outcome.tell = self.told_of(&outcome);
                self.outbox.push(outcome);
                self.subscription(row.endpoint, row.subscription).held -= 1;
            }
        }
    }
}

/// Releases a chunk of each endpoint that no longer has an order; how many messages.
pub(super) async fn release(core: &Arc<Core>) -> u64 {
    let mut released = 0;
    let noted = core.lock().releases();
    for (endpoint, release) in noted {
        match core.queue.release(core.fence, endpoint, release, CHUNK).await {
            Ok(0) => {}
            Ok(count) => {
                released += count;
                // Until there is none; but the spec may want them in order again.
                core.lock().disordered.insert(endpoint);
            }
            Err(error) => tracing::warn!(%error, endpoint = endpoint.0, "failed to release messages; tried again"),
        }
    }
    released
}

/// Gives up what is held and too old. A task of its own: an endpoint may hold a million.
pub(super) async fn expire(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let holding = std::mem::take(&mut core.lock().holding_old);
        for endpoint in holding {
            if let Err(error) = expire_held(&core, endpoint).await {
                tracing::warn!(%error, endpoint = endpoint.0, "failed to read held messages; tried again");
            }
        }
    }
}

async fn expire_held(core: &Arc<Core>, endpoint: EndpointId) -> Result<(), QueueError> {
    let now = core.clock.now();
    let Some(before) = core.lock().too_old_before(endpoint, now) else {
        return Ok(());
    };
    let mut after = None;
    while core.lock().unrecorded() < UNRECORDED {
        let page = core.queue.held(core.fence, endpoint, after, before, PAGE).await?;
        core.step(|state| state.expire_held(&page.messages, now));
        if page.go_on.is_none() {
            break;
        }
        after = page.go_on;
    }
    Ok(())
}
