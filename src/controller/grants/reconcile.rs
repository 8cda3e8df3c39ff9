//! The grants of one namespace, brought about at most once a second.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use super::Wanted;
use super::apply::Scope;
use crate::api::WebhookEndpoint;
use crate::api::resolve::{Reference, references_of};
use crate::controller::context::{Context, Key};
use crate::controller::work::{Again, Error};

/// At most one write of a namespace's Roles in this time: changes meanwhile go together.
const GAP: Duration = Duration::from_secs(1);

/// Grants what the namespace's endpoints name, and no more.
pub async fn reconcile(context: &Context, namespace: &str) -> Result<Again, Error> {
    if context.namespace(namespace).is_none() {
        // Gone or going: its Roles go with it.
        context
            .granted
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .remove(namespace);
        return Ok(None);
    }
    let granted = context.granted(namespace);
    let mut granted = granted.lock().await;
    let endpoints = context.endpoints_of(namespace);
    let wanted = wanted(endpoints.iter().map(AsRef::as_ref));
    if granted.known.as_ref() == Some(&wanted) {
        return Ok(None);
    }
    if let Some(next) = granted.written.map(|at| at + GAP)
        && next > Instant::now()
    {
        return Ok(Some(next));
    }
    let scope = Scope {
        context,
        namespace,
        grantee: &context.grantee,
    };
    let result = scope.bring_about(&wanted, &mut granted.known).await;
    let writes = result.map_err(Error::when("grant the dispatcher access to Secrets"))?;
    if writes > 0 {
        granted.written = Some(Instant::now());
        tracing::debug!(namespace, writes, "granted");
    }
    drop(granted);
    for endpoint in endpoints {
        context
            .queue
            .add(Key::Endpoint(namespace.to_owned(), endpoint.name_any()), Instant::now());
    }
    Ok(None)
}

/// What these endpoints name.
pub fn wanted<'a>(endpoints: impl Iterator<Item = &'a WebhookEndpoint>) -> Wanted {
    let mut wanted = Wanted::default();
    for endpoint in endpoints.filter(|e| e.metadata.deletion_timestamp.is_none()) {
        references_of(endpoint)
            .into_iter()
            .for_each(|reference| wanted.name(reference));
    }
    wanted
}

/// Whether all of this is granted now.
pub async fn covers(context: &Context, namespace: &str, references: &[Reference]) -> bool {
    let granted = context.granted(namespace);
    let granted = granted.lock().await;
    let known = granted.known.as_ref();
    known.is_some_and(|known| references.iter().all(|r| known.covers(r)))
}
