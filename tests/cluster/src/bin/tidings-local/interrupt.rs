//! Ctrl-C (and SIGTERM, and a closed terminal): what was started is stopped, its directory removed, and then we end.
//!
//! Invariant: nothing is started after the first signal; a second one ends us at once.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tidings_cluster::{pids, process as children};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell reports of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// The main thread may still be writing into the directory.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

static STOPPING: AtomicBool = AtomicBool::new(false);

/// From now on a signal stops whatever runs in this cluster's directory, and removes it.
pub fn cleans_up(dir: &Path) -> Result<()> {
    let dir = dir.to_path_buf();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to listen for signals")?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<std::io::Result<Vec<Signal>>>()
            .context("failed to listen for signals")?
    };
    thread::spawn(move || {
        runtime.block_on(any(&mut signals));
        STOPPING.store(true, Ordering::SeqCst);
        eprintln!("\ntidings-local: interrupted; stopping what was started ...");
        thread::spawn(move || stop(dir));
        runtime.block_on(any(&mut signals));
        process::exit(INTERRUPTED);
    });
    Ok(())
}

async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

fn stop(dir: PathBuf) {
    children::spawn_no_more();
    for attempt in 1..=ATTEMPTS {
        match pids::stop_and_remove(&dir) {
            Ok(()) => break,
            Err(error) if attempt == ATTEMPTS => eprintln!("tidings-local: {error:#}"),
            Err(_) => thread::sleep(PAUSE),
        }
    }
    process::exit(INTERRUPTED);
}

/// Whoever fails because everything is being stopped has nothing to say: waits for the end. Returns when there was no signal.
pub fn yield_to() {
    while STOPPING.load(Ordering::SeqCst) {
        thread::park();
    }
}
