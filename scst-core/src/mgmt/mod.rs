//! Task management.
//!
//! A request ([`MgmtCmd`]) is carried out by one thread, `scsi_tm`. It marks the commands concerned in their shared
//! halves, frees those that are parked (ordering list, blocked list, suspended, waiting for data), and then waits on
//! two counters: *done*, for commands that may still have effects, and *finish*, for responses still to be sent on the
//! same nexus. The owner of a command counts down when it passes PRE_XMIT_RESP1 and when it is finished.
//!
//! C source: `scst/src/scst_targ.c` from `scst_done_cmd_mgmt` to `scst_rx_mgmt_fn`

mod exec;

use crate::cmd::shared::{Abort, CmdShared, DONE, SENT_FOR_EXEC};
use crate::core::Core;
use crate::device::Device;
use crate::pres::exec::PrAbort;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::error::Result;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::{Completion, SpinLock};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

/// What to do.
#[doc(alias = "scst_mgmt_fn")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TmFunction {
    /// Abort one command of this nexus, named by its tag.
    AbortTask,
    /// Abort all commands of this nexus at one logical unit.
    AbortTaskSet,
    /// Release an ACA of this nexus.
    ClearAca,
    /// Abort all commands of all nexuses at one logical unit.
    ClearTaskSet,
    /// Reset one logical unit.
    LunReset,
    /// Reset all logical units of the target that this nexus sees.
    TargetReset,
    /// The nexus is lost: abort everything of the session, send nothing.
    #[doc(alias = "SCST_NEXUS_LOSS_SESS")]
    NexusLossSess,
    /// Reset the nexus: abort everything of it, as if it were lost, but it goes on (SAM-5 7.6, RFC 7144).
    NexusReset,
    /// Whether one command of this nexus, named by its tag, is in the task set (SAM-5 7.9, RFC 7144).
    QueryTask,
    /// Whether any command of this nexus is in the task set (SAM-5 7.10, RFC 7144).
    QueryTaskSet,
    /// Abort all commands of this nexus at one logical unit, for PREEMPT AND ABORT. Not for transports, and not told
    /// to them.
    #[doc(alias = "SCST_PR_ABORT_ALL")]
    PrAbortAll,
}

impl TmFunction {
    /// Whether it is for a logical unit as a whole.
    pub(crate) fn is_for_lun(self) -> bool {
        match self {
            Self::AbortTaskSet
            | Self::ClearAca
            | Self::ClearTaskSet
            | Self::LunReset
            | Self::QueryTaskSet
            | Self::PrAbortAll => true,
            Self::AbortTask
            | Self::TargetReset
            | Self::NexusLossSess
            | Self::NexusReset
            | Self::QueryTask => false,
        }
    }
}

/// How a request ended.
#[doc(alias = "SCST_MGMT_STATUS_SUCCESS")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TmStatus {
    /// Done.
    #[default]
    Success = 0,
    /// The command to abort does not exist.
    TaskNotExist = 1,
    /// No such LUN.
    LunNotExist = 2,
    /// The function is not supported.
    FnNotSupported = 5,
    /// Done, and the answer to the question is yes.
    Succeeded = 7,
    /// Refused.
    Rejected = 254,
    /// Failed.
    Failed = 255,
}

impl TmStatus {
    fn from_u8(v: u8) -> Self {
        match v {
            0 => Self::Success,
            1 => Self::TaskNotExist,
            2 => Self::LunNotExist,
            5 => Self::FnNotSupported,
            7 => Self::Succeeded,
            254 => Self::Rejected,
            _ => Self::Failed,
        }
    }
}

/// Parameters of a request.
#[doc(alias = "scst_rx_mgmt_params")]
#[derive(Clone, Copy, Debug)]
pub struct TmParams {
    /// What to do.
    pub function: TmFunction,
    /// The logical unit, unpacked.
    pub lun: u64,
    /// The command to abort.
    pub tag: u64,
    /// Only commands older than this number of the transport are concerned.
    pub cmd_sn: Option<u32>,
    /// The transport's number of the command to abort, where the request gives it.
    pub ref_sn: Option<u32>,
    /// The transport's own handle.
    pub tgt_priv: u64,
}

/// A task management request.
#[doc(alias = "scst_mgmt_cmd")]
#[derive(Debug)]
pub struct MgmtCmd {
    params: TmParams,
    sess: Arc<Session>,
    status: AtomicU8,
    /// The nexuses whose handlers were told of the request, to be told of its end.
    #[doc(alias = "task_mgmt_fn_received_called")]
    notified: SpinLock<Vec<Arc<TgtDev>>>,
    /// Commands that may still have effects, and one while the request looks for them.
    #[doc(alias = "cmd_done_wait_count")]
    done_wait: AtomicU32,
    /// Commands whose response is still to be sent, and one until all effects are over.
    #[doc(alias = "cmd_finish_wait_count")]
    finish_wait: AtomicU32,
    needs_unblocking: SpinLock<Vec<Arc<Device>>>,
    /// The group swallows it (`black_hole`): it is not answered.
    #[doc(alias = "mcmd_dropped")]
    dropped: bool,
    /// The PREEMPT AND ABORT that this is for.
    #[doc(alias = "origin_pr_cmd")]
    origin: Option<Arc<PrAbort>>,
}

impl MgmtCmd {
    /// Parameters of the request.
    pub fn params(&self) -> &TmParams {
        &self.params
    }

    /// The session it came by.
    pub fn session(&self) -> &Arc<Session> {
        &self.sess
    }

    /// How it ended.
    pub fn status(&self) -> TmStatus {
        TmStatus::from_u8(self.status.load(Ordering::Acquire))
    }

    /// Commands that it waits for, those that may still have effects. Context: any.
    #[doc(alias = "cmd_done_wait_count")]
    pub fn waits_for(&self) -> u32 {
        self.done_wait.load(Ordering::Relaxed)
    }

    pub(crate) fn set_status(&self, s: TmStatus) {
        self.status.store(s as u8, Ordering::Release);
    }

    /// Tells the handler of a device that the request concerns it. Context: TM thread.
    #[doc(alias = "scst_call_dev_task_mgmt_fn_received")]
    fn notify(&self, tgt_dev: &Arc<TgtDev>) {
        tgt_dev.dev.handler().task_mgmt_fn_received(self, tgt_dev);
        self.notified.lock().push(Arc::clone(tgt_dev));
    }

    fn dec_done(self: &Arc<Self>) {
        if self.done_wait.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.sess
                .core
                .tm
                .queue
                .push(TmEvent::AffectedCmdsDone(Arc::clone(self)));
        }
    }

    fn dec_finish(self: &Arc<Self>) {
        if self.finish_wait.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.sess
                .core
                .tm
                .queue
                .push(TmEvent::Done(Arc::clone(self)));
        }
    }
}

/// Links a request to a command that it waits for.
#[doc(alias = "scst_mgmt_cmd_stub")]
#[derive(Debug)]
pub(crate) struct Stub {
    mcmd: Arc<MgmtCmd>,
    done_counted: bool,
    finish_counted: bool,
}

impl CmdShared {
    /// The command's effects are over and it was aborted: count it down. Called once, by the owner.
    #[doc(alias = "scst_done_cmd_mgmt")]
    #[cold]
    pub(crate) fn done_mgmt(&self) {
        for stub in self.waiters.lock().iter_mut() {
            if std::mem::take(&mut stub.done_counted) {
                stub.mcmd.dec_done();
            }
        }
    }

    /// The command is finished and was aborted: count it down. Called once, by the owner.
    #[doc(alias = "scst_finish_cmd_mgmt")]
    #[cold]
    pub(crate) fn finish_mgmt(&self) {
        for stub in self.waiters.lock().drain(..) {
            if stub.done_counted {
                stub.mcmd.dec_done();
            }
            if stub.finish_counted {
                stub.mcmd.dec_finish();
            }
        }
    }

    /// Marks the command of `generation` aborted and makes `mcmd` wait for it. Answers whether it was there.
    #[doc(alias = "scst_abort_cmd")]
    pub(crate) fn abort_for(&self, generation: u32, abort: Abort, mcmd: &Arc<MgmtCmd>) -> bool {
        let waited = self.abort(generation, abort, |before, waiters| {
            let done_counted = before & SENT_FOR_EXEC != 0 && before & DONE == 0;
            // Responses to other initiators are not waited for: a dead path must not hold up a failover.
            let finish_counted = !abort.is_other();
            if done_counted {
                mcmd.done_wait.fetch_add(1, Ordering::AcqRel);
            }
            if finish_counted {
                mcmd.finish_wait.fetch_add(1, Ordering::AcqRel);
            }
            if done_counted || finish_counted {
                waiters.push(Stub {
                    mcmd: Arc::clone(mcmd),
                    done_counted,
                    finish_counted,
                });
            }
        });
        waited.is_some()
    }
}

#[derive(Debug)]
enum TmEvent {
    /// SCST_MCMD_STATE_INIT and EXEC.
    New(Arc<MgmtCmd>),
    /// SCST_MCMD_STATE_AFFECTED_CMDS_DONE.
    AffectedCmdsDone(Arc<MgmtCmd>),
    /// SCST_MCMD_STATE_DONE.
    Done(Arc<MgmtCmd>),
    /// Everything before is dealt with.
    Flush(Arc<Completion>),
}

/// The thread that carries out task management.
#[doc(alias = "scst_tm_thread")]
pub(crate) struct TmThread {
    queue: Arc<WorkerQueue<TmEvent>>,
    /// Requests under way, and some that are over.
    #[doc(alias = "scst_active_mgmt_cmd_list")]
    active: SpinLock<Vec<Weak<MgmtCmd>>>,
    thread: SpinLock<Option<Kthread>>,
}

impl TmThread {
    pub(crate) fn start() -> Result<Self> {
        let queue: Arc<WorkerQueue<TmEvent>> = Arc::new(WorkerQueue::new());
        let q = Arc::clone(&queue);
        let thread = kthread::run("scsi_tm", move |stop| {
            while let Some(event) = q.wait_next(stop) {
                match event {
                    TmEvent::New(m) => exec::exec(&m),
                    TmEvent::AffectedCmdsDone(m) => exec::affected_cmds_done(&m),
                    TmEvent::Done(m) => exec::send_done(&m),
                    TmEvent::Flush(done) => done.complete(),
                }
            }
        })?;
        Ok(Self {
            queue,
            active: SpinLock::new(Vec::new()),
            thread: SpinLock::new(Some(thread)),
        })
    }

    /// The requests under way. Context: any.
    pub(crate) fn active(&self) -> Vec<Arc<MgmtCmd>> {
        let active = self.active.lock();
        active.iter().filter_map(Weak::upgrade).collect()
    }

    fn submit(&self, mcmd: Arc<MgmtCmd>) {
        {
            let mut active = self.active.lock();
            active.retain(|m| m.strong_count() > 0);
            active.push(Arc::downgrade(&mcmd));
        }
        self.queue.push(TmEvent::New(mcmd));
    }

    pub(crate) fn stop(&self) {
        let thread = self.thread.lock().take();
        if let Some(t) = thread {
            t.stop();
        }
    }
}

impl Core {
    /// Waits until the TM thread has dealt with everything that it was told before: requests handed in have marked their
    /// commands. Context: may sleep.
    pub fn flush_tm(&self) {
        let done = Arc::new(Completion::new());
        self.tm.queue.push(TmEvent::Flush(Arc::clone(&done)));
        done.wait_for_completion();
    }
}

impl Session {
    /// Hands in a task management request; the transport's `task_mgmt_fn_done` answers it. Context: any.
    #[doc(alias = "scst_rx_mgmt_fn")]
    pub fn rx_mgmt_fn(self: &Arc<Self>, params: TmParams) {
        self.rx_mgmt(params, None);
    }

    fn rx_mgmt(self: &Arc<Self>, params: TmParams, origin: Option<Arc<PrAbort>>) {
        let dropped = params.function != TmFunction::NexusLossSess
            && self.acg_attrs().black_hole.swallows_tm();
        let mcmd = Arc::new(MgmtCmd {
            params,
            dropped,
            sess: Arc::clone(self),
            status: AtomicU8::new(TmStatus::Success as u8),
            notified: SpinLock::new(Vec::new()),
            done_wait: AtomicU32::new(1),
            finish_wait: AtomicU32::new(1),
            needs_unblocking: SpinLock::new(Vec::new()),
            origin,
        });
        self.core.tm.submit(mcmd);
    }
}

/// Aborts what a session has at a LUN on behalf of PREEMPT AND ABORT. Context: any.
#[doc(alias = "scst_rx_mgmt_fn_lun")]
pub(crate) fn pr_abort_all(sess: &Arc<Session>, lun: u64, origin: Arc<PrAbort>) {
    let params = TmParams {
        function: TmFunction::PrAbortAll,
        lun,
        tag: 0,
        cmd_sn: None,
        ref_sn: None,
        tgt_priv: 0,
    };
    sess.rx_mgmt(params, Some(origin));
}
