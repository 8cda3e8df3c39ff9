//! The signing Secret's life beside its rotation: provisioned, kept, adopted, refused, edited, lost.

use std::time::Instant;

use serde_json::{Value, json};
use standardwebhooks::Webhook;

use super::keys::{Checking, keys, look, until_keys};
use super::receiver::NEXT_SECRET;
use super::team::{PATIENCE, Shared, Team};

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_secret_is_provisioned_kept_adopted_and_goes_only_where_that_was_asked_for() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "provisioned");
    let url = "https://127.0.0.1:9/hooks";
    team.endpoint(
        "kept",
        url,
        json!({"signing": {"secretTemplate": {"labels": {"team": "crm"}, "annotations": {"note": "shared with CRM"}}}}),
    );
    team.endpoint("owned", url, json!({"signing": {"deletionPolicy": "Delete"}}));
    team.ready("whe/kept");
    team.ready("whe/owned");

    let secret = team.get("secret", "kept-signing");
    assert_eq!(secret["type"], "tidings.dev/signing-key");
    assert_eq!(
        (
            &secret["metadata"]["labels"]["team"],
            &secret["metadata"]["annotations"]["note"]
        ),
        (&json!("crm"), &json!("shared with CRM"))
    );
    assert_eq!(secret["metadata"]["ownerReferences"], Value::Null);

    // What leaves the template leaves the Secret; what somebody else put there stays.
    team.cluster
        .kubectl_ok(&["label", "secret", "kept-signing", "-n", "provisioned", "cost-centre=7"])
        .unwrap();
    let less = json!({"signing": {"secretTemplate": {"annotations": {"note": "CRM's own"}}}});
    team.endpoint("kept", url, less.clone());
    let undecorated = team.until("without the label", "secret", "kept-signing", |secret| {
        secret["metadata"]["annotations"]["note"] == "CRM's own"
    });
    assert_eq!(undecorated["metadata"]["labels"], json!({"cost-centre": "7"}));
    let made = keys(&team, "kept");
    assert!(Webhook::new(&made.current).is_ok() && made.previous.is_none());
    let status = team.get("whe", "kept")["status"]["signing"].clone();
    assert_eq!(
        (&status["secretName"], &status["keys"][0]["id"]),
        (&json!("kept-signing"), &json!(made.id()))
    );
    let owner = team.get("secret", "owned-signing")["metadata"]["ownerReferences"][0].clone();
    assert_eq!(
        (&owner["kind"], &owner["name"]),
        (&json!("WebhookEndpoint"), &json!("owned"))
    );

    // Deleted and created again, as a GitOps replace does: the same key, and no second one was made.
    team.delete("whe", "kept");
    team.delete("whe", "owned");
    team.endpoint("kept", url, less);
    team.ready("whe/kept");
    assert_eq!(
        (keys(&team, "kept").current, keys(&team, "kept").version),
        (made.current.clone(), made.version.clone())
    );
    team.until_gone("secret", "owned-signing");
    let told = team.events("kept", "SigningKeyLost").len() + team.events("kept", "SigningKeyAdopted").len();
    assert_eq!(told, 0, "the key of before is no news");

    // One that was restored from a backup, without its annotations, is taken over with its key.
    let restored = json!({"apiVersion": "v1", "kind": "Secret", "type": "tidings.dev/signing-key",
        "metadata": {"name": "restored-signing"}, "stringData": {"current": NEXT_SECRET}});
    team.apply(&restored);
    team.endpoint("restored", url, json!({}));
    team.ready("whe/restored");
    team.until_event("restored", "SigningKeyAdopted");
    let adopted = keys(&team, "restored");
    assert_eq!(
        (adopted.current.as_str(), adopted.id()),
        (
            NEXT_SECRET,
            team.get("whe", "restored")["status"]["signing"]["keys"][0]["id"]
                .as_str()
                .unwrap()
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signing_secret_that_the_api_server_refuses_is_said_with_its_own_words() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "refused");
    let url = "https://127.0.0.1:9/hooks";
    // The prefix passes the resource's own rules and not the API server's.
    let labelled = |name: &str| json!({"signing": {"secretTemplate": {"labels": {name: "crm"}}}});
    team.endpoint("crm", url, labelled("example..com/team"));
    let refused = team.until("refused", "whe", "crm", |endpoint| {
        let conditions = endpoint["status"]["conditions"].as_array();
        conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "False"))
    });
    let conditions = refused["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "SecretAccessDenied");
    let message = ready["message"].as_str().unwrap();
    assert!(
        message.contains("crm-signing") && message.contains("example..com/team"),
        "{message}"
    );
    assert_eq!(team.condition("whe", "crm", "Stalled"), None);

    team.endpoint("crm", url, json!({}));
    team.ready("whe/crm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_type_is_never_written_to() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "conflict");
    let foreign = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crm-signing"},
        "stringData": {"current": NEXT_SECRET, "password": "x"}});
    team.apply(&foreign);
    let before = team.get("secret", "crm-signing");
    team.endpoint(
        "crm",
        "https://127.0.0.1:9/hooks",
        json!({"signing": {"secretTemplate": {"labels": {"team": "crm"}}}}),
    );
    team.until_reason("whe", "crm", "Ready", "SecretConflict");
    assert_eq!(
        team.condition("whe", "crm", "Stalled").unwrap(),
        ("True".into(), "SecretConflict".into())
    );
    assert_eq!(team.condition("whe", "crm", "Reconciling"), None);
    team.until_reason("whe", "crm", "Delivering", "SecretUnavailable");
    // A later spec that was looked at says that the request was, too.
    team.ask("crm", "rotate");
    team.endpoint(
        "crm",
        "https://127.0.0.1:9/hooks",
        json!({"signing": {"secretTemplate": {"labels": {"team": "sales"}}}}),
    );
    team.until("in conflict again", "whe", "crm", |whe| {
        let is_met = |condition: &Value| {
            condition["type"] == "Ready"
                && condition["reason"] == "SecretConflict"
                && condition["observedGeneration"] == whe["metadata"]["generation"]
        };
        whe["status"]["conditions"].as_array().unwrap().iter().any(is_met)
    });
    assert_eq!(team.get("secret", "crm-signing"), before, "not a byte of it changed");

    team.delete("secret", "crm-signing");
    look(&team, "crm");
    team.ready("whe/crm");
    assert_eq!(team.get("secret", "crm-signing")["type"], "tidings.dev/signing-key");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_hand_is_taken_when_it_is_a_key_and_refused_otherwise() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "edited");
    let receiver = Checking::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    let made = keys(&team, "crm");
    let edit = |value: &str| {
        let patch = json!({"stringData": {"current": value}}).to_string();
        team.cluster
            .kubectl_ok(&[
                "patch",
                "secret",
                "crm-signing",
                "-n",
                "edited",
                "--type=merge",
                "-p",
                &patch,
            ])
            .unwrap();
        look(&team, "crm");
    };

    edit("whsec_too-short");
    team.until_reason("whe", "crm", "Ready", "SecretInvalid");
    assert_eq!(
        team.condition("whe", "crm", "Stalled"),
        None,
        "it heals without an edit of the endpoint"
    );
    let spoilt = keys(&team, "crm");
    team.send(&shared.dispatcher, "spoilt").await;
    assert!(
        receiver.event("spoilt").await.verifies_with(&made.current),
        "the last good key stays in use"
    );
    assert_eq!(
        keys(&team, "crm"),
        spoilt,
        "nothing is written into a Secret that was spoilt"
    );

    edit(NEXT_SECRET);
    team.ready("whe/crm");
    team.until_event("crm", "SigningKeyChanged");
    let deadline = Instant::now() + PATIENCE;
    for n in 0.. {
        let event = format!("edited-{n}");
        team.send(&shared.dispatcher, &event).await;
        if receiver.event(&event).await.verifies_with(NEXT_SECRET) {
            break;
        }
        assert!(Instant::now() < deadline, "the edited key is never used");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_secret_is_made_anew_and_that_it_was_lost_is_told() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "lost");
    let receiver = Checking::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    let before = keys(&team, "crm");
    team.delete("secret", "crm-signing");
    look(&team, "crm");
    let told = team.until_event("crm", "SigningKeyLost");
    assert_eq!(told["type"], "Warning");
    let anew = keys(&team, "crm");
    assert!(anew.current != before.current && anew.id() != before.id());
    assert!(told["note"].as_str().unwrap().contains(anew.id()), "{told}");
    team.until("signing with it", "whe", "crm", |whe| {
        whe["status"]["delivery"]["signing"]["keyID"] == anew.id()
    });
    receiver.hold(&anew.current);
    team.send(&shared.dispatcher, "lost").await;
    receiver.event("lost").await;
    receiver.assert_all_verified();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_status_does_not_take_is_replaced_and_the_key_stays() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "key-id");
    let receiver = Checking::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    let made = keys(&team, "crm");
    receiver.hold(&made.current);
    let long = format!("tidings.dev/current-id={}", "k".repeat(65));
    team.cluster
        .kubectl_ok(&[
            "annotate",
            "secret",
            "crm-signing",
            "-n",
            "key-id",
            "--overwrite",
            &long,
        ])
        .unwrap();
    look(&team, "crm");
    let adopted = until_keys(&team, "adopted", "crm", |k| k.id().len() <= 64);
    assert_eq!((&adopted.current, adopted.previous), (&made.current, None));
    team.until("said to be in use", "whe", "crm", |whe| {
        whe["status"]["signing"]["keys"][0]["id"] == adopted.annotations["tidings.dev/current-id"]
            && whe["status"]["delivery"]["signing"]["keyID"] == adopted.annotations["tidings.dev/current-id"]
    });
    team.until_event("crm", "SigningKeyAdopted");

    // Status goes on to be written after the next edit, too.
    team.endpoint("crm", &receiver.url(), json!({"timeout": "7s"}));
    team.until("looked at again", "whe", "crm", |whe| {
        whe["status"]["observedGeneration"] == whe["metadata"]["generation"]
    });
    team.send(&shared.dispatcher, "with-the-same-key").await;
    receiver.event("with-the-same-key").await;
    receiver.assert_all_verified();
}
