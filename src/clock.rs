//! The clock of whatever is decided by time and cannot be taken back: engine and store, what the watches stamp for them,
//! ingest and the controller's keys. Due times are wall clock; within a process time advances monotonically, anchored anew
//! each minute.
//!
//! A node's clock may be hours off for some minutes, until its time service puts it right. Whoever believed it would give up
//! every message that waits, and prune all history; so a jump counts only when it has lasted. That of a machine that was
//! suspended does last. Owns what "now" is; knows nothing of what is due. Invariant: between two anchors it never jumps.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::ids::UnixMillis;

/// How often the system clock is looked at: a corrected clock counts within a minute.
const ANCHOR_EVERY: Duration = Duration::from_secs(60);
/// A larger jump is not believed at once.
const JUMP: Duration = Duration::from_secs(3_600);
/// But when it has lasted for this long: time services look every few minutes at most.
const BELIEVED_AFTER: Duration = Duration::from_secs(600);

/// The system's time, or one that is moved by hand (tests run a schedule of minutes at once, over the real store).
#[derive(Debug)]
pub enum Clock {
    System,
    Manual(watch::Sender<UnixMillis>),
}

/// Where time is counted from.
#[derive(Debug)]
struct Anchor {
    at: Instant,
    time: UnixMillis,
    /// Since when the system clock has been elsewhere.
    doubted: Option<Instant>,
}

impl Anchor {
    fn time(&mut self, now: Instant, system: impl FnOnce() -> UnixMillis) -> UnixMillis {
        let passed = now.saturating_duration_since(self.at);
        let expected = self.time.plus(passed);
        if passed < ANCHOR_EVERY {
            return expected;
        }
        let system = system();
        let jump = system.since(expected).max(expected.since(system));
        let doubted = (jump > JUMP).then(|| self.doubted.unwrap_or(now));
        let is_doubted = doubted.is_some_and(|since| now.saturating_duration_since(since) < BELIEVED_AFTER);
        match (is_doubted, self.doubted) {
            (true, None) => tracing::warn!(?jump, "the system clock has jumped: not believed yet"),
            (false, Some(_)) => tracing::info!(?jump, "the system clock is believed again"),
            (true, Some(_)) | (false, None) => {}
        }
        *self = Anchor {
            at: now,
            time: if is_doubted { expected } else { system },
            doubted: doubted.filter(|_| is_doubted),
        };
        self.time
    }
}

/// The system's time: one for all of a process, which compare what they wrote. Jumps of more than an hour count when they
/// have lasted for ten minutes.
pub fn system() -> UnixMillis {
    static ANCHOR: LazyLock<Mutex<Anchor>> = LazyLock::new(|| {
        Mutex::new(Anchor {
            at: Instant::now(),
            time: UnixMillis::now(),
            doubted: None,
        })
    });
    let mut anchor = ANCHOR.lock().unwrap_or_else(PoisonError::into_inner);
    anchor.time(Instant::now(), UnixMillis::now)
}

/// Looks at the system's time again and again, where nobody else does: a jump that nobody saw is doubted when it is seen, which
/// may be long after it was put right. Never ends.
pub async fn watch_system() {
    loop {
        system();
        tokio::time::sleep(ANCHOR_EVERY).await;
    }
}

impl Clock {
    /// One that stands still at `now` until advanced.
    pub fn manual(now: UnixMillis) -> Clock {
        Clock::Manual(watch::Sender::new(now))
    }

    /// The time.
    pub fn now(&self) -> UnixMillis {
        match self {
            Clock::System => system(),
            Clock::Manual(now) => *now.borrow(),
        }
    }

    /// What the system says now, for a receiver that compares it with a clock of its own.
    pub fn told(&self) -> UnixMillis {
        match self {
            Clock::System => UnixMillis::now(),
            Clock::Manual(_) => self.now(),
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
            Clock::System => loop {
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

#[cfg(test)]
mod tests {
    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_000);
    const DAY: i64 = 86_400;

    /// What the clock says, in seconds since the start, where the system says `ahead` more than it should in these minutes.
    fn said(minutes: u64, ahead: impl Fn(u64) -> i64) -> Vec<i64> {
        let began = Instant::now();
        let mut anchor = Anchor {
            at: began,
            time: START,
            doubted: None,
        };
        let mut said = |minute: u64| {
            let passed = Duration::from_secs(60 * minute);
            let system = UnixMillis(START.plus(passed).0 + 1_000 * ahead(minute));
            (anchor.time(began + passed, || system).0 - START.0) / 1_000
        };
        (0..=minutes).map(&mut said).collect()
    }

    fn right(minutes: u64) -> Vec<i64> {
        (0..=minutes as i64).map(|minute| 60 * minute).collect()
    }

    #[test]
    fn a_clock_that_is_days_off_for_some_minutes_changes_nothing() {
        for off in [3 * DAY, -3 * DAY] {
            assert_eq!(
                said(30, |minute| if (5..14).contains(&minute) { off } else { 0 }),
                right(30)
            );
        }
        let twice = |minute| {
            if (5..14).contains(&minute) || (20..29).contains(&minute) {
                DAY
            } else {
                0
            }
        };
        assert_eq!(said(40, twice), right(40));
    }

    #[test]
    fn a_jump_that_lasts_counts() {
        let said = said(30, |minute| if minute >= 5 { DAY } else { 0 });
        assert_eq!(said[..15], right(30)[..15]);
        assert!(
            said[15..]
                .iter()
                .zip(15..)
                .all(|(said, minute)| *said == 60 * minute + DAY)
        );
    }

    #[test]
    fn a_correction_of_minutes_counts_within_one() {
        let said = said(3, |minute| if minute >= 2 { -1_800 } else { 0 });
        assert_eq!(said, [0, 60, 120 - 1_800, 180 - 1_800]);
    }
}
