//! What expressions can say, and what hostile ones cannot do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::functions::FUNCTIONS;
use super::*;
use crate::event::{Data, Event};

fn event(data: Data) -> Event {
    Event {
        id: "1".into(),
        source: "/chat".into(),
        r#type: "lead.qualified".into(),
        subject: Some("lead-7".into()),
        time: None,
        datacontenttype: None,
        dataschema: None,
        extensions: vec![("region".into(), "eu".into())],
        data,
    }
}

fn lead() -> Event {
    event(Data::Json(Bytes::from(
        json!({
            "score": 87, "ratio": 0.5, "big": u64::MAX, "name": "Ada \"Countess\" Löwe", "tags": ["vip", "new"],
            "none": null, "text": "a <b> & c",
            "transcript": [{"role": "user", "text": "Hi"}, {"role": "bot", "text": "Hello"}],
        })
        .to_string(),
    )))
}

fn compiled(role: Role, source: &str) -> Expression {
    Expression::compile(role, source).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn test(source: &str) -> Result<bool, EvaluationError> {
    compiled(Role::Filter, source).test(&Scope::event(&lead()))
}

fn body(source: &str) -> Result<Json, EvaluationError> {
    let event = lead();
    compiled(Role::Body, source).json(&Scope::event(&event).with_secrets([("key", "s3cret-value")]))
}

#[test]
fn a_filter_sees_attributes_extensions_and_data() {
    for (source, expected) in [
        (
            "event.type == 'lead.qualified' && event.source.startsWith('/chat')",
            true,
        ),
        (
            "event.subject == 'lead-7' && event.region == 'eu' && event.specversion == '1.0'",
            true,
        ),
        ("has(event.time)", false),
        (
            "event.data.score > 80 && event.data.score > 86.5 && event.data.ratio < 1",
            true,
        ),
        ("event.data.big > 9223372036854775807u", true),
        ("'vip' in event.data.tags", true),
        ("event.data.tags.exists(t, t.matches('^v.p$'))", true),
        ("event.data.?company.name.orValue('') == 'Acme'", false),
        ("has(event.data.none) && event.data.none == null", true),
        (
            "event.data.transcript.all(m, size(m.text) > 1) && size(event.data.transcript) == 2",
            true,
        ),
        ("type(event.data.score) == int && type(event.data) == map", true),
        ("event.data.?name.optMap(n, n.startsWith('Ada')).orValue(false)", true),
        ("event.data.name.contains('\"Countess\" Löwe')", true),
    ] {
        assert_eq!(test(source), Ok(expected), "{source}");
    }
    for (data, source) in [
        (Data::None, "!has(event.data)"),
        (Data::Text("hello".into()), "event.data == 'hello'"),
        (Data::Binary(Bytes::from_static(&[0xff])), "event.data == b'\\xff'"),
        (Data::Json("7".into()), "event.data == 7"),
    ] {
        let event = event(data);
        assert_eq!(
            compiled(Role::Filter, source).test(&Scope::event(&event)),
            Ok(true),
            "{source}"
        );
    }
}

#[test]
fn an_answer_is_judged_by_its_status_and_body() {
    let ok = compiled(
        Role::Success,
        "response.status == 200 && response.body.?ok.orValue(false)",
    );
    for (status, body, expected) in [
        (200, r#"{"ok": true}"#, true),
        (200, r#"{"ok": false, "error": "channel_not_found"}"#, false),
        (500, r#"{"ok": true}"#, false),
        (200, "[]", false),
    ] {
        assert_eq!(
            ok.test(&Scope::response(status, body.as_bytes())).unwrap_or(false),
            expected,
            "{body}"
        );
    }
    let plain = compiled(Role::Success, "response.body == '1' || response.body == 'ok'");
    assert_eq!(plain.test(&Scope::response(200, b"ok")), Ok(true));
    assert_eq!(
        plain.test(&Scope::response(200, b"1")),
        Ok(false),
        "the number 1 is no string"
    );
}

#[test]
fn a_body_is_json_with_names_in_order_and_secrets_where_it_says_so() {
    let source = "{'text': event.data.name + ': ' + event.data.text.slackEscape(), 'key': secrets.key, 'score': \
                  event.data.score, 'lines': event.data.transcript.map(m, m.role + '> ' + m.text).join('\\n'), \
                  'vip': event.data.transcript.filter(m, m.role == 'user').map(m, m.text), 'a': [1, 2.5, true, null]}";
    let expected = json!({"text": "Ada \"Countess\" Löwe: a &lt;b&gt; &amp; c", "key": "s3cret-value", "score": 87,
        "lines": "user> Hi\nbot> Hello", "vip": ["Hi"], "a": [1, 2.5, true, null]});
    assert_eq!(body(source).unwrap().to_string(), expected.to_string());
    for (source, expected) in [
        ("event.data.name.truncate(5)", json!("Ada …")),
        ("event.data.name.truncate(500) == event.data.name", json!(true)),
        ("'äö'.truncate(0) + 'äö'.truncate(1) + 'äö'.truncate(2)", json!("…äö")),
        ("'a b/ü?&~'.urlEncode()", json!("a%20b%2F%C3%BC%3F%26~")),
        (
            "{'b': 1, 'a': [event.data.none]}.toJson()",
            json!(r#"{"a":[null],"b":1}"#),
        ),
        (
            "'banana'.replace('a', 'oo') + 'banana'.replace('a', 'o', 1) + 'ab'.replace('', '-')",
            json!("boonoonoobonana-a-b-"),
        ),
        (
            "['a'].join('-') + ['b', 'c'].join('-') + ['d', 'e'].join()",
            json!("ab-cde"),
        ),
        (
            "timestamp('2026-01-01T00:00:00Z') + duration('1h')",
            json!("2026-01-01T01:00:00+00:00"),
        ),
        ("{?'a': event.data.?missing, ?'b': event.data.?score}", json!({"b": 87})),
        (
            "event",
            json!({"data": serde_json::from_slice::<Json>(lead().data.bytes()).unwrap(), "id": "1", "region": "eu",
            "source": "/chat", "specversion": "1.0", "subject": "lead-7", "type": "lead.qualified"}),
        ),
    ] {
        assert_eq!(body(source).unwrap(), expected, "{source}");
    }
    let event = lead();
    let path = compiled(Role::Text, "'/leads/' + event.subject.urlEncode()");
    assert_eq!(path.text(&Scope::event(&event)).unwrap(), "/leads/lead-7");
    assert_eq!(
        compiled(Role::Key, "event.data.score")
            .text(&Scope::event(&event))
            .unwrap(),
        "87"
    );
}

#[test]
fn what_cannot_be_an_expression_is_refused_with_what_to_write_instead() {
    let nested = format!("{}1{} == 1", "(".repeat(200), ")".repeat(200));
    let chain = format!("size('a'{}) == 1", "+'a'".repeat(100));
    for (source, says) in [
        ("", "must not be empty"),
        ("event.type ==", "line 1, column 14"),
        ("event.type = 'a'", "line 1"),
        ("evnt.type == 'a'", "there is no evnt: this expression sees event"),
        ("response.status == 200", "this expression sees event"),
        ("secrets.key == 'a'", "this expression sees event"),
        (
            "event.type.startWith('a')",
            "there is no function startWith: there are all, bool",
        ),
        ("'%1000000000d'.format([1]) == ''", "there is no function format"),
        ("event.type.matches(event.subject)", "must be written out"),
        ("event.type.matches('(')", "no regular expression"),
        ("event.type.matches('((((a{100}){100}){100}){100})')", "too large"),
        ("Lead{a: 1} == 1", "write a map"),
        (
            "[1].map(a, [1].map(b, [1].map(c, [1].map(d, d)))) == 1",
            "at most 3 loops",
        ),
        (&nested, "nested too deep"),
        (&chain, "nested too deep"),
        (&"x".repeat(1025), "at most 1024 bytes"),
    ] {
        let error = Expression::compile(Role::Filter, source).expect_err(source).to_string();
        assert!(error.contains(says), "{source:.60}: {error}");
        assert!(error.len() < 900 && !error.contains('\n'), "{error}");
    }
}

#[test]
fn an_error_says_what_is_wrong_and_nothing_of_what_was_read() {
    for (source, says) in [
        (
            "event.data.company == 'Acme'",
            "there is no company: ask has() first, or read it with .?company",
        ),
        (
            "event.data[event.data.name] == 1",
            "a field or key that it reads is not there",
        ),
        ("event.data.score > 'a'", "> is not defined for int and string"),
        ("event.data.score + 'a' == 'a'", "+ is not defined for int and string"),
        ("event.data.score", "must be a boolean, and is int"),
        ("event.data.tags[9] == 'a'", "an index is out of range"),
        ("event.data.score / 0 == 1", "a division by zero"),
        ("int(event.data.name) == 1", "int() does not take what it was given"),
        ("event.data.big + event.data.big > 1u", "a number is out of range"),
        (
            "event.data.name.size() > 1 && event.data.none",
            "&& is not defined for bool and null_type",
        ),
    ] {
        let error = test(source).expect_err(source).to_string();
        assert!(error.contains(says), "{source}: {error}");
        assert!(!error.contains("Ada") && !error.contains("87"), "{source}: {error}");
    }
    let deep = event(Data::Json(format!("{}{}", "[".repeat(500), "]".repeat(500)).into()));
    let unreadable = compiled(Role::Filter, "event.type == 'a'").test(&Scope::event(&deep));
    assert_eq!(unreadable, Err(EvaluationError::Unreadable));
}

/// As large as ingest takes it.
fn large() -> Event {
    let words: Vec<String> = (0..20_000).map(|n| format!("word-{n}")).collect();
    event(Data::Json(
        json!({"words": words, "text": "x".repeat(40_000)}).to_string().into(),
    ))
}

#[test]
fn what_would_take_long_or_grow_without_bound_ends_at_its_budget() {
    let doubling = (0..14).fold("['x']".to_owned(), |so_far, _| {
        format!("{so_far}.map(a, a + a + a + a + a + a + a + a)")
    });
    let listing = (0..12).fold("['x']".to_owned(), |so_far, _| {
        format!("[{so_far}].map(a, [a, a, a, a, a, a])")
    });
    let replacing = (0..10).fold("event.data.text".to_owned(), |so_far, _| {
        format!("{so_far}.replace('x', 'xxxxxxxxxxxxxxxxxxxx')")
    });
    let joining = "event.data.words.map(a, event.data.words.join(event.data.text))";
    let event = large();
    for source in [
        doubling.as_str(),
        &listing,
        &replacing,
        joining,
        "event.data.words.join(event.data.text)",
        "event.data.words.map(a, event.data.words.map(b, event.data.words.map(c, c)))",
        "event.data.words.all(a, event.data.words.all(b, event.data.words.all(c, a != b + c || 1 / 0 == 1)))",
        "event.data.words.filter(a, event.data.words.filter(b, b == a).size() == 1)",
        "event.data.words.map(a, event.data)",
        "event.data.words.map(a, event == event)",
        "event.data.words.map(a, event.data.text.lastIndexOf('y'))",
        "event.data.words.exists_one(a, event.data.words.exists_one(b, a.matches('^(word|x)+-.*$')))",
        "event.data.words.map(a, event.data.text.split(''))",
        "event.data.words.map(a, event.data.?words.optMap(w, w.map(x, x + x)))",
    ] {
        let began = Instant::now();
        let result = compiled(Role::Body, source).json(&Scope::event(&event));
        assert_eq!(result, Err(EvaluationError::Cost), "{source:.90}");
        // What is asserted is that it ends: without a budget each takes minutes, or all the memory there is.
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{source:.90}: {:?}",
            began.elapsed()
        );
    }
}

#[test]
fn a_pattern_takes_time_linear_in_the_text_or_gives_up() {
    let mut random = 1u64;
    let text: String = (0..200_000)
        .map(|_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            if random >> 63 == 0 { 'a' } else { 'b' }
        })
        .collect();
    let event = event(Data::Text(text.into()));
    for (pattern, expected) in [
        // A state for every set of positions at which an a was seen lately.
        ("[ab]*a[ab]{200}c", None),
        ("(a|b|ab)*c", Some(false)),
        ("^[ab]+$", Some(true)),
        ("\\\\w+b", Some(true)),
    ] {
        let expression = compiled(Role::Filter, &format!("event.data.matches('{pattern}')"));
        let began = Instant::now();
        let result = expression.test(&Scope::event(&event));
        match expected {
            Some(expected) => assert_eq!(result, Ok(expected), "{pattern}"),
            None => assert_eq!(
                result,
                Err(EvaluationError::Failed(
                    "matches() does not take what it was given".to_owned()
                )),
                "{pattern}"
            ),
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{pattern}: {:?}",
            began.elapsed()
        );
    }
    let many: Vec<String> = (0..9).map(|n| format!("event.data.matches('{n}')")).collect();
    let refused = Expression::compile(Role::Filter, &many.join(" || ")).unwrap_err();
    assert!(refused.to_string().contains("at most 8 patterns"), "{refused}");
}

#[test]
fn what_filters_spend_does_not_change_the_key_of_an_order() {
    let event = large();
    let scope = Scope::event(&event).with_budget(1);
    let filter = compiled(Role::Filter, "event.data.text.contains('y')");
    assert_eq!(filter.test(&scope), Err(EvaluationError::Cost));
    assert_eq!(
        compiled(Role::Key, "event.subject").text(&scope),
        Ok("lead-7".to_owned())
    );
}

#[test]
fn many_filters_over_one_event_share_a_budget() {
    let event = large();
    let scope = Scope::event(&event);
    let costly = compiled(Role::Filter, "event.data.words.all(a, a != 'b')");
    let results: Vec<_> = (0..200).map(|_| costly.test(&scope)).collect();
    assert!(results.iter().all(|result| *result == Err(EvaluationError::Cost)));
    let cheap = compiled(Role::Filter, "event.data.words[0] == event.type");
    assert_eq!(
        cheap.test(&scope),
        Err(EvaluationError::Cost),
        "what they share is spent"
    );
    assert_eq!(cheap.test(&Scope::event(&event)), Ok(false));
}

#[test]
fn an_expression_at_the_bounds_of_its_nesting_fits_on_a_small_stack() {
    let chain = format!("'a'{}", "+event.type".repeat(meter::DEPTH - 4));
    let lists = format!("{}event{}", "[".repeat(meter::DEPTH - 2), "]".repeat(meter::DEPTH - 2));
    let loops = "[1].map(a, [a].map(b, [b].filter(c, [[[c]]] == [[[c]]])))".to_owned();
    for source in [chain, lists, loops] {
        let expression = compiled(Role::Body, &source);
        let evaluate = move || expression.json(&Scope::event(&lead())).map(|_| ());
        // A worker of tokio has 2 MiB.
        let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(evaluate).unwrap();
        assert_eq!(thread.join().unwrap(), Ok(()), "{source:.60}");
    }
}

fn fragment() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("event".to_owned()),
        Just("event.data".to_owned()),
        Just("event.data.words".to_owned()),
        Just("event.data.text".to_owned()),
        Just("secrets".to_owned()),
        Just("x".to_owned()),
        Just("1".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("1u".to_owned()),
        Just("1.5".to_owned()),
        Just("'a'".to_owned()),
        Just("b'a'".to_owned()),
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("duration('1h')".to_owned()),
        Just("timestamp(0)".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("optional.none()".to_owned()),
        Just("type(1)".to_owned()),
        "[ -~]{0,12}",
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        let operator = prop::sample::select(vec!["+", "-", "*", "/", "%", "==", "<", "&&", "||", "in", ">="]);
        let method = prop::sample::select(FUNCTIONS.to_vec());
        let looping = prop::sample::select(vec!["map", "filter", "all", "exists", "exists_one", "optMap"]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
            (inner.clone(), method, prop::collection::vec(inner.clone(), 0..3))
                .prop_map(|(a, f, args)| format!("{a}.{f}({})", args.join(", "))),
            (inner.clone(), looping, inner.clone()).prop_map(|(a, f, b)| format!("{a}.{f}(x, {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            prop::collection::vec(inner.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(", "))),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            inner.clone().prop_map(|a| format!("!{a}")),
            inner.prop_map(|a| format!("{a}.?b")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_expression_panics_or_outlasts_its_budget(source in fragment()) {
        let event = large();
        if let Ok(expression) = Expression::compile(Role::Body, &source) {
            let began = Instant::now();
            let scope = Scope::event(&event).with_secrets([("key", "s3cret-value")]);
            if let Err(error) = expression.json(&scope) {
                prop_assert!(!error.to_string().contains("word-"), "{}", error);
                prop_assert_ne!(error, EvaluationError::Failed("it cannot be evaluated".to_owned()), "it panicked");
            }
            prop_assert!(began.elapsed() < Duration::from_secs(20));
        }
    }
}
