//! The circuit breaker of one endpoint. Owns when to stop and when to look again; knows nothing of messages.
//!
//! Invariant: while open at most one attempt, the probe, is under way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff;
use crate::ids::UnixMillis;

/// Endpoint faults in a row that open it.
pub const OPEN_AFTER: u32 = 5;
/// The first probe comes after this,
pub const PROBE_FIRST: Duration = Duration::from_secs(30);
/// later ones after twice the wait before, up to this.
pub const PROBE_MAX: Duration = Duration::from_secs(600);
/// Added to a probe's wait, so that endpoints of one host are not probed together.
pub const PROBE_JITTER_PERCENT: u8 = 10;

/// Closed, or open until a probe succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Breaker {
    /// Attempts go out; so many endpoint faults came in a row.
    Closed { faults: u32 },
    /// None goes out but the probe at `probe_at` (milliseconds since 1970), the next one twice `wait_ms` later.
    Open { probe_at: i64, wait_ms: u64 },
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker::Closed { faults: 0 }
    }
}

impl Breaker {
    /// Whether only a probe may go out.
    pub fn is_open(self) -> bool {
        matches!(self, Breaker::Open { .. })
    }

    /// When the next probe may start, if open.
    pub fn probe_at(self) -> Option<UnixMillis> {
        match self {
            Breaker::Open { probe_at, .. } => Some(UnixMillis(probe_at)),
            Breaker::Closed { .. } => None,
        }
    }

    /// An endpoint fault of an ordinary attempt: the fifth in a row opens it. True when it opened now.
    pub fn fault(&mut self, now: UnixMillis, random: f64) -> bool {
        match self {
            Breaker::Closed { faults } => {
                *faults = faults.saturating_add(1);
                *faults >= OPEN_AFTER && self.open(now, random)
            }
            Breaker::Open { .. } => false,
        }
    }

    /// Opens it whatever was counted; true when it was closed.
    pub fn open(&mut self, now: UnixMillis, random: f64) -> bool {
        if self.is_open() {
            return false;
        }
        self.wait_from(now, PROBE_FIRST, random);
        true
    }

    /// The probe met an endpoint fault: look again after twice the time.
    pub fn probe_failed(&mut self, now: UnixMillis, random: f64) {
        if let Breaker::Open { wait_ms, .. } = *self {
            let wait = Duration::from_millis(wait_ms.saturating_mul(2)).min(PROBE_MAX);
            self.wait_from(now, wait, random);
        }
    }

    /// No probe before `until`: the receiver asked for it.
    pub fn not_before(&mut self, until: UnixMillis) {
        if let Breaker::Open { probe_at, .. } = self {
            *probe_at = (*probe_at).max(until.0);
        }
    }

    /// Something changed: the next probe may go out now.
    pub fn probe_now(&mut self, now: UnixMillis) {
        if let Breaker::Open { probe_at, .. } = self {
            *probe_at = (*probe_at).min(now.0);
        }
    }

    /// The endpoint answered: closed, nothing counted. True when it was open.
    pub fn close(&mut self) -> bool {
        let was_open = self.is_open();
        *self = Breaker::default();
        was_open
    }

    fn wait_from(&mut self, now: UnixMillis, wait: Duration, random: f64) {
        *self = Breaker::Open {
            probe_at: now.plus(backoff::jittered(wait, PROBE_JITTER_PERCENT, random)).0,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    #[test]
    fn the_fifth_fault_in_a_row_opens_it_and_an_answer_between_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.fault(NOW, 0.0));
        }
        breaker.close();
        for _ in 0..4 {
            assert!(!breaker.fault(NOW, 0.0));
        }
        assert!(breaker.fault(NOW, 0.0));
        assert_eq!(breaker.probe_at(), Some(NOW.plus(PROBE_FIRST)));
    }

    #[test]
    fn probes_double_from_thirty_seconds_to_ten_minutes() {
        let mut breaker = Breaker::default();
        breaker.open(NOW, 0.0);
        let mut waits = vec![];
        for _ in 0..7 {
            waits.push(breaker.probe_at().unwrap().since(NOW).as_secs());
            breaker.probe_failed(NOW, 0.0);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
    }
}
