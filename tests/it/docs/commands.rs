//! The commands in fenced blocks name what exists: files, make's targets, processes and flags of tidings, kinds of Kubernetes,
//! annotations, values of the chart, helm's and cargo's targets.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tidings_cluster::{Block, Cluster, Helm, Page, repository_root};

use super::{PROCESSES, flags, none};

/// A command of a block: its words, and where it is.
struct Spoken {
    words: Vec<String>,
    at: String,
}

/// The commands of a block, without prompts, comments, what is typed into them, and what they print.
fn commands(block: &Block) -> Vec<Spoken> {
    let joined = block.text.replace("\\\n", " ");
    let (mut commands, mut heredoc) = (Vec::new(), false);
    for line in joined.lines() {
        if heredoc {
            heredoc = line != "END";
            continue;
        }
        heredoc = line.contains("<<END");
        let line = match (block.language.as_str(), line.strip_prefix("$ ")) {
            ("console", Some(typed)) => typed,
            ("console", None) => continue,
            _ => line,
        };
        let line = line.split(" # ").next().unwrap().split("    #").next().unwrap();
        if line.trim_start().starts_with('#') {
            continue;
        }
        // Commands in pipes, lists and substitutions are commands, too.
        let apart = line.replace("$(", " | ").replace("<(", " | ");
        for part in apart.split(['|', ';', '&']) {
            let words: Vec<String> = part
                .split_whitespace()
                .map(|word| word.trim_matches(|c| "\"'(){}".contains(c)).to_owned())
                .filter(|word| !word.is_empty())
                .collect();
            let begins = words
                .iter()
                .position(|word| !["sudo", "if", "then", "until", "!"].contains(&&**word));
            if let Some(begins) = begins {
                commands.push(Spoken {
                    words: words[begins..].to_vec(),
                    at: block.at.clone(),
                });
            }
        }
    }
    commands
}

fn all() -> Vec<Spoken> {
    let blocks = Page::all().into_iter().flat_map(|page| page.blocks());
    let spoken = blocks.filter(|block| ["sh", "console"].contains(&&*block.language));
    spoken.flat_map(|block| commands(&block)).collect()
}

#[test]
fn every_file_target_flag_and_value_in_a_command_is_there() {
    let root = repository_root();
    let makefile = fs::read_to_string(root.join("Makefile")).unwrap();
    let flags = flags();
    let values: Value = serde_yaml::from_str(&fs::read_to_string(Helm::chart().join("values.yaml")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    let mut looked = BTreeSet::new();
    for Spoken { words, at } in all() {
        let mut say = |what: String| wrong.push(format!("{at}: {what}: {}", words.join(" ")));
        let program = &*words[0];
        looked.insert(program.to_owned());
        for word in &words {
            let in_repository = [
                "charts/",
                "deploy/",
                "docs/",
                "examples/",
                "crds",
                "benches/",
                "src/",
                "tests/",
            ];
            let file = word.trim_start_matches("--file=");
            if in_repository.iter().any(|folder| file.starts_with(folder)) && !root.join(file).exists() {
                say(format!("there is no {file}"));
            }
        }
        match program {
            "make" => {
                for target in words[1..]
                    .iter()
                    .filter(|word| !word.contains('=') && !word.starts_with('-'))
                {
                    if !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))) {
                        say(format!("there is no target {target}"));
                    }
                }
            }
            "tidings" => {
                let process = words.get(1).map(String::as_str).unwrap_or_default();
                match PROCESSES.iter().find(|known| **known == process) {
                    None => say(format!("there is no process {process}")),
                    Some(process) => {
                        for flag in words.iter().filter(|word| word.starts_with("--")) {
                            if !flags[process].contains(flag) {
                                say(format!("{process} has no {flag}"));
                            }
                        }
                    }
                }
            }
            "helm" => {
                for pair in words.windows(2).filter(|pair| pair[0] == "--set") {
                    let path = pair[1].split('=').next().unwrap();
                    let found = path.split('.').try_fold(&values, |value, key| value.get(key));
                    if found.is_none() {
                        say(format!("the chart has no value {path}"));
                    }
                }
            }
            "cargo" => {
                for pair in words.windows(2) {
                    let file = match &*pair[0] {
                        "--bench" => format!("benches/{}/main.rs", pair[1]),
                        "--test" if pair[1] == "it" => "tests/it.rs".into(),
                        "--test" => format!("tests/{0}/{0}.rs", pair[1]),
                        _ => continue,
                    };
                    if !root.join(&file).exists() {
                        say(format!("there is no {file}"));
                    }
                }
            }
            _ => {}
        }
    }
    none(&wrong);
    for program in ["make", "kubectl", "helm", "curl", "cargo"] {
        assert!(looked.contains(program), "{program} was not found in {looked:?}");
    }
}

/// Everything after which kubectl wants a kind.
const TAKES_KIND: [&str; 7] = ["get", "describe", "delete", "wait", "patch", "annotate", "label"];
/// Of products that are not in our test cluster.
const FOREIGN: [&str; 1] = ["sinkbinding"];

#[test]
fn every_kind_and_annotation_in_a_kubectl_command_is_one_that_the_api_server_and_tidings_know() {
    let cluster = &*super::super::manifests::cluster("commands");
    let kinds = kinds(cluster);
    let code = super::shipped();
    let mut wrong = Vec::new();
    let mut looked = 0;
    for Spoken { words, at } in all().into_iter().filter(|spoken| spoken.words[0] == "kubectl") {
        let verb = words[1..].iter().position(|word| TAKES_KIND.contains(&&**word));
        let kind = verb.and_then(|verb| {
            let flags_with_values = ["-n", "-f", "-k", "-l", "-o", "-p"];
            let rest = &words[verb + 2..];
            let mut skip = false;
            rest.iter().find(|word| {
                let this = !skip && !word.starts_with('-');
                skip = !skip && flags_with_values.contains(&&***word);
                this
            })
        });
        for kind in kind.into_iter().flat_map(|list| list.split(',')) {
            let kind = kind.split('/').next().unwrap().to_lowercase();
            looked += 1;
            if !kinds.contains(&kind)
                && !FOREIGN.contains(&&*kind)
                && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
            {
                wrong.push(format!("{at}: there is no kind {kind}: {}", words.join(" ")));
            }
        }
        for word in &words {
            let Some(from) = word.find("tidings.dev/") else {
                continue;
            };
            let name = &word[from..];
            let end = name
                .find(|c: char| !(c.is_ascii_alphanumeric() || "./-".contains(c)))
                .unwrap_or(name.len());
            // A kind's own name, as in `webhookendpoint.tidings.dev/crm`, is not one.
            if word[..from].ends_with('.') || code.contains(&name[..end]) {
                continue;
            }
            let subresource = word[..from].ends_with("eventsubscriptions.");
            if !subresource {
                wrong.push(format!("{at}: nothing is called {}", &name[..end]));
            }
        }
    }
    none(&wrong);
    assert!(looked > 35, "only {looked} were found");
}

/// Names, short names and names with their group that kubectl takes.
fn kinds(cluster: &Cluster) -> BTreeSet<String> {
    let table = cluster.kubectl_ok(&["api-resources", "--no-headers"]).unwrap();
    let mut kinds = BTreeSet::new();
    for line in table.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [name, .., version, _, kind] = &*columns else {
            continue;
        };
        let group = version.split_once('/').map(|(group, _)| group);
        let singular = kind.to_lowercase();
        kinds.extend([(*name).to_owned(), singular.clone()]);
        if let Some(group) = group {
            kinds.extend([format!("{name}.{group}"), format!("{singular}.{group}")]);
        }
        if columns.len() == 5 {
            kinds.extend(columns[1].split(',').map(str::to_owned));
        }
    }
    kinds
}
