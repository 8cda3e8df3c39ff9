//! How many requests a receiver wants: a token bucket for each endpoint. Owns one instant; knows nothing of messages.
//!
//! It keeps the time at which the bucket would be full again (the virtual scheduling of GCRA, ITU-T I.371), so that no
//! refill has to be counted. Invariant: in any stretch of time `t` at most `requests + requests * t / per` go out.

use std::time::Duration;

use crate::api::resolve::Rate;
use crate::ids::UnixMillis;

/// An endpoint's bucket, not yet bound to a rate: a change of the rate keeps what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// When it is full, in microseconds since 1970: a second has more tokens than milliseconds.
    full_at: Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    At(i64),
    /// Not looked at yet, and empty: after a restart.
    Never,
}

impl Bucket {
    /// A new endpoint's: as many as the rate allows at once.
    pub fn full() -> Bucket {
        Bucket { full_at: Full::At(0) }
    }

    /// After a restart: what went out before it is not known.
    pub fn empty() -> Bucket {
        Bucket { full_at: Full::Never }
    }

    /// Whether nothing of it is used.
    pub fn is_full(&self, now: UnixMillis) -> bool {
        matches!(self.full_at, Full::At(at) if at <= micros_of(now))
    }

    /// When the next request may go out: `now` or later. An empty bucket starts to fill when it is asked first.
    pub fn next(&mut self, rate: Rate, now: UnixMillis) -> UnixMillis {
        self.next_of(rate, 1, now)
    }

    /// The same for several at once, at most as many as the rate allows.
    pub fn next_of(&mut self, rate: Rate, requests: u32, now: UnixMillis) -> UnixMillis {
        let (per, token) = (micros(rate.per), token(rate));
        // A clock that was put back must not make anybody wait longer than from an empty bucket.
        let empty = micros_of(now).saturating_add(per);
        let full_at = match self.full_at {
            Full::At(at) => at.min(empty),
            Full::Never => empty,
        };
        self.full_at = Full::At(full_at);
        // Tokens are there when the bucket lacks no more than all others. Up to the next whole millisecond.
        let others = per.saturating_sub(token.saturating_mul(requests.into())).max(0);
        let next = full_at.saturating_sub(others);
        UnixMillis(next.saturating_add(999).div_euclid(1000)).max(now)
    }

    /// A request goes out.
    pub fn take(&mut self, rate: Rate, now: UnixMillis) {
        self.take_of(rate, 1, now);
    }

    /// Several go out.
    pub fn take_of(&mut self, rate: Rate, requests: u32, now: UnixMillis) {
        self.next_of(rate, requests, now);
        if let Full::At(at) = &mut self.full_at {
            let tokens = token(rate).saturating_mul(requests.into());
            *at = (*at).max(micros_of(now)).saturating_add(tokens);
        }
    }
}

/// The time in which one token comes, at least a microsecond.
fn token(rate: Rate) -> i64 {
    (micros(rate.per) / i64::from(rate.requests.max(1))).max(1)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn micros_of(at: UnixMillis) -> i64 {
    at.0.saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn rate(requests: u32, seconds: u64) -> Rate {
        Rate {
            requests,
            per: Duration::from_secs(seconds),
        }
    }

    fn takes_at(bucket: &mut Bucket, rate: Rate, now: UnixMillis) -> usize {
        let mut taken = 0;
        while bucket.next(rate, now) == now {
            bucket.take(rate, now);
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_full_bucket_gives_all_at_once_and_then_one_after_the_other() {
        let (mut bucket, rate) = (Bucket::full(), rate(4, 2));
        assert_eq!(takes_at(&mut bucket, rate, NOW), 4);
        let next = bucket.next(rate, NOW);
        assert_eq!(next.since(NOW), Duration::from_millis(500));
        assert_eq!(takes_at(&mut bucket, rate, next), 1);
        let later = NOW.plus(Duration::from_secs(3600));
        assert_eq!(takes_at(&mut bucket, rate, later), 4, "never more than its size");
    }

    #[test]
    fn an_empty_bucket_fills_from_when_it_is_asked_first() {
        let (mut bucket, rate) = (Bucket::empty(), rate(2, 60));
        assert_eq!(bucket.next(rate, NOW).since(NOW), Duration::from_secs(30));
        let minute = NOW.plus(Duration::from_secs(60));
        assert_eq!(takes_at(&mut bucket, rate, minute), 2);
    }

    #[test]
    fn a_clock_that_is_put_back_holds_nobody_up_for_longer_than_an_empty_bucket() {
        let (mut bucket, rate) = (Bucket::full(), rate(1, 10));
        bucket.take(rate, NOW);
        let before = UnixMillis(NOW.0 - 86_400_000);
        assert_eq!(bucket.next(rate, before).since(before), Duration::from_secs(10));
    }

    #[test]
    fn thousands_a_second_are_possible_within_a_millisecond() {
        let (mut bucket, rate) = (Bucket::full(), rate(10_000, 1));
        assert_eq!(takes_at(&mut bucket, rate, NOW), 10_000);
        assert_eq!(takes_at(&mut bucket, rate, NOW.plus(Duration::from_millis(1))), 10);
    }

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_its_share(
            requests in 1u32..200, seconds in 1u64..600, steps in proptest::collection::vec(0u64..5_000, 1..200),
        ) {
            let (mut bucket, rate) = (Bucket::full(), rate(requests, seconds));
            let (mut now, mut taken) = (NOW, 0);
            for step in steps {
                now = now.plus(Duration::from_millis(step));
                taken += takes_at(&mut bucket, rate, now);
                let share = f64::from(requests) * (1.0 + now.since(NOW).as_secs_f64() / seconds as f64);
                prop_assert!(taken as f64 <= share * 1.001 + 1.0, "{taken} of {share}");
            }
        }
    }
}
