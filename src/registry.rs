//! What the dispatcher has loaded: every resolved endpoint and subscription, by the id the store gave them.
//!
//! Written by the watches (one writer), read lock-free by ingest (which subscriptions match) and by the engine (how an
//! endpoint wants it now). Invariant: a snapshot is consistent in itself; what a reader took stays valid while it uses it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, mpsc};

use crate::api::policy::NamespaceRules;
use crate::api::resolve::{Fifo, PullPolicy, RequestSecrets, ResolvedEndpoint, ResolvedSubscription};
use crate::ids::{EndpointId, SubscriptionId, UnixMillis};
use crate::matching::Index;
use crate::matching::filter::FilterHealth;
use crate::queue::{Gauge, ResourceKey};
use crate::schema::TypeRule;

/// An endpoint as the engine finds it by id.
#[derive(Clone, Debug)]
pub struct EndpointEntry {
    pub id: EndpointId,
    pub key: ResourceKey,
    pub namespace: String,
    /// Shared with ingest and report for as long as the process lives.
    pub gauge: Arc<Gauge>,
    pub state: EndpointState,
}

/// How an endpoint orders its messages, as ingest reads it. What a spec last said validly, also while nothing else of the
/// endpoint can be used, or while it is deleted and made again.
pub type OrderCell = ArcSwapOption<Fifo>;

/// Whether there is something to send to.
#[derive(Clone, Debug)]
pub enum EndpointState {
    /// Resolved, and usable at once.
    Usable(Arc<ResolvedEndpoint>),
    /// It exists, but a Secret, ConfigMap or the policy keeps it from being used: messages wait, no attempt is consumed.
    Unusable {
        reason: &'static str,
        message: String,
        generation: i64,
        suspend: bool,
        /// `retry.maxAge`: messages grow old meanwhile.
        max_age: std::time::Duration,
    },
    /// Subscriptions name it, but it does not exist (yet): messages wait.
    Missing,
    /// There is none: a subscription's messages wait here for the consumer that pulls them.
    Pulled(PullPolicy),
    /// Deleted at this instant: its messages are buried five minutes later unless it comes back.
    Deleted { at: UnixMillis },
}

/// A subscription as matching and rendering find it by id.
#[derive(Clone, Debug)]
pub struct SubscriptionEntry {
    pub id: SubscriptionId,
    pub key: ResourceKey,
    pub endpoint: EndpointId,
    /// The endpoint's gauge: ingest takes a message's placement from it.
    pub endpoint_gauge: Arc<Gauge>,
    /// The endpoint's order: ingest takes a message's key from it.
    pub endpoint_order: Arc<OrderCell>,
    pub spec: Arc<ResolvedSubscription>,
    /// How its filter fares; written by ingest.
    pub filter_health: Arc<FilterHealth>,
    /// What its requests are made with.
    pub material: Material,
    /// Who is told of its dead letters.
    pub dead_letter: Option<EndpointId>,
    /// Where its consumers wait; none where its messages are pushed.
    pub mailbox: Option<Arc<Mailbox>>,
    /// Set when deleted: its messages are buried five minutes later unless it comes back.
    pub deleted: Option<UnixMillis>,
}

/// Where the consumers of a subscription that is pulled wait, and how it is known that there are any.
#[derive(Debug, Default)]
pub struct Mailbox {
    news: Notify,
    /// Milliseconds since 1970; zero: not since the process began.
    pulled: AtomicI64,
}

impl Mailbox {
    /// There may be something new to pull: everybody who waits looks again.
    pub fn ring(&self) {
        self.news.notify_waiters();
    }

    /// Ends when it rings; it hears what rings after this call, also before it is waited for.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Somebody asks for messages.
    pub fn pull(&self, now: UnixMillis) {
        self.pulled.store(now.0, Ordering::Relaxed);
    }

    /// When somebody asked last.
    pub fn last_pull(&self) -> UnixMillis {
        UnixMillis(self.pulled.load(Ordering::Relaxed))
    }
}

/// The values that a subscription's expressions read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    Ready(Arc<RequestSecrets>),
    /// A Secret is missing or not opened, or no valid request is known; the reason. Events match, and their messages wait.
    Missing(&'static str),
}

impl Default for Material {
    /// Nothing is needed.
    fn default() -> Material {
        Material::Ready(Arc::default())
    }
}

/// What changed, for the engine.
#[derive(Clone, Debug)]
pub enum Change {
    Endpoint(Arc<EndpointEntry>),
    Subscription(Arc<SubscriptionEntry>),
    /// There is news of a subscription's filter.
    Filter(Arc<SubscriptionEntry>),
    /// The store has messages of a subscription that was deleted while no dispatcher ran: nothing is known of it but its
    /// id. Told once, after the first complete list; buried like any deleted one.
    SubscriptionGone {
        id: SubscriptionId,
        at: UnixMillis,
    },
    /// Every watch has synced for the first time and what was due has been resolved.
    Synced,
}

/// A namespace as ingest needs it: one consistent snapshot.
#[derive(Clone, Debug)]
pub struct NamespaceView {
    pub uid: Arc<str>,
    pub subscriptions: Arc<Index<Arc<SubscriptionEntry>>>,
    /// Those whose messages are pulled, by name.
    pub pulled: Arc<HashMap<String, SubscriptionId>>,
    /// Declared types that count (the oldest object of a type); without a rule where no schema of it compiled.
    pub types: Arc<HashMap<String, Option<Arc<TypeRule>>>>,
    /// What the administrator's policy says of it.
    pub rules: Arc<NamespaceRules>,
}

/// Ids are given in order by the store, so a table of chunks finds them without hashing.
const CHUNK: usize = 1024;

/// A growing table by dense id: lock-free to read, one cell replaced per write.
#[derive(Debug)]
struct Table<T> {
    chunks: ArcSwap<Vec<Arc<[ArcSwapOption<T>]>>>,
    /// Serialises growing, which copies the list of chunks (not the cells).
    growing: Mutex<()>,
    /// Serialises making values that are not there yet.
    making: Mutex<()>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table {
            chunks: ArcSwap::from_pointee(Vec::new()),
            growing: Mutex::new(()),
            making: Mutex::new(()),
        }
    }
}

impl<T> Table<T> {
    fn get(&self, id: u32) -> Option<Arc<T>> {
        let (chunk, cell) = place(id);
        self.chunks.load().get(chunk)?.get(cell)?.load_full()
    }

    fn put(&self, id: u32, value: Arc<T>) {
        let (chunk, cell) = place(id);
        if self.chunks.load().len() <= chunk {
            let _growing = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut chunks = Vec::clone(&self.chunks.load());
            while chunks.len() <= chunk {
                chunks.push((0..CHUNK).map(|_| ArcSwapOption::empty()).collect());
            }
            self.chunks.store(Arc::new(chunks));
        }
        if let Some(cell) = self.chunks.load().get(chunk).and_then(|cells| cells.get(cell)) {
            cell.store(Some(value));
        }
    }

    /// Takes this value out, unless another one was put since.
    fn remove(&self, id: u32, value: &Arc<T>) {
        let (chunk, cell) = place(id);
        if let Some(cell) = self.chunks.load().get(chunk).and_then(|cells| cells.get(cell)) {
            cell.compare_and_swap(value, None);
        }
    }

    /// The value, made where there is none.
    fn get_or_make(&self, id: u32) -> Arc<T>
    where
        T: Default,
    {
        if let Some(value) = self.get(id) {
            return value;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = self.get(id) {
            return value;
        }
        let value = Arc::new(T::default());
        self.put(id, value.clone());
        value
    }

    fn all(&self) -> Vec<Arc<T>> {
        let chunks = self.chunks.load_full();
        chunks
            .iter()
            .flat_map(|cells| cells.iter())
            .filter_map(ArcSwapOption::load_full)
            .collect()
    }
}

fn place(id: u32) -> (usize, usize) {
    let id = usize::try_from(id).unwrap_or(usize::MAX);
    (id / CHUNK, id % CHUNK)
}

/// Everything loaded. Readers never wait for the writer, nor for each other.
#[derive(Debug)]
pub struct Registry {
    namespaces: ArcSwap<HashMap<String, Arc<NamespaceView>>>,
    endpoints: Table<EndpointEntry>,
    subscriptions: Table<SubscriptionEntry>,
    gauges: Table<Gauge>,
    orders: Table<OrderCell>,
    mailboxes: Table<Mailbox>,
    synced: AtomicBool,
    changes: mpsc::Sender<Change>,
}

impl Registry {
    /// An empty registry, and the changes the engine follows. With `capacity` changes not yet taken the watches wait.
    pub fn new(capacity: usize) -> (Registry, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(capacity);
        let registry = Registry {
            namespaces: ArcSwap::from_pointee(HashMap::new()),
            endpoints: Table::default(),
            subscriptions: Table::default(),
            gauges: Table::default(),
            orders: Table::default(),
            mailboxes: Table::default(),
            synced: AtomicBool::new(false),
            changes,
        };
        (registry, receiver)
    }

    /// The namespace's subscriptions and declared types; none for a namespace that does not exist.
    pub fn namespace(&self, name: &str) -> Option<Arc<NamespaceView>> {
        self.namespaces.load().get(name).cloned()
    }

    /// UIDs of the namespaces that exist, as far as they are watched; none before every watch has synced.
    pub fn namespace_uids(&self) -> Option<HashSet<Arc<str>>> {
        let all = self.namespaces.load();
        self.synced()
            .then(|| all.values().map(|view| view.uid.clone()).collect())
    }

    /// An endpoint; none while its references are read for the first time: its messages wait.
    pub fn endpoint(&self, id: EndpointId) -> Option<Arc<EndpointEntry>> {
        self.endpoints.get(id.0)
    }

    /// A subscription, deleted ones included while something of them is left.
    pub fn subscription(&self, id: SubscriptionId) -> Option<Arc<SubscriptionEntry>> {
        self.subscriptions.get(id.0)
    }

    /// Every endpoint, in order of id.
    pub fn endpoints(&self) -> Vec<Arc<EndpointEntry>> {
        self.endpoints.all()
    }

    /// Every subscription, in order of id, deleted ones included while something of them is left.
    pub fn subscriptions(&self) -> Vec<Arc<SubscriptionEntry>> {
        self.subscriptions.all()
    }

    /// Whether every watch has synced once: before, absence means nothing and ingest answers 503.
    pub fn synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// The endpoint's gauge, the same one for as long as the process lives.
    pub fn gauge(&self, id: EndpointId) -> Arc<Gauge> {
        self.gauges.get_or_make(id.0)
    }

    /// The endpoint's order, the same cell for as long as the process lives.
    pub fn order(&self, id: EndpointId) -> Arc<OrderCell> {
        self.orders.get_or_make(id.0)
    }

    /// The subscription's mailbox, the same one for as long as the process lives.
    pub fn mailbox(&self, id: SubscriptionId) -> Arc<Mailbox> {
        self.mailboxes.get_or_make(id.0)
    }

    /// For the watches: replaces an endpoint and tells the engine.
    pub async fn put_endpoint(&self, entry: EndpointEntry) {
        let entry = Arc::new(entry);
        self.endpoints.put(entry.id.0, entry.clone());
        self.tell(Change::Endpoint(entry)).await;
    }

    /// For the watches: replaces a subscription and tells the engine. Matching sees it with the next
    /// [`Registry::put_namespaces`].
    pub async fn put_subscription(&self, entry: Arc<SubscriptionEntry>) {
        self.subscriptions.put(entry.id.0, entry.clone());
        // Whoever waits looks at how it is now.
        if let Some(mailbox) = &entry.mailbox {
            mailbox.ring();
        }
        self.tell(Change::Subscription(entry)).await;
    }

    /// For the engine: nothing is left of a subscription that was deleted so. One that came back meanwhile stays.
    pub fn forget_subscription(&self, deleted: &Arc<SubscriptionEntry>) {
        self.subscriptions.remove(deleted.id.0, deleted);
    }

    /// For the watches: a subscription of the store that no longer exists.
    pub async fn subscription_gone(&self, id: SubscriptionId, at: UnixMillis) {
        self.tell(Change::SubscriptionGone { id, at }).await;
    }

    /// For the watches: replaces (or with `None` removes) namespaces, all at once.
    pub fn put_namespaces(&self, views: impl IntoIterator<Item = (String, Option<NamespaceView>)>) {
        let mut namespaces = HashMap::clone(&self.namespaces.load());
        for (name, view) in views {
            match view {
                Some(view) => namespaces.insert(name, Arc::new(view)),
                None => namespaces.remove(&name),
            };
        }
        self.namespaces.store(Arc::new(namespaces));
    }

    /// For ingest: what is told of a subscription's filter changed. False when the engine has no room for it now: to be
    /// told again.
    pub fn filter_changed(&self, entry: &Arc<SubscriptionEntry>) -> bool {
        self.changes.try_send(Change::Filter(entry.clone())).is_ok()
    }

    /// For the watches: every watch has synced and what was due is resolved. Once.
    pub async fn set_synced(&self) {
        if !self.synced.swap(true, Ordering::AcqRel) {
            self.tell(Change::Synced).await;
        }
    }

    /// A closed channel means that the engine is gone: the process is ending, and nobody needs the change.
    async fn tell(&self, change: Change) {
        let _ended = self.changes.send(change).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, state: EndpointState) -> EndpointEntry {
        EndpointEntry {
            id: EndpointId(id),
            key: ResourceKey {
                namespace_uid: "uid".into(),
                name: format!("e{id}"),
            },
            namespace: "team".into(),
            gauge: Arc::new(Gauge::default()),
            state,
        }
    }

    #[tokio::test]
    async fn a_change_is_readable_before_the_engine_hears_of_it() {
        let (registry, mut changes) = Registry::new(4);
        registry.put_endpoint(entry(5000, EndpointState::Missing)).await;
        let Some(Change::Endpoint(told)) = changes.recv().await else {
            panic!("expected an endpoint")
        };
        let read = registry.endpoint(told.id).expect("put before");
        assert!(Arc::ptr_eq(&read, &told));
        assert!(registry.endpoint(EndpointId(4999)).is_none());
        assert!(registry.endpoint(EndpointId(u32::MAX)).is_none());
        assert_eq!(registry.endpoints().len(), 1);
    }

    #[tokio::test]
    async fn synced_is_told_once() {
        let (registry, mut changes) = Registry::new(4);
        assert!(!registry.synced());
        registry.set_synced().await;
        registry.set_synced().await;
        assert!(registry.synced());
        assert!(matches!(changes.try_recv(), Ok(Change::Synced)));
        assert!(changes.try_recv().is_err());
    }

    #[test]
    fn an_endpoint_keeps_its_gauge_for_ever() {
        let (registry, _changes) = Registry::new(1);
        let gauge = registry.gauge(EndpointId(3));
        assert!(Arc::ptr_eq(&gauge, &registry.gauge(EndpointId(3))));
        assert!(!Arc::ptr_eq(&gauge, &registry.gauge(EndpointId(4))));
    }

    #[test]
    fn namespaces_come_and_go_without_touching_views_in_use() {
        let (registry, _changes) = Registry::new(1);
        let view = || NamespaceView {
            uid: "u1".into(),
            subscriptions: Arc::new(Index::new([])),
            pulled: Arc::default(),
            types: Arc::new(HashMap::new()),
            rules: Arc::default(),
        };
        registry.put_namespaces([("a".to_owned(), Some(view())), ("b".to_owned(), Some(view()))]);
        let held = registry.namespace("a").expect("just put");
        registry.put_namespaces([("a".to_owned(), None)]);
        assert!(registry.namespace("a").is_none());
        assert!(registry.namespace("b").is_some());
        assert_eq!(&*held.uid, "u1");
    }
}
