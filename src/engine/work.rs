//! One attempt after another: ask first where that is wanted, load, render, send, decide, next.
//!
//! Owns the task; knows nothing of who may start (`state` does). Invariant: a task that ends gave its slot back; an attempt
//! that panics ends as one that was not made.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use http::Method;

use super::Core;
use super::outcome::End;
use super::state::Job;
use super::trace::Attempt;
use crate::api::resolve::RequestForm;
use crate::delivery::{AttemptResult, Fault, Judged, Outcome, Request};
use crate::event::format::{Rendered, render};
use crate::queue::{Notice, StoredEvent};
use crate::registry::{Material, SubscriptionEntry};
use crate::schedule::handshake::Question;
use crate::shaping::{self, Shaped, shape};

/// Requests that expressions make at a time: the values of one may take tens of megabytes.
pub(super) const RENDERINGS: usize = 8;

/// Makes attempts until there is none to be made. It goes on with what its own end made possible: no new task, no hop.
pub(super) async fn work(core: Arc<Core>, mut job: Job) {
    loop {
        let ended = AssertUnwindSafe(attempt(&core, &mut job)).catch_unwind();
        let Some(ended) = core.cut.run_until_cancelled(ended).await else {
            // Cut off: nothing is counted, and the next process sends it again.
            core.lock().free(&job);
            return;
        };
        let end = ended.unwrap_or_else(|_panic| {
            let SubscriptionEntry { key, spec, .. } = &*job.subscription;
            let (message, namespace, subscription) = (job.pending.message, &spec.namespace, &key.name);
            tracing::error!(%message, namespace, subscription, "an attempt panicked; not counted, and made again later");
            End::Panicked
        });
        let now = core.clock.now();
        let random = (core.random)();
        let next = {
            let mut state = core.lock();
            state.complete(&job, end, now, random);
            let mut jobs = state.grant(now).into_iter();
            let next = jobs.next();
            jobs.for_each(|job| core.start(job));
            core.wake(&state);
            next
        };
        let Some(next) = next else { return };
        job = next;
    }
}

async fn attempt(core: &Arc<Core>, job: &mut Job) -> End {
    if let Some(question) = job.question
        // Boxed: rare, it would make every attempt's future larger.
        && let Some(answer) = Box::pin(ask(core, job, question)).await
    {
        return End::Answered(answer);
    }
    let Some(event) = event(core, job).await else {
        return End::Unread;
    };
    let notice = match job.pending.message.is_notice() {
        false => None,
        true => match core.queue.notice(job.pending.message.event()).await {
            Ok(notice) => notice,
            Err(error) => {
                tracing::warn!(message = %job.pending.message, %error, "failed to read what is told of a dead letter");
                return End::Unread;
            }
        },
    };
    let by_expressions = notice.is_some() || matches!(job.subscription.spec.request, RequestForm::Shaped(_));
    let turn = match by_expressions {
        true => core.renderings.acquire().await.ok(),
        false => None,
    };
    let rendered = match &event {
        Some(event) => match &notice {
            Some(notice) => told(&job.subscription, notice, event),
            None => rendered(job, event),
        },
        None => Err("the store has no event for this message".to_owned()),
    };
    drop(turn);
    let (mut rendered, shaped) = match rendered {
        Ok(rendered) => rendered,
        Err(why) => {
            let SubscriptionEntry { key, spec, .. } = &*job.subscription;
            let (message, namespace, subscription) = (job.pending.message, &spec.namespace, &key.name);
            tracing::warn!(%message, namespace, subscription, why, "failed to render a request");
            return End::Unrenderable(why);
        }
    };
    let size = size(&rendered, shaped.as_deref());
    if !core.step(|state| state.body_rendered(job, size)) {
        return End::Crowded;
    }
    let traced = core.traces.as_ref().zip(event.as_deref()).and_then(|(traces, event)| {
        let method = shaped.as_ref().map_or(&Method::POST, |shaped| &shaped.method);
        Attempt::begin(traces, job, event, method)
    });
    // Held no longer than it is read.
    drop(event);
    if let Some(traced) = &traced {
        rendered.headers.extend(traced.headers());
    }
    let request = Request {
        message: job.pending.message,
        content_type: rendered.content_type,
        headers: rendered.headers,
        body: rendered.body,
        timestamp: core.clock.told().0.div_euclid(1000),
        shaped,
    };
    let endpoint = Arc::clone(&job.endpoint);
    let result = patiently(core, job, core.sender.send(&endpoint, request)).await;
    if let Some(traced) = traced {
        traced.ended(&result);
    }
    End::Answered(result)
}

/// Asks whether the receiver wants messages; what it said when it does not. An agreement is durable before anything follows
/// it, so that no restart asks again.
async fn ask(core: &Arc<Core>, job: &mut Job, question: Question) -> Option<AttemptResult> {
    let endpoint = Arc::clone(&job.endpoint);
    let result = patiently(core, job, core.sender.ask(&endpoint)).await;
    let Outcome::Status {
        judged: Judged::Asked(Ok(grant)),
        ..
    } = result.outcome
    else {
        return Some(result);
    };
    let (id, now) = (job.pending.endpoint, core.clock.now());
    let health = core.lock().endpoints.get(&id).map(|known| known.health.clone());
    if let Some(mut health) = health {
        health.agreed(question, grant, now);
        if let Err(error) = core
            .queue
            .put_endpoint_states(core.fence, vec![(id, health.store())])
            .await
        {
            tracing::warn!(%error, "failed to keep what a receiver agreed to; tried again");
        }
    }
    let (namespace, name) = (&endpoint.namespace, &endpoint.name);
    tracing::info!(namespace, endpoint = name, allowed_rate = ?grant.per_minute, "the receiver agreed to get messages");
    core.step(|state| state.agreed(id, question, grant, now));
    job.question = None;
    job.started = now;
    None
}

/// What is sent of an event; or why nothing can be.
fn rendered(job: &Job, event: &StoredEvent) -> Result<(Rendered, Option<Box<Shaped>>), String> {
    let subscription = &job.subscription;
    let format = subscription.spec.format;
    // What a subscription was made again with, for another endpoint, is not for the one before: its Secrets least of all.
    let is_home = subscription.endpoint == job.pending.endpoint;
    match (&subscription.spec.request, &subscription.material) {
        (RequestForm::Shaped(request), Material::Ready(secrets)) if is_home => shape(request, format, secrets, event)
            .map(|(rendered, shaped)| (rendered, Some(shaped)))
            .map_err(|error| error.to_string()),
        _ => render(format, event)
            .map(|rendered| (rendered, None))
            .map_err(|error| error.to_string()),
    }
}

/// Bytes of a request that stay until its attempt ends.
fn size(rendered: &Rendered, shaped: Option<&Shaped>) -> usize {
    let of_subscription = shaped.iter().flat_map(|shaped| &shaped.headers);
    let headers = rendered.headers.iter().chain(of_subscription);
    rendered.body.len() + headers.map(|(_, value)| value.len()).sum::<usize>()
}

/// What is told of a dead letter.
fn told(
    subscription: &SubscriptionEntry,
    notice: &Notice,
    event: &StoredEvent,
) -> Result<(Rendered, Option<Box<Shaped>>), String> {
    let rendered = shaping::notice::notice(subscription.spec.dead_letter.as_ref(), notice, event);
    rendered
        .map(|rendered| (rendered, None))
        .map_err(|error| error.to_string())
}

/// The event: `None` when it could not be read, `Some(None)` when there is none.
async fn event(core: &Arc<Core>, job: &mut Job) -> Option<Option<Arc<StoredEvent>>> {
    if let Some(event) = job.event.take() {
        return Some(Some(event));
    }
    match core.queue.event(job.pending.message.event()).await {
        Ok(event) => {
            core.lock()
                .body_read(job, event.as_deref().map_or(0, StoredEvent::size));
            Some(event)
        }
        Err(error) => {
            tracing::warn!(message = %job.pending.message, %error, "failed to read an event");
            None
        }
    }
}

/// Waits for an answer; from a certain age on the attempt is slow.
async fn patiently(core: &Arc<Core>, job: &mut Job, sending: impl Future<Output = AttemptResult>) -> AttemptResult {
    let mut sending = std::pin::pin!(sending);
    let result = match tokio::time::timeout(job.patience, &mut sending).await {
        Ok(result) => result,
        Err(_slow) => {
            core.step(|state| state.demote(job));
            sending.await
        }
    };
    if let Outcome::Status { code: 401 | 403, .. } | Outcome::Fault(Fault::Auth) = result.outcome {
        (core.refused)(job.pending.endpoint);
    }
    result
}
