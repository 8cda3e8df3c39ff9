//! A token bucket for writes to the API server. Time is an argument of the core; the shell around it waits.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// `rate` writes a second in the long run, `burst` at once.
#[derive(Debug)]
pub struct Bucket {
    /// What one token takes to grow.
    interval: Duration,
    burst: u32,
    /// When the bucket will be full again (generic cell rate algorithm: one instant is the whole state).
    full_at: Instant,
}

impl Bucket {
    /// A full bucket. A rate or burst of zero counts as one.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Bucket {
        Bucket {
            interval: Duration::from_secs(1) / rate.max(1),
            burst: burst.max(1),
            full_at: now,
        }
    }

    /// Takes one token, or says how long until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now);
        let earliest = full_at + self.interval;
        let limit = now + self.interval * self.burst;
        if earliest > limit {
            return Err(earliest - limit);
        }
        self.full_at = earliest;
        Ok(())
    }

    /// Puts back a token that was taken and not used.
    pub fn give_back(&mut self) {
        self.full_at = self.full_at.checked_sub(self.interval).unwrap_or(self.full_at);
    }

    /// Changes the rate, keeping what was spent: a replica's share changes when another comes or goes.
    pub fn set_rate(&mut self, rate: u32) {
        self.interval = Duration::from_secs(1) / rate.max(1);
    }
}

/// A bucket that several tasks share.
#[derive(Debug)]
pub struct Budget {
    bucket: Mutex<Bucket>,
}

impl Budget {
    /// A full budget of `rate` a second with `burst` at once.
    pub fn new(rate: u32, burst: u32) -> Budget {
        Budget {
            bucket: Mutex::new(Bucket::new(rate, burst, Instant::now())),
        }
    }

    /// Takes a token if there is one, else says how long until there is.
    pub fn try_take(&self) -> Result<(), Duration> {
        self.locked(|bucket| bucket.take(Instant::now()))
    }

    /// Waits for a token.
    pub async fn take(&self) {
        while let Err(wait) = self.try_take() {
            tokio::time::sleep(wait).await;
        }
    }

    /// See [`Bucket::set_rate`].
    pub fn set_rate(&self, rate: u32) {
        self.locked(|bucket| bucket.set_rate(rate));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Bucket) -> T) -> T {
        // A poisoned bucket still holds a valid instant.
        f(&mut self.bucket.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 20, start);
        let at_once = (0..100).filter(|_| bucket.take(start).is_ok()).count();
        assert_eq!(at_once, 20);
        let wait = bucket.take(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(later).is_ok()).count(), 10);
        let idle = start + Duration::from_secs(3600);
        assert_eq!((0..100).filter(|_| bucket.take(idle).is_ok()).count(), 20);
        bucket.give_back();
        assert_eq!((0..100).filter(|_| bucket.take(idle).is_ok()).count(), 1);
    }
}
