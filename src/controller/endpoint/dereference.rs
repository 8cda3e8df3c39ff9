//! Reading what an endpoint names.

use std::collections::BTreeMap;

use kube::ResourceExt;

use crate::api::WebhookEndpoint;
use crate::api::resolve::{Reference, references_of};
use crate::controller::context::Context;
use crate::controller::memory::Seen;
use crate::controller::references::{Found, Key};
use crate::controller::work::Error;

/// What was found under each name.
pub type Material = BTreeMap<Reference, Found>;

/// Reads every Secret and ConfigMap of an endpoint, its signing Secret included, as new as the endpoint asks for.
pub async fn read(context: &Context, endpoint: &WebhookEndpoint, seen: &Seen) -> Result<Material, Error> {
    let namespace = endpoint.namespace().unwrap_or_default();
    let mut material = Material::new();
    for reference in references_of(endpoint) {
        let key = Key {
            namespace: namespace.clone(),
            reference: reference.clone(),
        };
        let found = context.references.get(&context.client, &key, seen.since).await;
        let found = found.map_err(Error::when("read what the endpoint refers to"))?;
        material.insert(reference, found);
    }
    Ok(material)
}
