//! The guard: nothing that is not globally reachable is dialled unless the administrator opened it, whatever a name
//! answers and whenever. Each refusal is asserted twice: by its outcome, and by the receiver that saw no connection.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tidings::api::resolve::{EgressRules, Host, ResolvedEndpoint};
use tidings::delivery::{Fault, OurFault, Outcome};
use tokio::net::TcpListener;

use super::dns::{Answer, Dns};
use super::receiver::{Receiver, endpoint, keep_answering, send, sender, sender_with_dns, status};

const NO_BODY: &str = "HTTP/1.1 204 No Content\r\n\r\n";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn opened(cidrs: &[&str]) -> Arc<EgressRules> {
    Arc::new(EgressRules {
        open_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        ..EgressRules::default()
    })
}

/// An endpoint by URL, as the URL standard reads it: what kinds of address hide in a host is its business.
fn by_url(url: &str) -> ResolvedEndpoint {
    let url = url::Url::parse(url).unwrap();
    let host = match url.host().unwrap() {
        url::Host::Domain(name) => Host::Name(name.trim_end_matches('.').to_string()),
        url::Host::Ipv4(address) => Host::Address(address.into()),
        url::Host::Ipv6(address) => Host::Address(address.into()),
    };
    let mut endpoint = endpoint(host, url.port_or_known_default().unwrap());
    endpoint.egress = opened(&[]);
    endpoint
}

#[tokio::test]
async fn literals_of_every_form_are_refused() {
    let receiver = Receiver::always(NO_BODY).await;
    let (port, sender) = (receiver.address.port(), sender());
    let hosts = [
        "127.0.0.1",
        "127.1",
        "0177.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "127.0.0.1.",
        "0.0.0.0",
        "0",
        "10.1.2.3",
        "100.64.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::1]",
        "[5f00::1]",
        "[fc00::1]",
        "[fe80::1]",
        "[ff02::1]",
    ];
    for host in hosts {
        let endpoint = by_url(&format!("https://{host}:{port}/"));
        let outcome = send(&sender, &endpoint).await.outcome;
        assert!(matches!(outcome, Outcome::Blocked { .. }), "{host}: {outcome:?}");
    }
    assert!(
        url::Url::parse("https://[fe80::1%25eth0]/").is_err(),
        "a scope id is no host"
    );
    assert_eq!(receiver.accepted(), 0);
}

#[tokio::test]
async fn names_that_lead_inside_are_refused_also_with_a_good_address_beside() {
    let receiver = Receiver::always(NO_BODY).await;
    let dns = Dns::start(|name, _| {
        let addresses: &[&str] = match name {
            "inside.test" => &["127.0.0.1"],
            "metadata.test" => &["169.254.169.254"],
            "mapped.test" => &["::ffff:127.0.0.1"],
            "nat64.test" => &["64:ff9b::7f00:1"],
            "sixtofour.test" => &["2002:7f00:1::1"],
            "six.test" => &["::1"],
            "mixed.test" => &["93.184.216.34", "127.0.0.1"],
            "mixed-families.test" => &["93.184.216.34", "::1"],
            _ => return Answer::NoSuchName,
        };
        Answer::Addresses(addresses.iter().map(|address| ip(address)).collect())
    })
    .await;
    let sender = sender_with_dns(dns.address);
    let table = [
        ("inside.test", "127.0.0.1"),
        ("INSIDE.test.", "127.0.0.1"),
        ("metadata.test", "169.254.169.254"),
        ("mapped.test", "::ffff:127.0.0.1"),
        ("nat64.test", "64:ff9b::7f00:1"),
        ("sixtofour.test", "2002:7f00:1::1"),
        ("six.test", "::1"),
        ("mixed.test", "127.0.0.1"),
        ("mixed-families.test", "::1"),
    ];
    for (name, address) in table {
        let endpoint = by_url(&format!("https://{name}:{}/", receiver.address.port()));
        let outcome = send(&sender, &endpoint).await.outcome;
        assert_eq!(outcome, Outcome::Blocked { address: ip(address) }, "{name}");
    }
    let localhost = by_url(&format!("https://localhost:{}/", receiver.address.port()));
    assert!(matches!(
        send(&sender, &localhost).await.outcome,
        Outcome::Blocked { .. }
    ));
    assert_eq!(receiver.accepted(), 0);
}

#[tokio::test]
async fn what_the_administrator_opened_is_reached_by_name_and_by_hosts_file() {
    let receiver = Receiver::always(NO_BODY).await;
    let dns = Dns::start(|name, _| match name {
        "crm.receiver.test" => Answer::Addresses(vec![ip("127.0.0.1")]),
        _ => Answer::NoSuchName,
    })
    .await;
    let sender = sender_with_dns(dns.address);
    for name in ["crm.receiver.test", "localhost"] {
        let endpoint = endpoint(Host::Name(name.into()), receiver.address.port());
        assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204), "{name}");
    }
    assert!(
        dns.names().iter().all(|name| name == "crm.receiver.test"),
        "absolute, no search list: {:?}",
        dns.names()
    );
}

#[tokio::test]
async fn a_name_that_changes_its_answer_after_the_check_leads_nowhere_new() {
    // Reachable at first, then inside; every answer with a TTL of 0, as an attacker's server gives it.
    let dns =
        Dns::start(|_, earlier| Answer::Addresses(vec![ip(if earlier == 0 { "127.0.0.2" } else { "127.0.0.1" })]))
            .await;
    let behaviour = |mut connection: super::receiver::Connection, seen: super::receiver::Log| async move {
        let Some(request) = connection.request().await else {
            return;
        };
        seen.lock().unwrap().push(request);
        connection
            .write("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            .await;
    };
    // A port that nobody has at either address.
    let (open, inside) = loop {
        let open = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
        let port = open.local_addr().unwrap().port();
        if let Ok(inside) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            break (open, inside);
        }
    };
    let acceptor = || Some(super::receiver::TRUSTED.acceptor());
    let open = Receiver::serve_on(acceptor(), open, behaviour).await;
    let port = open.address.port();
    let inside = Receiver::serve_on(acceptor(), inside, |connection, seen| {
        keep_answering(connection, seen, NO_BODY)
    })
    .await;
    let sender = sender_with_dns(dns.address);
    let mut endpoint = endpoint(Host::Name("rebinding.receiver.test".into()), port);
    endpoint.egress = opened(&["127.0.0.2/32"]);

    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    assert_eq!(
        dns.asked("rebinding.receiver.test"),
        1,
        "what was checked is dialled, without a second look-up"
    );
    assert_eq!(
        send(&sender, &endpoint).await.outcome,
        Outcome::Blocked {
            address: ip("127.0.0.1")
        }
    );
    assert_eq!((open.requests(), inside.accepted()), (1, 0));
}

#[tokio::test]
async fn a_kept_connection_serves_nobody_whose_rules_forbid_its_peer() {
    let receiver = Receiver::always(NO_BODY).await;
    let (sender, mut endpoint) = (sender(), receiver.endpoint());
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
    let allowed = std::mem::replace(&mut endpoint.egress, opened(&[]));
    assert_eq!(
        send(&sender, &endpoint).await.outcome,
        Outcome::Blocked {
            address: receiver.address.ip()
        }
    );
    assert_eq!((receiver.accepted(), receiver.requests()), (1, 1));
    endpoint.egress = allowed;
    assert_eq!(status(&send(&sender, &endpoint).await.outcome), Some(204));
}

#[tokio::test]
async fn a_dead_name_is_the_receivers_fault_and_a_dead_dns_server_is_ours() {
    let dns = Dns::start(|name, _| match name {
        "missing.test" => Answer::NoSuchName,
        "failing.test" => Answer::Failure,
        "empty.test" => Answer::Addresses(Vec::new()),
        "silent.test" => Answer::Silence,
        _ => Answer::NoSuchName,
    })
    .await;
    for name in ["missing.test", "failing.test", "empty.test", "silent.test"] {
        // A resolver of its own each: the silent one must find out by itself that the server lives.
        let sender = sender_with_dns(dns.address);
        let outcome = send(&sender, &endpoint(Host::Name(name.into()), 443)).await.outcome;
        assert_eq!(outcome, Outcome::Fault(Fault::Dns), "{name}");
    }
    let mute = Dns::start(|_, _| Answer::Silence).await;
    let outcome = send(
        &sender_with_dns(mute.address),
        &endpoint(Host::Name("crm.test".into()), 443),
    )
    .await
    .outcome;
    assert_eq!(outcome, Outcome::Ours(OurFault::DnsDown));
    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let outcome = send(&sender_with_dns(nobody), &endpoint(Host::Name("crm.test".into()), 443))
        .await
        .outcome;
    assert_eq!(outcome, Outcome::Ours(OurFault::DnsDown));
}

#[tokio::test]
async fn a_name_is_asked_for_once_however_many_wait_for_it() {
    let receiver = Receiver::always(NO_BODY).await;
    let dns = Dns::start(|_, _| Answer::Addresses(vec![ip("127.0.0.1")])).await;
    let sender = Arc::new(sender_with_dns(dns.address));
    let endpoint = endpoint(Host::Name("popular.receiver.test".into()), receiver.address.port());
    let all = (0..50).map(|_| send(&sender, &endpoint));
    for result in futures::future::join_all(all).await {
        assert_eq!(status(&result.outcome), Some(204));
    }
    assert_eq!(dns.asked("popular.receiver.test"), 1);
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let receiver = Receiver::always(NO_BODY).await;
    let dns = Dns::start(|_, _| Answer::Addresses(vec![ip("127.0.0.9"), ip("127.0.0.1"), ip("::1")])).await;
    let mut endpoint = endpoint(Host::Name("several.receiver.test".into()), receiver.address.port());
    endpoint.timeout = Duration::from_secs(5);
    assert_eq!(
        status(&send(&sender_with_dns(dns.address), &endpoint).await.outcome),
        Some(204)
    );
    assert_eq!(receiver.requests(), 1);
}
