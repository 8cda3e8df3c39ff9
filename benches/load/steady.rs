//! Full load, then a quiet 200 events a second: throughput, CPU a message and latencies to one endpoint.

use std::time::{Duration, Instant};

use anyhow::Result;
use tidings_cluster::Dispatcher;

use crate::ledger::{Latencies, Span};
use crate::machine;
use crate::producer::{self, Target as Ingest};
use crate::receiver::{Behaviour, Inbox, Receiver};
use crate::stage::Stage;
use crate::table::{Section, Target};
use crate::wire::Template;
use crate::{Options, account, await_arrivals, say};

/// Keep-alive connections of the full load.
const CONNECTIONS: usize = 64;
/// Until the endpoint's limit has grown and caches are warm.
const WARM_UP: Duration = Duration::from_secs(4);
/// The quiet load.
const RATE: f64 = 200.0;
/// Room in the book for the fastest machine within a minute or two.
const EVENTS: usize = 8_000_000;
const TYPE: &str = "bench.steady";

/// CPU of everybody, at one moment.
struct Meter {
    dispatcher: Duration,
    bench: Duration,
    control_plane: Duration,
    machine: Duration,
}

impl Meter {
    fn read(stage: &Stage<'_>, dispatcher: &Dispatcher) -> Meter {
        Meter {
            dispatcher: machine::cpu(dispatcher.process.pid().unwrap_or(0)),
            bench: machine::cpu(std::process::id()),
            control_plane: stage.control_plane_cpu(),
            machine: machine::busy(),
        }
    }
}

/// Measures; one section for each load.
pub fn run(stage: &Stage<'_>, options: &Options) -> Result<Vec<Section>> {
    let inbox = Inbox::new(EVENTS);
    let receiver = Receiver::start(&stage.certificate()?, Behaviour::Accept, inbox.clone())?;
    let dispatcher = stage.dispatcher("steady")?;
    let team = stage.team("bench-steady", &[TYPE])?;
    team.deliver("receiver", TYPE, &receiver.url(), false)?;
    let _first = inbox.verifier.set(team.verifier("receiver")?);
    let template = Template::one(&team.door(&dispatcher), TYPE);
    let ingest = Ingest::new(dispatcher.ingest_port, &inbox);
    let pid = dispatcher.process.pid().unwrap_or(0);

    let length = Duration::from_secs(options.seconds);
    say(&format!(
        "full load: {CONNECTIONS} connections, {} s after {} s of warm-up",
        options.seconds,
        WARM_UP.as_secs()
    ));
    let load = producer::closed_loop(&ingest, &template, CONNECTIONS)?;
    std::thread::sleep(WARM_UP);
    machine::reset_peak(pid);
    let (from, before) = (Instant::now(), Meter::read(stage, &dispatcher));
    std::thread::sleep(length);
    let (until, after) = (Instant::now(), Meter::read(stage, &dispatcher));
    load.stop()?;
    let span = Span { from, until };
    await_arrivals(&inbox)?;
    let peak = machine::peak_mib(pid);

    say(&format!("open loop: {RATE} events a second, {} s", options.seconds));
    let quiet_from = Instant::now();
    producer::open_loop(&ingest, &template, RATE, options.seconds as f64)?.wait()?;
    let quiet = Span {
        from: quiet_from,
        until: Instant::now(),
    };
    await_arrivals(&inbox)?;

    let ledger = &inbox.ledger;
    let mut full = Section::new(
        "fullLoad",
        format!(
            "Full load: one event of 1 KiB a request, {CONNECTIONS} connections, closed loop, {:.0} s",
            span.seconds()
        ),
    );
    let (acked, arrived) = (ledger.acked_within(span), ledger.arrived_within(span));
    let least = Some(Target::AtLeast(12_000.0));
    full.line("in", "messages in", acked as f64 / span.seconds(), "/s", least);
    full.line("out", "messages out", arrived as f64 / span.seconds(), "/s", least);
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / arrived.max(1) as f64;
    let (dispatcher_cpu, bench_cpu) = (after.dispatcher - before.dispatcher, after.bench - before.bench);
    let control_plane = after.control_plane - before.control_plane;
    let ours = dispatcher_cpu + bench_cpu;
    full.line(
        "cpuDispatcher",
        "CPU a message, dispatcher",
        each(dispatcher_cpu),
        "us",
        Some(Target::AtMost(60.0)),
    );
    full.line(
        "cpuAllIn",
        "CPU a message, with producer and receiver",
        each(ours),
        "us",
        Some(Target::AtMost(100.0)),
    );
    full.note(
        "cpuControlPlane",
        "CPU a message, Kubernetes and controller beside",
        each(control_plane),
        "us",
    );
    let others = (after.machine - before.machine).saturating_sub(ours + control_plane);
    let share = others.as_secs_f64()
        / span.seconds()
        / std::thread::available_parallelism().map_or(1.0, |n| usize::from(n) as f64);
    full.note(
        "othersCpu",
        "the machine's CPU that others used meanwhile",
        share * 100.0,
        "%",
    );
    latencies(
        &mut full,
        Names::ACK,
        &ledger.ack_latencies(span),
        [Some(10.0), None, None],
    );
    latencies(
        &mut full,
        Names::END_TO_END,
        &ledger.end_to_end_latencies(span),
        [None; 3],
    );
    full.note("memoryPeak", "dispatcher's memory, peak", peak, "MiB");

    let mut slow = Section::new(
        "quiet",
        format!("{RATE} events a second, open loop, latency from the schedule"),
    );
    let end_to_end = ledger.end_to_end_latencies(quiet);
    slow.note("events", "events", end_to_end.len() as f64, "");
    latencies(&mut slow, Names::ACK, &ledger.ack_latencies(quiet), [None; 3]);
    latencies(&mut slow, Names::END_TO_END, &end_to_end, [Some(1.5), Some(4.0), None]);
    account(&mut slow, &inbox, &ingest);
    Ok(vec![full, slow])
}

/// What a latency is called.
struct Names {
    label: &'static str,
    keys: [&'static str; 3],
}

impl Names {
    const ACK: Names = Names {
        label: "202",
        keys: ["ackP50", "ackP99", "ackP999"],
    };
    const END_TO_END: Names = Names {
        label: "end to end",
        keys: ["endToEndP50", "endToEndP99", "endToEndP999"],
    };
}

fn latencies(section: &mut Section, names: Names, latencies: &Latencies, most: [Option<f64>; 3]) {
    for ((key, percent), most) in names.keys.into_iter().zip([50.0, 99.0, 99.9]).zip(most) {
        let label = format!("{} p{percent}", names.label);
        section.line(
            key,
            label,
            latencies.percentile(percent),
            "ms",
            most.map(Target::AtMost),
        );
    }
}
