//! An endpoint's subscriptions in the engine's memory. Synchronous and without I/O.
//!
//! Owns what is counted of each, and which of them has something due first; knows nothing of windows. Whatever the order and
//! the sums over all are made of changes only by methods of [`Subscriptions`]. Invariant: both say at any time what a walk
//! over all would find, so that no step needs one: an endpoint may have ten thousand.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::registry::{Material, SubscriptionEntry};
use crate::report::board::Unconsumed;

/// One subscription's messages at this endpoint.
#[derive(Debug)]
pub(super) struct Subscription {
    /// The endpoint that holds these messages.
    home: EndpointId,
    entry: Option<Arc<SubscriptionEntry>>,
    /// Deleted while no dispatcher ran.
    gone: bool,
    pub pending: i64,
    pub dead: i64,
    /// Of those pending, held in the store behind another of their key.
    held: i64,
    /// Of the dead letters, those that block their key.
    blocking: i64,
    pub last_dead: Option<(UnixMillis, &'static str)>,
    /// The earliest due time in the store of a message that is not held here, as far as is known.
    next_due: Option<UnixMillis>,
    /// The same, noted while a page was being read.
    touched: Option<UnixMillis>,
    pub view_dirty: bool,
    /// It was posted since it was loaded: a process before may have left it with a status that is over.
    pub posted: bool,
    /// Seen in the store's last count.
    pub counted: bool,
    /// Its first dead letter was posted.
    pub dead_posted: bool,
    /// What was posted last says that its filter fails.
    pub filter_posted: bool,
    /// What was posted last of its consumer.
    pub unconsumed_posted: Option<Unconsumed>,
}

impl Subscription {
    pub fn new(home: EndpointId, entry: Option<Arc<SubscriptionEntry>>) -> Subscription {
        Subscription {
            home,
            entry,
            gone: false,
            pending: 0,
            dead: 0,
            held: 0,
            blocking: 0,
            last_dead: None,
            next_due: None,
            touched: None,
            view_dirty: false,
            posted: false,
            counted: false,
            dead_posted: false,
            filter_posted: false,
            unconsumed_posted: None,
        }
    }

    pub fn entry(&self) -> Option<&Arc<SubscriptionEntry>> {
        self.entry.as_ref()
    }

    pub fn held(&self) -> i64 {
        self.held
    }

    pub fn blocking(&self) -> i64 {
        self.blocking
    }

    pub fn next_due(&self) -> Option<UnixMillis> {
        self.next_due
    }

    /// Whether its messages may be sent.
    pub fn sends(&self) -> bool {
        let sends = |e: &SubscriptionEntry| {
            let has_material = matches!(e.material, Material::Ready(_)) || self.is_elsewhere();
            e.deleted.is_none() && !e.spec.suspend && has_material
        };
        !self.gone && self.entry.as_deref().is_some_and(sends)
    }

    /// Whether these messages are at another endpoint than the subscription's: they tell of dead letters, or are older than
    /// its recreation. Its own retry and what its requests are made with are not meant for them.
    pub fn is_elsewhere(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.endpoint != self.home)
    }

    /// Whether it was deleted, and nothing of it is left to be sent, counted or shown.
    fn is_past(&self) -> bool {
        let is_deleted = self.gone || self.entry.as_ref().is_some_and(|entry| entry.deleted.is_some());
        is_deleted && (self.pending, self.dead) == (0, 0) && !self.view_dirty
    }

    /// There is something new to pull.
    pub fn ring(&self) {
        let mailbox = self.entry.as_ref().and_then(|entry| entry.mailbox.as_ref());
        if let Some(mailbox) = mailbox {
            mailbox.ring();
        }
    }

    /// When something of it is to be sent.
    fn due(&self) -> Option<UnixMillis> {
        self.next_due.filter(|_| self.sends())
    }

    /// Messages held behind others of their key, and dead letters that block theirs. Counts may be behind for a moment.
    fn ordered(&self) -> (i64, i64) {
        (self.held.max(0), self.blocking.max(0))
    }
}

/// Those of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    known: HashMap<SubscriptionId, Subscription>,
    /// Those that may send and have something in the store, by when it is due.
    due: BTreeSet<(UnixMillis, SubscriptionId)>,
    /// What is ordered of each, added up.
    ordered: (i64, i64),
}

impl Subscriptions {
    pub fn get(&self, id: &SubscriptionId) -> Option<&Subscription> {
        self.known.get(id)
    }

    pub fn get_mut(&mut self, id: &SubscriptionId) -> Option<&mut Subscription> {
        self.known.get_mut(id)
    }

    pub fn get_or_make(&mut self, id: SubscriptionId, make: impl FnOnce() -> Subscription) -> &mut Subscription {
        self.known.entry(id).or_insert_with(make)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&SubscriptionId, &Subscription)> {
        self.known.iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&SubscriptionId, &mut Subscription)> {
        self.known.iter_mut()
    }

    pub fn keys(&self) -> impl Iterator<Item = &SubscriptionId> {
        self.known.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &Subscription> {
        self.known.values()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Subscription> {
        self.known.values_mut()
    }

    /// The earliest due time in the store of what may be sent.
    pub fn next_due(&self) -> Option<UnixMillis> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Those that have something to be sent until then: who is due first comes first.
    pub fn due(&self, until: UnixMillis) -> impl Iterator<Item = SubscriptionId> {
        self.due.range(..=(until, SubscriptionId(u32::MAX))).map(|(_, id)| *id)
    }

    /// Messages held in the store behind others of their key, and dead letters that block theirs.
    pub fn ordered(&self) -> (i64, i64) {
        self.ordered
    }

    /// It was loaded, changed or deleted.
    pub fn load(&mut self, id: SubscriptionId, entry: &Arc<SubscriptionEntry>) {
        self.change(id, |known| {
            known.entry = Some(Arc::clone(entry));
            known.gone = false;
        });
    }

    /// It no longer exists.
    pub fn set_gone(&mut self, id: SubscriptionId) {
        self.change(id, |known| known.gone = true);
    }

    /// More, or less, of it is held behind others of its key, or blocks its key.
    pub fn add_ordered(&mut self, id: SubscriptionId, held: i64, blocking: i64) {
        self.change(id, |known| {
            known.held += held;
            known.blocking += blocking;
        });
    }

    /// A message of the store will be due.
    pub fn note_due(&mut self, id: SubscriptionId, due: UnixMillis, paging: bool) {
        let earlier = |known: Option<UnixMillis>| Some(known.map_or(due, |known| known.min(due)));
        self.change(id, |known| {
            known.next_due = earlier(known.next_due);
            if paging {
                known.touched = earlier(known.touched);
            }
        });
    }

    /// A page of what waits is about to be read: what is noted from now on it may not show.
    pub fn page_begins(&mut self, id: SubscriptionId) {
        self.change(id, |known| known.touched = None);
    }

    /// It was read: what it leaves in the store is to be noted.
    pub fn page_ends(&mut self, id: SubscriptionId) {
        self.change(id, |known| known.next_due = known.touched.take());
    }

    /// Lets those go of which nothing is left.
    pub fn let_past_go(&mut self) -> Vec<(SubscriptionId, Subscription)> {
        let past: Vec<_> = self.known.extract_if(|_, known| known.is_past()).collect();
        for (_, known) in &past {
            // None that was deleted is due.
            self.add(known.ordered(), -1);
        }
        past
    }

    fn change(&mut self, id: SubscriptionId, change: impl FnOnce(&mut Subscription)) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        let (due_before, ordered_before) = (known.due(), known.ordered());
        change(known);
        let (due, ordered) = (known.due(), known.ordered());
        if due != due_before {
            if let Some(before) = due_before {
                self.due.remove(&(before, id));
            }
            self.due.extend(due.map(|due| (due, id)));
        }
        self.add(ordered_before, -1);
        self.add(ordered, 1);
    }

    fn add(&mut self, (held, blocking): (i64, i64), times: i64) {
        self.ordered.0 += times * held;
        self.ordered.1 += times * blocking;
    }
}
