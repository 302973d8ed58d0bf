//! The process and its host: page size, coarse clock for rate limits.

use std::sync::OnceLock;

/// The page size of the host's MMU (not [`crate::page::PAGE_SIZE`], which is what ported code counts with).
pub(crate) fn host_page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: `sysconf` only looks a number up.
        let n = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(n).unwrap_or(crate::page::PAGE_SIZE)
    })
}

/// Milliseconds of the coarse monotonic clock (a few ms of resolution, a few ns to read).
pub(crate) fn coarse_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let ms = u64::try_from(t.tv_nsec / 1_000_000).unwrap_or(0);
    secs.saturating_mul(1000).saturating_add(ms)
}

/// A variable of the process's environment, unless it is not there or not text.
pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
