//! Auto contingent allegiance and QErr, end to end.

mod mock;

use mock::{How, READ, Rig, Spec, rw};
use scst_core::consts::{QueueType, SamStatus};
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense;
use std::sync::atomic::Ordering;

/// The same with NACA=1.
fn naca(how: How) -> Spec {
    let mut cdb = rw(READ, how);
    cdb[9] = 4;
    Spec::new(0, &cdb)
}

fn read(how: How) -> Spec {
    Spec::rw(READ, how)
}

#[test]
fn a_faulted_nexus_stands_still_until_it_is_cleared() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let held = a.send(&read(How::Held));
    let ordered = a.send(&read(How::Held).queue(QueueType::Ordered));
    let waits = a.send(&read(How::Inline));
    let fault = a.send(&naca(How::Fails).queue(QueueType::HeadOfQueue));
    let failed = a.wait_ended(fault).expect("an answer");
    assert_eq!(failed.sense(), Some(sense::READ_ERROR));
    // Whatever was there stands still, complete or not; what comes is refused.
    rig.disk().complete(held);
    rig.disk().complete(ordered);
    a.pump();
    assert!([held, ordered, waits].iter().all(|t| !a.has_ended(*t)));
    assert_eq!(a.ask(&Spec::tur()).status, SamStatus::AcaActive);
    assert_eq!(a.ask(&read(How::Inline)).status, SamStatus::AcaActive);
    // Another task set is not concerned.
    assert!(b.ask(&read(How::Inline)).is_good());
    let invalid = b.ask(&read(How::Inline).queue(QueueType::Aca));
    assert_eq!(invalid.sense(), Some(sense::INVALID_MESSAGE));
    // One command with the ACA attribute at a time.
    let aca = a.send(&naca(How::Held).queue(QueueType::Aca));
    let second = a.ask(&naca(How::Inline).queue(QueueType::Aca));
    assert_eq!(second.status, SamStatus::AcaActive);
    rig.disk().complete(aca);
    assert!(a.wait_ended(aca).expect("an answer").is_good());
    let tm = b.tm(TmFunction::ClearAca, 0, 0);
    assert_eq!(b.wait_tm(tm), TmStatus::Success, "it has none");
    assert!(!a.has_ended(held));
    a.check_tm = false;
    let tm = a.tm(TmFunction::ClearAca, 0, 0);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.wait_all();
    for t in [held, ordered, waits] {
        assert!(a.answer(t).is_some_and(|x| x.is_good()));
    }
    assert!(a.ask(&read(How::Inline)).is_good());
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn in_one_task_set_the_others_are_busy() {
    let rig = Rig::new(1);
    rig.devs[0].control.tst.store(0, Ordering::Relaxed);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    assert!(!a.ask(&naca(How::Fails)).is_good());
    assert_eq!(b.ask(&read(How::Inline)).status, SamStatus::Busy);
    assert_eq!(b.ask(&naca(How::Inline)).status, SamStatus::AcaActive);
    let tm = b.tm(TmFunction::ClearAca, 0, 0);
    assert_eq!(b.wait_tm(tm), TmStatus::Rejected);
    // An ACA command that fails without NACA ends it.
    let spec = read(How::Fails).queue(QueueType::Aca);
    assert_eq!(a.ask(&spec).sense(), Some(sense::READ_ERROR));
    assert!(b.ask(&read(How::Inline)).is_good());
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn resets_and_the_end_of_the_nexus_end_it() {
    for function in [
        None,
        Some(TmFunction::LunReset),
        Some(TmFunction::TargetReset),
        Some(TmFunction::NexusLossSess),
    ] {
        let rig = Rig::new(1);
        rig.devs[0].control.tst.store(0, Ordering::Relaxed);
        let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
        let held = b.send(&read(How::Held));
        assert!(!a.ask(&naca(How::Fails)).is_good());
        rig.disk().complete(held);
        b.pump();
        assert!(!b.has_ended(held));
        if let Some(f) = function {
            let tm = a.tm(f, 0, 0);
            assert_eq!(a.wait_tm(tm), TmStatus::Success);
        }
        a.leave();
        let answer = b.wait_ended(held);
        assert!(answer.is_some_and(|x| x.is_good()), "{function:?}");
        b.clear_ua(0);
        assert!(b.ask(&read(How::Inline)).is_good());
        b.close();
        rig.teardown();
    }
}

#[test]
fn an_abort_reaches_what_an_aca_holds() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let done = a.send(&read(How::Held));
    let ordered = a.send(&read(How::Held).queue(QueueType::Ordered));
    let waits = a.send(&read(How::Inline));
    let fault = a.send(&naca(How::Fails).queue(QueueType::HeadOfQueue));
    a.wait_ended(fault);
    rig.disk().complete(done);
    rig.disk().complete(ordered);
    a.pump();
    let tm = a.tm(TmFunction::AbortTaskSet, 0, 0);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    for t in [done, ordered, waits] {
        assert!(a.has_ended(t) && a.answer(t).is_none());
    }
    let tm = a.tm(TmFunction::ClearAca, 0, 0);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.close();
    rig.teardown();
}

#[test]
fn qerr_aborts_the_rest_of_the_task_set() {
    // QERR, TST, TAS; whether commands of the other nexus are aborted.
    for (qerr, tst, tas, other) in [
        (0, 0, false, false),
        (1, 1, false, false),
        (3, 0, false, false),
        (1, 0, false, true),
        (1, 0, true, true),
    ] {
        let what = format!("QERR={qerr} TST={tst} TAS={tas}");
        let rig = Rig::new(1);
        let c = &rig.devs[0].control;
        c.tst.store(tst, Ordering::Relaxed);
        c.tas.store(tas, Ordering::Relaxed);
        let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
        // Only now: unit attentions are CHECK CONDITIONs, too.
        c.qerr.store(qerr, Ordering::Relaxed);
        let holder = a.send(&read(How::Held).queue(QueueType::Ordered));
        let own = a.send(&read(How::Inline));
        let theirs_holder = b.send(&read(How::Held).queue(QueueType::Ordered));
        let theirs = b.send(&read(How::Inline));
        let fault = a.send(&read(How::Fails).queue(QueueType::HeadOfQueue));
        assert!(!a.wait_ended(fault).expect("an answer").is_good());
        a.pump();
        b.pump();
        for t in [holder, theirs_holder] {
            if rig.disk().executing().contains(&t) {
                rig.disk().complete(t);
            }
            a.pump();
            b.pump();
            if rig.disk().executing().contains(&theirs_holder) {
                rig.disk().complete(theirs_holder);
            }
        }
        a.wait_all();
        b.wait_all();
        assert_eq!(
            a.answer(own).is_some(),
            qerr == 0,
            "{what}: {:?}",
            a.answer(own)
        );
        let status = b.answer(theirs).map(|x| x.status);
        let want = match (other, tas) {
            (false, _) => Some(SamStatus::Good),
            (true, true) => Some(SamStatus::TaskAborted),
            (true, false) => None,
        };
        assert_eq!(status, want, "{what}");
        c.qerr.store(0, Ordering::Relaxed);
        let uas = b.clear_ua(0);
        let cleared = (other && !tas).then_some(sense::CLEARED_BY_ANOTHER_INI_UA);
        assert_eq!(uas, cleared.into_iter().collect::<Vec<_>>(), "{what}");
        a.close();
        b.close();
        rig.teardown();
    }
}
