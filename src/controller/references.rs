//! Secrets and ConfigMaps that endpoints and subscriptions refer to, read one by one: nobody lists or watches them.
//!
//! Each distinct one is read again after [`References::period`], and at once when an endpoint that names it changed. Of each
//! only what somebody uses is kept. Invariant: Debug shows no value; what failed to be read is an error, never taken for
//! missing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, GetParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::api::names::{PUBLIC_KEY, SIGNING_SECRET_TYPE};
use crate::api::policy::SecretLabel;
use crate::api::resolve::{self, LONGEST_VALUE, Lookup, Reference, Used, Value, ValueKind};
use crate::kubernetes::{RequestError, slim, within};

/// The least time between two reads of an unchanged reference.
const PERIOD_MIN: Duration = Duration::from_secs(60);
/// Beyond a period, so that the read that is due then does not find the old one still good.
const MARGIN: Duration = Duration::from_secs(1);
/// Reads a second, at most, that references cost in the long run.
const READS_PER_SECOND: u32 = 20;
/// Keys of one object that are kept for all who name it; whoever exceeds it begins anew.
const KEYS: usize = 1_000;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub reference: Reference,
}

/// What is wanted of it, and what the policy says of the label.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub used: Used,
    pub label: SecretLabel,
}

impl Wanted {
    /// The keys of a generated signing Secret.
    pub fn to_sign() -> Wanted {
        Wanted {
            used: Used::to_sign(),
            label: SecretLabel::default(),
        }
    }

    /// Signing Secrets need no label.
    fn needs_label(&self) -> bool {
        self.used.named() > 0
    }

    fn covers(&self, other: &Wanted) -> bool {
        self.used.covers(&other.used) && (self.label == other.label || !other.needs_label())
    }

    /// What both want, by the label of who asks now.
    fn with(self, asked: &Wanted) -> Wanted {
        let label = if asked.needs_label() { asked.label } else { self.label };
        let used = self.used.with(&asked.used);
        match used.named() > KEYS {
            true => asked.clone(),
            false => Wanted { used, label },
        }
    }
}

/// What was found.
#[derive(Clone)]
pub enum Found {
    /// A signing Secret, if its keys may be used; it holds no other data than is wanted.
    Signing(Arc<Secret>),
    Values(Arc<resolve::Found>),
    Missing,
    /// 403: the controller itself may not read it.
    Denied,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Signing(_) => "Signing(redacted)",
            Found::Values(_) => "Values(redacted)",
            Found::Missing => "Missing",
            Found::Denied => "Denied",
        })
    }
}

impl Found {
    /// What is kept of a Secret.
    pub fn of_secret(mut object: Secret, wanted: &Wanted) -> Found {
        let values = |object| resolve::Found::of_secret(object, &wanted.used, wanted.label);
        if !wanted.used.signs() || object.type_.as_deref() != Some(SIGNING_SECRET_TYPE) {
            return Found::Values(Arc::new(values(object)));
        }
        let values = values(object.clone());
        if values.data.values().any(|value| matches!(value, Value::TooLong(_))) {
            return Found::Values(Arc::new(values));
        }
        slim(&mut object);
        if let Some(data) = &mut object.data {
            data.retain(|key, value| {
                values.data.contains_key(key) || key == PUBLIC_KEY && value.0.len() <= LONGEST_VALUE
            });
        }
        Found::Signing(Arc::new(object))
    }

    /// Its version, when it exists.
    pub fn resource_version(&self) -> Option<String> {
        match self {
            Found::Signing(object) => object.resource_version(),
            Found::Values(values) => Some(values.resource_version.clone()),
            Found::Missing | Found::Denied => None,
        }
    }

    /// As resolving takes it, for who wants this of it.
    pub fn to_lookup(&self, wanted: &Wanted) -> Lookup {
        match self {
            Found::Signing(object) => Lookup::Found(resolve::Found::of_secret(
                Secret::clone(object),
                &wanted.used,
                wanted.label,
            )),
            Found::Values(values) => Lookup::Found(resolve::Found::clone(values)),
            Found::Missing => Lookup::NotFound,
            Found::Denied => Lookup::Denied,
        }
    }
}

/// What was read, and when.
#[derive(Debug, Default)]
pub struct References {
    read: Mutex<HashMap<Key, Read>>,
}

#[derive(Clone, Debug)]
struct Read {
    at: Instant,
    /// What all who asked for it want.
    wanted: Wanted,
    found: Found,
}

impl References {
    /// The reference as it was at `not_before` or later, and no older than the period; at least what is wanted of it.
    pub async fn get(
        &self,
        client: &Client,
        key: &Key,
        wanted: &Wanted,
        not_before: Instant,
    ) -> Result<Found, RequestError> {
        let now = Instant::now();
        let fresh = now
            .checked_sub(self.period())
            .map_or(not_before, |oldest| oldest.max(not_before));
        let held = self.locked(|read| read.get(key).cloned());
        if let Some(held) = &held
            && held.at >= fresh
            && held.wanted.covers(wanted)
        {
            return Ok(held.found.clone());
        }
        let wanted = held.map_or_else(|| wanted.clone(), |held| held.wanted.with(wanted));
        self.fetch(client, key, wanted, &GetParams::any(), now).await
    }

    /// The newest there is, past the API server's cache.
    pub async fn get_newest(&self, client: &Client, key: &Key, wanted: &Wanted) -> Result<Found, RequestError> {
        self.fetch(client, key, wanted.clone(), &GetParams::default(), Instant::now())
            .await
    }

    async fn fetch(
        &self,
        client: &Client,
        key: &Key,
        wanted: Wanted,
        params: &GetParams,
        at: Instant,
    ) -> Result<Found, RequestError> {
        let found = fetch(client, key, &wanted, params).await?;
        self.put(key.clone(), wanted, found.clone(), at);
        Ok(found)
    }

    /// Takes in what this process has just read or written.
    pub fn put(&self, key: Key, wanted: Wanted, found: Found, at: Instant) {
        self.locked(|read| read.insert(key, Read { at, wanted, found }));
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
        self.locked(|read| read.retain(|_, held| held.at.elapsed() < keep));
    }

    fn locked<T>(&self, f: impl FnOnce(&mut HashMap<Key, Read>) -> T) -> T {
        f(&mut self.read.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

async fn fetch(client: &Client, key: &Key, wanted: &Wanted, params: &GetParams) -> Result<Found, RequestError> {
    let result = match key.reference.kind {
        ValueKind::Secret => {
            let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
            let read = within(api.get_with(&key.reference.name, params)).await;
            read.map(|secret| Found::of_secret(secret, wanted))
        }
        ValueKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &key.namespace);
            let read = within(api.get_with(&key.reference.name, params)).await;
            read.map(|map| Found::Values(Arc::new(resolve::Found::of_config_map(map, &wanted.used))))
        }
    };
    match result {
        Err(error) if error.code() == Some(404) => Ok(Found::Missing),
        Err(error) if error.code() == Some(403) => Ok(Found::Denied),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use k8s_openapi::ByteString;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::api::EventSubscription;
    use crate::api::resolve::subscription_uses;

    fn wanted(keys: &[&str], label: SecretLabel) -> Wanted {
        let secrets: Vec<_> = keys
            .iter()
            .map(|key| json!({"name": "s", "secretKeyRef": {"name": "large", "key": key}}))
            .collect();
        let subscription: EventSubscription = serde_json::from_value(json!({
            "apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "s"},
            "spec": {"endpointRef": {"name": "e"}, "eventTypes": ["*"], "request": {"secrets": secrets}},
        }))
        .unwrap();
        let used = subscription_uses(&subscription).pop().unwrap().1;
        Wanted { used, label }
    }

    fn held(found: &Found) -> Vec<&str> {
        match found {
            Found::Values(values) => values.data.keys().map(String::as_str).collect(),
            Found::Signing(secret) => secret.data.iter().flatten().map(|(key, _)| key.as_str()).collect(),
            Found::Missing | Found::Denied => Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_secret_only_what_is_wanted_is_held_and_it_is_read_again_for_who_wants_more() {
        let value = |byte: u8, bytes| ByteString(vec![byte; bytes]);
        let secret = json!({"metadata": {"name": "large", "resourceVersion": "7"}, "data": {
            "a": value(b'a', 9), "b": value(b'b', 9), "rest": value(b'c', 1 << 20)}});
        let reads = Arc::new(AtomicUsize::new(0));
        let count = reads.clone();
        let answered = tower::service_fn(move |_: Request<Body>| {
            count.fetch_add(1, Ordering::SeqCst);
            let response = Response::new(Body::from(secret.to_string().into_bytes()));
            async move { Ok::<_, Infallible>(response) }
        });
        let client = Client::new(answered, "sales");
        let (references, key) = (
            References::default(),
            Key {
                namespace: "sales".into(),
                reference: Reference::secret("large"),
            },
        );
        let since = Instant::now();
        let closed = wanted(&["a"], SecretLabel::Required);
        let unopened = references.get(&client, &key, &closed, since).await.unwrap();
        assert_eq!(held(&unopened), Vec::<&str>::new(), "nobody opened it");
        for (keys, expected, made) in [
            (&["a"][..], &["a"][..], 2),
            (&["b"], &["a", "b"], 3),
            (&["a"], &["a", "b"], 3),
            (&["rest"], &["a", "b", "rest"], 4),
        ] {
            let wanted = wanted(keys, SecretLabel::NotRequired);
            let found = references.get(&client, &key, &wanted, since).await.unwrap();
            assert_eq!(
                (held(&found), reads.load(Ordering::SeqCst)),
                (expected.to_vec(), made),
                "{keys:?}"
            );
            if let Found::Values(values) = found {
                assert!(values.size() < 20, "{keys:?}");
            }
        }
    }

    #[test]
    fn a_signing_secret_is_held_with_what_can_be_its_keys_alone() {
        let secret = |more: serde_json::Value| -> Secret {
            let mut secret = json!({"type": SIGNING_SECRET_TYPE, "metadata": {"name": "crm-signing"},
                "data": {"current": ByteString(b"key".to_vec()), PUBLIC_KEY: ByteString(b"key".to_vec())}});
            for (key, value) in more.as_object().unwrap() {
                secret["data"][key] = value.clone();
            }
            serde_json::from_value(secret).unwrap()
        };
        let long = ByteString(vec![b'a'; LONGEST_VALUE + 1]);
        let with = |key: &str| Found::of_secret(secret(json!({key: &long})), &Wanted::to_sign());
        assert_eq!(held(&with("other")), ["current", PUBLIC_KEY]);
        assert_eq!(held(&with(PUBLIC_KEY)), ["current"]);
        assert!(matches!(with("previous"), Found::Values(_)));
        let mut foreign = secret(json!({}));
        foreign.type_ = Some("Opaque".into());
        let Found::Values(values) = Found::of_secret(foreign, &Wanted::to_sign()) else {
            panic!("it is no signing Secret")
        };
        assert_eq!(values.size(), 0);
    }
}
