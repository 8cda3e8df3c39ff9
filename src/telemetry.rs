//! Logs, metrics and health: what every process shows of itself.
//!
//! Owns how records are written and where `/metrics`, `/livez` and `/readyz` are served; knows nothing of what is measured.
//! Invariant: label values come from closed sets, never from an event or a receiver; an object's name is one only where so
//! many at most are named ([fleet](crate::report::fleet)).

pub mod exposition;
pub mod health;
pub mod logs;
pub mod process;
pub mod serve;

pub use health::{Gate, Health};
pub use serve::serve;
