//! Names of files and of the host, and what the process was started with.

use std::path::Path;

use rustix::fs::FileType;

use crate::error::Result;
use crate::fs::{FileKind, Stat};

/// `stat(2)`.
pub(crate) fn stat(path: &Path) -> Result<Stat> {
    let st = rustix::fs::stat(path)?;
    let kind = match FileType::from_raw_mode(st.st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Directory => FileKind::Directory,
        _ => FileKind::Other,
    };
    let identity = match kind {
        // Two device nodes with the same number are the same disk. No file system has this device number.
        FileKind::BlockDevice => (u64::MAX, st.st_rdev),
        _ => (st.st_dev, st.st_ino),
    };
    Ok(Stat {
        kind,
        len: u64::try_from(st.st_size)?,
        identity,
    })
}

pub(crate) fn hostname() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    if name.is_empty() || name == "(none)" {
        "localhost".into()
    } else {
        name
    }
}

pub(crate) fn total_ram() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

pub(crate) fn raise_fd_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let all = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, all).ok()?;
    }
    Some(limit.maximum.unwrap_or(u64::MAX))
}

pub(crate) fn machine_id() -> String {
    ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|text| text.trim().to_owned())
        // An image that was not started yet says "uninitialized".
        .find(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit()))
        .unwrap_or_default()
}

pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(crate) fn wall_clock_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// systemd puts device and inode number of the journal's socket into the environment (systemd.exec(5)).
pub(crate) fn stderr_is_journal() -> bool {
    let Ok(journal) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(st) = rustix::fs::fstat(std::io::stderr()) else {
        return false;
    };
    journal == format!("{}:{}", st.st_dev, st.st_ino)
}

/// A blocked signal is delivered to sigwaitinfo(2) even if it is ignored, so one must ask.
pub(crate) fn sighup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1, the lowest bit.
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok())
        .is_some_and(|m| m & 1 != 0)
}

pub(crate) fn exit_now(code: i32) -> ! {
    std::process::exit(code)
}
