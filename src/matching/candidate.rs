//! One event before what a namespace asks of it: filters, and keys of orders. Pure.
//!
//! Invariant: its data is parsed at the first expression that reads it, and once.

use crate::event::Event;
use crate::expression::Scope;

/// An event that is being matched.
pub struct Candidate<'e> {
    pub(super) event: &'e Event,
    scope: Option<Scope<'e>>,
    /// Filters that looked at it.
    pub(super) looked: usize,
}

impl<'e> Candidate<'e> {
    pub fn new(event: &'e Event) -> Candidate<'e> {
        Candidate {
            event,
            scope: None,
            looked: 0,
        }
    }

    pub(super) fn scope(&mut self) -> &Scope<'e> {
        self.scope.get_or_insert_with(|| Scope::event(self.event))
    }
}
