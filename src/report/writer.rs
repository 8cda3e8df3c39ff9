//! The status writer: takes views from the board, compares them with the watched objects, and writes what the plan allows.
//!
//! One task; writes run beside it, at most one an object. Invariant: every write was planned, so the budget holds; what is
//! unchanged is not written, also after a restart.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::{Board, Delivering, EndpointView, Posted, SubscriptionView};
use super::metrics::Metrics;
use super::plan::{Allowance, Dirty, Id, Miss, Tried, plan};
use super::view;
use crate::api::conditions::{DELIVERING, FILTER_FAILING, READY, UNCONSUMED, UNKNOWN};
use crate::api::names::DISPATCHER;
use crate::api::status::{EndpointDelivery, is_unseen};
use crate::api::{EventSubscription, WebhookEndpoint};
use crate::ids::UnixMillis;
use crate::kubernetes::events::{Happening, Reporter, publish};
use crate::kubernetes::slim;
use crate::kubernetes::status::{Written, apply, is_unchanged, own_part};
use crate::watch::objects::Objects;
use crate::watch::versions::number;

/// How often an object that the controller has not looked at yet is looked at: what it is said of it then is said once.
const UNSEEN: Duration = Duration::from_secs(1);
/// How long this may compute in one go. Less would make it wait for its turn too often while much is delivered.
const SLICE: Duration = Duration::from_millis(2);
/// Writes under way: an API server that is slow must not make more of them than it takes.
const WRITES_AT_ONCE: usize = 32;
/// Objects that writes gave back, until they are looked through for those that the watch has, too.
const WRITTEN: usize = 64;
/// The pause between two plans, for each object that is dirty: planning looks at all of them.
const REST: Duration = Duration::from_micros(10);

/// What the writer works with.
pub struct Tools {
    pub client: Client,
    pub board: Arc<Board>,
    pub objects: Arc<Objects>,
    pub reporter: Reporter,
    pub metrics: Metrics,
    /// Status and Events together.
    pub writes_per_second: u32,
}

/// The writer.
pub struct Writer {
    tools: Arc<Tools>,
    views: HashMap<Id, View>,
    dirty: BTreeMap<Id, Dirty>,
    last_write: HashMap<Id, Instant>,
    /// What a write gave back, until the watch has caught up with it.
    written: HashMap<Id, Object>,
    /// So many of them are looked through.
    written_bound: usize,
    running: BTreeSet<Id>,
    /// Of those: another view was posted meanwhile.
    posted_meanwhile: BTreeSet<Id>,
    /// Objects that the controller has not looked at yet, and when they are looked at again.
    unseen: BTreeSet<Id>,
    look_again: Instant,
    plan_again: Instant,
    allowance: Allowance,
}

#[derive(Clone, Debug)]
enum View {
    Endpoint(Box<EndpointView>),
    Subscription(SubscriptionView),
}

/// An object of either kind.
#[derive(Clone, Debug)]
enum Object {
    Endpoint(Arc<WebhookEndpoint>),
    Subscription(Arc<EventSubscription>),
}

/// What to write for one object.
struct Wanted {
    object: Object,
    change: Change,
}

/// A status that differs from what is shown.
struct Change {
    own: Value,
    /// It is to be shown at once.
    is_transition: bool,
    /// What is shown names a next attempt that is over, or messages that are settled.
    is_overtaken: bool,
    happening: Option<Happening>,
}

impl Change {
    fn routine(own: Value) -> Change {
        Change {
            own,
            is_transition: false,
            is_overtaken: false,
            happening: None,
        }
    }
}

/// What a write came to.
struct Done {
    id: Id,
    urgent: Option<Instant>,
    /// What was tried before and did not land.
    tried: Option<Tried>,
    /// Whether an Event was to be made, too.
    tells: bool,
    result: Result<Object, Miss>,
}

impl Writer {
    pub fn new(tools: Tools) -> Writer {
        let allowance = Allowance::new(tools.writes_per_second, Instant::now());
        Writer {
            tools: Arc::new(tools),
            views: HashMap::new(),
            dirty: BTreeMap::new(),
            last_write: HashMap::new(),
            written: HashMap::new(),
            written_bound: WRITTEN,
            running: BTreeSet::new(),
            posted_meanwhile: BTreeSet::new(),
            unseen: BTreeSet::new(),
            look_again: Instant::now(),
            plan_again: Instant::now(),
            allowance,
        }
    }

    /// Runs until `shutdown`; writes under way are finished.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut writes = JoinSet::new();
        let mut next = None;
        let tools = self.tools.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                posted = tools.board.take() => self.note(posted).await,
                Some(done) = writes.join_next() => self.finish(done),
                () = until(next) => {}
            }
            self.look_at_unseen().await;
            next = self.start_writes(&mut writes);
            if !self.unseen.is_empty() {
                next = Some(next.map_or(self.look_again, |next| next.min(self.look_again)));
            }
            self.tools
                .metrics
                .dirty
                .set(i64::try_from(self.dirty.len()).unwrap_or(i64::MAX));
        }
        while writes.join_next().await.is_some() {}
    }

    fn lacks_its_secret(&self, id: Id) -> bool {
        matches!(self.views.get(&id), Some(View::Endpoint(view)) if view.delivering == Delivering::SecretUnavailable)
    }

    /// Those that the controller may have looked at meanwhile.
    async fn look_at_unseen(&mut self) {
        if !self.unseen.is_empty() && Instant::now() >= self.look_again {
            let mut slice = Slice::new();
            for id in std::mem::take(&mut self.unseen) {
                self.mark(id, false);
                slice.pause().await;
            }
        }
    }

    /// Each costs a tenth of a millisecond: of a thousand endpoints that fail together deliveries go on in between.
    async fn note(&mut self, posted: Posted) {
        let mut slice = Slice::new();
        for (id, (view, urgent)) in posted.endpoints {
            let object = self.tools.objects.endpoint(id);
            self.tools
                .metrics
                .fleet
                .note(id, object.as_deref(), &view, UnixMillis::now());
            self.take_over(Id::Endpoint(id), View::Endpoint(Box::new(view)), urgent);
            slice.pause().await;
        }
        for (id, (mut view, urgent)) in posted.subscriptions {
            if let Some(View::Subscription(before)) = self.views.get(&Id::Subscription(id)) {
                view.is_news |= before.is_news;
            }
            let exists = self.tools.objects.subscription(id).is_some();
            self.tools.metrics.fleet.note_subscription(id, exists, &view);
            self.take_over(Id::Subscription(id), View::Subscription(view), urgent);
            slice.pause().await;
        }
    }

    fn take_over(&mut self, id: Id, view: View, urgent: bool) {
        self.views.insert(id, view);
        if self.running.contains(&id) {
            self.posted_meanwhile.insert(id);
        }
        self.mark(id, urgent);
    }

    /// Dirty when what is wanted differs from what the object says.
    fn mark(&mut self, id: Id, urgent: bool) {
        let now = Instant::now();
        let lacks_its_secret = self.lacks_its_secret(id);
        let waits = |object: &Object| object.is_unseen() || (lacks_its_secret && object.is_being_loaded());
        // Before anything is built: of ten thousand that were applied together all are looked at each second.
        if self.current(id).as_ref().is_some_and(waits) {
            if self.unseen.is_empty() {
                self.look_again = now + UNSEEN;
            }
            self.unseen.insert(id);
            return;
        }
        let Some(wanted) = self.wanted(id) else {
            self.dirty.remove(&id);
            self.forget_view(id);
            return;
        };
        let last_write = self.last_write.get(&id).copied();
        let dirty = self.dirty.entry(id).or_insert_with(|| Dirty::new(now, last_write));
        dirty.overtaken = wanted.change.is_overtaken;
        if urgent || wanted.change.is_transition {
            dirty.urgent.get_or_insert(now);
        }
    }

    /// What is to be written; none when the object is gone or says it already.
    fn wanted(&mut self, id: Id) -> Option<Wanted> {
        let Some(object) = self.current(id) else {
            self.forget(id);
            return None;
        };
        let now = UnixMillis::now();
        let wanted = match (self.views.get(&id)?, &object) {
            (View::Endpoint(view), Object::Endpoint(endpoint)) => wanted_endpoint(view, endpoint, now),
            (View::Subscription(view), Object::Subscription(subscription)) => {
                wanted_subscription(view, subscription, now)
            }
            _ => None,
        };
        wanted.map(|change| Wanted { object, change })
    }

    /// The newest form known: the watched one, or what our last write gave back.
    fn current(&mut self, id: Id) -> Option<Object> {
        let watched = watched(&self.tools.objects, id)?;
        match self.written.get(&id) {
            Some(written) if written.is_later_form_of(&watched) => Some(written.clone()),
            _ => {
                self.written.remove(&id);
                Some(watched)
            }
        }
    }

    fn forget(&mut self, id: Id) {
        self.views.remove(&id);
        self.written.remove(&id);
        self.last_write.remove(&id);
    }

    /// What is shown as it is wanted is looked at again with a view that is posted, if ever.
    fn forget_view(&mut self, id: Id) {
        if !self.dirty.contains_key(&id) && !self.running.contains(&id) && !self.unseen.contains(&id) {
            self.views.remove(&id);
        }
    }

    /// Nobody may ask again for an object that was written: what a write gave back goes when the watch has it too.
    fn forget_what_is_watched(&mut self) {
        if self.written.len() < self.written_bound {
            return;
        }
        let objects = &self.tools.objects;
        self.written
            .retain(|id, written| watched(objects, *id).is_some_and(|watched| written.is_later_form_of(&watched)));
        self.written_bound = WRITTEN.max(self.written.len() * 2);
    }

    /// Starts what the plan allows; says when to look again.
    fn start_writes(&mut self, writes: &mut JoinSet<Done>) -> Option<Instant> {
        let now = Instant::now();
        if now < self.plan_again {
            return Some(self.plan_again);
        }
        self.plan_again = now + REST * u32::try_from(self.dirty.len()).unwrap_or(u32::MAX);
        let free: BTreeMap<Id, Dirty> = self
            .dirty
            .iter()
            .filter(|(id, _)| !self.running.contains(*id))
            .map(|(id, dirty)| (*id, *dirty))
            .collect();
        let room = WRITES_AT_ONCE.saturating_sub(self.running.len());
        let planned = plan(&free, now, &mut self.allowance, room);
        for id in planned.writes {
            let Some(dirty) = self.dirty.remove(&id) else { continue };
            let Some(mut wanted) = self.wanted(id) else {
                self.forget_view(id);
                continue;
            };
            if wanted.change.happening.is_some() && !self.allowance.take(now) {
                wanted.change.happening = None;
                self.tools.metrics.dropped_events.inc();
            }
            self.last_write.insert(id, now);
            self.running.insert(id);
            writes.spawn(write(self.tools.clone(), id, dirty, wanted));
        }
        planned.next
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // Which one is unknown: none is held back for ever.
                self.running.clear();
                self.posted_meanwhile.clear();
                return tracing::error!(%error, "a status write ended unexpectedly");
            }
        };
        self.running.remove(&done.id);
        let now = Instant::now();
        match done.result {
            Ok(object) => {
                if let Some(urgent) = done.urgent {
                    self.tools.metrics.lag.observe(now.duration_since(urgent).as_secs_f64());
                }
                self.written.insert(done.id, object);
                self.forget_what_is_watched();
                if let Some(dirty) = self.dirty.get_mut(&done.id) {
                    dirty.last_write = self.last_write.get(&done.id).copied();
                }
                // What was posted meanwhile was compared with what was shown before.
                match self.posted_meanwhile.remove(&done.id) {
                    true => self.mark(done.id, false),
                    false => self.forget_view(done.id),
                }
            }
            Err(miss) => {
                self.posted_meanwhile.remove(&done.id);
                let dirty = self.dirty.entry(done.id).or_insert_with(|| Dirty::new(now, None));
                dirty.urgent = [dirty.urgent, done.urgent].into_iter().flatten().min();
                dirty.tried = Some(Tried::after(done.tried, miss, now));
                // It was not shown: its interval does not count from this try.
                dirty.last_write = None;
                if done.tells {
                    self.allowance.give_back();
                }
            }
        }
    }
}

fn watched(objects: &Objects, id: Id) -> Option<Object> {
    Some(match id {
        Id::Endpoint(id) => Object::Endpoint(objects.endpoint(id)?),
        Id::Subscription(id) => Object::Subscription(objects.subscription(id)?),
    })
}

fn wanted_endpoint(view: &EndpointView, endpoint: &WebhookEndpoint, now: UnixMillis) -> Option<Change> {
    let status = endpoint.status.as_ref();
    let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let generation = endpoint.metadata.generation.unwrap_or(0);
    let delivery = status.and_then(|s| s.delivery.as_ref());
    let view = &*not_before_shown(view, delivery);
    let own = view::endpoint(view, conditions, generation, now);
    let current = own_part(&endpoint.status, &view::OWN_FIELDS, view::is_own_condition);
    if is_unchanged(&current, &own) {
        return None;
    }
    let before = view::Before::of(conditions);
    let shown_key = delivery.and_then(|d| d.signing.as_ref()).map(|s| s.key_id.as_str());
    let shown_enable = delivery.and_then(|d| d.handled_enable_request.as_deref());
    // The controller waits for the key (a rotation) as people wait for the reason.
    let is_transition = before.is_left_by(view)
        || shown_key != view.signing.as_ref().map(|(id, _)| id.as_str())
        || shown_enable != view.handled_enable_request.as_deref();
    Some(Change {
        own,
        is_transition,
        is_overtaken: delivery.is_some_and(|shown| view::is_overtaken(shown, view, now)),
        happening: view::happening(before, view),
    })
}

fn wanted_subscription(view: &SubscriptionView, subscription: &EventSubscription, now: UnixMillis) -> Option<Change> {
    let status = subscription.status.as_ref();
    let conditions = status.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let generation = subscription.metadata.generation.unwrap_or(0);
    let shown = status.and_then(|s| s.delivery.as_ref());
    let is_own = |c: &Condition| view::is_own_condition(&c.type_);
    // Before anything is built: after a start all are looked at, and of most there is nothing to tell.
    if !conditions.iter().any(is_own) && view::is_shown(shown, view) {
        return None;
    }
    let mut own = view::subscription(view, conditions, generation, now);
    // The store does not know which was the newest; a process before did.
    if view.last_dead_letter.is_none() && view.dead_lettered > 0 {
        own["delivery"]["lastDeadLetter"] = json!(shown.and_then(|delivery| delivery.last_dead_letter.as_ref()));
    }
    let is_kept = |c: &&Condition| {
        let is_as_found = !view.is_filter_told && c.observed_generation == Some(generation);
        c.type_ == FILTER_FAILING && is_as_found
    };
    let kept = conditions.iter().find(is_kept);
    if let Some(all) = own["conditions"].as_array_mut() {
        all.extend(kept.map(|condition| json!(condition)));
    }
    let current = own_part(&subscription.status, &view::OWN_FIELDS, view::is_own_condition);
    if is_unchanged(&current, &own) {
        return None;
    }
    let has = |type_: &str| conditions.iter().any(|c| c.type_ == type_);
    let shown_pending = shown.and_then(|delivery| delivery.pending);
    Some(Change {
        is_transition: has(FILTER_FAILING) != (view.filter_failing.is_some() || kept.is_some())
            || has(UNCONSUMED) != view.unconsumed.is_some(),
        is_overtaken: view::shows_settled(shown_pending, view.pending),
        ..Change::routine(own)
    })
}

/// A success among successes is not kept at once, so a process that was killed may know of an older one than status does:
/// its time never goes back.
fn not_before_shown<'a>(view: &'a EndpointView, shown: Option<&EndpointDelivery>) -> Cow<'a, EndpointView> {
    let shown = shown.and_then(|delivery| delivery.last_success.as_ref());
    let shown = shown.map(|success| UnixMillis(success.time.0.as_millisecond()));
    if shown <= view.last_success {
        return Cow::Borrowed(view);
    }
    Cow::Owned(EndpointView {
        last_success: shown,
        ..view.clone()
    })
}

impl Object {
    fn meta(&self) -> (Option<&str>, u64) {
        let meta = match self {
            Object::Endpoint(object) => &object.metadata,
            Object::Subscription(object) => &object.metadata,
        };
        (meta.uid.as_deref(), number(meta.resource_version.as_deref()))
    }

    /// Whether the controller has not looked at it yet. What its Secret is then is not known, and soon to change.
    fn is_unseen(&self) -> bool {
        let observed = match self {
            Object::Endpoint(object) => object.status.as_ref().and_then(|status| status.observed_generation),
            Object::Subscription(object) => object.status.as_ref().and_then(|status| status.observed_generation),
        };
        is_unseen(observed)
    }

    /// Whether the controller waits for us to load a new endpoint: what we lack of it then is on its way.
    fn is_being_loaded(&self) -> bool {
        let Object::Endpoint(object) = self else { return false };
        let conditions = object.status.as_ref().map(|status| status.conditions.as_slice());
        let has = |type_: &str, status: Option<&str>| {
            let mut all = conditions.unwrap_or_default().iter();
            all.any(|c| c.type_ == type_ && status.is_none_or(|status| c.status == status))
        };
        has(READY, Some(UNKNOWN)) && !has(DELIVERING, None)
    }

    fn is_later_form_of(&self, watched: &Object) -> bool {
        let ((uid, version), (watched_uid, watched_version)) = (self.meta(), watched.meta());
        uid == watched_uid && version > watched_version
    }
}

async fn write(tools: Arc<Tools>, id: Id, dirty: Dirty, wanted: Wanted) -> Done {
    let result = match &wanted.object {
        Object::Endpoint(endpoint) => {
            let written = put(&tools, endpoint.as_ref(), &wanted.change.own)
                .await
                .map(|o| Object::Endpoint(Arc::new(o)));
            if let (Ok(_), Some(happening)) = (&written, &wanted.change.happening) {
                tell(&tools, endpoint, happening).await;
            }
            written
        }
        Object::Subscription(subscription) => put(&tools, subscription.as_ref(), &wanted.change.own)
            .await
            .map(|o| Object::Subscription(Arc::new(o))),
    };
    Done {
        id,
        urgent: dirty.urgent,
        tried: dirty.tried,
        tells: wanted.change.happening.is_some(),
        result,
    }
}

async fn put<K>(tools: &Tools, object: &K, own: &Value) -> Result<K, Miss>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + serde::de::DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(tools.client.clone(), &namespace);
    match apply(&api, DISPATCHER, object, own).await {
        Ok(Written::Applied(mut object)) => {
            slim(&mut *object);
            tools.metrics.wrote("Status", "Applied");
            Ok(*object)
        }
        Ok(Written::Outdated) => {
            tools.metrics.wrote("Status", "Outdated");
            Err(Miss::Outdated)
        }
        Err(error) => {
            tools.metrics.wrote("Status", "Failed");
            tracing::warn!(namespace, name = object.name_any(), %error, "failed to write status");
            Err(match error.code() {
                Some(_) => Miss::Refused,
                None => Miss::Unanswered,
            })
        }
    }
}

async fn tell(tools: &Tools, endpoint: &WebhookEndpoint, happening: &Happening) {
    match publish(&tools.client, &tools.reporter, endpoint.object_ref(&()), happening).await {
        Ok(()) => tools.metrics.wrote("Event", "Applied"),
        Err(error) => {
            tools.metrics.wrote("Event", "Failed");
            tracing::warn!(name = endpoint.name_any(), %error, "failed to create an Event");
        }
    }
}

/// Time without a pause.
struct Slice(Instant);

impl Slice {
    fn new() -> Slice {
        Slice(Instant::now())
    }

    /// Lets others go first, once it has been used up.
    async fn pause(&mut self) {
        if self.0.elapsed() >= SLICE {
            tokio::task::yield_now().await;
            self.0 = Instant::now();
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use kube::client::Body;
    use prometheus_client::registry::Registry;

    use super::super::plan::{INTERVAL, OVERTAKEN_GAP, RATE};
    use super::*;
    use crate::api::status::LastSuccess;
    use crate::ids::EndpointId;

    const ID: EndpointId = EndpointId(1);

    fn view(delivering: Delivering) -> EndpointView {
        EndpointView {
            generation: Some(1),
            delivering,
            message: String::new(),
            signing: None,
            agreement: None,
            pending: 0,
            oldest_pending: None,
            dead_lettered: 0,
            held: 0,
            blocked_keys: 0,
            consecutive_failures: 0,
            failing_since: None,
            last_status: Some(200),
            last_success: None,
            last_failure: None,
            next_try: None,
            retry: None,
            recent_failures: Vec::new(),
            handled_enable_request: None,
        }
    }

    #[test]
    fn the_time_of_the_last_success_never_goes_back() {
        let at = |text: &str| UnixMillis(text.parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_millisecond());
        let view = |last_success| EndpointView {
            last_success,
            ..view(Delivering::Succeeding)
        };
        let (old, shown, new) = (
            at("2026-01-01T00:00:00Z"),
            at("2026-01-01T00:00:05Z"),
            at("2026-01-01T00:00:05.5Z"),
        );
        let status = EndpointDelivery {
            last_success: Some(LastSuccess {
                time: serde_json::from_value("2026-01-01T00:00:05Z".into()).unwrap(),
            }),
            ..EndpointDelivery::default()
        };
        for (known, told) in [(None, shown), (Some(old), shown), (Some(new), new)] {
            assert_eq!(not_before_shown(&view(known), Some(&status)).last_success, Some(told));
        }
        assert_eq!(not_before_shown(&view(None), None).last_success, None);
    }

    #[test]
    fn a_subscription_s_status_of_a_process_before_is_mended_and_keeps_what_only_that_one_knew() {
        let subscription = |delivery: Option<Value>| -> EventSubscription {
            let mut status = json!({"observedGeneration": 1});
            if let Some(delivery) = delivery {
                status["delivery"] = delivery;
            }
            serde_json::from_value(json!({
                "apiVersion": "tidings.dev/v1alpha1",
                "kind": "EventSubscription",
                "metadata": {"name": "leads", "namespace": "team", "uid": "u", "generation": 1, "resourceVersion": "1"},
                "spec": {"endpointRef": {"name": "crm"}, "eventTypes": ["*"]},
                "status": status,
            }))
            .unwrap()
        };
        let (nothing, now) = (SubscriptionView::default(), UnixMillis(0));
        assert!(wanted_subscription(&nothing, &subscription(None), now).is_none());
        let news = SubscriptionView {
            is_news: true,
            ..SubscriptionView::default()
        };
        let change = wanted_subscription(&news, &subscription(None), now).unwrap();
        assert_eq!(change.own["delivery"]["pending"], 0, "all that came has been delivered");
        let over = json!({"pending": 3, "deadLettered": 0});
        let change = wanted_subscription(&nothing, &subscription(Some(over)), now).unwrap();
        assert_eq!(change.own["delivery"]["pending"], 0);
        assert!(change.is_overtaken);

        let last = json!({"time": "2026-01-01T00:00:00Z", "reason": "Exhausted"});
        let dead = subscription(Some(json!({"pending": 0, "deadLettered": 12, "lastDeadLetter": last})));
        let view = |dead_lettered| SubscriptionView {
            dead_lettered,
            ..SubscriptionView::default()
        };
        assert!(wanted_subscription(&view(12), &dead, now).is_none());
        let more = wanted_subscription(&view(13), &dead, now).unwrap();
        assert_eq!(more.own["delivery"]["lastDeadLetter"], last);
        let gone = wanted_subscription(&view(0), &dead, now).unwrap();
        assert_eq!(gone.own["delivery"]["lastDeadLetter"], Value::Null);

        let mut failing = subscription(Some(json!({"pending": 0, "deadLettered": 0})));
        let told = |is_filter_told| SubscriptionView {
            is_filter_told,
            ..SubscriptionView::default()
        };
        for (generation, is_kept) in [(1, true), (0, false)] {
            let condition = json!({
                "type": FILTER_FAILING, "status": "True", "reason": "EvaluationFailed", "message": "there is no score",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": generation,
            });
            failing.status.as_mut().unwrap().conditions = vec![serde_json::from_value(condition).unwrap()];
            let before_an_event = wanted_subscription(&told(false), &failing, now);
            assert_eq!(
                before_an_event.is_none(),
                is_kept,
                "what a process before found of this filter holds"
            );
            assert!(wanted_subscription(&told(true), &failing, now).is_some());
        }
    }

    /// What was applied, and the means to answer.
    type Asked = (Value, tokio::sync::oneshot::Sender<Value>);

    /// An API server that answers when it is told to; an Event at once.
    fn api_server() -> (Client, tokio::sync::mpsc::UnboundedReceiver<Asked>) {
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel::<Asked>();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let ask = ask.clone();
            async move {
                let is_event = request.method() == http::Method::POST;
                let body = request.into_body().collect_bytes().await.unwrap();
                if is_event {
                    return Ok(http::Response::new(Body::from(body)));
                }
                let (answer, answered) = tokio::sync::oneshot::channel();
                ask.send((serde_json::from_slice(&body).unwrap(), answer)).unwrap();
                let object = answered.await.unwrap().to_string();
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(object.into_bytes())))
            }
        });
        (Client::new(service, "team"), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_shown_before_and_is_so_again_is_written_though_another_status_was_being_written_meanwhile() {
        let endpoint = |version: u32, mut status: Value| {
            status["observedGeneration"] = 1.into();
            json!({
                "apiVersion": "tidings.dev/v1alpha1",
                "kind": "WebhookEndpoint",
                "metadata": {
                    "name": "crm", "namespace": "team", "uid": "u", "generation": 1, "resourceVersion": version.to_string(),
                },
                "spec": {"url": "https://example.com/"},
                "status": status,
            })
        };
        let waiting = |pending| EndpointView {
            pending,
            ..view(Delivering::Succeeding)
        };
        let (client, mut asked) = api_server();
        let board = Arc::new(Board::default());
        let unwritten = serde_json::from_value(endpoint(1, json!({}))).unwrap();
        let writer = Writer::new(Tools {
            client,
            board: board.clone(),
            objects: Arc::new(Objects::of_endpoint(ID, unwritten)),
            reporter: Reporter {
                controller: "tidings.dev/dispatcher",
                instance: "one".into(),
            },
            metrics: Metrics::new(&mut Registry::default()),
            writes_per_second: RATE,
        });
        let shutdown = CancellationToken::new();
        let run = tokio::spawn(writer.run(shutdown.clone()));

        let mut written = async |pending, version, within| {
            let within = within + Duration::from_secs(1);
            let (applied, answer) = tokio::time::timeout(within, asked.recv()).await.unwrap().unwrap();
            assert_eq!(applied["status"]["delivery"]["pending"], pending);
            // Another view is posted while there is no answer yet.
            if pending == 5 {
                board.post_endpoint(ID, waiting(0), false);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer.send(endpoint(version, applied["status"].clone())).unwrap();
        };
        board.post_endpoint(ID, waiting(0), false);
        written(0, 2, INTERVAL).await;
        board.post_endpoint(ID, waiting(5), false);
        written(5, 3, INTERVAL).await;
        written(0, 4, OVERTAKEN_GAP).await;
        let more = tokio::time::timeout(INTERVAL * 3, asked.recv()).await;
        assert!(more.is_err(), "what is unchanged is not written: {more:?}");
        shutdown.cancel();
        run.await.unwrap();
    }
}
