//! What a declared type costs an event: the example's schema over a conversation of 1 KiB, and the worst that the bounds on
//! schemas and data let through. In this process, without a cluster.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tidings::api::{EventType, EventTypeSpec};
use tidings::event::{Data, Event};
use tidings::schema::{Fit, TypeRule};

use crate::say;
use crate::table::{Section, Target};

/// Bytes of the data.
const DATA: usize = 1024;
/// Checks that are timed.
const CHECKS: u32 = 20_000;

/// Measures.
pub fn run() -> Result<Section> {
    say("an event's data against the schema of its type");
    let declared = include_str!("../../examples/lead-to-crm/event-type.yaml");
    let declared: EventType = serde_yaml::from_str(declared).context("failed to read the example's EventType")?;
    let rule = TypeRule::compile(&declared.spec)?;
    let event = event(&data()?);
    let mean = time(&rule, &event, CHECKS);

    let worst: EventTypeSpec = serde_json::from_value(json!({"type": "bench.schema",
        "schema": {"items": {"allOf": vec![json!({"minimum": 1}); 190]}}}))?;
    let worst = TypeRule::compile(&worst)?;
    let numbers = Value::from(vec![7; 250_000]);
    let longest = time(&worst, &self::event(&numbers), 3);

    let mut section = Section::new("schema", "an event of a declared type, checked in ingest");
    section.line(
        "validation",
        "parsing and checking 1 KiB of data",
        mean.as_secs_f64() * 1e6,
        "us",
        Some(Target::AtMost(20.0)),
    );
    section.note(
        "worst",
        "190 rules for each of 250,000 numbers, near the bound",
        longest.as_secs_f64() * 1e3,
        "ms",
    );
    Ok(section)
}

/// The example's conversation, gone on until it has as many bytes as wanted.
pub fn data() -> Result<Value> {
    let mut example: Value = serde_json::from_str(include_str!("../../examples/lead-to-crm/event.json"))?;
    let mut data = example["data"].take();
    while let Some(turns) = data["conversation"]["transcript"].as_array_mut() {
        let missing = DATA.saturating_sub(turns.iter().map(|turn| turn.to_string().len()).sum());
        if missing < 300 {
            break;
        }
        turns.push(turns[turns.len() - 4].clone());
    }
    Ok(data)
}

/// An event with this data.
pub fn event(data: &Value) -> Event {
    Event {
        id: "1".into(),
        source: "/bench".into(),
        r#type: "lead.qualified".into(),
        subject: None,
        time: None,
        datacontenttype: Some("application/json".into()),
        dataschema: None,
        extensions: Vec::new(),
        data: Data::Json(Bytes::from(data.to_string())),
    }
}

fn time(rule: &TypeRule, event: &Event, checks: u32) -> Duration {
    let begin = Instant::now();
    for _ in 0..checks {
        let fit = black_box(rule.check(black_box(event)));
        assert_eq!(fit, Fit::Fits);
    }
    begin.elapsed() / checks
}
