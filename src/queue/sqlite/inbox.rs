//! What waits for the writer thread: one queue, in order.
//!
//! Owns when the writer wakes; knows nothing of SQLite. Invariant: an operation that was taken in is answered, also on
//! closing; after closing none is taken in.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::transaction::{Refusal, Transaction};
use crate::ids::EndpointId;
use crate::queue::{ACCEPT_AT_ONCE, Accepted, Fence, NewEvent, QueueError, Settled, Settlement};

/// Operations of one commit: beyond that the wait grows more than the fsync saves.
pub(super) const COMMIT_OPERATIONS: usize = 512;
/// Bytes of one commit.
pub(super) const COMMIT_BYTES: usize = 1 << 20;
/// What each message counts for in them, about its row: many messages of small events are much work too.
pub(super) const MESSAGE_BYTES: usize = 64;
/// So that a commit is over with one call that makes as many as it may.
const _: () = assert!(ACCEPT_AT_ONCE * MESSAGE_BYTES >= COMMIT_BYTES);
/// How long outcomes wait for a commit to ride along with.
pub(super) const SETTLE_WITHIN: Duration = Duration::from_millis(20);
/// Operations that may wait: producers beyond it are refused (about 200 ms of work at the slowest disk measured).
const WAITING_OPERATIONS: usize = 16_384;
/// Bytes of events that may wait, for the same reason and for memory's.
const WAITING_BYTES: usize = 32 << 20;

pub(super) type Reply<T> = oneshot::Sender<Result<T, QueueError>>;

/// One thing the writer shall do.
pub(super) enum Operation {
    Accept {
        events: Vec<NewEvent>,
        bytes: usize,
        reply: Reply<Vec<Accepted>>,
    },
    Settle {
        fence: Fence,
        settlements: Vec<Settlement>,
        reply: Reply<Vec<Settled>>,
    },
    States {
        fence: Fence,
        states: Vec<(EndpointId, Bytes)>,
        reply: Reply<()>,
    },
    /// Anything rare.
    Rare(Box<dyn Rare>),
}

/// A rare operation: applied in a transaction, answered after its commit.
pub(super) trait Rare: Send {
    fn apply(&mut self, transaction: &mut Transaction<'_, '_>) -> Result<(), Refusal>;
    fn finish(self: Box<Self>, result: Result<(), QueueError>);
}

/// A [`Rare`] operation from a closure.
pub(super) struct Call<T, F> {
    pub(super) run: F,
    pub(super) value: Option<T>,
    pub(super) reply: Reply<T>,
}

impl<T, F> Rare for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Transaction<'_, '_>) -> Result<T, Refusal> + Send,
{
    fn apply(&mut self, transaction: &mut Transaction<'_, '_>) -> Result<(), Refusal> {
        self.value = Some((self.run)(transaction)?);
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<(), QueueError>) {
        let Call { value, reply, .. } = *self;
        // A caller that went away wants no answer.
        let _ = reply.send(result.and_then(|()| value.ok_or(QueueError::Closed)));
    }
}

impl Operation {
    /// Whether it may wait [`SETTLE_WITHIN`] for company.
    fn is_patient(&self) -> bool {
        matches!(self, Operation::Settle { .. } | Operation::States { .. })
    }

    fn bytes(&self) -> usize {
        match self {
            Operation::Accept { bytes, .. } => *bytes,
            _ => 0,
        }
    }

    pub(super) fn refuse(self, error: QueueError) {
        match self {
            Operation::Accept { reply, .. } => drop(reply.send(Err(error))),
            Operation::Settle { reply, .. } => drop(reply.send(Err(error))),
            Operation::States { reply, .. } => drop(reply.send(Err(error))),
            Operation::Rare(rare) => rare.finish(Err(error)),
        }
    }
}

#[derive(Default)]
struct Waiting {
    operations: VecDeque<Operation>,
    urgent: usize,
    bytes: usize,
    /// When the first of those that wait now must be committed at the latest.
    patient_until: Option<Instant>,
    /// Whether the writer sleeps, and would be woken by a patient operation too.
    sleeps: bool,
    sleeps_idle: bool,
    closed: bool,
}

/// The queue in front of the writer.
#[derive(Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while holding the lock, so what a poisoned one guards is whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an operation in; answers it at once when it cannot wait.
    pub(super) fn push(&self, operation: Operation) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            return operation.refuse(QueueError::Closed);
        }
        if matches!(operation, Operation::Accept { .. })
            && (waiting.operations.len() >= WAITING_OPERATIONS || waiting.bytes >= WAITING_BYTES)
        {
            drop(waiting);
            return operation.refuse(QueueError::Full("too many events wait for the disk".to_owned()));
        }
        let patient = operation.is_patient();
        waiting.bytes += operation.bytes();
        if patient {
            if waiting.patient_until.is_none() {
                waiting.patient_until = Some(Instant::now() + SETTLE_WITHIN);
            }
        } else {
            waiting.urgent += 1;
        }
        waiting.operations.push_back(operation);
        let wake = waiting.sleeps && (!patient || waiting.sleeps_idle || waiting.operations.len() == COMMIT_OPERATIONS);
        if wake {
            waiting.sleeps = false;
        }
        drop(waiting);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Takes in nothing more; what waits is still done.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Fills `batch` with what has queued; sleeps until there is something due, or until `deadline`. False: closed, and
    /// nothing is left.
    pub(super) fn take(&self, batch: &mut Vec<Operation>, deadline: Option<Instant>) -> bool {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let due = waiting.urgent > 0
                || waiting.closed
                || waiting.operations.len() >= COMMIT_OPERATIONS
                || waiting.patient_until.is_some_and(|until| until <= now);
            if due {
                Self::drain(&mut waiting, batch);
                return !batch.is_empty() || !waiting.closed;
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return true;
            }
            let until = match (waiting.patient_until, deadline) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            waiting.sleeps = true;
            waiting.sleeps_idle = waiting.patient_until.is_none();
            waiting = match until {
                Some(until) => {
                    let result = self.wake.wait_timeout(waiting, until - now);
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
            waiting.sleeps = false;
        }
    }

    fn drain(waiting: &mut Waiting, batch: &mut Vec<Operation>) {
        let mut bytes = 0;
        while batch.len() < COMMIT_OPERATIONS && bytes < COMMIT_BYTES {
            let Some(operation) = waiting.operations.pop_front() else {
                break;
            };
            bytes += operation.bytes();
            if !operation.is_patient() {
                waiting.urgent -= 1;
            }
            batch.push(operation);
        }
        waiting.bytes -= bytes;
        waiting.patient_until = if waiting.operations.is_empty() {
            None
        } else {
            Some(Instant::now())
        };
    }
}
