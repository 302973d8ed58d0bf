//! The one door to the host: threads, clock, memory, files, rings, sockets.
//!
//! Nothing above names `std::thread`, `std::net`, `std::fs`, `Instant::now` or libc, so that another tenant (a
//! deterministic simulator) can move in.

pub(crate) mod linux;
