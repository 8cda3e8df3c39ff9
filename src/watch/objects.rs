//! The watched objects by the store's ids: what the status writer compares with before it writes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::api::{EventSubscription, WebhookEndpoint};
use crate::ids::{EndpointId, SubscriptionId};

/// As the watches saw them last. Locks are held for one look-up only.
#[derive(Debug, Default)]
pub struct Objects {
    endpoints: RwLock<HashMap<EndpointId, Arc<WebhookEndpoint>>>,
    subscriptions: RwLock<HashMap<SubscriptionId, Arc<EventSubscription>>>,
}

impl Objects {
    /// With this endpoint alone.
    #[cfg(test)]
    pub(crate) fn of_endpoint(id: EndpointId, object: WebhookEndpoint) -> Objects {
        let objects = Objects::default();
        objects.put_endpoint(id, Arc::new(object));
        objects
    }

    /// The endpoint; none when it does not exist.
    pub fn endpoint(&self, id: EndpointId) -> Option<Arc<WebhookEndpoint>> {
        self.endpoints
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// The subscription; none when it does not exist.
    pub fn subscription(&self, id: SubscriptionId) -> Option<Arc<EventSubscription>> {
        self.subscriptions
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    pub(super) fn put_endpoint(&self, id: EndpointId, object: Arc<WebhookEndpoint>) {
        self.endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, object);
    }

    pub(super) fn remove_endpoint(&self, id: EndpointId) {
        self.endpoints
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    pub(super) fn put_subscription(&self, id: SubscriptionId, object: Arc<EventSubscription>) {
        self.subscriptions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, object);
    }

    pub(super) fn remove_subscription(&self, id: SubscriptionId) {
        self.subscriptions
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }
}
