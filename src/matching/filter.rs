//! A subscription's filter at work: whether an event passes, and whether the filter fails.
//!
//! Owns what is told of a filter that cannot be evaluated; knows nothing of stores or Kubernetes. Invariant: an event for
//! which a filter fails does not pass, and the failure can be seen until the filter has worked again for a while.

use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::candidate::Candidate;
use crate::expression::{EvaluationError, Expression};
use crate::ids::UnixMillis;

/// Filters that look at one event; those beyond fail for it.
pub const MAX_FILTERED: usize = 1_000;
/// Without a failure for so long a filter does not fail any more.
const QUIET: Duration = Duration::from_secs(300);

impl Candidate<'_> {
    /// Whether the event passes the filter, or why the filter has no answer.
    pub fn passes(&mut self, filter: &Expression) -> Result<bool, EvaluationError> {
        self.looked += 1;
        if self.looked > MAX_FILTERED {
            return Err(EvaluationError::Failed(format!(
                "more than {MAX_FILTERED} filtered subscriptions take events of this type and source"
            )));
        }
        filter.test(self.scope())
    }
}

/// How a filter has fared, for status.
#[derive(Debug, Default)]
pub struct FilterHealth {
    state: AtomicU8,
    last_failure: AtomicI64,
    why: Mutex<String>,
}

/// Nothing was told by this process: status may say what one before it found.
const UNTOLD: u8 = 0;
const WELL: u8 = 1;
const FAILING: u8 = 2;

impl FilterHealth {
    /// Why it fails, while it does.
    pub fn failing(&self) -> Option<String> {
        let why = || self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.state.load(Ordering::Acquire) == FAILING).then(why)
    }

    /// Whether this process knows how it fares.
    pub fn is_told(&self) -> bool {
        self.state.load(Ordering::Acquire) != UNTOLD
    }

    /// Nobody could be told: the next evaluation is news again.
    pub fn not_told(&self) {
        self.state.store(UNTOLD, Ordering::Release);
    }

    /// Notes an evaluation; true when what status says may have to change. Costs nothing while all goes well.
    #[must_use]
    pub fn note(&self, result: &Result<bool, EvaluationError>, now: UnixMillis) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        match result {
            Ok(_) => {
                let last = UnixMillis(self.last_failure.load(Ordering::Relaxed));
                let is_over = state == UNTOLD || (state == FAILING && now.since(last) >= QUIET);
                is_over && self.state.swap(WELL, Ordering::AcqRel) == state
            }
            Err(error) => {
                self.last_failure.store(now.0, Ordering::Relaxed);
                if state == FAILING {
                    return false;
                }
                *self.why.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
                self.state.swap(FAILING, Ordering::AcqRel) != FAILING
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_fails_from_its_first_failure_until_it_has_worked_for_a_while() {
        let health = FilterHealth::default();
        let failure = || Err(EvaluationError::Missing("score".into()));
        let at = |seconds: i64| UnixMillis(seconds * 1_000);
        assert!(
            health.note(&Ok(true), at(0)),
            "a process before may have said that it fails"
        );
        assert!(!health.note(&Ok(true), at(0)));
        assert!(health.note(&failure(), at(1)), "news");
        assert!(!health.note(&failure(), at(2)));
        assert!(health.failing().unwrap().contains("score"));
        assert!(!health.note(&Ok(false), at(301)));
        assert!(health.failing().is_some(), "not quiet for long enough");
        assert!(health.note(&Ok(false), at(302)));
        assert_eq!(health.failing(), None);
        assert!(!health.note(&Ok(true), at(303)));
    }
}
