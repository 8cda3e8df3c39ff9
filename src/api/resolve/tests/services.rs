//! Endpoints that send to a Service.

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::{Value, json};

use super::*;
use crate::api::egress::Services;
use crate::api::service::{ServiceReference, ServiceScheme};

fn to_service(reference: ServiceReference) -> WebhookEndpoint {
    let mut endpoint = endpoint("");
    endpoint.spec.url = None;
    endpoint.spec.service_ref = Some(Box::new(reference));
    endpoint
}

fn reference() -> ServiceReference {
    serde_json::from_value(json!({"name": "crm", "port": 8080})).unwrap()
}

fn service(spec: Value) -> FoundService {
    let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
    FoundService::new("7", &spec)
}

/// One that may be sent to; `more` goes over its spec.
fn usual(more: Value) -> FoundService {
    let mut spec = json!({"type": "ClusterIP", "selector": {"app": "crm"}, "clusterIP": "10.96.0.7",
        "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": [{"port": 8080, "targetPort": 80}, {"port": 53, "protocol": "UDP"}]});
    let over = more.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(over);
    service(spec)
}

fn resolved(reference: ServiceReference, found: &FoundService) -> Target {
    let resolved = resolve_endpoint(&to_service(reference), &generated(), &closed(), Some(found));
    resolved.unwrap().target
}

#[test]
fn a_service_is_reached_at_its_own_addresses_and_called_by_its_name() {
    let target = resolved(reference(), &usual(json!({})));
    let service = target.service.clone().unwrap();
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.7", "fd00::7"]);
    assert!(!service.tls);
    assert_eq!(
        (
            target.port,
            target.path.as_str(),
            target.authority.as_str(),
            target.origin.as_str()
        ),
        (8080, "/", "crm.sales.svc:8080", "http://crm.sales.svc:8080")
    );
    let by_tls = ServiceReference {
        port: 443,
        path: "/a/../b?c=d e".to_owned(),
        scheme: ServiceScheme::Https,
        ..reference()
    };
    let target = resolved(by_tls, &usual(json!({"clusterIPs": null, "ports": [{"port": 443}]})));
    assert!(
        target
            .service
            .as_ref()
            .is_some_and(|service| service.tls && service.addresses.len() == 1)
    );
    assert_eq!(
        (target.path.as_str(), target.authority.as_str(), target.origin.as_str()),
        ("/b?c=d%20e", "crm.sales.svc", "https://crm.sales.svc")
    );
}

#[test]
fn services_that_could_lead_anywhere_are_refused_and_it_is_said_what_to_write_instead() {
    let external = json!({"type": "ExternalName", "externalName": "metadata.google.internal"});
    let refused = [
        (
            None,
            reasons::SERVICE_NOT_FOUND,
            "Service crm does not exist in this namespace",
        ),
        (
            Some(usual(external)),
            reasons::SERVICE_NOT_ALLOWED,
            "as an https URL in url",
        ),
        (
            Some(usual(json!({"selector": null}))),
            reasons::SERVICE_NOT_ALLOWED,
            "give it a selector of pods of this namespace",
        ),
        (
            Some(usual(json!({"selector": {}}))),
            reasons::SERVICE_NOT_ALLOWED,
            "give it a selector of pods of this namespace",
        ),
        (
            Some(usual(json!({"clusterIP": "None", "clusterIPs": ["None"]}))),
            reasons::SERVICE_NOT_ALLOWED,
            "headless",
        ),
        (
            Some(usual(
                json!({"ports": [{"port": 80}, {"port": 8080, "protocol": "UDP"}]}),
            )),
            reasons::SERVICE_PORT_MISSING,
            "no TCP port 8080: write one of its spec.ports[].port in serviceRef.port (80)",
        ),
    ];
    for (found, reason, told) in refused {
        let unresolved = resolve_endpoint(&to_service(reference()), &generated(), &closed(), found.as_ref());
        let unresolved = unresolved.unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reason, false), "{unresolved}");
        assert!(unresolved.message.contains(told), "{unresolved}");
    }
}

#[test]
fn a_service_has_private_addresses_and_none_that_are_forbidden_to_all() {
    let with = |address: &str, open: &[&str]| {
        let found = usual(json!({"clusterIP": address, "clusterIPs": [address]}));
        let egress = EgressRules {
            open_cidrs: open.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..EgressRules::default()
        };
        resolve_endpoint(&to_service(reference()), &generated(), &Arc::new(egress), Some(&found))
    };
    for address in [
        "10.96.0.7",
        "172.20.0.7",
        "192.168.9.9",
        "100.64.3.3",
        "fd00::7",
        "34.118.224.9",
    ] {
        assert!(with(address, &[]).is_ok(), "{address}");
    }
    for address in [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "fe80::1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "::ffff:10.0.0.1",
    ] {
        let unresolved = with(address, &[]).unwrap_err();
        assert_eq!(
            (unresolved.reason, unresolved.stalled),
            (reasons::POLICY_DENIED, true),
            "{address}"
        );
    }
    assert!(with("127.0.0.1", &["127.0.0.0/8"]).is_ok(), "the administrator may");
}

#[test]
fn the_administrator_can_narrow_services_as_everything_else() {
    let with = |egress: EgressRules| {
        resolve_endpoint(
            &to_service(reference()),
            &generated(),
            &Arc::new(egress),
            Some(&usual(json!({}))),
        )
    };
    let denied = EgressRules {
        services: Services::Deny,
        ..EgressRules::default()
    };
    let hosts = |host: &str| EgressRules {
        hosts: Some(vec![host.parse().unwrap()]),
        ..EgressRules::default()
    };
    let ports = EgressRules {
        ports: Some(vec![443]),
        ..EgressRules::default()
    };
    for (egress, told) in [
        (denied, "egress.services of the policy file"),
        (hosts("*.example.com"), "serviceRef names crm.sales.svc"),
        (ports, "serviceRef names port 8080"),
    ] {
        let unresolved = with(egress).unwrap_err();
        assert_eq!((unresolved.reason, unresolved.stalled), (reasons::POLICY_DENIED, true));
        assert!(unresolved.message.contains(told), "{unresolved}");
    }
    assert!(with(hosts("*.svc")).is_ok() && with(hosts("crm.sales.svc")).is_ok());
}

#[test]
fn what_no_path_or_port_or_name_is_was_refused_by_the_resource_and_is_here() {
    let wrong = [
        ServiceReference {
            path: "hooks".into(),
            ..reference()
        },
        ServiceReference {
            path: "@evil.example.com/".into(),
            ..reference()
        },
        ServiceReference {
            path: "/a#b".into(),
            ..reference()
        },
        ServiceReference { port: 0, ..reference() },
        ServiceReference {
            port: 65_536,
            ..reference()
        },
        ServiceReference {
            name: "crm.other".into(),
            ..reference()
        },
        ServiceReference {
            name: String::new(),
            ..reference()
        },
    ];
    for reference in wrong {
        let endpoint = to_service(reference.clone());
        let unresolved = resolve_endpoint(&endpoint, &generated(), &closed(), Some(&usual(json!({})))).unwrap_err();
        assert_eq!(unresolved.reason, reasons::INVALID_SPEC, "{reference:?}");
    }
    let mut both = to_service(reference());
    both.spec.url = Some("https://hooks.example.com/".into());
    let unresolved = resolve_endpoint(&both, &generated(), &closed(), Some(&usual(json!({})))).unwrap_err();
    assert!(
        unresolved
            .message
            .contains("exactly one of url, urlFrom and serviceRef"),
        "{unresolved}"
    );
}
