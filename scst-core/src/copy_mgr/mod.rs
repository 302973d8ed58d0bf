//! The copy manager: EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 5.17).
//!
//! An EXTENDED COPY names devices by their designators of VPD page 83h, wherever the initiator may reach them, and lists
//! segments to copy from one to another. Its way is that of any command, with three differences:
//!
//! * *Before execution* (TGT_PRE_EXEC) its parameter list is parsed into a `Copy`.
//! * *Device blocking* lets it onto all devices that take part, one after the other in the order of their addresses; on
//!   each it claims the blocks that it reads or writes ([`crate::overlap`]). It waits on a device while it holds those
//!   before it. That ends in no circle: whoever waits, waits for somebody on the same device, and who is there either
//!   runs or waits on a device with a higher address.
//! * *Execution* happens on a thread of the copy manager's own pool, so that a long copy keeps no thread of a device
//!   from other commands. There is no command for each piece: the blocks are read and written through
//!   [`crate::dev_type::DevHandler::read_blocks`] and `write_blocks`, one piece of at most 512 KiB at a time, and with
//!   [`crate::dev_type::DevHandler::ext_copy_remap`] where the devices can do without. The checks that SCST's internal commands
//!   pass are made for each segment: reservations of the devices (of anybody: the copy manager holds none), and their write
//!   protection. What is busy or reserved is tried again every second for half a minute, as in SCST.
//!
//! `copy_manager_tgt` is a target without sessions. Its LUN map says which devices take part; a device is put there
//! when it is registered ([`CopyManager::auto_cm_assignment`]).
//!
//! DIFFERS: SCST has up to 32 pieces in flight. DIFFERS: a segment whose destination overlaps with its own source is
//! copied in the order that keeps the data; in SCST the result is anybody's guess. DIFFERS: designators are looked up in
//! the devices as they are, not in a copy made when the device was registered.
//!
//! # Locks
//!
//! `waiting` is taken alone. The list identifiers of a session are behind a spin lock of their own, taken alone too.
//!
//! C source: `scst/src/scst_copy_mgr.c`
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

mod exec;
mod find;
mod list_id;
mod params;

pub(crate) use exec::exec;
pub(crate) use list_id::{ListIds, receive_copy_results};

use crate::acg::AcgDev;
use crate::blocking::{BlockTicket, Class, Enter, Place};
use crate::cmd::{Cmd, CmdThreads, ExecCx};
use crate::consts::{TYPE_DISK, TYPE_ROM};
use crate::core::Core;
use crate::device::Device;
use crate::lun::Lun;
use crate::overlap::{BlockRange, Claim};
use crate::parking::Released;
use crate::session::Session;
use crate::template::TgtTemplate;
use crate::tgt::Tgt;
use find::Finder;
use kshim::sync::SpinLock;
use kshim::time::{Delta, Instant};
use list_id::ListId;
use params::{LIST_MAX, ListIdUsage, Refusal, Segment};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The driver's name.
pub const DRIVER_NAME: &str = "copy_manager";
/// The target's name.
#[doc(alias = "SCST_CM_NAME")]
pub const TARGET_NAME: &str = "copy_manager_tgt";
/// Copies that can be under way at once; more wait for a thread.
const MAX_COPIES: usize = 16;

/// The time in so many seconds.
fn in_secs(secs: i64) -> Instant {
    let ns = Delta::from_secs(secs).as_nanos();
    Instant::from_nanos(Instant::now().as_nanos().saturating_add(ns))
}

struct Template;

impl TgtTemplate for Template {
    fn name(&self) -> &'static str {
        DRIVER_NAME
    }
    fn scsi_transport_version(&self) -> u16 {
        0
    }
    fn close_session(&self, _sess: &Arc<Session>) {}
}

/// The copy manager of a core.
pub struct CopyManager {
    tgt: Arc<Tgt>,
    pub(crate) threads: Arc<CmdThreads>,
    /// Whether copies may use devices that their initiator has no LUN of.
    pub allow_not_connected_copy: AtomicBool,
    /// Whether devices take part from their registration on.
    pub auto_cm_assignment: AtomicBool,
    /// Devices at which copies wait to be let in, for task management.
    waiting: SpinLock<Vec<Arc<Device>>>,
}

impl std::fmt::Debug for CopyManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyManager").finish_non_exhaustive()
    }
}

impl CopyManager {
    pub(crate) fn new(main_threads: &Arc<CmdThreads>) -> Self {
        Self {
            tgt: Tgt::new(TARGET_NAME, Arc::new(Template), 0, None),
            threads: CmdThreads::new("copy_mgr", MAX_COPIES, main_threads),
            allow_not_connected_copy: AtomicBool::new(false),
            auto_cm_assignment: AtomicBool::new(true),
            waiting: SpinLock::new(Vec::new()),
        }
    }

    /// Its target, whose LUN map says which devices take part. Context: any.
    pub fn tgt(&self) -> &Arc<Tgt> {
        &self.tgt
    }

    /// A device is new. Answers the LUN that it gets. Under the configuration lock.
    #[doc(alias = "scst_cm_on_dev_register")]
    pub(crate) fn on_dev_register(&self, dev: &Arc<Device>) -> Option<(u64, AcgDev)> {
        if !self.auto_cm_assignment.load(Ordering::Relaxed)
            || !matches!(dev.handler().type_code(), TYPE_DISK | TYPE_ROM)
            // DIFFERS: SCST copies protection information.
            || dev.handler().has_protection()
        {
            return None;
        }
        let mut acgs = self.tgt.acgs.lock();
        let acg = acgs.first_mut()?;
        let free = (0u64..)
            .take_while(|lun| Lun::new(*lun).is_some())
            .find(|lun| !acg.luns.contains_key(lun))?;
        let entry = AcgDev {
            dev: Arc::clone(dev),
            read_only: false,
        };
        acg.luns.insert(free, entry.clone());
        Some((free, entry))
    }

    /// Whether a device takes part. Context: any.
    pub(crate) fn has(&self, dev: &Arc<Device>) -> bool {
        let acgs = self.tgt.acgs.lock();
        let mut luns = acgs.iter().flat_map(|a| a.luns.values());
        luns.any(|d| Arc::ptr_eq(&d.dev, dev))
    }

    /// Sends copies home that are aborted and wait for devices. The caller has marked them before. Context: any.
    #[doc(alias = "scst_cm_abort_ec_cmd")]
    pub(crate) fn release_aborted(&self) {
        let devices = self.waiting.lock().clone();
        for dev in devices {
            let blocked = dev.block.take_blocked(|c| c.is_aborted());
            for cmd in blocked.taken.into_iter().chain(blocked.released) {
                let _ = cmd.go_home();
            }
        }
    }

    fn waits_no_more(&self, dev: &Arc<Device>) {
        let mut all = self.waiting.lock();
        if let Some(at) = all.iter().position(|d| Arc::ptr_eq(d, dev)) {
            all.swap_remove(at);
        }
    }
}

impl Core {
    /// The copy manager. Context: any.
    pub fn copy_manager(&self) -> &CopyManager {
        &self.copy_mgr
    }
}

/// A device that takes part in a copy.
#[derive(Debug)]
struct Involved {
    dev: Arc<Device>,
    /// On the device once [`Copy::entered`] is beyond it.
    ticket: BlockTicket,
}

/// What an EXTENDED COPY is to do.
#[doc(alias = "scst_cm_ec_cmd_priv")]
#[derive(Debug)]
pub(crate) struct Copy {
    segments: Vec<Segment<Arc<Device>>>,
    /// In the order of their addresses.
    #[doc(alias = "cm_sorted_devs_list")]
    devices: Vec<Involved>,
    /// How many of them it is on.
    entered: usize,
    /// Whether it waits at the next one, or has been let in there and does not know it yet.
    waits: bool,
    list_id: Option<ListId>,
}

impl Copy {
    fn new(
        own: &Arc<Device>,
        segments: Vec<Segment<Arc<Device>>>,
        list_id: Option<ListId>,
    ) -> Self {
        let mut devices = vec![Arc::clone(own)];
        for s in &segments {
            devices.extend([&s.src, &s.dst].map(|c| Arc::clone(&c.dev)));
        }
        devices.sort_by_key(|d| Arc::as_ptr(d).addr());
        devices.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let involved = |dev| Involved {
            dev,
            ticket: BlockTicket::default(),
        };
        Self {
            segments,
            devices: devices.into_iter().map(involved).collect(),
            entered: 0,
            waits: false,
            list_id,
        }
    }

    /// What the copy touches of the device that it asks for.
    #[doc(alias = "scst_cm_ec_cmd_overlap")]
    pub(crate) fn claim(&self) -> Claim {
        let Some(next) = self.devices.get(self.entered) else {
            return Claim::Nothing;
        };
        let mut ranges = Vec::new();
        for s in &self.segments {
            for (end, lba) in [(&s.src, s.src_lba), (&s.dst, s.dst_lba)] {
                if Arc::ptr_eq(&end.dev, &next.dev) {
                    let blocks = s.len.checked_shr(u32::from(end.block_shift)).unwrap_or(0);
                    ranges.push(BlockRange { lba, blocks });
                }
            }
        }
        Claim::Ranges(ranges.into())
    }
}

/// Parses the parameter list of an EXTENDED COPY. Answers whether the command goes on; else it has its sense.
/// Context: reactor.
#[doc(alias = "scst_cm_parse_descriptors")]
pub(crate) fn parse(cmd: &mut Cmd) -> bool {
    let Some(own) = cmd.device().map(Arc::clone) else {
        return true;
    };
    let bufflen = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    let len = bufflen.min(cmd.sg().len());
    if len == 0 {
        return true;
    }
    let mut list = vec![0; len.min(LIST_MAX)];
    let copied = cmd.sg().copy_to_slice(0, &mut list);
    match copied.map_err(|_| Refusal::Sense(crate::sense::INTERNAL_FAILURE)) {
        Ok(()) => {}
        Err(refusal) => return refuse(cmd, refusal, None),
    }
    let list_id = match params::list_id(&list, len) {
        Ok(ListIdUsage::None) => None,
        Ok(ListIdUsage::Kept(id)) => match cmd.session().list_ids.begin(id, Instant::now()) {
            Ok(id) => Some(id),
            Err(s) => return refuse(cmd, s.into(), None),
        },
        Err(refusal) => return refuse(cmd, refusal, None),
    };
    let finder = Finder::new(cmd.session());
    match params::parse(&list, len, &finder) {
        Ok(None) => true,
        Ok(Some(segments)) => {
            cmd.copy = Some(Box::new(Copy::new(&own, segments, list_id)));
            true
        }
        Err(refusal) => refuse(cmd, refusal, list_id.as_ref()),
    }
}

fn refuse(cmd: &mut Cmd, refusal: Refusal, list_id: Option<&ListId>) -> bool {
    match refusal {
        Refusal::Cdb { byte } => cmd.set_invalid_field_in_cdb(byte, None),
        Refusal::Parms { byte, bit } => cmd.set_invalid_field_in_parm_list(byte, bit),
        Refusal::Sense(s) => cmd.set_sense(s),
        Refusal::Segment {
            asc,
            ascq,
            segment,
            byte,
        } => {
            exec::set_segment_sense(cmd, (asc, ascq), segment, 0xA0, byte);
            // Kept, for FAILED SEGMENT DETAILS.
            if let Some(id) = list_id {
                id.set_result(cmd.status(), cmd.sense());
            }
        }
    }
    false
}

/// Lets a copy onto all its devices; keeps it where it has to wait, from where it comes back here. Context: its home.
#[doc(alias = "scst_cm_check_block_all_devs")]
pub(crate) fn enter_all(mut cmd: Box<Cmd>, place: Place, cx: &mut ExecCx<'_>) -> Option<Box<Cmd>> {
    let core = Arc::clone(&cmd.session().core);
    loop {
        note_entered(&core, &mut cmd);
        let next = cmd.copy.as_mut().and_then(|copy| {
            let dev = Arc::clone(&copy.devices.get(copy.entered)?.dev);
            copy.waits = true;
            Some(dev)
        });
        let Some(dev) = next else { return Some(cmd) };
        // Before it is parked: who aborts it later finds it.
        core.copy_mgr.waiting.lock().push(Arc::clone(&dev));
        match dev.block.enter(cmd, Class::Listed, place) {
            Enter::Go(c) => cmd = c,
            Enter::Queued { released } => {
                cx.make_all_ready(released);
                return None;
            }
        }
    }
}

/// The copy has the ticket of the device that it asked for.
fn note_entered(core: &Core, cmd: &mut Cmd) {
    let ticket = &mut cmd.block_ticket;
    let Some(copy) = cmd.copy.as_mut().filter(|c| c.waits) else {
        return;
    };
    copy.waits = false;
    let Some(d) = copy.devices.get_mut(copy.entered) else {
        return;
    };
    core.copy_mgr.waits_no_more(&d.dev);
    if ticket.is_on_device() {
        d.ticket = std::mem::take(ticket);
        copy.entered = copy.entered.saturating_add(1);
    }
}

/// The copy leaves all devices, those that it waits for too, and is over. Answers who may go on. Context: any.
pub(crate) fn leave_all(cmd: &mut Cmd) -> Released<Box<Cmd>> {
    let core = Arc::clone(&cmd.session().core);
    note_entered(&core, cmd);
    let mut released = Released::new();
    let Some(mut copy) = cmd.copy.take() else {
        return released;
    };
    for d in &mut copy.devices {
        released.append(d.dev.block.leave(&mut d.ticket));
    }
    released
}
