//! The list of metrics, and the conventions.

use std::collections::{BTreeMap, BTreeSet};

use tidings_cluster::promtool;

use super::documented;
use crate::it::team::Shared;

/// The samples of a text: the metric's name, and its labels.
fn samples(text: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let of = |line: &str| {
        let series = line.rsplit_once(' ').unwrap().0;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').unwrap().split("\",");
        let label = |label: &str| {
            let (name, value) = label.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        };
        (name.to_owned(), labels.filter_map(label).collect())
    };
    lines.map(of).collect()
}

/// The documented labels: names, and where the text is a list of words and nothing else, their values.
fn labels(text: &str) -> BTreeMap<String, Option<BTreeSet<String>>> {
    let mut found = BTreeMap::new();
    for piece in text.split(';') {
        let (names, values) = piece.split_once(':').unwrap_or((piece, ""));
        let words = |text: &str| {
            text.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect::<BTreeSet<String>>()
        };
        let prose: String = values.split('`').step_by(2).collect();
        let is_list = !values.is_empty() && !prose.contains(char::is_alphabetic);
        for name in words(names) {
            found.insert(name, is_list.then(|| words(values)));
        }
    }
    found
}

#[test]
fn what_the_processes_export_is_what_is_documented() {
    let shared = Shared::get();
    let (mut kinds, mut seen) = (BTreeMap::new(), Vec::new());
    for text in [
        shared.controller.metrics().unwrap(),
        shared.dispatcher.metrics().unwrap(),
    ] {
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        kinds.extend(types.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
        seen.extend(samples(&text));
    }
    let documented = documented();
    let listed: BTreeMap<String, String> = documented
        .iter()
        .map(|(name, d)| (name.clone(), d.kind.clone()))
        .collect();
    assert_eq!(kinds, listed, "exported, and in docs/metrics.md");

    let mut values: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (name, mut has) in seen {
        let parts = ["_bucket", "_sum", "_count"];
        let histogram = parts.iter().find_map(|part| name.strip_suffix(part));
        let name = histogram.filter(|name| kinds.contains_key(*name)).unwrap_or(&name);
        has.remove("le");
        let may = labels(&documented[name].labels);
        assert!(has.keys().eq(may.keys()), "{name}: {has:?}, documented {may:?}");
        for (label, value) in has {
            values.entry((name.to_owned(), label)).or_default().insert(value);
        }
    }
    let mut lists = 0;
    for (name, documented) in &documented {
        for (label, list) in labels(&documented.labels) {
            let Some(list) = list else { continue };
            assert_eq!(
                values.get(&(name.clone(), label.clone())),
                Some(&list),
                "{name}, {label}: from the start"
            );
            lists += 1;
        }
    }
    assert!(lists > 8, "lists of values are read");
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let shared = Shared::get();
    for text in [
        shared.controller.metrics().unwrap(),
        shared.dispatcher.metrics().unwrap(),
    ] {
        let checked = promtool(&["check", "metrics"], &text).unwrap();
        let said = [checked.stdout, checked.stderr].concat();
        assert!(
            checked.status.success() && said.is_empty(),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    // It does say something where there is something to say.
    let odd = promtool(&["check", "metrics"], "# TYPE waitsMs counter\nwaitsMs 1\n").unwrap();
    assert!(!odd.status.success());
}
