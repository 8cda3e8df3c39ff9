//! Producers: a closed loop over many connections, and an open loop by the clock.
//!
//! Owns the sockets events are posted over. Invariant: an event counts as acknowledged only after its whole 202 was read;
//! an open loop takes latency from the scheduled time, so a slow answer cannot hide the wait it causes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::receiver::Inbox;
use crate::wire::{self, Template};

/// An answer's head and body are far shorter, a batch's apart.
const ANSWER: usize = 4 * 1024;
/// After a refusal: what a well-behaved producer would wait at least.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where events go, and what was refused on the way.
pub struct Target {
    pub port: u16,
    pub inbox: Arc<Inbox>,
    pub refused: AtomicUsize,
}

impl Target {
    pub fn new(port: u16, inbox: &Arc<Inbox>) -> Arc<Target> {
        Arc::new(Target {
            port,
            inbox: Arc::clone(inbox),
            refused: AtomicUsize::new(0),
        })
    }

    /// Notes an answer to the events from `first` on. Whether they were accepted.
    fn answered(&self, first: u32, events: u32, answer: &[u8]) -> bool {
        // 200: an earlier try of the same request was stored after all.
        let accepted = matches!(wire::status(answer), Some(200 | 202));
        if accepted {
            (first..first + events).for_each(|number| self.inbox.ledger.acked(number));
        } else {
            self.refused.fetch_add(events as usize, Ordering::Relaxed);
        }
        accepted
    }
}

/// A loop at work on threads of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Ends it: requests under way are answered first.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(self) -> Result<()> {
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a producer panicked"))??;
        }
        Ok(())
    }
}

/// Each connection sends its next request when the one before is answered, until stopped or the book is full.
pub fn closed_loop(target: &Arc<Target>, template: &Template, connections: usize) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the producers' runtime")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (target, template, stopped) = (Arc::clone(target), template.clone(), Arc::clone(&stop));
    let run = move || {
        runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..connections {
                all.spawn(connection(target.clone(), template.clone(), stopped.clone()));
            }
            while let Some(ended) = all.join_next().await {
                ended.context("a producer panicked")??;
            }
            Ok(())
        })
    };
    let thread = std::thread::Builder::new().name("producers".into()).spawn(run);
    Ok(Load {
        stop,
        threads: vec![thread.context("failed to start the producers' thread")?],
    })
}

async fn connection(target: Arc<Target>, mut template: Template, stop: Arc<AtomicBool>) -> Result<()> {
    let address = (Ipv4Addr::LOCALHOST, target.port);
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .context("failed to connect to ingest")?;
    stream.set_nodelay(true).context("failed to set TCP_NODELAY")?;
    let mut answer = Vec::with_capacity(ANSWER);
    let events = template.events();
    let mut refused = None;
    while !stop.load(Ordering::Relaxed) {
        let first = match refused.take() {
            Some(first) => first,
            None => {
                let Some(first) = target.inbox.ledger.numbers(events) else {
                    break;
                };
                let now = Instant::now();
                (first..first + events).for_each(|number| target.inbox.ledger.sent(number, now));
                first
            }
        };
        stream
            .write_all(template.numbered(first))
            .await
            .context("failed to post an event")?;
        answer.clear();
        while !whole(&answer) {
            if stream.read_buf(&mut answer).await.context("failed to read an answer")? == 0 {
                bail!("ingest closed a connection in the middle of a request");
            }
        }
        if !target.answered(first, events, &answer) {
            refused = Some(first);
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

fn whole(answer: &[u8]) -> bool {
    wire::parse_head(answer).is_some_and(|head| answer.len() >= head.body + head.length)
}

/// So many events a second for so long, each at its time, whatever became of those before. Blocking threads: the timer of
/// an event loop has milliseconds, and would be most of what is measured.
pub fn open_loop(target: &Arc<Target>, template: &Template, rate: f64, seconds: f64) -> Result<Load> {
    open_loop_from(soon(), target, template, rate, seconds)
}

/// When a loop can begin whose threads are not started yet.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

/// The same, its first event at a time.
pub fn open_loop_from(
    begin: Instant,
    target: &Arc<Target>,
    template: &Template,
    rate: f64,
    seconds: f64,
) -> Result<Load> {
    // An answer may take 80 ms before the next event of its connection is late.
    let connections = (rate / 12.0).max(1.0) as u32;
    let events = (rate * seconds).round() as u32;
    let stop = Arc::new(AtomicBool::new(false));
    let threads = (0..connections)
        .map(|lane| {
            let (target, template, stop) = (Arc::clone(target), template.clone(), Arc::clone(&stop));
            let schedule = (lane..events)
                .step_by(connections as usize)
                .map(move |event| begin + Duration::from_secs_f64(f64::from(event) / rate));
            std::thread::Builder::new()
                .name("producer".into())
                .spawn(move || by_the_clock(&target, template, schedule, &stop))
                .context("failed to start a producer's thread")
        })
        .collect::<Result<_>>()?;
    Ok(Load { stop, threads })
}

fn by_the_clock(
    target: &Target,
    mut template: Template,
    schedule: impl Iterator<Item = Instant>,
    stop: &AtomicBool,
) -> Result<()> {
    // SAFETY: changes how exactly this thread's sleeps end (1 ns instead of 50 us late), nothing else.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).context("failed to connect to ingest")?;
    stream.set_nodelay(true).context("failed to set TCP_NODELAY")?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("failed to set a timeout")?;
    let mut answer = [0; ANSWER];
    for at in schedule {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(number) = target.inbox.ledger.numbers(1) else {
            return Ok(());
        };
        target.inbox.ledger.sent(number, at);
        stream
            .write_all(template.numbered(number))
            .context("failed to post an event")?;
        let mut length = 0;
        while !whole(&answer[..length]) {
            match stream.read(&mut answer[length..]).context("failed to read an answer")? {
                0 => bail!("ingest closed a connection in the middle of a request"),
                read => length += read,
            }
        }
        target.answered(number, 1, &answer[..length]);
    }
    Ok(())
}
