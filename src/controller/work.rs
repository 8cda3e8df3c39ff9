//! The workers, the tick that looks at what time alone changes (the fleet, old reads), and what a new policy leads to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::ResourceExt;
use kube::core::Status;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::context::{Context, Key};
use super::fleet::Fleet;
use super::metrics::Reconcile;
use super::{endpoint, event_type, grants, replay, subscription};
use crate::api::resolve::subscription_references;
use crate::config;
use crate::kubernetes::RequestError;

/// How often the fleet is looked at: Ready follows loading by at most this, and a dead replica is noticed within it.
const TICK: Duration = Duration::from_millis(250);
/// How often those that wait for a dispatcher are looked at, whatever it has told, in ticks.
const LOOK_EVERY: u32 = 40;
/// How often reads that nobody asks for any more are dropped, in ticks.
const PRUNE_EVERY: u32 = 240;
/// The first wait after a failed reconcile; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two tries.
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The longest wait after a refusal, and half of it more by chance: thousands that one quota refuses are some writes a
/// second then, and not the whole budget.
const REFUSED_LONGEST: Duration = Duration::from_secs(600);

/// When to look again although nothing changed; none: never.
pub type Again = Option<Instant>;

/// Why a reconcile could not be finished. All of it is retried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {doing}: {source}")]
    Request { doing: &'static str, source: RequestError },
    /// Another write came first: the watch brings the object again.
    #[error("the object changed meanwhile")]
    Outdated,
}

impl Error {
    /// Puts what was being done to a failed request.
    pub fn when(doing: &'static str) -> impl FnOnce(RequestError) -> Error {
        move |source| Error::Request { doing, source }
    }

    /// What the API server answered, if it refused for good: trying again helps only when somebody changed something.
    pub fn refusal(&self) -> Option<&Status> {
        let Error::Request {
            source: RequestError::Api(kube::Error::Api(status)),
            ..
        } = self
        else {
            return None;
        };
        matches!(status.code, 400 | 403 | 413 | 422).then_some(status)
    }
}

/// Takes keys until stopped; what it holds it finishes.
pub async fn worker(context: Arc<Context>, stop: CancellationToken) {
    loop {
        let key = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            key = context.queue.next() => key,
        };
        let result = reconcile(&context, &key).await;
        let label = match &result {
            Ok(_) => "ok",
            Err(Error::Outdated) => "outdated",
            Err(Error::Request { .. }) => "error",
        };
        let labels = Reconcile {
            kind: key.kind(),
            result: label,
        };
        context.config.metrics.reconciles.get_or_create(&labels).inc();
        match result {
            Ok(again) => {
                context.failures.forget(&key);
                if let Some(at) = again {
                    context.queue.add(key.clone(), at);
                }
            }
            Err(error) => {
                let longest = match error.refusal() {
                    Some(_) => longest_after_refusal(rand::random()),
                    None => RETRY_LONGEST,
                };
                let wait = context.failures.note(&key, longest);
                match error {
                    Error::Request { .. } => tracing::warn!(?key, %error, "failed to reconcile"),
                    _ => tracing::debug!(?key, %error, "to be reconciled anew"),
                }
                context.queue.add(key.clone(), Instant::now() + wait);
            }
        }
        context.queue.done(&key);
    }
}

/// How often each object failed in a row, whichever worker had it.
#[derive(Debug, Default)]
pub struct Failures {
    counts: Mutex<HashMap<Key, u32>>,
}

impl Failures {
    /// One more; how long to wait before the next try, unless the object changes.
    fn note(&self, key: &Key, longest: Duration) -> Duration {
        let mut counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        let count = counts.entry(key.clone()).or_default();
        let wait = RETRY_FIRST.saturating_mul(2u32.saturating_pow(*count)).min(longest);
        *count = count.saturating_add(1);
        wait
    }

    /// It succeeded.
    fn forget(&self, key: &Key) {
        self.counts.lock().unwrap_or_else(|e| e.into_inner()).remove(key);
    }
}

fn longest_after_refusal(random: u8) -> Duration {
    REFUSED_LONGEST + REFUSED_LONGEST * u32::from(random) / u32::from(u8::MAX) / 2
}

async fn reconcile(context: &Context, key: &Key) -> Result<Again, Error> {
    match key {
        Key::Endpoint(namespace, name) => endpoint::reconcile(context, namespace, name).await,
        Key::Subscription(namespace, name) => subscription::reconcile(context, namespace, name).await,
        Key::EventType(namespace, name) => event_type::reconcile(context, namespace, name).await,
        Key::Replay(namespace, name) => replay::reconcile(context, namespace, name).await,
        Key::Grants(namespace) => grants::reconcile::reconcile(context, namespace).await,
    }
}

/// Runs until dropped.
pub async fn tick(context: Arc<Context>) -> anyhow::Result<()> {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0u32;
    loop {
        interval.tick().await;
        look_at_fleet(&context);
        if count.is_multiple_of(LOOK_EVERY) {
            // What keeps them waiting may be this process' own watch.
            look_at_those_that_wait(&context, Instant::now());
        }
        if count.is_multiple_of(PRUNE_EVERY) {
            context.references.prune();
        }
        count = count.wrapping_add(1);
    }
}

fn look_at_fleet(context: &Context) {
    let now = Instant::now();
    let leases = context.stores.leases.state();
    let fleet = {
        let mut liveness = context.liveness.lock().unwrap_or_else(|e| e.into_inner());
        Fleet::of(&leases, &mut liveness, now)
    };
    let live = i64::try_from(fleet.live).unwrap_or(i64::MAX);
    context.config.metrics.live_dispatchers.set(live);
    let changed = {
        let mut current = context.fleet.lock().unwrap_or_else(|e| e.into_inner());
        let changed = *current != fleet;
        *current = fleet;
        changed
    };
    if changed {
        look_at_those_that_wait(context, now);
    }
}

fn look_at_those_that_wait(context: &Context, now: Instant) {
    let waiting = context.waiting.lock().unwrap_or_else(|e| e.into_inner()).clone();
    waiting.into_iter().for_each(|key| context.queue.add(key, now));
}

/// Takes over what the policy file says, as it changes. Runs until dropped.
pub async fn follow_policy(context: Arc<Context>, mut policies: config::Latest) -> anyhow::Result<()> {
    loop {
        if policies.changed().await.is_err() {
            // The process ends: this one counts to the last.
            std::future::pending::<()>().await;
        }
        let Some(policy) = policies.borrow_and_update().clone() else {
            continue;
        };
        context.policy.store(policy);
        let now = Instant::now();
        // The dispatcher may have gone by this one for a while.
        look_at_those_that_wait(&context, now);
        for endpoint in context.stores.endpoints.state() {
            let key = Key::Endpoint(endpoint.namespace().unwrap_or_default(), endpoint.name_any());
            context.queue.add(key, now);
        }
        for subscription in context.stores.subscriptions.state() {
            if !subscription_references(&subscription).is_empty() {
                let key = Key::Subscription(subscription.namespace().unwrap_or_default(), subscription.name_any());
                context.queue.add(key, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_one_success_ends_them() {
        let (failures, key) = (Failures::default(), Key::Grants("team".into()));
        let note = |key: &Key| failures.note(key, RETRY_LONGEST);
        let waits: Vec<u64> = (0..9).map(|_| note(&key).as_millis() as u64).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        failures.forget(&key);
        assert_eq!(note(&key), RETRY_FIRST);
        assert_eq!(note(&Key::Grants("other".into())), RETRY_FIRST);
    }

    #[test]
    fn three_thousand_endpoints_that_a_quota_refuses_take_a_tenth_of_the_budget() {
        let (failures, start) = (Failures::default(), Instant::now());
        let (mut due, mut hourly) = (std::collections::BTreeSet::new(), 0u32);
        due.extend((0..3_000u32).map(|n| (start, n)));
        // Each of them is written as the budget allows, one after the other.
        let (mut now, hour) = (start, Duration::from_secs(3_600));
        let between = Duration::from_secs(1) / super::super::WRITES_PER_SECOND;
        while let Some((at, n)) = due.pop_first() {
            now = at.max(now + between);
            if now > start + hour * 2 {
                break;
            }
            hourly += u32::from(now > start + hour);
            let key = Key::Endpoint("team".into(), n.to_string());
            let wait = failures.note(&key, longest_after_refusal((n % 256) as u8));
            due.insert((now + wait, n));
        }
        let budget = super::super::WRITES_PER_SECOND * 3_600;
        assert!(hourly > 3_000, "none is given up: {hourly}");
        assert!(hourly <= budget / 10, "{hourly} of {budget} writes in the second hour");
    }

    #[test]
    fn a_refusal_is_what_trying_again_does_not_mend() {
        let answered = |code: u16| {
            let status = Status {
                code,
                ..Status::default()
            };
            Error::when("write")(RequestError::Api(kube::Error::Api(Box::new(status))))
        };
        for (code, refused) in [
            (400, true),
            (403, true),
            (413, true),
            (422, true),
            (409, false),
            (429, false),
            (500, false),
            (503, false),
        ] {
            assert_eq!(answered(code).refusal().is_some(), refused, "{code}");
        }
        assert!(Error::when("write")(RequestError::Timeout).refusal().is_none());
        assert!(Error::Outdated.refusal().is_none());
    }
}
