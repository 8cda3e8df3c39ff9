//! The signing Secret as Tidings writes and reads it. Pure.
//!
//! Type `tidings.dev/signing-key` (immutable: the mark that permits adoption); data `current` and `previous` as text;
//! everything else in annotations. Invariant: Debug shows no key.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::decoration::Decoration;
use super::rotation::{Requests, Step};
use crate::api::names::{
    CURRENT, CURRENT_CREATED, CURRENT_ID, HANDLED_REVOKE, HANDLED_ROTATE, PREVIOUS, PREVIOUS_EXPIRES, PREVIOUS_ID,
    PUBLIC_KEY, SIGNING_SECRET_TYPE,
};
use crate::api::resolve::without_newline;
use crate::signing::{Scheme, is_key_id, public_key};

/// Key text (`whsec_...`, or as the scheme has it); redacted in Debug.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyMaterial(pub String);

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(redacted)")
    }
}

/// A signing Secret, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigningSecret {
    pub resource_version: String,
    pub current: KeyMaterial,
    pub current_id: Option<String>,
    pub current_created: Option<Timestamp>,
    /// The public half of `current` as the Secret says it.
    pub public_key: Option<String>,
    pub previous: Option<KeyMaterial>,
    pub previous_id: Option<String>,
    pub previous_expires: Option<Timestamp>,
    pub handled_rotate: Option<String>,
    pub handled_revoke: Option<String>,
}

/// A Secret that is of another type, or whose keys are no keys. Resolving the endpoint says which; here it only means
/// that nothing may be written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretError;

impl SigningSecret {
    /// Reads and checks a Secret.
    pub fn parse(secret: &Secret, scheme: Scheme) -> Result<SigningSecret, SecretError> {
        if secret.type_.as_deref() != Some(SIGNING_SECRET_TYPE) {
            return Err(SecretError);
        }
        let current = text(secret, CURRENT)?.ok_or(SecretError)?;
        let previous = text(secret, PREVIOUS)?;
        let is_key = |material: &KeyMaterial| scheme.fingerprint(trimmed(material)).is_ok();
        if !is_key(&current) || previous.as_ref().is_some_and(|p| !is_key(p)) {
            return Err(SecretError);
        }
        let annotation = |key: &str| secret.annotations().get(key).cloned();
        let time = |key: &str| annotation(key).and_then(|t| t.parse().ok());
        let id = |key: &str| annotation(key).filter(|id| is_key_id(id));
        Ok(SigningSecret {
            resource_version: secret.resource_version().unwrap_or_default(),
            current,
            current_id: id(CURRENT_ID),
            current_created: time(CURRENT_CREATED),
            public_key: text(secret, PUBLIC_KEY)?.map(|text| text.0),
            previous,
            previous_id: id(PREVIOUS_ID),
            previous_expires: time(PREVIOUS_EXPIRES),
            handled_rotate: annotation(HANDLED_ROTATE),
            handled_revoke: annotation(HANDLED_REVOKE),
        })
    }

    /// A name for the current key derived one way from it, to notice an edit by hand.
    pub fn fingerprint(&self, scheme: Scheme) -> Option<String> {
        scheme.fingerprint(trimmed(&self.current)).ok()
    }
}

impl KeyMaterial {
    /// The public half, where the key has one.
    pub fn public_key(&self) -> Option<String> {
        public_key(&self.0)
    }
}

/// Without one trailing newline.
fn trimmed(material: &KeyMaterial) -> &[u8] {
    without_newline(material.0.as_bytes())
}

fn text(secret: &Secret, key: &str) -> Result<Option<KeyMaterial>, SecretError> {
    let Some(ByteString(bytes)) = secret.data.as_ref().and_then(|data| data.get(key)) else {
        return Ok(None);
    };
    // Raw bytes that somebody put there may be a good key, but none that can be moved as text.
    let text = String::from_utf8(bytes.clone()).map_err(|_| SecretError)?;
    Ok(Some(KeyMaterial(text)))
}

/// One write to the Secret: `None` deletes an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    pub data: BTreeMap<&'static str, Option<KeyMaterial>>,
    pub annotations: BTreeMap<&'static str, Option<String>>,
}

impl Patch {
    /// What a step writes; `new_key` gives a random id and key when one is needed.
    pub fn of(
        step: &Step,
        secret: Option<&SigningSecret>,
        requests: Requests<'_>,
        now: Timestamp,
        new_key: impl FnOnce() -> (String, KeyMaterial),
    ) -> Option<Patch> {
        let mut patch = Patch::default();
        let note_requests = |patch: &mut Patch| {
            patch.annotation(HANDLED_ROTATE, requests.rotate);
            patch.annotation(HANDLED_REVOKE, requests.revoke);
        };
        match step {
            Step::Wait { .. } => return None,
            Step::Create { .. } => {
                let (id, key) = new_key();
                patch.key(key);
                patch.annotation(CURRENT_ID, Some(&id));
                patch.time(CURRENT_CREATED, Some(now));
                note_requests(&mut patch);
            }
            Step::Adopt => {
                let secret = secret?;
                let (id, _) = new_key();
                patch.annotation(CURRENT_ID, Some(&id));
                if secret.current_created.is_none() {
                    patch.time(CURRENT_CREATED, Some(now));
                }
                if secret.previous.is_some() && secret.previous_id.is_none() {
                    patch.annotation(PREVIOUS_ID, Some(&format!("{id}-previous")));
                }
                note_requests(&mut patch);
            }
            Step::Rotate => {
                let secret = secret?;
                let (id, key) = new_key();
                patch.data.insert(PREVIOUS, Some(secret.current.clone()));
                patch.data.insert(CURRENT, Some(key));
                patch.annotation(PREVIOUS_ID, secret.current_id.as_deref());
                patch.annotation(CURRENT_ID, Some(&id));
                patch.time(CURRENT_CREATED, Some(now));
                patch.annotations.insert(PREVIOUS_EXPIRES, None);
                note_requests(&mut patch);
            }
            Step::Expire { at } => patch.time(PREVIOUS_EXPIRES, Some(*at)),
            Step::Retire => {
                patch.data.insert(PREVIOUS, None);
                patch.annotations.insert(PREVIOUS_ID, None);
                patch.annotations.insert(PREVIOUS_EXPIRES, None);
                patch.annotation(HANDLED_REVOKE, requests.revoke);
            }
            Step::NoteRevoke => patch.annotation(HANDLED_REVOKE, requests.revoke),
            Step::NoteCreated => patch.time(CURRENT_CREATED, Some(now)),
        }
        Some(patch)
    }

    /// As a JSON merge patch that lands only on `resource_version`.
    pub fn to_merge_patch(&self, resource_version: &str) -> Value {
        let data: Map<String, Value> = self
            .data
            .iter()
            .map(|(key, material)| {
                let bytes = material.as_ref().map(|m| ByteString(m.0.clone().into_bytes()));
                ((*key).to_owned(), json!(bytes))
            })
            .collect();
        let mut body = json!({"metadata": {"resourceVersion": resource_version, "annotations": self.annotations}});
        if !data.is_empty() {
            body["data"] = Value::Object(data);
        }
        body
    }

    /// `current`, and its public half where it has one.
    fn key(&mut self, key: KeyMaterial) {
        if let Some(public) = key.public_key() {
            self.data.insert(PUBLIC_KEY, Some(KeyMaterial(public)));
        }
        self.data.insert(CURRENT, Some(key));
    }

    /// Says the public half anew, where somebody edited the key; none when it is as it should be.
    pub fn of_public_key(secret: &SigningSecret) -> Option<Patch> {
        let public = secret.current.public_key()?;
        (secret.public_key.as_ref() != Some(&public)).then(|| Patch {
            data: [(PUBLIC_KEY, Some(KeyMaterial(public)))].into(),
            ..Patch::default()
        })
    }

    fn annotation(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.annotations.insert(key, Some(value.to_owned()));
        }
    }

    fn time(&mut self, key: &'static str, time: Option<Timestamp>) {
        let time = time.map(crate::kubernetes::status::seconds).map(|t| t.to_string());
        self.annotation(key, time.as_deref());
    }
}

/// A new Secret holding what `patch` (of [`Step::Create`]) says.
pub fn new_secret(name: &str, patch: &Patch, decoration: &Decoration) -> Secret {
    let data = patch
        .data
        .iter()
        .filter_map(|(key, m)| Some(((*key).to_owned(), ByteString(m.as_ref()?.0.clone().into_bytes()))))
        .collect();
    let mut annotations = decoration.all_annotations();
    annotations.extend(
        patch
            .annotations
            .iter()
            .filter_map(|(k, v)| Some(((*k).to_owned(), v.clone()?))),
    );
    let mut secret = Secret {
        type_: Some(SIGNING_SECRET_TYPE.to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    secret.metadata.name = Some(name.to_owned());
    secret.metadata.labels = Some(decoration.labels.clone());
    secret.metadata.annotations = Some(annotations);
    secret.metadata.owner_references = decoration.owner.clone().map(|owner| vec![owner]);
    secret
}

#[cfg(test)]
pub(super) fn apply_for_test(secret: Option<SigningSecret>, patch: &Patch) -> SigningSecret {
    let mut object = secret.map_or_else(
        || Secret {
            type_: Some(SIGNING_SECRET_TYPE.to_owned()),
            ..Secret::default()
        },
        |s| {
            let mut all = Patch::default();
            all.data.insert(CURRENT, Some(s.current));
            all.data.insert(PREVIOUS, s.previous);
            all.annotation(CURRENT_ID, s.current_id.as_deref());
            all.annotation(PREVIOUS_ID, s.previous_id.as_deref());
            all.annotation(HANDLED_ROTATE, s.handled_rotate.as_deref());
            all.annotation(HANDLED_REVOKE, s.handled_revoke.as_deref());
            all.time(CURRENT_CREATED, s.current_created);
            all.time(PREVIOUS_EXPIRES, s.previous_expires);
            new_secret("s", &all, &Decoration::default())
        },
    );
    for (key, material) in &patch.data {
        let data = object.data.get_or_insert_default();
        match material {
            Some(m) => data.insert((*key).to_owned(), ByteString(m.0.clone().into_bytes())),
            None => data.remove(*key),
        };
    }
    for (key, value) in &patch.annotations {
        let annotations = object.metadata.annotations.get_or_insert_default();
        match value {
            Some(v) => annotations.insert((*key).to_owned(), v.clone()),
            None => annotations.remove(*key),
        };
    }
    SigningSecret::parse(&object, Scheme::StandardWebhooks).unwrap()
}
