//! An endpoint's `ordering` to a [`Fifo`].

use super::{Fifo, FifoKey, Unresolved};
use crate::api::ordering::{OnExhausted, Ordering, OrderingMode};
use crate::expression::{Expression, Role};

/// How messages are ordered; none: not at all.
pub fn resolve_ordering(ordering: &Ordering) -> Result<Option<Fifo>, Unresolved> {
    if ordering.mode == OrderingMode::None {
        return Ok(None);
    }
    let key = match &ordering.key {
        None => FifoKey::Usual,
        Some(source) => {
            let compiled = Expression::compile(Role::Key, source);
            FifoKey::Expression(compiled.map_err(|error| Unresolved::invalid(format!("ordering.key: {error}")))?)
        }
    };
    Ok(Some(Fifo {
        key,
        blocks: ordering.on_exhausted == OnExhausted::Block,
    }))
}
