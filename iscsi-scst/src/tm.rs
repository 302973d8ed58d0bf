//! Task management requests of a connection (RFC 7143 11.5, 11.6, 4.2.3.4).
//!
//! C source: `execute_task_management`, `cmnd_abort_pre_checks`, `iscsi_task_mgmt_fn_done` of
//! `iscsi-scst/kernel/iscsi.c`

use crate::ffp::Ffp;
use crate::pdu::hdr::{ScsiCmdHdr, TaskMgtHdr, TaskMgtRspHdr};
use crate::pdu::{Itt, TmfFunction, TmfResponse, flags};
use crate::sn::CmdSn;
use crate::tx::{TxData, TxPdu, TxResp};
use scst_core::lun::Lun;
use scst_core::mgmt::{MgmtCmd, TmFunction, TmParams, TmStatus};
use slab::Slab;

/// A request that the core carries out.
#[derive(Debug)]
struct TmRequest {
    itt: Itt,
    cmd_sn: CmdSn,
    ref_cmd_sn: CmdSn,
    function: TmfFunction,
    immediate: bool,
}

/// Task management requests of a connection.
#[derive(Debug, Default)]
pub(crate) struct TmRequests {
    live: Slab<TmRequest>,
    in_window: u32,
    /// The loss of this connection's nexus is being carried out.
    nexus_loss: bool,
    /// Answers that wait until ExpCmdSN has caught up with their request.
    held: Vec<(CmdSn, Itt, TmfResponse)>,
}

/// `tgt_priv` of the request that the closing of the connection makes.
const NEXUS_LOSS: u64 = u64::MAX;

impl TmRequests {
    /// Requests that take places of the command window: those that were not immediate.
    #[inline]
    pub(crate) fn in_window(&self) -> u32 {
        self.in_window
    }

    /// Requests that take places of the immediate ones.
    pub(crate) fn immediate(&self) -> u32 {
        let n = self.live.len().saturating_add(self.held.len());
        u32::try_from(n)
            .unwrap_or(u32::MAX)
            .saturating_sub(self.in_window)
    }

    #[inline]
    pub(crate) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether the core has requests of this connection.
    pub(crate) fn under_way(&self) -> bool {
        self.nexus_loss || !self.live.is_empty()
    }

    fn add(&mut self, request: TmRequest) -> u64 {
        if !request.immediate {
            self.in_window = self.in_window.saturating_add(1);
        }
        u64::try_from(self.live.insert(request)).unwrap_or(NEXUS_LOSS)
    }

    /// The core has finished a request: takes it off.
    fn remove(&mut self, tgt_priv: u64) -> Option<TmRequest> {
        if tgt_priv == NEXUS_LOSS {
            self.nexus_loss = false;
            return None;
        }
        let request = self.live.try_remove(usize::try_from(tgt_priv).ok()?)?;
        if !request.immediate {
            self.in_window = self.in_window.saturating_sub(1);
        }
        Some(request)
    }

    /// The core has finished a request of a connection that is closed.
    pub(crate) fn done_unanswered(&mut self, mcmd: &MgmtCmd) {
        self.remove(mcmd.params().tgt_priv);
    }
}

impl Ffp {
    /// Carries out a request, or answers why not.
    #[doc(alias = "execute_task_management")]
    pub(crate) fn task_mgmt(&mut self, hdr: &TaskMgtHdr, immediate: bool) {
        let itt = Itt(hdr.itt.get());
        let cmd_sn = CmdSn::from(hdr.cmd_sn);
        let (function, code) = match self.tm_function(hdr, cmd_sn) {
            Ok(functions) => functions,
            Err(response) => return self.tm_response(cmd_sn, itt, response),
        };
        let lun = Lun::unpack(&hdr.lun).map(Lun::get);
        let for_all = matches!(function, TmFunction::TargetReset | TmFunction::NexusReset);
        let Some(lun) = lun.or(for_all.then_some(0)) else {
            return self.tm_response(cmd_sn, itt, TmfResponse::LunDoesNotExist);
        };
        let tgt_priv = self.tm.add(TmRequest {
            itt,
            cmd_sn,
            ref_cmd_sn: hdr.ref_cmd_sn(),
            function: code,
            immediate,
        });
        self.sess.rx_mgmt_fn(TmParams {
            function,
            lun,
            tag: u64::from(hdr.referenced_task_tag().0),
            cmd_sn: Some(cmd_sn.0),
            ref_sn: (code == TmfFunction::AbortTask).then_some(hdr.ref_cmd_sn().0),
            tgt_priv,
        });
    }

    fn has_rfc7144(&self) -> bool {
        self.params.protocol_level >= 2
    }

    /// What the core is to do for a request. Requests that wait for their turn are ended here: the core does not know
    /// them.
    fn tm_function(
        &mut self,
        hdr: &TaskMgtHdr,
        cmd_sn: CmdSn,
    ) -> Result<(TmFunction, TmfFunction), TmfResponse> {
        let code = hdr.function().ok_or(TmfResponse::FunctionRejected)?;
        let rtt = hdr.referenced_task_tag();
        let function = match code {
            TmfFunction::AbortTask => {
                let (lun, sn) = (hdr.lun, hdr.ref_cmd_sn());
                let named = |c: &ScsiCmdHdr| c.itt() == rtt && c.lun == lun && c.cmd_sn() == sn;
                if self.pending.abort(cmd_sn, named) {
                    return Err(TmfResponse::FunctionComplete);
                }
                if self.pending.has(cmd_sn, |c| c.itt() == rtt) {
                    return Err(TmfResponse::FunctionRejected);
                }
                return Ok((TmFunction::AbortTask, code));
            }
            // DIFFERS: SCST knows none of RFC 7144.
            TmfFunction::QueryTask if self.has_rfc7144() => {
                if self.pending.has(cmd_sn, |c| c.itt() == rtt) {
                    return Err(TmfResponse::FunctionSucceeded);
                }
                return Ok((TmFunction::QueryTask, code));
            }
            TmfFunction::TaskReassign => return Err(TmfResponse::ReassignmentNotSupported),
            _ if rtt != Itt::RESERVED => return Err(TmfResponse::FunctionRejected),
            TmfFunction::AbortTaskSet => TmFunction::AbortTaskSet,
            TmfFunction::ClearTaskSet => TmFunction::ClearTaskSet,
            TmfFunction::ClearAca => return Ok((TmFunction::ClearAca, code)),
            TmfFunction::QueryTaskSet if self.has_rfc7144() => {
                if self.pending.has(cmd_sn, |c| c.lun == hdr.lun) {
                    return Err(TmfResponse::FunctionSucceeded);
                }
                return Ok((TmFunction::QueryTaskSet, code));
            }
            TmfFunction::ITNexusReset if self.has_rfc7144() => {
                self.pending.abort(cmd_sn, |_| true);
                return Ok((TmFunction::NexusReset, code));
            }
            TmfFunction::LogicalUnitReset => TmFunction::LunReset,
            TmfFunction::TargetWarmReset | TmfFunction::TargetColdReset => {
                self.pending.abort(cmd_sn, |_| true);
                return Ok((TmFunction::TargetReset, code));
            }
            _ => return Err(TmfResponse::FunctionRejected),
        };
        self.pending.abort(cmd_sn, |c| c.lun == hdr.lun);
        Ok((function, code))
    }

    /// The nexus is lost: everything of the session is to be aborted. Its end comes as that of any request.
    #[doc(alias = "SCST_NEXUS_LOSS_SESS")]
    pub(crate) fn lose_nexus(&mut self) {
        self.tm.nexus_loss = true;
        self.sess.rx_mgmt_fn(TmParams {
            function: TmFunction::NexusLossSess,
            lun: 0,
            tag: 0,
            cmd_sn: None,
            ref_sn: None,
            tgt_priv: NEXUS_LOSS,
        });
    }

    /// The core has carried out a request.
    #[doc(alias = "iscsi_task_mgmt_fn_done")]
    pub(crate) fn task_mgmt_fn_done(&mut self, mcmd: &MgmtCmd) {
        let Some(request) = self.tm.remove(mcmd.params().tgt_priv) else {
            return;
        };
        let response = match mcmd.status() {
            TmStatus::Success => TmfResponse::FunctionComplete,
            TmStatus::Succeeded => TmfResponse::FunctionSucceeded,
            TmStatus::TaskNotExist if self.consider_received(&request) => {
                TmfResponse::FunctionComplete
            }
            TmStatus::TaskNotExist => TmfResponse::TaskDoesNotExist,
            TmStatus::LunNotExist => TmfResponse::LunDoesNotExist,
            TmStatus::FnNotSupported => TmfResponse::FunctionNotSupported,
            TmStatus::Rejected | TmStatus::Failed => TmfResponse::FunctionRejected,
        };
        self.tm_response(request.cmd_sn, request.itt, response);
        let done = response == TmfResponse::FunctionComplete;
        if done && request.function == TmfFunction::TargetColdReset {
            // RFC 7143 11.5.1: all sessions of the target end; this one when its answer is out.
            self.target.close_others(&self.shared);
            self.close_after_flush = true;
        }
    }

    /// The task to abort does not exist: if its CmdSN is one that may still come, it counts as received
    /// (RFC 7143 11.6.1 b).
    fn consider_received(&mut self, request: &TmRequest) -> bool {
        let sn = request.ref_cmd_sn;
        let may_come = sn.in_window(self.exp_cmd_sn, self.max_cmd_sn());
        if request.function != TmfFunction::AbortTask || !may_come || !sn.precedes(request.cmd_sn) {
            return false;
        }
        self.pending.consider_received(sn);
        true
    }

    /// Answers a request, now or when all commands before it have arrived (RFC 7143 4.2.3.4).
    pub(crate) fn tm_response(&mut self, cmd_sn: CmdSn, itt: Itt, response: TmfResponse) {
        if self.exp_cmd_sn.precedes(cmd_sn) {
            self.tm.held.push((cmd_sn, itt, response));
        } else {
            self.queue_tm_response(itt, response);
        }
    }

    /// ExpCmdSN has moved: answers that waited for it may go.
    #[cold]
    pub(crate) fn release_tm_answers(&mut self) {
        let exp = self.exp_cmd_sn;
        let held = std::mem::take(&mut self.tm.held);
        for (sn, itt, response) in held {
            if exp.precedes(sn) {
                self.tm.held.push((sn, itt, response));
            } else {
                self.queue_tm_response(itt, response);
            }
        }
    }

    fn queue_tm_response(&mut self, itt: Itt, response: TmfResponse) {
        let mut hdr = TaskMgtRspHdr::new();
        hdr.flags = flags::FINAL;
        hdr.itt = itt.into();
        hdr.set_response(response);
        let stat_sn = self.next_stat_sn();
        hdr.set_sns(stat_sn, self.exp_cmd_sn, self.max_cmd_sn());
        self.queue(TxResp::new(TxPdu::new(&hdr, 0, 0), TxData::None));
    }
}
