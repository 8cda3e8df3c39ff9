//! A rotation with its overlap: for a while both keys sign, so a receiver changes over when it likes.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Demo, PATIENCE, expect_verified, header, reason};
use crate::say::{self, Steps};
use crate::team::{self, NAMESPACE};

const SECRET: &str = "crm-signing";

pub fn show(demo: &mut Demo, steps: &mut Steps) -> Result<()> {
    steps.begin("A new signing key, with an overlap");
    let old = demo.get("whe", "crm")?["status"]["signing"]["keys"][0]["id"].clone();
    annotate(demo, "tidings.dev/rotate-requested-at")?;
    demo.until("in the overlap", "whe", "crm", |whe| {
        reason(whe, "KeyRotating") == Some("Overlap")
    })?;
    let conditions = r#"jsonpath={.status.conditions[?(@.type=="KeyRotating")].message}{"\n"}{.status.signing.keys}"#;
    demo.kubectl(&["get", "whe", "crm", "-n", NAMESPACE, "-o", conditions])?;
    demo.kubectl(&[
        "get",
        "secret",
        SECRET,
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.metadata.annotations}",
    ])?;
    let keys = demo.get("whe", "crm")?["status"]["signing"]["keys"].clone();
    let ids: Vec<&Value> = keys.as_array().into_iter().flatten().map(|key| &key["id"]).collect();
    if ids.len() != 2 || *ids[1] != old || *ids[0] == old {
        bail!("two keys were expected in status, a new one and {old}: {keys}");
    }

    // The chat's key is in the same folder: without it the inspector's counting is about the CRM's keys alone.
    team::forget_keys(&demo.keys, "chat")?;
    say::line("  The receiver still has the old key only:");
    two_signatures(&demo.lead_arrives("Before the receiver changes over")?)?;
    let secret = demo.get("secret", SECRET)?;
    team::give_keys(&demo.keys, "crm", &secret, &["current"])?;
    say::line("  It changes over to the new key, in its own time:");
    two_signatures(&demo.lead_arrives("After the receiver has changed over")?)?;

    say::line("  So the old key can go at once, before its time is over:");
    annotate(demo, "tidings.dev/revoke-previous-requested-at")?;
    demo.until("rotated", "whe", "crm", |whe| reason(whe, "KeyRotating").is_none())?;
    if !demo.get("secret", SECRET)?["data"]["previous"].is_null() {
        bail!("the Secret still has the previous key");
    }
    one_signature(demo)?;
    let left = demo.get("whe", "crm")?["status"]["signing"]["keys"].clone();
    if left.as_array().map(Vec::len) != Some(1) || left[0]["id"] != *ids[0] {
        bail!("only the new key was expected in status: {left}");
    }
    steps.end("a key rotated: two signatures during the overlap, old and new key verified, then the new one alone");
    Ok(())
}

fn annotate(demo: &Demo, annotation: &str) -> Result<()> {
    demo.kubectl(&["annotate", "whe", "crm", "-n", NAMESPACE, &format!("{annotation}=now")])?;
    Ok(())
}

fn show_signature(record: &Value) -> Result<usize> {
    let signature = header(record, "webhook-signature");
    let why = record["why"].as_str().unwrap_or_default();
    say::quote(&format!("webhook-signature: {signature}"));
    say::quote(&format!("{}: {why}", record["verdict"].as_str().unwrap_or_default()));
    expect_verified(record)?;
    Ok(signature.split_whitespace().count())
}

fn two_signatures(record: &Value) -> Result<()> {
    match show_signature(record)? {
        2 => Ok(()),
        other => bail!("two signatures were expected during the overlap, there are {other}"),
    }
}

/// The dispatcher reads the Secret again a moment after the controller wrote it.
fn one_signature(demo: &Demo) -> Result<()> {
    let begun = Instant::now();
    for n in 1.. {
        let record = demo.lead_arrives(&format!("After the old key has gone, {n}"))?;
        let count = header(&record, "webhook-signature").split_whitespace().count();
        if count == 1 {
            show_signature(&record).context("after the old key has gone")?;
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("there are {count} signatures {PATIENCE:?} after the old key was revoked");
        }
    }
    Ok(())
}
