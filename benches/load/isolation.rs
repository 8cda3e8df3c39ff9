//! A healthy endpoint alone, beside three bad ones, and alone again: what they cost it.
//!
//! Every round has bad endpoints of its own, so that each begins with what hurts most: a receiver that turns bad at full
//! flow, before any breaker is open.

use std::time::Instant;

use anyhow::Result;

use crate::ledger::{Latencies, Ledger, Span};
use crate::producer::{self, Load, Target as Ingest};
use crate::receiver::{Behaviour, Inbox, Receiver};
use crate::stage::Stage;
use crate::table::{Section, Target};
use crate::wire::Template;
use crate::{account, await_arrivals, say};

const ROUNDS: usize = 5;
/// Seconds of each of a round's three phases.
const SECONDS: f64 = 6.0;
/// Events a second to the healthy endpoint.
const RATE: f64 = 200.0;
/// Events a second to each bad one.
const BAD_RATE: f64 = 50.0;
const EVENTS: usize = 200_000;
const TYPE: &str = "bench.healthy";
const BAD: [(&str, Behaviour); 3] = [
    ("hang", Behaviour::Hang),
    ("reset", Behaviour::Reset),
    ("fail", Behaviour::Fail),
];

fn bad_type(name: &str, round: usize) -> String {
    format!("bench.{name}.{round}")
}

/// Measures.
pub fn run(stage: &Stage<'_>) -> Result<Section> {
    let (inbox, bad_inbox) = (Inbox::new(EVENTS), Inbox::new(EVENTS));
    let healthy = Receiver::start(&stage.certificate()?, Behaviour::Accept, inbox.clone())?;
    let dispatcher = stage.dispatcher("isolation")?;
    let rounds = || (0..ROUNDS).flat_map(|round| BAD.iter().map(move |(name, _)| (*name, round)));
    let types: Vec<String> = rounds().map(|(name, round)| bad_type(name, round)).collect();
    let mut all: Vec<&str> = types.iter().map(String::as_str).collect();
    all.push(TYPE);
    let team = stage.team("bench-isolation", &all)?;
    say("applying a healthy endpoint and the bad ones of each round");
    team.deliver("healthy", TYPE, &healthy.url(), false)?;
    let _first = inbox.verifier.set(team.verifier("healthy")?);
    let mut receivers = Vec::new();
    for (name, behaviour) in BAD {
        let receiver = Receiver::start(&stage.certificate()?, behaviour, bad_inbox.clone())?;
        for round in 0..ROUNDS {
            team.deliver(
                &format!("{name}-{round}"),
                &bad_type(name, round),
                &receiver.url(),
                false,
            )?;
        }
        receivers.push(receiver);
    }

    let door = team.door(&dispatcher);
    let ingest = Ingest::new(dispatcher.ingest_port, &inbox);
    let bad_ingest = Ingest::new(dispatcher.ingest_port, &bad_inbox);
    let template = Template::one(&door, TYPE);
    let phase = || -> Result<Span> {
        let from = Instant::now();
        producer::open_loop(&ingest, &template, RATE, SECONDS)?.wait()?;
        Ok(Span {
            from,
            until: Instant::now(),
        })
    };
    let _giving_way = stage.control_plane_gives_way();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    // The first requests of a process are its slowest.
    phase()?;
    for round in 0..ROUNDS {
        say(&format!(
            "isolation, round {} of {ROUNDS}: alone, beside, alone",
            round + 1
        ));
        alone.push(phase()?);
        let loads: Vec<Load> = BAD
            .iter()
            .map(|(name, _)| {
                let template = Template::one(&door, &bad_type(name, round));
                producer::open_loop(&bad_ingest, &template, BAD_RATE, SECONDS)
            })
            .collect::<Result<_>>()?;
        beside.push(phase()?);
        loads.into_iter().try_for_each(Load::wait)?;
        alone.push(phase()?);
    }
    await_arrivals(&inbox)?;

    let ledger = &inbox.ledger;
    let mut section = Section::new(
        "isolation",
        format!(
            "A healthy endpoint at {RATE}/s, alone and beside one that hangs, one that resets, one that answers 500 ({BAD_RATE}/s each)"
        ),
    );
    let (lonely, accompanied) = (pooled(ledger, &alone), pooled(ledger, &beside));
    for (keys, name, latencies) in [
        (["aloneP50", "aloneP99"], "alone", &lonely),
        (["besideP50", "besideP99"], "beside them", &accompanied),
    ] {
        section.note(
            keys[0],
            format!("end to end p50, {name}"),
            latencies.percentile(50.0),
            "ms",
        );
        section.note(
            keys[1],
            format!("end to end p99, {name}"),
            latencies.percentile(99.0),
            "ms",
        );
    }
    section.ratios(
        "p99 beside to alone",
        ratios(ledger, &alone, &beside),
        Target::AtMost(1.2),
    );
    account(&mut section, &inbox, &ingest);
    Ok(section)
}

fn pooled(ledger: &Ledger, spans: &[Span]) -> Latencies {
    Latencies::merged(spans.iter().map(|span| ledger.end_to_end_latencies(*span)))
}

/// Each round's p99 beside the bad ones over that of its two phases alone.
fn ratios(ledger: &Ledger, alone: &[Span], beside: &[Span]) -> impl Iterator<Item = f64> {
    beside.iter().zip(alone.chunks(2)).map(|(beside, alone)| {
        ledger.end_to_end_latencies(*beside).percentile(99.0) / pooled(ledger, alone).percentile(99.0)
    })
}
