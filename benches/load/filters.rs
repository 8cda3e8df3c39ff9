//! What matching costs an event where many subscriptions are loaded, and where many filter: the code that ingest runs between
//! a parsed event and the store, over a registry as the watches fill it. In this process, without a cluster.
//!
//! Invariant: what is compared differs in how much is loaded and in nothing else: as many subscriptions look at an event, and
//! as many take it, on both sides. Their rounds take turns, so that what else the machine does meets both.

use std::cell::Cell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tidings::api::EventSubscription;
use tidings::api::resolve::resolve_subscription;
use tidings::event::Event;
use tidings::ids::{EndpointId, SubscriptionId, UnixMillis};
use tidings::ingest::Metrics;
use tidings::ingest::accept::{self, Acceptance};
use tidings::matching::Index;
use tidings::queue::ResourceKey;
use tidings::registry::{NamespaceView, Registry, SubscriptionEntry};

use crate::table::{Section, Target};
use crate::{machine, say, schema};

/// Namespaces of the large worlds.
const NAMESPACES: usize = 1_000;
/// Subscriptions of each of them.
const EACH: usize = 100;
/// Subscriptions that filter events of one type and source: one look-up finds them.
const GROUP: usize = 5;
/// Candidates of the namespace in which all subscriptions want the same type: as many as may filter one event.
const CANDIDATES: usize = 1_000;
/// Every n-th filter passes.
const PASSES: usize = 5;
/// Rounds, of which the median counts.
const ROUNDS: usize = 15;
/// Events of a round; of one where every event meets all candidates.
const EVENTS: usize = 4_000;
const EVENTS_OF_MANY: usize = 100;

/// Measures.
pub fn run() -> Result<Section> {
    // As in the dispatcher: what is heavy looks for a runtime's workers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
    runtime.block_on(async { measure() })
}

fn measure() -> Result<Section> {
    say("events against 100,000 subscriptions in 1,000 namespaces");
    let resident = || machine::resident_mib(std::process::id());
    let before = resident();
    let began = Instant::now();
    let whole = World::new(NAMESPACES, EACH, GROUP, true)?;
    let loading = began.elapsed();
    let memory = resident() - before;
    let part = World::new(NAMESPACES / EACH, EACH, GROUP, true)?;
    let [alone, among] = [(1, 1), (EACH, 1)].map(|(each, group)| World::new(NAMESPACES, each, group, true));
    let (alone, among) = (alone?, among?);
    let many = World::new(1, CANDIDATES, CANDIDATES, true)?;
    let plain = World::new(NAMESPACES, EACH, 1, false)?;

    let worlds = [&part, &whole, &alone, &among, &plain, &many];
    let mut took = vec![Vec::with_capacity(ROUNDS); worlds.len()];
    for round in 0..=ROUNDS {
        for (world, took) in worlds.iter().zip(&mut took) {
            let time = world.round(round)?;
            // The first fills caches.
            if round > 0 {
                took.push(time.as_secs_f64() * 1e6);
            }
        }
    }
    let ratio = |of: usize, to: usize| median(took[of].iter().zip(&took[to]).map(|(a, b)| a / b));
    let micros = |of: usize| median(took[of].iter().copied());

    let mut section = Section::new("filters", "an event of 1 KiB matched against subscriptions that filter");
    section.note("part", "5 candidates; 10 namespaces of 100", micros(0), "us");
    section.note("whole", "5 candidates; 1,000 namespaces of 100", micros(1), "us");
    let target = Some(Target::AtMost(1.5));
    section.line(
        "namespaces",
        "100,000 to 1,000, the same of a namespace",
        ratio(1, 0),
        "",
        target,
    );
    section.note("alone", "1 candidate; 1,000 namespaces of 1", micros(2), "us");
    section.note("among", "1 candidate; 1,000 namespaces of 100", micros(3), "us");
    section.line(
        "subscriptions",
        "100,000 to 1,000, the same namespaces",
        ratio(3, 2),
        "",
        target,
    );
    section.note("plain", "the same without a filter", micros(4), "us");
    let target = Some(Target::AtMost(2.0));
    section.line(
        "candidates",
        "1,000 candidates in one namespace",
        micros(5) / 1e3,
        "ms",
        target,
    );
    section.note("memory", "memory of 100,000 loaded, each its own filter", memory, "MiB");
    section.note("loading", "to load them: filters, indexes", loading.as_secs_f64(), "s");
    Ok(section)
}

/// Namespaces as ingest finds them, and events for them.
struct World {
    registry: Registry,
    names: Vec<String>,
    /// One for each type that is wanted.
    events: Vec<Event>,
    metrics: Metrics,
    /// Messages that each event makes.
    takes: usize,
    /// Events of a round.
    round: usize,
}

impl World {
    /// `each` subscriptions in every namespace, of which `group` want each type.
    fn new(namespaces: usize, each: usize, group: usize, filtered: bool) -> Result<World> {
        let (registry, _changes) = Registry::new(1);
        let names: Vec<String> = (0..namespaces).map(|n| format!("team-{n}")).collect();
        let mut views = Vec::with_capacity(namespaces);
        for (n, name) in names.iter().enumerate() {
            let entries = (0..each).map(|i| subscription(&registry, name, n * each + i, i, group, filtered));
            let entries: Vec<Arc<SubscriptionEntry>> = entries.collect::<Result<_>>()?;
            let view = NamespaceView {
                uid: format!("uid-of-{name}").into(),
                subscriptions: Arc::new(Index::new(entries.into_iter().map(|entry| (entry.spec.clone(), entry)))),
                pulled: Arc::default(),
                types: Arc::new(HashMap::new()),
                rules: Arc::default(),
            };
            views.push((name.clone(), Some(view)));
        }
        registry.put_namespaces(views);
        let data = schema::data()?;
        Ok(World {
            registry,
            names,
            events: (0..each / group).map(|of| event(of, &data)).collect(),
            metrics: Metrics::default(),
            takes: if filtered { group.div_ceil(PASSES) } else { group },
            round: if group < CANDIDATES { EVENTS } else { EVENTS_OF_MANY },
        })
    }

    /// What an event costs on average, over events for namespaces in no order.
    fn round(&self, round: usize) -> Result<Duration> {
        let acceptance = Acceptance {
            at: UnixMillis::now(),
            traces: &[],
        };
        let (mut made, failing) = (0, Cell::new(None));
        let begin = Instant::now();
        for n in 0..self.round {
            let at = scattered((round * self.round + n) as u64);
            let name = &self.names[at % self.names.len()];
            let event = &self.events[at / self.names.len() % self.events.len()];
            let view = self.registry.namespace(name).context("a namespace that is loaded")?;
            let events = std::slice::from_ref(black_box(event));
            let placed = accept::place(&view, events, &self.metrics, &acceptance, |entry| {
                failing.set(failing.take().or(entry.filter_health.failing()));
            });
            made += black_box(placed).messages();
        }
        let took = begin.elapsed();
        ensure!(
            made == self.round * self.takes,
            "{made} messages of {} events",
            self.round
        );
        let failing = failing.take();
        ensure!(failing.is_none(), "a filter failed: {failing:?}");
        Ok(took / u32::try_from(self.round)?)
    }
}

/// One of a namespace, as it is loaded from a manifest: an exact type, a prefix or a source of its own, and a filter that no
/// other has.
fn subscription(
    registry: &Registry,
    namespace: &str,
    id: usize,
    at: usize,
    group: usize,
    filtered: bool,
) -> Result<Arc<SubscriptionEntry>> {
    let of = at / group;
    let mut spec = json!({"endpointRef": {"name": format!("crm-{}", at % 10)}, "eventTypes": [type_of(of)]});
    match at % group {
        3 => spec["eventTypes"] = json!([format!("lead{of}.*")]),
        4 => spec["sources"] = json!(["/agents/chat", "/agents/voice"]),
        _ => {}
    }
    if filtered {
        // The event's is 87.
        let score = if (at % group).is_multiple_of(PASSES) { 50 } else { 90 };
        spec["filter"] = Value::from(format!(
            "event.source.startsWith('/agents/') && event.data.conversation.channel in ['phone', 'chat'] \
             && event.data.lead.company != 'c{id}' && event.data.lead.score >= {score}"
        ));
    }
    let manifest = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
        "metadata": {"name": format!("s-{at}"), "namespace": namespace, "generation": 1}, "spec": spec});
    let manifest: EventSubscription = serde_json::from_value(manifest)?;
    let spec = resolve_subscription(&manifest).map_err(|error| anyhow::anyhow!("{}", error.message))?;
    let id = u32::try_from(id)?;
    let endpoint = EndpointId(id);
    let gauge = registry.gauge(endpoint);
    gauge.give(i64::MAX / 2);
    Ok(Arc::new(SubscriptionEntry {
        id: SubscriptionId(id),
        key: ResourceKey {
            namespace_uid: format!("uid-of-{namespace}"),
            name: spec.name.clone(),
        },
        endpoint,
        endpoint_gauge: gauge,
        endpoint_order: registry.order(endpoint),
        spec: Arc::new(spec),
        filter_health: Arc::default(),
        material: Default::default(),
        dead_letter: None,
        mailbox: None,
        deleted: None,
    }))
}

fn type_of(of: usize) -> String {
    format!("lead{of}.qualified")
}

fn event(of: usize, data: &Value) -> Event {
    Event {
        r#type: type_of(of),
        source: "/agents/voice".into(),
        ..schema::event(data)
    }
}

/// Numbers in an order that nothing foresees (splitmix64).
fn scattered(n: u64) -> usize {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) as u32 as usize
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
