//! A real Kubernetes control plane on this machine, and Tidings in it: for the tests, the demo and the bench.
//!
//! [`Cluster`] is etcd, kube-apiserver and kube-controller-manager, built from their published Go modules (`kubernetes/`
//! beside this crate has the pins of each version) and started in a few seconds. [`Tidings`] is the `tidings` binary's processes
//! in it, each under its own ServiceAccount with exactly the RBAC of `deploy/`. No fake API server anywhere.
//!
//! Everything here blocks: call it from plain tests, or from `#[tokio::test(flavor = "multi_thread")]`, where a blocked
//! worker does not stop the receiver that a test runs beside it.
//!
//! This crate must not know how Tidings works inside; it sees its command line and its files only. Invariant: no child
//! process outlives the process that started it, however that one ends, unless it was started as a daemon by
//! `tidings-local up`.

mod binaries;
mod cache;
mod certificates;
mod cluster;
mod dashboard;
mod helm;
pub mod image;
mod judges;
mod kubectl;
mod leaks;
mod lent;
pub mod node;
mod pages;
pub mod pids;
pub mod process;
mod producers;
mod prometheus;
mod proxy;
pub mod sbom;
mod skips;
mod tidings;
mod verifiers;
mod writes;

pub use binaries::Binaries;
pub use certificates::{ServerCertificate, ThrowawayCa};
pub use cluster::{Cluster, Lifetime};
pub use dashboard::Dashboard;
pub use helm::Helm;
pub use judges::{Kstatus, crdify, kstatus};
pub use kubectl::{eventually, namespace, producer, repository_root};
pub use lent::Lent;
pub use pages::{Block, Page};
pub use producers::Producers;
pub use prometheus::{Prometheus, define_operator_kinds, operator_definitions, promtool};
pub use skips::skipped;
pub use tidings::{
    Controller, ControllerOptions, Dispatcher, DispatcherOptions, Inspect, OPEN_LOOPBACK_LABEL, RAW_KEYS,
    SYSTEM_NAMESPACE, Tidings,
};
pub use verifiers::Verifiers;
pub use writes::{Writes, etcd_writes};
