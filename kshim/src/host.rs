//! The host and the process as a program's start-up sees them: names, number of CPUs, where its messages go.
//!
//! C header: `include/linux/utsname.h`, `include/linux/cpumask.h`, `include/linux/ktime.h`

use crate::sys::linux::host as sys;

/// The host's name, `localhost` when it has none.
///
/// Context: any.
#[doc(alias = "utsname")]
pub fn hostname() -> String {
    sys::hostname()
}

/// What tells this installation from all others (machine-id(5)); empty where there is none, as in some containers.
///
/// Context: may sleep.
pub fn machine_id() -> String {
    sys::machine_id()
}

/// A variable of the process's environment, unless it is not there or not text.
///
/// Context: any.
pub fn env(name: &str) -> Option<String> {
    crate::sys::linux::proc::env(name)
}

/// Tells the service manager what state the process is in, as `READY=1` (sd_notify(3)); nothing happens where none asked
/// for it by `$NOTIFY_SOCKET`.
///
/// Context: may sleep. Errors: those of `sendmsg(2)`.
#[doc(alias = "sd_notify")]
pub fn notify_service_manager(state: &str) -> crate::error::Result {
    match env("NOTIFY_SOCKET").filter(|s| !s.is_empty()) {
        Some(socket) => crate::sys::linux::unix::send_datagram(&socket, state.as_bytes()),
        None => Ok(()),
    }
}

/// Whether this process runs as root.
///
/// Context: any.
pub fn is_root() -> bool {
    crate::sys::linux::unix::effective_uid() == 0
}

/// Number of CPUs that this process may run on: affinity and cgroup quota are taken into account. At least 1.
///
/// Context: may sleep.
#[doc(alias = "num_online_cpus")]
pub fn cpus() -> usize {
    sys::cpus()
}

/// Bytes of memory of the host.
///
/// Context: any.
#[doc(alias = "totalram_pages")]
pub fn total_ram() -> u64 {
    sys::total_ram()
}

/// Lets the process have as many descriptors as its hard limit permits. Answers how many that are; `None` when the
/// limit could not be raised.
///
/// Context: any; for a program's start.
pub fn raise_fd_limit() -> Option<u64> {
    sys::raise_fd_limit()
}

/// Milliseconds since 1970, from the settable clock. For people's eyes; measure with [`crate::time`].
///
/// Context: any.
#[doc(alias = "ktime_get_real")]
pub fn wall_clock_ms() -> u64 {
    sys::wall_clock_ms()
}

/// True if standard error is connected to the systemd journal.
///
/// Context: any.
pub fn stderr_is_journal() -> bool {
    sys::stderr_is_journal()
}

/// True if the process was started with SIGHUP ignored, as `nohup` does.
///
/// Context: may sleep.
pub fn sighup_is_ignored() -> bool {
    sys::sighup_is_ignored()
}

/// Ends the process at once, without tearing anything down.
///
/// Context: any.
pub fn exit_now(code: i32) -> ! {
    sys::exit_now(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_make_sense() {
        assert!(!hostname().is_empty());
        assert!(machine_id().bytes().all(|b| b.is_ascii_hexdigit()));
        assert!((1..4096).contains(&cpus()));
        // 2020-01-01, and the year 2100.
        assert!((1_577_836_800_000..4_102_444_800_000).contains(&wall_clock_ms()));
    }
}
