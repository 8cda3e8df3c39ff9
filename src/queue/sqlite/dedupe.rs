//! The memory side of deduplication: which rows of `seen` may hold a key.
//!
//! Owns no truth: an answer is a list of candidate rows, to be verified on disk by the full key. Invariant: a key that was
//! inserted and not yet dropped is always among the candidates (no false negative).

use std::collections::VecDeque;

/// Bits of an index within a segment.
const INDEX_BITS: u32 = 18;
/// Twice the entries: linear probing stays short. 4 bytes a slot, so 8 bytes an entry.
const SLOTS: usize = 1 << (INDEX_BITS + 1);
const TAG_BITS: u32 = 32 - INDEX_BITS;
/// 17 segments: at least 4 million entries while the oldest has just been dropped; 34 MiB.
pub(super) const MAX_SEGMENTS: usize = 17;

/// The 128-bit key of one event.
pub(super) type Key = [u8; 16];

#[derive(Debug)]
struct Segment {
    number: u64,
    slots: Box<[u32]>,
    len: u64,
    /// Unix second of its newest entry.
    newest: i64,
    /// Unix second of its oldest entry.
    oldest: i64,
}

/// Candidate rows by key, in segments of [`rows_per_segment`] consecutive rows, oldest first.
#[derive(Debug, Default)]
pub(super) struct Dedupe {
    segments: VecDeque<Segment>,
}

fn place(key: &Key) -> (usize, u32) {
    let word = u64::from_le_bytes([key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7]]);
    let slot = (word as usize) & (SLOTS - 1);
    let tag = (word >> 40) as u32 & ((1 << TAG_BITS) - 1);
    (slot, tag)
}

impl Dedupe {
    /// Rows that may hold `key`, newest first.
    pub(super) fn candidates(&self, key: &Key, found: &mut Vec<i64>) {
        found.clear();
        let (start, tag) = place(key);
        for segment in self.segments.iter().rev() {
            let mut slot = start;
            // A taken slot is never 0: the index within the segment is stored plus one.
            while segment.slots[slot] != 0 {
                let value = segment.slots[slot];
                if value >> INDEX_BITS == tag {
                    let index = u64::from(value & ((1 << INDEX_BITS) - 1)) - 1;
                    found.push((segment.number * rows_per_segment() + index) as i64);
                }
                slot = (slot + 1) & (SLOTS - 1);
            }
        }
    }

    /// Adds a row. Rows come in ascending order.
    pub(super) fn insert(&mut self, key: &Key, row: i64, unix_seconds: i64) {
        let row = row as u64;
        let number = row / rows_per_segment();
        if self.segments.back().is_none_or(|segment| segment.number < number) {
            self.segments.push_back(Segment {
                number,
                slots: vec![0u32; SLOTS].into_boxed_slice(),
                len: 0,
                newest: unix_seconds,
                oldest: unix_seconds,
            });
            while self.segments.len() > MAX_SEGMENTS {
                self.segments.pop_front();
            }
        }
        let Some(segment) = self.segments.back_mut() else {
            return;
        };
        let index = (row % rows_per_segment()) as u32 + 1;
        let (mut slot, tag) = place(key);
        while segment.slots[slot] != 0 {
            slot = (slot + 1) & (SLOTS - 1);
        }
        segment.slots[slot] = tag << INDEX_BITS | index;
        segment.len += 1;
        segment.newest = segment.newest.max(unix_seconds);
    }

    /// Drops whole segments whose newest entry is before `unix_seconds`; never the one being filled.
    pub(super) fn expire(&mut self, unix_seconds: i64) {
        while self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|segment| segment.newest < unix_seconds)
        {
            self.segments.pop_front();
        }
    }

    /// The oldest row that is still known; rows before it may be removed from disk.
    pub(super) fn first_row(&self) -> Option<i64> {
        self.segments
            .front()
            .map(|segment| (segment.number * rows_per_segment()) as i64)
    }

    /// Entries held.
    pub(super) fn len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Unix second of the oldest entry, where the window is cut by number and not by age.
    pub(super) fn cut_at(&self) -> Option<i64> {
        (self.segments.len() == MAX_SEGMENTS).then(|| self.segments.front().map(|segment| segment.oldest))?
    }
}

/// Entries a segment holds (dropped together, so the window shrinks in these steps): one less than the index can express,
/// so that a taken slot is never zero.
pub(super) const fn rows_per_segment() -> u64 {
    (1 << INDEX_BITS) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn key(n: u64) -> Key {
        let digest = Sha256::digest(n.to_le_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        key
    }

    #[test]
    fn every_inserted_key_is_a_candidate_also_across_segments() {
        let mut dedupe = Dedupe::default();
        let count = rows_per_segment() as i64 + 5_000;
        for row in 0..count {
            dedupe.insert(&key(row as u64), row, 100);
        }
        let mut found = Vec::new();
        let mut spurious = 0;
        for row in (0..count).step_by(97) {
            dedupe.candidates(&key(row as u64), &mut found);
            assert!(found.contains(&row), "row {row}");
            spurious += found.len() - 1;
        }
        assert!(spurious < 20, "hits to verify in vain: {spurious}");
        assert_eq!(dedupe.len(), count as u64);
    }

    #[test]
    fn old_segments_go_by_age_and_the_last_one_stays() {
        let mut dedupe = Dedupe::default();
        dedupe.insert(&key(1), 1, 100);
        dedupe.insert(&key(2), rows_per_segment() as i64 + 1, 200);
        dedupe.expire(150);
        assert_eq!(dedupe.first_row(), Some(rows_per_segment() as i64));
        dedupe.expire(1_000);
        assert_eq!(dedupe.len(), 1);
    }

    #[test]
    fn the_number_of_segments_is_bounded() {
        let mut dedupe = Dedupe::default();
        for segment in 0..(MAX_SEGMENTS as i64 + 3) {
            dedupe.insert(&key(segment as u64), segment * rows_per_segment() as i64, segment);
        }
        assert_eq!(dedupe.len(), MAX_SEGMENTS as u64);
        assert_eq!(dedupe.cut_at(), Some(3));
    }
}
