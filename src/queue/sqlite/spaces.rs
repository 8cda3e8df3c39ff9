//! What each namespace has pending: the counters its quota is compared with. And what it keeps in dead letters, of which the
//! most goes first where there is no room.
//!
//! Counters only: read once from disk on opening, moved after each commit, so that a quota costs no count and nothing
//! drifts. What an event is still to be routed to counts from its acceptance on. Invariant: equal to what the tables hold
//! whenever no commit is under way.

use std::collections::HashMap;

use crate::ids::EndpointId;

/// Messages and bytes of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) messages: u64,
    /// Of the events they carry, once for each message.
    pub(super) bytes: u64,
}

/// Counters by namespace, found by endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Spaces {
    /// By namespace UID: the position in `held`.
    known: HashMap<String, usize>,
    held: Vec<Held>,
    /// By endpoint id, which are dense: the position in `held`.
    of: Vec<Option<usize>>,
    /// Bytes of the events of dead letters, once for each; by position as `held`, and by endpoint where there are any.
    letters: Vec<u64>,
    letters_of: HashMap<EndpointId, Letters>,
}

/// Dead letters of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Letters {
    count: u64,
    bytes: u64,
}

impl Spaces {
    /// An endpoint belongs to this namespace.
    pub(super) fn place(&mut self, endpoint: EndpointId, namespace_uid: &str) {
        let position = match self.known.get(namespace_uid) {
            Some(position) => *position,
            None => {
                self.held.push(Held::default());
                self.letters.push(0);
                self.known.insert(namespace_uid.to_owned(), self.held.len() - 1);
                self.held.len() - 1
            }
        };
        let id = endpoint.0 as usize;
        if self.of.len() <= id {
            self.of.resize(id + 1, None);
        }
        self.of[id] = Some(position);
    }

    /// A message of the endpoint is pending or will be (1), or no longer (-1).
    pub(super) fn add(&mut self, endpoint: EndpointId, messages: i64, bytes: u32) {
        let position = self.of.get(endpoint.0 as usize).copied().flatten();
        if let Some(held) = position.and_then(|position| self.held.get_mut(position)) {
            held.messages = held.messages.saturating_add_signed(messages);
            held.bytes = held.bytes.saturating_add_signed(messages * i64::from(bytes));
        }
    }

    /// A dead letter of the endpoint is made (1) or gone (-1).
    pub(super) fn bury(&mut self, endpoint: EndpointId, count: i64, bytes: u32) {
        let moved = count * i64::from(bytes);
        let position = self.of.get(endpoint.0 as usize).copied().flatten();
        if let Some(letters) = position.and_then(|position| self.letters.get_mut(position)) {
            *letters = letters.saturating_add_signed(moved);
            let of = self.letters_of.entry(endpoint).or_default();
            of.count = of.count.saturating_add_signed(count);
            of.bytes = of.bytes.saturating_add_signed(moved);
            if of.count == 0 {
                self.letters_of.remove(&endpoint);
            }
        }
    }

    /// The endpoint with the most bytes in dead letters, of the namespace with the most, if these are so many.
    pub(super) fn most_letters(&self, at_least: u64) -> Option<EndpointId> {
        let (most, bytes) = self.letters.iter().enumerate().max_by_key(|(_, bytes)| **bytes)?;
        if *bytes < at_least {
            return None;
        }
        let of = self.letters_of.iter();
        let of = of.filter(|(endpoint, _)| self.of.get(endpoint.0 as usize) == Some(&Some(most)));
        of.max_by_key(|(_, letters)| letters.bytes)
            .map(|(endpoint, _)| *endpoint)
    }

    /// What a namespace has pending.
    pub(super) fn held(&self, namespace_uid: &str) -> Held {
        let position = self.known.get(namespace_uid);
        position.map_or(Held::default(), |position| self.held[*position])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_endpoint_holds_counts_for_its_namespace_alone() {
        let mut spaces = Spaces::default();
        spaces.place(EndpointId(1), "a");
        spaces.place(EndpointId(7), "a");
        spaces.place(EndpointId(2), "b");
        spaces.add(EndpointId(1), 1, 100);
        spaces.add(EndpointId(7), 1, 50);
        spaces.add(EndpointId(2), 1, 10);
        spaces.add(EndpointId(1), -1, 100);
        spaces.add(EndpointId(3), 1, 1);
        let held = |namespace| spaces.held(namespace);
        assert_eq!(held("a"), Held { messages: 1, bytes: 50 });
        assert_eq!(held("b"), Held { messages: 1, bytes: 10 });
        assert_eq!(held("c"), Held::default());
    }

    #[test]
    fn the_most_dead_letters_are_those_of_the_namespace_with_the_most_bytes() {
        let mut spaces = Spaces::default();
        for (endpoint, namespace) in [(1, "a"), (2, "a"), (3, "b")] {
            spaces.place(EndpointId(endpoint), namespace);
        }
        assert_eq!(spaces.most_letters(0), None);
        spaces.bury(EndpointId(1), 1, 60);
        spaces.bury(EndpointId(2), 1, 70);
        spaces.bury(EndpointId(3), 1, 100);
        assert_eq!(spaces.most_letters(130), Some(EndpointId(2)));
        assert_eq!(spaces.most_letters(131), None, "nobody keeps so much");
        spaces.bury(EndpointId(2), -1, 70);
        assert_eq!(spaces.most_letters(0), Some(EndpointId(3)));
        spaces.bury(EndpointId(3), -1, 100);
        spaces.bury(EndpointId(1), -1, 60);
        assert_eq!(spaces.most_letters(0), None);
    }
}
