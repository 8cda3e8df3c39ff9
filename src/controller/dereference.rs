//! Reading what an object names.

use std::collections::BTreeMap;

use super::context::Context;
use super::memory::Seen;
use super::references::{Found, Key};
use super::work::Error;
use crate::api::policy::SecretLabel;
use crate::api::resolve::{Reference, References};
use crate::api::status::ReferenceStatus;

/// What was found under each name.
pub type Material = BTreeMap<Reference, Found>;

/// Reads every Secret and ConfigMap of an object, an endpoint's signing Secret included, as new as the object asks for.
pub async fn read(
    context: &Context,
    namespace: &str,
    references: Vec<Reference>,
    seen: &Seen,
) -> Result<Material, Error> {
    let mut material = Material::new();
    for reference in references {
        let key = Key {
            namespace: namespace.to_owned(),
            reference: reference.clone(),
        };
        let found = context.references.get(&context.client, &key, seen.since).await;
        let found = found.map_err(Error::when("read the Secrets and ConfigMaps that are named"))?;
        material.insert(reference, found);
    }
    Ok(material)
}

/// As resolving takes it.
pub fn values(material: &Material, label: SecretLabel) -> References {
    let mut values = References::under(label);
    for (reference, found) in material {
        values.insert(reference.clone(), found.to_lookup());
    }
    values
}

/// As status tells of it.
pub fn told(material: &Material) -> Vec<ReferenceStatus> {
    let told = material.iter().map(|(reference, found)| ReferenceStatus {
        kind: reference.kind.into(),
        name: reference.name.clone(),
        resource_version: found.resource_version(),
    });
    told.collect()
}
