//! What is not run here, said and counted: the harness hides what a test that passes prints, and cannot skip one that runs.

use std::fs::OpenOptions;
use std::io::Write;

/// Where each skip is a line, for whoever counts them at the end. `make test` sets it.
const FILE: &str = "TIDINGS_SKIPPED";

/// Says that `what` (a test's name, or how many of them) was not run, and why, past the harness's capture.
pub fn skipped(what: &str, why: &str) {
    let line = format!("SKIPPED: {what}: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    let Some(file) = std::env::var_os(FILE) else { return };
    let told = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    told.unwrap_or_else(|error| panic!("failed to write to ${FILE}: {error}"));
}
