//! The one door to the host: threads, clock, memory, files, rings, sockets.
//!
//! Nothing above names `std::thread`, `std::net`, `std::fs`, `Instant::now` or libc, so that another tenant (a
//! deterministic simulator) can move in.

#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "clippy.toml keeps the host's calls out of all other modules; this is where they belong"
)]
pub(crate) mod linux;
