//! Asymmetric logical unit access (SPC-4 5.15.2): device groups, and the target port groups by which their devices are
//! reached.
//!
//! A *device group* has devices and target port groups; a *target port group* has an identifier, a state, and target
//! ports: those of this server by their target's name, and *remote* ones, of which only the relative identifier is known. A
//! device is in one device group at most. The administrator sets the states ([`tg_set_state`](crate::core::Core::tg_set_state)), or an initiator
//! asks for it (SET TARGET PORT GROUPS, `stpg`).
//!
//! What commands need of all this is put where they find it without a lock that sleeps: each nexus has its *filter*
//! (one byte, 0 when everything is allowed), each device a view of its group for INQUIRY and REPORT TARGET PORT GROUPS.
//! Every change publishes both.
//!
//! DIFFERS: a change is visible in REPORT TARGET PORT GROUPS before initiators are told of it, not after.
//!
//! # Locks
//!
//! `groups` is `scst_dg_mutex` and may sleep; below the configuration lock. `Device::alua` and the lists of `delay` and
//! `stpg` are spin locks taken alone.
//!
//! C source: `scst/src/scst_tg.c`
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

mod delay;
mod filter;
mod groups;
mod report;
mod stpg;
#[cfg(test)]
mod tests;

pub use groups::{DevGroupInfo, TargetGroupInfo, TgTgtInfo};
pub use stpg::StpgGroup;

pub(crate) use filter::{Verdict, check as check_filter};
pub(crate) use groups::port_of;
pub(crate) use report::exec_report;
pub(crate) use stpg::{Begun, Stpg, begin as begin_stpg, is_stpg};

use crate::tgt::Tgt;
use delay::Delayed;
use groups::DevGroup;
use kshim::sync::Mutex;
use std::sync::{Arc, Weak};
use stpg::Gate;

/// Asymmetric access state of a target port group (SPC-4 table 29).
#[doc(alias = "scst_tg_state")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TgState {
    /// Active/optimized.
    #[default]
    Optimized = 0,
    /// Active/non-optimized.
    NonOptimized = 1,
    /// Standby: identification, sense, reservations.
    Standby = 2,
    /// Unavailable: identification and sense.
    Unavailable = 3,
    /// Offline: as unavailable.
    Offline = 14,
    /// Between two states.
    Transitioning = 15,
}

impl TgState {
    /// All states.
    pub const ALL: [Self; 6] = [
        Self::Optimized,
        Self::NonOptimized,
        Self::Standby,
        Self::Unavailable,
        Self::Offline,
        Self::Transitioning,
    ];

    /// The name in the management tree.
    #[doc(alias = "scst_alua_state_name")]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Optimized => "active",
            Self::NonOptimized => "nonoptimized",
            Self::Standby => "standby",
            Self::Unavailable => "unavailable",
            Self::Offline => "offline",
            Self::Transitioning => "transitioning",
        }
    }

    /// From the name in the management tree.
    #[doc(alias = "scst_alua_name_to_state")]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// From its code in a parameter list; only what an initiator may ask for.
    fn from_request(code: u8) -> Option<Self> {
        let may = |s: &Self| *s as u8 == code && *s != Self::Transitioning;
        Self::ALL.into_iter().find(may)
    }

    /// Whether commands for the medium are executed.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }

    /// What the nexuses check: 0 lets everything through.
    const fn filter(self) -> u8 {
        if self.is_active() { 0 } else { self as u8 }
    }
}

/// A device group as the commands to its devices see it.
#[derive(Debug, Default)]
pub(crate) struct DgView {
    groups: Vec<TgView>,
}

#[derive(Clone, Debug, Default)]
struct TgView {
    id: u16,
    state: TgState,
    preferred: bool,
    ports: Vec<PortView>,
}

#[derive(Clone, Debug)]
struct PortView {
    name: String,
    /// The target, if it is of this server. Not a strong reference: targets lead to devices.
    tgt: Option<Weak<Tgt>>,
    rel_tgt_id: u16,
}

/// What a logical unit says of itself at one target port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AluaPort {
    /// It is in a device group: TPGS.
    #[doc(alias = "scst_alua_configured")]
    pub(crate) configured: bool,
    /// Identifier of the port's group; 0 for none.
    #[doc(alias = "scst_lookup_tg_id")]
    pub(crate) tg_id: u16,
    /// State at this port.
    #[doc(alias = "scst_get_alua_state")]
    pub(crate) state: TgState,
}

impl DgView {
    /// How the device is reached by the target of this name. Context: any.
    pub(crate) fn port(&self, tgt: &str) -> AluaPort {
        let has = |g: &&TgView| g.ports.iter().any(|p| p.name == tgt);
        let group = self.groups.iter().find(has);
        AluaPort {
            configured: true,
            tg_id: group.map_or(0, |g| g.id),
            state: group.map_or(TgState::Optimized, |g| g.state),
        }
    }
}

/// The device groups of a core.
pub(crate) struct Alua {
    #[doc(alias = "scst_dg_mutex")]
    groups: Mutex<Vec<DevGroup>>,
    /// Commands that came while their port group was in transition.
    pub(crate) delayed: Arc<Delayed>,
    /// One SET TARGET PORT GROUPS at a time.
    #[doc(alias = "scst_global_stpg_list")]
    pub(crate) gate: Gate,
}

impl std::fmt::Debug for Alua {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alua").finish_non_exhaustive()
    }
}

impl Alua {
    pub(crate) fn new() -> Self {
        Self {
            groups: Mutex::new(Vec::new()),
            delayed: Delayed::new(),
            gate: Gate::default(),
        }
    }

    /// Sends home what is aborted and waits here. The caller has marked it before. Context: any.
    pub(crate) fn release_aborted(&self) {
        self.delayed.release_aborted();
        self.gate.release_aborted();
    }
}
