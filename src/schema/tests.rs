use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::allocated::most_held;
use crate::ingest::parse::DEFAULT_MAX_EVENT;

/// What is refused or linear takes milliseconds; the rest is for a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(30);
/// The most memory that a schema or an event takes while it is looked at: what violations may take (`MAX_FOUND`), and as
/// much again for the data as values and for all else.
const HOLDS_AT_MOST: usize = 128 << 20;

/// Looks at what is hostile: that ends soon, and holds no more memory than may be.
fn bounded<T>(name: &str, look: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let (result, held) = most_held(look);
    assert!(start.elapsed() < ENDS_WITHIN, "{name} took {:?}", start.elapsed());
    assert!(held <= HOLDS_AT_MOST, "{name} held {held} bytes");
    result
}

fn spec(schema: Value) -> EventTypeSpec {
    EventTypeSpec {
        r#type: "lead.qualified".into(),
        schema,
        validation: Validation::Reject,
        description: None,
        examples: vec![],
    }
}

fn event(data: Data) -> Event {
    Event {
        id: "1".into(),
        source: "/crm".into(),
        r#type: "lead.qualified".into(),
        subject: None,
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: vec![],
        data,
    }
}

fn json_event(value: Value) -> Event {
    event(Data::Json(Bytes::from(value.to_string())))
}

fn lead() -> Value {
    json!({
        "type": "object",
        "required": ["email"],
        "properties": {"email": {"type": "string", "pattern": "@"}, "score": {"type": "integer"}},
    })
}

#[test]
fn a_violation_has_a_pointer_and_shows_no_value() {
    let rule = TypeRule::compile(&spec(lead())).unwrap();
    assert_eq!(rule.check(&json_event(json!({"email": "a@b"}))), Fit::Fits);
    let Fit::Rejected(violations) = rule.check(&json_event(json!({"email": "hunter2", "score": "hunter2"}))) else {
        panic!("must be rejected");
    };
    let pointers: Vec<_> = violations.iter().map(|v| v.pointer.as_str()).collect();
    assert_eq!(pointers, ["/email", "/score"]);
    assert!(
        violations.iter().all(|v| !v.detail.contains("hunter2")),
        "{violations:?}"
    );
    let Fit::Rejected(violations) = rule.check(&json_event(json!({}))) else {
        panic!("must be rejected");
    };
    assert_eq!(violations[0].pointer, "");
    assert!(violations[0].detail.contains("email"), "{violations:?}");
}

#[test]
fn warn_accepts_and_off_does_not_look() {
    let mut declared = spec(lead());
    declared.validation = Validation::Warn;
    let warned = TypeRule::compile(&declared).unwrap().check(&json_event(json!(1)));
    assert!(matches!(warned, Fit::Warned(violations) if violations.len() == 1));
    declared.validation = Validation::Off;
    assert_eq!(
        TypeRule::compile(&declared).unwrap().check(&json_event(json!(1))),
        Fit::Fits
    );
}

#[test]
fn data_that_is_no_json_does_not_fit_unless_it_is_text() {
    let rule = TypeRule::compile(&spec(json!({"type": "string"}))).unwrap();
    assert_eq!(rule.check(&event(Data::Text(Bytes::from("x")))), Fit::Fits);
    for data in [
        Data::None,
        Data::Binary(Bytes::from_static(&[255])),
        Data::Json(Bytes::from("[".repeat(500) + &"]".repeat(500))),
    ] {
        assert!(matches!(rule.check(&event(data)), Fit::Rejected(_)));
    }
}

#[test]
fn examples_are_checked_against_the_schema() {
    let mut declared = spec(lead());
    declared.examples = vec![json!({"email": "a@b"}), json!({"email": 7})];
    let message = TypeRule::compile(&declared).unwrap_err().message;
    assert!(
        message.starts_with("example 1 does not fit the schema: at /email"),
        "{message}"
    );
}

#[test]
fn a_schema_that_is_not_one_is_refused_with_its_place() {
    let message = TypeRule::compile(&spec(json!({"properties": {"a": {"type": "objekt"}}})))
        .unwrap_err()
        .message;
    assert!(message.starts_with("at /properties/a/type"), "{message}");
}

#[test]
fn hostile_schemas_are_refused_quickly() {
    let doubling: serde_json::Map<String, Value> = (0..60)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"allOf": [next, next]}))
        })
        .chain([("d60".to_owned(), json!({"type": "integer"}))])
        .collect();
    let doubling_children: serde_json::Map<String, Value> = (0..60)
        .map(|i| {
            let next = json!({"properties": {"x": {"$ref": format!("#/$defs/d{}", i + 1)}}});
            (format!("d{i}"), json!({"allOf": [next, next]}))
        })
        .chain([("d60".to_owned(), json!({"type": "integer"}))])
        .collect();
    let again = json!({"properties": {"x": {"$ref": "#"}}});
    let deep = (0..200).fold(json!({}), |inner, _| json!({"not": inner}));
    for (name, schema) in [
        ("remote", json!({"$ref": "https://example.com/schema.json"})),
        ("metadata", json!({"$ref": "http://169.254.169.254/latest"})),
        ("file", json!({"$ref": "file:///etc/passwd"})),
        (
            "the meta schema",
            json!({"$ref": "https://json-schema.org/draft/2020-12/schema"}),
        ),
        ("itself", json!({"$ref": "#"})),
        ("itself by allOf", json!({"allOf": [{"$ref": "#"}]})),
        (
            "a circle",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        ("doubling", json!({"$ref": "#/$defs/d0", "$defs": doubling})),
        (
            "doubling children",
            json!({"$ref": "#/$defs/d0", "$defs": doubling_children}),
        ),
        ("doubling recursion", json!({"allOf": [again, again]})),
        (
            "items and contains",
            json!({"items": {"$ref": "#"}, "contains": {"$ref": "#"}}),
        ),
        ("dynamic", json!({"$dynamicRef": "#x"})),
        (
            "another root",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$id": "urn:x", "$ref": "#"}}}),
        ),
        ("deep", deep),
        ("large", json!({"description": "x".repeat(MAX_SCHEMA)})),
        ("a huge pattern", json!({"pattern": "((a{1,1000}){1,1000}){1,1000}"})),
        ("look-around", json!({"pattern": "(?=a)(a+)+$"})),
        (
            "another draft",
            json!({"$schema": "http://json-schema.org/draft-04/schema#"}),
        ),
        ("dangling", json!({"$ref": "#/$defs/nothing"})),
        ("no schema", json!([])),
    ] {
        let spec = spec(schema);
        assert!(bounded(name, || TypeRule::compile(&spec)).is_err(), "{name}");
    }
}

#[test]
fn recursion_that_goes_down_in_one_way_is_fine() {
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "type": "object",
            "properties": {
                "left": {"$ref": "#/$defs/node"},
                "right": {"$ref": "#/$defs/node"},
                "others": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "additionalProperties": false,
        }},
    });
    let rule = TypeRule::compile(&spec(tree)).unwrap();
    assert_eq!(
        rule.check(&json_event(json!({"left": {"others": [{}, {"right": {}}]}}))),
        Fit::Fits
    );
    let deep = (0..100).fold(json!({}), |inner, _| json!({"left": inner}));
    assert_eq!(rule.check(&json_event(deep)), Fit::Fits);
    assert!(matches!(
        rule.check(&json_event(json!({"left": {"middle": {}}}))),
        Fit::Rejected(_)
    ));
}

#[test]
fn a_pattern_that_would_backtrack_is_linear() {
    let rule = TypeRule::compile(&spec(json!({"pattern": "^(a+)+$"}))).unwrap();
    let hostile = json_event(json!("a".repeat(50_000) + "!"));
    assert!(matches!(
        bounded("backtracking", || rule.check(&hostile)),
        Fit::Rejected(_)
    ));
}

#[test]
fn a_schema_and_a_document_that_multiply_are_refused_before_they_cost_anything() {
    let many = |schema: Value| json!({"items": {"allOf": vec![schema; 1_000]}});
    let listed: Vec<Value> = (0..8_000).map(|n| json!(n)).collect();
    let items = json_event(json!(vec![9_000; 50_000]));
    for (name, schema) in [
        ("subschemas", many(json!({"minimum": 1}))),
        ("values", json!({"items": {"enum": listed}})),
        (
            "patterns",
            json!({"allOf": vec![json!({"pattern": "^[a-z]+$"}); 1_000]}),
        ),
    ] {
        let rule = TypeRule::compile(&spec(schema)).unwrap();
        let hostile = if name == "patterns" {
            json_event(json!("a".repeat(250_000)))
        } else {
            items.clone()
        };
        let Fit::Rejected(violations) = bounded(name, || rule.check(&hostile)) else {
            panic!("{name}: it was checked");
        };
        assert!(
            violations[0].detail.contains("too large for its schema"),
            "{violations:?}"
        );
        assert_eq!(rule.work(&hostile), 0, "it is refused unseen");
        assert!((1..HEAVY).contains(&rule.work(&json_event(json!([1])))));
    }
    let ordinary = TypeRule::compile(&spec(json!({"items": {"minimum": 1, "enum": [9_000]}}))).unwrap();
    assert_eq!(ordinary.check(&items), Fit::Fits, "a large document alone is fine");
}

#[test]
fn data_that_does_not_fit_in_ever_so_many_places_costs_no_memory_for_each() {
    let required: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    let schema = json!({"items": {"required": required}});
    let rule = TypeRule::compile(&spec(schema.clone())).unwrap();
    let everywhere = json_event(json!(vec![json!({}); 80_000]));
    let Fit::Rejected(violations) = bounded("many places", || rule.check(&everywhere)) else {
        panic!("it fits");
    };
    assert_eq!(violations.len(), 1);
    assert!(violations[0].detail.contains("too many parts"), "{violations:?}");
    let Fit::Rejected(violations) = rule.check(&json_event(json!(vec![json!({}); 80]))) else {
        panic!("it fits");
    };
    assert_eq!(violations.len(), 8, "where there are few, some are told");

    let mut declared = spec(schema);
    declared.examples = vec![json!(vec![json!({}); 2_000_000])];
    let refused = bounded("a large example", || TypeRule::compile(&declared)).unwrap_err();
    assert!(refused.message.contains("example 0 is too large"), "{refused}");
}

#[test]
fn what_a_pattern_or_a_name_that_depends_on_others_costs_is_counted() {
    let text = json_event(json!("a".repeat(250_000)));
    let dependent: serde_json::Map<String, Value> = (0..2_000).map(|n| (format!("k{n}"), json!(["x"]))).collect();
    for (name, schema, hostile) in [
        ("pattern", json!({"pattern": "a[ab]{10000}[c-z]"}), text.clone()),
        (
            "names",
            json!({"items": {"dependentRequired": dependent}}),
            json_event(json!(vec![json!({}); 80_000])),
        ),
    ] {
        let rule = TypeRule::compile(&spec(schema)).unwrap();
        let Fit::Rejected(violations) = bounded(name, || rule.check(&hostile)) else {
            panic!("{name}: it was checked");
        };
        assert!(
            violations[0].detail.contains("too large for its schema"),
            "{name}: {violations:?}"
        );
    }
    for usual in [
        "^[A-Z]{2}[0-9]{2}$",
        r"^\p{L}+$",
        "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        r"^\S+@\S+$",
    ] {
        let rule = TypeRule::compile(&spec(json!({"anyOf": [{"type": "number"}, {"pattern": usual}, {}]}))).unwrap();
        assert_eq!(rule.check(&text), Fit::Fits, "{usual}");
    }
}

#[test]
fn violations_that_repeat_much_are_not_built() {
    let long = "n".repeat(100_000);
    let wanted = "w".repeat(50_000);
    for (name, schema, data) in [
        (
            "a name of the data's",
            json!({"additionalProperties": {"items": {"type": "string"}}}),
            json!({&long: vec![0; 16_000]}),
        ),
        (
            "a value of the schema's",
            json!({"items": {"enum": [wanted]}}),
            json!(vec![0; 20_000]),
        ),
        (
            "a constant",
            json!({"items": {"const": wanted}}),
            json!(vec![0; 20_000]),
        ),
    ] {
        let rule = TypeRule::compile(&spec(schema)).unwrap();
        let hostile = json_event(data);
        let Fit::Rejected(violations) = bounded(name, || rule.check(&hostile)) else {
            panic!("{name}: it fits");
        };
        assert_eq!(violations.len(), 1, "{name}");
        assert!(
            violations[0].detail.contains("too many parts"),
            "{name}: {violations:?}"
        );
    }
}

#[test]
fn all_patterns_together_are_bounded_and_so_is_one_as_it_is_run() {
    let one_of = |patterns: Vec<String>| {
        let each: Vec<Value> = patterns
            .into_iter()
            .map(|pattern| json!({"pattern": pattern}))
            .collect();
        let spec = spec(json!({"anyOf": each}));
        bounded("patterns", || TypeRule::compile(&spec))
    };
    let usual = |n: usize| format!("^[a-z]{{2}}-{n}$");
    one_of((0..256).map(usual).collect()).unwrap();
    one_of(vec![usual(0); 1_000]).unwrap();
    for (name, patterns) in [
        ("many", (0..257).map(usual).collect::<Vec<_>>()),
        ("large", (0..60).map(|n| format!("^[ab]{{5000}}{n}$")).collect()),
    ] {
        let refused = one_of(patterns).unwrap_err();
        assert!(refused.message.contains("the schema's patterns"), "{name}: {refused}");
    }
    // ECMA-262's own escape: the pattern that is run has as many states as the one without it.
    let rule = TypeRule::compile(&spec(json!({"pattern": r"a[ab]{10000}[c-z]|\cA"}))).unwrap();
    let text = json_event(json!("a".repeat(250_000)));
    let Fit::Rejected(violations) = bounded("an escape", || rule.check(&text)) else {
        panic!("it was checked");
    };
    assert!(violations[0].detail.contains("too large"), "{violations:?}");
}

#[test]
fn whatever_a_document_is_made_of_it_takes_no_more_memory_than_may_be_however_often_it_is_checked() {
    // As large as events may be by default.
    let repeated = |part: &str| {
        let count = DEFAULT_MAX_EVENT / (part.len() + 1) - 2;
        format!("[{}]", vec![part; count].join(","))
    };
    let all = json!({"items": {"type": ["integer", "array", "object", "string"]}});
    let none = json!({"items": {"type": "boolean"}});
    let inner = json!({"items": {"additionalProperties": {"type": "boolean"}}});
    for (name, text) in [
        ("numbers", repeated("0")),
        ("lists", repeated("[]")),
        ("objects", repeated("{}")),
        ("names", repeated(r#"{"":0}"#)),
        ("texts", repeated(r#""""#)),
        (
            "escapes",
            format!("[\"{}\"]", r"\u0001".repeat(DEFAULT_MAX_EVENT / 6 - 2)),
        ),
        (
            "nesting",
            "[".repeat(DEFAULT_MAX_EVENT / 2) + &"]".repeat(DEFAULT_MAX_EVENT / 2),
        ),
        ("open", "[".repeat(DEFAULT_MAX_EVENT)),
    ] {
        let hostile = event(Data::Json(Bytes::from(text)));
        for schema in [&all, &none, &inner] {
            let rule = TypeRule::compile(&spec(schema.clone())).unwrap();
            bounded(name, || {
                for _ in 0..3 {
                    rule.check(&hostile);
                }
            });
        }
    }
    // Up to where violations are built, and beyond.
    let rule = TypeRule::compile(&spec(none)).unwrap();
    for count in [10, 1_000, 10_000, 20_000, 30_000, 60_000, 120_000] {
        let hostile = json_event(json!(vec![0; count]));
        let fit = bounded("violations", || rule.check(&hostile));
        assert!(matches!(fit, Fit::Rejected(_)), "{count}: {fit:?}");
    }
}
