//! What was written to the API server, by its own count.

use std::collections::BTreeMap;

use tidings_cluster::Cluster;

/// What the API server was asked to change since it started: by verb and resource, refusals included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writes {
    counts: BTreeMap<(String, String), u64>,
}

impl Writes {
    /// From the API server's own `apiserver_request_total`.
    pub fn so_far(cluster: &Cluster) -> Writes {
        let metrics = cluster.kubectl_ok(&["get", "--raw", "/metrics"]).unwrap();
        let mut counts = BTreeMap::new();
        for line in metrics
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{"))
        {
            let label = |name: &str| {
                let from = line.find(&format!("{name}=\"")).unwrap() + name.len() + 2;
                line[from..].split('"').next().unwrap().to_owned()
            };
            let verb = label("verb");
            if ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&verb.as_str()) {
                let count: f64 = line.rsplit(' ').next().unwrap().parse().unwrap();
                let subresource = match label("subresource") {
                    none if none.is_empty() => none,
                    some => format!("/{some}"),
                };
                *counts.entry((verb, label("resource") + &subresource)).or_default() += count as u64;
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
