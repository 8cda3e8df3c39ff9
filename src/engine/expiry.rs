//! Messages that have grown too old where nothing is started: what waits while nothing may be sent, what is held behind another
//! of its key, what waits behind many that are due earlier.
//!
//! Owns when and where they are looked for; knows nothing of slots. What is about to be started is looked at then. Invariant:
//! a row that is held in memory is never given up from a page.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::state::{State, UNRECORDED, unmade};
use super::{Core, TICK};
use crate::ids::{EndpointId, EventId, MessageId, SubscriptionId, UnixMillis};
use crate::queue::{DeadReason, Pending, QueueError, Verdict, Window};
use crate::schedule::decide::expired;

/// Messages looked at together.
const PAGE: usize = 512;
/// All that waits at an endpoint is looked at no more often, for it may be a million messages, and the one that is old by its
/// id may be young since a replay.
const WALK_EVERY: Duration = Duration::from_secs(600);

impl Endpoint {
    /// Whether its oldest message has expired, by the least age that holds for any that is pending.
    fn has_expired(&self, synced: bool, now: UnixMillis) -> bool {
        let pending = self.subscriptions.iter().filter(|(_, known)| known.pending > 0);
        let ages = pending.filter_map(|(subscription, _)| self.max_age(*subscription, synced));
        let oldest = ages.min().zip(self.oldest);
        oldest.is_some_and(|(max_age, oldest)| expired(oldest, max_age, now))
    }
}

impl State {
    /// Reads the beginning of what waits where the oldest message has expired, also where nothing may be sent.
    pub fn sweep_expired(&mut self, id: EndpointId, now: UnixMillis) {
        let Some(endpoint) = self.endpoints.get(&id) else {
            return;
        };
        if endpoint.has_expired(self.synced, now) {
            if endpoint.ordered().0 > 0 {
                self.holding_old.insert(id);
            }
            self.look_at_waiting(id);
        }
    }

    /// A full page has shown none that is too old: where there is one, it waits behind those that are due earlier.
    pub fn look_behind(&mut self, id: EndpointId, now: UnixMillis) {
        if let Some(endpoint) = self.endpoints.get_mut(&id)
            && endpoint.has_expired(self.synced, now)
            && now.since(endpoint.walked) >= WALK_EVERY
        {
            endpoint.walked = now;
            self.hiding_old.insert(id);
        }
    }

    /// Gives up a waiting message that is too old.
    pub fn expire(&mut self, row: Pending) {
        if let Some(endpoint) = self.endpoints.get_mut(&row.endpoint) {
            endpoint.held.insert(row.message, row.subscription);
            endpoint.forget_retry(row.due, row.message);
        }
        let reason = DeadReason::Expired;
        self.hand_over(unmade(row, Verdict::Dead { reason }));
    }

    /// Gives up those of a page that are too old.
    fn expire_waiting(&mut self, page: &[Pending], now: UnixMillis) {
        for row in page {
            let endpoint = self.endpoints.get(&row.endpoint);
            let waits = endpoint.filter(|endpoint| !endpoint.held.contains_key(&row.message));
            if waits.is_some_and(|endpoint| endpoint.is_over(row, self.synced, now)) {
                self.expire(*row);
            }
        }
    }

    /// Which of an endpoint's held messages may be too old: those before this id.
    fn too_old_before(&self, id: EndpointId, now: UnixMillis) -> Option<MessageId> {
        let endpoint = self.endpoints.get(&id)?;
        let holding = endpoint.subscriptions.iter().filter(|(_, known)| known.held() > 0);
        let ages = holding.filter_map(|(subscription, _)| endpoint.max_age(*subscription, self.synced));
        let age = i64::try_from(ages.min()?.as_millis()).ok()?;
        let second = now.0.saturating_sub(age).div_euclid(1000) + 1;
        (second > 0).then(|| MessageId::new(EventId(second << EventId::SEQUENCE_BITS), 0))
    }

    /// Gives up those of a page of held ones that are too old. They were never next, so they block nothing.
    fn expire_held(&mut self, page: &[Pending], now: UnixMillis) {
        for row in page {
            let endpoint = self.endpoints.get(&row.endpoint);
            if endpoint.is_some_and(|endpoint| endpoint.is_over(row, self.synced, now)) {
                let reason = DeadReason::Expired;
                let mut outcome = unmade(*row, Verdict::Dead { reason });
                outcome.tell = self.told_of(&outcome);
                self.outbox.push(outcome);
                self.endpoint(row.endpoint)
                    .subscriptions
                    .add_ordered(row.subscription, -1, 0);
            }
        }
    }
}

/// Gives up what no page for the window shows. A task of its own: an endpoint may have a million.
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
        let hiding = std::mem::take(&mut core.lock().hiding_old);
        for endpoint in hiding {
            if let Err(error) = expire_waiting(&core, endpoint).await {
                tracing::warn!(%error, endpoint = endpoint.0, "failed to read waiting messages; tried again");
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

/// Walks all that waits at an endpoint. Between two pages the store is left to others for as long as one took.
async fn expire_waiting(core: &Arc<Core>, endpoint: EndpointId) -> Result<(), QueueError> {
    let subscriptions: Vec<SubscriptionId> = match core.lock().endpoints.get(&endpoint) {
        Some(known) => known.subscriptions.keys().copied().collect(),
        None => return Ok(()),
    };
    for subscription in subscriptions {
        let mut after = None;
        while core.lock().unrecorded() < UNRECORDED {
            let began = Instant::now();
            let window = Window {
                endpoint,
                subscription,
                after,
                until: UnixMillis(i64::MAX),
                limit: PAGE,
            };
            let page = core.queue.window(core.fence, window).await?;
            core.step(|state| state.expire_waiting(&page, core.clock.now()));
            let Some(last) = page.last().filter(|_| page.len() == PAGE) else {
                break;
            };
            after = Some((last.due, last.message));
            tokio::time::sleep(began.elapsed()).await;
        }
    }
    Ok(())
}
