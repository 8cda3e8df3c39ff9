//! The custom resources: types, rules, columns, conditions and reasons, CRD generation, and the pure step from a resource
//! with its referenced values and the administrator's policy to something usable ([`resolve`]). Pure.

pub mod address;
pub mod auth;
pub mod census;
pub mod cidr;
pub mod common;
pub mod conditions;
pub mod crd;
pub mod duration;
pub mod egress;
pub mod endpoint;
pub mod event_type;
pub mod limits;
pub mod names;
pub mod ordering;
pub mod policy;
pub mod reference;
pub mod replay;
pub mod request;
pub mod resolve;
pub mod retry;
pub mod selector;
pub mod service;
pub mod status;
pub mod subscription;

pub use endpoint::{WebhookEndpoint, WebhookEndpointSpec};
pub use event_type::{EventType, EventTypeSpec};
pub use replay::{Replay, ReplaySpec};
pub use subscription::{EventSubscription, EventSubscriptionSpec};
