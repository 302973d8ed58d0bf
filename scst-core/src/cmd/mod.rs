//! A SCSI command and the state machine that carries it from reception to response.
//!
//! **Ownership.** A [`Cmd`] is a token: whoever holds the `Box<Cmd>` owns the mutable part of the command and nobody
//! else can reach it. It is parked where it will be resumed: the connection's table while data is on its way, the
//! ordering engine's deferred list, the device's blocked list, a bio in flight, a pool's queue. Task management and
//! statistics see only [`CmdShared`], all of it atomic. Commands are recycled by their session; a generation in the
//! shared word makes a late task-management request find nothing.
//!
//! **Home.** A command belongs to the reactor of its connection ([`CmdHome`]). Every step up to execution and every
//! step after it runs there; only execution itself may move to a pool thread of the device, which then posts the
//! token back home.
//!
//! C source: `scst/src/scst_targ.c`, `struct scst_cmd` of `scst/include/scst.h`

mod aca;
mod access;
mod claim;
mod done;
mod exec;
mod init;
mod latency;
mod parse;
pub(crate) mod shared;
mod state;
mod thread;
mod xmit;

pub(crate) use aca::{clear_aca, unblock_aborted};
pub use done::cmd_done;
pub use parse::{AllData, MAX_BUFFLEN};
pub use shared::{CmdRef, CmdShared};
pub use state::{CmdHome, CmdState, ExecCx, ExecRes, HomeId, Next, RestartStatus, TgtHost};
pub use thread::{CmdThreads, ThreadsPoolType};

use crate::blocking::{BlockTicket, HasBlockTicket};
use crate::cdb::CdbInfo;
use crate::consts::{DataDirection, QueueType, SamStatus};
use crate::copy_mgr::Copy;
use crate::order::{HasTicket, OrderTicket};
use crate::overlap::Claim;
use crate::parking::Abortable;
use crate::session::Session;
use crate::sgv::SgvPoolObj;
use crate::tgt_dev::TgtDev;
use kshim::scatterlist::SGTable;
use kshim::time::Instant;
use std::any::Any;
use std::sync::Arc;

/// The CDB of a command: 16 bytes in place, longer ones (variable length CDBs) on the heap.
#[derive(Debug, Default)]
pub(crate) struct CdbBuf {
    inline: [u8; 16],
    len: usize,
    long: Vec<u8>,
}

impl CdbBuf {
    #[inline]
    pub(crate) fn set(&mut self, cdb: &[u8; 16], extended: &[u8]) {
        self.inline = *cdb;
        self.len = 16;
        if !self.long.is_empty() {
            self.long.clear();
        }
        if !extended.is_empty() {
            self.long.extend_from_slice(cdb);
            self.long.extend_from_slice(extended);
        }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        if self.long.is_empty() {
            self.inline.get(..self.len).unwrap_or(&self.inline)
        } else {
            &self.long
        }
    }
}

/// Memory that a command is charged with: usually one piece.
#[derive(Debug, Default)]
pub(crate) struct SgvHeld {
    pub(crate) first: Option<SgvPoolObj>,
    pub(crate) more: Vec<SgvPoolObj>,
    /// Memory that it works in, besides its data.
    pub(crate) scratch: Option<SgvPoolObj>,
}

/// What has to be undone when the command leaves the stage that set it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CmdMarks {
    /// Holds the global command reference.
    pub(crate) counted: bool,
    /// Waited for the end of a suspension, and is the first of those of its session that did.
    pub(crate) leads_init_wait: bool,
    /// Does not wait for the end of a suspension: it is BUSY.
    pub(crate) not_to_wait: bool,
    /// Sent for execution, so `dev_done` is due.
    pub(crate) executed: bool,
    /// Status and sense carry this unit attention, taken from the queue.
    pub(crate) ua: Option<crate::sense::Sense>,
    /// Sense is to be fixed format whatever D_SENSE says.
    pub(crate) fixed_sense: bool,
    /// Waited for the end of a state transition of its port group.
    #[doc(alias = "already_transitioning")]
    pub(crate) alua_delayed: bool,
    /// Is the one SET TARGET PORT GROUPS that may be under way.
    #[doc(alias = "cmd_on_global_stpg_list")]
    pub(crate) in_stpg_gate: bool,
    /// The transport could not send the response.
    pub(crate) delivery_failed: bool,
}

/// A SCSI command: the owner's half.
#[doc(alias = "scst_cmd")]
pub struct Cmd {
    pub(crate) shared: Arc<CmdShared>,
    pub(crate) generation: u32,
    pub(crate) state: CmdState,
    pub(crate) sess: Arc<Session>,
    pub(crate) tgt_dev: Option<Arc<TgtDev>>,
    pub(crate) lun: u64,
    pub(crate) tag: u64,
    pub(crate) queue_type: QueueType,
    pub(crate) cdb: CdbBuf,
    /// What the CDB table and its decoder said; `None` for an unknown opcode.
    pub(crate) info: Option<CdbInfo>,
    pub(crate) data_direction: DataDirection,
    pub(crate) expected_data_direction: DataDirection,
    pub(crate) expected_set: bool,
    pub(crate) expected_transfer_len: u32,
    pub(crate) expected_out_transfer_len: u32,
    /// Length of the data buffer in bytes.
    pub(crate) bufflen: u32,
    /// Length of the data on the medium in bytes (larger than `bufflen` for WRITE SAME).
    pub(crate) data_len: u64,
    /// First logical block.
    pub(crate) lba: u64,
    /// Bytes that go back to the initiator; `None` until parsed.
    pub(crate) resp_data_len: Option<u32>,
    /// Bytes to take from the initiator.
    pub(crate) write_len: u32,
    pub(crate) resid_possible: bool,
    pub(crate) resid: i64,
    /// As `resid`, of the data-out of a bidirectional command.
    pub(crate) bidi_out_resid: i64,
    pub(crate) status: SamStatus,
    pub(crate) completed: bool,
    /// Sense data; empty when there is none.
    pub(crate) sense: Vec<u8>,
    pub(crate) sg: SGTable,
    /// What `sg` is charged with.
    pub(crate) sgv: SgvHeld,
    pub(crate) ticket: OrderTicket,
    pub(crate) block_ticket: BlockTicket,
    /// What an EXTENDED COPY is to do.
    pub(crate) copy: Option<Box<Copy>>,
    pub(crate) marks: CmdMarks,
    /// When it came into its state, if latencies are measured.
    #[doc(alias = "last_state_update")]
    pub(crate) state_since: Option<Instant>,
    /// The transport's own handle of this command.
    pub tgt_priv: u64,
    /// The handler's own data, dropped when the command finishes.
    pub dh_priv: Option<Box<dyn Any + Send>>,
}

impl Abortable for Box<Cmd> {
    fn is_aborted(&self) -> bool {
        Cmd::is_aborted(self)
    }
}

impl HasBlockTicket for Box<Cmd> {
    fn block_ticket(&mut self) -> &mut BlockTicket {
        &mut self.block_ticket
    }
    fn claim(&self) -> Claim {
        Cmd::claim(self)
    }
}

impl HasTicket for Box<Cmd> {
    fn ticket(&mut self) -> &mut OrderTicket {
        &mut self.ticket
    }
}

impl std::fmt::Debug for Cmd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cmd")
            .field("lun", &self.lun)
            .field("tag", &self.tag)
            .field("state", &self.state)
            .field("cdb", &self.cdb.as_slice())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
