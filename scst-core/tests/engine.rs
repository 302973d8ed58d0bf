//! The life of single commands: every way of execution, lengths, limits, unit attentions, ordering, LUNs that are not
//! there, reservations, thread pools.

mod mock;

use kshim::time::{Delta, Instant};
use mock::{BLOCK, FORMAT, Hold, How, MODE_SELECT, READ, Rig, Seen, Spec, WRITE, acg, rw};
use scst_core::cmd::RestartStatus;
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::core::{ConfigError, LunParams};
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense;
use std::sync::atomic::Ordering;

#[test]
fn every_way_of_execution_ends_in_one_answer() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    for how in How::ALL {
        for op in [READ, WRITE] {
            for fetch in [false, true] {
                a.hold(Hold {
                    fetch,
                    ..Hold::default()
                });
                let tag = a.send(&Spec::rw(op, how));
                if matches!(how, How::Held | How::HeldOnThread) {
                    rig.disk().wait_began(tag);
                    a.pump();
                    assert!(!a.has_ended(tag));
                    rig.disk().complete(tag);
                }
                let answer = a.wait_ended(tag).expect("an answer");
                if how == How::Fails {
                    assert_eq!(answer.sense(), Some(sense::READ_ERROR));
                    assert_eq!(answer.resid, if op == READ { i64::from(BLOCK) } else { 0 });
                } else {
                    assert!(answer.is_good(), "{how:?}: {answer:?}");
                    let len = if op == READ { BLOCK as usize } else { 0 };
                    assert_eq!(answer.data, vec![0x5a; len]);
                    assert_eq!(answer.resid, 0);
                }
            }
        }
    }
    a.close();
    rig.teardown();
}

#[test]
fn residuals_follow_what_was_moved() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let b = i64::from(BLOCK);
    let (r, w, n) = (
        DataDirection::Read,
        DataDirection::Write,
        DataDirection::None,
    );
    let good = Some(SamStatus::Good);
    // Command, what the initiator expects; status (None: CHECK CONDITION, invalid message), residual, data-in.
    let cases = [
        (READ, r, 512, good, 0, 512),
        (READ, r, 600, good, 88, 512),
        (READ, r, 4096, good, 4096 - b, 512),
        (READ, r, 200, good, 200 - b, 200),
        (READ, r, 0, good, -b, 0),
        (READ, n, 0, None, 0, 0),
        (READ, w, 512, None, 0, 0),
        (WRITE, w, 512, good, 0, 0),
        (WRITE, w, 4096, good, 4096 - b, 0),
        (WRITE, w, 200, good, 200 - b, 0),
        (WRITE, n, 0, None, 0, 0),
        (WRITE, r, 512, None, 512, 0),
    ];
    for (op, dir, len, status, resid, data) in cases {
        let what = format!("{op:#x} {dir:?} {len}");
        let answer = a.ask(&Spec::rw(op, How::Inline).expect(dir, len));
        match status {
            Some(s) => assert_eq!(answer.status, s, "{what}"),
            None => assert_eq!(answer.sense(), Some(sense::INVALID_MESSAGE), "{what}"),
        }
        assert_eq!(answer.data.len(), data, "{what}");
        if status.is_some() || dir == r {
            assert_eq!(answer.resid, resid, "{what}");
        }
    }
    // VMware's TEST UNIT READY has the read flag.
    assert!(a.ask(&Spec::tur().expect(r, 0)).is_good());
    a.close();
    rig.teardown();
}

#[test]
fn a_nexus_over_its_limit_is_told_to_wait() {
    let rig = Rig::new(2);
    rig.devs[0].max_tgt_dev_commands.store(2, Ordering::Relaxed);
    let mut a = rig.ini("a");
    let mut b = rig.ini("b");
    let held = [
        a.send(&Spec::rw(READ, How::Held)),
        a.send(&Spec::rw(READ, How::Held)),
    ];
    let full = a.ask(&Spec::rw(READ, How::Inline));
    assert_eq!(full.status, SamStatus::TaskSetFull);
    assert_eq!(full.resid, i64::from(BLOCK));
    // The limit is per nexus.
    assert!(a.ask(&Spec::rw(READ, How::Inline).lun(1)).is_good());
    assert!(b.ask(&Spec::rw(READ, How::Inline)).is_good());
    held.iter().for_each(|t| rig.disk().complete(*t));
    a.wait_all();
    assert!(a.ask(&Spec::rw(READ, How::Inline)).is_good());
    // The only command of the session: BUSY says that there is nothing to wait for.
    rig.devs[0].max_tgt_dev_commands.store(0, Ordering::Relaxed);
    assert_eq!(a.ask(&Spec::tur()).status, SamStatus::Busy);
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn unit_attentions_are_delivered_once_and_put_back_when_lost() {
    let rig = Rig::new(1);
    let mut a = rig.fresh_ini("a");
    // INQUIRY and REPORT LUNS pass them.
    let report = Spec::new(0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]);
    assert!(a.ask(&report.expect(DataDirection::Read, 64)).is_good());
    // A response that does not arrive.
    a.hold(Hold {
        xmit: true,
        ..Hold::default()
    });
    let t = a.send(&Spec::tur());
    assert_eq!(a.answer(t).and_then(|a| a.sense()), Some(sense::RESET_UA));
    a.sent(false);
    a.hold(Hold::default());
    assert_eq!(a.clear_ua(0), [sense::RESET_UA]);

    // An aborted command does not take it along.
    rig.devs[0].capacity_data_changed();
    a.hold(Hold {
        data: true,
        ..Hold::default()
    });
    let w = a.send(&Spec::rw(WRITE, How::Inline));
    assert!(a.waits_for_data(w));
    let tm = a.tm(TmFunction::AbortTask, 0, w);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    assert_eq!(a.answer(w), None);
    a.hold(Hold::default());

    // Aborted while the answer with it is on its way, which arrives: told once.
    a.hold(Hold {
        xmit: true,
        ..Hold::default()
    });
    let t = a.send(&Spec::tur());
    let tm = a.tm(TmFunction::AbortTask, 0, t);
    a.core.flush_tm();
    a.sent(true);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.hold(Hold::default());
    assert_eq!(
        a.answer(t).and_then(|a| a.sense()),
        Some(sense::CAPACITY_DATA_CHANGED)
    );
    assert_eq!(a.clear_ua(0), []);

    // REQUEST SENSE gives it as data.
    rig.devs[0].capacity_data_changed();
    let rs = Spec::new(0, &[3, 0, 0, 0, 18, 0]).expect(DataDirection::Read, 18);
    let answer = a.ask(&rs);
    assert!(answer.is_good());
    assert_eq!(
        sense::parse(&answer.data),
        Some(sense::CAPACITY_DATA_CHANGED)
    );
    assert_eq!(a.clear_ua(0), []);
    a.close();
    rig.teardown();
}

#[test]
fn absent_luns_answer_what_they_must() {
    let rig = Rig::new(2);
    let mut a = rig.ini("a");
    let read = |cdb: &[u8], len| Spec::new(9, cdb).expect(DataDirection::Read, len);
    for lun in [9, 300, 0x3fff] {
        let inq = a.ask(&read(&[0x12, 0, 0, 0, 36, 0], 36).lun(lun));
        assert!(inq.is_good());
        assert_eq!((inq.data.len(), inq.data[0]), (36, 0x7f));
        let sense = a.ask(&read(&[3, 0, 0, 0, 252, 0], 252).lun(lun));
        assert_eq!(sense::parse(&sense.data), Some(sense::LUN_NOT_SUPPORTED));
        let luns = a.ask(&read(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).lun(lun));
        assert_eq!(luns.data[..4], [0, 0, 0, 16]);
        assert_eq!(luns.resid, 256 - 24);
        for cdb in [
            vec![0; 6],
            rw(READ, How::Inline),
            vec![0x12, 1, 0, 0, 36, 0],
        ] {
            let answer = a.ask(&Spec::new(lun, &cdb));
            assert_eq!(answer.sense(), Some(sense::LUN_NOT_SUPPORTED), "{cdb:x?}");
        }
    }
    a.close();
    rig.teardown();
}

#[test]
fn reservations_keep_others_out() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let conflict = SamStatus::ReservationConflict;
    let (reserve, release) = (
        Spec::new(0, &[0x16, 0, 0, 0, 0, 0]),
        Spec::new(0, &[0x17; 6]),
    );
    let release = Spec {
        cdb: vec![0x17, 0, 0, 0, 0, 0],
        ..release
    };
    let reserve10 = Spec::new(0, &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let read = Spec::rw(READ, How::Inline);
    assert!(a.ask(&reserve).is_good());
    assert!(a.ask(&reserve10).is_good(), "again");
    assert!(a.ask(&read).is_good());
    let refused = b.ask(&read);
    assert_eq!((refused.status, refused.resid), (conflict, 512));
    assert_eq!(b.ask(&reserve).status, conflict);
    assert!(b.ask(&Spec::tur()).is_good());
    assert!(b.ask(&release).is_good(), "no error, and no effect");
    assert_eq!(b.ask(&read).status, conflict);
    // The conflict comes before a unit attention, which stays.
    rig.devs[0].capacity_data_changed();
    assert_eq!(b.ask(&read).status, conflict);
    assert_eq!(b.clear_ua(0), [sense::CAPACITY_DATA_CHANGED]);
    a.clear_ua(0);
    assert!(a.ask(&release).is_good());
    assert!(b.ask(&read).is_good());
    let third = Spec::new(0, &[0x56, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(a.ask(&third).sense(), Some(sense::INVALID_FIELD_IN_CDB));

    // A reset ends it, and so does the end of the session.
    assert!(a.ask(&reserve).is_good());
    let tm = b.tm(TmFunction::LunReset, 0, 0);
    assert_eq!(b.wait_tm(tm), TmStatus::Success);
    assert_eq!(b.clear_ua(0), [sense::RESET_UA]);
    assert_eq!(a.clear_ua(0), [sense::RESET_UA]);
    assert!(b.ask(&reserve).is_good());
    assert_eq!(a.ask(&read).status, conflict);
    b.close();
    assert!(a.ask(&read).is_good());
    assert!(a.ask(&reserve).is_good());
    a.close();
    rig.teardown();
}

#[test]
fn ordered_commands_wait_and_are_waited_for() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    let disk = rig.disk();
    let from = disk.began().len();
    a.hold(Hold {
        data: true,
        ..Hold::default()
    });
    // A write whose data is not there, ordered after it, simple after that.
    let w = a.send(&Spec::rw(WRITE, How::Held));
    let ordered = a.send(&Spec::rw(READ, How::Held).queue(QueueType::Ordered));
    let r = a.send(&Spec::rw(READ, How::Inline));
    a.pump();
    assert!(disk.executing().is_empty());
    // HEAD OF QUEUE passes all of them.
    let hq = a.send(&Spec::rw(READ, How::Held).queue(QueueType::HeadOfQueue));
    a.data(w);
    a.pump();
    assert_eq!(
        disk.began()[from..],
        [hq],
        "nobody passes a HEAD OF QUEUE command"
    );
    disk.complete(hq);
    a.wait_ended(hq);
    disk.wait_began(w);
    // The ordered one is handed over when the write was, and holds the read until it is complete.
    disk.wait_began(ordered);
    a.pump();
    assert!(!a.has_ended(r));
    disk.complete(ordered);
    a.wait_ended(r).expect("its turn");
    disk.complete(w);
    a.wait_all();
    assert_eq!(disk.began()[from..], [hq, w, ordered, r]);
    a.close();
    rig.teardown();
}

#[test]
fn restricted_reordering_makes_one_queue() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    rig.devs[0].control.queue_alg.store(0, Ordering::Relaxed);
    let ways = [How::Later, How::Thread, How::Inline, How::PendingInline];
    rig.disk().delay_us.store(300, Ordering::Relaxed);
    let from = rig.disk().log().len();
    let tags: Vec<u64> = (0..60)
        .map(|i| a.send(&Spec::rw(READ, ways[i % 4])))
        .collect();
    a.wait_all();
    let want: Vec<Seen> = tags
        .iter()
        .flat_map(|t| [Seen::Began(*t), Seen::Ended(*t)])
        .collect();
    assert_eq!(rig.disk().log()[from..], want);
    a.close();
    rig.teardown();
}

#[test]
fn strictly_serialised_commands_are_alone() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let disk = rig.disk();
    let r = a.send(&Spec::rw(READ, How::Held));
    let format = b.send(&Spec::new(0, &[FORMAT, 0, 0, 0, 0, 0]));
    let after = a.send(&Spec::rw(READ, How::Inline));
    b.pump();
    a.pump();
    assert!(!b.has_ended(format) && !a.has_ended(after));
    disk.complete(r);
    a.wait_ended(r);
    b.wait_ended(format).expect("alone now");
    a.wait_ended(after).expect("after it");
    let log = disk.log();
    let at = |s| log.iter().position(|x| *x == s).expect("seen");
    assert!(at(Seen::Ended(r)) < at(Seen::Began(format)));
    assert!(at(Seen::Ended(format)) < at(Seen::Began(after)));
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn mode_select_tells_the_other_nexuses_only_if_it_was_executed() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let select = Spec::new(0, &[MODE_SELECT, 0x10, 0, 0, 12, 0]);
    let select = select.expect(DataDirection::Write, 12);
    assert!(a.ask(&select).is_good());
    assert_eq!(b.clear_ua(0), [sense::MODE_PARAMETER_CHANGED]);
    assert_eq!(a.clear_ua(0), []);
    // Strictly serialised behind a read, aborted there.
    let r = b.send(&Spec::rw(READ, How::Held));
    let s = a.send(&select);
    let tm = a.tm(TmFunction::AbortTask, 0, s);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    rig.disk().complete(r);
    b.wait_all();
    assert_eq!(b.clear_ua(0), []);
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn a_transport_that_fails_a_command_ends_it() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    for fetch in [false, true] {
        for (status, want) in [
            (RestartStatus::Error, Some(sense::ABORTED_COMMAND)),
            (RestartStatus::ErrorFatal, None),
        ] {
            a.hold(Hold {
                data: true,
                fetch,
                ..Hold::default()
            });
            let w = a.send(&Spec::rw(WRITE, How::Inline));
            // What is behind it in order must not wait for it.
            let ordered = a.send(&Spec::rw(READ, How::Inline).queue(QueueType::Ordered));
            assert!(!a.has_ended(ordered));
            a.fail_all_data(status);
            let answer = a.wait_ended(w);
            assert_eq!(answer.and_then(|a| a.sense()), want);
            assert!(a.wait_ended(ordered).expect("its turn").is_good());
        }
    }
    a.close();
    rig.teardown();
}

#[test]
fn pools_have_no_thread_before_they_are_used() {
    for shared in [false, true] {
        let disk = mock::Disk::new("pooled");
        disk.threads_num.store(3, Ordering::Relaxed);
        disk.shared_pool.store(shared, Ordering::Relaxed);
        let rig = Rig::with(vec![disk]);
        let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
        let threads = |i: &mock::Ini| i.sess.tgt_devs()[0].pool_threads();
        assert!(a.ask(&Spec::rw(READ, How::Inline)).is_good());
        assert_eq!((threads(&a), threads(&b)), (0, 0));
        assert!(a.ask(&Spec::rw(READ, How::Thread)).is_good());
        assert_eq!((threads(&a), threads(&b)), (1, usize::from(shared)));
        // All at once: as many as there may be, and the rest waits; HEAD OF QUEUE commands go first.
        let held: Vec<u64> = (0..3)
            .map(|_| a.send(&Spec::rw(READ, How::HeldOnThread)))
            .collect();
        for t in &held {
            rig.disk().wait_began(*t);
        }
        let plain: Vec<u64> = (0..5)
            .map(|_| a.send(&Spec::rw(READ, How::Thread)))
            .collect();
        let hq = a.send(&Spec::rw(READ, How::Thread).queue(QueueType::HeadOfQueue));
        a.pump();
        assert_eq!(threads(&a), 3);
        assert_eq!(rig.disk().executing().len(), 3);
        held.iter().for_each(|t| rig.disk().complete(*t));
        a.wait_all();
        let began = rig.disk().began();
        let at = |t| began.iter().position(|b| *b == t).expect("executed");
        assert!(plain.iter().all(|p| at(hq) < at(*p)), "{began:?}");
        assert!(b.ask(&Spec::rw(READ, How::Thread)).is_good());
        assert!(threads(&a) <= 3);
        let end = Instant::now() + Delta::from_secs(mock::STUCK_S);
        while threads(&a) + threads(&b) > 0 {
            assert!(Instant::now() < end, "idle threads stay");
            kshim::time::delay::msleep(5);
        }
        // And again.
        assert!(a.ask(&Spec::rw(READ, How::Thread)).is_good());
        a.close();
        b.close();
        rig.teardown();
    }
}

#[test]
fn handlers_without_threads_get_help_from_the_global_pool() {
    for n in [-1, 0] {
        let disk = mock::Disk::new("d");
        disk.threads_num.store(n, Ordering::Relaxed);
        let rig = Rig::with(vec![disk]);
        let mut a = rig.ini("a");
        assert!(a.ask(&Spec::rw(READ, How::Thread)).is_good());
        a.close();
        rig.teardown();
    }
}

#[test]
fn a_handler_that_refuses_a_nexus_fails_the_change() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    rig.disk().refuse_attach.store(true, Ordering::Relaxed);
    let group = acg(&rig.tgt);
    let dev = &rig.devs[0];
    let r = rig
        .core
        .add_lun(&rig.tgt, group, dev, 5, LunParams::default());
    assert!(matches!(r, Err(ConfigError::Host { .. })), "{r:?}");
    assert_eq!(a.sess.tgt_devs().len(), 1);
    assert_eq!(a.clear_ua(0), []);
    rig.disk().refuse_attach.store(false, Ordering::Relaxed);
    rig.core
        .add_lun(&rig.tgt, group, dev, 5, LunParams::default())
        .expect("now");
    assert_eq!(a.clear_ua(0), [sense::REPORTED_LUNS_DATA_CHANGED]);
    assert_eq!(a.clear_ua(5), [sense::RESET_UA]);
    assert!(a.ask(&Spec::rw(READ, How::Inline).lun(5)).is_good());
    rig.core.del_lun(&rig.tgt, group, 5).expect("there");
    a.clear_ua(0);
    let gone = a.ask(&Spec::tur().lun(5));
    assert_eq!(gone.sense(), Some(sense::LUN_NOT_SUPPORTED));
    a.close();
    rig.teardown();
}

#[test]
fn read_only_luns_refuse_writes() {
    let rig = Rig::new(1);
    let group = acg(&rig.tgt);
    let ro = LunParams { read_only: true };
    rig.core
        .add_lun(&rig.tgt, group, &rig.devs[0], 1, ro)
        .expect("free");
    let mut a = rig.ini("a");
    assert!(a.ask(&Spec::rw(READ, How::Inline).lun(1)).is_good());
    let w = a.ask(&Spec::rw(WRITE, How::Inline).lun(1));
    assert_eq!(w.sense(), Some(sense::DATA_PROTECT));
    assert!(a.ask(&Spec::rw(WRITE, How::Inline)).is_good());
    a.close();
    rig.teardown();
}

#[test]
fn a_handler_that_panics_costs_its_command_only() {
    let rig = Rig::new(1);
    let mut a = rig.ini("a");
    // What waits behind it in order, and at the device, goes on; task management does not wait for it.
    let lost = a.send(&Spec::rw(READ, How::Panics).queue(QueueType::Ordered));
    let next = a.send(&Spec::rw(READ, How::Thread));
    let format = a.send(&Spec::new(0, &[FORMAT, 0, 0, 0, 0, 0]));
    assert!(a.wait_ended(next).expect("an answer").is_good());
    assert!(a.wait_ended(format).expect("an answer").is_good());
    assert!(!a.has_ended(lost));
    a.forget(lost);
    let tm = a.tm(TmFunction::LunReset, 0, 0);
    assert_eq!(a.wait_tm(tm), TmStatus::Success);
    a.clear_ua(0);
    a.close();
    rig.teardown();
}
