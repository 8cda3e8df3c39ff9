//! The administrator's policy file, read by controller and dispatcher: what is open to whom. Pure.
//!
//! Owns parsing and the choice of the rule; knows nothing of files. Invariant: what is not understood is an error, never
//! a wider permission; without a rule that matches nothing is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::resolve::{Cidr, EgressRules};

/// The most rules: each is looked at for each namespace.
pub const MAX_RULES: usize = 256;
/// The most ranges of one rule: each is looked at for each connection.
pub const MAX_RANGES: usize = 64;

/// A valid policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    closed: Arc<EgressRules>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    namespaces: Selector,
    egress: Arc<EgressRules>,
}

impl Policy {
    /// Reads the file's text, YAML or JSON. An empty file is a policy that opens nothing.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let file: Option<PolicyFile> = serde_yaml::from_str(text).map_err(|e| PolicyError::Format(e.to_string()))?;
        let rules = file.unwrap_or_default().rules;
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules { rules: rules.len() });
        }
        let rules = (1..).zip(rules).map(|(number, rule)| Rule::new(number, rule));
        Ok(Policy {
            rules: rules.collect::<Result<_, _>>()?,
            closed: Arc::default(),
        })
    }

    /// What is open for a namespace with these labels: the first rule that matches counts.
    pub fn egress_for(&self, namespace_labels: &BTreeMap<String, String>) -> Arc<EgressRules> {
        let rule = self.rules.iter().find(|rule| rule.namespaces.matches(namespace_labels));
        Arc::clone(rule.map_or(&self.closed, |rule| &rule.egress))
    }
}

impl Rule {
    fn new(number: usize, file: RuleFile) -> Result<Rule, PolicyError> {
        let ranges = file.egress.open_cidrs;
        if ranges.len() > MAX_RANGES {
            let ranges = ranges.len();
            return Err(PolicyError::TooManyRanges { rule: number, ranges });
        }
        let open_cidrs = ranges.iter().map(|text| text.parse::<Cidr>()).collect::<Result<_, _>>();
        for expression in &file.namespace_selector.match_expressions {
            let wants_values = matches!(expression.operator, Operator::In | Operator::NotIn);
            if wants_values == expression.values.is_empty() {
                let key = expression.key.clone();
                return Err(PolicyError::Values { rule: number, key });
            }
        }
        Ok(Rule {
            namespaces: file.namespace_selector,
            egress: Arc::new(EgressRules {
                open_cidrs: open_cidrs.map_err(|source| PolicyError::Range { rule: number, source })?,
            }),
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    rules: Vec<RuleFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RuleFile {
    namespace_selector: Selector,
    #[serde(default)]
    egress: EgressFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressFile {
    #[serde(default, rename = "openCIDRs")]
    open_cidrs: Vec<String>,
}

/// A Kubernetes label selector; the empty one matches every namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
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
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let same = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.match_labels.iter().all(same)
            && self
                .match_expressions
                .iter()
                .all(|expression| expression.matches(labels))
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

/// Why a policy file is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("failed to read the policy: {0}")]
    Format(String),
    #[error("the policy has {rules} rules: write at most {MAX_RULES}")]
    TooManyRules { rules: usize },
    #[error("rule {rule} opens {ranges} ranges: write at most {MAX_RANGES}")]
    TooManyRanges { rule: usize, ranges: usize },
    #[error("rule {rule}, egress.openCIDRs: {source}")]
    Range {
        rule: usize,
        source: super::cidr::CidrError,
    },
    #[error("rule {rule}, namespaceSelector, {key}: In and NotIn need values, Exists and DoesNotExist have none")]
    Values { rule: usize, key: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(
            "rules:
             - namespaceSelector: {matchLabels: {tidings.dev/loopback: open}}
               egress: {openCIDRs: [127.0.0.0/8, '::1/128']}
             - namespaceSelector:
                 matchExpressions:
                 - {key: team, operator: In, values: [crm, chat]}
                 - {key: locked, operator: DoesNotExist}
               egress: {openCIDRs: [10.0.0.0/8]}",
        )
        .unwrap();
        let open = |pairs: &[(&str, &str)]| -> Vec<String> {
            let egress = policy.egress_for(&labels(pairs));
            egress.open_cidrs.iter().map(ToString::to_string).collect()
        };
        assert_eq!(open(&[]), [""; 0]);
        assert_eq!(open(&[("tidings.dev/loopback", "open")]), ["127.0.0.0/8", "::1/128"]);
        assert_eq!(
            open(&[("tidings.dev/loopback", "open"), ("team", "crm")]),
            ["127.0.0.0/8", "::1/128"]
        );
        assert_eq!(open(&[("team", "chat")]), ["10.0.0.0/8"]);
        assert_eq!(open(&[("team", "chat"), ("locked", "")]), [""; 0]);
    }

    #[test]
    fn an_empty_file_opens_nothing_and_an_empty_selector_matches_every_namespace() {
        for text in ["", "rules: []", "{}", "# nothing yet\n"] {
            assert_eq!(Policy::parse(text), Ok(Policy::default()), "{text:?}");
        }
        let all = Policy::parse("rules: [{namespaceSelector: {}, egress: {openCIDRs: [10.0.0.0/8]}}]").unwrap();
        assert_eq!(all.egress_for(&labels(&[])).open_cidrs.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (text, part) in [
            ("rule: []", "unknown field `rule`"),
            ("rules: [{egress: {}}]", "namespaceSelector"),
            ("rules: [{namespaceSelector: {}, egress: {openCidrs: []}}]", "openCidrs"),
            ("rules: [{namespaceSelector: {}, egress: {hosts: []}}]", "hosts"),
            ("rules: [{namespaceSelector: {labels: {}}}]", "labels"),
            (
                "rules: [{namespaceSelector: {}, egress: {openCIDRs: [10.0.0.1/8]}}]",
                "write 10.0.0.0/8",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {openCIDRs: [all]}}]",
                "10.0.0.0/8 or fd00::/8",
            ),
            (
                "rules: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]",
                "rule 1, namespaceSelector, a",
            ),
            (
                "rules: [{namespaceSelector: {matchExpressions: [{key: a, operator: Is}]}}]",
                "Is",
            ),
            ("rules", "invalid type"),
        ] {
            let error = Policy::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
