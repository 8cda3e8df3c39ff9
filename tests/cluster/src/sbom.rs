//! The bill of materials of the image: what cargo-cyclonedx says is compiled in, checked against cargo's own word, and the
//! shared libraries that the image brings along.
//!
//! Invariant: it names exactly the crates that cargo links, at the versions of Cargo.lock.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::image::{Image, digest};

/// Crates as `name@version`.
type Crates = BTreeSet<String>;

/// What cargo compiles for the program, without what only builds it.
pub fn linked(root: &Path) -> Result<Crates> {
    let output = Command::new("cargo")
        .args([
            "tree",
            "--locked",
            "--package",
            "tidings",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root)
        .output()
        .context("failed to run cargo tree")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    // `name v1.2.3`, and then more of some.
    let crates = said.lines().filter_map(|line| {
        let (name, version) = line.split_once(" v")?;
        Some(format!("{name}@{}", version.split_whitespace().next()?))
    });
    Ok(crates.collect())
}

/// Makes cargo-cyclonedx's document (of a program built in `root`) the image's: refuses one that lacks a crate, takes out what is
/// not linked and where it was built, and adds the image's digest and its libraries.
pub fn complete(bom: &str, root: &Path, linked: &Crates, image: &Image<'_>, image_digest: &str) -> Result<String> {
    let local = format!("path+file://{}#", root.display());
    let bom = bom
        .replace(&local, "local:")
        .replace(&format!("file://{}", root.display()), ".");
    let mut bom: Value = serde_json::from_str(&bom).context("failed to read the bill of materials")?;
    let id = |component: &Value| format!("{}@{}", text(component, "name"), text(component, "version"));
    let components = bom["components"].as_array_mut().context("there are no components")?;
    // It asks `cargo metadata`, where the features of tests and of crates that are not built count too.
    let (kept, dropped): (Vec<Value>, Vec<Value>) = components.drain(..).partition(|one| linked.contains(&id(one)));
    *components = kept;
    let gone: BTreeSet<&str> = dropped.iter().map(|one| text(one, "bom-ref")).collect();
    let named: Crates = list(&bom, "/components")
        .iter()
        .chain(bom.pointer("/metadata/component"))
        .map(id)
        .collect();
    let missing: Vec<&String> = linked.difference(&named).collect();
    if !missing.is_empty() {
        bail!("the bill of materials is not of this build: it lacks {missing:?}");
    }
    if let Some(dependencies) = bom["dependencies"].as_array_mut() {
        dependencies.retain(|one| !gone.contains(text(one, "ref")));
        for on in dependencies
            .iter_mut()
            .filter_map(|one| one["dependsOn"].as_array_mut())
        {
            on.retain(|on| on.as_str().is_none_or(|on| !gone.contains(on)));
        }
    }
    let libraries = image.libraries()?.into_iter().map(|(path, bytes)| {
        let content = digest(&bytes).replace("sha256:", "");
        json!({
            "type": "file",
            "bom-ref": format!("file:{}", path.display()),
            "name": path.display().to_string(),
            "hashes": [{"alg": "SHA-256", "content": content}],
        })
    });
    let components = bom["components"].as_array_mut().context("there are no components")?;
    components.extend(libraries);
    let properties = &mut bom["metadata"]["properties"];
    if !properties.is_array() {
        *properties = json!([]);
    }
    for (name, value) in [("tidings:image", image.name), ("tidings:image:digest", image_digest)] {
        properties
            .as_array_mut()
            .context("the properties are no list")?
            .push(json!({"name": name, "value": value}));
    }
    serde_json::to_string_pretty(&bom).context("failed to write the bill of materials")
}

fn list<'a>(value: &'a Value, at: &str) -> &'a [Value] {
    value.pointer(at).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn image() -> Image<'static> {
        Image {
            name: "example.com/true:1",
            program: Path::new("/bin/true"),
            beside: &[],
            labels: BTreeMap::new(),
        }
    }

    fn bom(crates: &[(&str, &str)]) -> String {
        let crates = crates
            .iter()
            .map(|(name, version)| json!({"name": name, "version": version}));
        json!({
            "metadata": {"component": {"name": "tidings", "version": "1.0.0", "bom-ref": "path+file:///src#1.0.0"}},
            "components": crates.collect::<Vec<_>>(),
        })
        .to_string()
    }

    fn made(bom: &str) -> Result<String> {
        let linked = ["tidings@1.0.0", "a@1.2.3"].map(String::from).into();
        complete(bom, Path::new("/src"), &linked, &image(), "sha256:00")
    }

    #[test]
    fn a_bill_names_what_is_linked_and_the_libraries_beside_it_and_not_where_it_was_built() {
        let made = made(&bom(&[("a", "1.2.3")])).unwrap();
        assert!(!made.contains("/src"), "{made}");
        let made: Value = serde_json::from_str(&made).unwrap();
        let library = &list(&made, "/components")[1];
        assert!(text(library, "name").starts_with('/'), "{library}");
        assert_eq!(library["hashes"][0]["content"].as_str().unwrap().len(), 64);
        assert_eq!(made["metadata"]["properties"][1]["value"], "sha256:00");
    }

    #[test]
    fn a_bill_of_another_build_is_refused() {
        for wrong in [bom(&[]), bom(&[("a", "1.2.4")])] {
            let refusal = made(&wrong).unwrap_err().to_string();
            assert!(refusal.contains("lacks [\"a@1.2.3\"]"), "{refusal}");
        }
    }

    #[test]
    fn what_only_tests_are_built_with_is_not_in_it() {
        let mut more: Value = serde_json::from_str(&bom(&[("a", "1.2.3"), ("b", "1.0.0")])).unwrap();
        more["components"][0]["bom-ref"] = json!("r#a");
        more["components"][1]["bom-ref"] = json!("r#b");
        more["dependencies"] = json!([{"ref": "r#a", "dependsOn": ["r#b"]}, {"ref": "r#b"}]);
        let made = made(&more.to_string()).unwrap();
        assert!(made.contains("r#a") && !made.contains("r#b"), "{made}");
    }

    #[test]
    fn cargo_says_what_it_links_and_nothing_of_what_only_builds_or_tests() {
        let linked = linked(&crate::repository_root()).unwrap();
        let has = |name: &str| linked.iter().any(|one| one.starts_with(&format!("{name}@")));
        assert!(has("tidings") && has("libsqlite3-sys") && has("tokio"), "{linked:?}");
        assert!(!has("proptest") && !has("cc"), "{linked:?}");
    }
}
