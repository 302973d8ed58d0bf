//! Access control groups: which initiators see which logical units under which LUNs.
//!
//! C source: `struct scst_acg`, `scst_acg_dev`, `scst_acn` of `scst/src/scst_priv.h`

use crate::device::Device;
use crate::lun::AddrMethod;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which commands of a group are swallowed without an answer: for tests of initiators (`black_hole`).
#[doc(alias = "SCST_ACG_BLACK_HOLE_NONE")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum BlackHole {
    /// None.
    #[default]
    None = 0,
    /// All commands.
    Cmd = 1,
    /// All commands and task management.
    All = 2,
    /// Commands that transfer data.
    DataCmd = 3,
    /// Commands that transfer data, and task management.
    DataMcmd = 4,
}

impl BlackHole {
    /// From its number in the management tree.
    pub fn from_number(n: u8) -> Option<Self> {
        use BlackHole::{All, Cmd, DataCmd, DataMcmd, None as No};
        [No, Cmd, All, DataCmd, DataMcmd]
            .into_iter()
            .find(|b| *b as u8 == n)
    }

    /// Whether task management is swallowed.
    pub(crate) fn swallows_tm(self) -> bool {
        matches!(self, Self::All | Self::DataMcmd)
    }
}

/// Which initiators of a group share I/O contexts (`io_grouping_type`).
///
/// DIFFERS: kept and shown. In SCST it decides which nexuses share threads, so that the kernel's I/O scheduler takes
/// them for one reader; here no I/O scheduler looks at our threads.
#[doc(alias = "acg_io_grouping_type")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoGrouping {
    /// Initiators with the same name.
    #[default]
    Auto,
    /// All of the group.
    ThisGroupOnly,
    /// None.
    Never,
    /// All of all groups with this number.
    Group(i32),
}

/// What a group has besides its lists.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcgAttrs {
    /// How LUNs are reported.
    pub addr_method: AddrMethod,
    /// I/O grouping.
    pub io_grouping: IoGrouping,
    /// What is swallowed.
    pub black_hole: BlackHole,
    /// Processors that serve the group's initiators, a bit each; `None` for all.
    ///
    /// DIFFERS: kept and shown. Connections stay on the reactor that they were given.
    #[doc(alias = "acg_cpu_mask")]
    pub cpu_mask: Option<u64>,
}

/// One LUN of a group.
#[doc(alias = "scst_acg_dev")]
#[derive(Clone, Debug)]
pub struct AcgDev {
    /// The logical unit.
    pub dev: Arc<Device>,
    /// Whether sessions of the group may only read.
    pub read_only: bool,
}

/// A group. Protected by the configuration lock of the core.
#[doc(alias = "scst_acg")]
#[derive(Clone, Debug)]
pub struct Acg {
    /// Tells groups apart; a session keeps the identity of its group.
    pub(crate) id: AcgId,
    /// Name; the default group of a target has the target's.
    pub name: String,
    /// LUN map.
    #[doc(alias = "acg_dev_list")]
    pub luns: BTreeMap<u64, AcgDev>,
    /// Patterns of initiator names; the default group has none and takes whoever no other group wants.
    #[doc(alias = "acn_list")]
    pub acns: Vec<String>,
    /// Its attributes.
    pub attrs: AcgAttrs,
}

/// Identity of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcgId(u64);

/// The group that a session belongs to; it may change while the session lives.
#[derive(Debug)]
pub(crate) struct AcgRef(AtomicU64);

impl AcgRef {
    pub(crate) fn new(id: AcgId) -> Self {
        Self(AtomicU64::new(id.0))
    }

    pub(crate) fn get(&self) -> AcgId {
        AcgId(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, id: AcgId) {
        self.0.store(id.0, Ordering::Release);
    }
}

static NEXT_ACG: AtomicU64 = AtomicU64::new(1);

impl Acg {
    /// The group's identity, by which the core's configuration functions know it.
    pub fn id(&self) -> AcgId {
        self.id
    }

    pub(crate) fn new(name: &str) -> Self {
        Self {
            id: AcgId(NEXT_ACG.fetch_add(1, Ordering::Relaxed)),
            name: name.to_owned(),
            luns: BTreeMap::new(),
            acns: Vec::new(),
            attrs: AcgAttrs::default(),
        }
    }
}
