//! Processes: start, wait for "ready", CPU time, memory, priority; what the machine does meanwhile.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, setpriority_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Ticks of `/proc` in a second: Linux shows 100 to programs on every architecture that we build for.
const TICKS: f64 = 100.0;
/// How long a process may take to end when asked to.
const END: Duration = Duration::from_secs(10);

/// A process that ends with this value.
pub(super) struct Proc {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
}

impl Proc {
    /// Starts `argv`; `cpus`: where it may run.
    pub(super) fn start(argv: &[String], cpus: &[usize], stdin: Stdio) -> Result<Self> {
        let (program, args) = argv.split_first().context("empty command")?;
        // Threads inherit the mask of who starts them: take it on, start, and give it back.
        let before = rustix::thread::sched_getaffinity(None)?;
        if !cpus.is_empty() {
            pin(None, cpus)?;
        }
        let child = Command::new(program)
            .args(args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn();
        sched_setaffinity(None, &before)?;
        let mut child = child.with_context(|| format!("cannot start {program}"))?;
        let out = child.stdout.take().map(BufReader::new);
        Ok(Self { child, out })
    }

    /// Process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The lines up to one that starts with `mark`, which is the last.
    pub(super) fn lines_to(&mut self, mark: &str) -> Result<Vec<String>> {
        let out = self.out.as_mut().context("no output")?;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if out.read_line(&mut line)? == 0 {
                bail!("ended before {mark:?}: {}", lines.join(" "));
            }
            let last = line.starts_with(mark);
            lines.push(line.trim_end().to_owned());
            if last {
                return Ok(lines);
            }
        }
    }

    /// Closes its stdin and waits for its end.
    pub(super) fn close(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        if let Some(mut out) = self.out.take() {
            out.read_to_end(&mut Vec::new())?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let pid = Pid::from_child(&self.child);
        // A frozen process must wake up to end.
        let _ = kill_process(pid, Signal::CONT);
        let _ = kill_process(pid, Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < END {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.end();
    }
}

/// The URLs in what a server printed.
pub(super) fn urls(lines: &[String]) -> Vec<String> {
    let url = |l: &String| {
        l.find("iscsi://")
            .and_then(|i| l.get(i..))
            .map(str::to_owned)
    };
    lines.iter().filter_map(url).collect()
}

fn pin(pid: Option<Pid>, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|c| set.set(*c));
    sched_setaffinity(pid, &set).context("cannot pin")
}

/// Pins all threads of `pid`.
pub(super) fn pin_all(pid: u32, cpus: &[usize]) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid = entry?.file_name().to_string_lossy().parse().ok();
        // A thread may have ended meanwhile.
        let _ = pin(tid.and_then(Pid::from_raw), cpus);
    }
    Ok(())
}

/// CPU time of all threads of `pid`, user and system.
pub(super) fn cpu_secs(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let field = |n| -> Result<f64> {
        let text = rest.split_whitespace().nth(n).context("/proc/PID/stat")?;
        Ok(text.parse()?)
    };
    Ok((field(11)? + field(12)?) / TICKS)
}

/// Resident memory of `pid` that is its own, in KiB.
pub(super) fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

/// Pid of the process that listens on `port`.
pub(super) fn listener(port: u16) -> Result<u32> {
    let mut wanted = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table)
            .unwrap_or_default()
            .lines()
            .skip(1)
        {
            let f: Vec<&str> = line.split_whitespace().collect();
            let listens = f.get(3) == Some(&"0A");
            let port_of = |s: &&str| u16::from_str_radix(s.rsplit(':').next()?, 16).ok();
            if listens && f.get(1).and_then(port_of) == Some(port) {
                wanted.extend(f.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
            continue;
        };
        let Ok(fds) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for fd in fds.flatten() {
            let link = fs::read_link(fd.path()).unwrap_or_default();
            if wanted.iter().any(|w| link.as_os_str() == w.as_str()) {
                return Ok(pid);
            }
        }
    }
    bail!("nothing listens on port {port}")
}

/// Busy seconds of `cpus` since boot.
fn busy(cpus: &[usize]) -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut sum = 0.0;
    for line in stat.lines() {
        let mut f = line.split_whitespace();
        let cpu = f
            .next()
            .and_then(|name| name.strip_prefix("cpu")?.parse().ok());
        if cpu.is_some_and(|n| cpus.contains(&n)) {
            let f: Vec<f64> = f.filter_map(|n| n.parse().ok()).collect();
            // user nice system, irq softirq steal; not idle and iowait, nor guest, which is in user.
            sum += f
                .iter()
                .take(3)
                .chain(f.iter().skip(5).take(3))
                .sum::<f64>();
        }
    }
    Ok(sum / TICKS)
}

/// What others take of some CPUs.
pub(super) struct Foreign {
    cpus: Vec<usize>,
    busy: f64,
    start: Instant,
}

impl Foreign {
    /// Begins to look.
    pub(super) fn start(cpus: &[usize]) -> Result<Self> {
        Ok(Self {
            cpus: cpus.to_vec(),
            busy: busy(cpus)?,
            start: Instant::now(),
        })
    }

    /// Per cent of one core that others took since then; `ours`: CPU seconds that we know of.
    pub(super) fn percent(&self, ours: f64) -> Result<f64> {
        let busy = busy(&self.cpus)? - self.busy;
        Ok((100.0 * (busy - ours) / self.start.elapsed().as_secs_f64()).max(0.0))
    }
}

/// A process, and this one with what it starts, at another nice level until dropped.
pub(super) struct Nice(u32, i32);

impl Nice {
    /// Sets the level; silently nothing where it is not permitted.
    pub(super) fn of(pid: u32, level: i32) -> Self {
        if level != 0 {
            renice(pid, level);
            renice(std::process::id(), level);
        }
        Self(pid, level)
    }
}

impl Drop for Nice {
    fn drop(&mut self) {
        if self.1 != 0 {
            renice(self.0, 0);
            renice(std::process::id(), 0);
        }
    }
}

fn renice(pid: u32, level: i32) {
    // With autogroup scheduling a level counts only inside its session: move that, too.
    let _ = fs::write(format!("/proc/{pid}/autogroup"), level.to_string());
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return;
    };
    for task in tasks.flatten() {
        if let Ok(tid) = task.file_name().to_string_lossy().parse() {
            let _ = setpriority_process(Pid::from_raw(tid), level);
        }
    }
}

/// The number behind `"key":` in flat JSON.
pub(super) fn json_number(json: &str, key: &str) -> Option<f64> {
    let rest = json.split_once(&format!("\"{key}\":"))?.1;
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    rest.get(..end)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_json() {
        let json = r#"{"iops":12.5,"ios":3,"ok":true}"#;
        assert_eq!(json_number(json, "iops"), Some(12.5));
        assert_eq!(json_number(json, "ios"), Some(3.0));
        assert_eq!(json_number(json, "ok"), None);
        assert_eq!(json_number(json, "no"), None);
    }

    #[test]
    fn own_process_has_time_and_memory() {
        let me = std::process::id();
        assert!(cpu_secs(me).unwrap() >= 0.0);
        assert!(resident_kib(me).unwrap() > 100);
        assert!(busy(&[0]).unwrap() > 0.0);
    }

    #[test]
    fn listener_is_found() {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = l.local_addr().unwrap().port();
        assert_eq!(listener(port).unwrap(), std::process::id());
    }
}
