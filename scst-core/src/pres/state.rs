//! Registrations and the reservation of one logical unit. Pure: no locks, no commands, no files.

use super::TransportId;
use crate::cdb::CdbFlags;

/// Scope of a reservation: the whole logical unit, the only one there is.
pub const SCOPE_LU: u8 = 0;

/// Names an I_T_L nexus that exists now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusId(pub u64);

/// Type of a persistent reservation (SPC-4 table 201).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PrType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only registrants write; one of them holds it.
    WriteExclusiveRegOnly = 5,
    /// Only registrants read and write; one of them holds it.
    ExclusiveAccessRegOnly = 6,
    /// Only registrants write; all of them hold it.
    WriteExclusiveAllReg = 7,
    /// Only registrants read and write; all of them hold it.
    ExclusiveAccessAllReg = 8,
}

impl PrType {
    /// The type of a code, unless there is none.
    #[doc(alias = "scst_pr_type_valid")]
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegOnly,
            6 => Self::ExclusiveAccessRegOnly,
            7 => Self::WriteExclusiveAllReg,
            8 => Self::ExclusiveAccessAllReg,
            _ => return None,
        })
    }

    /// The code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Whether all registrants hold it.
    #[must_use]
    pub fn is_all_reg(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllReg | Self::ExclusiveAccessAllReg
        )
    }

    /// Whether one registrant holds it, and all may pass.
    #[must_use]
    pub fn is_reg_only(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveRegOnly | Self::ExclusiveAccessRegOnly
        )
    }

    /// What a command must be to pass without being the holder or, where that suffices, a registrant.
    fn allows(self) -> CdbFlags {
        match self {
            Self::WriteExclusive | Self::WriteExclusiveRegOnly | Self::WriteExclusiveAllReg => {
                CdbFlags::WRITE_EXCL_ALLOWED
            }
            Self::ExclusiveAccess | Self::ExclusiveAccessRegOnly | Self::ExclusiveAccessAllReg => {
                CdbFlags::EXCL_ACCESS_ALLOWED
            }
        }
    }
}

/// Names a registration as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegId(u64);

/// One registration: an I_T nexus, which need not exist now, and its key.
#[doc(alias = "scst_dev_registrant")]
#[derive(Clone, Debug)]
pub struct Registrant {
    pub(crate) id: RegId,
    /// The initiator port.
    pub transport_id: TransportId,
    /// The target port.
    pub rel_tgt_id: u16,
    /// The reservation key, never 0.
    pub key: u64,
    /// The I_T_L nexus that has it now.
    pub nexus: Option<NexusId>,
}

/// The reservation.
#[derive(Clone, Copy, Debug)]
pub struct Reservation {
    /// Its type.
    pub ty: PrType,
    /// Its scope.
    pub scope: u8,
    /// Who holds it; `None` if all registrants do.
    pub(crate) holder: Option<RegId>,
}

#[derive(Clone, Debug)]
pub(crate) struct Nexus {
    pub(crate) id: NexusId,
    pub(crate) transport_id: TransportId,
    pub(crate) rel_tgt_id: u16,
}

/// Persistent reservation state of one logical unit.
#[derive(Clone, Debug, Default)]
pub struct PrState {
    pub(crate) registrants: Vec<Registrant>,
    pub(crate) reservation: Option<Reservation>,
    #[doc(alias = "pr_generation")]
    pub(crate) generation: u32,
    #[doc(alias = "pr_aptpl")]
    pub(crate) aptpl: bool,
    pub(crate) nexuses: Vec<Nexus>,
    last_id: u64,
    /// Counts the nexuses that came and went.
    nexus_changes: u64,
}

impl PrState {
    /// The registrations, the oldest first.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The reservation, if there is one.
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// PRGENERATION.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the state is to survive power loss.
    pub fn aptpl(&self) -> bool {
        self.aptpl
    }

    /// A nexus begins to exist: a registration that it left behind is its again.
    #[doc(alias = "scst_pr_init_tgt_dev")]
    pub fn attach(&mut self, id: NexusId, transport_id: TransportId, rel_tgt_id: u16) {
        self.nexus_changes = self.nexus_changes.wrapping_add(1);
        let at = self.position(&transport_id, rel_tgt_id);
        if let Some(reg) = at.and_then(|at| self.registrants.get_mut(at))
            && reg.nexus.is_none()
        {
            reg.nexus = Some(id);
        }
        self.nexuses.push(Nexus {
            id,
            transport_id,
            rel_tgt_id,
        });
    }

    /// A nexus ends. Its registration stays, or passes to another nexus of the same ports.
    #[doc(alias = "scst_pr_clear_tgt_dev")]
    pub fn detach(&mut self, id: NexusId) {
        self.nexus_changes = self.nexus_changes.wrapping_add(1);
        self.nexuses.retain(|n| n.id != id);
        let Some(reg) = self.registrants.iter_mut().find(|r| r.nexus == Some(id)) else {
            return;
        };
        let same = |n: &&Nexus| {
            n.rel_tgt_id == reg.rel_tgt_id && n.transport_id.is_same(&reg.transport_id)
        };
        reg.nexus = self.nexuses.iter().find(same).map(|n| n.id);
    }

    /// Whether no nexus has come or gone since one was made from the other.
    pub(crate) fn knows_same_nexuses(&self, other: &Self) -> bool {
        self.nexus_changes == other.nexus_changes
    }

    /// The registration of a nexus.
    pub fn of_nexus(&self, id: NexusId) -> Option<&Registrant> {
        self.registrants.iter().find(|r| r.nexus == Some(id))
    }

    /// Whether a registration holds the reservation.
    #[doc(alias = "scst_pr_is_holder")]
    pub fn is_holder(&self, reg: &Registrant) -> bool {
        self.reservation
            .is_some_and(|r| r.ty.is_all_reg() || r.holder == Some(reg.id))
    }

    /// The registration that alone holds the reservation.
    pub(crate) fn holder(&self) -> Option<&Registrant> {
        let id = self.reservation?.holder?;
        self.get(id)
    }

    pub(crate) fn get(&self, id: RegId) -> Option<&Registrant> {
        self.registrants.iter().find(|r| r.id == id)
    }

    /// What flags the commands of a nexus need to pass the reservation; empty if all pass.
    #[doc(alias = "scst_pr_is_cmd_allowed")]
    pub fn required_flags(&self, nexus: NexusId) -> CdbFlags {
        let Some(r) = &self.reservation else {
            return CdbFlags::empty();
        };
        if self.of_nexus(nexus).is_some_and(|reg| self.passes(r, reg)) {
            CdbFlags::empty()
        } else {
            r.ty.allows()
        }
    }

    /// Whether RESERVE and RELEASE of a nexus succeed, without effect, in presence of registrations: compatible
    /// reservation handling (SPC-4 5.13.3).
    #[doc(alias = "scst_pr_crh_case")]
    pub fn is_crh_case(&self, nexus: NexusId) -> bool {
        let reservation = self.reservation.as_ref();
        reservation.is_some_and(|r| self.of_nexus(nexus).is_some_and(|reg| self.passes(r, reg)))
    }

    /// Whether all commands of a registrant pass.
    fn passes(&self, r: &Reservation, reg: &Registrant) -> bool {
        r.ty.is_all_reg() || r.ty.is_reg_only() || r.holder == Some(reg.id)
    }

    pub(crate) fn position(&self, tid: &TransportId, rel_tgt_id: u16) -> Option<usize> {
        self.registrants
            .iter()
            .position(|r| r.rel_tgt_id == rel_tgt_id && r.transport_id.is_same(tid))
    }

    /// The registration of an initiator port at a target port.
    #[doc(alias = "scst_pr_find_reg")]
    pub fn find(&self, tid: &TransportId, rel_tgt_id: u16) -> Option<&Registrant> {
        self.registrants.get(self.position(tid, rel_tgt_id)?)
    }

    /// Adds a registration, which becomes that of the first nexus of these ports that has none. `None`: it exists.
    #[doc(alias = "scst_pr_add_registrant")]
    pub(crate) fn add(&mut self, tid: TransportId, rel_tgt_id: u16, key: u64) -> Option<RegId> {
        if self.position(&tid, rel_tgt_id).is_some() {
            return None;
        }
        let free = |n: &&Nexus| {
            n.rel_tgt_id == rel_tgt_id
                && n.transport_id.is_same(&tid)
                && self.of_nexus(n.id).is_none()
        };
        let nexus = self.nexuses.iter().find(free).map(|n| n.id);
        self.last_id = self.last_id.saturating_add(1);
        let id = RegId(self.last_id);
        self.registrants.push(Registrant {
            id,
            transport_id: tid,
            rel_tgt_id,
            key,
            nexus,
        });
        Some(id)
    }

    /// Removes a registration. A reservation that it held alone, or as the last of all registrants, ends.
    #[doc(alias = "scst_pr_remove_registrant")]
    pub(crate) fn remove(&mut self, id: RegId) {
        self.registrants.retain(|r| r.id != id);
        if let Some(r) = self.reservation {
            let ends = if r.ty.is_all_reg() {
                self.registrants.is_empty()
            } else {
                r.holder == Some(id)
            };
            if ends {
                self.reservation = None;
            }
        }
    }

    /// Sets the reservation.
    #[doc(alias = "scst_pr_set_holder")]
    pub(crate) fn reserve(&mut self, holder: RegId, ty: PrType, scope: u8) {
        self.reservation = Some(Reservation {
            ty,
            scope,
            holder: (!ty.is_all_reg()).then_some(holder),
        });
    }

    pub(crate) fn set_key(&mut self, id: RegId, key: u64) {
        if let Some(reg) = self.registrants.iter_mut().find(|r| r.id == id) {
            reg.key = key;
        }
    }

    pub(crate) fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    pub(crate) fn set_aptpl(&mut self, aptpl: bool) {
        self.aptpl = aptpl;
    }

    /// Takes registrations and reservation over from `loaded`; the nexuses there are stay, and find theirs.
    pub(crate) fn replace_with(&mut self, loaded: Self) {
        let nexuses = std::mem::take(&mut self.nexuses);
        *self = loaded;
        self.nexuses.clear();
        for reg in &mut self.registrants {
            reg.nexus = None;
        }
        for n in nexuses {
            self.attach(n.id, n.transport_id, n.rel_tgt_id);
        }
    }
}
