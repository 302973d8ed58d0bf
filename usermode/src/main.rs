//! `scstd`, the SCST server. What it does is in the library, so that others can make a server with drivers of their own.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    scst_usermode::scstd(&[])
}
