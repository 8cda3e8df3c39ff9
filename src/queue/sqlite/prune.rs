//! What leaves the store: delivered history and dead letters past their time, keys of deduplication past the window.
//!
//! How long history is kept is its endpoint's to say, and an event has messages of several. An event is looked at when the
//! shortest time that counts is over, and what must stay is written down with when to look again: so every row is looked at
//! a few times in its life, whatever lies beside it, and what nobody asked to keep shorter or longer is looked at once. A time
//! that becomes shorter has what was looked at already looked at anew, from the endpoint's first event on, by a cursor of its
//! own: whoever makes endpoints or changes times without end keeps no event from its first look.
//!
//! Ids and times are a clock's, which may have been ahead, and may be behind. So what has an id of a time to come is looked
//! at as soon as all before it was, and written down, and no look is put off for longer than anything is kept. But what was
//! settled at a time to come stays until then, unless room is needed: it may be the clock of now that is wrong.
//!
//! Where room is needed delivered history goes before its time, and when none is left dead letters: the oldest of whoever
//! keeps most, so that nobody's dead letters keep out everybody's events.
//!
//! Rejected: walking over all that must stay again and again, and an expiry for every message on the hot path. Invariant:
//! while there is room a row goes only when its endpoint's time is over since it was settled, an event only when nothing of
//! it is left; it is written down to be looked at again at most once; and one commit removes a bounded number of rows.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Statement, params};

use super::dedupe::Dedupe;
use super::order::WAITING;
use super::purge;
use super::space::Pressure;
use super::transaction::{DEDUPE_WINDOW_SECONDS, Transaction};
use crate::ids::{EndpointId, EventId, MessageId, OrderKey, SubscriptionId, UnixMillis};

/// Rows removed in one commit: a few hundred microseconds.
pub(super) const ROWS: usize = 256;
/// Events looked at in one commit.
const EVENTS: usize = 128;
/// Steps over events that must stay, within one call of `Queue::prune`.
pub(super) const STEPS: usize = 64;
/// When there was nothing more to remove, look again after this, or sooner where something is kept for less than four
/// times as long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Whatever it is kept for.
const LOOK_AGAIN_FIRST: Duration = Duration::from_secs(1);
/// Under pressure delivered events go, but not within this time: a little history for whoever looks.
const UNDER_PRESSURE_KEEP: Duration = Duration::from_secs(60);
/// Dead letters that go before their time in one commit, after which it is looked whether more must.
const LETTERS: usize = 32;
/// What goes before its time is logged so often at most.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Most messages are settled within this after they were accepted, so that one look at their event finds them all over.
const LAG_MAX: Duration = Duration::from_secs(3600);
/// And within this part of the time they are kept.
const LAG_PART: u32 = 16;
/// After every event.
pub(super) const END: EventId = EventId(i64::MAX >> MessageId::ORDINAL_BITS);
/// Stands in the store where nothing is to be looked at anew.
const NOTHING: EventId = EventId(i64::MAX);

/// How long endpoints' history is kept.
#[derive(Debug, Default)]
pub(super) struct Retentions {
    pub(super) default: Duration,
    /// Where it is another.
    own: HashMap<EndpointId, Duration>,
}

impl Retentions {
    /// Those of the store; `default` for endpoints it was never told of.
    pub(super) fn read(conn: &Connection, default: Duration) -> rusqlite::Result<Retentions> {
        let mut rows = conn.prepare("SELECT ep, seconds FROM retention WHERE seconds > 0")?;
        let own = rows.query_map([], |row| {
            let seconds = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            Ok((EndpointId(row.get(0)?), Duration::from_secs(seconds)))
        })?;
        Ok(Retentions {
            default,
            own: own.collect::<rusqlite::Result<_>>()?,
        })
    }

    pub(super) fn of(&self, endpoint: EndpointId) -> Duration {
        self.own.get(&endpoint).copied().unwrap_or(self.default)
    }

    pub(super) fn note(&mut self, endpoint: EndpointId, retention: Duration) {
        match retention == self.default {
            true => self.own.remove(&endpoint),
            false => self.own.insert(endpoint, retention),
        };
    }

    /// Until when no look is put off.
    fn latest(&self, now: UnixMillis) -> UnixMillis {
        let longest = self.own.values().copied().max().unwrap_or_default().max(self.default);
        now.plus(longest + LAG_MAX)
    }

    fn shortest(&self) -> Duration {
        self.own
            .values()
            .copied()
            .min()
            .unwrap_or(self.default)
            .min(self.default)
    }
}

/// Writes down how long an endpoint's history is kept. What was looked at already is looked at anew where it may go sooner.
pub(super) fn keep(
    transaction: &mut Transaction<'_, '_>,
    retentions: &[(EndpointId, Duration)],
) -> rusqlite::Result<()> {
    let conn = transaction.conn();
    let mut put = conn.prepare("INSERT OR REPLACE INTO retention(ep, seconds) VALUES (?, ?)")?;
    let mut renew = conn.prepare(
        "UPDATE meta SET value = min(value, coalesce((SELECT since FROM endpoint WHERE id = ?), 0)) WHERE key = 'renew_from'",
    )?;
    for &(endpoint, retention) in retentions {
        let told = transaction.effects.retentions.iter().rev();
        let told = told.clone().find(|(known, _)| *known == endpoint);
        let before = told.map_or_else(|| transaction.memory.retentions.of(endpoint), |(_, told)| *told);
        if before == retention {
            continue;
        }
        put.execute(params![
            endpoint.0,
            i64::try_from(retention.as_secs()).unwrap_or(i64::MAX)
        ])?;
        if retention < before {
            renew.execute([endpoint.0])?;
        }
        transaction.effects.retentions.push((endpoint, retention));
    }
    Ok(())
}

/// For so long after its time something may still be there.
fn lag(retention: Duration) -> Duration {
    (retention / LAG_PART).min(LAG_MAX)
}

fn before(now: UnixMillis, age: Duration) -> UnixMillis {
    UnixMillis(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}

pub(super) struct Pruner {
    next: Instant,
    pressure: Pressure,
    /// A namespace that keeps less in dead letters keeps them.
    share: u64,
    /// Under pressure: a pass came to its end, so what history may go is gone.
    relieved: bool,
    /// Dead letters that went before their time and were not told of yet, and when some were told of.
    untold: u64,
    told: Option<Instant>,
    /// Under pressure: events up to here were looked at in this pass.
    cursor: EventId,
    /// When the step began that has done nothing but look anew: it rests for as long as it took.
    rests: Option<Instant>,
    /// Rows of `seen` below `keep_seen` may go; those below `seen` are gone.
    seen: Option<i64>,
    keep_seen: i64,
}

/// What one look found.
pub(super) struct Pruned {
    pub(super) rows: usize,
    pub(super) cursor: EventId,
    pub(super) finished: bool,
}

impl Pruner {
    /// One for which a namespace may keep `share` bytes in dead letters whatever others do.
    pub(super) fn new(now: Instant, share: u64) -> Pruner {
        Pruner {
            next: now,
            pressure: Pressure::Nothing,
            share,
            relieved: false,
            untold: 0,
            told: None,
            cursor: EventId(0),
            rests: None,
            seen: None,
            keep_seen: 0,
        }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Looks now: something is kept for another time.
    pub(super) fn look(&mut self) {
        self.next = Instant::now();
    }

    /// Tells whether the store nears its limit: what goes before its time.
    pub(super) fn pressure(&mut self, pressure: Pressure) {
        if pressure > self.pressure {
            self.next = Instant::now();
        }
        if self.pressure == Pressure::Nothing {
            self.cursor = EventId(0);
            self.relieved = false;
        }
        self.pressure = pressure;
    }

    /// Drops keys of deduplication past the window from memory; their rows follow.
    pub(super) fn after_commit(&mut self, dedupe: &mut Dedupe, now: UnixMillis) {
        dedupe.expire(now.0 / 1000 - DEDUPE_WINDOW_SECONDS);
        if let Some(first) = dedupe.first_row() {
            self.keep_seen = first;
        }
        if let Some(began) = self.rests.take() {
            self.next = Instant::now() + began.elapsed();
        }
    }

    /// One bounded step, when it is time.
    pub(super) fn run(&mut self, transaction: &mut Transaction<'_, '_>) -> rusqlite::Result<()> {
        // What this transaction says of retentions counts once it is committed.
        if !self.is_due() || !transaction.effects.retentions.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let retentions = &transaction.memory.retentions;
        let mut finished = revisit(transaction, retentions)?;
        finished &= sweep(transaction, retentions)?;
        // Gives way to what is looked at in its turn.
        let renewed = !finished || purge::step(transaction)? && renew(transaction, retentions)?;
        if self.pressure > Pressure::Nothing {
            finished &= self.relieve(transaction, retentions)?;
        }
        if self.pressure == Pressure::Letters && self.relieved {
            finished &= self.drop_letters(transaction, retentions)?;
        }
        finished &= self.seen(transaction)?;
        if finished && !renewed {
            self.rests = Some(began);
        } else if finished {
            let again = match self.pressure {
                Pressure::History | Pressure::Letters => LOOK_AGAIN_FIRST,
                Pressure::Nothing => (retentions.shortest() / 4).clamp(LOOK_AGAIN_FIRST, LOOK_AGAIN),
            };
            self.next = Instant::now() + again;
        }
        Ok(())
    }

    /// Delivered history before its time, from the old end. Walks over what is delivered alone: where receivers are away
    /// nearly all of a full store must stay. Then what has an id of a time to come.
    fn relieve(&mut self, transaction: &mut Transaction<'_, '_>, retentions: &Retentions) -> rusqlite::Result<bool> {
        let now = transaction.now;
        // Before any dead letter.
        let keep = match self.pressure {
            Pressure::Letters => Duration::ZERO,
            Pressure::History | Pressure::Nothing => UNDER_PRESSURE_KEEP,
        };
        let expires = |row: Row, endpoint: EndpointId, at: UnixMillis| match row {
            Row::Delivered if at > now => now,
            Row::Delivered => at.plus(keep.min(retentions.of(endpoint))),
            Row::Dead => at.plus(retentions.of(endpoint)),
        };
        let mut found = delivered(transaction.conn(), self.cursor, first_of(before(now, keep)))?;
        if found.events.is_empty() {
            let to_come = EventId(first_of(now).0 - 1);
            found = delivered(transaction.conn(), self.cursor.max(to_come), END)?;
        } else {
            found.are_all = false;
        }
        let pruned = remove(transaction, found, self.cursor, now, expires, ROWS)?;
        self.cursor = if pruned.finished { EventId(0) } else { pruned.cursor };
        self.relieved = pruned.rows == 0 && (self.relieved || pruned.finished);
        Ok(pruned.finished)
    }

    /// The oldest dead letters of whoever keeps most. True: nobody keeps too much.
    fn drop_letters(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        retentions: &Retentions,
    ) -> rusqlite::Result<bool> {
        let Some(most) = transaction.memory.spaces.most_letters(self.share) else {
            return Ok(true);
        };
        let (conn, now) = (transaction.conn(), transaction.now);
        let mut oldest = conn.prepare("SELECT id FROM dead WHERE ep = ? ORDER BY id LIMIT ?")?;
        let oldest = oldest.query_map(
            params![most.0, LETTERS as i64],
            |row| Ok(MessageId(row.get(0)?).event()),
        )?;
        let found = Found::of(oldest)?;
        let expires = |row: Row, endpoint: EndpointId, at: UnixMillis| match row {
            Row::Dead if endpoint == most => now,
            Row::Delivered | Row::Dead => at.plus(retentions.of(endpoint)),
        };
        let before = transaction.effects.buried.len();
        remove(transaction, found, EventId(0), now, expires, ROWS)?;
        let gone = &transaction.effects.buried[before..];
        let dropped = gone.iter().filter(|((endpoint, _), ..)| *endpoint == most).count() as u64;
        transaction.effects.dropped += dropped;
        self.untold += dropped;
        if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let dropped = std::mem::take(&mut self.untold);
            let mut name = conn.prepare("SELECT ns, name FROM endpoint WHERE id = ?")?;
            let (namespace_uid, endpoint): (String, String) =
                name.query_row([most.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
            tracing::warn!(
                dropped,
                namespace_uid,
                endpoint,
                "the store is nearly full: the oldest dead letters of whoever keeps most go before their time"
            );
        }
        Ok(false)
    }

    fn seen(&mut self, transaction: &mut Transaction<'_, '_>) -> rusqlite::Result<bool> {
        let conn = transaction.conn();
        let from = match self.seen {
            Some(seen) => seen,
            None => conn
                .query_row("SELECT min(seq) FROM seen", [], |row| row.get::<_, Option<i64>>(0))?
                .unwrap_or(0),
        };
        let until = self.keep_seen.min(from + ROWS as i64);
        if until > from {
            conn.execute("DELETE FROM seen WHERE seq >= ? AND seq < ?", params![from, until])?;
        }
        // Wrong by one step after a rollback, which the next opening puts right.
        self.seen = Some(until.max(from));
        Ok(until >= self.keep_seen)
    }
}

/// What was written down to be looked at now, or later than anything is. True: there is no more.
fn revisit(transaction: &mut Transaction<'_, '_>, retentions: &Retentions) -> rusqlite::Result<bool> {
    let (conn, now) = (transaction.conn(), transaction.now);
    let mut due = conn
        .prepare("SELECT event FROM revisit WHERE at <= ? UNION ALL SELECT event FROM revisit WHERE at > ? LIMIT ?")?;
    let latest = retentions.latest(now);
    let due = due.query_map([now.0, latest.0, EVENTS as i64], |row| Ok(EventId(row.get(0)?)))?;
    let found = Found::of(due)?;
    let reached = settle_down(transaction, &found.events, retentions)?;
    Ok(found.are_all && reached == found.events.last().copied())
}

/// Events whose shortest time is over, each once: what must stay is written down. True: there are no more.
fn sweep(transaction: &mut Transaction<'_, '_>, retentions: &Retentions) -> rusqlite::Result<bool> {
    let (conn, now) = (transaction.conn(), transaction.now);
    let shortest = retentions.shortest();
    let over = first_of(before(now, shortest + lag(shortest)));
    let swept = number(conn, "swept")?;
    let mut found = events(conn, swept, over)?;
    if found.events.is_empty() && next(conn, swept)?.is_some_and(|next| next >= first_of(now)) {
        found = events(conn, swept, END)?;
    }
    let Some(reached) = settle_down(transaction, &found.events, retentions)? else {
        return Ok(true);
    };
    put_number(conn, "swept", reached)?;
    Ok(found.are_all && found.events.last() == Some(&reached))
}

/// Swept events once more, since a time became shorter. A look that is under way is ended before the next begins, so each
/// ends. True: there is none.
fn renew(transaction: &mut Transaction<'_, '_>, retentions: &Retentions) -> rusqlite::Result<bool> {
    let conn = transaction.conn();
    let (mut after, mut until) = (number(conn, "renewed")?, number(conn, "renew_until")?);
    if after >= until {
        let from = number(conn, "renew_from")?;
        if from == NOTHING {
            return Ok(true);
        }
        (after, until) = (from, number(conn, "swept")?);
        put_number(conn, "renew_until", until)?;
        put_number(conn, "renew_from", NOTHING)?;
    }
    let found = events(conn, after, EventId(until.0 + 1))?;
    let reached = settle_down(transaction, &found.events, retentions)?;
    let is_whole = found.are_all && reached == found.events.last().copied();
    put_number(conn, "renewed", reached.filter(|_| !is_whole).unwrap_or(until))?;
    Ok(false)
}

/// Looks at these events until enough is removed, and writes down when to look again at what must stay; the last one looked
/// at.
fn settle_down(
    transaction: &mut Transaction<'_, '_>,
    events: &[EventId],
    retentions: &Retentions,
) -> rusqlite::Result<Option<EventId>> {
    let mut reached = None;
    if events.is_empty() {
        return Ok(reached);
    }
    let mut visitor = Visitor::new(transaction.conn())?;
    for event in events {
        visitor.settle_down(transaction, *event, retentions)?;
        reached = Some(*event);
        if visitor.rows >= ROWS {
            break;
        }
    }
    Ok(reached)
}

fn number(conn: &Connection, key: &str) -> rusqlite::Result<EventId> {
    let mut number = conn.prepare_cached("SELECT value FROM meta WHERE key = ?")?;
    number.query_row([key], |row| Ok(EventId(row.get(0)?)))
}

fn put_number(conn: &Connection, key: &str, event: EventId) -> rusqlite::Result<()> {
    let mut put = conn.prepare_cached("UPDATE meta SET value = ? WHERE key = ?")?;
    put.execute(params![event.0, key]).map(drop)
}

/// Removes from `after` on what expires until `now` (by its endpoint and when it was settled), of events accepted before
/// `until`.
pub(super) fn history(
    transaction: &mut Transaction<'_, '_>,
    after: EventId,
    until: UnixMillis,
    now: UnixMillis,
    expires: impl Fn(Row, EndpointId, UnixMillis) -> UnixMillis,
    rows: usize,
) -> rusqlite::Result<Pruned> {
    let found = events(transaction.conn(), after, first_of(until))?;
    remove(transaction, found, after, now, expires, rows)
}

/// The same of these events, which come after `after`.
pub(super) fn remove(
    transaction: &mut Transaction<'_, '_>,
    found: Found,
    after: EventId,
    now: UnixMillis,
    expires: impl Fn(Row, EndpointId, UnixMillis) -> UnixMillis,
    rows: usize,
) -> rusqlite::Result<Pruned> {
    let mut pruned = Pruned {
        rows: 0,
        cursor: after,
        finished: found.are_all,
    };
    if found.events.is_empty() {
        return Ok(pruned);
    }
    let mut visitor = Visitor::new(transaction.conn())?;
    for event in found.events {
        if visitor.rows >= rows {
            pruned.finished = false;
            break;
        }
        pruned.cursor = event;
        visitor.visit(transaction, event, now, &expires)?;
    }
    pruned.rows = visitor.rows;
    Ok(pruned)
}

/// Events to be looked at, at most [`EVENTS`].
pub(super) struct Found {
    events: Vec<EventId>,
    /// There are no more.
    are_all: bool,
}

impl Found {
    /// Those of at most [`EVENTS`] rows, each once.
    fn of(rows: impl Iterator<Item = rusqlite::Result<EventId>>) -> rusqlite::Result<Found> {
        let mut events: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        let are_all = events.len() < EVENTS;
        events.dedup();
        Ok(Found { events, are_all })
    }
}

/// The next events after one and before another.
pub(super) fn events(conn: &Connection, after: EventId, until: EventId) -> rusqlite::Result<Found> {
    let mut events = conn.prepare("SELECT id FROM event WHERE id > ? AND id < ? ORDER BY id LIMIT ?")?;
    let between = params![after.0, until.0, EVENTS as i64];
    Found::of(events.query_map(between, |row| Ok(EventId(row.get(0)?)))?)
}

fn next(conn: &Connection, after: EventId) -> rusqlite::Result<Option<EventId>> {
    let mut next = conn.prepare_cached("SELECT id FROM event WHERE id > ? ORDER BY id LIMIT 1")?;
    next.query_row([after.0], |row| Ok(EventId(row.get(0)?))).optional()
}

/// The next of them of which a message was delivered.
fn delivered(conn: &Connection, after: EventId, until: EventId) -> rusqlite::Result<Found> {
    let mut messages = conn.prepare("SELECT id FROM settled WHERE id >= ? AND id < ? ORDER BY id LIMIT ?")?;
    let from = EventId(after.0 + 1);
    let between = params![MessageId::new(from, 0).0, MessageId::new(until, 0).0, EVENTS as i64];
    Found::of(messages.query_map(between, |row| Ok(MessageId(row.get(0)?).event()))?)
}

/// An event that is accepted in the second of a time, or later.
fn first_of(until: UnixMillis) -> EventId {
    EventId((until.0.div_euclid(1000) + 1) << EventId::SEQUENCE_BITS)
}

/// What a message left.
#[derive(Clone, Copy)]
pub(super) enum Row {
    Delivered,
    Dead,
}

/// What is still there of an event after a look.
#[derive(Default)]
struct Left {
    /// When the first of its rows will be too old.
    expires: Option<UnixMillis>,
    /// The endpoints of messages not settled yet; none of one that is not made yet.
    pending: Vec<Option<EndpointId>>,
}

/// The statements of a look, and what they removed.
struct Visitor<'c> {
    rows: usize,
    pending: Statement<'c>,
    settled: Statement<'c>,
    dead: Statement<'c>,
    remove_settled: Statement<'c>,
    remove_dead: Statement<'c>,
    remove_attempts: Statement<'c>,
    remove_event: Statement<'c>,
    remove_notice: Statement<'c>,
    later: Statement<'c>,
    no_more: Statement<'c>,
}

impl<'c> Visitor<'c> {
    fn new(conn: &'c Connection) -> rusqlite::Result<Visitor<'c>> {
        Ok(Visitor {
            rows: 0,
            pending: conn.prepare(
                "SELECT ep FROM message WHERE id BETWEEN ?1 AND ?2 UNION ALL SELECT NULL FROM unrouted WHERE event = ?3",
            )?,
            settled: conn.prepare("SELECT id, ep, at FROM settled WHERE id BETWEEN ? AND ?")?,
            dead: conn.prepare("SELECT id, ep, at FROM dead WHERE id BETWEEN ? AND ?")?,
            remove_settled: conn.prepare("DELETE FROM settled WHERE id = ?")?,
            remove_dead: conn.prepare("DELETE FROM dead WHERE id = ? RETURNING ep, sub, okey, blocks, bytes")?,
            remove_attempts: conn.prepare("DELETE FROM attempt WHERE message = ?")?,
            remove_event: conn.prepare("DELETE FROM event WHERE id = ?")?,
            remove_notice: conn.prepare("DELETE FROM notice WHERE event = ?")?,
            later: conn.prepare(
                "INSERT INTO revisit(event, at) VALUES (?, ?)
                 ON CONFLICT(event) DO UPDATE SET at = excluded.at WHERE at <> excluded.at",
            )?,
            no_more: conn.prepare("DELETE FROM revisit WHERE event = ?")?,
        })
    }

    /// Looks at an event, and writes down when to look again at what must stay.
    fn settle_down(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        event: EventId,
        retentions: &Retentions,
    ) -> rusqlite::Result<()> {
        let now = transaction.now;
        let left = self.visit(transaction, event, now, |_, endpoint, at| {
            at.plus(retentions.of(endpoint))
        })?;
        // What is settled later than now is kept from then on; until then it is looked at ever more seldom.
        let patience = match event >= first_of(now) {
            true => LAG_MAX,
            false => {
                let age = now.since(UnixMillis(event.unix_seconds().saturating_mul(1000)));
                (age / 4).clamp(LOOK_AGAIN_FIRST, LAG_MAX)
            }
        };
        let pending = left.pending.iter().map(|endpoint| match endpoint {
            Some(endpoint) => now.plus(retentions.of(*endpoint).max(patience)),
            None => now.plus(patience),
        });
        match left.expires.into_iter().chain(pending).min() {
            Some(at) => self.later.execute([event.0, at.min(retentions.latest(now)).0])?,
            None => self.no_more.execute([event.0])?,
        };
        Ok(())
    }

    /// Removes what expires until `now`, and the event when nothing of it is left.
    fn visit(
        &mut self,
        transaction: &mut Transaction<'_, '_>,
        event: EventId,
        now: UnixMillis,
        expires: impl Fn(Row, EndpointId, UnixMillis) -> UnixMillis,
    ) -> rusqlite::Result<Left> {
        let first = MessageId::new(event, 0).0;
        let last = first + (1 << MessageId::ORDINAL_BITS) - 1;
        let mut left = Left::default();
        let mut gone: Vec<(Row, i64)> = Vec::new();
        for (row, found) in [(Row::Delivered, &mut self.settled), (Row::Dead, &mut self.dead)] {
            let mut found = found.query([first, last])?;
            while let Some(one) = found.next()? {
                let (endpoint, at) = (EndpointId(one.get(1)?), UnixMillis(one.get(2)?));
                let expires = expires(row, endpoint, at);
                if expires <= now {
                    gone.push((row, one.get(0)?));
                } else {
                    let look = expires.plus(lag(expires.since(at)));
                    left.expires = Some(left.expires.map_or(look, |before| before.min(look)));
                }
            }
        }
        let mut pending = self.pending.query([first, last, event.0])?;
        while let Some(one) = pending.next()? {
            left.pending.push(one.get::<_, Option<u32>>(0)?.map(EndpointId));
        }
        drop(pending);
        let mut unblocked = Vec::new();
        for (row, id) in gone {
            match row {
                Row::Delivered => self.rows += self.remove_settled.execute([id])?,
                Row::Dead => {
                    let mut removed = self.remove_dead.query([id])?;
                    while let Some(one) = removed.next()? {
                        let pair = (EndpointId(one.get(0)?), SubscriptionId(one.get(1)?));
                        transaction.effects.buried.push((pair, -1, one.get(4)?));
                        if one.get(3)? {
                            transaction.effects.ordered.push((pair, 0, -1));
                            unblocked.extend(one.get::<_, Option<i64>>(2)?.map(|key| (pair.0, OrderKey(key))));
                        }
                        self.rows += 1;
                    }
                }
            }
            self.rows += self.remove_attempts.execute([id])?;
        }
        for (endpoint, key) in unblocked {
            transaction.promote(endpoint, key, WAITING)?;
        }
        if left.expires.is_none() && left.pending.is_empty() {
            self.rows += self.remove_event.execute([event.0])?;
            self.rows += self.remove_notice.execute([event.0])?;
        }
        Ok(left)
    }
}
