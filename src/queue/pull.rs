//! Messages that wait for a consumer: the words of pulling.
//!
//! Knows nothing of who asks. Invariant: the places of one subscription's messages only rise: what becomes pending after a
//! look (a new message, one that is routed late, one that is sent again) is behind all that the look saw. So whoever has seen
//! everything up to a place can acknowledge it all by that place, and acknowledges nothing that he has not seen.

use std::sync::Arc;

use super::{Pending, StoredEvent};
use crate::ids::{EndpointId, MessageId, SubscriptionId, UnixMillis};

/// Where a message that is pulled stands: its `due`, which is about when it became pending, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub due: UnixMillis,
    pub message: MessageId,
}

impl Place {
    /// Before every message.
    pub const START: Place = Place {
        due: UnixMillis(0),
        message: MessageId(0),
    };

    /// That of a message.
    pub fn of(pending: &Pending) -> Place {
        Place {
            due: pending.due,
            message: pending.message,
        }
    }
}

/// Which messages are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Pull {
    pub endpoint: EndpointId,
    pub subscription: SubscriptionId,
    /// Only those after it.
    pub after: Place,
    /// At most so many,
    pub limit: usize,
    /// and at most so many bytes of events, but one message in any case.
    pub bytes: usize,
}

/// What a look found.
#[derive(Clone, Debug)]
pub struct Given {
    pub messages: Vec<(Pending, Arc<StoredEvent>)>,
    /// There are more after these.
    pub more: bool,
}
