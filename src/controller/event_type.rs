//! An EventType's reconcile: the oldest object of a type counts, its schema must compile, dispatchers must have it.

use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::conditions::{Conditions, Readiness, was_ready};
use super::context::{Context, Key};
use super::index::By;
use super::memory::Asked;
use super::work::{Again, Error};
use crate::api::EventType;
use crate::api::census::age;
use crate::api::conditions::reasons;
use crate::api::names::{CONTROLLER, RECONCILE_REQUESTED};
use crate::api::status::EventTypeStatus;
use crate::kubernetes::status::{Written, is_unchanged, own_part};
use crate::schema::TypeRule;

const PLURAL: &str = "eventtypes";
const FIELDS: &[&str] = &["observedGeneration"];

/// Brings one declaration's status up to date.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Again, Error> {
    let key = Key::EventType(namespace.to_owned(), name.to_owned());
    let found = context.stores.event_types.get(&ObjectRef::new(name).within(namespace));
    let Some(event_type) = found.filter(|t| t.metadata.deletion_timestamp.is_none()) else {
        context.memory.forget(&key);
        context.wait_for_dispatcher(key, false);
        return Ok(None);
    };
    let asked = Asked {
        uid: event_type.uid().unwrap_or_default(),
        generation: event_type.metadata.generation.unwrap_or_default(),
        requests: vec![event_type.annotations().get(RECONCILE_REQUESTED).cloned()],
    };
    let seen = context
        .memory
        .see(&key, asked, event_type.resource_version().as_deref(), Instant::now());
    let of_type = By::Type(event_type.spec.r#type.clone());
    let same = context.stores.event_types.find(namespace, &of_type);
    let older = same
        .into_iter()
        .filter(|other| counts_before(other, &event_type))
        .min_by_key(|other| age(&**other));
    let previous = event_type
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let generation = event_type.metadata.generation.unwrap_or_default();
    let readiness = match usable(&event_type, older.as_deref()) {
        Err(failed) => failed,
        Ok(()) => {
            let fleet = context.fleet.lock().unwrap_or_else(|e| e.into_inner()).clone();
            if was_ready(previous, generation) || seen.is_loaded(PLURAL, namespace, &fleet) {
                Readiness::Ready {
                    reason: reasons::COMPILED,
                    message: format!("generation {generation} is loaded: events of this type are checked"),
                }
            } else {
                Readiness::Waiting {
                    message: match fleet.live {
                        0 => "no dispatcher is running: its Lease in Tidings' namespace would say so".to_owned(),
                        _ => format!("the dispatcher is loading generation {generation}"),
                    },
                }
            }
        }
    };
    context.wait_for_dispatcher(key.clone(), matches!(readiness, Readiness::Waiting { .. }));
    apply(context, &key, &event_type, &readiness).await?;
    Ok(None)
}

/// Whether it counts and compiles; `older` declares the same type.
fn usable(event_type: &EventType, older: Option<&EventType>) -> Result<(), Readiness> {
    let failed = |reason, message| Readiness::Failed {
        reason,
        message,
        stalled: true,
    };
    if let Some(older) = older {
        let message = format!(
            "EventType {} declares {} already, and the oldest counts: delete one of them",
            older.name_any(),
            event_type.spec.r#type
        );
        return Err(failed(reasons::DUPLICATE_TYPE, message));
    }
    TypeRule::compile(&event_type.spec)
        .map(|_| ())
        .map_err(|error| failed(reasons::INVALID_SCHEMA, error.message))
}

/// Whether `other` declares the same type and is the older: by creation, then by UID, as the dispatcher orders them.
fn counts_before(other: &EventType, this: &EventType) -> bool {
    other.spec.r#type == this.spec.r#type
        && other.metadata.deletion_timestamp.is_none()
        && other.metadata.uid != this.metadata.uid
        && age(other) < age(this)
}

async fn apply(context: &Context, key: &Key, event_type: &EventType, readiness: &Readiness) -> Result<(), Error> {
    let generation = event_type.metadata.generation.unwrap_or_default();
    let previous = event_type
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let conditions = Conditions {
        previous,
        generation,
        now: Timestamp::now(),
        reconciling: false,
    };
    let status = EventTypeStatus {
        observed_generation: Some(generation),
        conditions: conditions.of(readiness),
    };
    let wanted = own_part(&status, FIELDS, |_| true);
    if is_unchanged(&own_part(&event_type.status, FIELDS, |_| true), &wanted) {
        return Ok(());
    }
    context.spend("status").await;
    let api: Api<EventType> = Api::namespaced(context.client.clone(), &event_type.namespace().unwrap_or_default());
    let written = crate::kubernetes::status::apply(&api, CONTROLLER, event_type, &wanted).await;
    if matches!(written.map_err(Error::when("write the status"))?, Written::Outdated) {
        return Err(Error::Outdated);
    }
    context
        .tell_of_ready(key, event_type, previous, &status.conditions)
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EventTypeSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn declared(name: &str, created: i64, schema: serde_json::Value) -> EventType {
        let spec: EventTypeSpec =
            serde_json::from_value(serde_json::json!({"type": "lead.qualified", "schema": schema})).unwrap();
        let mut object = EventType::new(name, spec);
        object.metadata.uid = Some(format!("uid-{name}"));
        object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
        object
    }

    #[test]
    fn of_two_declarations_of_a_type_the_oldest_counts() {
        let schema = serde_json::json!({"type": "object"});
        let (a, b, c) = (
            declared("a", 5, schema.clone()),
            declared("b", 5, schema.clone()),
            declared("c", 9, schema),
        );
        assert!(counts_before(&a, &b) && !counts_before(&b, &a), "same second: by UID");
        assert!(counts_before(&b, &c) && !counts_before(&c, &b));
        assert!(!counts_before(&a, &a));
        assert_eq!(usable(&a, None), Ok(()));
        let Err(Readiness::Failed {
            reason, stalled: true, ..
        }) = usable(&c, Some(&a))
        else {
            panic!("a duplicate is stalled");
        };
        assert_eq!(reason, reasons::DUPLICATE_TYPE);
    }

    #[test]
    fn a_schema_that_does_not_compile_is_stalled() {
        let broken = declared("a", 1, serde_json::json!({"type": 7}));
        let Err(Readiness::Failed { reason, stalled, .. }) = usable(&broken, None) else {
            panic!("7 is no type");
        };
        assert_eq!((reason, stalled), (reasons::INVALID_SCHEMA, true));
    }
}
