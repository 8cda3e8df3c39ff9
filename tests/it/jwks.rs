//! Receivers that know nothing but where a namespace's public keys are verify what is signed with Ed25519: in Python with
//! `cryptography`, in JavaScript with Node's `crypto`. They fetch the keys for each request, without a token.

use std::collections::BTreeSet;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::process::Command;

use super::signatures::{Foreign, verifiers};
use super::team::{PATIENCE, Shared, Team};

fn jwks_url(shared: &Shared, namespace: &str) -> String {
    let events = shared.dispatcher.events_url(namespace);
    format!("{}/jwks.json", events.strip_suffix("/events").unwrap())
}

async fn fetch(url: &str) -> Value {
    let answer = reqwest::get(url).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/jwk-set+json");
    assert_eq!(answer.headers()["cache-control"], "public, max-age=300");
    answer.json().await.unwrap()
}

/// Ids and keys as status shows them.
fn shown(team: &Team<'_>, endpoint: &str) -> BTreeSet<(String, String)> {
    let keys = team.get("whe", endpoint)["status"]["signing"]["keys"].clone();
    let key = |key: &Value| {
        let public = key["publicKey"].as_str().unwrap().strip_prefix("whpk_").unwrap();
        let x = URL_SAFE_NO_PAD.encode(STANDARD.decode(public).unwrap());
        (key["id"].as_str().unwrap().to_owned(), x)
    };
    keys.as_array().unwrap().iter().map(key).collect()
}

fn published(set: &Value) -> BTreeSet<(String, String)> {
    let keys = set["keys"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    keys.map(|key| {
        let fixed = [&key["kty"], &key["crv"], &key["alg"], &key["use"]];
        assert_eq!(fixed, ["OKP", "Ed25519", "EdDSA", "sig"], "{set:#}");
        (text(&key["kid"]), text(&key["x"]))
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ed25519_signs_verifies_with_the_keys_that_the_namespace_publishes_also_during_a_rotation() {
    let shared = Shared::get();
    let team = Team::open(shared.cluster, "jwks");
    let url = jwks_url(shared, &team.namespace);
    assert_eq!(
        fetch(&url).await,
        json!({"keys": []}),
        "as of a namespace that does not exist"
    );
    let found = verifiers().await;
    let python = || {
        let mut command = Command::new(&found.python);
        command.arg("-c").arg(PYTHON);
        command
    };
    let node = || {
        let mut command = Command::new("node");
        command.arg("-e").arg(NODE);
        command
    };
    let elsewhere = jwks_url(shared, "no-such-namespace");
    let receivers = [
        ("python", Foreign::with_secret(python(), &url).await, 204),
        ("node", Foreign::with_secret(node(), &url).await, 204),
        ("python-without", Foreign::with_secret(python(), &elsewhere).await, 400),
        ("node-without", Foreign::with_secret(node(), &elsewhere).await, 400),
    ];
    let signing = json!({"scheme": "StandardWebhooksEd25519", "rotation": {"overlap": "1h"}});
    for (name, receiver, _) in &receivers {
        let to = format!("https://127.0.0.1:{}/", receiver.port);
        // One attempt: a message that does not verify is a dead letter, and the next is sent at once.
        team.deliver_to(name, &to, json!({"signing": signing, "retry": {"schedule": []}}));
    }
    team.deliver_to("symmetric", "https://127.0.0.1:9/", json!({"suspend": true}));
    let verified = |sent: i64| {
        for (name, _, status) in &receivers {
            team.until("answered", "whe", name, |whe| {
                let delivery = &whe["status"]["delivery"];
                let dead = if *status == 400 { sent } else { 0 };
                delivery["lastStatusCode"] == *status && delivery["pending"] == 0 && delivery["deadLettered"] == dead
            });
        }
    };
    let answer = team.post(&shared.dispatcher, "lead-1", "lead.qualified").await;
    assert_eq!(answer.body["matched"], 5, "{answer:?}");
    verified(1);

    team.ask("python", "rotate");
    team.ask("node", "rotate");
    for name in ["python", "node"] {
        team.until_reason("whe", name, "KeyRotating", "Overlap");
        team.until("showing both", "whe", name, |whe| {
            whe["status"]["signing"]["keys"]
                .as_array()
                .is_some_and(|keys| keys.len() == 2)
        });
    }
    let wanted: BTreeSet<_> = receivers.iter().flat_map(|(name, ..)| shown(&team, name)).collect();
    assert_eq!(wanted.len(), 6);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let set = published(&fetch(&url).await);
        if set == wanted {
            break;
        }
        assert!(Instant::now() < deadline, "{set:?} is never {wanted:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    team.post(&shared.dispatcher, "lead-2", "lead.qualified").await;
    verified(2);
}

/// 204 to what the first signature, the current key's, verifies.
const PYTHON: &str = r#"
import base64, http.server, json, ssl, sys, urllib.request
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
certificate, key, url = sys.argv[1:4]

def verifies(headers, body):
    keys = json.load(urllib.request.urlopen(url))["keys"]
    signed = f'{headers["webhook-id"]}.{headers["webhook-timestamp"]}.'.encode() + body
    version, signature = headers["webhook-signature"].split(" ")[0].split(",")
    for jwk in keys:
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(jwk["x"] + "="))
        try:
            public.verify(base64.b64decode(signature), signed)
            return version == "v1a"
        except InvalidSignature:
            pass
    return False

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204 if verifies(self.headers, body) else 400)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"#;

const NODE: &str = r#"
const [certificate, key, url] = process.argv.slice(1);
const [fs, crypto, http] = [require("fs"), require("crypto"), require("http")];
const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
const read = (stream) => new Promise((resolve) => {
  const chunks = [];
  stream.on("data", (chunk) => chunks.push(chunk));
  stream.on("end", () => resolve(Buffer.concat(chunks)));
});
const server = require("https").createServer(options, async (request, response) => {
  const body = await read(request);
  const { keys } = JSON.parse(await read(await new Promise((resolve) => http.get(url, resolve))));
  const { headers } = request;
  const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
  const [version, signature] = headers["webhook-signature"].split(" ")[0].split(",");
  const verifies = (jwk) => {
    const key = crypto.createPublicKey({ key: jwk, format: "jwk" });
    return version === "v1a" && crypto.verify(null, signed, key, Buffer.from(signature, "base64"));
  };
  response.statusCode = keys.some(verifies) ? 204 : 400;
  response.end();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"#;
