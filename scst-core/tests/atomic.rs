//! Who waits for a COMPARE AND WRITE, and for whom it waits, with a handler that keeps commands as long as the test likes.

mod mock;

use mock::{CAW, FORMAT, How, Ini, READ, Rig, Spec};
use scst_core::consts::DataDirection;
use scst_core::mgmt::{TmFunction, TmStatus};

const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];

fn lba(how: How, at: u64) -> u64 {
    (how as u64) << 16 | at
}

fn caw(how: How, at: u64) -> Spec {
    let mut cdb = vec![CAW, 0];
    cdb.extend_from_slice(&lba(how, at).to_be_bytes());
    cdb.extend_from_slice(&[0, 0, 0, 1, 0, 0]);
    Spec::new(0, &cdb)
}

fn read(how: How, at: u64) -> Spec {
    let mut cdb = mock::rw(READ, how);
    cdb[2..6].copy_from_slice(&(lba(how, at) as u32).to_be_bytes());
    Spec::new(0, &cdb)
}

/// Sends a command that gets to the handler and stays there.
fn held(rig: &Rig, ini: &mut Ini, spec: &Spec) -> u64 {
    let tag = ini.send(spec);
    rig.disk().wait_began(tag);
    tag
}

#[test]
fn commands_on_the_same_blocks_wait_in_order() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    let first = held(&rig, &mut a, &caw(How::Held, 5));
    let second = b.send(&caw(How::Held, 5));
    let behind = a.send(&read(How::Held, 5));
    let reserve = b.send(&Spec::new(0, &RESERVE));
    // Neither on other blocks, nor one on none.
    let beside = a.send(&read(How::Inline, 6));
    let none = a.send(&Spec::tur());
    a.wait_ended(beside);
    a.wait_ended(none);
    assert_eq!(
        rig.disk().executing().into_iter().collect::<Vec<_>>(),
        [first]
    );
    rig.disk().complete(first);
    a.wait_ended(first);
    b.until("the second executes", |_| {
        rig.disk().executing().contains(&second)
    });
    a.pump();
    b.pump();
    assert!(!b.has_ended(reserve) && !rig.disk().executing().contains(&behind));
    rig.disk().complete(second);
    b.wait_ended(second);
    b.wait_ended(reserve);
    a.until("the read is let in", |i| {
        i.has_ended(behind) || rig.disk().executing().contains(&behind)
    });
    rig.disk().complete_all();
    a.wait_all();
    b.ask(&Spec::new(0, &RELEASE));
    b.wait_all();
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn waits_for_commands_that_came_before() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    // Its blocks are not known, so that the atomic command waits for it wherever it is.
    let early = held(&rig, &mut a, &read(How::Held, 5));
    let atomic = b.send(&caw(How::Held, 5));
    // Those that come now have theirs looked at.
    let beside = held(&rig, &mut a, &read(How::Held, 7));
    let behind = a.send(&read(How::Held, 5));
    b.pump();
    let executing = |tags: &[u64]| {
        let now: Vec<u64> = rig.disk().executing().into_iter().collect();
        assert_eq!(now, tags);
    };
    executing(&[early, beside]);
    rig.disk().complete(early);
    a.wait_ended(early);
    b.until("the atomic command executes", |_| {
        rig.disk().executing().contains(&atomic)
    });
    executing(&[atomic, beside]);
    rig.disk().complete(atomic);
    b.wait_ended(atomic);
    a.until("the read executes", |_| {
        rig.disk().executing().contains(&behind)
    });
    rig.disk().complete_all();
    a.wait_all();
    a.close();
    b.close();
    rig.teardown();
}

#[test]
fn who_waits_can_be_aborted() {
    let rig = Rig::new(1);
    let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
    for function in [TmFunction::AbortTask, TmFunction::AbortTaskSet] {
        let first = held(&rig, &mut a, &caw(How::Held, 5));
        let waits = b.send(&caw(How::Held, 5));
        // Waits for that one alone.
        let mut wide = read(How::Held, 5);
        wide.cdb[5] = 6;
        let tm = b.tm(function, 0, waits);
        assert_eq!(b.wait_tm(tm), TmStatus::Success);
        assert!(b.answer(waits).is_none(), "no answer to who aborted it");
        assert!(rig.disk().executing().contains(&first));
        // Nobody is left behind.
        let other = held(&rig, &mut b, &caw(How::Held, 6));
        let on_both = a.send(&wide);
        rig.disk().complete(first);
        a.wait_ended(first);
        a.pump();
        assert!(!rig.disk().executing().contains(&on_both));
        let tm = b.tm(TmFunction::LunReset, 0, 0);
        b.until("the reset marks it", |_| true);
        rig.disk().complete(other);
        assert_eq!(b.wait_tm(tm), TmStatus::Success);
        a.until("it is gone", |i| !i.live_tags().contains(&on_both));
        a.wait_all();
        b.wait_all();
        a.clear_ua(0);
        b.clear_ua(0);
    }
    a.close();
    b.close();
    rig.teardown();
}

/// EXTENDED COPY of a block from the first disk to the second.
fn copy() -> Spec {
    let mut list = vec![0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for name in [b"disk0\0\0\0", b"disk1\0\0\0"] {
        list.extend_from_slice(&[0xE4, 0, 0, 0, 1, 2, 0, 8]);
        list.extend_from_slice(name);
        list.extend_from_slice(&[0; 12]);
        list.extend_from_slice(&[0, 0, 2, 0]);
    }
    list.extend_from_slice(&[2, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 1]);
    list.extend_from_slice(&[0; 16]);
    let len = list.len() as u8;
    let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0, 0];
    let mut spec = Spec::new(0, &cdb).expect(DataDirection::Write, u32::from(len));
    spec.out = list;
    spec
}

#[test]
fn a_copy_waits_for_each_of_its_devices() {
    for busy in 0..2u64 {
        for abort in [false, true] {
            let rig = Rig::new(2);
            let (mut a, mut b) = (rig.ini("a"), rig.ini("b"));
            let read = b.send(&Spec::rw(READ, How::Held).lun(busy));
            rig.disks[busy as usize].wait_began(read);
            // Waits until the disk is drained, and everybody behind it too.
            let alone = b.send(&Spec::new(busy, &[FORMAT, 0, 0, 0, 0, 0]));
            let copy = a.send(&copy());
            a.pump();
            assert!(!a.has_ended(copy) && !b.has_ended(alone));
            if abort {
                let tm = a.tm(TmFunction::AbortTask, 0, copy);
                assert_eq!(a.wait_tm(tm), TmStatus::Success);
                assert!(a.answer(copy).is_none(), "no answer to who aborted it");
                // It is on no disk any more.
                let other = b.ask(&Spec::new(1 - busy, &[FORMAT, 0, 0, 0, 0, 0]));
                assert!(other.is_good());
            }
            rig.disks[busy as usize].complete(read);
            b.wait_all();
            a.wait_all();
            if !abort {
                // The mock cannot read for the core.
                let sense = a.answer(copy).and_then(|x| x.sense()).expect("sense");
                assert_eq!(sense.key, scst_core::sense::key::COPY_ABORTED);
            }
            a.close();
            b.close();
            rig.teardown();
        }
    }
}
