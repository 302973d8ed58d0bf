//! The one door to the host: threads, futexes, clocks, memory, files, rings, sockets, randomness.
//!
//! Nothing above names `std::thread`, `std::net`, `std::fs`, `Instant::now` or libc, so that another tenant (a
//! deterministic simulator) can move in beside [`linux`]. The primitives of [`crate::sync`] take their atomics,
//! locks and parking from [`sync`], so that the model checker loom sees them through the same door.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "clippy.toml keeps the host's calls out of all other modules; this is where they belong"
)]

#[cfg(not(loom))]
pub mod linux;
mod parker;
pub mod sync;

#[cfg(not(loom))]
pub use linux::*;
