//! Reading what an object names.

use std::collections::BTreeMap;

use super::context::Context;
use super::memory::Seen;
use super::references::{Found, Key, Wanted};
use super::work::Error;
use crate::api::policy::SecretLabel;
use crate::api::resolve::{Reference, References, Uses};
use crate::api::status::ReferenceStatus;

/// What was found under each name, and what of it is wanted.
pub type Material = BTreeMap<Reference, (Wanted, Found)>;

/// Reads every Secret and ConfigMap of an object, an endpoint's signing Secret included, as new as the object asks for.
/// `label` is what the policy says of the namespace.
pub async fn read(
    context: &Context,
    namespace: &str,
    uses: Uses,
    label: SecretLabel,
    seen: &Seen,
) -> Result<Material, Error> {
    let mut material = Material::new();
    for (reference, used) in uses {
        let wanted = Wanted { used, label };
        let key = Key {
            namespace: namespace.to_owned(),
            reference: reference.clone(),
        };
        let found = context.references.get(&context.client, &key, &wanted, seen.since).await;
        let found = found.map_err(Error::when("read the Secrets and ConfigMaps that are named"))?;
        material.insert(reference, (wanted, found));
    }
    Ok(material)
}

/// As resolving takes it.
pub fn values(material: &Material, label: SecretLabel) -> References {
    let mut values = References::under(label);
    for (reference, (wanted, found)) in material {
        values.insert(reference.clone(), found.to_lookup(wanted));
    }
    values
}

/// As status tells of it.
pub fn told(material: &Material) -> Vec<ReferenceStatus> {
    let told = material.iter().map(|(reference, (_, found))| ReferenceStatus {
        kind: reference.kind.into(),
        name: reference.name.clone(),
        resource_version: found.resource_version(),
    });
    told.collect()
}
