//! Secrets of teams: who may read which, whose owner opened them, and that their values arrive.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tidings_cluster::{Cluster, SYSTEM_NAMESPACE};

use super::keys::{Checking, look};
use super::receiver::{NEXT_SECRET, Receiver, SECRET, keep_answering};
use super::team::{PATIENCE, Shared, Team};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

pub fn secret(name: &str, is_open: bool, data: Value) -> Value {
    let labels = if is_open {
        json!({"tidings.dev/use": "true"})
    } else {
        json!({})
    };
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data})
}

fn with_header(name: &str) -> Value {
    json!({"headers": [{"name": "x-token", "secretKeyRef": {"name": name, "key": "token"}}]})
}

/// kubectl with the dispatcher's own token.
struct AsDispatcher<'a> {
    cluster: &'a Cluster,
    kubeconfig: PathBuf,
}

impl AsDispatcher<'_> {
    /// What it may not do is an error that says Forbidden.
    fn may(&self, args: &[&str]) -> bool {
        let output = self
            .cluster
            .kubectl_command()
            .env("KUBECONFIG", &self.kubeconfig)
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() || error.contains("Forbidden"),
            "{args:?}: {error}"
        );
        output.status.success()
    }
}

/// What the dispatcher's Roles in a namespace name, as `resource/name`.
pub fn granted(team: &Team) -> BTreeSet<String> {
    let mut granted = BTreeSet::new();
    for role in team.cluster.list(&team.namespace, "role").unwrap() {
        let name = role["metadata"]["name"].as_str().unwrap();
        let Some(number) = name.strip_prefix("tidings-dispatcher-") else {
            continue;
        };
        assert!(number.parse::<u8>().unwrap() < 16, "{name}");
        for rule in role["rules"].as_array().unwrap() {
            assert_eq!(rule["verbs"], json!(["get"]));
            for name in rule["resourceNames"].as_array().expect("names, not everything") {
                granted.insert(format!(
                    "{}/{}",
                    rule["resources"][0].as_str().unwrap(),
                    name.as_str().unwrap()
                ));
            }
        }
    }
    granted
}

fn until_granted(team: &Team, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = granted(team);
        if found == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "granted: {found:?}, not {wanted:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dispatcher_may_read_exactly_what_endpoints_name_and_only_while_they_do() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "named");
    for name in ["crm-token", "other"] {
        team.apply(&secret(name, true, json!({"token": "t"})));
    }
    team.endpoint("crm", "https://127.0.0.1:9/", with_header("crm-token"));
    team.endpoint("erp", "https://127.0.0.1:9/", json!({}));
    team.ready("whe/crm");
    team.ready("whe/erp");
    let all = [
        "configmaps/receiver-ca",
        "secrets/crm-signing",
        "secrets/crm-token",
        "secrets/erp-signing",
    ];
    until_granted(&team, &all);

    let dispatcher = AsDispatcher {
        cluster: shared.cluster,
        kubeconfig: shared
            .cluster
            .kubeconfig_for(SYSTEM_NAMESPACE, "tidings-dispatcher")
            .unwrap(),
    };
    for named in all {
        // `secrets/crm-token` is kubectl's own way to write it.
        assert!(dispatcher.may(&["get", named, "-n", "named"]), "{named}");
    }
    for (kind, name) in [
        ("secret", "other"),
        ("secret", "missing"),
        ("configmap", "kube-root-ca.crt"),
        ("configmap", "crm-token"),
    ] {
        assert!(!dispatcher.may(&["get", kind, name, "-n", "named"]), "{kind} {name}");
    }
    for place in [&["-n", "named"][..], &["-A"], &["-n", SYSTEM_NAMESPACE]] {
        for kind in ["secrets", "configmaps"] {
            assert!(
                !dispatcher.may(&[&["get", kind][..], place].concat()),
                "{kind} {place:?}"
            );
        }
    }
    assert!(
        !dispatcher.may(&["get", "secret", "crm-token", "-n", "default"]),
        "only in that namespace"
    );
    assert!(
        !dispatcher.may(&["annotate", "secret", "crm-token", "-n", "named", "a=b"]),
        "and only to read"
    );

    // What is no longer named is no longer granted, and a namespace without endpoints grants nothing.
    team.endpoint("crm", "https://127.0.0.1:9/", json!({"headers": []}));
    until_granted(
        &team,
        &["configmaps/receiver-ca", "secrets/crm-signing", "secrets/erp-signing"],
    );
    assert!(!dispatcher.may(&["get", "secret", "crm-token", "-n", "named"]));
    team.delete("whe", "crm");
    team.delete("whe", "erp");
    until_granted(&team, &[]);
    let left = shared
        .cluster
        .kubectl_ok(&["get", "roles,rolebindings", "-n", "named", "-o", "name"])
        .unwrap();
    assert!(!left.contains("tidings-dispatcher"), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_somebody_else_took_away_or_changed_is_repaired_when_that_is_asked_for() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "repaired");
    team.endpoint("crm", "https://127.0.0.1:9/", json!({}));
    team.ready("whe/crm");
    let all = ["configmaps/receiver-ca", "secrets/crm-signing"];
    until_granted(&team, &all);
    let bindings = || {
        let args = ["get", "rolebindings", "-n", "repaired", "-o", "name"];
        let listed = shared.cluster.kubectl_ok(&args).unwrap();
        let own = listed.lines().filter(|name| name.contains("/tidings-dispatcher-"));
        own.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = bindings();
    assert!(!before.is_empty());
    for binding in &before {
        shared
            .cluster
            .kubectl_ok(&["delete", binding, "-n", "repaired"])
            .unwrap();
    }
    let role = tidings::controller::grants::shard_name(tidings::controller::grants::shard_of("crm-signing"));
    let rules =
        json!({"rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["other"], "verbs": ["get"]}]});
    let other = rules.to_string();
    let patch = ["patch", "role", &role, "-n", "repaired", "--type=merge", "-p", &other];
    shared.cluster.kubectl_ok(&patch).unwrap();

    team.ask("crm", "reconcile");
    until_granted(&team, &all);
    let deadline = Instant::now() + PATIENCE;
    while bindings() != before {
        assert!(Instant::now() < deadline, "{:?}, not {before:?}", bindings());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_used_only_when_its_owner_opened_it_and_the_message_is_the_command_for_that() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "opened");
    let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, OK)).await;
    team.apply(&secret("crm-token", false, json!({"token": "first\n"})));
    team.endpoint(
        "crm",
        &format!("https://{}/", receiver.address),
        with_header("crm-token"),
    );
    team.subscription("crm", "crm");
    team.until_reason("whe", "crm", "Ready", "SecretNotAllowed");
    team.ready("evsub/crm");
    team.until_reason("whe", "crm", "Delivering", "SecretUnavailable");
    team.send(&shared.dispatcher, "early").await;

    let object = team.get("whe", "crm");
    let ready = object["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap()
        .clone();
    let message = ready["message"].as_str().unwrap();
    let command = &message[message.find("kubectl label").expect("the command is in the message")..];
    assert_eq!(command, "kubectl label secret crm-token -n opened tidings.dev/use=true");
    assert_eq!(receiver.requests(), 0, "the message waits");
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    shared.cluster.kubectl_ok(&args).unwrap();
    look(&team, "crm");
    team.ready("whe/crm");
    until_token(&receiver, 0, "first").await;

    // A new value reaches the receiver.
    team.apply(&secret("crm-token", true, json!({"token": "second"})));
    look(&team, "crm");
    let deadline = Instant::now() + PATIENCE;
    for n in 0.. {
        team.send(&shared.dispatcher, &format!("changed-{n}")).await;
        if until_request(&receiver, n + 1).await == "second" {
            break;
        }
        assert!(Instant::now() < deadline, "the new value is never used");
    }

    // Spoilt values keep the last good one in use; the label taken away does not.
    for (data, reason) in [
        (json!({"token": "a\u{1}b"}), "SecretInvalid"),
        (json!({"other": "x", "token": null}), "SecretKeyMissing"),
    ] {
        let patch = json!({"data": {"token": null}, "stringData": data}).to_string();
        shared
            .cluster
            .kubectl_ok(&[
                "patch",
                "secret",
                "crm-token",
                "-n",
                "opened",
                "--type=merge",
                "-p",
                &patch,
            ])
            .unwrap();
        look(&team, "crm");
        team.until_reason("whe", "crm", "Ready", reason);
        let before = receiver.requests();
        team.send(&shared.dispatcher, reason).await;
        assert_eq!(until_request(&receiver, before).await, "second", "{reason}");
    }
    team.apply(&secret("crm-token", true, json!({"token": "third"})));
    shared
        .cluster
        .kubectl_ok(&["label", "secret", "crm-token", "-n", "opened", "tidings.dev/use-"])
        .unwrap();
    look(&team, "crm");
    team.until_reason("whe", "crm", "Ready", "SecretNotAllowed");
    team.until_reason("whe", "crm", "Delivering", "SecretUnavailable");
    let before = receiver.requests();
    team.send(&shared.dispatcher, "closed").await;
    team.until("waiting", "whe", "crm", |whe| whe["status"]["delivery"]["pending"] == 1);
    assert_eq!(receiver.requests(), before);
    shared.cluster.kubectl_ok(&args).unwrap();
    look(&team, "crm");
    assert_eq!(until_request(&receiver, before).await, "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_said_to_be_missing_and_its_coming_is_noticed_unasked() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "missing");
    let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, OK)).await;
    team.endpoint(
        "crm",
        &format!("https://{}/", receiver.address),
        with_header("crm-token"),
    );
    team.subscription("crm", "crm");
    team.until_reason("whe", "crm", "Ready", "SecretNotFound");
    assert_eq!(team.condition("whe", "crm", "Stalled"), None, "it heals by itself");
    assert_eq!(team.condition("whe", "crm", "Reconciling").unwrap().1, "SecretNotFound");
    team.ready("evsub/crm");
    team.send(&shared.dispatcher, "early").await;
    team.apply(&secret("crm-token", true, json!({"token": "there"})));
    // Looked at once a minute.
    for _ in 0..2 {
        if team.condition("whe", "crm", "Ready").unwrap().0 != "True" {
            let _later = shared
                .cluster
                .wait_for("missing", "whe/crm", "condition=Ready", PATIENCE);
        }
    }
    team.ready("whe/crm");
    until_token(&receiver, 0, "there").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_several_keys_of_ones_own_every_one_signs_and_the_first_is_the_current_one() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "own-keys");
    let receiver = Checking::start().await;
    team.apply(&secret(
        "own",
        true,
        json!({"keys": format!("{SECRET}\n{NEXT_SECRET}\n")}),
    ));
    team.deliver_to(
        "crm",
        &receiver.url(),
        json!({"signing": {"secretRef": {"name": "own", "key": "keys"}}}),
    );
    assert_eq!(
        shared.cluster.get("own-keys", "secret", "crm-signing").unwrap(),
        None,
        "nothing is generated"
    );
    team.send(&shared.dispatcher, "two").await;
    let two = receiver.event("two").await;
    assert_eq!(two.signatures(), 2);
    assert!(two.verifies_with(SECRET) && two.verifies_with(NEXT_SECRET));
    let whe = team.until("signing", "whe", "crm", |whe| {
        whe["status"]["delivery"]["signing"]["keyID"].is_string()
    });
    let status = &whe["status"];
    assert_eq!(status["signing"]["secretName"], "own");
    assert_eq!(status["signing"]["keys"].as_array().unwrap().len(), 1);
    assert_eq!(
        status["signing"]["keys"][0]["id"],
        status["delivery"]["signing"]["keyID"]
    );
}

async fn until_request(receiver: &Receiver, number: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = receiver.seen.lock().unwrap().get(number) {
            return seen.headers["x-token"].to_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "request {number} never came");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

async fn until_token(receiver: &Receiver, number: usize, token: &str) {
    assert_eq!(until_request(receiver, number).await, token);
}

/// What somebody would try who has the controller's token.
#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_token_writes_signing_keys_alone_and_grants_nobody_but_the_dispatcher() {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    const ROLE: &str = "tidings-dispatcher-7";
    const OTHER_ROLE: &str = "tidings-dispatcher-8";
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "taken-over");
    let kubeconfig = shared
        .cluster
        .kubeconfig_for(SYSTEM_NAMESPACE, "tidings-controller")
        .unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let written = |mut object: Value| {
        object["metadata"]["namespace"] = json!(team.namespace);
        let args = ["--kubeconfig", kubeconfig, "apply", "--server-side", "-f", "-"];
        let output = shared.cluster.kubectl_with_input(&args, &object.to_string()).unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    let refused = |object: Value, sentence: &str| {
        let refusal = written(object.clone()).expect_err(&object.to_string());
        assert!(refusal.contains(sentence), "{object}: {refusal}");
    };

    // Kubernetes would put the account's token into it.
    let token = |kind: &str| {
        json!({"apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": "agents", "annotations": {"kubernetes.io/service-account.name": "default"}}})
    };
    for kind in ["kubernetes.io/service-account-token", "Opaque"] {
        refused(
            token(kind),
            "Tidings' controller writes signing keys, no other Secrets.",
        );
    }
    written(token("tidings.dev/signing-key")).unwrap();
    team.apply(&secret("crm-token", true, json!({"token": "theirs"})));
    let theirs =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crm-token"}, "stringData": {"more": "x"}});
    refused(theirs, "Tidings' controller writes signing keys, no other Secrets.");

    let role = |name: &str, rule: Value| json!({"apiVersion": RBAC, "kind": "Role", "metadata": {"name": name}, "rules": [rule]});
    let named = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]});
    let sentence = "Tidings' controller grants get on named Secrets and ConfigMaps, and nothing else.";
    for (field, value) in [
        ("resourceNames", json!([])),
        ("verbs", json!(["get", "patch"])),
        ("resources", json!(["secrets", "services"])),
    ] {
        let mut rule = named.clone();
        rule[field] = value;
        refused(role(ROLE, rule), sentence);
    }
    written(role(ROLE, named.clone())).unwrap();
    written(role(OTHER_ROLE, named)).unwrap();

    let binding = |role: &str, subject: Value| {
        json!({"apiVersion": RBAC, "kind": "RoleBinding", "metadata": {"name": ROLE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role}, "subjects": [subject]})
    };
    let dispatcher = json!({"kind": "ServiceAccount", "name": "tidings-dispatcher", "namespace": SYSTEM_NAMESPACE});
    let sentence = "Tidings' controller grants to Tidings' dispatcher, and to nobody else.";
    for subject in [
        json!({"kind": "ServiceAccount", "name": "default", "namespace": team.namespace}),
        json!({"kind": "ServiceAccount", "name": "tidings-dispatcher", "namespace": team.namespace}),
        json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "tidings-dispatcher"}),
    ] {
        refused(binding(ROLE, subject), sentence);
    }
    refused(binding(OTHER_ROLE, dispatcher.clone()), sentence);
    written(binding(ROLE, dispatcher)).unwrap();
}
