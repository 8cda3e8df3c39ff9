//! Readiness as a set of gates: a process is ready when every one of them is open.
//!
//! Invariant: a process without an open reason is ready; a gate that was never opened says what it waits for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

/// The gates of one process. Clones share them.
#[derive(Clone, Debug)]
pub struct Health {
    process: &'static str,
    closed: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

/// One thing that readiness waits for. It begins closed.
#[derive(Clone, Debug)]
pub struct Gate {
    name: &'static str,
    health: Health,
}

impl Health {
    /// Of this process. No gates yet: ready.
    pub fn of(process: &'static str) -> Health {
        Health {
            process,
            closed: Arc::default(),
        }
    }

    /// Adds a closed gate; `waiting_for` is shown until it opens.
    pub fn gate(&self, name: &'static str, waiting_for: &str) -> Gate {
        let gate = Gate {
            name,
            health: self.clone(),
        };
        gate.close(waiting_for);
        gate
    }

    /// Whether every gate is open, and if not, one line for each that is closed.
    pub fn ready(&self) -> Result<(), String> {
        let closed = self.lock();
        if closed.is_empty() {
            return Ok(());
        }
        Err(closed.iter().map(|(name, why)| format!("{name}: {why}\n")).collect())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ready = ConstGauge::new(i64::from(self.ready().is_ok()));
        let help = "1 while the process is ready, as /readyz says";
        let mut each = encoder.encode_descriptor("tidings_ready", help, None, ready.metric_type())?;
        ready.encode(each.encode_family(&[("process", self.process)])?)
    }
}

impl Gate {
    /// Lets readiness pass.
    pub fn open(&self) {
        self.health.lock().remove(self.name);
    }

    /// Holds readiness back, and says why.
    pub fn close(&self, why: &str) {
        self.health.lock().insert(self.name, why.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_every_gate_and_names_those_that_are_closed() {
        let health = Health::of("dispatcher");
        assert_eq!(health.ready(), Ok(()));
        let store = health.gate("store", "opening");
        let watches = health.gate("watches", "listing");
        assert_eq!(health.ready(), Err("store: opening\nwatches: listing\n".into()));
        store.open();
        assert_eq!(health.ready(), Err("watches: listing\n".into()));
        watches.open();
        assert_eq!(health.ready(), Ok(()));
        store.close("full");
        assert_eq!(health.ready(), Err("store: full\n".into()));
    }
}
