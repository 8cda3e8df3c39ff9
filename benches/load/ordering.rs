//! What an order costs: the same load over a thousand keys, to an endpoint without an order and to one with it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::ledger::Span;
use crate::producer::{self, Target as Ingest};
use crate::receiver::{Behaviour, Inbox, Receiver};
use crate::stage::Stage;
use crate::table::{Section, Target};
use crate::wire::{KEYS, Template};
use crate::{Options, account, await_arrivals, say};

const CONNECTIONS: usize = 64;
/// Until the endpoint's limit has grown and caches are warm.
const WARM_UP: Duration = Duration::from_secs(4);
const EVENTS: usize = 4_000_000;
const TYPE: &str = "bench.ordered";

/// Messages a second out, and the account of one load.
struct Run {
    rate: f64,
    overtaken: usize,
    inbox: std::sync::Arc<Inbox>,
    ingest: std::sync::Arc<Ingest>,
}

/// Measures.
pub fn run(stage: &Stage<'_>, options: &Options) -> Result<Section> {
    let free = load(stage, options, "unordered", json!({}))?;
    let ordered = load(stage, options, "ordered", json!({"ordering": {"mode": "FIFO"}}))?;
    let mut section = Section::new(
        "ordering",
        format!("An order by {KEYS} keys: full load as above, to an endpoint without an order and to one with it"),
    );
    section.note("unordered", "messages out, without an order", free.rate, "/s");
    section.note("ordered", "messages out, in order", ordered.rate, "/s");
    let least = Some(Target::AtLeast(0.5));
    section.line("ratio", "in order to without", ordered.rate / free.rate, "", least);
    section.note("overtaken", "overtaken within their key", ordered.overtaken as f64, "");
    account(&mut section, &ordered.inbox, &ordered.ingest);
    section.lost += free.inbox.ledger.reconcile().lost + ordered.overtaken;
    Ok(section)
}

fn load(stage: &Stage<'_>, options: &Options, name: &str, spec: Value) -> Result<Run> {
    let inbox = Inbox::new(EVENTS);
    let receiver = Receiver::start(&stage.certificate()?, Behaviour::Accept, inbox.clone())?;
    let dispatcher = stage.dispatcher(name)?;
    let team = stage.team(&format!("bench-{name}"), &[TYPE])?;
    team.deliver_with("receiver", TYPE, &receiver.url(), spec)?;
    let _first = inbox.verifier.set(team.verifier("receiver")?);
    let template = Template::keyed(&team.door(&dispatcher), TYPE);
    let ingest = Ingest::new(dispatcher.ingest_port, &inbox);
    say(&format!("{name}: {CONNECTIONS} connections, {} s", options.seconds));
    let load = producer::closed_loop(&ingest, &template, CONNECTIONS)?;
    std::thread::sleep(WARM_UP);
    let from = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let span = Span {
        from,
        until: Instant::now(),
    };
    load.stop()?;
    await_arrivals(&inbox)?;
    Ok(Run {
        rate: inbox.ledger.arrived_within(span) as f64 / span.seconds(),
        overtaken: inbox.ledger.overtaken(KEYS),
        inbox,
        ingest,
    })
}
