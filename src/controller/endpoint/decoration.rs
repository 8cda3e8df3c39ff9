//! What the signing Secret carries beside its keys: labels and annotations of `signing.secretTemplate`, and its owner. Pure.
//!
//! The Secret itself says which of them are the template's, so that what leaves the template leaves the Secret. Invariant:
//! labels and annotations that somebody else put there stay, and so do owners of another kind.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use crate::api::names::{TEMPLATE_ANNOTATIONS, TEMPLATE_LABELS};

const OWNER_KIND: &str = "WebhookEndpoint";
/// Names under it are ours, and none of a template's.
const OURS: &str = "tidings.dev/";

/// What the endpoint wants on its Secret.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoration {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Only with `deletionPolicy: Delete`.
    pub owner: Option<OwnerReference>,
}

impl Decoration {
    /// The annotations of the template, and those that say what is the template's.
    pub fn all_annotations(&self) -> BTreeMap<String, String> {
        let mut all = self.annotations.clone();
        for (note, of) in [
            (TEMPLATE_LABELS, &self.labels),
            (TEMPLATE_ANNOTATIONS, &self.annotations),
        ] {
            if !of.is_empty() {
                let names: Vec<&str> = of.keys().map(String::as_str).collect();
                all.insert(note.to_owned(), names.join(","));
            }
        }
        all
    }

    /// The merge patch that brings it about, or none when the Secret is so already.
    pub fn missing_from(&self, secret: &Secret) -> Option<Value> {
        let is_ours = |o: &OwnerReference| o.kind == OWNER_KIND && o.api_version.starts_with(OURS);
        let mut owners: Vec<OwnerReference> = secret
            .owner_references()
            .iter()
            .filter(|o| !is_ours(o))
            .cloned()
            .collect();
        owners.extend(self.owner.clone());
        let noted = |note: &str| secret.annotations().get(note).map(String::as_str).unwrap_or_default();
        let labels = changes(secret.labels(), &self.labels, noted(TEMPLATE_LABELS));
        let mut annotations = changes(
            secret.annotations(),
            &self.all_annotations(),
            noted(TEMPLATE_ANNOTATIONS),
        );
        for (note, of) in [
            (TEMPLATE_LABELS, &self.labels),
            (TEMPLATE_ANNOTATIONS, &self.annotations),
        ] {
            if of.is_empty() && secret.annotations().contains_key(note) {
                annotations.insert(note.to_owned(), Value::Null);
            }
        }
        if labels.is_empty() && annotations.is_empty() && owners == secret.owner_references() {
            return None;
        }
        Some(json!({"metadata": {
            "resourceVersion": secret.resource_version(),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": owners,
        }}))
    }
}

/// What makes `wanted` of what `is` there; of the names in `noted` those go that are not wanted any more.
fn changes(is: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>, noted: &str) -> Map<String, Value> {
    let noted: BTreeSet<&str> = noted.split(',').filter(|name| !name.starts_with(OURS)).collect();
    let left = noted
        .into_iter()
        .filter(|name| is.contains_key(*name) && !wanted.contains_key(*name))
        .map(|name| (name.to_owned(), Value::Null));
    let new = wanted
        .iter()
        .filter(|(name, value)| is.get(*name) != Some(*value))
        .map(|(name, value)| (name.clone(), value.clone().into()));
    left.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn template(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Decoration {
        Decoration {
            labels: map(labels),
            annotations: map(annotations),
            owner: None,
        }
    }

    fn secret(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Secret {
        let mut secret = Secret::default();
        secret.metadata.resource_version = Some("7".into());
        secret.metadata.labels = Some(map(labels));
        secret.metadata.annotations = Some(map(annotations));
        secret
    }

    /// The Secret as the API server keeps it after the patch.
    fn patched(secret: &Secret, patch: &Value) -> Secret {
        let mut value = serde_json::to_value(secret).unwrap();
        for part in ["labels", "annotations"] {
            let old = value["metadata"][part].as_object_mut().unwrap();
            for (name, new) in patch["metadata"][part].as_object().unwrap() {
                match new {
                    Value::Null => drop(old.remove(name)),
                    new => drop(old.insert(name.clone(), new.clone())),
                }
            }
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_leaves_the_template_leaves_the_secret_and_what_others_put_there_stays() {
        let by_hand = secret(
            &[("cost-centre", "7")],
            &[("tidings.dev/current-id", "k1"), ("note", "x")],
        );
        let both = template(&[("replicate", "yes"), ("team", "crm")], &[("copy-to", "partners")]);
        let patch = both.missing_from(&by_hand).expect("to be added");
        let decorated = patched(&by_hand, &patch);
        assert_eq!(decorated.labels()["replicate"], "yes");
        assert_eq!(decorated.annotations()[TEMPLATE_LABELS], "replicate,team");
        assert_eq!(both.missing_from(&decorated), None, "nothing is left to do");

        let one = template(&[("team", "crm")], &[]);
        let patch = one.missing_from(&decorated).expect("to be taken away");
        let after = patched(&decorated, &patch);
        assert_eq!(after.labels(), &map(&[("cost-centre", "7"), ("team", "crm")]));
        assert_eq!(
            after.annotations(),
            &map(&[
                ("tidings.dev/current-id", "k1"),
                ("note", "x"),
                (TEMPLATE_LABELS, "team")
            ])
        );
        assert_eq!(one.missing_from(&after), None);

        let none = Decoration::default();
        let bare = patched(&after, &none.missing_from(&after).expect("to be taken away"));
        assert_eq!(
            (bare.labels(), bare.annotations()),
            (by_hand.labels(), by_hand.annotations())
        );
        assert_eq!(none.missing_from(&bare), None);
    }

    #[test]
    fn a_label_that_was_there_by_hand_is_the_templates_once_it_names_it() {
        let by_hand = secret(&[("team", "crm")], &[]);
        let named = template(&[("team", "crm")], &[]);
        let taken = patched(&by_hand, &named.missing_from(&by_hand).expect("to be noted"));
        assert_eq!(taken.annotations()[TEMPLATE_LABELS], "team");
        let patch = Decoration::default().missing_from(&taken).expect("to be taken away");
        assert_eq!(patched(&taken, &patch).labels(), &map(&[]));
    }

    #[test]
    fn a_note_that_somebody_edited_takes_nothing_of_ours() {
        let edited = secret(
            &[],
            &[
                ("tidings.dev/current-id", "k1"),
                (TEMPLATE_ANNOTATIONS, "tidings.dev/current-id,,x"),
            ],
        );
        let patch = Decoration::default().missing_from(&edited).expect("the note goes");
        assert_eq!(
            patched(&edited, &patch).annotations(),
            &map(&[("tidings.dev/current-id", "k1")])
        );
    }
}
