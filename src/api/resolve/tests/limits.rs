use super::*;
use crate::api::limits::{DisableAfter, RateLimit};
use crate::api::ordering::{OnExhausted, Ordering, OrderingMode};
use crate::api::retry::Exponential;

#[test]
fn the_defaults_of_retries_and_limits_are_those_of_the_schema() {
    let resolved = resolve_endpoint(&endpoint("https://hooks.example.com/"), &generated(), &closed(), None).unwrap();
    assert_eq!(resolved.retry, RetryPolicy::default());
    assert_eq!(resolved.retry.max_age, crate::schedule::MAX_AGE);
    assert_eq!(resolved.max_in_flight, crate::schedule::limit::CEILING);
    assert_eq!((resolved.rate, resolved.breaker), (None, BreakerPolicy::default()));
    assert_eq!(resolved.disable_after, Some(Duration::from_secs(120 * 3600)));
}

#[test]
fn exponential_waits_grow_by_the_factor_up_to_the_longest() {
    let growing = |initial: &str, factor: &str, max: &str, attempts| {
        resolve_retry(&Retry {
            exponential: Some(Exponential {
                initial: initial.into(),
                factor: factor.to_owned(),
                max: max.into(),
                attempts,
            }),
            ..Retry::default()
        })
    };
    let millis = |policy: RetryPolicy| -> Vec<u128> { policy.schedule.iter().map(Duration::as_millis).collect() };
    assert_eq!(
        millis(growing("1s", "2", "10s", 6).unwrap()),
        [1_000, 2_000, 4_000, 8_000, 10_000]
    );
    assert_eq!(millis(growing("2s", "1.5", "1h", 4).unwrap()), [2_000, 3_000, 4_500]);
    assert_eq!(millis(growing("1s", "1", "1h", 3).unwrap()), [1_000, 1_000]);
    assert!(growing("1s", "2", "1h", 1).unwrap().schedule.is_empty());
    for (factor, attempts) in [("0.5", 3), ("11", 3), ("inf", 3), ("NaN", 3), ("", 3), ("2", 0)] {
        let unresolved = growing("1s", factor, "1h", attempts).unwrap_err();
        assert_eq!(unresolved.reason, reasons::INVALID_SPEC, "{factor} {attempts}");
    }
}

#[test]
fn limits_are_resolved_and_what_the_rules_exclude_is_refused() {
    let mut endpoint = endpoint("https://hooks.example.com/");
    endpoint.spec.rate_limit = Some(RateLimit {
        requests: 100,
        per: "1m".into(),
    });
    endpoint.spec.max_in_flight = 7;
    endpoint.spec.disable_after = DisableAfter("Never".to_owned());
    endpoint.spec.retry.never_retry = vec![400, 422];
    let resolved = resolve_endpoint(&endpoint, &generated(), &closed(), None).unwrap();
    let rate = Rate {
        requests: 100,
        per: Duration::from_secs(60),
    };
    assert_eq!((resolved.rate, resolved.disable_after), (Some(rate), None));
    assert_eq!(resolved.max_in_flight, 7);
    assert_eq!(resolved.retry.never_retry, [400, 422]);

    let edits: [fn(&mut WebhookEndpointSpec); 7] = [
        |spec| spec.max_in_flight = 0,
        |spec| spec.disable_after = DisableAfter("never".to_owned()),
        |spec| spec.circuit_breaker.open_after = 0,
        |spec| spec.retry.never_retry = vec![200],
        |spec| {
            spec.rate_limit = Some(RateLimit {
                requests: 1,
                per: "0s".into(),
            })
        },
        |spec| spec.retry.max_age = "soon".into(),
        |spec| {
            spec.ordering = Ordering {
                mode: OrderingMode::Fifo,
                key: Some("event.".to_owned()),
                on_exhausted: OnExhausted::Block,
            }
        },
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut broken = endpoint.clone();
        edit(&mut broken.spec);
        let unresolved = resolve_endpoint(&broken, &generated(), &closed(), None).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reasons::INVALID_SPEC, true),
            "{number}"
        );
    }
}
