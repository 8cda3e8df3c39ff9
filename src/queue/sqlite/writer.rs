//! The one thread that writes: takes what has queued, one transaction, one fsync, then the answers.
//!
//! Invariant: an answer is sent after the commit that makes it true, and a failed fsync is never followed by another
//! write: the page cache may lie from then on, so the process ends and the restart reads what is on disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ffi};

use super::Shared;
use super::arrivals::Outlet;
use super::inbox::Operation;
use super::open::Memory;
use super::prune::Pruner;
use super::transaction::{Effects, Refusal, Statements, Transaction};
use crate::queue::{Accepted, QueueError, ROUTE_AT_ONCE, Settled};

/// After a failed write: how long until the next try.
const RETRY: Duration = Duration::from_secs(1);
/// Outcomes kept in memory while the disk refuses; beyond it `settle` fails and the engine must stop delivering.
pub(super) const UNRECORDED: usize = 10_000;
/// Above this the writer checkpoints itself, 64 MiB: the thread alone never catches up with a busy writer.
const WAL_FRAMES: u64 = (64 << 20) / 4096;
/// Overflowing arrivals are offered again so often.
const OFFER_AGAIN: Duration = Duration::from_millis(5);
/// While the store is full, how often it is looked whether there is room to go on routing.
const ROUTE_AGAIN: Duration = Duration::from_millis(250);

/// What an applied operation will answer.
enum Answer {
    Accepted(Vec<Accepted>),
    Settled(Vec<Settled>),
    Done,
    Refused(QueueError),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) memory: Memory,
    pub(super) outlet: Outlet,
    pub(super) pruner: Pruner,
}

/// While the disk refuses.
struct Trouble {
    reason: String,
    again: Instant,
}

/// What a transaction does beside its batch.
struct Besides {
    /// Makes further messages of the oldest event that is not routed whole.
    route: bool,
    /// Writes something, to see whether the disk takes it.
    probe: bool,
}

/// How the loop goes on after a commit.
#[derive(PartialEq)]
enum Flow {
    GoOn,
    Stop,
}

impl Writer {
    /// Runs until closed or until an fsync fails.
    pub(super) fn run(mut self, conn: &Connection) -> rusqlite::Result<()> {
        let mut statements = Statements::prepare(conn)?;
        let mut effects = Effects::new();
        let mut candidates = Vec::new();
        let mut batch = Vec::new();
        let mut answers = Vec::new();
        let mut kept: VecDeque<Operation> = VecDeque::new();
        let mut trouble: Option<Trouble> = None;
        loop {
            let open = self.shared.inbox.take(&mut batch, self.deadline(trouble.as_ref()));
            if !open && kept.is_empty() {
                return Ok(());
            }
            if self.shared.is_dead() {
                for operation in kept.drain(..).chain(batch.drain(..)) {
                    operation.refuse(QueueError::Closed);
                }
                return Ok(());
            }
            let now = Instant::now();
            if let Some(trouble) = &trouble
                && now < trouble.again
                && open
                && !self.shared.inbox.is_closed()
            {
                let reason = trouble.reason.clone();
                self.put_aside(&mut batch, &mut kept, &reason);
                continue;
            }
            self.refuse_what_does_not_fit(&mut batch, now);
            // What waits for the disk goes first, in its order.
            if !kept.is_empty() {
                kept.extend(batch.drain(..));
                batch.extend(kept.drain(..));
            }
            let full = self.shared.space.full(now).is_some();
            let besides = Besides {
                route: self.memory.unrouted > 0 && !full && self.outlet.too_far_behind().is_none(),
                probe: trouble.is_some(),
            };
            let mut transaction = Transaction {
                statements: &mut statements,
                memory: &self.memory,
                effects: &mut effects,
                candidates: &mut candidates,
                now: (self.shared.options.clock)(),
                full,
            };
            let result = commit(&mut transaction, &mut batch, &mut answers, &mut self.pruner, &besides);
            match result {
                Ok(wrote) => {
                    if trouble.take().is_some() {
                        tracing::info!("the store can be written again");
                    }
                    self.remember(&mut effects);
                    // Before the answers: who was answered sees that nothing is unrecorded.
                    self.shared.unrecorded.store(0, Ordering::Relaxed);
                    for (operation, answer) in batch.drain(..).zip(answers.drain(..)) {
                        answer_one(operation, answer);
                    }
                    if wrote {
                        self.after_commit(conn);
                    }
                    // Also when nothing was written: the last commit of a pruning may have come too soon to be measured, and
                    // a full store that nobody may write to would stay full.
                    self.pruner.pressure(self.shared.space.used(conn));
                }
                Err(error) => {
                    answers.clear();
                    let flow = self.failed(&error, &statements, &mut batch, &mut kept);
                    if flow == Flow::Stop || !open {
                        self.shared.inbox.close();
                        for operation in kept.drain(..).chain(batch.drain(..)) {
                            operation.refuse(QueueError::Write(error.to_string()));
                        }
                        return Ok(());
                    }
                    if trouble.is_none() {
                        tracing::error!(%error, "failed to write to the store; trying again each second");
                    }
                    trouble = Some(Trouble {
                        reason: error.to_string(),
                        again: Instant::now() + RETRY,
                    });
                }
            }
        }
    }

    /// When to wake although nothing was handed in.
    fn deadline(&self, trouble: Option<&Trouble>) -> Option<Instant> {
        if let Some(trouble) = trouble {
            return Some(trouble.again);
        }
        let now = Instant::now();
        let mut wake = self.pruner.next();
        if self.outlet.is_behind() {
            wake = wake.min(now + OFFER_AGAIN);
        }
        if self.memory.unrouted > 0 && self.outlet.too_far_behind().is_none() {
            let full = self.shared.space.full(now).is_some();
            wake = wake.min(if full { now + ROUTE_AGAIN } else { now });
        }
        Some(wake)
    }

    fn put_aside(&self, batch: &mut Vec<Operation>, kept: &mut VecDeque<Operation>, reason: &str) {
        let mut unrecorded: usize = kept.iter().map(outcomes).sum();
        for operation in batch.drain(..) {
            let more = outcomes(&operation);
            if more > 0 && unrecorded + more <= UNRECORDED {
                unrecorded += more;
                kept.push_back(operation);
            } else {
                operation.refuse(QueueError::Write(reason.to_owned()));
            }
        }
        self.shared.unrecorded.store(unrecorded as u64, Ordering::Relaxed);
    }

    fn failed(
        &mut self,
        error: &rusqlite::Error,
        statements: &Statements<'_>,
        batch: &mut Vec<Operation>,
        kept: &mut VecDeque<Operation>,
    ) -> Flow {
        if is_fatal(error) {
            self.shared.fatal(format!("failed to sync the store: {error}"));
            return Flow::Stop;
        }
        if let Err(error) = statements.roll_back() {
            self.shared.fatal(format!("failed to roll the store back: {error}"));
            return Flow::Stop;
        }
        self.put_aside(batch, kept, &error.to_string());
        Flow::GoOn
    }

    fn refuse_what_does_not_fit(&mut self, batch: &mut Vec<Operation>, now: Instant) {
        if !batch
            .iter()
            .any(|operation| matches!(operation, Operation::Accept { .. }))
        {
            return;
        }
        let why = self.shared.space.full(now).or_else(|| self.outlet.too_far_behind());
        if let Some(why) = why {
            for operation in batch.extract_if(.., |operation| matches!(operation, Operation::Accept { .. })) {
                operation.refuse(QueueError::Full(why.clone()));
            }
        }
    }

    /// Moves memory to what is on disk now.
    fn remember(&mut self, effects: &mut Effects) {
        self.memory.last_event = effects.last_event;
        self.memory.next_seen = effects.next_seen;
        self.memory.fence = effects.fence;
        self.memory.place = effects.place.unwrap_or(self.memory.place);
        self.memory.settled = effects.settled_before;
        self.memory.settled_until = effects.settled_until;
        self.memory.unrouted = self.memory.unrouted.saturating_add_signed(effects.unrouted);
        for (key, seq, event) in effects.keys.drain(..) {
            self.memory.dedupe.insert(&key, seq, event.unix_seconds());
        }
        let mut view = self.shared.view();
        for (endpoint, namespace) in effects.placed.drain(..) {
            self.memory.spaces.place(endpoint, &namespace);
        }
        for (pair, message, bytes) in effects.stored.drain(..) {
            view.tally.stored(pair, message);
            self.memory.spaces.add(pair.0, 1, bytes);
        }
        for (endpoint, messages, bytes) in effects.reserved.drain(..) {
            self.memory.spaces.add(endpoint, messages, bytes);
        }
        for (pair, bytes) in effects.settled.drain(..) {
            view.tally.add(pair, -1, 0);
            self.memory.spaces.add(pair.0, -1, bytes);
        }
        for (pair, count, bytes) in effects.buried.drain(..) {
            view.tally.add(pair, 0, count);
            self.memory.spaces.bury(pair.0, count, bytes);
        }
        for (pair, held, blocking) in effects.ordered.drain(..) {
            view.tally.order(pair, held, blocking);
        }
        view.dedupe_entries = self.memory.dedupe.len();
        view.dedupe_cut_at = self.memory.dedupe.cut_at();
        view.unrouted = self.memory.unrouted;
        view.untold += effects.untold;
        view.dropped += effects.dropped;
        view.last_event = self.memory.last_event;
        view.settled = self.memory.settled;
        drop(view);
        self.outlet.offer(&mut effects.arrivals);
        if self.memory.purge.remember(&mut effects.purge) || !effects.retentions.is_empty() {
            self.pruner.look();
        }
        for (endpoint, retention) in effects.retentions.drain(..) {
            self.memory.retentions.note(endpoint, retention);
        }
        self.pruner
            .after_commit(&mut self.memory.dedupe, (self.shared.options.clock)());
    }

    fn after_commit(&mut self, conn: &Connection) {
        self.shared.checkpoint.written();
        if self.shared.checkpoint.frames() > WAL_FRAMES {
            super::checkpoint::run(conn, &self.shared);
        }
    }
}

/// One transaction over the batch. Whether anything was written.
fn commit(
    transaction: &mut Transaction<'_, '_>,
    batch: &mut [Operation],
    answers: &mut Vec<Answer>,
    pruner: &mut Pruner,
    besides: &Besides,
) -> rusqlite::Result<bool> {
    transaction.effects.restart(transaction.memory);
    let background = besides.route || besides.probe || pruner.is_due();
    if batch.is_empty() && !background {
        return Ok(false);
    }
    let before = transaction.conn().total_changes();
    transaction.statements.begin()?;
    for operation in batch.iter_mut() {
        let answer = match operation {
            Operation::Accept { events, .. } => transaction.accept(events).map(Answer::Accepted),
            Operation::Settle { fence, settlements, .. } => transaction
                .check(*fence)
                .map_err(Refusal::from)
                .and_then(|()| transaction.settle(settlements).map(Answer::Settled)),
            Operation::States { fence, states, .. } => transaction
                .check(*fence)
                .map_err(Refusal::from)
                .and_then(|()| transaction.put_states(states).map(|()| Answer::Done)),
            Operation::Rare(rare) => rare.apply(transaction).map(|()| Answer::Done),
        };
        answers.push(match answer {
            Ok(answer) => answer,
            Err(Refusal::Queue(error)) => Answer::Refused(error),
            Err(Refusal::Sqlite(error)) => return Err(error),
        });
    }
    if besides.route {
        transaction.route(ROUTE_AT_ONCE)?;
    }
    pruner.run(transaction)?;
    if besides.probe {
        transaction
            .conn()
            .execute("UPDATE meta SET value = value WHERE key = 'fence'", [])?;
    }
    let changed = transaction.conn().total_changes() != before;
    transaction.statements.commit()?;
    Ok(changed)
}

fn answer_one(operation: Operation, answer: Answer) {
    // A caller that went away wants no answer.
    match (operation, answer) {
        (operation, Answer::Refused(error)) => operation.refuse(error),
        (Operation::Accept { reply, .. }, Answer::Accepted(answers)) => drop(reply.send(Ok(answers))),
        (Operation::Settle { reply, .. }, Answer::Settled(answers)) => drop(reply.send(Ok(answers))),
        (Operation::States { reply, .. }, _) => drop(reply.send(Ok(()))),
        (Operation::Rare(rare), _) => rare.finish(Ok(())),
        (operation, _) => operation.refuse(QueueError::Closed),
    }
}

fn outcomes(operation: &Operation) -> usize {
    match operation {
        Operation::Settle { settlements, .. } => settlements.len(),
        Operation::States { states, .. } => states.len(),
        Operation::Accept { .. } | Operation::Rare(_) => 0,
    }
}

/// Whether what was written before may be lost although the kernel said otherwise.
pub(super) fn is_fatal(error: &rusqlite::Error) -> bool {
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        _ => return false,
    };
    code == ffi::SQLITE_IOERR_FSYNC || code == ffi::SQLITE_IOERR_DIR_FSYNC
}
