//! The engine's clock. Due times are wall clock; within a process time advances monotonically, anchored anew each minute.
//!
//! Owns what "now" is; knows nothing of what is due. Invariant: between two anchors it never jumps.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::ids::UnixMillis;

/// How often the system clock is looked at: a corrected clock counts within a minute, a wild one does no more harm.
const ANCHOR_EVERY: Duration = Duration::from_secs(60);

/// The system's time, or one that is moved by hand (tests run a schedule of minutes at once, over the real store).
#[derive(Debug)]
pub enum Clock {
    System(Mutex<(Instant, UnixMillis)>),
    Manual(watch::Sender<UnixMillis>),
}

impl Clock {
    /// The system's.
    pub fn system() -> Clock {
        Clock::System(Mutex::new((Instant::now(), UnixMillis::now())))
    }

    /// One that stands still at `now` until advanced.
    pub fn manual(now: UnixMillis) -> Clock {
        Clock::Manual(watch::Sender::new(now))
    }

    /// The time.
    pub fn now(&self) -> UnixMillis {
        match self {
            Clock::System(anchor) => {
                let mut anchor = anchor.lock().unwrap_or_else(PoisonError::into_inner);
                let passed = anchor.0.elapsed();
                if passed >= ANCHOR_EVERY {
                    *anchor = (Instant::now(), UnixMillis::now());
                    return anchor.1;
                }
                anchor.1.plus(passed)
            }
            Clock::Manual(now) => *now.borrow(),
        }
    }

    /// Moves a manual clock; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(now) = self {
            now.send_modify(|now| *now = now.plus(by));
        }
    }

    /// Returns at `until` or a little later.
    pub async fn sleep_until(&self, until: UnixMillis) {
        match self {
            Clock::System(_) => loop {
                let left = until.since(self.now());
                if left.is_zero() {
                    return;
                }
                // In slices of an anchor, so that a corrected clock is seen.
                tokio::time::sleep(left.min(ANCHOR_EVERY)).await;
            },
            Clock::Manual(now) => {
                let mut now = now.subscribe();
                // The sender lives in self, so waiting ends only by the condition.
                let _closed = now.wait_for(|now| *now >= until).await;
            }
        }
    }
}
