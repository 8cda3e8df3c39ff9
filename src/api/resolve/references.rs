//! Values of Secrets and ConfigMaps as somebody else read them, and what may be taken from them.
//!
//! Invariant: a Secret's value is given out only when its owner opened the Secret with the label, or the administrator's
//! policy asks for none; Debug shows no value.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use litemap::LiteMap;

use super::Unresolved;
use super::credentials::spoilt;
use crate::api::common::{ConfigMapKeyReference, SecretKeyReference};
use crate::api::conditions::reasons;
use crate::api::names;
use crate::api::policy::SecretLabel;
use crate::api::status::ReferenceKind;

/// What holds a value that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ValueKind {
    ConfigMap,
    Secret,
}

impl From<ValueKind> for ReferenceKind {
    fn from(kind: ValueKind) -> ReferenceKind {
        match kind {
            ValueKind::ConfigMap => ReferenceKind::ConfigMap,
            ValueKind::Secret => ReferenceKind::Secret,
        }
    }
}

/// One object whose values a resource refers to, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    pub kind: ValueKind,
    pub name: String,
}

impl Reference {
    pub fn secret(name: impl Into<String>) -> Reference {
        Reference {
            kind: ValueKind::Secret,
            name: name.into(),
        }
    }

    pub fn config_map(name: impl Into<String>) -> Reference {
        Reference {
            kind: ValueKind::ConfigMap,
            name: name.into(),
        }
    }
}

/// What a read of a referenced object came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Found(Found),
    NotFound,
    /// The reader itself may not read it.
    Denied,
}

/// What is used of a Secret or ConfigMap. Its maps are sorted lists as long as they must be: one is held for each reference, and most
/// have an entry or two.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub resource_version: String,
    pub labels: LiteMap<String, String>,
    pub annotations: LiteMap<String, String>,
    /// A Secret's type.
    pub r#type: Option<String>,
    pub data: LiteMap<String, Vec<u8>>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("resource_version", &self.resource_version)
            .field("type", &self.r#type)
            .finish_non_exhaustive()
    }
}

impl From<Secret> for Found {
    fn from(secret: Secret) -> Found {
        let data = secret.data.unwrap_or_default();
        Found {
            resource_version: secret.metadata.resource_version.unwrap_or_default(),
            labels: of(secret.metadata.labels, &LABELS),
            annotations: of(secret.metadata.annotations, &ANNOTATIONS),
            r#type: secret.type_,
            data: listed(data.into_iter().map(|(key, value)| (key, value.0)).collect()),
        }
    }
}

impl From<ConfigMap> for Found {
    fn from(map: ConfigMap) -> Found {
        let text = map.data.unwrap_or_default();
        let text = text.into_iter().map(|(key, value)| (key, value.into_bytes()));
        let binary = map.binary_data.unwrap_or_default();
        let binary = binary.into_iter().map(|(key, value)| (key, value.0));
        Found {
            resource_version: map.metadata.resource_version.unwrap_or_default(),
            labels: of(map.metadata.labels, &LABELS),
            annotations: of(map.metadata.annotations, &ANNOTATIONS),
            r#type: None,
            data: listed(text.chain(binary).collect()),
        }
    }
}

/// The labels and annotations that anything is read from.
const LABELS: [&str; 1] = [names::USE_LABEL];
const ANNOTATIONS: [&str; 2] = [names::CURRENT_ID, names::PREVIOUS_ID];

fn of(all: Option<BTreeMap<String, String>>, used: &[&str]) -> LiteMap<String, String> {
    let mut all = all.unwrap_or_default();
    all.retain(|name, _| used.contains(&name.as_str()));
    listed(all)
}

fn listed<V>(map: BTreeMap<String, V>) -> LiteMap<String, V> {
    let mut list = Vec::with_capacity(map.len());
    list.extend(map);
    LiteMap::from_sorted_store_unchecked(list)
}

/// The longest value of a Secret in a request, in bytes. Each is held for as long as it is used, by every resource that
/// names it, and what receivers answer is searched for all of them.
const LONGEST_VALUE: usize = 8 << 10;

/// Everything that was read for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    read: HashMap<Reference, Lookup>,
    label: SecretLabel,
}

impl References {
    /// Nothing read yet; `label` is what the policy says of the namespace.
    pub fn under(label: SecretLabel) -> References {
        References {
            read: HashMap::new(),
            label,
        }
    }

    pub fn insert(&mut self, reference: Reference, lookup: Lookup) {
        self.read.insert(reference, lookup);
    }

    pub fn get(&self, reference: &Reference) -> Option<&Lookup> {
        self.read.get(reference)
    }

    /// The value of an opened Secret's key, without one trailing newline: of what goes into requests.
    pub(super) fn secret_value(&self, namespace: &str, wanted: &SecretKeyReference) -> Result<&[u8], Unresolved> {
        self.secret_bytes(namespace, wanted, LONGEST_VALUE)
    }

    /// The same of a value that may have up to `longest` bytes.
    pub(super) fn secret_bytes(
        &self,
        namespace: &str,
        wanted: &SecretKeyReference,
        longest: usize,
    ) -> Result<&[u8], Unresolved> {
        let name = &wanted.name;
        let secret = self.object(&Reference::secret(name))?;
        let is_open = secret.labels.get(names::USE_LABEL).map(String::as_str) == Some(names::USE_LABEL_VALUE);
        if self.label == SecretLabel::Required && !is_open {
            let (label, value) = (names::USE_LABEL, names::USE_LABEL_VALUE);
            return Err(Unresolved::waiting(
                reasons::SECRET_NOT_ALLOWED,
                format!(
                    "Secret {name} is not opened for endpoints; its owner opens it with: \
                     kubectl label secret {name} -n {namespace} {label}={value}"
                ),
            ));
        }
        let value = secret.data.get(&wanted.key).ok_or_else(|| {
            let key = &wanted.key;
            Unresolved::waiting(reasons::SECRET_KEY_MISSING, format!("Secret {name} has no key {key}"))
        })?;
        let value = without_newline(value);
        if value.len() > longest {
            let why = format!("it has {} bytes, at most {longest} can be used", value.len());
            return Err(spoilt(wanted, &why));
        }
        Ok(value)
    }

    /// The value of a ConfigMap's key.
    pub(super) fn config_map_value(&self, wanted: &ConfigMapKeyReference, longest: usize) -> Result<&[u8], Unresolved> {
        let (name, key) = (&wanted.name, &wanted.key);
        let map = self.object(&Reference::config_map(name))?;
        let value = map.data.get(key).ok_or_else(|| {
            Unresolved::waiting(
                reasons::CONFIG_MAP_KEY_MISSING,
                format!("ConfigMap {name} has no key {key}"),
            )
        })?;
        if value.len() > longest {
            let why = format!("it has {} bytes, at most {longest} can be used", value.len());
            return Err(Unresolved::waiting(
                reasons::CONFIG_MAP_INVALID,
                format!("key {key} of ConfigMap {name}: {why}"),
            ));
        }
        Ok(value)
    }

    /// The object, or why there is none.
    pub(super) fn object(&self, reference: &Reference) -> Result<&Found, Unresolved> {
        let name = &reference.name;
        let (kind, not_found, denied) = match reference.kind {
            ValueKind::Secret => ("Secret", reasons::SECRET_NOT_FOUND, reasons::SECRET_ACCESS_DENIED),
            ValueKind::ConfigMap => (
                "ConfigMap",
                reasons::CONFIG_MAP_NOT_FOUND,
                reasons::CONFIG_MAP_ACCESS_DENIED,
            ),
        };
        match self.read.get(reference) {
            Some(Lookup::Found(found)) => Ok(found),
            Some(Lookup::NotFound) => Err(Unresolved::waiting(not_found, format!("{kind} {name} does not exist"))),
            Some(Lookup::Denied) => Err(Unresolved::waiting(
                denied,
                format!("reading {kind} {name} was forbidden: Tidings' RBAC does not grant it"),
            )),
            None => Err(Unresolved::waiting(
                reasons::SECRET_UNAVAILABLE,
                format!("{kind} {name} has not been read yet"),
            )),
        }
    }
}

/// Drops one newline at the end: people make Secrets with `echo`.
pub(crate) fn without_newline(value: &[u8]) -> &[u8] {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    value.strip_suffix(b"\r").unwrap_or(value)
}
