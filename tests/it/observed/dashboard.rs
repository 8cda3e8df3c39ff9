//! The dashboard: well-formed, and each of its queries asked of a real Prometheus that scrapes running processes, one endpoint of
//! which fails, one is well, and one waits.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tidings_cluster::{Dashboard, Prometheus};

use super::{documented, names};
use crate::it::chart::path;
use crate::it::team::{PATIENCE, Shared, Team, Webhooks};

/// Scrapes are a second apart.
const POLL: Duration = Duration::from_millis(500);

fn dashboard() -> Dashboard {
    let file = fs::read_to_string(path("charts/tidings/files/dashboard.json")).unwrap();
    Dashboard::parse(&file).unwrap()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name]
        .as_array()
        .unwrap_or_else(|| panic!("no list {name} in {value}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name} in {value}"))
}

#[test]
fn the_dashboard_is_one_that_grafana_takes_wherever_it_is() {
    let dashboard = dashboard();
    let documented = documented();
    let variables: BTreeSet<&str> = list(&dashboard.0["templating"], "list")
        .iter()
        .map(|v| text(v, "name"))
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "job", "namespace"]));
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in list(&dashboard.0, "panels") {
        let title = text(panel, "title");
        assert!(
            ids.insert(panel["id"].as_i64().unwrap()),
            "{title}: its id is another's"
        );
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is beyond the edge");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{title} covers another");
        }
    }
    let source = json!({"type": "prometheus", "uid": "${datasource}"});
    for (panel, queries) in dashboard.panels() {
        let title = text(panel, "title");
        assert_eq!(panel["datasource"], source, "{title}");
        let targets = list(panel, "targets");
        assert!(!text(panel, "description").is_empty() && !targets.is_empty(), "{title}");
        assert_eq!(queries.len(), targets.len(), "{title}: each has an expression");
        assert!(targets.iter().all(|target| target["datasource"] == source), "{title}");
        let references: BTreeSet<&str> = targets.iter().map(|target| text(target, "refId")).collect();
        assert_eq!(references.len(), targets.len(), "{title}");
        for query in queries {
            for metric in names(query) {
                assert!(documented.contains_key(&metric), "{title}: {metric}");
            }
            // Every selector is of the chosen installation, and no namespace is written down.
            let selectors: Vec<&str> = query.split('{').skip(1).collect();
            assert!(!selectors.is_empty(), "{query}");
            for selector in selectors {
                assert!(selector.starts_with(r#"job=~"$job""#), "{title}: {query}");
            }
            assert!(!query.contains("tidings-system"), "{title}");
        }
    }
}

fn data(prometheus: &Prometheus, expression: &str) -> Vec<Value> {
    Dashboard::series(prometheus, expression).unwrap_or_else(|error| panic!("{error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_has_data_and_the_first_says_which_endpoint_fails_and_why() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "observed");
    let alerts = fs::read_to_string(path("charts/tidings/files/alerts.yaml")).unwrap();
    let [controller, dispatcher] = [shared.controller.metrics_port, shared.dispatcher.metrics_port];
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [{"job_name": "tidings-metrics", "static_configs": [{"targets":
            [format!("127.0.0.1:{controller}"), format!("127.0.0.1:{dispatcher}")]}]}],
    });
    let prometheus = Prometheus::start(&config.to_string(), &[("alerts.yaml", &alerts)]).unwrap();

    let deadline = Instant::now() + PATIENCE;
    while prometheus.query(r#"up{job="tidings-metrics"} == 1"#).unwrap().len() < 2 {
        assert!(Instant::now() < deadline, "both are scraped, as OpenMetrics");
        tokio::time::sleep(POLL).await;
    }
    let (well, ill) = (Webhooks::start().await, Webhooks::answering(|_, _| 500).await);
    team.deliver_to("well", &well.url(), json!({}));
    team.deliver_to("ill", &ill.url(), json!({}));
    team.deliver_to("asleep", &well.url(), json!({"suspend": true}));

    // Until every panel has data: rates need events between two scrapes.
    let dashboard = dashboard();
    let mut waiting: Vec<(&str, &str)> = dashboard
        .panels()
        .into_iter()
        .flat_map(|(panel, queries)| queries.into_iter().map(|query| (text(panel, "title"), query)))
        .collect();
    assert!(waiting.len() > 40, "the dashboard is read whole");
    let (begun, mut sent) = (Instant::now(), 0);
    while !waiting.is_empty() {
        assert!(begun.elapsed() < PATIENCE * 2, "no data for {waiting:#?}");
        let answer = team
            .post(&shared.dispatcher, &format!("seen-{sent}"), "lead.lost")
            .await;
        assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(3)), "{answer:?}");
        sent += 1;
        waiting.retain(|(_, query)| data(&prometheus, query).is_empty());
        tokio::time::sleep(POLL).await;
    }

    // Which, why, whose: of this namespace the two that do not deliver.
    let table = dashboard
        .panels()
        .into_iter()
        .find(|(panel, _)| panel["type"] == "table")
        .unwrap();
    let row = |query: &str, name: &str| {
        let mut rows = data(&prometheus, query);
        rows.retain(|row| row["metric"]["endpoint_namespace"] == "observed" && row["metric"]["endpoint_name"] == name);
        assert!(rows.len() <= 1, "{query}: one row for an endpoint, not {rows:?}");
        rows.pop()
    };
    let number_of = |row: &Value| row["value"][1].as_str().unwrap().parse::<f64>().unwrap();
    let number = |query: &str, name: &str| row(query, name).map(|row| number_of(&row));
    let [trouble, since, waits, oldest, next, code, ..] = table.1[..] else {
        panic!("columns are missing")
    };
    // The panels may have had data of others: each value of ours is waited for.
    let shown = |query: &str, name: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(row) = row(query, name) {
                return row;
            }
            assert!(Instant::now() < deadline, "{query} says nothing of {name}");
            std::thread::sleep(POLL);
        }
    };
    let value = |query: &str, name: &str| number_of(&shown(query, name));
    let ill = shown(trouble, "ill")["metric"].clone();
    assert_eq!(row(trouble, "well"), None);
    assert!(["Backoff", "CircuitOpen"].contains(&text(&ill, "reason")), "{ill}");
    assert_eq!(
        (&ill["last_failure"], &ill["whose"]),
        (&json!("ServerError"), &json!("receiver"))
    );
    let asleep = shown(trouble, "asleep")["metric"].clone();
    assert_eq!(
        (&asleep["reason"], &asleep["whose"]),
        (&json!("Suspended"), &json!("owner"))
    );
    // How much, since when, when next.
    let deadline = Instant::now() + PATIENCE;
    while number(waits, "asleep") != Some(f64::from(sent)) {
        assert!(
            Instant::now() < deadline,
            "{sent} wait, {:?} are shown",
            number(waits, "asleep")
        );
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(value(code, "ill"), 500.0);
    let ago = |query: &str, name: &str| {
        let at = value(query, name);
        SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as f64 - at
    };
    let whole = begun.elapsed().as_millis() as f64 + 120_000.0;
    for (query, name) in [(since, "ill"), (oldest, "ill"), (oldest, "asleep")] {
        assert!(
            (0.0..whole).contains(&ago(query, name)),
            "{query} of {name}: {} ms ago",
            ago(query, name)
        );
    }
    assert!(
        (-600_000.0..60_000.0).contains(&ago(next, "ill")),
        "{} ms ago",
        ago(next, "ill")
    );
    assert_eq!(number(next, "asleep"), None, "nothing is sent next");

    // The variables have values to choose.
    for variable in list(&dashboard.0["templating"], "list")
        .iter()
        .filter(|v| v["type"] == "query")
    {
        let query = Dashboard::asked(text(variable, "definition"));
        let (series, label) = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap();
        let label = label.strip_suffix(')').unwrap();
        let values = prometheus
            .ask(&format!("label/{label}/values"), &[("match[]", series)])
            .unwrap();
        assert!(!values.as_array().unwrap().is_empty(), "{query}");
    }
    // So has what is drawn over the graphs, and every alert is evaluated.
    for drawn in list(&dashboard.0["annotations"], "list") {
        prometheus.query(&Dashboard::asked(text(drawn, "expr"))).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let groups = prometheus.ask("rules", &[]).unwrap()["groups"]
            .as_array()
            .unwrap()
            .clone();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| list(group, "rules")).collect();
        assert!(
            rules.len() > 15 && !rules.iter().any(|rule| rule["health"] == "err"),
            "{rules:#?}"
        );
        if rules.iter().all(|rule| rule["health"] == "ok") {
            break;
        }
        assert!(Instant::now() < deadline, "{rules:#?}");
        tokio::time::sleep(POLL).await;
    }
}
