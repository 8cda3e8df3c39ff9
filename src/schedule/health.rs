//! What one endpoint's history amounts to: breaker, limit, hold, failing since, disabled. Owns the state that outlives a
//! process and its stored form; knows nothing of queues or sockets.
//!
//! Invariant: the stored form never holds a response, a header value (but the number of an allowed rate) or a key; one that
//! cannot be read counts as new.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::breaker::Breaker;
use super::handshake::{Agreement, Question};
use super::limit::{self, Limit};
use super::rate::Bucket;
use crate::delivery::{Refusal, TokenTrouble};
use crate::ids::{MessageId, UnixMillis};

/// Failures kept for status: enough to see a pattern.
pub const RECENT_FAILURES: usize = 5;

/// Without an attempt for this long an endpoint was not failing but idle: the waits of a schedule and the pauses that a
/// receiver may ask for are a day at most, twice that with jitter, so a longer gap means that nothing waited.
pub const SILENCE: Duration = Duration::from_secs(49 * 3600);

/// Why nothing goes out until a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// The receiver asked for it.
    RetryAfter,
    /// A resolved address is forbidden.
    Blocked { address: IpAddr },
    /// Our own fault.
    Ours,
    /// The token server is away.
    Token(TokenTrouble),
}

impl HoldReason {
    /// Neither the receiver's doing nor the policy's.
    pub fn is_ours(self) -> bool {
        matches!(self, HoldReason::Ours | HoldReason::Token(_))
    }
}

/// A hold: nothing goes out before `until`. A blocked or own fault is then tried by one attempt alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub reason: HoldReason,
    pub until: UnixMillis,
}

/// Why an endpoint was disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DisabledBy {
    /// 410.
    Gone,
    /// No success for `disableAfter`.
    Failing,
}

/// Disabled until a newer generation, another object of the name, or a new `tidings.dev/enable-requested-at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disabled {
    pub by: DisabledBy,
    pub at: i64,
    pub generation: i64,
}

/// One failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureNote {
    pub at: UnixMillis,
    pub message: MessageId,
    pub status: Option<u16>,
    pub reason: &'static str,
}

/// What may go out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Ordinary attempts, up to `limit` in flight.
    Go { limit: u32 },
    /// One attempt, with nothing else in flight: the breaker's probe, or the one that begins with the handshake.
    Probe,
    /// Nothing before this time.
    Until(UnixMillis),
    /// Nothing until somebody enables it.
    Disabled,
}

/// One endpoint's state.
#[derive(Clone, Debug)]
pub struct Health {
    pub breaker: Breaker,
    pub limit: Limit,
    pub bucket: Bucket,
    pub hold: Option<Hold>,
    pub ours_streak: u32,
    pub disabled: Option<Disabled>,
    pub handled_enable: Option<String>,
    /// The object's UID: a namesake made after it went is another endpoint, whose generations begin anew.
    pub uid: Option<String>,
    /// The newest generation seen.
    pub generation: Option<i64>,
    pub failing_since: Option<UnixMillis>,
    pub consecutive_failures: u32,
    pub last_status: Option<u16>,
    pub last_success: Option<UnixMillis>,
    /// Newest first.
    pub recent: VecDeque<FailureNote>,
    /// The attempt that ended last failed.
    pub last_failed: bool,
    /// The current signing key's id, and since when it is in use.
    pub signing: Option<(String, UnixMillis)>,
    /// What the receiver must agree to, as of the spec in use.
    pub question: Option<Question>,
    pub agreement: Option<Agreement>,
    /// Why it does not agree: the breaker is open, and its probes begin with the question.
    pub refusal: Option<Refusal>,
}

impl Default for Health {
    /// A new endpoint's.
    fn default() -> Self {
        Health {
            breaker: Breaker::default(),
            limit: Limit::starting_at(limit::START),
            bucket: Bucket::full(),
            hold: None,
            ours_streak: 0,
            disabled: None,
            handled_enable: None,
            uid: None,
            generation: None,
            failing_since: None,
            consecutive_failures: 0,
            last_status: None,
            last_success: None,
            recent: VecDeque::new(),
            last_failed: false,
            signing: None,
            question: None,
            agreement: None,
            refusal: None,
        }
    }
}

/// What a new spec changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// A newer generation, or another object: older due times no longer count.
    pub changed: bool,
    /// It was disabled and is not any more.
    pub enabled: bool,
    /// Something durable changed.
    pub durable: bool,
}

impl Health {
    /// What may go out at `now`.
    pub fn gate(&self, now: UnixMillis) -> Gate {
        if self.disabled.is_some() {
            return Gate::Disabled;
        }
        let held = self.hold.filter(|hold| hold.until > now).map(|hold| hold.until);
        match (self.breaker.probe_at(), held) {
            (Some(probe), held) if probe > now || held.is_some() => Gate::Until(held.map_or(probe, |h| h.max(probe))),
            (Some(_), _) => Gate::Probe,
            (None, Some(until)) => Gate::Until(until),
            (None, None) if self.unanswered().is_some() => Gate::Probe,
            (None, None) => Gate::Go {
                limit: self.limit.value(),
            },
        }
    }

    /// A spec was loaded. The same one again changes nothing, also after a restart.
    pub fn observe_spec(
        &mut self,
        uid: &str,
        generation: i64,
        enable_request: Option<&str>,
        now: UnixMillis,
    ) -> Observed {
        let recreated = self.uid.as_deref().is_some_and(|before| before != uid);
        let mut observed = Observed {
            changed: recreated || self.generation.is_some_and(|before| generation > before),
            ..Observed::default()
        };
        if self.uid.as_deref() != Some(uid) || self.generation != Some(generation) {
            self.uid = Some(uid.to_owned());
            self.generation = Some(generation);
            observed.durable = true;
        }
        let asked = enable_request.is_some() && enable_request != self.handled_enable.as_deref();
        if asked {
            // Also while enabled: a request left in Git must not undo every later disabling.
            self.handled_enable = enable_request.map(str::to_owned);
            observed.durable = true;
        }
        let enabled = |disabled: &Disabled| recreated || asked || generation > disabled.generation;
        observed.enabled = self.disabled.as_ref().is_some_and(enabled);
        if observed.enabled || recreated {
            self.disabled = None;
            self.failing_since = None;
            self.breaker.close();
            self.limit.ramp();
            observed.durable = true;
        }
        if observed.changed || observed.enabled {
            self.hold = None;
            self.breaker.probe_now(now);
        }
        observed
    }

    /// The policy opens something else: what was blocked need not wait for the next look. True when something was.
    pub fn look_at_block_anew(&mut self) -> bool {
        let blocked = |hold: &mut Hold| matches!(hold.reason, HoldReason::Blocked { .. });
        self.hold.take_if(blocked).is_some()
    }

    /// A bug of ours was met: nothing goes out before `until`, and then as much as before.
    pub fn rest(&mut self, until: UnixMillis) {
        if self.hold.is_none_or(|hold| hold.until < until) {
            let reason = HoldReason::Ours;
            self.hold = Some(Hold { reason, until });
        }
    }

    /// The key in use, if any; true when it is another than before.
    pub fn observe_signing(&mut self, key: Option<&str>, now: UnixMillis) -> bool {
        if self.signing.as_ref().map(|(id, _)| id.as_str()) == key {
            return false;
        }
        self.signing = key.map(|key| (key.to_owned(), now));
        true
    }

    /// Notes a success; true when it closed the breaker.
    pub(super) fn succeeded(&mut self, status: u16, saturated: bool, now: UnixMillis) -> bool {
        self.answered();
        self.failing_since = None;
        self.consecutive_failures = 0;
        self.last_failed = false;
        self.last_status = Some(status);
        self.last_success = Some(now);
        let closed = self.breaker.close();
        match closed {
            true => self.limit.ramp(),
            false => self.limit.grow(saturated),
        }
        closed
    }

    /// Notes a failure; true when it has now failed for too long.
    pub(super) fn failed(&mut self, note: FailureNote, disable_after: Option<Duration>, now: UnixMillis) -> bool {
        self.answered();
        let idle = self.recent.front().is_none_or(|last| now.since(last.at) > SILENCE);
        if idle || self.failing_since.is_none() {
            self.failing_since = Some(now);
        }
        self.consecutive_failures = self.consecutive_failures.saturating_add(1);
        self.last_failed = true;
        if note.status.is_some() {
            self.last_status = note.status;
        }
        self.recent.push_front(note);
        self.recent.truncate(RECENT_FAILURES);
        self.failing_since
            .zip(disable_after)
            .is_some_and(|(since, after)| now.since(since) >= after)
    }

    /// Disables the endpoint, as of the generation in use.
    pub(super) fn disable(&mut self, by: DisabledBy, now: UnixMillis) {
        self.disabled = Some(Disabled {
            by,
            at: now.0,
            generation: self.generation.unwrap_or(0),
        });
    }

    /// An attempt was made, so no block and no fault of ours stood in its way.
    fn answered(&mut self) {
        self.ours_streak = 0;
        if self.hold.is_some_and(|hold| hold.reason != HoldReason::RetryAfter) {
            self.hold = None;
        }
    }

    /// The form that the store keeps.
    pub fn store(&self) -> Bytes {
        let failure = |note: &FailureNote| StoredFailure {
            at: note.at.0,
            message: note.message.0,
            status: note.status,
            reason: note.reason.to_owned(),
        };
        let stored = Stored {
            breaker: self.breaker,
            pause: self
                .hold
                .filter(|hold| hold.reason == HoldReason::RetryAfter)
                .map(|hold| hold.until.0),
            disabled: self.disabled,
            handled_enable: self.handled_enable.clone(),
            uid: self.uid.clone(),
            generation: self.generation,
            failing_since: self.failing_since.map(|at| at.0),
            consecutive_failures: self.consecutive_failures,
            last_status: self.last_status,
            last_success: self.last_success.map(|at| at.0),
            recent: self.recent.iter().map(failure).collect(),
            last_failed: self.last_failed,
            signing: self.signing.as_ref().map(|(id, at)| (id.clone(), at.0)),
            agreement: self.agreement,
            refusal: self.refusal,
        };
        // Plain numbers and strings: cannot fail; an empty form would read as new.
        Bytes::from(serde_json::to_vec(&stored).unwrap_or_default())
    }

    /// What a restart leaves of an endpoint of which nothing else is stored: the limit is 1 and the bucket empty, whatever
    /// they were, so that no herd starts.
    pub fn after_restart() -> Health {
        Health {
            limit: Limit::starting_at(limit::RAMP),
            bucket: Bucket::empty(),
            ..Health::default()
        }
    }

    /// The state after a restart (see [`Health::after_restart`]).
    pub fn restore(bytes: &[u8]) -> Health {
        let Ok(stored) = serde_json::from_slice::<Stored>(bytes) else {
            return Health::after_restart();
        };
        let failure = |stored: StoredFailure| FailureNote {
            at: UnixMillis(stored.at),
            message: MessageId(stored.message),
            status: stored.status,
            reason: super::decide::known_reason(&stored.reason),
        };
        let Health {
            limit,
            bucket,
            ours_streak,
            ..
        } = Health::after_restart();
        Health {
            breaker: stored.breaker,
            limit,
            bucket,
            ours_streak,
            hold: stored.pause.map(|until| Hold {
                reason: HoldReason::RetryAfter,
                until: UnixMillis(until),
            }),
            disabled: stored.disabled,
            handled_enable: stored.handled_enable,
            uid: stored.uid,
            generation: stored.generation,
            failing_since: stored.failing_since.map(UnixMillis),
            consecutive_failures: stored.consecutive_failures,
            last_status: stored.last_status,
            last_success: stored.last_success.map(UnixMillis),
            recent: stored.recent.into_iter().take(RECENT_FAILURES).map(failure).collect(),
            last_failed: stored.last_failed,
            signing: stored.signing.map(|(id, at)| (id, UnixMillis(at))),
            question: None,
            agreement: stored.agreement,
            refusal: stored.refusal,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    breaker: Breaker,
    pause: Option<i64>,
    disabled: Option<Disabled>,
    handled_enable: Option<String>,
    uid: Option<String>,
    generation: Option<i64>,
    failing_since: Option<i64>,
    consecutive_failures: u32,
    last_status: Option<u16>,
    last_success: Option<i64>,
    recent: Vec<StoredFailure>,
    last_failed: bool,
    signing: Option<(String, i64)>,
    agreement: Option<Agreement>,
    refusal: Option<Refusal>,
}

#[derive(Serialize, Deserialize)]
struct StoredFailure {
    at: i64,
    message: i64,
    status: Option<u16>,
    reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resolve::BreakerPolicy;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const UID: &str = "5d0c";
    const DISABLE_AFTER: Duration = Duration::from_secs(120 * 3600);

    fn note(at: UnixMillis) -> FailureNote {
        FailureNote {
            at,
            message: MessageId(7),
            status: Some(500),
            reason: "ServerError",
        }
    }

    #[test]
    fn a_restart_keeps_everything_but_the_limit() {
        let mut health = Health::default();
        for _ in 0..10 {
            health.succeeded(200, true, NOW);
        }
        health.failed(note(NOW), Some(DISABLE_AFTER), NOW);
        health.observe_spec(UID, 4, Some("a"), NOW);
        health.observe_signing(Some("k1"), NOW);
        health.breaker.open(&BreakerPolicy::default(), NOW, 0.5);
        health.disable(DisabledBy::Gone, NOW);
        let after = Health::restore(&health.store());
        assert_eq!(after.limit.value(), 1);
        assert_eq!(after.breaker, health.breaker);
        assert_eq!(after.disabled, health.disabled);
        assert_eq!(after.uid.as_deref(), Some(UID));
        assert_eq!(after.recent, health.recent);
        assert_eq!(after.handled_enable, health.handled_enable);
        assert_eq!(after.failing_since, health.failing_since);
        assert_eq!(after.signing, health.signing);
        assert_eq!(after.store(), health.store());
        assert_eq!(Health::restore(b"{").limit.value(), 1);
    }

    #[test]
    fn the_same_request_enables_once_and_one_made_while_enabled_is_spent() {
        let mut health = Health::default();
        health.observe_spec(UID, 1, Some("monday"), NOW);
        health.disable(DisabledBy::Gone, NOW);
        assert!(!health.observe_spec(UID, 1, Some("monday"), NOW).enabled);
        assert_eq!(health.gate(NOW), Gate::Disabled);
        assert!(health.observe_spec(UID, 1, Some("tuesday"), NOW).enabled);
        assert_eq!(health.gate(NOW), Gate::Go { limit: 1 });
        health.disable(DisabledBy::Gone, NOW);
        assert!(!health.observe_spec(UID, 1, Some("tuesday"), NOW).enabled);
        assert!(
            health.observe_spec(UID, 2, Some("tuesday"), NOW).enabled,
            "a newer generation"
        );
    }

    #[test]
    fn five_days_of_failing_disable_and_five_days_of_silence_do_not() {
        let mut failing = Health::default();
        let mut at = NOW;
        while at.since(NOW) < DISABLE_AFTER {
            assert!(!failing.failed(note(at), Some(DISABLE_AFTER), at));
            at = at.plus(Duration::from_secs(600));
        }
        assert!(failing.failed(note(at), Some(DISABLE_AFTER), at));

        let mut idle = Health::default();
        assert!(!idle.failed(note(NOW), Some(DISABLE_AFTER), NOW));
        let later = NOW.plus(DISABLE_AFTER);
        assert!(!idle.failed(note(later), Some(DISABLE_AFTER), later));

        assert!(!failing.failed(note(at), None, at), "Never");
        assert!(failing.failed(note(at), Some(Duration::from_secs(3600)), at));
    }

    #[test]
    fn a_newer_generation_is_probed_at_once() {
        let mut health = Health::default();
        health.observe_spec(UID, 1, None, NOW);
        health.breaker.open(&BreakerPolicy::default(), NOW, 0.0);
        assert!(matches!(health.gate(NOW), Gate::Until(_)));
        assert!(health.observe_spec(UID, 2, None, NOW).changed);
        assert_eq!(health.gate(NOW), Gate::Probe);
    }

    #[test]
    fn an_endpoint_made_again_under_the_name_begins_anew_whatever_its_generation() {
        let mut health = Health::default();
        health.observe_spec(UID, 4, Some("monday"), NOW);
        health.failed(note(NOW), Some(DISABLE_AFTER), NOW);
        health.breaker.open(&BreakerPolicy::default(), NOW, 0.0);
        health.hold = Some(Hold {
            reason: HoldReason::RetryAfter,
            until: NOW.plus(DISABLE_AFTER),
        });
        health.disable(DisabledBy::Gone, NOW);
        let mut health = Health::restore(&health.store());
        assert!(!health.observe_spec(UID, 4, Some("monday"), NOW).enabled);
        assert_eq!(health.gate(NOW), Gate::Disabled);

        let observed = health.observe_spec("9a71", 1, Some("monday"), NOW);
        assert!(observed.changed && observed.enabled && observed.durable);
        assert_eq!(health.gate(NOW), Gate::Go { limit: 1 });
        assert_eq!((health.failing_since, health.generation), (None, Some(1)));
        health.disable(DisabledBy::Gone, NOW);
        assert!(
            health.observe_spec("9a71", 2, None, NOW).enabled,
            "its own generations count"
        );
    }

    #[test]
    fn a_state_stored_before_uids_were_kept_is_of_the_same_endpoint() {
        let mut health = Health::default();
        health.observe_spec(UID, 1, None, NOW);
        health.disable(DisabledBy::Gone, NOW);
        let mut stored: serde_json::Value = serde_json::from_slice(&health.store()).unwrap();
        stored.as_object_mut().unwrap().remove("uid");
        let mut health = Health::restore(stored.to_string().as_bytes());
        assert!(!health.observe_spec(UID, 1, None, NOW).enabled);
        assert_eq!(health.gate(NOW), Gate::Disabled);
    }
}
