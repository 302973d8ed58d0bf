//! SCST's iSCSI target driver on `scst-core`: login and discovery (the daemon half of the C code) and the full
//! feature phase (its kernel half).
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]
#![expect(
    non_ascii_idents,
    reason = "identifiers that zerocopy's derives make; the lint has crate scope only"
)]

pub mod accounts;
mod conn;
mod data_out;
pub mod driver;
mod env;
mod ffp;
mod half_open;
pub mod isns;
pub mod login;
pub mod param;
pub mod pdu;
mod pending;
pub mod portal;
mod requests;
mod rx;
pub mod sn;
mod sysfs;
pub mod target;
pub mod text;
mod tm;
mod tx;
mod write;
