//! Auto contingent allegiance (SAM-5 5.9): who may still send commands, and what is held until it is cleared.
//!
//! A command with NACA=1 that ends with CHECK CONDITION establishes the ACA for its nexus in the task set. From then on
//! the commands of the task set stand still, complete ones too; the faulted nexus may send one command with the ACA
//! attribute at a time; other nexuses get BUSY, or ACA ACTIVE if they used NACA=1. CLEAR ACA, a reset, or an ACA
//! command that fails with NACA=0 ends it.

use super::{CheckSn, HasTicket, OrderData, OrderTicket, Word};
use crate::consts::QueueType;
use crate::parking::Released;
use std::sync::atomic::Ordering;

/// Names an I_T_L nexus; never reused while a task set that knows it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NexusId(pub u64);

/// Queue error management (SPC-4 7.5.8): what becomes of the other commands after a CHECK CONDITION.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QErr {
    /// They go on, once the ACA (if any) is cleared.
    #[doc(alias = "SCST_QERR_0_ALL_RESUME")]
    #[default]
    AllResume,
    /// All of the task set are aborted.
    #[doc(alias = "SCST_QERR_1_ABORT_ALL")]
    AbortAll,
    /// Those of the faulted nexus are aborted.
    #[doc(alias = "SCST_QERR_3_ABORT_THIS_NEXUS_ONLY")]
    AbortThisNexus,
}

impl QErr {
    /// From the QERR field of the Control mode page. The reserved value 2 means the same as 0.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            1 => Self::AbortAll,
            3 => Self::AbortThisNexus,
            _ => Self::AllResume,
        }
    }
}

/// What the ACA rules need to know of a command.
#[derive(Clone, Copy, Debug)]
pub struct AcaRequest {
    /// The nexus that sent it.
    pub nexus: NexusId,
    /// Its task attribute.
    pub queue_type: QueueType,
    /// NACA bit of its CDB.
    #[doc(alias = "cmd_naca")]
    pub naca: bool,
    /// PERSISTENT RESERVE OUT with PREEMPT AND ABORT, which other nexuses may send under an ACA.
    pub preempt_and_abort: bool,
    /// What the caller finds the command by, among those of its nexus; comes back as [`ClearedAca::abort`].
    pub cmd: u64,
}

/// Answer of [`OrderData::aca_check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum AcaVerdict {
    /// The command may enter the task set.
    Go,
    /// Refuse it: CHECK CONDITION, INVALID MESSAGE ERROR.
    InvalidMessage,
    /// Refuse it with the status ACA ACTIVE.
    AcaActive,
    /// Refuse it with the status BUSY.
    Busy,
}

/// Answer of [`OrderData::check_condition`].
#[derive(Debug)]
#[must_use]
pub enum CheckCondition<T> {
    /// Report the CHECK CONDITION now, after QErr handling. `cleared` is set if this ended the ACA.
    Report {
        /// The command.
        item: T,
        /// What an ended ACA had held.
        cleared: Option<ClearedAca<T>>,
    },
    /// The engine keeps the command until the ACA is cleared.
    Deferred,
    /// The command is aborted meanwhile: proceed as for aborted commands.
    Aborted(T),
}

/// What is to be done after an ACA ended, in this order.
#[derive(Debug)]
#[must_use]
pub struct ClearedAca<T> {
    /// Abort this command of this nexus with the ACA attribute ([`AcaRequest::cmd`]): it lived by the ACA.
    pub abort: Option<(NexusId, u64)>,
    /// Resume these.
    pub released: Released<T>,
}

/// CLEAR ACA came from a nexus that does not have the ACA: to be rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTheFaultedNexus;

/// An established ACA.
#[derive(Debug)]
pub(super) struct Aca {
    /// The faulted nexus.
    #[doc(alias = "aca_tgt_dev")]
    nexus: NexusId,
    /// The command with the ACA attribute under way, of this nexus.
    #[doc(alias = "aca_cmd")]
    cmd: Option<u64>,
    qerr: QErr,
}

impl Aca {
    /// Whether a command of `nexus` that ran into the ACA is to be aborted rather than held; if so, whether another
    /// nexus is the cause.
    pub(super) fn aborts(&self, nexus: NexusId) -> Option<bool> {
        let other = nexus != self.nexus;
        match self.qerr {
            QErr::AllResume => None,
            QErr::AbortThisNexus if other => None,
            QErr::AbortAll | QErr::AbortThisNexus => Some(other),
        }
    }
}

impl<T> OrderData<T> {
    /// Whether the command may enter the task set, as far as ACA is concerned; before [`OrderData::set_sn`]. `tmf_only`
    /// is the TMF_ONLY bit of the device's Control mode page.
    ///
    /// Without an ACA (and with any other attribute than ACA) this is one load.
    #[doc(alias = "scst_handle_aca")]
    #[inline]
    pub fn aca_check(
        &self,
        ticket: &mut OrderTicket,
        req: &AcaRequest,
        tmf_only: bool,
    ) -> AcaVerdict {
        ticket.nexus = req.nexus;
        if req.queue_type != QueueType::Aca && !Word(self.word.load(Ordering::Acquire)).is_slow() {
            return AcaVerdict::Go;
        }
        self.aca_check_slow(ticket, req, tmf_only)
    }

    #[cold]
    fn aca_check_slow(
        &self,
        ticket: &mut OrderTicket,
        req: &AcaRequest,
        tmf_only: bool,
    ) -> AcaVerdict {
        let is_aca = req.queue_type == QueueType::Aca;
        let mut st = self.state.lock();
        let Some(aca) = st.aca.as_mut() else {
            return if is_aca {
                AcaVerdict::InvalidMessage
            } else {
                AcaVerdict::Go
            };
        };
        // Allowed, or refused: either way the ACA does not hold its response.
        ticket.aca_allowed = true;
        if aca.nexus == req.nexus {
            if !is_aca || aca.cmd.is_some() || tmf_only {
                return AcaVerdict::AcaActive;
            }
            aca.cmd = Some(req.cmd);
            return AcaVerdict::Go;
        }
        match () {
            () if is_aca => AcaVerdict::InvalidMessage,
            () if req.preempt_and_abort => AcaVerdict::Go,
            () if req.naca => AcaVerdict::AcaActive,
            () => AcaVerdict::Busy,
        }
    }

    /// The command with the ACA attribute has got its status: the next one may come. Does nothing for others.
    pub fn aca_cmd_done(&self, req: &AcaRequest) {
        if req.queue_type != QueueType::Aca {
            return;
        }
        let mut st = self.state.lock();
        if let Some(aca) = st.aca.as_mut()
            && aca.nexus == req.nexus
            && aca.cmd == Some(req.cmd)
        {
            aca.cmd = None;
        }
    }

    /// The nexus that has an ACA here.
    #[doc(alias = "aca_tgt_dev")]
    pub fn aca_nexus(&self) -> Option<NexusId> {
        if !Word(self.word.load(Ordering::Acquire)).is_slow() {
            return None;
        }
        self.state.lock().aca.as_ref().map(|a| a.nexus)
    }

    /// Ends the ACA, if there is one: for the task management function CLEAR ACA of `by`, or whatever nexus has it if
    /// `by` is `None` (resets, nexus loss).
    ///
    /// # Errors
    ///
    /// [`NotTheFaultedNexus`] if there is an ACA, but of another nexus.
    #[doc(alias = "scst_clear_aca")]
    pub fn clear_aca(&self, by: Option<NexusId>) -> Result<ClearedAca<T>, NotTheFaultedNexus> {
        let mut st = self.state.lock();
        let abort = match (&st.aca, by) {
            (None, _) => {
                return Ok(ClearedAca {
                    abort: None,
                    released: Released::new(),
                });
            }
            (Some(a), Some(by)) if a.nexus != by => return Err(NotTheFaultedNexus),
            (Some(a), _) => a.cmd.map(|cmd| (a.nexus, cmd)),
        };
        st.aca = None;
        let released = st.collect();
        self.try_leave_slow(&mut st);
        Ok(ClearedAca { abort, released })
    }
}

impl<T: HasTicket> OrderData<T> {
    /// A command with another status than CHECK CONDITION is about to be answered: an ACA may hold the answer. The
    /// released command is to be resumed at its response.
    #[inline]
    pub fn check_response(&self, item: T) -> CheckSn<T> {
        if Word(self.word.load(Ordering::Acquire)).is_slow() {
            self.check_response_slow(item)
        } else {
            CheckSn::Proceed(item)
        }
    }

    #[cold]
    fn check_response_slow(&self, mut item: T) -> CheckSn<T> {
        let mut st = self.state.lock();
        if st.aca.is_none() || item.ticket().aca_allowed {
            return CheckSn::Proceed(item);
        }
        if item.is_aborted() {
            return CheckSn::Aborted(item);
        }
        st.aca_held.push_front(item);
        CheckSn::Deferred
    }

    /// The command has ended with CHECK CONDITION: establishes an ACA if it had NACA=1, ends one if it is a command
    /// that was allowed under it and had NACA=0, or waits for one to end. `qerr` is the device's; the caller does the
    /// aborting for it, before the report.
    #[doc(alias = "scst_process_check_condition")]
    pub fn check_condition(&self, mut item: T, req: &AcaRequest, qerr: QErr) -> CheckCondition<T> {
        if !req.naca && !Word(self.word.load(Ordering::Acquire)).is_slow() {
            return CheckCondition::Report {
                item,
                cleared: None,
            };
        }
        let mut st = self.state.lock();
        if let Some(aca) = st.aca.as_mut() {
            let of_faulted = req.queue_type == QueueType::Aca && aca.nexus == req.nexus;
            if (of_faulted || req.preempt_and_abort) && !req.naca {
                let nexus = aca.nexus;
                let of_item = |c: &u64| nexus == req.nexus && *c == req.cmd;
                let abort = aca.cmd.filter(|c| !of_item(c)).map(|c| (nexus, c));
                st.aca = None;
                let released = st.collect();
                self.try_leave_slow(&mut st);
                return CheckCondition::Report {
                    item,
                    cleared: Some(ClearedAca { abort, released }),
                };
            }
            if item.is_aborted() {
                return CheckCondition::Aborted(item);
            }
            if !item.ticket().aca_allowed {
                st.aca_held.push_front(item);
                return CheckCondition::Deferred;
            }
        }
        // DIFFERS: in SCST a command with the ACA attribute and NACA=1 that is refused under the ACA of another nexus takes
        // that over.
        let of_other = st.aca.as_ref().is_some_and(|a| a.nexus != req.nexus);
        if req.naca && (!of_other || req.preempt_and_abort) {
            self.enter_slow(&mut st);
            // DIFFERS: in SCST the former nexus' command with the ACA attribute counts for this one, and is aborted with its ACA.
            let cmd = st.aca.take().filter(|a| a.nexus == req.nexus);
            let cmd = cmd.and_then(|a| a.cmd);
            st.aca = Some(Aca {
                nexus: req.nexus,
                cmd,
                qerr,
            });
        }
        CheckCondition::Report {
            item,
            cleared: None,
        }
    }
}
