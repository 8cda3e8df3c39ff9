//! The embedded store: SQLite through rusqlite, one writer thread, group commit.
//!
//! Owns the threads and the directory; knows nothing of when an attempt should start. Invariant: an answer to `accept` or
//! `settle` follows the fsync of what it answers for.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use self::inbox::{Call, Inbox, MESSAGE_BYTES, Operation, Reply};
use self::reader::{Readers, Rest};
use self::tally::Tally;
use self::transaction::{Refusal, Transaction};
use super::{
    ACCEPT_AT_ONCE, Accepted, Arrival, Backlog, DeadReason, Fence, Given, HeldPage, HeldPosition, Kept, KeptAttempt,
    NewEvent, Notice, Page, Pending, Progress, Pull, Queue, QueueError, Release, ReplayStep, ResourceKey, Search,
    Selection, Settled, Settlement, StoredEvent, Usage, Window,
};
use crate::ids::{EndpointId, EventId, MessageId, SubscriptionId, UnixMillis};

mod arrivals;
mod checkpoint;
mod dedupe;
#[cfg(test)]
pub(crate) mod faults;
mod history;
mod inbox;
mod notice;
mod open;
mod order;
mod prune;
mod purge;
mod reader;
mod replay;
mod schema;
mod space;
mod spaces;
mod tally;
#[cfg(test)]
mod tests;
mod transaction;
mod writer;

pub use self::open::{OpenError, Recovered};

/// Default of [`Options::retention`]: three days.
const RETENTION: Duration = Duration::from_secs(72 * 3600);

/// It ends after all others, which write what it folds back.
const CHECKPOINT_THREAD: &str = "queue-checkpoint";

/// What is done when the store cannot be trusted any more.
pub type Fatal = Arc<dyn Fn(String) + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// Bytes at which producers are refused; none: 80 % of the volume.
    pub store_limit: Option<u64>,
    /// Free bytes of the volume below which producers are refused.
    pub keep_free: u64,
    /// How long delivered history and dead letters are kept of endpoints that never said. Delivered history goes sooner when the store nears its limit.
    pub retention: Duration,
    /// Called once when an fsync failed; by default it ends the process with status 70. Nothing is written after it.
    pub on_fatal: Fatal,
    /// The wall clock.
    pub clock: fn() -> UnixMillis,
    /// Name of a registered SQLite VFS, for tests with faults.
    pub vfs: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            store_limit: None,
            keep_free: space::KEEP_FREE,
            retention: RETENTION,
            on_fatal: Arc::new(|what| {
                tracing::error!("{what}; ending the process, the restart reads what is on disk");
                std::process::exit(70);
            }),
            clock: UnixMillis::now,
            vfs: None,
        }
    }
}

/// What the writer tells and others read.
struct View {
    tally: Tally,
    dedupe_entries: u64,
    dedupe_cut_at: Option<i64>,
    unrouted: u64,
    untold: u64,
    dropped: u64,
    last_event: EventId,
    /// Later than everything was settled, by whatever clock.
    settled: UnixMillis,
}

/// What the threads and the handle share.
struct Shared {
    options: Options,
    inbox: Inbox,
    checkpoint: checkpoint::Checkpoint,
    space: space::Space,
    view: Mutex<View>,
    /// Outcomes kept in memory while the disk refuses.
    unrecorded: AtomicU64,
    /// An fsync failed: nothing may be written any more.
    dead: AtomicBool,
}

impl Shared {
    /// The store cannot be trusted any more: stop writing, then tell.
    fn fatal(&self, what: String) {
        self.inbox.close();
        if !self.dead.swap(true, Ordering::AcqRel) {
            (self.options.on_fatal)(what);
        }
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a burial goes on.
type Burial = (Option<EndpointId>, Option<SubscriptionId>, MessageId);

/// The embedded [`Queue`].
pub struct SqliteQueue {
    shared: Arc<Shared>,
    readers: Mutex<Option<Readers>>,
    /// For whoever looks at history: a thread of its own, so that deliveries never wait for him.
    history: Mutex<Option<Readers>>,
    /// For consumers that pull: they wait neither for those who look at history, nor do deliveries for them.
    pulls: Mutex<Option<Readers>>,
    arrivals: Mutex<Option<mpsc::Receiver<Vec<Arrival>>>>,
    arrivals_taken: Arc<AtomicBool>,
    burial: Mutex<Option<Burial>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The directory's lock, held until every connection is closed.
    lock: Mutex<Option<File>>,
}

impl SqliteQueue {
    /// Opens (or makes) the store in `dir`, locks it, and reads what lies there.
    pub fn open(dir: &Path, options: Options) -> Result<(SqliteQueue, Recovered), OpenError> {
        let started = Instant::now();
        let lock = open::directory(dir)?;
        let conn = open::writer(dir, &options)?;
        let mut memory = open::recover(&conn, options.retention)?;
        let (_, volume) = open::volume(dir).map_err(|error| OpenError::Directory {
            path: dir.to_owned(),
            error,
        })?;
        // A limit that the volume has no room for would never be near, and history would not give way.
        let limit = options.store_limit.unwrap_or(volume / 10 * 8);
        let limit = limit.min(volume.saturating_sub(options.keep_free));
        let space = space::Space::new(dir.to_owned(), limit, options.keep_free);
        space.measure(&conn);
        let view = View {
            tally: std::mem::take(&mut memory.tally),
            dedupe_entries: memory.dedupe.len(),
            dedupe_cut_at: memory.dedupe.cut_at(),
            unrouted: memory.unrouted,
            untold: 0,
            dropped: 0,
            last_event: memory.last_event,
            settled: memory.settled,
        };
        let recovered = Recovered {
            pending: view.tally.pending,
            dead: view.tally.dead,
            dedupe_entries: view.dedupe_entries,
            limit,
            took: started.elapsed(),
        };
        let shared = Arc::new(Shared {
            options,
            inbox: Inbox::default(),
            checkpoint: checkpoint::Checkpoint::default(),
            space,
            view: Mutex::new(view),
            unrecorded: AtomicU64::new(0),
            dead: AtomicBool::new(false),
        });
        let (sender, receiver) = mpsc::channel(arrivals::BATCHES);
        let arrivals_taken = Arc::new(AtomicBool::new(false));
        let writer = writer::Writer {
            shared: Arc::clone(&shared),
            memory,
            outlet: arrivals::Outlet::new(sender, Arc::clone(&arrivals_taken)),
            pruner: prune::Pruner::new(Instant::now(), limit / 100 * space::SHARE_PERCENT),
        };
        let (readers, questions) = Readers::new();
        let (history, looks) = Readers::new();
        let (pulls, pulled) = Readers::new();
        let queue = SqliteQueue {
            shared: Arc::clone(&shared),
            readers: Mutex::new(Some(readers)),
            history: Mutex::new(Some(history)),
            pulls: Mutex::new(Some(pulls)),
            arrivals: Mutex::new(Some(receiver)),
            arrivals_taken,
            burial: Mutex::new(None),
            threads: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(lock)),
        };
        // From here on dropping `queue` ends and joins what was started.
        for _ in 0..reader::READERS {
            let conn = open::connect(dir, &shared.options).map_err(OpenError::sqlite("open"))?;
            schema::prepare_reader(&conn).map_err(OpenError::sqlite("open"))?;
            let questions = Arc::clone(&questions);
            queue.spawn("queue-reader", move || reader::thread(&conn, &questions, Rest::Never))?;
        }
        for (name, questions) in [("queue-history", looks), ("queue-pull", pulled)] {
            let looker = open::connect(dir, &shared.options).map_err(OpenError::sqlite("open"))?;
            schema::prepare_reader(&looker).map_err(OpenError::sqlite("open"))?;
            queue.spawn(name, move || reader::thread(&looker, &questions, Rest::AsLongAsItRead))?;
        }
        let second = open::connect(dir, &shared.options).map_err(OpenError::sqlite("open"))?;
        let with = Arc::clone(&shared);
        queue.spawn(CHECKPOINT_THREAD, move || checkpoint::thread(&second, &with))?;
        queue.spawn("queue-writer", move || {
            let shared = Arc::clone(&writer.shared);
            let run = std::panic::AssertUnwindSafe(|| writer.run(&conn));
            let ended = std::panic::catch_unwind(run);
            shared.inbox.close();
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fatal(format!("the store's writer failed: {error}")),
                Err(_) => shared.fatal("the store's writer panicked".to_owned()),
            }
            let mut left = Vec::new();
            while shared.inbox.take(&mut left, None) {
                left.drain(..)
                    .for_each(|operation| operation.refuse(QueueError::Closed));
            }
        })?;
        Ok((queue, recovered))
    }

    /// Outcomes that the disk has not taken yet. Above a bound (10,000) `settle` fails, and deliveries should pause.
    pub fn unrecorded(&self) -> u64 {
        self.shared.unrecorded.load(Ordering::Relaxed)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(OpenError::Thread)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    async fn submit<T>(&self, make: impl FnOnce(Reply<T>) -> Operation) -> Result<T, QueueError> {
        let (reply, answer) = oneshot::channel();
        self.shared.inbox.push(make(reply));
        answer.await.unwrap_or(Err(QueueError::Closed))
    }

    /// Runs a rare operation in the writer's next transaction.
    async fn call<T, F>(&self, run: F) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: FnMut(&mut Transaction<'_, '_>) -> Result<T, Refusal> + Send + 'static,
    {
        self.submit(|reply| {
            Operation::Rare(Box::new(Call {
                run,
                value: None,
                reply,
            }))
        })
        .await
    }

    async fn read<T, F>(&self, read: F) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        readers.ok_or(QueueError::Closed)?.ask(read).await
    }

    async fn look<T, F>(&self, look: F) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
        history.ok_or(QueueError::Closed)?.ask(look).await
    }

    /// A read needs no transaction; the fence is checked against the store's own row all the same.
    async fn read_fenced<T, F>(&self, fence: Fence, read: F) -> Result<T, QueueError>
    where
        T: Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let answer = self
            .read(move |conn| {
                let mut current = conn.prepare_cached("SELECT value FROM meta WHERE key = 'fence'")?;
                if current.query_row([], |row| row.get::<_, i64>(0))? as u64 != fence.0 {
                    return Ok(None);
                }
                read(conn).map(Some)
            })
            .await?;
        answer.ok_or(QueueError::Fenced)
    }

    /// Takes nothing in any more.
    fn stop_taking(&self) {
        self.shared.inbox.close();
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.history.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Ends the threads, after what was handed in is done; may block for as long as a commit takes.
    fn end(&self) {
        self.stop_taking();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The writer was started last and ends first; the checkpoint thread after it.
        for thread in threads.into_iter().rev() {
            // A panic was reported by the thread itself.
            let _ = thread.join();
            self.shared.checkpoint.close();
        }
        if let Some(lock) = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Closed only, it would stay locked while a process that is being started has a copy of it.
            let _ = lock.unlock();
        }
    }
}

/// Finds the ids of these, after `insert` gave one to each that had none.
fn intern(
    conn: &rusqlite::Connection,
    table: &str,
    keys: &[ResourceKey],
    mut insert: impl FnMut(&ResourceKey) -> rusqlite::Result<usize>,
) -> rusqlite::Result<Vec<u32>> {
    let mut find = conn.prepare(&format!("SELECT id FROM {table} WHERE ns = ? AND name = ?"))?;
    let mut ids = Vec::with_capacity(keys.len());
    for key in keys {
        insert(key)?;
        ids.push(find.query_row([&key.namespace_uid, &key.name], |row| row.get(0))?);
    }
    Ok(ids)
}

impl Drop for SqliteQueue {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn claim(&self) -> Result<Fence, QueueError> {
        self.call(|transaction| transaction.claim()).await
    }

    async fn intern_endpoints(&self, keys: Vec<ResourceKey>) -> Result<Vec<EndpointId>, QueueError> {
        self.call(move |transaction| {
            let (conn, since) = (transaction.conn(), transaction.effects.last_event);
            let mut insert = conn.prepare("INSERT OR IGNORE INTO endpoint(ns, name, since) VALUES (?, ?, ?)")?;
            let ids = intern(conn, "endpoint", &keys, |key| {
                insert.execute(rusqlite::params![key.namespace_uid, key.name, since.0])
            })?;
            let ids: Vec<_> = ids.into_iter().map(EndpointId).collect();
            let placed = ids.iter().zip(&keys).map(|(id, key)| (*id, key.namespace_uid.clone()));
            transaction.effects.placed.extend(placed);
            Ok(ids)
        })
        .await
    }

    async fn intern_subscriptions(&self, keys: Vec<ResourceKey>) -> Result<Vec<SubscriptionId>, QueueError> {
        self.call(move |transaction| {
            let conn = transaction.conn();
            let mut insert = conn.prepare("INSERT OR IGNORE INTO subscription(ns, name) VALUES (?, ?)")?;
            let ids = intern(conn, "subscription", &keys, |key| {
                insert.execute([&key.namespace_uid, &key.name])
            })?;
            Ok(ids.into_iter().map(SubscriptionId).collect())
        })
        .await
    }

    async fn known(&self) -> Result<(Vec<(ResourceKey, EndpointId)>, Vec<(ResourceKey, SubscriptionId)>), QueueError> {
        self.read(|conn| {
            let endpoints = reader::resources(conn, "SELECT id, ns, name FROM endpoint ORDER BY id")?;
            let subscriptions = reader::resources(conn, "SELECT id, ns, name FROM subscription ORDER BY id")?;
            Ok((
                endpoints.into_iter().map(|(key, id)| (key, EndpointId(id))).collect(),
                subscriptions
                    .into_iter()
                    .map(|(key, id)| (key, SubscriptionId(id)))
                    .collect(),
            ))
        })
        .await
    }

    async fn accept(&self, events: Vec<NewEvent>) -> Result<Vec<Accepted>, QueueError> {
        let messages: usize = events.iter().map(NewEvent::at_once).sum();
        if events.len() > 1 && messages > ACCEPT_AT_ONCE {
            return Err(QueueError::TooMany(messages));
        }
        let events_bytes: usize = events.iter().map(|new| new.event.size()).sum();
        let bytes = events_bytes + messages * MESSAGE_BYTES;
        self.submit(|reply| Operation::Accept { events, bytes, reply }).await
    }

    fn arrivals(&self) -> Option<mpsc::Receiver<Vec<Arrival>>> {
        let taken = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.arrivals_taken.store(true, Ordering::Release);
        taken
    }

    async fn route(&self, fence: Fence, limit: usize) -> Result<u64, QueueError> {
        self.call(move |transaction| {
            transaction.check(fence)?;
            Ok(transaction.route(limit)?)
        })
        .await?;
        Ok(self.shared.view().unrouted)
    }

    async fn backlog(&self, fence: Fence) -> Result<Vec<Backlog>, QueueError> {
        let pairs = self.shared.view().tally.pairs();
        let backlog = self
            .read_fenced(fence, move |conn| {
                pairs
                    .into_iter()
                    .map(|(pair, counts)| reader::backlog(conn, pair, counts))
                    .collect::<rusqlite::Result<Vec<_>>>()
            })
            .await?;
        let mut view = self.shared.view();
        for one in &backlog {
            if let Some(oldest) = one.oldest {
                view.tally.not_older((one.endpoint, one.subscription), oldest);
            }
        }
        Ok(backlog)
    }

    async fn fresh(&self, fence: Fence, after: MessageId, limit: usize) -> Result<Vec<Pending>, QueueError> {
        // No snapshot is held for longer than a bounded number of rows takes.
        let mut all = Vec::new();
        let mut after = after;
        loop {
            let left = limit - all.len();
            let walk = self
                .read_fenced(fence, move |conn| reader::fresh(conn, after, left))
                .await?;
            all.extend(walk.found);
            match walk.go_on {
                Some(position) if all.len() < limit => after = position,
                _ => return Ok(all),
            }
        }
    }

    async fn window(&self, fence: Fence, window: Window) -> Result<Vec<Pending>, QueueError> {
        self.read_fenced(fence, move |conn| reader::window(conn, &window)).await
    }

    async fn pull(&self, pull: Pull) -> Result<Given, QueueError> {
        let pulls = self.pulls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let asked = pulls.ok_or(QueueError::Closed)?;
        asked.ask(move |conn| reader::pull(conn, &pull)).await
    }

    async fn event(&self, event: EventId) -> Result<Option<Arc<StoredEvent>>, QueueError> {
        let found = self.read(move |conn| reader::event(conn, event)).await?;
        Ok(found.map(Arc::new))
    }

    async fn list(&self, search: Search, before: Option<MessageId>, limit: usize) -> Result<Page, QueueError> {
        self.look(move |conn| history::list(conn, &search, before, limit, history::LOOK))
            .await
    }

    async fn get(&self, namespace_uid: &str, message: MessageId) -> Result<Option<Kept>, QueueError> {
        let namespace_uid = namespace_uid.to_owned();
        self.look(move |conn| history::get(conn, &namespace_uid, message)).await
    }

    async fn attempts(&self, message: MessageId) -> Result<Vec<KeptAttempt>, QueueError> {
        self.look(move |conn| history::attempts(conn, message)).await
    }

    async fn replay(
        &self,
        fence: Fence,
        ticket: &str,
        selection: &Selection,
        limit: usize,
    ) -> Result<ReplayStep, QueueError> {
        let new = {
            let view = self.shared.view();
            replay::Ticket::new((self.shared.options.clock)(), view.settled, view.last_event)
        };
        let looked = {
            let (ticket, selection) = (ticket.to_owned(), selection.clone());
            self.look(move |conn| replay::look(conn, &ticket, &selection, limit, new, history::LOOK))
                .await?
        };
        // Whoever waits for outcomes looks often, and must not cost the disk anything.
        if let Some(progress) = looked.unmoved() {
            return Ok(ReplayStep {
                progress,
                sent: Vec::new(),
            });
        }
        let ticket = ticket.to_owned();
        self.call(move |transaction| {
            transaction.check(fence)?;
            transaction.replay(&ticket, &looked)
        })
        .await
    }

    async fn replays(&self) -> Result<Vec<(String, Progress)>, QueueError> {
        self.look(replay::all).await
    }

    async fn forget_replay(&self, fence: Fence, ticket: &str) -> Result<(), QueueError> {
        let ticket = ticket.to_owned();
        self.call(move |transaction| {
            transaction.check(fence)?;
            Ok(transaction.forget_replay(&ticket)?)
        })
        .await
    }

    async fn notice(&self, event: EventId) -> Result<Option<Notice>, QueueError> {
        self.read(move |conn| notice::read(conn, event)).await
    }

    async fn settle(&self, fence: Fence, settlements: Vec<Settlement>) -> Result<Vec<Settled>, QueueError> {
        self.submit(|reply| Operation::Settle {
            fence,
            settlements,
            reply,
        })
        .await
    }

    async fn endpoint_states(&self, fence: Fence) -> Result<Vec<(EndpointId, Bytes)>, QueueError> {
        self.read_fenced(fence, reader::states).await
    }

    async fn put_endpoint_states(&self, fence: Fence, states: Vec<(EndpointId, Bytes)>) -> Result<(), QueueError> {
        self.submit(|reply| Operation::States { fence, states, reply }).await
    }

    async fn bury(
        &self,
        fence: Fence,
        endpoint: Option<EndpointId>,
        subscription: Option<SubscriptionId>,
        reason: DeadReason,
        limit: usize,
    ) -> Result<u64, QueueError> {
        let limit = limit.max(1);
        let remembered = self.burial.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut after = match remembered {
            Some((ep, sub, after)) if (ep, sub) == (endpoint, subscription) => after,
            _ => MessageId(0),
        };
        // A pass that started in the middle is followed by one from the start before "none" is said.
        let mut from_start = after == MessageId(0);
        while self.shared.view().tally.pending_of(endpoint, subscription) > 0 {
            let walk = self
                .read_fenced(fence, move |conn| {
                    reader::to_bury(conn, after, endpoint, subscription, limit)
                })
                .await?;
            let go_on = walk.go_on;
            if !walk.found.is_empty() {
                let found = walk.found;
                let buried = self
                    .call(move |transaction| {
                        transaction.check(fence)?;
                        transaction.bury(&found, reason)
                    })
                    .await?;
                let position = go_on.unwrap_or(MessageId(0));
                *self.burial.lock().unwrap_or_else(PoisonError::into_inner) = Some((endpoint, subscription, position));
                if buried > 0 {
                    return Ok(buried);
                }
            }
            match go_on {
                Some(position) => after = position,
                None if from_start => break,
                None => {
                    after = MessageId(0);
                    from_start = true;
                }
            }
        }
        Ok(0)
    }

    async fn release(
        &self,
        fence: Fence,
        endpoint: EndpointId,
        release: Release,
        limit: usize,
    ) -> Result<u64, QueueError> {
        self.call(move |transaction| {
            transaction.check(fence)?;
            Ok(transaction.release(endpoint, release, limit)?)
        })
        .await
    }

    async fn held(
        &self,
        fence: Fence,
        endpoint: EndpointId,
        after: Option<HeldPosition>,
        before: MessageId,
        limit: usize,
    ) -> Result<HeldPage, QueueError> {
        self.read_fenced(fence, move |conn| reader::held(conn, endpoint, after, before, limit))
            .await
    }

    async fn keep(&self, fence: Fence, retentions: Vec<(EndpointId, Duration)>) -> Result<(), QueueError> {
        self.call(move |transaction| {
            transaction.check(fence)?;
            Ok(prune::keep(transaction, &retentions)?)
        })
        .await
    }

    async fn namespaces(&self, fence: Fence) -> Result<Vec<String>, QueueError> {
        self.read_fenced(fence, purge::namespaces).await
    }

    async fn purge(&self, fence: Fence, namespaces: Vec<String>) -> Result<u64, QueueError> {
        let endpoints = self
            .read_fenced(fence, move |conn| purge::endpoints(conn, &namespaces))
            .await?;
        let gone: Vec<EndpointId> = {
            let view = self.shared.view();
            let is_empty = |id: &EndpointId| view.tally.pending_of(Some(*id), None) == 0;
            endpoints.into_iter().filter(is_empty).collect()
        };
        if gone.is_empty() {
            return Ok(0);
        }
        self.call(move |transaction| {
            transaction.check(fence)?;
            Ok(purge::mark(transaction, &gone)?)
        })
        .await
    }

    async fn prune(&self, before: UnixMillis, rows: usize) -> Result<u64, QueueError> {
        self.call(move |transaction| {
            let mut after = EventId(0);
            for _ in 0..prune::STEPS {
                let pruned = prune::history(transaction, after, before, before, |_, _, at| at, rows)?;
                if pruned.rows > 0 || pruned.finished {
                    return Ok(pruned.rows as u64);
                }
                after = pruned.cursor;
            }
            Ok(0)
        })
        .await
    }

    async fn usage(&self) -> Result<Usage, QueueError> {
        let now = (self.shared.options.clock)().0 / 1000;
        let (bytes, volume_free) = self.shared.space.now();
        let view = self.shared.view();
        let full = Duration::from_secs(transaction::DEDUPE_WINDOW_SECONDS as u64);
        Ok(Usage {
            bytes,
            limit: self.shared.space.limit,
            volume_free,
            pending: view.tally.pending,
            dead: view.tally.dead,
            dedupe_entries: view.dedupe_entries,
            dedupe_window: view
                .dedupe_cut_at
                .map_or(full, |at| full.min(Duration::from_secs((now - at).max(0) as u64))),
            untold: view.untold,
            dropped: view.dropped,
        })
    }

    async fn close(&self) {
        // The threads end within a commit and an answer; waiting here for them costs no more than waiting elsewhere, but must
        // not hold a runtime's only thread. The checkpoint thread is told to end after the others.
        self.stop_taking();
        let deadline = Duration::from_millis(1);
        while self
            .threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|thread| thread.thread().name() != Some(CHECKPOINT_THREAD) && !thread.is_finished())
        {
            tokio::time::sleep(deadline).await;
        }
        self.end();
    }
}
