//! What a person runs: `make demo`, `make up`, `make down`, through the program that they call.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::Value;
use tidings_cluster::{eventually, pids, process};

use super::team::PATIENCE;

const TIDINGS: &str = env!("CARGO_BIN_EXE_tidings");

/// `tidings-local`, built now: cargo builds a test's own package's programs only.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let profile_dir = Path::new(TIDINGS).parent().unwrap();
        let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
            Some("debug") => "dev",
            other => other.unwrap(),
        };
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "tidings-cluster"])
            .args(["--bin", "tidings-local", "--profile", profile])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", profile_dir.parent().unwrap())
            .status();
        assert!(built.unwrap().success(), "tidings-local is built");
        profile_dir.join("tidings-local")
    })
}

/// A directory for `up`; whatever a failed test leaves running in it is stopped.
pub struct Place {
    _around: tempfile::TempDir,
    pub dir: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let around = tempfile::tempdir().unwrap();
        let dir = around.path().join("local");
        Place { _around: around, dir }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = pids::stop_and_remove(&self.dir);
    }
}

fn local(dir: &Path, command: &str) -> Command {
    let mut local = Command::new(program());
    local.args([command, "--binary", TIDINGS, "--dir"]).arg(dir);
    local
}

/// Runs it to its end; what it printed.
pub fn run(dir: &Path, command: &str) -> String {
    succeeded(local(dir, command).output().unwrap())
}

fn succeeded(output: Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    // What went wrong comes first: a log that cuts long messages keeps it.
    assert!(output.status.success(), "{}: {err}\n{out}", output.status);
    out.into_owned()
}

/// Runs a script in a shell that knows nothing but what the env file of `up` tells it.
pub fn shell(dir: &Path, script: &str) -> String {
    let script = format!("set -e\n. '{}'\n{script}", dir.join("env").display());
    succeeded(
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .current_dir("/")
            .output()
            .unwrap(),
    )
}

/// Processes whose command line or environment names this directory: what was started there, and nothing else.
fn processes_of(dir: &Path) -> Vec<u32> {
    let needle = dir.to_str().unwrap();
    let names_it = |pid: u32| {
        let read = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        String::from_utf8_lossy(&text).contains(needle)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| names_it(*pid))
        .collect()
}

fn nothing_is_left(dir: &Path) {
    assert!(!dir.exists(), "{} is left", dir.display());
    eventually(
        "the end of every process",
        PATIENCE,
        || Ok(processes_of(dir).is_empty()),
    )
    .unwrap_or_else(|error| {
        panic!("{error:#}: {:?} are left", processes_of(dir));
    });
}

#[test]
fn what_up_prints_works_when_it_is_pasted_and_down_leaves_nothing() {
    let place = Place::new();
    let dir = place.dir.clone();
    let printed = run(&dir, "up");
    let pasted = pasted(&printed);
    assert!(processes_of(&dir).len() >= 7, "{:?}", processes_of(&dir));

    let answer = shell(&dir, &pasted);
    assert!(
        answer.contains("202 Accepted") && answer.contains("\"matched\":1"),
        "{answer}"
    );
    until_verified(&dir, 1);
    let pids = "echo $TIDINGS_DISPATCHER_PID $TIDINGS_CONTROLLER_PID";
    let first = shell(&dir, pids);

    // Keys the inspector has no use for do not stop it from following the others.
    shell(
        &dir,
        "kubectl create secret generic raw -n sales --type=tidings.dev/signing-key --from-literal=current=\"$(printf '\\377')\"",
    );
    // A rotation needs no word to the inspector.
    let key = || fs::read_to_string(dir.join("receiver-keys/sales.crm-signing")).unwrap();
    let old = key();
    shell(
        &dir,
        "kubectl annotate whe crm -n sales tidings.dev/rotate-requested-at=1",
    );
    eventually("both keys", PATIENCE, || Ok(key().ends_with(&old) && key() != old)).unwrap();
    shell(&dir, &pasted);
    until_verified(&dir, 2);

    // A namespace that is not opened.
    shell(
        &dir,
        "kubectl create namespace closed
         kubectl get whe crm -n sales -o yaml | sed 's/namespace: sales/namespace: closed/' | kubectl apply -f -
         kubectl wait whe/crm -n closed --for=condition=Stalled --timeout=60s",
    );
    let refused = "kubectl get whe crm -n closed -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].reason}'";
    assert_eq!(shell(&dir, refused), "PolicyDenied");

    let again = run(&dir, "up");
    assert!(again.contains("already up"), "{again}");
    assert_eq!(shell(&dir, pids), first, "nothing was started");
    shell(&dir, "kill -9 $TIDINGS_DISPATCHER_PID");
    let again = run(&dir, "up");
    assert!(again.contains("Started again: the dispatcher"), "{again}");
    assert_ne!(shell(&dir, pids), first);
    shell(&dir, &pasted);
    until_verified(&dir, 3);

    run(&dir, "down");
    nothing_is_left(&dir);
    let twice = run(&dir, "down");
    assert!(twice.contains("nothing to stop"), "{twice}");
}

/// The lines to be pasted, as they are printed.
fn pasted(printed: &str) -> String {
    let lines = printed.lines().skip_while(|line| !line.starts_with("Send an event"));
    let block: Vec<&str> = lines.skip(2).take_while(|line| !line.is_empty()).collect();
    assert!(block.iter().any(|line| line.contains("curl")), "{printed}");
    block.join("\n")
}

/// Waits until the CRM's receiver has this many requests, and asserts that it verified all of them.
fn until_verified(dir: &Path, wanted: usize) {
    let ask = "curl -sS --cacert \"$TIDINGS_CA_FILE\" \"$TIDINGS_INSPECT_URL/requests\"";
    let mut seen = Vec::new();
    eventually("the delivery", PATIENCE, || {
        let requests: Value = serde_json::from_str(&shell(dir, ask))?;
        seen = requests.as_array().cloned().unwrap_or_default();
        Ok(seen.len() >= wanted)
    })
    .unwrap();
    let verified = |one: &&Value| one["path"] == "/crm" && one["verdict"] == "Verified";
    assert_eq!(seen.iter().filter(verified).count(), wanted, "{seen:#?}");
}

#[test]
fn down_cleans_up_after_an_up_that_was_killed_and_an_interrupted_one_cleans_up_itself() {
    let place = Place::new();
    let dir = place.dir.clone();
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let mut up = local(&dir, "up")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("an API server", PATIENCE, || {
            Ok(dir.join("logs/kube-apiserver.pid").exists())
        })
        .unwrap();
        process::signal(up.id(), signal);
        let status = up.wait().unwrap();
        if signal == libc::SIGKILL {
            assert!(!processes_of(&dir).is_empty(), "daemons outlive it");
            run(&dir, "down");
        } else {
            assert_eq!(status.code(), Some(130));
        }
        nothing_is_left(&dir);
    }
}

#[test]
fn the_demo_shows_what_it_claims_and_removes_everything() {
    let nowhere = PathBuf::from("/nonexistent");
    let begun = Instant::now();
    let printed = run(&nowhere, "demo");
    for claim in [
        "202 once durable; both receivers verified",
        "failed twice, delivered at the third attempt",
        "50 of 50 accepted events delivered: nothing lost",
        "two signatures during the overlap",
        "has been stopped and removed",
    ] {
        assert!(printed.contains(claim), "{claim} is missing in\n{printed}");
    }
    println!("the demo took {:?}", begun.elapsed());
    nothing_is_left(&directory_of(&printed).unwrap());
}

#[test]
fn an_interrupted_demo_removes_everything() {
    let nowhere = PathBuf::from("/nonexistent");
    let mut demo = local(&nowhere, "demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let dir = lines.filter_map(|line| directory_of(&line)).next().unwrap();
    assert!(dir.exists() && !processes_of(&dir).is_empty());
    process::signal(demo.id(), libc::SIGINT);
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    nothing_is_left(&dir);
}

/// The demo's directory, from the command that applies its overlay.
fn directory_of(printed: &str) -> Option<PathBuf> {
    let (_, rest) = printed.split_once("kubectl apply -k ")?;
    let overlay = Path::new(rest.lines().next()?);
    overlay.parent().map(Path::to_path_buf)
}

#[test]
fn without_a_build_of_tidings_it_says_what_to_do() {
    let mut demo = Command::new(program());
    let output = demo
        .args(["demo", "--binary", "/nonexistent/tidings"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("make release"), "{said}");
}
