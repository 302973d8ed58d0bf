//! Linux tenant.

pub(crate) mod aio;
pub(crate) mod dataop;
pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod guard;
pub(crate) mod host;
pub(crate) mod mem;
pub(crate) mod mount;
// What a peer sends may not end a thread. Tests may.
#[cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::panic,
        clippy::unreachable,
        clippy::arithmetic_side_effects
    )
)]
pub(crate) mod net;
pub mod poll;
pub(crate) mod proc;
pub mod rand;
pub(crate) mod ring;
pub mod signal;
pub mod thread;
pub mod time;
pub(crate) mod tree;
pub(crate) mod umh;
pub(crate) mod unix;
