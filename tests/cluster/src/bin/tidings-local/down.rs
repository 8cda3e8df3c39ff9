//! `tidings-local down`: stops what `up` started, however far that came, and removes its directory.

use std::path::Path;

use anyhow::Result;
use tidings_cluster::pids;

use crate::{say, state};

pub fn run(dir: &Path) -> Result<()> {
    if !dir.exists() {
        say::line("Nothing runs here: there is nothing to stop.");
        return Ok(());
    }
    let _lock = state::lock(dir)?;
    pids::stop_and_remove(dir)?;
    say::line(format!("Stopped, and removed {}.", dir.display()));
    Ok(())
}
