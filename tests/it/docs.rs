//! What the pages say holds: links lead somewhere, commands name what exists, the API server takes the manifests, and what is
//! called by name (metrics, conditions, reasons, annotations, flags, values, tests) is called so in the code.
//!
//! That the commands of the pages that a person follows do what is said is `walkthrough`'s.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use serde::Deserialize as _;
use serde_json::Value;
use tidings_cluster::{Helm, Page, repository_root};

use super::team::Shared;

mod commands;
mod manifests;

const TIDINGS: &str = env!("CARGO_BIN_EXE_tidings");
const PROCESSES: [&str; 4] = ["controller", "dispatcher", "inspect", "crds"];

/// Fails with all of them at once.
fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `path` without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(clean.pop(), "{} leads out of the repository", path.display()),
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean
}

/// Where the repository's files are for who has only the chart.
const PUBLISHED: &str = "https://github.com/tidings/tidings/blob/main/";

/// What is wrong with a link in a file, which is named from the repository's root.
fn broken(link: &str, here: &Path) -> Option<String> {
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match (file.strip_prefix(PUBLISHED), file) {
        (Some(file), _) => clean(Path::new(file)),
        (None, "") => here.to_owned(),
        (None, file) => clean(&here.parent().unwrap().join(file)),
    };
    if !repository_root().join(&target).exists() {
        return Some(format!("there is no {}", target.display()));
    }
    let leads = anchor.is_empty() || Page::read(target.to_str().unwrap()).anchors().contains(anchor);
    (!leads).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_and_anchor_leads_somewhere() {
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for page in Page::all() {
        for (link, at) in page.links() {
            let elsewhere = link.contains("://") && !link.starts_with(PUBLISHED);
            if elsewhere || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            if let Some(why) = broken(&link, Path::new(&page.path)) {
                wrong.push(format!("{at}: {link}: {why}"));
            }
        }
    }
    none(&wrong);
    assert!(followed > 150, "only {followed} links were found");
}

#[test]
fn every_link_that_the_chart_shows_its_users_leads_somewhere() {
    fn published(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                published(&entry.path(), found);
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            for (at, _) in text.match_indices(PUBLISHED) {
                let link = text[at..]
                    .split(|c: char| c.is_whitespace() || "\")".contains(c))
                    .next();
                found.insert(link.unwrap().trim_end_matches([':', '.']).to_owned());
            }
        }
    }
    let mut links = BTreeSet::new();
    published(&Helm::chart(), &mut links);
    let wrong = links.iter().filter_map(|link| {
        let why = broken(link, Path::new("charts/tidings/README.md"))?;
        Some(format!("{link}: {why}"))
    });
    none(&wrong.collect::<Vec<_>>());
    assert!(links.len() > 20, "only {} were found", links.len());
}

/// The code, and what is shipped with it, without tests and comments: what only those still name is gone.
fn code(folders: &[&str]) -> String {
    let mut text = String::new();
    for folder in folders {
        each_file(&repository_root().join(folder), &mut |path, file| {
            if path.ends_with("tests.rs") || path.parent().unwrap().ends_with("tests") {
                return;
            }
            let shipped = file.split("\nmod tests {\n").next().unwrap();
            let is_comment = |line: &&str| ["//", "# "].iter().any(|mark| line.trim_start().starts_with(mark));
            let lines = shipped.lines().filter(|line| !is_comment(line));
            text.extend(lines.flat_map(|line| [line, "\n"]));
        });
    }
    text
}

/// The same of everything that people get.
fn shipped() -> String {
    code(&["src", "crds", "deploy", "examples", "charts"])
}

fn read_all(folder: &Path, into: &mut String) {
    each_file(folder, &mut |_, text| into.push_str(text));
}

/// Does something with the path and the text of every file of code in a folder.
fn each_file(folder: &Path, with: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let kind = path.extension().and_then(|ext| ext.to_str()).unwrap_or_default();
        if path.is_dir() {
            each_file(&path, with);
        } else if ["rs", "yaml", "tpl", "lua", "py", "go", "mjs", "sh"].contains(&kind) {
            with(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

/// Its words of letters and digits.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).collect()
}

/// What Kubernetes and Linux call so, and only the chart's values or nothing of ours.
const OF_OTHERS: [&str; 5] = [
    "ClusterIP",
    "IfNotPresent",
    "ReadWriteOnce",
    "ReadWriteOncePod",
    "VmHWM",
];

/// `SecretNotFound`: several words in one.
fn is_camel(word: &str) -> bool {
    let humps = word.matches(|c: char| c.is_ascii_uppercase()).count();
    humps > 1
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.contains(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_alphanumeric())
}

#[test]
fn every_condition_reason_annotation_and_kind_that_is_named_is_in_the_code() {
    let shipped = shipped();
    // A reason that only an example or an alert names is gone.
    let made = code(&["src", "charts/tidings/templates"]);
    let mut known = words(&made);
    known.extend(OF_OTHERS);
    let mut wrong = Vec::new();
    for page in Page::all() {
        for (name, at) in page.code() {
            let missing = match name.split_once("tidings.dev/") {
                Some((_, rest)) => {
                    let label = rest
                        .split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
                        .next();
                    !shipped.contains(&format!("tidings.dev/{}", label.unwrap()))
                }
                None => is_camel(&name) && !known.contains(&*name),
            };
            if missing {
                wrong.push(format!("{at}: nothing in the code is called {name}"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_condition_and_reason_is_explained() {
    let conditions = fs::read_to_string(repository_root().join("src/api/conditions.rs")).unwrap();
    let (api, operations) = (Page::read("docs/api.md").text, Page::read("docs/operations.md").text);
    let (in_api, in_operations) = (words(&api), words(&operations));
    // What they mean is in the API page; what to do about it, where there is something to do, in operations.
    let nothing_to_do = [
        "Resolved",
        "Compiled",
        "Succeeding",
        "Overlap",
        "Queued",
        "Counting",
        "Sending",
        "AllSent",
        "DryRun",
        "True",
        "False",
        "Unknown",
        "Ready",
        "Reconciling",
        "Stalled",
        "KeyRotating",
        "Delivering",
        "FilterFailing",
        "Unconsumed",
        "Complete",
        "Failed",
        "DeadLetter",
        "SubscriptionNotFound",
        "KeysBlocked",
    ];
    let mut wrong = Vec::new();
    let mut names = 0;
    for line in conditions
        .lines()
        .filter(|line| line.trim_start().starts_with("pub const") && line.contains("&str ="))
    {
        let name = line.split('"').nth(1).unwrap();
        names += 1;
        if !in_api.contains(name) {
            wrong.push(format!("docs/api.md does not name {name}"));
        }
        if !in_operations.contains(name) && !nothing_to_do.contains(&name) {
            wrong.push(format!("docs/operations.md does not say what to do about {name}"));
        }
    }
    none(&wrong);
    assert!(names > 50, "only {names} were found");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_is_named_is_shown_by_a_process() {
    let shared = Shared::get();
    let shown = shared.dispatcher.metrics().unwrap() + &shared.controller.metrics().unwrap();
    let families: BTreeSet<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    // A family of which nothing was counted yet is not shown: then its last words are a name in the code, and its first those
    // of others.
    let mut code = String::new();
    read_all(&repository_root().join("src"), &mut code);
    let registered = |name: &str| {
        let named = |words: &str| code.contains(&format!("\"{words}\""));
        let mut splits = name.match_indices('_').skip(1);
        named(name)
            || splits.any(|(at, _)| {
                let (group, own) = (&name[..=at], &name[at + 1..]);
                named(own) && families.iter().any(|family| family.starts_with(group))
            })
    };
    let mut wrong = Vec::new();
    for page in Page::all() {
        let blocks = page.blocks().into_iter().map(|block| (block.text, block.at));
        for (text, at) in page.code().into_iter().chain(blocks) {
            for name in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
                if !name.starts_with("tidings_") {
                    continue;
                }
                let family = ["_total", "_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(name);
                let shown = families.contains(name) || families.contains(family);
                if !shown && !registered(family) {
                    wrong.push(format!("{at}: no process shows {name}"));
                }
            }
        }
    }
    none(&wrong);
}

/// The long flags of each process.
fn flags() -> HashMap<&'static str, BTreeSet<String>> {
    let of = |process: &'static str| {
        let help = Command::new(TIDINGS).args([process, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags = help.split_whitespace().filter(|word| word.starts_with("--"));
        let flags = flags.map(|flag| flag.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned());
        (process, flags.collect())
    };
    PROCESSES.map(of).into()
}

#[test]
fn every_flag_is_in_operations_and_every_flag_there_is_one() {
    let flags = flags();
    let page = Page::read("docs/operations.md");
    let named: BTreeSet<String> = page
        .code()
        .iter()
        .flat_map(|(code, _)| code.split(' '))
        .filter(|word| word.starts_with("--"))
        .map(|word| {
            word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
                .split('=')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    let mut real: BTreeSet<String> = flags.values().flatten().cloned().collect();
    real.remove("--help");
    let missing: Vec<_> = real.difference(&named).collect();
    assert!(missing.is_empty(), "docs/operations.md does not name {missing:?}");
    // Of other programs.
    let others = ["--overwrite", "--patch-file", "--replicas"].map(str::to_owned);
    let unknown: Vec<_> = named.difference(&real).filter(|flag| !others.contains(flag)).collect();
    assert!(unknown.is_empty(), "docs/operations.md names {unknown:?}");
}

#[test]
fn every_value_of_the_chart_that_is_named_is_there() {
    let values = fs::read_to_string(Helm::chart().join("values.yaml")).unwrap();
    let values: Value = serde_yaml::from_str(&values).unwrap();
    let (mut wrong, mut named) = (Vec::new(), 0);
    for page in Page::all() {
        for (code, at) in page.code() {
            let path = code.split([' ', '=', ':']).next().unwrap();
            // `policy.yaml` is a file.
            let Some((group, rest)) = path.split_once('.').filter(|(_, rest)| *rest != "yaml") else {
                continue;
            };
            if !values[group].is_object() {
                continue;
            }
            named += 1;
            let found = rest.split('.').try_fold(&values[group], |value, key| value.get(key));
            if found.is_none() {
                wrong.push(format!("{at}: the chart has no value {path}"));
            }
        }
    }
    none(&wrong);
    assert!(named > 100, "only {named} were found");
}

/// What is in `deploy/install.yaml`, but for the namespace and the definitions, which stay.
#[test]
fn what_is_to_be_deleted_without_helm_is_all_that_was_applied() {
    let page = Page::read("docs/install.md");
    let blocks = page.blocks().into_iter().filter(|block| block.heading == "Removing");
    let label = "-l app.kubernetes.io/part-of=tidings";
    let joined = blocks.map(|block| block.text.replace("\\\n", " "));
    let commands: String = joined.filter(|text| text.contains(label)).collect();
    let kinds: BTreeSet<&str> = commands
        .lines()
        .filter_map(|line| line.strip_prefix("kubectl delete ")?.split(' ').next())
        .flat_map(|kinds| kinds.split(','))
        .collect();
    let short = HashMap::from([
        ("deployment", "deploy"),
        ("statefulset", "sts"),
        ("service", "svc"),
        ("configmap", "cm"),
        ("poddisruptionbudget", "pdb"),
        ("serviceaccount", "sa"),
    ]);
    let manifests = fs::read_to_string(repository_root().join("deploy/install.yaml")).unwrap();
    let mut wrong = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&manifests) {
        let object = Value::deserialize(document).unwrap();
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        if ["namespace", "customresourcedefinition"].contains(&&*kind) {
            continue;
        }
        let name = &object["metadata"]["name"];
        if !kinds.contains(short.get(&*kind).copied().unwrap_or(&kind)) {
            wrong.push(format!("{kind} {name} is not deleted"));
        }
        if object["metadata"]["labels"]["app.kubernetes.io/part-of"] != "tidings" {
            wrong.push(format!("{kind} {name} lacks the label"));
        }
    }
    none(&wrong);
}

#[test]
fn every_test_that_the_design_names_is_there() {
    let mut tests = String::new();
    for folder in ["src", "tests"] {
        read_all(&repository_root().join(folder), &mut tests);
    }
    let functions = tests.split("fn ").skip(1);
    let functions: BTreeSet<&str> = functions.filter_map(|rest| rest.split(['(', '<']).next()).collect();
    let mut wrong = Vec::new();
    let mut named = 0;
    for (code, at) in Page::read("docs/design.md").code() {
        let name = code.rsplit("::").next().unwrap();
        let is_test = name.matches('_').count() > 3
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if is_test {
            named += 1;
            if !functions.contains(name) {
                wrong.push(format!("{at}: there is no test {name}"));
            }
        }
    }
    none(&wrong);
    assert!(named > 20, "only {named} were found");
}
