//! HTTPS for producers: the certificate in force is the one in the files, and one that cannot be used changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use reqwest::{Certificate, Client};
use serde_json::json;
use tidings_cluster::{Cluster, Dispatcher, DispatcherOptions, Tidings};

use super::receiver::Identity;
use super::team::{Team, lead, metric, until};

const INVALID: &str = "tidings_ingest_certificate_invalid";

/// Puts files in place as a kubelet does with a Secret: a folder of its own, and a link that changes at once.
fn mount(folder: &Path, version: &str, certificate_pem: &str, key_pem: &str) {
    let whole = folder.join(version);
    fs::create_dir(&whole).unwrap();
    fs::write(whole.join("tls.crt"), certificate_pem).unwrap();
    fs::write(whole.join("tls.key"), key_pem).unwrap();
    symlink(&whole, folder.join("next")).unwrap();
    fs::rename(folder.join("next"), folder.join("mounted")).unwrap();
}

/// A post over a new connection that trusts this authority alone.
async fn post(team: &Team<'_>, dispatcher: &Dispatcher, trusted: &Identity, id: &str) -> Result<u16, reqwest::Error> {
    let authority = Certificate::from_pem(trusted.ca_pem.as_bytes()).unwrap();
    let client = Client::builder()
        .tls_certs_only([authority])
        .no_proxy()
        .build()
        .unwrap();
    let url = dispatcher
        .events_url(&team.namespace)
        .replacen("http://", "https://", 1);
    let request = client
        .post(url)
        .bearer_auth(team.token())
        .header("content-type", "application/cloudevents+json")
        .body(lead(id, "lead.qualified").to_string());
    Ok(request.send().await?.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart_and_one_that_cannot_be_used_changes_nothing() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let (first, second) = (Identity::new(2099), Identity::new(2099));
    let files = tempfile::tempdir().unwrap();
    mount(files.path(), "first", &first.cert_pem, &first.key_pem);
    let file = |name: &str| files.path().join("mounted").join(name).into_os_string();
    let dispatcher = tidings
        .start_dispatcher(&DispatcherOptions {
            extra_args: vec![
                "--ingest-tls-cert".into(),
                file("tls.crt"),
                "--ingest-tls-key".into(),
                file("tls.key"),
            ],
            ..DispatcherOptions::default()
        })
        .unwrap();
    let team = Team::with_labels(&cluster, "producers", &[]);
    until("take an event", async || {
        post(&team, &dispatcher, &first, "one").await.unwrap() == 202
    })
    .await;
    assert!(
        post(&team, &dispatcher, &second, "two").await.is_err(),
        "another authority"
    );
    let plain = team.posting(&dispatcher, &json!({})).await;
    assert!(plain.is_err(), "no plain HTTP beside it");

    mount(files.path(), "renewed", &second.cert_pem, &second.key_pem);
    until("the renewed certificate", async || {
        post(&team, &dispatcher, &second, "three").await.is_ok()
    })
    .await;
    assert!(
        post(&team, &dispatcher, &first, "four").await.is_err(),
        "the old one is gone"
    );

    // A key that is not the certificate's.
    mount(files.path(), "torn", &first.cert_pem, &second.key_pem);
    until("the metric", async || metric(&dispatcher, INVALID) == 1.0).await;
    assert_eq!(post(&team, &dispatcher, &second, "five").await.unwrap(), 202);
    mount(files.path(), "mended", &first.cert_pem, &first.key_pem);
    until("the mended certificate", async || {
        post(&team, &dispatcher, &first, "six").await.is_ok()
    })
    .await;
    until("the metric", async || metric(&dispatcher, INVALID) == 0.0).await;
}
