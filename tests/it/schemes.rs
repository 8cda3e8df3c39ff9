//! Signatures for receivers that were built for somebody else's webhooks verify with the libraries those receivers use;
//! and what the controller makes of each scheme.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tidings::api::resolve::Host;
use tidings::delivery::Sender;
use tidings::signing::{Scheme, Signer};
use tokio::process::Command;

use super::receiver::{Receiver, Seen, endpoint, keep_answering, request, sender, status};
use super::signatures::{BODIES, Foreign, verifiers};
use super::team::{Shared, Team};

const KEY: &str = "It's a Secret to Everybody";
const OTHER: &str = "whsec_of_another_time";

fn signer(scheme: Scheme, keys: &[&str]) -> Signer {
    let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
    scheme.read_each(&[], &keys).unwrap()
}

/// A receiver in JavaScript that verifies with `key`: 204 for what verifies, 400 for the rest.
async fn javascript(verify: &str, key: &str) -> Foreign {
    let mut command = Command::new("node");
    command.current_dir(verifiers().await.node_dir);
    command.arg("-e").arg(RECEIVER.replace("@verify@", verify));
    Foreign::with_secret(command, key).await
}

async fn answers(receiver: &Foreign, signer: Signer, late: i64) -> Vec<Option<u16>> {
    let mut endpoint = endpoint(Host::Address(Ipv4Addr::LOCALHOST.into()), receiver.port);
    endpoint.signing = Arc::new(signer);
    let (sender, endpoint) = (sender(), Arc::new(endpoint));
    let mut answers = Vec::new();
    for body in BODIES {
        let mut request = request(body);
        request.timestamp -= late;
        answers.push(status(&sender.send(&endpoint, request).await.outcome));
    }
    answers
}

#[tokio::test]
async fn githubs_library_verifies() {
    let verify = r#"(await import("@octokit/webhooks-methods")).verify(secret, body.toString(), headers["x-hub-signature-256"])"#;
    let receiver = javascript(verify, KEY).await;
    let key = signer(Scheme::GitHub, &[KEY]);
    assert_eq!(answers(&receiver, key, 0).await, [Some(204); 5]);
    let other = signer(Scheme::GitHub, &[OTHER]);
    assert_eq!(answers(&receiver, other, 0).await, [Some(400); 5]);
    // There is room for one signature: the first key's.
    let both = signer(Scheme::GitHub, &[KEY, OTHER]);
    assert_eq!(answers(&receiver, both, 0).await, [Some(204); 5]);
}

#[tokio::test]
async fn stripes_library_verifies() {
    let verify = r#"new ((await import("stripe")).default)("sk_test").webhooks.constructEvent(body, headers["stripe-signature"], secret) !== undefined"#;
    let receiver = javascript(verify, KEY).await;
    for keys in [&[KEY][..], &[KEY, OTHER], &[OTHER, KEY]] {
        let signer = signer(Scheme::Stripe, keys);
        assert_eq!(
            answers(&receiver, signer, 0).await,
            [Some(204); 5],
            "{} keys",
            keys.len()
        );
    }
    let other = signer(Scheme::Stripe, &[OTHER]);
    assert_eq!(answers(&receiver, other, 0).await, [Some(400); 5]);
    let replayed = signer(Scheme::Stripe, &[KEY]);
    assert_eq!(answers(&receiver, replayed, 3_600).await, [Some(400); 5]);
}

#[tokio::test]
async fn nodes_crypto_verifies_ed25519_with_the_public_key() {
    let [current, previous, other] = [1, 2, 3].map(|byte| Scheme::Ed25519.generate([byte; 32]));
    let public = tidings::signing::public_key(&current).unwrap();
    let receiver = javascript(ED25519, &public).await;
    for keys in [&[&*current][..], &[&*current, &*previous], &[&*previous, &*current]] {
        let signer = signer(Scheme::Ed25519, keys);
        assert_eq!(
            answers(&receiver, signer, 0).await,
            [Some(204); 5],
            "{} keys",
            keys.len()
        );
    }
    let other = signer(Scheme::Ed25519, &[&other]);
    assert_eq!(answers(&receiver, other, 0).await, [Some(400); 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ed25519_key_shows_its_public_half_in_the_secret_and_in_status() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "ed25519");
    let receiver =
        Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")).await;
    let url = format!("https://{}/", receiver.address);
    let signing = json!({"scheme": "StandardWebhooksEd25519", "rotation": {"overlap": "1h"}});
    team.deliver_to("crm", &url, json!({"signing": signing}));
    let data = |key: &str| {
        let template = format!("go-template={{{{.data.{key} | base64decode}}}}");
        let args = ["get", "secret", "crm-signing", "-n", &team.namespace, "-o", &template];
        shared.cluster.kubectl_ok(&args).unwrap()
    };
    let annotate = |annotation: &str| {
        let args = [
            "annotate",
            "whe",
            "crm",
            "-n",
            &team.namespace,
            "--overwrite",
            annotation,
        ];
        shared.cluster.kubectl_ok(&args).unwrap()
    };
    let first = data("publicKey");
    assert_eq!(Some(&first), tidings::signing::public_key(&data("current")).as_ref());
    assert_eq!(
        team.get("whe", "crm")["status"]["signing"]["keys"][0]["publicKey"],
        json!(first)
    );
    team.send(&shared.dispatcher, "lead-1").await;
    team.until("delivered", "whe", "crm", |whe| {
        whe["status"]["delivery"]["lastStatusCode"] == 204
    });
    {
        let seen = receiver.seen.lock().unwrap();
        let text = |name: &str| seen[0].headers[name].to_str().unwrap().to_owned();
        let signer = Scheme::Ed25519.read(data("current").as_bytes()).unwrap();
        let timestamp = text("webhook-timestamp").parse().unwrap();
        let (name, value) = signer.sign(&text("webhook-id"), timestamp, &seen[0].body).unwrap();
        assert_eq!(
            (name.as_str(), value.to_str().unwrap()),
            ("webhook-signature", &*text("webhook-signature"))
        );
    }

    annotate("tidings.dev/rotate-requested-at=now");
    team.until_reason("whe", "crm", "KeyRotating", "Overlap");
    let whe = team.until("showing both", "whe", "crm", |whe| {
        whe["status"]["signing"]["keys"]
            .as_array()
            .is_some_and(|keys| keys.len() == 2)
    });
    let second = data("publicKey");
    assert_ne!(first, second);
    let keys = &whe["status"]["signing"]["keys"];
    assert_eq!(
        (&keys[0]["publicKey"], &keys[1]["publicKey"]),
        (&json!(second), &json!(first))
    );

    let spoilt = r#"{"stringData":{"publicKey":"whpk_of_somebody_else"}}"#;
    let args = ["patch", "secret", "crm-signing", "-n", &team.namespace, "-p", spoilt];
    shared.cluster.kubectl_ok(&args).unwrap();
    annotate("tidings.dev/reconcile-requested-at=now");
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(&second)
    };
    team.until("put right", "secret", "crm-signing", |secret| {
        secret["data"]["publicKey"] == encoded.as_str()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scheme_has_its_own_key_and_header_and_none_has_neither() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "schemes");
    let receiver =
        Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")).await;
    let schemes = ["GitHub", "Stripe", "None"];
    for scheme in schemes {
        let url = format!("https://{}/{scheme}", receiver.address);
        team.deliver_to(
            &scheme.to_ascii_lowercase(),
            &url,
            json!({"signing": {"scheme": scheme}}),
        );
    }
    let answer = team.post(&shared.dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!(answer.body["matched"], 3, "{answer:?}");
    for scheme in schemes {
        team.until("delivered", "whe", &scheme.to_ascii_lowercase(), |whe| {
            whe["status"]["delivery"]["lastStatusCode"] == 204 && whe["status"]["delivery"]["pending"] == 0
        });
    }

    let seen = receiver.seen.lock().unwrap();
    let of = |scheme: &str| -> &Seen {
        let path = format!("POST /{scheme} ");
        seen.iter().find(|one| one.line.starts_with(&path)).unwrap()
    };
    let key = |name: &str| team.get("secret", name)["data"]["current"].clone();
    for (scheme, name, header) in [
        (Scheme::GitHub, "github", "x-hub-signature-256"),
        (Scheme::Stripe, "stripe", "stripe-signature"),
    ] {
        let request = of(if scheme == Scheme::GitHub { "GitHub" } else { "Stripe" });
        let secret = shared
            .cluster
            .kubectl_ok(&[
                "get",
                "secret",
                &format!("{name}-signing"),
                "-n",
                &team.namespace,
                "-o",
                "go-template={{.data.current | base64decode}}",
            ])
            .unwrap();
        assert!(secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit()));
        let signer = signer(scheme, &[&secret]);
        let timestamp = request.headers["webhook-timestamp"].to_str().unwrap().parse().unwrap();
        let id = request.headers["webhook-id"].to_str().unwrap();
        let (expected, value) = signer.sign(id, timestamp, &request.body).unwrap();
        assert_eq!((expected.as_str(), &value), (header, &request.headers[header]));
        let status = team.get("whe", name)["status"].clone();
        assert_eq!(status["signing"]["keys"].as_array().unwrap().len(), 1, "{status:#}");
        assert_eq!(
            status["signing"]["keys"][0]["id"],
            status["delivery"]["signing"]["keyID"]
        );
    }
    let unsigned = of("None");
    for name in ["webhook-signature", "x-hub-signature-256", "stripe-signature"] {
        assert!(!unsigned.headers.contains_key(name), "{name}");
    }
    assert!(unsigned.headers.contains_key("webhook-id"));
    assert_eq!(
        team.cluster.get(&team.namespace, "secret", "none-signing").unwrap(),
        None
    );
    let status = team.get("whe", "none")["status"].clone();
    assert_eq!(
        (&status["signing"], &status["delivery"]["signing"]),
        (&json!(null), &json!(null))
    );
    drop(seen);

    // Two signatures have room in Stripe's header and not in GitHub's: there a request for a rotation changes nothing.
    let before = [key("github-signing"), key("stripe-signing")];
    for name in ["github", "stripe"] {
        let asks = "tidings.dev/rotate-requested-at=now";
        shared
            .cluster
            .kubectl_ok(&["annotate", "whe", name, "-n", &team.namespace, asks])
            .unwrap();
    }
    team.until("rotated", "secret", "stripe-signing", |secret| {
        secret["data"]["previous"] == before[1] && secret["data"]["current"] != before[1]
    });
    team.until_reason("whe", "stripe", "KeyRotating", "Overlap");
    assert_eq!(key("github-signing"), before[0]);
}

/// As a receiver that only knows the public key does it, without a library.
const ED25519: &str = r#"((crypto) => {
  const x = Buffer.from(secret.slice("whpk_".length), "base64").toString("base64url");
  const key = crypto.createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
  const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
  return headers["webhook-signature"].split(" ").some((entry) => {
    const [version, signature] = entry.split(",");
    return version === "v1a" && crypto.verify(null, signed, key, Buffer.from(signature, "base64"));
  });
})(require("crypto"))"#;

const RECEIVER: &str = r#"
const [certificate, key, secret] = process.argv.slice(1);
const fs = require("fs");
const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
const verifies = async (body, headers) => @verify@;
const server = require("https").createServer(options, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", async () => {
    const body = Buffer.concat(chunks);
    response.statusCode = await verifies(body, request.headers).then((yes) => (yes ? 204 : 400), () => 400);
    response.end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"#;
