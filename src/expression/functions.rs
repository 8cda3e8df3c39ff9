//! What an expression can call: CEL's standard library, its strings extension (without `format`, whose width is without
//! bound), optional values, and ours.
//!
//! Owns the list that errors print. Invariant: a function's cost is linear in what was charged for its arguments; what makes
//! more of them charges for that first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error as _;

use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, LIST_TYPE, STRING_TYPE, Type};
use cel::common::value::CowVal;
use cel::{Env, ExecutionError, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use regex_automata::Input;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;

use super::meter::{CHARGE, JOIN, REPLACE, charged, spend};
use super::scope;

/// Every function's name.
pub(super) const FUNCTIONS: &[&str] = &[
    "all",
    "bool",
    "bytes",
    "charAt",
    "contains",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "exists",
    "exists_one",
    "filter",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "has",
    "hasValue",
    "indexOf",
    "int",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "map",
    "matches",
    "none",
    "of",
    "ofNonZeroValue",
    "optFlatMap",
    "optMap",
    "or",
    "orValue",
    "quote",
    "replace",
    "reverse",
    "size",
    "slackEscape",
    "split",
    "startsWith",
    "string",
    "substring",
    "timestamp",
    "toJson",
    "trim",
    "truncate",
    "type",
    "uint",
    "upperAscii",
    "urlEncode",
    "value",
];
/// First names of functions: `optional.of`, `strings.quote`.
pub(super) const NAMESPACES: &[&str] = &["optional", "strings"];
/// Names of types, which are values: `type(x) == string`.
pub(super) const TYPES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "optional_type",
    "string",
    "type",
    "uint",
];

/// The longest pattern of `matches`, and what it may take compiled.
const PATTERN: usize = 256;
const PATTERN_COMPILED: usize = 96 << 10;
/// Memory for its states.
const PATTERN_STATES: usize = 128 << 10;
/// What compiling one costs, in units of the budget: about half a millisecond.
const PATTERN_COST: u64 = 16 << 10;
/// Patterns kept compiled on each thread.
const PATTERNS: usize = 64;

/// All of it.
pub(super) fn environment() -> Env {
    let mut env = Env::stdlib();
    let added = env
        .add_extension(cel::extensions::strings)
        .and_then(|()| env.add_overload(CHARGE, CHARGE, vec![DYN_TYPE], charged))
        .and_then(|()| env.add_overload("matches", "matches", vec![STRING_TYPE, STRING_TYPE], matches));
    added.expect("names that are not taken");
    let members: [(&str, Type, Vec<Type>, cel::common::functions::Function); 9] = [
        ("matches", STRING_TYPE, vec![STRING_TYPE], matches),
        ("truncate", STRING_TYPE, vec![INT_TYPE], truncate),
        ("urlEncode", STRING_TYPE, vec![], url_encode),
        ("slackEscape", STRING_TYPE, vec![], slack_escape),
        ("toJson", DYN_TYPE, vec![], to_json),
        (REPLACE, STRING_TYPE, vec![STRING_TYPE, STRING_TYPE], replace),
        (REPLACE, STRING_TYPE, vec![STRING_TYPE, STRING_TYPE, INT_TYPE], replace),
        (JOIN, LIST_TYPE, vec![], join),
        (JOIN, LIST_TYPE, vec![STRING_TYPE], join),
    ];
    for (name, target, args, function) in members {
        let id = format!("{name}_of_{}", args.len());
        env.add_member_overload(name, &id, target, args, function)
            .expect("names that are not taken");
    }
    env
}

type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;
type Returned<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn string<'a>(args: &'a Args<'_, '_>, n: usize) -> Result<&'a str, ExecutionError> {
    let text = args.get(n).and_then(|arg| arg.downcast_ref::<CelString>());
    text.map(CelString::inner)
        .ok_or(ExecutionError::MissingArgumentOrTarget)
}

fn whole(args: &Args<'_, '_>, n: usize) -> Option<i64> {
    args.get(n)
        .and_then(|arg| arg.downcast_ref::<CelInt>())
        .map(|n| *n.inner())
}

fn text<'b, 'v>(text: String) -> Returned<'b, 'v> {
    Ok(CowVal::owned(CelString::from(text)))
}

/// At most `n` characters; a longer text ends in `…`, which is one of them.
fn truncate<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    let most = usize::try_from(whole(&args, 1).unwrap_or(0))
        .map_err(|_| ExecutionError::function_error("truncate", "a negative length"))?;
    let whole = string(&args, 0)?;
    if whole.chars().nth(most).is_none() {
        return text(whole.to_owned());
    }
    let Some(kept) = most.checked_sub(1) else {
        return text(String::new());
    };
    text(whole.chars().take(kept).chain(['…']).collect())
}

/// What RFC 3986 (2.3) leaves unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What `urlEncode()` makes of a text.
pub fn url_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

fn url_encode<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    text(url_encoded(string(&args, 0)?))
}

/// Slack reads `<!channel>` in a text as a call to everybody; these three are all that it wants escaped
/// (<https://docs.slack.dev/messaging/formatting-message-text#escaping>).
fn slack_escape<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    let whole = string(&args, 0)?;
    let mut escaped = String::with_capacity(whole.len());
    for c in whole.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            other => escaped.push(other),
        }
    }
    text(escaped)
}

fn to_json<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    let value = args.first().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let json = scope::json(&Value::try_from(value.as_ref())?)
        .map_err(|_| ExecutionError::function_error("toJson", "not JSON"))?;
    text(json.to_string())
}

fn replace<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    let (whole_text, from, to) = (string(&args, 0)?, string(&args, 1)?, string(&args, 2)?);
    let most = match whole(&args, 3) {
        Some(n) if n >= 0 => usize::try_from(n).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let times = whole_text.matches(from).take(most).count();
    spend((times as u64).saturating_mul(to.len() as u64))?;
    text(whole_text.replacen(from, to, most))
}

fn join<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    let between = if args.len() > 1 { string(&args, 1)? } else { "" };
    let list = args.first().and_then(|list| list.as_iterable());
    let mut items = list.ok_or(ExecutionError::MissingArgumentOrTarget)?.iter();
    let mut joined = String::new();
    let mut is_first = true;
    while let Some(item) = items.next() {
        let part = item
            .downcast_ref::<CelString>()
            .ok_or_else(|| ExecutionError::no_such_member_overload("join", vec![item.get_type().name().to_owned()]))?;
        if !std::mem::take(&mut is_first) {
            spend(between.len() as u64)?;
            joined.push_str(between);
        }
        joined.push_str(part.inner());
    }
    text(joined)
}

/// A pattern, compiled as it is used. Its states are made while it looks at a text, in bounded memory; where hardly any is
/// used again it gives up, so that its time is linear in the text whatever the pattern.
pub(super) struct Pattern {
    dfa: DFA,
    cache: Cache,
}

impl Pattern {
    /// Why a text is no pattern, in a sentence.
    pub(super) fn compile(pattern: &str) -> Result<Pattern, String> {
        if pattern.len() > PATTERN {
            return Err(format!("a pattern of matches() must have at most {PATTERN} bytes"));
        }
        let config = DFA::config()
            .cache_capacity(PATTERN_STATES)
            .skip_cache_capacity_check(true)
            .minimum_cache_clear_count(Some(2))
            .minimum_bytes_per_state(Some(64))
            .unicode_word_boundary(true);
        let nfa = thompson::Config::new()
            .nfa_size_limit(Some(PATTERN_COMPILED))
            .which_captures(thompson::WhichCaptures::None);
        let dfa = DFA::builder().configure(config).thompson(nfa).build(pattern);
        let dfa = dfa.map_err(|error| {
            let built = error
                .source()
                .and_then(|source| source.downcast_ref::<thompson::BuildError>());
            match built.and_then(thompson::BuildError::size_limit) {
                Some(_) => "a pattern of matches() is too large: repeat less in it".to_owned(),
                None => format!("{pattern:?} is no regular expression in the syntax of RE2"),
            }
        })?;
        Ok(Pattern {
            cache: dfa.create_cache(),
            dfa,
        })
    }

    fn is_match(&mut self, text: &str) -> Result<bool, ExecutionError> {
        let found = self
            .dfa
            .try_search_fwd(&mut self.cache, &Input::new(text).earliest(true));
        found
            .map(|found| found.is_some())
            .map_err(|_| ExecutionError::function_error("matches", "given up"))
    }
}

fn matches<'b, 'v>(args: Args<'b, 'v>) -> Returned<'b, 'v> {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Pattern>> = RefCell::default();
    }
    let (text, wanted) = (string(&args, 0)?, string(&args, 1)?);
    let found = COMPILED.with_borrow_mut(|compiled| {
        if let Some(known) = compiled.get_mut(wanted) {
            return known.is_match(text);
        }
        spend(PATTERN_COST)?;
        if compiled.len() == PATTERNS {
            compiled.clear();
        }
        let mut new = Pattern::compile(wanted).map_err(|error| ExecutionError::function_error("matches", error))?;
        let found = new.is_match(text);
        compiled.insert(wanted.to_owned(), new);
        found
    });
    found.map(|found| CowVal::owned(CelBool::from(found)))
}
