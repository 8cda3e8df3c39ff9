//! A dispatcher killed with -9 while messages wait: started again, it has lost none.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{Demo, distinct, expect_verified, lead, reason};
use crate::say::{self, Steps};
use crate::team::NAMESPACE;

const LEADS: usize = 50;
const PREFIX: &str = "Lead ";

pub fn show(demo: &mut Demo, steps: &mut Steps) -> Result<()> {
    steps.begin("kill -9 while messages wait");
    say::line("  The CRM is in maintenance: its endpoint is suspended, and messages wait.");
    demo.patch(
        "crm",
        &json!({"url": format!("{}/crm", demo.inspect.url()), "suspend": true}),
    )?;
    demo.until("suspended", "whe", "crm", |whe| {
        reason(whe, "Delivering") == Some("Suspended")
    })?;
    for n in 1..=LEADS {
        demo.producer.send(&lead(&format!("{PREFIX}{n}"))?)?;
    }
    let pid = demo.dispatcher.process.pid().context("the dispatcher does not run")?;
    say::line(format!("  {LEADS} leads sent, {LEADS} times 202. At once:"));
    say::line(format!("  $ kill -9 {pid}    (the dispatcher)"));
    demo.dispatcher.kill9();
    if demo.producer.post(&lead("Too early")?).is_ok() {
        bail!("something still takes events in after the dispatcher was killed");
    }
    let begun = Instant::now();
    demo.dispatcher.restart()?;
    say::line(format!(
        "  Started again on the same volume: ready after {}.",
        say::seconds(begun.elapsed())
    ));
    // The status may still be one from before, written when fewer had been sent.
    demo.until(
        &format!("{LEADS} that wait, as many as were accepted"),
        "whe",
        "crm",
        |whe| whe["status"]["delivery"]["pending"] == LEADS,
    )?;
    demo.kubectl(&["get", "whe", "crm", "-n", NAMESPACE])?;

    say::line("  The CRM is back:");
    demo.patch("crm", &json!({"suspend": false}))?;
    let ours = |record: &serde_json::Value| {
        super::body(record)["data"]["lead"]["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(PREFIX))
    };
    let name = |record: &serde_json::Value| super::body(record)["data"]["lead"]["name"].to_string();
    let arrived = demo.arrived(
        &format!("the delivery of all {LEADS} leads"),
        |all| distinct(all.iter().map(name)) == LEADS,
        ours,
    )?;
    arrived.iter().try_for_each(expect_verified)?;
    demo.until("empty again", "whe", "crm", |whe| {
        reason(whe, "Delivering") == Some("Succeeding") && whe["status"]["delivery"]["pending"] == 0
    })?;
    say::line(format!(
        "  {LEADS} different leads arrived in {} requests, all verified.",
        arrived.len()
    ));
    demo.kubectl(&["get", "whe", "crm", "-n", NAMESPACE])?;
    steps.end(format!(
        "dispatcher killed with -9, {LEADS} of {LEADS} accepted events delivered: nothing lost"
    ));
    Ok(())
}
