//! The load bench: the release dispatcher in a real Kubernetes, with a producer and an HTTPS receiver on the same machine.
//!
//! `cargo bench --bench load` runs every part and prints one table, the same as JSON under `target/bench/`;
//! `-- --only steady` (or `ordering`, `isolation`, `hanging`, `pending`, `scale`, `schema`, `filters`) runs one. `docs/benchmarks.md` has the method and a run.
//!
//! Owns the order of parts and the account of ids; every part is a file. Invariant: times never fail a run, a lost event
//! or a wrong signature always does.

mod filters;
mod hanging;
mod isolation;
mod ledger;
mod machine;
mod ordering;
mod pending;
mod producer;
mod receiver;
mod scale;
mod schema;
mod stage;
mod steady;
mod table;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tidings_cluster::Cluster;

use crate::machine::Machine;
use crate::producer::Target as Ingest;
use crate::receiver::Inbox;
use crate::stage::Stage;
use crate::table::Section;

/// As the dispatcher has it: parts that measure its code in this process allocate as it does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Without an arrival for so long what is outstanding is lost: longer than the longest backoff a healthy receiver meets.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Full load and 200 events a second
    Steady,
    /// A healthy endpoint beside bad ones
    Isolation,
    /// An endpoint that orders its messages by a thousand keys
    Ordering,
    /// Healthy endpoints beside a thousand that hang
    Hanging,
    /// A million messages pending, and a restart with them
    Pending,
    /// Ten thousand endpoints applied at once
    Scale,
    /// An event's data against a schema
    Schema,
    /// Events against many subscriptions that filter
    Filters,
}

impl Part {
    /// Whether it runs in this process alone.
    fn is_without_cluster(self) -> bool {
        matches!(self, Part::Schema | Part::Filters)
    }
}

/// Load against the release dispatcher, with a receiver on the same machine.
#[derive(Debug, Parser)]
struct Options {
    /// Run this part only; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// How long each load of the steady part is measured
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Messages of the pending part
    #[arg(long, default_value_t = 1_000_000)]
    pending: u32,
    /// Endpoints of the scale part
    #[arg(long, default_value_t = 10_000)]
    endpoints: usize,
    /// Where the stores lie, to measure another disk; by default the temporary directory
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("bench: {wrong} events were lost or wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<usize> {
    // An error means that a provider was chosen before.
    let _chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    // First of all, while the process's memory is its own.
    let filters = wanted(Part::Filters).then(filters::run).transpose()?;
    let schema = wanted(Part::Schema).then(schema::run).transpose()?;
    if !options.only.is_empty() && options.only.iter().all(|part| part.is_without_cluster()) {
        let temporary = std::env::temp_dir();
        let machine = Machine::look(options.data_dir.as_deref().unwrap_or(&temporary))?;
        return show(&machine, &schema.into_iter().chain(filters).collect::<Vec<_>>());
    }
    say("starting a Kubernetes of our own");
    let cluster = Cluster::start()?;
    let stage = Stage::set(&cluster, options.data_dir.as_deref())?;
    let machine = Machine::look(stage.data_dir())?;
    let mut sections = Vec::new();
    if wanted(Part::Steady) {
        sections.extend(steady::run(&stage, options)?);
    }
    if wanted(Part::Isolation) {
        sections.push(isolation::run(&stage)?);
    }
    if wanted(Part::Ordering) {
        sections.push(ordering::run(&stage, options)?);
    }
    if wanted(Part::Hanging) {
        sections.extend(hanging::run(&stage)?);
    }
    if wanted(Part::Pending) {
        sections.push(pending::run(&stage, options)?);
    }
    drop(stage);
    if wanted(Part::Scale) {
        sections.push(scale::run(options)?);
    }
    sections.extend(schema.into_iter().chain(filters));
    show(&machine, &sections)
}

/// Prints and writes what was measured; how many events were lost.
fn show(machine: &Machine, sections: &[Section]) -> Result<usize> {
    table::print(machine, sections);
    let path = table::write(machine, sections)?;
    println!("the same as JSON: {}", path.display());
    Ok(sections.iter().map(|section| section.lost).sum())
}

/// What happens now, for who waits.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// Waits until every acknowledged event has arrived, or nothing has for too long.
fn await_arrivals(inbox: &Inbox) -> Result<()> {
    let (mut before, mut since) = (usize::MAX, Instant::now());
    loop {
        let outstanding = inbox.ledger.outstanding();
        if outstanding == 0 {
            return Ok(());
        }
        if outstanding != before {
            (before, since) = (outstanding, Instant::now());
        }
        if since.elapsed() > SILENCE {
            say(&format!("{outstanding} acknowledged events do not arrive"));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Adds the account of every id to a section.
fn account(section: &mut Section, inbox: &Inbox, ingest: &Ingest) {
    let sum = inbox.ledger.reconcile();
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
    section.lost += sum.lost + count(&inbox.wrong);
    section.note(
        "acknowledged",
        "events acknowledged, every id looked up",
        sum.acknowledged as f64,
        "",
    );
    section.note("lost", "of them lost", sum.lost as f64, "");
    section.note("duplicates", "received more than once", sum.duplicates as f64, "");
    section.note("refused", "refused by ingest", count(&ingest.refused) as f64, "");
    section.note(
        "verified",
        "signatures verified (one in a thousand)",
        count(&inbox.verified) as f64,
        "",
    );
    section.note("wrong", "wrong signatures or contents", count(&inbox.wrong) as f64, "");
}
