//! How many events a second a namespace may post, where the administrator's policy says so.
//!
//! Owns one token bucket for each namespace with such a quota; knows nothing of what is in an event, nor whether it was
//! accepted before: the store would have to be asked, which is what the quota spares. Invariant: in any stretch of `t`
//! seconds at most `quota * (1 + t)` events of a namespace pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::api::resolve::Rate;
use crate::ids::UnixMillis;
use crate::schedule::rate::Bucket;

/// Buckets kept before those that are full again are dropped: namespaces come and go.
const KEPT: usize = 1_024;

/// Why events do not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// They would after this time.
    Wait(Duration),
    /// They never will: one request has more events than a second may have.
    Never,
}

/// The buckets, by UID of the namespace.
#[derive(Debug, Default)]
pub struct Pace {
    buckets: Mutex<HashMap<Arc<str>, Bucket>>,
}

impl Pace {
    /// Takes all of a request's events, or none.
    pub fn take(&self, namespace: &Arc<str>, per_second: u32, events: usize, now: UnixMillis) -> Result<(), Refused> {
        let rate = Rate {
            requests: per_second,
            per: Duration::from_secs(1),
        };
        let events = u32::try_from(events).unwrap_or(u32::MAX);
        if events > per_second {
            return Err(Refused::Never);
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= KEPT && !buckets.contains_key(namespace) {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        let bucket = buckets.entry(Arc::clone(namespace)).or_insert_with(Bucket::full);
        let next = bucket.next_of(rate, events, now);
        if next > now {
            return Err(Refused::Wait(next.since(now)));
        }
        bucket.take_of(rate, events, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn after(millis: u64) -> UnixMillis {
        NOW.plus(Duration::from_millis(millis))
    }

    #[test]
    fn a_request_passes_whole_or_not_at_all_and_each_namespace_has_its_own_pace() {
        let pace = Pace::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(pace.take(&a, 10, 7, NOW), Ok(()));
        let wait = Err(Refused::Wait(Duration::from_millis(400)));
        assert_eq!(pace.take(&a, 10, 7, NOW), wait, "three are left");
        assert_eq!(pace.take(&a, 10, 3, NOW), Ok(()), "and were not taken");
        assert_eq!(pace.take(&b, 10, 10, NOW), Ok(()));
        assert_eq!(pace.take(&a, 10, 7, after(700)), Ok(()));
        assert_eq!(pace.take(&a, 10, 11, after(60_000)), Err(Refused::Never));
    }

    #[test]
    fn namespaces_that_went_are_forgotten() {
        let pace = Pace::default();
        for n in 0..KEPT + 5 {
            let namespace: Arc<str> = n.to_string().into();
            assert_eq!(pace.take(&namespace, 1, 1, after(2_000 * n as u64)), Ok(()));
        }
        assert!(pace.buckets.lock().unwrap().len() < 10);
    }
}
