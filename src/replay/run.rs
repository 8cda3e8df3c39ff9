//! One Replay, from its first step to its end.
//!
//! Owns when the next step is made and how much of it; knows nothing of which messages there are. Invariant: no more than
//! [`UNDER_WAY`] messages of a replay are pending at a time, so that new ones never wait behind all of an old outage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::watch as latest;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Shared;
use super::happening::happening;
use super::select::{Missing, select};
use super::show;
use super::status::{AfterTheEnd, Stand, after_the_end, is_done, status};
use crate::api::Replay;
use crate::api::replay::{ReplayRate, ReplayStatus};
use crate::api::resolve::Rate;
use crate::ids::UnixMillis;
use crate::queue::{Phase, Progress, Selection};
use crate::schedule::rate::Bucket;
use crate::watch::versions::number;

/// Messages of one replay that are pending at a time: an endpoint's window.
const UNDER_WAY: u64 = 500;
/// Messages made pending in one transaction.
const CHUNK: u64 = 100;
/// How often is looked whether messages were settled, while some are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often at the least, as where the endpoint is suspended.
const LOOK_LATEST: Duration = Duration::from_secs(2);
/// How often the selector's names are looked up anew: each time all there are.
const SELECT_EVERY: Duration = Duration::from_secs(5);
/// The same while they do not exist, or not all that they mean is loaded.
const SELECT_AGAIN: Duration = Duration::from_secs(1);
/// How long what the selector names may come later than the Replay: what is applied together comes in any order.
const WAIT_FOR_NAMES: Duration = Duration::from_secs(20);
/// Between two writes that only move counters.
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// After so long without a message sent or settled it gives its place to others that want it: its endpoint may be suspended
/// for weeks, or its rate be one in an hour.
const GIVES_WAY: Duration = Duration::from_secs(15);
/// After the store or the API server failed.
const AGAIN: Duration = Duration::from_secs(1);

/// A Replay under way.
pub(super) struct Run {
    shared: Arc<Shared>,
    ticket: String,
    watched: latest::Receiver<Arc<Replay>>,
    /// Whether others want its place.
    wanted: Arc<AtomicBool>,
    /// Since when it has its place.
    since: Instant,
    /// Since when it only waits.
    waits_since: Option<Instant>,
    /// What our last write gave back, until the watch has caught up with it.
    written: Option<Arc<Replay>>,
    /// At most one write of its status.
    writing: JoinSet<Option<Arc<Replay>>>,
    /// After one has failed.
    write_again: Option<Instant>,
    shown_at: Option<Instant>,
    /// How long it waited before its last step.
    waited: Duration,
    /// After a restart what went out before is not known, so it is empty.
    bucket: Bucket,
    selected: Option<(Instant, Result<Selection, Missing>)>,
    missing_since: Option<Instant>,
    progress: Option<Progress>,
}

impl Run {
    pub(super) fn new(
        shared: Arc<Shared>,
        ticket: String,
        watched: latest::Receiver<Arc<Replay>>,
        wanted: Arc<AtomicBool>,
    ) -> Run {
        Run {
            shared,
            ticket,
            watched,
            wanted,
            since: Instant::now(),
            waits_since: None,
            written: None,
            writing: JoinSet::new(),
            write_again: None,
            shown_at: None,
            waited: Duration::ZERO,
            bucket: Bucket::empty(),
            selected: None,
            missing_since: None,
            progress: None,
        }
    }

    /// The same one, with a place again.
    pub(super) fn again(mut self, watched: latest::Receiver<Arc<Replay>>, wanted: Arc<AtomicBool>) -> Run {
        (self.watched, self.wanted, self.since) = (watched, wanted, Instant::now());
        self
    }

    /// Until it has ended and its status says so; or, where others want its place and it only waits, itself as it is then:
    /// what it has sent is not forgotten, and what its rate allows neither.
    pub(super) async fn whole(mut self) -> Option<Run> {
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
                AfterTheEnd::Done => {
                    // The watch may be faster than the write's own answer, after which its Event is created.
                    while self.writing.join_next().await.is_some() {}
                    return None;
                }
                AfterTheEnd::Observe(status) => {
                    self.show(&replay, &status);
                    AGAIN
                }
                AfterTheEnd::NotYet => self.go_on(&replay).await,
            };
            if self.gives_way() {
                // Nobody else may write its status while we do.
                while let Some(written) = self.writing.join_next().await {
                    self.wrote(written.unwrap_or_default());
                }
                self.selected = None;
                return Some(self);
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Some(written) = self.writing.join_next() => self.wrote(written.unwrap_or_default()),
                changed = self.watched.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// Whether it gives its place away. One that just got it back looks at least once, and not more often than it would.
    fn gives_way(&self) -> bool {
        let waits = self.waits_since.is_some_and(|since| since.elapsed() >= GIVES_WAY);
        waits && self.since.elapsed() >= LOOK_LATEST && self.wanted.load(Ordering::Relaxed)
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
    async fn go_on(&mut self, replay: &Arc<Replay>) -> Duration {
        let shared = Arc::clone(&self.shared);
        if !shared.tools.registry.synced() {
            return LOOK_EVERY;
        }
        self.select(replay);
        let selected = self.selected.take();
        let (wait, stand) = match &selected {
            Some((_, Err(missing))) => {
                let since = *self.missing_since.get_or_insert_with(Instant::now);
                let finally = since.elapsed() >= WAIT_FOR_NAMES;
                (LOOK_EVERY, Stand::Missing { missing, finally })
            }
            Some((_, Ok(selection))) => {
                self.missing_since = None;
                (self.step(replay, selection).await, Stand::Goes)
            }
            // All is sent: nothing is selected any more.
            None if self.progress.is_some_and(|progress| progress.phase == Phase::Sent) => {
                (self.step(replay, &Selection::default()).await, Stand::Goes)
            }
            None => {
                self.waits_since.get_or_insert_with(Instant::now);
                (SELECT_AGAIN, Stand::NotLoaded)
            }
        };
        let status = status(replay, self.progress.as_ref(), &stand, Timestamp::now());
        self.show(replay, &status);
        self.selected = selected;
        wait
    }

    fn select(&mut self, replay: &Replay) {
        let is_fresh = |(at, selected): &(Instant, Result<_, _>)| match selected {
            Ok(_) => at.elapsed() < SELECT_EVERY || self.progress.is_some_and(|progress| progress.phase == Phase::Sent),
            Err(_) => at.elapsed() < SELECT_AGAIN,
        };
        if self.selected.as_ref().is_some_and(is_fresh) {
            return;
        }
        let namespace = replay.namespace().unwrap_or_default();
        let selection = select(&self.shared.tools.registry, &namespace, &replay.spec.selector);
        self.selected = selection.map(|selection| (Instant::now(), selection));
    }

    async fn step(&mut self, replay: &Replay, selection: &Selection) -> Duration {
        let now = UnixMillis::now();
        let rate = replay.spec.rate.as_ref().and_then(rate);
        let limit = self.limit(replay.spec.dry_run, rate, now);
        let shared = Arc::clone(&self.shared);
        let tools = &shared.tools;
        let stepped = {
            let _turn = shared.looks.acquire().await;
            tools.queue.replay(tools.fence, &self.ticket, selection, limit).await
        };
        let step = match stepped {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(replay = replay.name_any(), %error, "failed to go on with a replay; tried again");
                return AGAIN;
            }
        };
        tools.again.sent(&step.sent);
        tools.metrics.sent.inc_by(step.sent.len() as u64);
        if let Some(rate) = rate {
            // At most a chunk.
            self.bucket.take_of(rate, step.sent.len() as u32, now);
        }
        let next = rate.map_or(now, |rate| self.bucket.next(rate, now));
        let until_token = Duration::from_millis(u64::try_from(next.0 - now.0).unwrap_or_default());
        let moved = self.progress.replace(step.progress) != Some(step.progress);
        let done = is_done(&step.progress, replay.spec.dry_run);
        self.waited = match done {
            // Until that is written.
            true => LOOK_LATEST,
            false => next_step(self.waited, &step.progress, moved, until_token),
        };
        match moved || done || self.waited.is_zero() {
            true => self.waits_since = None,
            false => drop(self.waits_since.get_or_insert_with(Instant::now)),
        }
        self.waited
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

    /// Has the status written where it says something new: at once what is not only a counter, and beside the steps, so that
    /// neither the API server nor the budget slows the sending.
    fn show(&mut self, replay: &Arc<Replay>, status: &ReplayStatus) {
        let now = Instant::now();
        let waits = !self.writing.is_empty() || self.write_again.is_some_and(|at| now < at);
        if waits || show::is_shown(replay, status) {
            return;
        }
        let is_counter = show::is_counter(replay, status);
        if is_counter {
            let is_early = self.shown_at.is_some_and(|at| at.elapsed() < SHOW_EVERY);
            // The budget is for beginnings and ends first.
            if is_early || self.shared.writes.try_take().is_err() {
                return;
            }
        }
        self.shown_at = Some(now);
        let (shared, replay, status) = (Arc::clone(&self.shared), Arc::clone(replay), status.clone());
        self.writing.spawn(async move {
            if !is_counter {
                shared.writes.take().await;
            }
            let written = show::write(&shared.tools.client, &replay, &status).await;
            if let (Some(_), Some(happening)) = (&written, happening(replay.status.as_ref(), &status)) {
                shared.tell(&replay, &happening).await;
            }
            written
        });
    }

    fn wrote(&mut self, written: Option<Arc<Replay>>) {
        match written {
            Some(object) => self.written = Some(object),
            None => self.write_again = Some(Instant::now() + AGAIN),
        }
    }
}

/// How long until the next step, after one that moved something or did not. `until_token`: how long until the rate lets
/// another message go, nothing if it does now.
fn next_step(before: Duration, progress: &Progress, moved: bool, until_token: Duration) -> Duration {
    let later = (before * 2).clamp(LOOK_EVERY, LOOK_LATEST);
    match progress.phase {
        Phase::Counting => Duration::ZERO,
        Phase::Sending if progress.under_way() < UNDER_WAY => match until_token.is_zero() {
            true => Duration::ZERO,
            false => until_token.clamp(LOOK_EVERY, LOOK_LATEST),
        },
        Phase::Sending if moved => LOOK_EVERY,
        Phase::Sending | Phase::Sent => later,
    }
}

/// None for what the API server would have refused.
fn rate(rate: &ReplayRate) -> Option<Rate> {
    let per = rate.per.parse().ok().filter(|per| !per.is_zero())?;
    let requests = u32::try_from(rate.requests).ok().filter(|requests| *requests > 0)?;
    Some(Rate { requests, per })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(phase: Phase, sent: u64) -> Progress {
        Progress {
            began: UnixMillis(0),
            phase,
            matched: 10_000,
            sent,
            succeeded: 0,
            failed: 0,
        }
    }

    #[test]
    fn a_step_follows_at_once_where_there_is_room_and_the_rate_has_more() {
        let sending = progress(Phase::Sending, 100);
        let next = |until_token| next_step(LOOK_EVERY, &sending, true, Duration::from_millis(until_token));
        assert_eq!(next(0), Duration::ZERO, "a rate above a chunk in each look");
        assert_eq!(next(1), LOOK_EVERY, "several tokens at a time");
        assert_eq!(next(700), Duration::from_millis(700));
        assert_eq!(next(3_600_000), LOOK_LATEST, "it may be changed meanwhile");
        let counting = next_step(LOOK_LATEST, &progress(Phase::Counting, 0), true, LOOK_LATEST);
        assert_eq!(counting, Duration::ZERO);
    }

    #[test]
    fn what_only_waits_for_outcomes_looks_less_and_less_often() {
        for waiting in [progress(Phase::Sending, UNDER_WAY), progress(Phase::Sent, 7)] {
            let mut wait = Duration::ZERO;
            let mut looks = 0;
            let mut passed = Duration::ZERO;
            while passed < Duration::from_secs(60) {
                wait = next_step(wait, &waiting, false, Duration::ZERO);
                passed += wait;
                looks += 1;
            }
            assert!(looks <= 34, "{looks} looks in a minute");
        }
        let room_soon = next_step(LOOK_LATEST, &progress(Phase::Sending, UNDER_WAY), true, Duration::ZERO);
        assert_eq!(room_soon, LOOK_EVERY, "its messages settle: there is room soon");
    }
}
