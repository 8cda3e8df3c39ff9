//! The administrator's policy file, read by controller and dispatcher: what is open to whom. Pure.
//!
//! Owns parsing and the choice of the rule; knows nothing of files. Invariant: what is not understood is an error, never
//! a wider permission; without a rule that matches nothing is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::cidr::CidrError;
use super::egress::{HostError, HostPattern, Services};
use super::resolve::{Cidr, EgressRules};
use super::selector::Selector;

/// The most rules: each is looked at for each namespace.
pub const MAX_RULES: usize = 256;
/// The most entries of a list in one rule: each is looked at for each connection or each endpoint.
pub const MAX_ENTRIES: usize = 64;

/// Of a digest: two policies that follow each other have different ones, and nobody gains by making them the same.
const DIGEST_BYTES: usize = 8;

/// The largest `eventsPerSecond`: several times what one dispatcher takes in.
pub const MAX_EVENTS_PER_SECOND: u32 = 100_000;

/// A valid policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Of the rules as they are understood, not of the file's text.
    digest: Arc<str>,
    /// For namespaces that no rule matches.
    closed: Arc<NamespaceRules>,
}

/// What the policy says of one namespace; by default it opens nothing and asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceRules {
    pub egress: Arc<EgressRules>,
    pub secret_label: SecretLabel,
    pub undeclared_types: UndeclaredTypes,
    pub quotas: Quotas,
}

/// The most a namespace may have; none: no bound but Tidings' own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quotas {
    /// Endpoints: the oldest count.
    pub endpoints: Option<u32>,
    /// Messages that are not settled.
    pub pending_messages: Option<u64>,
    /// Bytes of the events that pending messages carry, once for each message.
    pub pending_bytes: Option<u64>,
    /// Events that producers may post in each second.
    pub events_per_second: Option<u32>,
}

/// Whether a Secret must carry the label that opens it before an endpoint may send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SecretLabel {
    #[default]
    Required,
    NotRequired,
}

/// What becomes of an event whose type no EventType declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum UndeclaredTypes {
    #[default]
    Accept,
    Reject,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    namespaces: Selector,
    rules: Arc<NamespaceRules>,
}

impl Default for Policy {
    /// One that opens nothing and asks for nothing.
    fn default() -> Policy {
        Policy::of(Vec::new())
    }
}

impl Policy {
    fn of(rules: Vec<Rule>) -> Policy {
        let hash = Sha256::digest(format!("{rules:?}"));
        let short = hash.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}"));
        Policy {
            rules,
            digest: short.collect::<String>().into(),
            closed: Arc::default(),
        }
    }

    /// A short text that is the same in every process of one version that goes by this policy.
    pub fn digest(&self) -> &Arc<str> {
        &self.digest
    }

    /// Reads the file's text, YAML or JSON. An empty file is a policy that opens nothing.
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let file: Option<PolicyFile> = serde_yaml::from_str(text).map_err(|e| PolicyError::Format(e.to_string()))?;
        let rules = file.unwrap_or_default().rules;
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules { rules: rules.len() });
        }
        let rules = (1..)
            .zip(rules)
            .map(|(number, rule)| Rule::new(rule).map_err(|source| PolicyError::Rule { rule: number, source }));
        Ok(Policy::of(rules.collect::<Result<_, _>>()?))
    }

    /// What holds for a namespace with these labels: the first rule that matches counts.
    pub fn rules_for(&self, namespace_labels: &BTreeMap<String, String>) -> Arc<NamespaceRules> {
        let rule = self.rules.iter().find(|rule| rule.namespaces.matches(namespace_labels));
        Arc::clone(rule.map_or(&self.closed, |rule| &rule.rules))
    }
}

impl Rule {
    fn new(file: RuleFile) -> Result<Rule, RuleError> {
        if let Some(key) = file.namespace_selector.malformed() {
            return Err(RuleError::Values(key.to_owned()));
        }
        let EgressFile {
            open_cidrs,
            closed_cidrs,
            hosts,
            ports,
            services,
        } = file.egress;
        let egress = EgressRules {
            open_cidrs: ranges("egress.openCIDRs", &open_cidrs)?,
            closed_cidrs: ranges("egress.closedCIDRs", &closed_cidrs)?,
            hosts: narrowing("egress.hosts", hosts)?
                .map(|hosts| hosts.iter().map(|text| text.parse::<HostPattern>()).collect())
                .transpose()?,
            ports: narrowing("egress.ports", ports)?,
            services,
        };
        if egress.ports.iter().flatten().any(|port| *port == 0) {
            return Err(RuleError::Port);
        }
        if let Some(rate) = file.quotas.and_then(|quotas| quotas.events_per_second)
            && !(1..=MAX_EVENTS_PER_SECOND).contains(&rate)
        {
            return Err(RuleError::EventsPerSecond(rate));
        }
        Ok(Rule {
            namespaces: file.namespace_selector,
            rules: Arc::new(NamespaceRules {
                egress: Arc::new(egress),
                secret_label: file.secret_label,
                undeclared_types: file.undeclared_types,
                quotas: file.quotas.unwrap_or_default(),
            }),
        })
    }
}

fn ranges(field: &'static str, entries: &[String]) -> Result<Vec<Cidr>, RuleError> {
    bounded(field, entries)?;
    let read = |text: &String| text.parse().map_err(|source| RuleError::Range { field, source });
    entries.iter().map(read).collect()
}

fn bounded<T>(field: &'static str, entries: &[T]) -> Result<(), RuleError> {
    match entries.len() {
        ..=MAX_ENTRIES => Ok(()),
        entries => Err(RuleError::TooMany { field, entries }),
    }
}

/// A list that narrows when it is there: an empty one could be meant either way.
fn narrowing<T>(field: &'static str, list: Option<Vec<T>>) -> Result<Option<Vec<T>>, RuleError> {
    match list {
        Some(entries) if entries.is_empty() => Err(RuleError::Empty(field)),
        Some(entries) => bounded(field, &entries).map(|()| Some(entries)),
        None => Ok(None),
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
    #[serde(default)]
    secret_label: SecretLabel,
    #[serde(default)]
    undeclared_types: UndeclaredTypes,
    quotas: Option<Quotas>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EgressFile {
    #[serde(default, rename = "openCIDRs")]
    open_cidrs: Vec<String>,
    #[serde(default, rename = "closedCIDRs")]
    closed_cidrs: Vec<String>,
    hosts: Option<Vec<String>>,
    ports: Option<Vec<u16>>,
    #[serde(default)]
    services: Services,
}

/// Why a policy file is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("failed to read the policy: {0}")]
    Format(String),
    #[error("the policy has {rules} rules: write at most {MAX_RULES}")]
    TooManyRules { rules: usize },
    #[error("rule {rule}, {source}")]
    Rule { rule: usize, source: RuleError },
}

/// What is wrong with a rule; begins with the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("{field}: it has {entries} entries: write at most {MAX_ENTRIES}")]
    TooMany { field: &'static str, entries: usize },
    #[error("{0}: an empty list would allow nothing: leave it out to allow everything, or name at least one")]
    Empty(&'static str),
    #[error("{field}: {source}")]
    Range { field: &'static str, source: CidrError },
    #[error("egress.hosts: {0}")]
    Host(#[from] HostError),
    #[error("egress.ports: write ports from 1 to 65535")]
    Port,
    #[error(
        "quotas.eventsPerSecond: {0} is not between 1 and {MAX_EVENTS_PER_SECOND}: leave it out for no bound; with \
         pendingMessages 0 nothing that makes a message is accepted"
    )]
    EventsPerSecond(u32),
    #[error("namespaceSelector, {0}: In and NotIn need values, Exists and DoesNotExist have none")]
    Values(String),
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
            let rules = policy.rules_for(&labels(pairs));
            rules.egress.open_cidrs.iter().map(ToString::to_string).collect()
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
        assert_eq!(all.rules_for(&labels(&[])).egress.open_cidrs.len(), 1);
    }

    #[test]
    fn a_digest_is_of_what_is_said_and_not_of_how() {
        let digest = |text: &str| Policy::parse(text).unwrap().digest().to_string();
        let one = digest("rules: [{namespaceSelector: {}, egress: {ports: [443]}}]");
        let said_otherwise =
            "# Only HTTPS.\nrules:\n- egress: {ports: [443], services: Allow}\n  namespaceSelector: {}\n";
        assert_eq!(digest(said_otherwise), one);
        assert_eq!(one.len(), 2 * DIGEST_BYTES);
        assert_ne!(digest("rules: [{namespaceSelector: {}, egress: {ports: [444]}}]"), one);
        assert_ne!(digest("rules: [{namespaceSelector: {}}]"), digest(""));
        assert_eq!(digest(""), **Policy::default().digest(), "no file and an empty one");
    }

    #[test]
    fn what_a_rule_leaves_out_is_as_without_a_rule() {
        let text =
            "rules: [{namespaceSelector: {matchLabels: {a: b}}, egress: {hosts: ['*.example.com'], ports: [443]},
                     secretLabel: NotRequired, undeclaredTypes: Reject}, {namespaceSelector: {}}]";
        let policy = Policy::parse(text).unwrap();
        assert_eq!(*policy.rules_for(&labels(&[])), NamespaceRules::default());
        let said = policy.rules_for(&labels(&[("a", "b")]));
        assert_eq!(said.secret_label, SecretLabel::NotRequired);
        assert_eq!(said.undeclared_types, UndeclaredTypes::Reject);
        assert_eq!(said.egress.hosts.as_ref().map(Vec::len), Some(1));
        assert_eq!(said.egress.ports, Some(vec![443]));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (text, part) in [
            ("rule: []", "unknown field `rule`"),
            ("rules: [{egress: {}}]", "namespaceSelector"),
            ("rules: [{namespaceSelector: {}, egress: {openCidrs: []}}]", "openCidrs"),
            (
                "rules: [{namespaceSelector: {}, egress: {host: []}}]",
                "unknown field `host`",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {hosts: []}}]",
                "rule 1, egress.hosts: an empty list",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {hosts: ['*']}}]",
                "*.example.com",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {ports: []}}]",
                "rule 1, egress.ports: an empty list",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {ports: [0]}}]",
                "from 1 to 65535",
            ),
            (
                "rules: [{namespaceSelector: {}, egress: {ports: [65536]}}]",
                "egress.ports",
            ),
            (
                "rules: [{namespaceSelector: {}, secretLabel: Optional}]",
                "`NotRequired`",
            ),
            (
                "rules: [{namespaceSelector: {}, quotas: {pendingMessage: 1}}]",
                "unknown field `pendingMessage`",
            ),
            (
                "rules: [{namespaceSelector: {}, quotas: {eventsPerSecond: 0}}]",
                "between 1 and 100000",
            ),
            (
                "rules: [{namespaceSelector: {}, quotas: {pendingBytes: -1}}]",
                "pendingBytes",
            ),
            ("rules: [{namespaceSelector: {}, undeclaredTypes: Refuse}]", "`Reject`"),
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
