//! The identities that every room shares: small, typed, cheap to copy.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// A stored event. 49 bits: `max(last + 1, unix seconds << 17)`, so ids rise with time and are never used twice, also
/// after a store is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub i64);

impl EventId {
    /// Bits that count events within one second.
    pub const SEQUENCE_BITS: u32 = 17;

    /// The id after `last` at `unix_seconds`.
    pub fn next(last: EventId, unix_seconds: i64) -> EventId {
        EventId((last.0 + 1).max(unix_seconds << Self::SEQUENCE_BITS))
    }

    /// The second in which the id was given, or later under more than 131,072 events a second.
    pub fn unix_seconds(self) -> i64 {
        self.0 >> Self::SEQUENCE_BITS
    }
}

/// One event for one subscription: `event << 14 | ordinal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub i64);

impl MessageId {
    /// Bits of the ordinal: at most 16,384 messages an event.
    pub const ORDINAL_BITS: u32 = 14;
    /// The ordinal of a message that tells of a dead letter: the only one of its event.
    const NOTICE: u32 = (1 << Self::ORDINAL_BITS) - 1;
    /// The most messages of one event; a store refuses an event with more.
    pub const PER_EVENT: usize = Self::NOTICE as usize;

    /// The message of `event` with this ordinal (below 2^14).
    pub fn new(event: EventId, ordinal: u32) -> MessageId {
        debug_assert!(ordinal < 1 << Self::ORDINAL_BITS);
        MessageId(event.0 << Self::ORDINAL_BITS | i64::from(ordinal))
    }

    /// The message that tells of a dead letter, where `event` is the copy made for it.
    pub fn notice(event: EventId) -> MessageId {
        MessageId::new(event, Self::NOTICE)
    }

    /// Whether it tells of a dead letter. One that does is never told of itself.
    pub fn is_notice(self) -> bool {
        self.0 & i64::from(Self::NOTICE) == i64::from(Self::NOTICE)
    }

    /// The event it belongs to.
    pub fn event(self) -> EventId {
        EventId(self.0 >> Self::ORDINAL_BITS)
    }

    /// Parses the text form, `msg_` and 13 characters of Crockford's base32.
    pub fn parse(text: &str) -> Option<MessageId> {
        let digits = text.strip_prefix("msg_")?;
        if digits.len() != 13 {
            return None;
        }
        let mut value: u64 = 0;
        for byte in digits.bytes() {
            let digit = CROCKFORD.iter().position(|c| *c == byte)? as u64;
            value = value.checked_mul(32)?.checked_add(digit)?;
        }
        i64::try_from(value).ok().map(MessageId)
    }
}

/// What puts messages of one endpoint in order: those with the same key go out one after the other. A hash of the key, so
/// that it takes eight bytes however long the key is; two keys of one hash share an order, which breaks neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderKey(pub i64);

impl OrderKey {
    /// The first eight bytes of the key's SHA-256.
    pub fn of(key: &str) -> OrderKey {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        OrderKey(i64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The `webhook-id`: sorts by time, and holds no `.` (Standard Webhooks signs `id.timestamp.body`).
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *b"msg_0000000000000";
        let mut value = self.0 as u64;
        for place in text[4..].iter_mut().rev() {
            *place = CROCKFORD[(value & 31) as usize];
            value >>= 5;
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or("msg_"))
    }
}

/// A `WebhookEndpoint` as the store knows it: interned from its namespace's UID and its name, so that a deleted and
/// recreated endpoint keeps its messages and a namesake in a new namespace does not inherit them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(pub u32);

/// An `EventSubscription` as the store knows it; see [`EndpointId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub u32);

/// Wall-clock time in milliseconds since 1970, as the store and the schedule keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Later by `duration`, saturating.
    pub fn plus(self, duration: std::time::Duration) -> UnixMillis {
        UnixMillis(
            self.0
                .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// How long from `earlier` to `self`; zero when it is later.
    pub fn since(self, earlier: UnixMillis) -> std::time::Duration {
        std::time::Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The system clock. Only processes and shells call it; pure rooms get `now` as an argument.
    pub fn now() -> UnixMillis {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_reads_back_from_its_text() {
        let id = MessageId::new(EventId::next(EventId(0), 1_795_000_000), 7);
        assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        assert_eq!(id.event().unix_seconds(), 1_795_000_000);
        assert!(!id.to_string().contains('.'));
        assert_eq!(MessageId::parse("msg_ZZZZZZZZZZZZZ"), None, "more than 63 bits");
    }
}
