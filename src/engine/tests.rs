//! The engine over the real store, with a scripted receiver and a clock moved by hand.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;

use super::outcome::End;
use super::*;
use crate::api::resolve::{
    BreakerPolicy, Delivery, EgressRules, Format, Host, Rate, ResolvedEndpoint, ResolvedSubscription, RetryPolicy,
    Target,
};
use crate::delivery::{AttemptResult, Fault, Grant, Judged, Outcome, Refusal, Request};
use crate::event::{Data, Event, format};
use crate::ids::{EndpointId, EventId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::sqlite::{Options, SqliteQueue};
use crate::queue::{self, Accepted, NewEvent, ResourceKey};
use crate::registry::{EndpointEntry, EndpointState, SubscriptionEntry};
use crate::report::board::{Delivering, EndpointView};
use crate::signing::{SigningKey, SigningKeys};

mod bodies;
mod changes;
mod fairness;
mod handshake;
mod keys;
mod lifetime;
mod limits;
mod namespaces;
mod order;
mod outage;
mod pages;
mod places;
mod pull;
mod refusals;
mod scenarios;
mod subscriptions;
mod windows;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a scripted receiver does with the next request.
#[derive(Clone, Debug)]
enum Act {
    Answer(u16),
    Refuse,
    Blocked,
    Hang,
    Panic,
}

/// Receivers by endpoint name; each repeats its last act.
#[derive(Default)]
struct Script {
    acts: Mutex<HashMap<String, Vec<Act>>>,
    /// What they say to whoever asks first, and who did; every endpoint that asks has one.
    consents: Mutex<HashMap<String, Outcome>>,
    asked: Mutex<Vec<String>>,
    /// Every request: endpoint, message, and the most under way together per endpoint.
    seen: Mutex<Vec<(String, MessageId)>>,
    under_way: Mutex<HashMap<String, (usize, usize)>>,
    /// Endpoints that got a request of a subscription's own making.
    shaped: Mutex<Vec<String>>,
    released: Notify,
}

impl Script {
    fn set(&self, endpoint: &str, acts: &[Act]) {
        let mut acts = acts.to_vec();
        acts.reverse();
        self.acts.lock().unwrap().insert(endpoint.to_owned(), acts);
        self.released.notify_waiters();
    }

    fn count(&self, endpoint: &str) -> usize {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|(name, _)| name == endpoint)
            .count()
    }

    fn consents(&self, endpoint: &str, answer: Result<Grant, Refusal>) {
        let said = Outcome::Status {
            code: 200,
            retry_after: None,
            judged: Judged::Asked(answer),
            excerpt: None,
        };
        self.says(endpoint, said);
    }

    fn says(&self, endpoint: &str, outcome: Outcome) {
        self.consents.lock().unwrap().insert(endpoint.to_owned(), outcome);
    }

    fn asked(&self, endpoint: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|name| *name == endpoint)
            .count()
    }

    fn most_at_once(&self, endpoint: &str) -> usize {
        self.under_way
            .lock()
            .unwrap()
            .get(endpoint)
            .map_or(0, |(_, most)| *most)
    }

    fn forget(&self) {
        self.seen.lock().unwrap().clear();
        self.under_way.lock().unwrap().clear();
    }

    fn next(&self, endpoint: &str) -> Act {
        let mut acts = self.acts.lock().unwrap();
        let acts = acts.entry(endpoint.to_owned()).or_default();
        match acts.len() {
            0 => Act::Answer(200),
            1 => acts[0].clone(),
            _ => acts.pop().unwrap(),
        }
    }
}

#[async_trait]
impl Sender for Script {
    async fn send(&self, endpoint: &Arc<ResolvedEndpoint>, request: Request) -> AttemptResult {
        let name = endpoint.name.clone();
        self.seen.lock().unwrap().push((name.clone(), request.message));
        self.shaped.lock().unwrap().extend(request.shaped.map(|_| name.clone()));
        {
            let mut under_way = self.under_way.lock().unwrap();
            let (now, most) = under_way.entry(name.clone()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        tokio::task::yield_now().await;
        let outcome = loop {
            let released = self.released.notified();
            match self.next(&name) {
                Act::Answer(code) => {
                    break Outcome::Status {
                        judged: Judged::ByStatus,
                        code,
                        retry_after: None,
                        excerpt: None,
                    };
                }
                Act::Refuse => break Outcome::Fault(Fault::Refused),
                Act::Blocked => {
                    break Outcome::Blocked {
                        address: [10, 0, 0, 1].into(),
                    };
                }
                Act::Hang => released.await,
                Act::Panic => panic!("the script says so"),
            }
        };
        self.under_way.lock().unwrap().get_mut(&name).unwrap().0 -= 1;
        AttemptResult {
            took: Duration::from_millis(3),
            outcome,
        }
    }

    async fn ask(&self, endpoint: &Arc<ResolvedEndpoint>) -> AttemptResult {
        self.asked.lock().unwrap().push(endpoint.name.clone());
        // Whoever does not wait for the answer comes in between.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let outcome = self.consents.lock().unwrap()[&endpoint.name].clone();
        AttemptResult {
            took: Duration::from_millis(3),
            outcome,
        }
    }
}

/// An engine's, with a script, a board and a clock of its own.
fn config(
    queue: Arc<SqliteQueue>,
    fence: Fence,
    registry: Arc<Registry>,
    changes: mpsc::Receiver<Change>,
) -> EngineConfig {
    EngineConfig {
        queue,
        fence,
        registry,
        changes,
        sender: Arc::new(Script::default()),
        origin: Origin::default(),
        board: Arc::default(),
        clock: Arc::new(Clock::System),
        metrics: EngineMetrics::default(),
        traces: None,
        random: || 0.0,
        bury_after: BURY_AFTER,
        sees_all: false,
        refused: Box::new(|_| {}),
    }
}

/// One process's life over a store.
struct World {
    queue: Arc<SqliteQueue>,
    fence: Fence,
    registry: Arc<Registry>,
    engine: Option<Engine>,
    script: Arc<Script>,
    clock: Arc<Clock>,
    views: Mutex<HashMap<EndpointId, EndpointView>>,
    board: Arc<Board>,
    events: AtomicU64,
}

impl World {
    async fn open(dir: &Path, script: Arc<Script>, clock: Arc<Clock>) -> World {
        World::open_with(dir, script, clock, Options::default()).await
    }

    async fn open_with(dir: &Path, script: Arc<Script>, clock: Arc<Clock>, options: Options) -> World {
        World::open_as(dir, script, clock, options, |_| {}).await
    }

    async fn open_as(
        dir: &Path,
        script: Arc<Script>,
        clock: Arc<Clock>,
        options: Options,
        edit: impl FnOnce(&mut EngineConfig),
    ) -> World {
        let (queue, _) = SqliteQueue::open(dir, options).unwrap();
        let queue = Arc::new(queue);
        let fence = queue.claim().await.unwrap();
        let (registry, changes) = Registry::new(64);
        let registry = Arc::new(registry);
        let board = Arc::new(Board::default());
        let mut config = config(queue.clone(), fence, registry.clone(), changes);
        config.sender = script.clone();
        config.board = board.clone();
        config.clock = clock.clone();
        edit(&mut config);
        let engine = Engine::start(config).await.unwrap();
        World {
            queue,
            fence,
            registry,
            engine: Some(engine),
            script,
            clock,
            views: Mutex::default(),
            board,
            events: AtomicU64::new(UnixMillis::now().0.unsigned_abs()),
        }
    }

    async fn new(dir: &Path) -> World {
        World::new_with(dir, Options::default()).await
    }

    async fn new_with(dir: &Path, options: Options) -> World {
        // Ahead of the store's clock, which goes on by itself: what is stored now is due now.
        let clock = Arc::new(Clock::manual(UnixMillis::now().plus(Duration::from_secs(60))));
        World::open_with(dir, Arc::default(), clock, options).await
    }

    /// The process ends; the store is closed and opened by the next.
    async fn restart(mut self, dir: &Path, drain: bool) -> World {
        let engine = self.engine.take().unwrap();
        if drain {
            assert!(
                engine.drain(Duration::from_millis(50)).await,
                "everything that ended is recorded"
            );
        } else {
            drop(engine);
        }
        self.queue.close().await;
        let (script, clock) = (self.script.clone(), self.clock.clone());
        drop(self);
        World::open(dir, script, clock).await
    }

    async fn endpoint(&self, name: &str) -> EndpointId {
        self.endpoint_with(name, |_| {}).await
    }

    /// Applies an endpoint and one subscription of the same name.
    async fn endpoint_with(&self, name: &str, edit: impl FnOnce(&mut ResolvedEndpoint)) -> EndpointId {
        let key = resource_key(name);
        let id = self.queue.intern_endpoints(vec![key.clone()]).await.unwrap()[0];
        let mut resolved = resolved(name);
        edit(&mut resolved);
        let state = EndpointState::Usable(Arc::new(resolved));
        self.put_endpoint(id, key.clone(), state).await;
        self.subscribe(id, key, false).await;
        id
    }

    async fn put_endpoint(&self, id: EndpointId, key: ResourceKey, state: EndpointState) {
        self.registry
            .put_endpoint(EndpointEntry {
                id,
                key,
                namespace: "team".into(),
                gauge: self.registry.gauge(id),
                state,
            })
            .await;
    }

    async fn subscribe(&self, endpoint: EndpointId, key: ResourceKey, suspend: bool) -> SubscriptionId {
        self.subscribe_with(endpoint, key, |spec| spec.suspend = suspend).await
    }

    async fn subscribe_with(
        &self,
        endpoint: EndpointId,
        key: ResourceKey,
        edit: impl FnOnce(&mut ResolvedSubscription),
    ) -> SubscriptionId {
        let id = self.queue.intern_subscriptions(vec![key.clone()]).await.unwrap()[0];
        let mut entry = subscription_entry(&self.registry, id, endpoint, key);
        edit(Arc::make_mut(&mut entry.spec));
        self.registry.put_subscription(Arc::new(entry)).await;
        id
    }

    /// Accepts `count` events for the endpoint, as ingest does.
    async fn send(&self, endpoint: EndpointId, count: usize) -> Vec<MessageId> {
        self.send_each(endpoint, vec![None; count]).await
    }

    /// The same, each event with this key of an order.
    async fn send_each(&self, endpoint: EndpointId, orders: Vec<Option<&str>>) -> Vec<MessageId> {
        let subscription = SubscriptionId(endpoint.0);
        let mut events = Vec::new();
        for order in orders {
            let number = self.events.fetch_add(1, Ordering::Relaxed);
            let mut dedupe = [0; 16];
            dedupe[..8].copy_from_slice(&number.to_be_bytes());
            let event = Event {
                id: number.to_string(),
                source: "/test".into(),
                r#type: "lead.qualified".into(),
                subject: None,
                time: None,
                datacontenttype: None,
                dataschema: None,
                extensions: vec![],
                data: Data::Json(Bytes::from_static(b"{\"a\":1}")),
            };
            events.push(NewEvent {
                namespace_uid: "uid".into(),
                dedupe,
                event: Arc::new(format::stored(&event, UnixMillis::now(), None)),
                targets: vec![queue::Target {
                    subscription,
                    endpoint,
                    placement: self.registry.gauge(endpoint).place(1_000_000),
                    order: order.map(OrderKey::of),
                }],
                quota: queue::Quota::default(),
            });
        }
        let accepted = self.queue.accept(events).await.unwrap();
        accepted
            .into_iter()
            .map(|accepted| match accepted {
                Accepted::New { event, .. } => MessageId::new(event, 0),
                Accepted::Duplicate { .. } => panic!("every event is new"),
            })
            .collect()
    }

    async fn counts(&self, endpoint: EndpointId) -> (u64, u64) {
        let backlog = self.queue.backlog(self.fence).await.unwrap();
        let of = backlog.iter().filter(|pair| pair.endpoint == endpoint);
        of.fold((0, 0), |(pending, dead), pair| {
            (pending + pair.pending, dead + pair.dead)
        })
    }

    async fn until_counts(&self, endpoint: EndpointId, pending: u64, dead: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counts = self.counts(endpoint).await;
            if counts == (pending, dead) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "pending and dead are {counts:?}, not {:?}",
                (pending, dead)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "timed out waiting until {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the board says so.
    async fn until_view(
        &self,
        endpoint: EndpointId,
        what: &str,
        holds: impl Fn(&EndpointView) -> bool,
    ) -> EndpointView {
        let wait = async {
            loop {
                if let Some(view) = self.views.lock().unwrap().get(&endpoint)
                    && holds(view)
                {
                    return view.clone();
                }
                let posted = self.board.take().await;
                let views = posted.endpoints.into_iter().map(|(id, (view, _))| (id, view));
                self.views.lock().unwrap().extend(views);
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        waited.unwrap_or_else(|_| {
            let views = self.views.lock().unwrap();
            panic!("the board never said {what}; it says {:?}", views.get(&endpoint))
        })
    }

    async fn until_delivering(&self, endpoint: EndpointId, reason: Delivering) -> EndpointView {
        self.until_view(endpoint, reason.reason(), |view| view.delivering == reason)
            .await
    }

    /// Waits until nothing is under way and every outcome is recorded: what comes next needs time.
    async fn settled(&self) {
        self.until("everything is recorded", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            state.unrecorded() == 0
                && state.fast + state.slow == 0
                && state.to_page.is_empty()
                && state
                    .endpoints
                    .values()
                    .all(|endpoint| !endpoint.paging && endpoint.window.is_empty())
        })
        .await;
    }

    /// Waits until the endpoints' states are handed to the store, which is done a few times a second.
    async fn kept(&self) {
        self.until("states are kept", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            state.endpoints.values().all(|endpoint| !endpoint.health_dirty)
        })
        .await;
    }

    /// Moves time on, and lets what is due happen.
    async fn pass(&self, seconds: u64) {
        self.settled().await;
        self.clock.advance(Duration::from_secs(seconds));
        self.until("timers were looked at", |world| {
            let state = world.engine.as_ref().unwrap().core.lock();
            state.timers.first().is_none_or(|(at, _)| *at > world.clock.now())
        })
        .await;
        self.settled().await;
    }
}

/// A subscription of everything.
fn resource_key(name: &str) -> ResourceKey {
    ResourceKey {
        namespace_uid: "uid".into(),
        name: name.into(),
    }
}

const ENDPOINT: EndpointId = EndpointId(1);
const SUBSCRIPTION: SubscriptionId = SubscriptionId(1);

/// One of [`SUBSCRIPTION`] at [`ENDPOINT`].
fn message(number: i64, due: UnixMillis) -> queue::Pending {
    let event = EventId::next(EventId(0), due.0 / 1000);
    queue::Pending {
        message: MessageId::new(EventId(event.0 + number), 0),
        endpoint: ENDPOINT,
        subscription: SUBSCRIPTION,
        attempts: 0,
        due,
        again: None,
    }
}

/// Has the state hear of an endpoint, without an engine.
fn load_endpoint(state: &mut State, id: EndpointId, name: &str, endpoint: EndpointState, now: UnixMillis) {
    let entry = EndpointEntry {
        id,
        key: resource_key(name),
        namespace: "team".into(),
        gauge: state.registry.gauge(id),
        state: endpoint,
    };
    state.endpoint_changed(Arc::new(entry), now);
}

/// And of a subscription of that name to it.
fn load_subscription(state: &mut State, id: SubscriptionId, endpoint: EndpointId, name: &str, now: UnixMillis) {
    let entry = subscription_entry(&state.registry, id, endpoint, resource_key(name));
    state.subscription_changed(Arc::new(entry), now);
}

/// And that something of one waits in the store until then.
fn note_due(state: &mut State, id: SubscriptionId, due: UnixMillis) {
    state.subscription(ENDPOINT, id);
    state.endpoint(ENDPOINT).subscriptions.note_due(id, due, false);
}

/// An attempt's end, of a receiver that took so long.
fn answered(code: u16, took: Duration) -> End {
    let outcome = Outcome::Status {
        code,
        retry_after: None,
        judged: Default::default(),
        excerpt: None,
    };
    End::Answered(AttemptResult { took, outcome })
}

fn subscription_entry(
    registry: &Registry,
    id: SubscriptionId,
    endpoint: EndpointId,
    key: ResourceKey,
) -> SubscriptionEntry {
    let spec = ResolvedSubscription {
        namespace: "team".into(),
        name: key.name.clone(),
        generation: 1,
        delivery: Delivery::Push {
            endpoint: key.name.clone(),
        },
        event_types: vec![],
        sources: vec![],
        filter: None,
        format: Format::StandardWebhooks,
        request: Default::default(),
        dead_letter: None,
        retry: None,
        suspend: false,
    };
    SubscriptionEntry {
        id,
        key,
        endpoint,
        endpoint_gauge: registry.gauge(endpoint),
        endpoint_order: registry.order(endpoint),
        spec: Arc::new(spec),
        filter_health: Arc::default(),
        material: Default::default(),
        dead_letter: None,
        mailbox: None,
        deleted: None,
    }
}

fn resolved(name: &str) -> ResolvedEndpoint {
    ResolvedEndpoint {
        namespace: "team".into(),
        name: name.into(),
        uid: "5d0c".into(),
        generation: 1,
        target: Target {
            host: Host::Name("hooks.example.com".into()),
            port: 443,
            path: "/".into(),
            is_secret: false,
            authority: "hooks.example.com".into(),
            origin: "https://hooks.example.com".into(),
            service: None,
        },
        headers: vec![],
        token: None,
        ca: None,
        client: None,
        signing: Arc::new(
            SigningKeys::new(Some("k1"), vec![SigningKey::generate([7; 32])])
                .unwrap()
                .into(),
        ),
        timeout: Duration::from_secs(15),
        retry: RetryPolicy {
            schedule: [1, 10, 60, 300].map(Duration::from_secs).to_vec(),
            ..RetryPolicy::default()
        },
        max_in_flight: 64,
        rate: None,
        breaker: BreakerPolicy::default(),
        disable_after: Some(Duration::from_secs(120 * 3600)),
        success: None,
        handshake: false,
        retention: Duration::from_secs(72 * 3600),
        suspend: false,
        egress: Arc::new(EgressRules::default()),
        enable_request: None,
    }
}
