//! Printing facilities: `pr_err!` and its kin.
//!
//! The macros forward to the `log` crate with the caller's module path as target; the binary installs the logger.
//! `log` has five levels: emergency to error are `Error`, notice and info are `Info`. Arguments are not evaluated when the
//! level is off. No trailing newline is needed.
//!
//! What a peer can provoke goes through the `_ratelimited` forms: at most [`RATELIMIT_BURST`] lines of one call site
//! in [`RATELIMIT_INTERVAL_MS`]; the next line after that says first how many were left out. Where each peer is to have
//! so many for itself, whatever the others do, the `_ratelimited_by` forms take its name first.
//!
//! ```
//! use kshim::{pr_err, pr_info, pr_warn_ratelimited};
//!
//! let dev = "disk0";
//! pr_info!("device {dev} registered");
//! pr_err!("{}: I/O error, sector {}", dev, 8);
//! for _ in 0..1000 {
//!     pr_warn_ratelimited!("peer sent nonsense");
//! }
//! for peer in ["a", "b"] {
//!     kshim::pr_info_ratelimited_by!(peer, "{peer} is here");
//! }
//! ```
//!
//! C header: `include/linux/printk.h`, `include/linux/ratelimit.h`

use crate::sync::SpinLock;
use std::sync::atomic::{AtomicU64, Ordering};

pub use log::LevelFilter;

#[doc(hidden)]
pub use log as __log;

/// How much a module prints, when that was changed while the program runs.
struct ModuleLevels {
    levels: Vec<(&'static str, LevelFilter)>,
    /// The overall limit before the first was set.
    base: Option<LevelFilter>,
}

static MODULE_LEVELS: SpinLock<ModuleLevels> = SpinLock::new(ModuleLevels {
    levels: Vec::new(),
    base: None,
});

/// Has a module, and those below it, print as much as `level` from now on, or again as the program was started. The logger
/// asks [`module_level`].
///
/// Context: any.
#[doc(alias = "dynamic_debug")]
pub fn set_module_level(module: &'static str, level: Option<LevelFilter>) {
    let mut m = MODULE_LEVELS.lock();
    m.levels.retain(|(name, _)| *name != module);
    m.levels.extend(level.map(|l| (module, l)));
    // The longest name first: it counts.
    m.levels
        .sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let wanted = m.levels.iter().map(|(_, l)| *l).max();
    match wanted {
        Some(level) => {
            let base = *m.base.get_or_insert_with(log::max_level);
            log::set_max_level(base.max(level));
        }
        None => {
            if let Some(base) = m.base.take() {
                log::set_max_level(base);
            }
        }
    }
}

/// Whether any module prints single commands.
///
/// Context: any; one load.
#[inline]
pub fn traces() -> bool {
    log::max_level() >= LevelFilter::Trace
}

/// What was set for a log target by [`set_module_level`], if anything.
///
/// Context: any.
pub fn module_level(target: &str) -> Option<LevelFilter> {
    let m = MODULE_LEVELS.lock();
    let covers = |module: &str| {
        let rest = target.strip_prefix(module);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let found = m.levels.iter().find(|(module, _)| covers(module));
    found.map(|(_, level)| *level)
}

/// Length of the window of a rate limit.
#[doc(alias = "DEFAULT_RATELIMIT_INTERVAL")]
pub const RATELIMIT_INTERVAL_MS: u64 = 5_000;
/// Lines let through in one window.
#[doc(alias = "DEFAULT_RATELIMIT_BURST")]
pub const RATELIMIT_BURST: u32 = 10;

/// What a [`RateLimit`] says about one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Print it; so many were suppressed since the last one that was printed.
    Print {
        /// Suppressed lines.
        missed: u32,
    },
    /// Leave it out.
    Suppress,
}

/// A rate limit of one call site, in a `static`.
///
/// Context: any thread; lock-free.
///
/// ```
/// use kshim::print::{RATELIMIT_BURST, RateLimit, Verdict};
///
/// static LOST: RateLimit = RateLimit::new();
///
/// let printed = (0..100).filter(|_| matches!(LOST.check(), Verdict::Print { .. }));
/// assert!(printed.count() >= RATELIMIT_BURST as usize);
/// kshim::pr_warn_ratelimited!("the macros have one for each place");
/// ```
///
/// C header: `include/linux/ratelimit.h` (`struct ratelimit_state`)
#[doc(alias = "ratelimit_state")]
#[derive(Debug)]
pub struct RateLimit {
    /// Window start in ms (upper 40 bits), lines in the window (lower 24 bits).
    state: AtomicU64,
    missed: AtomicU64,
}

const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

impl RateLimit {
    /// A limit with the default interval and burst.
    #[allow(
        clippy::new_without_default,
        reason = "lives in statics, made by macros"
    )]
    pub const fn new() -> RateLimit {
        RateLimit {
            state: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        }
    }

    /// Counts a line and says whether it may be printed.
    ///
    /// Context: any.
    #[doc(alias = "__ratelimit")]
    pub fn check(&self) -> Verdict {
        self.check_at(crate::sys::linux::proc::coarse_ms())
    }

    fn check_at(&self, now_ms: u64) -> Verdict {
        // One more than 0, so that a fresh state (window start 0) always begins a window.
        let now = now_ms.wrapping_add(RATELIMIT_INTERVAL_MS + 1) & (u64::MAX >> COUNT_BITS);
        let mut allowed = false;
        // The state is a hint: a lost race costs a line more or less.
        let _ = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| {
                let (start, n) = (s >> COUNT_BITS, s & COUNT_MASK);
                if now.wrapping_sub(start) > RATELIMIT_INTERVAL_MS {
                    allowed = true;
                    Some((now << COUNT_BITS) | 1)
                } else if n < u64::from(RATELIMIT_BURST) {
                    allowed = true;
                    Some(s + 1)
                } else {
                    allowed = false;
                    None
                }
            });
        if allowed {
            let missed = self.missed.swap(0, Ordering::Relaxed);
            Verdict::Print {
                missed: u32::try_from(missed).unwrap_or(u32::MAX),
            }
        } else {
            self.missed.fetch_add(1, Ordering::Relaxed);
            Verdict::Suppress
        }
    }
}

/// Peers that have a limit for themselves, in [`RateLimits`]: with more some share one.
const RATELIMIT_SLOTS: usize = 64;

/// Rate limits of one call site, for each peer, in a `static`. Which peers share one nobody can tell from outside.
///
/// Context: any thread; lock-free.
#[derive(Debug)]
pub struct RateLimits {
    slots: [RateLimit; RATELIMIT_SLOTS],
    hash: std::sync::OnceLock<std::hash::RandomState>,
}

impl RateLimits {
    /// Limits with the default interval and burst.
    #[allow(
        clippy::new_without_default,
        reason = "lives in statics, made by macros"
    )]
    pub const fn new() -> RateLimits {
        RateLimits {
            slots: [const { RateLimit::new() }; RATELIMIT_SLOTS],
            hash: std::sync::OnceLock::new(),
        }
    }

    /// Counts a line about this peer and says whether it may be printed.
    ///
    /// Context: any.
    pub fn check(&self, peer: impl std::hash::Hash) -> Verdict {
        self.slot(peer).check()
    }

    fn slot(&self, peer: impl std::hash::Hash) -> &RateLimit {
        let hash = self.hash.get_or_init(Default::default);
        let at = std::hash::BuildHasher::hash_one(hash, peer) % RATELIMIT_SLOTS as u64;
        &self.slots[at as usize]
    }
}

/// Prints an emergency-level message: the process is about to abort.
#[macro_export]
macro_rules! pr_emerg { ($($arg:tt)+) => { $crate::print::__log::error!($($arg)+) }; }
/// Prints an alert-level message.
#[macro_export]
macro_rules! pr_alert { ($($arg:tt)+) => { $crate::print::__log::error!($($arg)+) }; }
/// Prints a critical-level message.
#[macro_export]
macro_rules! pr_crit { ($($arg:tt)+) => { $crate::print::__log::error!($($arg)+) }; }
/// Prints an error: a requested operation or an I/O failed.
#[macro_export]
macro_rules! pr_err { ($($arg:tt)+) => { $crate::print::__log::error!($($arg)+) }; }
/// Prints a warning: odd but handled.
#[macro_export]
macro_rules! pr_warn { ($($arg:tt)+) => { $crate::print::__log::warn!($($arg)+) }; }
/// Prints a notice: a rare change of state.
#[macro_export]
macro_rules! pr_notice { ($($arg:tt)+) => { $crate::print::__log::info!($($arg)+) }; }
/// Prints an information.
#[macro_export]
macro_rules! pr_info { ($($arg:tt)+) => { $crate::print::__log::info!($($arg)+) }; }
/// Prints a debug message.
#[macro_export]
macro_rules! pr_debug { ($($arg:tt)+) => { $crate::print::__log::debug!($($arg)+) }; }

/// Prints what concerns a single command; [`traces`] says beforehand whether anybody may want it.
#[macro_export]
macro_rules! pr_trace { ($($arg:tt)+) => { $crate::print::__log::trace!($($arg)+) }; }

#[doc(hidden)]
#[macro_export]
macro_rules! __pr_ratelimited {
    (by $peer:expr, $level:ident, $($arg:tt)+) => {{
        static __RATELIMITS: $crate::print::RateLimits = $crate::print::RateLimits::new();
        $crate::__pr_ratelimited!(if __RATELIMITS.check($peer), $level, $($arg)+)
    }};
    (if $verdict:expr, $level:ident, $($arg:tt)+) => {{
        if let $crate::print::Verdict::Print { missed } = $verdict {
            if missed > 0 {
                $crate::print::__log::$level!("{missed} messages of this kind suppressed");
            }
            $crate::print::__log::$level!($($arg)+);
        }
    }};
    ($level:ident, $($arg:tt)+) => {{
        static __RATELIMIT: $crate::print::RateLimit = $crate::print::RateLimit::new();
        $crate::__pr_ratelimited!(if __RATELIMIT.check(), $level, $($arg)+)
    }};
}

/// [`pr_err!`](crate::pr_err), rate limited per call site.
#[macro_export]
macro_rules! pr_err_ratelimited { ($($arg:tt)+) => { $crate::__pr_ratelimited!(error, $($arg)+) }; }
/// [`pr_warn!`](crate::pr_warn), rate limited per call site.
#[macro_export]
macro_rules! pr_warn_ratelimited { ($($arg:tt)+) => { $crate::__pr_ratelimited!(warn, $($arg)+) }; }
/// [`pr_notice!`](crate::pr_notice), rate limited per call site.
#[macro_export]
macro_rules! pr_notice_ratelimited { ($($arg:tt)+) => { $crate::__pr_ratelimited!(info, $($arg)+) }; }
/// [`pr_info!`](crate::pr_info), rate limited per call site.
#[macro_export]
macro_rules! pr_info_ratelimited { ($($arg:tt)+) => { $crate::__pr_ratelimited!(info, $($arg)+) }; }
/// [`pr_info!`](crate::pr_info), rate limited per call site and peer, which comes first.
#[macro_export]
macro_rules! pr_info_ratelimited_by {
    ($peer:expr, $($arg:tt)+) => { $crate::__pr_ratelimited!(by $peer, info, $($arg)+) };
}
/// [`pr_debug!`](crate::pr_debug), rate limited per call site.
#[macro_export]
macro_rules! pr_debug_ratelimited { ($($arg:tt)+) => { $crate::__pr_ratelimited!(debug, $($arg)+) }; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_levels_of_their_own() {
        assert_eq!(module_level("m1::a"), None);
        set_module_level("m1", Some(LevelFilter::Debug));
        set_module_level("m1::a", Some(LevelFilter::Off));
        assert_eq!(module_level("m1"), Some(LevelFilter::Debug));
        assert_eq!(module_level("m1::a::b"), Some(LevelFilter::Off));
        assert_eq!(module_level("m1::ab"), Some(LevelFilter::Debug));
        assert_eq!(module_level("m10"), None);
        assert!(log::max_level() >= LevelFilter::Debug);
        set_module_level("m1", None);
        set_module_level("m1::a", None);
        assert_eq!(module_level("m1::a"), None);
    }

    #[test]
    fn a_burst_passes_then_the_rest_is_counted() {
        let rl = RateLimit::new();
        for _ in 0..RATELIMIT_BURST {
            assert_eq!(rl.check_at(100), Verdict::Print { missed: 0 });
        }
        for _ in 0..7 {
            assert_eq!(rl.check_at(101), Verdict::Suppress);
        }
        assert_eq!(
            rl.check_at(101 + RATELIMIT_INTERVAL_MS),
            Verdict::Print { missed: 7 }
        );
        assert_eq!(
            rl.check_at(101 + RATELIMIT_INTERVAL_MS),
            Verdict::Print { missed: 0 }
        );
    }

    #[test]
    fn each_peer_has_a_burst_of_its_own() {
        let limits = RateLimits::new();
        let name = |n: usize| format!("iqn.x:{n}");
        let first = limits.slot(name(0));
        let other = (1..)
            .map(name)
            .find(|o| !std::ptr::eq(limits.slot(o), first));
        for _ in 0..100 * RATELIMIT_BURST {
            limits.slot(name(0)).check_at(100);
        }
        assert_eq!(limits.slot(name(0)).check_at(101), Verdict::Suppress);
        let verdict = limits
            .slot(other.expect("more than one slot"))
            .check_at(101);
        assert_eq!(verdict, Verdict::Print { missed: 0 });
    }

    #[test]
    fn the_first_line_after_start_passes() {
        assert_eq!(RateLimit::new().check_at(0), Verdict::Print { missed: 0 });
    }
}
