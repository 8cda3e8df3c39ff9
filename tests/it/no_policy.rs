//! Processes that are started with a policy file that cannot be used: they do nothing until it can, rather than what it
//! forbids.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use tidings_cluster::process::http_get;
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, SYSTEM_NAMESPACE, Tidings};

use super::leader::{holder, until_leads};
use super::policy::{replace, until_invalid};
use super::team::{PATIENCE, TYPES, Team, Webhooks, until};

/// Longer than the file is read again.
const A_WHILE: Duration = Duration::from_secs(6);

/// Whether `/readyz` says that there is no policy.
fn lacks_a_policy(metrics_port: u16) -> bool {
    http_get(metrics_port, "/readyz").is_some_and(|(status, why)| status == 503 && why.contains("no valid policy file"))
}

/// Producers are told to try again, whatever they post and however often, and are told nothing else meanwhile.
async fn only_503_for_a_while(team: &Team<'_>, dispatcher: &Dispatcher) {
    let deadline = Instant::now() + PATIENCE;
    let (mut told, mut first) = (0, None);
    while told <= 10 || first.is_none_or(|first: Instant| first.elapsed() < A_WHILE) {
        assert!(Instant::now() < deadline, "{told} answers");
        // It may not listen yet.
        if let Ok(answer) = team.try_post(dispatcher, "early", TYPES[0]).await {
            assert_eq!(
                (answer.status, &answer.body["reason"]),
                (503, &json!("NotSynced")),
                "{answer:?}"
            );
            told += 1;
            first.get_or_insert_with(Instant::now);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_without_a_usable_policy_does_nothing_until_there_is_one() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let good = json!({"rules": [
        {"namespaceSelector": {"matchLabels": {"team": "sales"}}, "egress": {"openCIDRs": ["127.0.0.0/8"]}},
        {"namespaceSelector": {"matchLabels": {"team": "strict"}}, "undeclaredTypes": "Reject"},
    ]})
    .to_string();
    let misspelt = good.replace("egress", "egres");
    let policy = cluster.dir().join("policy.yaml");
    fs::write(&policy, &good).unwrap();
    let options = ControllerOptions {
        policy: policy.clone(),
        ..ControllerOptions::default()
    };
    let mut controller = tidings.start_controller(&options).unwrap();
    let options = DispatcherOptions {
        policy: policy.clone(),
        ..DispatcherOptions::default()
    };
    let mut dispatcher = tidings.start_dispatcher(&options).unwrap();
    let team = |name: &str| Team::with_labels(&cluster, name, &[("team", name)]);
    let (sales, strict) = (team("sales"), team("strict"));
    let webhooks = Webhooks::start().await;
    sales.deliver_to("crm", &webhooks.url(), json!({"suspend": true}));
    sales.send(&dispatcher, "waits").await;

    // The dispatcher: neither a file that is gone nor one that is wrong is a policy that narrows nothing.
    dispatcher.kill9();
    fs::remove_file(&policy).unwrap();
    sales.endpoint("crm", &webhooks.url(), json!({"suspend": false}));
    dispatcher.process.start_again().unwrap();
    only_503_for_a_while(&strict, &dispatcher).await;
    replace(&policy, &misspelt);
    only_503_for_a_while(&strict, &dispatcher).await;
    until_invalid(&controller, &dispatcher, 1);
    assert!(lacks_a_policy(dispatcher.metrics_port));
    let log = dispatcher.process.log();
    assert!(log.contains("nothing is done before there is one"), "{log}");
    assert_eq!(webhooks.arrived().len(), 0);

    // Mended: from the first answer on it is as the policy says, and what waited is sent.
    replace(&policy, &good);
    until("an answer by the policy", async || {
        let answer = strict.post(&dispatcher, "early", TYPES[0]).await;
        assert!(
            [&json!("NotSynced"), &json!("UndeclaredType")].contains(&&answer.body["reason"]),
            "{answer:?}"
        );
        answer.status == 422
    })
    .await;
    dispatcher.wait_ready().unwrap();
    webhooks.until("delivered", |all| all.len() == 1).await;
    sales.ready("whe/crm");

    // The controller: it leaves the Lease to others and every status as it is.
    controller.process.terminate(PATIENCE).unwrap();
    replace(&policy, &misspelt);
    controller.process.start_again().unwrap();
    until("no policy", async || lacks_a_policy(controller.metrics_port)).await;
    sales.endpoint("late", &webhooks.url(), json!({}));
    let end = Instant::now() + A_WHILE;
    while Instant::now() < end {
        assert_eq!(sales.condition("whe", "late", "Ready"), None);
        assert_eq!(sales.condition("whe", "crm", "Ready").unwrap().0, "True");
        assert_eq!(holder(&cluster), "");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    replace(&policy, &good);
    controller.wait_ready().unwrap();
    sales.ready("whe/late");

    // One that leads again goes on with the last policy that was valid.
    replace(&policy, &misspelt);
    until_invalid(&controller, &dispatcher, 1);
    let somebody_else = r#"{"spec":{"holderIdentity":"somebody-else"}}"#;
    let lease = [
        "patch",
        "lease",
        "tidings-controller",
        "-n",
        SYSTEM_NAMESPACE,
        "--type=merge",
        "-p",
    ];
    cluster.kubectl_ok(&[&lease[..], &[somebody_else]].concat()).unwrap();
    until_leads(&cluster, &controller, "controller-0");
    sales.endpoint("after", &webhooks.url(), json!({}));
    sales.ready("whe/after");
    for name in ["crm", "late"] {
        assert_eq!(sales.condition("whe", name, "Ready").unwrap().0, "True", "{name}");
    }
}
