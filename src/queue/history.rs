//! What can be asked of the messages that are kept: the words of listing.
//!
//! Knows nothing of who asks. Invariant: an answer is bounded, however much is kept; what a look did not reach is told by
//! where the next one goes on.

use std::time::Duration;

use bytes::Bytes;

use crate::ids::{MessageId, SubscriptionId, UnixMillis};

/// Which messages of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// UID of the namespace object.
    pub namespace_uid: String,
    /// Only of the endpoint of this name.
    pub endpoint: Option<String>,
    /// Only of the subscription of this name.
    pub subscription: Option<String>,
    /// Only in this state.
    pub state: Option<MessageState>,
    /// Only of events of this type; costs a look at each event.
    pub event_type: Option<String>,
    /// Only of events with this id; costs a look at each event.
    pub event_id: Option<String>,
    /// Accepted in this second or later.
    pub from: Option<UnixMillis>,
    /// Accepted before the end of this second.
    pub until: Option<UnixMillis>,
}

/// How far a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageState {
    Pending,
    Delivered,
    Dead,
}

impl MessageState {
    pub const ALL: [MessageState; 3] = [MessageState::Pending, MessageState::Delivered, MessageState::Dead];

    /// The word used in listings.
    pub fn word(self) -> &'static str {
        match self {
            MessageState::Pending => "pending",
            MessageState::Delivered => "delivered",
            MessageState::Dead => "dead",
        }
    }
}

/// A message as it is kept, with what is known of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub message: MessageId,
    /// Name of the endpoint.
    pub endpoint: String,
    /// Name of the subscription.
    pub subscription: String,
    pub subscription_id: SubscriptionId,
    /// Attempts consumed; of a settled message the last one too.
    pub attempts: u16,
    pub standing: Standing,
    /// The event's attributes (see `event::format`).
    pub attributes: Bytes,
}

/// A message's state, with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Pending {
        due: UnixMillis,
    },
    Delivered {
        at: UnixMillis,
        status: Option<u16>,
        took: Option<Duration>,
    },
    Dead {
        at: UnixMillis,
        /// A `DeadReason`'s word.
        reason: String,
    },
}

impl Standing {
    pub fn state(&self) -> MessageState {
        match self {
            Standing::Pending { .. } => MessageState::Pending,
            Standing::Delivered { .. } => MessageState::Delivered,
            Standing::Dead { .. } => MessageState::Dead,
        }
    }
}

/// What one bounded look found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Newest first.
    pub found: Vec<Kept>,
    /// Where the next look goes on; none: everything was looked at. A page may be empty and still have one.
    pub go_on: Option<MessageId>,
}

/// A failed attempt as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAttempt {
    /// Its number in the schedule, from 1.
    pub number: u16,
    pub at: UnixMillis,
    pub took: Duration,
    pub status: Option<u16>,
    pub reason: String,
    pub excerpt: Option<Bytes>,
}
