//! SCST's iSCSI target driver on `scst-core`: login and discovery (the daemon half of the C code) and the full
//! feature phase (its kernel half).
#![forbid(unsafe_code)]
// What a peer sends may not end a thread. Tests may.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::panic,
        clippy::unreachable,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )
)]
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
