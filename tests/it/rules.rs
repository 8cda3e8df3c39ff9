//! What the administrator's policy says beside addresses, through the processes, in a file as kubelet mounts a ConfigMap:
//! hosts and ports, the label of Secrets, undeclared types.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings};

use super::policy::until_invalid;
use super::receiver::{Receiver, keep_answering};
use super::team::{Answer, PATIENCE, Team};

/// A folder as kubelet mounts a ConfigMap: the file leads through `..data`, which is swapped.
pub struct Mounted {
    dir: PathBuf,
    versions: usize,
}

impl Mounted {
    pub fn new(dir: &Path, text: &str) -> Mounted {
        fs::create_dir_all(dir).unwrap();
        let mut mounted = Mounted {
            dir: dir.to_owned(),
            versions: 0,
        };
        mounted.swap(text);
        symlink("..data/policy.yaml", mounted.file()).unwrap();
        mounted
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("policy.yaml")
    }

    pub fn swap(&mut self, text: &str) {
        let before = format!("..version-{}", self.versions);
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        fs::create_dir(self.dir.join(&version)).unwrap();
        fs::write(self.dir.join(&version).join("policy.yaml"), text).unwrap();
        symlink(&version, self.dir.join("..data_tmp")).unwrap();
        fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        if self.versions > 1 {
            fs::remove_dir_all(self.dir.join(before)).unwrap();
        }
    }
}

async fn receiver() -> Receiver {
    Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
        .await
}

async fn until_requests(receiver: &Receiver, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while receiver.requests() < count {
        assert!(Instant::now() < deadline, "{} of {count} came", receiver.requests());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An endpoint with a subscription of its own, by source.
fn apply(team: &Team<'_>, name: &str, url: &str, more: Value) {
    team.endpoint(name, url, more);
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": name},
        "spec": {"endpointRef": {"name": name}, "eventTypes": ["lead.*"], "sources": [format!("/{name}")]}}),
    );
    team.ready(&format!("evsub/{name}"));
}

async fn post(team: &Team<'_>, dispatcher: &Dispatcher, name: &str, id: &str) -> Answer {
    let event = json!({"specversion": "1.0", "id": id, "source": format!("/{name}"), "type": "lead.qualified",
        "data": {"lead": id}});
    team.posting(dispatcher, &event).await.unwrap()
}

async fn send(team: &Team<'_>, dispatcher: &Dispatcher, name: &str, id: &str) {
    let answer = post(team, dispatcher, name, id).await;
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(1)), "{answer:?}");
}

/// The message of Ready.
fn ready_says(team: &Team<'_>, name: &str) -> String {
    let whe = team.get("whe", name);
    let conditions = whe["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    ready["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_ports_labels_and_undeclared_types_are_as_the_policy_says_and_a_swapped_file_changes_them() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let (first, second) = (receiver().await, receiver().await);
    let policy = |hosts: &str, ports: &[u16], label: &str, types: &str| {
        json!({"rules": [
            {"namespaceSelector": {"matchLabels": {"team": "narrow"}},
             "egress": {"openCIDRs": ["127.0.0.0/8"], "hosts": [hosts], "ports": ports}},
            {"namespaceSelector": {"matchLabels": {"team": "trusting"}}, "egress": {"openCIDRs": ["127.0.0.0/8"]},
             "secretLabel": label},
            {"namespaceSelector": {"matchLabels": {"team": "strict"}}, "undeclaredTypes": types},
        ]})
        .to_string()
    };
    let (first_port, second_port) = (first.address.port(), second.address.port());
    let narrow_to_first = policy("127.0.0.1", &[first_port], "NotRequired", "Reject");
    let mut mounted = Mounted::new(&cluster.dir().join("policy"), &narrow_to_first);
    let controller = tidings
        .start_controller(&ControllerOptions {
            policy: mounted.file(),
            ..ControllerOptions::default()
        })
        .unwrap();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            policy: mounted.file(),
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = |name: &str| Team::with_labels(&cluster, name, &[("team", name)]);

    // Hosts and ports: what they leave out is refused with the sentence what is allowed, and never dialled.
    let narrow = team("narrow");
    let url = |host: &str, receiver: &Receiver| format!("https://{host}:{}/", receiver.address.port());
    apply(&narrow, "first", &url("127.0.0.1", &first), json!({}));
    apply(&narrow, "second", &url("127.0.0.1", &second), json!({}));
    apply(&narrow, "other-host", &url("127.0.0.2", &first), json!({}));
    narrow.ready("whe/first");
    for (name, allowed) in [
        ("second", format!("send to port {first_port} only")),
        ("other-host", "send to 127.0.0.1 only".to_owned()),
    ] {
        narrow.until_reason("whe", name, "Ready", "PolicyDenied");
        assert_eq!(narrow.condition("whe", name, "Stalled").unwrap().1, "PolicyDenied");
        let says = ready_says(&narrow, name);
        assert!(says.contains(&allowed), "{says}");
        send(&narrow, &dispatcher, name, "1").await;
        narrow.until_reason("whe", name, "Delivering", "Blocked");
    }
    send(&narrow, &dispatcher, "first", "1").await;
    until_requests(&first, 1).await;

    // The label: without it where the policy asks for none.
    let trusting = team("trusting");
    trusting.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token"},
        "stringData": {"token": "t0ken"}}),
    );
    let bearer = json!({"auth": {"type": "Bearer", "bearer": {"secretKeyRef": {"name": "token", "key": "token"}}}});
    apply(&trusting, "crm", &url("127.0.0.1", &first), bearer);
    trusting.ready("whe/crm");
    send(&trusting, &dispatcher, "crm", "1").await;
    until_requests(&first, 2).await;

    // Undeclared types: refused; an EventType that exists is honoured however new it is, but for the second that a refusal
    // is remembered.
    let strict = team("strict");
    let refused = post(&strict, &dispatcher, "voice", "1").await;
    assert_eq!(
        (refused.status, &refused.body["reason"]),
        (422, &json!("UndeclaredType")),
        "{refused:?}"
    );
    assert!(
        refused.body["detail"].as_str().unwrap().contains("create an EventType"),
        "{refused:?}"
    );
    for round in 0..4 {
        strict.apply(
            &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventType", "metadata": {"name": "qualified"},
            "spec": {"type": "lead.qualified", "schema": {"type": "object"}}}),
        );
        let applied = Instant::now();
        let deadline = applied + PATIENCE;
        if round == 3 {
            // It was asked for in vain a moment ago, and once Ready that does not count.
            strict.ready("evtype/qualified");
            let answer = post(&strict, &dispatcher, "voice", "ready").await;
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        loop {
            let since = applied.elapsed();
            let answer = post(&strict, &dispatcher, "voice", &format!("declared-{round}")).await;
            match answer.status {
                202 => break,
                422 if since <= Duration::from_secs(1) => assert_eq!(answer.body["reason"], "UndeclaredType"),
                503 => assert_eq!(answer.body["reason"], "NotLoaded", "{answer:?}"),
                _ => panic!("a declared type was refused: {answer:?}"),
            }
            assert!(Instant::now() < deadline, "it was never loaded");
        }
        let listed = cluster
            .kubectl_ok(&[
                "get",
                "evtype",
                "-n",
                "strict",
                "--field-selector",
                "spec.type=lead.qualified",
                "-o",
                "name",
            ])
            .unwrap();
        assert_eq!(listed.trim(), "eventtype.tidings.dev/qualified");
        strict.delete("evtype", "qualified");
        let deadline = Instant::now() + PATIENCE;
        while post(
            &strict,
            &dispatcher,
            "voice",
            &format!("deleted-{round}-{:x}", rand::random::<u64>()),
        )
        .await
        .status
            != 422
        {
            assert!(Instant::now() < deadline, "the deleted type is still taken");
        }
    }

    // A field that nobody knows: the file changes nothing, and its name is in the log.
    mounted.swap(&narrow_to_first.replace("undeclaredTypes", "undeclaredType"));
    until_invalid(&controller, &dispatcher, 1);
    assert!(dispatcher.process.log().contains("undeclaredType") && controller.process.log().contains("undeclaredType"));
    send(&narrow, &dispatcher, "first", "2").await;
    until_requests(&first, 3).await;
    assert_eq!(second.accepted(), 0);

    // Another one turns all of it around, without a restart: what waited goes out, what was allowed waits.
    mounted.swap(&policy("127.0.0.1", &[second_port], "Required", "Accept"));
    until_invalid(&controller, &dispatcher, 0);
    narrow.ready("whe/second");
    until_requests(&second, 1).await;
    narrow.until_reason("whe", "first", "Ready", "PolicyDenied");
    trusting.until_reason("whe", "crm", "Ready", "SecretNotAllowed");
    let says = ready_says(&trusting, "crm");
    assert!(
        says.contains("kubectl label secret token -n trusting tidings.dev/use=true"),
        "{says}"
    );
    for (team, name) in [(&narrow, "first"), (&trusting, "crm")] {
        send(team, &dispatcher, name, "3").await;
        team.until("waiting", "whe", name, |whe| whe["status"]["delivery"]["pending"] == 1);
    }
    assert_eq!(post(&strict, &dispatcher, "voice", "accepted").await.status, 202);
    assert_eq!(first.requests(), 3, "nothing was sent to what is not allowed any more");

    // And back: what waited is sent.
    mounted.swap(&narrow_to_first);
    narrow.ready("whe/first");
    trusting.ready("whe/crm");
    until_requests(&first, 5).await;
    assert_eq!(second.requests(), 1);
}
