//! What the chart makes for an operator's Prometheus and Grafana.

use std::fs;

use serde_json::{Value, json};

use crate::it::chart::{documents, object, path, render, render_set};

fn made(more: &[&str]) -> Vec<Value> {
    documents(&render(more))
}

#[test]
fn nothing_is_made_for_a_prometheus_unless_asked_for() {
    let kinds = made(&[]);
    let asked = ["ServiceMonitor", "PrometheusRule"];
    assert!(
        !kinds
            .iter()
            .any(|object| asked.contains(&object["kind"].as_str().unwrap()))
    );
    assert!(
        !kinds
            .iter()
            .any(|o| o["metadata"]["name"] == "tidings-metrics" || o["metadata"]["name"] == "tidings-dashboard")
    );
}

#[test]
fn the_service_monitor_finds_the_service_and_the_service_both_processes() {
    for set in ["defaults", "everything"] {
        let values = path(&format!("tests/chart/{set}.values.yaml"));
        let more = [
            "-f",
            values.to_str().unwrap(),
            "--set",
            "metrics.serviceMonitor.enabled=true",
        ];
        let objects = made(&more);
        let monitor = objects
            .iter()
            .find(|object| object["kind"] == "ServiceMonitor")
            .unwrap();
        let has = |labels: &Value, wanted: &Value| {
            let wanted = wanted.as_object().unwrap();
            !wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value)
        };
        let wanted = &monitor["spec"]["selector"]["matchLabels"];
        let services = objects.iter().filter(|object| object["kind"] == "Service");
        let found: Vec<&Value> = services
            .filter(|service| has(&service["metadata"]["labels"], wanted))
            .collect();
        assert_eq!(found.len(), 1, "{set}: of two Services, the one of metrics");
        let service = found[0];
        assert_eq!(
            monitor["spec"]["namespaceSelector"]["matchNames"],
            json!([service["metadata"]["namespace"]])
        );
        assert_eq!(
            monitor["spec"]["endpoints"][0]["port"],
            service["spec"]["ports"][0]["name"]
        );
        let pods = objects
            .iter()
            .map(|object| &object["spec"]["template"])
            .filter(|pod| pod.is_object());
        let pods: Vec<&Value> = pods
            .filter(|pod| has(&pod["metadata"]["labels"], &service["spec"]["selector"]))
            .collect();
        assert_eq!(pods.len(), 2, "{set}");
        for pod in pods {
            let ports = pod["spec"]["containers"][0]["ports"].as_array().unwrap();
            assert!(
                ports
                    .iter()
                    .any(|port| port["name"] == service["spec"]["ports"][0]["targetPort"]),
                "{set}"
            );
        }
    }
}

#[test]
fn the_rule_has_the_alerts_as_they_are_tested() {
    let file = documents(&fs::read_to_string(path("charts/tidings/files/alerts.yaml")).unwrap()).remove(0);
    let objects = made(&["--set", "metrics.prometheusRule.enabled=true"]);
    let rule = object(&objects, "PrometheusRule", "tidings");
    assert_eq!(rule["spec"]["groups"], file["groups"]);

    let objects = documents(&render_set("everything"));
    let rule = object(&objects, "PrometheusRule", "platform-hooks");
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let rules: Vec<&Value> = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect();
    let all: usize = file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g["rules"].as_array().unwrap().len())
        .sum();
    assert_eq!(rules.len(), all - 2, "two are disabled");
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(path("charts/tidings/values.schema.json")).unwrap()).unwrap();
    let known = schema.pointer("/properties/metrics/properties/prometheusRule/properties/disabled/items/enum");
    let named = file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["rules"].as_array().unwrap());
    let named: Vec<Value> = named.map(|rule| rule["alert"].clone()).collect();
    assert_eq!(known, Some(&json!(named)), "a name that is misspelt is refused");
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(!["TidingsFilterFails", "TidingsDispatcherAbsent"].contains(&name));
        assert_eq!(rule["labels"]["team"], "platform");
        assert!(rule["labels"]["severity"].is_string());
        let url = format!("https://wiki.example.com/tidings#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], url);
    }
}

#[test]
fn the_config_map_has_the_dashboard_and_the_label_of_the_sidecar() {
    let file: Value =
        serde_json::from_str(&fs::read_to_string(path("charts/tidings/files/dashboard.json")).unwrap()).unwrap();
    let objects = made(&["--set", "metrics.dashboard.enabled=true"]);
    let map = object(&objects, "ConfigMap", "tidings-dashboard");
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let made: Value = serde_json::from_str(map["data"]["tidings.json"].as_str().unwrap()).unwrap();
    assert_eq!(made, file);
}
