//! The one table, for people, and the same figures as JSON.
//!
//! Invariant: a target is shown beside what was measured and never changes the exit status; only a lost event does.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::machine::Machine;

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line.
#[derive(Clone, Debug)]
pub struct Figure {
    pub key: &'static str,
    pub label: String,
    pub value: f64,
    pub unit: &'static str,
    pub target: Option<Target>,
}

/// Lines under one heading.
#[derive(Clone, Debug)]
pub struct Section {
    pub key: &'static str,
    pub heading: String,
    pub figures: Vec<Figure>,
    /// Acknowledged events that never arrived: the only failure.
    pub lost: usize,
}

impl Section {
    pub fn new(key: &'static str, heading: impl Into<String>) -> Section {
        Section {
            key,
            heading: heading.into(),
            figures: Vec::new(),
            lost: 0,
        }
    }

    /// Adds a line without a target.
    pub fn note(&mut self, key: &'static str, label: impl Into<String>, value: f64, unit: &'static str) {
        self.line(key, label, value, unit, None);
    }

    /// Adds a line with one.
    pub fn line(
        &mut self,
        key: &'static str,
        label: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Option<Target>,
    ) {
        self.figures.push(Figure {
            key,
            label: label.into(),
            value,
            unit,
            target,
        });
    }

    /// Adds the median of the rounds' ratios, with a target, and how far they lie apart.
    pub fn ratios(&mut self, label: &str, rounds: impl Iterator<Item = f64>, target: Target) {
        let mut rounds: Vec<f64> = rounds.collect();
        rounds.sort_by(f64::total_cmp);
        let at = |n: usize| rounds.get(n).copied().unwrap_or(f64::NAN);
        let label = format!("{label}, median of {} rounds", rounds.len());
        self.line("ratio", label, at(rounds.len() / 2), "", Some(target));
        self.note("ratioLeast", "the least of a round", at(0), "");
        self.note(
            "ratioMost",
            "the most of a round",
            at(rounds.len().saturating_sub(1)),
            "",
        );
    }
}

impl Target {
    fn text(self, unit: &str) -> String {
        match self {
            Target::AtLeast(value) => format!(">= {}", with_unit(value, unit)),
            Target::AtMost(value) => format!("<= {}", with_unit(value, unit)),
        }
    }

    /// How far a value is from it: zero when it is reached.
    fn short_by(self, value: f64) -> f64 {
        match self {
            Target::AtLeast(target) => (1.0 - value / target).max(0.0),
            Target::AtMost(target) => (value / target - 1.0).max(0.0),
        }
    }

    fn verdict(self, value: f64) -> String {
        match self.short_by(value) {
            0.0 => "reached".to_owned(),
            short => format!("short by {:.0} %", (short * 100.0).max(1.0)),
        }
    }
}

fn with_unit(value: f64, unit: &str) -> String {
    let number = match unit {
        "" if value.fract() == 0.0 => grouped(value),
        "" => format!("{value:.2}"),
        "/s" => grouped(value),
        "ms" if value < 100.0 => format!("{value:.2}"),
        "s" => format!("{value:.2}"),
        "us" => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    format!("{number} {unit}").trim_end().to_owned()
}

/// Thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The table as it is printed.
pub fn print(machine: &Machine, sections: &[Section]) {
    println!(
        "\nTidings {} under load: {} cores shared by producer, dispatcher, receiver and Kubernetes",
        env!("CARGO_PKG_VERSION"),
        machine.cores
    );
    println!(
        "{}, {:.0} GiB, Linux {}, fdatasync of 4 KiB p50 {:.2} ms, p99 {:.2} ms, a read beyond caches {:.0} ns",
        machine.cpu, machine.memory_gib, machine.kernel, machine.sync_p50, machine.sync_p99, machine.read_nanos
    );
    for section in sections {
        println!("\n{}", section.heading);
        for figure in &section.figures {
            let value = with_unit(figure.value, figure.unit);
            let (target, verdict) = figure.target.map_or_else(Default::default, |target| {
                (target.text(figure.unit), target.verdict(figure.value))
            });
            let line = format!("  {:<46}{value:>14}   {target:<16}{verdict}", figure.label);
            println!("{}", line.trim_end());
        }
    }
    println!();
}

/// Writes the figures to `bench/load.json` in cargo's target directory; where that is.
pub fn write(machine: &Machine, sections: &[Section]) -> Result<PathBuf> {
    // Cargo's own word for it, whatever set it: CARGO_TARGET_DIR, a configuration file or nothing.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let dir = target.parent().unwrap_or(&target).join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let path = dir.join("load.json");
    let text = serde_json::to_string_pretty(&json(machine, sections)).context("failed to write the figures")?;
    fs::write(&path, text + "\n").with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

fn json(machine: &Machine, sections: &[Section]) -> Value {
    let parts: serde_json::Map<String, Value> = sections
        .iter()
        .map(|section| {
            let figures: serde_json::Map<String, Value> = section
                .figures
                .iter()
                .map(|figure| (figure.key.to_owned(), figure_json(figure)))
                .collect();
            (
                section.key.to_owned(),
                json!({"lost": section.lost, "figures": figures}),
            )
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": {
            "cores": machine.cores, "cpu": machine.cpu, "kernel": machine.kernel, "memoryGiB": machine.memory_gib,
            "fdatasyncMillis": {"p50": machine.sync_p50, "p99": machine.sync_p99},
            "readNanos": machine.read_nanos,
        },
        "parts": parts,
    })
}

fn figure_json(figure: &Figure) -> Value {
    let mut value = json!({"label": figure.label, "value": figure.value, "unit": figure.unit});
    match figure.target {
        Some(Target::AtLeast(target)) => value["atLeast"] = json!(target),
        Some(Target::AtMost(target)) => value["atMost"] = json!(target),
        None => {}
    }
    value
}
