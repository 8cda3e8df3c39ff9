//! Ingest: authenticate, authorise, parse, accept; from a producer to its 202.
//!
//! Events come by `POST /v1/namespaces/{namespace}/events`; what became of them is read beside it ([`messages`]), and so is
//! what waits for consumers ([`pull`]). Cheap
//! refusals come first: what does not depend on the body is decided before it is read, also who may publish where the head
//! tells the type. Invariant: 202 is written only after [`Queue::accept`] returned, which means durable.
//!
//! An unknown namespace is told after authentication and before authorisation: a cluster-wide grant would authorise it, and
//! the question would be asked of the API server for every made-up name.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::stream::{self, StreamExt, TryStreamExt};
use http::header::EXPECT;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::policy::UndeclaredTypes;
use crate::blocking::beside_the_worker;
use crate::clock::Clock;
use crate::engine::Consumed;
use crate::event::Event;
use crate::ids::UnixMillis;
use crate::kubernetes::scope::Scope;
use crate::queue::{Accepted, Queue, QueueError};
use crate::registry::{NamespaceView, Registry, SubscriptionEntry};

pub mod accept;
pub mod answer;
pub mod auth;
mod body;
pub mod declared;
mod jwks;
mod messages;
pub mod metrics;
pub mod pace;
pub mod parse;
mod places;
pub mod problem;
mod pull;
mod route;
mod serve;
pub mod trace;
mod unread;
mod whole;

pub use serve::{CONNECTIONS, GRACE, serve};

use crate::schema::{self, Fit, HEAVY, TypeRule};
use accept::Acceptance;
use answer::Told;
use auth::{Auth, Identity, Rule};
use body::{Bodies, Room};
use declared::Declarations;
use pace::{Pace, Refused};
use parse::{Events, Head, Mode};
use places::Places;
use problem::{EVENTS_PER_SECOND, OverQuota, Problem};
use route::{Route, route};
use trace::Publishing;
use unread::Answers;
use whole::Whole;

/// Questions to the API server about one batch at a time.
const GRANTS_AT_ONCE: usize = 8;
/// Requests at a time whose events take long to be checked: each has its events' values in memory, and a core.
const CHECKS: usize = 4;
/// Of them one namespace's.
const CHECKS_EACH: usize = 1;
/// Work of checking one request's events, as [`schema::TypeRule::work`] counts it: a second or two.
const CHECK_WORK: u64 = 400_000_000;

/// Everything a request needs.
pub struct Ingest {
    registry: Arc<Registry>,
    queue: Arc<dyn Queue>,
    auth: Auth,
    declarations: Declarations,
    scope: Scope,
    metrics: Arc<Metrics>,
    max_event: usize,
    pace: Pace,
    bodies: Bodies,
    answers: Answers,
    /// Looks at messages under way.
    looks: Places,
    /// Heavy checks under way.
    checks: Places,
    polls: pull::Polls,
    consumed: Consumed,
    /// Who waits for messages waits no longer.
    closing: CancellationToken,
    public_keys: jwks::PublicKeys,
    /// Accepts that must not be torn when a producer hangs up.
    accepts: TaskTracker,
    traces: Option<trace::Requests>,
    clock: Arc<Clock>,
}

pub use metrics::Metrics;

impl Ingest {
    /// `max_event` is the largest body of one event, capped at [`parse::LARGEST_MAX_EVENT`].
    pub fn new(
        registry: Arc<Registry>,
        queue: Arc<dyn Queue>,
        auth: Auth,
        declarations: Declarations,
        consumed: Consumed,
        max_event: usize,
        metrics: Arc<Metrics>,
    ) -> Ingest {
        Ingest {
            registry,
            queue,
            auth,
            declarations,
            scope: Scope::default(),
            metrics,
            max_event: max_event.clamp(1, parse::LARGEST_MAX_EVENT),
            pace: Pace::default(),
            bodies: Bodies::default(),
            answers: Answers::default(),
            looks: Places::of(messages::LOOKS, messages::LOOKS_EACH, Problem::too_many_reads),
            checks: Places::of(CHECKS, CHECKS_EACH, Problem::too_many_checks),
            polls: pull::Polls::default(),
            consumed,
            closing: CancellationToken::new(),
            public_keys: jwks::PublicKeys::default(),
            accepts: TaskTracker::new(),
            traces: None,
            clock: Arc::new(Clock::System),
        }
    }

    /// The same, and what it does is traced.
    pub fn traced(self, traces: Option<trace::Requests>) -> Ingest {
        Ingest { traces, ..self }
    }

    /// Takes events for these namespaces only.
    pub fn within(self, scope: Scope) -> Ingest {
        Ingest { scope, ..self }
    }

    /// By this clock, the engine's.
    pub fn timed_by(self, clock: Arc<Clock>) -> Ingest {
        Ingest { clock, ..self }
    }

    /// A namespace that exists, as it is loaded.
    fn namespace(&self, name: &str) -> Result<Arc<NamespaceView>, Problem> {
        self.registry.namespace(name).ok_or_else(|| match self.scope.has(name) {
            true => Problem::no_namespace(),
            false => Problem::not_watched(name),
        })
    }

    /// Waits until every accept begun has ended.
    async fn settled(&self) {
        self.accepts.close();
        self.accepts.wait().await;
    }

    /// Answers one request.
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let start = Instant::now();
        let (head, mut body) = request.into_parts();
        let mut publishing = self.traces.as_ref().and_then(|traces| traces.begin(&head));
        let handled = self.handle(&head, &mut body, publishing.as_deref_mut());
        let response = match handled.await {
            Ok(response) => response,
            Err(problem) => {
                if let Some(quota) = &problem.quota {
                    self.metrics.over_quota(quota.name);
                }
                // A producer that asked before sending has sent nothing yet.
                if !head.headers.contains_key(EXPECT) {
                    body::drain(&mut body).await;
                }
                problem.response()
            }
        };
        let (status, path) = (response.status(), head.uri.path());
        if let Some(publishing) = publishing {
            publishing.answered(status);
        }
        match head.method {
            Method::GET if path.ends_with("/pull") => self.metrics.pulled(status),
            Method::GET => self.metrics.looked(status),
            _ if path.ends_with("/ack") => self.metrics.acknowledged(status),
            _ => self.metrics.answered(status, start.elapsed()),
        }
        response
    }

    async fn handle(
        &self,
        head: &http::request::Parts,
        body: &mut Incoming,
        mut publishing: Option<&mut Publishing>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let (namespace, route) = route(&head.method, head.uri.path())?;
        if !self.registry.synced() {
            return Err(Problem::not_synced());
        }
        if route == Route::PublicKeys {
            return Ok(self.public_keys.answer(&self.registry, namespace));
        }
        let now = self.clock.now();
        let (identity, cached) = self.auth.authenticate(&head.headers, now).await?;
        let counter = if cached {
            &self.metrics.auth_hits
        } else {
            &self.metrics.auth_misses
        };
        counter.inc();
        let view = self.namespace(namespace)?;
        // Boxed: what these hold must not make every event's future larger.
        let query = head.uri.query();
        match route {
            Route::Events => {}
            Route::Pull(name) => {
                return Box::pin(self.pull(&identity, (namespace, name), &view, query)).await;
            }
            Route::Acknowledge(name) => {
                return Box::pin(self.acknowledge(&identity, (namespace, name), &view, head, body)).await;
            }
            _ => return Box::pin(self.look(&identity, namespace, &view, route, query)).await,
        }
        let mode = Mode::of(&head.headers)?;
        let request = Head {
            headers: &head.headers,
            query: head.uri.query(),
        };
        let announced = parse::announced_type(mode, request);
        if let Some(announced) = &announced {
            self.may_publish(&identity, namespace, announced).await?;
        }
        let limit = mode.limit(self.max_event);
        let (body, _room) = self.bodies.read(&identity, &head.headers, body, limit).await?;
        self.metrics.bytes.inc_by(body.len() as u64);
        let events = parse::parse(mode, request, body, self.max_event, random_id)?;
        if !matches!(&events, Events::One(event) if announced.as_deref() == Some(&event.r#type)) {
            self.authorise(&identity, namespace, events.as_slice()).await?;
        }
        self.pace(&view, &events, now)?;
        let view = self.declared(namespace, view, &events).await?;
        let fits = self.check(&view, &events).await?;
        // Before anything is stored: what is stored is answered for.
        let answer_room = self
            .answers
            .room(&identity, answer::at_most(events.as_slice(), &fits))
            .await?;
        let news = |subscription: &Arc<SubscriptionEntry>| {
            if !self.registry.filter_changed(subscription) {
                subscription.filter_health.not_told();
            }
        };
        // A block: what is in it must not make the future larger.
        let placed = {
            let traces = publishing.as_mut().map(|p| p.storing(namespace, &events));
            let acceptance = Acceptance {
                at: now,
                traces: traces.as_deref().unwrap_or_default(),
            };
            accept::place(&view, events.as_slice(), &self.metrics, &acceptance, news)
        };
        let (queue, metrics) = (self.queue.clone(), self.metrics.clone());
        let store = async move { accept::store(queue.as_ref(), &metrics, placed).await };
        // A panic is one request's 500, not the end of its connection.
        let stored = Whole::new(AssertUnwindSafe(store).catch_unwind(), &self.accepts).await;
        match stored {
            Ok(Ok(accepted)) => {
                if let Some(publishing) = publishing {
                    publishing.stored(&accepted);
                }
                Ok(told(&events, &accepted, fits, answer_room))
            }
            Ok(Err(err)) => {
                if !matches!(err, QueueError::OverQuota { .. } | QueueError::TooMany(_)) {
                    tracing::warn!(error = %err, "failed to accept events");
                }
                Err(Problem::from(&err))
            }
            Err(_panic) => {
                tracing::error!("the accept of an event ended abnormally");
                let detail = "the event may or may not have been stored: send it again with the same id";
                Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", detail))
            }
        }
    }

    async fn may_publish(&self, identity: &Identity, namespace: &str, event_type: &str) -> Result<(), Problem> {
        match self.auth.may(identity, namespace, Rule::publish(event_type)).await? {
            true => Ok(()),
            false => Err(Problem::may_not_publish(identity, namespace, event_type)),
        }
    }

    /// Every type of the request, or a refusal of all of it.
    async fn authorise(&self, identity: &Identity, namespace: &str, events: &[Event]) -> Result<(), Problem> {
        let ask = async |event_type: &str| self.may_publish(identity, namespace, event_type).await;
        if let [event] = events {
            return ask(&event.r#type).await;
        }
        let types: BTreeSet<&str> = events.iter().map(|event| event.r#type.as_str()).collect();
        stream::iter(types)
            .map(ask)
            .buffered(GRANTS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Counts the events against the namespace's quota, where it has one, whatever becomes of them.
    fn pace(&self, view: &NamespaceView, events: &Events, now: UnixMillis) -> Result<(), Problem> {
        let Some(limit) = view.rules.quotas.events_per_second else {
            return Ok(());
        };
        let events = events.as_slice().len();
        let taken = self.pace.take(&view.uid, limit, events, now);
        taken.map_err(|refused| match refused {
            Refused::Never => Problem::over_quota_for_ever(events, limit),
            Refused::Wait(wait) => {
                let quota = OverQuota {
                    name: EVENTS_PER_SECOND,
                    limit: limit.into(),
                };
                Problem::over_quota(quota, u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX))
            }
        })
    }

    /// Declared types: the warnings of each event, or a refusal of all of them.
    async fn check(&self, view: &NamespaceView, events: &Events) -> Result<Vec<Vec<schema::Violation>>, Problem> {
        let work = |event: &Event| rule_of(view, event).map_or(0, |rule| rule.work(event));
        let work: u64 = events.as_slice().iter().map(work).sum();
        if work > CHECK_WORK {
            return Err(Problem::too_much_to_check());
        }
        if work <= HEAVY {
            return check(view, events);
        }
        let _place = self.checks.take(&view.uid).await?;
        beside_the_worker(|| check(view, events))
    }

    /// Where the policy takes declared types only: the view that has all of them, or a refusal of the whole request.
    async fn declared(
        &self,
        namespace: &str,
        view: Arc<NamespaceView>,
        events: &Events,
    ) -> Result<Arc<NamespaceView>, Problem> {
        let missing = |view: &NamespaceView| {
            let mut events = events.as_slice().iter();
            events.position(|event| !view.types.contains_key(&event.r#type))
        };
        if view.rules.undeclared_types == UndeclaredTypes::Accept || missing(&view).is_none() {
            return Ok(view);
        }
        let in_batch = |position| matches!(events, Events::Batch(_)).then_some(position);
        for (position, event) in events.as_slice().iter().enumerate() {
            if !view.types.contains_key(&event.r#type) && !self.declarations.exists(namespace, &event.r#type).await? {
                return Err(Problem::undeclared(&event.r#type, namespace, in_batch(position)));
            }
        }
        // They were created a moment ago: what the watch has brought meanwhile counts.
        let view = self.namespace(namespace)?;
        match missing(&view) {
            Some(position) => Err(Problem::not_loaded(
                &events.as_slice()[position].r#type,
                in_batch(position),
            )),
            None => Ok(view),
        }
    }
}

/// The rule of an event's type, where it is declared.
fn rule_of<'a>(view: &'a NamespaceView, event: &Event) -> Option<&'a TypeRule> {
    view.types.get(&event.r#type)?.as_deref()
}

fn check(view: &NamespaceView, events: &Events) -> Result<Vec<Vec<schema::Violation>>, Problem> {
    let mut warnings = Vec::new();
    for (i, event) in events.as_slice().iter().enumerate() {
        match rule_of(view, event).map_or(Fit::Fits, |rule| rule.check(event)) {
            Fit::Fits => warnings.push(Vec::new()),
            Fit::Warned(violations) => warnings.push(violations),
            Fit::Rejected(violations) => {
                let position = matches!(events, Events::Batch(_)).then_some(i);
                return Err(Problem::does_not_fit(&event.r#type, position, violations));
            }
        }
    }
    Ok(warnings)
}

/// 202 if anything is new, else 200.
fn told(
    events: &Events,
    accepted: &[Accepted],
    warnings: Vec<Vec<schema::Violation>>,
    room: Room,
) -> Response<Full<Bytes>> {
    let told: Vec<Told<'_>> = events
        .as_slice()
        .iter()
        .zip(accepted)
        .zip(warnings)
        .map(|((event, accepted), warnings)| Told::new(event, *accepted, warnings))
        .collect();
    let new = told.iter().any(|told| !told.duplicate);
    let body = match events {
        Events::One(_) => answer::one(&told),
        Events::Batch(_) => answer::batch(&told),
    };
    let status = if new { StatusCode::ACCEPTED } else { StatusCode::OK };
    answer::response(status, unread::held(body, room))
}

/// 128 random bits in hexadecimal.
fn random_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}
