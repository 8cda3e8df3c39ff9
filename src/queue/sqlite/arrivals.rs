//! The way of new messages to the engine: a bounded channel, and what did not fit in.
//!
//! Invariant: once the stream is taken nothing is dropped. When the engine falls behind, producers are refused instead, so
//! memory stays bounded and no message waits unseen in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use crate::queue::Arrival;

/// Batches in the channel; one is at most a commit's (about 1 MiB of events).
pub(super) const BATCHES: usize = 32;
/// Bytes of events that may wait beside the channel.
const OVERFLOW_BYTES: usize = 16 << 20;
/// Messages that may wait beside the channel.
const OVERFLOW_MESSAGES: usize = 16_384;

pub(super) struct Outlet {
    sender: mpsc::Sender<Vec<Arrival>>,
    /// Set when the engine takes the stream; what came before it is found by reading.
    taken: Arc<AtomicBool>,
    overflow: Vec<Arrival>,
    bytes: usize,
}

impl Outlet {
    pub(super) fn new(sender: mpsc::Sender<Vec<Arrival>>, taken: Arc<AtomicBool>) -> Outlet {
        Outlet {
            sender,
            taken,
            overflow: Vec::new(),
            bytes: 0,
        }
    }

    /// Hands on new messages after what still waits.
    pub(super) fn offer(&mut self, arrivals: &mut Vec<Arrival>) {
        if !self.taken.load(Ordering::Acquire) || self.sender.is_closed() {
            arrivals.clear();
            self.overflow = Vec::new();
            self.bytes = 0;
            return;
        }
        for arrival in arrivals.iter() {
            self.bytes += arrival.event.body.len() + arrival.event.attributes.len();
        }
        self.overflow.append(arrivals);
        if self.overflow.is_empty() {
            return;
        }
        if let Ok(permit) = self.sender.try_reserve() {
            permit.send(std::mem::take(&mut self.overflow));
            self.bytes = 0;
        }
    }

    pub(super) fn is_behind(&self) -> bool {
        !self.overflow.is_empty()
    }

    pub(super) fn too_far_behind(&self) -> Option<String> {
        (self.bytes > OVERFLOW_BYTES || self.overflow.len() > OVERFLOW_MESSAGES)
            .then(|| "deliveries cannot keep up with new events".to_owned())
    }
}
