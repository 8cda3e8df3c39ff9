use proptest::prelude::*;

use super::*;

const ACCEPTED: UnixMillis = UnixMillis(1_795_000_000_250);

fn lead(data: Data) -> Event {
    Event {
        id: "a1".into(),
        source: "https://crm.example/leads".into(),
        r#type: "lead.qualified".into(),
        subject: None,
        time: Some("2026-11-24T03:00:00Z".into()),
        datacontenttype: None,
        dataschema: None,
        extensions: vec![],
        data,
    }
}

fn body(format: Format, event: &Event) -> String {
    let rendered = render(format, &stored(event, ACCEPTED, None)).unwrap();
    String::from_utf8(rendered.body.to_vec()).unwrap()
}

#[test]
fn json_data_is_spliced_byte_for_byte() {
    let odd = "{ \"n\": 1.000000000000000000001,\n \"n\": 2, \"u\":\"\\u00e9\" }";
    let event = lead(Data::Json(Bytes::from(odd)));
    assert_eq!(
        body(Format::StandardWebhooks, &event),
        format!(r#"{{"type":"lead.qualified","timestamp":"2026-11-24T03:00:00Z","data":{odd}}}"#)
    );
    assert_eq!(
        body(Format::CloudEventsStructured, &event),
        format!(
            r#"{{"specversion":"1.0","id":"a1","source":"https://crm.example/leads","type":"lead.qualified","time":"2026-11-24T03:00:00Z","data":{odd}}}"#
        )
    );
}

#[test]
fn the_timestamp_is_the_acceptance_where_the_event_has_no_time() {
    let mut event = lead(Data::None);
    event.time = None;
    assert_eq!(
        body(Format::StandardWebhooks, &event),
        r#"{"type":"lead.qualified","timestamp":"2026-11-18T11:06:40.250Z","data":null}"#
    );
}

#[test]
fn text_is_a_string_and_binary_is_base64() {
    let mut text = lead(Data::Text(Bytes::from("a \"b\"\n<c>\u{7}é")));
    text.datacontenttype = Some("text/plain".into());
    assert!(body(Format::StandardWebhooks, &text).ends_with(r#","data":"a \"b\"\n<c>\u0007é"}"#));
    let binary = lead(Data::Binary(Bytes::from_static(&[0, 255, 1, 2])));
    assert!(body(Format::StandardWebhooks, &binary).ends_with(r#","data_base64":"AP8BAg=="}"#));
    assert!(body(Format::CloudEventsStructured, &binary).ends_with(r#","data_base64":"AP8BAg=="}"#));
}

#[test]
fn a_structured_event_carries_every_attribute() {
    let event = Event {
        subject: Some("lead/7".into()),
        datacontenttype: Some("application/json".into()),
        dataschema: Some("https://crm.example/schema".into()),
        extensions: vec![
            ("partitionkey".into(), "7".into()),
            ("traceparent".into(), "00-\"x".into()),
        ],
        ..lead(Data::Json(Bytes::from("1")))
    };
    assert_eq!(
        body(Format::CloudEventsStructured, &event),
        r#"{"specversion":"1.0","id":"a1","source":"https://crm.example/leads","type":"lead.qualified","subject":"lead/7","time":"2026-11-24T03:00:00Z","datacontenttype":"application/json","dataschema":"https://crm.example/schema","partitionkey":"7","traceparent":"00-\"x","data":1}"#
    );
}

#[test]
fn a_binary_event_has_its_data_as_the_body_and_its_attributes_in_headers() {
    let event = Event {
        subject: Some("Zoë \"7\" 100%".into()),
        datacontenttype: Some("application/vnd.lead+json; charset=utf-8".into()),
        dataschema: Some("https://crm.example/schema".into()),
        extensions: vec![("partitionkey".into(), "a b".into())],
        ..lead(Data::Json(Bytes::from("{ \"a\": 1 }")))
    };
    let rendered = render(Format::CloudEventsBinary, &stored(&event, ACCEPTED, None)).unwrap();
    assert_eq!(&rendered.body[..], b"{ \"a\": 1 }");
    assert_eq!(
        rendered.content_type.unwrap(),
        "application/vnd.lead+json; charset=utf-8"
    );
    let headers: Vec<(&str, &str)> = rendered
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            ("ce-specversion", "1.0"),
            ("ce-id", "a1"),
            ("ce-source", "https://crm.example/leads"),
            ("ce-type", "lead.qualified"),
            ("ce-subject", "Zo%C3%AB%20%227%22%20100%25"),
            ("ce-time", "2026-11-24T03:00:00Z"),
            ("ce-dataschema", "https://crm.example/schema"),
            ("ce-partitionkey", "a%20b"),
        ]
    );
}

#[test]
fn raw_data_goes_out_as_it_came_under_its_own_media_type() {
    let raw = |datacontenttype: Option<&str>, data| {
        let event = Event {
            datacontenttype: datacontenttype.map(str::to_owned),
            ..lead(data)
        };
        let rendered = render(Format::Raw, &stored(&event, ACCEPTED, None)).unwrap();
        assert!(rendered.headers.is_empty());
        let content_type = rendered.content_type.map(|value| value.to_str().unwrap().to_owned());
        (content_type, rendered.body)
    };
    let bytes = Bytes::from_static(&[0, 255, 1]);
    for (own, data, expected) in [
        (None, Data::Json(Bytes::from("[1, 2]")), Some("application/json")),
        (Some("text/csv"), Data::Text(Bytes::from("a,b\n")), Some("text/csv")),
        (Some("image/png"), Data::Binary(bytes.clone()), Some("image/png")),
        (None, Data::Binary(bytes), Some("application/octet-stream")),
        (None, Data::None, None),
    ] {
        let (content_type, body) = raw(own, data.clone());
        assert_eq!(content_type.as_deref(), expected, "{data:?}");
        assert_eq!(&body, data.bytes());
    }
}

#[test]
fn attributes_that_we_did_not_write_are_an_error() {
    let broken = StoredEvent {
        attributes: Bytes::from("{}"),
        body: Bytes::new(),
    };
    assert!(render(Format::StandardWebhooks, &broken).is_err());
    assert!(accepted_event(&broken).is_err());
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![
        Just(Data::None),
        ".*".prop_map(|text| Data::Json(Bytes::from(serde_json::to_vec(&text).unwrap()))),
        ".*".prop_map(|text| Data::Text(Bytes::from(text))),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Data::Binary(Bytes::from(bytes))),
    ]
}

#[test]
fn where_an_event_stands_in_a_trace_is_kept_beside_it_and_shows_in_no_format() {
    let event = lead(Data::Json(r#"{"a":1}"#.into()));
    let trace = TraceContext {
        parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
        state: "a=\"1\"".into(),
    };
    let (traced, plain) = (stored(&event, ACCEPTED, Some(&trace)), stored(&event, ACCEPTED, None));
    assert_eq!((trace_context(&traced), trace_context(&plain)), (Some(trace), None));
    assert_eq!(accepted_event(&traced).unwrap(), (event, ACCEPTED));
    for format in [
        Format::StandardWebhooks,
        Format::CloudEventsStructured,
        Format::CloudEventsBinary,
        Format::Raw,
    ] {
        assert_eq!(render(format, &traced).unwrap(), render(format, &plain).unwrap());
    }
}

proptest! {
    #[test]
    fn what_is_stored_reads_back_and_renders_as_json(
        id in ".{1,20}", source in ".{1,20}", r#type in ".{1,20}", subject in prop::option::of(".{1,9}"),
        extensions in prop::collection::btree_map("ext[a-z0-9]{1,9}", ".*", 0..4), data in any_data(),
    ) {
        let event = Event {
            id, source, r#type, subject,
            time: None, datacontenttype: None, dataschema: None,
            extensions: extensions.into_iter().collect(), data,
        };
        let kept = stored(&event, ACCEPTED, None);
        prop_assert_eq!(accepted_event(&kept).unwrap(), (event.clone(), ACCEPTED));
        let binary = render(Format::CloudEventsBinary, &kept).unwrap();
        prop_assert_eq!(&binary.body, event.data.bytes());
        let raw = render(Format::Raw, &kept).unwrap();
        prop_assert_eq!((raw.content_type, raw.body), (binary.content_type, binary.body));
        for format in [Format::StandardWebhooks, Format::CloudEventsStructured] {
            let rendered = render(format, &kept).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&rendered.body).unwrap();
            prop_assert_eq!(value["type"].as_str(), Some(event.r#type.as_str()));
            if let Data::Text(text) = &event.data {
                prop_assert_eq!(value["data"].as_str().map(str::as_bytes), Some(text.as_ref()));
            }
        }
    }
}
