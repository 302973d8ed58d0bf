//! Reservations of one logical unit: those of SPC-2 (RESERVE and RELEASE), and the place where the engine of persistent
//! reservations ([`crate::pres`]) meets devices and nexuses.
//!
//! Every command asks whether a reservation of another nexus stops it. The answer depends on the reservations and its
//! nexus alone, so each change works it out for all nexuses: [`NeededFlags`] is the set of CDB table flags that a
//! command must have, one word that is 0 as long as nothing is reserved.
//!
//! # Locks
//!
//! `pr_mutex` (may sleep; one PERSISTENT RESERVE OUT at a time, with its file) outside, `state` (spin) inside. The
//! latter may be held while unit attention queues are locked, and takes no other lock.
//!
//! C source: `scst_reserve_local`, `scst_release_local` of `scst/src/scst_local_cmd.c`, `scst_clear_reservation` of
//! `scst/src/scst_lib.c`

use crate::cdb::CdbFlags;
use crate::cdb::opcodes as op;
use crate::cmd::Cmd;
use crate::consts::SamStatus;
use crate::device::Device;
use crate::pres::{Effect, NexusId, PrFile, PrOut, PrState, Refusal};
use crate::sense;
use crate::session::Session;
use crate::tgt_dev::TgtDev;
use kshim::error::{Result, code};
use kshim::sync::{Mutex, SpinLock, SpinLockGuard};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// How often a PERSISTENT RESERVE OUT is begun anew because a nexus came or went meanwhile; then none may.
const CHANGE_TRIES: u32 = 8;
/// 3RDPTY bit in byte 2 of RESERVE(10) (SPC-2 7.21).
const THIRD_PARTY: u8 = 4;

/// Reservations as the commands of one nexus see them.
#[derive(Debug)]
pub(crate) struct NeededFlags {
    /// Names the nexus to the engine.
    pub(crate) id: NexusId,
    /// [`CdbFlags`] that a command must have; 0 if all pass.
    bits: AtomicU32,
}

impl NeededFlags {
    pub(crate) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NexusId(NEXT.fetch_add(1, Ordering::Relaxed)),
            bits: AtomicU32::new(0),
        })
    }

    /// Whether a command with these flags conflicts with a reservation. One load, for the hot path: whoever was told of
    /// a reservation was told by a response that was sent after the store.
    #[inline]
    pub(crate) fn conflicts(&self, flags: CdbFlags) -> bool {
        let bits = self.bits.load(Ordering::Relaxed);
        bits != 0 && !flags.contains(CdbFlags::from_bits_truncate(bits))
    }
}

#[derive(Debug)]
struct Nexus {
    id: NexusId,
    sess: u64,
    needed: Arc<NeededFlags>,
    tgt_dev: Weak<TgtDev>,
}

#[derive(Debug, Default)]
struct State {
    /// [`Session::id`] of the holder of the SPC-2 reservation.
    #[doc(alias = "reserved_by")]
    spc2: Option<u64>,
    pr: PrState,
    nexuses: Vec<Nexus>,
    /// Nexuses whose transport has no TransportIDs.
    #[doc(alias = "not_pr_supporting_tgt_devs_num")]
    without_tid: usize,
}

impl State {
    /// Works out what commands need, after any change.
    fn publish(&self) {
        for n in &self.nexuses {
            let mut needed = self.pr.required_flags(n.id);
            if self.spc2.is_some_and(|holder| holder != n.sess) {
                needed |= CdbFlags::REG_RESERVE_ALLOWED;
            }
            n.needed.bits.store(needed.bits(), Ordering::Release);
        }
    }

    fn tgt_dev(&self, id: NexusId) -> Option<Arc<TgtDev>> {
        let nexus = self.nexuses.iter().find(|n| n.id == id);
        nexus.and_then(|n| n.tgt_dev.upgrade())
    }
}

/// All reservations of a logical unit.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    #[doc(alias = "dev_pr_mutex")]
    pr_mutex: Mutex<Option<PrFile>>,
    state: SpinLock<State>,
    /// Whether there is a file.
    can_persist: AtomicBool,
    /// The file's name, for those who may not wait for `pr_mutex`.
    file_name: SpinLock<Option<PathBuf>>,
}

/// How PERSISTENT RESERVE commands fare before their service action is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrAccess {
    Allowed,
    /// Some nexus of the logical unit could not be registered, so none can.
    Unsupported,
    /// There is an SPC-2 reservation.
    Reserved,
}

impl Reservations {
    /// Keeps the persistent reservations in a directory, and loads what is there. Errors: those of
    /// [`PrFile::load`]; the device must not be used then. Context: may sleep.
    #[doc(alias = "scst_pr_init_dev")]
    pub(crate) fn open_file(&self, dir: &Path, device: &str) -> Result {
        let file = PrFile::new(dir, device)?;
        let mut slot = self.pr_mutex.lock();
        if let Some(loaded) = file.load()? {
            let mut state = self.state.lock();
            state.pr.replace_with(loaded);
            state.publish();
        }
        *self.file_name.lock() = Some(dir.join(device));
        *slot = Some(file);
        self.can_persist.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Flags that a command needs which comes from a nexus that has reserved and registered nothing. Context: any.
    pub(crate) fn needed_by_stranger(&self) -> CdbFlags {
        let state = self.state.lock();
        // No nexus has this identity.
        let mut needed = state.pr.required_flags(NexusId(0));
        if state.spc2.is_some() {
            needed |= CdbFlags::REG_RESERVE_ALLOWED;
        }
        needed
    }

    /// A nexus begins. Context: any.
    #[doc(alias = "scst_pr_init_tgt_dev")]
    pub(crate) fn attach(&self, t: &Arc<TgtDev>, sess: &Session) {
        let mut state = self.state.lock();
        let id = t.reservations.id;
        match sess.transport_id() {
            Some(tid) => {
                let port = sess.tgt().rel_tgt_id.load(Ordering::Relaxed);
                state.pr.attach(id, tid.clone(), port);
            }
            None => state.without_tid = state.without_tid.saturating_add(1),
        }
        state.nexuses.push(Nexus {
            id,
            sess: sess.id,
            needed: Arc::clone(&t.reservations),
            tgt_dev: Arc::downgrade(t),
        });
        state.publish();
    }

    /// A nexus ends. Its session's SPC-2 reservation goes with the last one. Context: any.
    #[doc(alias = "scst_pr_clear_tgt_dev")]
    pub(crate) fn detach(&self, t: &TgtDev, sess: &Session) {
        let mut state = self.state.lock();
        let before = state.nexuses.len();
        state.nexuses.retain(|n| n.id != t.reservations.id);
        if state.nexuses.len() == before {
            return;
        }
        if sess.transport_id().is_none() {
            state.without_tid = state.without_tid.saturating_sub(1);
        }
        state.pr.detach(t.reservations.id);
        let retained = sess.retained.load(Ordering::Acquire);
        let last = !state.nexuses.iter().any(|n| n.sess == sess.id);
        if state.spc2 == Some(sess.id) && last && !retained {
            state.spc2 = None;
        }
        state.publish();
    }

    /// RESERVE. Answers `false` on conflict. Context: any.
    fn reserve(&self, t: &TgtDev, sess: &Session) -> bool {
        let mut state = self.state.lock();
        if !state.pr.registrants().is_empty() {
            return state.pr.is_crh_case(t.reservations.id);
        }
        if state.spc2.is_some_and(|holder| holder != sess.id) {
            return false;
        }
        state.spc2 = Some(sess.id);
        state.publish();
        true
    }

    /// RELEASE. Answers `false` on conflict. Context: any.
    fn release(&self, t: &TgtDev, sess: &Session) -> bool {
        let mut state = self.state.lock();
        if !state.pr.registrants().is_empty() {
            return state.pr.is_crh_case(t.reservations.id);
        }
        Self::end_spc2(&mut state, |holder| holder == sess.id);
        true
    }

    fn end_spc2(state: &mut State, of: impl FnOnce(u64) -> bool) {
        if state.spc2.is_some_and(of) {
            state.spc2 = None;
            state.publish();
        }
    }

    /// Gives the SPC-2 reservation of a session that has ended to its successor. Context: any.
    pub(crate) fn pass(&self, from: u64, to: &Session) {
        let mut state = self.state.lock();
        if state.spc2 == Some(from) {
            state.spc2 = Some(to.id);
            state.publish();
        }
    }

    /// Ends the SPC-2 reservation that a session left to a successor which has not come. Context: any.
    pub(crate) fn release_retained(&self, of: u64) {
        Self::end_spc2(&mut self.state.lock(), |holder| holder == of);
    }

    /// Ends the SPC-2 reservation of a session whose nexus is lost, unless a successor will have it. Context: any.
    #[doc(alias = "scst_clear_reservation")]
    pub(crate) fn nexus_loss(&self, sess: &Session) {
        if sess.retained.load(Ordering::Acquire) {
            return;
        }
        Self::end_spc2(&mut self.state.lock(), |holder| holder == sess.id);
    }

    /// Ends any SPC-2 reservation: the logical unit was reset. Context: any.
    pub(crate) fn reset(&self) {
        Self::end_spc2(&mut self.state.lock(), |_| true);
    }

    /// Whether PERSISTENT RESERVE commands may be executed. Context: any.
    pub(crate) fn pr_access(&self) -> PrAccess {
        let state = self.state.lock();
        if state.without_tid > 0 {
            PrAccess::Unsupported
        } else if state.spc2.is_some() {
            PrAccess::Reserved
        } else {
            PrAccess::Allowed
        }
    }

    /// PERSISTENT RESERVE IN. `None`: unknown service action. Context: any; waits for nothing that sleeps.
    pub(crate) fn pr_in(&self, service_action: u8, alloc_len: usize) -> Option<Vec<u8>> {
        let can_persist = self.can_persist.load(Ordering::Relaxed);
        let state = self.state.lock();
        state.pr.read(service_action, alloc_len, can_persist)
    }

    /// PERSISTENT RESERVE OUT: changes the state, then calls `effect` for what has to happen to others, then saves.
    /// Context: may sleep.
    pub(crate) fn pr_out(
        &self,
        name: &str,
        mut cmd: PrOut<'_>,
        mut effect: impl FnMut(Effect, &Arc<TgtDev>),
    ) -> Result<(), Refusal> {
        let file = self.pr_mutex.lock();
        cmd.can_persist = file.is_some();
        let (targets, saved) = {
            let (effects, state) = self.change_pr(&cmd)?;
            state.publish();
            let on = |e: &Effect| match e {
                Effect::Ua(id, _) | Effect::Abort(id) => *id,
            };
            let targets = effects.into_iter();
            let targets = targets.filter_map(|e| state.tgt_dev(on(&e)).map(|t| (e, t)));
            (targets.collect::<Vec<_>>(), state.pr.clone())
        };
        for (e, t) in targets {
            effect(e, &t);
        }
        if let Some(file) = &*file
            && let Err(e) = file.save(&saved)
        {
            // As in SCST: an error now would leave the initiator without knowing what holds.
            kshim::pr_err_ratelimited!(
                "Unable to save persistent reservations of device {name}: {e}"
            );
        }
        Ok(())
    }

    /// Carries a PERSISTENT RESERVE OUT out; the state is locked when it has changed. With many registrations and a long
    /// list that takes its time: whoever wants the lock meanwhile, a reactor too, does not wait for it. Under `pr_mutex`.
    fn change_pr(
        &self,
        cmd: &PrOut<'_>,
    ) -> Result<(Vec<Effect>, SpinLockGuard<'_, State>), Refusal> {
        let is_free = |state: &State| match state.spc2 {
            None => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        };
        for _ in 0..CHANGE_TRIES {
            let mut next = {
                let state = self.state.lock();
                is_free(&state)?;
                state.pr.clone()
            };
            let effects = next.out(cmd)?;
            let mut state = self.state.lock();
            is_free(&state)?;
            if state.pr.knows_same_nexuses(&next) {
                state.pr = next;
                return Ok((effects, state));
            }
        }
        let mut state = self.state.lock();
        is_free(&state)?;
        let effects = state.pr.out(cmd)?;
        Ok((effects, state))
    }

    /// The attribute `pr_state`.
    pub(crate) fn pr_state_text(&self) -> String {
        self.state.lock().pr.to_text()
    }

    /// Takes a state over. Errors: `EBUSY`: sessions see the logical unit; `EINVAL`: see [`PrState::from_text`].
    #[doc(alias = "scst_pr_state_store")]
    pub(crate) fn set_pr_state(&self, text: &str) -> Result {
        let new = PrState::from_text(text)?;
        let _serialised = self.pr_mutex.lock();
        let mut state = self.state.lock();
        if !state.nexuses.is_empty() {
            return Err(code::EBUSY);
        }
        let aptpl = state.pr.aptpl();
        state.pr.replace_with(new);
        state.pr.set_aptpl(aptpl);
        Ok(())
    }

    /// Writes the state to the log.
    #[doc(alias = "scst_pr_dump_prs")]
    pub(crate) fn dump_prs(&self, name: &str) {
        let pr = self.state.lock().pr.clone();
        kshim::pr_info!("Persistent reservations for device {name}:");
        if pr.registrants().is_empty() {
            kshim::pr_info!("  No registrants");
        }
        for (i, reg) in pr.registrants().iter().enumerate() {
            let (tid, port, key) = (&reg.transport_id, reg.rel_tgt_id, reg.key);
            let holder = if pr.is_holder(reg) { ", holder" } else { "" };
            kshim::pr_info!("  [{i}] registrant {tid}/{port}, key {key:016x}{holder}");
        }
        match pr.reservation() {
            Some(r) => kshim::pr_info!("Reserved: type {:x}, scope {:x}", r.ty.code(), r.scope),
            None => kshim::pr_info!("Not reserved"),
        }
    }
}

impl Device {
    /// The attribute `pr_state`: registrations and reservation as text. Context: any.
    pub fn pr_state(&self) -> String {
        self.reservations.pr_state_text()
    }

    /// Replaces registrations and reservation by those of a text that [`Self::pr_state`] gave, here or elsewhere.
    ///
    /// # Errors
    ///
    /// `EBUSY`: sessions see the device. `EINVAL`: not such a text.
    ///
    /// Context: may sleep.
    pub fn set_pr_state(&self, text: &str) -> Result {
        self.reservations.set_pr_state(text)
    }

    /// Where they are kept over power loss (the attribute `pr_file_name`). Context: any; waits for nothing that sleeps.
    pub fn pr_file(&self) -> Option<PathBuf> {
        self.reservations.file_name.lock().clone()
    }

    /// Keeps them in another file, and takes over what is in it. Errors: those of reading it; nothing has changed
    /// then. Context: may sleep.
    #[doc(alias = "scst_pr_set_file_name")]
    pub(crate) fn set_pr_file(&self, path: &Path) -> Result {
        let dir = path.parent().ok_or(code::EINVAL)?;
        let name = path.file_name().and_then(|n| n.to_str());
        self.reservations.open_file(dir, name.ok_or(code::EINVAL)?)
    }

    /// Writes registrations and reservation to the log (the attribute `dump_prs`). Context: any.
    pub fn dump_prs(&self) {
        self.reservations.dump_prs(self.name());
    }
}

/// RESERVE and RELEASE (SPC-2 7.21, 7.18): the whole logical unit, for the session. That another session holds the
/// reservation is no error of RELEASE.
#[doc(alias = "scst_reserve_local")]
#[doc(alias = "scst_release_local")]
pub(crate) fn exec(cmd: &mut Cmd) {
    let opcode = cmd.cdb_byte(0);
    if opcode == op::RESERVE_10 && cmd.cdb_byte(2) & (1 << THIRD_PARTY) != 0 {
        cmd.set_invalid_field_in_cdb(2, Some(THIRD_PARTY));
        return;
    }
    let Some(t) = cmd.tgt_dev() else {
        cmd.set_sense(sense::INTERNAL_FAILURE);
        return;
    };
    let done = if matches!(opcode, op::RESERVE_6 | op::RESERVE_10) {
        t.dev.reservations.reserve(t, cmd.session())
    } else {
        t.dev.reservations.release(t, cmd.session())
    };
    if !done {
        cmd.set_status(SamStatus::ReservationConflict);
    }
}
