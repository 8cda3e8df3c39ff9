//! Places: how many messages of each endpoint may begin in memory. They are lent to accept through the endpoint's gauge.
//!
//! Owns how many each has, and when an endpoint or a subscription that was deleted is forgotten; knows nothing of what is in
//! a window. A place that is taken back while a message has it is missing in the gauge until the message gives it back.
//! Invariant: what endpoints have (`capacity`) is together `places`.

use std::collections::hash_map::Entry;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::state::{State, WINDOW};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::registry::EndpointState;

/// Places given to all endpoints: ids of 64 bytes or so, a few MiB.
const PLACES: i64 = 20_000;
/// Places an endpoint gets while there are many endpoints.
const PLACES_CROWDED: i64 = 16;
/// An endpoint of which nothing was heard for so long has places for others, where they become few.
const IDLE: Duration = Duration::from_secs(300);

/// All that an endpoint may have while endpoints are few, else some, and one in any case.
pub(super) fn give_places(endpoint: &mut Endpoint, places: &mut i64) {
    let most = if *places < PLACES / 2 {
        WINDOW as i64
    } else {
        PLACES_CROWDED
    };
    let most = most.min(endpoint.capacity + PLACES - *places).max(1);
    if most > endpoint.capacity {
        resize(endpoint, places, most);
    }
}

fn resize(endpoint: &mut Endpoint, places: &mut i64, capacity: i64) {
    let more = capacity - endpoint.capacity;
    endpoint.capacity = capacity;
    endpoint.gauge.give(more);
    *places += more;
}

impl State {
    /// An endpoint was loaded, changed or deleted: it has places, or has none.
    pub fn place(&mut self, id: EndpointId) {
        let State { endpoints, places, .. } = self;
        let Some(endpoint) = endpoints.get_mut(&id) else {
            return;
        };
        match endpoint.takes_places() {
            true if endpoint.capacity == 0 => give_places(endpoint, places),
            true => {}
            false => resize(endpoint, places, 0),
        }
    }

    /// A message began in memory: places that were taken back while there was none are given again.
    pub fn no_longer_idle(&mut self, id: EndpointId) {
        let State { endpoints, places, .. } = self;
        if let Some(endpoint) = endpoints.get_mut(&id)
            && endpoint.capacity < PLACES_CROWDED
        {
            give_places(endpoint, places);
        }
    }

    /// More places for an endpoint whose messages come faster than its places allow.
    pub fn widen(&mut self, id: EndpointId) {
        let State { endpoints, places, .. } = self;
        if let Some(endpoint) = endpoints.get_mut(&id) {
            let most = (endpoint.capacity + PLACES - *places).min(WINDOW as i64);
            if most > endpoint.capacity && endpoint.takes_places() {
                resize(endpoint, places, most);
            }
        }
    }

    /// Time passes: where places are few an idle endpoint keeps one or some, and one that was deleted is forgotten when it
    /// is buried and nothing of it is kept, as is a subscription. Should it come back it is made anew.
    pub fn reclaim(&mut self, id: EndpointId, now: UnixMillis, bury_after: Duration) {
        self.forget_subscriptions(id);
        let is_shown = !self.changed.contains(&id);
        let State { endpoints, places, .. } = self;
        let Some(endpoint) = endpoints.get_mut(&id) else {
            return;
        };
        if let Some(EndpointState::Deleted { at }) = endpoint.entry.as_ref().map(|entry| &entry.state) {
            if now.since(*at) >= bury_after && is_shown && endpoint.is_empty() {
                self.forget(id);
            }
            return;
        }
        let is_idle = endpoint.window.is_empty() && endpoint.in_flight == 0 && now.since(endpoint.heard) >= IDLE;
        let kept = match PLACES - *places {
            left if left > PLACES / 2 => return,
            left if left > PLACES / 4 => PLACES_CROWDED,
            _ => 1,
        };
        if is_idle && endpoint.capacity > kept {
            resize(endpoint, places, kept);
        }
    }

    fn forget(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.remove(&id) else {
            return;
        };
        if let Some(at) = endpoint.timer {
            self.timers.remove(&(at, id));
        }
        for subscription in endpoint.subscriptions.keys() {
            self.leave(*subscription, id);
        }
    }

    /// Those that were deleted, and of which nothing is left here. Should one come back it is made anew.
    fn forget_subscriptions(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        for (subscription, known) in endpoint.subscriptions.let_past_go() {
            let is_everywhere = self.leave(subscription, id);
            if let Some(entry) = known.entry().filter(|_| is_everywhere) {
                self.registry.forget_subscription(entry);
            }
        }
    }

    /// An endpoint holds no messages of a subscription any more; whether none does.
    fn leave(&mut self, subscription: SubscriptionId, home: EndpointId) -> bool {
        let Entry::Occupied(mut homes) = self.homes.entry(subscription) else {
            return true;
        };
        homes.get_mut().retain(|other| *other != home);
        let is_last = homes.get().is_empty();
        if is_last {
            homes.remove();
        }
        is_last
    }
}
