//! Whether today's definitions take what a release's took: by crdify, and what it does not look at here: CEL rules, names,
//! served versions, selectable fields.
//!
//! Invariant: a change that could shut out a stored object or a client is in the release's `accepted.yaml` with its reason,
//! or the test fails; and a reason without its change fails it too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tidings::api::crd;
use tidings_cluster::crdify;

use super::{Release, path};
use crate::it::chart::documents;

/// What a definition no longer takes, or no longer has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Change {
    /// The definition's name.
    definition: String,
    /// Where in the schema; `^` is the whole object.
    at: String,
    what: String,
}

/// Rules by their place; every place is there. They are taken out of the schema.
fn take_rules(schema: &mut Value, at: &str, found: &mut BTreeMap<String, BTreeSet<String>>) {
    let rules = schema
        .as_object_mut()
        .and_then(|map| map.remove("x-kubernetes-validations"));
    let rules = rules.iter().flat_map(|rules| rules.as_array().into_iter().flatten());
    let rules = rules.map(|rule| rule["rule"].as_str().unwrap().to_owned()).collect();
    found.insert(at.to_owned(), rules);
    for (name, child) in schema
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        take_rules(child, &format!("{at}.{name}"), found);
    }
    for within in ["items", "additionalProperties"] {
        if let Some(child) = schema.get_mut(within).filter(|child| child.is_object()) {
            take_rules(child, &format!("{at}.{within}"), found);
        }
    }
}

/// The versions of a definition by their name, each with its rules, which are taken out.
fn versions(definition: &mut Value) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let versions = definition["spec"]["versions"].as_array_mut().unwrap().iter_mut();
    let served = versions.filter(|version| version["served"] == true);
    served
        .map(|version| {
            let mut rules = BTreeMap::new();
            take_rules(&mut version["schema"]["openAPIV3Schema"], "^", &mut rules);
            (version["name"].as_str().unwrap().to_owned(), rules)
        })
        .collect()
}

fn texts(list: &Value, of: impl Fn(&Value) -> &Value) -> BTreeSet<String> {
    let list = list.as_array().into_iter().flatten();
    list.map(|item| of(item).to_string()).collect()
}

/// What of `old` is not in `new`.
fn changes(mut old: Value, mut new: Value) -> Vec<Change> {
    let name = old["metadata"]["name"].as_str().unwrap().to_owned();
    let mut found = Vec::new();
    let mut say = |at: &str, what: String| {
        found.push(Change {
            definition: name.clone(),
            at: at.to_owned(),
            what,
        });
    };
    for at in ["/spec/group", "/spec/scope", "/spec/names/kind", "/spec/names/plural"] {
        if old.pointer(at) != new.pointer(at) {
            say(at, "changed".into());
        }
    }
    for at in ["/spec/names/shortNames", "/spec/names/categories"] {
        let list = |definition: &Value| texts(definition.pointer(at).unwrap_or(&Value::Null), |item| item);
        for gone in list(&old).difference(&list(&new)) {
            say(at, format!("{gone} is gone"));
        }
    }
    let (before, after) = (versions(&mut old), versions(&mut new));
    for (version, rules) in before {
        let Some(now) = after.get(&version) else {
            say("/spec/versions", format!("{version} is gone"));
            continue;
        };
        let selectable = |definition: &Value| {
            let all = definition["spec"]["versions"].as_array().unwrap();
            let own = all.iter().find(|other| other["name"] == *version).unwrap();
            texts(&own["selectableFields"], |field| &field["jsonPath"])
        };
        for gone in selectable(&old).difference(&selectable(&new)) {
            say("selectableFields", format!("{gone} is gone"));
        }
        for (at, old_rules) in rules {
            // A place that is gone is crdify's to tell.
            for rule in now
                .get(&at)
                .into_iter()
                .flatten()
                .filter(|rule| !old_rules.contains(*rule))
            {
                say(&at, format!("another rule: {rule}"));
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let [old, new] = [("old", old), ("new", new)].map(|(name, definition)| {
        let file = dir.path().join(name);
        fs::write(&file, definition.to_string()).unwrap();
        file
    });
    let said = crdify(&path("tests/releases/crdify.yaml"), &old, &new).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut tell = |at: &str, results: &Value| {
        for result in list(results) {
            for error in list(&result["errors"]) {
                say(
                    at,
                    format!("{}: {}", result["name"].as_str().unwrap(), error.as_str().unwrap()),
                );
            }
        }
    };
    tell("^", &said["crdValidation"]);
    for version in list(&said["sameVersionValidation"]) {
        for property in list(&version["propertyComparisons"]) {
            tell(property["property"].as_str().unwrap(), &property["comparisonResults"]);
        }
    }
    found
}

fn current(name: &str) -> Value {
    let all = crd::crds();
    let own = all.iter().find(|own| own.metadata.name.as_deref() == Some(name));
    serde_json::to_value(own.unwrap_or_else(|| panic!("{name} is gone"))).unwrap()
}

fn read(file: &Path) -> Value {
    documents(&fs::read_to_string(file).unwrap()).remove(0)
}

#[test]
fn what_the_definitions_no_longer_take_since_a_release_is_accepted_with_a_reason() {
    #[derive(Deserialize)]
    struct Accepted {
        #[serde(flatten)]
        change: Change,
        because: String,
    }
    for release in Release::all() {
        let text = fs::read_to_string(release.folder.join("accepted.yaml")).unwrap();
        let accepted: Vec<Accepted> = serde_yaml::from_str(&text).unwrap();
        assert!(accepted.iter().all(|accepted| accepted.because.len() > 20));
        let accepted: BTreeSet<Change> = accepted.into_iter().map(|accepted| accepted.change).collect();
        let definitions = release.definitions();
        let found: BTreeSet<Change> = definitions
            .iter()
            .map(|file| read(file))
            .flat_map(|old| {
                let name = old["metadata"]["name"].as_str().unwrap().to_owned();
                changes(old, current(&name))
            })
            .collect();
        let new: Vec<&Change> = found.difference(&accepted).collect();
        assert!(
            new.is_empty(),
            "since {} the definitions take less; make it take what they took, or say in {}/accepted.yaml why nobody is \
             shut out:\n{new:#?}",
            release.name,
            release.folder.display()
        );
        let stale: Vec<&Change> = accepted.difference(&found).collect();
        assert!(stale.is_empty(), "accepted, but not so: {stale:#?}");
    }
}

#[test]
fn each_way_to_take_less_is_seen_and_taking_more_is_none() {
    type Edit = fn(&mut Value);
    fn spec(definition: &mut Value) -> &mut Value {
        &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    }
    fn remove(value: &mut Value, name: &str) {
        value.as_object_mut().unwrap().remove(name).unwrap();
    }
    let less: [(&str, &str, Edit); 15] = [
        ("a field", "existingFieldRemoval", |d| {
            remove(&mut spec(d)["properties"], "timeout")
        }),
        ("a type", "type", |d| {
            spec(d)["properties"]["suspend"]["type"] = json!("string")
        }),
        ("a length", "maxLength", |d| {
            spec(d)["properties"]["url"]["maxLength"] = json!(100)
        }),
        ("a count", "maxItems", |d| {
            spec(d)["properties"]["headers"]["maxItems"] = json!(1)
        }),
        ("a number", "minimum", |d| {
            spec(d)["properties"]["maxInFlight"]["minimum"] = json!(2)
        }),
        ("a pattern", "pattern", |d| {
            spec(d)["properties"]["timeout"]["pattern"] = json!("^1s$")
        }),
        ("a default", "default", |d| {
            spec(d)["properties"]["timeout"]["default"] = json!("1s")
        }),
        ("a choice", "enum", |d| {
            drop(spec(d)["properties"]["handshake"]["enum"].as_array_mut().unwrap().pop());
        }),
        ("a duty", "required", |d| spec(d)["required"] = json!(["timeout"])),
        ("a key of a list", "unhandled", |d| {
            spec(d)["properties"]["headers"]["x-kubernetes-list-map-keys"] = json!(["value"]);
        }),
        ("a rule", "another rule: self.size() < 9", |d| {
            spec(d)["properties"]["url"]["x-kubernetes-validations"] =
                json!([{"rule": "self.size() < 9", "message": "short"}]);
        }),
        ("a rule of a list's items", "another rule: has(self.value)", |d| {
            spec(d)["properties"]["headers"]["items"]["x-kubernetes-validations"] =
                json!([{"rule": "has(self.value)"}]);
        }),
        ("a short name", "\"whe\" is gone", |d| {
            d["spec"]["names"]["shortNames"] = json!([])
        }),
        ("a version", "v1alpha1 is gone", |d| {
            d["spec"]["versions"][0]["served"] = json!(false)
        }),
        ("a kind", "changed", |d| d["spec"]["names"]["kind"] = json!("Endpoint")),
    ];
    let whole = current("webhookendpoints.tidings.dev");
    let after = |edit: Edit| {
        let mut edited = whole.clone();
        edit(&mut edited);
        changes(whole.clone(), edited)
    };
    for (what, said, edit) in less {
        let found = after(edit);
        assert!(
            found.iter().any(|change| change.what.contains(said)),
            "{what}: {found:#?}"
        );
    }
    let more: [Edit; 4] = [
        |_| {},
        |d| {
            spec(d)["properties"]["added"] =
                json!({"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self != ''"}]})
        },
        |d| {
            spec(d)["properties"]["handshake"]["enum"]
                .as_array_mut()
                .unwrap()
                .push(json!("Another"))
        },
        |d| spec(d)["properties"]["url"]["description"] = json!("said better"),
    ];
    for edit in more {
        assert_eq!(after(edit), []);
    }
}
