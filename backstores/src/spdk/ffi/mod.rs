//! The C boundary to SPDK: the only place of this driver with `unsafe`.
//!
//! - [`mod@env`]: SPDK's environment, its subsystems, configuration and RPC server;
//! - [`thread`]: threads of SPDK's;
//! - [`bdev`]: descriptors, channels and requests;
//! - [`dma`]: memory that devices can reach;
//! - [`lend`]: memory of a bdev's that is lent.
//!
//! # What holds
//!
//! SPDK's rule is that what belongs to a thread (a channel, a request) is used while that `spdk_thread` is the current one. Here an
//! `spdk_thread` is made by the OS thread that polls it, is current there from then on, and neither it nor a channel can be
//! sent to another: they are not `Send`. What SPDK calls back runs inside [`thread::Thread::poll`] or a call of this module,
//! does nothing but note what happened, and so cannot panic; the driver looks at the notes afterwards.

pub(super) mod bdev;
pub(super) mod dma;
pub(super) mod env;
pub(super) mod lend;
pub(super) mod thread;

/// SPDK's functions and types as its installed headers have them.
#[allow(
    missing_docs,
    nonstandard_style,
    unused,
    unreachable_pub,
    reason = "made by bindgen from C headers"
)]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "made by bindgen from C headers"
)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/spdk.rs"));
}

use kshim::error::{Error, Result, code};

/// A negative errno, or not.
fn check(rc: i32) -> Result {
    if rc >= 0 { Ok(()) } else { Err(errno(rc)) }
}

/// The error of a negative errno; -1 is what SPDK's functions without a reason return.
fn errno(rc: i32) -> Error {
    match rc.checked_neg() {
        Some(1) | None => code::EIO,
        Some(n) => Error::from_errno(n),
    }
}
