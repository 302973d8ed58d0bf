//! Device groups through the state machine: random changes against a model, SET TARGET PORT GROUPS, transitions.

mod common;

use common::Rig;
use kshim::error::code;
use kshim::kthread::{self, Kthread};
use kshim::sync::{Completion, SpinLock};
use kshim::time::{Delta, Instant};
use proptest::prelude::*;
use scst_core::alua::{StpgGroup, TgState};
use scst_core::cmd::{Cmd, ExecRes};
use scst_core::core::Core;
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::dev_type::{DevHandler, ExecContext};
use scst_core::device::Device;
use scst_core::event::{Filter, Kind, Listener};
use scst_core::sense;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const TUR: [u8; 6] = [0; 6];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 96, 0];
const RTPG: [u8; 12] = [0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
const LOCAL: &str = "iqn.test";

fn rig(n: usize) -> Rig {
    let disk = |i: usize| {
        let params = VdiskParams::new(VdiskKind::Nullio);
        (Vdisk::new(&format!("d{i}"), &params).expect("null"), false)
    };
    Rig::new(&(0..n).map(disk).collect::<Vec<_>>())
}

/// A group as the model has it.
#[derive(Clone, Debug, Default)]
struct ModelTg {
    name: String,
    id: u16,
    state: TgState,
    preferred: bool,
    tgts: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct ModelDg {
    name: String,
    devs: Vec<usize>,
    tgs: Vec<ModelTg>,
}

#[derive(Clone, Debug)]
enum Op {
    DgAdd(u8),
    DgRemove(u8),
    DevAdd(u8, usize),
    DevRemove(u8, usize),
    TgAdd(u8, u8),
    TgRemove(u8, u8),
    TgtAdd(u8, u8, u8),
    TgtRemove(u8, u8, u8),
    Id(u8, u8, u16),
    State(u8, u8, usize),
    Preferred(u8, u8, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let (g, t, d) = (0u8..2, 0u8..3, 0usize..2);
    prop_oneof![
        2 => g.clone().prop_map(Op::DgAdd),
        1 => g.clone().prop_map(Op::DgRemove),
        3 => (g.clone(), d.clone()).prop_map(|(g, d)| Op::DevAdd(g, d)),
        1 => (g.clone(), d).prop_map(|(g, d)| Op::DevRemove(g, d)),
        4 => (g.clone(), t.clone()).prop_map(|(g, t)| Op::TgAdd(g, t)),
        1 => (g.clone(), t.clone()).prop_map(|(g, t)| Op::TgRemove(g, t)),
        4 => (g.clone(), t.clone(), 0u8..3).prop_map(|(g, t, p)| Op::TgtAdd(g, t, p)),
        1 => (g.clone(), t.clone(), 0u8..3).prop_map(|(g, t, p)| Op::TgtRemove(g, t, p)),
        3 => (g.clone(), t.clone(), 0u16..4).prop_map(|(g, t, i)| Op::Id(g, t, i)),
        8 => (g.clone(), t.clone(), 0usize..5).prop_map(|(g, t, s)| Op::State(g, t, s)),
        3 => (g, t, any::<bool>()).prop_map(|(g, t, p)| Op::Preferred(g, t, p)),
    ]
}

fn port(p: u8) -> String {
    match p {
        0 => LOCAL.to_owned(),
        n => format!("remote{n}"),
    }
}

/// The obviously correct one.
#[derive(Clone, Debug, Default)]
struct Model {
    dgs: Vec<ModelDg>,
    /// Whether ASYMMETRIC ACCESS STATE CHANGED waits at each device.
    ua: [bool; 2],
}

type Errno = Result<(), kshim::error::Error>;

impl Model {
    fn dg(&mut self, g: u8) -> Result<&mut ModelDg, kshim::error::Error> {
        let name = format!("g{g}");
        let found = self.dgs.iter_mut().find(|d| d.name == name);
        found.ok_or(code::EINVAL)
    }

    fn tg(&mut self, g: u8, t: u8) -> Result<&mut ModelTg, kshim::error::Error> {
        let name = format!("t{t}");
        let found = self.dg(g)?.tgs.iter_mut().find(|d| d.name == name);
        found.ok_or(code::EINVAL)
    }

    /// Who is told when a group with this port changes.
    fn tell(&mut self, g: u8, t: u8) -> Errno {
        if self.tg(g, t)?.tgts.iter().any(|p| p == LOCAL) {
            for d in self.dg(g)?.devs.clone() {
                self.ua[d] = true;
            }
        }
        Ok(())
    }

    fn set_state(&mut self, g: u8, t: u8, state: TgState) -> Errno {
        if self.tg(g, t)?.state != state {
            self.tg(g, t)?.state = state;
            self.tell(g, t)?;
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Errno {
        match *op {
            Op::DgAdd(g) => {
                if self.dg(g).is_ok() {
                    return Err(code::EEXIST);
                }
                self.dgs.push(ModelDg {
                    name: format!("g{g}"),
                    ..ModelDg::default()
                });
            }
            Op::DgRemove(g) => {
                self.dg(g)?;
                for t in 0..3 {
                    let _ = self.set_state(g, t, TgState::Optimized);
                }
                self.dgs.retain(|d| d.name != format!("g{g}"));
            }
            Op::DevAdd(g, d) => {
                if self.dgs.iter().any(|dg| dg.devs.contains(&d)) {
                    return Err(code::EEXIST);
                }
                self.dg(g)?.devs.push(d);
            }
            Op::DevRemove(g, d) => {
                let devs = &mut self.dg(g)?.devs;
                let at = devs.iter().position(|x| *x == d).ok_or(code::EINVAL)?;
                devs.remove(at);
            }
            Op::TgAdd(g, t) => {
                self.dg(g)?;
                if self.tg(g, t).is_ok() {
                    return Err(code::EEXIST);
                }
                self.dg(g)?.tgs.push(ModelTg {
                    name: format!("t{t}"),
                    ..ModelTg::default()
                });
            }
            Op::TgRemove(g, t) => {
                self.tg(g, t)?;
                self.dg(g)?.tgs.retain(|x| x.name != format!("t{t}"));
            }
            Op::TgtAdd(g, t, p) => {
                if self.dg(g)?.tgs.iter().any(|x| x.tgts.contains(&port(p))) {
                    return Err(code::EEXIST);
                }
                self.tg(g, t)?.tgts.push(port(p));
            }
            Op::TgtRemove(g, t, p) => {
                self.tg(g, t)?;
                let tgs = &mut self.dg(g)?.tgs;
                let of = tgs.iter_mut().find(|x| x.tgts.contains(&port(p)));
                of.ok_or(code::EINVAL)?.tgts.retain(|x| *x != port(p));
            }
            Op::Id(g, t, id) => {
                if id == 0 {
                    self.dg(g)?;
                    return Err(code::EINVAL);
                }
                self.tg(g, t)?.id = id;
            }
            Op::State(g, t, s) => self.set_state(g, t, TgState::ALL[s])?,
            Op::Preferred(g, t, p) => {
                if self.tg(g, t)?.preferred != p {
                    self.tg(g, t)?.preferred = p;
                    self.tell(g, t)?;
                }
            }
        }
        Ok(())
    }

    fn group_of(&self, dev: usize) -> Option<&ModelDg> {
        self.dgs.iter().find(|d| d.devs.contains(&dev))
    }

    fn state_at(&self, dev: usize) -> (TgState, u16) {
        let at = self.group_of(dev);
        let tg = at.and_then(|d| d.tgs.iter().find(|t| t.tgts.iter().any(|p| p == LOCAL)));
        tg.map_or((TgState::Optimized, 0), |t| (t.state, t.id))
    }

    fn report(&self, dev: usize) -> Vec<u8> {
        let mut out = vec![0; 4];
        for tg in self.group_of(dev).into_iter().flat_map(|d| &d.tgs) {
            let [hi, lo] = tg.id.to_be_bytes();
            let first = u8::from(tg.preferred) << 7 | tg.state as u8;
            out.extend([first, 0xCF, hi, lo, 0, 2, 0, tg.tgts.len() as u8]);
            for p in &tg.tgts {
                out.extend([0, 0, 0, u8::from(p == LOCAL)]);
            }
        }
        out[3] = (out.len() - 4) as u8;
        out
    }
}

fn apply(rig: &Rig, op: &Op) -> Errno {
    let core = rig.core();
    let (g, t) = (|g: u8| format!("g{g}"), |t: u8| format!("t{t}"));
    match *op {
        Op::DgAdd(d) => core.dg_add(&g(d)),
        Op::DgRemove(d) => core.dg_remove(&g(d)),
        Op::DevAdd(d, n) => core.dg_dev_add(&g(d), &format!("d{n}")),
        Op::DevRemove(d, n) => core.dg_dev_remove(&g(d), &format!("d{n}")),
        Op::TgAdd(d, n) => core.tg_add(&g(d), &t(n)),
        Op::TgRemove(d, n) => core.tg_remove(&g(d), &t(n)),
        Op::TgtAdd(d, n, p) => core.tg_tgt_add(&g(d), &t(n), &port(p)),
        Op::TgtRemove(d, n, p) => core.tg_tgt_remove(&g(d), &t(n), &port(p)),
        Op::Id(d, n, id) => core.tg_set_id(&g(d), &t(n), id),
        Op::State(d, n, s) => core.tg_set_state(&g(d), &t(n), TgState::ALL[s]),
        Op::Preferred(d, n, p) => core.tg_set_preferred(&g(d), &t(n), p),
    }
}

fn check(rig: &mut Rig, model: &mut Model, dev: usize) {
    let lun = dev as u64;
    let (state, id) = model.state_at(dev);
    let inq = rig.read(lun, &INQUIRY, 96).data;
    let gone = matches!(state, TgState::Unavailable | TgState::Offline);
    assert_eq!(inq[0], if gone { 0x20 } else { 0 });
    let tpgs = if model.group_of(dev).is_some() {
        0x10
    } else {
        0
    };
    assert_eq!(inq[5] & 0x30, tpgs);
    let page = rig.read(lun, &[0x12, 1, 0x83, 0, 255, 0], 255).data;
    let at = page.windows(4).position(|w| w == [1, 0x15, 0, 4]);
    let told = at.map_or(0, |at| u16::from_be_bytes([page[at + 6], page[at + 7]]));
    assert_eq!(told, id, "port group in page 83h");
    if std::mem::take(&mut model.ua[dev]) {
        let told = rig.read(lun, &RTPG, 1024).sense();
        assert_eq!(told, Some(sense::ASYM_ACCESS_STATE_CHANGED));
    }
    assert_eq!(rig.read(lun, &RTPG, 1024).data, model.report(dev));
    let tur = rig.tur(lun);
    let want = match state {
        TgState::Standby => Some(sense::ALUA_STANDBY),
        s if !s.is_active() => Some(sense::ALUA_UNAV),
        _ => None,
    };
    assert_eq!(tur.sense(), want, "TEST UNIT READY in state {state:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("SCST_ALUA_CASES").map_or(64, |n| n.parse().expect("a number"))
    ))]
    #[test]
    fn groups_behave_as_the_model(ops in proptest::collection::vec(op(), 1..80)) {
        let mut rig = rig(2);
        let mut model = Model::default();
        for (n, op) in ops.iter().enumerate() {
            let before = model.clone();
            let want = model.apply(op);
            if want.is_err() {
                model = before;
            }
            prop_assert_eq!(apply(&rig, op), want, "{:?}", op);
            if n % 3 == 0 {
                check(&mut rig, &mut model, 0);
                check(&mut rig, &mut model, 1);
            }
        }
        check(&mut rig, &mut model, 0);
        check(&mut rig, &mut model, 1);
    }
}

/// A device group with all the rig's devices, and this server's port in group 5, a remote one in group 6.
fn grouped(n: usize) -> Rig {
    let rig = rig(n);
    let core = rig.core();
    let r = || {
        core.dg_add("dg")?;
        for i in 0..n {
            core.dg_dev_add("dg", &format!("d{i}"))?;
        }
        core.tg_add("dg", "here")?;
        core.tg_set_id("dg", "here", 5)?;
        core.tg_tgt_add("dg", "here", LOCAL)?;
        core.tg_add("dg", "there")?;
        core.tg_set_id("dg", "there", 6)?;
        core.tg_tgt_add("dg", "there", "remote")?;
        core.tg_tgt_set_rel_tgt_id("dg", "there", "remote", 300)
    };
    r().expect("groups");
    rig
}

#[test]
fn commands_wait_once_for_the_end_of_a_transition() {
    let mut rig = grouped(1);
    let core = Arc::clone(rig.core());
    core.tg_set_state("dg", "here", TgState::Transitioning)
        .expect("state");
    let start = Instant::now();
    assert_eq!(rig.tur(0).sense(), Some(sense::ALUA_TRANSITIONING));
    let waited_ns = Instant::now().as_nanos() - start.as_nanos();
    assert!(waited_ns >= 400_000_000, "it had waited");
    assert!(rig.read(0, &INQUIRY, 96).is_good());
    // The end of the transition lets them go on.
    let other = common::in_a_while(move || {
        core.tg_set_state("dg", "here", TgState::NonOptimized)
            .expect("state");
    });
    let told = rig.tur(0);
    other.stop();
    assert_eq!(told.sense(), Some(sense::ASYM_ACCESS_STATE_CHANGED));
    assert!(rig.tur(0).is_good());
}

/// SET TARGET PORT GROUPS for groups 5 and 6.
fn set(states: &[(u8, u16)]) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0; 4];
    for (state, id) in states {
        let [hi, lo] = id.to_be_bytes();
        list.extend([*state, 0, hi, lo]);
    }
    let mut cdb = vec![0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[8..10].copy_from_slice(&(list.len() as u16).to_be_bytes());
    (cdb, list)
}

#[test]
fn explicit_changes_are_refused_without_expl_alua_or_a_handler() {
    let mut rig = grouped(1);
    let (cdb, list) = set(&[(2, 5)]);
    let refused = rig.write(0, &cdb, &list);
    assert_eq!(refused.sense(), Some(sense::INVALID_FIELD_IN_CDB));
    let dev = rig.core().device("d0").expect("there");
    dev.expl_alua.store(true, Ordering::Relaxed);
    assert_eq!(rig.read(0, &INQUIRY, 96).data[5] & 0x30, 0x30);
    let failed = rig.write(0, &cdb, &list);
    assert_eq!(failed.sense(), Some(sense::SET_TARGET_PGS_FAILED));
    for (bad, why) in [
        (set(&[(2, 0)]), "group 0"),
        (set(&[(2, 9)]), "no such group"),
        (set(&[(4, 5)]), "LBA dependent"),
        (set(&[(15, 5)]), "transitioning"),
    ] {
        let failed = rig.write(0, &bad.0, &bad.1);
        assert_eq!(failed.sense(), Some(sense::SET_TARGET_PGS_FAILED), "{why}");
    }
    let (cdb, list) = set(&[(0, 5), (0, 6)]);
    assert!(rig.write(0, &cdb, &list).is_good(), "nothing to change");
    let one = [(2, 5)];
    let (cdb, list) = set(&one.repeat(63));
    let many = rig.write(0, &cdb, &list);
    assert_eq!(many.sense(), Some(sense::SET_TARGET_PGS_FAILED));
    rig.core()
        .tg_set_state("dg", "here", TgState::Transitioning)
        .expect("state");
    let (cdb, list) = set(&[(0, 6), (0, 5)]);
    let delayed = rig.write(0, &cdb, &list);
    assert_eq!(delayed.sense(), Some(sense::ALUA_TRANSITIONING));
}

fn listens(core: &Arc<Core>) -> Listener {
    let listener = core.events().listen();
    let wants = Filter::code(Kind::code_of("STPG_USER_INVOKE").expect("known"));
    listener.allow(wants).expect("allowed");
    listener
}

/// Ends with the value.
struct CarriesOut(Arc<Listener>, Option<Kthread>);

impl Drop for CarriesOut {
    fn drop(&mut self) {
        self.0.close();
        self.1.take().expect("a thread").join();
    }
}

/// Answers SET TARGET PORT GROUPS for a device with what the function says.
fn carry_out(
    core: &Arc<Core>,
    f: impl Fn(&Core, &str, &[StpgGroup]) -> i32 + Send + 'static,
) -> CarriesOut {
    let listener = Arc::new(listens(core));
    let (own, weak) = (Arc::clone(&listener), Arc::downgrade(core));
    let thread = kthread::run("stpgd", move |_| {
        while let Ok(d) = own.wait_next() {
            let kind = Kind::decode(d.event.code, &d.event.payload);
            let Some(Kind::StpgUserInvoke { device, groups, .. }) = kind else {
                panic!("{d:?}");
            };
            let core = weak.upgrade().expect("alive");
            let status = f(&core, &device, &groups);
            own.done(d.id, status).expect("asked");
        }
    });
    CarriesOut(listener, Some(thread.expect("a thread")))
}

#[test]
fn an_explicit_change_is_carried_out_by_who_listens() {
    let mut rig = grouped(2);
    let mut other = rig.another("iqn.other");
    for name in ["d0", "d1"] {
        let dev = rig.core().device(name).expect("there");
        dev.expl_alua.store(true, Ordering::Relaxed);
    }
    type Asked = (String, Vec<StpgGroup>);
    let seen: Arc<SpinLock<Vec<Asked>>> = Arc::default();
    let asked = Arc::clone(&seen);
    let listener = carry_out(rig.core(), move |core, device, groups| {
        for g in groups {
            core.tg_set_state(&g.dg, &g.tg, g.new_state).expect("state");
        }
        asked.lock().push((device.to_owned(), groups.to_vec()));
        0
    });
    let (cdb, list) = set(&[(1, 5), (0, 6)]);
    assert!(rig.write(0, &cdb, &list).is_good());
    let seen = std::mem::take(&mut *seen.lock());
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, "d0");
    let [group] = &seen[0].1[..] else {
        panic!("only what changes: {seen:?}")
    };
    let states = (group.prev_state, group.new_state);
    assert_eq!((group.tg.as_str(), group.id), ("here", 5));
    assert_eq!(states, (TgState::Optimized, TgState::NonOptimized));
    // Who asked is not told, others are; the other device goes on.
    assert!(rig.tur(0).is_good() && rig.tur(1).is_good());
    for lun in 0..2 {
        let told = other.send(lun, &TUR, None, &[]).sense();
        assert_eq!(told, Some(sense::ASYM_ACCESS_STATE_CHANGED));
    }
    // Who changes nothing has failed, and so has who fails, or goes, or is not there.
    drop(listener);
    let listener = carry_out(rig.core(), |_, _, _| 0);
    let (cdb, list) = set(&[(0, 5)]);
    let failed = rig.write(1, &cdb, &list);
    assert_eq!(failed.sense(), Some(sense::SET_TARGET_PGS_FAILED));
    drop(listener);
    let leaves = Arc::new(listens(rig.core()));
    let own = Arc::clone(&leaves);
    let leaver = kthread::run("leaver", move |_| {
        own.wait_next().expect("a question");
        own.close();
    });
    let failed = rig.write(0, &cdb, &list);
    assert_eq!(failed.sense(), Some(sense::SET_TARGET_PGS_FAILED));
    leaver.expect("a thread").join();
    let failed = rig.write(0, &cdb, &list);
    assert_eq!(failed.sense(), Some(sense::SET_TARGET_PGS_FAILED));
    assert!(rig.tur(0).is_good() && rig.tur(1).is_good());
    drop(other);
}

/// A block or file device that is bound to the state has its backing store open in active states only.
#[test]
fn a_bound_device_is_closed_while_it_is_not_active() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("a size");
    let path = file.path().to_str().expect("text");
    let params = [("filename", path), ("bind_alua_state", "1")];
    let params = VdiskParams::parse(VdiskKind::Fileio, &params).expect("parameters");
    let disk = Vdisk::new("d0", &params).expect("disk");
    let mut rig = Rig::new(&[(Arc::clone(&disk), false)]);
    let core = Arc::clone(rig.core());
    core.dg_add("dg").expect("new");
    core.dg_dev_add("dg", "d0").expect("new");
    core.tg_add("dg", "here").expect("new");
    core.tg_set_id("dg", "here", 5).expect("set");
    core.tg_tgt_add("dg", "here", LOCAL).expect("new");
    let set = |state: TgState| {
        core.tg_set_state("dg", "here", state).expect("set");
        disk.is_active()
    };
    assert!(!set(TgState::Standby) && !set(TgState::Unavailable));
    assert!(set(TgState::NonOptimized) && set(TgState::Optimized));
    assert!(!set(TgState::Offline));
    assert!(set(TgState::Optimized));
    while !rig.tur(0).is_good() {}
    assert!(
        rig.read(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512)
            .is_good()
    );
    // The command that asks for it does not stand in the way.
    let dev = core.device("d0").expect("there");
    dev.expl_alua.store(true, Ordering::Relaxed);
    let _listener = carry_out(&core, |core, _, groups| {
        for g in groups {
            core.tg_set_state(&g.dg, &g.tg, g.new_state).expect("set");
        }
        0
    });
    let (cdb, list) = self::set(&[(2, 5)]);
    assert!(rig.write(0, &cdb, &list).is_good());
    assert!(!disk.is_active());
    core.dg_remove("dg").expect("there");
    assert!(disk.is_active());
}

/// A device that takes its time with a change of state.
#[derive(Default)]
struct Slow {
    entered: Completion,
    go_on: Completion,
    gave_up: AtomicBool,
}

impl DevHandler for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn type_code(&self) -> u8 {
        0
    }

    fn block_shift(&self) -> u8 {
        9
    }

    fn parse(&self, _cmd: &mut Cmd) {}

    fn exec(&self, cmd: Box<Cmd>, _cx: ExecContext) -> ExecRes {
        ExecRes::Completed(cmd)
    }

    fn on_alua_state_change_start(&self, _dev: &Arc<Device>, _old: TgState, _new: TgState) {
        self.entered.complete();
        let told = self
            .go_on
            .wait_for_completion_timeout(Delta::from_millis(20_000));
        self.gave_up.store(!told, Ordering::Relaxed);
    }
}

/// Whoever changes a state may wait for the very command that asks for another one: the command does not wait in turn.
#[test]
fn an_explicit_change_does_not_wait_for_one_from_outside() {
    let mut rig = grouped(1);
    let core = Arc::clone(rig.core());
    let dev = core.device("d0").expect("there");
    dev.expl_alua.store(true, Ordering::Relaxed);
    let slow: Arc<Slow> = Arc::default();
    let handler: Arc<dyn DevHandler> = slow.clone();
    core.register_virtual_device("slow", handler).expect("new");
    core.dg_dev_add("dg", "slow").expect("new");
    let own = Arc::clone(&core);
    let changes = kthread::run("changes", move |_| {
        own.tg_set_state("dg", "here", TgState::NonOptimized)
            .expect("state");
    });
    slow.entered.wait_for_completion();
    let (cdb, list) = set(&[(2, 5)]);
    let refused = rig.write(0, &cdb, &list);
    slow.go_on.complete();
    changes.expect("a thread").join();
    assert!(
        !slow.gave_up.load(Ordering::Relaxed),
        "the command waited for the change"
    );
    assert_eq!(refused.sense(), Some(sense::ALUA_TRANSITIONING));
    while !rig.tur(0).is_good() {}
    core.dg_dev_remove("dg", "slow").expect("there");
    core.unregister_virtual_device("slow").expect("there");
}
