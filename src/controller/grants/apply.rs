//! Brings the Roles of one namespace to what is wanted, with as few writes as that takes.

use std::fmt::Debug;

use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Resource;
use kube::api::{Api, DeleteParams, GetParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Grantee, SHARDS, Shard, Wanted, binding, binds, role, rules, shard_name};
use crate::controller::FIELD_MANAGER;
use crate::controller::context::Context;
use crate::kubernetes::{RequestError, within};

/// Shards of a namespace written at a time: one after the other a namespace of many endpoints would take seconds.
const SHARDS_AT_ONCE: usize = 4;

/// What is known to be there: `None` until it was read once.
pub type Known = Option<Wanted>;

/// Where the grants of one namespace are written.
pub struct Scope<'a> {
    pub context: &'a Context,
    pub namespace: &'a str,
    pub grantee: &'a Grantee,
}

impl Scope<'_> {
    /// Applies the shards that differ from `known`, deletes those that are empty now. On an error `known` holds what is
    /// certain: nothing, so that the next attempt reads again.
    pub async fn bring_about(&self, wanted: &Wanted, known: &mut Known) -> Result<u32, RequestError> {
        let before = match known.take() {
            Some(before) => before,
            None => self.read(wanted).await?,
        };
        let numbers = (0..SHARDS).filter(|number| before.shards.get(number) != wanted.shards.get(number));
        let writes = stream::iter(numbers)
            .map(|number| self.bring_shard(number, before.shards.get(&number), wanted.shards.get(&number)))
            .buffer_unordered(SHARDS_AT_ONCE)
            .try_fold(0, async |writes, ()| Ok(writes + 1))
            .await?;
        *known = Some(wanted.clone());
        Ok(writes)
    }

    async fn bring_shard(&self, number: u8, old: Option<&Shard>, new: Option<&Shard>) -> Result<(), RequestError> {
        let Some(shard) = new else {
            return self.delete(number).await;
        };
        self.apply(number, &role(self.namespace, number, shard)).await?;
        // A shard that was there with names had its RoleBinding; an empty one is unknown.
        let had = old.is_some_and(|old| *old != Shard::default());
        if had && self.is_bound(number).await? {
            return Ok(());
        }
        self.apply(number, &binding(self.namespace, number, self.grantee)).await
    }

    async fn apply<K>(&self, number: u8, object: &K) -> Result<(), RequestError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Serialize + DeserializeOwned + Clone + Debug,
    {
        self.context.spend("grant").await;
        let mut body = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
        body["apiVersion"] = K::api_version(&()).into();
        body["kind"] = K::kind(&()).into();
        let api: Api<K> = Api::namespaced(self.context.client.clone(), self.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        within(api.patch(&shard_name(number), &params, &Patch::Apply(&body))).await?;
        Ok(())
    }

    /// Whether the RoleBinding is as we write it. A read instead of a write: it nearly always is.
    async fn is_bound(&self, number: u8) -> Result<bool, RequestError> {
        let bindings: Api<RoleBinding> = Api::namespaced(self.context.client.clone(), self.namespace);
        let found = optional(within(bindings.get_with(&shard_name(number), &GetParams::any())).await)?;
        Ok(found.is_some_and(|found| binds(&found, number, self.grantee)))
    }

    /// The RoleBinding goes first: without its Role it would be an error in every authorisation's log.
    async fn delete(&self, number: u8) -> Result<(), RequestError> {
        let bindings: Api<RoleBinding> = Api::namespaced(self.context.client.clone(), self.namespace);
        let roles: Api<Role> = Api::namespaced(self.context.client.clone(), self.namespace);
        let (name, params) = (shard_name(number), DeleteParams::default());
        self.context.spend("grant").await;
        gone(within(bindings.delete(&name, &params)).await)?;
        self.context.spend("grant").await;
        gone(within(roles.delete(&name, &params)).await)
    }

    /// What is there after a start or an error. A shard that is not exactly as we write it is taken for different from
    /// every wanted one.
    async fn read(&self, wanted: &Wanted) -> Result<Wanted, RequestError> {
        let roles: Api<Role> = Api::namespaced(self.context.client.clone(), self.namespace);
        let bindings: Api<RoleBinding> = Api::namespaced(self.context.client.clone(), self.namespace);
        let mut found = Wanted::default();
        for number in 0..SHARDS {
            let name = shard_name(number);
            let role = optional(within(roles.get_with(&name, &GetParams::any())).await)?;
            // The Role is the first to come and the last to go: without it there is nothing.
            let bound = match role {
                Some(_) => optional(within(bindings.get_with(&name, &GetParams::any())).await)?,
                None => None,
            };
            let as_wanted = wanted.shards.get(&number).filter(|shard| {
                role.as_ref()
                    .is_some_and(|r| r.rules.as_deref().unwrap_or_default() == rules(shard))
                    && bound.as_ref().is_some_and(|b| binds(b, number, self.grantee))
            });
            match as_wanted {
                Some(shard) => drop(found.shards.insert(number, shard.clone())),
                None if role.is_some() || bound.is_some() => drop(found.shards.insert(number, Shard::default())),
                None => {}
            }
        }
        Ok(found)
    }
}

fn optional<T>(result: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn gone<T>(result: Result<T, RequestError>) -> Result<(), RequestError> {
    optional(result).map(|_| ())
}
