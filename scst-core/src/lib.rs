//! The SCSI target core of SCST: sessions, devices, the command state machine, task management, and the virtual
//! disk handlers.
//!
//! Objects, from the wire inwards: a transport ([`template::TgtTemplate`]) has target ports ([`tgt::Tgt`]); an initiator
//! that logs in makes a [`session::Session`] (I_T nexus) with one [`tgt_dev::TgtDev`] (I_T_L nexus) per LUN of its
//! access group ([`acg::Acg`]); a `TgtDev` leads to the [`device::Device`], and that to its handler
//! ([`dev_type::DevHandler`]). A [`cmd::Cmd`] walks [`cmd::CmdState`] from reception to response.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]

pub mod acg;
pub mod acn;
pub mod alua;
pub mod blocking;
mod caw;
pub mod cdb;
pub mod cmd;
pub mod consts;
pub mod copy_mgr;
pub mod core;
pub mod dev_handlers;
pub mod dev_type;
pub mod device;
pub mod event;
mod local_cmd;
pub mod lun;
pub mod mgmt;
pub mod order;
pub mod overlap;
pub mod parking;
pub mod pres;
mod reserve;
pub mod retained;
pub mod scst_local;
pub mod sense;
pub mod session;
pub mod sgv;
pub mod stats;
pub mod sysfs;
pub mod template;
pub mod tgt;
pub mod tgt_dev;
pub mod ua;
