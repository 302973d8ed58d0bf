//! Reservations as SPC-4 5.13 and SPC-2 have them, for [`super::tasks`].

use super::{Expect, GOOD, NAMES};
use crate::mock::Spec;
use scst_core::consts::DataDirection;
use scst_core::sense::{self, Sense};

/// A reservation command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrOp {
    Reserve6,
    Release6,
    In(u8),
    /// Action, type, key, action key.
    Out(u8, u8, u64, u64),
    /// REGISTER AND MOVE, perhaps with UNREG, and to whom.
    Move {
        key: u64,
        new: u64,
        unreg: bool,
        to: usize,
    },
    /// REGISTER with SPEC_I_PT for another port.
    Spec {
        new: u64,
        other: usize,
    },
}

/// As the mock transport has it.
fn tid(ini: usize) -> Vec<u8> {
    let name = NAMES[ini].to_lowercase();
    let mut text = format!(
        "iqn.2026-01.org.example:probe-{name},i,0x{:x}0000000080\0",
        0x10 + ini
    );
    while text.len() % 4 != 0 {
        text.push('\0');
    }
    let mut tid = vec![0x45, 0, 0, text.len() as u8];
    tid.extend_from_slice(text.as_bytes());
    tid
}

impl PrOp {
    pub fn is_preempt_and_abort(self) -> bool {
        matches!(self, Self::Out(5, ..))
    }

    pub fn spec(self) -> Spec {
        let pr_out = |action: u8, ty: u8, params: Vec<u8>| {
            let len = params.len() as u8;
            Spec {
                out: params,
                expected: Some((DataDirection::Write, u32::from(len))),
                ..Spec::new(0, &[0x5F, action, ty, 0, 0, 0, 0, 0, len, 0])
            }
        };
        let keys = |key: u64, new: u64| [key.to_be_bytes(), new.to_be_bytes()].concat();
        match self {
            Self::Reserve6 => Spec::new(0, &[0x16, 0, 0, 0, 0, 0]),
            Self::Release6 => Spec::new(0, &[0x17, 0, 0, 0, 0, 0]),
            Self::In(action) => Spec::new(0, &[0x5E, action, 0, 0, 0, 0, 0, 2, 0, 0])
                .expect(DataDirection::Read, 512),
            Self::Out(action, ty, key, new) => {
                let mut p = keys(key, new);
                p.resize(24, 0);
                pr_out(action, ty, p)
            }
            Self::Move {
                key,
                new,
                unreg,
                to,
            } => {
                let mut p = keys(key, new);
                p.extend_from_slice(&[0, u8::from(unreg) << 1, 0, 1]);
                let tid = tid(to);
                p.extend_from_slice(&(tid.len() as u32).to_be_bytes());
                p.extend_from_slice(&tid);
                pr_out(7, 0, p)
            }
            Self::Spec { new, other } => {
                let mut p = keys(0, new);
                p.extend_from_slice(&[0, 0, 0, 0, 8, 0, 0, 0]);
                let tid = tid(other);
                p.extend_from_slice(&(tid.len() as u32).to_be_bytes());
                p.extend_from_slice(&tid);
                pr_out(0, 0, p)
            }
        }
    }
}

/// What a reservation lets others do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Passes every reservation but, maybe, that of SPC-2.
    Nothing,
    /// Passes a write exclusive one.
    Read,
    /// Passes none.
    Write,
}

/// Reservations, and what others are told of what happens to them.
#[derive(Default)]
pub struct Pr {
    /// Who is registered with which key, in the order of registration.
    regs: Vec<(usize, u64)>,
    /// Type and, unless all registrants hold it, the holder.
    reserved: Option<(u8, Option<usize>)>,
    generation: u32,
    pub spc2: Option<usize>,
    /// Unit attentions, in their order.
    pub told: Vec<(usize, Sense)>,
    /// Whose commands are to be aborted.
    pub aborted: Vec<usize>,
    pub tas: bool,
}

impl Pr {
    fn key_of(&self, ini: usize) -> Option<u64> {
        self.regs.iter().find(|r| r.0 == ini).map(|r| r.1)
    }

    fn is_holder(&self, ini: usize) -> bool {
        match self.reserved {
            Some((7 | 8, _)) => self.key_of(ini).is_some(),
            Some((_, holder)) => holder == Some(ini),
            None => false,
        }
    }

    /// Whether a nexus may do everything under the reservation.
    fn has_access(&self, ini: usize) -> bool {
        match self.reserved {
            Some((5..=8, _)) => self.key_of(ini).is_some(),
            Some(_) => self.is_holder(ini),
            None => true,
        }
    }

    fn tell(&mut self, ini: usize, ua: Sense) {
        self.told.push((ini, ua));
    }

    fn tell_registrants(&mut self, but: usize, ua: Sense) {
        for (ini, _) in self.regs.clone() {
            if ini != but {
                self.tell(ini, ua);
            }
        }
    }

    fn set(&mut self, ini: usize, key: u64) {
        match self.regs.iter_mut().find(|r| r.0 == ini) {
            Some(r) => r.1 = key,
            None => self.regs.push((ini, key)),
        }
    }

    /// A registration ends. Its reservation ends with it, unless other registrants hold it, too.
    fn drop_reg(&mut self, ini: usize) {
        let alone = match self.reserved {
            Some((7 | 8, _)) => self.regs.len() == 1,
            _ => self.is_holder(ini),
        };
        self.regs.retain(|r| r.0 != ini);
        if alone {
            self.reserved = None;
        }
    }

    fn reserve(&mut self, ini: usize, ty: u8) {
        self.reserved = Some((ty, (ty < 7).then_some(ini)));
    }

    /// Whether a command of `ini` meets a reservation conflict. RELEASE and what only looks pass that of SPC-2.
    pub fn conflicts(&self, ini: usize, need: Need, passes_spc2: bool) -> bool {
        if self.spc2.is_some_and(|holder| holder != ini) && !passes_spc2 {
            return true;
        }
        let passes = match self.reserved {
            Some((1 | 5 | 7, _)) => need != Need::Write,
            Some(_) => need == Need::Nothing,
            None => true,
        };
        !passes && !self.has_access(ini)
    }

    pub fn run(&mut self, ini: usize, op: PrOp) -> Expect {
        match op {
            PrOp::Reserve6 | PrOp::Release6 => self.spc2_command(ini, op),
            _ if self.spc2.is_some() => Expect::Conflict,
            PrOp::In(action) => Expect::Good(self.read(action)),
            PrOp::Out(action, ty, key, new) => self.pr_out(ini, action, ty, key, new),
            PrOp::Move {
                key,
                new,
                unreg,
                to,
            } => self.register_and_move(ini, key, new, unreg, to),
            PrOp::Spec { new, other } => match self.key_of(ini) {
                Some(_) => Expect::Conflict,
                None => {
                    self.set(other, new);
                    self.set(ini, new);
                    self.generation += 1;
                    GOOD
                }
            },
        }
    }

    fn spc2_command(&mut self, ini: usize, op: PrOp) -> Expect {
        if !self.regs.is_empty() {
            let compatible = self.reserved.is_some() && self.has_access(ini);
            return if compatible { GOOD } else { Expect::Conflict };
        }
        match op {
            PrOp::Reserve6 => self.spc2 = Some(ini),
            _ if self.spc2 == Some(ini) => self.spc2 = None,
            _ => {}
        }
        GOOD
    }

    fn read(&self, action: u8) -> Vec<u8> {
        let mut body = Vec::new();
        match action {
            0 => self
                .regs
                .iter()
                .for_each(|r| body.extend_from_slice(&r.1.to_be_bytes())),
            1 => {
                if let Some((ty, holder)) = self.reserved {
                    let key = holder.and_then(|h| self.key_of(h)).unwrap_or(0);
                    body.extend_from_slice(&key.to_be_bytes());
                    body.extend_from_slice(&[0, 0, 0, 0, 0, ty, 0, 0]);
                }
            }
            2 => return vec![0, 8, 0x1C, 0xC0, 0xEA, 1, 0, 0],
            _ => {
                for (ini, key) in &self.regs {
                    body.extend_from_slice(&key.to_be_bytes());
                    let holder = u8::from(self.is_holder(*ini));
                    let ty = self.reserved.map_or(0, |r| r.0) * holder;
                    let tid = tid(*ini);
                    body.extend_from_slice(&[0, 0, 0, 0, holder, ty, 0, 0, 0, 0, 0, 1]);
                    body.extend_from_slice(&(tid.len() as u32).to_be_bytes());
                    body.extend_from_slice(&tid);
                }
            }
        }
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend_from_slice(&(body.len() as u32).to_be_bytes());
        data.append(&mut body);
        data
    }

    fn pr_out(&mut self, ini: usize, action: u8, ty: u8, key: u64, new: u64) -> Expect {
        let own = self.key_of(ini);
        match action {
            // REGISTER, REGISTER AND IGNORE EXISTING KEY.
            0 | 6 => {
                if action == 0 && own.unwrap_or(0) != key {
                    return Expect::Conflict;
                }
                if new != 0 {
                    self.set(ini, new);
                } else if own.is_some() {
                    let regs_only = matches!(self.reserved, Some((5 | 6, _)));
                    self.drop_reg(ini);
                    if regs_only && self.reserved.is_none() {
                        self.tell_registrants(ini, sense::RESERVATION_RELEASED);
                    }
                }
                self.generation += 1;
                GOOD
            }
            _ if own.is_none() => Expect::Conflict,
            // RELEASE of nothing does not look at the key.
            2 if self.reserved.is_none() => GOOD,
            _ if own != Some(key) => Expect::Conflict,
            1 => match self.reserved {
                Some(r) if r.0 != ty || !self.is_holder(ini) => Expect::Conflict,
                Some(_) => GOOD,
                None => {
                    self.reserve(ini, ty);
                    GOOD
                }
            },
            2 => {
                if !self.is_holder(ini) {
                    return GOOD;
                }
                let held = self.reserved.expect("held").0;
                if held != ty {
                    return Expect::Check(sense::INVALID_RELEASE, false);
                }
                self.reserved = None;
                if held >= 5 {
                    self.tell_registrants(ini, sense::RESERVATION_RELEASED);
                }
                GOOD
            }
            3 => {
                self.tell_registrants(ini, sense::RESERVATION_PREEMPTED);
                self.regs.clear();
                self.reserved = None;
                self.generation += 1;
                GOOD
            }
            _ => self.preempt(ini, action == 5, ty, new),
        }
    }

    fn preempt(&mut self, ini: usize, abort: bool, ty: u8, victim: u64) -> Expect {
        let before = self.reserved;
        let all_reg = matches!(before, Some((7 | 8, _)));
        let holder_key = before.and_then(|r| r.1).and_then(|h| self.key_of(h));
        let takes_over = match before {
            None => false,
            Some(_) if all_reg => victim == 0,
            Some(_) => holder_key == Some(victim),
        };
        if before.is_some() && !all_reg && victim == 0 {
            return Expect::Check(sense::INVALID_FIELD_IN_PARM_LIST, false);
        }
        let hit = |r: &(usize, u64)| {
            if all_reg && victim == 0 {
                r.0 != ini
            } else {
                r.1 == victim
            }
        };
        let victims: Vec<_> = self.regs.iter().copied().filter(hit).collect();
        if victims.is_empty() && !takes_over {
            return Expect::Conflict;
        }
        for (other, _) in victims {
            if abort {
                self.aborted.push(other);
            }
            if other == ini {
                // Its own key: it goes only if a single other nexus holds the reservation.
                if before.is_some() && !all_reg && !takes_over {
                    self.drop_reg(ini);
                }
                continue;
            }
            if abort && !self.tas {
                self.tell(other, sense::CLEARED_BY_ANOTHER_INI_UA);
            }
            self.tell(other, sense::REGISTRATIONS_PREEMPTED);
            self.drop_reg(other);
        }
        if takes_over {
            self.reserve(ini, ty);
            if !all_reg && before.map(|r| r.0) != Some(ty) {
                self.tell_registrants(ini, sense::RESERVATION_RELEASED);
            }
        }
        self.generation += 1;
        GOOD
    }

    fn register_and_move(
        &mut self,
        ini: usize,
        key: u64,
        new: u64,
        unreg: bool,
        to: usize,
    ) -> Expect {
        if self.key_of(ini) != Some(key) {
            return Expect::Conflict;
        }
        let Some((ty, _)) = self.reserved else {
            return Expect::Check(sense::INVALID_FIELD_IN_CDB, false);
        };
        if !self.is_holder(ini) {
            return Expect::Conflict;
        }
        if new == 0 {
            return Expect::Check(sense::INVALID_FIELD_IN_CDB, false);
        }
        if ty >= 7 {
            return Expect::Conflict;
        }
        if to == ini {
            return Expect::Check(sense::INVALID_FIELD_IN_PARM_LIST, false);
        }
        self.set(to, new);
        self.reserve(to, ty);
        if unreg {
            self.drop_reg(ini);
        }
        self.generation += 1;
        GOOD
    }
}
