//! The process itself, read from `/proc` when it is asked for (CPU time, memory, file descriptors, when it began), and the
//! version that runs.
//!
//! Invariant: reading never fails a scrape; where there is no `/proc` the values are absent.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::descriptors;

/// Collects the conventional `process_*` metrics.
#[derive(Debug)]
pub struct Process;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    resident_bytes: i64,
    open_fds: i64,
    max_fds: i64,
    /// Seconds since 1970.
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let version = ConstGauge::new(1_i64);
        let mut build = encoder.encode_descriptor(
            "tidings_build_info",
            "1, with the version that runs",
            None,
            version.metric_type(),
        )?;
        version.encode(build.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?)?;
        let Some(reading) = read() else { return Ok(()) };
        let cpu = ConstCounter::new(reading.cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time used by this process, user and system",
            None,
            cpu.metric_type(),
        )?)?;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                reading.resident_bytes,
            ),
            ("process_open_fds", "Open file descriptors", reading.open_fds),
            (
                "process_max_fds",
                "How many file descriptors may be open",
                reading.max_fds,
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let started = ConstGauge::new(reading.started);
        let (name, help) = (
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
        );
        started.encode(encoder.encode_descriptor(name, help, None, started.metric_type())?)
    }
}

fn read() -> Option<Reading> {
    // SAFETY: sysconf only reads a constant of the system.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let open_fds = fs::read_dir("/proc/self/fd").ok()?.count();
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = booted
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .parse()
        .ok()?;
    let Ticks { cpu, started } = Ticks::of(&stat)?;
    let seconds = |count: u64| count as f64 / ticks.max(1) as f64;
    Some(Reading {
        cpu_seconds: seconds(cpu),
        resident_bytes: statm.split_whitespace().nth(1)?.parse::<i64>().ok()? * page,
        open_fds: i64::try_from(open_fds).ok()?,
        max_fds: max_fds()?,
        started: booted as f64 + seconds(started),
    })
}

fn max_fds() -> Option<i64> {
    let limit = descriptors::limit().ok()?;
    Some(i64::try_from(limit.rlim_cur).unwrap_or(i64::MAX))
}

/// What proc(5) counts in ticks.
#[derive(Debug, PartialEq)]
struct Ticks {
    /// `utime + stime`.
    cpu: u64,
    /// `starttime`, since the machine began.
    started: u64,
}

impl Ticks {
    /// The command's name may hold spaces, so fields count from its closing parenthesis.
    fn of(stat: &str) -> Option<Ticks> {
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
        let mut next = |skipped| fields.nth(skipped)?.parse::<u64>().ok();
        Some(Ticks {
            cpu: next(0)? + next(0)?,
            started: next(6)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_spaces() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 9 0 4711 1 2";
        let ticks = Ticks { cpu: 12, started: 4711 };
        assert_eq!(Ticks::of(stat), Some(ticks));
        assert_eq!(Ticks::of(""), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let reading = read().expect("/proc");
        assert!(reading.resident_bytes > 0 && reading.open_fds > 0 && reading.max_fds >= reading.open_fds);
        let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        let age = now - reading.started;
        assert!((-2.0..86_400.0).contains(&age), "it began {age} s ago");
    }
}
