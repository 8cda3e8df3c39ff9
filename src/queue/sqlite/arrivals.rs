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
/// Bytes of events that may wait beside the channel: an event's count once, however many messages carry it.
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
        for arrival in arrivals.drain(..) {
            // An event's messages come one after the other, and share it.
            let last = self.overflow.last();
            if !last.is_some_and(|last| Arc::ptr_eq(&last.event, &arrival.event)) {
                self.bytes += arrival.event.size();
            }
            self.overflow.push(arrival);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EndpointId, EventId, MessageId, SubscriptionId};
    use crate::queue::{Placement, StoredEvent};

    /// An event's messages.
    fn arrivals(event: i64, bytes: usize, messages: u32) -> Vec<Arrival> {
        let stored = Arc::new(StoredEvent {
            attributes: vec![7; bytes].into(),
            body: bytes::Bytes::new(),
        });
        let arrival = |number| Arrival {
            message: MessageId::new(EventId(event), number),
            endpoint: EndpointId(1),
            subscription: SubscriptionId(1),
            placement: Placement::Waiting,
            held: false,
            event: Arc::clone(&stored),
        };
        (0..messages).map(arrival).collect()
    }

    #[test]
    fn an_event_counts_once_however_many_messages_carry_it() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut outlet = Outlet::new(sender, Arc::new(AtomicBool::new(true)));
        outlet.offer(&mut arrivals(1, 10, 1));
        assert!(!outlet.is_behind(), "the channel takes it");
        for event in 2..6 {
            outlet.offer(&mut arrivals(event, OVERFLOW_BYTES / 4, 500));
        }
        assert!(outlet.is_behind());
        assert_eq!(outlet.too_far_behind(), None);
        outlet.offer(&mut arrivals(6, 1, 1));
        assert!(outlet.too_far_behind().is_some());
    }
}
