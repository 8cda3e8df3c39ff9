//! Messages one after the other: who is held behind whom, and who is next.
//!
//! Owns the step from held to not held; knows nothing of why messages have an order. Invariant: of the messages of one
//! endpoint with the same key at most one is not held, and none while a dead letter blocks the key. Ids rise with
//! acceptance, so the next is the held one with the least: also a replayed one, which is older than what waited for it.

use rusqlite::params;

use super::tally::Pair;
use super::transaction::Transaction;
use crate::ids::{EndpointId, MessageId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::{Pending, Release};

/// In a window or in flight; no index knows it but that of its key.
pub(super) const FRESH: i64 = 0;
/// Indexed by its due time.
pub(super) const WAITING: i64 = 1;
/// Behind another message of its key.
pub(super) const HELD: i64 = 2;

impl Transaction<'_, '_> {
    /// Whether a further message of this key must be held.
    pub(super) fn is_busy(&mut self, endpoint: EndpointId, key: OrderKey) -> rusqlite::Result<bool> {
        let of_key = params![endpoint.0, key.0];
        Ok(self.statements.of_key.exists(of_key)? || self.statements.blocker.exists(of_key)?)
    }

    /// Lets the next message of a key go, due now, if none is under way and nothing blocks it.
    pub(super) fn promote(
        &mut self,
        endpoint: EndpointId,
        key: OrderKey,
        state: i64,
    ) -> rusqlite::Result<Option<Pending>> {
        let of_key = params![endpoint.0, key.0];
        let mut rows = self.statements.of_key.query(of_key)?;
        let Some(row) = rows.next()? else { return Ok(None) };
        if row.get::<_, i64>(3)? != HELD {
            return Ok(None);
        }
        let next = Pending {
            message: MessageId(row.get(0)?),
            endpoint,
            subscription: SubscriptionId(row.get(1)?),
            attempts: row.get(2)?,
            due: self.now,
            again: row.get::<_, Option<i64>>(4)?.map(UnixMillis),
        };
        drop(rows);
        if self.statements.blocker.exists(of_key)? {
            return Ok(None);
        }
        let promoted = params![state, next.due.0, next.message.0];
        self.statements.promote.execute(promoted)?;
        self.effects.ordered.push(((endpoint, next.subscription), -1, 0));
        Ok(Some(next))
    }

    /// Up to `limit` rows of [`crate::queue::Queue::release`].
    pub(super) fn release(&mut self, endpoint: EndpointId, release: Release, limit: usize) -> rusqlite::Result<u64> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let unordered = match release {
            Release::Order => self.unorder(endpoint, limit)?,
            Release::Blocked => 0,
        };
        let left = limit - unordered;
        let blocking = "SELECT id, sub, okey FROM dead WHERE ep = ? AND blocks = 1 LIMIT ?";
        let letters: Vec<(i64, Pair, OrderKey)> = self
            .conn()
            .prepare_cached(blocking)?
            .query_map([i64::from(endpoint.0), left], |row| {
                Ok((
                    row.get(0)?,
                    (endpoint, SubscriptionId(row.get(1)?)),
                    OrderKey(row.get(2)?),
                ))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (letter, pair, key) in &letters {
            self.conn()
                .prepare_cached("UPDATE dead SET blocks = 0 WHERE id = ?")?
                .execute([letter])?;
            self.effects.ordered.push((*pair, 0, -1));
            self.promote(endpoint, *key, WAITING)?;
        }
        Ok(u64::try_from(unordered).unwrap_or(0) + letters.len() as u64)
    }

    /// Takes the keys off messages, key after key; those that were held wait.
    fn unorder(&mut self, endpoint: EndpointId, limit: i64) -> rusqlite::Result<i64> {
        let ordered = "SELECT id, sub, state, okey FROM message WHERE ep = ? AND okey IS NOT NULL
                       ORDER BY okey, state, id LIMIT ?";
        let messages: Vec<(i64, Pair, i64, OrderKey)> = self
            .conn()
            .prepare_cached(ordered)?
            .query_map([i64::from(endpoint.0), limit], |row| {
                let pair = (endpoint, SubscriptionId(row.get(1)?));
                Ok((row.get(0)?, pair, row.get(2)?, OrderKey(row.get(3)?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        for (message, pair, state, _) in &messages {
            let held = *state == HELD;
            self.conn()
                .prepare_cached("UPDATE message SET okey = NULL, state = ? WHERE id = ?")?
                .execute([if held { WAITING } else { *state }, *message])?;
            if held {
                self.effects.ordered.push((*pair, -1, 0));
            }
        }
        // Of the last key some may be left, held behind one that has lost its key: there may be no further step.
        if let Some((.., key)) = messages.last() {
            self.promote(endpoint, *key, WAITING)?;
        }
        Ok(messages.len() as i64)
    }
}
