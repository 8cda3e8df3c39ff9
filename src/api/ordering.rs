//! In what order an endpoint's messages go out. Doc comments here are what `kubectl explain` shows.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// In what order messages go out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode == 'FIFO' || !has(self.key)").message("ordering.key has no effect without mode: FIFO: set the mode, or remove key"),
    validation = Rule::new("self.mode == 'FIFO' || self.onExhausted == 'Block'").message("ordering.onExhausted has no effect without mode: FIFO: set the mode, or remove onExhausted")
)]
pub struct Ordering {
    /// None: messages go out as fast as the receiver takes them, and one that fails is overtaken. FIFO: of the messages with
    /// the same key, each goes out when the one accepted before it is delivered or given up; keys do not wait for each
    /// other. Messages accepted while it was None stay without an order; a change to None lets all go that wait for their
    /// turn.
    #[serde(default)]
    pub mode: OrderingMode,
    /// What messages must have in common to go out one after the other: a CEL expression over event that gives a string or a
    /// whole number, as in event.data.account. Without it: the event's extension partitionkey, else its subject, else one
    /// key for all. It is evaluated when the event is accepted; events for which it fails share one key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key: Option<String>,
    /// What a message that is given up (a dead letter) means for those behind it. Block: they wait until it is sent
    /// again by a Replay, is no longer kept, or this is changed. Skip: they go on without it.
    #[serde(default)]
    pub on_exhausted: OnExhausted,
}

/// In what order messages go out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OrderingMode {
    #[default]
    None,
    #[serde(rename = "FIFO")]
    Fifo,
}

/// What a dead letter means for the messages behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnExhausted {
    #[default]
    Block,
    Skip,
}
