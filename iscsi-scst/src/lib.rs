//! SCST's iSCSI target driver on `scst-core`: login and discovery (the daemon half of the C code) and the full
//! feature phase (its kernel half).
#![forbid(unsafe_code)]

pub mod login;
pub mod pdu;
