//! `EventType`: what an event of one type must look like. Doc comments here are what `kubectl explain` shows.

#![expect(
    clippy::duplicated_attributes,
    reason = "every printcolumn has a type and a path of its own; the lint does not see that they are nested"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::status::EventTypeStatus;

/// A declared type of event in its namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "tidings.dev",
    version = "v1alpha1",
    kind = "EventType",
    plural = "eventtypes",
    shortname = "evtype",
    category = "tidings",
    namespaced,
    selectable = ".spec.type",
    status = "EventTypeStatus",
    derive = "PartialEq",
    doc = "A type of event in its namespace, and the JSON Schema that data of events of this type must fit. Where two objects declare the same type, the oldest counts.",
    printcolumn(
        name = "Type",
        type_ = "string",
        json_path = ".spec.type",
        description = "The CloudEvents type that is declared"
    ),
    printcolumn(
        name = "Validation",
        type_ = "string",
        json_path = ".spec.validation",
        description = "What happens to an event that does not fit"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Loaded: an event sent now is checked"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EventTypeSpec {
    /// The CloudEvents type, exact, as in lead.qualified. Cannot be changed.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^[^*\\s]+$')").message("type must be one exact type, without * or white space, as in lead.qualified"),
        validation = Rule::new("self == oldSelf").message("type cannot be changed: create another EventType for the other type")
    )]
    pub r#type: String,

    /// The JSON Schema, draft 2020-12, that an event's data must fit. A $ref may only point into the schema itself.
    #[schemars(schema_with = "any_object")]
    pub schema: Value,

    /// What happens to an event whose data does not fit: Reject refuses it with 422; Warn accepts it and says so in the
    /// answer; "Off" (in quotes, or YAML reads false) accepts it.
    #[serde(default)]
    pub validation: Validation,

    /// What the event means, for people: at most 4096 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,

    /// Examples of data, at most 16; each must fit the schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("items" = {"x-kubernetes-preserve-unknown-fields": true}))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub examples: Vec<Value>,
}

/// What happens to an event whose data does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Validation {
    #[default]
    Reject,
    Warn,
    Off,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-map-type": "atomic",
    })
}
