//! The SCST server.
#![forbid(unsafe_code)]
fn main() {}
