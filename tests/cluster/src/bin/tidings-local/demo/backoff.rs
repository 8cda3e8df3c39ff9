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
const DAY: f64 = 86_400.0;
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
    let mut records = vec![follow(demo, sent, 0)?, follow(demo, sent, 1)?];
    demo.until("in backoff before the third attempt", "whe", "crm", |whe| {
        reason(whe, "Delivering") == Some("Backoff") && whe["status"]["delivery"]["retry"]["attempt"] == 3
    })?;
    say::line("  In backoff:");
    demo.kubectl(&["get", "whe,evsub", "-n", NAMESPACE])?;
    records.push(follow(demo, sent, 2)?);

    // By the receiver's clock: when we looked says less.
    let times: Vec<f64> = records.iter().filter_map(time_of_day).collect();
    let waits: Vec<f64> = times.windows(2).map(|two| (two[1] - two[0]).rem_euclid(DAY)).collect();
    let as_scheduled = |(waited, least): (&f64, f64)| (least..least + LATEST).contains(waited);
    if waits.len() != WAITS.len() || !waits.iter().zip(WAITS).all(as_scheduled) {
        bail!("the waits were {waits:.1?} s, and not 1 s and 10 s");
    }
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

/// When a request arrived, in seconds of its day: `2026-11-24T09:14:30.123Z`.
fn time_of_day(record: &Value) -> Option<f64> {
    let (_, time) = record["time"].as_str()?.trim_end_matches('Z').split_once('T')?;
    time.split(':')
        .try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}

/// Waits for the attempt after `earlier` ones and prints it: when it was seen, and what it was.
fn follow(demo: &Demo, sent: Instant, earlier: usize) -> Result<Value> {
    while sent.elapsed() < PATIENCE {
        let mut records = demo.inspect.requests();
        records.retain(|record| names(record, NAME));
        if let Some(record) = records.get(earlier) {
            say::quote(&format!(
                "+{:4.1} s  attempt {}  webhook-id {}  {}  answered {}",
                sent.elapsed().as_secs_f64(),
                record["attempt"],
                record["id"].as_str().unwrap_or_default(),
                record["verdict"].as_str().unwrap_or_default(),
                record["status"]
            ));
            expect_verified(record)?;
            return Ok(record.clone());
        }
        std::thread::sleep(POLL_EVERY);
    }
    bail!("attempt {} did not come within {PATIENCE:?}", earlier + 1)
}
