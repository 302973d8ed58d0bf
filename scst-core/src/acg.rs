//! Access control groups: which initiators see which logical units under which LUNs.
//!
//! C source: `struct scst_acg`, `scst_acg_dev`, `scst_acn` of `scst/src/scst_priv.h`

use crate::device::Device;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

/// Identity of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcgId(u64);

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
        }
    }
}
