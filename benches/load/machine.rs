//! The machine and what processes use of it, read from /proc.
//!
//! Invariant: nothing here needs more rights than the bench's own, and a value that cannot be read is zero or "unknown",
//! never a reason to fail.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::seq::SliceRandom as _;

/// Syncs that are timed.
const SYNCS: usize = 200;
/// Lines of memory that are read one after the other: 64 MiB, more than the caches of a core and its neighbours.
const LINES: u32 = 1 << 20;

/// What the numbers depend on.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub kernel: String,
    pub memory_gib: f64,
    /// One appended page and its fdatasync, in milliseconds: the least that a 202 costs.
    pub sync_p50: f64,
    pub sync_p99: f64,
    /// One read that no cache has, in nanoseconds. Machines that others share differ in it by more than in anything else, and
    /// from hour to hour.
    pub read_nanos: f64,
}

impl Machine {
    /// Looks at it; the disk is that of `data`.
    pub fn look(data: &Path) -> Result<Machine> {
        let (sync_p50, sync_p99) = time_syncs(data)?;
        Ok(Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| "unknown".to_owned(), |release| release.trim().to_owned()),
            memory_gib: kib("/proc/meminfo", "MemTotal") / (1024.0 * 1024.0),
            sync_p50,
            sync_p99,
            read_nanos: time_reads(),
        })
    }
}

/// The mean over a walk in no order through all lines, each of which says which is next.
fn time_reads() -> f64 {
    #[derive(Clone, Default)]
    #[repr(align(64))]
    struct Line(u32);

    let mut order: Vec<u32> = (0..LINES).collect();
    order.shuffle(&mut rand::rng());
    let mut lines = vec![Line::default(); LINES as usize];
    for (from, to) in order.iter().zip(order.iter().cycle().skip(1)) {
        lines[*from as usize] = Line(*to);
    }
    let (begin, mut at) = (Instant::now(), 0);
    for _ in 0..LINES {
        at = lines[at as usize].0;
    }
    let took = begin.elapsed();
    std::hint::black_box(at);
    took.as_secs_f64() * 1e9 / f64::from(LINES)
}

fn time_syncs(data: &Path) -> Result<(f64, f64)> {
    fs::create_dir_all(data).with_context(|| format!("failed to create {}", data.display()))?;
    let mut file = tempfile::tempfile_in(data).with_context(|| format!("failed to write in {}", data.display()))?;
    let mut took = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let begin = Instant::now();
        file.write_all(&[7; 4096]).context("failed to write")?;
        file.sync_data().context("failed to sync")?;
        took.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    took.sort_by(f64::total_cmp);
    Ok((took[SYNCS / 2], took[SYNCS * 99 / 100]))
}

/// A named field of a file of `name : value` lines.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        Some(
            line.strip_prefix(name)?
                .trim_start()
                .strip_prefix(':')?
                .trim()
                .to_owned(),
        )
    })
}

fn kib(path: &str, name: &str) -> f64 {
    let value = field(path, name).and_then(|value| value.split(' ').next()?.parse().ok());
    value.unwrap_or(0.0)
}

fn ticks(count: u64) -> Duration {
    // SAFETY: reads a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    Duration::from_secs_f64(count as f64 / per_second)
}

/// CPU time, user and system, that a process has used so far (proc(5), fields 14 and 15 of stat).
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    ticks(
        fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|n| n.parse::<u64>().ok())
            .sum(),
    )
}

/// CPU time that the whole machine has spent other than idle, time stolen by its host included.
pub fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    let fields = all.split_whitespace().skip(1).enumerate();
    // user nice system idle iowait irq softirq steal; guests are in user.
    let busy = fields.filter(|(at, _)| matches!(at, 0..=2 | 5..=7));
    ticks(busy.filter_map(|(_, n)| n.parse::<u64>().ok()).sum())
}

/// Forgets a process's largest resident size so far.
pub fn reset_peak(pid: u32) {
    // Where it is not allowed the peak counts from the process's start, which is larger, never smaller.
    if let Ok(file) = fs::File::options().write(true).open(format!("/proc/{pid}/clear_refs")) {
        let _ = file.write_at(b"5", 0);
    }
}

/// The largest resident size since then, in MiB.
pub fn peak_mib(pid: u32) -> f64 {
    kib(&format!("/proc/{pid}/status"), "VmHWM") / 1024.0
}

/// The resident size now, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    kib(&format!("/proc/{pid}/status"), "VmRSS") / 1024.0
}

/// Processes that run only where nobody else wants a core, until it is dropped: as if they had a machine of their own. Where
/// that may not be undone (it takes RLIMIT_NICE, or root), they stay so.
pub struct GivingWay {
    pids: Vec<u32>,
}

/// Makes all threads of these processes give way, and those that they start.
pub fn give_way(pids: Vec<u32>) -> GivingWay {
    schedule(&pids, libc::SCHED_IDLE);
    GivingWay { pids }
}

impl Drop for GivingWay {
    fn drop(&mut self) {
        schedule(&self.pids, libc::SCHED_OTHER);
    }
}

/// Makes the calling thread give way for good.
pub fn give_way_here() {
    schedule_thread(0, libc::SCHED_IDLE);
}

fn schedule(pids: &[u32], policy: libc::c_int) {
    let threads = pids
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok())
        .flatten()
        .filter_map(|thread| thread.ok()?.file_name().to_str()?.parse::<libc::pid_t>().ok());
    threads.for_each(|thread| schedule_thread(thread, policy));
}

fn schedule_thread(thread: libc::pid_t, policy: libc::c_int) {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter outlives the call; a thread that has ended meanwhile is an error without an effect.
    unsafe { libc::sched_setscheduler(thread, policy, &raw const priority) };
}
