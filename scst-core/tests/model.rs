//! Everything at once, at random: commands of all kinds, task management, suspension, LUN changes. What must hold is checked on the
//! way by the mocks (one end each, at most one answer, none to what its own nexus aborted, nothing executed after a
//! task management answer) and at the end by `close` and `teardown` (nothing is left of anything).

mod mock;

use kshim::time::{Delta, Instant};
use mock::{
    Disk, FORMAT, Hold, How, Ini, MODE_SELECT, READ, Rig, Rng, Spec, Thread, WRITE, acg, spawn,
};
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::core::LunParams;
use scst_core::mgmt::TmFunction;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LUNS: u64 = 2;

fn random_spec(rng: &mut Rng, ways: &[How]) -> Spec {
    let lun = rng.below(LUNS + 1);
    let spec = match rng.below(24) {
        0 => Spec::new(lun, &[FORMAT, 0, 0, 0, 0, 0]),
        1 => {
            let s = Spec::new(lun, &[MODE_SELECT, 0x10, 0, 0, 12, 0]);
            s.expect(DataDirection::Write, 12)
        }
        2 => Spec::new(lun, &[0x16, 0, 0, 0, 0, 0]),
        3 | 4 => Spec::new(lun, &[0x17, 0, 0, 0, 0, 0]),
        5 => Spec::tur().lun(lun),
        6 => Spec::new(lun, &[3, 0, 0, 0, 18, 0]).expect(DataDirection::Read, 18),
        7 => Spec::new(lun, &[0xff; 6]),
        _ => {
            let mut s = Spec::rw(rng.pick(&[READ, WRITE]), rng.pick(ways)).lun(lun);
            // NACA
            s.cdb[9] = if rng.below(12) == 0 { 4 } else { 0 };
            s
        }
    };
    let q = match rng.below(11) {
        10 => QueueType::Aca,
        0 | 1 => QueueType::Ordered,
        2 => QueueType::HeadOfQueue,
        3 => QueueType::Untagged,
        _ => QueueType::Simple,
    };
    spec.queue(q)
}

fn random_hold(rng: &mut Rng) -> Hold {
    Hold {
        data: rng.below(4) == 0,
        fetch: rng.below(3) == 0,
        xmit: rng.below(5) == 0,
        xmit_fails: rng.below(12) == 0,
    }
}

fn random_tm(rng: &mut Rng, ini: &mut Ini) -> u64 {
    let lun = rng.below(LUNS + 1);
    let function = match rng.below(14) {
        12 | 13 => TmFunction::ClearAca,
        0..=5 => TmFunction::AbortTask,
        6 | 7 => TmFunction::AbortTaskSet,
        8 => TmFunction::ClearTaskSet,
        9 | 10 => TmFunction::LunReset,
        _ => TmFunction::TargetReset,
    };
    let live = ini.live_tags();
    let (lun, tag) = match live.is_empty() {
        true => (lun, 1),
        false => {
            let tag = rng.pick(&live);
            (
                if rng.below(8) == 0 {
                    lun
                } else {
                    ini.lun_of(tag)
                },
                tag,
            )
        }
    };
    ini.tm(function, lun, tag)
}

/// Looks, before the answer of a request goes anywhere, whether what it aborted still executes.
fn watch(ini: &Ini, disks: &[Arc<Disk>]) {
    let disks = disks.to_vec();
    let name = ini.name().to_owned();
    *ini.home.tm_hook.lock() = Some(Box::new(move |m| {
        let p = m.params();
        let lun = p.lun as usize;
        let left: Vec<u64> = match p.function {
            TmFunction::AbortTask if m.status() == scst_core::mgmt::TmStatus::Success => disks
                .iter()
                .flat_map(|d| d.executing())
                .filter(|t| *t == p.tag)
                .collect(),
            TmFunction::AbortTaskSet | TmFunction::ClearTaskSet if lun < disks.len() => {
                disks[lun].executing_of(&name, p.lun, p.tgt_priv)
            }
            TmFunction::LunReset if lun < disks.len() => {
                disks[lun].executing().into_iter().collect()
            }
            TmFunction::TargetReset => disks.iter().flat_map(|d| d.executing()).collect(),
            _ => Vec::new(),
        };
        // A panic would only stop the TM thread, and everything would be stuck: the message tells why.
        assert!(
            left.is_empty(),
            "{:?} answered while {left:?} execute",
            p.function
        );
    }));
}

fn check_answers(ini: &Ini, tas: bool) {
    for (tag, a) in ini.answers() {
        match a.status {
            SamStatus::TaskAborted => assert!(tas, "{tag}"),
            SamStatus::CheckCondition => assert!(a.sense().is_some(), "{tag}: no sense"),
            _ => assert!(a.sense.is_empty(), "{tag}: {a:?}"),
        }
        if a.status != SamStatus::Good {
            assert!(a.data.is_empty(), "{tag}: {a:?}");
        }
    }
}

fn rig(rng: &mut Rng) -> (Rig, bool) {
    let disks: Vec<_> = (0..LUNS).map(|i| Disk::new(&format!("disk{i}"))).collect();
    for d in &disks {
        d.delay_us.store(rng.below(300) as u32, Ordering::Relaxed);
        d.threads_num
            .store(rng.below(5) as i32 - 1, Ordering::Relaxed);
        d.shared_pool.store(rng.below(2) == 0, Ordering::Relaxed);
    }
    let rig = Rig::with(disks);
    let tas = rng.below(2) == 0;
    for dev in &rig.devs {
        let c = &dev.control;
        c.tst.store(rng.below(2) as u8, Ordering::Relaxed);
        c.tas.store(tas, Ordering::Relaxed);
        c.queue_alg
            .store(u8::from(rng.below(4) != 0), Ordering::Relaxed);
        c.qerr.store(rng.pick(&[0, 0, 1, 3]), Ordering::Relaxed);
        c.d_sense.store(rng.below(2) == 0, Ordering::Relaxed);
        let limit = rng.pick(&[4, 16, 64]);
        dev.max_tgt_dev_commands.store(limit, Ordering::Relaxed);
    }
    (rig, tas)
}

/// One thread decides everything, but for the steps of the TM thread in between.
#[test]
fn random_steps_leave_nothing_behind() {
    let ways = [How::Inline, How::Held, How::Fails, How::PendingInline];
    for seed in 0..150 {
        let mut rng = Rng(seed);
        let (rig, tas) = rig(&mut rng);
        let mut inis = [rig.fresh_ini("a"), rig.fresh_ini("b"), rig.fresh_ini("c")];
        inis.iter().for_each(|i| watch(i, &rig.disks));
        for _ in 0..150 {
            let ini = &mut inis[rng.below(3) as usize];
            match rng.below(16) {
                0..=6 => {
                    let hold = random_hold(&mut rng);
                    ini.hold(hold);
                    ini.send(&random_spec(&mut rng, &ways));
                }
                7 => {
                    random_tm(&mut rng, ini);
                }
                8 => ini.sent(rng.below(4) != 0),
                9 => ini.all_data(),
                10 | 11 => {
                    let disk = &rig.disks[rng.below(LUNS) as usize];
                    let held: Vec<u64> = disk.executing().into_iter().collect();
                    if !held.is_empty() {
                        disk.complete(rng.pick(&held));
                    }
                }
                12 => rig.core.flush_tm(),
                13 => rig.devs[0].capacity_data_changed(),
                _ => {
                    ini.pump();
                }
            }
        }
        let end = Instant::now() + Delta::from_secs(mock::STUCK_S);
        while inis.iter().any(|i| i.live() > 0) {
            // The ACA of any of them may hold commands of the others.
            for ini in &mut inis {
                clear_aca(ini);
                ini.hold(Hold::default());
                ini.all_data();
                ini.sent(true);
                ini.pump();
            }
            rig.disks.iter().for_each(|d| d.complete_all());
            let left: Vec<_> = inis
                .iter()
                .map(|i| (i.live_tags(), i.tms_pending()))
                .collect();
            assert!(
                Instant::now() < end,
                "seed {seed} is stuck: {left:?} {:?}",
                rig.devs
            );
        }
        for mut ini in inis {
            ini.until("the last answers", |i| i.tms_pending() == 0);
            clear_aca(&mut ini);
            ini.until("CLEAR ACA", |i| i.tms_pending() == 0);
            check_answers(&ini, tas);
            ini.close();
        }
        rig.teardown();
    }
}

/// Each initiator on its own thread, the handlers on theirs, and management beside them.
#[test]
fn random_load_on_many_threads_leaves_nothing_behind() {
    for seed in 0..12 {
        let mut rng = Rng(1000 + seed);
        let (rig, tas) = rig(&mut rng);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for n in 0..3 {
            let ini = rig.fresh_ini(&format!("i{n}"));
            watch(&ini, &rig.disks);
            let (stop, seed) = (Arc::clone(&stop), rng.next());
            threads.push(spawn(move || initiator(ini, &mut Rng(seed), tas, &stop)));
        }
        let group = acg(&rig.tgt);
        let end = Instant::now() + Delta::from_millis(120);
        while Instant::now() < end {
            match rng.below(4) {
                0 => drop(rig.core.suspend_activity().expect("in time")),
                1 => {
                    let dev = &rig.devs[rng.below(LUNS) as usize];
                    let lun = LunParams::default();
                    rig.core
                        .add_lun(&rig.tgt, group, dev, LUNS, lun)
                        .expect("free");
                }
                2 if !rig.tgt.default_acg().luns.contains_key(&LUNS) => {}
                2 => rig.core.del_lun(&rig.tgt, group, LUNS).expect("there"),
                _ => rig.devs[0].capacity_data_changed(),
            }
            if rig.tgt.default_acg().luns.contains_key(&LUNS) && rng.below(2) == 0 {
                rig.core.del_lun(&rig.tgt, group, LUNS).expect("there");
            } else if rig.tgt.default_acg().luns.contains_key(&LUNS) {
                kshim::time::delay::msleep(1);
                rig.core.del_lun(&rig.tgt, group, LUNS).expect("there");
            }
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(Thread::join);
        rig.teardown();
    }
}

fn initiator(mut ini: Ini, rng: &mut Rng, tas: bool, stop: &AtomicBool) {
    let ways = [
        How::Inline,
        How::Later,
        How::Thread,
        How::Fails,
        How::PendingInline,
    ];
    let mut sent = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let hold = random_hold(rng);
        ini.hold(hold);
        for _ in 0..rng.below(6) {
            sent.insert(ini.send(&random_spec(rng, &ways)));
        }
        if rng.below(4) == 0 {
            random_tm(rng, &mut ini);
        }
        if rng.below(3) == 0 {
            ini.all_data();
        }
        if rng.below(3) == 0 {
            ini.sent(rng.below(4) != 0);
        }
        ini.pump();
        if ini.live() > 40 {
            drain(&mut ini, 10);
        }
    }
    if rng.below(2) == 0 {
        ini.tm(TmFunction::NexusLossSess, 0, 0);
    }
    drain(&mut ini, 0);
    assert!(sent.iter().all(|t| ini.has_ended(*t)));
    check_answers(&ini, tas);
    ini.close();
}

fn drain(ini: &mut Ini, to: usize) {
    let end = Instant::now() + Delta::from_secs(mock::STUCK_S);
    ini.hold(Hold::default());
    clear_aca(ini);
    let mut n = 0;
    while ini.live() > to {
        ini.all_data();
        ini.sent(true);
        n += 1;
        if n % 64 == 0 {
            clear_aca(ini);
        }
        if !ini.pump() {
            kshim::time::delay::fsleep(Delta::from_micros(100));
        }
        assert!(Instant::now() < end, "stuck: {:?}", ini.live_tags());
    }
    ini.until("task management", |i| i.tms_pending() == 0);
    clear_aca(ini);
    ini.until("CLEAR ACA", |i| i.tms_pending() == 0);
}

/// What an ACA holds does not end before it is cleared.
fn clear_aca(ini: &mut Ini) {
    if ini.tms_pending() == 0 {
        for lun in 0..=LUNS {
            ini.tm(TmFunction::ClearAca, lun, 0);
        }
    }
}
