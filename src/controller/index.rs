//! The objects of a kind by what they name: whom a change touches is found without a walk through all that there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use kube::{Resource, ResourceExt};

use super::subscription::endpoints_of;
use crate::api::{EventSubscription, EventType, WebhookEndpoint};

/// What objects are looked for by, within their namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// All of the namespace.
    Namespace,
    /// Those that name this endpoint.
    Endpoint(String),
    /// Those that name this Service.
    Service(String),
    /// Those that name Secrets.
    Secrets,
    /// Those whose status says nothing of their spec as it is.
    Unseen,
    /// Those of this type of events.
    Type(String),
}

/// What can be looked for by what it names.
pub trait Indexed: Resource<DynamicType = ()> {
    /// All that this object is found by.
    fn names(&self) -> Vec<By>;
}

impl Indexed for WebhookEndpoint {
    fn names(&self) -> Vec<By> {
        let service = self.spec.service_ref.iter();
        let services = service.map(|service| By::Service(service.name.clone()));
        [By::Namespace].into_iter().chain(services).collect()
    }
}

impl Indexed for EventSubscription {
    fn names(&self) -> Vec<By> {
        let request = self.spec.request.iter();
        let secrets = request
            .filter(|request| !request.secrets.is_empty())
            .map(|_| By::Secrets);
        let endpoints = endpoints_of(self).map(|name| By::Endpoint(name.to_owned()));
        let observed = self.status.as_ref().and_then(|status| status.observed_generation);
        let unseen = (observed != self.metadata.generation).then_some(By::Unseen);
        endpoints.chain(secrets).chain(unseen).collect()
    }
}

impl Indexed for EventType {
    fn names(&self) -> Vec<By> {
        vec![By::Type(self.spec.r#type.clone())]
    }
}

/// The names of a kind's objects, by namespace and what they name.
#[derive(Debug, Default)]
pub struct Index {
    spaces: Mutex<Spaces>,
}

type Spaces = HashMap<String, BTreeSet<(By, String)>>;

impl Index {
    /// An object is another one now, or exists no more, or did not before.
    pub fn replace<K: Indexed>(&self, old: Option<&K>, new: Option<&K>) {
        let mut spaces = self.spaces();
        if let Some(old) = old {
            remove(&mut spaces, old);
        }
        if let Some(new) = new {
            insert(&mut spaces, new);
        }
    }

    /// These are all that exist in these namespaces.
    pub fn renew<K: Indexed>(&self, is_in: impl Fn(&str) -> bool, all: &[Arc<K>]) {
        let mut spaces = self.spaces();
        spaces.retain(|namespace, _| !is_in(namespace));
        all.iter().for_each(|object| insert(&mut spaces, &**object));
    }

    /// The names of those that are found by it, in their order.
    pub fn find(&self, namespace: &str, by: &By) -> Vec<String> {
        let spaces = self.spaces();
        let space = spaces.get(namespace).into_iter();
        let from = space.flat_map(|space| space.range((by.clone(), String::new())..));
        from.take_while(|(named, _)| named == by)
            .map(|(_, name)| name.clone())
            .collect()
    }

    fn spaces(&self) -> MutexGuard<'_, Spaces> {
        self.spaces.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn insert<K: Indexed>(spaces: &mut Spaces, object: &K) {
    let space = spaces.entry(object.namespace().unwrap_or_default()).or_default();
    space.extend(object.names().into_iter().map(|by| (by, object.name_any())));
}

fn remove<K: Indexed>(spaces: &mut Spaces, object: &K) {
    let namespace = object.namespace().unwrap_or_default();
    let Some(space) = spaces.get_mut(&namespace) else {
        return;
    };
    object.names().into_iter().for_each(|by| {
        space.remove(&(by, object.name_any()));
    });
    if space.is_empty() {
        spaces.remove(&namespace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn subscription(namespace: &str, name: &str, endpoint: &str, told: Option<&str>) -> EventSubscription {
        let mut spec = json!({"endpointRef": {"name": endpoint}, "eventTypes": ["*"]});
        if let Some(told) = told {
            spec["deadLetter"] = json!({"endpointRef": {"name": told}});
        }
        serde_json::from_value(
            json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn an_object_is_found_by_what_its_last_version_names_in_its_own_namespace() {
        let index = Index::default();
        let crm = By::Endpoint("crm".into());
        let first = subscription("sales", "b", "crm", Some("slack"));
        index.replace(None, Some(&first));
        index.replace(None, Some(&subscription("sales", "a", "crm", None)));
        index.replace(None, Some(&subscription("support", "c", "crm", None)));
        index.replace(None, Some(&subscription("sales", "d", "crm-2", None)));
        assert_eq!(index.find("sales", &crm), ["a", "b"]);
        assert_eq!(index.find("sales", &By::Endpoint("slack".into())), ["b"]);
        assert_eq!(index.find("support", &crm), ["c"]);
        let second = subscription("sales", "b", "billing", Some("crm"));
        index.replace(Some(&first), Some(&second));
        assert_eq!(index.find("sales", &crm), ["a", "b"]);
        assert_eq!(index.find("sales", &By::Endpoint("slack".into())), [""; 0]);
        index.replace(Some(&second), None);
        assert_eq!(index.find("sales", &crm), ["a"]);
        assert_eq!(index.find("sales", &By::Endpoint("billing".into())), [""; 0]);
        index.replace(Some(&subscription("support", "c", "crm", None)), None);
        assert!(
            !index.spaces().contains_key("support"),
            "an empty namespace costs nothing"
        );
        index.replace(None, Some(&subscription("support", "c", "crm", None)));
        index.renew(|namespace| namespace == "sales", &[Arc::new(second)]);
        assert_eq!(
            index.find("sales", &crm),
            ["b"],
            "what a whole list does not show is gone"
        );
        assert_eq!(index.find("support", &crm), ["c"]);
    }

    #[test]
    fn kinds_are_found_by_their_namespace_their_service_their_secrets_and_their_type() {
        let endpoint: WebhookEndpoint = serde_json::from_value(json!({"apiVersion": "tidings.dev/v1alpha1",
            "kind": "WebhookEndpoint", "metadata": {"name": "crm", "namespace": "sales"},
            "spec": {"serviceRef": {"name": "receiver", "port": 80}}}))
        .unwrap();
        assert_eq!(endpoint.names(), [By::Namespace, By::Service("receiver".into())]);
        let mut naming = subscription("sales", "a", "crm", None);
        naming.spec.request = serde_json::from_value(json!({"secrets": [{"name": "token",
            "secretKeyRef": {"name": "crm-token", "key": "token"}}]}))
        .unwrap();
        naming.metadata.generation = Some(2);
        assert_eq!(naming.names(), [By::Endpoint("crm".into()), By::Secrets, By::Unseen]);
        naming.status = serde_json::from_value(json!({"observedGeneration": 2})).unwrap();
        assert_eq!(naming.names(), [By::Endpoint("crm".into()), By::Secrets]);
        let event_type: EventType = serde_json::from_value(json!({"apiVersion": "tidings.dev/v1alpha1",
            "kind": "EventType", "metadata": {"name": "lead", "namespace": "sales"},
            "spec": {"type": "lead.qualified", "schema": {}}}))
        .unwrap();
        assert_eq!(event_type.names(), [By::Type("lead.qualified".into())]);
    }
}
