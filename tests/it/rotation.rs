//! Rotation: on request and by age, with its overlap, through crashes; and not one request that a receiver with the
//! published library could not verify.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, DispatcherOptions, Tidings};

use super::admin;
use super::keys::{Checking, Keys, keys, look, until_keys};
use super::team::{PATIENCE, Shared, Team};

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_signs_with_both_keys_until_its_overlap_is_over_or_revoked() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "overlap");
    let receiver = Checking::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    let old = keys(&team, "crm");
    receiver.hold(&old.current);
    team.send(&shared.dispatcher, "before").await;
    assert_eq!(receiver.event("before").await.signatures(), 1);

    team.ask("crm", "rotate");
    let both = until_keys(&team, "in its overlap", "crm", |k| k.expires().is_some());
    assert_eq!(both.previous.as_ref(), Some(&old.current), "moved, not overwritten");
    assert_ne!((both.id(), &both.current), (old.id(), &old.current));
    let object = team.until("in its overlap", "whe", "crm", |whe| {
        let conditions = whe["status"]["conditions"].as_array().unwrap();
        conditions.iter().any(|c| {
            c["type"] == "KeyRotating" && c["reason"] == "Overlap" && c["message"].as_str().unwrap().contains(both.id())
        })
    });
    let shown = &object["status"]["signing"]["keys"];
    assert_eq!(
        (&shown[0]["id"], &shown[1]["id"]),
        (&json!(both.id()), &json!(old.id()))
    );
    assert_eq!(shown[1]["expiresTime"], json!(both.expires()));
    let expires: jiff::Timestamp = both.expires().unwrap().parse().unwrap();
    let hours = expires.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((22..=24).contains(&hours), "the default overlap is a day: {hours} h");
    team.send(&shared.dispatcher, "during").await;
    let during = receiver.event("during").await;
    assert_eq!(during.signatures(), 2);
    assert!(during.verifies_with(&old.current) && during.verifies_with(&both.current));

    // The receiver has the new key: the old one is revoked, and no later one by the same request.
    receiver.hold(&both.current);
    team.ask("crm", "revoke-previous");
    let alone = until_keys(&team, "alone", "crm", |k| k.previous.is_none());
    assert_eq!((alone.current.as_str(), alone.expires()), (both.current.as_str(), None));
    team.until("told so", "whe", "crm", |whe| {
        whe["status"]["references"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["resourceVersion"] == json!(alone.version))
    });
    assert_eq!(team.condition("whe", "crm", "KeyRotating"), None);
    let deadline = Instant::now() + PATIENCE;
    for n in 0.. {
        let event = format!("after-{n}");
        team.send(&shared.dispatcher, &event).await;
        if receiver.event(&event).await.signatures() == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "the revoked key still signs");
    }
    receiver.assert_all_verified();
    team.ask("crm", "rotate");
    let next = until_keys(&team, "in its next overlap", "crm", |k| k.expires().is_some());
    assert_eq!(next.previous.as_ref(), Some(&both.current));
    for reason in ["SigningKeyRotated", "SigningKeyRetired"] {
        team.until_event("crm", reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_older_than_its_interval_is_rotated_unasked() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "interval");
    team.endpoint(
        "crm",
        "https://127.0.0.1:9/hooks",
        json!({"signing": {"rotation": {"interval": "1h", "overlap": "1s"}}}),
    );
    team.ready("whe/crm");
    let made = keys(&team, "crm");
    let next = |whe: &Value| {
        whe["status"]["signing"]["nextRotationTime"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    let created: jiff::Timestamp = made.annotations["tidings.dev/current-created"].parse().unwrap();
    assert_eq!(
        next(&team.get("whe", "crm")),
        created + jiff::SignedDuration::from_hours(1)
    );

    let old = (created - jiff::SignedDuration::from_hours(2)).to_string();
    let aged = format!("tidings.dev/current-created={old}");
    team.cluster
        .kubectl_ok(&[
            "annotate",
            "secret",
            "crm-signing",
            "-n",
            "interval",
            "--overwrite",
            &aged,
        ])
        .unwrap();
    look(&team, "crm");
    let rotated = until_keys(&team, "rotated and over its overlap", "crm", |k| {
        k.current != made.current && k.previous.is_none()
    });
    assert_ne!(rotated.id(), made.id());
    team.until_event("crm", "SigningKeyRotated");
    assert_eq!(team.events("crm", "SigningKeyRotated").len(), 1);
}

/// Rotations of the test below, each with the controller killed at some moment of it.
const ROUNDS: u64 = 6;
/// In which the receiver gets the new key, also where the machine stands still.
const OVERLAP: Duration = Duration::from_secs(5);
/// The first kill falls into the first so many milliseconds, the next into the next, and so on: a rotation with that overlap
/// takes about six times as long.
const MILLIS: u64 = 900;

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_at_any_step_of_a_rotation_finds_the_next_one_and_no_request_fails_verification() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let mut controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "killed");
    let receiver = Checking::start().await;
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"signing": {"rotation": {"overlap": format!("{}s", OVERLAP.as_secs())}}}),
    );
    let first = keys(&team, "crm");
    receiver.hold(&first.current);
    let (history, following) = follow(&cluster, "killed", "crm-signing", receiver.key.clone()).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let producing = {
        let (stop, post) = (stop.clone(), team.poster(&dispatcher));
        tokio::spawn(async move {
            let mut sent = 0;
            while !stop.is_cancelled() {
                let event = json!({"specversion": "1.0", "id": format!("e{sent}"), "source": "/agents/voice", "type": "lead.qualified", "data": {"lead": format!("e{sent}")}});
                let answer = post(&event).await.unwrap();
                assert_eq!(answer.status, 202, "{answer:?}");
                sent += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sent
        })
    };

    for round in 1..=ROUNDS {
        let before = keys(&team, "crm");
        team.ask("crm", "rotate");
        let moment = (round - 1) * MILLIS + rand::random::<u64>() % MILLIS;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        controller.process.kill9();
        println!(
            "round {round}: killed {moment} ms after the request, at {:?}",
            keys(&team, "crm").annotations
        );
        // What an administrator may do for a leader that is surely dead; waiting for it is the test of leader.rs.
        cluster
            .kubectl_ok(&["delete", "lease", "tidings-controller", "-n", "tidings-system"])
            .unwrap();
        controller.process.start_again().unwrap();
        let after = until_keys(&team, "rotated", "crm", |k| {
            k.current != before.current && k.previous.is_none()
        });
        assert_ne!(after.id(), before.id());
    }
    stop.cancel();
    let sent = producing.await.unwrap();
    receiver.event(&format!("e{}", sent - 1)).await;
    receiver.assert_all_verified();
    assert!(
        receiver.checked().iter().any(|c| c.signatures() == 2) && sent > 100,
        "{sent} sent"
    );

    following.abort();
    let history = history.lock().unwrap().clone();
    assert_eq!(
        history
            .iter()
            .filter(|form| form.keys.previous.is_none() && form.keys.expires().is_some())
            .count(),
        0
    );
    let mut made = vec![first.current.clone()];
    for two in history.windows(2) {
        let (before, now) = (&two[0].keys, &two[1].keys);
        if now.current != before.current {
            made.push(now.current.clone());
        }
        if two[1].after_others {
            continue;
        }
        if now.current != before.current {
            assert_eq!(
                (now.previous.as_ref(), &before.previous),
                (Some(&before.current), &None),
                "a key is moved, never overwritten"
            );
        } else if now.previous != before.previous {
            assert_eq!(now.previous, None);
            assert!(
                before.expires().is_some(),
                "the old key is dropped only after its overlap"
            );
        }
    }
    assert_eq!(
        made.len(),
        ROUNDS as usize + 1,
        "one new key for each request, whatever was killed"
    );

    // No clock runs while the dispatcher has not loaded the new key.
    dispatcher.terminate(PATIENCE).unwrap();
    team.ask("crm", "rotate");
    team.until_reason("whe", "crm", "KeyRotating", "WaitingForDispatcher");
    let overlaps = Instant::now() + 2 * OVERLAP;
    while Instant::now() < overlaps {
        let waiting = keys(&team, "crm");
        assert!(waiting.previous.is_some() && waiting.expires().is_none(), "{waiting:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    dispatcher.restart().unwrap();
    until_keys(&team, "in its overlap", "crm", |k| k.expires().is_some());
    until_keys(&team, "over its overlap", "crm", |k| k.previous.is_none());
}

/// A form that the Secret took.
#[derive(Clone)]
struct Form {
    keys: Keys,
    /// Whether it was listed, as a watch does when it begins again: others may have been before it that were not seen.
    after_others: bool,
}

/// The forms the Secret takes, in order. The receiver gets the new key when its overlap begins, as its owner would.
async fn follow(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    receivers: Arc<Mutex<String>>,
) -> (Arc<Mutex<Vec<Form>>>, tokio::task::JoinHandle<()>) {
    let api = Api::<Secret>::namespaced(admin::client(cluster).await, namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(api, config).default_backoff().boxed();
    let history = Arc::<Mutex<Vec<Form>>>::default();
    let log = history.clone();
    let following = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let (secret, after_others) = match event {
                Ok(watcher::Event::Apply(secret)) => (secret, false),
                Ok(watcher::Event::InitApply(secret)) => (secret, true),
                // After an error it begins again.
                _ => continue,
            };
            let keys = Keys::of(&secret);
            if keys.expires().is_some() {
                *receivers.lock().unwrap() = keys.current.clone();
            }
            log.lock().unwrap().push(Form { keys, after_others });
        }
    });
    (history, following)
}
