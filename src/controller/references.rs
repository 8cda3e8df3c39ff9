//! Secrets and ConfigMaps that endpoints and subscriptions refer to, read one by one: nobody lists or watches them.
//!
//! Each distinct one is read again after [`References::period`], and at once when an endpoint that names it changed.
//! Invariant: Debug shows no value; what failed to be read is an error, never taken for missing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, GetParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::api::resolve::{Lookup, Reference, ValueKind};
use crate::kubernetes::{RequestError, slim, within};

/// The least time between two reads of an unchanged reference.
const PERIOD_MIN: Duration = Duration::from_secs(60);
/// Beyond a period, so that the read that is due then does not find the old one still good.
const MARGIN: Duration = Duration::from_secs(1);
/// Reads a second, at most, that references cost in the long run.
const READS_PER_SECOND: u32 = 20;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub reference: Reference,
}

/// What was found.
#[derive(Clone)]
pub enum Found {
    Secret(Arc<Secret>),
    ConfigMap(Arc<ConfigMap>),
    Missing,
    /// 403: the controller itself may not read it.
    Denied,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Secret(_) => "Secret(redacted)",
            Found::ConfigMap(_) => "ConfigMap",
            Found::Missing => "Missing",
            Found::Denied => "Denied",
        })
    }
}

impl From<Secret> for Found {
    fn from(mut object: Secret) -> Found {
        slim(&mut object);
        Found::Secret(Arc::new(object))
    }
}

impl From<ConfigMap> for Found {
    fn from(mut object: ConfigMap) -> Found {
        slim(&mut object);
        Found::ConfigMap(Arc::new(object))
    }
}

impl Found {
    /// Its version, when it exists.
    pub fn resource_version(&self) -> Option<String> {
        match self {
            Found::Secret(object) => object.resource_version(),
            Found::ConfigMap(object) => object.resource_version(),
            Found::Missing | Found::Denied => None,
        }
    }

    /// As resolving takes it.
    pub fn to_lookup(&self) -> Lookup {
        match self {
            Found::Secret(object) => Lookup::Found(Secret::clone(object).into()),
            Found::ConfigMap(object) => Lookup::Found(ConfigMap::clone(object).into()),
            Found::Missing => Lookup::NotFound,
            Found::Denied => Lookup::Denied,
        }
    }
}

/// What was read, and when.
#[derive(Debug, Default)]
pub struct References {
    read: Mutex<HashMap<Key, (Instant, Found)>>,
}

impl References {
    /// The reference as it was at `not_before` or later, and no older than the period.
    pub async fn get(&self, client: &Client, key: &Key, not_before: Instant) -> Result<Found, RequestError> {
        let now = Instant::now();
        let fresh = now
            .checked_sub(self.period())
            .map_or(not_before, |oldest| oldest.max(not_before));
        if let Some((at, found)) = self.locked(|read| read.get(key).cloned())
            && at >= fresh
        {
            return Ok(found);
        }
        let found = fetch(client, key, &GetParams::any()).await?;
        self.put(key.clone(), found.clone(), now);
        Ok(found)
    }

    /// The newest there is, past the API server's cache.
    pub async fn get_newest(&self, client: &Client, key: &Key) -> Result<Found, RequestError> {
        let now = Instant::now();
        let found = fetch(client, key, &GetParams::default()).await?;
        self.put(key.clone(), found.clone(), now);
        Ok(found)
    }

    /// Takes in what this process has just written.
    pub fn put(&self, key: Key, found: Found, now: Instant) {
        self.locked(|read| read.insert(key, (now, found)));
    }

    /// How long a read counts: a minute, or longer when there are many references.
    pub fn period(&self) -> Duration {
        let count = u32::try_from(self.locked(|read| read.len())).unwrap_or(u32::MAX);
        PERIOD_MIN.max(Duration::from_secs(u64::from(count / READS_PER_SECOND)))
    }

    /// When what is read now is to be read again.
    pub fn due(&self) -> Instant {
        Instant::now() + self.period() + MARGIN
    }

    /// Drops what nobody has asked for in two periods: its endpoint is gone or names something else.
    pub fn prune(&self) {
        let keep = self.period() * 2 + PERIOD_MIN;
        self.locked(|read| read.retain(|_, (at, _)| at.elapsed() < keep));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, (Instant, Found)>) -> T) -> T {
        f(&mut self.read.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

async fn fetch(client: &Client, key: &Key, params: &GetParams) -> Result<Found, RequestError> {
    let result = match key.reference.kind {
        ValueKind::Secret => {
            let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
            within(api.get_with(&key.reference.name, params)).await.map(Found::from)
        }
        ValueKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &key.namespace);
            within(api.get_with(&key.reference.name, params)).await.map(Found::from)
        }
    };
    match result {
        Err(error) if error.code() == Some(404) => Ok(Found::Missing),
        Err(error) if error.code() == Some(403) => Ok(Found::Denied),
        other => other,
    }
}
