use http::HeaderValue;
use proptest::prelude::*;

use super::*;
use crate::event::Data;

const JSON: (&str, &str) = ("content-type", "application/json");
const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=UTF-8");
const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");
const CE: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "a1"),
    ("ce-source", "/crm"),
    ("ce-type", "lead.qualified"),
];

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn all(fields: &[(&str, &str)], query: Option<&str>, body: impl Into<Bytes>) -> Result<Events, ParseError> {
    let headers = headers(fields);
    let head = Head {
        headers: &headers,
        query,
    };
    parse(Mode::of(&headers)?, head, body.into(), DEFAULT_MAX_EVENT, || {
        "random".into()
    })
}

fn one(fields: &[(&str, &str)], query: Option<&str>, body: impl Into<Bytes>) -> Result<Event, ParseError> {
    match all(fields, query, body)? {
        Events::One(event) => Ok(event),
        Events::Batch(_) => panic!("not a batch"),
    }
}

fn binary(more: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Event, ParseError> {
    one(&[&CE[..], more].concat(), None, body)
}

/// Structured, with members beside the required ones.
fn structured(members: &str) -> Result<Event, ParseError> {
    let document = format!(r#"{{"specversion":"1.0","id":"a1","source":"/crm","type":"lead.qualified"{members}}}"#);
    one(&[STRUCTURED], None, document)
}

fn sentence<T: std::fmt::Debug>(result: Result<T, ParseError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_three_ways_give_the_same_event() {
    let from_binary = binary(&[JSON], "{\"a\": 1}").unwrap();
    let from_structured = structured(r#","datacontenttype":"application/json","data":{"a": 1}"#).unwrap();
    let key = ("idempotency-key", "a1");
    let from_plain = one(&[JSON, key], Some("type=lead.qualified&source=%2Fcrm"), "{\"a\": 1}").unwrap();
    assert_eq!(from_binary, from_structured);
    assert_eq!(from_binary, from_plain);
    assert_eq!(from_binary.data, Data::Json(Bytes::from("{\"a\": 1}")));
}

#[test]
fn binary_headers_are_unquoted_and_percent_decoded_once() {
    for (header, subject) in [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%e2%82%ac", "€"),
        ("raw € bytes", "raw € bytes"),
        ("\"quoted \\\"x\\\" %25\"", "quoted \"x\" %"),
        ("%2525", "%25"),
        ("a\"b", "a\"b"),
        ("\"", "\""),
    ] {
        let event = binary(&[("ce-subject", header)], "").unwrap();
        assert_eq!(event.subject.as_deref(), Some(subject), "{header}");
    }
    for bad in ["50%", "%4", "%zz", "%C3", "%C0%A0", "%ED%A0%80", "a%00", "%7F", ""] {
        assert!(binary(&[("ce-subject", bad)], "").is_err(), "{bad}");
    }
}

#[test]
fn binary_data_follows_its_media_type() {
    let data = |media: &[(&str, &str)], body: &'static [u8]| binary(media, Bytes::from_static(body)).map(|e| e.data);
    assert_eq!(data(&[], b"").unwrap(), Data::None);
    assert_eq!(data(&[JSON], b"").unwrap(), Data::None);
    assert_eq!(
        data(&[], b" [1] ").unwrap(),
        Data::Json(Bytes::from(" [1] ")),
        "JSON without a media type"
    );
    let plain = [("content-type", "text/plain")];
    assert_eq!(data(&plain, "é".as_bytes()).unwrap(), Data::Text(Bytes::from("é")));
    assert_eq!(
        data(&plain, b"\xff").unwrap(),
        Data::Binary(Bytes::from_static(b"\xff"))
    );
    let octets = [("content-type", "application/octet-stream")];
    assert_eq!(data(&octets, b"{}").unwrap(), Data::Binary(Bytes::from("{}")));
    for bad in [
        &b"{"[..],
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\"\xff\"",
        b"nul",
        b"01",
        b"{\"a\":1,}",
    ] {
        assert!(data(&[JSON], bad).is_err(), "{bad:?}");
    }
}

#[test]
fn binary_attributes_are_checked() {
    for (more, expected) in [
        (("ce-id", "b"), "ce-id must occur once"),
        (("ce-traceParent-x", "b"), "lower-case letters and digits"),
        (("ce-data", "b"), "data cannot be an extension"),
        (("ce-datacontenttype", "b"), "datacontenttype cannot be an extension"),
        (("ce-time", "yesterday"), "time must be an RFC 3339"),
        (("ce-dataschema", "/relative"), "dataschema must be an absolute URI"),
        (("content-type", "json"), "datacontenttype must be a media type"),
    ] {
        let detail = sentence(binary(&[more], "{}"));
        assert!(detail.contains(expected), "{more:?}: {detail}");
    }
    for (i, name) in ["ce-specversion", "ce-id", "ce-source", "ce-type"]
        .into_iter()
        .enumerate()
    {
        let mut fields = CE.to_vec();
        fields.remove(i);
        assert!(sentence(one(&fields, None, "")).contains(&format!("{name} is missing")));
        for bad in ["", "0.3"] {
            let mut fields = CE.to_vec();
            fields[i].1 = bad;
            assert!(
                one(&fields, None, "").is_err() || (i != 0 && bad == "0.3"),
                "{name} {bad}"
            );
        }
    }
    let twice = binary(&[("ce-x", "1"), ("ce-x", "2")], "");
    assert!(sentence(twice).contains("occur once"));
    let many: Vec<_> = (0..33).map(|i| format!("ce-x{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "1")).collect();
    assert!(sentence(binary(&many, "")).contains("at most 32"));
    let event = binary(&[("ce-b", "2"), ("ce-a", "1"), ("traceparent", "ignored")], "").unwrap();
    assert_eq!(event.extensions, [("a".into(), "1".into()), ("b".into(), "2".into())]);
}

#[test]
fn structured_data_keeps_its_bytes_or_its_text() {
    let data = |members: &str| structured(members).map(|event| event.data);
    assert_eq!(data("").unwrap(), Data::None);
    assert_eq!(
        data(r#", "data" : {"a":1.50} "#).unwrap(),
        Data::Json(Bytes::from(r#"{"a":1.50}"#))
    );
    assert_eq!(data(r#","data":null"#).unwrap(), Data::Json(Bytes::from("null")));
    assert_eq!(data(r#","data":"x""#).unwrap(), Data::Json(Bytes::from("\"x\"")));
    let text = r#","datacontenttype":"text/plain","data":"a\né""#;
    assert_eq!(data(text).unwrap(), Data::Text(Bytes::from("a\né")));
    assert_eq!(
        data(r#","data_base64":"AAH/""#).unwrap(),
        Data::Binary(Bytes::from_static(&[0, 1, 255]))
    );
    let json = r#","datacontenttype":"application/json","data_base64":"e30=""#;
    assert_eq!(data(json).unwrap(), Data::Json(Bytes::from("{}")));
    for bad in [
        r#","data":1,"data_base64":"AA==""#,
        r#","data":1,"data":2"#,
        r#","data_base64":"AA""#,
        r#","data_base64":7"#,
        r#","datacontenttype":"text/plain","data":{}"#,
        r#","datacontenttype":"application/json","data_base64":"ew==""#,
        r#","datacontenttype":"nonsense","data":1"#,
    ] {
        assert!(data(bad).is_err(), "{bad}");
    }
}

#[test]
fn structured_attributes_are_checked() {
    let event = structured(r#","subject":"s","time":null,"b":true,"a":-7,"c":"x","d":null"#).unwrap();
    assert_eq!(event.subject.as_deref(), Some("s"));
    assert_eq!(event.time, None);
    let extensions: Vec<_> = event.extensions.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(extensions, [("a", "-7"), ("b", "true"), ("c", "x")]);
    for (members, expected) in [
        (r#","id":"a2""#, "id occurs twice"),
        (r#","subject":null,"subject":"x""#, "subject occurs twice"),
        (r#","x":"1","x":"2""#, "x occurs twice"),
        (r#","\u0069d":"a2""#, "id occurs twice"),
        (r#","traceParent":"x""#, "lower-case letters and digits"),
        (r#","x":{}"#, "extension attribute"),
        (r#","x":[]"#, "extension attribute"),
        (r#","x":1.5"#, "extension attribute"),
        (r#","x":2147483648"#, "extension attribute"),
        (r#","x":"\u0000""#, "control characters"),
        (r#","subject":"""#, "subject must have"),
        (r#","subject":7"#, "not a CloudEvent"),
        (r#","time":"2026-13-01T00:00:00Z""#, "time must be"),
    ] {
        let detail = sentence(structured(members));
        assert!(detail.contains(expected), "{members}: {detail}");
    }
    for bad in [
        "",
        "{}",
        "[]",
        "null",
        "1",
        "{",
        "\"x\"",
        "{\"specversion\":1.0}",
        r#"{"specversion":"0.3","id":"a","source":"/a","type":"t"}"#,
        r#"{"specversion":"1.0","id":"a","source":"/a"}"#,
        r#"{"specversion":"1.0","id":"a","source":"/a","type":null}"#,
        r#"{"specversion":"1.0","id":"a","source":"/a","type":"t"} x"#,
        r#"{"specversion":"1.0","id":"a\ud800","source":"/a","type":"t"}"#,
    ] {
        assert!(one(&[STRUCTURED], None, bad).is_err(), "{bad}");
    }
    assert!(one(&[STRUCTURED], None, &b"{\"id\":\"\xff\"}"[..]).is_err());
}

#[test]
fn deep_json_does_not_overflow_the_stack() {
    let deep = "[".repeat(120_000) + &"]".repeat(120_000);
    assert!(binary(&[JSON], deep.clone()).is_ok());
    assert!(structured(&format!(r#","data":{deep}"#)).is_ok());
    assert!(structured(&format!(r#","x":{deep}"#)).is_err());
}

#[test]
fn a_batch_is_taken_or_refused_as_a_whole() {
    let event = |id: usize| format!(r#"{{"specversion":"1.0","id":"{id}","source":"/crm","type":"t","data":{id}}}"#);
    let batch = |events: &[String]| all(&[BATCH], None, format!("[{}]", events.join(", ")));
    let Events::Batch(events) = batch(&[event(1), event(2)]).unwrap() else {
        panic!()
    };
    assert_eq!(events[1].data, Data::Json(Bytes::from("2")));
    assert_eq!(batch(&[]).unwrap(), Events::Batch(vec![]));
    let bad = batch(&[event(1), event(2), "{}".into()]).unwrap_err();
    assert!(matches!(bad, ParseError::Invalid { event: Some(2), .. }), "{bad:?}");
    let large = event(1).replace(":1}", &format!(":\"{}\"}}", "x".repeat(DEFAULT_MAX_EVENT)));
    let large = batch(&[event(0), large]).unwrap_err();
    assert!(
        matches!(large, ParseError::TooLarge { event: Some(1), .. }),
        "{large:?}"
    );
    let most: Vec<_> = (0..MAX_BATCH_EVENTS).map(event).collect();
    assert!(batch(&most).is_ok());
    let more: Vec<_> = (0..=MAX_BATCH_EVENTS).map(event).collect();
    assert!(matches!(batch(&more), Err(ParseError::TooLarge { event: None, .. })));
    assert!(all(&[BATCH], None, event(1)).is_err(), "an object is no batch");
}

#[test]
fn plain_json_needs_its_type_and_source() {
    let query = "type=lead.qualified&source=/crm";
    let event = one(&[JSON], Some(query), "{}").unwrap();
    assert_eq!(event.id, "random");
    let event = one(&[JSON, ("idempotency-key", "\"8e03\"")], Some(query), "{}").unwrap();
    assert_eq!(event.id, "8e03");
    let vendor = ("content-type", "application/vnd.lead+json");
    assert_eq!(
        one(&[vendor], Some(query), "{}").unwrap().datacontenttype.as_deref(),
        Some(vendor.1)
    );
    for (query, expected) in [
        (None, "needs ?type= and ?source="),
        (Some("type=a"), "needs ?type= and ?source="),
        (Some("type=a&type=b&source=/x"), "occur once"),
        (Some("type=a&source=/x&subject=y"), "type and source only"),
        (Some("type=&source=/x"), "type must have"),
        (Some("type=a&source=a%20b"), "source must be a URI reference"),
        (Some("type=*&source=/x"), "type must name one type"),
    ] {
        let detail = sentence(one(&[JSON], query, "{}"));
        assert!(detail.contains(expected), "{query:?}: {detail}");
    }
    assert!(one(&[JSON], Some(query), "{").is_err());
    assert!(one(&[JSON, ("idempotency-key", "")], Some(query), "{}").is_err());
    assert!(one(&[JSON, ("idempotency-key", &"x".repeat(257))], Some(query), "{}").is_err());
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    assert!(one(&twice, Some(query), "{}").is_err());
}

#[test]
fn other_media_types_and_encodings_are_unsupported() {
    for fields in [
        &[][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "text/plain")],
        &[("content-type", "application/cloudevents+xml")],
        &[("content-type", "application/cloudevents+avro")],
        &[("content-type", "application/cloudevents-batch+protobuf")],
        &[JSON, ("content-encoding", "gzip")],
    ] {
        let answer = all(fields, Some("type=t&source=/s"), "{}");
        assert!(
            matches!(answer, Err(ParseError::Unsupported(_))),
            "{fields:?}: {answer:?}"
        );
    }
    assert!(all(&[JSON, JSON], Some("type=t&source=/s"), "{}").is_err());
    let structured_wins = [&CE[..], &[STRUCTURED]].concat();
    assert_eq!(Mode::of(&headers(&structured_wins)).unwrap(), Mode::Structured);
    assert_eq!(
        Mode::of(&headers(&[("content-type", "Application/CloudEvents+JSON")])).unwrap(),
        Mode::Structured
    );
}

proptest! {
    #[test]
    fn nothing_makes_the_parser_panic(
        mode in 0..4, body in prop::collection::vec(any::<u8>(), 0..200), query in ".{0,40}",
        value in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut fields = headers(match mode { 0 => &CE[..], 1 => &[STRUCTURED], 2 => &[BATCH], _ => &[JSON] });
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            fields.append("ce-subject", value.clone());
            fields.append("idempotency-key", value);
        }
        let head = Head { headers: &fields, query: Some(&query) };
        if let Ok(mode) = Mode::of(&fields) {
            let _ = parse(mode, head, Bytes::from(body), DEFAULT_MAX_EVENT, String::new);
        }
    }

    #[test]
    fn percent_encoded_text_comes_out_as_it_was(text in "[^\\p{C}]{1,30}") {
        let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
        prop_assume!(crate::event::rules::subject(&text).is_ok());
        prop_assert_eq!(binary(&[("ce-subject", &encoded)], "").unwrap().subject, Some(text));
    }

    #[test]
    fn what_the_binary_format_sends_is_taken_as_the_same_event(
        id in "[^\\p{C}]{1,20}", subject in prop::option::of("[^\\p{C}]{1,30}"), value in "[^\\p{C}]{0,30}",
        data in prop_oneof![
            Just(Data::None),
            ".*".prop_map(|text| Data::Json(Bytes::from(serde_json::to_vec(&text).unwrap()))),
        ],
    ) {
        use crate::api::resolve::Format;
        use crate::event::format::{render, stored};

        let event = Event {
            id, subject, data,
            source: "/crm".into(),
            r#type: "lead.qualified".into(),
            time: Some("2026-11-24T03:00:00Z".into()),
            datacontenttype: Some("application/json".into()),
            dataschema: Some("https://crm.example/schema".into()),
            extensions: vec![("partitionkey".into(), value)],
        };
        prop_assume!(event.clone().checked().is_ok());
        let kept = stored(&event, crate::ids::UnixMillis(0), None);
        let rendered = render(Format::CloudEventsBinary, &kept).unwrap();
        let mut fields = HeaderMap::new();
        fields.extend(rendered.headers);
        fields.insert(CONTENT_TYPE, rendered.content_type.unwrap());
        let head = Head { headers: &fields, query: None };
        let parsed = parse(Mode::of(&fields).unwrap(), head, rendered.body, DEFAULT_MAX_EVENT, String::new);
        prop_assert_eq!(parsed, Ok(Events::One(event)));
    }
}
