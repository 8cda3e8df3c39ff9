//! A WebhookEndpoint's reconcile, as its step list.
//!
//! `dereference` reads what it names, [`signing`] brings its own Secret about, [`resolve_endpoint`] makes of all of it
//! what the dispatcher makes of it, [`status`] says the outcome.

mod decoration;
mod rotation;
mod secret;
mod signing;
mod status;

use kube::ResourceExt;
use tokio::time::Instant;

use super::context::{Context, Key, Rules};
use super::dereference;
use super::grants::reconcile::covers;
use super::memory::Asked;
use super::standing::Standing;
use super::work::{Again, Error};
use crate::api::WebhookEndpoint;
use crate::api::conditions::reasons;
use crate::api::names::{RECONCILE_REQUESTED, REVOKE_PREVIOUS_REQUESTED, ROTATE_REQUESTED};
use crate::api::resolve::{Unresolved, references_of, resolve_endpoint, signing_reference, uses_of};
use crate::api::status::{ReferenceKind, ReferenceStatus};
use signing::Signing;

/// The plural, as dispatchers' Leases name it.
const PLURAL: &str = "webhookendpoints";
/// How long a new endpoint may wait for its grant before its status says so.
const GRANTED_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Brings one endpoint to what its spec says.
pub async fn reconcile(context: &Context, namespace: &str, name: &str) -> Result<Again, Error> {
    let key = Key::Endpoint(namespace.to_owned(), name.to_owned());
    let endpoint = context
        .endpoint(namespace, name)
        .filter(|e| e.metadata.deletion_timestamp.is_none());
    let (Some(endpoint), Some(Rules { said: rules, policy })) = (endpoint, context.rules(namespace)) else {
        context.memory.forget(&key);
        context.wait_for_dispatcher(key, false);
        return Ok(None);
    };
    let seen = context.memory.see(
        &key,
        asked(&endpoint),
        endpoint.resource_version().as_deref(),
        Instant::now(),
    );

    let signing = signing::bring_about(context, &key, &endpoint, &seen).await?;
    let label = rules.secret_label;
    let material = dereference::read(context, namespace, uses_of(&endpoint), label, &seen).await?;
    let values = dereference::values(&material, label);
    let named = endpoint.spec.service_ref.as_ref();
    let service = named.and_then(|named| context.service(namespace, &named.name));
    let census = || context.endpoints.lock().unwrap_or_else(|e| e.into_inner());
    let over_quota = rules
        .quotas
        .endpoints
        .filter(|limit| census().is_beyond(&*endpoint, *limit as usize));
    let resolved = match over_quota {
        Some(limit) => Err(Unresolved::over_quota(limit)),
        None => resolve_endpoint(&endpoint, &values, &rules.egress, service.as_deref()),
    };
    let outcome = match (resolved, signing.refused()) {
        (Err(unresolved), _) if unresolved.stalled => Err(unresolved),
        (_, Some(message)) => Err(Unresolved::waiting(reasons::SECRET_ACCESS_DENIED, message)),
        (outcome, None) => outcome,
    };

    let granted = covers(context, namespace, &references_of(&endpoint));
    let patience = seen.since + GRANTED_WITHIN;
    if !granted && outcome.is_ok() && !was_looked_at(&endpoint) && Instant::now() < patience {
        // The grant that is on its way has this endpoint looked at again; one write then says all.
        return Ok(Some(patience));
    }
    let standing = Standing {
        granted,
        namespace,
        fleet: context.fleet.lock().unwrap_or_else(|e| e.into_inner()).clone(),
        policy: &policy,
        seen: &seen,
    };
    let mut references = dereference::told(&material);
    references.extend(named.map(|named| ReferenceStatus {
        kind: ReferenceKind::Service,
        name: named.name.clone(),
        resource_version: service.map(|service| service.resource_version.clone()),
    }));
    let report = status::build(
        &endpoint,
        &outcome,
        &signing,
        references,
        &standing,
        k8s_openapi::jiff::Timestamp::now(),
    );
    context.wait_for_dispatcher(key.clone(), report.waits);
    status::apply(context, &key, &endpoint, &report).await?;
    if let Signing::Refused { error, .. } = signing {
        // Told; tried again like everything that failed.
        return Err(error);
    }

    let reread = context.references.due();
    let due = signing.due(context.now()).map(|wait| Instant::now() + wait);
    Ok(Some(due.map_or(reread, |due| due.min(reread))))
}

/// Whether its status says anything of this generation.
fn was_looked_at(endpoint: &WebhookEndpoint) -> bool {
    let observed = endpoint.status.as_ref().and_then(|status| status.observed_generation);
    observed == endpoint.metadata.generation
}

fn asked(endpoint: &WebhookEndpoint) -> Asked {
    let annotations = endpoint.annotations();
    Asked {
        uid: endpoint.uid().unwrap_or_default(),
        generation: endpoint.metadata.generation.unwrap_or_default(),
        requests: [RECONCILE_REQUESTED, ROTATE_REQUESTED, REVOKE_PREVIOUS_REQUESTED]
            .iter()
            .map(|name| annotations.get(*name).cloned())
            .collect(),
    }
}

/// Name of the Secret that Tidings keeps for this endpoint; none when it has one of its own, or signs nothing.
fn generated_secret(endpoint: &WebhookEndpoint) -> Option<String> {
    match endpoint.spec.signing.secret_ref {
        Some(_) => None,
        None => signing_reference(endpoint).map(|reference| reference.name),
    }
}
