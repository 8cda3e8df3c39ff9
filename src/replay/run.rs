//! One Replay, from its first step to its end.
//!
//! Owns when the next step is made and how much of it; knows nothing of which messages there are. Invariant: no more than
//! [`UNDER_WAY`] messages of a replay are pending at a time, so that new ones never wait behind all of an old outage.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use tokio::sync::watch as latest;
use tokio::time::Instant;

use super::Shared;
use super::select::{Missing, select};
use super::status::{AfterTheEnd, Stand, after_the_end, is_done, status};
use crate::api::Replay;
use crate::api::names::DISPATCHER;
use crate::api::replay::{ReplayRate, ReplayStatus};
use crate::api::resolve::Rate;
use crate::ids::UnixMillis;
use crate::kubernetes::status::{Written, apply, is_unchanged, own_part};
use crate::queue::{Phase, Progress, Selection};
use crate::schedule::rate::Bucket;
use crate::watch::versions::number;

/// Messages of one replay that are pending at a time: an endpoint's window.
const UNDER_WAY: u64 = 500;
/// Messages made pending in one transaction.
const CHUNK: u64 = 100;
/// How often is looked whether messages were settled.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the selector's names are looked up anew.
const SELECT_EVERY: Duration = Duration::from_secs(1);
/// How long what the selector names may come later than the Replay: what is applied together comes in any order.
const WAIT_FOR_NAMES: Duration = Duration::from_secs(20);
/// Between two writes that only move counters.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// After the store or the API server failed.
const AGAIN: Duration = Duration::from_secs(1);

/// The fields of the status: all are the dispatcher's.
const FIELDS: [&str; 8] = [
    "observedGeneration",
    "phase",
    "startTime",
    "completionTime",
    "matched",
    "sent",
    "succeeded",
    "failed",
];

/// A Replay under way.
pub(super) struct Run {
    shared: Arc<Shared>,
    ticket: String,
    watched: latest::Receiver<Arc<Replay>>,
    /// What our last write gave back, until the watch has caught up with it.
    written: Option<Arc<Replay>>,
    shown_at: Option<Instant>,
    /// After a restart what went out before is not known, so it is empty.
    bucket: Bucket,
    selected: Option<(Instant, Result<Selection, Missing>)>,
    missing_since: Option<Instant>,
    progress: Option<Progress>,
}

impl Run {
    pub(super) fn new(shared: Arc<Shared>, ticket: String, watched: latest::Receiver<Arc<Replay>>) -> Run {
        Run {
            shared,
            ticket,
            watched,
            written: None,
            shown_at: None,
            bucket: Bucket::empty(),
            selected: None,
            missing_since: None,
            progress: None,
        }
    }

    /// Until it has ended and its status says so.
    pub(super) async fn whole(mut self) {
        // After a restart its status goes on from what it was.
        match self.shared.tools.queue.replays().await {
            Ok(known) => {
                let own = known.into_iter().find(|(ticket, _)| *ticket == self.ticket);
                self.progress = own.map(|(_, progress)| progress);
            }
            Err(error) => tracing::warn!(%error, "failed to read how far a replay is"),
        }
        loop {
            let replay = self.current();
            let wait = match after_the_end(&replay) {
                AfterTheEnd::Done => return,
                AfterTheEnd::Observe(status) if self.show(&replay, &status).await => continue,
                AfterTheEnd::Observe(_) => AGAIN,
                AfterTheEnd::NotYet => self.go_on(&replay).await,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = self.watched.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The newest form known.
    fn current(&mut self) -> Arc<Replay> {
        let watched = Arc::clone(&self.watched.borrow_and_update());
        let version = |replay: &Replay| number(replay.metadata.resource_version.as_deref());
        match &self.written {
            Some(written) if version(written) > version(&watched) => Arc::clone(written),
            _ => {
                self.written = None;
                watched
            }
        }
    }

    /// One step, and what is to be shown of it; how long until the next.
    async fn go_on(&mut self, replay: &Replay) -> Duration {
        let shared = Arc::clone(&self.shared);
        if !shared.tools.registry.synced() {
            return LOOK_EVERY;
        }
        self.select(replay);
        let selected = self.selected.take();
        let (mut wait, stand) = match &selected {
            Some((_, Err(missing))) => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                let finally = since.elapsed() >= WAIT_FOR_NAMES;
                (LOOK_EVERY, Stand::Missing { missing, finally })
            }
            Some((_, Ok(selection))) => {
                self.missing_since = None;
                (self.step(replay, selection).await, Stand::Goes)
            }
            None => return LOOK_EVERY,
        };
        let status = status(replay, self.progress.as_ref(), &stand, Timestamp::now());
        if !self.show(replay, &status).await {
            wait = wait.max(AGAIN);
        }
        self.selected = selected;
        wait
    }

    fn select(&mut self, replay: &Replay) {
        if self
            .selected
            .as_ref()
            .is_some_and(|(at, _)| at.elapsed() < SELECT_EVERY)
        {
            return;
        }
        let namespace = replay.namespace().unwrap_or_default();
        let selection = select(&self.shared.tools.registry, &namespace, &replay.spec.selector);
        self.selected = Some((Instant::now(), selection));
    }

    async fn step(&mut self, replay: &Replay, selection: &Selection) -> Duration {
        let now = UnixMillis::now();
        let rate = replay.spec.rate.as_ref().and_then(rate);
        let limit = self.limit(replay.spec.dry_run, rate, now);
        let tools = &self.shared.tools;
        let step = match tools.queue.replay(tools.fence, &self.ticket, selection, limit).await {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(replay = replay.name_any(), %error, "failed to go on with a replay; tried again");
                return AGAIN;
            }
        };
        tools.again.sent(&step.sent);
        tools.metrics.sent.inc_by(step.sent.len() as u64);
        if let Some(rate) = rate {
            step.sent.iter().for_each(|_| self.bucket.take(rate, now));
        }
        let waits = match step.progress.phase {
            Phase::Counting => false,
            Phase::Sending => step.progress.under_way() >= UNDER_WAY || rate.is_some(),
            Phase::Sent => true,
        };
        let done = is_done(&step.progress, replay.spec.dry_run);
        self.progress = Some(step.progress);
        match waits && !done {
            true => LOOK_EVERY,
            false => Duration::ZERO,
        }
    }

    /// How many messages may go now.
    fn limit(&mut self, dry_run: bool, rate: Option<Rate>, now: UnixMillis) -> usize {
        if dry_run {
            return 0;
        }
        let under_way = self.progress.map_or(0, |progress| progress.under_way());
        let room = UNDER_WAY.saturating_sub(under_way).min(CHUNK);
        let Some(rate) = rate else { return room as usize };
        // What is taken from this copy is taken from the bucket once it has gone.
        let mut bucket = self.bucket;
        let mut limit = 0;
        while limit < room && bucket.next(rate, now) <= now {
            bucket.take(rate, now);
            limit += 1;
        }
        self.bucket.next(rate, now);
        limit as usize
    }

    /// Writes the status where it says something new: at once what is not only a counter. False: to be tried again.
    async fn show(&mut self, replay: &Replay, status: &ReplayStatus) -> bool {
        let wanted = own_part(status, &FIELDS, |_| true);
        let shown = own_part(&replay.status, &FIELDS, |_| true);
        if is_unchanged(&shown, &wanted) {
            return true;
        }
        let of_note = |status: Option<&ReplayStatus>| {
            let reasons = status.into_iter().flat_map(|status| &status.conditions);
            let reasons: Vec<_> = reasons.map(|c| (c.type_.clone(), c.reason.clone())).collect();
            (reasons, status.and_then(|status| status.observed_generation))
        };
        let is_counter = of_note(replay.status.as_ref()) == of_note(Some(status));
        let is_early = self.shown_at.is_some_and(|at| at.elapsed() < SHOW_EVERY);
        if is_counter && is_early {
            return true;
        }
        self.shared.writes.take().await;
        let api: Api<Replay> = Api::namespaced(
            self.shared.tools.client.clone(),
            &replay.namespace().unwrap_or_default(),
        );
        self.shown_at = Some(Instant::now());
        match apply(&api, DISPATCHER, replay, &wanted).await {
            Ok(Written::Applied(object)) => {
                self.written = Some(Arc::new(*object));
                true
            }
            // The watch brings it as it is now.
            Ok(Written::Outdated) => false,
            Err(error) => {
                tracing::warn!(replay = replay.name_any(), %error, "failed to write the status of a Replay; tried again");
                false
            }
        }
    }
}

/// None for what the API server would have refused.
fn rate(rate: &ReplayRate) -> Option<Rate> {
    let per = rate.per.parse().ok().filter(|per| !per.is_zero())?;
    let requests = u32::try_from(rate.requests).ok().filter(|requests| *requests > 0)?;
    Some(Rate { requests, per })
}
