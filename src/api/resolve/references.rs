//! Values of Secrets and ConfigMaps as somebody else read them, and what may be taken from them.
//!
//! Invariant: a Secret's value is given out only when its owner opened the Secret with the label, or the administrator's
//! policy asks for none; Debug shows no value.

use std::collections::HashMap;

use bytes::Bytes;

use super::Unresolved;
use super::credentials::spoilt;
use super::found::{Found, LONGEST_VALUE, Value};
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
        let value = self.secret_bytes(namespace, wanted, LONGEST_VALUE)?;
        Ok(without_newline(value))
    }

    /// The same of a value that may have up to `longest` bytes, with its newline.
    pub(super) fn secret_bytes(
        &self,
        namespace: &str,
        wanted: &SecretKeyReference,
        longest: usize,
    ) -> Result<&Bytes, Unresolved> {
        let name = &wanted.name;
        let secret = self.object(&Reference::secret(name))?;
        if self.label == SecretLabel::Required && !secret.is_open() {
            let (label, value) = (names::USE_LABEL, names::USE_LABEL_VALUE);
            return Err(Unresolved::waiting(
                reasons::SECRET_NOT_ALLOWED,
                format!(
                    "Secret {name} is not opened for endpoints; its owner opens it with: \
                     kubectl label secret {name} -n {namespace} {label}={value}"
                ),
            ));
        }
        match secret.data.get(&wanted.key) {
            Some(value) => within(value, longest).map_err(|why| spoilt(wanted, &why)),
            None if secret.withheld => Err(unread("Secret", name)),
            None => {
                let key = &wanted.key;
                let message = format!("Secret {name} has no key {key}");
                Err(Unresolved::waiting(reasons::SECRET_KEY_MISSING, message))
            }
        }
    }

    /// The value of a ConfigMap's key, of up to `longest` bytes.
    pub(super) fn config_map_bytes(
        &self,
        wanted: &ConfigMapKeyReference,
        longest: usize,
    ) -> Result<&Bytes, Unresolved> {
        let (name, key) = (&wanted.name, &wanted.key);
        let map = self.object(&Reference::config_map(name))?;
        let value = map.data.get(key).ok_or_else(|| {
            let message = format!("ConfigMap {name} has no key {key}");
            Unresolved::waiting(reasons::CONFIG_MAP_KEY_MISSING, message)
        })?;
        within(value, longest).map_err(|why| {
            let message = format!("key {key} of ConfigMap {name}: {why}");
            Unresolved::waiting(reasons::CONFIG_MAP_INVALID, message)
        })
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
            None => Err(unread(kind, name)),
        }
    }
}

/// The value, or that it is too long.
pub(super) fn within(value: &Value, longest: usize) -> Result<&Bytes, String> {
    let bytes = match value {
        Value::Whole(value) if without_newline(value).len() <= longest => return Ok(value),
        Value::Whole(value) => without_newline(value).len(),
        Value::TooLong(bytes) => *bytes,
    };
    Err(format!("it has {bytes} bytes, at most {longest} can be used"))
}

fn unread(kind: &str, name: &str) -> Unresolved {
    Unresolved::waiting(
        reasons::SECRET_UNAVAILABLE,
        format!("{kind} {name} has not been read yet"),
    )
}

/// Drops one newline at the end: people make Secrets with `echo`.
pub(crate) fn without_newline(value: &[u8]) -> &[u8] {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    value.strip_suffix(b"\r").unwrap_or(value)
}
