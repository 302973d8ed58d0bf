//! A logical unit.
//!
//! C source: `struct scst_device` of `scst/include/scst.h`, `scst_alloc_device` of `scst/src/scst_lib.c`

use crate::alua::DgView;
use crate::blocking::DevBlock;
use crate::cmd::{Cmd, CmdThreads, ThreadsPoolType};
use crate::consts::DEF_MAX_TGT_DEV_COMMANDS;
use crate::dev_type::DevHandler;
use crate::order::OrderData;
use crate::reserve::Reservations;
use crate::sense::Sense;
use crate::sgv::MemLim;
use crate::sysfs::{Exports, KobjSlot};
use crate::tgt_dev::TgtDev;
use kshim::sync::SpinLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

/// Bits of the Control mode page (SPC-4 7.5.8) that steer the core. The handler owns changing them.
#[derive(Debug)]
pub struct ControlMode {
    /// Task set type: 0 one task set for all nexuses, 1 one per nexus.
    pub tst: AtomicU8,
    /// Queue algorithm modifier: 0 restricted reordering, 1 unrestricted.
    pub queue_alg: AtomicU8,
    /// Queue error management.
    pub qerr: AtomicU8,
    /// Task aborted status.
    pub tas: AtomicBool,
    /// Software write protect.
    pub swp: AtomicBool,
    /// Descriptor format sense data.
    pub d_sense: AtomicBool,
    /// Only task management ends an ACA.
    pub tmf_only: AtomicBool,
    /// Disable protection information check when protect is zero.
    pub dpicz: AtomicBool,
}

impl Default for ControlMode {
    /// SCST's defaults: TST=1, QAM=1, everything else 0.
    fn default() -> Self {
        Self {
            tst: AtomicU8::new(1),
            queue_alg: AtomicU8::new(1),
            qerr: AtomicU8::new(0),
            tas: AtomicBool::new(false),
            swp: AtomicBool::new(false),
            d_sense: AtomicBool::new(false),
            tmf_only: AtomicBool::new(false),
            dpicz: AtomicBool::new(false),
        }
    }
}

/// Whose threads execute the commands of a device that sleep: `threads_num` and `threads_pool_type`.
#[derive(Clone, Debug)]
pub(crate) enum DevPool {
    /// The global ones: `threads_num` 0, or negative (where nothing should sleep).
    Global(Arc<CmdThreads>),
    /// The device's own.
    Shared(Arc<CmdThreads>),
    /// Each nexus has its own, of that many.
    PerNexus(usize, Arc<CmdThreads>),
}

impl DevPool {
    pub(crate) fn new(
        num: i32,
        pool_type: ThreadsPoolType,
        name: &str,
        global: &Arc<CmdThreads>,
    ) -> Self {
        let n = usize::try_from(num).unwrap_or(0);
        match pool_type {
            _ if n == 0 => Self::Global(Arc::clone(global)),
            ThreadsPoolType::Shared => Self::Shared(CmdThreads::new(name, n, global)),
            ThreadsPoolType::PerInitiator => Self::PerNexus(n, Arc::clone(global)),
        }
    }

    /// The pool of a new nexus of the device `name`.
    #[doc(alias = "scst_tgt_dev_setup_threads")]
    pub(crate) fn for_nexus(&self, name: &str) -> Arc<CmdThreads> {
        match self {
            Self::Global(t) | Self::Shared(t) => Arc::clone(t),
            Self::PerNexus(n, global) => CmdThreads::new(name, *n, global),
        }
    }

    /// The nexus goes: its own threads end. Context: may sleep.
    #[doc(alias = "scst_tgt_dev_stop_threads")]
    pub(crate) fn free_nexus(&self, threads: &CmdThreads) {
        if matches!(self, Self::PerNexus(..)) {
            threads.stop();
        }
    }

    /// The device goes: its own threads end. Context: may sleep.
    pub(crate) fn stop(&self) {
        if let Self::Shared(t) = self {
            t.stop();
        }
    }
}

/// A logical unit: what all nexuses share.
#[doc(alias = "scst_device")]
pub struct Device {
    name: String,
    handler: Arc<dyn DevHandler>,
    /// Control mode bits.
    pub control: ControlMode,
    /// NUMA node for the device's memory; -1 for any. Memory comes from where the thread runs; the number is kept for those
    /// who ask.
    #[doc(alias = "dev_numa_node_id")]
    pub numa_node_id: AtomicI32,
    /// Commands one nexus may have here (`max_tgt_dev_commands`).
    pub max_tgt_dev_commands: AtomicU32,
    /// The one task set of a device with TST=0.
    pub(crate) order: Arc<OrderData<Box<Cmd>>>,
    #[doc(alias = "dev_exec_cmd_list")]
    pub(crate) block: DevBlock<Box<Cmd>>,
    #[doc(alias = "dev_tgt_dev_list")]
    pub(crate) tgt_devs: SpinLock<Vec<Weak<TgtDev>>>,
    /// Who executes what sleeps.
    pub(crate) pool: SpinLock<DevPool>,
    /// `threads_num` and `threads_pool_type`, of which `pool` was made.
    pub(crate) pool_params: SpinLock<(i32, ThreadsPoolType)>,
    /// SPC-2 and persistent reservations.
    pub(crate) reservations: Reservations,
    /// The device's group, if it is in one.
    pub(crate) alua: SpinLock<Option<Arc<DgView>>>,
    /// Whether a SET TARGET PORT GROUPS to this device is being carried out.
    pub(crate) stpg_under_way: AtomicBool,
    /// Whether SET TARGET PORT GROUPS is supported (`expl_alua`).
    pub expl_alua: AtomicBool,
    /// Set, under the configuration lock, when the device leaves the configuration.
    pub(crate) unregistered: AtomicBool,
    /// How much memory commands for this device may have (`scst_max_dev_cmd_mem`).
    #[doc(alias = "dev_mem_lim")]
    pub(crate) mem_lim: Arc<MemLim>,
    /// Its directory in the management tree.
    #[doc(alias = "dev_kobj")]
    pub kobj: KobjSlot,
    /// Links to the LUNs that it is.
    #[doc(alias = "dev_exp_kobj")]
    pub(crate) exports: SpinLock<Exports>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("block", &self.block)
            .field("deferred", &self.order.deferred_count())
            .finish_non_exhaustive()
    }
}

impl Device {
    pub(crate) fn new(
        name: &str,
        handler: Arc<dyn DevHandler>,
        pool: DevPool,
        mem_lim: Arc<MemLim>,
    ) -> Self {
        let pool_params = SpinLock::new((handler.threads_num(), handler.threads_pool_type()));
        Self {
            name: name.to_owned(),
            handler,
            control: ControlMode::default(),
            numa_node_id: AtomicI32::new(-1),
            max_tgt_dev_commands: AtomicU32::new(DEF_MAX_TGT_DEV_COMMANDS),
            order: Arc::new(OrderData::new()),
            block: DevBlock::new(),
            tgt_devs: SpinLock::new(Vec::new()),
            pool: SpinLock::new(pool),
            pool_params,
            reservations: Reservations::default(),
            alua: SpinLock::new(None),
            stpg_under_way: AtomicBool::new(false),
            expl_alua: AtomicBool::new(false),
            unregistered: AtomicBool::new(false),
            mem_lim,
            kobj: KobjSlot::default(),
            exports: SpinLock::default(),
        }
    }

    /// The device's name (`virt_name`).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handler's instance.
    #[inline]
    pub fn handler(&self) -> &Arc<dyn DevHandler> {
        &self.handler
    }

    /// All nexuses that see the device now. Context: any.
    pub fn tgt_devs(&self) -> Vec<Arc<TgtDev>> {
        self.tgt_devs
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Queues a unit attention for all nexuses but `except`. Context: any.
    #[doc(alias = "scst_dev_check_set_UA")]
    pub fn check_set_ua(&self, s: Sense, except: Option<&TgtDev>) {
        for t in self.tgt_devs() {
            if except.is_none_or(|e| !std::ptr::eq(e, &*t)) {
                t.check_set_ua(s);
            }
        }
    }

    /// Tells all nexuses of an event, by the transport or by a unit attention. Context: any.
    pub fn gen_aen_or_ua(&self, s: Sense) {
        for t in self.tgt_devs() {
            t.gen_aen_or_ua(s);
        }
    }

    /// The capacity has changed: initiators learn it by 2A/09. Context: any.
    #[doc(alias = "scst_capacity_data_changed")]
    pub fn capacity_data_changed(&self) {
        self.gen_aen_or_ua(crate::sense::CAPACITY_DATA_CHANGED);
    }

    /// What INQUIRY says has changed: initiators learn it by 3F/03. Context: any.
    #[doc(alias = "scst_dev_inquiry_data_changed")]
    pub fn inquiry_data_changed(&self) {
        self.gen_aen_or_ua(crate::sense::INQUIRY_DATA_CHANGED);
    }

    /// Whether no command is anywhere at the device: executing, waiting for its turn, or counted. Exact only while
    /// nothing moves. Context: any.
    pub fn is_quiescent(&self) -> bool {
        self.block.is_idle()
            && self.order.is_idle()
            && self.tgt_devs().iter().all(|t| t.is_quiescent())
    }

    /// Ends one block from outside (the attribute `block`), if there is one, and sends the commands that waited on their way.
    /// Context: any.
    #[doc(alias = "scst_ext_unblock_dev")]
    pub(crate) fn ext_unblock(&self) {
        let Some(released) = self.block.try_unblock() else {
            kshim::pr_warn!("Device {} is not blocked", self.name);
            return;
        };
        for cmd in released {
            let home = Arc::clone(&cmd.session().home);
            home.post(cmd);
        }
    }

    /// What a logical unit reset does to the device's own state: the reservation ends, and SWP.
    pub(crate) fn reset(&self) {
        self.reservations.reset();
        self.control.swp.store(false, Ordering::Relaxed);
    }

    /// Whether the logical unit is write protected for everybody by software (SWP).
    #[inline]
    pub fn is_swp(&self) -> bool {
        self.control.swp.load(Ordering::Relaxed)
    }
}
