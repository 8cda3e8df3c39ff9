//! Which messages a Replay's selector means: names to the store's ids.
//!
//! Only what exists can be sent again: a message goes where its endpoint is, in the form its subscription says. Invariant:
//! nothing of another namespace, nor of a namesake before this one, is ever selected.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::api::conditions::reasons;
use crate::api::replay::{ReplaySelector, ReplayState};
use crate::api::resolve::Delivery;
use crate::ids::{EndpointId, MessageId, UnixMillis};
use crate::queue::Selection;
use crate::registry::{EndpointState, Registry, SubscriptionEntry};

/// A selector that names what does not exist.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub reason: &'static str,
    pub message: String,
}

/// The selection as of now. None while an endpoint that it means is not loaded yet: without that one the replay would pass
/// its messages by.
pub(super) fn select(
    registry: &Registry,
    namespace: &str,
    selector: &ReplaySelector,
) -> Option<Result<Selection, Missing>> {
    let uid = registry.namespace(namespace).map(|view| Arc::clone(&view.uid));
    let in_namespace = |of: &str| uid.as_deref() == Some(of);
    let wanted = |name: Option<&String>, of: &str| name.is_none_or(|name| name == of);
    let endpoint = selector.endpoint_ref.as_ref().map(|reference| &reference.name);
    let subscription = selector.subscription_ref.as_ref().map(|reference| &reference.name);
    let subscriptions: Vec<_> = registry
        .subscriptions()
        .into_iter()
        .filter(|entry| in_namespace(&entry.key.namespace_uid) && wanted(subscription, &entry.key.name))
        .filter(|entry| entry.deleted.is_none())
        .collect();
    // Before the endpoints are taken: one that is loaded by now is among them, and one that does not exist is as well.
    let is_awaited = |(name, id): (&str, EndpointId)| wanted(endpoint, name) && registry.endpoint(id).is_none();
    if subscriptions.iter().any(|entry| destinations(entry).any(is_awaited)) {
        return None;
    }
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
    if let Some(name) = endpoint.filter(|_| endpoints.is_empty()) {
        return Some(Err(Missing {
            reason: reasons::ENDPOINT_NOT_FOUND,
            message: format!("there is no WebhookEndpoint {name} in this namespace"),
        }));
    }
    if let Some(name) = subscription.filter(|_| subscriptions.is_empty()) {
        return Some(Err(Missing {
            reason: reasons::SUBSCRIPTION_NOT_FOUND,
            message: format!("there is no EventSubscription {name} in this namespace"),
        }));
    }
    let time = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| UnixMillis(time.0.as_millisecond());
    let ids = selector.ids.as_ref().map(|ids| {
        let ids: BTreeSet<MessageId> = ids.iter().filter_map(|id| MessageId::parse(id)).collect();
        Arc::new(ids)
    });
    Some(Ok(Selection {
        endpoints: Arc::new(endpoints),
        subscriptions: Arc::new(subscriptions.iter().map(|entry| entry.id).collect()),
        pulled: Arc::new(pulled),
        dead: selector.state != ReplayState::Delivered,
        delivered: selector.state != ReplayState::DeadLetter,
        from: selector.from.as_ref().map(time),
        until: selector.until.as_ref().map(time),
        ids,
    }))
}

/// The endpoints where a subscription's messages are, and what is told of its dead letters. What stands for one where they
/// are pulled is loaded with the subscription.
fn destinations(entry: &SubscriptionEntry) -> impl Iterator<Item = (&str, EndpointId)> {
    let pushed = match &entry.spec.delivery {
        Delivery::Push { endpoint } => Some((endpoint.as_str(), entry.endpoint)),
        Delivery::Pull(_) => None,
    };
    let told = entry.spec.dead_letter.as_ref().map(|told| told.endpoint.as_str());
    [pushed, told.zip(entry.dead_letter)].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::EventSubscription;
    use crate::api::resolve::resolve_subscription;
    use crate::ids::SubscriptionId;
    use crate::queue::ResourceKey;
    use crate::registry::{EndpointEntry, NamespaceView};

    fn key(name: &str) -> ResourceKey {
        ResourceKey {
            namespace_uid: "u1".into(),
            name: name.into(),
        }
    }

    /// A namespace with a subscription to an endpoint, of whose dead letters another one is told.
    async fn registry(endpoint: EndpointId, told: EndpointId) -> Registry {
        let object: EventSubscription = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventSubscription",
            "metadata": {"name": "leads", "namespace": "sales", "generation": 1},
            "spec": {
                "endpointRef": {"name": "crm"},
                "eventTypes": ["*"],
                "deadLetter": {"endpointRef": {"name": "ops"}},
            },
        }))
        .unwrap();
        let registry = Registry::new(1).0;
        let entry = SubscriptionEntry {
            id: SubscriptionId(1),
            key: key("leads"),
            endpoint,
            endpoint_gauge: registry.gauge(endpoint),
            endpoint_order: registry.order(endpoint),
            spec: Arc::new(resolve_subscription(&object).unwrap()),
            filter_health: Arc::default(),
            material: Default::default(),
            dead_letter: Some(told),
            mailbox: None,
            deleted: None,
        };
        registry.put_subscription(Arc::new(entry)).await;
        let view = NamespaceView {
            uid: "u1".into(),
            subscriptions: Arc::default(),
            pulled: Arc::default(),
            types: Arc::default(),
            rules: Arc::default(),
        };
        registry.put_namespaces([("sales".to_owned(), Some(view))]);
        registry
    }

    async fn put(registry: &Registry, id: EndpointId, name: &str, state: EndpointState) {
        let entry = EndpointEntry {
            id,
            key: key(name),
            namespace: "sales".into(),
            gauge: registry.gauge(id),
            state,
        };
        registry.put_endpoint(entry).await;
    }

    #[tokio::test]
    async fn nothing_is_selected_before_the_endpoints_that_are_meant_are_loaded() {
        let (crm, ops) = (EndpointId(1), EndpointId(2));
        let registry = registry(crm, ops).await;
        let selected = |selector: Value| {
            let selector: ReplaySelector = serde_json::from_value(selector).unwrap();
            select(&registry, "sales", &selector)
        };
        let leads = || json!({"subscriptionRef": {"name": "leads"}});
        let endpoint = |name: &str| json!({"endpointRef": {"name": name}});
        let are_awaited = || {
            let ids = json!({"ids": ["msg_3B0WGYT001G00"]});
            [leads(), ids, endpoint("crm"), endpoint("ops")].map(|selector| selected(selector).is_none())
        };
        assert_eq!(are_awaited(), [true; 4]);
        assert!(
            matches!(selected(endpoint("web")), Some(Err(_))),
            "nobody names it: it is known that there is none"
        );

        let unusable = EndpointState::Unusable {
            reason: reasons::SECRET_NOT_FOUND,
            message: String::new(),
            generation: 1,
            suspend: false,
            max_age: Duration::from_secs(3_600),
        };
        put(&registry, crm, "crm", unusable).await;
        assert_eq!(
            are_awaited(),
            [true, true, false, true],
            "what is told of dead letters may be meant"
        );
        put(&registry, ops, "ops", EndpointState::Missing).await;
        assert_eq!(are_awaited(), [false; 4], "what does not exist is known");
        let Some(Ok(selection)) = selected(leads()) else {
            panic!("all is loaded")
        };
        assert_eq!(*selection.endpoints, HashSet::from([crm]));
        assert_eq!(*selection.subscriptions, HashSet::from([SubscriptionId(1)]));
    }

    #[tokio::test]
    async fn a_selector_means_the_states_and_the_time_that_it_names() {
        let (crm, ops) = (EndpointId(1), EndpointId(2));
        let registry = registry(crm, ops).await;
        for (id, name) in [(crm, "crm"), (ops, "ops")] {
            put(&registry, id, name, EndpointState::Missing).await;
        }
        let selected = |selector: Value| {
            let selector: ReplaySelector = serde_json::from_value(selector).unwrap();
            select(&registry, "sales", &selector).unwrap().unwrap()
        };
        for (state, dead, delivered) in [
            (None, true, false),
            (Some("DeadLetter"), true, false),
            (Some("Delivered"), false, true),
            (Some("Any"), true, true),
        ] {
            let selector = state.map_or(json!({}), |state| json!({"state": state}));
            let selection = selected(selector);
            assert_eq!((selection.dead, selection.delivered), (dead, delivered), "{state:?}");
            assert_eq!((selection.from, selection.until, selection.ids), (None, None, None));
        }
        let (one, two) = ("2026-03-01T10:00:00Z", "2026-03-01T10:00:01.5Z");
        let (from, until) = (UnixMillis(1_772_359_200_000), UnixMillis(1_772_359_201_500));
        for (selector, times) in [
            (json!({"from": one}), (Some(from), None)),
            (json!({"until": two}), (None, Some(until))),
            (json!({"from": one, "until": two}), (Some(from), Some(until))),
        ] {
            let selection = selected(selector);
            assert_eq!((selection.from, selection.until), times);
        }
    }
}
