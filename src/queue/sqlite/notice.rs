//! Messages that tell of dead letters: made with the settlement that they tell of, or not at all.
//!
//! A message is told of by a copy of its event with an id of its own: so it grows old from then on, and stays while what it
//! tells of is pruned or sent again. Invariant: a message that tells of a dead letter is never told of itself.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::reader;
use super::transaction::Transaction;
use crate::ids::{EndpointId, EventId, MessageId, SubscriptionId, UnixMillis};
use crate::queue::{DeadReason, Notice, Placement, Target};

/// A dead letter, as it is told of.
pub(super) struct Death {
    pub(super) message: MessageId,
    pub(super) endpoint: EndpointId,
    pub(super) subscription: SubscriptionId,
    pub(super) attempts: u16,
    pub(super) at: UnixMillis,
    pub(super) reason: DeadReason,
}

impl Transaction<'_, '_> {
    /// Makes the message that tells `to` of a dead letter. While the store is full none is made: outcomes must fit.
    pub(super) fn tell(&mut self, to: EndpointId, death: &Death) -> rusqlite::Result<()> {
        let message = death.message;
        if message.is_notice() {
            return Ok(());
        }
        if self.full {
            tracing::warn!(%message, "the store is full: nobody is told of a dead letter");
            self.effects.untold += 1;
            return Ok(());
        }
        let Some(stored) = reader::event(self.conn(), message.event())? else {
            return Ok(());
        };
        let stored = Arc::new(stored);
        let event = EventId::next(self.effects.last_event, self.now.0 / 1000);
        let conn = self.conn();
        let mut answered = conn.prepare_cached(
            "SELECT code FROM attempt WHERE message = ? AND code IS NOT NULL ORDER BY n DESC LIMIT 1",
        )?;
        let status: Option<u16> = answered.query_row([message.0], |row| row.get(0)).optional()?;
        conn.prepare_cached("INSERT INTO event(id, attrs, body) VALUES (?, ?, ?)")?
            .execute(params![event.0, &stored.attributes[..], &stored.body[..]])?;
        conn.prepare_cached(
            "INSERT INTO notice(event, message, sub, ep, attempts, at, reason, code) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            event.0,
            message.0,
            death.subscription.0,
            death.endpoint.0,
            death.attempts,
            death.at.0,
            death.reason.reason(),
            status
        ])?;
        self.effects.last_event = event;
        let target = Target {
            subscription: death.subscription,
            endpoint: to,
            placement: Placement::Waiting,
            order: None,
        };
        self.message(MessageId::notice(event), &target, &stored)
    }
}

/// What the message of a copied event tells of.
pub(super) fn read(conn: &Connection, event: EventId) -> rusqlite::Result<Option<Notice>> {
    let mut statement = conn.prepare_cached(
        "SELECT n.message, s.name, e.name, n.attempts, n.at, n.reason, n.code FROM notice n
         JOIN subscription s ON s.id = n.sub JOIN endpoint e ON e.id = n.ep WHERE n.event = ?",
    )?;
    let found = statement.query_row([event.0], |row| {
        Ok(Notice {
            message: MessageId(row.get(0)?),
            subscription: row.get(1)?,
            endpoint: row.get(2)?,
            attempts: row.get(3)?,
            at: UnixMillis(row.get(4)?),
            reason: row.get(5)?,
            status: row.get(6)?,
        })
    });
    found.optional()
}
