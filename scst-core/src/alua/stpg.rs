//! SET TARGET PORT GROUPS (SPC-4 6.45): an initiator asks for states, and somebody outside brings them about.
//!
//! The command lets no other onto its device (it is strictly serialized); the other devices of the group are blocked
//! until they are drained. Then an event asks somebody to do what there is to do, to set the states, and to say when that is
//! through ([`crate::event::Kind::StpgUserInvoke`]).
//!
//! Two of these commands at two devices of a group would wait for each other. So they pass a [`Gate`] one by one, before they
//! enter their device. Nor does one of them wait for the groups' lock without end: who changes a state holds it while a device
//! is drained, perhaps of this very command, which then ends with ASYMMETRIC ACCESS STATE TRANSITION.
//!
//! C source: `scst_exec_set_tpgs` of `scst/src/scst_local_cmd.c`, `scst_tg_set_group_info`, `scst_emit_stpg_event`,
//! `scst_event_stpg_notify_fn` of `scst/src/scst_tg.c`, `scst_stpg_del_unblock_next` of `scst/src/scst_lib.c`

use super::TgState;
use super::groups::{DevGroup, unblock};
use crate::cdb::bytes::{be16_at, u8_at};
use crate::cdb::opcodes as op;
use crate::cmd::{Cmd, cmd_done};
use crate::core::Core;
use crate::device::Device;
use crate::event::{Event, Kind};
use crate::sense::{self, Sense};
use kshim::error::code;
use kshim::sync::SpinLock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

/// Most descriptors in a parameter list.
const MAX_DESCRIPTORS: usize = 64;
/// Length of the parameter list's header, and of each descriptor.
const DESCRIPTOR_LEN: usize = 4;

/// Whether a command is SET TARGET PORT GROUPS.
pub(crate) fn is_stpg(cdb: &[u8]) -> bool {
    u8_at(cdb, 0) == op::MAINTENANCE_OUT && u8_at(cdb, 1) & 0x1F == op::MO_SET_TARGET_PGS
}

/// One target port group that is to change.
#[doc(alias = "scst_event_stpg_descr")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StpgGroup {
    /// Name of the device group.
    pub dg: String,
    /// Name of the target port group.
    pub tg: String,
    /// Its identifier.
    pub id: u16,
    /// Its state now.
    pub prev_state: TgState,
    /// The state asked for.
    pub new_state: TgState,
}

impl StpgGroup {
    /// Whether the group has the state, but not for the device.
    fn is_again(&self) -> bool {
        self.prev_state == self.new_state
    }
}

/// A request under way.
#[doc(alias = "scst_stpg_wait")]
#[derive(Debug)]
pub(crate) struct Stpg {
    core: Weak<Core>,
    dev: Arc<Device>,
    tag: u64,
    groups: Vec<StpgGroup>,
    parked: SpinLock<Option<Box<Cmd>>>,
    /// Devices that are not drained yet, and one until the command is parked.
    #[doc(alias = "stpg_wait_left")]
    left: AtomicU32,
}

/// How a command begins.
pub(crate) enum Begun {
    /// It has its result.
    Completed,
    /// [`Stpg::park`] it.
    Waits(Arc<Stpg>),
}

impl Stpg {
    /// The command is to wait for the handler.
    pub(crate) fn park(self: &Arc<Self>, cmd: Box<Cmd>) {
        *self.parked.lock() = Some(cmd);
        self.drained_one();
    }

    fn drained_one(self: &Arc<Self>) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(core) = self.core.upgrade()
        {
            Arc::clone(self).invoke(&core);
        }
    }

    fn invoke(self: Arc<Self>, core: &Core) {
        let event = Event::of(&Kind::StpgUserInvoke {
            tag: self.tag,
            device: self.dev.name().to_owned(),
            groups: self.groups.clone(),
        });
        match event {
            Ok(event) => {
                let done = move |status| self.finish(status);
                core.events().ask(event, None, Box::new(done));
            }
            Err(e) => self.finish(e.errno().saturating_neg()),
        }
    }

    /// The request is carried out (0), or could not be (a negative errno, or whatever the program said). The command succeeds
    /// if none of the groups is in its former state, and the device can serve in the new one. Context: may sleep.
    #[doc(alias = "scst_event_stpg_notify_fn")]
    fn finish(&self, status: i32) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let (ok, blocked) = core.alua.with_groups(|groups| {
            let mut dg = groups.iter_mut().find(|g| g.has_dev(&self.dev));
            if let Some(dg) = &mut dg {
                // What sets a state may leave out what is so: as scstadmin does.
                for g in self.groups.iter().filter(|g| status == 0 && g.is_again()) {
                    dg.set_again(g.id, g.new_state);
                }
            }
            // Under the lock: whoever changes a state next waits for the command to leave.
            self.dev.stpg_under_way.store(false, Ordering::Release);
            let Some(dg) = dg else {
                return (false, Vec::new());
            };
            dg.stpg_by = None;
            let blocked = std::mem::take(&mut dg.stpg_blocked);
            let done = |g| has_changed(dg, g) && !needs_activation(dg, &self.dev, g);
            (status == 0 && self.groups.iter().all(done), blocked)
        });
        unblock(blocked);
        let Some(mut cmd) = self.parked.lock().take() else {
            return;
        };
        if !ok {
            let why = if status == code::ENOENT.errno().saturating_neg() {
                "nobody carries it out".to_owned()
            } else {
                format!("status {status}")
            };
            kshim::pr_err_ratelimited!(
                "SET TARGET PORT GROUPS for device {} failed: {why}",
                self.dev.name()
            );
            cmd.set_sense(sense::SET_TARGET_PGS_FAILED);
        }
        cmd_done(cmd);
    }
}

fn has_changed(dg: &DevGroup, wanted: &StpgGroup) -> bool {
    let tg = dg.tgs.iter().find(|g| g.id == wanted.id);
    tg.is_some_and(|g| wanted.is_again() || g.state != wanted.prev_state)
}

/// Whether a device that is to serve in the state asked for does not, as another host has it, or it could not be opened.
fn needs_activation(dg: &DevGroup, dev: &Device, wanted: &StpgGroup) -> bool {
    let here = |id| dg.tgs.iter().any(|g| g.id == id && !g.is_remote());
    wanted.new_state.is_active() && here(wanted.id) && dev.handler().needs_activation()
}

/// SET TARGET PORT GROUPS. Context: may sleep.
#[doc(alias = "scst_tg_set_group_info")]
pub(crate) fn begin(cmd: &mut Cmd) -> Begun {
    let Some(dev) = cmd.device().map(Arc::clone) else {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return Begun::Completed;
    };
    if !dev.expl_alua.load(Ordering::Relaxed) {
        cmd.set_invalid_field_in_cdb(1, Some(0));
        return Begun::Completed;
    }
    let len = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    if len == 0 {
        return Begun::Completed;
    }
    if len.saturating_sub(DESCRIPTOR_LEN) / DESCRIPTOR_LEN > MAX_DESCRIPTORS {
        cmd.set_invalid_field_in_cdb(6, Some(0));
        return Begun::Completed;
    }
    let mut list = vec![0; len];
    let have = len.min(cmd.sg().len());
    let filled = list.get_mut(..have).map(|p| cmd.sg().copy_to_slice(0, p));
    if !matches!(filled, Some(Ok(()))) {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return Begun::Completed;
    }
    let core = Arc::clone(&cmd.session().core);
    let begun = core.alua.with_groups_soon(|groups| {
        let dg = groups.iter_mut().find(|g| g.has_dev(&dev));
        let dg = dg.ok_or(sense::SET_TARGET_PGS_FAILED)?;
        let wanted = wanted(dg, &dev, &list)?;
        Ok(start(&core, cmd, &dev, dg, wanted))
    });
    match begun.unwrap_or(Err(sense::ALUA_TRANSITIONING)) {
        Ok(Some(stpg)) => Begun::Waits(stpg),
        Ok(None) => Begun::Completed,
        Err(s) => {
            cmd.set_sense(s);
            Begun::Completed
        }
    }
}

/// What a parameter list asks for, without what is so already. A group that is active, but not for a device that another host has
/// taken, is to be made active again.
fn wanted(dg: &DevGroup, dev: &Device, list: &[u8]) -> Result<Vec<StpgGroup>, Sense> {
    let mut wanted = Vec::new();
    let descriptors = list.get(DESCRIPTOR_LEN..).unwrap_or_default();
    for d in descriptors.chunks_exact(DESCRIPTOR_LEN) {
        let failed = sense::SET_TARGET_PGS_FAILED;
        let state = TgState::from_request(u8_at(d, 0) & 0x1F).ok_or(failed)?;
        let id = be16_at(d, 2);
        let tg = dg.tgs.iter().find(|g| id != 0 && g.id == id);
        let tg = tg.ok_or(failed)?;
        if tg.state == TgState::Transitioning {
            return Err(sense::ALUA_TRANSITIONING);
        }
        let asked = StpgGroup {
            dg: dg.name.clone(),
            tg: tg.name.clone(),
            id,
            prev_state: tg.state,
            new_state: state,
        };
        if tg.state != state || needs_activation(dg, dev, &asked) {
            wanted.push(asked);
        }
    }
    Ok(wanted)
}

/// Blocks the other devices of the group. `None` if there is nothing to do.
#[doc(alias = "scst_emit_stpg_event")]
fn start(
    core: &Arc<Core>,
    cmd: &Cmd,
    dev: &Arc<Device>,
    dg: &mut DevGroup,
    groups: Vec<StpgGroup>,
) -> Option<Arc<Stpg>> {
    if groups.is_empty() {
        return None;
    }
    let sess = cmd.session();
    let port = sess.tgt().rel_tgt_id.load(Ordering::Relaxed);
    dg.stpg_by = Some((port, sess.transport_id().cloned()));
    dev.stpg_under_way.store(true, Ordering::Release);
    let others = dg.devs.iter().filter(|d| !Arc::ptr_eq(d, dev));
    dg.stpg_blocked = others.cloned().collect();
    let left = u32::try_from(dg.stpg_blocked.len()).unwrap_or(u32::MAX);
    let stpg = Arc::new(Stpg {
        core: Arc::downgrade(core),
        dev: Arc::clone(dev),
        tag: cmd.tag(),
        groups,
        parked: SpinLock::new(None),
        left: AtomicU32::new(left.saturating_add(1)),
    });
    for other in &dg.stpg_blocked {
        let waits = Arc::clone(&stpg);
        other
            .block
            .block(Some(Box::new(move || waits.drained_one())));
    }
    Some(stpg)
}

/// Lets one SET TARGET PORT GROUPS at a time onto the devices.
#[derive(Default)]
pub(crate) struct Gate {
    state: SpinLock<GateState>,
}

#[derive(Default)]
struct GateState {
    busy: bool,
    waiting: VecDeque<Box<Cmd>>,
}

impl Gate {
    /// Takes the command through, or keeps it. One that is aborted is not kept. Context: any.
    pub(crate) fn enter(&self, mut cmd: Box<Cmd>) -> Option<Box<Cmd>> {
        if cmd.marks.in_stpg_gate {
            return Some(cmd);
        }
        let mut state = self.state.lock();
        // Whoever aborts it looks for it here afterwards.
        if cmd.is_aborted() {
            return Some(cmd);
        }
        if state.busy {
            state.waiting.push_back(cmd);
            return None;
        }
        state.busy = true;
        cmd.marks.in_stpg_gate = true;
        Some(cmd)
    }

    /// The command that had gone through is over. Context: any.
    #[doc(alias = "scst_stpg_del_unblock_next")]
    #[cold]
    pub(crate) fn leave(&self) {
        let next = {
            let mut state = self.state.lock();
            let next = state.waiting.pop_front();
            state.busy = next.is_some();
            next
        };
        if let Some(mut cmd) = next {
            cmd.marks.in_stpg_gate = true;
            let _ = cmd.go_home();
        }
    }

    pub(super) fn release_aborted(&self) {
        let aborted = {
            let mut state = self.state.lock();
            let all = std::mem::take(&mut state.waiting);
            let (aborted, keep): (VecDeque<_>, VecDeque<_>) =
                all.into_iter().partition(|c| c.is_aborted());
            state.waiting = keep;
            aborted
        };
        for cmd in aborted {
            let _ = cmd.go_home();
        }
    }
}
