//! What becomes of attempts and of outcomes that the store has recorded. Synchronous and without I/O.
//!
//! Owns the step from a result to the store's verdict and back to counts; knows nothing of tasks. Invariant: every attempt
//! that ended leaves exactly one outcome, and every outcome is applied once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::endpoint::{Access, Endpoint};
use super::metrics::Reason;
use super::state::{Job, State, unmade};
use crate::delivery::{AttemptResult, Grant};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::queue::{AttemptRecord, Backlog, DeadReason, Pending, Settled, Settlement, Verdict};
use crate::registry::{EndpointEntry, SubscriptionEntry};
use crate::schedule::decide::{Attempt, Decision, Rules, Transition, decide};
use crate::schedule::handshake::Question;

/// A body that could not be read is tried again after this: the store tries its disk each second.
const UNREAD_WAIT: Duration = Duration::from_secs(1);
/// A message whose attempt panicked is tried again after this: as long as after any fault of our own.
const PANICKED_WAIT: Duration = Duration::from_secs(30);
/// Its endpoint rests for so long: what panics once may do so with each message, or with each probe.
const PANICKED_REST: Duration = Duration::from_secs(1);

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum End {
    Answered(AttemptResult),
    /// The event cannot be rendered, or is not in the store; why, without anything of the event.
    Unrenderable(String),
    /// The store could not read the event.
    Unread,
    /// Rendered, it had no room among the bodies in flight.
    Crowded,
    /// By a bug of ours.
    Panicked,
}

impl State {
    /// An attempt ended. `random` is in [0, 1).
    pub fn complete(&mut self, job: &Job, end: End, now: UnixMillis, random: f64) {
        let id = job.pending.endpoint;
        let saturated = self
            .endpoints
            .get(&id)
            .is_some_and(|endpoint| endpoint.in_flight >= endpoint.health.limit.value() as usize);
        self.free(job);
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.heard = now;
        }
        match end {
            End::Answered(result) => self.answered(job, &result, saturated, now, random),
            End::Unrenderable(why) => {
                let reason = DeadReason::Unrenderable;
                let mut outcome = unmade(job.pending, Verdict::Dead { reason });
                outcome.record = Some(AttemptRecord {
                    at: now,
                    took: Duration::ZERO,
                    status: None,
                    reason: reason.reason(),
                    excerpt: Some(why.into()),
                });
                self.hand_over(outcome);
            }
            End::Unread => self.wait(job, now.plus(UNREAD_WAIT)),
            // Due as before: it is started again when there is room for as much.
            End::Crowded => self.wait(job, job.pending.due),
            End::Panicked => {
                if let Some(endpoint) = self.endpoints.get_mut(&id) {
                    endpoint.health.rest(now.plus(PANICKED_REST));
                    if endpoint.overridden {
                        endpoint.retried.insert(job.pending.message, job.pending.subscription);
                    }
                }
                self.wait(job, now.plus(PANICKED_WAIT));
            }
        }
        self.evaluate(id, now);
    }

    /// No attempt was made: the message waits.
    fn wait(&mut self, job: &Job, due: UnixMillis) {
        let verdict = Verdict::Wait {
            due,
            attempts: job.pending.attempts,
        };
        self.hand_over(unmade(job.pending, verdict));
    }

    fn answered(&mut self, job: &Job, result: &AttemptResult, saturated: bool, now: UnixMillis, random: f64) {
        let Some(endpoint) = self.endpoints.get_mut(&job.pending.endpoint) else {
            return;
        };
        let attempt = Attempt {
            message: job.pending.message,
            consumed: job.pending.attempts,
            started: job.started,
            probe: job.probe,
            asking: job.question.is_some(),
            saturated,
        };
        let failed_before = endpoint.health.last_failed;
        let is_home = job.subscription.endpoint == job.pending.endpoint;
        let own = job.subscription.spec.retry.as_ref().filter(|_| is_home);
        let rules = Rules {
            retry: own.unwrap_or(&job.endpoint.retry),
            breaker: &job.endpoint.breaker,
            disable_after: job.endpoint.disable_after,
        };
        // What was met under another spec says nothing of this one, but that it got through.
        let is_stale = !result.outcome.is_success() && endpoint.is_other_than(&job.endpoint);
        let mut decision = match is_stale {
            true => Decision {
                transition: None,
                ..decide(&mut endpoint.health.clone(), &attempt, result, &rules, now, random)
            },
            false => decide(&mut endpoint.health, &attempt, result, &rules, now, random),
        };
        if is_stale
            && let Verdict::Wait { due, attempts } = &mut decision.verdict
            && *attempts == job.pending.attempts
        {
            // It waited for the spec before.
            *due = now;
        }
        match decision.failure {
            None => {
                endpoint.note_success(result.took);
                endpoint.health_dirty |= failed_before;
                self.metrics.delivered.inc();
            }
            Some(reason) => {
                endpoint.health_dirty = true;
                self.metrics.failed.get_or_create(&Reason { reason }).inc();
                if let Verdict::Wait { due, attempts } = decision.verdict {
                    // Before it is recorded: who looks at the failure wants to see when it is tried again.
                    endpoint.note_retry(&Pending {
                        due,
                        attempts,
                        ..job.pending
                    });
                }
            }
        }
        match decision.transition {
            Some(Transition::BreakerOpened) => {
                endpoint.overridden = false;
                self.metrics.breaker_opened.inc();
            }
            Some(Transition::BreakerClosed) => endpoint.override_due_times(),
            Some(Transition::Disabled) | None => {}
        }
        // After the transition: the probe that closed the breaker may have failed by itself.
        if endpoint.overridden && !is_stale && matches!(decision.verdict, Verdict::Wait { .. }) {
            endpoint.retried.insert(job.pending.message, job.pending.subscription);
        }
        self.hand_over(Settlement {
            message: job.pending.message,
            endpoint: job.pending.endpoint,
            subscription: job.pending.subscription,
            attempts: job.pending.attempts,
            record: decision.record,
            verdict: decision.verdict,
            consumed: job.pending.attempts.saturating_add(1),
            blocks: false,
            next_waits: false,
            tell: None,
        });
        self.note_change(job.pending.endpoint);
    }

    /// The receiver agreed to what it was asked. Its rate counts from now on, also for the message in hand.
    pub fn agreed(&mut self, id: EndpointId, question: Question, grant: Grant, now: UnixMillis) {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return;
        };
        endpoint.health.agreed(question, grant, now);
        endpoint.health_dirty = true;
        endpoint.take_turn(now);
        self.changed.insert(id);
        self.evaluate(id, now);
    }

    /// The endpoint's view changed; at once, when its reason did.
    pub fn note_change(&mut self, id: EndpointId) {
        self.changed.insert(id);
        if self.is_turned(id) {
            self.urgent.push(id);
        }
    }

    /// The store has recorded outcomes.
    pub fn recorded(&mut self, outcomes: &[Settlement], answers: &[Settled], now: UnixMillis) {
        let mut touched: Vec<EndpointId> = Vec::with_capacity(4);
        let mut blocked = Vec::new();
        for (outcome, answer) in outcomes.iter().zip(answers) {
            let Settlement {
                message,
                endpoint: id,
                subscription,
                ref verdict,
                ..
            } = *outcome;
            if touched.last() != Some(&id) {
                touched.push(id);
            }
            match *answer {
                Settled::Promoted(next) => self.promoted(next, outcome.next_waits),
                Settled::Blocked => blocked.push(id),
                Settled::Applied | Settled::Stale => {}
            }
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            let paging = endpoint.paging;
            endpoint.release(message);
            if *answer == Settled::Stale {
                // Buried or settled meanwhile: whoever did it has counted it.
                if let Verdict::Wait { due, .. } = *verdict {
                    endpoint.forget_retry(due, message);
                }
                tracing::debug!(%message, "an outcome came too late for its message");
                continue;
            }
            let Some(known) = endpoint.subscriptions.get_mut(&subscription) else {
                continue;
            };
            known.view_dirty = true;
            match *verdict {
                Verdict::Wait { due, .. } => {
                    endpoint.subscriptions.note_due(subscription, due, paging);
                    continue;
                }
                Verdict::Dead { reason } => {
                    known.dead += 1;
                    known.last_dead = Some((now, reason.reason()));
                    let reason = reason.reason();
                    self.metrics.dead_letters.get_or_create(&Reason { reason }).inc();
                    if outcome.tell.is_some() {
                        self.metrics.told.inc();
                    }
                }
                Verdict::Delivered => {}
            }
            known.pending -= 1;
            if *answer == Settled::Blocked {
                endpoint.subscriptions.add_ordered(subscription, 0, 1);
            }
            endpoint.gauge.add_pending(-1);
            if endpoint.oldest == Some(message) {
                endpoint.oldest = None;
            }
        }
        for id in touched {
            self.note_change(id);
            self.evaluate(id, now);
        }
        for id in blocked {
            self.look_at_order(id);
        }
    }

    /// An endpoint was loaded, changed or deleted.
    pub fn endpoint_changed(&mut self, entry: Arc<EndpointEntry>, now: UnixMillis) {
        let id = entry.id;
        let endpoint = self.endpoint(id);
        let egress = endpoint.usable().map(|resolved| Arc::clone(&resolved.egress));
        endpoint.entry = Some(entry);
        if let Some(policy) = endpoint.pulled() {
            if endpoint.heard == UnixMillis::default() {
                endpoint.heard = now;
            }
            if endpoint.retention.replace(policy.retention) != Some(policy.retention) {
                self.retentions.push((id, policy.retention));
            }
        }
        self.place(id);
        let endpoint = self.endpoint(id);
        if let Some(resolved) = endpoint.usable().cloned() {
            if egress.as_ref() != Some(&resolved.egress) && endpoint.health.look_at_block_anew() {
                endpoint.override_due_times();
            }
            if endpoint.retention.replace(resolved.retention) != Some(resolved.retention) {
                self.retentions.push((id, resolved.retention));
            }
            let question = Question::of(&resolved, &self.origin);
            let endpoint = self.endpoint(id);
            let request = resolved.enable_request.as_deref();
            let observed = endpoint
                .health
                .observe_spec(&resolved.uid, resolved.generation, request, now);
            endpoint.health.limit.set_ceiling(resolved.max_in_flight);
            let signing = endpoint.health.observe_signing(resolved.signing.current_id(), now);
            let asked = endpoint.health.observe_question(question, now);
            endpoint.health_dirty |= observed.durable || signing || asked;
            if observed.changed || observed.enabled {
                endpoint.override_due_times();
            }
            // After a restart: which retry is due first is shown before it is due.
            let unseen = endpoint.posted.is_none() && endpoint.health.last_failed && endpoint.next_due().is_some();
            if unseen {
                self.look_at_waiting(id);
            }
        }
        self.look_at_order(id);
        self.note_change(id);
        self.evaluate(id, now);
    }

    /// A subscription was loaded, changed or deleted.
    pub fn subscription_changed(&mut self, entry: Arc<SubscriptionEntry>, now: UnixMillis) {
        let (id, endpoint) = (entry.id, entry.endpoint);
        self.subscription(endpoint, id);
        // Deleted and recreated for another endpoint, it may have messages at the one before.
        for home in self.homes.get(&id).cloned().unwrap_or_default() {
            let known = self.subscription(home, id);
            // Nothing could be told of it before it was loaded.
            known.posted &= known.entry().is_some();
            // What is deleted is counted no more.
            known.view_dirty |= entry.deleted.is_some();
            // What was said of the filter before was said of another one.
            known.view_dirty |= known.filter_posted && entry.filter_health.failing().is_none();
            self.endpoint(home).subscriptions.load(id, &entry);
            self.subscription_known(home, id, now);
        }
    }

    /// What is told of a subscription's filter may have changed.
    pub fn filter_changed(&mut self, entry: &SubscriptionEntry) {
        self.subscription(entry.endpoint, entry.id).view_dirty = true;
        self.note_change(entry.endpoint);
    }

    /// A subscription of the store no longer exists.
    pub fn subscription_gone(&mut self, id: SubscriptionId, now: UnixMillis) {
        for endpoint in self.homes.get(&id).cloned().unwrap_or_default() {
            self.endpoint(endpoint).subscriptions.set_gone(id);
            self.subscription_known(endpoint, id, now);
        }
    }

    fn subscription_known(&mut self, endpoint: EndpointId, id: SubscriptionId, now: UnixMillis) {
        if !self.subscription(endpoint, id).sends() {
            self.let_go(endpoint, |held| held.pending.subscription == id);
        }
        self.note_change(endpoint);
        self.evaluate(endpoint, now);
    }

    /// Takes all of an endpoint's counts from the store, which never lose one: what came before this process, and hints that
    /// were dropped. What has happened since the store counted is made up for by the next count.
    pub fn counted(&mut self, id: EndpointId, backlogs: &[Backlog], now: UnixMillis) {
        if backlogs.is_empty() && !self.endpoints.contains_key(&id) {
            return;
        }
        let endpoint = self.endpoint(id);
        endpoint.oldest = backlogs.iter().filter_map(|backlog| backlog.oldest).min();
        for known in endpoint.subscriptions.values_mut() {
            known.counted = false;
        }
        let paging = endpoint.paging;
        let mut in_memory: HashMap<SubscriptionId, i64> = HashMap::new();
        for subscription in endpoint.held.values() {
            *in_memory.entry(*subscription).or_default() += 1;
        }
        for backlog in backlogs {
            let known = self.subscription(id, backlog.subscription);
            known.counted = true;
            let (pending, dead) = (backlog.pending as i64, backlog.dead as i64);
            known.view_dirty |= (known.pending, known.dead) != (pending, dead);
            (known.pending, known.dead) = (pending, dead);
            let (held, blocking) = (backlog.held as i64, backlog.blocking as i64);
            let (more_held, more_blocking) = (held - known.held(), blocking - known.blocking());
            known.view_dirty |= (more_held, more_blocking) != (0, 0);
            // Earlier than anything due, or where nothing is: one page more, and it is known again. The earliest may be one
            // that is in memory; then there is something else only if more are pending than are there.
            let here = in_memory.get(&backlog.subscription).copied().unwrap_or_default();
            let is_news = |due| match known.next_due() {
                Some(next) => here == 0 && next > due,
                None => here == 0 || pending - held > here,
            };
            let due = backlog.min_due.filter(|due| is_news(*due));
            let subscriptions = &mut self.endpoint(id).subscriptions;
            subscriptions.add_ordered(backlog.subscription, more_held, more_blocking);
            if let Some(due) = due {
                subscriptions.note_due(backlog.subscription, due, paging);
            }
            if held + blocking > 0 {
                self.look_at_order(id);
            }
        }
        let endpoint = self.endpoint(id);
        let (mut pending, mut is_changed, mut emptied) = (0, false, Vec::new());
        for (of, known) in endpoint.subscriptions.iter_mut() {
            if !known.counted && (known.pending, known.dead) != (0, 0) {
                (known.pending, known.dead) = (0, 0);
                known.view_dirty = true;
                emptied.push((*of, known.held(), known.blocking()));
            }
            pending += known.pending;
            is_changed |= known.view_dirty;
        }
        for (of, held, blocking) in emptied {
            endpoint.subscriptions.add_ordered(of, -held, -blocking);
        }
        endpoint.forget_buried();
        endpoint.gauge.add_pending(pending - endpoint.gauge.pending());
        if is_changed {
            self.note_change(id);
            self.evaluate(id, now);
        }
    }

    /// Every watch has synced: what is not loaded now does not exist, and is not held in memory.
    pub fn all_loaded(&mut self, now: UnixMillis) {
        self.synced = true;
        let unloaded: Vec<EndpointId> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.entry.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in unloaded {
            self.let_go(id, |_| true);
            self.evaluate(id, now);
        }
    }

    /// Endpoints that have something to be read from the store now.
    pub fn due(&self, now: UnixMillis) -> Vec<EndpointId> {
        let probes = |endpoint: &Endpoint| endpoint.access(now) == Access::Probe && endpoint.seeks_probe(now);
        let is_due = |endpoint: &Endpoint| !endpoint.paging && (endpoint.has_due(now) || probes(endpoint));
        let due = self.endpoints.iter().filter(|(_, endpoint)| is_due(endpoint));
        due.map(|(id, _)| *id).collect()
    }

    /// What a failed page or a full window left behind is looked at again; who runs out of places gets more.
    pub fn look_again(&mut self, id: EndpointId, now: UnixMillis) {
        self.widen(id);
        self.evaluate(id, now);
    }

    /// Endpoints whose state changed since it was kept.
    pub fn unkept_states(&self) -> Vec<EndpointId> {
        let changed = self.endpoints.iter().filter(|(_, endpoint)| endpoint.health_dirty);
        changed.map(|(id, _)| *id).collect()
    }

    /// Their states, to be kept.
    pub fn take_states(&mut self, ids: &[EndpointId]) -> Vec<(EndpointId, Bytes)> {
        let mut states = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(endpoint) = self.endpoints.get_mut(id) {
                endpoint.health_dirty = false;
                states.push((*id, endpoint.health.store()));
            }
        }
        states
    }

    /// Every state that is to be kept: the last ones.
    pub fn take_all_states(&mut self) -> Vec<(EndpointId, Bytes)> {
        let kept = |endpoint: &Endpoint| endpoint.health_dirty || endpoint.entry.is_some();
        let all = self.endpoints.iter().filter(|(_, endpoint)| kept(endpoint));
        let all: Vec<EndpointId> = all.map(|(id, _)| *id).collect();
        self.take_states(&all)
    }

    /// Their states could not be kept.
    pub fn states_not_kept(&mut self, ids: &[EndpointId]) {
        for id in ids {
            if let Some(endpoint) = self.endpoints.get_mut(id) {
                endpoint.health_dirty = true;
            }
        }
    }
}
