//! What the controller says of an endpoint: built here, pure, and applied when it differs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};

use super::PLURAL;
use super::rotation::State;
use super::signing::{Signing, next_rotation};
use crate::api::WebhookEndpoint;
use crate::api::conditions::{KEY_ROTATING, OF_DISPATCHER, TRUE, reasons};
use crate::api::resolve::{ResolvedEndpoint, Unresolved};
use crate::api::status::{EndpointStatus, KeyStatus, ReferenceStatus, SigningStatus};
use crate::controller::FIELD_MANAGER;
use crate::controller::conditions::{Conditions, Readiness, was_ready};
use crate::controller::context::{Context, Key};
use crate::controller::standing::Standing;
use crate::controller::work::Error;
use crate::kubernetes::status::{Written, is_unchanged, own_part};

/// The fields of status that are the controller's.
const FIELDS: &[&str] = &["observedGeneration", "target", "signing", "references"];

/// A status, and whether it waits for a dispatcher.
pub struct Report {
    pub status: EndpointStatus,
    pub waits: bool,
}

/// The full own set of status.
pub fn build(
    endpoint: &WebhookEndpoint,
    outcome: &Result<ResolvedEndpoint, Unresolved>,
    signing: &Signing,
    references: Vec<ReferenceStatus>,
    standing: &Standing<'_>,
    now: Timestamp,
) -> Report {
    let generation = endpoint.metadata.generation.unwrap_or_default();
    let before = endpoint.status.as_ref();
    let previous = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let readiness = match outcome {
        Err(unresolved) => Readiness::Failed {
            reason: unresolved.reason,
            message: unresolved.message.clone(),
            stalled: unresolved.stalled,
        },
        Ok(_) if was_ready(previous, generation) => ready(generation),
        Ok(_) => match standing.waits_for(PLURAL, before.is_some_and(|s| s.references == references), generation) {
            Some(message) => Readiness::Waiting { message },
            None => ready(generation),
        },
    };
    let conditions = Conditions {
        previous,
        generation,
        now,
        reconciling: true,
    };
    let mut all = conditions.of(&readiness);
    all.extend(key_rotating(signing, &conditions));
    Report {
        waits: matches!(readiness, Readiness::Waiting { .. }),
        status: EndpointStatus {
            observed_generation: Some(generation),
            conditions: all,
            target: outcome.as_ref().ok().map(|resolved| resolved.target.origin.clone()),
            signing: Some(signing_status(signing, endpoint, outcome))
                .filter(|said| *said != SigningStatus::default())
                .map(Box::new),
            references,
            delivery: None,
        },
    }
}

/// Applies the status if it says anything new, and tells of a transition.
pub async fn apply(context: &Context, key: &Key, endpoint: &WebhookEndpoint, report: &Report) -> Result<(), Error> {
    let is_own = |type_: &str| !OF_DISPATCHER.contains(&type_);
    let wanted = own_part(&report.status, FIELDS, is_own);
    if is_unchanged(&own_part(&endpoint.status, FIELDS, is_own), &wanted) {
        return Ok(());
    }
    context.spend("status").await;
    let api: Api<WebhookEndpoint> = Api::namespaced(context.client.clone(), &endpoint.namespace().unwrap_or_default());
    let written = crate::kubernetes::status::apply(&api, FIELD_MANAGER, endpoint, &wanted).await;
    let Written::Applied(object) = written.map_err(Error::when("write the status"))? else {
        return Err(Error::Outdated);
    };
    if report.waits {
        // What the endpoint refers to is told only by this version: the dispatcher must have seen it.
        context.memory.require(key, object.resource_version().as_deref());
    }
    let previous = endpoint
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    context
        .tell_of_ready(key, endpoint, previous, &report.status.conditions)
        .await;
    Ok(())
}

fn ready(generation: i64) -> Readiness {
    Readiness::Ready {
        reason: reasons::RESOLVED,
        message: format!("generation {generation} is loaded: events for it are delivered"),
    }
}

fn key_rotating(signing: &Signing, conditions: &Conditions<'_>) -> Option<Condition> {
    let Signing::Generated {
        name, secret, state, ..
    } = signing
    else {
        return None;
    };
    let id = secret.current_id.as_deref().unwrap_or_default();
    match state {
        State::Introduced => Some(conditions.one(
            KEY_ROTATING,
            TRUE,
            reasons::WAITING_FOR_DISPATCHER,
            &format!("the dispatcher has not loaded key {id} of Secret {name} yet"),
        )),
        State::Overlap { until } => Some(conditions.one(
            KEY_ROTATING,
            TRUE,
            reasons::OVERLAP,
            &format!("share key {id} (Secret {name}, current) before {until}: until then both keys sign"),
        )),
        State::Missing | State::Stable => None,
    }
}

fn signing_status(
    signing: &Signing,
    endpoint: &WebhookEndpoint,
    outcome: &Result<ResolvedEndpoint, Unresolved>,
) -> SigningStatus {
    match signing {
        Signing::Foreign => SigningStatus {
            secret_name: endpoint.spec.signing.secret_ref.as_ref().map(|r| r.name.clone()),
            keys: outcome
                .iter()
                .filter_map(|resolved| {
                    Some(KeyStatus {
                        id: resolved.signing.current_id()?.to_owned(),
                        created_time: None,
                        public_key: resolved.signing.public_key(),
                        expires_time: None,
                    })
                })
                .collect(),
            next_rotation_time: None,
        },
        Signing::Generated { name, secret, .. } => {
            let current = KeyStatus {
                id: secret.current_id.clone().unwrap_or_default(),
                created_time: secret.current_created.map(Time),
                public_key: secret.current.public_key(),
                expires_time: None,
            };
            let previous = secret.previous.as_ref().map(|key| KeyStatus {
                id: secret.previous_id.clone().unwrap_or_default(),
                created_time: None,
                public_key: key.public_key(),
                expires_time: secret.previous_expires.map(Time),
            });
            SigningStatus {
                secret_name: Some(name.clone()),
                keys: std::iter::once(current).chain(previous).collect(),
                next_rotation_time: next_rotation(signing).map(Time),
            }
        }
        // The last good keys stay in use: what was said of them stays, too.
        Signing::Unusable { name } | Signing::Refused { name, .. } => {
            let before = endpoint.status.as_ref().and_then(|s| s.signing.as_deref());
            before.cloned().unwrap_or_else(|| SigningStatus {
                secret_name: Some(name.clone()),
                ..SigningStatus::default()
            })
        }
    }
}
