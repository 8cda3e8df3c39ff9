//! A receiver that fails twice: the message is tried again after 1 s and 10 s, and `kubectl get` shows it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{Demo, PATIENCE, expect_verified, lead, names, reason};
use crate::say::{self, Steps};
use crate::team::NAMESPACE;

const NAME: &str = "Grace Hopper";
/// The waits of the default schedule, and how late the next attempt may be on a machine that is busy.
const WAITS: [f64; 2] = [1.0, 10.0];
const LATEST: f64 = 8.0;
const POLL_EVERY: Duration = Duration::from_millis(20);

pub fn show(demo: &mut Demo, steps: &mut Steps) -> Result<()> {
    steps.begin("A receiver that fails twice");
    say::line("  The inspector plays it: /fail/2 answers 500 to a message's first two attempts.");
    demo.patch("crm", &json!({"url": format!("{}/fail/2", demo.inspect.url())}))?;
    say::line("  Before:");
    demo.kubectl(&["get", "whe,evsub", "-n", NAMESPACE])?;

    let answer = demo.producer.send(&lead(NAME)?)?;
    let sent = Instant::now();
    say::line(format!("  A lead: {} {}", answer.status, answer.text.trim()));
    say::line("  The attempts, as they arrive:");
    let mut arrivals = vec![follow(demo, sent, 0)?, follow(demo, sent, 1)?];
    demo.until("in backoff before the third attempt", "whe", "crm", |whe| {
        reason(whe, "Delivering") == Some("Backoff") && whe["status"]["delivery"]["retry"]["attempt"] == 3
    })?;
    say::line("  In backoff:");
    demo.kubectl(&["get", "whe,evsub", "-n", NAMESPACE])?;
    arrivals.push(follow(demo, sent, 2)?);

    let waits = [
        seconds(arrivals[0].0, arrivals[1].0),
        seconds(arrivals[1].0, arrivals[2].0),
    ];
    for (waited, least) in waits.iter().zip(WAITS) {
        if *waited < least || *waited > least + LATEST {
            bail!("the waits were {waits:.1?} s, and not 1 s and 10 s");
        }
    }
    let records: Vec<&Value> = arrivals.iter().map(|(_, record)| record).collect();
    if records
        .iter()
        .map(|one| one["status"].as_u64())
        .ne([Some(500), Some(500), Some(200)])
    {
        bail!("the receiver did not fail twice and then take it");
    }
    if records.iter().any(|one| one["id"] != records[0]["id"]) {
        bail!("the attempts had different ids");
    }
    demo.until("well again", "whe", "crm", |whe| {
        reason(whe, "Delivering") == Some("Succeeding") && whe["status"]["delivery"]["pending"] == 0
    })?;
    say::line("  After:");
    demo.kubectl(&["get", "whe,evsub", "-n", NAMESPACE])?;
    steps.end(format!(
        "failed twice, delivered at the third attempt: after {:.1} s and {:.1} s, under one webhook-id",
        waits[0], waits[1]
    ));
    Ok(())
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Waits for the attempt after `earlier` ones and prints it: when it was seen, and what it was.
fn follow(demo: &Demo, sent: Instant, earlier: usize) -> Result<(Instant, Value)> {
    while sent.elapsed() < PATIENCE {
        let seen = Instant::now();
        let mut records = demo.inspect.requests();
        records.retain(|record| names(record, NAME));
        if let Some(record) = records.get(earlier) {
            say::quote(&format!(
                "+{:4.1} s  attempt {}  webhook-id {}  {}  answered {}",
                seconds(sent, seen),
                record["attempt"],
                record["id"].as_str().unwrap_or_default(),
                record["verdict"].as_str().unwrap_or_default(),
                record["status"]
            ));
            expect_verified(record)?;
            return Ok((seen, record.clone()));
        }
        std::thread::sleep(POLL_EVERY);
    }
    bail!("attempt {} did not come within {PATIENCE:?}", earlier + 1)
}
