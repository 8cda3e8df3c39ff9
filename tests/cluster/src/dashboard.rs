//! The dashboard of the chart, read and asked as Grafana does it.
//!
//! Invariant: a query is asked as it stands, with the variables that Grafana fills in and nothing else changed.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Prometheus;

/// What Grafana fills in where everything is chosen.
const VARIABLES: [(&str, &str); 3] = [("$job", ".+"), ("$namespace", ".*"), ("$__rate_interval", "10m")];

/// A dashboard of Grafana.
#[derive(Debug)]
pub struct Dashboard(pub Value);

impl Dashboard {
    /// From its JSON.
    pub fn parse(text: &str) -> Result<Dashboard> {
        Ok(Dashboard(
            serde_json::from_str(text).context("the dashboard is no JSON")?,
        ))
    }

    /// The panels that show something, each with its queries.
    pub fn panels(&self) -> Vec<(&Value, Vec<&str>)> {
        let shown = list(&self.0["panels"]).filter(|panel| panel["type"] != "row");
        shown.map(|panel| (panel, expressions(panel))).collect()
    }

    /// The queries of the panel of this title.
    pub fn queries(&self, title: &str) -> Result<Vec<&str>> {
        let found = self.panels().into_iter().find(|(panel, _)| panel["title"] == title);
        Ok(found.with_context(|| format!("the dashboard has no panel {title}"))?.1)
    }

    /// An expression as Grafana asks it, with everything chosen.
    pub fn asked(expression: &str) -> String {
        VARIABLES.iter().fold(expression.to_owned(), |text, (variable, value)| {
            text.replace(variable, value)
        })
    }

    /// The series that a query draws; those without a number are none.
    pub fn series(prometheus: &Prometheus, expression: &str) -> Result<Vec<Value>> {
        let mut series = prometheus
            .query(&Dashboard::asked(expression))
            .with_context(|| expression.to_owned())?;
        series.retain(|one| number(one).is_some_and(f64::is_finite));
        Ok(series)
    }
}

fn expressions(panel: &Value) -> Vec<&str> {
    list(&panel["targets"])
        .filter_map(|target| target["expr"].as_str())
        .collect()
}

/// The value of a series.
fn number(series: &Value) -> Option<f64> {
    series["value"][1].as_str()?.parse().ok()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
