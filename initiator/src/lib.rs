//! A raw iSCSI initiator: it sends what it is told, also what no other initiator would send, and shows every field
//! that came back.
//!
//! - [`Session`] logs in, sends commands and task management, and keeps a list of what the target did wrong;
//! - [`session::Login`] is the login phase, one request at a time;
//! - [`Wire`] below them moves single PDUs and single bytes.
//!
//! It stands outside the target and shares no code with it, so a fault there cannot hide itself.
//!
//! ```no_run
//! use scst_initiator::{Command, OpenOptions, Session, scsi};
//!
//! let options = OpenOptions::normal("iqn.2026-01.org.example:scst");
//! let mut session = Session::open("127.0.0.1:3260".parse()?, &options)?;
//! let reply = session.scsi(&Command::new(0, scsi::test_unit_ready()))?;
//! println!("{reply}");
//! session.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod pdu;
pub mod scsi;
pub mod session;
pub mod wire;

pub use pdu::{Bhs, Pdu};
pub use session::{Command, LoginError, OpenOptions, Reply, Residual, Session};
pub use wire::{Wire, WireError};
