//! Endpoints that send to a Service of their namespace. The control plane of these tests gives Services addresses of loopback,
//! where receivers can be: so the namespace needs what opens loopback, and one without it shows what is refused.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tidings::api::resolve::{Host, ResolvedEndpoint, ServiceRoute};
use tidings::delivery::{Fault, Outcome};

use super::dns::{Answer, Dns};
use super::keys::keys;
use super::receiver::{Receiver, TRUSTED, endpoint, keep_answering, send, sender_with_dns, status};
use super::team::{PATIENCE, Shared, Team};

const NO_BODY: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// One that speaks plain HTTP, at an address that a Service can have.
async fn plain_at(last: u8, port: u16) -> Receiver {
    let at = SocketAddr::from((Ipv4Addr::new(127, 96, 77, last), port));
    Receiver::serve(None, at, |connection, seen| keep_answering(connection, seen, NO_BODY)).await
}

/// A Service named `crm` at a receiver.
fn service(at: SocketAddr, more: Value) -> Value {
    let mut spec = json!({"clusterIP": at.ip(), "selector": {"app": "crm"}, "ports": [{"port": at.port()}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "crm"}, "spec": spec})
}

fn to_service(name: &str, port: u16) -> Value {
    json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint", "metadata": {"name": name},
        "spec": {"serviceRef": {"name": name, "port": port, "path": "/hooks/leads"}}})
}

async fn until_requests(receiver: &Receiver, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while receiver.requests() < count {
        assert!(
            Instant::now() < deadline,
            "{} of {count} requests came",
            receiver.requests()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn waits(whe: &Value) -> bool {
    whe["status"]["delivery"]["pending"] == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_signed_requests_by_plain_http_and_is_followed_when_it_changes() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "to-a-service");
    let (first, second) = (plain_at(1, 0).await, plain_at(2, 0).await);

    // A Service that does not exist yet: events match, and wait.
    team.apply(&to_service("crm", first.address.port()));
    team.subscription("crm", "crm");
    team.until_reason("whe", "crm", "Ready", "ServiceNotFound");
    team.ready("evsub/crm");
    team.send(&shared.dispatcher, "1").await;
    team.until_reason("whe", "crm", "Delivering", "ServiceUnavailable");

    team.apply(&service(first.address, json!({})));
    team.ready("whe/crm");
    until_requests(&first, 1).await;
    let key = keys(&team, "crm").current;
    {
        let seen = first.seen.lock().unwrap();
        let request = &seen[0];
        assert_eq!(request.line, "POST /hooks/leads HTTP/1.1");
        let host = format!("crm.to-a-service.svc:{}", first.address.port());
        assert_eq!(request.headers["host"], host.as_str());
        Webhook::new(&key)
            .unwrap()
            .verify(&request.body, &request.headers)
            .unwrap();
    }
    team.until_reason("whe", "crm", "Delivering", "Succeeding");
    let whe = team.get("whe", "crm");
    let target = format!("http://crm.to-a-service.svc:{}", first.address.port());
    assert_eq!(whe["status"]["target"], target.as_str());
    let version = team.get("service", "crm")["metadata"]["resourceVersion"].clone();
    let references = whe["status"]["references"].as_array().unwrap();
    assert!(
        references.contains(&json!({"kind": "Service", "name": "crm", "resourceVersion": version})),
        "{references:?}"
    );
    let shown = shared
        .cluster
        .kubectl_ok(&["get", "whe", "-n", &team.namespace])
        .unwrap();
    assert!(shown.contains(&target), "{shown}");

    // Another address, and the port that was named is another receiver's: nothing restarts, nothing goes to the first.
    team.delete("service", "crm");
    team.until_reason("whe", "crm", "Ready", "ServiceNotFound");
    team.apply(&service(second.address, json!({})));
    team.until_reason("whe", "crm", "Ready", "ServicePortMissing");
    team.send(&shared.dispatcher, "2").await;
    team.apply(&to_service("crm", second.address.port()));
    team.ready("whe/crm");
    until_requests(&second, 1).await;

    // What could lead anywhere is not sent to, though it was before.
    team.delete("service", "crm");
    team.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "crm"},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": second.address.port()}]}}),
    );
    team.until_reason("whe", "crm", "Ready", "ServiceNotAllowed");
    team.send(&shared.dispatcher, "3").await;
    team.until("waiting", "whe", "crm", waits);
    team.until_reason("whe", "crm", "Delivering", "ServiceUnavailable");
    assert_eq!((first.requests(), second.requests()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_could_lead_anywhere_is_refused_with_what_to_do_and_never_dialled() {
    let shared = Shared::get();
    let (open, closed) = (
        Team::open(shared.cluster, "services-open"),
        Team::with_labels(shared.cluster, "services-closed", &[]),
    );
    let inside = plain_at(3, 0).await;
    let port = inside.address.port();
    let of = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let ports = json!([{"port": port}]);
    // The addresses of one without a selector are whatever its EndpointSlices say.
    open.apply(&of("by-hand", json!({"ports": ports})));
    open.apply(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "by-hand"}},
        "addressType": "IPv4", "ports": [{"port": port}], "endpoints": [{"addresses": ["10.1.2.3"]}]}));
    open.apply(&of(
        "external",
        json!({"type": "ExternalName", "externalName": "localhost", "ports": ports}),
    ));
    open.apply(&of(
        "headless",
        json!({"clusterIP": "None", "selector": {"app": "crm"}, "ports": ports}),
    ));
    open.apply(&of(
        "other-port",
        json!({"selector": {"app": "crm"}, "ports": [{"port": 81}]}),
    ));
    closed.apply(&service(inside.address, json!({})));
    let table = [
        (&open, "by-hand", "ServiceNotAllowed", "give it a selector"),
        (&open, "external", "ServiceNotAllowed", "ExternalName"),
        (&open, "headless", "ServiceNotAllowed", "headless"),
        (&open, "other-port", "ServicePortMissing", "(81)"),
        (&open, "nothing", "ServiceNotFound", "does not exist"),
        // Private addresses are a Service's own; loopback is nobody's, unless the administrator opens it.
        (&closed, "crm", "PolicyDenied", "loopback"),
    ];
    for (team, name, ..) in table {
        team.apply(&to_service(name, port));
        team.subscription(name, name);
    }
    for (team, name, reason, told) in table {
        team.until_reason("whe", name, "Ready", reason);
        let whe = team.get("whe", name);
        let conditions = whe["status"]["conditions"].as_array().unwrap();
        let ready = conditions
            .iter()
            .find(|condition| condition["type"] == "Ready")
            .unwrap();
        assert!(ready["message"].as_str().unwrap().contains(told), "{ready:#}");
        team.ready(&format!("evsub/{name}"));
    }
    for (team, matched) in [(&open, 5), (&closed, 1)] {
        let answer = team.post(&shared.dispatcher, "1", "lead.qualified").await;
        assert_eq!(
            (answer.status, &answer.body["matched"]),
            (202, &json!(matched)),
            "{answer:?}"
        );
    }
    for (team, name, reason, _) in table {
        let shown = if reason == "PolicyDenied" {
            "Blocked"
        } else {
            "ServiceUnavailable"
        };
        team.until_reason("whe", name, "Delivering", shown);
        team.until("waiting", "whe", name, waits);
    }
    assert_eq!(inside.accepted(), 0, "nothing was dialled");
}

fn to(receiver: &Receiver, tls: bool) -> ResolvedEndpoint {
    let mut endpoint = endpoint(Host::Name("crm.sales.svc".into()), receiver.address.port());
    endpoint.target.service = Some(Arc::new(ServiceRoute {
        addresses: Arc::new([receiver.address.ip()]),
        tls,
    }));
    endpoint
}

#[tokio::test]
async fn only_the_services_endpoint_reaches_its_address_and_only_over_its_own_connections() {
    // Whoever looks the name up is led elsewhere.
    let dns = Dns::start(|_, _| Answer::Addresses(vec!["10.9.9.9".parse().unwrap()])).await;
    let sender = sender_with_dns(dns.address);
    let plain = plain_at(4, 0).await;
    let other = plain_at(5, plain.address.port()).await;
    let by_tls = Receiver::with(
        &TRUSTED,
        (Ipv4Addr::new(127, 96, 77, 6), 0).into(),
        |connection, seen| keep_answering(connection, seen, NO_BODY),
    )
    .await;
    for (receiver, tls) in [(&plain, false), (&by_tls, true)] {
        for _ in 0..2 {
            assert_eq!(status(&send(&sender, &to(receiver, tls)).await.outcome), Some(204));
        }
        assert_eq!(receiver.accepted(), 1, "a connection is kept");
    }
    assert_eq!(dns.asked("crm.sales.svc"), 0, "no name is looked up");

    // The same name in a URL is a name like any other.
    let mut by_url = to(&plain, false);
    by_url.target.service = None;
    let outcome = send(&sender, &by_url).await.outcome;
    assert!(matches!(outcome, Outcome::Blocked { .. }), "{outcome:?}");
    assert_eq!(dns.asked("crm.sales.svc"), 1);

    // The Service got another address, or is spoken to otherwise: what was kept is not used.
    assert_eq!(status(&send(&sender, &to(&other, false)).await.outcome), Some(204));
    assert_eq!((plain.accepted(), other.requests()), (1, 1));
    let outcome = send(&sender, &to(&by_tls, false)).await.outcome;
    assert!(
        matches!(outcome, Outcome::Fault(Fault::Reset | Fault::Protocol)),
        "{outcome:?}"
    );
    assert_eq!((by_tls.accepted(), by_tls.requests()), (2, 2));

    // Of what a cluster may give to a Service loopback is no part, over a kept connection neither.
    let (dialled, mut closed) = (plain.accepted(), to(&plain, false));
    closed.egress = Arc::default();
    let outcome = send(&sender, &closed).await.outcome;
    assert!(matches!(outcome, Outcome::Blocked { .. }), "{outcome:?}");
    assert_eq!(plain.accepted(), dialled);
}

#[tokio::test]
async fn a_service_that_redirects_is_not_followed() {
    let sender = sender_with_dns(Dns::start(|_, _| Answer::NoSuchName).await.address);
    let inside = plain_at(7, 0).await;
    let answer = format!(
        "HTTP/1.1 307 X\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
        inside.address
    );
    let answer: &'static str = answer.leak();
    let at = SocketAddr::from((Ipv4Addr::new(127, 96, 77, 8), 0));
    let redirects = Receiver::serve(None, at, move |connection, seen| {
        keep_answering(connection, seen, answer)
    })
    .await;
    assert_eq!(status(&send(&sender, &to(&redirects, false)).await.outcome), Some(307));
    assert_eq!((redirects.requests(), inside.accepted()), (1, 0));
}
