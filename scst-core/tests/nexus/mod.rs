//! What may be sent to a logical unit, what comes back, and a slow model of what comes back when.
#![allow(unreachable_pub)] // as each module of tests

pub mod pr;
pub mod tasks;

use scst_core::consts::SamStatus;
use scst_core::sense::Sense;

pub const NAMES: [&str; 3] = ["A", "B", "C"];
/// Blocks of the device; each initiator has its own part, so that what is under way together cannot meet.
pub const BLOCKS: usize = 12;

/// What MODE SELECT changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    pub qerr: u8,
    pub qam: u8,
    pub tas: bool,
    pub d_sense: bool,
    pub swp: bool,
    pub tmf_only: bool,
    pub dpicz: bool,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            qerr: 0,
            qam: 1,
            tas: false,
            d_sense: false,
            swp: false,
            tmf_only: false,
            dpicz: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    Tur,
    RequestSense,
    Read {
        block: usize,
    },
    Write {
        block: usize,
        byte: u8,
    },
    ModeSense,
    /// The page, TST, and fields that cannot be changed and are not looked at.
    ModeSelect {
        to: Control,
        tst: u8,
        noise: u8,
    },
    Pr(pr::PrOp),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    Good(Vec<u8>),
    Conflict,
    /// Whether in the descriptor format.
    Check(Sense, bool),
    Status(SamStatus),
    /// The answer to REQUEST SENSE.
    Sense(Option<Sense>),
    /// TST and the rest of the control page.
    Control(u8, Control),
}

pub const GOOD: Expect = Expect::Good(Vec::new());
