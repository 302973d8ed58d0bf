//! Persistent reservations through the whole engine: aborts, files, logins.
#![allow(clippy::disallowed_methods)] // files are broken on purpose

mod mock;

use mock::{How, Ini, READ, Rig, Spec, WRITE};
use proptest::test_runner::TestRunner;
use scst_core::cmd::RestartStatus;
use scst_core::consts::{DataDirection, QueueType, SamStatus};
use scst_core::core::{ConfigError, Core, CoreParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::dev_type::DevHandler;
use scst_core::sense;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
const EXCLUSIVE_ACCESS: u8 = 3;
const WRITE_EXCLUSIVE_REG_ONLY: u8 = 5;

fn pr_out(action: u8, ty: u8, key: u64, action_key: u64, flags: u8) -> Spec {
    let mut p = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    p.extend_from_slice(&[0, 0, 0, 0, flags, 0, 0, 0]);
    Spec {
        out: p,
        expected: Some((DataDirection::Write, 24)),
        ..Spec::new(0, &[0x5F, action, ty, 0, 0, 0, 0, 0, 24, 0])
    }
}

fn good(ini: &mut Ini, spec: &Spec) {
    let a = ini.ask(spec);
    assert!(a.is_good(), "{a:?}");
}

fn end(rig: Rig, inis: impl IntoIterator<Item = Ini>) {
    inis.into_iter().for_each(Ini::close);
    rig.teardown();
}

/// Both are registered.
fn registered(rig: &Rig) -> (Ini, Ini) {
    let (mut a, mut b) = (rig.ini("A"), rig.ini("B"));
    good(&mut a, &pr_out(REGISTER, 0, 0, 0xA1, 0));
    good(&mut b, &pr_out(REGISTER, 0, 0, 0xB1, 0));
    (a, b)
}

#[test]
fn preempt_and_abort_is_answered_after_the_aborts() {
    for tas in [false, true] {
        let rig = Rig::new(1);
        rig.devs[0].control.tas.store(tas, Ordering::Relaxed);
        let (mut a, mut b) = registered(&rig);
        good(&mut a, &pr_out(RESERVE, EXCLUSIVE_ACCESS, 0xA1, 0, 0));
        let executing = a.send(&Spec::rw(READ, How::Held).queue(QueueType::Ordered));
        rig.disk().wait_began(executing);
        let parked = a.send(&Spec::rw(READ, How::Inline));
        let preempt = pr_out(PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, 0xB1, 0xA1, 0);
        let tag = b.send(&preempt);
        a.until("the parked command", |i| i.has_ended(parked));
        rig.core.flush_tm();
        b.pump();
        assert!(!b.has_ended(tag), "a command is still executed");
        // It is a serialised command: others wait, too.
        let read = b.send(&Spec::rw(READ, How::Inline));
        b.pump();
        assert!(!b.has_ended(read));
        rig.disk().complete(executing);
        a.until("the executing command", |i| i.has_ended(executing));
        assert!(b.wait_ended(tag).expect("an answer").is_good());
        let aborted = tas.then_some(SamStatus::TaskAborted);
        assert!(b.wait_ended(read).expect("an answer").is_good());
        assert_eq!(a.answer(parked).map(|x| x.status), aborted, "TAS={tas}");
        // It had its result when it learnt of the abort.
        assert!(a.answer(executing).is_some_and(|x| x.is_good()));
        assert_eq!(
            a.ask(&Spec::rw(READ, How::Inline)).status,
            SamStatus::ReservationConflict
        );
        let mut uas = vec![sense::REGISTRATIONS_PREEMPTED];
        if !tas {
            uas.insert(0, sense::CLEARED_BY_ANOTHER_INI_UA);
        }
        assert_eq!(a.clear_ua(0), uas);
        assert_eq!(b.clear_ua(0), []);
        end(rig, [a, b]);
    }
}

#[test]
fn preempt_and_abort_of_the_own_key_spares_the_command_itself() {
    let rig = Rig::new(1);
    let (mut a, mut b) = registered(&rig);
    good(&mut b, &pr_out(RESERVE, EXCLUSIVE_ACCESS, 0xB1, 0, 0));
    let executing = b.send(&Spec::rw(READ, How::Held).queue(QueueType::Ordered));
    rig.disk().wait_began(executing);
    let parked = b.send(&Spec::rw(READ, How::Inline));
    let tag = b.send(
        &pr_out(PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, 0xB1, 0xB1, 0).queue(QueueType::HeadOfQueue),
    );
    b.until("the parked command", |i| i.has_ended(parked));
    assert!(!b.has_ended(tag));
    rig.disk().complete(executing);
    assert!(b.wait_ended(tag).expect("an answer").is_good());
    b.until("the executing command", |i| i.has_ended(executing));
    assert!(b.answer(executing).is_none() && b.answer(parked).is_none());
    assert_eq!(b.clear_ua(0), []);
    assert_eq!(a.clear_ua(0), []);
    end(rig, [a, b]);
}

#[test]
fn preempt_and_abort_takes_what_waits_for_data() {
    let rig = Rig::new(1);
    let (mut a, mut b) = registered(&rig);
    good(&mut a, &pr_out(RESERVE, EXCLUSIVE_ACCESS, 0xA1, 0, 0));
    a.hold(mock::Hold {
        data: true,
        ..mock::Hold::default()
    });
    let waiting = a.send(&Spec::rw(WRITE, How::Inline));
    assert!(a.waits_for_data(waiting));
    good(
        &mut b,
        &pr_out(PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, 0xB1, 0xA1, 0),
    );
    a.fail_all_data(RestartStatus::Error);
    a.until("the write", |i| i.has_ended(waiting));
    assert!(!rig.disk().began().contains(&waiting));
    a.hold(mock::Hold::default());
    a.clear_ua(0);
    end(rig, [a, b]);
}

fn vdisk() -> Arc<dyn DevHandler> {
    let params = VdiskParams::parse(VdiskKind::Nullio, &[("size_mb", "1")]).expect("known");
    Vdisk::new("disk0", &params).expect("device")
}

fn rig_in(dir: &Path) -> Rig {
    Rig::of_dir(
        vec![("disk0".to_owned(), vdisk(), false)],
        Some(dir.to_owned()),
    )
}

/// Registers with APTPL and reserves.
fn reserve_for_good(rig: &Rig) -> Ini {
    let mut a = rig.ini("A");
    good(&mut a, &pr_out(REGISTER, 0, 0, 0xD1, 1));
    good(
        &mut a,
        &pr_out(RESERVE, WRITE_EXCLUSIVE_REG_ONLY, 0xD1, 0, 0),
    );
    a
}

#[test]
fn reservations_survive_the_server() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let first = rig_in(dir.path());
    let a = reserve_for_good(&first);
    let text = first.devs[0].pr_state();
    // As after kill -9: the first one has not closed anything.
    let second = rig_in(dir.path());
    let again = second.devs[0].pr_state();
    assert_eq!(again, text.replace("generation 1", "generation 0"));
    let (mut a2, mut b2) = (second.ini("A"), second.ini("B"));
    let write = [WRITE, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert!(a2.ask(&Spec::new(0, &write)).is_good());
    let conflict = b2.ask(&Spec::new(0, &write)).status;
    assert_eq!(conflict, SamStatus::ReservationConflict);
    // What ends there does not come back.
    good(&mut a2, &pr_out(3, 0, 0xD1, 0, 0));
    end(second, [a2, b2]);
    let third = rig_in(dir.path());
    assert_eq!(third.devs[0].pr_state(), "version 1\ngeneration 0\n");
    end(third, []);
    end(first, [a]);
}

#[test]
fn a_broken_file_is_refused_and_the_copy_used() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let rig = rig_in(dir.path());
    let mut a = reserve_for_good(&rig);
    good(&mut a, &pr_out(REGISTER, 0, 0xD1, 0xD2, 1));
    end(rig, [a]);
    let (main, copy) = (dir.path().join("disk0"), dir.path().join("disk0 copy"));
    let whole = std::fs::read(&main).expect("the file");
    for n in 0..whole.len() {
        std::fs::write(&main, &whole[..n]).expect("cut off");
        let rig = rig_in(dir.path());
        let text = rig.devs[0].pr_state();
        assert!(text.contains("reservation 05 00\n"), "{text}");
        assert!(text.contains(" 00000000000000d1 1 "), "{text}");
        end(rig, []);
    }
    std::fs::write(&copy, b"nothing like it, and quite long").expect("rubbish");
    std::fs::write(&main, &whole[..40]).expect("cut off");
    let core = Core::new(CoreParams {
        pr_dir: Some(dir.path().to_owned()),
        ..CoreParams::default()
    });
    let core = core.expect("threads");
    let refused = core.register_virtual_device("disk0", vdisk());
    assert!(
        matches!(refused, Err(ConfigError::Host { .. })),
        "{refused:?}"
    );
    assert!(core.device("disk0").is_none());
    core.shutdown();
}

#[test]
fn a_state_is_carried_over_as_text() {
    let dir = tempfile::tempdir().expect("scratch directory");
    let from = rig_in(dir.path());
    let a = reserve_for_good(&from);
    let text = from.devs[0].pr_state();
    assert!(from.devs[0].set_pr_state(&text).is_err(), "in use");
    let to = Rig::of(vec![("disk0".to_owned(), vdisk(), false)]);
    to.devs[0].set_pr_state(&text).expect("not in use");
    assert_eq!(to.devs[0].pr_state(), text);
    let mut b = to.ini("B");
    let write = Spec::new(0, &[WRITE, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(b.ask(&write).status, SamStatus::ReservationConflict);
    end(to, [b]);
    end(from, [a]);
}

#[test]
fn any_parameter_list_is_answered() {
    let rig = Rig::new(1);
    let (mut a, b) = registered(&rig);
    let lists = (
        0u8..9,
        proptest::prelude::any::<u8>(),
        proptest::collection::vec(0u8..9, 0..90),
    );
    let mut runner = TestRunner::default();
    for _ in 0..300 {
        let tree = proptest::strategy::Strategy::new_tree(&lists, &mut runner).expect("a list");
        let (action, ty, params) = proptest::strategy::ValueTree::current(&tree);
        let len = params.len() as u8;
        let said = len.wrapping_add(u8::from(ty & 1 != 0) * 4);
        a.ask(&Spec {
            out: params,
            expected: Some((DataDirection::Write, u32::from(len))),
            ..Spec::new(0, &[0x5F, action, ty, 0, 0, 0, 0, 0, said, 0])
        });
    }
    a.clear_ua(0);
    end(rig, [a, b]);
}
