//! Clearing up, a chunk at a time: messages of what was deleted become dead letters, and those of an order that was given up
//! wait like any other.
//!
//! Owns how much of it is done at a time; knows nothing of why. Invariant: however many messages there are, between two
//! chunks the store is left to others for as long as a chunk takes, and nothing else waits for the end.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Core, TICK, graves, order};

/// A task of its own, for it may be a million messages.
pub(super) async fn clear(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut counted: Option<Instant> = None;
        let mut uncounted = 0;
        loop {
            let began = Instant::now();
            let cleared = graves::bury(&core).await + order::release(&core).await;
            if cleared == 0 {
                break;
            }
            uncounted += cleared;
            tokio::time::sleep(began.elapsed()).await;
            // Those that were let go first are sent while others still wait for it.
            if counted.is_none_or(|at| at.elapsed() >= TICK) {
                core.recount().await;
                (counted, uncounted) = (Some(Instant::now()), 0);
            }
        }
        if uncounted > 0 {
            core.recount().await;
        }
    }
}
