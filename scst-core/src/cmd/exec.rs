//! Ordering, blocking, the checks before execution, and execution.
//!
//! C source: `scst_exec_check_sn`, `scst_exec_check_blocking`, `__scst_check_local_events`, `scst_do_local_exec`,
//! `scst_do_real_exec` of `scst/src/scst_targ.c`

use super::shared::{ABORTED, ABORTED_OTHER, DEVICE_TAS, SENT_FOR_EXEC};
use super::{Cmd, CmdState, ExecCx, ExecRes, Next};
use crate::alua;
use crate::blocking::{Class, Enter, Place};
use crate::cdb::{CdbFlags, opcodes as op};
use crate::consts::{QueueType, SamStatus};
use crate::copy_mgr;
use crate::dev_type::ExecContext;
use crate::local_cmd::{self, LocalRes};
use crate::order::CheckSn;
use crate::parking::Released;
use crate::sense;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Cmd {
    /// CmdState::ExecCheckSn.
    #[inline]
    pub(super) fn exec_check_sn(mut self: Box<Self>) -> Next {
        if self.is_aborted() {
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        let Some(tgt_dev) = &self.tgt_dev else {
            self.set_abnormal_done_state();
            return Next::Same(self);
        };
        let order = Arc::clone(&tgt_dev.order);
        match order.check_sn(self) {
            CheckSn::Proceed(mut cmd) => {
                cmd.set_state(CmdState::ExecCheckBlocking);
                Next::Same(cmd)
            }
            CheckSn::Deferred => Next::Stop,
            CheckSn::Aborted(mut cmd) => {
                cmd.set_abnormal_done_state();
                Next::Same(cmd)
            }
            CheckSn::AbortForQErr {
                mut item,
                by_other_nexus,
            } => {
                let tas = item
                    .device()
                    .is_some_and(|d| d.control.tas.load(Ordering::Relaxed));
                let other = if by_other_nexus { ABORTED_OTHER } else { 0 };
                let tas = if by_other_nexus && tas { DEVICE_TAS } else { 0 };
                item.shared.set(ABORTED | other | tas);
                item.set_abnormal_done_state();
                Next::Same(item)
            }
        }
    }

    /// CmdState::ExecCheckBlocking.
    #[inline]
    pub(super) fn exec_check_blocking(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let Some(tgt_dev) = self.tgt_dev.clone() else {
            self.set_abnormal_done_state();
            return Next::Same(self);
        };
        if self.is_aborted() {
            self.set_abnormal_done_state();
            return Next::Same(self);
        }
        let filter = tgt_dev.alua_filter();
        if filter != 0 {
            match self.check_alua(filter) {
                Ok(cmd) => self = cmd,
                Err(next) => return next,
            }
        }
        let place = match self.queue_type {
            QueueType::HeadOfQueue => Place::Head,
            _ => Place::Tail,
        };
        if self.copy.is_some() {
            match copy_mgr::enter_all(self, place, cx) {
                Some(cmd) => self = cmd,
                None => return Next::Stop,
            }
        } else if !self.block_ticket.is_on_device() {
            let class = self.block_class();
            if class == Class::StrictlySerialized && alua::is_stpg(self.cdb()) {
                let core = Arc::clone(&self.sess.core);
                match core.alua.gate.enter(self) {
                    Some(cmd) => self = cmd,
                    None => return Next::Stop,
                }
            }
            match tgt_dev.dev.block.enter(self, class, place) {
                Enter::Go(cmd) => self = cmd,
                Enter::Queued { released } => {
                    cx.make_all_ready(released);
                    return Next::Stop;
                }
            }
        }
        // From here on task management waits for the command instead of taking it back. The read-modify-write is the
        // barrier that pairs with the abort's: one of both sees the other.
        let flags = self.shared.set(SENT_FOR_EXEC);
        self.marks.executed = true;
        if flags & ABORTED != 0 {
            return self.not_executed();
        }
        if self.check_local_events(&tgt_dev) {
            return self.after_exec(cx);
        }
        self.set_state(CmdState::LocalExec);
        Next::Same(self)
    }

    /// Asks the filter of the port group's state.
    #[doc(alias = "scst_check_alua")]
    #[cold]
    fn check_alua(mut self: Box<Self>, filter: u8) -> Result<Box<Self>, Next> {
        let sense = match alua::check_filter(filter, self.cdb()) {
            alua::Verdict::Go => return Ok(self),
            alua::Verdict::Delay(_) if !self.marks.alua_delayed => {
                self.marks.alua_delayed = true;
                let core = Arc::clone(&self.sess.core);
                let parked = core.alua.delayed.park(self);
                return Err(parked.map_or(Next::Stop, Next::Same));
            }
            alua::Verdict::Delay(s) | alua::Verdict::Fail(s) => s,
        };
        self.set_sense(sense);
        self.set_abnormal_done_state();
        Err(Next::Same(self))
    }

    /// Ends the execution stage of a command that was aborted in time: it has no result, and no side effects.
    #[cold]
    fn not_executed(mut self: Box<Self>) -> Next {
        self.set_state(CmdState::DevDone);
        Next::Same(self)
    }

    #[inline]
    fn block_class(&self) -> Class {
        match self.cdb_byte(0) {
            op::READ_10 | op::WRITE_10 | op::READ_16 | op::WRITE_16 => Class::Normal,
            code => self.rare_block_class(code),
        }
    }

    fn rare_block_class(&self, code: u8) -> Class {
        let flags = self.op_flags();
        if flags.contains(CdbFlags::STRICTLY_SERIALIZED) {
            Class::StrictlySerialized
        } else if flags.contains(CdbFlags::SERIALIZED) {
            Class::Serialized
        } else if code == op::COMPARE_AND_WRITE {
            Class::Atomic
        } else if may_take_long(code) {
            Class::Listed
        } else {
            Class::Normal
        }
    }

    /// Reservations and unit attentions. Answers whether the command has its result.
    #[doc(alias = "__scst_check_local_events")]
    #[inline]
    fn check_local_events(&mut self, tgt_dev: &crate::tgt_dev::TgtDev) -> bool {
        let flags = self.op_flags();
        if tgt_dev.reservations.conflicts(flags) && !self.comes_from_peer() {
            self.set_status(SamStatus::ReservationConflict);
            return true;
        }
        if tgt_dev.ua.has_pending()
            && !flags.contains(CdbFlags::SKIP_UA)
            && let Some(ua) = self.sess.take_ua(tgt_dev)
        {
            self.set_sense(ua);
            self.marks.ua = Some(ua);
            return true;
        }
        if flags.contains(CdbFlags::WRITE_MEDIUM)
            && (tgt_dev.is_read_only() || tgt_dev.dev.is_swp())
        {
            let swp = tgt_dev.dev.is_swp();
            self.set_sense(if swp {
                sense::WRITE_PROTECTED
            } else {
                sense::DATA_PROTECT
            });
            return true;
        }
        false
    }

    /// Whether a peer has checked reservations already (`forward_dst`).
    #[cold]
    fn comes_from_peer(&self) -> bool {
        self.sess.tgt().forward_dst.load(Ordering::Relaxed)
    }

    /// CmdState::LocalExec: commands that the core executes for every handler.
    #[inline]
    pub(super) fn local_exec(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        if self.op_flags().contains(CdbFlags::LOCAL_CMD) {
            if cx.may_sleep() && self.is_aborted() {
                // While it waited for the thread.
                self.set_state(CmdState::DevDone);
                return self.go_home();
            }
            match local_cmd::exec(&mut self, cx.may_sleep()) {
                LocalRes::Completed => {
                    self.completed = true;
                    return match self.after_exec(cx) {
                        Next::Same(cmd) if cx.may_sleep() => cmd.go_home(),
                        next => next,
                    };
                }
                LocalRes::NeedThread => return Next::NeedThread(self),
                LocalRes::Aborts(aborts) => {
                    return self.wait_parked(cx, |cmd| aborts.park(cmd));
                }
                LocalRes::Stpg(stpg) => return self.wait_parked(cx, |cmd| stpg.park(cmd)),
                LocalRes::NotLocal => {}
            }
        }
        self.set_state(CmdState::RealExec);
        Next::Same(self)
    }

    /// The command waits, for its answer or before it, until who parks it completes it.
    #[cold]
    fn wait_parked(mut self: Box<Self>, cx: &mut ExecCx<'_>, park: impl FnOnce(Box<Self>)) -> Next {
        let mut detached = self.ticket.detach();
        let order = self.tgt_dev.as_ref().map(|t| Arc::clone(&t.order));
        self.set_state(CmdState::ExecWait);
        park(self);
        if let Some(order) = order {
            cx.make_all_ready(order.post_exec(&mut detached));
        }
        Next::Stop
    }

    /// CmdState::RealExec: the handler executes.
    #[inline]
    pub(super) fn real_exec(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        let Some(tgt_dev) = self.tgt_dev.clone() else {
            self.set_abnormal_done_state();
            return Next::Same(self);
        };
        let context = if cx.may_sleep() {
            if self.is_aborted() {
                // While it waited for the thread.
                self.set_state(CmdState::DevDone);
                return self.go_home();
            }
            ExecContext::Thread
        } else {
            ExecContext::Atomic
        };
        // What `post_exec` needs stays here: a handler that keeps the command may complete it elsewhere at once.
        let mut detached = self.ticket.detach();
        self.set_state(CmdState::ExecWait);
        let next = match tgt_dev.dev.handler().exec(self, context) {
            ExecRes::Completed(mut cmd) => {
                cmd.completed = true;
                cmd.set_state(CmdState::PreDevDone);
                if cx.home == Some(cmd.sess.home_id) {
                    Next::Same(cmd)
                } else {
                    cmd.go_home()
                }
            }
            ExecRes::NeedThread(mut cmd) => {
                cmd.ticket.reattach(detached);
                cmd.set_state(CmdState::RealExec);
                if cx.may_sleep() {
                    kshim::pr_err!("Handler asks for a thread on a thread: {cmd:?}");
                    cmd.set_sense(sense::INTERNAL_FAILURE);
                    cmd.set_state(CmdState::PreDevDone);
                    return cmd.go_home();
                }
                return Next::NeedThread(cmd);
            }
            ExecRes::Pending => Next::Stop,
        };
        cx.make_all_ready(tgt_dev.order.post_exec(&mut detached));
        next
    }

    /// Ends the execution stage of a command that needed no handler: the next one in order may go.
    fn after_exec(mut self: Box<Self>, cx: &mut ExecCx<'_>) -> Next {
        self.set_state(CmdState::PreDevDone);
        if let Some(tgt_dev) = self.tgt_dev.clone()
            && !self.ticket.inc_expected_on_done()
        {
            cx.make_all_ready(tgt_dev.order.post_exec(&mut self.ticket));
        }
        Next::Same(self)
    }
}

/// Commands that may be on a device for so long that a COMPARE AND WRITE on other blocks had better not wait.
fn may_take_long(code: u8) -> bool {
    matches!(
        code,
        op::UNMAP
            | op::EXTENDED_COPY
            | op::START_STOP
            | op::SYNCHRONIZE_CACHE_10
            | op::SYNCHRONIZE_CACHE_16
            | op::VERIFY_10
            | op::VERIFY_12
            | op::VERIFY_16
            | op::WRITE_VERIFY_10
            | op::WRITE_VERIFY_12
            | op::WRITE_VERIFY_16
            | op::WRITE_SAME_10
            | op::WRITE_SAME_16
    )
}

impl ExecCx<'_> {
    /// Parked commands may go on.
    #[inline]
    pub(crate) fn make_all_ready(&mut self, cmds: Released<Box<Cmd>>) {
        // Nearly always there are none.
        if !cmds.is_empty() {
            self.make_released_ready(cmds);
        }
    }

    #[cold]
    fn make_released_ready(&mut self, cmds: Released<Box<Cmd>>) {
        for cmd in cmds {
            self.make_ready(cmd);
        }
    }

    /// A parked command may go on: here if this is its home, else there.
    #[inline]
    pub(crate) fn make_ready(&mut self, cmd: Box<Cmd>) {
        if self.home == Some(cmd.sess.home_id) {
            self.ready.push_back(cmd);
        } else {
            let _ = cmd.go_home();
        }
    }
}
