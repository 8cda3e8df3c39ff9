//! When: backoff, limits, breaker, holds. Decisions over state and `now`; the engine carries them out. Pure.
//!
//! Owns what one endpoint's history means for its next attempt; knows nothing of tasks, sockets or the store's rows.
//! Invariant: an attempt is consumed only by a try that can be about the message. While an endpoint is broken, paused,
//! suspended or disabled its messages wait and consume none.

use std::time::Duration;

pub mod backoff;
pub mod breaker;
pub mod decide;
pub mod handshake;
pub mod health;
pub mod limit;
pub mod rate;

/// What counts for a message whose endpoint is not there to say it: the default of `retry.maxAge`.
pub const MAX_AGE: Duration = Duration::from_secs(72 * 3600);

/// A blocked address is looked at again this often: policies and DNS change by hand, in minutes.
pub const BLOCKED_RELOOK: Duration = Duration::from_secs(5 * 60);
