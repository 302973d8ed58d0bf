//! The functions themselves. All of this runs on the TM thread.

use super::{MgmtCmd, TmFunction, TmStatus};
use crate::cmd::shared::{Abort, CmdRef};
use crate::cmd::{clear_aca, unblock_aborted};
use crate::device::Device;
use crate::event::{Kind, payload::tm_code};
use crate::sense;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::pr_info_ratelimited;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// SCST_MCMD_STATE_INIT and EXEC: find what is concerned, mark it, free what is parked, then wait.
#[doc(alias = "scst_mgmt_cmd_exec")]
pub(super) fn exec(mcmd: &Arc<MgmtCmd>) {
    let p = mcmd.params();
    pr_info_ratelimited!(
        "TM fn {:?} received: initiator {}, LUN {}, tag {:#x}",
        p.function,
        mcmd.session().initiator_name(),
        p.lun,
        p.tag
    );
    mcmd.tell();
    match p.function {
        TmFunction::AbortTask => abort_task(mcmd),
        TmFunction::NexusLossSess => abort_session(mcmd),
        TmFunction::TargetReset => target_reset(mcmd),
        TmFunction::NexusReset => nexus_reset(mcmd),
        TmFunction::QueryTask | TmFunction::QueryTaskSet => query(mcmd),
        TmFunction::AbortTaskSet
        | TmFunction::ClearTaskSet
        | TmFunction::ClearAca
        | TmFunction::LunReset
        | TmFunction::PrAbortAll => with_lun(mcmd),
    }
    mcmd.dec_done();
}

fn with_lun(mcmd: &Arc<MgmtCmd>) {
    let Some(tgt_dev) = mcmd.session().lookup_tgt_dev(mcmd.params().lun) else {
        mcmd.set_status(TmStatus::LunNotExist);
        return;
    };
    match mcmd.params().function {
        TmFunction::ClearTaskSet if tgt_dev.dev.control.tst.load(Ordering::Relaxed) == 0 => {
            clear_task_set(mcmd, &tgt_dev);
        }
        // With TST=1 the task set is that of this nexus.
        TmFunction::AbortTaskSet | TmFunction::ClearTaskSet => {
            abort_task_set(mcmd, &tgt_dev, Abort::ThisNexus);
            unblock_aborted(&tgt_dev.dev);
        }
        TmFunction::LunReset => lun_reset(mcmd, &tgt_dev.dev),
        TmFunction::ClearAca => {
            if !clear_aca(&tgt_dev, false, None) {
                mcmd.set_status(TmStatus::Rejected);
            }
            unblock_aborted(&tgt_dev.dev);
            return;
        }
        TmFunction::PrAbortAll => pr_abort_all(mcmd, &tgt_dev),
        // The others are for no single LUN.
        _ => return,
    }
    mcmd.notify(&tgt_dev);
}

/// Marks the commands of one session that `wanted` picks by LUN. Answers how many.
fn abort_cmds(
    mcmd: &Arc<MgmtCmd>,
    sess: &Arc<Session>,
    abort: Abort,
    wanted: impl Fn(u64) -> bool,
) -> usize {
    // A snapshot suffices: what comes later is younger than the request.
    let cmds = sess.cmds.lock().clone();
    let mut n: usize = 0;
    for shared in cmds {
        let Some((generation, _)) = shared.live() else {
            continue;
        };
        if !wanted(shared.lun.load(Ordering::Acquire)) {
            continue;
        }
        let origin = mcmd.origin.as_ref();
        if origin.is_some_and(|o| o.is_origin(&shared, generation)) {
            continue;
        }
        if abort == Abort::ThisNexus && !is_older(mcmd, shared.tgt_sn.load(Ordering::Acquire)) {
            continue;
        }
        if shared.abort_for(generation, abort, mcmd) {
            n = n.saturating_add(1);
            sess.home.reap(CmdRef { shared, generation });
        }
    }
    if n > 0 {
        sess.init_wait.release_aborted();
        sess.core.copy_mgr.release_aborted();
        sess.core.alua.release_aborted();
    }
    n
}

/// Whether a command is older than the request (RFC 1982 arithmetic on the transport's numbers).
fn is_older(mcmd: &MgmtCmd, tgt_sn: u64) -> bool {
    let (Some(sn), Ok(tgt_sn)) = (mcmd.params().cmd_sn, u32::try_from(tgt_sn)) else {
        return true;
    };
    // The difference as a signed number says which one is behind.
    let diff = i32::from_ne_bytes(tgt_sn.wrapping_sub(sn).to_ne_bytes());
    diff < 0
}

/// Whether the command with the number `tgt_sn` is the one that an ABORT TASK means which has its tag: older, and with the
/// number that the request gives, if it gives one. An immediate command has the number of the next one that is not, which
/// may be the request's own; the request then gives that (RFC 7143 11.5.5).
fn is_named(mcmd: &MgmtCmd, tgt_sn: u64) -> bool {
    let p = mcmd.params();
    let Some(ref_sn) = p.ref_sn else {
        return is_older(mcmd, tgt_sn);
    };
    let same = u64::from(ref_sn) == tgt_sn;
    same || (p.cmd_sn == Some(ref_sn) && is_older(mcmd, tgt_sn))
}

#[doc(alias = "scst_abort_task_set")]
fn abort_task_set(mcmd: &Arc<MgmtCmd>, t: &TgtDev, abort: Abort) -> usize {
    let Some(sess) = t.session() else { return 0 };
    abort_cmds(mcmd, &sess, abort, |lun| lun == t.lun)
}

#[doc(alias = "__scst_find_cmd_by_tag")]
fn find_cmd(sess: &Session, tag: u64) -> Option<CmdRef> {
    sess.cmds.lock().iter().find_map(|c| {
        let (generation, _) = c.live()?;
        let it = c.tag.load(Ordering::Acquire) == tag;
        it.then(|| CmdRef {
            shared: Arc::clone(c),
            generation,
        })
    })
}

impl MgmtCmd {
    /// Tells those who listen.
    #[doc(alias = "scst_event_queue_tm_fn_received")]
    fn tell(&self) {
        let (p, sess) = (self.params(), self.session());
        sess.core.events().tell(|| {
            let mut event = sess.tm_event(tm_code(p.function));
            event.lun = p.lun;
            let mut lun = p.function.is_for_lun().then_some(p.lun);
            if p.function == TmFunction::AbortTask
                && let Some(cmd) = find_cmd(sess, p.tag)
            {
                lun = Some(cmd.shared.lun.load(Ordering::Acquire));
                event.tag = p.tag;
                let [opcode, ..] = &mut event.cdb;
                *opcode = cmd.shared.opcode.load(Ordering::Relaxed);
            }
            if let Some(t) = lun.and_then(|lun| sess.lookup_tgt_dev(lun)) {
                event.device = t.dev.name().to_owned();
            }
            Kind::TmFnReceived(event)
        });
    }
}

#[doc(alias = "scst_abort_task")]
fn abort_task(mcmd: &Arc<MgmtCmd>) {
    let p = mcmd.params();
    let sess = mcmd.session();
    let Some(cmd) = find_cmd(sess, p.tag) else {
        mcmd.set_status(TmStatus::TaskNotExist);
        return;
    };
    let lun = cmd.shared.lun.load(Ordering::Acquire);
    let sn = cmd.shared.tgt_sn.load(Ordering::Acquire);
    if lun != p.lun || !is_named(mcmd, sn) {
        mcmd.set_status(TmStatus::Rejected);
        return;
    }
    if !cmd.shared.abort_for(cmd.generation, Abort::ThisNexus, mcmd) {
        mcmd.set_status(TmStatus::TaskNotExist);
        return;
    }
    sess.home.reap(cmd);
    sess.init_wait.release_aborted();
    sess.core.copy_mgr.release_aborted();
    sess.core.alua.release_aborted();
    if let Some(t) = sess.lookup_tgt_dev(lun) {
        unblock_aborted(&t.dev);
        mcmd.notify(&t);
    }
    unblock_retired(sess);
}

fn tas(dev: &Device) -> bool {
    dev.control.tas.load(Ordering::Relaxed)
}

#[doc(alias = "scst_clear_task_set")]
fn clear_task_set(mcmd: &Arc<MgmtCmd>, this: &TgtDev) {
    abort_task_set(mcmd, this, Abort::ThisNexus);
    let tas = tas(&this.dev);
    let mut hit = Vec::new();
    for t in this.dev.tgt_devs() {
        let other = !std::ptr::eq(&*t, this);
        if other && abort_task_set(mcmd, &t, Abort::OtherNexus { tas }) > 0 {
            hit.push(t);
        }
    }
    unblock_aborted(&this.dev);
    if !tas {
        for t in hit {
            t.check_set_ua(sense::CLEARED_BY_ANOTHER_INI_UA);
        }
    }
}

/// Aborts the commands of a nexus whose registration was preempted.
#[doc(alias = "scst_pr_abort_reg")]
fn pr_abort_all(mcmd: &Arc<MgmtCmd>, t: &Arc<TgtDev>) {
    let own = mcmd.origin.as_ref();
    let abort = if own.is_some_and(|o| o.is_of(mcmd.session())) {
        Abort::ThisNexus
    } else {
        let tas = tas(&t.dev);
        Abort::OtherNexus { tas }
    };
    abort_task_set(mcmd, t, abort);
    if let Some(own) = own.filter(|o| o.clears_aca_of(t)) {
        clear_aca(t, false, Some(own.session()));
    }
    unblock_aborted(&t.dev);
}

/// Aborts everything at the logical unit, blocks it until the answer is sent, and tells every nexus, the one that asked
/// for it too, by a unit attention.
#[doc(alias = "scst_lun_reset")]
fn lun_reset(mcmd: &Arc<MgmtCmd>, dev: &Arc<Device>) {
    dev.block.block_own();
    // A command that is on the device in spite of the block is found among those of its session.
    fence(Ordering::SeqCst);
    mcmd.needs_unblocking.lock().push(Arc::clone(dev));
    reset_device(mcmd, dev);
}

/// Aborts all commands at a device on behalf of this request and sets the reset unit attention.
#[doc(alias = "scst_process_reset")]
fn reset_device(mcmd: &Arc<MgmtCmd>, dev: &Arc<Device>) {
    dev.reset();
    let tas = tas(dev);
    for t in dev.tgt_devs() {
        let same = t.session().is_some_and(|s| Arc::ptr_eq(&s, mcmd.session()));
        let abort = if same {
            Abort::ThisNexus
        } else {
            Abort::OtherNexus { tas }
        };
        abort_task_set(mcmd, &t, abort);
    }
    for t in dev.tgt_devs() {
        clear_aca(&t, true, Some(mcmd.session()));
    }
    unblock_aborted(dev);
    dev.check_set_ua(sense::RESET_UA, None);
}

#[doc(alias = "scst_target_reset")]
fn target_reset(mcmd: &Arc<MgmtCmd>) {
    let mut seen: Vec<Arc<Device>> = Vec::new();
    for t in mcmd.session().tgt_devs() {
        if seen.iter().any(|d| Arc::ptr_eq(d, &t.dev)) {
            continue;
        }
        seen.push(Arc::clone(&t.dev));
        lun_reset(mcmd, &t.dev);
        mcmd.notify(&t);
    }
}

/// Aborts everything of the session and forbids responses: its nexus is gone.
#[doc(alias = "scst_abort_all_nexus_loss_sess")]
fn abort_session(mcmd: &Arc<MgmtCmd>) {
    let sess = mcmd.session();
    abort_cmds(mcmd, sess, Abort::NexusLoss, |_| true);
    for t in sess.tgt_devs() {
        clear_aca(&t, false, None);
        unblock_aborted(&t.dev);
        mcmd.notify(&t);
    }
    unblock_retired(sess);
}

/// The same for commands at LUNs that are gone.
fn unblock_retired(sess: &Session) {
    let retired = sess.retired.lock().clone();
    for t in retired {
        unblock_aborted(&t.dev);
    }
}

/// Aborts everything of the session; its other state goes as with a lost nexus.
fn nexus_reset(mcmd: &Arc<MgmtCmd>) {
    let sess = mcmd.session();
    abort_cmds(mcmd, sess, Abort::ThisNexus, |_| true);
    for t in sess.tgt_devs() {
        clear_aca(&t, false, None);
        unblock_aborted(&t.dev);
        mcmd.notify(&t);
    }
}

/// Looks for one command, or any, of the nexus at a logical unit; what came after the request does not count.
fn query(mcmd: &Arc<MgmtCmd>) {
    let p = mcmd.params();
    let sess = mcmd.session();
    if sess.lookup_tgt_dev(p.lun).is_none() {
        mcmd.set_status(TmStatus::LunNotExist);
        return;
    }
    let any = p.function == TmFunction::QueryTaskSet;
    let found = sess.cmds.lock().iter().any(|c| {
        let wanted = any || c.tag.load(Ordering::Acquire) == p.tag;
        let older = is_older(mcmd, c.tgt_sn.load(Ordering::Acquire));
        wanted && older && c.lun.load(Ordering::Acquire) == p.lun && c.live().is_some()
    });
    if found {
        mcmd.set_status(TmStatus::Succeeded);
    }
}

/// SCST_MCMD_STATE_AFFECTED_CMDS_DONE: no command concerned has effects any more.
#[doc(alias = "scst_mgmt_affected_cmds_done")]
pub(super) fn affected_cmds_done(mcmd: &Arc<MgmtCmd>) {
    let function = mcmd.params().function;
    if matches!(function, TmFunction::NexusLossSess | TmFunction::NexusReset) {
        for t in mcmd.session().tgt_devs() {
            t.dev.reservations.nexus_loss(mcmd.session());
            t.check_set_ua(sense::NEXUS_LOSS_UA);
        }
    }
    let notified = std::mem::take(&mut *mcmd.notified.lock());
    for t in notified {
        t.dev.handler().task_mgmt_fn_done(mcmd, &t);
    }
    if mcmd.origin.is_none() {
        let template = Arc::clone(mcmd.session().tgt().template());
        template.task_mgmt_affected_cmds_done(mcmd);
    }
    mcmd.dec_finish();
}

/// SCST_MCMD_STATE_DONE: all responses of the nexus that come before the answer are sent.
#[doc(alias = "scst_mgmt_cmd_send_done")]
pub(super) fn send_done(mcmd: &Arc<MgmtCmd>) {
    pr_info_ratelimited!(
        "TM fn {:?} finished, status {:?}",
        mcmd.params().function,
        mcmd.status()
    );
    match &mcmd.origin {
        Some(origin) => origin.done_one(),
        None if mcmd.dropped => {}
        None => mcmd.session().home.task_mgmt_fn_done(Arc::clone(mcmd)),
    }
    let blocked = std::mem::take(&mut *mcmd.needs_unblocking.lock());
    for dev in blocked {
        for cmd in dev.block.unblock_own() {
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }
}
