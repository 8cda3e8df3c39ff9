//! From what a reconcile found to Ready, Reconciling and Stalled. Pure.
//!
//! Invariant: Ready says "configured and loaded", never that a receiver is up; an abnormal condition is absent when it
//! does not hold.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::api::conditions::reasons::WAITING_FOR_DISPATCHER as WAITING;
use crate::api::conditions::{FALSE, READY, RECONCILING, STALLED, TRUE, UNKNOWN};
use crate::kubernetes::events::{Happening, Kind};
use crate::kubernetes::status::{NewCondition, condition};

/// How ready an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready {
        reason: &'static str,
        message: String,
    },
    /// Configured, but not loaded by every live dispatcher.
    Waiting {
        message: String,
    },
    /// Not usable as it is.
    Failed {
        reason: &'static str,
        message: String,
        /// Nothing will change until somebody edits something.
        stalled: bool,
    },
}

/// The conditions of one object for one generation, made from those before.
pub struct Conditions<'a> {
    pub previous: &'a [Condition],
    pub generation: i64,
    pub now: Timestamp,
    /// Whether the kind has the condition Reconciling.
    pub reconciling: bool,
}

impl Conditions<'_> {
    /// Ready, and Reconciling or Stalled where they hold.
    pub fn of(&self, readiness: &Readiness) -> Vec<Condition> {
        let (status, reason, message, stalled) = match readiness {
            Readiness::Ready { reason, message } => (TRUE, *reason, message, false),
            Readiness::Waiting { message } => (UNKNOWN, WAITING, message, false),
            Readiness::Failed {
                reason,
                message,
                stalled,
            } => (FALSE, *reason, message, *stalled),
        };
        let mut all = vec![self.one(READY, status, reason, message)];
        if stalled {
            all.push(self.one(STALLED, TRUE, reason, message));
        } else if status != TRUE && self.reconciling {
            all.push(self.one(RECONCILING, TRUE, reason, message));
        }
        all
    }

    /// One condition.
    pub fn one(&self, type_: &str, status: &str, reason: &str, message: &str) -> Condition {
        condition(
            self.previous,
            self.now,
            NewCondition {
                type_,
                status,
                reason,
                message: message.to_owned(),
                generation: self.generation,
            },
        )
    }
}

/// Whether Ready was True for this generation already: what was loaded stays loaded.
pub fn was_ready(previous: &[Condition], generation: i64) -> bool {
    previous
        .iter()
        .any(|c| c.type_ == READY && c.status == TRUE && c.observed_generation == Some(generation))
}

/// The Event of a changed Ready, if it is worth one: waiting for the dispatcher is not, and neither is that a new object, of
/// which nothing was ever wrong, becomes ready. `was_told` is whether its last Event said what is wrong.
pub fn transition(previous: &[Condition], new: &[Condition], was_told: bool) -> Option<Happening> {
    let ready = new.iter().find(|c| c.type_ == READY)?;
    let before = previous.iter().find(|c| c.type_ == READY);
    let same = before.is_some_and(|b| b.status == ready.status && b.reason == ready.reason);
    let recovers = was_told || before.is_some_and(|b| b.status == FALSE);
    if same || ready.status == UNKNOWN || (ready.status == TRUE && !recovers) {
        return None;
    }
    Some(Happening {
        kind: if ready.status == TRUE {
            Kind::Normal
        } else {
            Kind::Warning
        },
        reason: ready.reason.clone(),
        action: "Reconcile",
        note: ready.message.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(readiness: Readiness, reconciling: bool) -> Vec<(String, String, String)> {
        let conditions = Conditions {
            previous: &[],
            generation: 3,
            now: Timestamp::UNIX_EPOCH,
            reconciling,
        };
        let all = conditions.of(&readiness);
        all.into_iter().map(|c| (c.type_, c.status, c.reason)).collect()
    }

    fn row(type_: &str, status: &str, reason: &str) -> (String, String, String) {
        (type_.into(), status.into(), reason.into())
    }

    #[test]
    fn reconciling_holds_while_not_ready_unless_stalled() {
        let failed = |reason, stalled| Readiness::Failed {
            reason,
            message: String::new(),
            stalled,
        };
        let waiting = Readiness::Waiting { message: String::new() };
        let ready = Readiness::Ready {
            reason: "Resolved",
            message: String::new(),
        };
        assert_eq!(of(ready, true), [row("Ready", "True", "Resolved")]);
        assert_eq!(
            of(waiting.clone(), true),
            [row("Ready", "Unknown", WAITING), row("Reconciling", "True", WAITING)]
        );
        assert_eq!(of(waiting, false), [row("Ready", "Unknown", WAITING)]);
        assert_eq!(
            of(failed("SecretNotFound", false), true),
            [
                row("Ready", "False", "SecretNotFound"),
                row("Reconciling", "True", "SecretNotFound")
            ]
        );
        assert_eq!(
            of(failed("SecretConflict", true), true),
            [
                row("Ready", "False", "SecretConflict"),
                row("Stalled", "True", "SecretConflict")
            ]
        );
    }

    #[test]
    fn an_event_tells_a_transition_and_nothing_twice() {
        let conditions = |previous, readiness: &Readiness| {
            Conditions {
                previous,
                generation: 1,
                now: Timestamp::UNIX_EPOCH,
                reconciling: true,
            }
            .of(readiness)
        };
        let failed = Readiness::Failed {
            reason: "SecretNotFound",
            message: "m".into(),
            stalled: false,
        };
        let first = conditions(&[], &failed);
        assert_eq!(transition(&[], &first, false).unwrap().kind, Kind::Warning);
        let second = conditions(&first, &failed);
        assert_eq!(transition(&first, &second, true), None);
        let waiting = conditions(&second, &Readiness::Waiting { message: String::new() });
        assert_eq!(transition(&second, &waiting, true), None);
        let ready = Readiness::Ready {
            reason: "Resolved",
            message: "m".into(),
        };
        let ready = conditions(&waiting, &ready);
        assert_eq!(
            transition(&waiting, &ready, true).unwrap().kind,
            Kind::Normal,
            "it recovered"
        );
        assert_eq!(
            transition(&first, &ready, false).unwrap().kind,
            Kind::Normal,
            "told by another leader"
        );
        assert_eq!(
            transition(&waiting, &ready, false),
            None,
            "a new object is ready as it should be"
        );
        assert!(!was_ready(&waiting, 1));
    }
}
