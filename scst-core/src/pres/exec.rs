//! PERSISTENT RESERVE IN and OUT as commands.
//!
//! PERSISTENT RESERVE OUT writes a file, so it runs on a thread. PREEMPT AND ABORT has its aborts done by task
//! management; the command is parked in [`PrAbort`] and goes on when the last of them is through.
//!
//! C source: `scst_persistent_reserve_in_local`, `scst_persistent_reserve_out_local` of `scst/src/scst_local_cmd.c`,
//! `scst_pr_abort_reg`, `scst_cmd_done_pr_preempt` of `scst/src/scst_pres.c`

use super::MAX_REGISTRANTS;
use super::out::{Effect, PrOut, Refusal, action};
use super::tid::MAX_TRANSPORT_ID_LEN;
use crate::cdb::opcodes as op;
use crate::cmd::{Cmd, CmdRef, CmdShared, cmd_done};
use crate::consts::{QueueType, SamStatus};
use crate::mgmt;
use crate::reserve::PrAccess;
use crate::sense;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::sync::SpinLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const SERVICE_ACTION_MASK: u8 = 0x1F;
/// Longest parameter list that is looked at: more registrations there cannot be.
const MAX_PARAMS: usize = 28 + MAX_REGISTRANTS * MAX_TRANSPORT_ID_LEN;

/// The aborts of a PREEMPT AND ABORT, and the command that waits for them.
#[doc(alias = "scst_pr_abort_all_pending_mgmt_cmds_counter")]
#[derive(Debug)]
pub(crate) struct PrAbort {
    origin: CmdRef,
    sess: Arc<Session>,
    /// Whether the ACA of a nexus whose commands are aborted ends with them (SPC-4 5.13.11.5): only a command with the
    /// ACA attribute may do that from a faulted nexus, and only one without from another. DIFFERS: SCST looks again for each
    /// nexus, when the command may have ended its own ACA.
    clears_aca: bool,
    parked: SpinLock<Option<Box<Cmd>>>,
    /// Aborts under way, and one until the command is parked.
    #[doc(alias = "pr_abort_pending_cnt")]
    pending: AtomicU32,
}

impl PrAbort {
    /// Whether this is the command itself, which is not aborted.
    pub(crate) fn is_origin(&self, shared: &Arc<CmdShared>, generation: u32) -> bool {
        self.origin.generation == generation && Arc::ptr_eq(&self.origin.shared, shared)
    }

    /// The session by which the command came.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.sess
    }

    /// Whether the command came by this session.
    pub(crate) fn is_of(&self, sess: &Arc<Session>) -> bool {
        Arc::ptr_eq(&self.sess, sess)
    }

    /// Whether the ACA of this nexus, whose commands are aborted, ends with them.
    pub(crate) fn clears_aca_of(&self, t: &TgtDev) -> bool {
        self.clears_aca && t.order.aca_nexus() == Some(t.nexus)
    }

    /// One abort is through. Context: any.
    pub(crate) fn done_one(&self) {
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            let cmd = self.parked.lock().take();
            if let Some(cmd) = cmd {
                cmd_done(cmd);
            }
        }
    }

    /// The command is to wait for the aborts.
    pub(crate) fn park(self: Arc<Self>, cmd: Box<Cmd>) {
        *self.parked.lock() = Some(cmd);
        self.done_one();
    }
}

/// Whether a command is PREEMPT AND ABORT. Context: any.
pub(crate) fn is_preempt_and_abort(cmd: &Cmd) -> bool {
    cmd.cdb_byte(0) == op::PERSISTENT_RESERVE_OUT
        && cmd.cdb_byte(1) & SERVICE_ACTION_MASK == action::PREEMPT_AND_ABORT
}

/// Whether PERSISTENT RESERVE commands may be executed at the logical unit; the status is set if not.
fn check_access(cmd: &mut Cmd, t: &TgtDev) -> bool {
    match t.dev.reservations.pr_access() {
        PrAccess::Allowed => return true,
        PrAccess::Unsupported => {
            kshim::pr_warn_ratelimited!(
                "Persistent reservation command refused for device {}: it has sessions of a transport without \
                 TransportIDs",
                t.dev.name()
            );
            cmd.set_sense(sense::INVALID_OPCODE);
        }
        PrAccess::Reserved => cmd.set_status(SamStatus::ReservationConflict),
    }
    false
}

/// PERSISTENT RESERVE IN. Context: any.
pub(crate) fn reserve_in(cmd: &mut Cmd) {
    let Some(t) = cmd.tgt_dev().cloned() else {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return;
    };
    if !check_access(cmd, &t) || cmd.bufflen() == 0 {
        return;
    }
    let alloc_len = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    let service_action = cmd.cdb_byte(1) & SERVICE_ACTION_MASK;
    match t.dev.reservations.pr_in(service_action, alloc_len) {
        Some(data) => cmd.fill_response(&data),
        None => cmd.set_invalid_field_in_cdb(1, Some(0)),
    }
}

/// PERSISTENT RESERVE OUT. Answers what the command has to wait for: [`PrAbort::park`] it there. Context: may sleep.
pub(crate) fn reserve_out(cmd: &mut Cmd) -> Option<Arc<PrAbort>> {
    let Some(t) = cmd.tgt_dev().cloned() else {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return None;
    };
    if !check_access(cmd, &t) {
        return None;
    }
    let len = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    if len == 0 {
        // SPC-4 has an error for this; kernel SCST does nothing, and says GOOD.
        return None;
    }
    if len > MAX_PARAMS {
        cmd.set_sense(sense::PARAMETER_LIST_LENGTH_INVALID);
        return None;
    }
    let mut params = vec![0; len];
    let have = len.min(cmd.sg().len());
    let filled = params.get_mut(..have).map(|p| cmd.sg().copy_to_slice(0, p));
    if !matches!(filled, Some(Ok(()))) {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return None;
    }
    let sess = Arc::clone(cmd.session());
    let ports = sess.core.rel_tgt_ids_of_protocol(&sess);
    let out = PrOut {
        nexus: t.reservations.id,
        action: cmd.cdb_byte(1) & SERVICE_ACTION_MASK,
        scope_type: cmd.cdb_byte(2),
        params: &params,
        ports: &ports,
        can_persist: false,
    };
    let mut aborts: Option<Arc<PrAbort>> = None;
    let done = t
        .dev
        .reservations
        .pr_out(t.dev.name(), out, |effect, other| match effect {
            Effect::Ua(_, ua) => other.check_set_ua(ua),
            Effect::Abort(_) => {
                let aborts = aborts.get_or_insert_with(|| {
                    Arc::new(PrAbort {
                        origin: cmd.cmd_ref(),
                        sess: Arc::clone(&sess),
                        clears_aca: (t.order.aca_nexus() == Some(t.nexus))
                            == (cmd.queue_type() == QueueType::Aca),
                        parked: SpinLock::new(None),
                        pending: AtomicU32::new(1),
                    })
                });
                abort(aborts, &t, other);
            }
        });
    if let Err(refusal) = done {
        refuse(cmd, refusal);
    }
    aborts
}

/// Has task management abort what a nexus has at the logical unit.
#[doc(alias = "scst_pr_abort_reg")]
fn abort(aborts: &Arc<PrAbort>, this: &Arc<TgtDev>, other: &Arc<TgtDev>) {
    let Some(sess) = other.session() else { return };
    aborts.pending.fetch_add(1, Ordering::AcqRel);
    mgmt::pr_abort_all(&sess, other.lun, Arc::clone(aborts));
    let tas = this.dev.control.tas.load(Ordering::Relaxed);
    if !Arc::ptr_eq(this, other) && !tas {
        other.check_set_ua(sense::CLEARED_BY_ANOTHER_INI_UA);
    }
}

fn refuse(cmd: &mut Cmd, refusal: Refusal) {
    match refusal {
        Refusal::Conflict => cmd.set_status(SamStatus::ReservationConflict),
        Refusal::Sense(s) => cmd.set_sense(s),
        Refusal::Cdb { byte, bit } => cmd.set_invalid_field_in_cdb(byte, bit),
        Refusal::Parm { byte, bit } => cmd.set_invalid_field_in_parm_list(byte, bit),
    }
}
