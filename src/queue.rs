//! The durable queue: its trait, its words, and the stores behind it.
//!
//! Owns what is kept and how durably; knows nothing of HTTP, Kubernetes or when an attempt should start. Invariant: what
//! [`Queue::accept`] or [`Queue::settle`] returned as done survives a kill and a power cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};

#[cfg(test)]
mod conformance;
mod history;
mod pull;
mod replay;
pub mod sqlite;

pub use self::history::{Kept, KeptAttempt, MessageState, Page, Search, Standing};
pub use self::pull::{Given, Place, Pull};
pub use self::replay::{Phase, Progress, ReplayStep, Selection, SentAgain};

/// An endpoint's or subscription's identity in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceKey {
    /// UID of the namespace object: a namesake created later is another namespace.
    pub namespace_uid: String,
    /// The resource's name.
    pub name: String,
}

/// Proof of ownership of a partition; a call with an older token fails whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence(pub u64);

/// One event to be stored with its messages, atomically.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// UID of the namespace.
    pub namespace_uid: Arc<str>,
    /// The first 16 bytes of SHA-256 over namespace UID, `source` and `id`, each length-prefixed: the key of deduplication.
    pub dedupe: [u8; 16],
    /// The event; the store keeps attributes and data apart, so that data is copied once.
    pub event: Arc<StoredEvent>,
    /// The messages to make, in order of subscription, at most [`MessageId::PER_EVENT`]; above [`ROUTE_AT_ONCE`] the rest is
    /// routed in chunks.
    pub targets: Vec<Target>,
    /// What its namespace may have pending, this event included.
    pub quota: Quota,
}

/// What a namespace may have pending; none: as much as there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    pub messages: Option<u64>,
    /// Bytes of the events that pending messages carry (attributes and data), once for each message.
    pub bytes: Option<u64>,
}

impl NewEvent {
    /// How many of its messages are stored with it, in one transaction.
    pub fn at_once(&self) -> usize {
        let ordered = self.targets.iter().rposition(|target| target.order.is_some());
        ROUTE_AT_ONCE
            .max(ordered.map_or(0, |last| last + 1))
            .min(self.targets.len())
    }
}

/// The most messages stored with their event in one transaction, but for those with an order: they all are, so that no later
/// event overtakes them.
pub const ROUTE_AT_ONCE: usize = 500;

/// The most messages stored at once with several events: what makes more is refused, for the events of one call go into one
/// transaction, and nobody else's are accepted meanwhile. A little more than one event can make.
pub const ACCEPT_AT_ONCE: usize = 20_000;

/// An event as it lies in the store: attributes as JSON (see `event::format::attributes`), data raw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// JSON of all attributes but data, with the kind of data and the time of acceptance.
    pub attributes: Bytes,
    /// The data's bytes.
    pub body: Bytes,
}

impl StoredEvent {
    /// Its bytes: attributes and data.
    pub fn size(&self) -> usize {
        self.attributes.len() + self.body.len()
    }
}

/// One message to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which subscription matched.
    pub subscription: SubscriptionId,
    /// Where it sends.
    pub endpoint: EndpointId,
    /// How the message begins.
    pub placement: Placement,
    /// Its place is behind the unsettled messages of the same endpoint with the same key; none: it has no order.
    pub order: Option<OrderKey>,
}

/// How a new message begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the endpoint's window, unindexed: the happy path. Only with a place taken from its [`Gauge`].
    Fresh,
    /// Behind others or behind a pause: indexed by due time (now).
    Waiting,
    /// For a consumer that pulls it: in the order in which such messages become pending, never due.
    Pulled,
    /// Over the endpoint's pending limit: a dead letter `QueueFull` at once.
    QueueFull,
}

/// Pending messages of one endpoint: over it new ones are dead letters `QueueFull`, the event's other messages go on.
pub const MAX_PENDING: i64 = 1_000_000;

/// What an endpoint's scheduler lends to accept: how many more messages may begin fresh, and how many are pending.
/// Shared by ingest (takes places; gives back those of events that were not stored after all), the engine (gives places,
/// and alone counts what is pending: arrivals in, recorded outcomes out) and report (reads).
#[derive(Debug, Default)]
pub struct Gauge {
    room: AtomicI64,
    pending: AtomicI64,
    waiting: AtomicBool,
}

impl Gauge {
    /// The placement of one more message: takes a place for a fresh one.
    pub fn place(&self, max_pending: i64) -> Placement {
        if self.pending.load(Ordering::Relaxed) >= max_pending {
            return Placement::QueueFull;
        }
        if self.waiting.load(Ordering::Acquire) {
            return Placement::Waiting;
        }
        // One step, and never below zero: a place is either taken or untouched, whatever the flag does meanwhile.
        match self.room.fetch_update(Ordering::AcqRel, Ordering::Acquire, |room| {
            (room > 0).then_some(room - 1)
        }) {
            Ok(_) => Placement::Fresh,
            Err(_) => Placement::Waiting,
        }
    }

    /// The placement of one more message that a consumer pulls: it takes no place.
    pub fn place_to_be_pulled(&self, max_pending: i64) -> Placement {
        match self.pending() >= max_pending {
            true => Placement::QueueFull,
            false => Placement::Pulled,
        }
    }

    /// Gives places back: a settled fresh message, or one that was not stored after all.
    pub fn give(&self, places: i64) {
        self.room.fetch_add(places, Ordering::AcqRel);
    }

    /// While set, every new message waits behind those that wait already.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Release);
    }

    /// Unsettled messages of the endpoint.
    pub fn pending(&self) -> i64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Adds to (or takes from) the unsettled messages.
    pub fn add_pending(&self, by: i64) {
        self.pending.fetch_add(by, Ordering::Relaxed);
    }
}

/// The answer to one [`NewEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Stored now, durably.
    New { event: EventId, matched: u32 },
    /// The same event was stored before, within the window: its first answer.
    Duplicate { event: EventId, matched: u32 },
}

/// A message that was just stored, as a dead letter where its placement is [`Placement::QueueFull`].
#[derive(Clone, Debug)]
pub struct Arrival {
    pub message: MessageId,
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    pub placement: Placement,
    /// It is held behind another of its key, whatever its placement: [`Settled::Promoted`] tells when it may go.
    pub held: bool,
    /// The event itself, so that the happy path never reads it back.
    pub event: Arc<StoredEvent>,
}

/// A message as the scheduler holds it: no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub message: MessageId,
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// Attempts consumed so far.
    pub attempts: u16,
    pub due: UnixMillis,
    /// When a replay made it pending again: its age counts from then.
    pub again: Option<UnixMillis>,
}

/// What waits for one endpoint of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// Unsettled messages, in a window or waiting.
    pub pending: u64,
    /// Dead letters kept.
    pub dead: u64,
    /// Of the pending ones, those held behind another of their key.
    pub held: u64,
    /// Of the dead letters, those that block their key.
    pub blocking: u64,
    /// The earliest due time of those that wait.
    pub min_due: Option<UnixMillis>,
    /// Acceptance (by id) of the oldest unsettled one.
    pub oldest: Option<MessageId>,
}

/// Which waiting messages: in due order, after a position, due at `until` or before.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// Strictly after this (due, message), for paging.
    pub after: Option<(UnixMillis, MessageId)>,
    pub until: UnixMillis,
    pub limit: usize,
}

/// What became of one attempt (or of a message without one).
#[derive(Clone, Debug)]
pub struct Settlement {
    pub message: MessageId,
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// Attempts consumed before: compared and set, so that an outcome never applies twice.
    pub attempts: u16,
    /// The record of the attempt, when one was made. It replaces that of an attempt before it which consumed nothing, so
    /// that a message's records are bounded by its schedule.
    pub record: Option<AttemptRecord>,
    pub verdict: Verdict,
    /// With [`Verdict::Dead`]: attempts consumed in all, as the letter says and whoever is told of it. What could not be made
    /// into a request has a record that says why, and consumed none by that.
    pub consumed: u16,
    /// A dead letter blocks its key: what is held behind it stays held as long as the letter is kept, unless
    /// [`Queue::release`] says otherwise. Means nothing for a message without an order.
    pub blocks: bool,
    /// What it promotes waits, due now, behind what is due already; else that is fresh.
    pub next_waits: bool,
    /// With [`Verdict::Dead`]: the endpoint that is told of it, by a message made in the same transaction.
    pub tell: Option<EndpointId>,
}

/// What a message that tells of a dead letter ([`MessageId::is_notice`]) is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The dead letter.
    pub message: MessageId,
    /// Its subscription's name, and its endpoint's.
    pub subscription: String,
    pub endpoint: String,
    /// Attempts made.
    pub attempts: u16,
    pub at: UnixMillis,
    /// A [`DeadReason`]'s word.
    pub reason: String,
    /// Of the last attempt that was answered.
    pub status: Option<u16>,
}

/// The new state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Terminal: a 2xx.
    Delivered,
    /// Waits until `due`, with `attempts` consumed.
    Wait { due: UnixMillis, attempts: u16 },
    /// Terminal: kept as a dead letter.
    Dead { reason: DeadReason },
}

/// Why a message became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    Exhausted,
    Expired,
    Refused,
    Unrenderable,
    QueueFull,
    EndpointDeleted,
    SubscriptionDeleted,
}

impl DeadReason {
    /// All of them.
    pub const ALL: [DeadReason; 7] = [
        DeadReason::Exhausted,
        DeadReason::Expired,
        DeadReason::Refused,
        DeadReason::Unrenderable,
        DeadReason::QueueFull,
        DeadReason::EndpointDeleted,
        DeadReason::SubscriptionDeleted,
    ];

    /// Whether a subscription's `deadLetter` is told of it: not of what an administrator or a full queue did.
    pub fn is_told(self) -> bool {
        match self {
            DeadReason::Exhausted | DeadReason::Expired | DeadReason::Refused | DeadReason::Unrenderable => true,
            DeadReason::QueueFull | DeadReason::EndpointDeleted | DeadReason::SubscriptionDeleted => false,
        }
    }

    /// The word used in status, Events, metrics and listings.
    pub fn reason(self) -> &'static str {
        match self {
            DeadReason::Exhausted => "Exhausted",
            DeadReason::Expired => "Expired",
            DeadReason::Refused => "Refused",
            DeadReason::Unrenderable => "Unrenderable",
            DeadReason::QueueFull => "QueueFull",
            DeadReason::EndpointDeleted => "EndpointDeleted",
            DeadReason::SubscriptionDeleted => "SubscriptionDeleted",
        }
    }
}

/// One attempt as it is kept: no header values, no secret; the excerpt is at most 1 KiB of the response body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRecord {
    pub at: UnixMillis,
    pub took: Duration,
    /// HTTP status, or none where no answer came.
    pub status: Option<u16>,
    /// One CamelCase word.
    pub reason: &'static str,
    pub excerpt: Option<Bytes>,
}

/// What came of a [`Settlement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Applied,
    /// Applied, and this message was held behind it: it is the next of its key and may go now, fresh or waiting as
    /// [`Settlement::next_waits`] says.
    Promoted(Pending),
    /// Applied: a dead letter that blocks its key from now on.
    Blocked,
    /// The message was settled or counted before: nothing changed.
    Stale,
}

/// What is to wait no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Everything of an endpoint that no longer orders its messages: they lose their keys.
    Order,
    /// What is held behind dead letters: they block no longer.
    Blocked,
}

/// Where a look at held messages stopped: strictly after it the next goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldPosition {
    pub key: OrderKey,
    pub message: MessageId,
}

/// What a look at held messages found.
#[derive(Clone, Debug)]
pub struct HeldPage {
    pub messages: Vec<Pending>,
    /// None: there are no more.
    pub go_on: Option<HeldPosition>,
}

/// How the store stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub limit: u64,
    pub volume_free: u64,
    pub pending: u64,
    pub dead: u64,
    pub dedupe_entries: u64,
    pub dedupe_window: Duration,
    /// Dead letters of which nobody was told ([`Settlement::tell`]) because the store was full; since it was opened.
    pub untold: u64,
    /// Dead letters that went before their time because the store was nearly full; since it was opened.
    pub dropped: u64,
}

/// Why the queue could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// No room (the store's limit or the volume's): 503, and deliveries go on.
    #[error("the store is full: {0}")]
    Full(String),
    /// The event would bring its namespace over what it may have pending. The quota's name and value.
    #[error("the namespace's quota {quota} is {limit}")]
    OverQuota { quota: &'static str, limit: u64 },
    /// An event has more targets than [`MessageId::PER_EVENT`].
    #[error("an event has {0} targets: too many")]
    TooWide(usize),
    /// Several events make more messages at once than [`ACCEPT_AT_ONCE`].
    #[error("the events make {0} messages at once: too many")]
    TooMany(usize),
    /// A write failed; tried again each second.
    #[error("failed to write to the store: {0}")]
    Write(String),
    /// A read failed.
    #[error("failed to read from the store: {0}")]
    Read(String),
    /// The fence is older than the store's.
    #[error("another dispatcher owns this partition now")]
    Fenced,
    /// The store is closing.
    #[error("the store is closing")]
    Closed,
}

impl QueueError {
    /// One word for metrics and problem documents.
    pub fn reason(&self) -> &'static str {
        match self {
            QueueError::Full(_) => "Full",
            QueueError::OverQuota { .. } => "OverQuota",
            QueueError::TooWide(_) => "TooWide",
            QueueError::TooMany(_) => "TooMany",
            QueueError::Write(_) => "Write",
            QueueError::Read(_) => "Read",
            QueueError::Fenced => "Fenced",
            QueueError::Closed => "Closed",
        }
    }
}

/// The queue. Every store passes one conformance suite.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Takes ownership; older fences fail from now on.
    async fn claim(&self) -> Result<Fence, QueueError>;

    /// Ids of endpoints, durable on return, the same for the same key for ever.
    async fn intern_endpoints(&self, keys: Vec<ResourceKey>) -> Result<Vec<EndpointId>, QueueError>;

    /// Ids of subscriptions; see [`Queue::intern_endpoints`].
    async fn intern_subscriptions(&self, keys: Vec<ResourceKey>) -> Result<Vec<SubscriptionId>, QueueError>;

    /// Every endpoint and subscription known to the store: what lies there for resources that may be gone.
    async fn known(&self) -> Result<(Vec<(ResourceKey, EndpointId)>, Vec<(ResourceKey, SubscriptionId)>), QueueError>;

    /// Stores events with their messages; all of the call or nothing; durable on return. Duplicates within the call too.
    /// What is a duplicate costs no quota. More than [`ACCEPT_AT_ONCE`] messages of several events are refused.
    async fn accept(&self, events: Vec<NewEvent>) -> Result<Vec<Accepted>, QueueError>;

    /// The stream of new messages, in batches. One taker; later calls return none. Take it before reading
    /// [`Queue::fresh`] and [`Queue::backlog`] for the first time: what was stored before is found there, what is stored
    /// after comes here (some may be seen twice). Nothing is dropped: an engine that does not keep up makes
    /// [`Queue::accept`] answer `Full`.
    fn arrivals(&self) -> Option<tokio::sync::mpsc::Receiver<Vec<Arrival>>>;

    /// Stores up to `limit` further messages of events with more than [`ROUTE_AT_ONCE`] targets; how many events are left.
    /// A store may go on with it by itself.
    async fn route(&self, fence: Fence, limit: usize) -> Result<u64, QueueError>;

    /// What lies in the store, by endpoint and subscription.
    async fn backlog(&self, fence: Fence) -> Result<Vec<Backlog>, QueueError>;

    /// Messages stored fresh and not settled, after `after`, in id order: read once, after a restart.
    async fn fresh(&self, fence: Fence, after: MessageId, limit: usize) -> Result<Vec<Pending>, QueueError>;

    /// Waiting messages in due order; never one that is held behind another of its key.
    async fn window(&self, fence: Fence, window: Window) -> Result<Vec<Pending>, QueueError>;

    /// Messages that are pulled, with their events, in their order: one bounded look, which holds up nobody who writes. What
    /// becomes pending after it comes after all that it saw.
    async fn pull(&self, pull: Pull) -> Result<Given, QueueError>;

    /// An event's attributes and data.
    async fn event(&self, event: EventId) -> Result<Option<Arc<StoredEvent>>, QueueError>;

    /// Messages of a namespace that fit, newest first, older than `before`: one bounded look, which holds up nobody who
    /// writes. A page may be empty and still say where to go on.
    async fn list(&self, search: Search, before: Option<MessageId>, limit: usize) -> Result<Page, QueueError>;

    /// One message of a namespace, in whatever state.
    async fn get(&self, namespace_uid: &str, message: MessageId) -> Result<Option<Kept>, QueueError>;

    /// The failed attempts kept of a message, oldest first: at most one for each number of its schedule.
    async fn attempts(&self, message: MessageId) -> Result<Vec<KeptAttempt>, QueueError>;

    /// One bounded step of the replay with this ticket: begins it, counts on, or makes up to `limit` of the messages pending
    /// again, oldest first and due at once, with no attempt consumed. Durable on return, and idempotent: what a crash cuts
    /// off is done by the next step.
    async fn replay(
        &self,
        fence: Fence,
        ticket: &str,
        selection: &Selection,
        limit: usize,
    ) -> Result<ReplayStep, QueueError>;

    /// Every replay that has begun and is not forgotten, by ticket.
    async fn replays(&self) -> Result<Vec<(String, Progress)>, QueueError>;

    /// Forgets a replay; what it sent goes on.
    async fn forget_replay(&self, fence: Fence, ticket: &str) -> Result<(), QueueError>;

    /// What the one message of a copied event tells of.
    async fn notice(&self, event: EventId) -> Result<Option<Notice>, QueueError>;

    /// Records outcomes, each of a message of its endpoint and subscription; durable on return (within 20 ms, riding along with accepts). While the disk refuses it does not
    /// return: outcomes wait in memory, 10,000 at most (beyond that `Write`), and are tried again each second.
    async fn settle(&self, fence: Fence, settlements: Vec<Settlement>) -> Result<Vec<Settled>, QueueError>;

    /// Every endpoint's durable state (breaker, failing since, disabled), as the scheduler wrote it.
    async fn endpoint_states(&self, fence: Fence) -> Result<Vec<(EndpointId, Bytes)>, QueueError>;

    /// Replaces endpoints' durable states. While the disk refuses it does not return, as [`Queue::settle`].
    async fn put_endpoint_states(&self, fence: Fence, states: Vec<(EndpointId, Bytes)>) -> Result<(), QueueError>;

    /// Turns up to `limit` pending messages of a deleted endpoint or subscription into dead letters; how many.
    async fn bury(
        &self,
        fence: Fence,
        endpoint: Option<EndpointId>,
        subscription: Option<SubscriptionId>,
        reason: DeadReason,
        limit: usize,
    ) -> Result<u64, QueueError>;

    /// Lets up to `limit` messages of an endpoint go, which wait from now on like any other; how many rows it changed, zero
    /// when nothing is left.
    async fn release(
        &self,
        fence: Fence,
        endpoint: EndpointId,
        release: Release,
        limit: usize,
    ) -> Result<u64, QueueError>;

    /// Messages of an endpoint that are held behind others of their key and have ids before `before`, key after key, from a
    /// position on: one bounded look. A page may be empty and still say where to go on.
    async fn held(
        &self,
        fence: Fence,
        endpoint: EndpointId,
        after: Option<HeldPosition>,
        before: MessageId,
        limit: usize,
    ) -> Result<HeldPage, QueueError>;

    /// From now on, and over restarts: how long settled history and dead letters of these endpoints are kept, at least. The
    /// store removes by itself what is older. Of an endpoint it was never told of: three days.
    async fn keep(&self, fence: Fence, retentions: Vec<(EndpointId, Duration)>) -> Result<(), QueueError>;

    /// UIDs of the namespaces of which something may be kept: those that ever had an endpoint, and were not purged whole.
    async fn namespaces(&self, fence: Fence) -> Result<Vec<String>, QueueError>;

    /// These namespaces are gone for good: the store removes by itself, and over restarts, all that it keeps of their
    /// endpoints, but of those of which messages are pending: bury these first, and ask again. How many endpoints' history
    /// goes that did not go before.
    async fn purge(&self, fence: Fence, namespaces: Vec<String>) -> Result<u64, QueueError>;

    /// Removes settled history and dead letters older than `before`, at most `rows`; how many.
    async fn prune(&self, before: UnixMillis, rows: usize) -> Result<u64, QueueError>;

    /// How the store stands.
    async fn usage(&self) -> Result<Usage, QueueError>;

    /// Waits until everything handed in is durable, then closes.
    async fn close(&self);
}
