//! The ground itself: the cluster starts, RBAC is what it claims to be, nothing is left behind.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidings_cluster::{Cluster, SYSTEM_NAMESPACE, Tidings, process};

use super::team::PATIENCE;

const DISPATCHER: &str = "system:serviceaccount:tidings-system:tidings-dispatcher";
const CONTROLLER: &str = "system:serviceaccount:tidings-system:tidings-controller";

#[test]
fn the_cluster_is_the_kubernetes_that_was_chosen() {
    let cluster = Cluster::shared().unwrap();
    let shown = cluster.kubectl_ok(&["version", "-o", "json"]).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let Some(version) = cluster.binaries().kubernetes_version().unwrap() else {
        return;
    };
    for side in ["clientVersion", "serverVersion"] {
        assert_eq!(shown[side]["gitVersion"], format!("v{version}"));
    }
}

#[test]
fn nobody_lists_secrets_and_nobody_publishes_without_being_named() {
    let cluster = Cluster::shared().unwrap();
    Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
    let may = |user: &str, verb: &str, resource: &str| cluster.can_i(user, "default", verb, resource).unwrap();

    for user in [DISPATCHER, CONTROLLER] {
        for verb in ["list", "watch", "delete", "deletecollection"] {
            assert!(!may(user, verb, "secrets"), "{user} may {verb} secrets");
            assert!(!may(user, verb, "configmaps"), "{user} may {verb} configmaps");
        }
        assert!(may(user, "watch", "webhookendpoints.tidings.dev"));
        assert!(
            !may(user, "patch", "webhookendpoints.tidings.dev"),
            "only status is written"
        );
    }
    assert!(!may(DISPATCHER, "get", "secrets"));
    assert!(!may(DISPATCHER, "get", "configmaps"));
    assert!(may(DISPATCHER, "create", "subjectaccessreviews.authorization.k8s.io"));
    assert!(may(CONTROLLER, "get", "secrets"));
    assert!(may(CONTROLLER, "create", "roles/tidings-dispatcher-15"));
    assert!(!may(CONTROLLER, "create", "roles/tidings-dispatcher-16"));
    assert!(!may(CONTROLLER, "create", "roles/another"));
}

#[test]
fn edit_writes_the_kinds_and_reads_messages_and_view_only_looks() {
    let cluster = Cluster::shared().unwrap();
    Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
    cluster.create_namespace("roles", &[]).unwrap();
    for role in ["view", "edit", "admin"] {
        let (clusterrole, user) = (format!("--clusterrole={role}"), format!("--user={role}-user"));
        let args = ["create", "rolebinding", role, "-n", "roles", &clusterrole, &user];
        cluster.kubectl_ok(&args).unwrap();
    }
    // The aggregation controller fills the built-in roles a moment after ours are applied.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !cluster
        .can_i("admin-user", "roles", "create", "webhookendpoints.tidings.dev")
        .unwrap()
    {
        assert!(Instant::now() < deadline, "the roles were not aggregated");
    }
    let may = |user: &str, verb: &str, resource: &str| cluster.can_i(user, "roles", verb, resource).unwrap();
    for resource in [
        "webhookendpoints.tidings.dev",
        "eventsubscriptions.tidings.dev",
        "eventtypes.tidings.dev",
        "replays.tidings.dev",
    ] {
        assert!(may("view-user", "list", resource));
        assert!(!may("view-user", "create", resource));
        for user in ["edit-user", "admin-user"] {
            assert!(may(user, "patch", resource) && may(user, "delete", resource));
        }
    }
    for user in ["view-user", "edit-user", "admin-user"] {
        assert!(!may(user, "publish", "eventtypes.tidings.dev/lead.qualified"), "{user}");
    }
}

#[test]
fn a_producers_grant_is_a_role_that_kubectl_understands() {
    let cluster = Cluster::shared().unwrap();
    Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
    cluster.create_namespace("granted", &[]).unwrap();
    cluster
        .create_producer("granted", "agent", &["lead.qualified"])
        .unwrap();
    let agent = "system:serviceaccount:granted:agent";
    let may = |resource: &str| cluster.can_i(agent, "granted", "publish", resource).unwrap();
    assert!(may("eventtypes.tidings.dev/lead.qualified"));
    assert!(!may("eventtypes.tidings.dev/lead.lost"));
    assert_eq!(
        cluster
            .token("granted", "agent", Some("tidings"))
            .unwrap()
            .split('.')
            .count(),
        3
    );
}

#[test]
fn a_real_token_reaches_the_api_server_as_its_service_account() {
    let cluster = Cluster::shared().unwrap();
    Tidings::install(cluster, env!("CARGO_BIN_EXE_tidings")).unwrap();
    let kubeconfig = cluster.kubeconfig_for(SYSTEM_NAMESPACE, "tidings-dispatcher").unwrap();
    let as_dispatcher = |args: &[&str]| {
        let mut command = cluster.kubectl_command();
        command.env("KUBECONFIG", &kubeconfig).args(args).output().unwrap()
    };
    assert!(as_dispatcher(&["get", "whe", "-A"]).status.success());
    let refused = as_dispatcher(&["get", "secrets", "-A"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains(DISPATCHER), "{why}");
}

#[test]
fn the_api_server_comes_back_with_what_it_knew() {
    let cluster = Cluster::start().unwrap();
    cluster.create_namespace("kept", &[]).unwrap();
    cluster.stop_api_server();
    assert!(
        !cluster
            .kubectl(&["get", "ns", "kept", "--request-timeout=2s"])
            .unwrap()
            .status
            .success()
    );
    cluster.start_api_server().unwrap();
    assert!(cluster.get("default", "namespace", "kept").unwrap().is_some());
    let (dir, pids) = (cluster.dir().to_path_buf(), cluster.pids());
    assert_eq!(pids.len(), 3);
    drop(cluster);
    assert!(!dir.exists() && !pids.into_iter().any(process::exists));
}

/// Not a test of its own: what the next one kills.
#[test]
#[ignore = "started by killing_the_test_process_leaves_no_child_behind"]
fn start_a_cluster_and_wait_to_be_killed() {
    if std::env::var_os("TIDINGS_TEST_TO_BE_KILLED").is_none() {
        return;
    }
    // In a thread that ends at once: a child must live as long as the process, not as long as who asked for it.
    let cluster = std::thread::spawn(|| Cluster::start().unwrap()).join().unwrap();
    let pids: Vec<String> = cluster.pids().iter().map(u32::to_string).collect();
    println!("\npids {}", pids.join(" "));
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn killing_the_test_process_leaves_no_child_behind() {
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "it::ground::start_a_cluster_and_wait_to_be_killed",
            ])
            .env("TIDINGS_TEST_TO_BE_KILLED", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let line = output
            .lines()
            .map(Result::unwrap)
            .find(|line| line.starts_with("pids "))
            .unwrap();
        let pids: Vec<u32> = line.split(' ').skip(1).map(|pid| pid.parse().unwrap()).collect();
        assert_eq!(pids.len(), 3);
        assert!(pids.iter().all(|pid| process::exists(*pid)), "all run before the kill");
        process::signal(child.id(), signal);
        child.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while pids.iter().any(|pid| process::exists(*pid)) {
            assert!(Instant::now() < deadline, "a child outlived signal {signal}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Not a test of its own: what the next one runs.
#[test]
#[ignore = "started by a_run_whose_processes_logged_a_secret_fails"]
fn log_a_secret_in_the_shared_cluster() {
    if std::env::var_os("TIDINGS_TEST_THAT_LEAKS").is_some() {
        let log = Cluster::shared().unwrap().logs_dir().join("dispatcher.log");
        std::fs::write(log, format!("signing with {KEY}\n")).unwrap();
    }
}

#[test]
fn a_cluster_that_another_test_had_is_what_it_was_before() {
    let cluster = Cluster::lend().unwrap();
    let listed = |kinds: &str| cluster.kubectl_ok(&["get", kinds, "-A", "-o", "name"]).unwrap();
    let everything = "namespaces,serviceaccounts,secrets,roles,rolebindings,clusterroles,crd,configmaps,whe,services";
    let get_schema = [
        "get",
        "crd",
        "webhookendpoints.tidings.dev",
        "-o",
        "jsonpath={.spec.versions}",
    ];
    let (before, schema) = (listed(everything), cluster.kubectl_ok(&get_schema).unwrap());

    for _ in 0..2 {
        // What is made is gone, even what only a controller of the cluster would remove.
        cluster.create_namespace("used", &[]).unwrap();
        cluster
            .create_producer("used", "somebody", &["lead.qualified"])
            .unwrap();
        let endpoint = "{apiVersion: tidings.dev/v1alpha1, kind: WebhookEndpoint, \
            metadata: {name: crm, namespace: used, finalizers: [example.com/never]}, spec: {url: 'https://example.com/'}}";
        cluster.apply(endpoint).unwrap();
        tidings_cluster::eventually("the namespace's ServiceAccount", PATIENCE, || {
            Ok(cluster.get("used", "serviceaccount", "default")?.is_some())
        })
        .unwrap();
        // What is changed is as it was, and what is removed is back.
        let remove = r#"[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}]"#;
        let patch = [
            "patch",
            "crd",
            "webhookendpoints.tidings.dev",
            "--type=json",
            "-p",
            remove,
        ];
        cluster.kubectl_ok(&patch).unwrap();
        cluster
            .kubectl_ok(&["delete", "clusterrole", "tidings-dispatcher"])
            .unwrap();
        std::fs::write(cluster.dir().join("policy.yaml"), "{}").unwrap();
        std::fs::write(cluster.logs_dir().join("controller-0-0.log"), "{}").unwrap();
        assert_ne!(listed(everything), before);

        cluster.set_back().unwrap();
        assert_eq!(listed(everything), before);
        assert_eq!(cluster.kubectl_ok(&get_schema).unwrap(), schema);
        assert!(!cluster.dir().join("policy.yaml").exists());
        assert!(!cluster.logs_dir().join("controller-0-0.log").exists());
    }
}

#[test]
fn a_run_whose_processes_logged_a_secret_fails() {
    let lent = Cluster::lend().unwrap();
    std::fs::write(lent.logs_dir().join("controller.log"), format!("made {KEY}\n")).unwrap();
    let pid = lent.pids()[0];
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lent)));
    let why = *dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(why.contains("controller.log line 1") && !why.contains(KEY), "{why}");
    assert!(!process::exists(pid), "nobody else gets what it was in");

    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "it::ground::log_a_secret_in_the_shared_cluster"])
        .env("TIDINGS_TEST_THAT_LEAKS", "1")
        .output()
        .unwrap();
    let (said, why) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(said.contains("1 passed"), "the test itself saw nothing: {said}{why}");
    assert!(
        !run.status.success() && why.contains("dispatcher.log line 1") && !why.contains(KEY),
        "{why}"
    );
}
