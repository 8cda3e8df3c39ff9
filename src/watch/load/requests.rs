//! What subscriptions' requests are made with: the values of the Secrets that their expressions read.
//!
//! Invariant: a subscription whose Secret is not known yet matches events all the same; its messages wait.

use std::sync::Arc;

use tokio::time::Instant;

use super::holding::Holding;
use super::{Loader, Who};
use crate::api::EventSubscription;
use crate::api::conditions::reasons;
use crate::api::resolve::{RequestForm, ResolvedSubscription, resolve_secrets};
use crate::registry::Material;
use crate::watch::world::Key;

impl Loader {
    /// What a subscription's requests are made with now. What it refers to is read as it changes.
    pub(super) fn material(
        &mut self,
        key: &Key,
        object: &EventSubscription,
        spec: &Arc<ResolvedSubscription>,
    ) -> Material {
        let request = match &spec.request {
            RequestForm::Shaped(request) if !request.secrets.is_empty() => request,
            form => {
                self.drop_holding(key);
                return match form {
                    RequestForm::Unknown => Material::Missing(reasons::INVALID_REQUEST),
                    RequestForm::Plain | RequestForm::Shaped(_) => Material::default(),
                };
            }
        };
        let Some(space) = self.world.spaces.get(&key.0) else {
            return Material::Missing(reasons::SECRET_UNAVAILABLE);
        };
        let label = self.policy.rules_for(&space.labels).secret_label;
        let now = Instant::now();
        let before = self.subscriptions.get(key).map(|entry| entry.spec.generation);
        let is_new_spec = before != object.metadata.generation;
        let status = object.status.as_ref();
        let versions = status.map(|s| s.references.as_slice()).unwrap_or_default();
        let holding = self.holdings.entry(key.clone()).or_insert_with(|| Holding::new(now));
        holding.observe(request.uses(), versions, is_new_spec, now);
        holding.heed(label, now);
        let resolved = holding.resolve(label, |references| resolve_secrets(request, &key.0, references));
        self.reschedule(&Who::Subscription(key.clone()));
        match resolved {
            Ok(secrets) => Material::Ready(Arc::new(secrets)),
            Err(unresolved) => Material::Missing(unresolved.reason),
        }
    }

    /// It refers to nothing any more.
    pub(super) fn drop_holding(&mut self, key: &Key) {
        if let Some(timer) = self.holdings.remove(key).and_then(|holding| holding.timer) {
            self.timers.remove(&(timer, Who::Subscription(key.clone())));
        }
    }
}
