//! States of a command, contexts it runs in, and what a step may answer.
//!
//! C source: `enum scst_cmd_states`, `enum scst_exec_context` of `scst/include/scst.h`

use super::{Cmd, CmdRef};
use crate::lun::LUN_LEN;
use crate::mgmt::MgmtCmd;
use std::collections::VecDeque;
use std::sync::Arc;

/// Where a command is. The order is SCST's: active states (the processing loop may act) before passive ones
/// (somebody else must resume the command).
#[doc(alias = "scst_cmd_states")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum CmdState {
    /// The handler parses the CDB; lengths are checked against the transport's.
    Parse,
    /// The data buffer is allocated.
    PrepareSpace,
    /// The transport is told that the buffer is there.
    PreprocessingDone,
    /// The transport fetches the data.
    RdyToXfer,
    /// The transport's last look before execution; parameter lists are parsed.
    TgtPreExec,
    /// The ordering engine decides.
    ExecCheckSn,
    /// Blocked devices, ALUA, reservations, unit attentions.
    ExecCheckBlocking,
    /// In a function of the core that executes it.
    LocalExec,
    /// In the handler.
    RealExec,
    /// Status and sense of the handler are looked at.
    PreDevDone,
    /// Unit attentions caused by MODE SELECT and LOG SELECT.
    ModeSelectChecks,
    /// The handler's last look; the device is unblocked.
    DevDone,
    /// Counters and references of the execution stage are dropped.
    PreXmitResp1,
    /// Aborts, ACA, residuals.
    PreXmitResp2,
    /// Handed to the transport.
    XmitResp,
    /// Statistics, undelivered unit attentions, task management; then recycled.
    Finished,
    /// Received, LUN not translated.
    InitWait,
    /// LUN translation, counters, ordering number.
    Init,
    /// The transport has been told of the buffer and has not yet restarted the command.
    PreprocessingDoneCalled,
    /// Data is on its way.
    DataWait,
    /// The handler completes it later.
    ExecWait,
    /// The transport sends the response.
    XmitWait,
    /// Not in use.
    Free,
}

impl CmdState {
    /// All, in their order.
    const ALL: [Self; 23] = [
        Self::Parse,
        Self::PrepareSpace,
        Self::PreprocessingDone,
        Self::RdyToXfer,
        Self::TgtPreExec,
        Self::ExecCheckSn,
        Self::ExecCheckBlocking,
        Self::LocalExec,
        Self::RealExec,
        Self::PreDevDone,
        Self::ModeSelectChecks,
        Self::DevDone,
        Self::PreXmitResp1,
        Self::PreXmitResp2,
        Self::XmitResp,
        Self::Finished,
        Self::InitWait,
        Self::Init,
        Self::PreprocessingDoneCalled,
        Self::DataWait,
        Self::ExecWait,
        Self::XmitWait,
        Self::Free,
    ];
    /// How many there are.
    #[doc(alias = "SCST_CMD_STATE_COUNT")]
    pub const COUNT: usize = Self::ALL.len();

    /// The state of that number.
    pub fn from_index(n: usize) -> Option<Self> {
        Self::ALL.get(n).copied()
    }

    /// The name in the management tree.
    #[doc(alias = "scst_get_cmd_state_name")]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parse => "PARSE",
            Self::PrepareSpace => "PREPARE_SPACE",
            Self::PreprocessingDone => "PREPROCESSING_DONE",
            Self::RdyToXfer => "RDY_TO_XFER",
            Self::TgtPreExec => "TGT_PRE_EXEC",
            Self::ExecCheckSn => "EXEC_CHECK_SN",
            Self::ExecCheckBlocking => "EXEC_CHECK_BLOCKING",
            Self::LocalExec => "LOCAL_EXEC",
            Self::RealExec => "REAL_EXEC",
            Self::PreDevDone => "PRE_DEV_DONE",
            Self::ModeSelectChecks => "MODE_SELECT_CHECKS",
            Self::DevDone => "DEV_DONE",
            Self::PreXmitResp1 => "PRE_XMIT_RESP1",
            Self::PreXmitResp2 => "PRE_XMIT_RESP2",
            Self::XmitResp => "XMIT_RESP",
            Self::Finished => "FINISHED",
            Self::InitWait => "INIT_WAIT",
            Self::Init => "INIT",
            Self::PreprocessingDoneCalled => "PREPROCESSING_DONE_CALLED",
            Self::DataWait => "DATA_WAIT",
            Self::ExecWait => "EXEC_WAIT",
            Self::XmitWait => "XMIT_WAIT",
            Self::Free => "FREE",
        }
    }
}

/// What a step of the state machine answers.
#[derive(Debug)]
pub enum Next {
    /// Go on with this command: its state says how.
    #[doc(alias = "SCST_CMD_STATE_RES_CONT_SAME")]
    Same(Box<Cmd>),
    /// The command belongs to somebody else now.
    #[doc(alias = "SCST_CMD_STATE_RES_CONT_NEXT")]
    Stop,
    /// The step may sleep: give the command to its device's pool.
    #[doc(alias = "SCST_CMD_STATE_RES_NEED_THREAD")]
    NeedThread(Box<Cmd>),
}

/// What a handler's `exec` answers.
#[doc(alias = "scst_exec_res")]
#[derive(Debug)]
pub enum ExecRes {
    /// Done; status, sense and data are in the command.
    #[doc(alias = "SCST_EXEC_COMPLETED")]
    Completed(Box<Cmd>),
    /// Would have to sleep; call again on a thread of the device's pool.
    NeedThread(Box<Cmd>),
    /// Taken; [`crate::core::cmd_done`] follows from any context.
    Pending,
}

/// How the transport resumes a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "SCST_PREPROCESS_STATUS_SUCCESS")]
pub enum RestartStatus {
    /// Go on.
    Success,
    /// The transport set status and sense itself.
    ErrorSenseSet,
    /// Fail it with ABORTED COMMAND.
    Error,
    /// Fail it, and send nothing (the connection is gone).
    ErrorFatal,
}

/// Names a home: equal for all commands that one connection owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HomeId(pub u64);

/// The context that owns a session's commands: for a network transport, the connection on its reactor.
///
/// Context of all methods: any thread, never sleeps.
pub trait CmdHome: Send + Sync {
    /// The identity that [`ExecCx::direct`] was given.
    fn id(&self) -> HomeId;
    /// Hands a command back to be continued there with [`Cmd::process`].
    fn post(&self, cmd: Box<Cmd>);
    /// Task management aborted this command. If its token is parked with the transport (waiting for data), the
    /// transport resumes it with [`Cmd::restart`] or [`Cmd::rx_data`] and an error status.
    #[doc(alias = "on_abort_cmd")]
    fn reap(&self, cmd: CmdRef);
    /// A task management request of the session is complete; its status is in `mcmd`.
    fn task_mgmt_fn_done(&self, mcmd: Arc<MgmtCmd>);
    /// Tells the initiator of an event that no command of its has asked for, if the transport can; false if not, and the
    /// event becomes a unit attention then. `lun` is the LUN field. What comes before the session is in use may be lost.
    fn report_aen(&self, _lun: [u8; LUN_LEN], _sense: Vec<u8>) -> bool {
        false
    }
    /// Ends the session: the transport closes its connections and unregisters it.
    fn close(&self);
}

/// The transport's side of the state machine at a command's home. It runs in the caller's stack, so a transport
/// that answers within the same round touches no other thread.
pub trait TgtHost {
    /// The data buffer is there: go on receiving, then call [`Cmd::restart`].
    fn preprocessing_done(&mut self, cmd: Box<Cmd>);
    /// Fetch [`Cmd::write_len`] bytes into the buffer, then call [`Cmd::rx_data`].
    fn rdy_to_xfer(&mut self, cmd: Box<Cmd>);
    /// Send status, sense and data, then call [`Cmd::tgt_cmd_done`].
    fn xmit_response(&mut self, cmd: Box<Cmd>);
    /// The command is finished: keep it for [`crate::session::Session::rx_cmd`], or drop it.
    fn on_free_cmd(&mut self, cmd: Box<Cmd>);
}

/// The context in which commands are processed.
#[doc(alias = "scst_exec_context")]
pub struct ExecCx<'a> {
    /// The home whose commands may be continued here; `None` on a pool thread.
    pub(crate) home: Option<HomeId>,
    pub(crate) host: Option<&'a mut dyn TgtHost>,
    /// Commands made ready by others on the way (the next of an ordering domain), to be run next.
    pub(crate) ready: VecDeque<Box<Cmd>>,
}

impl<'a> ExecCx<'a> {
    /// The context of a transport at its home: must not sleep. Context: reactor.
    #[doc(alias = "SCST_CONTEXT_DIRECT_ATOMIC")]
    #[inline]
    pub fn direct(home: HomeId, host: &'a mut dyn TgtHost) -> Self {
        Self {
            home: Some(home),
            host: Some(host),
            ready: VecDeque::new(),
        }
    }

    /// The context of a pool thread: may sleep, runs execution only.
    #[doc(alias = "SCST_CONTEXT_THREAD")]
    pub fn thread() -> ExecCx<'static> {
        ExecCx {
            home: None,
            host: None,
            ready: VecDeque::new(),
        }
    }

    /// Whether a step may sleep here.
    #[inline]
    pub fn may_sleep(&self) -> bool {
        self.home.is_none()
    }
}
