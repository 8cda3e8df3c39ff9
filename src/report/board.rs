//! Where the engine posts how an endpoint stands, and report takes it from. Posting is cheap and never waits.
//!
//! The engine posts at once when the reason of `Delivering` changes (`urgent`), else at most once a second for an endpoint
//! with activity. A later post replaces an earlier one that was not taken.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::api::conditions::reasons;
use crate::ids::{EndpointId, MessageId, SubscriptionId, UnixMillis};
use crate::schedule::handshake::Agreement;

/// An endpoint's delivery as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// The generation of the spec in use.
    pub generation: Option<i64>,
    pub delivering: Delivering,
    /// One sentence for the condition: no response body, header value or secret.
    pub message: String,
    /// Id of the current signing key in use, and since when this process (or one before it) has it loaded.
    pub signing: Option<(String, UnixMillis)>,
    /// What the receiver agreed to, where it is asked.
    pub agreement: Option<Agreement>,
    pub pending: u64,
    pub oldest_pending: Option<UnixMillis>,
    pub dead_lettered: u64,
    /// Of those pending, held behind another of their key.
    pub held: u64,
    /// Keys that a dead letter blocks.
    pub blocked_keys: u64,
    pub consecutive_failures: u32,
    pub failing_since: Option<UnixMillis>,
    pub last_status: Option<u16>,
    pub last_success: Option<UnixMillis>,
    pub last_failure: Option<Failure>,
    /// The attempt due first among those that failed: its number (from 1) and time.
    pub retry: Option<(u16, UnixMillis)>,
    /// When something is sent next, as far as is known: a retry, a probe, or what waits in the store.
    pub next_try: Option<UnixMillis>,
    /// The last five failures, newest first.
    pub recent_failures: Vec<Failure>,
    pub handled_enable_request: Option<String>,
}

/// One failed attempt, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub at: UnixMillis,
    pub message: Option<MessageId>,
    pub status: Option<u16>,
    pub reason: &'static str,
}

/// The `Delivering` condition's reason: the first that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivering {
    Disabled,
    Suspended,
    SecretUnavailable,
    ServiceUnavailable,
    TokenUnavailable,
    Blocked,
    HandshakeRefused,
    CircuitOpen,
    Backoff,
    Succeeding,
    NoAttempts,
}

impl Delivering {
    /// All of them.
    pub const ALL: [Delivering; 11] = [
        Delivering::Disabled,
        Delivering::Suspended,
        Delivering::SecretUnavailable,
        Delivering::ServiceUnavailable,
        Delivering::TokenUnavailable,
        Delivering::Blocked,
        Delivering::HandshakeRefused,
        Delivering::CircuitOpen,
        Delivering::Backoff,
        Delivering::Succeeding,
        Delivering::NoAttempts,
    ];

    /// The reason word.
    pub fn reason(self) -> &'static str {
        match self {
            Delivering::Disabled => "Disabled",
            Delivering::Suspended => "Suspended",
            Delivering::SecretUnavailable => "SecretUnavailable",
            Delivering::ServiceUnavailable => reasons::SERVICE_UNAVAILABLE,
            Delivering::TokenUnavailable => "TokenUnavailable",
            Delivering::Blocked => "Blocked",
            Delivering::HandshakeRefused => reasons::HANDSHAKE_REFUSED,
            Delivering::CircuitOpen => "CircuitOpen",
            Delivering::Backoff => "Backoff",
            Delivering::Succeeding => "Succeeding",
            Delivering::NoAttempts => "NoAttempts",
        }
    }

    /// The condition's status.
    pub fn status(self) -> &'static str {
        match self {
            Delivering::Succeeding => "True",
            Delivering::NoAttempts => "Unknown",
            _ => "False",
        }
    }
}

/// A subscription's delivery. By default nothing is to be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionView {
    /// Something has happened to it. If not, it is for comparing with what a process before may have left.
    pub is_news: bool,
    pub pending: u64,
    /// Where messages are pulled.
    pub oldest_pending: Option<UnixMillis>,
    pub dead_lettered: u64,
    pub last_dead_letter: Option<(UnixMillis, &'static str)>,
    /// Why the filter fails, while it does.
    pub filter_failing: Option<String>,
    /// Whether this process knows how the filter fares; what one before it found holds until then.
    pub is_filter_told: bool,
    /// Where messages are pulled: nobody does.
    pub unconsumed: Option<Unconsumed>,
}

/// The `Unconsumed` condition's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unconsumed {
    /// Nobody asks for messages.
    NotPulled,
    /// Somebody asks, and acknowledges none.
    NotAcknowledged,
}

impl Unconsumed {
    /// The reason word.
    pub fn reason(self) -> &'static str {
        match self {
            Unconsumed::NotPulled => reasons::NOT_PULLED,
            Unconsumed::NotAcknowledged => reasons::NOT_ACKNOWLEDGED,
        }
    }
}

/// What was posted and not yet taken.
#[derive(Debug, Default)]
pub struct Posted {
    /// The view, and whether a transition is in it.
    pub endpoints: HashMap<EndpointId, (EndpointView, bool)>,
    pub subscriptions: HashMap<SubscriptionId, (SubscriptionView, bool)>,
}

/// The board itself.
#[derive(Debug, Default)]
pub struct Board {
    posted: Mutex<Posted>,
    changed: Notify,
}

impl Board {
    /// Posts an endpoint's view; `urgent` when `Delivering` changed.
    pub fn post_endpoint(&self, id: EndpointId, view: EndpointView, urgent: bool) {
        let mut posted = self.lock();
        let urgent = urgent || posted.endpoints.get(&id).is_some_and(|(_, before)| *before);
        posted.endpoints.insert(id, (view, urgent));
        drop(posted);
        self.changed.notify_one();
    }

    /// Posts a subscription's view; `urgent` on its first dead letter.
    pub fn post_subscription(&self, id: SubscriptionId, mut view: SubscriptionView, urgent: bool) {
        let mut posted = self.lock();
        let before = posted.subscriptions.get(&id);
        view.is_news |= before.is_some_and(|(view, _)| view.is_news);
        let urgent = urgent || before.is_some_and(|(_, before)| *before);
        posted.subscriptions.insert(id, (view, urgent));
        drop(posted);
        self.changed.notify_one();
    }

    /// Waits until something is posted, and takes all of it.
    pub async fn take(&self) -> Posted {
        loop {
            let changed = self.changed.notified();
            {
                let mut posted = self.lock();
                if !posted.endpoints.is_empty() || !posted.subscriptions.is_empty() {
                    return std::mem::take(&mut posted);
                }
            }
            changed.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
