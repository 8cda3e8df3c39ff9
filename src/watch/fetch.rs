//! Reading what an endpoint refers to, with the dispatcher's own rights: one GET an object.
//!
//! Only what is used is kept of it. Invariant: values never show in Debug, logs or errors; why a read failed is one of three words.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, Resource};
use litemap::LiteMap;
use serde::de::DeserializeOwned;

use super::material::{Read, Trouble};
use crate::api::policy::SecretLabel;
use crate::api::resolve::{Found, Lookup, Reference, References, Uses, ValueKind};
use crate::api::status::{ReferenceKind, ReferenceStatus};
use crate::kubernetes::{RequestError, within};

/// The reads of one endpoint.
pub type Reads = Vec<Read<Reference, Arc<Found>>>;

/// Reads every reference of an endpoint, one after the other: few, and many endpoints are read at once. `label` is what the
/// policy says of the namespace.
pub async fn read(client: &Client, namespace: &str, uses: Uses, label: SecretLabel) -> Reads {
    let mut reads = Vec::with_capacity(uses.len());
    for (reference, used) in uses {
        let result = match reference.kind {
            ValueKind::Secret => {
                let kept = |secret: Secret| Found::of_secret(secret, &used, label);
                get(client, namespace, &reference, kept).await
            }
            ValueKind::ConfigMap => {
                let kept = |map: ConfigMap| Found::of_config_map(map, &used);
                get(client, namespace, &reference, kept).await
            }
        };
        reads.push((reference, result));
    }
    reads
}

async fn get<K>(
    client: &Client,
    namespace: &str,
    reference: &Reference,
    kept: impl FnOnce(K) -> Found,
) -> Result<(String, Arc<Found>), Trouble>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match within(api.get(&reference.name)).await {
        Ok(object) => {
            let found = kept(object);
            Ok((found.resource_version.clone(), Arc::new(found)))
        }
        Err(error) => {
            let trouble = trouble(&error);
            if trouble == Trouble::Away {
                tracing::warn!(namespace, name = reference.name, kind = ?reference.kind, %error, "failed to read");
            } else {
                tracing::debug!(namespace, name = reference.name, kind = ?reference.kind, ?trouble, "not readable");
            }
            Err(trouble)
        }
    }
}

fn trouble(error: &RequestError) -> Trouble {
    match error.code() {
        Some(404) => Trouble::Missing,
        Some(403) => Trouble::Denied,
        _ => Trouble::Away,
    }
}

/// The version that the controller read last, from status.
pub fn version_in(references: &[ReferenceStatus], kind: ReferenceKind, name: &str) -> Option<String> {
    references
        .iter()
        .find(|status| status.kind == kind && status.name == name)
        .and_then(|status| status.resource_version.clone())
}

/// What resolving takes: the values held, and for the rest why there is none. One that nobody could tell of (the API
/// server is away) counts as unreadable, not as missing.
pub fn references(
    label: SecretLabel,
    held: &LiteMap<Reference, Arc<Found>>,
    troubles: &LiteMap<Reference, Trouble>,
) -> References {
    let mut references = References::under(label);
    for (reference, trouble) in troubles {
        let lookup = match trouble {
            Trouble::Missing => Lookup::NotFound,
            Trouble::Denied | Trouble::Away => Lookup::Denied,
        };
        references.insert(reference.clone(), lookup);
    }
    for (reference, found) in held {
        references.insert(reference.clone(), Lookup::Found(Found::clone(found)));
    }
    references
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_held_counts_more_than_a_read_that_failed() {
        let (kept, lost) = (Reference::secret("kept"), Reference::secret("lost"));
        let held = LiteMap::from_iter([(kept.clone(), Arc::default())]);
        let troubles = LiteMap::from_iter([(kept.clone(), Trouble::Missing), (lost.clone(), Trouble::Away)]);
        let references = references(SecretLabel::Required, &held, &troubles);
        assert_eq!(references.get(&kept), Some(&Lookup::Found(Found::default())));
        assert_eq!(references.get(&lost), Some(&Lookup::Denied));
    }

    #[test]
    fn versions_in_status_are_found_by_kind_and_name() {
        let status = |kind, version: &str| ReferenceStatus {
            kind,
            name: "a".into(),
            resource_version: Some(version.into()),
        };
        let list = [
            status(ReferenceKind::ConfigMap, "1"),
            status(ReferenceKind::Secret, "2"),
        ];
        assert_eq!(version_in(&list, ReferenceKind::Secret, "a").as_deref(), Some("2"));
        assert_eq!(version_in(&list, ReferenceKind::Secret, "b"), None);
    }
}
