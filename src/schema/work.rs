//! How much work, and memory, a schema can make an event. Pure.
//!
//! A schema of a few hundred bytes can ask for 2^100 evaluations: subschemas that refer twice to the next one, or a
//! recursion that evaluates each child twice. So the schema is walked as a validator would: from each subschema to those it
//! applies, `$ref` followed. Refused: more than [`MAX_EVALUATIONS`] paths without recursion, and a recursion that can
//! return to a subschema for the same place in the data, or more than once for the same child.

use std::collections::{HashMap, HashSet};

use regex_automata::nfa::thompson::NFA;
use serde_json::Value;

/// Subschemas evaluated for one place in the data, at the most.
const MAX_EVALUATIONS: u64 = 10_000;
/// Patterns of a schema: each has, besides its automaton, caches for as many threads as use it.
const MAX_PATTERNS: usize = 256;
/// Memory of all of them, compiled.
const MAX_COMPILED: usize = 4 * 1024 * 1024;

/// Keywords whose value is one subschema for the same place.
const SAME_ONE: &[&str] = &["not", "if", "then", "else"];
/// Keywords whose value is a list of subschemas for the same place.
const SAME_LIST: &[&str] = &["allOf", "anyOf", "oneOf"];
/// Keywords whose value maps names to subschemas for the same place.
const SAME_MAP: &[&str] = &["dependentSchemas", "dependencies"];
/// Keywords whose value is one subschema for children.
const CHILD_ONE: &[&str] = &[
    "items",
    "contains",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
/// Keywords whose value is a list of subschemas for children.
const CHILD_LIST: &[&str] = &["prefixItems"];
/// Keywords whose value maps names or patterns to subschemas for children.
const CHILD_MAP: &[&str] = &["properties", "patternProperties"];
/// Keywords that make references mean something else than a pointer does; no declared type needs them.
const REFUSED: &[&str] = &["$dynamicRef", "$recursiveRef", "$dynamicAnchor", "$recursiveAnchor"];

/// Where a subschema applies, relative to the one that names it.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    Same,
    /// Children under this keyword (and name): two edges with different names reach different children.
    Child(String),
}

struct Node {
    edges: Vec<(Place, usize)>,
    /// Itself, and what it lists to compare with.
    compares: u64,
}

struct Graph<'a> {
    root: &'a Value,
    nodes: Vec<Node>,
    by_address: HashMap<*const Value, usize>,
    patterns: Patterns,
}

/// What a check costs at the most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    /// What is compared for one place in the data: subschemas, and the values and names they list.
    pub(super) compares: u64,
    /// Bytes of the longest part of the schema that a violation repeats.
    pub(super) repeats: u64,
}

/// Refuses a schema whose evaluation is not bounded, with a sentence.
pub(super) fn bounded(root: &Value) -> Result<Bound, String> {
    if embedded_id(root, true) {
        return Err("$id is taken at the root only: use $ref with a pointer into the schema".to_owned());
    }
    let mut graph = Graph {
        root,
        nodes: Vec::new(),
        by_address: HashMap::new(),
        patterns: Patterns::default(),
    };
    graph.add(root)?;
    let order = components(&graph);
    // Components come with every component they lead to before them.
    let mut cost = vec![0_u64; graph.nodes.len()];
    let mut compared = vec![0_u64; graph.nodes.len()];
    for component in &order.list {
        let inside = |to: usize| order.of[to] == order.of[component[0]];
        let recursive = component.len() > 1 || graph.nodes[component[0]].edges.iter().any(|(_, to)| inside(*to));
        if recursive {
            recursion(&graph, component, &inside)?;
        }
        let outside: u64 = component
            .iter()
            .flat_map(|node| &graph.nodes[*node].edges)
            .filter(|(_, to)| !inside(*to))
            .fold(component.len() as u64, |sum, (_, to)| sum.saturating_add(cost[*to]));
        if outside > MAX_EVALUATIONS {
            return Err(format!(
                "the schema's references multiply: more than {MAX_EVALUATIONS} subschemas apply at once"
            ));
        }
        let own: u64 = component.iter().map(|node| graph.nodes[*node].compares).sum();
        let all = component
            .iter()
            .flat_map(|node| &graph.nodes[*node].edges)
            .filter(|(_, to)| !inside(*to))
            .fold(own, |sum, (_, to)| sum.saturating_add(compared[*to]));
        for node in component {
            (cost[*node], compared[*node]) = (outside, all);
        }
    }
    // The root is added first.
    Ok(Bound {
        compares: compared.first().copied().unwrap_or(1),
        repeats: longest(root) as u64,
    })
}

/// Of what a violation says was wanted: a name, a pattern, a constant, a list of values.
fn longest(schema: &Value) -> usize {
    match schema {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(longest).max().unwrap_or(0),
        Value::Object(members) => {
            let of_member = |(keyword, value): (&String, &Value)| match keyword.as_str() {
                "enum" | "const" => value.to_string().len(),
                _ => keyword.len().max(longest(value)),
            };
            members.iter().map(of_member).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// In a recursion every subschema may go on, for one place, in one way only.
fn recursion(graph: &Graph<'_>, component: &[usize], inside: &dyn Fn(usize) -> bool) -> Result<(), String> {
    let same: HashMap<usize, Vec<usize>> = component
        .iter()
        .map(|node| {
            let targets = graph.nodes[*node]
                .edges
                .iter()
                .filter(|(place, to)| *place == Place::Same && inside(*to))
                .map(|(_, to)| *to)
                .collect();
            (*node, targets)
        })
        .collect();
    for start in component {
        // What is evaluated for the place at which `start` is, `start` included; a node met twice is evaluated twice.
        let mut met = vec![*start];
        let mut next = 0;
        while next < met.len() {
            for to in &same[&met[next]] {
                if met.contains(to) {
                    return Err(
                        "a $ref leads back to its own subschema, or to one twice, for the same value".to_owned(),
                    );
                }
                met.push(*to);
            }
            next += 1;
        }
        let ways = met
            .iter()
            .flat_map(|node| &graph.nodes[*node].edges)
            .filter(|(_, to)| inside(*to))
            .fold(Ways::default(), |ways, (place, _)| ways.with(place));
        if ways.most() > 1 {
            return Err(
                "a recursive $ref evaluates the same child more than once, which doubles at every level".to_owned(),
            );
        }
    }
    Ok(())
}

/// In how many ways a recursion goes on for one child. Different names are different children, and so are positions;
/// objects and arrays exclude each other.
#[derive(Default)]
struct Ways<'a> {
    named: HashMap<&'a str, usize>,
    any_member: usize,
    positions: HashMap<&'a str, usize>,
    any_element: usize,
}

impl<'a> Ways<'a> {
    fn with(mut self, place: &'a Place) -> Ways<'a> {
        if let Place::Child(name) = place {
            match name.split_once('/') {
                Some(("properties", member)) => *self.named.entry(member).or_default() += 1,
                Some(("prefixItems", position)) => *self.positions.entry(position).or_default() += 1,
                None if matches!(
                    name.as_str(),
                    "items" | "contains" | "unevaluatedItems" | "additionalItems"
                ) =>
                {
                    self.any_element += 1;
                }
                _ => self.any_member += 1,
            }
        }
        self
    }

    fn most(&self) -> usize {
        let most = |counts: &HashMap<&str, usize>| counts.values().copied().max().unwrap_or(0);
        (most(&self.named) + self.any_member).max(most(&self.positions) + self.any_element)
    }
}

/// What a subschema itself compares a place with.
fn compares(schema: &Value, known: &mut Patterns) -> Result<u64, String> {
    let list = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
    let listed = |keyword: &str| schema.get(keyword).map_or(0, list);
    let map = |keyword: &str| schema.get(keyword).and_then(Value::as_object).into_iter().flatten();
    let dependent = |keyword: &str| map(keyword).map(|(_, names)| 1 + list(names)).sum::<u64>();
    let patterns = schema.get("pattern").and_then(Value::as_str).into_iter();
    let mut patterns = patterns.chain(map("patternProperties").map(|(name, _)| name.as_str()));
    let steps = patterns.try_fold(0, |sum, pattern| Ok::<_, String>(sum + known.steps(pattern)?))?;
    let listed = listed("enum") + listed("required");
    Ok(listed + dependent("dependentRequired") + dependent("dependencies") + steps)
}

/// The patterns met so far.
#[derive(Default)]
struct Patterns {
    known: HashSet<String>,
    compiled: usize,
}

impl Patterns {
    /// What a pattern does with a byte at the worst, when its automaton does not fit the memory it has: each of its states is
    /// looked at then.
    fn steps(&mut self, pattern: &str) -> Result<u64, String> {
        /// States looked at in the time of one comparison.
        const STATES: u64 = 4;
        let config = NFA::config().nfa_size_limit(Some(super::MAX_PATTERN));
        // What is run is not what is written: ECMA-262 has other escapes and classes.
        let nfa = jsonschema_regex::to_rust_regex(pattern)
            .ok()
            .and_then(|translated| NFA::compiler().configure(config).build(&translated).ok());
        let Some(nfa) = nfa else {
            let shown: String = pattern.chars().take(64).collect();
            return Err(format!(
                "a pattern is none of ECMA-262, has look-around or a back-reference, or takes more than {} KiB: {shown}",
                super::MAX_PATTERN / 1024
            ));
        };
        if self.known.insert(pattern.to_owned()) {
            self.compiled += nfa.memory_usage();
        }
        if self.known.len() > MAX_PATTERNS || self.compiled > MAX_COMPILED {
            return Err(format!(
                "the schema's patterns are more than {MAX_PATTERNS}, or take more than {} MiB",
                MAX_COMPILED / 1024 / 1024
            ));
        }
        Ok(nfa.states().len() as u64 / STATES)
    }
}

/// An embedded `$id` would make the pointers below it relative to another root than the one walked here.
fn embedded_id(value: &Value, root: bool) -> bool {
    match value {
        Value::Object(members) => {
            (!root && members.get("$id").is_some_and(Value::is_string))
                || members.values().any(|member| embedded_id(member, false))
        }
        Value::Array(items) => items.iter().any(|item| embedded_id(item, false)),
        _ => false,
    }
}

impl<'a> Graph<'a> {
    /// Adds a subschema and all it leads to; its number. Bounded by the schema's size, and not recursive: `$ref` chains
    /// may be as long as the schema.
    fn add(&mut self, root: &'a Value) -> Result<(), String> {
        let mut open = vec![root];
        self.number(root)?;
        while let Some(schema) = open.pop() {
            let mut edges = Vec::new();
            for (place, target) in self.targets(schema)? {
                let known = self.by_address.contains_key(&std::ptr::from_ref(target));
                let number = self.number(target)?;
                if !known {
                    open.push(target);
                }
                edges.push((place, number));
            }
            let number = self.number(schema)?;
            self.nodes[number].edges = edges;
        }
        Ok(())
    }

    fn number(&mut self, schema: &'a Value) -> Result<usize, String> {
        let next = self.nodes.len();
        let number = *self.by_address.entry(std::ptr::from_ref(schema)).or_insert(next);
        if number == next {
            self.nodes.push(Node {
                edges: Vec::new(),
                compares: 1 + compares(schema, &mut self.patterns)?,
            });
        }
        Ok(number)
    }

    fn targets(&self, schema: &'a Value) -> Result<Vec<(Place, &'a Value)>, String> {
        let mut targets = Vec::new();
        let Some(members) = schema.as_object() else {
            return Ok(targets);
        };
        for (keyword, value) in members {
            let keyword = keyword.as_str();
            let child = |name: &str| Place::Child(format!("{keyword}/{name}"));
            if keyword == "$ref" {
                targets.push((Place::Same, self.referred(value)?));
            } else if REFUSED.contains(&keyword) {
                return Err(format!(
                    "{keyword} is not taken: use $ref with a pointer into the schema"
                ));
            } else if SAME_ONE.contains(&keyword) {
                targets.push((Place::Same, value));
            } else if SAME_LIST.contains(&keyword) {
                targets.extend(
                    value
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(|schema| (Place::Same, schema)),
                );
            } else if SAME_MAP.contains(&keyword) {
                targets.extend(
                    value
                        .as_object()
                        .into_iter()
                        .flat_map(|map| map.values())
                        .map(|schema| (Place::Same, schema)),
                );
            } else if CHILD_ONE.contains(&keyword) {
                targets.push((Place::Child(keyword.to_owned()), value));
            } else if CHILD_LIST.contains(&keyword) {
                let list = value.as_array().into_iter().flatten().enumerate();
                targets.extend(list.map(|(i, schema)| (child(&i.to_string()), schema)));
            } else if CHILD_MAP.contains(&keyword) {
                let map = value.as_object().into_iter().flatten();
                targets.extend(map.map(|(name, schema)| (child(name), schema)));
            }
        }
        Ok(targets)
    }

    /// The subschema a `$ref` points to: a JSON Pointer into this schema. Anchors would need a second index; pointers do.
    fn referred(&self, reference: &'a Value) -> Result<&'a Value, String> {
        let text = reference.as_str().unwrap_or_default();
        let pointer = text
            .strip_prefix('#')
            .ok_or("a $ref must point into the schema itself, like #/$defs/name")?;
        let pointer = percent_decoded(pointer).ok_or("a $ref has a broken percent-encoding")?;
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err("a $ref must be a pointer like #/$defs/name: anchors are not taken".to_owned());
        }
        self.root
            .pointer(&pointer)
            .ok_or_else(|| "a $ref points to nothing in the schema".to_owned())
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

struct Components {
    /// The component of each node.
    of: Vec<usize>,
    /// Components, each after all it leads to.
    list: Vec<Vec<usize>>,
}

/// Strongly connected components (Tarjan), iterative.
fn components(graph: &Graph<'_>) -> Components {
    let count = graph.nodes.len();
    let mut of = vec![usize::MAX; count];
    let mut list: Vec<Vec<usize>> = Vec::new();
    let mut index = vec![usize::MAX; count];
    let mut low = vec![0; count];
    let mut stack = Vec::new();
    let mut next = 0;
    for root in 0..count {
        if index[root] != usize::MAX {
            continue;
        }
        let mut calls = vec![(root, 0)];
        while let Some((node, edge)) = calls.pop() {
            if edge == 0 {
                index[node] = next;
                low[node] = next;
                next += 1;
                stack.push(node);
            }
            if let Some((_, to)) = graph.nodes[node].edges.get(edge) {
                calls.push((node, edge + 1));
                if index[*to] == usize::MAX {
                    calls.push((*to, 0));
                } else if of[*to] == usize::MAX {
                    low[node] = low[node].min(index[*to]);
                }
                continue;
            }
            if low[node] == index[node] {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    of[member] = list.len();
                    component.push(member);
                    if member == node {
                        break;
                    }
                }
                list.push(component);
            }
            if let Some((parent, _)) = calls.last() {
                low[*parent] = low[*parent].min(low[node]);
            }
        }
    }
    Components { of, list }
}
