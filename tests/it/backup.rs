//! Backup and restore as docs/backup.md has them: a copy of the volume of one instant, taken under load, delivers what was
//! pending; a copy of the keys brings back the key that receivers know.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Page, Tidings};
use tokio_util::sync::CancellationToken;

use super::receiver::{Receiver, Seen, keep_answering};
use super::team::{Team, Webhooks, until};

/// A copy of the store's directory at one instant, as a snapshot of the volume is one: nothing runs meanwhile.
fn snapshot(dispatcher: &Dispatcher, into: &Path) {
    dispatcher.process.signal(libc::SIGSTOP);
    let copied = Command::new("cp")
        .arg("-r")
        .arg(&dispatcher.data_dir)
        .arg(into)
        .status();
    dispatcher.process.signal(libc::SIGCONT);
    assert!(copied.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_the_volume_taken_while_it_runs_delivers_what_was_pending() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "backup");
    let webhooks = Webhooks::start().await;
    team.deliver_to("crm", &webhooks.url(), json!({}));
    team.send(&dispatcher, "delivered").await;
    webhooks.until("delivered", |all| all.len() == 1).await;
    team.endpoint("crm", &webhooks.url(), json!({"suspend": true}));
    team.until_reason("whe", "crm", "Delivering", "Suspended");
    // Something is always being written, before, at and after the instant.
    let mut before = Vec::new();
    for n in 0..50 {
        before.push(format!("before-{n}"));
        team.send(&dispatcher, before.last().unwrap()).await;
    }
    let (stop, accepted) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
    let load = tokio::spawn({
        let (post, stop, accepted) = (team.poster(&dispatcher), stop.clone(), accepted.clone());
        async move {
            while !stop.is_cancelled() {
                let n = accepted.load(Ordering::SeqCst);
                let event = super::team::lead(&format!("meanwhile-{n}"), "lead.qualified");
                let answer = post(&event).await.unwrap();
                assert_eq!(answer.status, 202, "{answer:?}");
                accepted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let until_accepted = async |count: usize| {
        until("load", async || {
            load.is_finished() || accepted.load(Ordering::SeqCst) >= count
        })
        .await;
    };
    until_accepted(1).await;
    let copy = cluster.dir().join("restored");
    snapshot(&dispatcher, &copy);
    until_accepted(accepted.load(Ordering::SeqCst) + 1).await;
    stop.cancel();
    load.await.unwrap();
    team.send(&dispatcher, "after").await;

    // The volume is lost.
    dispatcher.kill9();
    fs::remove_dir_all(&dispatcher.data_dir).unwrap();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            data_dir: Some(copy),
            ..DispatcherOptions::default()
        })
        .unwrap();
    team.endpoint("crm", &webhooks.url(), json!({"suspend": false}));
    team.until("drained", "whe", "crm", |whe| {
        whe["status"]["delivery"]["pending"] == 0 && whe["status"]["delivery"]["lastSuccess"]["time"].is_string()
    });
    for event in &before {
        webhooks
            .until(event, |all| all.iter().any(|one| one.event == *event))
            .await;
        assert_eq!(webhooks.times(event), 1, "{event}");
    }
    assert_eq!(webhooks.times("delivered"), 1, "it is known that it was delivered");
    assert_eq!(webhooks.times("after"), 0, "the copy does not know it");
    // Nor is what the copy knows accepted twice.
    let again = team.post(&dispatcher, &before[0], "lead.qualified").await;
    assert_eq!(
        (again.status, &again.body["duplicate"]),
        (200, &json!(true)),
        "{again:?}"
    );
    assert_eq!(team.post(&dispatcher, "after", "lead.qualified").await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_restored_as_the_page_says_are_those_that_receivers_know() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let dispatcher = tidings.start_dispatcher(&DispatcherOptions::default()).unwrap();
    let team = Team::open(&cluster, "keys");
    let receiver =
        Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")).await;
    let url = format!("https://{}/", receiver.address);
    team.deliver_to("crm", &url, json!({}));
    let key = || {
        let template = "go-template={{.data.current | base64decode}}";
        let args = ["get", "secret", "crm-signing", "-n", &team.namespace, "-o", template];
        cluster.kubectl_ok(&args).unwrap()
    };
    let known = key();

    let page = Page::read("docs/backup.md");
    let commands: Vec<String> = page
        .blocks()
        .into_iter()
        .filter(|block| block.heading == "Keys" && block.language == "sh")
        .map(|block| block.text)
        .collect();
    let [save, restore] = &*commands else {
        panic!("{commands:?}")
    };
    let folder = tempfile::tempdir().unwrap();
    let path = format!(
        "{}:{}",
        cluster.binaries().kubectl.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let run = |script: &str| {
        let output = Command::new("sh")
            .args(["-euc", script])
            .current_dir(folder.path())
            .env("KUBECONFIG", cluster.kubeconfig_path())
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(save);
    let kept: Value = serde_json::from_slice(&fs::read(folder.path().join("keys.json")).unwrap()).unwrap();
    assert_eq!(kept["items"].as_array().unwrap().len(), 1);

    team.delete("secret", "crm-signing");
    team.ask("crm", "reconcile");
    team.until_event("crm", "SigningKeyLost");
    assert_ne!(key(), known);
    run(restore);
    // Sooner than the controller's next look, within a minute.
    team.ask("crm", "reconcile");
    assert_eq!(key(), known);
    let id = team.get("secret", "crm-signing")["metadata"]["annotations"]["tidings.dev/current-id"].clone();
    team.until("in use", "whe", "crm", |whe| {
        whe["status"]["delivery"]["signing"]["keyID"] == id && whe["status"]["signing"]["keys"][0]["id"] == id
    });
    team.send(&dispatcher, "lead-1").await;
    team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 204
    });
    let seen = receiver.seen.lock().unwrap();
    let request: &Seen = &seen[0];
    let webhook = standardwebhooks::Webhook::new(&known).unwrap();
    webhook.verify(&request.body, &request.headers).unwrap();
}
