//! What was sent, acknowledged and received, event by event: the book that every id is reconciled in.
//!
//! Owns times and counts by event number; knows nothing of HTTP. Invariant: a number is given out once, so an event that
//! is acknowledged and never arrives is lost, and one that arrives twice is a duplicate, whoever sent it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Instant;

/// Digits of an event's number on the wire.
pub const DIGITS: usize = 10;

/// Times are microseconds since the book was opened, zero where nothing happened yet.
pub struct Ledger {
    opened: Instant,
    next: AtomicU32,
    sent: Box<[AtomicU32]>,
    acked: Box<[AtomicU32]>,
    arrived: Box<[AtomicU32]>,
    arrivals: Box<[AtomicU8]>,
    first: OnceLock<Instant>,
}

/// What the book says at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reconciled {
    pub acknowledged: usize,
    /// Acknowledged and never received.
    pub lost: usize,
    /// Received more than once.
    pub duplicates: usize,
    /// Received although no acknowledgement came: allowed, the producer would have sent it again.
    pub unacknowledged: usize,
}

/// A part of the book, by when its events were sent.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub from: Instant,
    pub until: Instant,
}

impl Span {
    pub fn seconds(&self) -> f64 {
        self.until.duration_since(self.from).as_secs_f64()
    }
}

impl Ledger {
    /// Room for so many events; what lies beyond is not sent.
    pub fn open(events: usize) -> Ledger {
        let zeros = || (0..events).map(|_| AtomicU32::new(0)).collect();
        Ledger {
            opened: Instant::now(),
            next: AtomicU32::new(0),
            sent: zeros(),
            acked: zeros(),
            arrived: zeros(),
            arrivals: (0..events).map(|_| AtomicU8::new(0)).collect(),
            first: OnceLock::new(),
        }
    }

    /// The first of `count` numbers that nobody had before; none when the book is full.
    pub fn numbers(&self, count: u32) -> Option<u32> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        ((first + count) as usize <= self.sent.len()).then_some(first)
    }

    /// Given out so far.
    pub fn given(&self) -> usize {
        (self.next.load(Ordering::Relaxed) as usize).min(self.sent.len())
    }

    fn micros(&self, at: Instant) -> u32 {
        let micros = at.saturating_duration_since(self.opened).as_micros();
        u32::try_from(micros).unwrap_or(u32::MAX).max(1)
    }

    /// An event is sent, or should have been by its schedule.
    pub fn sent(&self, number: u32, at: Instant) {
        self.sent[number as usize].store(self.micros(at), Ordering::Relaxed);
    }

    /// Its 202 was read.
    pub fn acked(&self, number: u32) {
        self.acked[number as usize].store(self.micros(Instant::now()), Ordering::Relaxed);
    }

    /// It was received. False: no such event was sent.
    pub fn arrived(&self, number: u32) -> bool {
        let Some(arrivals) = self.arrivals.get(number as usize) else {
            return false;
        };
        self.first.get_or_init(Instant::now);
        if arrivals.fetch_add(1, Ordering::Relaxed) == 0 {
            self.arrived[number as usize].store(self.micros(Instant::now()), Ordering::Relaxed);
        }
        true
    }

    /// Acknowledged events that have not arrived yet.
    pub fn outstanding(&self) -> usize {
        let book = self.acked.iter().zip(&self.arrivals).take(self.given());
        book.filter(|(acked, arrivals)| acked.load(Ordering::Relaxed) > 0 && arrivals.load(Ordering::Relaxed) == 0)
            .count()
    }

    /// When the first event arrived, as far as one has.
    pub fn first_arrival(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    fn times<'a>(&self, of: &'a [AtomicU32]) -> impl Iterator<Item = u32> + use<'a> {
        let given = self.given();
        of.iter()
            .take(given)
            .map(|time| time.load(Ordering::Relaxed))
            .filter(|time| *time > 0)
    }

    fn happened(&self, of: &[AtomicU32], within: Span) -> usize {
        let (from, until) = (self.micros(within.from), self.micros(within.until));
        self.times(of).filter(|time| (from..until).contains(time)).count()
    }

    /// Acknowledgements within a span.
    pub fn acked_within(&self, span: Span) -> usize {
        self.happened(&self.acked, span)
    }

    /// First arrivals within a span.
    pub fn arrived_within(&self, span: Span) -> usize {
        self.happened(&self.arrived, span)
    }

    fn latencies(&self, of: &[AtomicU32], sent_within: Span) -> Latencies {
        let (from, until) = (self.micros(sent_within.from), self.micros(sent_within.until));
        let mut micros: Vec<u32> = (0..self.given())
            .filter_map(|number| {
                let sent = self.sent[number].load(Ordering::Relaxed);
                let done = of[number].load(Ordering::Relaxed);
                ((from..until).contains(&sent) && done > 0).then(|| done.saturating_sub(sent))
            })
            .collect();
        micros.sort_unstable();
        Latencies { micros }
    }

    /// From sending to the 202, of events sent within a span.
    pub fn ack_latencies(&self, span: Span) -> Latencies {
        self.latencies(&self.acked, span)
    }

    /// From sending to the whole request at the receiver, of events sent within a span.
    pub fn end_to_end_latencies(&self, span: Span) -> Latencies {
        self.latencies(&self.arrived, span)
    }

    /// Events that arrived after one of the same key that was sent when they were acknowledged; a number's key is what
    /// remains of it by `keys`.
    pub fn overtaken(&self, keys: usize) -> usize {
        let at = |of: &[AtomicU32], number: usize| of[number].load(Ordering::Relaxed);
        let overtaken = |number: &usize| {
            let next = number + keys;
            let in_turn = at(&self.acked, *number) > 0 && at(&self.acked, *number) < at(&self.sent, next);
            in_turn && at(&self.arrived, next) > 0 && at(&self.arrived, *number) > at(&self.arrived, next)
        };
        (0..self.given().saturating_sub(keys)).filter(overtaken).count()
    }

    /// Every id looked up.
    pub fn reconcile(&self) -> Reconciled {
        let mut sum = Reconciled::default();
        for number in 0..self.given() {
            let acked = self.acked[number].load(Ordering::Relaxed) > 0;
            let arrivals = self.arrivals[number].load(Ordering::Relaxed);
            sum.acknowledged += usize::from(acked);
            sum.lost += usize::from(acked && arrivals == 0);
            sum.duplicates += usize::from(arrivals > 1);
            sum.unacknowledged += usize::from(!acked && arrivals > 0);
        }
        sum
    }
}

/// Sorted latencies.
pub struct Latencies {
    micros: Vec<u32>,
}

impl Latencies {
    /// A percentile in milliseconds: the smallest value that so many percent do not exceed.
    pub fn percentile(&self, percent: f64) -> f64 {
        let rank = (self.micros.len() as f64 * percent / 100.0).ceil() as usize;
        self.micros
            .get(rank.max(1) - 1)
            .map_or(f64::NAN, |micros| f64::from(*micros) / 1000.0)
    }

    pub fn len(&self) -> usize {
        self.micros.len()
    }

    /// Several of them as one.
    pub fn merged(all: impl IntoIterator<Item = Latencies>) -> Latencies {
        let mut micros: Vec<u32> = all.into_iter().flat_map(|one| one.micros).collect();
        micros.sort_unstable();
        Latencies { micros }
    }
}
