//! Raw initiator and server harness for the integration tests.
//!
//! - [`Session`] is an iSCSI initiator that sets every field itself and shows every field it got (crate
//!   `scst-initiator`, whose modules are here again).
//! - [`Server`] starts the built `scstd serve`, waits until it is ready, reads its resource use and ends it.
//! - [`tools`] runs foreign initiators (libiscsi's tools, qemu-img) with a time limit.
//! - [`guest`] boots a Linux guest as an initiator, [`proxy`] breaks its connections, [`digests`] adds digests to others.
//! - [`faultfs`] is a file system that fails on demand, [`kills`] what must outlive kill -9.
//! - [`conformance`] reads the output of `iscsi-test-cu` and compares it with a recorded table.
//!
//! The kit stands outside the product: nothing here uses its crates, so a fault there cannot hide itself.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod digests;
pub mod faultfs;
pub mod guest;
pub mod kills;
pub mod procfs;
pub mod proxy;
pub mod rng;
pub mod run_server;
pub mod server;
pub mod tools;

pub use rng::Rng;
pub use scst_initiator::{
    Bhs, Command, LoginError, OpenOptions, Pdu, Reply, Residual, Session, Wire, WireError, pdu,
    scsi, session, wire,
};
pub use server::{PollerKind, Server, ServerOptions};
