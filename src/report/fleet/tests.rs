use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use serde_json::json;

use super::*;
use crate::report::board::Failure;

const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

fn object(name: &str) -> WebhookEndpoint {
    let manifest = json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint",
        "metadata": {"name": name, "namespace": "sales"}, "spec": {"url": "https://hooks.example.com/"}});
    serde_json::from_value(manifest).expect("an endpoint")
}

fn view(delivering: Delivering) -> EndpointView {
    EndpointView {
        generation: Some(1),
        delivering,
        message: String::new(),
        signing: None,
        agreement: None,
        pending: 0,
        oldest_pending: None,
        dead_lettered: 0,
        held: 0,
        blocked_keys: 0,
        consecutive_failures: 0,
        failing_since: None,
        last_status: None,
        last_success: None,
        last_failure: None,
        retry: None,
        next_try: None,
        recent_failures: Vec::new(),
        handled_enable_request: None,
    }
}

fn failed(delivering: Delivering, reason: &'static str, status: Option<u16>) -> EndpointView {
    let last_failure = Some(Failure {
        at: NOW,
        message: None,
        status,
        reason,
    });
    EndpointView {
        last_failure,
        ..view(delivering)
    }
}

fn scraped(fleet: &Fleet) -> Vec<String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(fleet.clone()));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("written");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn named(fleet: &Fleet) -> Vec<String> {
    let shown = scraped(fleet).into_iter();
    shown
        .filter(|line| line.starts_with("tidings_endpoint_trouble{"))
        .collect()
}

#[test]
fn one_in_trouble_is_named_with_all_that_is_asked_at_night_until_it_delivers() {
    let fleet = Fleet::default();
    let broken = EndpointView {
        pending: 12,
        oldest_pending: Some(NOW.plus(Duration::from_secs(5))),
        failing_since: Some(NOW),
        next_try: Some(NOW.plus(Duration::from_millis(600_500))),
        dead_lettered: 3,
        ..failed(Delivering::CircuitOpen, "ServerError", Some(503))
    };
    fleet.note(EndpointId(1), Some(&object("crm")), &broken, NOW);
    fleet.note(EndpointId(2), Some(&object("well")), &view(Delivering::Succeeding), NOW);
    let shown = scraped(&fleet);
    let labels = r#"{endpoint_namespace="sales",endpoint_name="crm"}"#;
    for line in [
        r#"tidings_endpoints{reason="CircuitOpen"} 1"#.to_owned(),
        r#"tidings_endpoints{reason="Succeeding"} 1"#.to_owned(),
        r#"tidings_endpoints{reason="Disabled"} 0"#.to_owned(),
        r#"tidings_endpoint_trouble{endpoint_namespace="sales",endpoint_name="crm",reason="CircuitOpen",last_failure="ServerError",whose="receiver"} 1"#.to_owned(),
        format!("tidings_endpoint_trouble_since_timestamp_seconds{labels} 1795000000.0"),
        format!("tidings_endpoint_pending_messages{labels} 12.0"),
        format!("tidings_endpoint_oldest_pending_timestamp_seconds{labels} 1795000005.0"),
        format!("tidings_endpoint_next_attempt_timestamp_seconds{labels} 1795000600.5"),
        format!("tidings_endpoint_last_failure_status_code{labels} 503.0"),
        format!("tidings_endpoint_dead_letters{labels} 3.0"),
        format!("tidings_endpoint_blocked_keys{labels} 0.0"),
        "tidings_endpoints_in_trouble_unnamed 0".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line} is not in {shown:#?}");
    }
    assert!(!shown.iter().any(|line| line.contains("well")), "{shown:#?}");
    fleet.note(EndpointId(1), Some(&object("crm")), &view(Delivering::Succeeding), NOW);
    assert_eq!(named(&fleet), [""; 0]);
}

#[test]
fn one_that_is_deleted_is_not_counted_any_more() {
    let fleet = Fleet::default();
    fleet.note(EndpointId(1), Some(&object("crm")), &view(Delivering::Backoff), NOW);
    assert_eq!(named(&fleet).len(), 1);
    fleet.note(EndpointId(1), None, &view(Delivering::Backoff), NOW);
    assert_eq!(named(&fleet).len(), 0);
    assert!(scraped(&fleet).contains(&r#"tidings_endpoints{reason="Backoff"} 0"#.to_owned()));
}

#[test]
fn however_many_are_in_trouble_a_hundred_are_named_those_where_most_waits() {
    let fleet = Fleet::default();
    for n in 0..1_000_u32 {
        let broken = EndpointView {
            pending: u64::from(n),
            ..failed(Delivering::CircuitOpen, "Timeout", None)
        };
        fleet.note(EndpointId(n), Some(&object(&format!("e{n}"))), &broken, NOW);
    }
    let disabled = EndpointView {
        pending: 1_000_000,
        ..view(Delivering::Disabled)
    };
    fleet.note(EndpointId(1_000), Some(&object("gone")), &disabled, NOW);
    let first = named(&fleet);
    assert_eq!(first.len(), SHOWN);
    assert!(scraped(&fleet).contains(&"tidings_endpoints_in_trouble_unnamed 901".to_owned()));
    assert!(scraped(&fleet).len() < SHOWN * 9);
    assert!(
        !first
            .iter()
            .any(|line| line.contains("\"e99\"") || line.contains("gone")),
        "{first:#?}"
    );
    let more = EndpointView {
        pending: 999,
        ..failed(Delivering::CircuitOpen, "Timeout", None)
    };
    fleet.note(EndpointId(500), Some(&object("e500")), &more, NOW);
    assert_eq!(named(&fleet), first, "a few messages more change nobody's place");
}

#[test]
fn trouble_began_when_it_was_noted_first_and_before_that_when_status_says() {
    let since = |fleet: &Fleet| {
        let shown = scraped(fleet);
        let line = shown
            .iter()
            .find(|line| line.starts_with("tidings_endpoint_trouble_since"));
        line.expect("named")
            .rsplit_once(' ')
            .expect("a value")
            .1
            .parse::<f64>()
            .expect("a number")
    };
    let fleet = Fleet::default();
    let later = NOW.plus(Duration::from_secs(60));
    fleet.note(EndpointId(1), Some(&object("crm")), &view(Delivering::Blocked), NOW);
    fleet.note(EndpointId(1), Some(&object("crm")), &view(Delivering::Blocked), later);
    assert_eq!(since(&fleet), 1_795_000_000.0);

    let mut known = object("crm");
    let status = json!({"conditions": [{"type": "Delivering", "status": "False", "reason": "Blocked", "message": "",
        "lastTransitionTime": "2026-11-01T00:00:00Z"}]});
    known.status = Some(serde_json::from_value(status).expect("a status"));
    fleet.note(EndpointId(1), Some(&known), &view(Delivering::Blocked), later);
    assert_eq!(since(&fleet), 1_793_491_200.0);
}

#[test]
fn whose_trouble_it_is_and_what_is_none() {
    let behind = |seconds: i32| EndpointView {
        pending: 1,
        oldest_pending: Some(UnixMillis(NOW.0 - i64::from(seconds) * 1_000)),
        ..view(Delivering::Succeeding)
    };
    let suspended = |pending| EndpointView {
        pending,
        ..view(Delivering::Suspended)
    };
    let blocked = EndpointView {
        blocked_keys: 1,
        ..view(Delivering::Succeeding)
    };
    let table = [
        (view(Delivering::Succeeding), None),
        (view(Delivering::NoAttempts), None),
        (behind(299), None),
        (behind(300), Some("unclear")),
        (blocked, Some("owner")),
        (suspended(0), None),
        (suspended(1), Some("owner")),
        (view(Delivering::SecretUnavailable), Some("owner")),
        (view(Delivering::ServiceUnavailable), Some("owner")),
        (view(Delivering::Blocked), Some("owner")),
        (view(Delivering::TokenUnavailable), Some("receiver")),
        (view(Delivering::HandshakeRefused), Some("receiver")),
        (failed(Delivering::Disabled, "Gone", Some(410)), Some("receiver")),
        (failed(Delivering::Backoff, "Unauthorized", Some(401)), Some("owner")),
        (failed(Delivering::CircuitOpen, "Refused", None), Some("receiver")),
    ];
    for (view, whose) in table {
        let trouble = Trouble::of(&object("crm"), &view, NOW);
        assert_eq!(trouble.map(|trouble| trouble.whose.word()), whose, "{view:?}");
    }
}

#[test]
fn subscriptions_in_trouble_are_counted() {
    let fleet = Fleet::default();
    let view = |unconsumed, filter_failing| SubscriptionView {
        is_news: true,
        is_filter_told: true,
        pending: 1,
        oldest_pending: None,
        dead_lettered: 0,
        last_dead_letter: None,
        filter_failing,
        unconsumed,
    };
    let counts = |fleet: &Fleet| fleet.neglects().map(|(.., count)| count);
    fleet.note_subscription(SubscriptionId(1), true, &view(Some(Unconsumed::NotPulled), None));
    fleet.note_subscription(SubscriptionId(2), true, &view(None, Some("no such key".into())));
    assert_eq!(counts(&fleet), [1, 0, 1]);
    fleet.note_subscription(SubscriptionId(1), true, &view(Some(Unconsumed::NotAcknowledged), None));
    fleet.note_subscription(SubscriptionId(2), true, &view(None, None));
    assert_eq!(counts(&fleet), [0, 1, 0]);
    fleet.note_subscription(SubscriptionId(1), false, &view(Some(Unconsumed::NotAcknowledged), None));
    assert_eq!(counts(&fleet), [0, 0, 0]);
}
