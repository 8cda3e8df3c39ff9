//! What is sent verifies with the published Standard Webhooks libraries, in receivers of their own languages that speak
//! HTTPS. Each also refuses what another key signed, so that a receiver that accepts anything would fail the test.
//!
//! The libraries come from `TIDINGS_TEST_PYTHON` (a Python that has the package) and `TIDINGS_TEST_NODE_MODULES`; where
//! these are unset, from pip and npm, once, into `${TIDINGS_CACHE_DIR:-~/.cache/tidings}`.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tidings::api::resolve::Host;
use tidings::delivery::Sender;
use tidings::signing::SigningKeys;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::receiver::{NEXT_SECRET, Receiver, SECRET, TRUSTED, endpoint, request, sender, status};

const PYTHON_PACKAGE: &str = "standardwebhooks==1.1.0";
const NODE_PACKAGE: &str = "standardwebhooks@1.1.1";
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// Bodies in which whitespace, escapes, order or encoding would show if anything re-rendered them.
const BODIES: [&str; 5] = [
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
    let keys = |text: String| Arc::new(SigningKeys::parse(None, &text).unwrap());
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

#[tokio::test]
async fn the_python_library_verifies() {
    let (python, path) = python().await;
    let mut command = Command::new(python);
    command.env("PYTHONPATH", path).arg("-c").arg(PYTHON_RECEIVER);
    let receiver = Foreign::start(command).await;
    verified_by(receiver.port).await;
}

#[tokio::test]
async fn the_javascript_library_verifies() {
    let mut command = Command::new("node");
    command
        .env("NODE_PATH", node_modules().await)
        .arg("-e")
        .arg(NODE_RECEIVER);
    let receiver = Foreign::start(command).await;
    verified_by(receiver.port).await;
}

/// A receiver in a process of its own, killed when dropped.
struct Foreign {
    port: u16,
    _process: Child,
    _files: tempfile::TempDir,
}

impl Foreign {
    /// It gets certificate, key and secret as arguments and prints its port.
    async fn start(mut command: Command) -> Foreign {
        let files = tempfile::tempdir().unwrap();
        let (certificate, key) = (files.path().join("tls.crt"), files.path().join("tls.key"));
        std::fs::write(&certificate, &TRUSTED.cert_pem).unwrap();
        std::fs::write(&key, &TRUSTED.key_pem).unwrap();
        command.arg(certificate).arg(key).arg(SECRET);
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

/// A Python and the path on which it finds the package (empty: its own).
async fn python() -> (OsString, PathBuf) {
    if let Some(python) = std::env::var_os("TIDINGS_TEST_PYTHON") {
        return (python, PathBuf::new());
    }
    let path = installed(PYTHON_PACKAGE, |into| {
        let mut command = Command::new("python3");
        command.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
        ]);
        command.arg(into).arg(PYTHON_PACKAGE);
        command
    });
    ("python3".into(), path.await)
}

async fn node_modules() -> PathBuf {
    if let Some(path) = std::env::var_os("TIDINGS_TEST_NODE_MODULES") {
        return path.into();
    }
    let prefix = installed(NODE_PACKAGE, |into| {
        let mut command = Command::new("npm");
        command
            .args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"])
            .arg(into)
            .arg(NODE_PACKAGE);
        command
    });
    prefix.await.join("node_modules")
}

/// The folder with a package, filled by `install` when it is not there; never half of it, also when two runs race.
async fn installed(package: &str, install: impl FnOnce(&Path) -> Command) -> PathBuf {
    let cache = match (std::env::var_os("TIDINGS_CACHE_DIR"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache/tidings"),
        (None, None) => panic!("set TIDINGS_CACHE_DIR or HOME: {package} is installed under it"),
    };
    let kind = if package.contains("==") { "python" } else { "node" };
    let place = cache.join(kind).join(package);
    if place.exists() {
        return place;
    }
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    let fresh = tempfile::tempdir_in(place.parent().unwrap()).unwrap();
    let mut command = install(fresh.path());
    let what = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.unwrap_or_else(|error| {
        panic!("{package} is needed to verify signatures, and {what} cannot be started to install it: {error}")
    });
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed to install {package}: {why}");
    let fresh = fresh.keep();
    if std::fs::rename(&fresh, &place).is_err() {
        assert!(place.exists(), "failed to move {package} to {}", place.display());
        std::fs::remove_dir_all(fresh).unwrap();
    }
    place
}

const PYTHON_RECEIVER: &str = r#"
import http.server, ssl, sys
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError
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
const { Webhook, WebhookVerificationError } = require("standardwebhooks");
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
