//! What is printed: steps with the time they took, commands with what they said. Short lines, nothing that needs a colour.
//!
//! Invariant: a closed pipe is no reason to stop or to leave something running.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidings_cluster::{Cluster, repository_root};

/// How long a line of a receiver's JSON may be.
const LONGEST_LINE: usize = 400;

/// One line.
pub fn line(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout(), "{}", text.as_ref());
}

/// What something else said, indented.
pub fn quote(text: &str) {
    for one in text.trim_end().lines() {
        line(format!("    {}", cut(one)));
    }
}

fn cut(text: &str) -> String {
    if text.len() <= LONGEST_LINE {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(LONGEST_LINE)])
}

/// `4.2 s`.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The steps of a demonstration: what each claims, and how long it took.
pub struct Steps {
    begun: Instant,
    current: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub fn new() -> Steps {
        let now = Instant::now();
        Steps {
            begun: now,
            current: now,
            done: Vec::new(),
        }
    }

    /// Begins a step.
    pub fn begin(&mut self, title: &str) {
        self.current = Instant::now();
        line(format!("\n{}. {title}", self.done.len() + 1));
    }

    /// Ends it: `claim` is what was shown and checked.
    pub fn end(&mut self, claim: impl Into<String>) {
        let took = self.current.elapsed();
        line(format!("    ({})", seconds(took)));
        self.done.push((claim.into(), took));
    }

    /// What was shown, all together.
    pub fn summary(&self) {
        line(format!("\nShown and checked, in {}:", seconds(self.begun.elapsed())));
        for (claim, took) in &self.done {
            line(format!("  {:>6}  {claim}", seconds(*took)));
        }
    }
}

/// How kubectl is run for somebody who watches, or not.
pub type Kubectl = fn(&Cluster, &[&str]) -> Result<String>;

/// Prints a kubectl command as a person would type it, runs it at the root of the repository, prints what it says.
pub fn kubectl(cluster: &Cluster, args: &[&str]) -> Result<String> {
    line(format!("  $ kubectl {}", typed(args)));
    let said = kubectl_silently(cluster, args)?;
    quote(&said);
    Ok(said)
}

/// The same without a word, unless it fails.
pub fn kubectl_silently(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let output = cluster
        .kubectl_command()
        .args(args)
        .current_dir(repository_root())
        .output()
        .context("failed to run kubectl")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("kubectl {} failed: {why}", typed(args));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn typed(args: &[&str]) -> String {
    args.iter().map(|arg| shell_word(arg)).collect::<Vec<_>>().join(" ")
}

/// A word that every shell reads as it is, with quotes where it needs them.
pub fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
