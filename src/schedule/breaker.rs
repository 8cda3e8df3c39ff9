//! The circuit breaker of one endpoint. Owns when to stop and when to look again; knows nothing of messages.
//!
//! Invariant: while open at most one attempt, the probe, is under way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::backoff;
use crate::api::resolve::BreakerPolicy;
use crate::ids::UnixMillis;

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

    /// An endpoint fault of an ordinary attempt: so many in a row open it. True when it opened now.
    pub fn fault(&mut self, policy: &BreakerPolicy, now: UnixMillis, random: f64) -> bool {
        match self {
            Breaker::Closed { faults } => {
                *faults = faults.saturating_add(1);
                *faults >= policy.open_after && self.open(policy, now, random)
            }
            Breaker::Open { .. } => false,
        }
    }

    /// Opens it whatever was counted; true when it was closed.
    pub fn open(&mut self, policy: &BreakerPolicy, now: UnixMillis, random: f64) -> bool {
        if self.is_open() {
            return false;
        }
        self.wait_from(now, policy.probe_after, random);
        true
    }

    /// The probe met an endpoint fault: look again after twice the time.
    pub fn probe_failed(&mut self, policy: &BreakerPolicy, now: UnixMillis, random: f64) {
        if let Breaker::Open { wait_ms, .. } = *self {
            let wait = Duration::from_millis(wait_ms.saturating_mul(2)).min(policy.probe_after_max);
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

    fn policy() -> BreakerPolicy {
        BreakerPolicy::default()
    }

    #[test]
    fn the_fifth_fault_in_a_row_opens_it_and_an_answer_between_starts_the_count_anew() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.fault(&policy(), NOW, 0.0));
        }
        breaker.close();
        for _ in 0..4 {
            assert!(!breaker.fault(&policy(), NOW, 0.0));
        }
        assert!(breaker.fault(&policy(), NOW, 0.0));
        assert_eq!(breaker.probe_at(), Some(NOW.plus(Duration::from_secs(30))));
    }

    #[test]
    fn probes_double_from_thirty_seconds_to_ten_minutes() {
        let mut breaker = Breaker::default();
        breaker.open(&policy(), NOW, 0.0);
        let mut waits = vec![];
        for _ in 0..7 {
            waits.push(breaker.probe_at().unwrap().since(NOW).as_secs());
            breaker.probe_failed(&policy(), NOW, 0.0);
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn a_policy_of_its_own_opens_sooner_and_probes_oftener() {
        let policy = BreakerPolicy {
            open_after: 1,
            probe_after: Duration::from_secs(2),
            probe_after_max: Duration::from_secs(3),
        };
        let mut breaker = Breaker::default();
        assert!(breaker.fault(&policy, NOW, 0.0));
        assert_eq!(breaker.probe_at(), Some(NOW.plus(Duration::from_secs(2))));
        breaker.probe_failed(&policy, NOW, 0.0);
        assert_eq!(breaker.probe_at(), Some(NOW.plus(Duration::from_secs(3))));
    }
}
