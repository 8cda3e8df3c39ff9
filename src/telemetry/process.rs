//! The process itself, read from `/proc` when it is asked for: CPU time, memory, open file descriptors.
//!
//! Invariant: reading never fails a scrape; where there is no `/proc` the values are absent.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Collects the conventional `process_*` metrics.
#[derive(Debug)]
pub struct Process;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    cpu_seconds: f64,
    resident_bytes: i64,
    open_fds: i64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
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
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn read() -> Option<Reading> {
    // SAFETY: sysconf only reads a constant of the system.
    let (ticks, page) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let open_fds = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(Reading {
        cpu_seconds: cpu_ticks(&stat)? as f64 / ticks.max(1) as f64,
        resident_bytes: statm.split_whitespace().nth(1)?.parse::<i64>().ok()? * page,
        open_fds: i64::try_from(open_fds).ok()?,
    })
}

/// `utime + stime` of proc(5); the command's name may hold spaces, so fields count from its closing parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_spaces() {
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194304 100 0 0 0 7 5 0 0 20 0";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(cpu_ticks(""), None);
    }

    #[test]
    fn this_process_has_memory_and_files() {
        let reading = read().expect("/proc");
        assert!(reading.resident_bytes > 0 && reading.open_fds > 0);
    }
}
