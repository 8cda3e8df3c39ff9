//! The grants of one namespace, brought about at most once a second, and checked now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use super::Wanted;
use super::apply::Scope;
use crate::api::names::RECONCILE_REQUESTED;
use crate::api::resolve::{Reference, references_of, subscription_references};
use crate::api::{EventSubscription, WebhookEndpoint};
use crate::controller::context::{Context, Key};
use crate::controller::index::By;
use crate::controller::work::{Again, Error};

/// At most one write of a namespace's Roles in this time: changes meanwhile go together.
const GAP: Duration = Duration::from_secs(1);
/// How often what was granted is read again, at most: it is repaired when somebody else changed it.
const CHECK_EVERY: Duration = Duration::from_secs(600);
/// For each namespace, thirty-two reads: eighty reads a second in the long run.
const CHECK_EACH: Duration = Duration::from_millis(400);

/// Grants what the namespace's endpoints and subscriptions name, and no more.
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
    let of_namespace = context.granted(namespace);
    let mut granted = of_namespace.work.lock().await;
    let endpoints = context.stores.endpoints.find(namespace, &By::Namespace);
    let subscriptions = context.stores.subscriptions.find(namespace, &By::Secrets);
    let wanted = wanted(
        endpoints.iter().map(AsRef::as_ref),
        subscriptions.iter().map(AsRef::as_ref),
    );
    let annotations = endpoints.iter().map(|e| (e.name_any(), e.annotations()));
    let asked = asked(annotations.chain(subscriptions.iter().map(|s| (s.name_any(), s.annotations()))));
    let is_check = granted.check.is_some_and(|at| at <= Instant::now()) || !asked.is_subset(&granted.asked);
    if granted.known.as_ref() == Some(&wanted) && !is_check {
        return Ok(granted.check);
    }
    if let Some(next) = granted.written.map(|at| at + GAP)
        && next > Instant::now()
    {
        return Ok(Some(next));
    }
    if is_check {
        granted.known = None;
    }
    let scope = Scope {
        context,
        namespace,
        grantee: &context.grantee,
    };
    let before = of_namespace.covered.load_full();
    let result = scope.bring_about(&wanted, &mut granted.known).await;
    let after = granted.known.clone().map(Arc::new);
    of_namespace.covered.store(after.clone());
    // Those that wait for what was granted just now, or have lost it; the others have nothing to look at, unless somebody had
    // taken away what they had.
    let is_repaired = is_check && result.as_ref().is_ok_and(|writes| *writes > 0);
    let is_touched =
        |references: &[Reference]| is_repaired || makes_a_difference(before.as_deref(), after.as_deref(), references);
    let of_endpoints = endpoints
        .iter()
        .filter(|endpoint| is_touched(&references_of(endpoint)))
        .map(|endpoint| Key::Endpoint(namespace.to_owned(), endpoint.name_any()));
    let of_subscriptions = subscriptions
        .iter()
        .filter(|subscription| is_touched(&subscription_references(subscription)))
        .map(|subscription| Key::Subscription(namespace.to_owned(), subscription.name_any()));
    of_endpoints
        .chain(of_subscriptions)
        .for_each(|key| context.queue.add(key, Instant::now()));
    let writes = result.map_err(Error::when("grant the dispatcher access to Secrets"))?;
    if writes > 0 || is_check {
        granted.written = Some(Instant::now());
        tracing::debug!(namespace, writes, "granted");
    }
    if granted.check.is_none() || is_check {
        granted.check = Some(Instant::now() + check_after(context.stores.namespaces.len(), rand::random()));
    }
    granted.asked = asked;
    // Without any that name something there is nothing that somebody could miss.
    Ok(granted
        .check
        .filter(|_| !endpoints.is_empty() || !subscriptions.is_empty()))
}

/// How long until the next check: spread by `random`, so that what was read together at a start is not read together for
/// ever.
fn check_after(namespaces: usize, random: u8) -> Duration {
    let every = CHECK_EVERY.max(CHECK_EACH * u32::try_from(namespaces).unwrap_or(u32::MAX));
    every + every * u32::from(random) / u32::from(u8::MAX) / 2
}

/// Which objects ask to be looked at, and with which value.
fn asked<'a>(all: impl Iterator<Item = (String, &'a BTreeMap<String, String>)>) -> BTreeSet<(String, String)> {
    all.filter_map(|(name, annotations)| Some((name, annotations.get(RECONCILE_REQUESTED)?.clone())))
        .collect()
}

/// What these endpoints and subscriptions name.
pub fn wanted<'a>(
    endpoints: impl Iterator<Item = &'a WebhookEndpoint>,
    subscriptions: impl Iterator<Item = &'a EventSubscription>,
) -> Wanted {
    let endpoints = endpoints.filter(|e| e.metadata.deletion_timestamp.is_none());
    let subscriptions = subscriptions.filter(|s| s.metadata.deletion_timestamp.is_none());
    let mut wanted = Wanted::default();
    endpoints
        .flat_map(references_of)
        .chain(subscriptions.flat_map(subscription_references))
        .for_each(|reference| wanted.name(reference));
    wanted
}

/// Whether all of this is granted now. Nothing needs no grant: a namespace without endpoints may never have had one.
pub fn covers(context: &Context, namespace: &str, references: &[Reference]) -> bool {
    if references.is_empty() {
        return true;
    }
    let granted = context.granted(namespace);
    let covered = granted.covered.load();
    is_covered(covered.as_deref(), references)
}

/// Whether these are covered now and were not, or the other way round.
fn makes_a_difference(before: Option<&Wanted>, after: Option<&Wanted>, references: &[Reference]) -> bool {
    is_covered(before, references) != is_covered(after, references)
}

fn is_covered(covered: Option<&Wanted>, references: &[Reference]) -> bool {
    references.is_empty() || covered.is_some_and(|covered| references.iter().all(|r| covered.covers(r)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_touches_those_that_waited_for_it_or_lost_it_and_nobody_else() {
        let granted = |names: &[&str]| {
            let mut granted = Wanted::default();
            names.iter().for_each(|name| granted.name(Reference::secret(*name)));
            granted
        };
        let (before, after) = (granted(&["crm", "erp"]), granted(&["crm", "slack"]));
        let is_touched = |names: &[&str]| {
            let references: Vec<Reference> = names.iter().map(|name| Reference::secret(*name)).collect();
            makes_a_difference(Some(&before), Some(&after), &references)
        };
        assert!(is_touched(&["slack"]) && is_touched(&["crm", "slack"]) && is_touched(&["erp"]));
        assert!(!is_touched(&["crm"]) && !is_touched(&[]) && !is_touched(&["erp", "slack"]));
        assert!(makes_a_difference(None, Some(&after), &[Reference::secret("crm")]));
        assert!(!makes_a_difference(None, Some(&after), &[]));
    }

    #[test]
    fn grants_are_checked_every_ten_to_fifteen_minutes_and_less_often_where_there_are_many_namespaces() {
        assert_eq!(check_after(1, 0), CHECK_EVERY);
        assert_eq!(check_after(1, u8::MAX), CHECK_EVERY * 3 / 2);
        assert_eq!(check_after(5_000, 0), CHECK_EACH * 5_000);
    }
}
