//! Suspension, LUN changes and teardown under load.

mod mock;

use kshim::time::{Delta, Instant};
use mock::{Hold, How, Ini, READ, Rig, Rng, STUCK_S, Spec, Thread, WRITE, acg, spawn};
use scst_core::cmd::RestartStatus;
use scst_core::consts::QueueType;
use scst_core::core::{ConfigError, LunParams};
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[test]
fn commands_wait_for_the_end_of_a_suspension_in_their_order() {
    let rig = Rig::new(2);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let from = rig.disk().began().len();
    let outer = rig.core.suspend_activity().expect("idle");
    let inner = rig.core.suspend_activity().expect("nested");
    let mut tags: Vec<u64> = (0..4)
        .map(|_| a.send(&Spec::rw(READ, How::Inline)))
        .collect();
    let other = b.send(&Spec::rw(READ, How::Inline).lun(1));
    let absent = b.send(&Spec::tur().lun(9));
    drop(inner);
    a.pump();
    b.pump();
    assert_eq!((a.live(), b.live()), (4, 2));
    drop(outer);
    // Not yet home: what comes now is younger.
    tags.push(a.send(&Spec::rw(READ, How::Inline)));
    tags.push(a.send(&Spec::rw(READ, How::Inline).queue(QueueType::Ordered)));
    assert_eq!(a.live(), 6);
    // And again, before they are home.
    let again = rig
        .core
        .suspend_activity()
        .expect("they are not counted yet");
    a.pump();
    tags.push(a.send(&Spec::rw(READ, How::Inline)));
    assert_eq!(a.live(), 7);
    drop(again);
    a.wait_all();
    assert_eq!(rig.disk().began()[from..], tags);
    b.wait_all();
    assert!(b.answer(other).is_some_and(|x| x.is_good()));
    let gone = b.answer(absent).and_then(|x| x.sense());
    assert_eq!(gone, Some(sense::LUN_NOT_SUPPORTED));
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn commands_aborted_while_activity_is_suspended_end_at_once() {
    for function in [
        TmFunction::AbortTask,
        TmFunction::AbortTaskSet,
        TmFunction::LunReset,
        TmFunction::TargetReset,
        TmFunction::NexusLossSess,
    ] {
        let rig = Rig::new(2);
        let mut a = rig.ini("a");
        let from = rig.disk().began().len();
        let suspended = rig.core.suspend_activity().expect("idle");
        let first = a.send(&Spec::rw(READ, How::Inline));
        let second = a.send(&Spec::rw(READ, How::Inline));
        let elsewhere = a.send(&Spec::rw(READ, How::Inline).lun(1));
        let tm = a.tm(function, 0, first);
        assert_eq!(a.wait_tm(tm), TmStatus::Success, "{function:?}");
        assert!(a.has_ended(first) && a.answer(first).is_none());
        let all = function != TmFunction::AbortTask;
        assert_eq!(a.has_ended(second), all);
        let lun1 = matches!(
            function,
            TmFunction::TargetReset | TmFunction::NexusLossSess
        );
        assert_eq!(a.has_ended(elsewhere), lun1);
        // The queue is still there for those who come.
        let third = a.send(&Spec::new(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!a.has_ended(third));
        drop(suspended);
        a.wait_all();
        assert!(a.answer(third).is_some_and(|x| x.is_good()));
        assert_eq!(rig.disk().began()[from..].len(), usize::from(!all));
        a.clear_ua(0);
        a.clear_ua(1);
        a.close();
        rig.teardown();
    }
}

#[test]
fn an_aborted_leader_lets_the_others_go() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let suspended = rig.core.suspend_activity().expect("idle");
    let first = a.send(&Spec::rw(READ, How::Inline));
    let second = a.send(&Spec::rw(READ, How::Inline));
    drop(suspended);
    // The first is on its way home.
    let tm = a.tm(TmFunction::AbortTask, 0, first);
    rig.core.flush_tm();
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.wait_all();
    assert_eq!(a.answer(first), None);
    assert!(a.answer(second).is_some_and(|x| x.is_good()));
    a.close();
    rig.teardown();
}

#[test]
fn suspension_waits_for_effects_but_not_for_responses() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    a.hold(Hold {
        xmit: true,
        ..Hold::default()
    });
    a.send(&Spec::rw(READ, How::Inline));
    drop(rig.core.suspend_activity().expect("the effects are over"));
    a.hold(Hold::default());
    let held = a.send(&Spec::rw(READ, How::Held));
    let (core, done) = (Arc::clone(&rig.core), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&done);
    let t = spawn(move || {
        drop(core.suspend_activity().expect("in time"));
        told.store(true, Ordering::SeqCst);
    });
    kshim::time::delay::msleep(20);
    a.pump();
    assert!(!done.load(Ordering::SeqCst));
    rig.disk().complete(held);
    a.wait_ended(held);
    t.join();
    assert!(done.load(Ordering::SeqCst));
    a.sent(true);
    a.wait_all();
    a.close();
    rig.teardown();
}

/// An initiator that keeps the disks busy until it is told to stop. Answers how many commands it sent. Commands of one
/// LUN that are ORDERED must begin in the order in which they were sent.
fn load(
    ini: &mut Ini,
    seed: u64,
    luns: u64,
    ordered: bool,
    stop: &AtomicBool,
    depth: usize,
) -> u64 {
    let mut rng = Rng(seed);
    let mut sent = 0;
    let ways = [How::Inline, How::Later, How::Thread, How::PendingInline];
    while !stop.load(Ordering::Relaxed) {
        ini.pump();
        if ini.live() < depth {
            let op = rng.pick(&[READ, WRITE]);
            let q = match ordered {
                true => QueueType::Ordered,
                false => rng.pick(&[
                    QueueType::Simple,
                    QueueType::Simple,
                    QueueType::Simple,
                    QueueType::Ordered,
                    QueueType::HeadOfQueue,
                ]),
            };
            let spec = Spec::rw(op, rng.pick(&ways)).lun(rng.below(luns)).queue(q);
            ini.send(&spec);
            sent += 1;
        } else {
            let n = ini.live();
            ini.until("load goes on", |i| i.live() < n);
        }
    }
    ini.wait_all();
    sent
}

#[test]
fn nothing_is_lost_or_reordered_by_suspensions_in_a_loop() {
    let rig = Rig::new(2);
    for d in &rig.disks {
        d.delay_us.store(100, Ordering::Relaxed);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(0));
    let from: Vec<usize> = rig.disks.iter().map(|d| d.began().len()).collect();
    let mut threads = Vec::new();
    for n in 0..3 {
        let (stop, total) = (Arc::clone(&stop), Arc::clone(&total));
        let mut ini = rig.fresh_ini(&format!("i{n}"));
        for lun in 0..2 {
            ini.clear_ua(lun);
        }
        threads.push(spawn(move || {
            let sent = load(&mut ini, n, 2, n == 0, &stop, 12);
            assert_eq!(ini.answered() as u64, sent + 4, "one answer each");
            total.fetch_add(sent, Ordering::Relaxed);
            ini.close();
        }));
    }
    let end = Instant::now() + Delta::from_millis(800);
    let mut rounds = 0;
    while Instant::now() < end {
        let s = rig.core.suspend_activity().expect("in time");
        for d in &rig.disks {
            assert!(d.executing().is_empty(), "suspended, and executing");
        }
        if rounds % 3 == 0 {
            drop(rig.core.suspend_activity().expect("nested"));
        }
        drop(s);
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(Thread::join);
    assert!(rounds > 10, "only {rounds} suspensions");
    let executed: usize = rig
        .disks
        .iter()
        .zip(&from)
        .map(|(d, f)| d.began().len() - f)
        .sum();
    // Each was executed once, and the unit attentions were answered by the core: they never got there.
    let total = total.load(Ordering::Relaxed);
    assert!(
        total > 100 && executed as u64 >= total,
        "{total} {executed}"
    );
    rig.teardown();
}

#[test]
fn ordered_commands_keep_their_order_over_suspensions() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let from = rig.disk().began().len();
    let stop = Arc::new(AtomicBool::new(false));
    let (core, stopped) = (Arc::clone(&rig.core), Arc::clone(&stop));
    let suspender = spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            drop(core.suspend_activity().expect("in time"));
        }
    });
    let ways = [How::Inline, How::Later, How::Thread];
    let tags: Vec<u64> = (0..600)
        .map(|i| {
            a.pump();
            if a.live() > 20 {
                a.wait_all();
            }
            a.send(&Spec::rw(READ, ways[i % 3]).queue(QueueType::Ordered))
        })
        .collect();
    a.wait_all();
    stop.store(true, Ordering::Relaxed);
    suspender.join();
    assert_eq!(rig.disk().began()[from..], tags);
    a.close();
    rig.teardown();
}

#[test]
fn luns_come_and_go_under_load() {
    let rig = Rig::new(2);
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for n in 0..2 {
        let stop = Arc::clone(&stop);
        let mut ini = rig.ini(&format!("i{n}"));
        threads.push(spawn(move || {
            // LUN 2 and 3 are there at times.
            let sent = load(&mut ini, 7 + n, 4, false, &stop, 8);
            assert!(ini.answered() as u64 >= sent);
            ini.close();
        }));
    }
    let group = acg(&rig.tgt);
    let end = Instant::now() + Delta::from_millis(600);
    let mut rounds = 0u64;
    while Instant::now() < end {
        let lun = 2 + rounds % 2;
        let dev = &rig.devs[(rounds / 2 % 2) as usize];
        let params = LunParams {
            read_only: rounds.is_multiple_of(5),
        };
        rig.core
            .add_lun(&rig.tgt, group, dev, lun, params)
            .expect("free");
        let taken = rig.core.add_lun(&rig.tgt, group, dev, lun, params);
        assert!(matches!(taken, Err(ConfigError::LunExists(..))));
        if rounds % 7 == 3 {
            // A session that comes while the LUN is there, and goes.
            let mut late = rig.fresh_ini("late");
            assert_eq!(late.sess.tgt_devs().len(), 3);
            late.clear_ua(lun);
            late.close();
        }
        rig.core.del_lun(&rig.tgt, group, lun).expect("there");
        let gone = rig.core.del_lun(&rig.tgt, group, lun);
        assert!(matches!(gone, Err(ConfigError::LunNotFound(..))));
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(Thread::join);
    assert!(rounds > 10, "only {rounds}");
    rig.teardown();
}

#[test]
fn a_device_goes_while_it_is_used() {
    let rig = Rig::new(2);
    let mut a = rig.ini("a");
    let group = acg(&rig.tgt);
    let disk = mock::Disk::new("gone");
    disk.threads_num.store(2, Ordering::Relaxed);
    let handler = Arc::new(mock::DiskHandler(Arc::clone(&disk)));
    let dev = rig
        .core
        .register_virtual_device("gone", handler)
        .expect("new");
    rig.core
        .add_lun(&rig.tgt, group, &dev, 2, LunParams::default())
        .expect("free");
    a.clear_ua(2);
    a.clear_ua(0);
    a.clear_ua(1);
    let held = a.send(&Spec::rw(READ, How::HeldOnThread).lun(2));
    disk.wait_began(held);
    let core = Arc::clone(&rig.core);
    let remover = spawn(move || {
        core.unregister_virtual_device("gone").expect("in time");
    });
    kshim::time::delay::msleep(20);
    a.pump();
    assert_eq!(disk.attached.load(Ordering::Relaxed), 1);
    disk.complete(held);
    assert!(a.wait_ended(held).expect("an answer").is_good());
    remover.join();
    assert_eq!(disk.attached.load(Ordering::Relaxed), 0);
    let sense = a.ask(&Spec::tur().lun(2)).sense();
    assert_eq!(sense, Some(sense::LUN_NOT_SUPPORTED));
    let again = rig
        .core
        .add_lun(&rig.tgt, group, &dev, 2, LunParams::default());
    assert!(matches!(again, Err(ConfigError::NotFound(_))));
    assert_eq!(a.clear_ua(0), [sense::REPORTED_LUNS_DATA_CHANGED]);
    let weak = Arc::downgrade(&dev);
    drop(dev);
    a.close();
    rig.teardown();
    assert_eq!(weak.strong_count(), 0, "the device leaks");
}

#[test]
fn a_nexus_that_is_lost_leaves_nothing() {
    for seed in 0..20 {
        let rig = Rig::new(2);
        let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
        let mut rng = Rng(seed);
        for d in &rig.disks {
            d.delay_us.store(200, Ordering::Relaxed);
        }
        let ways = [How::Inline, How::Later, How::Thread, How::PendingInline];
        for _ in 0..40 {
            a.hold(Hold {
                data: rng.below(3) == 0,
                fetch: rng.below(2) == 0,
                xmit: rng.below(4) == 0,
                ..Hold::default()
            });
            let q = rng.pick(&[
                QueueType::Simple,
                QueueType::Ordered,
                QueueType::HeadOfQueue,
            ]);
            let spec = Spec::rw(rng.pick(&[READ, WRITE]), rng.pick(&ways)).queue(q);
            a.send(&spec.clone().lun(rng.below(2)));
            b.send(&spec.lun(rng.below(2)));
            if rng.below(3) == 0 {
                a.pump();
            }
        }
        // As a transport does it: what waits for data, what waits to be sent, then the rest.
        a.hold(Hold {
            xmit_fails: true,
            ..Hold::default()
        });
        a.fail_all_data(RestartStatus::ErrorFatal);
        a.sent(false);
        let tm = a.tm(TmFunction::NexusLossSess, 0, 0);
        assert_eq!(a.wait_tm(tm), TmStatus::Success);
        assert_eq!(a.live(), 0);
        a.close();
        b.wait_all();
        b.close();
        rig.teardown();
    }
}

#[test]
fn sessions_come_and_go_beside_each_other() {
    let rig = Arc::new(Rig::new(2));
    let end = Instant::now() + Delta::from_millis(400);
    let threads: Vec<_> = (0..3)
        .map(|n| {
            let rig = Arc::clone(&rig);
            spawn(move || {
                let mut rng = Rng(n);
                while Instant::now() < end {
                    let mut i = rig.fresh_ini(&format!("i{n}"));
                    for _ in 0..rng.below(30) {
                        i.send(&Spec::rw(
                            READ,
                            rng.pick(&[How::Inline, How::Later, How::Thread]),
                        ));
                    }
                    if rng.below(2) == 0 {
                        let f = rng.pick(&[TmFunction::NexusLossSess, TmFunction::LunReset]);
                        let tm = i.tm(f, 0, 0);
                        i.wait_tm(tm);
                    }
                    i.wait_all();
                    i.close();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(Thread::join);
    assert!(Instant::now() < end + Delta::from_secs(STUCK_S));
    let rig = Arc::into_inner(rig).expect("the threads are gone");
    rig.teardown();
}
