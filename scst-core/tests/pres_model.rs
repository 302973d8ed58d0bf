//! Random reservation commands of three initiators, with logins and resets between them, against a model that follows
//! the text of SPC-4 5.13 and SPC-2.

mod mock;

use mock::{Ini, READ, Rig, Spec, WRITE};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use scst_core::consts::{DataDirection, SamStatus};
use scst_core::mgmt::TmFunction;
use scst_core::sense::{self, Sense};
use std::collections::VecDeque;

const CASES: u32 = 600;
const STEPS: usize = 60;
const INIS: usize = 3;
const NAMES: [&str; INIS] = ["A", "B", "C"];
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

#[derive(Clone, Copy, Debug)]
enum Op {
    Tur,
    Read,
    Write,
    Reserve6,
    Release6,
    PrIn(u8),
    /// Action, type, key, action key; UNREG of REGISTER AND MOVE, and to whom.
    PrOut(u8, u8, u64, u64),
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
    Relogin,
    LunReset,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0u64..4;
    let ty = prop::sample::select(TYPES.to_vec());
    let keys = (key.clone(), key);
    prop_oneof![
        2 => Just(Op::Tur),
        3 => Just(Op::Read),
        3 => Just(Op::Write),
        2 => Just(Op::Reserve6),
        2 => Just(Op::Release6),
        3 => (0u8..4).prop_map(Op::PrIn),
        20 => (0u8..7, ty, keys.clone()).prop_map(|(a, t, (k, n))| Op::PrOut(a, t, k, n)),
        2 => (keys, any::<bool>(), 0..INIS).prop_map(|((key, new), unreg, to)| Op::Move { key, new, unreg, to }),
        1 => (1u64..4, 0..INIS).prop_map(|(new, other)| Op::Spec { new, other }),
        1 => Just(Op::Relogin),
        1 => Just(Op::LunReset),
    ]
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

impl Op {
    fn spec(self) -> Spec {
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
            Self::Tur | Self::Relogin | Self::LunReset => Spec::tur(),
            Self::Read => Spec::new(0, &[READ, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            Self::Write => Spec::new(0, &[WRITE, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
            Self::Reserve6 => Spec::new(0, &[0x16, 0, 0, 0, 0, 0]),
            Self::Release6 => Spec::new(0, &[0x17, 0, 0, 0, 0, 0]),
            Self::PrIn(action) => Spec::new(0, &[0x5E, action, 0, 0, 0, 0, 0, 2, 0, 0])
                .expect(DataDirection::Read, 512),
            Self::PrOut(action, ty, key, new) => {
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

    /// What may pass a write exclusive and an exclusive access reservation of another.
    fn passes(self) -> (bool, bool) {
        match self {
            Self::Write => (false, false),
            Self::Read => (true, false),
            _ => (true, true),
        }
    }
}

/// What the model expects.
#[derive(Debug, PartialEq)]
enum Expect {
    Good(Vec<u8>),
    Conflict,
    Check(Sense),
}

const GOOD: Expect = Expect::Good(Vec::new());

#[derive(Default)]
struct Model {
    /// Who is registered with which key, in the order of registration.
    regs: Vec<(usize, u64)>,
    /// Type and, unless all registrants hold it, the holder.
    reserved: Option<(u8, Option<usize>)>,
    generation: u32,
    spc2: Option<usize>,
    ua: [VecDeque<Sense>; INIS],
}

impl Model {
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
        if !self.ua[ini].contains(&ua) {
            self.ua[ini].push_back(ua);
        }
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

    fn run(&mut self, ini: usize, op: Op) -> Expect {
        let release = matches!(op, Op::Release6 | Op::Tur);
        if self.spc2.is_some_and(|holder| holder != ini) && !release {
            return Expect::Conflict;
        }
        let (write_excl, excl_access) = op.passes();
        let passes = match self.reserved {
            Some((1 | 5 | 7, _)) => write_excl,
            Some(_) => excl_access,
            None => true,
        };
        if !passes && !self.has_access(ini) {
            return Expect::Conflict;
        }
        if let Some(ua) = self.ua[ini].pop_front() {
            return Expect::Check(ua);
        }
        match op {
            Op::Reserve6 | Op::Release6 => self.spc2_command(ini, op),
            Op::PrIn(_) | Op::PrOut(..) | Op::Move { .. } | Op::Spec { .. }
                if self.spc2.is_some() =>
            {
                Expect::Conflict
            }
            Op::PrIn(action) => Expect::Good(self.read(action)),
            Op::PrOut(action, ty, key, new) => self.pr_out(ini, action, ty, key, new),
            Op::Move {
                key,
                new,
                unreg,
                to,
            } => self.register_and_move(ini, key, new, unreg, to),
            Op::Spec { new, other } => match self.key_of(ini) {
                Some(_) => Expect::Conflict,
                None => {
                    self.set(other, new);
                    self.set(ini, new);
                    self.generation += 1;
                    GOOD
                }
            },
            Op::Read => Expect::Good(vec![0; 512]),
            _ => GOOD,
        }
    }

    fn spc2_command(&mut self, ini: usize, op: Op) -> Expect {
        if !self.regs.is_empty() {
            let compatible = self.reserved.is_some() && self.has_access(ini);
            return if compatible { GOOD } else { Expect::Conflict };
        }
        match op {
            Op::Reserve6 => self.spc2 = Some(ini),
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
                    return Expect::Check(sense::INVALID_RELEASE);
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
            return Expect::Check(sense::INVALID_FIELD_IN_PARM_LIST);
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
            if other == ini {
                // Its own key: it goes only if a single other nexus holds the reservation.
                if before.is_some() && !all_reg && !takes_over {
                    self.drop_reg(ini);
                }
                continue;
            }
            if abort {
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
            return Expect::Check(sense::INVALID_FIELD_IN_CDB);
        };
        if !self.is_holder(ini) {
            return Expect::Conflict;
        }
        if new == 0 {
            return Expect::Check(sense::INVALID_FIELD_IN_CDB);
        }
        if ty >= 7 {
            return Expect::Conflict;
        }
        if to == ini {
            return Expect::Check(sense::INVALID_FIELD_IN_PARM_LIST);
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

fn login(rig: &Rig, ini: usize) -> Ini {
    let mut i = rig.fresh_ini(NAMES[ini]);
    i.clear_ua(0);
    i
}

fn play(steps: &[(usize, Op)]) {
    let rig = Rig::new(1);
    let mut inis: Vec<Option<Ini>> = (0..INIS).map(|i| Some(login(&rig, i))).collect();
    let mut model = Model::default();
    for (n, (who, op)) in steps.iter().enumerate() {
        let ini = inis[*who].as_mut().expect("logged in");
        match op {
            Op::Relogin => {
                inis[*who].take().expect("logged in").close();
                inis[*who] = Some(login(&rig, *who));
                model.ua[*who].clear();
                if model.spc2 == Some(*who) {
                    model.spc2 = None;
                }
                continue;
            }
            Op::LunReset => {
                let id = ini.tm(TmFunction::LunReset, 0, 0);
                ini.wait_tm(id);
                model.spc2 = None;
                (0..INIS).for_each(|i| model.tell(i, sense::RESET_UA));
                continue;
            }
            _ => {}
        }
        let want = model.run(*who, *op);
        let a = ini.ask(&op.spec());
        let got = match a.status {
            SamStatus::Good if matches!(op, Op::Read) => Expect::Good(vec![0; a.data.len()]),
            SamStatus::Good => Expect::Good(a.data.clone()),
            SamStatus::ReservationConflict => Expect::Conflict,
            SamStatus::CheckCondition => Expect::Check(a.sense().expect("sense")),
            other => panic!("step {n}: {other:?}"),
        };
        assert_eq!(got, want, "step {n}: {} {op:?}", NAMES[*who]);
    }
    inis.into_iter().flatten().for_each(Ini::close);
    rig.teardown();
}

#[test]
fn reservations_follow_the_standard() {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = prop::collection::vec((0..INIS, op()), STEPS);
    TestRunner::new(config)
        .run(&steps, |steps| {
            play(&steps);
            Ok(())
        })
        .unwrap();
}
