//! What no manifest of ours may have: a privilege that is not needed, a Secret that somebody lists, an image that changes.
//!
//! Looks at everything that is kept, whoever made it. Knows Kubernetes' fields, and nothing of ours.

use std::fs;

use serde_json::{Value, json};

use super::{SETS, documents, path};

/// Roles may not hold these: each makes its holder somebody else, or more than he is.
const POWERS: [&str; 3] = ["bind", "escalate", "impersonate"];

/// Every file with manifests that somebody applies.
fn kept() -> Vec<(String, Vec<Value>)> {
    let mut files: Vec<String> = SETS
        .iter()
        .map(|set| format!("tests/chart/{set}.rendered.yaml"))
        .collect();
    files.extend(["deploy/install.yaml", "deploy/operator/workloads.yaml"].map(String::from));
    for entry in fs::read_dir(path("deploy/rbac")).unwrap() {
        files.push(format!("deploy/rbac/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    let read = |file: String| {
        let text = fs::read_to_string(path(&file)).unwrap();
        (file, documents(&text))
    };
    files.into_iter().map(read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Whether the value at a pointer is this one.
fn is(value: &Value, pointer: &str, wanted: Value) -> bool {
    value.pointer(pointer) == Some(&wanted)
}

fn of_pod(pod: &Value, say: &mut impl FnMut(&str)) {
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if pod[shared] == true {
            say(shared);
        }
    }
    if !is(pod, "/securityContext/runAsNonRoot", json!(true)) {
        say("may run as root");
    }
    if !is(pod, "/securityContext/seccompProfile/type", json!("RuntimeDefault")) {
        say("no seccomp profile");
    }
    // Asked for by name: a pod that forgets gets one it does not need.
    if !pod["automountServiceAccountToken"].is_boolean() {
        say("does not say whether it needs a token");
    }
    if list(&pod["volumes"])
        .iter()
        .any(|volume| volume["hostPath"].is_object())
    {
        say("a path of the node");
    }
    for containers in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&pod[containers]) {
            of_container(container, say);
        }
    }
}

fn of_container(container: &Value, say: &mut impl FnMut(&str)) {
    let security = &container["securityContext"];
    if security["privileged"] == true || security["allowPrivilegeEscalation"] != false {
        say("may gain privileges");
    }
    if security["readOnlyRootFilesystem"] != true {
        say("writes its root file system");
    }
    if security["capabilities"] != json!({"drop": ["ALL"]}) {
        say("has capabilities");
    }
    for own in ["runAsUser", "runAsGroup"] {
        if security[own] == 0 {
            say("runs as root");
        }
    }
    for wanted in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
        if container["resources"].pointer(wanted).is_none() {
            say(&format!("no resources{wanted}"));
        }
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        if !container[probe].is_object() {
            say(&format!("no {probe}"));
        }
    }
    if list(&container["ports"])
        .iter()
        .any(|port| port["hostPort"].is_number())
    {
        say("a port of the node");
    }
    let image = container["image"].as_str().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    if !name.contains("@sha256:")
        && name
            .split_once(':')
            .is_none_or(|(_, tag)| tag.is_empty() || tag == "latest")
    {
        say("an image of no version");
    }
}

fn of_rule(rule: &Value, say: &mut impl FnMut(&str)) {
    let has = |field: &str, value: &str| list(&rule[field]).iter().any(|item| item == value);
    if ["apiGroups", "resources", "verbs", "nonResourceURLs"]
        .iter()
        .any(|field| has(field, "*"))
    {
        say("a wildcard");
    }
    if has("resources", "secrets")
        && ["list", "watch", "deletecollection"]
            .iter()
            .any(|verb| has("verbs", verb))
    {
        say("lists Secrets");
    }
    if POWERS.iter().any(|verb| has("verbs", verb)) {
        say("makes itself more than it is");
    }
}

/// What is wrong with these, each with its object.
fn faults(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for object in objects {
        let name = format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"]);
        let mut say = |what: &str| found.push(format!("{name}: {what}"));
        if object["kind"] == "Pod" {
            of_pod(&object["spec"], &mut say);
        }
        if object["spec"]["template"].is_object() {
            of_pod(&object["spec"]["template"]["spec"], &mut say);
        }
        if object["kind"] == "ServiceAccount" && object["automountServiceAccountToken"] != false {
            say("gives its token to every pod");
        }
        for rule in list(&object["rules"]) {
            of_rule(rule, &mut say);
        }
        // What any ServiceAccount, or anybody, may do.
        for subject in list(&object["subjects"]) {
            if subject["kind"] == "Group" {
                say("grants to a group");
            }
        }
    }
    found
}

#[test]
fn nothing_that_is_shipped_has_a_privilege_and_each_pod_asks_for_what_it_needs() {
    let kept = kept();
    let pods = kept
        .iter()
        .flat_map(|(_, objects)| objects)
        .filter(|object| object["spec"]["template"].is_object());
    assert_eq!(
        pods.count(),
        2 * (SETS.len() + 2),
        "each file with workloads is looked at"
    );
    for (file, objects) in kept {
        assert_eq!(faults(&objects), Vec::<String>::new(), "{file}");
    }
}

#[test]
fn each_privilege_is_seen() {
    let pod = json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "automountServiceAccountToken": false,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "image": "registry.example.com:5000/a:1",
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "resources": {"requests": {"cpu": "1", "memory": "1"}, "limits": {"memory": "1"}},
            "livenessProbe": {}, "readinessProbe": {},
        }],
    }});
    let role = json!({"kind": "Role", "metadata": {"name": "r"}, "rules": [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]});
    let account = json!({"kind": "ServiceAccount", "metadata": {"name": "s"}, "automountServiceAccountToken": false});
    let binding = json!({"kind": "RoleBinding", "metadata": {"name": "b"}, "subjects": [{"kind": "ServiceAccount"}]});
    for good in [&pod, &role, &account, &binding] {
        assert_eq!(faults(std::slice::from_ref(good)), Vec::<String>::new());
    }
    let container = "/spec/containers/0";
    let bad: [(&Value, String, &str, Value, &str); 24] = [
        (&pod, "/spec".into(), "hostNetwork", json!(true), "hostNetwork"),
        (&pod, "/spec".into(), "hostPID", json!(true), "hostPID"),
        (
            &pod,
            "/spec/securityContext".into(),
            "runAsNonRoot",
            json!(false),
            "may run as root",
        ),
        (
            &pod,
            "/spec/securityContext/seccompProfile".into(),
            "type",
            json!("Unconfined"),
            "no seccomp profile",
        ),
        (
            &pod,
            "/spec".into(),
            "automountServiceAccountToken",
            Value::Null,
            "does not say",
        ),
        (
            &pod,
            "/spec".into(),
            "volumes",
            json!([{"hostPath": {"path": "/"}}]),
            "a path of the node",
        ),
        (
            &pod,
            "/spec".into(),
            "initContainers",
            json!([{"image": "a:1"}]),
            "has capabilities",
        ),
        (
            &pod,
            format!("{container}/securityContext"),
            "privileged",
            json!(true),
            "may gain privileges",
        ),
        (
            &pod,
            format!("{container}/securityContext"),
            "allowPrivilegeEscalation",
            Value::Null,
            "may gain privileges",
        ),
        (
            &pod,
            format!("{container}/securityContext"),
            "readOnlyRootFilesystem",
            json!(false),
            "writes its root",
        ),
        (
            &pod,
            format!("{container}/securityContext"),
            "capabilities",
            json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}),
            "has capabilities",
        ),
        (
            &pod,
            format!("{container}/securityContext"),
            "runAsUser",
            json!(0),
            "runs as root",
        ),
        (
            &pod,
            format!("{container}/resources"),
            "requests",
            json!({"cpu": "1"}),
            "no resources/requests/memory",
        ),
        (
            &pod,
            format!("{container}/resources"),
            "limits",
            json!({}),
            "no resources/limits/memory",
        ),
        (
            &pod,
            container.into(),
            "readinessProbe",
            Value::Null,
            "no readinessProbe",
        ),
        (
            &pod,
            container.into(),
            "ports",
            json!([{"hostPort": 80}]),
            "a port of the node",
        ),
        (
            &pod,
            container.into(),
            "image",
            json!("registry.example.com:5000/a"),
            "an image of no version",
        ),
        (
            &pod,
            container.into(),
            "image",
            json!("a:latest"),
            "an image of no version",
        ),
        (
            &role,
            "/rules/0".into(),
            "verbs",
            json!(["get", "list"]),
            "lists Secrets",
        ),
        (&role, "/rules/0".into(), "resources", json!(["*"]), "a wildcard"),
        (
            &role,
            "/rules/0".into(),
            "verbs",
            json!(["escalate"]),
            "makes itself more",
        ),
        (&role, "/rules/0".into(), "verbs", json!(["watch"]), "lists Secrets"),
        (
            &account,
            String::new(),
            "automountServiceAccountToken",
            Value::Null,
            "gives its token",
        ),
        (
            &binding,
            String::new(),
            "subjects",
            json!([{"kind": "Group", "name": "system:authenticated"}]),
            "grants to a group",
        ),
    ];
    for (good, at, field, value, said) in bad {
        let mut object = good.clone();
        object.pointer_mut(&at).unwrap()[field] = value;
        let found = faults(&[object]);
        assert!(found.iter().any(|fault| fault.contains(said)), "{said}: {found:?}");
    }
}
