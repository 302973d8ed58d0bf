//! Persistent reservations (SPC-4 5.13).
//!
//! [`PrState`] is the engine: registrations, the reservation, and what each service action does to them. It knows
//! nexuses by number only; the module `reserve` ties it to devices, and keeps what every command has to check in one
//! word of its nexus. [`PrFile`] keeps the state across power loss.
//!
//! # Rules
//!
//! * A registration belongs to an I_T nexus: TransportID of the initiator port and relative id of the target port. It
//!   outlives the session and is found again when the same initiator port logs in.
//! * Who holds a reservation: one registration, or (*all registrants*) every one of them.
//! * A command passes if its nexus holds the reservation, or is registered where that suffices, or if the CDB table says
//!   that the command may pass a reservation of that kind.
//! * RESERVE and RELEASE of SPC-2 conflict while there are registrations, except for those who pass the reservation;
//!   for them they succeed without effect. PERSISTENT RESERVE commands conflict while an SPC-2 reservation exists.
//!
//! C source: `scst/src/scst_pres.c`
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

mod aptpl;
pub(crate) mod exec;
mod out;
mod read;
mod state;
#[cfg(test)]
mod tests;
mod text;
mod tid;

pub use aptpl::{Corrupt, MAX_FILE_LEN, PrFile, SIGNATURE, VERSION};
pub use out::{Effect, PrOut, Refusal, action as out_action};
pub use read::action as in_action;
pub use state::{NexusId, PrState, PrType, Registrant, Reservation, SCOPE_LU};
pub use tid::{COMMON_LEN, MAX_TRANSPORT_ID_LEN, PROTOCOL_ISCSI, TransportId};

/// Registrations that commands can make at one logical unit.
pub const MAX_REGISTRANTS: usize = 2048;
