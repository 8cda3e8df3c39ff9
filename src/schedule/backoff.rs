//! How long a message waits after an attempt. Owns the arithmetic only; knows no endpoint.
//!
//! Invariant: never earlier than the schedule says, never later than the schedule with full jitter or the capped
//! Retry-After, whichever is later.

use std::time::Duration;

use crate::api::resolve::RetryPolicy;

/// Our own faults are tried again after this, doubling,
pub const OURS_FIRST: Duration = Duration::from_secs(1);
/// up to this: descriptors and resolvers come back within seconds, and nobody is asked meanwhile.
pub const OURS_MAX: Duration = Duration::from_secs(30);

/// The attempts that a schedule allows: one more than its waits.
pub fn attempts(policy: &RetryPolicy) -> u16 {
    u16::try_from(policy.schedule.len() + 1).unwrap_or(u16::MAX)
}

/// Whether the attempt after `consumed` ones is the schedule's last.
pub fn is_last(policy: &RetryPolicy, consumed: u16) -> bool {
    consumed.saturating_add(1) >= attempts(policy)
}

/// The wait after attempt number `attempt` (from 1), with jitter; beyond the schedule, its last entry. `random` is in [0, 1).
pub fn wait(policy: &RetryPolicy, attempt: u16, random: f64) -> Duration {
    let place = usize::from(attempt.saturating_sub(1));
    let base = policy
        .schedule
        .get(place)
        .or(policy.schedule.last())
        .copied()
        .unwrap_or(OURS_FIRST);
    jittered(base, policy.jitter_percent, random)
}

/// What a Retry-After may ask for.
pub fn retry_after(policy: &RetryPolicy, asked: Duration) -> Duration {
    asked.min(policy.retry_after_max)
}

/// `base` and up to `percent` of it more.
pub fn jittered(base: Duration, percent: u8, random: f64) -> Duration {
    let share = f64::from(percent) / 100.0 * random.clamp(0.0, 1.0);
    base.saturating_add(Duration::try_from_secs_f64(base.as_secs_f64() * share).unwrap_or_default())
}

/// The wait after the `streak`-th fault of our own in a row (from 1), with a fifth of jitter.
pub fn ours(streak: u32, random: f64) -> Duration {
    let doubled = OURS_FIRST.saturating_mul(1 << streak.saturating_sub(1).min(5));
    jittered(doubled, 20, random).min(OURS_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(seconds: &[u64], jitter: u8) -> RetryPolicy {
        RetryPolicy {
            schedule: seconds.iter().copied().map(Duration::from_secs).collect(),
            jitter_percent: jitter,
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn the_default_schedule_is_five_attempts() {
        let policy = policy(&[1, 10, 60, 300], 0);
        assert_eq!(attempts(&policy), 5);
        let waits: Vec<u64> = (1..=4).map(|n| wait(&policy, n, 0.9).as_secs()).collect();
        assert_eq!(waits, [1, 10, 60, 300]);
        assert!(!is_last(&policy, 3));
        assert!(is_last(&policy, 4));
    }

    #[test]
    fn our_own_faults_are_tried_again_within_one_to_thirty_seconds() {
        assert_eq!(ours(1, 0.0), OURS_FIRST);
        assert_eq!(ours(40, 0.99), OURS_MAX);
    }

    proptest! {
        #[test]
        fn jitter_adds_and_never_subtracts(base in 1u64..100_000, percent in 0u8..=100, random in 0.0f64..1.0) {
            let base = Duration::from_millis(base);
            let waited = jittered(base, percent, random);
            prop_assert!(waited >= base);
            prop_assert!(waited <= base.mul_f64(1.0 + f64::from(percent) / 100.0) + Duration::from_micros(1));
        }

        #[test]
        fn no_retry_after_goes_over_its_cap(asked in any::<u64>()) {
            let policy = policy(&[1], 10);
            prop_assert!(retry_after(&policy, Duration::from_secs(asked)) <= policy.retry_after_max);
        }
    }
}
