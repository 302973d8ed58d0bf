//! Events: what happens here, told to programs that want to know, and questions that one of them has to answer.
//!
//! A program is a [`Listener`]. It says what it wants to hear ([`Filter`]) and gets the [`Event`]s that match, in order. A
//! listener that is slow loses events and learns how many. An event that *asks* (SET TARGET PORT GROUPS) goes to one
//! listener, which answers with [`Listener::done`] or is taken to have failed after a while; others may look on.
//!
//! [`payload`] says what events contain, [`wire`] how they pass over the control socket, [`Control`] serves them there, and
//! [`Client`] is a listener in another process.
//!
//! C source: `scst/src/scst_event.c`, `scst/include/scst_event.h`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod client;
mod control;
mod engine;
pub mod payload;
mod queue;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{Client, Heard, Told};
pub use control::Control;
pub use engine::{Done, Events, Listener};
pub use payload::Kind;

use kshim::error::{Result, code};
use kshim::time::Delta;

/// Who issues the core's events.
#[doc(alias = "SCST_EVENT_SCST_CORE_ISSUER")]
pub const CORE_ISSUER: &str = "SCST core";
/// Events that wait for one listener, and filters of one; the limit of events that wait to be handed out as well.
#[doc(alias = "SCST_MAX_EVENTS")]
pub const MAX_EVENTS: usize = 2048;
/// Bytes of the payload that a filter compares.
#[doc(alias = "SCST_MAX_PAYLOAD")]
pub const MAX_PAYLOAD: usize = 3 * 1024;
/// Bytes of an issuer's name.
#[doc(alias = "SCST_MAX_NAME")]
pub const MAX_ISSUER: usize = 49;
/// How long an event that asks waits for its answer.
#[doc(alias = "SCST_DEFAULT_EVENT_TIMEOUT")]
pub const DEFAULT_TIMEOUT: Delta = Delta::from_secs(60);

/// Something that happened.
#[doc(alias = "scst_event")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What: see [`Kind::code`].
    #[doc(alias = "event_code")]
    pub code: u32,
    /// Name of the part of SCST that tells it.
    #[doc(alias = "issuer_name")]
    pub issuer: String,
    /// The rest, as the code says.
    pub payload: Vec<u8>,
}

impl Event {
    /// An event of the core. Errors: `EOVERFLOW`: a name is too long for the payload.
    pub fn of(kind: &Kind) -> Result<Self> {
        Ok(Self {
            code: kind.code(),
            issuer: CORE_ISSUER.to_owned(),
            payload: kind.encode()?,
        })
    }
}

/// Which events a listener wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Their code; 0 for any.
    pub code: u32,
    /// Their issuer; `*` for any.
    pub issuer: String,
    /// Their payload; empty for any.
    pub payload: Vec<u8>,
    /// The listener only looks on: an event that asks comes without asking it.
    pub looks_on: bool,
}

impl Filter {
    /// Events of this code of the core.
    #[must_use]
    pub fn code(code: u32) -> Self {
        Self {
            code,
            issuer: CORE_ISSUER.to_owned(),
            ..Self::default()
        }
    }

    /// Everything, without being asked anything.
    #[must_use]
    pub fn look_on() -> Self {
        Self {
            issuer: "*".to_owned(),
            looks_on: true,
            ..Self::default()
        }
    }

    /// Errors: `EINVAL`: longer than an event can be.
    fn check(&self) -> Result {
        if self.payload.len() > MAX_PAYLOAD || self.issuer.len() > MAX_ISSUER {
            return Err(code::EINVAL);
        }
        Ok(())
    }

    #[doc(alias = "scst_event_cmp")]
    fn matches(&self, code: u32, issuer: &str, payload: &[u8]) -> bool {
        (self.code == 0 || self.code == code)
            && (self.issuer == "*" || self.issuer == issuer)
            && (self.payload.is_empty() || self.payload == payload)
    }
}

/// An event as a listener gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub event: std::sync::Arc<Event>,
    /// Number to answer with, if it asks this listener; 0 if not.
    #[doc(alias = "event_id")]
    pub id: u32,
    /// Events that were lost right before this one, because the listener was too slow.
    pub lost: u32,
}
