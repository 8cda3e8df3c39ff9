//! Which messages a Replay's selector means: names to the store's ids.
//!
//! Only what exists can be sent again: a message goes where its endpoint is, in the form its subscription says. Invariant:
//! nothing of another namespace, nor of a namesake before this one, is ever selected.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::api::conditions::reasons;
use crate::api::replay::{ReplaySelector, ReplayState};
use crate::ids::{MessageId, UnixMillis};
use crate::queue::Selection;
use crate::registry::{EndpointState, Registry};

/// A selector that names what does not exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub reason: &'static str,
    pub message: String,
}

/// The selection as of now.
pub(super) fn select(registry: &Registry, namespace: &str, selector: &ReplaySelector) -> Result<Selection, Missing> {
    let uid = registry.namespace(namespace).map(|view| Arc::clone(&view.uid));
    let in_namespace = |of: &str| uid.as_deref() == Some(of);
    let wanted = |name: Option<&String>, of: &str| name.is_none_or(|name| name == of);
    let endpoint = selector.endpoint_ref.as_ref().map(|reference| &reference.name);
    let subscription = selector.subscription_ref.as_ref().map(|reference| &reference.name);
    let (mut endpoints, mut pulled) = (HashSet::new(), HashSet::new());
    for entry in registry.endpoints() {
        if !in_namespace(&entry.key.namespace_uid) || !wanted(endpoint, &entry.key.name) {
            continue;
        }
        match entry.state {
            EndpointState::Usable(_) | EndpointState::Unusable { .. } => {}
            EndpointState::Pulled(_) => drop(pulled.insert(entry.id)),
            EndpointState::Missing | EndpointState::Deleted { .. } => continue,
        }
        endpoints.insert(entry.id);
    }
    let subscriptions: HashSet<_> = registry
        .subscriptions()
        .iter()
        .filter(|entry| in_namespace(&entry.key.namespace_uid) && wanted(subscription, &entry.key.name))
        .filter(|entry| entry.deleted.is_none())
        .map(|entry| entry.id)
        .collect();
    if let Some(name) = endpoint.filter(|_| endpoints.is_empty()) {
        return Err(Missing {
            reason: reasons::ENDPOINT_NOT_FOUND,
            message: format!("there is no WebhookEndpoint {name} in this namespace"),
        });
    }
    if let Some(name) = subscription.filter(|_| subscriptions.is_empty()) {
        return Err(Missing {
            reason: reasons::SUBSCRIPTION_NOT_FOUND,
            message: format!("there is no EventSubscription {name} in this namespace"),
        });
    }
    let time = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| UnixMillis(time.0.as_millisecond());
    let ids = selector.ids.as_ref().map(|ids| {
        let ids: BTreeSet<MessageId> = ids.iter().filter_map(|id| MessageId::parse(id)).collect();
        Arc::new(ids)
    });
    Ok(Selection {
        endpoints: Arc::new(endpoints),
        subscriptions: Arc::new(subscriptions),
        pulled: Arc::new(pulled),
        dead: selector.state != ReplayState::Delivered,
        delivered: selector.state != ReplayState::DeadLetter,
        from: selector.from.as_ref().map(time),
        until: selector.until.as_ref().map(time),
        ids,
    })
}
