//! Task management: a command at each place where it can be, aborted by each function.

mod mock;

use mock::{Disk, FORMAT, Hold, How, Ini, READ, Rig, Spec, WRITE};
use scst_core::consts::{QueueType, SamStatus};
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where a command is when it is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The transport receives its data.
    Preprocessed,
    /// The core has asked for its data.
    DataWait,
    /// Behind an ORDERED command.
    Deferred,
    /// Behind a strictly serialised command.
    Blocked,
    /// Itself strictly serialised, waiting for the device to be drained.
    Draining,
    /// In the handler.
    Executing,
    /// In the queue of a pool.
    PoolQueue,
    /// In the handler, on a thread.
    OnThread,
    /// Complete, and on its way home.
    Completed,
    /// Its response is being sent.
    Xmit,
}

const ALL: [At; 10] = [
    At::Preprocessed,
    At::DataWait,
    At::Deferred,
    At::Blocked,
    At::Draining,
    At::Executing,
    At::PoolQueue,
    At::OnThread,
    At::Completed,
    At::Xmit,
];

impl At {
    /// Whether the handler has it, so that task management has to wait for the test.
    fn in_handler(self) -> bool {
        matches!(self, Self::Executing | Self::OnThread)
    }
    /// Whether it has a result that may be told.
    fn has_result(self) -> bool {
        self.in_handler() || matches!(self, Self::Completed | Self::Xmit)
    }
}

/// A command where it shall be, and what holds it there.
struct Parked {
    tag: u64,
    /// Held in the handler: commands that hold it, and itself.
    held: Vec<u64>,
}

impl Parked {
    /// Command of `a`; what is in its way comes from `helper`.
    fn new(at: At, disk: &Arc<Disk>, a: &mut Ini, helper: &mut Ini) -> Self {
        let hold = |h: Hold| h;
        let held_read = Spec::rw(READ, How::Held);
        let mut held = Vec::new();
        let mut in_handler = |i: &mut Ini, spec: &Spec| {
            let tag = i.send(spec);
            disk.wait_began(tag);
            held.push(tag);
            tag
        };
        let tag = match at {
            At::Preprocessed | At::DataWait => {
                a.hold(hold(Hold {
                    data: true,
                    fetch: at == At::DataWait,
                    ..Hold::default()
                }));
                let tag = a.send(&Spec::rw(WRITE, How::Inline));
                assert!(a.waits_for_data(tag));
                a.hold(Hold::default());
                tag
            }
            At::Deferred => {
                in_handler(helper, &held_read.clone().queue(QueueType::Ordered));
                a.send(&Spec::rw(READ, How::Inline))
            }
            At::Blocked => {
                in_handler(helper, &held_read);
                helper.send(&Spec::new(0, &[FORMAT, 0, 0, 0, 0, 0]));
                a.send(&Spec::rw(READ, How::Inline))
            }
            At::Draining => {
                in_handler(helper, &held_read);
                a.send(&Spec::new(0, &[FORMAT, 0, 0, 0, 0, 0]))
            }
            At::Executing => in_handler(a, &held_read),
            At::PoolQueue => {
                for _ in 0..3 {
                    in_handler(helper, &Spec::rw(READ, How::HeldOnThread));
                }
                a.send(&Spec::rw(READ, How::Thread))
            }
            At::OnThread => in_handler(a, &Spec::rw(READ, How::HeldOnThread)),
            At::Completed => {
                let tag = a.send(&held_read);
                disk.complete(tag);
                tag
            }
            At::Xmit => {
                a.hold(hold(Hold {
                    xmit: true,
                    ..Hold::default()
                }));
                let tag = a.send(&Spec::rw(READ, How::Inline));
                assert!(a.answer(tag).is_some());
                a.hold(Hold::default());
                tag
            }
        };
        assert!(!a.has_ended(tag));
        Self { tag, held }
    }

    /// What held it lets go.
    fn release(&self, disk: &Disk, a: &mut Ini) {
        for t in &self.held {
            disk.complete(*t);
        }
        a.sent(true);
    }
}

/// What the commands in the way do not hold up.
fn is_executed(disk: &Disk, tag: u64) -> bool {
    disk.began().contains(&tag)
}

#[test]
fn what_its_own_nexus_aborts_is_not_executed_and_not_answered() {
    let functions = [
        TmFunction::AbortTask,
        TmFunction::AbortTaskSet,
        TmFunction::ClearTaskSet,
        TmFunction::LunReset,
        TmFunction::TargetReset,
        TmFunction::NexusLossSess,
    ];
    for function in functions {
        for at in ALL {
            let what = format!("{function:?} {at:?}");
            let rig = Rig::new(1);
            // One task set, so that others can be in the way.
            rig.devs[0].control.tst.store(0, Ordering::Relaxed);
            let (mut a, mut h) = (rig.ini("a"), rig.ini("helper"));
            let parked = Parked::new(at, rig.disk(), &mut a, &mut h);
            let tm = a.tm(function, 0, parked.tag);
            rig.core.flush_tm();
            a.pump();
            if at.in_handler() || at == At::Xmit {
                rig.core.flush_tm();
                a.pump();
                assert_eq!(a.tm_status(tm), None, "{what}: answered too early");
                parked.release(rig.disk(), &mut a);
            }
            if matches!(
                function,
                TmFunction::ClearTaskSet | TmFunction::LunReset | TmFunction::TargetReset
            ) {
                // These wait for the helper's effects.
                parked.held.iter().for_each(|t| {
                    if rig.disk().executing().contains(t) {
                        rig.disk().complete(*t);
                    }
                });
                h.wait_all();
            }
            if at == At::PoolQueue {
                // It ends when a thread finds it.
                parked.held.iter().for_each(|t| {
                    if rig.disk().executing().contains(t) {
                        rig.disk().complete(*t);
                    }
                });
            }
            assert_eq!(a.wait_tm(tm), TmStatus::Success, "{what}");
            assert!(a.has_ended(parked.tag), "{what}");
            assert_eq!(a.answer(parked.tag).is_some(), at == At::Xmit, "{what}");
            assert_eq!(
                is_executed(rig.disk(), parked.tag),
                at.has_result(),
                "{what}"
            );
            for t in rig.disk().executing() {
                rig.disk().complete(t);
            }
            h.wait_all();
            a.wait_all();
            a.clear_ua(0);
            h.clear_ua(0);
            assert!(a.ask(&Spec::rw(READ, How::Inline)).is_good(), "{what}");
            a.close();
            h.close();
            rig.teardown();
        }
    }
}

#[test]
fn what_another_nexus_aborts_is_answered_as_tas_says() {
    for function in [
        TmFunction::ClearTaskSet,
        TmFunction::LunReset,
        TmFunction::TargetReset,
    ] {
        for tas in [false, true] {
            for at in ALL {
                let what = format!("{function:?} {at:?} TAS={tas}");
                let rig = Rig::new(1);
                rig.devs[0].control.tst.store(0, Ordering::Relaxed);
                rig.devs[0].control.tas.store(tas, Ordering::Relaxed);
                let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
                let parked = Parked::new(at, rig.disk(), &mut a, &mut b);
                let tm = b.tm(function, 0, 0);
                rig.core.flush_tm();
                a.pump();
                b.pump();
                for t in rig.disk().executing() {
                    rig.disk().complete(t);
                }
                a.until("the abort", |i| at == At::Xmit || i.has_ended(parked.tag));
                b.until("b", |i| i.live() == 0);
                // The response to the other initiator is not waited for.
                assert_eq!(b.wait_tm(tm), TmStatus::Success, "{what}");
                a.sent(true);
                a.wait_all();
                let answer = a.answer(parked.tag).map(|x| x.status);
                let want = match (at.has_result(), tas) {
                    (true, _) => Some(SamStatus::Good),
                    (false, true) => Some(SamStatus::TaskAborted),
                    (false, false) => None,
                };
                assert_eq!(answer, want, "{what}");
                assert_eq!(
                    is_executed(rig.disk(), parked.tag),
                    at.has_result(),
                    "{what}"
                );
                let uas = a.clear_ua(0);
                if function == TmFunction::ClearTaskSet {
                    let cleared = sense::CLEARED_BY_ANOTHER_INI_UA;
                    assert_eq!(uas, if tas { vec![] } else { vec![cleared] }, "{what}");
                    assert_eq!(b.clear_ua(0), []);
                } else {
                    assert_eq!(uas, [sense::RESET_UA], "{what}");
                    assert_eq!(b.clear_ua(0), [sense::RESET_UA], "{what}");
                }
                a.close();
                b.close();
                rig.teardown();
            }
        }
    }
}

#[test]
fn clear_task_set_stays_in_the_task_set_of_the_nexus() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let held = a.send(&Spec::rw(READ, How::Held));
    let tm = b.tm(TmFunction::ClearTaskSet, 0, 0);
    assert_eq!(b.wait_tm(tm), TmStatus::Success);
    rig.disk().complete(held);
    assert!(a.wait_ended(held).expect("not concerned").is_good());
    assert_eq!(a.clear_ua(0), []);
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn a_reset_holds_new_commands_until_it_is_answered() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let old = a.send(&Spec::rw(READ, How::Held));
    let tm = b.tm(TmFunction::LunReset, 0, 0);
    rig.core.flush_tm();
    // Sent after the reset: they wait at the device.
    let inquiry = Spec::new(0, &[0x12, 0, 0, 0, 0, 0]);
    let new_a = a.send(&inquiry);
    let new_b = b.send(&inquiry);
    a.pump();
    b.pump();
    assert!(!a.has_ended(new_a) && !b.has_ended(new_b));
    assert_eq!(b.tm_status(tm), None);
    rig.disk().complete(old);
    a.until("old", |i| i.has_ended(old));
    assert_eq!(b.wait_tm(tm), TmStatus::Success);
    a.wait_all();
    b.wait_all();
    assert!(a.answer(new_a).is_some_and(|x| x.is_good()));
    a.clear_ua(0);
    b.clear_ua(0);
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn resets_nest() {
    let rig = Rig::new(2);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let held = a.send(&Spec::rw(READ, How::Held));
    let tms = [
        b.tm(TmFunction::LunReset, 0, 0),
        b.tm(TmFunction::TargetReset, 0, 0),
        b.tm(TmFunction::LunReset, 1, 0),
    ];
    let own = a.tm(TmFunction::LunReset, 0, 0);
    // All have marked their commands.
    rig.core.flush_tm();
    assert_eq!(b.wait_tm(tms[2]), TmStatus::Success);
    assert_eq!(b.tm_status(tms[0]), None);
    rig.disk().complete(held);
    a.wait_tm(own);
    for tm in tms {
        assert_eq!(b.wait_tm(tm), TmStatus::Success);
    }
    assert_eq!(a.answer(held), None, "its own nexus has reset it, too");
    for lun in 0..2 {
        assert_eq!(a.clear_ua(lun), [sense::RESET_UA], "once");
        b.clear_ua(lun);
    }
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn requests_for_what_is_not_there() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    for f in [
        TmFunction::AbortTaskSet,
        TmFunction::ClearTaskSet,
        TmFunction::LunReset,
        TmFunction::ClearAca,
    ] {
        let tm = a.tm(f, 7, 0);
        assert_eq!(a.wait_tm(tm), TmStatus::LunNotExist);
    }
    let tm = a.tm(TmFunction::AbortTask, 0, 12345);
    assert_eq!(a.wait_tm(tm), TmStatus::TaskNotExist);
    let held = a.send(&Spec::rw(READ, How::Held).sn(10));
    let tm = a.tm(TmFunction::AbortTask, 1, held);
    assert_eq!(a.wait_tm(tm), TmStatus::Rejected);
    // Younger than the request, or of its age.
    for sn in [9, 10] {
        let tm = a.tm_sn(TmFunction::AbortTask, 0, held, Some(sn));
        assert_eq!(a.wait_tm(tm), TmStatus::Rejected);
    }
    a.check_tm = false;
    let tm = a.tm_sn(TmFunction::AbortTaskSet, 0, 0, Some(10));
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    rig.disk().complete(held);
    assert!(a.wait_ended(held).expect("not aborted").is_good());
    let tm = a.tm(TmFunction::ClearAca, 0, 0);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.close();
    rig.teardown();
}

#[test]
fn a_late_abort_finds_nothing() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let old = a.ask(&Spec::rw(READ, How::Inline));
    assert!(old.is_good());
    // The object is in use again.
    let first = a.send(&Spec::rw(READ, How::Held));
    let tm = a.tm(TmFunction::AbortTask, 0, first - 1);
    assert_eq!(a.wait_tm(tm), TmStatus::TaskNotExist);
    rig.disk().complete(first);
    assert!(a.wait_ended(first).expect("an answer").is_good());
    a.close();
    rig.teardown();
}

#[test]
fn aborting_twice_is_aborting_once() {
    let rig = Rig::new(1);
    rig.devs[0].control.tas.store(true, Ordering::Relaxed);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let held = a.send(&Spec::rw(READ, How::Held));
    let blocked_by = b.send(&Spec::new(0, &[FORMAT, 0, 0, 0, 0, 0]));
    let waits = a.send(&Spec::rw(READ, How::Inline));
    // First by another nexus, then by its own: who aborts a command expects no answer.
    let reset = b.tm(TmFunction::LunReset, 0, 0);
    rig.core.flush_tm();
    let tms = [
        a.tm(TmFunction::AbortTask, 0, held),
        a.tm(TmFunction::AbortTask, 0, held),
        a.tm(TmFunction::AbortTaskSet, 0, 0),
    ];
    rig.core.flush_tm();
    b.pump();
    rig.disk().complete(held);
    for tm in tms {
        assert_eq!(a.wait_tm(tm), TmStatus::Success);
    }
    assert_eq!(a.answer(held), None);
    assert_eq!(a.answer(waits), None);
    assert_eq!(b.wait_tm(reset), TmStatus::Success);
    assert_eq!(b.answer(blocked_by), None);
    a.clear_ua(0);
    b.clear_ua(0);
    a.close();
    b.close();
    rig.teardown();
}
