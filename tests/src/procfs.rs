//! What `/proc` says about a process.

use std::fs;
use std::time::Duration;

/// Resources of a process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// Of it, memory that no file stands behind.
    pub anon_kib: u64,
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// Reads the usage of `pid`; `None` when there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| -> u64 {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap_or_default();
            line.split_whitespace()
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        Some(Self {
            rss_kib: field("VmRSS:"),
            anon_kib: field("RssAnon:"),
            fds: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads: field("Threads:"),
        })
    }
}

/// User and system time that all threads of `pid` have used, and `None` when there is no such process.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may contain anything.
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 on every Linux that this runs on.
    Some(Duration::from_millis((user + system) * 10))
}

/// Number of times that the threads of `pid` were put on a CPU after they had slept.
pub fn voluntary_switches(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread that has just ended has no file any more.
        let Ok(task) = task else { continue };
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_process() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(
            usage.rss_kib > 100 && usage.fds >= 3 && usage.threads >= 1,
            "{usage:?}"
        );
        assert!(cpu_time(std::process::id()).is_some());
        assert!(voluntary_switches(std::process::id()).is_some());
        assert!(Usage::of(u32::MAX).is_none());
    }
}
