//! Status by server-side apply: each writer always sends its full own set of fields, with force.
//!
//! The body carries the `resourceVersion` of the object the status was computed from: without it a late write would land
//! on an object that was deleted and recreated (`/status` ignores `metadata.uid`). Invariant: what is equal but for
//! `observedTime` is not written.

use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{RequestError, within};

/// The field that alone is no change.
const OBSERVED_TIME: &str = "observedTime";

/// What became of a status write.
#[derive(Debug)]
pub enum Written<K> {
    /// The object as the server has it now.
    Applied(Box<K>),
    /// The object changed or went since it was read: wait for the watch, recompute.
    Outdated,
}

/// Applies `own` as the whole set of status fields that `manager` owns on `object`. Nulls in it are left out: in a
/// server-side apply they would mean "I own this null".
pub async fn apply<K>(api: &Api<K>, manager: &str, object: &K, own: &Value) -> Result<Written<K>, RequestError>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(object.name_any()));
    metadata.insert("namespace".into(), json!(object.namespace()));
    metadata.insert("resourceVersion".into(), json!(object.resource_version()));
    let body = without_nulls(json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": metadata,
        "status": own,
    }));
    let params = PatchParams::apply(manager).force();
    match within(api.patch_status(&object.name_any(), &params, &Patch::Apply(&body))).await {
        Ok(object) => Ok(Written::Applied(Box::new(object))),
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(Written::Outdated),
        Err(error) => Err(error),
    }
}

/// Cuts from a status the part one writer owns: the named fields, and the conditions whose type `is_own` accepts.
pub fn own_part(status: &impl Serialize, fields: &[&str], is_own: impl Fn(&str) -> bool) -> Value {
    let status = serde_json::to_value(status).unwrap_or(Value::Null);
    let mut own = Map::new();
    for field in fields {
        if let Some(value) = status.get(field) {
            own.insert((*field).to_owned(), value.clone());
        }
    }
    let conditions: Vec<Value> = status
        .get("conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|c| c.get("type").and_then(Value::as_str).is_some_and(&is_own))
        .cloned()
        .collect();
    if !conditions.is_empty() {
        own.insert("conditions".into(), Value::Array(conditions));
    }
    without_nulls(Value::Object(own))
}

/// Whether two own parts say the same: `observedTime`, nulls, empty lists and objects, and the order of conditions do not
/// count.
pub fn is_unchanged(current: &Value, wanted: &Value) -> bool {
    normal(current.clone()) == normal(wanted.clone())
}

/// A condition whose `lastTransitionTime` moves only when its status does.
pub fn condition(previous: &[Condition], now: Timestamp, new: NewCondition<'_>) -> Condition {
    let since = previous
        .iter()
        .find(|c| c.type_ == new.type_ && c.status == new.status)
        .map_or(Time(seconds(now)), |c| c.last_transition_time.clone());
    Condition {
        type_: new.type_.to_owned(),
        status: new.status.to_owned(),
        reason: new.reason.to_owned(),
        message: new.message,
        observed_generation: Some(new.generation),
        last_transition_time: since,
    }
}

/// What a condition is to say.
#[derive(Clone, Debug)]
pub struct NewCondition<'a> {
    pub type_: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    pub reason: &'a str,
    pub message: String,
    pub generation: i64,
}

/// Kubernetes times have whole seconds; a finer one would differ from what the server gives back.
pub fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k, without_nulls(v)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

fn normal(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(k, _)| k != OBSERVED_TIME)
                .map(|(k, v)| match (k.as_str(), normal(v)) {
                    ("conditions", Value::Array(mut list)) => {
                        list.sort_by_key(|c| c.get("type").map(Value::to_string));
                        (k, Value::Array(list))
                    }
                    (_, v) => (k, v),
                })
                .filter(|(_, v)| !is_empty(v))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(normal).collect()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observed_time_nulls_and_order_are_no_change() {
        let current = json!({"delivery": {"observedTime": "2026-01-01T00:00:00Z", "pending": 1}, "references": [],
            "conditions": [{"type": "Ready"}, {"type": "Stalled"}]});
        let wanted = json!({"delivery": {"observedTime": "2026-01-02T00:00:00Z", "pending": 1, "retry": null},
            "conditions": [{"type": "Stalled"}, {"type": "Ready"}]});
        assert!(is_unchanged(&current, &wanted));
        let other = json!({"delivery": {"pending": 2}});
        assert!(!is_unchanged(&current, &other));
    }

    #[test]
    fn a_dropped_field_is_a_change() {
        let status = json!({"target": "https://a", "delivery": {"pending": 3}, "conditions": [{"type": "Ready"}, {"type": "Delivering"}]});
        let own = own_part(&status, &["target"], |t| t != "Delivering");
        assert_eq!(own, json!({"target": "https://a", "conditions": [{"type": "Ready"}]}));
        assert!(!is_unchanged(&own, &json!({"conditions": [{"type": "Ready"}]})));
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let first: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let later: Timestamp = "2026-01-01T00:01:00.5Z".parse().unwrap();
        let new = |status, reason| NewCondition {
            type_: "Ready",
            status,
            reason,
            message: String::new(),
            generation: 2,
        };
        let before = condition(&[], first, new("False", "SecretNotFound"));
        let same = condition(std::slice::from_ref(&before), later, new("False", "SecretKeyMissing"));
        assert_eq!(same.last_transition_time.0, first);
        let turned = condition(&[before], later, new("True", "Resolved"));
        assert_eq!(turned.last_transition_time.0.to_string(), "2026-01-01T00:01:00Z");
    }
}
