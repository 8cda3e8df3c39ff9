//! Declared types: compiled, loaded, and enforced at ingest.

use serde_json::{Value, json};

use super::team::{Answer, Shared, Team};

fn declared(name: &str, validation: &str, schema: Value) -> Value {
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType", "metadata": {"name": name},
        "spec": {"type": "lead.qualified", "schema": schema, "validation": validation}})
}

fn score(kind: &str) -> Value {
    json!({"type": "object", "required": ["score"], "properties": {"score": {"type": kind}}})
}

async fn post(team: &Team<'_>, id: &str, data: Value) -> Answer {
    let event =
        json!({"specversion": "1.0", "id": id, "source": "/agents/voice", "type": "lead.qualified", "data": data});
    team.posting(&Shared::get().dispatcher, &event).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_type_is_enforced_from_ready_on_and_its_refusals_point_at_the_fault() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "declared");
    team.apply(&declared("lead", "Reject", score("integer")));
    team.ready("evtype/lead");
    assert_eq!(
        team.condition("evtype", "lead", "Ready").unwrap(),
        ("True".into(), "Compiled".into())
    );

    assert_eq!(post(&team, "good", json!({"score": 7})).await.status, 202);
    let refused = post(&team, "bad", json!({"score": "secret-value"})).await;
    assert_eq!(
        (refused.status, &refused.body["reason"], &refused.body["status"]),
        (422, &json!("SchemaViolation"), &json!(422))
    );
    assert_eq!(refused.body["errors"][0]["pointer"], "/score");
    assert!(
        !refused.body.to_string().contains("secret-value"),
        "values are not repeated: {}",
        refused.body
    );
    assert_eq!(
        post(&team, "bad", json!({"score": 8})).await.status,
        202,
        "a refused event was not noted as seen"
    );

    // A new generation counts from its Ready on.
    team.apply(&declared("lead", "Reject", score("string")));
    team.until("of the new generation", "evtype", "lead", |t| {
        t["status"]["observedGeneration"] == 2
    });
    team.until("ready", "evtype", "lead", |t| {
        let ready = &t["status"]["conditions"][0];
        ready["status"] == "True" && ready["observedGeneration"] == 2
    });
    assert_eq!(post(&team, "string", json!({"score": "high"})).await.status, 202);
    assert_eq!(post(&team, "integer", json!({"score": 7})).await.status, 422);

    // One that does not compile leaves the last one that did in use.
    team.apply(&declared("lead", "Reject", json!({"type": 7})));
    team.until_reason("evtype", "lead", "Ready", "InvalidSchema");
    assert_eq!(
        team.condition("evtype", "lead", "Stalled").unwrap(),
        ("True".into(), "InvalidSchema".into())
    );
    assert_eq!(post(&team, "still", json!({"score": 7})).await.status, 422);

    for (validation, warns) in [("Warn", true), ("Off", false)] {
        team.apply(&declared("lead", validation, score("string")));
        let generation = team.get("evtype", "lead")["metadata"]["generation"].clone();
        team.until("ready", "evtype", "lead", |t| {
            let conditions = t["status"]["conditions"].as_array();
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True" && c["observedGeneration"] == generation)
            })
        });
        assert_eq!(team.condition("evtype", "lead", "Stalled"), None);
        let accepted = post(&team, validation, json!({"score": 7})).await;
        assert_eq!(
            (accepted.status, accepted.body["warnings"].is_array()),
            (202, warns),
            "{validation}: {accepted:?}"
        );
    }
    team.delete("evtype", "lead");
    assert_eq!(shared.cluster.get("declared", "evtype", "lead").unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_objects_for_one_type_the_oldest_counts_until_it_goes() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "duplicates");
    // The younger one sorts first by name.
    team.apply(&declared("z-first", "Reject", score("integer")));
    team.ready("evtype/z-first");
    team.until("a second old", "evtype", "z-first", |t| {
        let created: jiff::Timestamp = t["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
        jiff::Timestamp::now().duration_since(created).as_secs() >= 2
    });
    team.apply(&declared("a-second", "Reject", score("string")));
    team.until_reason("evtype", "a-second", "Ready", "DuplicateType");
    assert_eq!(
        team.condition("evtype", "a-second", "Stalled").unwrap(),
        ("True".into(), "DuplicateType".into())
    );
    assert_eq!(team.condition("evtype", "z-first", "Ready").unwrap().1, "Compiled");
    assert_eq!(post(&team, "integer", json!({"score": 7})).await.status, 202);
    assert_eq!(post(&team, "string", json!({"score": "high"})).await.status, 422);

    team.delete("evtype", "z-first");
    team.ready("evtype/a-second");
    assert_eq!(post(&team, "string", json!({"score": "high"})).await.status, 202);
    assert_eq!(post(&team, "late", json!({"score": 7})).await.status, 422);
    let shown = shared
        .cluster
        .kubectl_ok(&["get", "evtype", "-n", "duplicates"])
        .unwrap();
    let head: Vec<&str> = shown.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "TYPE", "VALIDATION", "READY", "REASON", "AGE"]);
}
