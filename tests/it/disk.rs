//! A disk that is full, fails to write, or fails to sync: producers are told, deliveries go on, nothing is lost.
//!
//! Over the whole process, with what an unprivileged test can do to it: the store's own limit, a limit of file sizes that
//! makes real writes fail, and strace, which makes system calls fail or writes them down.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tidings_cluster::{Cluster, ControllerOptions, Dispatcher, DispatcherOptions, Tidings, skipped};

use super::load::{Load, until_quiet};
use super::team::{Answer, PATIENCE, TYPES, Team, Webhooks, lead, metric, until};

/// Bytes of data in each event: a store of a few MiB is full soon.
const PADDING: usize = 16 * 1024;
/// Delivered history that is so young does not give way.
const HISTORY: Duration = Duration::from_secs(60);

fn options(extra_args: &[&str]) -> DispatcherOptions {
    DispatcherOptions {
        // The log is under the limit of file sizes, too.
        log_filter: "info".into(),
        extra_args: extra_args.iter().map(Into::into).collect(),
        ..DispatcherOptions::default()
    }
}

async fn post_large(team: &Team<'_>, dispatcher: &Dispatcher, id: &str) -> Answer {
    let mut event = lead(id, TYPES[0]);
    event["data"]["padding"] = json!("x".repeat(PADDING));
    team.poster(dispatcher)(&event).await.unwrap()
}

/// Posts large events until one is refused; those that were not.
async fn fill(team: &Team<'_>, dispatcher: &Dispatcher, name: &str) -> (Vec<String>, Answer) {
    let mut stored = Vec::new();
    for n in 0..5_000 {
        let id = format!("{name}-{n}");
        let answer = post_large(team, dispatcher, &id).await;
        if answer.status != 202 {
            return (stored, answer);
        }
        stored.push(id);
    }
    panic!(
        "{} events of {PADDING} bytes were stored, and it was never full",
        stored.len()
    );
}

/// Posts until it is accepted.
async fn until_accepted(team: &Team<'_>, dispatcher: &Dispatcher, id: &str) {
    let deadline = Instant::now() + HISTORY + PATIENCE;
    loop {
        let answer = post_large(team, dispatcher, id).await;
        if answer.status != 503 {
            assert!(matches!(answer.status, 200 | 202), "{answer:?}");
            return;
        }
        assert!(Instant::now() < deadline, "never accepted again: {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_producers_delivers_what_it_has_and_takes_more_when_there_is_room() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let limit = (4 << 20).to_string();
    let dispatcher = tidings.start_dispatcher(&options(&["--store-limit", &limit])).unwrap();
    let team = Team::open(&cluster, "full");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({"suspend": true}));
    let refusing = Webhooks::answering(|_, _| 422).await;
    let refuses = |suspend: bool| json!({"suspend": suspend, "retry": {"neverRetry": [422]}});
    team.endpoint("refusing", &refusing.url(), refuses(true));
    team.apply(
        &json!({"apiVersion": "tidings.dev/v1alpha1", "kind": "EventSubscription", "metadata": {"name": "refused"},
        "spec": {"endpointRef": {"name": "refusing"}, "eventTypes": [TYPES[1]], "deadLetter": {"endpointRef": {"name": "crm"}}}}),
    );
    team.ready("evsub/refused");
    let answer = team.post(&dispatcher, "doomed", TYPES[1]).await;
    assert_eq!((answer.status, &answer.body["matched"]), (202, &json!(2)), "{answer:?}");

    let (mut stored, refused) = fill(&team, &dispatcher, "lead").await;
    stored.push("doomed".to_owned());
    assert_eq!(
        (refused.status, &refused.body["reason"], refused.retry_after),
        (503, &json!("StoreFull"), Some(10)),
        "{refused:?}"
    );
    assert!(stored.len() > 100, "only {} events were taken", stored.len());
    assert_eq!(receiver.arrived().len(), 0, "nothing is sent to a suspended endpoint");

    // Of a dead letter that there is now nobody can be told, and that is counted.
    team.endpoint("refusing", &refusing.url(), refuses(false));
    let untold = r#"tidings_dead_letters_untold_total{reason="StoreFull"}"#;
    until("nobody told", async || metric(&dispatcher, untold) == 1.0).await;

    team.endpoint("crm", &receiver.url(), json!({"suspend": false}));
    let delivered = |n: usize| move |all: &[super::team::Arrived]| all.len() >= n;
    receiver.until("what was stored", delivered(stored.len())).await;
    until_quiet(&dispatcher, || true).await;
    // Delivered history gives way, and there is room without a restart.
    until_accepted(&team, &dispatcher, "lead-after").await;
    receiver.until("what came after", delivered(stored.len() + 1)).await;
    assert!(stored.iter().all(|event| receiver.times(event) == 1), "each once");
    team.until("all delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_refuse_producers_while_deliveries_go_on_and_are_made_up_for_without_a_restart() {
    const WAITING: usize = 20;
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&options(&[])).unwrap();
    let spec = dispatcher.process.spec_mut();
    *spec = spec.clone().ignoring_file_size_signal();
    dispatcher.restart().unwrap();
    let team = Team::open(&cluster, "failing");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));

    // A database larger than the limit to come; beyond it nothing can be moved from the write-ahead log, which then grows.
    for n in 0..200 {
        assert_eq!(post_large(&team, &dispatcher, &format!("before-{n}")).await.status, 202);
    }
    receiver.until("all of it", |all| all.len() == 200).await;
    team.endpoint("crm", &receiver.url(), json!({"suspend": true}));
    team.until_reason("whe", "crm", "Delivering", "Suspended");
    for n in 0..WAITING {
        team.send(&dispatcher, &format!("waiting-{n}")).await;
    }
    let pid = dispatcher.process.pid();

    dispatcher.process.limit_file_size(Some(1 << 20)).unwrap();
    let (stored, refused) = fill(&team, &dispatcher, "during").await;
    let is_refused = |answer: &Answer| {
        assert_eq!(
            (answer.status, &answer.body["reason"], answer.retry_after),
            (503, &json!("StoreFailed"), Some(2)),
            "{answer:?}"
        );
    };
    is_refused(&refused);
    team.endpoint("crm", &receiver.url(), json!({"suspend": false}));
    let expected = 200 + WAITING + stored.len();
    receiver
        .until("what was stored, with the disk failing", |all| all.len() == expected)
        .await;
    is_refused(&post_large(&team, &dispatcher, "refused").await);
    let deadline = Instant::now() + PATIENCE;
    while metric(&dispatcher, "tidings_outcomes_unrecorded") < WAITING as f64 {
        assert!(
            Instant::now() < deadline,
            "the outcomes that wait for the disk are not shown"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    dispatcher.process.limit_file_size(None).unwrap();
    until_accepted(&team, &dispatcher, "refused").await;
    until_quiet(&dispatcher, || receiver.times("refused") == 1).await;
    assert_eq!(dispatcher.process.pid(), pid, "it is the same process");
    assert!(dispatcher.process.is_running());
    team.until("all delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
    assert_eq!(receiver.arrived().len(), expected + 1, "each once");
    // What is on disk agrees: a restart sends nothing again.
    dispatcher.kill9();
    dispatcher.restart().unwrap();
    team.send(&dispatcher, "after").await;
    receiver
        .until("what came after the restart", |all| {
            all.iter().any(|one| one.event == "after")
        })
        .await;
    until_quiet(&dispatcher, || true).await;
    assert_eq!(receiver.arrived().len(), expected + 2);
}

/// Whether this user may have a file system of his own, which a test needs.
fn may_mount(test: &str) -> bool {
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--user",
        "--map-root-user",
        "--mount",
        "mount",
        "-t",
        "tmpfs",
        "tmpfs",
        "/mnt",
    ]);
    let may = unshare
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !may {
        skipped(test, "user namespaces are not for this user");
    }
    may
}

/// Somebody else's file on the dispatcher's volume.
struct Ballast {
    file: std::fs::File,
    path: PathBuf,
}

impl Ballast {
    fn beside(dispatcher: &Dispatcher) -> Ballast {
        let pid = dispatcher.process.pid().unwrap();
        let dir = dispatcher.data_dir.strip_prefix("/").unwrap();
        let path = Path::new("/proc")
            .join(pid.to_string())
            .join("root")
            .join(dir)
            .join("ballast");
        let file = std::fs::File::create(&path).unwrap();
        Ballast { file, path }
    }

    /// Grows by this much, or until nothing more fits: then false.
    fn grow(&mut self, bytes: usize) -> bool {
        let piece = vec![0; 64 * 1024];
        (0..bytes.div_ceil(piece.len())).all(|_| self.file.write_all(&piece).is_ok())
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_somebody_else_fills_to_the_last_byte_stops_producers_and_no_delivery() {
    const VOLUME: usize = 280 << 20;
    if !may_mount("disk::a_volume_that_somebody_else_fills_to_the_last_byte_stops_producers_and_no_delivery") {
        return;
    }
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&options(&[])).unwrap();
    let dir = dispatcher.data_dir.clone();
    let spec = dispatcher.process.spec_mut();
    *spec = spec.clone().with_small_volume(&dir, VOLUME as u64);
    dispatcher.restart().unwrap();
    let team = Team::open(&cluster, "crowded");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({"suspend": true}));
    let waiting: Vec<String> = (0..200).map(|n| format!("waiting-{n}")).collect();
    for event in &waiting {
        assert_eq!(post_large(&team, &dispatcher, event).await.status, 202);
    }

    // Less is free than what is kept for outcomes.
    let mut ballast = Ballast::beside(&dispatcher);
    assert!(ballast.grow(64 << 20));
    let (stored, refused) = fill(&team, &dispatcher, "during").await;
    let is_refused = |answer: &Answer| {
        assert_eq!(
            (answer.status, &answer.body["reason"], answer.retry_after),
            (503, &json!("StoreFull"), Some(10)),
            "{answer:?}"
        );
    };
    is_refused(&refused);
    assert!(!ballast.grow(VOLUME), "not a byte is left");
    team.endpoint("crm", &receiver.url(), json!({"suspend": false}));
    let expected = waiting.len() + stored.len();
    receiver
        .until("what was stored, on a full volume", |all| all.len() == expected)
        .await;
    is_refused(&post_large(&team, &dispatcher, "refused").await);

    std::fs::remove_file(&ballast.path).unwrap();
    drop(ballast);
    until_accepted(&team, &dispatcher, "refused").await;
    until_quiet(&dispatcher, || receiver.times("refused") == 1).await;
    team.until("all delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
    assert_eq!(receiver.arrived().len(), expected + 1, "each once");
    assert!(dispatcher.process.is_running());
}

/// strace on a running dispatcher; detached when dropped.
struct Strace {
    child: Child,
    output: PathBuf,
}

impl Strace {
    /// None where strace is not installed or may not trace, and the test is skipped.
    fn attach(test: &str, dispatcher: &Dispatcher, args: &[&str]) -> Option<Strace> {
        let pid = dispatcher.process.pid().unwrap();
        let output = dispatcher.data_dir.join("strace");
        let child = Command::new("strace")
            .args(["-f", "-y", "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .args(args)
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            skipped(test, "strace is not installed");
            return None;
        };
        let deadline = Instant::now() + PATIENCE;
        while !every_thread_is_traced(pid) {
            if let Ok(Some(status)) = child.try_wait() {
                if status.success() {
                    // What it traced has ended already.
                    break;
                }
                skipped(test, &format!("strace may not trace here ({status})"));
                return None;
            }
            assert!(Instant::now() < deadline, "strace never attached");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Strace { child, output })
    }

    fn lines(&self) -> Vec<String> {
        let bytes = std::fs::read(&self.output).unwrap();
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        tidings_cluster::process::signal(self.child.id(), libc::SIGTERM);
        let _ = self.child.wait();
    }
}

fn every_thread_is_traced(pid: u32) -> bool {
    let is_traced = |thread: &Path| {
        let status = std::fs::read_to_string(thread.join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        tracer.is_some_and(|tracer| tracer.trim() != "0")
    };
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let threads: Vec<PathBuf> = threads.flatten().map(|thread| thread.path()).collect();
    !threads.is_empty() && threads.iter().all(|thread| is_traced(thread))
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fsync_ends_the_process_and_the_next_one_has_everything_that_was_acknowledged() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let mut dispatcher = tidings.start_dispatcher(&options(&[])).unwrap();
    let team = Team::open(&cluster, "unsynced");
    let receiver = Webhooks::start().await;
    team.deliver_to("crm", &receiver.url(), json!({}));
    let mut load = Load::default();
    load.start(&team, &dispatcher, 4, |producer, n| format!("lead-{producer}-{n}"));
    receiver.until("a load", |all| all.len() > 100).await;

    let fails = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"];
    let test = "disk::a_failed_fsync_ends_the_process_and_the_next_one_has_everything_that_was_acknowledged";
    let Some(strace) = Strace::attach(test, &dispatcher, &fails) else {
        load.stop().await;
        return;
    };
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = dispatcher.process.exited() {
            break status;
        }
        assert!(
            Instant::now() < deadline,
            "it went on after a failed fsync:\n{}",
            strace.lines().join("\n")
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(status.code(), Some(70), "{}", dispatcher.process.log_tail());
    let injected = strace.lines().iter().filter(|line| line.contains("(INJECTED)")).count();
    assert!(
        (1..=2).contains(&injected),
        "{injected} syncs were tried after the first that failed"
    );
    drop(strace);
    load.stop().await;
    let before: Vec<String> = load.acknowledged();

    dispatcher.restart().unwrap();
    until_quiet(&dispatcher, || before.iter().all(|event| receiver.times(event) > 0)).await;
    load.send_what_is_left(&team, &dispatcher).await;
    let all = load.acknowledged();
    assert!(
        all.len() > before.len(),
        "what was in hand had no answer, and was sent again"
    );
    until_quiet(&dispatcher, || all.iter().all(|event| receiver.times(event) > 0)).await;
    team.until("all delivered", "evsub", "crm", |evsub| {
        evsub["status"]["delivery"]["pending"] == 0
    });
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn strace_shows_the_event_written_and_synced_before_its_202() {
    let cluster = Cluster::lend().unwrap();
    let tidings = Tidings::installed(&cluster, env!("CARGO_BIN_EXE_tidings"));
    let _controller = tidings.start_controller(&ControllerOptions::default()).unwrap();
    let dispatcher = tidings.start_dispatcher(&options(&[])).unwrap();
    let team = Team::open(&cluster, "traced");
    // Nobody is there to deliver to: the store writes for this event and for nothing else.
    team.deliver_to("crm", "https://127.0.0.1:1/hooks", json!({"suspend": true}));
    team.send(&dispatcher, "warm").await;
    let calls = "trace=pwrite64,write,writev,sendto,sendmsg,fsync,fdatasync";
    // A page of the database whole, so that the event is seen in it.
    let test = "disk::strace_shows_the_event_written_and_synced_before_its_202";
    let Some(strace) = Strace::attach(test, &dispatcher, &["-s", "8192", "-e", calls]) else {
        return;
    };
    team.send(&dispatcher, "traced-1").await;
    let find = |lines: &[String], from: usize, what: &dyn Fn(&str) -> bool| {
        lines[from..].iter().position(|line| what(line)).map(|at| from + at)
    };
    let is_answer = |line: &str| line.contains("HTTP/1.1 202");
    let deadline = Instant::now() + PATIENCE;
    let lines = loop {
        let lines = strace.lines();
        if find(&lines, 0, &is_answer).is_some() {
            break lines;
        }
        assert!(Instant::now() < deadline, "no answer in\n{}", lines.join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let is_log = |line: &str| line.contains("tidings.db-wal>");
    let written = find(&lines, 0, &|line| {
        is_log(line) && line.contains("pwrite64") && line.contains("traced-1")
    });
    let written = written.unwrap_or_else(|| panic!("the event was not written:\n{}", lines.join("\n")));
    let begun = find(&lines, written, &|line| is_log(line) && line.contains("sync("));
    let begun = begun.unwrap_or_else(|| panic!("nothing was synced:\n{}", lines[written..].join("\n")));
    let thread = lines[begun].split(' ').next().unwrap();
    let ended = find(&lines, begun, &|line| {
        line.starts_with(thread) && line.contains("sync") && line.ends_with("= 0")
    });
    let ended = ended.unwrap_or_else(|| panic!("no sync ended:\n{}", lines[begun..].join("\n")));
    let answered = find(&lines, 0, &is_answer).unwrap();
    assert!(
        ended < answered,
        "answered before the sync:\n{}",
        lines[written..].join("\n")
    );
}
