//! What kstatus' own code says of our kinds: Flux, helm's `--wait` and others wait by it.
//!
//! It must say what Argo CD is taught to say (`argocd.rs`), of the same fixtures and of live objects.

use serde_json::{Value, json};
use tidings_cluster::kstatus;

use super::argocd::{KINDS, fixtures};
use super::team::{Shared, TYPES, Team, Webhooks};

/// What kstatus says of one object, its home's and Flux' code alike.
pub fn judged(object: &Value) -> String {
    let said = kstatus(std::slice::from_ref(object)).unwrap().remove(0);
    assert_eq!(said.upstream, said.flux, "{object:#}");
    said.upstream
}

/// kstatus' word for a health of Argo CD.
fn word(health: &str) -> &'static str {
    match health {
        "Progressing" => "InProgress",
        "Healthy" => "Current",
        "Degraded" => "Failed",
        other => panic!("Argo CD knows no health {other}"),
    }
}

#[test]
fn flux_and_helm_see_in_every_object_what_argo_cd_sees() {
    let (mut objects, mut expected) = (Vec::new(), Vec::new());
    for fixture in fixtures() {
        for (kind, _, _) in KINDS.iter().filter(|(_, script, _)| *script == fixture.script) {
            let mut object = fixture.object.clone();
            object["apiVersion"] = json!("tidings.dev/v1alpha1");
            object["kind"] = json!(kind);
            object["metadata"]["name"] = json!("judged");
            let health = fixture.health["status"].as_str().unwrap();
            let wanted = fixture.kstatus.clone().unwrap_or_else(|| word(health).to_owned());
            expected.push((format!("{}, {kind}", fixture.name), wanted));
            // Whatever it was: what is being deleted is in nobody's way to readiness.
            let mut deleted = object.clone();
            deleted["metadata"]["deletionTimestamp"] = json!("2026-11-26T00:00:00Z");
            expected.push((format!("{}, {kind}, deleted", fixture.name), "Terminating".to_owned()));
            objects.extend([object, deleted]);
        }
    }
    assert!(
        objects.len() > 80,
        "every fixture is judged for each kind of its script"
    );
    for (said, (name, wanted)) in kstatus(&objects).unwrap().iter().zip(expected) {
        assert_eq!((&said.upstream, &said.flux), (&wanted, &wanted), "{name}: {said:?}");
    }
}

/// Waits until kstatus says this of an object; and in the end of its deletion, which a finalizer delays.
fn until(team: &Team<'_>, wanted: &str, kind: &str, name: &str) -> Value {
    team.until(wanted, kind, name, |object| judged(object) == wanted)
}

fn terminates(team: &Team<'_>, kind: &str, name: &str) {
    let finalizers = |list: &str| {
        let patch = format!("{{\"metadata\": {{\"finalizers\": {list}}}}}");
        let args = ["patch", kind, name, "-n", &team.namespace, "--type=merge", "-p", &patch];
        team.cluster.kubectl_ok(&args).unwrap();
    };
    finalizers("[\"example.com/held\"]");
    team.cluster
        .kubectl_ok(&["delete", kind, name, "-n", &team.namespace, "--wait=false"])
        .unwrap();
    until(team, "Terminating", kind, name);
    finalizers("[]");
    team.until_gone(kind, name);
}

#[tokio::test(flavor = "multi_thread")]
async fn live_objects_of_each_kind_are_current_in_progress_failed_or_terminating_as_they_should_be() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "kstatus");
    let webhooks = Webhooks::answering(|_, earlier| if earlier == 0 { 422 } else { 200 }).await;
    let apply = |kind: &str, name: &str, spec: Value| {
        team.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}),
        );
    };

    team.deliver_to("crm", &webhooks.url(), json!({"retry": {"neverRetry": [422]}}));
    until(&team, "Current", "whe", "crm");
    until(&team, "Current", "evsub", "crm");
    let missing = json!({"headers": [{"name": "X-Token", "secretKeyRef": {"name": "missing", "key": "token"}}]});
    team.endpoint("unfinished", &webhooks.url(), missing);
    let waiting = team.until("looked at", "whe", "unfinished", |whe| {
        whe["status"]["observedGeneration"] == 1
    });
    assert_eq!(judged(&waiting), "InProgress", "the Secret may still come: {waiting:#}");
    team.endpoint("inside", "https://10.0.0.1/", json!({}));
    until(&team, "Failed", "whe", "inside");

    let to = |endpoint: &str| json!({"endpointRef": {"name": endpoint}, "eventTypes": ["lead.*"]});
    apply("EventSubscription", "early", to("to-come"));
    let early = team.until("looked at", "evsub", "early", |evsub| {
        evsub["status"]["observedGeneration"] == 1
    });
    assert_eq!(judged(&early), "InProgress", "the endpoint may still come: {early:#}");
    let mut spec = to("crm");
    spec["filter"] = json!("event.type ==");
    apply("EventSubscription", "misspelt", spec);
    until(&team, "Failed", "evsub", "misspelt");

    apply(
        "EventType",
        "qualified",
        json!({"type": "kstatus.qualified", "schema": {"type": "object"}}),
    );
    until(&team, "Current", "evtype", "qualified");
    apply(
        "EventType",
        "broken",
        json!({"type": "kstatus.broken", "schema": {"type": "objekt"}}),
    );
    until(&team, "Failed", "evtype", "broken");

    // A Replay at work: its endpoint is suspended.
    team.post(&shared.dispatcher, "dead", TYPES[0]).await;
    team.until("a dead letter", "whe", "crm", |whe| {
        whe["status"]["delivery"]["deadLettered"] == 1
    });
    team.endpoint(
        "crm",
        &webhooks.url(),
        json!({"retry": {"neverRetry": [422]}, "suspend": true}),
    );
    team.until("suspended", "whe", "crm", |whe| {
        whe["status"]["delivery"]["observedGeneration"] == 2
    });
    // Suspended as it was wanted: nothing fails. The controller's part of the status may come after the dispatcher's.
    until(&team, "Current", "whe", "crm");
    apply("Replay", "again", json!({"selector": {"endpointRef": {"name": "crm"}}}));
    let sending = team.until("sending", "replay", "again", |replay| replay["status"]["sent"] == 1);
    assert_eq!(judged(&sending), "InProgress", "{sending:#}");
    team.endpoint(
        "crm",
        &webhooks.url(),
        json!({"retry": {"neverRetry": [422]}, "suspend": false}),
    );
    until(&team, "Current", "replay", "again");
    apply(
        "Replay",
        "nobody",
        json!({"selector": {"endpointRef": {"name": "nobody"}}}),
    );
    until(&team, "Failed", "replay", "nobody");

    for (kind, name) in [
        ("replay", "again"),
        ("evtype", "qualified"),
        ("evsub", "crm"),
        ("whe", "crm"),
    ] {
        terminates(&team, kind, name);
    }
}
