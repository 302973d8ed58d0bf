//! Assertions: `bug_on!`, `warn_on!`, `might_sleep!`.
//!
//! They are for *our* mistakes. Nothing that a peer, a file or an operator supplies may reach one: that is an error
//! to return. A bug panics; what runs a foreign callback (reactor, work queue, kthread) catches the panic, logs it
//! and takes the broken object out of service.
//!
//! ```
//! use kshim::{bug_on, build_bug_on, might_sleep, warn_on};
//!
//! build_bug_on!(size_of::<u32>() != 4);
//! let refs = 1;
//! bug_on!(refs == 0);
//! if warn_on!(refs > 100) {
//!     // carry on as well as we can
//! }
//! might_sleep!();
//! ```
//!
//! C header: `include/asm-generic/bug.h`, `include/linux/build_bug.h`, `include/linux/kernel.h`

use std::panic::Location;

/// Panics unconditionally, naming the place.
#[doc(hidden)]
#[cold]
#[inline(never)]
#[track_caller]
pub fn __bug(what: &str) -> ! {
    let at = Location::caller();
    crate::pr_emerg!("BUG: {what} at {}:{}", at.file(), at.line());
    panic!("BUG: {what}");
}

/// Logs a warning with the place.
#[doc(hidden)]
#[cold]
#[inline(never)]
#[track_caller]
pub fn __warn(what: &str) {
    let at = Location::caller();
    crate::pr_warn!("WARNING: {what} at {}:{}", at.file(), at.line());
}

/// Debug builds: panics when the calling thread must not sleep, as a reactor inside a round.
#[doc(hidden)]
#[inline]
#[track_caller]
pub fn __might_sleep() {
    if cfg!(debug_assertions) && crate::cpu::in_atomic() {
        __bug("sleeping function called from invalid context");
    }
}

/// Panics when the condition holds.
#[macro_export]
macro_rules! bug_on {
    ($cond:expr $(,)?) => {
        if $cond {
            $crate::bug::__bug(concat!("bug_on!(", stringify!($cond), ")"));
        }
    };
}

/// Panics.
#[macro_export]
macro_rules! bug {
    () => {
        $crate::bug::__bug("bug!()")
    };
    ($what:literal) => {
        $crate::bug::__bug($what)
    };
}

/// Logs a warning when the condition holds, and returns it.
#[macro_export]
macro_rules! warn_on {
    ($cond:expr $(,)?) => {{
        let __cond: bool = $cond;
        if __cond {
            $crate::bug::__warn(concat!("warn_on!(", stringify!($cond), ")"));
        }
        __cond
    }};
}

/// Like [`warn_on!`](crate::warn_on), but logs only the first time.
#[macro_export]
macro_rules! warn_on_once {
    ($cond:expr $(,)?) => {{
        static __DONE: ::std::sync::atomic::AtomicBool =
            ::std::sync::atomic::AtomicBool::new(false);
        let __cond: bool = $cond;
        if __cond && !__DONE.swap(true, ::std::sync::atomic::Ordering::Relaxed) {
            $crate::bug::__warn(concat!("warn_on_once!(", stringify!($cond), ")"));
        }
        __cond
    }};
}

/// Fails to compile when the constant condition holds.
#[macro_export]
macro_rules! build_bug_on {
    ($cond:expr $(,)?) => {
        const _: () = assert!(!($cond), concat!("build_bug_on!(", stringify!($cond), ")"));
    };
}

/// Annotates a function that may sleep: in debug builds a call from a reactor inside a round is a bug.
#[macro_export]
macro_rules! might_sleep {
    () => {
        $crate::bug::__might_sleep()
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn warn_on_returns_its_condition() {
        assert!(warn_on!(1 + 1 == 2));
        assert!(!warn_on!(1 + 1 == 3));
        assert!(warn_on_once!(true));
    }

    #[test]
    #[should_panic(expected = "bug_on!(1 == 1)")]
    fn bug_on_panics() {
        bug_on!(1 == 2);
        bug_on!(1 == 1);
    }

    #[test]
    fn an_ordinary_thread_may_sleep() {
        might_sleep!();
    }
}
