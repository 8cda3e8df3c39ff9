use proptest::prelude::*;

use super::*;
use crate::delivery::{Refusal, TokenTrouble};
use crate::ids::EventId;
use crate::schedule::MAX_AGE;
use crate::schedule::health::Gate;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const PROBE_FIRST: Duration = Duration::from_secs(30);

fn policy() -> RetryPolicy {
    RetryPolicy {
        schedule: [1, 10, 60, 300].map(Duration::from_secs).to_vec(),
        jitter_percent: 10,
        ..RetryPolicy::default()
    }
}

fn judge(
    health: &mut Health,
    attempt: &Attempt,
    outcome: Outcome,
    policy: &RetryPolicy,
    (now, random): (UnixMillis, f64),
) -> Decision {
    let rules = Rules {
        retry: policy,
        breaker: &BreakerPolicy::default(),
        disable_after: Some(Duration::from_secs(120 * 3600)),
    };
    decide(health, attempt, &result(outcome), &rules, now, random)
}

fn attempt(consumed: u16) -> Attempt {
    Attempt {
        message: MessageId::new(EventId::next(EventId(0), 1_800_000_000), 0),
        consumed,
        started: NOW,
        probe: false,
        asking: false,
        saturated: true,
    }
}

fn result(outcome: Outcome) -> AttemptResult {
    AttemptResult {
        took: Duration::from_millis(5),
        outcome,
    }
}

fn status(code: u16) -> Outcome {
    Outcome::Status {
        judged: Judged::ByStatus,
        code,
        retry_after: None,
        excerpt: None,
    }
}

fn asks(code: u16, seconds: u64) -> Outcome {
    Outcome::Status {
        judged: Judged::ByStatus,
        code,
        retry_after: Some(Duration::from_secs(seconds)),
        excerpt: None,
    }
}

fn run(health: &mut Health, attempt: &Attempt, outcome: Outcome, now: UnixMillis) -> Decision {
    judge(health, attempt, outcome, &policy(), (now, 0.0))
}

fn wait(seconds: u64, attempts: u16) -> Verdict {
    Verdict::Wait {
        due: NOW.plus(Duration::from_secs(seconds)),
        attempts,
    }
}

#[test]
fn every_row_of_the_table_has_its_verdict_on_a_first_attempt() {
    let address = std::net::IpAddr::from([127, 0, 0, 1]);
    let rows: Vec<(Outcome, Verdict, &str)> = vec![
        (status(200), Verdict::Delivered, ""),
        (status(204), Verdict::Delivered, ""),
        (status(299), Verdict::Delivered, ""),
        (status(410), wait(0, 0), "Gone"),
        (asks(429, 120), wait(120, 1), "Throttled"),
        (asks(503, 120), wait(120, 1), "ServerError"),
        (asks(503, 0), wait(1, 1), "ServerError"),
        (asks(429, u64::MAX), wait(3600, 1), "Throttled"),
        (asks(500, 120), wait(1, 1), "ServerError"),
        (status(408), wait(1, 1), "Throttled"),
        (status(425), wait(1, 1), "Throttled"),
        (status(429), wait(1, 1), "Throttled"),
        (status(502), wait(1, 1), "ServerError"),
        (status(504), wait(1, 1), "ServerError"),
        (status(301), wait(1, 1), "Redirect"),
        (status(304), wait(1, 1), "Redirect"),
        (status(101), wait(1, 1), "UnexpectedStatus"),
        (status(400), wait(1, 1), "ClientError"),
        (status(401), wait(1, 1), "Unauthorized"),
        (status(500), wait(1, 1), "ServerError"),
        (Outcome::Fault(Fault::Protocol), wait(1, 1), "Protocol"),
        (Outcome::Fault(Fault::Dns), wait(1, 1), "Dns"),
        (Outcome::Fault(Fault::Refused), wait(1, 1), "Refused"),
        (Outcome::Fault(Fault::Unreachable), wait(1, 1), "Unreachable"),
        (Outcome::Fault(Fault::Tls), wait(1, 1), "Tls"),
        (Outcome::Fault(Fault::Certificate), wait(1, 1), "Certificate"),
        (Outcome::Fault(Fault::Timeout), wait(1, 1), "Timeout"),
        (Outcome::Fault(Fault::Reset), wait(1, 1), "Reset"),
        (Outcome::Blocked { address }, wait(300, 0), "Blocked"),
        (
            Outcome::Ours(OurFault::NoFileDescriptors),
            wait(1, 0),
            "NoFileDescriptors",
        ),
        (Outcome::Ours(OurFault::NoPorts), wait(1, 0), "NoPorts"),
        (Outcome::Ours(OurFault::DnsDown), wait(1, 0), "DnsDown"),
        (
            Outcome::Ours(OurFault::Token(TokenTrouble::Status(503))),
            wait(1, 0),
            "TokenUnavailable",
        ),
        (Outcome::Fault(Fault::Auth), wait(1, 1), "Auth"),
    ];
    for (outcome, verdict, failure) in rows {
        let decision = run(&mut Health::default(), &attempt(0), outcome.clone(), NOW);
        assert_eq!(decision.verdict, verdict, "{outcome:?}");
        assert_eq!(decision.failure.unwrap_or(""), failure, "{outcome:?}");
        let made = !matches!(outcome, Outcome::Blocked { .. } | Outcome::Ours(_));
        assert_eq!(decision.record.is_some(), made, "{outcome:?}");
    }
}

#[test]
fn one_message_answered_500_five_times_is_a_dead_letter() {
    let mut health = Health::default();
    let mut at = NOW;
    for (consumed, seconds) in [1, 10, 60, 300].into_iter().enumerate() {
        let consumed = consumed as u16;
        at = at.plus(Duration::from_secs(seconds));
        let decision = run(&mut health, &attempt(consumed), status(500), at);
        assert!(matches!(decision.verdict, Verdict::Wait { attempts, .. } if attempts == consumed + 1));
        assert_eq!(decision.transition, None);
    }
    let decision = run(&mut health, &attempt(4), status(500), at);
    let reason = DeadReason::Exhausted;
    assert_eq!(decision.verdict, Verdict::Dead { reason });
    assert_eq!(
        decision.transition,
        Some(Transition::BreakerOpened),
        "five faults in a row"
    );
}

#[test]
fn a_receiver_that_refuses_never_spends_the_last_attempt() {
    for outcome in [
        Outcome::Fault(Fault::Refused),
        Outcome::Fault(Fault::Timeout),
        status(401),
        status(403),
        status(407),
        status(408),
        status(429),
        status(502),
        status(503),
        status(504),
    ] {
        let mut health = Health::default();
        let decision = run(&mut health, &attempt(4), outcome.clone(), NOW);
        assert_eq!(decision.verdict, wait(PROBE_FIRST.as_secs(), 4), "{outcome:?}");
        assert_eq!(decision.transition, Some(Transition::BreakerOpened), "{outcome:?}");
    }
    for code in [404, 400, 425, 500, 501, 302] {
        let decision = run(&mut Health::default(), &attempt(4), status(code), NOW);
        assert!(matches!(decision.verdict, Verdict::Dead { .. }), "{code}");
    }
}

#[test]
fn a_status_that_is_never_retried_is_a_dead_letter_at_once_and_says_nothing_of_the_endpoint() {
    let policy = RetryPolicy {
        never_retry: vec![400, 404, 500],
        ..policy()
    };
    let refused = Verdict::Dead {
        reason: DeadReason::Refused,
    };
    let mut health = Health::default();
    for _ in 0..20 {
        for code in [400, 404, 500] {
            let decision = judge(&mut health, &attempt(0), status(code), &policy, (NOW, 0.0));
            assert_eq!((decision.verdict, decision.transition), (refused, None), "{code}");
            assert!(decision.record.is_some() && decision.failure.is_some());
        }
    }
    assert!(!health.breaker.is_open(), "the breaker does not count it");
    assert_eq!(health.consecutive_failures, 60);
    let other = judge(&mut health, &attempt(0), status(501), &policy, (NOW, 0.0));
    assert_eq!(other.verdict, wait(1, 1));

    health.breaker.open(&BreakerPolicy::default(), NOW, 0.0);
    let late = judge(&mut health, &attempt(0), status(404), &policy, (NOW, 0.0));
    assert_eq!((late.verdict, late.transition), (refused, None));
    assert!(health.breaker.is_open(), "only the probe closes it");
    let probe = Attempt {
        probe: true,
        ..attempt(2)
    };
    let answered = judge(&mut health, &probe, status(404), &policy, (NOW, 0.0));
    assert_eq!(answered.verdict, refused);
    assert_eq!(answered.transition, Some(Transition::BreakerClosed));
}

#[test]
fn a_probe_consumes_nothing_and_an_answer_about_the_message_closes_the_breaker() {
    let mut health = Health::default();
    health.breaker.open(&BreakerPolicy::default(), NOW, 0.0);
    let at = NOW.plus(PROBE_FIRST);
    assert_eq!(health.gate(at), Gate::Probe);
    let probe = Attempt {
        probe: true,
        ..attempt(4)
    };
    let failed = run(&mut health, &probe, status(500), at);
    let due = at.plus(PROBE_FIRST * 2);
    assert_eq!(failed.verdict, Verdict::Wait { due, attempts: 4 });
    assert_eq!(health.gate(at), Gate::Until(due));
    let answered = run(&mut health, &probe, status(400), due);
    assert!(matches!(answered.verdict, Verdict::Wait { attempts: 4, .. }));
    assert_eq!(answered.transition, Some(Transition::BreakerClosed));
    assert_eq!(health.gate(due), Gate::Go { limit: 1 });
}

#[test]
fn attempts_under_way_when_the_breaker_opened_consume_nothing() {
    let mut health = Health::default();
    for _ in 0..5 {
        run(&mut health, &attempt(0), status(500), NOW);
    }
    let late = run(&mut health, &attempt(0), status(500), NOW);
    assert_eq!(late.verdict, wait(PROBE_FIRST.as_secs(), 0));
}

#[test]
fn retry_after_pauses_the_whole_endpoint() {
    let mut health = Health::default();
    run(&mut health, &attempt(0), asks(429, 120), NOW);
    let until = NOW.plus(Duration::from_secs(120));
    assert_eq!(health.gate(NOW), Gate::Until(until));
    assert_eq!(health.gate(until), Gate::Go { limit: 1 });
}

#[test]
fn attempts_that_meet_one_fault_of_ours_together_wait_as_long_as_one_and_the_next_longer() {
    let mut health = Health::default();
    let away = Outcome::Ours(OurFault::Token(TokenTrouble::Fault(Fault::Refused)));
    let mut at = NOW;
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let until = at.plus(Duration::from_secs(seconds));
        for _ in 0..64 {
            let kept = Verdict::Wait {
                due: until,
                attempts: 2,
            };
            assert_eq!(run(&mut health, &attempt(2), away.clone(), at).verdict, kept);
        }
        assert_eq!(health.gate(at), Gate::Until(until));
        at = until;
    }
    assert!(!health.breaker.is_open() && health.failing_since.is_none());
}

#[test]
fn a_fault_of_ours_or_a_blocked_address_does_not_end_a_pause_that_the_receiver_asked_for() {
    let address = std::net::IpAddr::from([10, 0, 0, 1]);
    for short in [Outcome::Ours(OurFault::DnsDown), Outcome::Blocked { address }] {
        let mut health = Health::default();
        run(&mut health, &attempt(0), asks(429, 3600), NOW);
        run(&mut health, &attempt(0), short, NOW);
        let until = NOW.plus(Duration::from_secs(3600));
        assert_eq!(health.gate(NOW), Gate::Until(until));
        assert_eq!(Health::restore(&health.store()).gate(NOW), Gate::Until(until));
    }
}

#[test]
fn an_endpoint_that_is_tried_twice_a_day_and_never_succeeds_fails_since_the_first_time() {
    let mut health = Health::default();
    let half_a_day = Duration::from_secs(12 * 3600);
    for n in 0..10 {
        run(&mut health, &attempt(0), status(500), NOW.plus(half_a_day * n));
    }
    assert_eq!(health.failing_since, Some(NOW));
    assert_ne!(health.gate(NOW.plus(half_a_day * 9)), Gate::Disabled);
    let last = run(&mut health, &attempt(0), status(500), NOW.plus(half_a_day * 10));
    assert_eq!(last.transition, Some(Transition::Disabled), "after 120 hours");
}

#[test]
fn gone_disables_and_keeps_the_message() {
    let mut health = Health::default();
    let decision = run(&mut health, &attempt(3), status(410), NOW);
    assert_eq!(decision.verdict, wait(0, 3));
    assert_eq!(decision.transition, Some(Transition::Disabled));
    assert_eq!(health.gate(NOW), Gate::Disabled);
}

#[test]
fn the_limit_ramps_from_one_after_a_breaker_closed() {
    let mut health = Health::default();
    for _ in 0..30 {
        run(&mut health, &attempt(0), status(200), NOW);
    }
    assert_eq!(health.limit.value(), 32);
    health.breaker.open(&BreakerPolicy::default(), NOW, 0.0);
    let probe = Attempt {
        probe: true,
        ..attempt(0)
    };
    let decision = run(&mut health, &probe, status(200), NOW);
    assert_eq!(decision.transition, Some(Transition::BreakerClosed));
    assert_eq!(health.limit.value(), 1);
    run(&mut health, &attempt(0), status(200), NOW);
    assert_eq!(health.limit.value(), 2);
}

#[test]
fn a_message_is_expired_after_three_days() {
    let message = attempt(0).message;
    assert!(!expired(
        message,
        MAX_AGE,
        accepted_at(message).plus(MAX_AGE - Duration::from_millis(1))
    ));
    assert!(expired(message, MAX_AGE, accepted_at(message).plus(MAX_AGE)));
    let minute = Duration::from_secs(60);
    assert!(expired(message, minute, accepted_at(message).plus(minute)));
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (100u16..600, proptest::option::of(any::<u64>())).prop_map(|(code, after)| Outcome::Status {
            judged: Judged::ByStatus,
            code,
            retry_after: after.map(Duration::from_secs),
            excerpt: None
        }),
        Just(Outcome::Fault(Fault::Refused)),
        Just(Outcome::Fault(Fault::Timeout)),
        Just(Outcome::Blocked {
            address: std::net::IpAddr::from([10, 0, 0, 1])
        }),
        Just(Outcome::Ours(OurFault::DnsDown)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_an_outage_ends_no_message(
        steps in proptest::collection::vec((outcomes(), 0u64..1_000_000, 0.0f64..1.0), 1..60),
    ) {
        let mut health = Health::default();
        let mut now = NOW;
        let mut consumed = 0;
        for (outcome, later, random) in steps {
            now = now.plus(Duration::from_millis(later));
            let was_open = health.breaker.is_open();
            let this = Attempt { probe: health.gate(now) == Gate::Probe, started: now, ..attempt(consumed) };
            let decision = judge(&mut health, &this, outcome.clone(), &policy(), (now, random));
            prop_assert!((1..=64).contains(&health.limit.value()));
            match decision.verdict {
                Verdict::Wait { due, attempts } => {
                    prop_assert!(due >= now);
                    prop_assert!(attempts == consumed || attempts == consumed + 1);
                    prop_assert!(attempts <= 4);
                    if was_open && is_endpoint_fault(&outcome) {
                        prop_assert_eq!(attempts, consumed);
                    }
                    consumed = attempts;
                }
                Verdict::Dead { .. } => {
                    prop_assert!(can_be_about_the_message(&outcome));
                    prop_assert_eq!(consumed, 4);
                    consumed = 0;
                }
                Verdict::Delivered => consumed = 0,
            }
        }
    }
}

#[test]
fn what_an_endpoint_takes_for_a_success_decides_whatever_the_status() {
    let answer = |code, judged| Outcome::Status {
        code,
        retry_after: None,
        judged,
        excerpt: None,
    };
    let decided = |outcome: Outcome| {
        let mut health = Health::default();
        let decision = run(&mut health, &attempt(0), outcome, NOW);
        (
            decision.verdict == Verdict::Delivered,
            decision.failure,
            health.disabled.is_some(),
        )
    };
    for (code, judged, delivered, failure, disabled) in [
        (200, Judged::Success, true, None, false),
        (409, Judged::Success, true, None, false),
        (410, Judged::Success, true, None, false),
        (200, Judged::Failure, false, Some("NotSuccessful"), false),
        (200, Judged::Undecided, false, Some("SuccessUndecided"), false),
        (503, Judged::Undecided, false, Some("ServerError"), false),
        (410, Judged::Failure, false, Some("Gone"), true),
    ] {
        assert_eq!(
            decided(answer(code, judged)),
            (delivered, failure, disabled),
            "{code} {judged:?}"
        );
    }
}

#[test]
fn a_question_that_is_not_agreed_to_uses_up_nothing_and_is_put_again_as_a_probe_is_made() {
    let refused = |code, retry_after: Option<u64>| Outcome::Status {
        judged: Judged::Asked(Err(Refusal::Status(code))),
        code,
        retry_after: retry_after.map(Duration::from_secs),
        excerpt: None,
    };
    // What it comes to, the seconds until it is put again, the word, and whether it is a refusal.
    let table = [
        (refused(405, None), 30, "HandshakeRefused", true),
        (refused(200, None), 30, "HandshakeRefused", true),
        (refused(429, Some(300)), 300, "HandshakeRefused", true),
        (refused(503, Some(5)), 30, "HandshakeRefused", true),
        (Outcome::Fault(Fault::Timeout), 30, "Timeout", false),
    ];
    let policy = RetryPolicy {
        never_retry: vec![405],
        ..policy()
    };
    for (outcome, seconds, word, is_refusal) in table {
        let mut health = Health::default();
        // The last attempt of its schedule.
        let asking = Attempt {
            asking: true,
            ..attempt(4)
        };
        let decision = judge(&mut health, &asking, outcome.clone(), &policy, (NOW, 0.0));
        assert_eq!(decision.verdict, wait(seconds, 4), "{outcome:?}");
        assert_eq!((decision.failure, decision.record.is_none()), (Some(word), true));
        assert_eq!(decision.transition, Some(Transition::BreakerOpened));
        assert_eq!(health.refusal.is_some(), is_refusal, "{outcome:?}");
        assert_eq!(Health::restore(&health.store()).refusal, health.refusal);
        let again = judge(&mut health, &asking, outcome, &policy, (NOW, 0.0));
        assert_eq!(again.verdict, wait(seconds.max(60), 4), "twice the time");
        assert_eq!((health.consecutive_failures, again.transition), (2, None));
    }

    let mut health = Health::default();
    let asking = Attempt {
        asking: true,
        ..attempt(0)
    };
    let gone = run(&mut health, &asking, refused(410, None), NOW);
    assert_eq!(gone.transition, Some(Transition::Disabled));
    let address = [10, 0, 0, 1].into();
    let mut health = Health::default();
    run(&mut health, &asking, Outcome::Blocked { address }, NOW);
    assert_eq!(health.gate(NOW), Gate::Until(NOW.plus(Duration::from_secs(300))));
}
