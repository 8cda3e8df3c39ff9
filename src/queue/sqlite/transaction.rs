//! What one transaction of the writer does, statement by statement.
//!
//! Knows nothing of threads or replies. Invariant: nothing in memory moves before the commit; a rollback is forgetting the
//! [`Effects`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Statement, params};

use super::dedupe::Key;
use super::notice::Death;
use super::open::Memory;
use super::order::{FRESH, HELD, WAITING};
use super::purge;
use super::spaces::Held;
use super::tally::Pair;
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};
use crate::queue::{
    Accepted, Arrival, DeadReason, Fence, NewEvent, Placement, QueueError, Quota, Settled, Settlement, StoredEvent,
    Target, Verdict,
};

/// How long a key of deduplication counts.
pub(super) const DEDUPE_WINDOW_SECONDS: i64 = 24 * 3600;

/// What the store says of when something was settled last is ahead by so much, so that it is written that seldom.
const SETTLED_AHEAD: Duration = Duration::from_secs(1);

/// The statements of the hot path, prepared once.
pub(super) struct Statements<'c> {
    pub(super) conn: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    seen: Statement<'c>,
    insert_seen: Statement<'c>,
    insert_event: Statement<'c>,
    insert_message: Statement<'c>,
    take_message: Statement<'c>,
    pub(super) of_key: Statement<'c>,
    pub(super) blocker: Statement<'c>,
    pub(super) promote: Statement<'c>,
    wait_message: Statement<'c>,
    insert_settled: Statement<'c>,
    insert_attempt: Statement<'c>,
    insert_dead: Statement<'c>,
    put_state: Statement<'c>,
}

impl<'c> Statements<'c> {
    pub(super) fn prepare(conn: &'c Connection) -> rusqlite::Result<Statements<'c>> {
        Ok(Statements {
            begin: conn.prepare("BEGIN IMMEDIATE")?,
            commit: conn.prepare("COMMIT")?,
            seen: conn.prepare("SELECT event, hash, matched FROM seen WHERE seq = ?")?,
            insert_seen: conn.prepare("INSERT INTO seen(seq, event, hash, matched) VALUES (?, ?, ?, ?)")?,
            insert_event: conn.prepare("INSERT INTO event(id, attrs, body) VALUES (?, ?, ?)")?,
            insert_message: conn
                .prepare("INSERT INTO message(id, sub, ep, state, attempt, due, bytes, okey) VALUES (?, ?, ?, ?, 0, ?, ?, ?)")?,
            take_message: conn
                .prepare("DELETE FROM message WHERE id = ? AND attempt = ? AND ep = ? AND sub = ? RETURNING bytes, okey, state, replay")?,
            of_key: conn.prepare(
                "SELECT id, sub, attempt, state, again FROM message WHERE ep = ? AND okey = ? ORDER BY state, id LIMIT 1",
            )?,
            blocker: conn.prepare("SELECT 1 FROM dead WHERE ep = ? AND okey = ? AND blocks = 1 LIMIT 1")?,
            promote: conn.prepare("UPDATE message SET state = ?, due = ? WHERE id = ?")?,
            wait_message: conn
                .prepare("UPDATE message SET state = 1, due = ?3, attempt = ?4 WHERE id = ?1 AND attempt = ?2")?,
            insert_settled: conn
                .prepare("INSERT OR REPLACE INTO settled(id, sub, ep, attempts, at, code, ms, okey) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?,
            insert_attempt: conn.prepare(
                "INSERT OR REPLACE INTO attempt(message, n, at, ms, code, reason, excerpt) VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?,
            insert_dead: conn.prepare(
                "INSERT OR REPLACE INTO dead(id, sub, ep, attempts, at, reason, okey, blocks, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?,
            put_state: conn.prepare("INSERT OR REPLACE INTO endpoint_state(ep, state) VALUES (?, ?)")?,
            conn,
        })
    }

    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        self.begin.execute([]).map(drop)
    }

    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.commit.execute([]).map(drop)
    }

    /// Rolls back, unless SQLite has done so by itself after a full disk or an I/O error.
    pub(super) fn roll_back(&self) -> rusqlite::Result<()> {
        if self.conn.is_autocommit() {
            Ok(())
        } else {
            self.conn.execute_batch("ROLLBACK")
        }
    }
}

/// Why an operation could not be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The whole transaction is to be rolled back.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// This operation alone fails; it has changed nothing.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What a transaction will have done to memory once it is committed.
pub(super) struct Effects {
    pub(super) last_event: EventId,
    pub(super) next_seen: i64,
    pub(super) fence: u64,
    /// That of the messages it makes that are pulled, if it makes any.
    pub(super) place: Option<UnixMillis>,
    /// Later than everything is settled, with this transaction.
    pub(super) settled_before: UnixMillis,
    pub(super) settled_until: UnixMillis,
    pub(super) unrouted: i64,
    pub(super) keys: Vec<(Key, i64, EventId)>,
    fresh_keys: HashMap<Key, (EventId, u32)>,
    pub(super) stored: Vec<(Pair, MessageId, u32)>,
    /// Messages that are no longer pending, with their bytes.
    pub(super) settled: Vec<(Pair, u32)>,
    /// Dead letters that are made (1) or gone (-1), with their bytes.
    pub(super) buried: Vec<(Pair, i64, u32)>,
    /// By how much more are held, and block.
    pub(super) ordered: Vec<(Pair, i64, i64)>,
    pub(super) arrivals: Vec<Arrival>,
    /// Endpoints that got an id, with the UID of their namespace.
    pub(super) placed: Vec<(EndpointId, String)>,
    /// What events of namespaces with a quota add.
    admitted: HashMap<Arc<str>, Held>,
    /// Messages that are to be made later (1), or no longer are (-1), with their bytes: their namespace holds them already.
    pub(super) reserved: Vec<(EndpointId, i64, u32)>,
    pub(super) retentions: Vec<(EndpointId, Duration)>,
    /// Endpoints whose namespace is gone, and of which nothing is kept any more.
    pub(super) purge: purge::Marks,
    /// Dead letters of which nobody is told, for want of room.
    pub(super) untold: u64,
    /// Dead letters that go before their time, for want of room.
    pub(super) dropped: u64,
}

impl Effects {
    pub(super) fn new() -> Effects {
        Effects {
            last_event: EventId(0),
            next_seen: 0,
            fence: 0,
            place: None,
            settled_before: UnixMillis(0),
            settled_until: UnixMillis(0),
            unrouted: 0,
            keys: Vec::new(),
            fresh_keys: HashMap::new(),
            stored: Vec::new(),
            settled: Vec::new(),
            buried: Vec::new(),
            ordered: Vec::new(),
            arrivals: Vec::new(),
            placed: Vec::new(),
            admitted: HashMap::new(),
            reserved: Vec::new(),
            retentions: Vec::new(),
            purge: purge::Marks::default(),
            untold: 0,
            dropped: 0,
        }
    }

    /// Starts from what memory holds, keeping the allocations.
    pub(super) fn restart(&mut self, memory: &Memory) {
        self.last_event = memory.last_event;
        self.next_seen = memory.next_seen;
        self.fence = memory.fence;
        self.place = None;
        self.settled_before = memory.settled;
        self.settled_until = memory.settled_until;
        self.unrouted = 0;
        self.keys.clear();
        self.fresh_keys.clear();
        self.stored.clear();
        self.settled.clear();
        self.buried.clear();
        self.ordered.clear();
        self.arrivals.clear();
        self.placed.clear();
        self.admitted.clear();
        self.reserved.clear();
        self.retentions.clear();
        self.purge.clear();
        self.untold = 0;
        self.dropped = 0;
    }

    /// How far the lists are that making a message adds to.
    fn messages(&self) -> [usize; 4] {
        let Effects {
            stored,
            buried,
            ordered,
            arrivals,
            ..
        } = self;
        [stored.len(), buried.len(), ordered.len(), arrivals.len()]
    }

    fn forget_messages_after(&mut self, [stored, buried, ordered, arrivals]: [usize; 4]) {
        self.stored.truncate(stored);
        self.buried.truncate(buried);
        self.ordered.truncate(ordered);
        self.arrivals.truncate(arrivals);
    }
}

/// An event of which more messages are to be made.
struct Unrouted {
    event: EventId,
    done: usize,
    targets: Vec<Target>,
    stored: Arc<StoredEvent>,
}

/// What is known of a message that was taken out.
#[derive(Default)]
struct Taken {
    order: Option<OrderKey>,
    bytes: u32,
}

/// How a message becomes a dead letter.
struct Letter {
    attempts: u16,
    at: UnixMillis,
    reason: DeadReason,
    order: Option<OrderKey>,
    blocks: bool,
    bytes: u32,
}

/// One transaction under way.
pub(super) struct Transaction<'t, 'c> {
    pub(super) statements: &'t mut Statements<'c>,
    pub(super) memory: &'t Memory,
    pub(super) effects: &'t mut Effects,
    pub(super) candidates: &'t mut Vec<i64>,
    pub(super) now: UnixMillis,
    /// Whether no event is taken in for want of room.
    pub(super) full: bool,
}

impl<'c> Transaction<'_, 'c> {
    pub(super) fn conn(&self) -> &'c Connection {
        self.statements.conn
    }

    pub(super) fn check(&self, fence: Fence) -> Result<(), QueueError> {
        if fence.0 == self.effects.fence {
            Ok(())
        } else {
            Err(QueueError::Fenced)
        }
    }

    pub(super) fn claim(&mut self) -> Result<Fence, Refusal> {
        let fence = self.effects.fence + 1;
        self.conn()
            .execute("UPDATE meta SET value = ? WHERE key = 'fence'", [fence as i64])?;
        self.effects.fence = fence;
        Ok(Fence(fence))
    }

    pub(super) fn accept(&mut self, events: &[NewEvent]) -> Result<Vec<Accepted>, Refusal> {
        // Before anything is written: a refusal takes nothing back.
        if let Some(wide) = events.iter().find(|event| event.targets.len() > MessageId::PER_EVENT) {
            return Err(QueueError::TooWide(wide.targets.len()).into());
        }
        if events.iter().any(|event| event.quota != Quota::default()) {
            self.admit(events)?;
        }
        let mut answers = Vec::with_capacity(events.len());
        for event in events {
            let answer = match self.first_answer(&event.dedupe)? {
                Some((event, matched)) => Accepted::Duplicate { event, matched },
                None => self.store(event)?,
            };
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Counts what is new of the events against their namespaces' quotas: all of them fit, or one that does not is told.
    fn admit(&mut self, events: &[NewEvent]) -> Result<(), Refusal> {
        let mut adding: HashMap<Arc<str>, Held> = HashMap::new();
        let mut met: HashSet<&Key> = HashSet::new();
        for event in events {
            let messages = pending(&event.targets).count() as u64;
            if messages == 0 || !met.insert(&event.dedupe) || self.first_answer(&event.dedupe)?.is_some() {
                continue;
            }
            let before = self.effects.admitted.get(&event.namespace_uid).copied();
            let adds = adding
                .entry(Arc::clone(&event.namespace_uid))
                .or_insert(before.unwrap_or_default());
            adds.messages += messages;
            adds.bytes += messages * u64::from(size(&event.event));
            let held = self.memory.spaces.held(&event.namespace_uid);
            for (quota, limit, would) in [
                ("pendingMessages", event.quota.messages, held.messages + adds.messages),
                ("pendingBytes", event.quota.bytes, held.bytes + adds.bytes),
            ] {
                if let Some(limit) = limit
                    && would > limit
                {
                    return Err(QueueError::OverQuota { quota, limit }.into());
                }
            }
        }
        self.effects.admitted.extend(adding);
        Ok(())
    }

    fn first_answer(&mut self, key: &Key) -> rusqlite::Result<Option<(EventId, u32)>> {
        if let Some(answer) = self.effects.fresh_keys.get(key) {
            return Ok(Some(*answer));
        }
        self.memory.dedupe.candidates(key, self.candidates);
        let oldest = self.now.0 / 1000 - DEDUPE_WINDOW_SECONDS;
        for seq in self.candidates.iter() {
            let mut rows = self.statements.seen.query([seq])?;
            let Some(row) = rows.next()? else { continue };
            let event = EventId(row.get(0)?);
            if row.get_ref(1)?.as_blob()? == key && event.unix_seconds() >= oldest {
                return Ok(Some((event, row.get(2)?)));
            }
        }
        Ok(None)
    }

    fn store(&mut self, new: &NewEvent) -> Result<Accepted, Refusal> {
        let event = EventId::next(self.effects.last_event, self.now.0 / 1000);
        let matched = new.targets.len() as u32;
        let seq = self.effects.next_seen;
        self.statements
            .insert_seen
            .execute(params![seq, event.0, &new.dedupe[..], matched])?;
        if !new.targets.is_empty() {
            self.statements
                .insert_event
                .execute(params![event.0, &new.event.attributes[..], &new.event.body[..]])?;
            let at_once = new.at_once();
            for (ordinal, target) in new.targets[..at_once].iter().enumerate() {
                self.message(MessageId::new(event, ordinal as u32), target, &new.event)?;
            }
            if at_once < new.targets.len() {
                self.conn().execute(
                    "INSERT INTO unrouted(event, done, targets) VALUES (?, ?, ?)",
                    params![event.0, at_once as i64, pack(&new.targets)],
                )?;
                self.effects.unrouted += 1;
                self.reserve(&new.targets[at_once..], 1, size(&new.event));
            }
        }
        self.effects.last_event = event;
        self.effects.next_seen = seq + 1;
        self.effects.keys.push((new.dedupe, seq, event));
        self.effects.fresh_keys.insert(new.dedupe, (event, matched));
        Ok(Accepted::New { event, matched })
    }

    /// Holds (1) or gives back (-1) what messages that are made later count for in their namespace.
    fn reserve(&mut self, targets: &[Target], messages: i64, bytes: u32) {
        let pending = pending(targets).map(|endpoint| (endpoint, messages, bytes));
        self.effects.reserved.extend(pending);
    }

    pub(super) fn message(
        &mut self,
        message: MessageId,
        target: &Target,
        event: &Arc<StoredEvent>,
    ) -> rusqlite::Result<()> {
        let Target {
            subscription,
            endpoint,
            placement,
            order,
        } = *target;
        let (state, due) = match placement {
            Placement::Fresh => (Some(FRESH), self.now),
            Placement::Waiting => (Some(WAITING), self.now),
            Placement::Pulled => (Some(WAITING), self.place()?),
            Placement::QueueFull => (None, self.now),
        };
        let pair = (endpoint, subscription);
        let mut held = false;
        if let Some(mut state) = state {
            if let Some(key) = order
                && self.is_busy(endpoint, key)?
            {
                (state, held) = (HELD, true);
                self.effects.ordered.push((pair, 1, 0));
            }
            self.statements.insert_message.execute(params![
                message.0,
                subscription.0,
                endpoint.0,
                state,
                due.0,
                size(event),
                order.map(|key| key.0)
            ])?;
            self.effects.stored.push((pair, message, size(event)));
        } else {
            let letter = Letter {
                attempts: 0,
                at: self.now,
                reason: DeadReason::QueueFull,
                order,
                blocks: false,
                bytes: size(event),
            };
            self.dead(message, pair, letter)?;
        }
        self.effects.arrivals.push(Arrival {
            message,
            endpoint,
            subscription,
            placement,
            held,
            event: Arc::clone(event),
        });
        Ok(())
    }

    /// The place of messages that are pulled and become pending with this transaction. It rises whatever the clock does, also
    /// over restarts; those of one transaction share it, since they are seen together.
    pub(super) fn place(&mut self) -> rusqlite::Result<UnixMillis> {
        if let Some(place) = self.effects.place {
            return Ok(place);
        }
        let place = UnixMillis(self.now.0.max(self.memory.place.0 + 1));
        let mut keep = self
            .conn()
            .prepare_cached("UPDATE meta SET value = ? WHERE key = 'place'")?;
        keep.execute([place.0])?;
        self.effects.place = Some(place);
        Ok(place)
    }

    /// Something is settled now.
    fn settles(&mut self) -> rusqlite::Result<()> {
        let effects = &mut *self.effects;
        effects.settled_before = effects.settled_before.max(UnixMillis(self.now.0 + 1));
        if effects.settled_before > effects.settled_until {
            effects.settled_until = self.now.plus(SETTLED_AHEAD);
            let mut keep = self
                .statements
                .conn
                .prepare_cached("UPDATE meta SET value = ? WHERE key = 'settled'")?;
            keep.execute([effects.settled_until.0])?;
        }
        Ok(())
    }

    fn dead(&mut self, message: MessageId, pair: Pair, letter: Letter) -> rusqlite::Result<()> {
        self.settles()?;
        let (EndpointId(ep), SubscriptionId(sub)) = pair;
        let blocks = letter.blocks && letter.order.is_some();
        self.statements.insert_dead.execute(params![
            message.0,
            sub,
            ep,
            letter.attempts,
            letter.at.0,
            letter.reason.reason(),
            letter.order.map(|key| key.0),
            blocks,
            letter.bytes
        ])?;
        self.effects.buried.push((pair, 1, letter.bytes));
        if blocks {
            self.effects.ordered.push((pair, 0, 1));
        }
        Ok(())
    }

    /// Takes a message from those that are pending, if it is still there with so many attempts.
    fn take(
        &mut self,
        message: MessageId,
        pair: Pair,
        attempts: u16,
        delivered: bool,
    ) -> rusqlite::Result<Option<Taken>> {
        let (EndpointId(ep), SubscriptionId(sub)) = pair;
        let of_pair = params![message.0, attempts, ep, sub];
        let mut rows = self.statements.take_message.query(of_pair)?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let taken = Taken {
            order: row.get::<_, Option<i64>>(1)?.map(OrderKey),
            bytes: row.get(0)?,
        };
        self.effects.settled.push((pair, taken.bytes));
        if row.get::<_, i64>(2)? == HELD {
            self.effects.ordered.push((pair, -1, 0));
        }
        let replay: Option<i64> = row.get(3)?;
        drop(rows);
        if let Some(replay) = replay {
            self.replayed(replay, delivered)?;
        }
        Ok(Some(taken))
    }

    /// Makes up to `limit` further messages of the oldest event that is not routed whole. One that cannot be routed is set
    /// aside: it stays on disk and holds up neither this commit nor the events after it.
    pub(super) fn route(&mut self, limit: usize) -> rusqlite::Result<()> {
        let Some(wide) = self.oldest_unrouted()? else {
            return Ok(());
        };
        let before = self.effects.messages();
        self.conn().execute_batch("SAVEPOINT route")?;
        match self.route_some(&wide, limit) {
            Ok(()) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                self.conn().execute_batch("ROLLBACK TO route")?;
                self.effects.forget_messages_after(before);
                self.effects.settled_until = self.memory.settled_until;
                self.conn()
                    .execute("UPDATE unrouted SET done = -1 WHERE event = ?", [wide.event.0])?;
                self.effects.unrouted -= 1;
                self.reserve(
                    wide.targets.get(wide.done..).unwrap_or_default(),
                    -1,
                    size(&wide.stored),
                );
                tracing::error!(event = wide.event.0, %error, "an event's further messages cannot be made: it is set aside");
            }
            Err(error) => return Err(error),
        }
        self.conn().execute_batch("RELEASE route")
    }

    fn oldest_unrouted(&self) -> rusqlite::Result<Option<Unrouted>> {
        let mut oldest = self.conn().prepare(
            "SELECT u.event, u.done, u.targets, e.attrs, e.body FROM unrouted u JOIN event e ON e.id = u.event
             WHERE u.done >= 0 ORDER BY u.event LIMIT 1",
        )?;
        let mut rows = oldest.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let event = EventId(row.get(0)?);
        let mut targets = unpack(row.get_ref(2)?.as_blob()?);
        if event <= self.memory.inherited {
            // The places that they took were another process's to lend.
            let fresh = targets.iter_mut().filter(|target| target.placement == Placement::Fresh);
            fresh.for_each(|target| target.placement = Placement::Waiting);
        }
        Ok(Some(Unrouted {
            event,
            done: row.get::<_, u32>(1)? as usize,
            targets,
            stored: Arc::new(StoredEvent {
                attributes: row.get::<_, Vec<u8>>(3)?.into(),
                body: row.get::<_, Vec<u8>>(4)?.into(),
            }),
        }))
    }

    fn route_some(&mut self, wide: &Unrouted, limit: usize) -> rusqlite::Result<()> {
        let Unrouted {
            event,
            done,
            targets,
            stored,
        } = wide;
        let until = targets.len().min(done.saturating_add(limit));
        for (ordinal, target) in targets.iter().enumerate().take(until).skip(*done) {
            self.message(MessageId::new(*event, ordinal as u32), target, stored)?;
        }
        if until == targets.len() {
            self.conn().execute("DELETE FROM unrouted WHERE event = ?", [event.0])?;
            self.effects.unrouted -= 1;
        } else {
            self.conn().execute(
                "UPDATE unrouted SET done = ? WHERE event = ?",
                params![until as i64, event.0],
            )?;
        }
        self.reserve(targets.get(*done..until).unwrap_or_default(), -1, size(stored));
        Ok(())
    }

    pub(super) fn settle(&mut self, settlements: &[Settlement]) -> Result<Vec<Settled>, Refusal> {
        let mut answers = Vec::with_capacity(settlements.len());
        for settlement in settlements {
            answers.push(self.settle_one(settlement)?);
        }
        Ok(answers)
    }

    fn settle_one(&mut self, settlement: &Settlement) -> rusqlite::Result<Settled> {
        let Settlement {
            message,
            endpoint,
            subscription,
            attempts,
            ref record,
            verdict,
            consumed,
            blocks,
            next_waits,
            tell,
        } = *settlement;
        let pair = (endpoint, subscription);
        let applied = match verdict {
            Verdict::Wait { due, attempts: kept } => {
                let wait = &mut self.statements.wait_message;
                (wait.execute(params![message.0, attempts, due.0, kept])? > 0).then_some(Taken::default())
            }
            Verdict::Delivered | Verdict::Dead { .. } => {
                self.take(message, pair, attempts, verdict == Verdict::Delivered)?
            }
        };
        let Some(Taken { order, bytes }) = applied else {
            return Ok(Settled::Stale);
        };
        // Not when the attempt began: what is kept is kept from now on, and what is replayed was settled before.
        let at = self.now;
        match verdict {
            Verdict::Wait { .. } => {}
            Verdict::Delivered => {
                self.settles()?;
                let code = record.as_ref().and_then(|record| record.status);
                let ms = record.as_ref().map(|record| millis(record.took));
                self.statements.insert_settled.execute(params![
                    message.0,
                    subscription.0,
                    endpoint.0,
                    attempts + 1,
                    at.0,
                    code,
                    ms,
                    order.map(|key| key.0)
                ])?;
            }
            Verdict::Dead { reason } => {
                let letter = Letter {
                    attempts: consumed,
                    at,
                    reason,
                    order,
                    blocks,
                    bytes,
                };
                self.dead(message, pair, letter)?;
            }
        }
        // A delivery's own attempt is the settled row; only failures are written twice. One that consumed nothing (a probe)
        // has the number of the next, which replaces it.
        if let Some(record) = record
            && matches!(verdict, Verdict::Wait { .. } | Verdict::Dead { .. })
        {
            self.statements.insert_attempt.execute(params![
                message.0,
                attempts + 1,
                record.at.0,
                millis(record.took),
                record.status,
                record.reason,
                record.excerpt.as_deref(),
            ])?;
        }
        if let (Some(to), Verdict::Dead { reason }) = (tell, verdict) {
            let death = Death {
                message,
                endpoint,
                subscription,
                attempts: consumed,
                at,
                reason,
            };
            self.tell(to, &death)?;
        }
        let Some(key) = order else {
            return Ok(Settled::Applied);
        };
        if blocks && matches!(verdict, Verdict::Dead { .. }) {
            return Ok(Settled::Blocked);
        }
        let next = self.promote(endpoint, key, if next_waits { WAITING } else { FRESH })?;
        Ok(next.map_or(Settled::Applied, Settled::Promoted))
    }

    pub(super) fn put_states(&mut self, states: &[(EndpointId, bytes::Bytes)]) -> Result<(), Refusal> {
        for (endpoint, state) in states {
            self.statements.put_state.execute(params![endpoint.0, &state[..]])?;
        }
        Ok(())
    }

    /// Turns these messages into dead letters, where they are still as they were read.
    pub(super) fn bury(&mut self, found: &[(MessageId, Pair, u16)], reason: DeadReason) -> Result<u64, Refusal> {
        let mut count = 0;
        for (message, pair, attempts) in found {
            if let Some(Taken { order, bytes }) = self.take(*message, *pair, *attempts, false)? {
                let letter = Letter {
                    attempts: *attempts,
                    at: self.now,
                    reason,
                    order,
                    blocks: false,
                    bytes,
                };
                self.dead(*message, *pair, letter)?;
                if let Some(key) = order {
                    self.promote(pair.0, key, WAITING)?;
                }
                count += 1;
            }
        }
        Ok(count)
    }
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What a message counts for in its namespace: the bytes of its event.
fn size(event: &StoredEvent) -> u32 {
    u32::try_from(event.size()).unwrap_or(u32::MAX)
}

/// Bytes of one packed target: subscription, endpoint, placement. What has an order is made at once, and never packed.
const PACKED: usize = 9;

fn pack(targets: &[Target]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(targets.len() * PACKED);
    for target in targets {
        packed.extend_from_slice(&target.subscription.0.to_le_bytes());
        packed.extend_from_slice(&target.endpoint.0.to_le_bytes());
        packed.push(match target.placement {
            Placement::Fresh => 0,
            Placement::Waiting => 1,
            Placement::QueueFull => 2,
            Placement::Pulled => 3,
        });
    }
    packed
}

/// The endpoints of those targets that become pending messages.
pub(super) fn pending(targets: &[Target]) -> impl Iterator<Item = EndpointId> + '_ {
    let pending = |target: &&Target| target.placement != Placement::QueueFull;
    targets.iter().filter(pending).map(|target| target.endpoint)
}

pub(super) fn unpack(packed: &[u8]) -> Vec<Target> {
    let (targets, _) = packed.as_chunks::<PACKED>();
    let word = |b: &[u8; PACKED], at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    targets
        .iter()
        .map(|b| Target {
            subscription: SubscriptionId(word(b, 0)),
            endpoint: EndpointId(word(b, 4)),
            placement: match b[8] {
                0 => Placement::Fresh,
                1 => Placement::Waiting,
                3 => Placement::Pulled,
                _ => Placement::QueueFull,
            },
            order: None,
        })
        .collect()
}
