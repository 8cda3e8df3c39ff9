//! What is held in the store because of an order that was given up.
//!
//! Owns when that is looked for; knows nothing of slots, nor who is held behind whom (the store does). Invariant: a held
//! message is never started; it leaves the store's hold by a promotion, by a release, or as a dead letter (see `expiry`).

use std::sync::Arc;

use super::Core;
use super::state::State;
use crate::ids::EndpointId;
use crate::queue::Release;

/// Messages released in one transaction.
const CHUNK: usize = 1_000;

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
