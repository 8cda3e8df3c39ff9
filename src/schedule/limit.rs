//! How many attempts of one endpoint may be in flight. Owns one number; knows nothing of why an attempt failed.
//!
//! Invariant: between 1 and the ceiling, `maxInFlight`. It grows only while it is what holds the endpoint back.

use crate::ids::UnixMillis;

/// A new endpoint's limit: one hanging attempt does not stop it, and a small receiver is not surprised.
pub const START: u32 = 2;
/// After a restart and when a breaker closes: no herd.
pub const RAMP: u32 = 1;
/// The default `maxInFlight`.
pub const CEILING: u32 = 64;

/// An endpoint's adaptive limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    value: u32,
    ceiling: u32,
    halved: UnixMillis,
}

impl Limit {
    /// A limit that begins at `value`.
    pub fn starting_at(value: u32) -> Limit {
        Limit {
            value: value.clamp(1, CEILING),
            ceiling: CEILING,
            halved: UnixMillis(i64::MIN),
        }
    }

    /// Attempts that may be in flight now.
    pub fn value(self) -> u32 {
        self.value
    }

    /// Takes another ceiling, at least 1.
    pub fn set_ceiling(&mut self, ceiling: u32) {
        self.ceiling = ceiling.max(1);
        self.value = self.value.min(self.ceiling);
    }

    /// A success; `saturated` when as many were in flight as may be.
    pub fn grow(&mut self, saturated: bool) {
        if saturated {
            self.value = (self.value + 1).min(self.ceiling);
        }
    }

    /// A timeout, connect error or throttling of an attempt begun at `started`. Attempts that were under way when the
    /// limit last fell tell the same story once more, and do not count again.
    pub fn halve(&mut self, started: UnixMillis, now: UnixMillis) {
        if started >= self.halved {
            self.value = (self.value / 2).max(1);
            self.halved = now;
        }
    }

    /// Begins anew from 1.
    pub fn ramp(&mut self) {
        self.value = RAMP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_only_while_saturated_and_up_to_the_ceiling() {
        let mut limit = Limit::starting_at(START);
        limit.grow(false);
        assert_eq!(limit.value(), 2);
        for _ in 0..200 {
            limit.grow(true);
        }
        assert_eq!(limit.value(), CEILING);
    }

    #[test]
    fn the_ceiling_is_the_endpoints_own() {
        let mut limit = Limit::starting_at(START);
        limit.set_ceiling(1);
        limit.grow(true);
        assert_eq!(limit.value(), 1);
        limit.set_ceiling(100);
        for _ in 0..200 {
            limit.grow(true);
        }
        assert_eq!(limit.value(), 100);
    }

    #[test]
    fn a_burst_of_failures_that_were_under_way_together_halves_once() {
        let mut limit = Limit::starting_at(64);
        for _ in 0..64 {
            limit.halve(UnixMillis(1_000), UnixMillis(2_000));
        }
        assert_eq!(limit.value(), 32);
        limit.halve(UnixMillis(2_001), UnixMillis(2_002));
        assert_eq!(limit.value(), 16);
    }

    #[test]
    fn it_never_falls_under_one() {
        let mut limit = Limit::starting_at(1);
        limit.halve(UnixMillis(1), UnixMillis(2));
        assert_eq!(limit.value(), 1);
    }
}
