//! Tidings: a Kubernetes operator for outgoing webhooks.
//!
//! The rooms follow the way of an event: `ingest` authenticates and parses, `schema` checks, `matching` finds the
//! subscriptions (by `expression`s, where they filter), `queue` stores durably, `engine` starts attempts and records
//! outcomes as `schedule` decides, `delivery` guards, signs and sends, `report` tells Kubernetes; `replay` makes kept
//! messages pending again. What is loaded of the resources is in `registry`, kept in step with
//! the cluster by `watch`; what is kept or compared over minutes has the time of `clock`; `traces` tells OpenTelemetry of an event's way. `api`, `event`, `matching`, `signing` and
//! `schedule` are pure: no client, no socket, no clock of their own. Processes (`controller`, `dispatcher`, `inspect`) put
//! rooms together; nothing imports a process but `cli`, which picks one.

#[cfg(test)]
mod allocated;
pub mod api;
pub mod blocking;
pub mod cli;
pub mod clock;
pub mod config;
pub mod controller;
pub mod delivery;
pub mod descriptors;
pub mod dispatcher;
pub mod engine;
pub mod event;
pub mod expression;
pub mod ids;
pub mod ingest;
pub mod inspect;
pub mod kubernetes;
pub mod listen;
pub mod matching;
pub mod queue;
pub mod registry;
pub mod replay;
pub mod report;
pub mod schedule;
pub mod schema;
pub mod shaping;
pub mod signing;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod traces;
pub mod watch;
