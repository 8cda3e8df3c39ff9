//! An EventSubscription's reconcile: resolve it as the dispatcher does, look whether its endpoint exists, say so.

use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::conditions::{Conditions, Readiness, was_ready};
use super::context::{Context, Key, Rules};
use super::dereference;
use super::grants::reconcile::covers;
use super::memory::Asked;
use super::standing::Standing;
use super::work::{Again, Error};
use crate::api::EventSubscription;
use crate::api::census::MAX_SUBSCRIPTIONS;
use crate::api::conditions::{OF_DISPATCHER, reasons};
use crate::api::names::{CONTROLLER, RECONCILE_REQUESTED};
use crate::api::resolve::{
    References, RequestForm, Unresolved, resolve_secrets, resolve_subscription, subscription_references,
    subscription_uses,
};
use crate::api::status::{LastValid, ReferenceStatus, SubscriptionStatus};
use crate::api::subscription::DeliveryMode;
use crate::kubernetes::status::{Written, is_unchanged, own_part};

const PLURAL: &str = "eventsubscriptions";
const FIELDS: &[&str] = &["observedGeneration", "lastValid", "references"];

/// Brings one subscription's status up to date.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Again, Error> {
    let key = Key::Subscription(namespace.to_owned(), name.to_owned());
    let found = context
        .stores
        .subscriptions
        .get(&ObjectRef::new(name).within(namespace));
    let subscription = found.filter(|s| s.metadata.deletion_timestamp.is_none());
    let (Some(subscription), Some(Rules { said: rules, policy })) = (subscription, context.rules(namespace)) else {
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
    let missing = endpoints_of(&subscription).find(|name| context.endpoint(namespace, name).is_none());
    let references = subscription_references(&subscription);
    let label = rules.secret_label;
    let uses = subscription_uses(&subscription);
    let material = dereference::read(context, namespace, uses, label, &seen).await?;
    let is_beyond = {
        let census = context.subscriptions.lock().unwrap_or_else(|e| e.into_inner());
        census.is_beyond(&*subscription, MAX_SUBSCRIPTIONS)
    };
    let resolved = match is_beyond {
        true => Err(Unresolved::too_many_subscriptions()),
        false => resolve(&subscription, &dereference::values(&material, label)),
    };
    // One that waits for a Secret is valid all the same.
    let last_valid = match &resolved {
        Err(unresolved) if unresolved.stalled => subscription
            .status
            .as_ref()
            .and_then(|status| status.last_valid.clone()),
        _ => Some(LastValid {
            generation: subscription.metadata.generation.unwrap_or_default(),
            filter: subscription.spec.filter.clone(),
        }),
    };
    let standing = Standing {
        granted: covers(context, namespace, &references),
        namespace,
        fleet: context.fleet.lock().unwrap_or_else(|e| e.into_inner()).clone(),
        policy: &policy,
        seen: &seen,
    };
    let told = dereference::told(&material);
    let readiness = readiness(&subscription, resolved, missing, &told, &standing);
    let waits = matches!(readiness, Readiness::Waiting { .. });
    context.wait_for_dispatcher(key.clone(), waits);
    let status = SubscriptionStatus {
        last_valid,
        references: told,
        ..SubscriptionStatus::default()
    };
    let version = apply(context, &key, &subscription, &readiness, status).await?;
    if waits && !references.is_empty() {
        // What it refers to is told only by this version: the dispatcher must have seen it.
        context.memory.require(&key, version.as_deref());
    }
    Ok((!references.is_empty()).then(|| context.references.due()))
}

/// The endpoints that it names.
pub fn endpoints_of(subscription: &EventSubscription) -> impl Iterator<Item = &str> {
    let told = subscription.spec.dead_letter.iter().map(|told| &told.endpoint_ref);
    let all = subscription.spec.endpoint_ref.iter().chain(told);
    all.map(|endpoint| endpoint.name.as_str())
}

/// Whether it can be used, with what it refers to.
fn resolve(subscription: &EventSubscription, values: &References) -> Result<(), Unresolved> {
    match resolve_subscription(subscription)?.request {
        RequestForm::Shaped(request) => {
            let namespace = subscription.namespace().unwrap_or_default();
            resolve_secrets(&request, &namespace, values).map(|_| ())
        }
        RequestForm::Plain | RequestForm::Unknown => Ok(()),
    }
}

/// How ready it is: configured, and loaded by every dispatcher. Its endpoint's readiness does not matter.
fn readiness(
    subscription: &EventSubscription,
    resolved: Result<(), Unresolved>,
    missing: Option<&str>,
    told: &[ReferenceStatus],
    standing: &Standing<'_>,
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
    if let Some(name) = missing {
        return Readiness::Failed {
            reason: reasons::ENDPOINT_NOT_FOUND,
            message: format!(
                "WebhookEndpoint {name} does not exist in this namespace: events match, and what is meant for it waits"
            ),
            stalled: false,
        };
    }
    let is_told = subscription
        .status
        .as_ref()
        .map(|s| s.references.as_slice())
        .unwrap_or_default()
        == told;
    let waits = match was_ready(previous, generation) {
        true => None,
        false => standing.waits_for(PLURAL, is_told, generation),
    };
    match waits {
        Some(message) => Readiness::Waiting { message },
        None => Readiness::Ready {
            reason: reasons::RESOLVED,
            message: match subscription.spec.delivery {
                DeliveryMode::Push => format!("generation {generation} is loaded: events that match make messages"),
                DeliveryMode::Pull => {
                    format!(
                        "generation {generation} is loaded: events that match make messages, which wait to be pulled"
                    )
                }
            },
        },
    }
}

/// Completes and applies the status if it says anything new, and tells of a transition. The version that has it, where it
/// was written.
async fn apply(
    context: &Context,
    key: &Key,
    subscription: &EventSubscription,
    readiness: &Readiness,
    status: SubscriptionStatus,
) -> Result<Option<String>, Error> {
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
        ..status
    };
    let is_own = |type_: &str| !OF_DISPATCHER.contains(&type_);
    let wanted = own_part(&status, FIELDS, is_own);
    if is_unchanged(&own_part(&subscription.status, FIELDS, is_own), &wanted) {
        return Ok(None);
    }
    context.spend("status").await;
    let api: Api<EventSubscription> =
        Api::namespaced(context.client.clone(), &subscription.namespace().unwrap_or_default());
    let written = crate::kubernetes::status::apply(&api, CONTROLLER, subscription, &wanted).await;
    let Written::Applied(object) = written.map_err(Error::when("write the status"))? else {
        return Err(Error::Outdated);
    };
    context
        .tell_of_ready(key, subscription, previous, &status.conditions)
        .await;
    Ok(object.resource_version())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response};
    use kube::client::{Body, Client};
    use kube::runtime::watcher;
    use serde_json::{Value, json};

    use super::super::stored::Stored;
    use super::*;
    use crate::kubernetes::scope::Scope;

    /// The lesser the number the older: all are of one second, and the UID decides.
    fn subscription(number: usize) -> EventSubscription {
        serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventSubscription",
            "metadata": {"name": format!("s-{number}"), "namespace": "sales", "uid": format!("{number:05}"),
                "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1, "resourceVersion": "7"},
            "spec": spec(),
        }))
        .unwrap()
    }

    fn spec() -> Value {
        json!({"delivery": "Pull", "eventTypes": ["*"]})
    }

    #[tokio::test]
    async fn a_subscription_behind_ten_thousand_older_ones_says_that_no_event_matches_it_until_one_of_them_goes() {
        let statuses = Arc::<Mutex<Vec<Value>>>::default();
        let written = Arc::clone(&statuses);
        let server = tower::service_fn(move |request: Request<Body>| {
            let written = Arc::clone(&written);
            async move {
                let is_status = request.method() == Method::PATCH;
                let body = request.into_body().collect_bytes().await.unwrap();
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                if is_status {
                    object["spec"] = spec();
                    written.lock().unwrap().push(object["status"].clone());
                }
                Ok::<_, Infallible>(Response::new(Body::from(object.to_string().into_bytes())))
            }
        });
        let mut context = Context::alone(Client::new(server, "sales"));
        let (namespaces, mut writers) = Stored::of(&Scope::default());
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sales"}});
        let namespace = watcher::Event::Apply(serde_json::from_value(namespace).unwrap());
        writers[0].1.apply_watcher_event(&namespace);
        context.stores.namespaces = namespaces;
        let (subscriptions, mut writers) = Stored::of(&Scope::default());
        for number in 0..=MAX_SUBSCRIPTIONS {
            let one = subscription(number);
            context.subscriptions.lock().unwrap().put(&one);
            writers[0].1.apply_watcher_event(&watcher::Event::Apply(one));
        }
        context.stores.subscriptions = subscriptions;

        let standing = async |number: usize| {
            reconcile(&context, "sales", &format!("s-{number}")).await.unwrap();
            let status = statuses.lock().unwrap().pop().expect("a status");
            let conditions = status["conditions"].as_array().unwrap().clone();
            let of = |type_: &str| {
                let found = conditions.iter().find(|condition| condition["type"] == type_);
                found.map(|condition| (condition["status"].clone(), condition["reason"].clone()))
            };
            (of("Ready"), of("Stalled"))
        };
        let too_many = |status: &str| Some((json!(status), json!("TooManySubscriptions")));
        let (ready, stalled) = standing(MAX_SUBSCRIPTIONS).await;
        assert_eq!((ready, stalled), (too_many("False"), too_many("True")));
        let (counts, stalled) = standing(MAX_SUBSCRIPTIONS - 1).await;
        assert_ne!(counts, too_many("False"), "the last that counts");
        assert_eq!(stalled, None);
        context.subscriptions.lock().unwrap().remove("sales", "s-0");
        assert_eq!(standing(MAX_SUBSCRIPTIONS).await, (counts, None), "the next in line");
    }
}
