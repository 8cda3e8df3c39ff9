//! The signing Secret's life, derived from the Secret itself: Missing, Stable, Introduced, Overlap, Retire. Pure.
//!
//! [`decide`] looks at the Secret as it is and names the one write that is due, if any; a crash anywhere finds the same
//! step again. Invariant: key material is never overwritten, only moved from `current` to `previous` and, after its
//! overlap, dropped.

use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::secret::SigningSecret;

/// What status cuts times to.
const STATUS_PRECISION: Duration = Duration::from_secs(1);

/// What the endpoint wants of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// How old a key may become; none: it changes on request only.
    pub interval: Option<Duration>,
    /// How long the old key still signs beside the new one.
    pub overlap: Duration,
}

/// The values of the endpoint's request annotations: any new value asks anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests<'a> {
    pub rotate: Option<&'a str>,
    pub revoke: Option<&'a str>,
}

/// Everything the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub secret: Option<&'a SigningSecret>,
    pub rotation: Rotation,
    pub requests: Requests<'a>,
    /// `status.delivery.signing`: the key the dispatcher signs with, and since when it has it.
    pub acknowledged: Option<(&'a str, Timestamp)>,
    /// Status says that there was a Secret before.
    pub known_before: bool,
    pub now: Timestamp,
}

/// Where the Secret stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Missing,
    Stable,
    /// The dispatcher has not loaded the new key yet; no clock runs.
    Introduced,
    /// Both keys sign until then.
    Overlap {
        until: Timestamp,
    },
}

/// The one write that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the Secret with a new key; `lost` when there was one before.
    Create { lost: bool },
    /// Give ids to a Secret that has none: one restored or made by hand.
    Adopt,
    /// `previous` := `current`, `current` := a new key.
    Rotate,
    /// Set `previous-expires`, once.
    Expire { at: Timestamp },
    /// Drop `previous`.
    Retire,
    /// Note that a revocation was seen when there was nothing to revoke.
    NoteRevoke,
    /// Count the age of a key from now on that nobody can tell when it was made.
    NoteCreated,
    /// Nothing to write before then, if ever.
    Wait { until: Option<Timestamp> },
}

/// Derives the state and the step.
pub fn decide(situation: Situation<'_>) -> (State, Step) {
    let Situation {
        secret,
        rotation,
        requests,
        acknowledged,
        known_before,
        now,
    } = situation;
    let Some(secret) = secret else {
        return (State::Missing, Step::Create { lost: known_before });
    };
    let Some(current_id) = secret.current_id.as_deref() else {
        return (State::Stable, Step::Adopt);
    };
    let asked = |request: Option<&str>, handled: &Option<String>| request.is_some() && request != handled.as_deref();
    let revoke = asked(requests.revoke, &secret.handled_revoke);
    if secret.previous.is_none() {
        let due = next_rotation(secret, rotation);
        let step = if asked(requests.rotate, &secret.handled_rotate) || due.is_some_and(|due| due <= now) {
            Step::Rotate
        } else if revoke {
            Step::NoteRevoke
        } else if rotation.interval.is_some() && due.is_none() {
            Step::NoteCreated
        } else {
            Step::Wait { until: due }
        };
        return (State::Stable, step);
    }
    let state = match (secret.previous_expires, acknowledged) {
        (Some(until), _) => State::Overlap { until },
        // Status cuts `since` to whole seconds: the key was loaded up to one later. A clock ahead of ours must not stretch
        // the overlap.
        (None, Some((id, since))) if id == current_id => State::Overlap {
            until: later(later(since, STATUS_PRECISION).min(now), rotation.overlap),
        },
        (None, _) => State::Introduced,
    };
    let step = match state {
        _ if revoke => Step::Retire,
        State::Overlap { until } if secret.previous_expires.is_none() => Step::Expire { at: until },
        State::Overlap { until } if until <= now => Step::Retire,
        State::Overlap { until } => Step::Wait { until: Some(until) },
        _ => Step::Wait { until: None },
    };
    (state, step)
}

/// When the current key will be replaced without being asked.
pub fn next_rotation(secret: &SigningSecret, rotation: Rotation) -> Option<Timestamp> {
    Some(later(secret.current_created?, rotation.interval?))
}

/// Later by `duration`, at whole seconds as annotations and status show them; the end of time when it overflows.
fn later(time: Timestamp, duration: Duration) -> Timestamp {
    let sum = SignedDuration::try_from(duration)
        .ok()
        .and_then(|d| time.checked_add(d).ok())
        .unwrap_or(Timestamp::MAX);
    let whole = Timestamp::from_second(sum.as_second()).unwrap_or(sum);
    // Rounded up: an overlap is never shorter than asked for.
    if whole < sum {
        whole.checked_add(SignedDuration::from_secs(1)).unwrap_or(whole)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::{KeyMaterial, Patch, apply_for_test};
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn key(byte: u8) -> String {
        crate::signing::SigningKey::generate([byte; 32]).to_text()
    }

    fn stable() -> SigningSecret {
        SigningSecret {
            current: KeyMaterial(key(1)),
            current_id: Some("k1".into()),
            current_created: Some(at(0)),
            ..SigningSecret::default()
        }
    }

    fn both() -> SigningSecret {
        SigningSecret {
            current: KeyMaterial(key(2)),
            current_id: Some("k2".into()),
            current_created: Some(at(10)),
            previous: Some(KeyMaterial(key(1))),
            previous_id: Some("k1".into()),
            ..stable()
        }
    }

    const HOURLY: Rotation = Rotation {
        interval: Some(Duration::from_secs(3600)),
        overlap: Duration::from_secs(60),
    };
    const UNASKED: Rotation = Rotation {
        interval: None,
        ..HOURLY
    };

    fn situation(secret: Option<&SigningSecret>, now: i64) -> Situation<'_> {
        Situation {
            secret,
            rotation: UNASKED,
            requests: Requests::default(),
            acknowledged: None,
            known_before: false,
            now: at(now),
        }
    }

    #[test]
    fn a_missing_secret_is_created_and_a_lost_one_says_so() {
        let base = situation(None, 0);
        assert_eq!(decide(base), (State::Missing, Step::Create { lost: false }));
        let lost = Situation {
            known_before: true,
            ..base
        };
        assert_eq!(decide(lost).1, Step::Create { lost: true });
    }

    #[test]
    fn a_secret_without_ids_is_adopted_before_anything_else() {
        let foreign = SigningSecret {
            current_id: None,
            current_created: None,
            ..stable()
        };
        let asked = Situation {
            requests: Requests {
                rotate: Some("now"),
                revoke: None,
            },
            ..situation(Some(&foreign), 0)
        };
        assert_eq!(decide(asked).1, Step::Adopt);
    }

    #[test]
    fn a_stable_key_changes_when_its_interval_is_over_or_when_newly_asked() {
        let secret = stable();
        let base = situation(Some(&secret), 3599);
        assert_eq!(decide(base).1, Step::Wait { until: None });
        let hourly = Situation {
            rotation: HOURLY,
            ..base
        };
        assert_eq!(decide(hourly).1, Step::Wait { until: Some(at(3600)) });
        let over = Situation {
            now: at(3600),
            ..hourly
        };
        assert_eq!(decide(over).1, Step::Rotate);
        let requests = Requests {
            rotate: Some("2"),
            revoke: None,
        };
        assert_eq!(decide(Situation { requests, ..base }).1, Step::Rotate);
        let handled = SigningSecret {
            handled_rotate: Some("2".into()),
            ..stable()
        };
        let again = Situation {
            requests,
            ..situation(Some(&handled), 5)
        };
        assert_eq!(decide(again).1, Step::Wait { until: None });
    }

    #[test]
    fn a_key_that_nobody_can_tell_the_age_of_is_counted_from_now_and_changed_an_interval_later() {
        let undated = SigningSecret {
            current_created: None,
            ..stable()
        };
        let base = situation(Some(&undated), 50);
        assert_eq!(
            decide(base).1,
            Step::Wait { until: None },
            "without an interval it does not matter"
        );
        let hourly = Situation {
            rotation: HOURLY,
            ..base
        };
        assert_eq!(decide(hourly).1, Step::NoteCreated);
        let requests = Requests {
            rotate: Some("1"),
            revoke: None,
        };
        assert_eq!(decide(Situation { requests, ..hourly }).1, Step::Rotate, "asked for");

        let patch = Patch::of(&Step::NoteCreated, Some(&undated), requests, at(50), || unreachable!()).unwrap();
        let dated = apply_for_test(Some(undated.clone()), &patch);
        assert_eq!(
            (&dated.current, &dated.current_id),
            (&undated.current, &undated.current_id)
        );
        assert_eq!(
            (dated.current_created, dated.handled_rotate.as_ref()),
            (Some(at(50)), None)
        );
        let secret = Some(&dated);
        assert_eq!(
            decide(Situation { secret, ..hourly }).1,
            Step::Wait { until: Some(at(3650)) }
        );
    }

    #[test]
    fn a_revocation_with_nothing_to_revoke_counts_as_handled() {
        let secret = stable();
        let requests = Requests {
            rotate: None,
            revoke: Some("1"),
        };
        let base = Situation {
            requests,
            ..situation(Some(&secret), 5)
        };
        assert_eq!(decide(base).1, Step::NoteRevoke);
        let noted = SigningSecret {
            handled_revoke: Some("1".into()),
            ..both()
        };
        let later = Situation {
            requests,
            ..situation(Some(&noted), 20)
        };
        assert_eq!(decide(later), (State::Introduced, Step::Wait { until: None }));
    }

    #[test]
    fn no_clock_runs_until_the_dispatcher_has_the_new_key() {
        let secret = both();
        let week = situation(Some(&secret), 7 * 86_400);
        let hourly = Situation {
            rotation: HOURLY,
            ..week
        };
        assert_eq!(decide(hourly), (State::Introduced, Step::Wait { until: None }));
        let old = Situation {
            acknowledged: Some(("k1", at(0))),
            ..week
        };
        assert_eq!(decide(old).0, State::Introduced);
    }

    #[test]
    fn the_overlap_begins_with_the_acknowledgement_and_is_set_once() {
        let secret = both();
        let loaded = Situation {
            acknowledged: Some(("k2", at(12))),
            ..situation(Some(&secret), 15)
        };
        assert_eq!(
            decide(loaded).1,
            Step::Expire { at: at(73) },
            "it was loaded at 12.0 or at 12.9"
        );
        let ahead = Situation {
            acknowledged: Some(("k2", at(9999))),
            ..loaded
        };
        assert_eq!(decide(ahead).1, Step::Expire { at: at(75) }, "a clock ahead of ours");
        let set = SigningSecret {
            previous_expires: Some(at(72)),
            ..both()
        };
        let moved = Situation {
            secret: Some(&set),
            acknowledged: None,
            ..loaded
        };
        assert_eq!(
            decide(moved),
            (State::Overlap { until: at(72) }, Step::Wait { until: Some(at(72)) }),
            "also when the dispatcher starts anew"
        );
        let over = Situation { now: at(72), ..moved };
        assert_eq!(decide(over).1, Step::Retire);
    }

    #[test]
    fn a_revocation_ends_the_overlap_at_once() {
        let set = SigningSecret {
            previous_expires: Some(at(100)),
            ..both()
        };
        let base = Situation {
            requests: Requests {
                rotate: Some("x"),
                revoke: Some("y"),
            },
            ..situation(Some(&set), 50)
        };
        assert_eq!(decide(base).1, Step::Retire);
    }

    /// Runs the machine from nothing, forgetting everything but the Secret between any two writes.
    #[test]
    fn a_crash_after_any_step_finds_the_next_one_from_the_secret_alone() {
        let requests = Requests {
            rotate: Some("a"),
            revoke: Some("b"),
        };
        let mut secret: Option<SigningSecret> = None;
        let mut steps = Vec::new();
        let mut now = 0;
        let mut serial = 0;
        while now < 8000 && steps.len() < 20 {
            let held = secret.clone();
            let acknowledged = held
                .as_ref()
                .and_then(|s| s.current_id.as_deref())
                .map(|id| (id, at(now)));
            let (_, step) = decide(Situation {
                rotation: HOURLY,
                requests,
                acknowledged,
                ..situation(held.as_ref(), now)
            });
            serial += 1;
            let patch = Patch::of(&step, held.as_ref(), requests, at(now), || {
                (format!("id{serial}"), KeyMaterial(key(serial)))
            });
            match (step, patch) {
                (Step::Wait { until: Some(until) }, None) => now = until.as_second() - at(0).as_second(),
                (Step::Wait { until: None }, None) => break,
                (step, Some(patch)) => {
                    secret = Some(apply_for_test(held, &patch));
                    steps.push(step);
                }
                (step, None) => panic!("{step:?} has no write"),
            }
        }
        assert_eq!(
            steps,
            [
                Step::Create { lost: false },
                Step::Rotate,
                Step::Expire { at: at(3660) },
                Step::Retire,
                Step::Rotate,
                Step::Expire { at: at(7260) },
                Step::Retire
            ],
            "requests present at creation count as handled"
        );
    }
}
