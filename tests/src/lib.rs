//! Raw initiator and server harness for the integration tests.
//!
//! - [`Session`] is an iSCSI initiator that sets every field itself and shows every field it got; [`Wire`] below it
//!   moves single PDUs and single bytes.
//! - [`Server`] starts the built `scstd serve`, waits until it is ready, reads its resource use and ends it.
//! - [`tools`] runs foreign initiators (libiscsi's tools, qemu-img) with a time limit.
//! - [`conformance`] reads the output of `iscsi-test-cu` and compares it with a recorded table.
//!
//! The tests stand outside the product: nothing here uses its crates, so a fault there cannot hide itself.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod pdu;
pub mod procfs;
pub mod rng;
pub mod scsi;
pub mod server;
pub mod session;
pub mod tools;
pub mod wire;

pub use pdu::{Bhs, Pdu};
pub use rng::Rng;
pub use server::{PollerKind, Server, ServerOptions};
pub use session::{Command, LoginError, OpenOptions, Reply, Residual, Session};
pub use wire::{Wire, WireError};
