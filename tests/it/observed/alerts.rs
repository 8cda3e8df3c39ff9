//! The alerts, by promtool's own tests, and what whoever is woken is told.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use tidings_cluster::promtool;

use super::{documented, names};
use crate::it::chart::{documents, path};

const ALERTS: &str = "charts/tidings/files/alerts.yaml";
const TESTS: &str = "tests/alerts/alerts.test.yaml";

fn rules() -> Vec<Value> {
    let file = documents(&fs::read_to_string(path(ALERTS)).unwrap()).remove(0);
    let groups = file["groups"].as_array().unwrap().clone();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

/// As GitHub makes them of headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    headings
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect()
}

#[test]
fn promtool_takes_the_alerts_and_their_tests_pass() {
    for args in [
        ["check", "rules", "--lint-fatal", ALERTS],
        ["test", "rules", "--diff", TESTS],
    ] {
        let file = path(args[3]);
        let args = [args[0], args[1], args[2], file.to_str().unwrap()];
        let ran = promtool(&args, "").unwrap();
        let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{said}");
    }
}

#[test]
fn each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() {
    let tests = documents(&fs::read_to_string(path(TESTS)).unwrap()).remove(0);
    let (mut fires, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in tests["tests"].as_array().unwrap() {
        for expected in test["promql_expr_test"].as_array().into_iter().flatten() {
            let alert = expected["expr"].as_str().unwrap().split('"').nth(1).unwrap().to_owned();
            match expected["exp_samples"].as_array().unwrap().is_empty() {
                true => quiet.insert(alert),
                false => fires.insert(alert),
            };
        }
    }
    let alerts: BTreeSet<String> = rules()
        .iter()
        .map(|rule| rule["alert"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((&fires, &quiet), (&alerts, &alerts));
    assert_eq!(alerts.len(), rules().len(), "no name twice");
}

#[test]
fn each_alert_says_what_it_is_what_to_do_and_where_to_read_on_about_metrics_that_exist() {
    let runbooks = fs::read_to_string(path("docs/runbooks.md")).unwrap();
    let sections = anchors(&runbooks);
    let documented = documented();
    let mut alerts = BTreeSet::new();
    for rule in rules() {
        let name = rule["alert"].as_str().unwrap();
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&severity), "{name}");
        let said = |what: &str| {
            rule["annotations"][what]
                .as_str()
                .unwrap_or_else(|| panic!("{name} has no {what}"))
        };
        assert!(said("summary").ends_with('.') && said("summary").len() < 120, "{name}");
        assert!(
            said("description").ends_with('.') && said("description").len() > 100,
            "{name}"
        );
        let (page, section) = said("runbook_url").split_once('#').unwrap();
        assert!(page.ends_with("/docs/runbooks.md"), "{name}");
        assert_eq!(section, name.to_lowercase());
        alerts.insert(section.to_owned());
        let all = [rule["expr"].as_str().unwrap(), said("description")].concat();
        let used = names(&all);
        assert!(!used.is_empty(), "{name}");
        for metric in used {
            assert!(documented.contains_key(&metric), "{name}: {metric}");
        }
    }
    assert_eq!(alerts, sections, "alerts, and sections of docs/runbooks.md");
    for metric in names(&runbooks) {
        assert!(documented.contains_key(&metric), "docs/runbooks.md: {metric}");
    }
}
