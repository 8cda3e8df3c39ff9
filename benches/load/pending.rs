//! A backlog: what a million waiting messages cost in memory, and how soon after a kill the first of them is delivered.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::machine;
use crate::producer::{self, Target as Ingest};
use crate::receiver::{Behaviour, Inbox, Receiver};
use crate::stage::Stage;
use crate::table::{Section, Target};
use crate::wire::Template;
use crate::{Options, account, await_arrivals, say};

/// Events of a request while the store is filled.
const BATCH: usize = 100;
/// Connections that fill it.
const CONNECTIONS: usize = 4;
/// A dispatcher that delivers nothing for so long is not measured any further.
const PATIENCE: Duration = Duration::from_secs(60);
const TYPE: &str = "bench.pending";

/// Measures.
pub fn run(stage: &Stage<'_>, options: &Options) -> Result<Section> {
    let inbox = Inbox::new(options.pending as usize);
    let receiver = Receiver::start(&stage.certificate()?, Behaviour::Accept, inbox.clone())?;
    let mut dispatcher = stage.dispatcher("pending")?;
    let team = stage.team("bench-pending", &[TYPE])?;
    team.deliver("receiver", TYPE, &receiver.url(), true)?;
    let _first = inbox.verifier.set(team.verifier("receiver")?);
    let ingest = Ingest::new(dispatcher.ingest_port, &inbox);
    let template = Template::batch(&team.door(&dispatcher), TYPE, BATCH);
    let pid = |dispatcher: &tidings_cluster::Dispatcher| dispatcher.process.pid().unwrap_or(0);

    say(&format!("{} messages for a suspended endpoint", options.pending));
    let begin = Instant::now();
    producer::closed_loop(&ingest, &template, CONNECTIONS)?.wait()?;
    let filling = begin.elapsed();
    let (peak, resident) = (
        machine::peak_mib(pid(&dispatcher)),
        machine::resident_mib(pid(&dispatcher)),
    );

    say("kill -9, the endpoint resumed, a restart");
    dispatcher.kill9();
    team.resume("receiver")?;
    let begin = Instant::now();
    dispatcher.process.start_again()?;
    let first = loop {
        if let Some(at) = inbox.ledger.first_arrival() {
            break at.duration_since(begin);
        }
        if begin.elapsed() > PATIENCE {
            bail!("nothing was delivered within {PATIENCE:?} of the restart");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let delivering = Instant::now();
    await_arrivals(&inbox)?;
    let emptying = delivering.elapsed();

    let ledger = &inbox.ledger;
    let stored = ledger.reconcile().acknowledged as f64;
    let mut section = Section::new(
        "pending",
        format!(
            "{} messages of 1 KiB pending for one endpoint, then kill -9",
            options.pending
        ),
    );
    let most = Some(Target::AtMost(200.0));
    section.line(
        "memoryPeak",
        "dispatcher's memory while they are stored, peak",
        peak,
        "MiB",
        most,
    );
    section.note("memory", "dispatcher's memory with all of them stored", resident, "MiB");
    section.note(
        "stored",
        "stored in batches of 100",
        stored / filling.as_secs_f64(),
        "/s",
    );
    section.line(
        "firstDelivery",
        "from the restart to the first delivery",
        first.as_secs_f64(),
        "s",
        Some(Target::AtMost(2.0)),
    );
    section.note(
        "delivered",
        "delivered from the backlog",
        stored / emptying.as_secs_f64(),
        "/s",
    );
    section.line(
        "memoryAfter",
        "dispatcher's memory after the restart, peak",
        machine::peak_mib(pid(&dispatcher)),
        "MiB",
        most,
    );
    account(&mut section, &inbox, &ingest);
    Ok(section)
}
