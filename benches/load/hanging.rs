//! Twenty healthy endpoints beside a thousand that hang: all of them at once, at full flow, and from their first message on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::ledger::{Latencies, Ledger, Span};
use crate::producer::{self, Load, Target as Ingest};
use crate::receiver::{Behaviour, Inbox, Receiver};
use crate::stage::Stage;
use crate::table::{Section, Target};
use crate::wire::Template;
use crate::{account, await_arrivals, say};

const HEALTHY: usize = 20;
const HANGING: usize = 1_000;
/// Endpoints that get one event together.
const TOGETHER: usize = 25;
/// Events a second to each healthy endpoint.
const RATE: f64 = 10.0;
/// And to each that hangs, once all of them have had their first. Little: what is measured is that they hang, and not what it costs to
/// store messages for a thousand endpoints, which is the same where they are well.
const BAD_RATE: f64 = 0.2;
/// Rounds of each way to begin; the median counts: the p99 of some thousand latencies alone is a fifth higher or lower from one
/// run to the next.
const ROUNDS: usize = 3;
/// How long alone; how long beside those that will hang while they are well; and how long they hang.
const ALONE: f64 = 20.0;
const WELL: f64 = 20.0;
const BESIDE: f64 = 30.0;
/// The first requests of a process are its slowest.
const WARM: f64 = 4.0;
/// The time in which what hangs is found out.
const FIRST: Duration = Duration::from_secs(1);
/// The time that is shown by itself.
const SOON: Duration = Duration::from_secs(10);
/// Longer than anything here.
const LONG: Duration = Duration::from_secs(3_600);
const EVENTS: usize = 200_000;

fn healthy_type(n: usize) -> String {
    format!("bench.healthy.{n}")
}

fn hanging_type(group: usize) -> String {
    format!("bench.hanging.{group}")
}

/// When they begin to hang.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Under load, all at once.
    AtOnce,
    /// With their first message.
    FromTheStart,
}

impl Begin {
    fn how(self) -> &'static str {
        match self {
            Begin::AtOnce => "all at once",
            Begin::FromTheStart => "from the start",
        }
    }
}

/// What was measured when.
struct Round {
    alone: Span,
    /// Beside them while they are well.
    well: Option<Span>,
    beside: Span,
}

/// Measures; one section for each way to begin.
pub fn run(stage: &Stage<'_>) -> Result<Vec<Section>> {
    let (inbox, bad_inbox) = (Inbox::new(EVENTS), Inbox::new(EVENTS));
    let healthy = Receiver::start(&stage.certificate()?, Behaviour::Accept, inbox.clone())?;
    let bad = Receiver::start(&stage.certificate()?, Behaviour::Turn, bad_inbox.clone())?;
    let groups = HANGING / TOGETHER;
    let types: Vec<String> = (0..HEALTHY)
        .map(healthy_type)
        .chain((0..groups).map(hanging_type))
        .collect();
    let all: Vec<&str> = types.iter().map(String::as_str).collect();
    let team = stage.team("bench-hanging", &all)?;
    let (mut at_once, mut from_the_start) = (Vec::new(), Vec::new());
    for round in 0..2 * ROUNDS {
        let begin = [Begin::AtOnce, Begin::FromTheStart][round % 2];
        // With a store of its own: nothing is known of any endpoint.
        let dispatcher = stage.dispatcher(&format!("hanging-{round}"))?;
        if round == 0 {
            say(&format!(
                "applying {HEALTHY} healthy endpoints and {HANGING} that will hang"
            ));
            let well = (0..HEALTHY).map(|n| (format!("healthy-{n}"), healthy_type(n), healthy.url()));
            let ill = (0..HANGING).map(|n| (format!("hanging-{n}"), hanging_type(n / TOGETHER), bad.url()));
            team.deliver_many(well.chain(ill), &json!({"signing": {"scheme": "None"}}))?;
        }
        let (ingest, bad_ingest) = (
            Ingest::new(dispatcher.ingest_port, &inbox),
            Ingest::new(dispatcher.ingest_port, &bad_inbox),
        );
        let door = team.door(&dispatcher);
        let (healthy_types, bad_types) = types.split_at(HEALTHY);
        // Producers that know nothing of each other: their clocks are spread over a period, not all at one instant.
        let load = |begin: Instant, types: &[String], ingest, rate: f64, seconds| -> Result<Vec<Load>> {
            let apart = Duration::from_secs_f64(1.0 / (rate * types.len() as f64));
            let clocks = (0..).map(|n| begin + apart * n);
            let load_of = |(name, begin): (&String, _)| {
                producer::open_loop_from(begin, ingest, &Template::one(&door, name), rate, seconds)
            };
            types.iter().zip(clocks).map(load_of).collect()
        };
        // To all of them within the first second, and then now and again.
        let bad_load = |seconds: f64| -> Result<Vec<Load>> {
            let (begin, first) = (producer::soon(), FIRST.as_secs_f64());
            let mut loads = load(begin, bad_types, &bad_ingest, 1.0 / first, first)?;
            loads.extend(load(begin + FIRST, bad_types, &bad_ingest, BAD_RATE, seconds - first)?);
            Ok(loads)
        };
        let phase = |seconds| -> Result<Span> {
            let from = Instant::now();
            let loads = load(producer::soon(), healthy_types, &ingest, RATE, seconds)?;
            loads.into_iter().try_for_each(Load::wait)?;
            Ok(Span {
                from,
                until: Instant::now(),
            })
        };
        phase(WARM)?;
        let giving_way = stage.control_plane_gives_way();
        say(&format!(
            "round {} of {ROUNDS}, {}: the healthy ones alone",
            round / 2 + 1,
            begin.how()
        ));
        let alone = phase(ALONE)?;
        let mut well = None;
        if begin == Begin::AtOnce {
            say("beside those that will hang");
            bad_inbox.turned.store(false, Ordering::Relaxed);
            let bad_load = bad_load(WELL)?;
            well = Some(phase(WELL)?);
            bad_load.into_iter().try_for_each(Load::wait)?;
        }
        say("beside those that hang");
        bad_inbox.turned.store(true, Ordering::Relaxed);
        let bad_load = bad_load(BESIDE)?;
        let beside = phase(BESIDE)?;
        bad_load.into_iter().try_for_each(Load::wait)?;
        drop(giving_way);
        await_arrivals(&inbox)?;
        let rounds = match begin {
            Begin::AtOnce => &mut at_once,
            Begin::FromTheStart => &mut from_the_start,
        };
        rounds.push(Round { alone, well, beside });
    }
    let mut last = section(Begin::FromTheStart, &inbox.ledger, &from_the_start);
    account(&mut last, &inbox, &Ingest::new(0, &inbox));
    Ok(vec![section(Begin::AtOnce, &inbox.ledger, &at_once), last])
}

fn section(begin: Begin, ledger: &Ledger, rounds: &[Round]) -> Section {
    let key = match begin {
        Begin::AtOnce => "hangAtOnce",
        Begin::FromTheStart => "hangFromTheStart",
    };
    let heading = format!(
        "{HEALTHY} healthy endpoints at {RATE}/s each, beside {HANGING} that hang, {}; {ROUNDS} rounds",
        begin.how()
    );
    let mut section = Section::new(key, heading);
    let part = |of: Span, from: Duration, until: Duration| Span {
        from: of.from + from,
        until: of.until.min(of.from + until),
    };
    let after = |of: Span| part(of, FIRST, LONG);
    let mut pooled = |key, name, spans: &mut dyn Iterator<Item = Span>| {
        let all = Latencies::merged(spans.map(|span| ledger.end_to_end_latencies(span)));
        section.note(key, name, all.percentile(99.0), "ms");
    };
    let beside = || rounds.iter().map(|round| round.beside);
    pooled(
        "aloneP99",
        "end to end p99, alone",
        &mut rounds.iter().map(|round| round.alone),
    );
    if begin == Begin::AtOnce {
        let mut well = rounds.iter().filter_map(|round| round.well).map(after);
        pooled("wellP99", "p99, beside them before they hang", &mut well);
    }
    let mut first = beside().map(|span| part(span, Duration::ZERO, FIRST));
    pooled("firstSecondP99", "p99, the first second", &mut first);
    let mut soon = beside().map(|span| part(span, Duration::ZERO, SOON));
    pooled("firstTenP99", "p99, the first 10 s", &mut soon);
    pooled("afterP99", "p99, after the first second", &mut beside().map(after));
    let p99 = |span| ledger.end_to_end_latencies(span).percentile(99.0);
    let ratios = rounds.iter().map(|round| p99(after(round.beside)) / p99(round.alone));
    section.ratios("the latter to alone", ratios, Target::AtMost(1.2));
    section
}
