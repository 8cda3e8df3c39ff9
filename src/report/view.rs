//! From what the engine sees to the status fields the dispatcher owns. Pure.
//!
//! Invariant: bounded, and no field that changes by itself; nothing here comes from a response body, a header value or a
//! Secret.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::board::{Delivering, EndpointView, Failure, SubscriptionView, Unconsumed};
use crate::api::conditions::{DELIVERING, FILTER_FAILING, KEYS_BLOCKED, OF_DISPATCHER, TRUE, UNCONSUMED, reasons};
use crate::api::status::{EndpointDelivery, RECENT_FAILURES, SubscriptionDelivery};
use crate::ids::UnixMillis;
use crate::kubernetes::events::{Happening, Kind};
use crate::kubernetes::status::{NewCondition, condition};

/// The fields of status, beside the condition, that the dispatcher owns.
pub const OWN_FIELDS: [&str; 1] = ["delivery"];
/// A condition's message is a sentence: longer ones are cut.
const MESSAGE_LIMIT: usize = 1024;
/// What to do about keys that are blocked. Their number is in `delivery`: a message that counts would be written often.
const BLOCKED_MESSAGE: &str = "A message was given up, and those of the same key wait behind it: replay the dead letter, or \
                               set ordering.onExhausted to Skip. delivery.blockedKeys says how many keys it is.";

const NOT_PULLED_MESSAGE: &str = "Messages wait, and for five minutes nobody has asked for them: is the consumer running, and \
                                  may it pull? Those older than pull.maxAge are given up.";
const NOT_ACKNOWLEDGED_MESSAGE: &str = "Messages wait, and for five minutes a consumer has asked for them and acknowledged \
                                        none: it gets the same ones again. Those older than pull.maxAge are given up.";

/// Whether what is shown misleads: a next attempt that is over, or none although one is to come (it was being made), or
/// messages that wait where none does.
pub fn is_overtaken(shown: &EndpointDelivery, view: &EndpointView, now: UnixMillis) -> bool {
    let is_over = match &shown.retry {
        Some(retry) => retry.next_attempt_time.0.as_millisecond() <= now.0,
        None => view.delivering == Delivering::Backoff && view.retry.is_some(),
    };
    is_over || shows_settled(shown.pending, view.pending)
}

/// Whether all that is shown as pending is settled.
pub fn shows_settled(shown: Option<i64>, pending: u64) -> bool {
    pending == 0 && shown.is_some_and(|shown| shown > 0)
}

/// Whether a subscription's delivery says all that there is to say, and there is no condition: seen without building it.
pub fn is_shown(shown: Option<&SubscriptionDelivery>, view: &SubscriptionView) -> bool {
    let count = |count: u64| i64::try_from(count).ok();
    let quiet = view.filter_failing.is_none() && view.unconsumed.is_none() && view.last_dead_letter.is_none();
    match shown {
        _ if !quiet || view.oldest_pending.is_some() => false,
        None => !view.is_news && (view.pending, view.dead_lettered) == (0, 0),
        Some(shown) => {
            let counts = (shown.pending, shown.dead_lettered) == (count(view.pending), count(view.dead_lettered));
            let has_letter = shown.last_dead_letter.is_some();
            counts && shown.oldest_pending_time.is_none() && has_letter <= (view.dead_lettered > 0)
        }
    }
}

/// Whether the dispatcher owns a condition of this type.
pub fn is_own_condition(type_: &str) -> bool {
    OF_DISPATCHER.contains(&type_)
}

/// An endpoint's own part of status.
pub fn endpoint(view: &EndpointView, previous: &[Condition], generation: i64, now: UnixMillis) -> Value {
    let delivering = condition(
        previous,
        timestamp(now),
        NewCondition {
            type_: DELIVERING,
            status: view.delivering.status(),
            reason: view.delivering.reason(),
            message: cut(&view.message),
            generation: view.generation.unwrap_or(generation),
        },
    );
    let blocked = (view.blocked_keys > 0).then(|| {
        let new = NewCondition {
            type_: KEYS_BLOCKED,
            status: TRUE,
            reason: reasons::DEAD_LETTER,
            message: BLOCKED_MESSAGE.to_owned(),
            generation: view.generation.unwrap_or(generation),
        };
        condition(previous, timestamp(now), new)
    });
    let conditions: Vec<Condition> = [delivering].into_iter().chain(blocked).collect();
    json!({
        "conditions": conditions,
        "delivery": {
            "observedGeneration": view.generation,
            "observedTime": time(now),
            "signing": view.signing.as_ref().map(|(id, since)| json!({"keyID": id, "since": time(*since)})),
            "handshake": view.agreement.map(|agreement| json!({
                "grantedTime": time(UnixMillis(agreement.at)), "allowedRate": agreement.grant.per_minute,
            })),
            "pending": view.pending,
            "oldestPendingTime": view.oldest_pending.map(time),
            "deadLettered": view.dead_lettered,
            "held": (view.held > 0).then_some(view.held),
            "blockedKeys": (view.blocked_keys > 0).then_some(view.blocked_keys),
            "consecutiveFailures": view.consecutive_failures,
            "failingSince": view.failing_since.map(time),
            "lastStatusCode": view.last_status,
            "lastSuccess": view.last_success.map(|at| json!({"time": time(at)})),
            "lastFailure": view.last_failure.as_ref().map(|failure| json!({
                "time": time(failure.at), "statusCode": failure.status, "reason": failure.reason,
            })),
            "retry": view.retry.map(|(attempt, at)| json!({"attempt": attempt, "nextAttemptTime": time(at)})),
            "recentFailures": view.recent_failures.iter().filter_map(recent).take(RECENT_FAILURES).collect::<Vec<_>>(),
            "handledEnableRequest": view.handled_enable_request,
        },
    })
}

/// A subscription's own part of status.
pub fn subscription(view: &SubscriptionView, previous: &[Condition], generation: i64, now: UnixMillis) -> Value {
    let failing = view.filter_failing.as_ref().map(|why| {
        let new = NewCondition {
            type_: FILTER_FAILING,
            status: TRUE,
            reason: reasons::EVALUATION_ERROR,
            message: cut(&format!("Events do not match while the filter fails for them: {why}.")),
            generation,
        };
        condition(previous, timestamp(now), new)
    });
    let unconsumed = view.unconsumed.map(|why| {
        let message = match why {
            Unconsumed::NotPulled => NOT_PULLED_MESSAGE,
            Unconsumed::NotAcknowledged => NOT_ACKNOWLEDGED_MESSAGE,
        };
        let new = NewCondition {
            type_: UNCONSUMED,
            status: TRUE,
            reason: why.reason(),
            message: message.to_owned(),
            generation,
        };
        condition(previous, timestamp(now), new)
    });
    json!({
        "conditions": failing.into_iter().chain(unconsumed).collect::<Vec<_>>(),
        "delivery": {
            "pending": view.pending,
            "oldestPendingTime": view.oldest_pending.map(time),
            "deadLettered": view.dead_lettered,
            "lastDeadLetter": view.last_dead_letter.map(|(at, reason)| json!({"time": time(at), "reason": reason})),
        },
    })
}

/// What status said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'a> {
    /// The reason of Delivering.
    pub delivering: Option<&'a str>,
    /// Whether KeysBlocked was there.
    pub blocked: bool,
}

impl<'a> Before<'a> {
    pub fn of(conditions: &'a [Condition]) -> Before<'a> {
        let find = |type_| conditions.iter().find(|condition| condition.type_ == type_);
        Before {
            delivering: find(DELIVERING).map(|condition| condition.reason.as_str()),
            blocked: find(KEYS_BLOCKED).is_some(),
        }
    }

    /// Whether what is shown now is another state.
    pub fn is_left_by(&self, view: &EndpointView) -> bool {
        self.delivering != Some(view.delivering.reason()) || self.blocked != (view.blocked_keys > 0)
    }
}

/// The Event that tells of a transition from `before` to now; none where there is no news: a first success, or nothing
/// tried yet.
pub fn happening(before: Before<'_>, view: &EndpointView) -> Option<Happening> {
    if view.blocked_keys > 0 && !before.blocked {
        return Some(Happening {
            kind: Kind::Warning,
            reason: KEYS_BLOCKED.to_owned(),
            action: "Deliver",
            note: BLOCKED_MESSAGE.to_owned(),
        });
    }
    let before = before.delivering;
    let is_news = before != Some(view.delivering.reason());
    let had_trouble = before
        .is_some_and(|reason| reason != Delivering::Succeeding.reason() && reason != Delivering::NoAttempts.reason());
    let kind = match view.delivering {
        Delivering::NoAttempts => return None,
        Delivering::Succeeding if !had_trouble => return None,
        Delivering::Succeeding | Delivering::Suspended => Kind::Normal,
        _ => Kind::Warning,
    };
    is_news.then(|| Happening {
        kind,
        reason: view.delivering.reason().to_owned(),
        action: "Deliver",
        note: cut(if view.message.is_empty() {
            view.delivering.reason()
        } else {
            &view.message
        }),
    })
}

/// One failed attempt; none for a failure of the endpoint alone, since every entry names its message.
fn recent(failure: &Failure) -> Option<Value> {
    let message = failure.message?.to_string();
    Some(json!({
        "time": time(failure.at), "messageID": message, "statusCode": failure.status, "reason": failure.reason,
    }))
}

fn timestamp(at: UnixMillis) -> Timestamp {
    Timestamp::from_second(at.0.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whole seconds, as Kubernetes keeps times.
fn time(at: UnixMillis) -> String {
    timestamp(at).to_string()
}

fn cut(message: &str) -> String {
    let mut end = message.len().min(MESSAGE_LIMIT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;
    use crate::kubernetes::status::{is_unchanged, own_part};

    fn view(delivering: Delivering) -> EndpointView {
        EndpointView {
            generation: Some(3),
            delivering,
            message: "the last attempt failed: 503".into(),
            signing: Some(("k1".into(), UnixMillis(1_000))),
            agreement: None,
            pending: 2,
            oldest_pending: Some(UnixMillis(2_000)),
            dead_lettered: 1,
            held: 0,
            blocked_keys: 0,
            consecutive_failures: 4,
            failing_since: Some(UnixMillis(3_000)),
            last_status: Some(503),
            last_success: None,
            last_failure: Some(failure(4_000)),
            retry: Some((2, UnixMillis(1_795_000_000_500))),
            next_try: None,
            recent_failures: (0..9).map(|n| failure(n * 1_000)).collect(),
            handled_enable_request: None,
        }
    }

    fn failure(at: i64) -> Failure {
        Failure {
            at: UnixMillis(at),
            message: Some(MessageId(1)),
            status: Some(503),
            reason: "Status",
        }
    }

    #[test]
    fn a_next_attempt_that_is_over_and_pending_messages_that_are_settled_mislead() {
        let written = |view: &EndpointView| -> EndpointDelivery {
            let status = endpoint(view, &[], 3, UnixMillis(0));
            serde_json::from_value(status["delivery"].clone()).unwrap()
        };
        let backoff = view(Delivering::Backoff);
        let (_, next) = backoff.retry.unwrap();
        let shown = written(&backoff);
        assert!(!is_overtaken(&shown, &backoff, UnixMillis(next.0 - 1_000)));
        assert!(is_overtaken(&shown, &backoff, next));

        let mut being_made = view(Delivering::Backoff);
        being_made.retry = None;
        let shown = written(&being_made);
        assert!(!is_overtaken(&shown, &being_made, UnixMillis(0)));
        assert!(is_overtaken(&shown, &backoff, UnixMillis(0)), "it failed, too");

        let mut delivered = view(Delivering::Succeeding);
        delivered.retry = None;
        let shown = written(&delivered);
        assert!(!is_overtaken(&shown, &delivered, next), "two of two wait");
        delivered.pending = 1;
        assert!(!is_overtaken(&shown, &delivered, next), "one still waits: no hurry");
        delivered.pending = 0;
        assert!(is_overtaken(&shown, &delivered, next));
        assert!(!is_overtaken(&written(&delivered), &delivered, next));
    }

    #[test]
    fn times_are_whole_seconds_and_failures_are_five() {
        let status = endpoint(&view(Delivering::Backoff), &[], 3, UnixMillis(5_999));
        let delivery = &status["delivery"];
        assert_eq!(delivery["observedTime"], "1970-01-01T00:00:05Z");
        assert_eq!(
            delivery["retry"],
            json!({"attempt": 2, "nextAttemptTime": "2026-11-18T11:06:40Z"})
        );
        assert_eq!(
            delivery["recentFailures"].as_array().map(Vec::len),
            Some(RECENT_FAILURES)
        );
        assert_eq!(delivery["recentFailures"][0]["messageID"], "msg_0000000000001");
        assert_eq!(status["conditions"][0]["status"], "False");
        assert_eq!(status["conditions"][0]["observedGeneration"], 3);
    }

    #[test]
    fn the_same_view_later_is_no_change_against_what_the_server_keeps() {
        let first = endpoint(&view(Delivering::Backoff), &[], 3, UnixMillis(5_000));
        let kept: Vec<Condition> = serde_json::from_value(first["conditions"].clone()).expect("conditions");
        let current = own_part(&first, &OWN_FIELDS, is_own_condition);
        let later = endpoint(&view(Delivering::Backoff), &kept, 3, UnixMillis(90_000));
        assert!(is_unchanged(&current, &later));
        let changed = endpoint(&view(Delivering::CircuitOpen), &kept, 3, UnixMillis(90_000));
        assert!(!is_unchanged(&current, &changed));
    }

    #[test]
    fn events_tell_transitions_only() {
        let table = [
            (None, Delivering::NoAttempts, None),
            (None, Delivering::Succeeding, None),
            (Some("NoAttempts"), Delivering::Succeeding, None),
            (Some("Succeeding"), Delivering::Succeeding, None),
            (Some("Backoff"), Delivering::Succeeding, Some(Kind::Normal)),
            (Some("Succeeding"), Delivering::Backoff, Some(Kind::Warning)),
            (Some("Backoff"), Delivering::Backoff, None),
            (Some("Backoff"), Delivering::CircuitOpen, Some(Kind::Warning)),
            (Some("Succeeding"), Delivering::Suspended, Some(Kind::Normal)),
            (None, Delivering::Disabled, Some(Kind::Warning)),
        ];
        for (before, now, expected) in table {
            let before = Before {
                delivering: before,
                blocked: false,
            };
            let told = happening(before, &view(now));
            assert_eq!(told.map(|h| h.kind), expected, "{before:?} to {now:?}");
        }
    }

    #[test]
    fn blocked_keys_are_a_condition_as_long_as_there_are_any() {
        let mut blocked = view(Delivering::Succeeding);
        (blocked.held, blocked.blocked_keys) = (7, 2);
        let status = endpoint(&blocked, &[], 3, UnixMillis(5_000));
        let shown: Vec<Condition> = serde_json::from_value(status["conditions"].clone()).expect("conditions");
        let types: Vec<_> = shown.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
        assert_eq!(types, [(DELIVERING, "True"), (KEYS_BLOCKED, "True")]);
        assert_eq!(status["delivery"]["held"], 7);
        assert_eq!(status["delivery"]["blockedKeys"], 2);
        assert!(Before::default().is_left_by(&blocked));
        let told = happening(Before::default(), &blocked).expect("an Event");
        assert_eq!(told.reason, KEYS_BLOCKED);

        let before = Before::of(&shown);
        assert!(!before.is_left_by(&blocked));
        assert!(happening(before, &blocked).is_none());
        let free = view(Delivering::Succeeding);
        assert!(before.is_left_by(&free));
        let status = endpoint(&free, &shown, 3, UnixMillis(6_000));
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(1));
        assert!(status["delivery"]["blockedKeys"].is_null());
    }

    #[test]
    fn a_subscription_shows_its_dead_letters_and_a_filter_that_fails() {
        let view = SubscriptionView {
            is_news: true,
            is_filter_told: true,
            pending: 0,
            oldest_pending: None,
            dead_lettered: 1,
            last_dead_letter: Some((UnixMillis(1_000), "Exhausted")),
            filter_failing: None,
            unconsumed: None,
        };
        let shown = |view: &SubscriptionView| subscription(view, &[], 3, UnixMillis(2_000));
        assert_eq!(
            shown(&view)["delivery"]["lastDeadLetter"],
            json!({"time": "1970-01-01T00:00:01Z", "reason": "Exhausted"})
        );
        assert_eq!(shown(&view)["conditions"], json!([]));
        let failing = SubscriptionView {
            is_news: true,
            is_filter_told: true,
            filter_failing: Some("there is no score".into()),
            ..view.clone()
        };
        let condition = &shown(&failing)["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["reason"]),
            (&json!("FilterFailing"), &json!("EvaluationError"))
        );
        assert!(condition["message"].as_str().unwrap().contains("there is no score"));
    }

    #[test]
    fn a_subscription_that_is_pulled_shows_its_oldest_message_and_that_nobody_consumes() {
        let view = SubscriptionView {
            is_news: true,
            is_filter_told: true,
            pending: 7,
            oldest_pending: Some(UnixMillis(1_500)),
            dead_lettered: 0,
            last_dead_letter: None,
            filter_failing: None,
            unconsumed: Some(Unconsumed::NotAcknowledged),
        };
        let shown = subscription(&view, &[], 3, UnixMillis(400_000));
        assert_eq!(shown["delivery"]["oldestPendingTime"], "1970-01-01T00:00:01Z");
        let condition = &shown["conditions"][0];
        assert_eq!(
            (&condition["type"], &condition["status"], &condition["reason"]),
            (&json!("Unconsumed"), &json!("True"), &json!("NotAcknowledged"))
        );
    }
}
