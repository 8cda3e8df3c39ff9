//! What is kept of a Secret or ConfigMap that was read: the keys that are used, and no more of each than can be.
//!
//! Whoever may create endpoints or subscriptions may name a Secret of a megabyte a thousand times, also one that nobody opened
//! for them. Invariant: a value that is too long for all its uses is not kept; of a Secret that its owner did not open nothing
//! is, where the label is asked for, but the signing keys that Tidings made itself; Debug shows no value.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use litemap::LiteMap;

use super::{Reference, without_newline};
use crate::api::names;
use crate::api::policy::SecretLabel;
use crate::signing::is_key_id;

/// The longest value of a Secret in a request, and the longest signing key, in bytes. Each is held for as long as it is used,
/// by every resource that names it, and what receivers answer is searched for all of them.
pub(crate) const LONGEST_VALUE: usize = 8 << 10;

/// What a resource uses of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Keys, and how many bytes of each value can be used.
    keys: LiteMap<String, usize>,
    /// The keys of a generated signing Secret, which needs no label.
    signs: bool,
}

/// Every object that a resource names, each once, in a fixed order, and what it uses of it.
pub type Uses = Vec<(Reference, Used)>;

impl Used {
    /// The generated signing Secret.
    pub fn to_sign() -> Used {
        Used {
            signs: true,
            ..Used::default()
        }
    }

    pub(super) fn sign(&mut self) {
        self.signs = true;
    }

    /// A key, of which so many bytes can be used.
    pub(super) fn key(&mut self, key: &str, longest: usize) {
        let before = self.keys.get(key).copied().unwrap_or_default();
        self.keys.insert(key.to_owned(), longest.max(before));
    }

    /// Whether it is a generated signing Secret.
    pub fn signs(&self) -> bool {
        self.signs
    }

    /// How many keys are named.
    pub fn named(&self) -> usize {
        self.keys.len()
    }

    /// Whether whoever keeps this has all that `other` uses.
    pub fn covers(&self, other: &Used) -> bool {
        let has = |(key, longest): (&String, &usize)| self.keys.get(key).is_some_and(|kept| kept >= longest);
        self.signs >= other.signs && other.keys.iter().all(has)
    }

    /// What either uses.
    pub fn with(mut self, other: &Used) -> Used {
        self.signs |= other.signs;
        other.keys.iter().for_each(|(key, longest)| self.key(key, *longest));
        self
    }

    /// Each key of a signing Secret, and each that is named where those may be read.
    fn kept(&self, has_own: bool, is_open: bool) -> BTreeMap<&str, usize> {
        let own = [names::CURRENT, names::PREVIOUS].map(|key| (key, LONGEST_VALUE));
        let mut kept: BTreeMap<&str, usize> = own.into_iter().filter(|_| self.signs && has_own).collect();
        for (key, longest) in self.keys.iter().filter(|_| is_open) {
            let kept = kept.entry(key.as_str()).or_default();
            *kept = (*kept).max(*longest);
        }
        kept
    }
}

/// A value as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    Whole(Bytes),
    /// It has so many bytes, without a newline at the end: more than can be used.
    TooLong(usize),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(redacted)")
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Value {
        // No longer than it is: it stays.
        Value::Whole(value.into_boxed_slice().into())
    }
}

impl Value {
    fn within(value: Vec<u8>, longest: usize) -> Value {
        match without_newline(&value).len() {
            bytes if bytes > longest => Value::TooLong(bytes),
            _ => value.into(),
        }
    }
}

/// What is used of a Secret or ConfigMap. Its maps are sorted lists as long as they must be: one is held for each reference, and most
/// have an entry or two.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub resource_version: String,
    pub labels: LiteMap<String, String>,
    pub annotations: LiteMap<String, String>,
    /// A Secret's type, where it is that of signing Secrets.
    pub r#type: Option<String>,
    pub data: LiteMap<String, Value>,
    /// Values were left out, for the label was asked for and nobody had opened the Secret with it.
    pub withheld: bool,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("resource_version", &self.resource_version)
            .field("type", &self.r#type)
            .finish_non_exhaustive()
    }
}

impl Found {
    /// What is kept of a Secret that is used so, where the policy says this of the label.
    pub fn of_secret(secret: Secret, used: &Used, label: SecretLabel) -> Found {
        let found = Found {
            resource_version: secret.metadata.resource_version.unwrap_or_default(),
            labels: of(secret.metadata.labels, &[names::USE_LABEL], |_| true),
            annotations: of(
                secret.metadata.annotations,
                &[names::CURRENT_ID, names::PREVIOUS_ID],
                is_key_id,
            ),
            r#type: secret.type_.filter(|of| of == names::SIGNING_SECRET_TYPE),
            ..Found::default()
        };
        let may_be_read = label == SecretLabel::NotRequired || found.is_open();
        let kept = used.kept(found.r#type.is_some(), may_be_read);
        let data = secret.data.unwrap_or_default().into_iter();
        Found {
            data: of_these(data.map(|(key, value)| (key, value.0)), &kept),
            withheld: !may_be_read && used.named() > 0,
            ..found
        }
    }

    /// What is kept of a ConfigMap that is used so.
    pub fn of_config_map(map: ConfigMap, used: &Used) -> Found {
        let text = map.data.unwrap_or_default().into_iter();
        let binary = map.binary_data.unwrap_or_default().into_iter();
        let all = text
            .map(|(key, value)| (key, value.into_bytes()))
            .chain(binary.map(|(key, value)| (key, value.0)));
        Found {
            resource_version: map.metadata.resource_version.unwrap_or_default(),
            data: of_these(all, &used.kept(false, true)),
            ..Found::default()
        }
    }

    /// Whether its owner opened it with the label.
    pub fn is_open(&self) -> bool {
        self.labels.get(names::USE_LABEL).map(String::as_str) == Some(names::USE_LABEL_VALUE)
    }

    /// Bytes of its values.
    pub fn size(&self) -> usize {
        let bytes = |value: &Value| match value {
            Value::Whole(value) => value.len(),
            Value::TooLong(_) => 0,
        };
        self.data.values().map(bytes).sum()
    }
}

/// Those of these names that anything is read from.
fn of(
    all: Option<BTreeMap<String, String>>,
    used: &[&str],
    is_usable: impl Fn(&str) -> bool,
) -> LiteMap<String, String> {
    let mut all = all.unwrap_or_default();
    all.retain(|name, value| used.contains(&name.as_str()) && is_usable(value));
    listed(all)
}

fn of_these(all: impl Iterator<Item = (String, Vec<u8>)>, kept: &BTreeMap<&str, usize>) -> LiteMap<String, Value> {
    let within = |(key, value): (String, Vec<u8>)| {
        let longest = *kept.get(key.as_str())?;
        Some((key, Value::within(value, longest)))
    };
    listed(all.filter_map(within).collect())
}

fn listed<V>(map: BTreeMap<String, V>) -> LiteMap<String, V> {
    let mut list = Vec::with_capacity(map.len());
    list.extend(map);
    LiteMap::from_sorted_store_unchecked(list)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(r#type: &str, is_open: bool, data: &[(&str, &str)]) -> Secret {
        let value = |(key, value): &(&str, &str)| ((*key).to_owned(), k8s_openapi::ByteString((*value).into()));
        let mut secret: Secret = serde_json::from_value(json!({"metadata": {"resourceVersion": "7",
            "annotations": {names::CURRENT_ID: "k1", names::PREVIOUS_ID: "x".repeat(1 << 10), "note": "x"}}}))
        .unwrap();
        secret.type_ = Some(r#type.to_owned());
        secret.metadata.labels = is_open.then(|| [(names::USE_LABEL.to_owned(), "true".to_owned())].into());
        secret.data = Some(data.iter().map(value).collect());
        secret
    }

    fn keys(found: &Found) -> Vec<(&str, bool)> {
        let is_whole = |value: &Value| matches!(value, Value::Whole(_));
        let all = found.data.iter();
        all.map(|(key, value)| (key.as_str(), is_whole(value))).collect()
    }

    #[test]
    fn of_an_object_the_keys_that_are_used_are_kept_as_long_as_they_can_be() {
        let (long, longer) = ("a".repeat(100), format!("{}\r\n", "a".repeat(101)));
        let data = [
            ("other", long.as_str()),
            ("short", "a\n"),
            ("token", &long),
            ("worse", &longer),
        ];
        let mut used = Used::default();
        for (key, longest) in [
            ("short", 100),
            ("token", 100),
            ("token", 10),
            ("worse", 100),
            ("none", 100),
        ] {
            used.key(key, longest);
        }
        let found = Found::of_secret(secret("Opaque", true, &data), &used, SecretLabel::Required);
        assert_eq!(keys(&found), [("short", true), ("token", true), ("worse", false)]);
        assert_eq!(found.data.get("worse"), Some(&Value::TooLong(101)));
        assert_eq!((found.size(), found.withheld), (102, false));
        assert_eq!(
            found.annotations.iter().collect::<Vec<_>>(),
            [(&names::CURRENT_ID.to_owned(), &"k1".to_owned())]
        );
        assert!(!format!("{found:?} {:?}", found.data).contains("aa"));

        let map: ConfigMap = serde_json::from_value(json!({"data": {"short": "b", "other": "b"}})).unwrap();
        assert_eq!(keys(&Found::of_config_map(map, &used)), [("short", true)]);
    }

    #[test]
    fn of_a_secret_that_nobody_opened_only_keys_that_tidings_made_are_kept() {
        let data = [("current", "c"), ("previous", "p"), ("token", "t")];
        let mut used = Used::to_sign();
        used.key("token", 10);
        for (r#type, is_open, label, kept, withheld) in [
            (names::SIGNING_SECRET_TYPE, false, SecretLabel::Required, 2, true),
            (names::SIGNING_SECRET_TYPE, true, SecretLabel::Required, 3, false),
            ("Opaque", false, SecretLabel::Required, 0, true),
            ("Opaque", false, SecretLabel::NotRequired, 1, false),
            ("Opaque", true, SecretLabel::Required, 1, false),
        ] {
            let found = Found::of_secret(secret(r#type, is_open, &data), &used, label);
            assert_eq!(
                (found.data.len(), found.withheld),
                (kept, withheld),
                "{type} {is_open} {label:?}"
            );
        }
        let none = Found::of_secret(secret("Opaque", false, &data), &Used::to_sign(), SecretLabel::Required);
        assert_eq!((none.data.len(), none.withheld), (0, false));
    }

    #[test]
    fn what_two_use_is_covered_by_what_is_kept_for_both() {
        let of = |keys: &[(&str, usize)]| {
            let mut used = Used::default();
            keys.iter().for_each(|(key, longest)| used.key(key, *longest));
            used
        };
        let (one, other) = (of(&[("a", 10), ("b", 10)]), of(&[("b", 20), ("c", 10)]));
        assert!(!one.covers(&other) && !one.covers(&Used::to_sign()));
        let both = one.clone().with(&other).with(&Used::to_sign());
        assert!(both.covers(&one) && both.covers(&other) && both.covers(&Used::to_sign()));
        assert_eq!(both.named(), 3);
    }
}
