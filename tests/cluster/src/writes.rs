//! What was written to the API server, by its own count.

use std::collections::BTreeMap;

use crate::Cluster;

/// What the API server was asked to change since it started: by verb and resource, refusals included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writes {
    counts: BTreeMap<(String, String), u64>,
}

impl Writes {
    /// From the API server's own `apiserver_request_total`.
    pub fn so_far(cluster: &Cluster) -> Writes {
        let mut counts = BTreeMap::new();
        for (labels, count) in samples(cluster, "apiserver_request_total") {
            let verb = label(&labels, "verb");
            if ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&verb.as_str()) {
                let subresource = match label(&labels, "subresource") {
                    none if none.is_empty() => none,
                    some => format!("/{some}"),
                };
                *counts
                    .entry((verb, label(&labels, "resource") + &subresource))
                    .or_default() += count;
            }
        }
        assert!(!counts.is_empty(), "the API server counts its requests");
        Writes { counts }
    }

    /// How many of these verbs on a resource (`secrets`, `webhookendpoints/status`).
    pub fn of(&self, resource: &str) -> u64 {
        self.counts
            .iter()
            .filter(|((_, r), _)| r == resource)
            .map(|(_, count)| count)
            .sum()
    }

    /// How many with this verb.
    pub fn with_verb(&self, verb: &str, resource: &str) -> u64 {
        self.counts
            .get(&(verb.to_owned(), resource.to_owned()))
            .copied()
            .unwrap_or(0)
    }

    /// What was written after `before`.
    pub fn since(&self, before: &Writes) -> Writes {
        let new = self.counts.iter().map(|(what, count)| {
            let earlier = before.counts.get(what).copied().unwrap_or(0);
            (what.clone(), count - earlier)
        });
        Writes {
            counts: new.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Everything that was written, by resource; reviews and tokens are asked, not written.
    pub fn stored(&self) -> BTreeMap<String, u64> {
        let mut stored = BTreeMap::new();
        for ((_, resource), count) in &self.counts {
            if !resource.ends_with("reviews") && resource != "serviceaccounts/token" {
                *stored.entry(resource.clone()).or_default() += count;
            }
        }
        stored
    }
}

/// What the API server wrote to etcd since it started, by resource: its own keys included.
pub fn etcd_writes(cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut writes = BTreeMap::new();
    for (labels, count) in samples(cluster, "etcd_requests_total") {
        if ["create", "update", "delete"].contains(&label(&labels, "operation").as_str()) {
            *writes.entry(label(&labels, "resource")).or_default() += count;
        }
    }
    assert!(!writes.is_empty(), "the API server counts what it asks of etcd");
    writes
}

/// Labels and values of one metric of the API server.
fn samples(cluster: &Cluster, metric: &str) -> Vec<(String, u64)> {
    let (status, metrics) = cluster.ask("/metrics").unwrap();
    assert_eq!(status, 200, "{metrics}");
    let lines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    lines
        .map(|line| {
            let (labels, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            (labels.to_owned(), value as u64)
        })
        .collect()
}

fn label(labels: &str, name: &str) -> String {
    let from = labels.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
    labels[from..].split('"').next().unwrap().to_owned()
}
