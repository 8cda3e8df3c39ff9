//! An EventSubscription's reconcile: resolve it as the dispatcher does, look whether its endpoint exists, say so.

use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::conditions::{Conditions, Readiness, was_ready};
use super::context::{Context, Key};
use super::fleet::Fleet;
use super::memory::{Asked, Seen};
use super::work::{Again, Error};
use crate::api::EventSubscription;
use crate::api::census::MAX_SUBSCRIPTIONS;
use crate::api::conditions::{FILTER_FAILING, reasons};
use crate::api::names::{CONTROLLER, RECONCILE_REQUESTED};
use crate::api::resolve::{Unresolved, resolve_subscription};
use crate::api::status::{LastValid, SubscriptionStatus};
use crate::kubernetes::status::{Written, is_unchanged, own_part};

const PLURAL: &str = "eventsubscriptions";
const FIELDS: &[&str] = &["observedGeneration", "lastValid"];

/// Brings one subscription's status up to date.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Again, Error> {
    let key = Key::Subscription(namespace.to_owned(), name.to_owned());
    let found = context
        .stores
        .subscriptions
        .get(&ObjectRef::new(name).within(namespace));
    let Some(subscription) = found.filter(|s| s.metadata.deletion_timestamp.is_none()) else {
        context.memory.forget(&key);
        context.wait_for_dispatcher(key, false);
        return Ok(None);
    };
    let asked = Asked {
        uid: subscription.uid().unwrap_or_default(),
        generation: subscription.metadata.generation.unwrap_or_default(),
        requests: vec![subscription.annotations().get(RECONCILE_REQUESTED).cloned()],
    };
    let seen = context
        .memory
        .see(&key, asked, subscription.resource_version().as_deref(), Instant::now());
    let has_endpoint = context
        .endpoint(namespace, &subscription.spec.endpoint_ref.name)
        .is_some();
    let fleet = context.fleet.lock().unwrap_or_else(|e| e.into_inner()).clone();
    let is_beyond = {
        let census = context.subscriptions.lock().unwrap_or_else(|e| e.into_inner());
        census.is_beyond(&*subscription, MAX_SUBSCRIPTIONS)
    };
    let resolved = match is_beyond {
        true => Err(Unresolved::too_many_subscriptions()),
        false => resolve_subscription(&subscription).map(|_| ()),
    };
    let last_valid = match resolved {
        Ok(()) => Some(LastValid {
            generation: subscription.metadata.generation.unwrap_or_default(),
            filter: subscription.spec.filter.clone(),
        }),
        Err(_) => subscription
            .status
            .as_ref()
            .and_then(|status| status.last_valid.clone()),
    };
    let readiness = readiness(&subscription, resolved, has_endpoint, &seen, &fleet);
    context.wait_for_dispatcher(key.clone(), matches!(readiness, Readiness::Waiting { .. }));
    apply(context, &key, &subscription, &readiness, last_valid).await?;
    Ok(None)
}

/// How ready it is: configured, and loaded by every dispatcher. Its endpoint's readiness does not matter.
fn readiness(
    subscription: &EventSubscription,
    resolved: Result<(), Unresolved>,
    has_endpoint: bool,
    seen: &Seen,
    fleet: &Fleet,
) -> Readiness {
    let generation = subscription.metadata.generation.unwrap_or_default();
    let previous = subscription
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    if let Err(unresolved) = resolved {
        return Readiness::Failed {
            reason: unresolved.reason,
            message: unresolved.message,
            stalled: unresolved.stalled,
        };
    }
    if !has_endpoint {
        return Readiness::Failed {
            reason: reasons::ENDPOINT_NOT_FOUND,
            message: format!(
                "WebhookEndpoint {} does not exist in this namespace: events match, and their messages wait for it",
                subscription.spec.endpoint_ref.name
            ),
            stalled: false,
        };
    }
    if was_ready(previous, generation) || seen.is_loaded(PLURAL, fleet) {
        return Readiness::Ready {
            reason: reasons::RESOLVED,
            message: format!("generation {generation} is loaded: events that match make messages"),
        };
    }
    Readiness::Waiting {
        message: match fleet.live {
            0 => "no dispatcher is running: its Lease in Tidings' namespace would say so".to_owned(),
            _ => format!("the dispatcher is loading generation {generation}"),
        },
    }
}

async fn apply(
    context: &Context,
    key: &Key,
    subscription: &EventSubscription,
    readiness: &Readiness,
    last_valid: Option<LastValid>,
) -> Result<(), Error> {
    let generation = subscription.metadata.generation.unwrap_or_default();
    let previous = subscription
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
    let status = SubscriptionStatus {
        observed_generation: Some(generation),
        conditions: conditions.of(readiness),
        last_valid,
        ..SubscriptionStatus::default()
    };
    let is_own = |type_: &str| type_ != FILTER_FAILING;
    let wanted = own_part(&status, FIELDS, is_own);
    if is_unchanged(&own_part(&subscription.status, FIELDS, is_own), &wanted) {
        return Ok(());
    }
    context.spend("status").await;
    let api: Api<EventSubscription> =
        Api::namespaced(context.client.clone(), &subscription.namespace().unwrap_or_default());
    let written = crate::kubernetes::status::apply(&api, CONTROLLER, subscription, &wanted).await;
    if matches!(written.map_err(Error::when("write the status"))?, Written::Outdated) {
        return Err(Error::Outdated);
    }
    context
        .tell_of_ready(key, subscription, previous, &status.conditions)
        .await;
    Ok(())
}
