//! A session: the nexus of one initiator port and one target port.
//!
//! C source: `struct scst_session` of `scst/include/scst.h`

use crate::acg::{AcgAttrs, AcgId, AcgRef};
use crate::cmd::{Cmd, CmdHome, CmdShared, CmdState, HomeId};
use crate::copy_mgr::ListIds;
use crate::core::{Core, InitWait};
use crate::event::payload::TmFn;
use crate::lun::{AddrMethod, Lun};
use crate::pres::TransportId;
use crate::sense::{self, Sense, SenseExtra};
use crate::stats::{IoStats, LatStats};
use crate::sysfs::KobjSlot;
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use crate::ua::UaScope;
use kshim::sync::SpinLock;
use kshim::sync::rcu::{self, Rcu};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The LUN map of a session, read without a lock: LUNs below [`LunTable::DIRECT`] by index, others by search.
#[doc(alias = "sess_tgt_dev_list")]
#[derive(Debug, Default)]
pub(crate) struct LunTable {
    direct: Vec<Option<Arc<TgtDev>>>,
    rest: Vec<Arc<TgtDev>>,
}

impl LunTable {
    const DIRECT: u64 = 256;

    pub(crate) fn from_iter(luns: impl IntoIterator<Item = Arc<TgtDev>>) -> Self {
        let mut table = Self::default();
        for t in luns {
            if t.lun < Self::DIRECT {
                let at = usize::try_from(t.lun).unwrap_or(0);
                if table.direct.len() <= at {
                    table.direct.resize(at.saturating_add(1), None);
                }
                if let Some(slot) = table.direct.get_mut(at) {
                    *slot = Some(t);
                }
            } else {
                table.rest.push(t);
            }
        }
        table.rest.sort_by_key(|t| t.lun);
        table
    }

    #[inline]
    pub(crate) fn get(&self, lun: u64) -> Option<&Arc<TgtDev>> {
        if lun < Self::DIRECT {
            self.direct.get(usize::try_from(lun).ok()?)?.as_ref()
        } else {
            let at = self.rest.binary_search_by_key(&lun, |t| t.lun).ok()?;
            self.rest.get(at)
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<TgtDev>> {
        self.direct.iter().flatten().chain(&self.rest)
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// An I_T nexus.
#[doc(alias = "scst_session")]
pub struct Session {
    pub(crate) core: Arc<Core>,
    tgt: Arc<Tgt>,
    initiator_name: String,
    transport_id: Option<TransportId>,
    acg: AcgRef,
    pub(crate) home: Arc<dyn CmdHome>,
    pub(crate) home_id: HomeId,
    pub(crate) luns: Rcu<LunTable>,
    /// The shared halves of all commands ever made for the session and not yet dropped.
    #[doc(alias = "sess_cmd_list")]
    pub(crate) cmds: SpinLock<Vec<Arc<CmdShared>>>,
    /// Nexuses whose LUN is gone, with commands that are not over.
    pub(crate) retired: SpinLock<Vec<Arc<TgtDev>>>,
    /// Commands that came while activity was suspended.
    pub(crate) init_wait: InitWait,
    /// Names the session as the holder of a reservation; never 0.
    pub(crate) id: u64,
    /// List identifiers of EXTENDED COPY.
    #[doc(alias = "sess_cm_list_id_list")]
    pub(crate) list_ids: Arc<ListIds>,
    /// I/O statistics.
    pub stats: IoStats,
    /// How long its commands were in each state, if that is measured.
    #[doc(alias = "lat_stats")]
    pub lat: LatStats,
    /// Serialises delivery of unit attentions that all LUNs share.
    ua_scope: UaScope,
    /// A successor takes its place: see [`crate::retained`].
    pub(crate) retained: AtomicBool,
    /// The transport's own name of the session.
    pub tgt_priv: u64,
    /// Its directory in the management tree.
    #[doc(alias = "sess_kobj")]
    pub kobj: KobjSlot,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("initiator", &self.initiator_name)
            .field("target", &self.tgt.name())
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(crate) fn new(
        core: Arc<Core>,
        tgt: Arc<Tgt>,
        initiator_name: &str,
        home: Arc<dyn CmdHome>,
        tgt_priv: u64,
    ) -> Self {
        let mut sess = Self {
            core,
            acg: AcgRef::new(tgt.find_acg(initiator_name)),
            tgt,
            initiator_name: initiator_name.to_owned(),
            transport_id: None,
            home_id: home.id(),
            home,
            luns: Rcu::new(LunTable::default()),
            cmds: SpinLock::new(Vec::new()),
            retired: SpinLock::new(Vec::new()),
            init_wait: InitWait::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            list_ids: Arc::default(),
            stats: IoStats::new(),
            lat: LatStats::new(CmdState::COUNT),
            ua_scope: UaScope::new(),
            retained: AtomicBool::new(false),
            tgt_priv,
            kobj: KobjSlot::default(),
        };
        let template = Arc::clone(sess.tgt.template());
        let tid = template.initiator_port_transport_id(&sess);
        sess.transport_id = tid.and_then(|tid| TransportId::parse(&tid));
        sess
    }

    /// The initiator's name, as the transport gave it.
    pub fn initiator_name(&self) -> &str {
        &self.initiator_name
    }

    /// The initiator port, unless its transport has no TransportIDs.
    pub fn transport_id(&self) -> Option<&TransportId> {
        self.transport_id.as_ref()
    }

    /// The target port.
    #[inline]
    pub fn tgt(&self) -> &Arc<Tgt> {
        &self.tgt
    }

    /// The group it belongs to now. Context: any.
    pub fn acg(&self) -> AcgId {
        self.acg.get()
    }

    /// The session moves to another group. Under the configuration lock.
    pub(crate) fn set_acg(&self, id: AcgId) {
        self.acg.set(id);
    }

    /// Attributes of its group. Context: any.
    pub(crate) fn acg_attrs(&self) -> AcgAttrs {
        self.tgt.acg_attrs(self.acg())
    }

    /// How LUNs are reported to it. Context: any.
    pub(crate) fn addr_method(&self) -> AddrMethod {
        self.acg_attrs().addr_method
    }

    /// The nexus of a LUN. Context: any.
    #[doc(alias = "scst_lookup_tgt_dev")]
    pub fn lookup_tgt_dev(&self, lun: u64) -> Option<Arc<TgtDev>> {
        let guard = rcu::read_lock();
        self.luns.read(&guard).get(lun).cloned()
    }

    /// All nexuses of the session, by LUN. Context: any.
    pub fn tgt_devs(&self) -> Vec<Arc<TgtDev>> {
        let guard = rcu::read_lock();
        self.luns.read(&guard).iter().cloned().collect()
    }

    /// Commands between reception and recycling. Walks the table: for rare paths. Context: any.
    #[doc(alias = "sess_cmd_count")]
    pub fn live_cmds(&self) -> usize {
        self.cmds
            .lock()
            .iter()
            .filter(|c| c.live().is_some())
            .count()
    }

    /// Has the transport end the session. Returns before it is gone. Context: any.
    #[doc(alias = "force_close")]
    pub fn close(&self) {
        self.home.close();
    }

    /// What listeners are told of a task management request of this session.
    #[cold]
    pub(crate) fn tm_event(&self, function: u32) -> TmFn {
        let name = self.kobj.get().map(|dir| dir.name().to_owned());
        TmFn {
            function,
            initiator: self.initiator_name.clone(),
            target: self.tgt.name().to_owned(),
            // The directory has another name only when an initiator has several sessions.
            session: name.unwrap_or_else(|| self.initiator_name.clone()),
            ..TmFn::default()
        }
    }

    /// Has the transport tell the initiator of an event at a logical unit; false if it cannot. Context: any.
    #[doc(alias = "scst_alloc_aen")]
    pub(crate) fn report_aen(&self, lun: u64, d_sense: bool, s: Sense) -> bool {
        if self.tgt.aen_disabled.load(Ordering::Relaxed) {
            return false;
        }
        let mut data = Vec::with_capacity(sense::STANDARD_SENSE_LEN);
        sense::build(&mut data, d_sense, s, SenseExtra::None);
        let lun = Lun::new(lun).map_or([0; _], |lun| lun.pack(self.addr_method()));
        self.home.report_aen(lun, data)
    }

    /// Tells the initiator that the list of its LUNs has changed; `nexuses` are those that there are now. Context: any.
    #[doc(alias = "scst_report_luns_changed_sess")]
    pub(crate) fn report_luns_changed(&self, nexuses: &[Arc<TgtDev>]) {
        let s = sense::REPORTED_LUNS_DATA_CHANGED;
        let (lun, d_sense) = nexuses.first().map_or((0, false), |t| {
            (t.lun, t.dev.control.d_sense.load(Ordering::Relaxed))
        });
        if !self.report_aen(lun, d_sense, s) {
            for t in nexuses {
                t.check_set_ua(s);
            }
        }
    }

    /// Takes the next unit attention of a nexus for delivery; one that concerns all LUNs goes from all of them.
    pub(crate) fn take_ua(&self, tgt_dev: &TgtDev) -> Option<Sense> {
        let mut all = Vec::new();
        tgt_dev.ua.take(&self.ua_scope, || {
            all = self.tgt_devs();
            all.iter().map(|t| &t.ua)
        })
    }

    /// A unit attention that was taken did not reach the initiator.
    pub(crate) fn requeue_ua(&self, tgt_dev: &TgtDev, ua: Sense) {
        let mut all = Vec::new();
        tgt_dev.ua.undelivered(ua, &self.ua_scope, || {
            all = self.tgt_devs();
            all.iter().map(|t| &t.ua)
        });
    }

    /// Begins a command. `recycled` is a finished command of this session ([`crate::cmd::TgtHost::on_free_cmd`]), so
    /// that steady state allocates nothing. `extended_cdb` follows the first 16 bytes. Context: the session's home.
    #[doc(alias = "scst_rx_cmd")]
    pub fn rx_cmd(
        self: &Arc<Self>,
        recycled: Option<Box<Cmd>>,
        lun: [u8; 8],
        cdb: &[u8; 16],
        extended_cdb: &[u8],
    ) -> Box<Cmd> {
        let mut cmd = match recycled {
            Some(cmd) if Arc::ptr_eq(&cmd.sess, self) => cmd,
            _ => self.new_cmd(),
        };
        cmd.begin(lun, cdb, extended_cdb);
        cmd
    }

    fn new_cmd(self: &Arc<Self>) -> Box<Cmd> {
        let shared = Arc::new(CmdShared::default());
        {
            let mut cmds = self.cmds.lock();
            if cmds.len() == cmds.capacity() {
                // Commands that the transport dropped instead of recycling leave only our reference.
                cmds.retain(|c| Arc::strong_count(c) > 1);
            }
            cmds.push(Arc::clone(&shared));
        }
        Box::new(Cmd::new(shared, Arc::clone(self)))
    }
}
