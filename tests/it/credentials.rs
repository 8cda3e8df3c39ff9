//! What an endpoint shows of itself to its receiver, from Secrets that their owner opened: a token, a password, a
//! certificate; and a URL that is a secret. Each is changed without a restart.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio_util::either::Either;

use super::receiver::{Identity, Receiver, TRUSTED, keep_answering};
use super::team::{Shared, Team};

const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// Applies a Secret, opened for endpoints or not.
pub fn put_secret(team: &Team<'_>, name: &str, opened: bool, data: Value) {
    let labels = if opened {
        json!({"tidings.dev/use": "true"})
    } else {
        json!({})
    };
    team.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "labels": labels}, "stringData": data}),
    );
}

/// Asks for the endpoint's Secrets to be read now, and waits until the dispatcher has what `secret` holds.
pub async fn reread(team: &Team<'_>, endpoint: &str, secret: &str) {
    let version = team.get("secret", secret)["metadata"]["resourceVersion"].clone();
    let asks = format!("tidings.dev/reconcile-requested-at={}", version.as_str().unwrap());
    let args = ["annotate", "whe", endpoint, "-n", &team.namespace, "--overwrite", &asks];
    team.cluster.kubectl_ok(&args).unwrap();
    team.until("read anew", "whe", endpoint, |whe| {
        let references = whe["status"]["references"].as_array();
        references.is_some_and(|all| {
            all.iter()
                .any(|r| r["name"] == secret && r["resourceVersion"] == version)
        })
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_passwords_go_out_as_the_header_authorization() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "auth");
    let receiver = Receiver::start(|mut connection, seen| async move {
        while let Some(request) = connection.request().await {
            let known = ["Bearer second", "Basic dGlkaW5nczpwYXNz"];
            let given = request
                .headers
                .get("authorization")
                .and_then(|value| value.to_str().ok());
            let status = given.map_or(401, |given| if known.contains(&given) { 204 } else { 401 });
            seen.lock().unwrap().push(request);
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            if !connection.write(answer).await {
                return;
            }
        }
    })
    .await;
    let url = format!("https://{}/", receiver.address);
    put_secret(&team, "token", false, json!({"value": "first"}));
    put_secret(&team, "crm", true, json!({"password": "pass\n"}));
    let bearer = json!({"type": "Bearer", "bearer": {"secretKeyRef": {"name": "token", "key": "value"}}});
    let password = json!({"name": "crm", "key": "password"});
    let basic = json!({"type": "Basic", "basic": {"username": "tidings", "passwordSecretKeyRef": password}});
    team.endpoint(
        "bearer",
        &url,
        json!({"auth": bearer, "retry": {"schedule": ["500ms", "10m"]}}),
    );
    team.subscription("bearer", "bearer");
    // Whoever may create endpoints may not send just any Secret away.
    team.until_reason("whe", "bearer", "Ready", "SecretNotAllowed");
    put_secret(&team, "token", true, json!({"value": "first"}));
    reread(&team, "bearer", "token").await;
    team.ready("whe/bearer");
    team.ready("evsub/bearer");
    team.deliver_to("basic", &url, json!({"auth": basic}));

    let answer = team.post(&shared.dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!(answer.body["matched"], 2, "{answer:?}");
    team.until("delivered", "whe", "basic", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 204
    });
    team.until("refused", "whe", "bearer", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 401
    });
    // The receiver has been given another token: a 401 makes the dispatcher look, and the next attempt uses it.
    put_secret(&team, "token", true, json!({"value": "second"}));
    reread(&team, "bearer", "token").await;
    team.post(&shared.dispatcher, "lead-2", "lead.qualified").await;
    team.until("accepted", "whe", "bearer", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 204
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_from_a_secret_is_called_and_never_shown() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "secret-url");
    let receiver = Receiver::start(|connection, seen| keep_answering(connection, seen, OK)).await;
    let url = format!("https://{}/services/T0/very-hidden", receiver.address);
    put_secret(&team, "hook", true, json!({"url": url}));
    let from = json!({"secretKeyRef": {"name": "hook", "key": "url"}});
    let trust = json!({"caBundle": {"configMapKeyRef": {"name": "receiver-ca", "key": "ca.crt"}}});
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "WebhookEndpoint", "metadata": {"name": "chat"},
        "spec": {"urlFrom": from, "tls": trust}}),
    );
    team.subscription("chat", "chat");
    team.ready("whe/chat");
    team.ready("evsub/chat");
    team.send(&shared.dispatcher, "lead-1").await;
    let whe = team.until("delivered", "whe", "chat", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 204
    });
    assert_eq!(
        receiver.seen.lock().unwrap()[0].line,
        "POST /services/T0/very-hidden HTTP/1.1"
    );
    assert_eq!(whe["status"]["target"], format!("https://{}", receiver.address));
    assert!(!whe.to_string().contains("very-hidden"), "{whe:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_and_a_renewed_one_is_used_without_a_restart() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "mutual-tls");
    let (first, second) = (Identity::new(2090), Identity::new(2090));
    let authorities = format!("{}{}", first.ca_pem, second.ca_pem);
    let shown = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let receiver = {
        let shown = shown.clone();
        let acceptor = TRUSTED.acceptor_of_clients(&authorities);
        Receiver::serve(
            Some(acceptor),
            (Ipv4Addr::LOCALHOST, 0).into(),
            move |connection, seen| {
                let Either::Left(stream) = &connection.stream else {
                    unreachable!("it speaks TLS")
                };
                let certificates = stream.get_ref().1.peer_certificates().unwrap();
                shown.lock().unwrap().push(certificates[0].to_vec());
                keep_answering(connection, seen, OK)
            },
        )
        .await
    };
    let url = format!("https://{}/", receiver.address);
    let pair = |identity: &Identity| json!({"tls.crt": identity.cert_pem, "tls.key": identity.key_pem});
    put_secret(&team, "client", true, pair(&first));
    let client = json!({"secretRef": {"name": "client"}});
    team.deliver_to("crm", &url, json!({"tls": {"clientCertificate": client}}));
    team.endpoint("nobody", &url, json!({}));
    team.subscription("nobody", "nobody");
    team.ready("whe/nobody");
    team.ready("evsub/nobody");

    let answer = team.post(&shared.dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!(answer.body["matched"], 2, "{answer:?}");
    let accepted = |whe: &Value| whe["status"]["delivery"]["lastStatusCode"] == 204;
    team.until("delivered", "whe", "crm", accepted);
    team.until("refused", "whe", "nobody", |whe| {
        let failure = &whe["status"]["delivery"]["lastFailure"];
        failure["reason"].is_string() && failure["statusCode"].is_null()
    });

    put_secret(&team, "client", true, pair(&second));
    reread(&team, "crm", "client").await;
    let der = |identity: &Identity| {
        use rustls_pki_types::pem::PemObject;
        rustls_pki_types::CertificateDer::from_pem_slice(identity.cert_pem.as_bytes())
            .unwrap()
            .to_vec()
    };
    let deadline = std::time::Instant::now() + super::team::PATIENCE;
    for number in 0.. {
        let id = format!("lead-{number}-again");
        team.post(&shared.dispatcher, &id, "lead.qualified").await;
        if shown.lock().unwrap().contains(&der(&second)) {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the renewed certificate was never shown"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(shown.lock().unwrap()[0], der(&first));
}
