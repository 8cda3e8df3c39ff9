//! The CustomResourceDefinitions, generated from the types.
//!
//! Owns what the derive cannot say: the default status, and no `nullable` anywhere. Invariant: what is in `crds/` and
//! in the chart is exactly this.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::{EventSubscription, EventType, Replay, WebhookEndpoint};

/// The definitions, one per kind.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [
        WebhookEndpoint::crd(),
        EventSubscription::crd(),
        EventType::crd(),
        Replay::crd(),
    ]
    .into_iter()
    .map(finish)
    .collect()
}

/// All definitions as one YAML stream.
pub fn yaml() -> String {
    let documents: Vec<String> = files().into_iter().map(|(_, text)| text).collect();
    documents.join("---\n")
}

/// Name and text of each file in `crds/`.
pub fn files() -> Vec<(String, String)> {
    crds()
        .iter()
        .map(|crd| {
            let text = serde_yaml::to_string(crd).expect("a definition has only string keys, which YAML can write");
            (format!("{}.yaml", crd.spec.names.plural), quoted(&text))
        })
        .collect()
}

/// Quotes what is a string in YAML 1.2, which we write, and a boolean in YAML 1.1, which kubectl and helm read: the value
/// `Off` of an enum would be `false`.
fn quoted(text: &str) -> String {
    let booleans = ["y", "n", "yes", "no", "on", "off"];
    let line = |line: &str| match line.rsplit_once(' ') {
        Some((before, value))
            if booleans.contains(&value.to_ascii_lowercase().as_str()) && !before.trim_start().contains(' ') =>
        {
            format!("{before} \"{value}\"\n")
        }
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn finish(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut value = serde_json::to_value(crd).expect("a definition is plain data");
    for version in value["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        // kstatus then does not take an object that nobody has looked at for a current one.
        schema["properties"]["status"]["default"] = json!({ "observedGeneration": -1 });
        plain(schema);
    }
    serde_json::from_value(value).expect("only defaults and schema keywords were changed")
}

/// Drops `nullable`, which Rust's Option says: an absent field is left out, and a null is a mistake. Joins the lines of
/// descriptions, which were broken for the source's width.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("nullable");
            if let Some(Value::String(text)) = map.get_mut("description") {
                let paragraphs: Vec<String> = text.split("\n\n").map(|part| part.replace('\n', " ")).collect();
                *text = paragraphs.join("\n\n");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_files_in_crds_are_what_the_types_say() {
        for folder in ["crds", "charts/tidings/files/crds"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            for (name, generated) in files() {
                let kept = std::fs::read_to_string(path.join(&name)).unwrap_or_default();
                let same = kept == generated;
                assert!(same, "{folder}/{name} has drifted; make it anew with: make crds");
            }
        }
    }

    #[test]
    fn quotes_change_nothing_and_no_string_is_left_that_kubectl_takes_for_a_boolean() {
        for (crd, (name, text)) in crds().iter().zip(files()) {
            assert!(
                serde_yaml::from_str::<CustomResourceDefinition>(&text).unwrap() == *crd,
                "{name}"
            );
        }
        assert!(yaml().contains("- \"Off\"\n"));
        assert_eq!(
            quoted("a: no\nb:\n- Yes\n- only no\n"),
            "a: \"no\"\nb:\n- \"Yes\"\n- only no\n"
        );
    }

    #[test]
    fn no_definition_holds_what_flux_would_substitute() {
        assert!(!yaml().contains("${"));
    }
}
