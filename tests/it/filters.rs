//! Filters: events are chosen by what is in them, a filter that fails is shown, and an invalid one never replaces a valid one.

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::team::{Shared, Team, Webhooks, metric};

fn subscribe(team: &Team<'_>, name: &str, filter: Option<&str>) {
    let mut spec = json!({"endpointRef": {"name": "crm"}, "eventTypes": ["lead.*"]});
    if let Some(filter) = filter {
        spec["filter"] = json!(filter);
    }
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name}, "spec": spec}),
    );
}

/// How many messages an event with this data makes.
async fn matched(team: &Team<'_>, dispatcher: &Dispatcher, id: &str, mut data: Value) -> u64 {
    data["lead"] = json!(id);
    let event = json!({"specversion": "1.0", "id": id, "source": "/agents/voice", "type": "lead.qualified", "region": "eu",
        "data": data});
    let answer = team.posting(dispatcher, &event).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.body["matched"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_chosen_by_what_is_in_them_and_a_filter_that_fails_is_shown_until_it_is_changed() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "filters");
    let receiver = Webhooks::answering(|_, _| 200).await;
    team.endpoint("crm", &receiver.url(), json!({}));
    subscribe(&team, "good-leads", Some("event.data.score > 80"));
    subscribe(
        &team,
        "vips",
        Some("event.region == 'eu' && 'vip' in event.data.?tags.orValue([])"),
    );
    subscribe(&team, "all", None);
    for name in ["good-leads", "vips", "all"] {
        team.ready(&format!("evsub/{name}"));
    }
    let post = async |id: &str, data: Value| matched(&team, &shared.dispatcher, id, data).await;
    assert_eq!(post("good", json!({"score": 81})).await, 2);
    assert_eq!(post("vip", json!({"score": 10.5, "tags": ["vip"]})).await, 2);
    assert_eq!(post("both", json!({"score": 99, "tags": ["vip"]})).await, 3);
    assert_eq!(post("neither", json!({"score": 80})).await, 1);
    receiver.until("all of them", |all| all.len() == 8).await;
    assert_eq!(
        ["good", "vip", "both", "neither"].map(|id| receiver.times(id)),
        [2, 2, 3, 1]
    );
    assert_eq!(team.condition("evsub", "good-leads", "FilterFailing"), None);

    let before = metric(&shared.dispatcher, "tidings_ingest_filter_errors_total");
    assert_eq!(
        post("without", json!({"name": "Ada Secretive"})).await,
        1,
        "a filter that fails does not match"
    );
    assert!(metric(&shared.dispatcher, "tidings_ingest_filter_errors_total") > before);
    team.until_reason("evsub", "good-leads", "FilterFailing", "EvaluationError");
    let shown = team.get("evsub", "good-leads")["status"].to_string();
    assert!(
        shown.contains("there is no score: ask has() first") && !shown.contains("Ada"),
        "{shown}"
    );
    assert_eq!(
        team.condition("evsub", "good-leads", "Ready").unwrap().0,
        "True",
        "it is configured and loaded"
    );

    subscribe(
        &team,
        "good-leads",
        Some("has(event.data.score) && event.data.score > 80"),
    );
    team.ready("evsub/good-leads");
    team.until("mended", "evsub", "good-leads", |evsub| {
        let conditions = evsub["status"]["conditions"].as_array().unwrap();
        conditions.iter().all(|c| c["type"] != "FilterFailing")
    });
    assert_eq!(post("without-2", json!({"name": "Ada"})).await, 1);

    // A failure that comes later shows: so would have one of theirs.
    subscribe(&team, "unguarded", Some("event.data.score > 80"));
    team.ready("evsub/unguarded");
    assert_eq!(post("without-3", json!({"name": "Ada"})).await, 1);
    team.until_reason("evsub", "unguarded", "FilterFailing", "EvaluationError");
    for name in ["good-leads", "vips"] {
        assert_eq!(team.condition("evsub", name, "FilterFailing"), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_edit_keeps_the_last_valid_filter_in_force_also_over_a_restart() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "last-valid");
    let receiver = Webhooks::answering(|_, _| 200).await;
    team.endpoint("crm", &receiver.url(), json!({}));
    subscribe(&team, "good-leads", Some("event.data.score > 80"));
    subscribe(&team, "all", None);
    subscribe(&team, "never-valid", Some("evnt.data.score > 80"));
    team.ready("evsub/good-leads");
    team.ready("evsub/all");
    team.until_reason("evsub", "never-valid", "Stalled", "InvalidFilter");
    assert_eq!(team.get("evsub", "never-valid")["status"]["lastValid"], Value::Null);

    for name in ["good-leads", "all"] {
        subscribe(&team, name, Some("event.data.score >"));
        team.until_reason("evsub", name, "Stalled", "InvalidFilter");
    }
    assert_eq!(
        team.condition("evsub", "good-leads", "Ready").unwrap(),
        ("False".into(), "InvalidFilter".into())
    );
    let status = &team.get("evsub", "good-leads")["status"];
    assert_eq!(
        status["lastValid"],
        json!({"generation": 1, "filter": "event.data.score > 80"})
    );
    let said = status["conditions"].to_string();
    assert!(
        said.contains("filter: line 1, column") && said.contains("stays in force"),
        "{said}"
    );

    let good_and_bad = async |dispatcher: &Dispatcher, when: &str| {
        let good = matched(&team, dispatcher, &format!("good-{when}"), json!({"score": 81})).await;
        (
            good,
            matched(&team, dispatcher, &format!("bad-{when}"), json!({"score": 1})).await,
        )
    };
    assert_eq!(good_and_bad(&dispatcher, "before").await, (2, 1));
    dispatcher.kill9();
    dispatcher.restart().unwrap();
    assert_eq!(good_and_bad(&dispatcher, "after").await, (2, 1));

    subscribe(&team, "good-leads", Some("event.data.score < 80"));
    team.ready("evsub/good-leads");
    assert_eq!(good_and_bad(&dispatcher, "mended").await, (1, 2));
}
