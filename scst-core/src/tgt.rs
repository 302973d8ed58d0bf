//! A target port.
//!
//! C source: `struct scst_tgt` of `scst/include/scst.h`

use crate::acg::{Acg, AcgAttrs, AcgId};
use crate::acn::wildcmp;
use crate::event::{Events, Kind};
use crate::session::Session;
use crate::sysfs::KobjSlot;
use crate::template::TgtTemplate;
use kshim::sync::SpinLock;
use std::sync::atomic::{AtomicBool, AtomicU16};
use std::sync::{Arc, Weak};

/// A target port of a transport driver.
#[doc(alias = "scst_tgt")]
pub struct Tgt {
    name: String,
    pub(crate) template: Arc<dyn TgtTemplate>,
    /// Relative target port identifier (SPC-4 3.1.120).
    pub rel_tgt_id: AtomicU16,
    /// Whether initiators may log in.
    pub enabled: AtomicBool,
    /// Commands that concern the device's state are sent on to a peer.
    #[doc(alias = "tgt_forward_src")]
    pub forward_src: AtomicBool,
    /// Commands come from a peer that has checked reservations.
    #[doc(alias = "tgt_forward_dst")]
    pub forward_dst: AtomicBool,
    /// Initiators hear of events by unit attentions only.
    #[doc(alias = "tgt_aen_disabled")]
    pub aen_disabled: AtomicBool,
    /// The administrator's own text.
    #[doc(alias = "tgt_comment")]
    pub(crate) comment: SpinLock<Option<String>>,
    /// The default group first, then the others. Changed only under the configuration lock.
    pub(crate) acgs: SpinLock<Vec<Acg>>,
    #[doc(alias = "sess_list")]
    pub(crate) sessions: SpinLock<Vec<Weak<Session>>>,
    /// Its directory in the management tree.
    #[doc(alias = "tgt_kobj")]
    pub kobj: KobjSlot,
    events: Option<Arc<Events>>,
    this: Weak<Self>,
}

impl std::fmt::Debug for Tgt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tgt")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Tgt {
    /// What it has to tell goes to `events`.
    pub(crate) fn new(
        name: &str,
        template: Arc<dyn TgtTemplate>,
        rel_tgt_id: u16,
        events: Option<Arc<Events>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            template,
            rel_tgt_id: AtomicU16::new(rel_tgt_id),
            enabled: AtomicBool::new(false),
            forward_src: AtomicBool::new(false),
            forward_dst: AtomicBool::new(false),
            aen_disabled: AtomicBool::new(false),
            comment: SpinLock::new(None),
            acgs: SpinLock::new(vec![Acg::new(name)]),
            sessions: SpinLock::new(Vec::new()),
            kobj: KobjSlot::default(),
            events,
            this: Weak::clone(this),
        })
    }

    /// A reference that does not keep the target: for attributes.
    pub fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.this)
    }

    /// The target's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver.
    pub fn template(&self) -> &Arc<dyn TgtTemplate> {
        &self.template
    }

    /// The live sessions. Context: any.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.sessions
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// The group an initiator belongs to: the first with a matching pattern, else the default one. Context: any.
    #[doc(alias = "scst_find_acg")]
    pub fn find_acg(&self, initiator_name: &str) -> AcgId {
        let acgs = self.acgs.lock();
        let mut named = acgs.iter().skip(1);
        named
            .find(|a| a.acns.iter().any(|p| wildcmp(p, initiator_name)))
            .or_else(|| acgs.first())
            .map(|a| a.id)
            .expect("a target always has its default group")
    }

    /// Whether an initiator would see any LUN here; listeners are told if not. Context: any.
    #[doc(alias = "scst_initiator_has_luns")]
    pub fn has_luns_for(&self, initiator_name: &str) -> bool {
        let id = self.find_acg(initiator_name);
        let has = |a: &Acg| a.id == id && !a.luns.is_empty();
        let found = self.acgs.lock().iter().any(has);
        if let Some(events) = self.events.as_ref().filter(|_| !found) {
            events.tell(|| Kind::NegativeLunsInquiry {
                initiator: initiator_name.to_owned(),
                target: self.name.clone(),
            });
        }
        found
    }

    /// The administrator's own text. Context: any.
    pub fn comment(&self) -> Option<String> {
        self.comment.lock().clone()
    }

    /// Sets that text; none if it is empty. Context: any.
    pub fn set_comment(&self, text: &str) {
        *self.comment.lock() = (!text.is_empty()).then(|| text.to_owned());
    }

    /// The groups, the default one first: identity and name. Context: any.
    pub fn acgs(&self) -> Vec<(AcgId, String)> {
        let acgs = self.acgs.lock();
        acgs.iter().map(|a| (a.id, a.name.clone())).collect()
    }

    /// The group of this name, but for the default one. Context: any.
    #[doc(alias = "scst_tgt_find_acg")]
    pub fn acg_by_name(&self, name: &str) -> Option<AcgId> {
        let acgs = self.acgs.lock();
        let mut named = acgs.iter().skip(1);
        named.find(|a| a.name == name).map(|a| a.id)
    }

    /// Identity of the default group. Context: any.
    pub fn default_acg_id(&self) -> AcgId {
        let acgs = self.acgs.lock();
        acgs.first()
            .map(|a| a.id)
            .expect("a target always has its default group")
    }

    /// Attributes of a group; the defaults if it is gone. Context: any.
    pub fn acg_attrs(&self, id: AcgId) -> AcgAttrs {
        let acgs = self.acgs.lock();
        let acg = acgs.iter().find(|a| a.id == id);
        acg.map(|a| a.attrs).unwrap_or_default()
    }

    /// A copy of a group.
    pub fn acg(&self, id: AcgId) -> Option<Acg> {
        self.acgs.lock().iter().find(|a| a.id == id).cloned()
    }

    /// A copy of the default group.
    pub fn default_acg(&self) -> Acg {
        self.acgs
            .lock()
            .first()
            .cloned()
            .expect("a target always has its default group")
    }
}
