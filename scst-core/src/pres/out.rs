//! PERSISTENT RESERVE OUT (SPC-4 6.16): what each service action does to the state.
//!
//! C source: `scst_pr_register` to `scst_pr_preempt_and_abort` of `scst/src/scst_pres.c`,
//! `scst_persistent_reserve_out_local` of `scst/src/scst_local_cmd.c`

use super::state::{NexusId, PrState, PrType, RegId, Registrant, SCOPE_LU};
use super::tid::MAX_TRANSPORT_ID_LEN;
use super::{MAX_REGISTRANTS, TransportId};
use crate::cdb::bytes::{be16_at, be32_at, be64_at, u8_at};
use crate::sense::{self, Sense};

/// Service actions (SPC-4 table 210).
pub mod action {
    /// REGISTER.
    pub const REGISTER: u8 = 0;
    /// RESERVE.
    pub const RESERVE: u8 = 1;
    /// RELEASE.
    pub const RELEASE: u8 = 2;
    /// CLEAR.
    pub const CLEAR: u8 = 3;
    /// PREEMPT.
    pub const PREEMPT: u8 = 4;
    /// PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u8 = 5;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE: u8 = 6;
    /// REGISTER AND MOVE.
    pub const REGISTER_AND_MOVE: u8 = 7;
}

/// Length of the parameter list without TransportIDs.
const BASIC_LEN: usize = 24;
/// Where the TransportIDs of REGISTER with SPEC_I_PT begin, and where their length stands.
const SPEC_I_PT_AT: usize = 28;
const SPEC_I_PT_LEN_AT: usize = 24;
/// Byte with SPEC_I_PT, ALL_TG_PT and APTPL, and their bits.
const FLAGS_AT: u16 = 20;
const SPEC_I_PT: u8 = 3;
const ALL_TG_PT: u8 = 2;
const APTPL: u8 = 0;
/// The byte of REGISTER AND MOVE with UNREG (bit 1) and APTPL.
const MOVE_FLAGS_AT: u16 = 17;
const UNREG: u8 = 1;
/// Where REGISTER AND MOVE has the relative target port id and the length of its TransportID.
const MOVE_PORT_AT: usize = 18;
const MOVE_TID_LEN_AT: usize = 20;
/// Shortest TransportID length that REGISTER AND MOVE accepts.
const MOVE_TID_MIN: usize = 24;

/// A PERSISTENT RESERVE OUT command.
#[derive(Clone, Copy, Debug)]
pub struct PrOut<'a> {
    /// The nexus that it came by; attached.
    pub nexus: NexusId,
    /// Service action.
    pub action: u8,
    /// Byte 2 of the CDB: scope and type.
    pub scope_type: u8,
    /// The parameter list, as long as the CDB says.
    pub params: &'a [u8],
    /// Relative ids of all target ports of the initiator's transport protocol, for ALL_TG_PT.
    pub ports: &'a [u16],
    /// Whether the state can be made to survive power loss.
    pub can_persist: bool,
}

/// Why a command is refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RESERVATION CONFLICT status.
    Conflict,
    /// CHECK CONDITION with this sense.
    Sense(Sense),
    /// INVALID FIELD IN CDB.
    Cdb {
        /// Byte of the CDB.
        byte: u16,
        /// Bit of that byte.
        bit: Option<u8>,
    },
    /// INVALID FIELD IN PARAMETER LIST.
    Parm {
        /// Byte of the parameter list.
        byte: u16,
        /// Bit of that byte.
        bit: Option<u8>,
    },
}

/// What has to happen to others, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A unit attention.
    Ua(NexusId, Sense),
    /// All commands of the nexus at the logical unit are aborted.
    Abort(NexusId),
}

type Done = Result<(), Refusal>;

fn flag(byte: u8, bit: u8) -> bool {
    byte & (1 << bit) != 0
}

impl PrOut<'_> {
    fn key(&self) -> u64 {
        be64_at(self.params, 0)
    }

    fn action_key(&self) -> u64 {
        be64_at(self.params, 8)
    }

    fn flag(&self, bit: u8) -> bool {
        flag(u8_at(self.params, usize::from(FLAGS_AT)), bit)
    }

    fn scope(&self) -> u8 {
        self.scope_type >> 4
    }

    /// The type asked for; `byte` is where the sense data of a wrong one points to.
    fn ty(&self, byte: u16) -> Result<PrType, Refusal> {
        PrType::from_code(self.scope_type & 0x0F).ok_or(Refusal::Cdb { byte, bit: Some(0) })
    }

    fn check_basic_len(&self) -> Done {
        if self.params.len() == BASIC_LEN {
            Ok(())
        } else {
            Err(Refusal::Sense(sense::PARAMETER_LIST_LENGTH_INVALID))
        }
    }

    /// Checks that an APTPL bit in byte `at` can be honoured. DIFFERS: SCST says GOOD and forgets the state.
    fn aptpl(&self, at: u16) -> Result<bool, Refusal> {
        let aptpl = flag(u8_at(self.params, usize::from(at)), APTPL);
        if aptpl && !self.can_persist {
            return Err(Refusal::Parm {
                byte: at,
                bit: Some(APTPL),
            });
        }
        Ok(aptpl)
    }

    /// What every service action has in common (SPC-4 table 68 and 6.16.3).
    fn check_common(&self, registered: bool) -> Done {
        let registers = matches!(self.action, action::REGISTER | action::REGISTER_AND_IGNORE);
        let moves = self.action == action::REGISTER_AND_MOVE;
        if !registers && !registered {
            return Err(Refusal::Conflict);
        }
        if !registers && self.action != action::CLEAR && self.scope() != SCOPE_LU {
            return Err(Refusal::Cdb {
                byte: 2,
                bit: Some(4),
            });
        }
        let bit = |bit| {
            Err(Refusal::Parm {
                byte: FLAGS_AT,
                bit: Some(bit),
            })
        };
        if self.action != action::REGISTER && !moves && self.flag(SPEC_I_PT) {
            return bit(SPEC_I_PT);
        }
        if !registers && !moves && self.flag(ALL_TG_PT) {
            return bit(ALL_TG_PT);
        }
        Ok(())
    }
}

impl PrState {
    /// Executes PERSISTENT RESERVE OUT. What has to happen to others is in the answer; the caller saves the state.
    /// Context: any.
    ///
    /// # Errors
    ///
    /// Why it is refused; then nothing has changed.
    pub fn out(&mut self, cmd: &PrOut<'_>) -> Result<Vec<Effect>, Refusal> {
        let mut next = Change {
            state: self.clone(),
            effects: Vec::new(),
        };
        next.apply(cmd)?;
        *self = next.state;
        Ok(next.effects)
    }
}

/// A state on its way, and what it will do to others.
struct Change {
    state: PrState,
    effects: Vec<Effect>,
}

impl Change {
    fn apply(&mut self, cmd: &PrOut<'_>) -> Done {
        let own = self.state.of_nexus(cmd.nexus).cloned();
        cmd.check_common(own.is_some())?;
        match (cmd.action, &own) {
            (action::REGISTER, own) => self.register(cmd, own.as_ref()),
            (action::REGISTER_AND_IGNORE, own) => self.register_and_ignore(cmd, own.as_ref()),
            (_, None) => Err(Refusal::Conflict),
            (action::RESERVE, Some(own)) => self.reserve(cmd, own),
            (action::RELEASE, Some(own)) => self.release(cmd, own),
            (action::CLEAR, Some(own)) => self.clear(cmd, own),
            (action::PREEMPT | action::PREEMPT_AND_ABORT, Some(own)) => self.preempt(cmd, own),
            (action::REGISTER_AND_MOVE, Some(own)) => self.register_and_move(cmd, own),
            _ => Err(Refusal::Cdb {
                byte: 1,
                bit: Some(0),
            }),
        }
    }

    #[doc(alias = "scst_pr_send_ua_reg")]
    fn ua(&mut self, reg: &Registrant, ua: Sense) {
        if let Some(nexus) = reg.nexus {
            self.effects.push(Effect::Ua(nexus, ua));
        }
    }

    #[doc(alias = "scst_pr_send_ua_all")]
    fn ua_all(&mut self, except: Option<RegId>, ua: Sense) {
        for reg in self.state.registrants.clone() {
            if Some(reg.id) != except {
                self.ua(&reg, ua);
            }
        }
    }

    fn register(&mut self, cmd: &PrOut<'_>, own: Option<&Registrant>) -> Done {
        let spec_i_pt = cmd.flag(SPEC_I_PT);
        if !spec_i_pt {
            cmd.check_basic_len()?;
        }
        let aptpl = cmd.aptpl(FLAGS_AT)?;
        match own {
            None if cmd.key() != 0 => return Err(Refusal::Conflict),
            None => self.register_new(cmd, spec_i_pt)?,
            Some(own) if own.key != cmd.key() => return Err(Refusal::Conflict),
            Some(_) if spec_i_pt => {
                return Err(Refusal::Parm {
                    byte: FLAGS_AT,
                    bit: Some(SPEC_I_PT),
                });
            }
            Some(own) => self.change_key(cmd, own),
        }
        self.registered(aptpl);
        Ok(())
    }

    fn register_and_ignore(&mut self, cmd: &PrOut<'_>, own: Option<&Registrant>) -> Done {
        cmd.check_basic_len()?;
        let aptpl = cmd.aptpl(FLAGS_AT)?;
        match own {
            None => self.register_new(cmd, false)?,
            Some(own) => self.change_key(cmd, own),
        }
        self.registered(aptpl);
        Ok(())
    }

    fn registered(&mut self, aptpl: bool) {
        self.state.next_generation();
        self.state.aptpl = aptpl;
    }

    /// A registered nexus gives itself another key, or unregisters.
    fn change_key(&mut self, cmd: &PrOut<'_>, own: &Registrant) {
        if cmd.action_key() != 0 {
            self.state.set_key(own.id, cmd.action_key());
        } else if cmd.flag(ALL_TG_PT) {
            for port in cmd.ports {
                if let Some(id) = self.state.find(&own.transport_id, *port).map(|r| r.id) {
                    self.unregister(id);
                }
            }
        } else {
            self.unregister(own.id);
        }
    }

    #[doc(alias = "scst_pr_unregister")]
    fn unregister(&mut self, id: RegId) {
        let before = self.state.reservation;
        self.state.remove(id);
        if let Some(r) = before
            && self.state.reservation.is_none()
            && r.ty.is_reg_only()
        {
            self.ua_all(None, sense::RESERVATION_RELEASED);
        }
    }

    /// A nexus that is not registered registers itself and, with SPEC_I_PT, others.
    #[doc(alias = "__scst_pr_register")]
    fn register_new(&mut self, cmd: &PrOut<'_>, spec_i_pt: bool) -> Done {
        let key = cmd.action_key();
        if key == 0 {
            return Ok(());
        }
        let own = self.state.nexuses.iter().find(|n| n.id == cmd.nexus);
        let Some(own) = own.cloned() else {
            return Err(Refusal::Conflict);
        };
        let own_port = [own.rel_tgt_id];
        let ports = if cmd.flag(ALL_TG_PT) {
            cmd.ports
        } else {
            &own_port
        };
        let others = if spec_i_pt {
            listed_transport_ids(cmd.params)?
        } else {
            Vec::new()
        };
        for port in ports {
            for tid in &others {
                self.register_other(tid, *port, key)?;
            }
            if self.state.find(&own.transport_id, *port).is_none() {
                self.add(own.transport_id.clone(), *port, key)?;
            }
        }
        Ok(())
    }

    /// Registers an initiator port of the list of SPEC_I_PT. The name of a device stands for its ports that are logged
    /// in.
    #[doc(alias = "scst_pr_register_with_spec_i_pt")]
    fn register_other(&mut self, tid: &TransportId, port: u16, key: u64) -> Done {
        let tids = if tid.is_wildcard() {
            let nexuses = self.state.nexuses.iter();
            nexuses
                .filter(|n| n.transport_id.is_same(tid))
                .map(|n| n.transport_id.clone())
                .collect()
        } else {
            vec![tid.clone()]
        };
        for tid in tids {
            match self.state.find(&tid, port).map(|r| r.id) {
                Some(id) => self.state.set_key(id, key),
                None => {
                    self.add(tid, port, key)?;
                }
            }
        }
        Ok(())
    }

    /// DIFFERS: SCST has no limits.
    fn add(&mut self, tid: TransportId, port: u16, key: u64) -> Result<RegId, Refusal> {
        if self.state.registrants.len() >= MAX_REGISTRANTS {
            return Err(Refusal::Sense(sense::INSUFFICIENT_REGISTRATION_RESOURCES));
        }
        if tid.as_bytes().len() > MAX_TRANSPORT_ID_LEN {
            return Err(Refusal::Parm {
                byte: 24,
                bit: None,
            });
        }
        let added = self.state.add(tid, port, key);
        added.ok_or(Refusal::Sense(sense::INSUFFICIENT_REGISTRATION_RESOURCES))
    }

    fn register_and_move(&mut self, cmd: &PrOut<'_>, own: &Registrant) -> Done {
        let list = sense::INVALID_FIELD_IN_PARM_LIST;
        let tid_len = usize::try_from(be32_at(cmd.params, MOVE_TID_LEN_AT)).unwrap_or(usize::MAX);
        if tid_len.saturating_add(BASIC_LEN) > cmd.params.len() {
            return Err(Refusal::Sense(list));
        }
        if tid_len < MOVE_TID_MIN {
            return Err(Refusal::Parm {
                byte: FLAGS_AT,
                bit: None,
            });
        }
        if own.key != cmd.key() {
            return Err(Refusal::Conflict);
        }
        let Some(reservation) = self.state.reservation else {
            return Err(Refusal::Sense(sense::INVALID_FIELD_IN_CDB));
        };
        if !self.state.is_holder(own) {
            return Err(Refusal::Conflict);
        }
        if cmd.action_key() == 0 {
            return Err(Refusal::Cdb { byte: 8, bit: None });
        }
        let rest = cmd.params.get(BASIC_LEN..).unwrap_or_default();
        let Some(to) = TransportId::parse_untrusted(rest) else {
            return Err(Refusal::Sense(list));
        };
        if reservation.ty.is_all_reg() {
            return Err(Refusal::Conflict);
        }
        if own.transport_id.is_same(&to) {
            return Err(Refusal::Parm {
                byte: 24,
                bit: None,
            });
        }
        let aptpl = cmd.aptpl(MOVE_FLAGS_AT)?;
        let port = be16_at(cmd.params, MOVE_PORT_AT);
        let new = match self.state.find(&to, port).map(|r| r.id) {
            Some(id) => {
                self.state.set_key(id, cmd.action_key());
                id
            }
            None => self.add(to, port, cmd.action_key())?,
        };
        self.state.reserve(new, reservation.ty, reservation.scope);
        if flag(u8_at(cmd.params, usize::from(MOVE_FLAGS_AT)), UNREG) {
            self.state.remove(own.id);
        }
        self.registered(aptpl);
        Ok(())
    }

    fn reserve(&mut self, cmd: &PrOut<'_>, own: &Registrant) -> Done {
        cmd.check_basic_len()?;
        let ty = cmd.ty(2)?;
        if own.key != cmd.key() {
            return Err(Refusal::Conflict);
        }
        match &self.state.reservation {
            None => self.state.reserve(own.id, ty, cmd.scope()),
            Some(r) => {
                let same = r.ty == ty && r.scope == cmd.scope();
                if !same || !self.state.is_holder(own) {
                    return Err(Refusal::Conflict);
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, cmd: &PrOut<'_>, own: &Registrant) -> Done {
        cmd.check_basic_len()?;
        let Some(r) = self.state.reservation else {
            return Ok(());
        };
        if own.key != cmd.key() {
            return Err(Refusal::Conflict);
        }
        if !self.state.is_holder(own) {
            return Ok(());
        }
        if r.ty.code() != cmd.scope_type & 0x0F || r.scope != cmd.scope() {
            return Err(Refusal::Sense(sense::INVALID_RELEASE));
        }
        self.state.reservation = None;
        if r.ty.is_reg_only() || r.ty.is_all_reg() {
            self.ua_all(Some(own.id), sense::RESERVATION_RELEASED);
        }
        Ok(())
    }

    fn clear(&mut self, cmd: &PrOut<'_>, own: &Registrant) -> Done {
        cmd.check_basic_len()?;
        if own.key != cmd.key() {
            return Err(Refusal::Conflict);
        }
        self.ua_all(Some(own.id), sense::RESERVATION_PREEMPTED);
        self.state.registrants.clear();
        self.state.reservation = None;
        self.state.next_generation();
        Ok(())
    }

    #[doc(alias = "scst_pr_do_preempt")]
    fn preempt(&mut self, cmd: &PrOut<'_>, own: &Registrant) -> Done {
        cmd.check_basic_len()?;
        let ty = cmd.ty(1)?;
        if own.key != cmd.key() {
            return Err(Refusal::Conflict);
        }
        let victim_key = cmd.action_key();
        let holder_key = self.state.holder().map(|h| h.key);
        match self.state.reservation {
            // All registrants hold it, and all of them are to go.
            Some(r) if r.ty.is_all_reg() && victim_key == 0 => {
                let others = self.state.registrants.iter().filter(|r| r.id != own.id);
                let others: Vec<_> = others.cloned().collect();
                self.evict(cmd, own, &others, false);
                self.state.reserve(own.id, ty, cmd.scope());
            }
            Some(r) if !r.ty.is_all_reg() && holder_key == Some(victim_key) => {
                let victims = self.with_key(victim_key);
                self.evict(cmd, own, &victims, false);
                self.state.reserve(own.id, ty, cmd.scope());
                if r.ty != ty || r.scope != cmd.scope() {
                    self.ua_all(Some(own.id), sense::RESERVATION_RELEASED);
                }
            }
            Some(r) if !r.ty.is_all_reg() && victim_key == 0 => {
                return Err(Refusal::Parm { byte: 8, bit: None });
            }
            r => {
                let victims = self.with_key(victim_key);
                if victims.is_empty() {
                    return Err(Refusal::Conflict);
                }
                // Of those who do not hold the reservation, the nexus that asks goes, too.
                let own_too = r.is_some_and(|r| !r.ty.is_all_reg());
                self.evict(cmd, own, &victims, own_too);
            }
        }
        self.state.next_generation();
        Ok(())
    }

    fn with_key(&self, key: u64) -> Vec<Registrant> {
        let all = self.state.registrants.iter();
        all.filter(|r| r.key == key).cloned().collect()
    }

    /// Removes registrations on behalf of another one, `own` only if `own_too`.
    fn evict(&mut self, cmd: &PrOut<'_>, own: &Registrant, victims: &[Registrant], own_too: bool) {
        for reg in victims {
            if cmd.action == action::PREEMPT_AND_ABORT
                && let Some(nexus) = reg.nexus
            {
                self.effects.push(Effect::Abort(nexus));
            }
            if reg.id != own.id {
                self.ua(reg, sense::REGISTRATIONS_PREEMPTED);
            }
            if reg.id != own.id || own_too {
                self.state.remove(reg.id);
            }
        }
    }
}

/// The TransportIDs of a parameter list with SPEC_I_PT.
fn listed_transport_ids(params: &[u8]) -> Result<Vec<TransportId>, Refusal> {
    let len = usize::try_from(be32_at(params, SPEC_I_PT_LEN_AT)).unwrap_or(usize::MAX);
    let end = SPEC_I_PT_AT.saturating_add(len);
    let Some(mut rest) = params.get(SPEC_I_PT_AT..end) else {
        return Err(Refusal::Sense(sense::PARAMETER_LIST_LENGTH_INVALID));
    };
    let mut tids = Vec::new();
    while !rest.is_empty() {
        let Some(tid) = TransportId::parse_untrusted(rest) else {
            return Err(Refusal::Parm {
                byte: 24,
                bit: None,
            });
        };
        rest = rest.get(tid.as_bytes().len()..).unwrap_or_default();
        // DIFFERS: SCST takes lists of any length, and the same port any number of times.
        if tids.len() >= MAX_REGISTRANTS {
            return Err(Refusal::Sense(sense::INSUFFICIENT_REGISTRATION_RESOURCES));
        }
        tids.push(tid);
    }
    Ok(tids)
}
