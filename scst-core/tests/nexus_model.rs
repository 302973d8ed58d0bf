//! Two and three initiators at one logical unit do anything at random: reservations of both kinds, all task attributes, NACA and ACA, MODE
//! SELECT of the control page, task management, logins, and a handler that keeps commands. Every answer, and whether there is one, is
//! compared with what the model in `nexus/` says.
//!
//! `SCST_NEXUS_CASES` is the number of sequences; `SCST_SEED` starts other ones.

#[path = "common/ram.rs"]
mod ram;

mod mock;
mod nexus;

use kshim::block::register_disk;
use kshim::sync::Mutex;
use kshim::time::{Delta, Instant};
use mock::{Answer, Ini, READ, Rig, Rng, Spec, WRITE};
use nexus::pr::PrOp;
use nexus::tasks::{At, Model};
use nexus::{BLOCKS, Control, Expect, NAMES, Op};
use scst_core::cmd::{Cmd, ExecRes, cmd_done};
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::dev_type::{BufAlloc, DevHandler, ExecContext};
use scst_core::device::Device;
use scst_core::mgmt::{MgmtCmd, TmFunction};
use scst_core::sense;
use scst_core::tgt_dev::TgtDev;
use std::sync::Arc;

const CASES: u64 = 1000;
const STEPS: usize = 120;
const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];
/// Commands under way at most.
const MAX_LIVE: usize = 12;
/// DPO: here a command with it is kept by the handler.
const KEEP: u8 = 0x10;
const MODE_SELECT: u8 = 0x15;
const MODE_SENSE: u8 = 0x1A;
const REQUEST_SENSE: u8 = 0x03;
const CONTROL_PAGE: u8 = 0x0A;

/// A disk that keeps reads and writes with DPO until it is told, or until they are aborted and it hears of it.
struct Gate {
    disk: Arc<Vdisk>,
    kept: Mutex<Vec<Box<Cmd>>>,
}

fn name_of(cmd: &Cmd) -> (String, u64) {
    (cmd.session().initiator_name().to_owned(), cmd.tag())
}

impl Gate {
    fn run(&self, cmd: Box<Cmd>) {
        match self.disk.exec(cmd, ExecContext::Thread) {
            ExecRes::Completed(cmd) => cmd_done(cmd),
            ExecRes::Pending => {}
            ExecRes::NeedThread(cmd) => panic!("on a thread already: {cmd:?}"),
        }
    }

    /// Of whom, and their tags.
    fn tags(&self) -> Vec<(String, u64)> {
        self.kept.lock().iter().map(|c| name_of(c)).collect()
    }

    fn release(&self, name: &(String, u64)) {
        let cmd = {
            let mut kept = self.kept.lock();
            let at = kept.iter().position(|c| name_of(c) == *name).expect("kept");
            kept.remove(at)
        };
        self.run(cmd);
    }
}

/// The handler of the core.
struct GateHandler(Arc<Gate>);

impl DevHandler for GateHandler {
    fn name(&self) -> &'static str {
        DevHandler::name(&*self.0.disk)
    }
    fn type_code(&self) -> u8 {
        0
    }
    fn block_shift(&self) -> u8 {
        9
    }
    fn attach(&self, dev: &Arc<Device>) -> kshim::error::Result {
        self.0.disk.attach(dev)
    }
    fn detach(&self, dev: &Device) {
        self.0.disk.detach(dev);
    }
    fn attach_tgt(&self, t: &TgtDev) -> kshim::error::Result {
        self.0.disk.attach_tgt(t)
    }
    fn detach_tgt(&self, t: &TgtDev) {
        self.0.disk.detach_tgt(t);
    }
    fn parse(&self, cmd: &mut Cmd) {
        self.0.disk.parse(cmd);
    }
    fn alloc_data_buf(&self, cmd: &mut Cmd) -> BufAlloc {
        self.0.disk.alloc_data_buf(cmd)
    }
    fn exec(&self, cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        if matches!(cmd.cdb()[0], READ | WRITE) && cmd.cdb()[1] & KEEP != 0 {
            self.0.kept.lock().push(cmd);
            return ExecRes::Pending;
        }
        self.0.disk.exec(cmd, cx)
    }
    fn dev_done(&self, cmd: &mut Cmd) {
        self.0.disk.dev_done(cmd);
    }
    fn on_free_cmd(&self, cmd: &mut Cmd) {
        self.0.disk.on_free_cmd(cmd);
    }
    fn task_mgmt_fn_received(&self, m: &MgmtCmd, t: &TgtDev) {
        self.0.disk.task_mgmt_fn_received(m, t);
        let aborted: Vec<_> = {
            let mut kept = self.0.kept.lock();
            kept.extract_if(.., |c| c.is_aborted()).collect()
        };
        aborted.into_iter().for_each(|c| self.0.run(c));
    }
    fn task_mgmt_fn_done(&self, m: &MgmtCmd, t: &TgtDev) {
        self.0.disk.task_mgmt_fn_done(m, t);
    }
}

fn control_bytes(tst: u8, c: Control) -> [u8; 4] {
    let bit = |on: bool, n: u8| if on { n } else { 0 };
    [
        tst << 5 | bit(c.tmf_only, 0x10) | bit(c.dpicz, 0x08) | bit(c.d_sense, 0x04),
        c.qam << 4 | c.qerr << 1,
        bit(c.swp, 0x08),
        bit(c.tas, 0x40),
    ]
}

fn spec(op: Op, keep: bool) -> Spec {
    let dpo = if keep { KEEP } else { 0 };
    match op {
        Op::Tur => Spec::tur(),
        Op::RequestSense => {
            Spec::new(0, &[REQUEST_SENSE, 0, 0, 0, 252, 0]).expect(DataDirection::Read, 252)
        }
        Op::Read { block } => Spec::new(0, &[READ, dpo, 0, 0, 0, block as u8, 0, 0, 1, 0]),
        Op::Write { block, byte } => {
            let mut s = Spec::new(0, &[WRITE, dpo, 0, 0, 0, block as u8, 0, 0, 1, 0]);
            s.out = vec![byte; 512];
            s
        }
        Op::ModeSense => {
            Spec::new(0, &[MODE_SENSE, 8, CONTROL_PAGE, 0, 64, 0]).expect(DataDirection::Read, 64)
        }
        Op::ModeSelect { to, tst, noise } => {
            let [a, b, c, d] = control_bytes(tst, to);
            // UA_INTLCK_CTRL, RLEC and ATO are not changeable.
            let (c, d) = (c | noise & 0x30, d | noise & 0x80);
            let out = vec![0, 0, 0, 0, CONTROL_PAGE, 10, a, b, c, d, 0, 0, 0, 0, 0, 0];
            let mut s = Spec::new(0, &[MODE_SELECT, 0x10, 0, 0, 16, 0]);
            s.out = out;
            s.expect(DataDirection::Write, 16)
        }
        Op::Pr(op) => op.spec(),
    }
}

fn answer(op: Op, a: &Answer) -> Expect {
    match (a.status, op) {
        (SamStatus::Good, Op::RequestSense) => {
            let s = sense::parse(&a.data).expect("sense data");
            Expect::Sense((s.key != 0).then_some(s))
        }
        (SamStatus::Good, Op::ModeSense) => {
            let p = &a.data[6..10];
            let c = Control {
                qerr: p[1] >> 1 & 3,
                qam: p[1] >> 4,
                tas: p[3] & 0x40 != 0,
                d_sense: p[0] & 4 != 0,
                swp: p[2] & 8 != 0,
                tmf_only: p[0] & 0x10 != 0,
                dpicz: p[0] & 8 != 0,
            };
            // WP of the device-specific parameter.
            assert_eq!(a.data[2] & 0x80 != 0, c.swp);
            Expect::Control(p[0] >> 5, c)
        }
        (SamStatus::Good, _) => Expect::Good(a.data.clone()),
        (SamStatus::ReservationConflict, _) => Expect::Conflict,
        (SamStatus::CheckCondition, _) => {
            Expect::Check(a.sense().expect("sense"), a.sense[0] & 0x7F == 0x72)
        }
        (other, _) => Expect::Status(other),
    }
}

/// The logical unit, the model, and who was compared already.
struct Play {
    seed: u64,
    step: usize,
    rng: Rng,
    rig: Option<Rig>,
    gate: Arc<Gate>,
    inis: Vec<Option<Ini>>,
    model: Model,
    /// Tags of the model's tasks.
    tags: Vec<u64>,
    compared: Vec<bool>,
    log: Vec<String>,
    /// Reservation commands are so frequent.
    pr_weight: u64,
}

impl Play {
    fn new(seed: u64, disk: &str) -> Self {
        let mut rng = Rng(seed);
        let inis = 2 + rng.below(2) as usize;
        let tst = rng.below(2) as u8;
        let tst_text = tst.to_string();
        let params = [("filename", disk), ("tst", tst_text.as_str())];
        let params = VdiskParams::parse(VdiskKind::Blockio, &params).expect("known");
        let disk = Vdisk::new("nexus", &params).expect("device");
        let gate = Arc::new(Gate {
            disk,
            kept: Mutex::default(),
        });
        let handler: Arc<dyn DevHandler> = Arc::new(GateHandler(Arc::clone(&gate)));
        let rig = Rig::of(vec![("nexus".to_owned(), handler, false)]);
        let sessions = NAMES[..inis]
            .iter()
            .map(|n| Some(rig.fresh_ini(n).own_tags()));
        let sessions = sessions.collect();
        let mut model = Model::new(inis, tst);
        (0..inis).for_each(|n| model.login(n));
        let pr_weight = rng.pick(&[2, 8, 30]);
        Self {
            seed,
            step: 0,
            rng,
            rig: Some(rig),
            gate,
            inis: sessions,
            model,
            tags: Vec::new(),
            compared: Vec::new(),
            log: Vec::new(),
            pr_weight,
        }
    }

    /// What the handler knows a task by.
    fn name_of(&self, i: usize) -> (String, u64) {
        (NAMES[self.model.tasks[i].ini].to_owned(), self.tags[i])
    }

    fn ini(&mut self, n: usize) -> &mut Ini {
        self.inis[n].as_mut().expect("logged in")
    }

    fn pr_op(&mut self) -> PrOp {
        let inis = self.model.inis as u64;
        let rng = &mut self.rng;
        let (key, new) = (rng.below(4), rng.below(4));
        match rng.below(28) {
            0..=2 => PrOp::Reserve6,
            3..=5 => PrOp::Release6,
            6..=8 => PrOp::In(rng.below(4) as u8),
            9 => PrOp::Spec {
                new: 1 + rng.below(3),
                other: rng.below(inis) as usize,
            },
            10 | 11 => PrOp::Move {
                key,
                new,
                unreg: rng.below(2) == 0,
                to: rng.below(inis) as usize,
            },
            _ => PrOp::Out(rng.below(7) as u8, rng.pick(&TYPES), key, new),
        }
    }

    fn control(&mut self) -> Control {
        let rng = &mut self.rng;
        let mut c = self.model.ctl;
        match rng.below(8) {
            0 | 1 => c.qerr = rng.below(4) as u8,
            2 => c.qam = rng.pick(&[0, 1, 1, 1, 2]),
            3 => c.tas = !c.tas,
            4 => c.d_sense = !c.d_sense,
            5 => c.swp = !c.swp,
            6 => c.tmf_only = !c.tmf_only,
            _ => c.dpicz = !c.dpicz,
        }
        // Back to what lets things happen, at times.
        if rng.below(4) == 0 {
            (c.swp, c.qam) = (false, 1);
        }
        c
    }

    fn op(&mut self, ini: usize) -> Op {
        let block = ini * (BLOCKS / NAMES.len()) + self.rng.below(4) as usize;
        if self.rng.below(40) < self.pr_weight {
            return Op::Pr(self.pr_op());
        }
        match self.rng.below(12) {
            0 | 1 => Op::Tur,
            2 => Op::RequestSense,
            3..=5 => Op::Read { block },
            6..=8 => Op::Write {
                block,
                byte: self.rng.next() as u8,
            },
            9 => Op::ModeSense,
            _ => Op::ModeSelect {
                to: self.control(),
                tst: if self.rng.below(12) == 0 {
                    1 - self.model.tst
                } else {
                    self.model.tst
                },
                noise: self.rng.next() as u8,
            },
        }
    }

    /// Where commands of several initiators would go on at the same time and their order decided, there is nothing to
    /// compare: such commands are not sent.
    fn is_sent(&self, ini: usize, op: Op, q: QueueType, naca: bool, keep: bool) -> bool {
        let m = &self.model;
        if m.live() >= MAX_LIVE {
            return false;
        }
        let waits = m.would_wait(ini, op, q);
        // HEAD OF QUEUE commands pass others that wait for the device.
        if waits.is_some() && !matches!(q, QueueType::Simple | QueueType::Ordered) {
            return false;
        }
        match op {
            Op::ModeSelect { .. } if q == QueueType::Aca => false,
            Op::ModeSelect { to, .. } => match waits {
                None => true,
                Some(for_device) => {
                    for_device && !naca && m.ctl.qerr == 0 && to.qerr == 0 && !m.any_naca_waits()
                }
            },
            Op::Read { .. } | Op::Write { .. } if waits.is_some() || keep => {
                let apart = m.tst == 1 || !naca && m.ctl.qerr != 1;
                apart && !(naca && m.mode_select_waits())
            }
            _ => waits.is_none(),
        }
    }

    fn command(&mut self, ini: usize) {
        let op = self.op(ini);
        let q = match self.rng.below(14) {
            0 | 1 => QueueType::Ordered,
            2 => QueueType::HeadOfQueue,
            3 if self.model.has_aca() || self.rng.below(6) == 0 => QueueType::Aca,
            3 if self.rng.below(2) == 0 => QueueType::Untagged,
            _ if self.model.has_aca() && self.rng.below(3) == 0 => QueueType::Aca,
            _ => QueueType::Simple,
        };
        let naca = self.rng.below(7) == 0;
        let keep = matches!(op, Op::Read { .. } | Op::Write { .. }) && self.rng.below(5) < 2;
        let q_model = if q == QueueType::Untagged {
            QueueType::Simple
        } else {
            q
        };
        // An UNTAGGED command is never HEAD OF QUEUE by its operation code.
        if q == QueueType::Untagged && op == Op::Tur {
            return;
        }
        if !self.is_sent(ini, op, q_model, naca, keep) {
            return;
        }
        self.log.push(format!(
            "{} {op:?} {q:?}{}{}",
            NAMES[ini],
            if naca { " NACA" } else { "" },
            if keep { " kept" } else { "" }
        ));
        let mut s = spec(op, keep).queue(q);
        if naca {
            *s.cdb.last_mut().expect("a CDB") |= 4;
        }
        self.model.arrive(ini, op, q_model, naca, keep);
        let tag = self.ini(ini).send(&s);
        self.tags.push(tag);
        self.compared.push(false);
    }

    fn task_management(&mut self, ini: usize) {
        let f = self.rng.pick(&[
            TmFunction::AbortTask,
            TmFunction::AbortTask,
            TmFunction::AbortTask,
            TmFunction::AbortTaskSet,
            TmFunction::ClearTaskSet,
            TmFunction::ClearAca,
            TmFunction::ClearAca,
            TmFunction::ClearAca,
            TmFunction::LunReset,
            TmFunction::TargetReset,
            TmFunction::NexusReset,
            TmFunction::QueryTask,
            TmFunction::QueryTaskSet,
        ]);
        // Which unit attention is the first would depend on threads, and who still meets the reservation.
        let m = &self.model;
        if f == TmFunction::NexusReset
            && (m.holds_check_of(ini) || m.reservation_is_waited_for(ini))
        {
            return;
        }
        let own = self.model.live_of(ini);
        let named = matches!(f, TmFunction::AbortTask | TmFunction::QueryTask);
        let target = (named && !own.is_empty()).then(|| self.rng.pick(&own));
        self.log.push(format!("{} {f:?} {target:?}", NAMES[ini]));
        let tag = target.map_or(u64::MAX, |i| self.tags[i]);
        let want = self.model.tm(ini, f, target);
        self.ini(ini).check_tm = !matches!(f, TmFunction::QueryTask | TmFunction::QueryTaskSet);
        let id = self.ini(ini).tm(f, 0, tag);
        self.wait("task management", |p| {
            p.inis[ini]
                .as_ref()
                .is_some_and(|i| i.tm_status(id).is_some())
        });
        let got = self.ini(ini).tm_status(id);
        assert_eq!(got, Some(want), "{f:?}: {self}");
    }

    fn relogin(&mut self, ini: usize) {
        if self.model.reservation_is_waited_for(ini) {
            return;
        }
        self.log
            .push(format!("{} is lost and comes back", NAMES[ini]));
        self.model.tm(ini, TmFunction::NexusLossSess, None);
        let id = self.ini(ini).tm(TmFunction::NexusLossSess, 0, 0);
        self.wait("nexus loss", |p| {
            p.inis[ini]
                .as_ref()
                .is_some_and(|i| i.tm_status(id).is_some())
        });
        self.compare();
        self.inis[ini].take().expect("logged in").leave();
        let rig = self.rig.as_ref().expect("there");
        self.inis[ini] = Some(rig.fresh_ini(NAMES[ini]).own_tags());
        self.model.login(ini);
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Delta::from_secs(mock::STUCK_S);
        loop {
            let mut any = false;
            for ini in self.inis.iter_mut().flatten() {
                any |= ini.pump();
            }
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "stuck: {what}: {self}");
            if !any {
                kshim::time::delay::fsleep(Delta::from_micros(20));
            }
        }
    }

    /// Waits until everything is as in the model, and compares the answers.
    fn compare(&mut self) {
        self.wait("what should have ended", |p| {
            let tasks = p.model.tasks.iter().enumerate();
            let ended = tasks.filter(|(i, t)| !t.is_live() && !p.compared[*i]);
            let ended = ended.into_iter().all(|(i, t)| {
                let ini = p.inis[t.ini].as_ref().expect("logged in");
                ini.has_ended(p.tags[i])
            });
            ended && p.gate.tags().len() == p.model.in_gate().len()
        });
        let kept = self.model.in_gate();
        let mut want: Vec<_> = kept.into_iter().map(|i| self.name_of(i)).collect();
        let mut got = self.gate.tags();
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want, "kept by the handler: {self}");
        for i in 0..self.compared.len() {
            let t = &self.model.tasks[i];
            let ini = self.inis[t.ini].as_ref().expect("logged in");
            if t.is_live() {
                assert!(!ini.has_ended(self.tags[i]), "{i} ended: {self}");
                continue;
            }
            if std::mem::replace(&mut self.compared[i], true) {
                continue;
            }
            let got = ini.answer(self.tags[i]).map(|a| answer(t.op, &a));
            let want = t.result.clone().filter(|_| t.answered);
            assert_eq!(got, want, "command {i}, {t:?}: {self}");
        }
    }

    fn step(&mut self) {
        let ini = self.rng.below(self.model.inis as u64) as usize;
        let kept = self.model.in_gate();
        match self.rng.below(30) {
            0 => self.relogin(ini),
            1..=4 => self.task_management(ini),
            5..=9 if !kept.is_empty() => {
                let i = self.rng.pick(&kept);
                self.log.push(format!("{i} is done"));
                self.model.release(i);
                self.gate.release(&self.name_of(i));
            }
            _ => self.command(ini),
        }
        self.compare();
    }

    /// Everything ends.
    fn finish(mut self) {
        for ini in 0..self.model.inis {
            self.model.tm(ini, TmFunction::ClearAca, None);
            let id = self.ini(ini).tm(TmFunction::ClearAca, 0, 0);
            self.wait("CLEAR ACA", |p| {
                p.inis[ini]
                    .as_ref()
                    .is_some_and(|i| i.tm_status(id).is_some())
            });
            self.compare();
        }
        // The end of one ACA may let a command of another nexus go on that makes the next.
        if self.model.has_aca() {
            return self.finish();
        }
        while let Some(i) = self.model.in_gate().first().copied() {
            self.log.push(format!("{i} is done"));
            self.model.release(i);
            self.gate.release(&self.name_of(i));
            self.compare();
            if self.model.has_aca() {
                return self.finish();
            }
        }
        let waits = self.model.tasks.iter().find(|t| t.is_live());
        assert!(waits.is_none(), "{waits:?}: {self}");
        self.inis.iter_mut().for_each(|i| {
            i.take().expect("logged in").close();
        });
        self.rig.take().expect("there").teardown();
    }
}

impl std::fmt::Display for Play {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let m = &self.model;
        writeln!(
            f,
            "seed {}, step {}, TST={}, {:?}",
            self.seed, self.step, m.tst, m.ctl
        )?;
        for line in &self.log {
            writeln!(f, "  {line}")?;
        }
        for (i, t) in m
            .tasks
            .iter()
            .enumerate()
            .filter(|(_, t)| t.at != At::Ended)
        {
            writeln!(f, "  {i}: {t:?}")?;
        }
        Ok(())
    }
}

/// Tells the seed of a case that fails where the play is not to be shown any more.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the case of seed {}", self.0);
        }
    }
}

#[test]
fn initiators_get_what_the_model_says() {
    let number = |name: &str, default: u64| {
        let v = std::env::var(name).ok();
        v.map_or(default, |v| v.parse().expect(name))
    };
    let first = number("SCST_SEED", 1);
    let cases = number("SCST_NEXUS_CASES", CASES);
    for seed in first..first.saturating_add(cases) {
        let name = format!("/dev/ram/nexus-{seed}");
        let store = ram::Ram::without_lending(BLOCKS * 512);
        let _disk = register_disk(&name, store).expect("new name");
        let _told = Told(seed);
        let mut play = Play::new(seed, &name);
        for step in 0..STEPS {
            play.step = step;
            play.step();
        }
        play.finish();
    }
}
