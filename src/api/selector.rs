//! Kubernetes label selectors, as files say them. Pure.
//!
//! Invariant: a selector that was checked means what the API server would take it for.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A label selector; the empty one matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Whether labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let same = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(same) && self.match_expressions.iter().all(|e| e.matches(labels))
    }

    /// The key of an expression with values where it takes none, or without where it needs some.
    pub fn malformed(&self) -> Option<&str> {
        let wrong = |e: &&Expression| matches!(e.operator, Operator::In | Operator::NotIn) == e.values.is_empty();
        self.match_expressions.iter().find(wrong).map(|e| e.key.as_str())
    }
}

impl Expression {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
