//! What becomes of a message and of its endpoint after one attempt: every row of the outcome table. Pure.
//!
//! Owns which answers are about the message and which about the endpoint; knows nothing of how an attempt was made.
//! Invariant: the last attempt of a schedule is spent only by an answer that can be about the message.

use std::time::Duration;

use super::BLOCKED_RELOOK;
use super::backoff;
use super::health::{DisabledBy, FailureNote, Health, Hold, HoldReason};
use crate::api::conditions::reasons;
use crate::api::resolve::{BreakerPolicy, RetryPolicy};
use crate::delivery::{AttemptResult, Fault, Judged, OurFault, Outcome};
use crate::ids::{MessageId, UnixMillis};
use crate::queue::{AttemptRecord, DeadReason, Verdict};

/// The attempt that ended.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub message: MessageId,
    /// Attempts consumed before this one.
    pub consumed: u16,
    pub started: UnixMillis,
    /// It was the breaker's probe.
    pub probe: bool,
    /// Nothing was sent: the receiver was asked whether it wants messages, and did not agree.
    pub asking: bool,
    /// As many attempts were in flight as the limit allows.
    pub saturated: bool,
}

/// How failures are to be judged: the endpoint's, and for a message its subscription's.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    pub retry: &'a RetryPolicy,
    pub breaker: &'a BreakerPolicy,
    /// None: never.
    pub disable_after: Option<Duration>,
}

/// What changed for the endpoint as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    BreakerOpened,
    BreakerClosed,
    Disabled,
}

/// What the engine carries out.
#[derive(Clone, Debug)]
pub struct Decision {
    pub verdict: Verdict,
    /// None where no attempt was made.
    pub record: Option<AttemptRecord>,
    /// The failure's word; none for a success.
    pub failure: Option<&'static str>,
    pub transition: Option<Transition>,
}

/// When the message was accepted, to the second.
pub fn accepted_at(message: MessageId) -> UnixMillis {
    UnixMillis(message.event().unix_seconds().saturating_mul(1000))
}

/// Whether the message is too old to be sent.
pub fn expired(message: MessageId, max_age: Duration, now: UnixMillis) -> bool {
    now.since(accepted_at(message)) >= max_age
}

/// Decides over one result, and notes it in `health`. `random` is in [0, 1).
pub fn decide(
    health: &mut Health,
    attempt: &Attempt,
    result: &AttemptResult,
    rules: &Rules<'_>,
    now: UnixMillis,
    random: f64,
) -> Decision {
    let keep = |due: UnixMillis| Verdict::Wait {
        due,
        attempts: attempt.consumed,
    };
    let (status, retry_after, excerpt) = match &result.outcome {
        Outcome::Blocked { address } => {
            let until = now.plus(BLOCKED_RELOOK);
            hold(health, HoldReason::Blocked { address: *address }, until);
            return unmade(keep(until), "Blocked");
        }
        Outcome::Ours(fault) => {
            let until = ours(health, *fault, now, random);
            return unmade(keep(until), fault.reason());
        }
        Outcome::Status {
            code,
            retry_after,
            excerpt,
            ..
        } => (Some(*code), *retry_after, excerpt.clone()),
        Outcome::Fault(_) => (None, None, None),
    };
    let reason = reason(&result.outcome);
    let record = (!attempt.asking).then(|| AttemptRecord {
        at: attempt.started,
        took: result.took,
        status,
        reason,
        excerpt,
    });
    if let Some(code) = status.filter(|_| result.outcome.is_success()) {
        let closed = health.succeeded(code, attempt.saturated, now);
        return Decision {
            verdict: Verdict::Delivered,
            record,
            failure: None,
            transition: closed.then_some(Transition::BreakerClosed),
        };
    }

    let note = FailureNote {
        at: now,
        message: attempt.message,
        status,
        reason,
    };
    if attempt.asking {
        health.refusal = match result.outcome {
            Outcome::Status {
                judged: Judged::Asked(Err(refusal)),
                ..
            } => Some(refusal),
            _ => None,
        };
    }
    let too_long = health.failed(note, rules.disable_after, now);
    let (verdict, mut transition) = match status {
        Some(410) => {
            health.disable(DisabledBy::Gone, now);
            (keep(now), Some(Transition::Disabled))
        }
        _ => retry(health, attempt, &result.outcome, retry_after, rules, now, random),
    };
    if too_long && health.disabled.is_none() {
        health.disable(DisabledBy::Failing, now);
        transition = Some(Transition::Disabled);
    }
    Decision {
        verdict,
        record,
        failure: Some(reason),
        transition,
    }
}

/// A failure other than 410: consumed, kept or the end.
fn retry(
    health: &mut Health,
    attempt: &Attempt,
    outcome: &Outcome,
    retry_after: Option<Duration>,
    rules: &Rules<'_>,
    now: UnixMillis,
    random: f64,
) -> (Verdict, Option<Transition>) {
    let policy = rules.retry;
    if is_congestion(outcome) {
        health.limit.halve(attempt.started, now);
    }
    let pause = match outcome {
        Outcome::Status { code: 429 | 503, .. } => {
            retry_after.map(|asked| now.plus(backoff::retry_after(policy, asked)))
        }
        _ => None,
    };
    if let Some(until) = pause {
        let until = health.hold.map_or(until, |before| before.until.max(until));
        health.hold = Some(Hold {
            reason: HoldReason::RetryAfter,
            until,
        });
    }
    let after = |due: UnixMillis| pause.map_or(due, |until| until.max(due));
    let next = attempt.consumed.saturating_add(1);
    let scheduled = after(now.plus(backoff::wait(policy, next, random)));
    if attempt.asking {
        // The question is put again as a probe is made, whatever came instead of an agreement.
        let opened = health.breaker.open(rules.breaker, now, random);
        if !opened {
            health.breaker.probe_failed(rules.breaker, now, random);
        }
        pause.into_iter().for_each(|until| health.breaker.not_before(until));
        let kept = Verdict::Wait {
            due: after(health.breaker.probe_at().unwrap_or(scheduled)),
            attempts: attempt.consumed,
        };
        return (kept, opened.then_some(Transition::BreakerOpened));
    }
    // What refuses the message for good is about the message, whatever the status says elsewhere.
    let refused = matches!(outcome, Outcome::Status { code, .. } if policy.never_retry.contains(code));
    let fault = is_endpoint_fault(outcome);
    let mut transition = None;

    if refused {
        if (attempt.probe || !health.breaker.is_open()) && health.breaker.close() {
            health.limit.ramp();
            transition = Some(Transition::BreakerClosed);
        }
        let reason = DeadReason::Refused;
        return (Verdict::Dead { reason }, transition);
    }

    if health.breaker.is_open() && (attempt.probe || fault) {
        // No attempt is consumed while it is open. An answer about the message means that the endpoint is there.
        let due = match (attempt.probe, fault) {
            (true, true) => {
                health.breaker.probe_failed(rules.breaker, now, random);
                pause.into_iter().for_each(|until| health.breaker.not_before(until));
                after(health.breaker.probe_at().unwrap_or(scheduled))
            }
            (true, false) => {
                health.breaker.close();
                health.limit.ramp();
                transition = Some(Transition::BreakerClosed);
                scheduled
            }
            (false, _) => after(health.breaker.probe_at().unwrap_or(scheduled).max(now)),
        };
        let kept = Verdict::Wait {
            due,
            attempts: attempt.consumed,
        };
        return (kept, transition);
    }

    if !health.breaker.is_open() {
        match fault {
            true => {
                let opened = health.breaker.fault(rules.breaker, now, random);
                transition = opened.then_some(Transition::BreakerOpened);
            }
            false => {
                health.breaker.close();
            }
        }
    }
    if !backoff::is_last(policy, attempt.consumed) {
        let verdict = Verdict::Wait {
            due: scheduled,
            attempts: next,
        };
        return (verdict, transition);
    }
    if can_be_about_the_message(outcome) {
        let reason = DeadReason::Exhausted;
        return (Verdict::Dead { reason }, transition);
    }
    if health.breaker.open(rules.breaker, now, random) {
        transition = Some(Transition::BreakerOpened);
    }
    pause.into_iter().for_each(|until| health.breaker.not_before(until));
    let verdict = Verdict::Wait {
        due: after(health.breaker.probe_at().unwrap_or(scheduled)),
        attempts: attempt.consumed,
    };
    (verdict, transition)
}

/// Holds everything back for a while that grows with each try. Attempts that were under way together are one try.
fn ours(health: &mut Health, fault: OurFault, now: UnixMillis, random: f64) -> UnixMillis {
    let reason = match fault {
        OurFault::Token(trouble) => HoldReason::Token(trouble),
        _ => HoldReason::Ours,
    };
    if let Some(held) = health.hold.filter(|held| held.reason.is_ours() && held.until > now) {
        return held.until;
    }
    health.ours_streak = health.ours_streak.saturating_add(1);
    let until = now.plus(backoff::ours(health.ours_streak, random));
    hold(health, reason, until);
    until
}

/// Holds everything back, unless the receiver asked for a longer pause: that stays, also over a restart.
fn hold(health: &mut Health, reason: HoldReason, until: UnixMillis) {
    health.limit.ramp();
    let pause = health.hold.filter(|held| held.reason == HoldReason::RetryAfter);
    if pause.is_some_and(|pause| pause.until >= until) {
        return;
    }
    health.hold = Some(Hold { reason, until });
}

fn unmade(verdict: Verdict, reason: &'static str) -> Decision {
    Decision {
        verdict,
        record: None,
        failure: Some(reason),
        transition: None,
    }
}

/// Faults that count towards the breaker: all of the network's, and the statuses that say nothing about one message.
fn is_endpoint_fault(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Fault(_) => true,
        Outcome::Status { code, .. } => matches!(code, 401 | 403 | 404 | 407 | 408 | 429 | 500..=599),
        Outcome::Blocked { .. } | Outcome::Ours(_) => false,
    }
}

/// Only such an answer ends a schedule.
fn can_be_about_the_message(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Status { code, .. } => !matches!(code, 401 | 403 | 407 | 408 | 429 | 502..=504),
        Outcome::Fault(_) | Outcome::Blocked { .. } | Outcome::Ours(_) => false,
    }
}

/// Signs that fewer attempts at a time would do better.
fn is_congestion(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Fault(fault) => !matches!(fault, Fault::Protocol | Fault::Certificate | Fault::Auth),
        Outcome::Status { code, .. } => matches!(code, 408 | 425 | 429 | 502..=504),
        Outcome::Blocked { .. } | Outcome::Ours(_) => false,
    }
}

/// One CamelCase word for status, records and metrics: few, whatever receivers answer.
pub fn reason(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Status { .. } if outcome.is_success() => "Delivered",
        Outcome::Status {
            judged: Judged::Asked(_),
            ..
        } => reasons::HANDSHAKE_REFUSED,
        Outcome::Status { code, judged, .. } => match code {
            200..=299 if *judged == Judged::Undecided => "SuccessUndecided",
            200..=299 => "NotSuccessful",
            300..=399 => "Redirect",
            401 | 403 | 407 => "Unauthorized",
            408 | 425 | 429 => "Throttled",
            410 => "Gone",
            400..=499 => "ClientError",
            500..=599 => "ServerError",
            _ => "UnexpectedStatus",
        },
        Outcome::Fault(fault) => fault.reason(),
        Outcome::Blocked { .. } => "Blocked",
        Outcome::Ours(fault) => fault.reason(),
    }
}

/// Every word that [`reason`] says.
pub const REASONS: [&str; 25] = [
    "Delivered",
    "NotSuccessful",
    "SuccessUndecided",
    "Redirect",
    "Unauthorized",
    "Throttled",
    "Gone",
    "ClientError",
    "ServerError",
    "UnexpectedStatus",
    "Dns",
    "Refused",
    "Unreachable",
    "Tls",
    "Certificate",
    "Timeout",
    "Reset",
    "Protocol",
    "Auth",
    "Blocked",
    "NoFileDescriptors",
    "NoPorts",
    "DnsDown",
    "TokenUnavailable",
    reasons::HANDSHAKE_REFUSED,
];

/// A stored word as one of ours; a word of another version is `Unknown`.
pub fn known_reason(word: &str) -> &'static str {
    REASONS.into_iter().find(|known| *known == word).unwrap_or("Unknown")
}

#[cfg(test)]
mod tests;
