//! Numbers and durations of a spec to what `schedule` decides with.

use std::time::Duration;

use super::{BreakerPolicy, Rate, RetryPolicy, Unresolved};
use crate::api::duration::ApiDuration;
use crate::api::limits::{CircuitBreaker, DisableAfter, RateLimit};
use crate::api::retry::{Exponential, Retry};

/// A duration; `field` says where it stands.
pub(super) fn duration(field: &str, value: &ApiDuration) -> Result<Duration, Unresolved> {
    value
        .parse()
        .map_err(|error| Unresolved::invalid(format!("{field}: {error}")))
}

/// A number from 1 on.
pub(super) fn number(field: &str, value: i32) -> Result<u32, Unresolved> {
    u32::try_from(value)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| Unresolved::invalid(format!("{field} must be at least 1")))
}

/// When to try again. What a subscription says replaces its endpoint's as a whole.
pub fn resolve_retry(retry: &Retry) -> Result<RetryPolicy, Unresolved> {
    let schedule = match &retry.exponential {
        Some(exponential) => growing(exponential)?,
        None => retry
            .schedule
            .iter()
            .map(|wait| duration("retry.schedule", wait))
            .collect::<Result<_, _>>()?,
    };
    let status = |code: &i32| {
        u16::try_from(*code)
            .ok()
            .filter(|code| (300..=599).contains(code))
            .ok_or_else(|| Unresolved::invalid("retry.neverRetry must hold statuses from 300 to 599"))
    };
    Ok(RetryPolicy {
        schedule,
        jitter_percent: u8::try_from(retry.jitter)
            .ok()
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| Unresolved::invalid("retry.jitter must be from 0 to 100"))?,
        retry_after_max: duration("retry.retryAfterMax", &retry.retry_after_max)?,
        never_retry: retry.never_retry.iter().map(status).collect::<Result<_, _>>()?,
        max_age: duration("retry.maxAge", &retry.max_age)?,
    })
}

impl Default for RetryPolicy {
    /// That of a spec that says nothing.
    fn default() -> RetryPolicy {
        resolve_retry(&Retry::default()).expect("the schema's defaults are valid")
    }
}

impl Default for BreakerPolicy {
    /// That of a spec that says nothing.
    fn default() -> BreakerPolicy {
        breaker(&CircuitBreaker::default()).expect("the schema's defaults are valid")
    }
}

/// Each wait `factor` times the one before, none longer than `max`.
fn growing(exponential: &Exponential) -> Result<Vec<Duration>, Unresolved> {
    let initial = duration("retry.exponential.initial", &exponential.initial)?;
    let max = duration("retry.exponential.max", &exponential.max)?;
    let factor = exponential
        .factor
        .parse::<f64>()
        .ok()
        .filter(|factor| (1.0..=10.0).contains(factor))
        .ok_or_else(|| Unresolved::invalid("retry.exponential.factor must be from \"1\" to \"10\", as in \"1.5\""))?;
    let attempts = number("retry.exponential.attempts", exponential.attempts)?;
    let mut wait = initial.min(max);
    let mut schedule = Vec::new();
    for _ in 1..attempts {
        schedule.push(wait);
        wait = wait.mul_f64(factor).min(max);
    }
    Ok(schedule)
}

pub(super) fn rate(limit: &RateLimit) -> Result<Rate, Unresolved> {
    let per = duration("rateLimit.per", &limit.per)?;
    if per.is_zero() {
        return Err(Unresolved::invalid("rateLimit.per must be from 1s to 1h"));
    }
    Ok(Rate {
        requests: number("rateLimit.requests", limit.requests)?,
        per,
    })
}

pub(super) fn breaker(breaker: &CircuitBreaker) -> Result<BreakerPolicy, Unresolved> {
    Ok(BreakerPolicy {
        open_after: number("circuitBreaker.openAfter", breaker.open_after)?,
        probe_after: duration("circuitBreaker.probeAfter", &breaker.probe_after)?,
        probe_after_max: duration("circuitBreaker.probeAfterMax", &breaker.probe_after_max)?,
    })
}

pub(super) fn disable_after(after: &DisableAfter) -> Result<Option<Duration>, Unresolved> {
    after
        .duration()
        .map(|after| duration("disableAfter", &after))
        .transpose()
}
