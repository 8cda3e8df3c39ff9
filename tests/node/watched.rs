//! Watched, as docs/install.md says: the Prometheus Operator's objects, and a real Prometheus that scrapes what they select.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use tidings_cluster::{Cluster, Dashboard, Page, Prometheus, define_operator_kinds, eventually};

use super::stage::{PATIENCE, RELEASE, SYSTEM, Stage};

/// The pods that must be scraped.
const PROCESSES: &str = "app.kubernetes.io/component in (controller,dispatcher)";
/// Alerts that say that nothing, or not enough, is heard of Tidings.
const SILENCE: [&str; 3] = [
    "TidingsDispatcherAbsent",
    "TidingsDispatcherNotReady",
    "TidingsNoLeader",
];

pub fn prometheus_scrapes_every_pod_that_the_service_monitor_selects_and_the_dashboard_shows_what_was_delivered(
    stage: &mut Stage,
) {
    stage.receiving();
    define_operator_kinds(stage.cluster(), PATIENCE).unwrap();
    let values = Page::read("docs/install.md").block("Watching it", "yaml");
    let file = stage.helm.home().join("watched.yaml");
    fs::write(&file, values).unwrap();
    stage.release("upgrade", &["--values", file.to_str().unwrap()]);
    stage.ready();

    let object = |kind: &str, name: &str| {
        let found = stage.cluster().get(SYSTEM, kind, name).unwrap();
        found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
    };
    let (monitor, rule) = (object("servicemonitor", RELEASE), object("prometheusrule", RELEASE));
    for found in [&monitor, &rule] {
        let labels = &found["metadata"]["labels"];
        assert_eq!(labels["release"], "kube-prometheus-stack", "{labels:#}");
    }
    let shown = object("configmap", "tidings-dashboard");
    assert_eq!(shown["metadata"]["labels"]["grafana_dashboard"], "1");
    let dashboard = Dashboard::parse(shown["data"]["tidings.json"].as_str().unwrap()).unwrap();

    let (processes, scraped) = selected(stage.cluster(), &monitor);
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scraped],
    });
    let rules = rule["spec"].to_string();
    let prometheus = Prometheus::start(&config.to_string(), &[("rules.yaml", &rules)]).unwrap();
    until("every pod being ready, by its own word", || {
        let ready = prometheus.query("tidings_ready == 1")?;
        let label = |one: &Value, name: &str| one["metric"][name].as_str().unwrap_or_default().to_owned();
        let said: BTreeMap<String, String> = ready
            .iter()
            .map(|one| (label(one, "pod"), label(one, "process")))
            .collect();
        anyhow::ensure!(said == processes, "{ready:?}, of {processes:?}");
        Ok(())
    });
    until("the alerts of silence being quiet", || quiet(&prometheus, &rule));

    let producer = stage.produce(5, 10);
    let (accepted, _) = stage.produced(&producer);
    stage.until_delivered(&accepted);
    let query = |title: &str, of: usize| dashboard.queries(title).unwrap()[of];
    until("the dashboard showing the endpoint", || {
        let states = Dashboard::series(&prometheus, query("Endpoints by state", 0))?;
        let succeeds = |one: &Value| one["metric"]["reason"] == "Succeeding" && one["value"][1] == "1";
        anyhow::ensure!(states.iter().any(succeeds), "{states:?}");
        Ok(())
    });
    until("the dashboard showing what went in and out", || {
        for of in [0, 1] {
            let query = query("In and out", of);
            let flow = Dashboard::series(&prometheus, query)?;
            let rate = |one: &Value| one["value"][1].as_str()?.parse::<f64>().ok();
            let [one] = &*flow else {
                anyhow::bail!("{query}: {flow:?}")
            };
            anyhow::ensure!(rate(one).is_some_and(|rate| rate > 0.0), "{query}: {one}");
        }
        Ok(())
    });
    // What a person chooses first there.
    let jobs = prometheus.ask("label/job/values", &[("match[]", "tidings_build_info")]);
    assert_eq!(jobs.unwrap(), json!(["tidings-metrics"]));
}

/// Each pod that runs, with what runs in it, and how Prometheus scrapes what a ServiceMonitor selects, once that is these pods.
fn selected(cluster: &Cluster, monitor: &Value) -> (BTreeMap<String, String>, Value) {
    let mut found = None;
    until("the ServiceMonitor selecting every pod", || {
        let pods = listed(cluster, SYSTEM, "pods", PROCESSES)?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let processes: BTreeMap<String, String> = pods
            .iter()
            .map(|pod| &pod["metadata"])
            .map(|pod| (word(&pod["name"]), word(&pod["labels"]["app.kubernetes.io/component"])))
            .collect();
        anyhow::ensure!(
            processes.len() == 3,
            "two controllers and the dispatcher: {processes:?}"
        );
        let scraped = scraped(cluster, monitor)?;
        let targets = scraped["static_configs"].as_array().into_iter().flatten();
        let mut at: Vec<String> = targets.map(|target| word(&target["labels"]["pod"])).collect();
        at.sort_unstable();
        anyhow::ensure!(at.iter().eq(processes.keys()), "{scraped:#}, for {processes:?}");
        found = Some((processes, scraped));
        Ok(())
    });
    found.unwrap()
}

/// What the Prometheus Operator makes of a ServiceMonitor: it scrapes each address of the Services that are selected, at the port
/// of the name that is given, and labels what comes by where it is from.
fn scraped(cluster: &Cluster, monitor: &Value) -> anyhow::Result<Value> {
    let spec = &monitor["spec"];
    let labels = spec["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector: Vec<String> = labels
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    anyhow::ensure!(!selector.is_empty(), "every Service there is: {spec:#}");
    let [endpoint] = items(&spec["endpoints"]) else {
        anyhow::bail!("one way to scrape: {spec:#}")
    };
    let mut targets = Vec::new();
    for namespace in items(&spec["namespaceSelector"]["matchNames"]) {
        let namespace = namespace.as_str().unwrap_or_default();
        for service in listed(cluster, namespace, "services", &selector.join(","))? {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            let of = format!("kubernetes.io/service-name={name}");
            for slice in listed(cluster, namespace, "endpointslices", &of)? {
                for port in items(&slice["ports"])
                    .iter()
                    .filter(|port| port["name"] == endpoint["port"])
                {
                    targets.extend(items(&slice["endpoints"]).iter().map(|at| {
                        json!({
                            "targets": [format!("{}:{}", at["addresses"][0].as_str().unwrap_or_default(), port["port"])],
                            "labels": {
                                "job": name,
                                "namespace": namespace,
                                "service": name,
                                "pod": at["targetRef"]["name"],
                                "endpoint": endpoint["port"],
                            },
                        })
                    }));
                }
            }
        }
    }
    Ok(json!({
        "job_name": format!("serviceMonitor/{SYSTEM}/{RELEASE}/0"),
        "scheme": endpoint["scheme"].as_str().unwrap_or("http"),
        "metrics_path": endpoint["path"].as_str().unwrap_or("/metrics"),
        "static_configs": targets,
    }))
}

/// Whether every alert of the PrometheusRule can be evaluated, and none of silence waits to fire.
fn quiet(prometheus: &Prometheus, rule: &Value) -> anyhow::Result<()> {
    let groups = prometheus.ask("rules", &[])?;
    let loaded: Vec<&Value> = items(&groups["groups"])
        .iter()
        .flat_map(|group| items(&group["rules"]))
        .collect();
    let written = items(&rule["spec"]["groups"])
        .iter()
        .map(|group| items(&group["rules"]).len());
    anyhow::ensure!(loaded.len() == written.sum::<usize>(), "{loaded:#?}");
    for name in SILENCE {
        anyhow::ensure!(
            loaded.iter().any(|rule| rule["name"] == name),
            "there is no alert {name}"
        );
    }
    for rule in loaded {
        let silent = SILENCE.iter().any(|name| rule["name"] == *name);
        anyhow::ensure!(
            rule["health"] == "ok" && (rule["state"] == "inactive" || !silent),
            "{rule:#}"
        );
    }
    Ok(())
}

/// Waits until nothing is wrong any more; what is wrong is told.
fn until(what: &str, mut wrong: impl FnMut() -> anyhow::Result<()>) {
    eventually(what, PATIENCE, || wrong().map(|()| true)).unwrap();
}

fn listed(cluster: &Cluster, namespace: &str, kind: &str, selector: &str) -> anyhow::Result<Vec<Value>> {
    let list = cluster.kubectl_ok(&["get", kind, "-n", namespace, "-l", selector, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(items(&list["items"]).to_vec())
}

/// Those of a list; none where there is no list.
fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
