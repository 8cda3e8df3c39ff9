//! One event before what a namespace asks of it: filters, and keys of orders. Pure.
//!
//! Invariant: its data is parsed at the first expression that reads it, and once.

use crate::event::Event;
use crate::expression::{EvaluationError, Expression, Scope};
use crate::ids::OrderKey;

/// An event that is being matched.
pub struct Candidate<'e> {
    pub(super) event: &'e Event,
    budget: u64,
    scope: Option<Scope<'e>>,
    /// Keys that expressions gave: every subscription of an endpoint gets the same one.
    pub(super) keys: Vec<(Expression, OrderKey, Option<EvaluationError>)>,
    /// Filters that looked at it.
    pub(super) looked: usize,
}

impl<'e> Candidate<'e> {
    /// One for whose filters there is this budget left (see [`crate::expression::TOGETHER`]).
    pub fn new(event: &'e Event, budget: u64) -> Candidate<'e> {
        Candidate {
            event,
            budget,
            scope: None,
            keys: Vec::new(),
            looked: 0,
        }
    }

    /// What filters have cost.
    pub fn spent(&self) -> u64 {
        self.scope.as_ref().map_or(0, Scope::spent)
    }

    pub(super) fn scope(&mut self) -> &Scope<'e> {
        self.scope
            .get_or_insert_with(|| Scope::event(self.event).with_budget(self.budget))
    }
}
