//! The code of docs/verifying.md, as it is there, in each language's own process: it verifies what was really delivered, and
//! nothing else; its libraries sign the specification's published vectors as they are published.
//!
//! A language whose tools are not on this machine is left out, and that is said.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidings::api::resolve::Host;
use tidings::delivery::Sender;
use tidings::signing::{Scheme, Signer, SigningKeys, public_key};
use tidings_cluster::{Page, Verifiers, repository_root, skipped};

use super::receiver::{NEXT_SECRET, Receiver, SECRET, endpoint, keep_answering, request, sender};
use super::signatures::{BODIES, verifiers};

mod rust;

/// Secret, id, time, body and signature, as published.
const VECTORS: [[&str; 5]; 2] = [
    [
        SECRET,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        r#"{"test": 2432232314}"#,
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ],
    [
        NEXT_SECRET,
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        "1649367553",
        r#"{"email":"test@example.com","username":"test_user"}"#,
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    ],
];
const ED25519_SECRET: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const ED25519_SIGNATURE: &str =
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";

/// A line for a language's process, and what it must answer.
struct Case {
    /// `verify`, `sign`, or `ed25519` (with the time that counts as now behind it).
    does: String,
    key: String,
    id: String,
    timestamp: String,
    signature: String,
    body: Vec<u8>,
    answer: String,
}

impl Case {
    fn line(&self) -> String {
        let body = STANDARD.encode(&self.body);
        [&self.does, &self.key, &self.id, &self.timestamp, &self.signature, &body]
            .map(String::as_str)
            .join("\t")
    }
}

/// What a receiver got over HTTPS, signed by this, so many seconds ago.
async fn delivered(signer: Signer, ago: i64, does: &str, key: &str, verifies: bool) -> Vec<Case> {
    let receiver =
        Receiver::start(|connection, seen| keep_answering(connection, seen, "HTTP/1.1 204 No Content\r\n\r\n")).await;
    let mut endpoint = endpoint(Host::Address(Ipv4Addr::LOCALHOST.into()), receiver.address.port());
    endpoint.signing = Arc::new(signer);
    let (sender, endpoint) = (sender(), Arc::new(endpoint));
    for body in BODIES {
        let mut request = request(body);
        request.timestamp -= ago;
        sender.send(&endpoint, request).await;
    }
    let seen = receiver.seen.lock().unwrap();
    assert_eq!(seen.len(), BODIES.len());
    let case = |one: &super::receiver::Seen| {
        let header = |name: &str| one.headers[name].to_str().unwrap().to_owned();
        Case {
            does: does.to_owned(),
            key: key.to_owned(),
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: one.body.clone(),
            answer: if verifies { "yes" } else { "no" }.to_owned(),
        }
    };
    seen.iter().map(case).collect()
}

/// Changes each body by a space.
fn tampered(mut cases: Vec<Case>) -> Vec<Case> {
    for case in &mut cases {
        case.body.push(b' ');
        case.answer = "no".into();
    }
    cases
}

/// What every language must tell apart; `ages` where it looks at the request's age.
async fn cases(ages: bool) -> Vec<Case> {
    let keys = |text: &str| Signer::from(SigningKeys::parse(None, text).unwrap());
    let (both, turned) = (format!("{NEXT_SECRET} {SECRET}"), format!("{SECRET} {NEXT_SECRET}"));
    let mut cases = Vec::new();
    for (signing, verifies) in [(SECRET, true), (&*both, true), (&*turned, true), (NEXT_SECRET, false)] {
        cases.extend(delivered(keys(signing), 0, "verify", SECRET, verifies).await);
    }
    cases.extend(tampered(delivered(keys(SECRET), 0, "verify", SECRET, true).await));
    if ages {
        cases.extend(delivered(keys(SECRET), 3_600, "verify", SECRET, false).await);
    }
    cases
}

fn vectors() -> Vec<Case> {
    let case = |[key, id, timestamp, body, signature]: [&str; 5]| Case {
        does: "sign".into(),
        key: key.into(),
        id: id.into(),
        timestamp: timestamp.into(),
        signature: "-".into(),
        body: body.into(),
        answer: signature.into(),
    };
    VECTORS.map(case).into()
}

/// Has a language's process answer all of them.
fn answered_by(mut command: Command, cases: &[Case]) {
    let lines: Vec<String> = cases.iter().map(Case::line).collect();
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut input = process.stdin.take().unwrap();
    let text = lines.join("\n") + "\n";
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<&str> = answers.lines().collect();
    let expected: Vec<&str> = cases.iter().map(|case| &*case.answer).collect();
    assert_eq!(answers, expected, "{}", lines.join("\n"));
}

fn page() -> Page {
    Page::read("docs/verifying.md")
}

#[tokio::test]
async fn the_page_s_rust_verifies() {
    let code = fs::read_to_string(repository_root().join("tests/it/verifying/rust.rs")).unwrap();
    assert_eq!(
        page().block("Rust", "rust"),
        code,
        "what the page shows is what runs here"
    );
    for case in cases(true).await {
        let mut headers = http::HeaderMap::new();
        for (name, value) in [
            ("webhook-id", &case.id),
            ("webhook-timestamp", &case.timestamp),
            ("webhook-signature", &case.signature),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let verified = rust::verify(&case.key, &headers, &case.body);
        assert_eq!(verified.is_ok(), case.answer == "yes", "{}: {verified:?}", case.line());
    }
    for vector in vectors() {
        let signed = standardwebhooks::Webhook::new(&vector.key)
            .unwrap()
            .sign(&vector.id, vector.timestamp.parse().unwrap(), &vector.body)
            .unwrap();
        assert_eq!(signed, vector.answer);
    }
}

#[tokio::test]
async fn the_page_s_python_verifies() {
    let page = page();
    let code = [
        page.block("Python", "python"),
        page.block("Ed25519", "python"),
        PYTHON.into(),
    ]
    .concat();
    let mut python = Command::new(verifiers().await.python);
    python.arg("-c").arg(code);
    answered_by(
        python,
        &[cases(true).await, vectors(), ed25519().await]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    );
}

#[tokio::test]
async fn the_page_s_javascript_verifies() {
    let page = page();
    let code = [
        page.block("JavaScript", "javascript"),
        page.block("Ed25519", "javascript"),
        JAVASCRIPT.into(),
    ]
    .concat();
    let mut node = Command::new("node");
    node.current_dir(verifiers().await.node_dir)
        .args(["--input-type=module", "-e"])
        .arg(code);
    answered_by(
        node,
        &[cases(true).await, vectors(), ed25519().await]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    );
}

#[tokio::test]
async fn the_page_s_go_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let pins = repository_root().join("tests/cluster/verifiers");
    for name in ["go.mod", "go.sum"] {
        fs::copy(pins.join(name), dir.path().join(name)).unwrap();
    }
    write(dir.path(), "receiver.go", &page().block("Go", "go"));
    write(dir.path(), "main.go", GO);
    build(
        Command::new("go")
            .args(["build", "-o", "receiver", "."])
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off"),
        dir.path(),
    );
    let receiver = Command::new(dir.path().join("receiver"));
    answered_by(
        receiver,
        &[cases(true).await, vectors()].into_iter().flatten().collect::<Vec<_>>(),
    );
}

#[tokio::test]
async fn the_page_s_java_verifies() {
    let jar = tokio::task::spawn_blocking(Verifiers::jar).await.unwrap();
    let Some(jar) = jar.unwrap_or_else(|error| panic!("{error:#}")) else {
        return skipped("verifying::the_page_s_java_verifies", "a JDK and Maven are missing");
    };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "Receiver.java", &page().block("Java", "java"));
    write(dir.path(), "Main.java", JAVA);
    build(
        Command::new("javac")
            .arg("-cp")
            .arg(&jar)
            .args(["-d", ".", "Receiver.java", "Main.java"]),
        dir.path(),
    );
    let mut java = Command::new("java");
    java.current_dir(dir.path())
        .arg("-cp")
        .arg(format!("{}:.", jar.display()))
        .arg("Main");
    answered_by(
        java,
        &[cases(true).await, vectors()].into_iter().flatten().collect::<Vec<_>>(),
    );
}

#[tokio::test]
async fn the_page_s_ruby_verifies() {
    let is_there = Command::new("ruby").args(["-rstandardwebhooks", "-e", ""]).output();
    if !is_there.is_ok_and(|output| output.status.success()) {
        return skipped(
            "verifying::the_page_s_ruby_verifies",
            "Ruby or its gem standardwebhooks is missing",
        );
    }
    let mut ruby = Command::new("ruby");
    ruby.arg("-e").arg([page().block("Ruby", "ruby"), RUBY.into()].concat());
    answered_by(
        ruby,
        &[cases(true).await, vectors()].into_iter().flatten().collect::<Vec<_>>(),
    );
}

#[tokio::test]
async fn the_page_s_shell_verifies() {
    if Command::new("openssl").arg("version").output().is_err() {
        return skipped("verifying::the_page_s_shell_verifies", "openssl is missing");
    }
    let code = page().block("Without a library", "sh");
    let dir = tempfile::tempdir().unwrap();
    let published = VECTORS.map(|[key, id, timestamp, body, signature]| Case {
        does: "verify".into(),
        key: key.into(),
        id: id.into(),
        timestamp: timestamp.into(),
        signature: signature.into(),
        body: body.into(),
        answer: "yes".into(),
    });
    for case in cases(false).await.into_iter().chain(published) {
        fs::write(dir.path().join("body"), &case.body).unwrap();
        let output = Command::new("sh")
            .args(["-euc", &code])
            .current_dir(dir.path())
            .env("SECRET", &case.key)
            .env("ID", &case.id)
            .env("TIMESTAMP", &case.timestamp)
            .env("SIGNATURE", &case.signature)
            .output()
            .unwrap();
        let expected = if case.answer == "yes" {
            "verified\n"
        } else {
            "not ours\n"
        };
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{}", case.line());
    }
}

/// What a language must tell apart that knows a public key.
async fn ed25519() -> Vec<Case> {
    let [current, other] = [1, 2].map(|byte| Scheme::Ed25519.generate([byte; 32]));
    let public = public_key(&current).unwrap();
    let signer = |keys: &[&str]| {
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        Scheme::Ed25519.read_each(&[], &keys).unwrap()
    };
    let mut cases = Vec::new();
    for (keys, ago, verifies) in [
        (&[&*current][..], 0, true),
        (&[&*other, &*current], 0, true),
        (&[&*other], 0, false),
        (&[&*current], 3_600, false),
    ] {
        cases.extend(delivered(signer(keys), ago, "ed25519", &public, verifies).await);
    }
    cases.extend(tampered(
        delivered(signer(&[&current]), 0, "ed25519", &public, true).await,
    ));
    // The specification's, which is of its time.
    let [_, id, timestamp, body, _] = VECTORS[0];
    for (now, verifies) in [("1614265330", true), ("1614275330", false)] {
        cases.push(Case {
            does: format!("ed25519@{now}"),
            key: public_key(ED25519_SECRET).unwrap(),
            id: id.into(),
            timestamp: timestamp.into(),
            signature: ED25519_SIGNATURE.into(),
            body: body.into(),
            answer: if verifies { "yes" } else { "no" }.into(),
        });
    }
    // What anybody may send.
    for (timestamp, signature) in [
        ("soon", ED25519_SIGNATURE),
        ("", ED25519_SIGNATURE),
        ("1614265330", "v1a"),
        ("1614265330", "v1a,a"),
        ("1614265330", "v1a,%"),
        ("1614265330", ""),
    ] {
        cases.push(Case {
            does: "ed25519@1614265330".into(),
            key: public_key(ED25519_SECRET).unwrap(),
            id: id.into(),
            timestamp: timestamp.into(),
            signature: signature.into(),
            body: body.into(),
            answer: "no".into(),
        });
    }
    cases
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

fn build(command: &mut Command, dir: &Path) {
    let output = command.current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

const PYTHON: &str = r#"
import datetime, sys
from standardwebhooks import WebhookVerificationError
for line in sys.stdin:
    does, key, message_id, timestamp, signature, body = line.rstrip("\n").split("\t")
    body = base64.b64decode(body)
    headers = {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    if does == "sign":
        at = datetime.datetime.fromtimestamp(int(timestamp), datetime.timezone.utc)
        print(Webhook(key).sign(message_id, at, body.decode()))
    elif does.startswith("ed25519"):
        now = does.partition("@")[2]
        print("yes" if verify_ed25519(key, headers, body, int(now) if now else None) else "no")
    else:
        try:
            verify(key, headers, body)
            print("yes")
        except WebhookVerificationError:
            print("no")
"#;

const RUBY: &str = r#"
STDIN.each_line(chomp: true) do |line|
  does, key, id, timestamp, signature, body = line.split("\t", -1)
  body = Base64.strict_decode64(body)
  headers = { "webhook-id" => id, "webhook-timestamp" => timestamp, "webhook-signature" => signature }
  if does == "sign"
    puts StandardWebhooks::Webhook.new(key).sign(id, timestamp, body)
  else
    begin
      verify(key, headers, body)
      puts "yes"
    rescue StandardWebhooks::WebhookVerificationError
      puts "no"
    end
  end
end
"#;

const JAVASCRIPT: &str = r#"
import { createInterface } from "node:readline";
import { WebhookVerificationError } from "standardwebhooks";
for await (const line of createInterface({ input: process.stdin })) {
  const [does, key, id, timestamp, signature, encoded] = line.split("\t");
  const body = Buffer.from(encoded, "base64");
  const headers = { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature };
  if (does === "sign") {
    console.log(new Webhook(key).sign(id, new Date(Number(timestamp) * 1000), body));
  } else if (does.startsWith("ed25519")) {
    const now = does.split("@")[1];
    console.log(verifyEd25519(key, headers, body, now && Number(now)) ? "yes" : "no");
  } else {
    try {
      verify(key, headers, body);
      console.log("yes");
    } catch (error) {
      if (!(error instanceof WebhookVerificationError)) throw error;
      console.log("no");
    }
  }
}
"#;

const GO: &str = r#"package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	library "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Split(lines.Text(), "\t")
		body, err := base64.StdEncoding.DecodeString(words[5])
		if err != nil {
			panic(err)
		}
		headers := http.Header{}
		headers.Set("webhook-id", words[2])
		headers.Set("webhook-timestamp", words[3])
		headers.Set("webhook-signature", words[4])
		if words[0] == "sign" {
			webhook, err := library.NewWebhook(words[1])
			if err != nil {
				panic(err)
			}
			seconds, err := strconv.ParseInt(words[3], 10, 64)
			if err != nil {
				panic(err)
			}
			signed, err := webhook.Sign(words[2], time.Unix(seconds, 0), body)
			if err != nil {
				panic(err)
			}
			fmt.Println(signed)
		} else if verify(words[1], headers, body) == nil {
			fmt.Println("yes")
		} else {
			fmt.Println("no")
		}
	}
}
"#;

const JAVA: &str = r#"
import com.standardwebhooks.Webhook;
import com.standardwebhooks.exceptions.WebhookVerificationException;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.http.HttpHeaders;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.List;
import java.util.Map;

public class Main {
    public static void main(String[] args) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] words = line.split("\t");
            String body = new String(Base64.getDecoder().decode(words[5]), StandardCharsets.UTF_8);
            HttpHeaders headers = HttpHeaders.of(Map.of("webhook-id", List.of(words[2]), "webhook-timestamp",
                List.of(words[3]), "webhook-signature", List.of(words[4])), (name, value) -> true);
            if (words[0].equals("sign")) {
                System.out.println(new Webhook(words[1]).sign(words[2], Long.parseLong(words[3]), body));
                continue;
            }
            try {
                Receiver.verify(words[1], headers, body);
                System.out.println("yes");
            } catch (WebhookVerificationException refused) {
                System.out.println("no");
            }
        }
    }
}
"#;
