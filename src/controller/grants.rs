//! Access of the dispatcher to exactly the Secrets and ConfigMaps that endpoints and subscriptions name: in each namespace the Roles and
//! RoleBindings `tidings-dispatcher-0..15`, sharded by a hash of the name.
//!
//! One Role per endpoint would make every request to the API server slower, one Role for all would be rewritten whole at
//! every change: hence shards. Invariant: a Role exists before its RoleBinding, and names only what some object names.

pub mod apply;
pub mod reconcile;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest, Sha256};

use crate::api::resolve::{Reference, ValueKind};

/// How many Roles the names of one namespace are spread over.
pub const SHARDS: u8 = 16;

/// What one shard names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    pub secrets: BTreeSet<String>,
    pub config_maps: BTreeSet<String>,
}

/// What all endpoints and subscriptions of a namespace name, by shard; empty shards are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub shards: BTreeMap<u8, Shard>,
}

/// Who gets the access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grantee {
    /// Tidings' own namespace.
    pub namespace: String,
    pub service_account: String,
}

impl Wanted {
    /// Adds one name.
    pub fn name(&mut self, reference: Reference) {
        let shard = self.shards.entry(shard_of(&reference.name)).or_default();
        match reference.kind {
            ValueKind::Secret => shard.secrets.insert(reference.name),
            ValueKind::ConfigMap => shard.config_maps.insert(reference.name),
        };
    }

    /// Whether the dispatcher may read it.
    pub fn covers(&self, reference: &Reference) -> bool {
        let name = &reference.name;
        self.shards
            .get(&shard_of(name))
            .is_some_and(|shard| match reference.kind {
                ValueKind::Secret => shard.secrets.contains(name),
                ValueKind::ConfigMap => shard.config_maps.contains(name),
            })
    }
}

/// The shard of a name: stable for ever, since Roles of another shard would have to be cleaned up otherwise.
pub fn shard_of(name: &str) -> u8 {
    Sha256::digest(name.as_bytes())[0] % SHARDS
}

/// Name of a shard's Role and RoleBinding.
pub fn shard_name(shard: u8) -> String {
    format!("tidings-dispatcher-{shard}")
}

/// The Role of a shard.
pub fn role(namespace: &str, number: u8, shard: &Shard) -> Role {
    Role {
        metadata: metadata(namespace, number),
        rules: Some(rules(shard)),
    }
}

/// The rules of a shard's Role.
pub fn rules(shard: &Shard) -> Vec<PolicyRule> {
    [("secrets", &shard.secrets), ("configmaps", &shard.config_maps)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(resource, names)| PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec![resource.to_owned()]),
            resource_names: Some(names.iter().cloned().collect()),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        })
        .collect()
}

/// The RoleBinding of a shard.
pub fn binding(namespace: &str, number: u8, grantee: &Grantee) -> RoleBinding {
    RoleBinding {
        metadata: metadata(namespace, number),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: shard_name(number),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: grantee.service_account.clone(),
            namespace: Some(grantee.namespace.clone()),
            api_group: None,
        }]),
    }
}

/// Whether a RoleBinding says what [`binding`] does.
pub fn binds(found: &RoleBinding, number: u8, grantee: &Grantee) -> bool {
    let wanted = binding("", number, grantee);
    let subjects = |b: &RoleBinding| -> Vec<(String, Option<String>, String)> {
        let all = b.subjects.iter().flatten();
        all.map(|s| (s.kind.clone(), s.namespace.clone(), s.name.clone()))
            .collect()
    };
    found.role_ref.name == wanted.role_ref.name && subjects(found) == subjects(&wanted)
}

fn metadata(namespace: &str, number: u8) -> ObjectMeta {
    ObjectMeta {
        name: Some(shard_name(number)),
        namespace: Some(namespace.to_owned()),
        labels: Some(BTreeMap::from([
            ("app.kubernetes.io/name".to_owned(), "tidings".to_owned()),
            (
                "app.kubernetes.io/managed-by".to_owned(),
                "tidings-controller".to_owned(),
            ),
        ])),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_names_exactly_what_was_asked_and_only_get() {
        let mut wanted = Wanted::default();
        wanted.name(Reference::secret("crm-signing"));
        wanted.name(Reference::secret("crm-signing"));
        wanted.name(Reference::config_map("ca"));
        assert!(wanted.covers(&Reference::secret("crm-signing")));
        assert!(!wanted.covers(&Reference::config_map("crm-signing")), "kinds are apart");
        let all: Vec<PolicyRule> = wanted
            .shards
            .iter()
            .flat_map(|(n, s)| role("ns", *n, s).rules.unwrap())
            .collect();
        assert_eq!(all.len(), 2);
        assert!(
            all.iter()
                .all(|r| r.verbs == ["get"] && r.resource_names.as_ref().unwrap().len() == 1)
        );
    }

    #[test]
    fn names_spread_over_all_shards() {
        let mut wanted = Wanted::default();
        for n in 0..1000 {
            wanted.name(Reference::secret(format!("endpoint-{n}-signing")));
        }
        assert_eq!(wanted.shards.len(), usize::from(SHARDS));
        assert!(wanted.shards.values().all(|s| s.secrets.len() < 120));
    }

    #[test]
    fn a_binding_for_somebody_else_is_not_ours() {
        let grantee = Grantee {
            namespace: "tidings-system".into(),
            service_account: "tidings-dispatcher".into(),
        };
        let ours = binding("ns", 3, &grantee);
        assert!(binds(&ours, 3, &grantee));
        let mut other = ours.clone();
        other.subjects.as_mut().unwrap()[0].name = "mallory".into();
        assert!(!binds(&other, 3, &grantee));
    }
}
