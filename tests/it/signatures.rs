//! What is sent verifies with the published Standard Webhooks libraries and with Svix's, in receivers of their own languages
//! that speak HTTPS. Each also refuses what another key signed, so that a receiver that accepts anything would fail the test.
//!
//! The libraries of Python and JavaScript are installed once, outside the clone (`tidings_cluster::Verifiers`).

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tidings::api::resolve::Host;
use tidings::delivery::Sender;
use tidings::signing::SigningKeys;
use tidings_cluster::Verifiers;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::receiver::{NEXT_SECRET, Receiver, SECRET, TRUSTED, endpoint, request, sender, status};

const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// Bodies in which whitespace, escapes, order or encoding would show if anything re-rendered them.
pub const BODIES: [&str; 5] = [
    r#"{"type":"lead.qualified","timestamp":"2026-11-24T12:00:00Z","data":{"name":"Zoë ☃ 𝄞"}}"#,
    "{ \"z\": 1.0,\n\t\"a\": [1e3, 1E+3, \"\\u00e9\\/\"] }\n",
    "[]",
    r#""just text""#,
    "{}",
];

/// Sends every body to a receiver that verifies with `SECRET`: with that key, during both halves of a rotation, and with
/// another key. The receiver answers 204 to what verifies and 400 to the rest.
async fn verified_by(port: u16) {
    let sender = sender();
    let keys = |text: String| Arc::new(SigningKeys::parse(None, &text).unwrap().into());
    let table = [
        (keys(SECRET.into()), 204),
        (keys(format!("{NEXT_SECRET} {SECRET}")), 204),
        (keys(format!("{SECRET} {NEXT_SECRET}")), 204),
        (keys(NEXT_SECRET.into()), 400),
    ];
    for (signing, expected) in table {
        let mut endpoint = endpoint(Host::Address(Ipv4Addr::LOCALHOST.into()), port);
        endpoint.signing = signing;
        let endpoint = Arc::new(endpoint);
        for body in BODIES {
            let outcome = sender.send(&endpoint, request(body)).await.outcome;
            assert_eq!(status(&outcome), Some(expected), "{body}: {outcome:?}");
        }
        let mut old = request(BODIES[0]);
        old.timestamp -= 3600;
        let outcome = sender.send(&endpoint, old).await.outcome;
        assert_eq!(status(&outcome), Some(400), "a replayed request: {outcome:?}");
    }
}

#[tokio::test]
async fn the_rust_library_verifies() {
    let receiver = Receiver::start(|mut connection, _| async move {
        let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
        while let Some(request) = connection.request().await {
            let code = match webhook.verify(&request.body, &request.headers) {
                Ok(()) => 204,
                Err(_) => 400,
            };
            connection
                .write(format!("HTTP/1.1 {code} X\r\ncontent-length: 0\r\n\r\n"))
                .await;
        }
    })
    .await;
    verified_by(receiver.address.port()).await;
}

/// A receiver in Python that verifies with the `Webhook` of this module.
async fn python(module: &str) -> Foreign {
    let mut command = Command::new(verifiers().await.python);
    command.arg("-c").arg(PYTHON_RECEIVER.replace("@module@", module));
    Foreign::start(command).await
}

/// The same in JavaScript.
async fn javascript(module: &str) -> Foreign {
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", verifiers().await.node_dir.join("node_modules"))
        .arg("-e")
        .arg(NODE_RECEIVER.replace("@module@", module));
    Foreign::start(command).await
}

#[tokio::test]
async fn the_python_library_verifies() {
    let receiver = python("standardwebhooks").await;
    verified_by(receiver.port).await;
}

#[tokio::test]
async fn the_javascript_library_verifies() {
    let receiver = javascript("standardwebhooks").await;
    verified_by(receiver.port).await;
}

#[tokio::test]
async fn svixs_python_library_verifies() {
    let receiver = python("svix.webhooks").await;
    verified_by(receiver.port).await;
}

#[tokio::test]
async fn svixs_javascript_library_verifies() {
    let receiver = javascript("svix").await;
    verified_by(receiver.port).await;
}

/// A receiver in a process of its own, killed when dropped.
pub struct Foreign {
    pub port: u16,
    _process: Child,
    _files: tempfile::TempDir,
}

impl Foreign {
    async fn start(command: Command) -> Foreign {
        Foreign::with_secret(command, SECRET).await
    }

    /// It gets certificate, key and secret as arguments and prints its port.
    pub async fn with_secret(mut command: Command, secret: &str) -> Foreign {
        let files = tempfile::tempdir().unwrap();
        let (certificate, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
        std::fs::write(&certificate, &TRUSTED.cert_pem).unwrap();
        std::fs::write(&key, &TRUSTED.key_pem).unwrap();
        command.arg(certificate).arg(key).arg(secret);
        let mut process = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start {:?}: {error}", command.as_std().get_program()));
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(STARTED_WITHIN, lines.next_line())
            .await
            .expect("it prints its port in time");
        let port = line.unwrap().expect("it runs").trim().parse().expect("a port");
        Foreign {
            port,
            _process: process,
            _files: files,
        }
    }
}

/// The libraries, installed once into the cache.
pub async fn verifiers() -> Verifiers {
    let installed = tokio::task::spawn_blocking(Verifiers::ensure).await;
    installed.unwrap().unwrap_or_else(|error| panic!("{error:#}"))
}

const PYTHON_RECEIVER: &str = r#"
import http.server, ssl, sys
from @module@ import Webhook, WebhookVerificationError
certificate, key, secret = sys.argv[1:4]

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            Webhook(secret).verify(body, dict(self.headers))
            self.send_response(204)
        except WebhookVerificationError:
            self.send_response(400)
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

const NODE_RECEIVER: &str = r#"
const [certificate, key, secret] = process.argv.slice(1);
const fs = require("fs");
const { Webhook, WebhookVerificationError } = require("@module@");
const webhook = new Webhook(secret);
const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key) };
const server = require("https").createServer(options, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      webhook.verify(Buffer.concat(chunks), request.headers);
      response.statusCode = 204;
    } catch (error) {
      response.statusCode = error instanceof WebhookVerificationError ? 400 : 500;
    }
    response.end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
"#;
