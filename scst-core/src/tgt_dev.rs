//! An I_T_L nexus: one logical unit as one session sees it.
//!
//! C source: `struct scst_tgt_dev` of `scst/include/scst.h`, `scst_alloc_add_tgt_dev` of `scst/src/scst_lib.c`

use crate::cmd::{Cmd, CmdThreads};
use crate::device::Device;
use crate::order::{NexusId, OrderData};
use crate::reserve::NeededFlags;
use crate::sense::Sense;
use crate::session::Session;
use crate::sysfs::KobjSlot;
use crate::ua::{UaPlace, UaQueue};
use kshim::sync::SpinLock;
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// In the count of commands: the nexus waits for the last one.
const RETIRED: u32 = 1 << 31;

static NEXT_NEXUS: AtomicU64 = AtomicU64::new(1);

/// One logical unit as one session sees it.
#[doc(alias = "scst_tgt_dev")]
pub struct TgtDev {
    /// The LUN by which the session addresses it.
    pub lun: u64,
    /// The logical unit.
    pub dev: Arc<Device>,
    pub(crate) sess: Weak<Session>,
    /// The task set: this nexus' own (TST=1) or the device's (TST=0).
    #[doc(alias = "curr_order_data")]
    pub(crate) order: Arc<OrderData<Box<Cmd>>>,
    /// The nexus' name in its task set.
    pub(crate) nexus: NexusId,
    pub(crate) ua: UaQueue,
    /// What reservations ask of commands.
    pub(crate) reservations: Arc<NeededFlags>,
    #[doc(alias = "tgt_dev_cmd_count")]
    pub(crate) cmd_count: AtomicU32,
    /// Whether the LUN was added read-only.
    #[doc(alias = "acg_dev_rd_only")]
    pub(crate) acg_rd_only: bool,
    #[doc(alias = "tgt_dev_rd_only")]
    pub(crate) rd_only: AtomicBool,
    /// What the port group's state lets through; 0 for everything.
    alua_filter: AtomicU8,
    /// `black_hole` of the group; 0 for none.
    #[doc(alias = "SCST_TGT_DEV_BLACK_HOLE")]
    black_hole: AtomicU8,
    #[doc(alias = "active_cmd_threads")]
    pub(crate) threads: SpinLock<Arc<CmdThreads>>,
    /// What the device's handler keeps for the nexus.
    pub(crate) dh_priv: SpinLock<Option<Box<dyn Any + Send>>>,
    /// Its directory in the management tree, below the session's.
    #[doc(alias = "tgt_dev_kobj")]
    pub kobj: KobjSlot,
}

impl std::fmt::Debug for TgtDev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TgtDev")
            .field("lun", &self.lun)
            .field("dev", &self.dev.name())
            .finish_non_exhaustive()
    }
}

impl TgtDev {
    pub(crate) fn new(lun: u64, dev: Arc<Device>, sess: Weak<Session>, rd_only: bool) -> Self {
        let threads = dev.pool.lock().for_nexus(dev.name());
        let order = if dev.control.tst.load(Ordering::Relaxed) == 0 {
            Arc::clone(&dev.order)
        } else {
            Arc::new(OrderData::new())
        };
        Self {
            lun,
            dev,
            sess,
            order,
            nexus: NexusId(NEXT_NEXUS.fetch_add(1, Ordering::Relaxed)),
            ua: UaQueue::new(),
            reservations: NeededFlags::new(),
            cmd_count: AtomicU32::new(0),
            acg_rd_only: rd_only,
            rd_only: AtomicBool::new(rd_only),
            alua_filter: AtomicU8::new(0),
            black_hole: AtomicU8::new(0),
            threads: SpinLock::new(threads),
            dh_priv: SpinLock::default(),
            kobj: KobjSlot::default(),
        }
    }

    /// The session, unless it is gone.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.sess.upgrade()
    }

    /// Commands between LUN translation and their end.
    #[inline]
    pub fn active_commands(&self) -> u32 {
        self.cmd_count.load(Ordering::Relaxed) & !RETIRED
    }

    /// A command comes; answers how many there were before. In the read section in which the nexus was looked up.
    #[inline]
    pub(crate) fn count_cmd(&self) -> u32 {
        self.cmd_count.fetch_add(1, Ordering::Relaxed)
    }

    /// A command is over. Answers whether somebody waits for that ([`Self::retire`]).
    #[inline]
    #[must_use]
    pub(crate) fn uncount_cmd(&self) -> bool {
        self.cmd_count.fetch_sub(1, Ordering::Release) == RETIRED | 1
    }

    /// No command comes any more: the LUN is gone, and a grace period over. From now on the last one is told.
    pub(crate) fn retire(&self) {
        self.cmd_count.fetch_or(RETIRED, Ordering::AcqRel);
    }

    /// Whether the LUN is gone.
    #[inline]
    pub(crate) fn is_retired(&self) -> bool {
        self.cmd_count.load(Ordering::Relaxed) & RETIRED != 0
    }

    /// What the port group's state lets through.
    #[inline]
    pub(crate) fn alua_filter(&self) -> u8 {
        self.alua_filter.load(Ordering::Relaxed)
    }

    pub(crate) fn set_alua_filter(&self, filter: u8) {
        self.alua_filter.store(filter, Ordering::Relaxed);
    }

    /// The group's `black_hole`.
    #[inline]
    pub(crate) fn black_hole(&self) -> u8 {
        self.black_hole.load(Ordering::Relaxed)
    }

    pub(crate) fn set_black_hole(&self, kind: u8) {
        self.black_hole.store(kind, Ordering::Relaxed);
    }

    /// Whether the nexus has no command, and its task set none. Exact only while nothing moves. Context: any.
    pub fn is_quiescent(&self) -> bool {
        self.active_commands() == 0 && self.order.is_idle()
    }

    /// Threads that execute commands of the nexus now: its own, or those it shares.
    pub fn pool_threads(&self) -> usize {
        self.threads.lock().len()
    }

    /// Host's numbers of these threads. Context: any.
    #[doc(alias = "scst_tgt_dev_thread_pid_show")]
    pub fn pool_thread_ids(&self) -> Vec<i32> {
        let threads = Arc::clone(&self.threads.lock());
        threads.thread_ids()
    }

    /// Whether this nexus may only read.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        self.rd_only.load(Ordering::Relaxed)
    }

    /// Tells the initiator of an event at this logical unit: by the transport at once, or by a unit attention.
    /// Context: any.
    #[doc(alias = "scst_gen_aen_or_ua")]
    pub fn gen_aen_or_ua(&self, s: Sense) {
        let told = self.session().is_some_and(|sess| {
            let d_sense = self.dev.control.d_sense.load(Ordering::Relaxed);
            sess.report_aen(self.lun, d_sense, s)
        });
        if !told {
            self.check_set_ua(s);
        }
    }

    /// Queues a unit attention unless the same one waits already. Context: any.
    #[doc(alias = "scst_check_set_UA")]
    pub fn check_set_ua(&self, s: Sense) {
        self.ua.check_set(s, UaPlace::of(s));
    }
}
