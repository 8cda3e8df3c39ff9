//! Condition types, their statuses and reasons: the vocabulary of status, Events and metric labels.
//!
//! Invariant: a reason is one CamelCase word, and means the same wherever it appears.

pub const READY: &str = "Ready";
pub const RECONCILING: &str = "Reconciling";
pub const STALLED: &str = "Stalled";
pub const KEY_ROTATING: &str = "KeyRotating";
pub const DELIVERING: &str = "Delivering";
pub const KEYS_BLOCKED: &str = "KeysBlocked";
pub const FILTER_FAILING: &str = "FilterFailing";
pub const UNCONSUMED: &str = "Unconsumed";
// Of a Replay.
pub const COMPLETE: &str = "Complete";
pub const FAILED: &str = "Failed";

/// Conditions of endpoints and subscriptions that the dispatcher writes; the controller writes all others. A Replay's are
/// all the dispatcher's.
pub const OF_DISPATCHER: [&str; 4] = [DELIVERING, KEYS_BLOCKED, FILTER_FAILING, UNCONSUMED];

pub const TRUE: &str = "True";
pub const FALSE: &str = "False";
pub const UNKNOWN: &str = "Unknown";

/// Reasons of conditions.
pub mod reasons {
    // Ready of an endpoint or a subscription.
    pub const RESOLVED: &str = "Resolved";
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    pub const CONFIG_MAP_NOT_FOUND: &str = "ConfigMapNotFound";
    pub const SECRET_KEY_MISSING: &str = "SecretKeyMissing";
    pub const CONFIG_MAP_KEY_MISSING: &str = "ConfigMapKeyMissing";
    pub const SECRET_INVALID: &str = "SecretInvalid";
    pub const CONFIG_MAP_INVALID: &str = "ConfigMapInvalid";
    pub const SECRET_NOT_ALLOWED: &str = "SecretNotAllowed";
    pub const SECRET_ACCESS_DENIED: &str = "SecretAccessDenied";
    pub const CONFIG_MAP_ACCESS_DENIED: &str = "ConfigMapAccessDenied";
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    pub const SERVICE_NOT_ALLOWED: &str = "ServiceNotAllowed";
    pub const SERVICE_PORT_MISSING: &str = "ServicePortMissing";
    pub const SECRET_CONFLICT: &str = "SecretConflict";
    pub const POLICY_DENIED: &str = "PolicyDenied";
    pub const INVALID_SPEC: &str = "InvalidSpec";
    pub const INVALID_REQUEST: &str = "InvalidRequest";
    pub const ENDPOINT_NOT_FOUND: &str = "EndpointNotFound";
    pub const TOO_MANY_SUBSCRIPTIONS: &str = "TooManySubscriptions";
    pub const INVALID_FILTER: &str = "InvalidFilter";
    pub const WAITING_FOR_DISPATCHER: &str = "WaitingForDispatcher";

    // Ready of an EventType.
    pub const COMPILED: &str = "Compiled";
    pub const INVALID_SCHEMA: &str = "InvalidSchema";
    pub const DUPLICATE_TYPE: &str = "DuplicateType";

    // A Replay's.
    pub const QUEUED: &str = "Queued";
    pub const COUNTING: &str = "Counting";
    pub const SENDING: &str = "Sending";
    pub const ALL_SENT: &str = "AllSent";
    pub const DRY_RUN: &str = "DryRun";
    pub const SUBSCRIPTION_NOT_FOUND: &str = "SubscriptionNotFound";

    // KeyRotating.
    pub const OVERLAP: &str = "Overlap";

    // FilterFailing.
    pub const EVALUATION_ERROR: &str = "EvaluationError";

    // Unconsumed.
    pub const NOT_PULLED: &str = "NotPulled";
    pub const NOT_ACKNOWLEDGED: &str = "NotAcknowledged";

    // Delivering, in order: the first that holds.
    pub const DISABLED: &str = "Disabled";
    pub const SUSPENDED: &str = "Suspended";
    pub const SECRET_UNAVAILABLE: &str = "SecretUnavailable";
    pub const SERVICE_UNAVAILABLE: &str = "ServiceUnavailable";
    pub const TOKEN_UNAVAILABLE: &str = "TokenUnavailable";
    pub const BLOCKED: &str = "Blocked";
    pub const HANDSHAKE_REFUSED: &str = "HandshakeRefused";
    pub const CIRCUIT_OPEN: &str = "CircuitOpen";
    pub const BACKOFF: &str = "Backoff";
    pub const SUCCEEDING: &str = "Succeeding";
    pub const NO_ATTEMPTS: &str = "NoAttempts";

    // KeysBlocked.
    pub const DEAD_LETTER: &str = "DeadLetter";
}
