//! What `deploy/argocd` says of our kinds and does with them, by a real Lua 5.1, which is what Argo CD's interpreter speaks,
//! with the libraries that it opens.

use std::fs;

use mlua::{Lua, LuaOptions, LuaSerdeExt as _, SerializeOptions, StdLib, Table};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chart::{kept, path};
use super::team::{Shared, Team, Webhooks};

/// A script that says which actions are offered, and the actions.
type Actions = (&'static str, &'static [&'static str]);

/// Each kind with its health and its actions.
pub const KINDS: [(&str, &str, Option<Actions>); 4] = [
    (
        "WebhookEndpoint",
        "health.lua",
        Some((ENDPOINT, &["suspend", "resume", "rotate", "enable"])),
    ),
    (
        "EventSubscription",
        "health.lua",
        Some((SUBSCRIPTION, &["suspend", "resume"])),
    ),
    ("EventType", "health.lua", None),
    ("Replay", "replay-health.lua", None),
];
const ENDPOINT: &str = "actions/endpoint-discovery.lua";
const SUBSCRIPTION: &str = "actions/subscription-discovery.lua";

/// Nothing is sent here.
const NOBODY: &str = "https://127.0.0.1:9/";

fn script(name: &str) -> String {
    fs::read_to_string(path("deploy/argocd").join(name)).unwrap()
}

/// What a script gives for an object.
fn run(name: &str, object: &Value) -> Value {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::OS, LuaOptions::new()).unwrap();
    let os: Table = lua.globals().get("os").unwrap();
    let date: mlua::Function = os.get("date").unwrap();
    os.clear().unwrap();
    os.set("date", date).unwrap();
    let absent = SerializeOptions::new()
        .set_array_metatable(false)
        .serialize_none_to_null(false)
        .serialize_unit_to_null(false);
    lua.globals()
        .set("obj", lua.to_value_with(object, absent).unwrap())
        .unwrap();
    let given = lua.load(script(name)).set_name(name).eval().unwrap();
    lua.from_value(given).unwrap()
}

/// Whether an action is offered for an object.
fn offered(discovery: &str, object: &Value, action: &str) -> bool {
    run(discovery, object)[action]["disabled"] == json!(false)
}

/// An object, and what is said of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    pub name: String,
    /// Of `deploy/argocd`.
    pub script: String,
    pub object: Value,
    pub health: Value,
    /// Where kstatus does not say the same.
    pub kstatus: Option<String>,
}

pub fn fixtures() -> Vec<Fixture> {
    let text = fs::read_to_string(path("tests/argocd/health.yaml")).unwrap();
    let fixtures: Vec<Fixture> = serde_yaml::from_str(&text).unwrap();
    assert!(fixtures.len() > 15, "the fixtures are read whole");
    fixtures
}

#[test]
fn each_object_has_the_health_that_its_status_means() {
    for fixture in fixtures() {
        assert_eq!(
            run(&fixture.script, &fixture.object),
            fixture.health,
            "{}",
            fixture.name
        );
        // A sync with waves or hooks never gets past it.
        assert_ne!(fixture.health["status"], "Suspended", "{}", fixture.name);
    }
}

#[test]
fn an_action_is_offered_where_it_means_something() {
    let endpoint = |spec: Value, reason: &str| json!({"spec": spec, "status": {"conditions": [{"type": "Delivering", "status": "False", "reason": reason}]}});
    let of_endpoint = |object: &Value| -> Vec<&str> {
        let actions = ["suspend", "resume", "rotate", "enable"];
        actions
            .into_iter()
            .filter(|action| offered(ENDPOINT, object, action))
            .collect()
    };
    for (object, actions) in [
        (json!({"spec": {}}), vec!["suspend", "rotate"]),
        (
            endpoint(json!({"suspend": true}), "Suspended"),
            vec!["resume", "rotate"],
        ),
        (
            endpoint(json!({"suspend": false}), "Disabled"),
            vec!["suspend", "rotate", "enable"],
        ),
        (json!({"spec": {"signing": {"scheme": "GitHub"}}}), vec!["suspend"]),
        (json!({"spec": {"signing": {"scheme": "None"}}}), vec!["suspend"]),
        (
            json!({"spec": {"signing": {"secretRef": {"name": "ours", "key": "key"}}}}),
            vec!["suspend"],
        ),
    ] {
        assert_eq!(of_endpoint(&object), actions, "{object}");
    }
    for suspended in [false, true] {
        let object = json!({"spec": {"suspend": suspended}});
        assert_eq!(offered(SUBSCRIPTION, &object, "suspend"), !suspended);
        assert_eq!(offered(SUBSCRIPTION, &object, "resume"), suspended);
    }
}

/// Does an action to `crm` as Argo CD does, which sends what the script changed as a merge patch. What it was before.
fn act(team: &Team, kind: &str, discovery: &str, action: &str) -> Value {
    let before = team.get(kind, "crm");
    assert!(offered(discovery, &before, action), "{action}: {before}");
    let after = run(&format!("actions/{action}.lua"), &before);
    let patch = json!({"metadata": {"annotations": after["metadata"]["annotations"]},
        "spec": {"suspend": after["spec"]["suspend"]}});
    let args = [
        "patch",
        kind,
        "crm",
        "-n",
        &team.namespace,
        "--type=merge",
        "-p",
        &patch.to_string(),
    ];
    team.cluster.kubectl_ok(&args).unwrap();
    before
}

/// Waits until `crm` is healthy, and this is said of it.
fn until_healthy(team: &Team, kind: &str, saying: &str) {
    team.until(saying, kind, "crm", |object| {
        let said = run("health.lua", object);
        said["status"] == "Healthy" && said["message"].as_str().unwrap().starts_with(saying)
    });
}

#[test]
fn the_actions_do_to_a_real_endpoint_what_they_are_called() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "argocd");
    team.deliver_to("crm", NOBODY, json!({}));
    let health = |object: &Value| run("health.lua", object)["status"].clone();
    let until = |what: &str| team.until(what, "whe", "crm", |object| health(object) == what);
    let act = |action: &str| act(&team, "whe", ENDPOINT, action);
    until("Healthy");
    act("suspend");
    until_healthy(&team, "whe", "Suspended: ");
    act("resume");
    until_healthy(&team, "whe", "Resolved: ");
    let before = act("rotate");
    let key = |object: &Value| object["status"]["signing"]["keys"][0]["id"].clone();
    team.until("with another key", "whe", "crm", |object| key(object) != key(&before));

    team.endpoint("inside", "https://10.0.0.1/", json!({}));
    team.until("Degraded", "whe", "inside", |object| health(object) == "Degraded");
    let missing = json!({"headers": [{"name": "X-Token", "secretKeyRef": {"name": "missing", "key": "token"}}]});
    team.endpoint("unfinished", NOBODY, missing);
    let waiting = team.until("SecretNotFound", "whe", "unfinished", |object| {
        run("health.lua", object)["message"]
            .as_str()
            .is_some_and(|said| said.starts_with("SecretNotFound: "))
    });
    assert_eq!(health(&waiting), "Progressing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_action_enable_lets_a_real_endpoint_that_is_disabled_deliver_again() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "argocd-enable");
    let webhooks = Webhooks::answering(|_, earlier| if earlier == 0 { 410 } else { 200 }).await;
    team.deliver_to("crm", &webhooks.url(), json!({}));
    team.send(&shared.dispatcher, "gone").await;
    until_healthy(&team, "whe", "Disabled: ");
    assert_eq!(webhooks.times("gone"), 1);
    act(&team, "whe", ENDPOINT, "enable");
    webhooks.until("the next answer", |all| all.len() == 2).await;
    until_healthy(&team, "whe", "Resolved: ");
    assert!(!offered(ENDPOINT, &team.get("whe", "crm"), "enable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_actions_do_to_a_real_subscription_what_they_are_called() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "argocd-subscription");
    let webhooks = Webhooks::start().await;
    team.deliver_to("crm", &webhooks.url(), json!({}));
    act(&team, "evsub", SUBSCRIPTION, "suspend");
    until_healthy(&team, "evsub", "Suspended: ");
    team.ready("evsub/crm");
    team.send(&shared.dispatcher, "waits").await;
    team.until("pending", "evsub", "crm", |object| {
        object["status"]["delivery"]["pending"] == 1
    });
    assert_eq!(webhooks.times("waits"), 0);
    act(&team, "evsub", SUBSCRIPTION, "resume");
    until_healthy(&team, "evsub", "Resolved: ");
    webhooks.until("what waited", |all| all.len() == 1).await;
}

#[test]
fn the_patch_for_argo_cd_is_made_of_the_scripts() {
    let indented = |name: &str, by: usize| -> String {
        let lines = script(name);
        lines
            .lines()
            .map(|line| format!("{:by$}{line}", "").trim_end().to_owned() + "\n")
            .collect()
    };
    let mut text =
        "# Made of the scripts in this folder by `make manifests`. Teaches Argo CD what Tidings' kinds mean:\n\
                    #   kubectl patch configmap argocd-cm -n argocd --patch-file deploy/argocd/argocd-cm.yaml\n\
                    apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\n  namespace: argocd\ndata:\n"
            .to_owned();
    for (kind, health, actions) in KINDS {
        text += &format!(
            "  resource.customizations.health.tidings.dev_{kind}: |\n{}",
            indented(health, 4)
        );
        let Some((discovery, actions)) = actions else { continue };
        text += &format!("  resource.customizations.actions.tidings.dev_{kind}: |\n    discovery.lua: |\n");
        text += &indented(discovery, 6);
        text += "    definitions:\n";
        for action in actions {
            text += &format!("      - name: {action}\n        action.lua: |\n");
            text += &indented(&format!("actions/{action}.lua"), 10);
        }
    }
    kept(&path("deploy/argocd/argocd-cm.yaml"), &text);
    let parsed: Value = serde_yaml::from_str(&text).unwrap();
    let actions = &parsed["data"]["resource.customizations.actions.tidings.dev_WebhookEndpoint"];
    let actions: Value = serde_yaml::from_str(actions.as_str().unwrap()).unwrap();
    assert_eq!(actions["definitions"][3]["action.lua"], script("actions/enable.lua"));
}
