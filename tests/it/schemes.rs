//! Signatures for receivers that were built for somebody else's webhooks verify with the libraries those receivers use;
//! and what the controller makes of each scheme.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::json;
use tidings::api::resolve::Host;
use tidings::delivery::Sender;
use tidings::signing::{Scheme, Signer, SigningKeys};
use tokio::process::Command;

use super::receiver::{Receiver, Seen, endpoint, keep_answering, request, sender, status};
use super::signatures::{BODIES, Foreign, verifiers};
use super::team::{Shared, Team};

const KEY: &str = "It's a Secret to Everybody";
const OTHER: &str = "whsec_of_another_time";

fn signer(scheme: Scheme, keys: &[&str]) -> Signer {
    let keys = keys
        .iter()
        .map(|key| scheme.read_key(key.as_bytes()).unwrap())
        .collect();
    scheme.with(SigningKeys::new(None, keys).unwrap())
}

/// A receiver in JavaScript that verifies with `KEY`: 204 for what verifies, 400 for the rest.
async fn javascript(verify: &str) -> Foreign {
    let mut command = Command::new("node");
    command.current_dir(verifiers().await.node_dir);
    command.arg("-e").arg(RECEIVER.replace("@verify@", verify));
    Foreign::with_secret(command, KEY).await
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
    let receiver = javascript(verify).await;
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
    let receiver = javascript(verify).await;
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
