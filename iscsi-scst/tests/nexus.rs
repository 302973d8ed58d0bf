//! What a nexus keeps and loses: reinstatement, and the task management functions of RFC 7144.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets and clock"
)]

mod wire;

use scst_core::sense;
use wire::{Bed, F, Ini, NO_TAG, POLLERS, Pdu, R, R2T, Reply, TMF_RESPONSE, W, read10, write10};

const CONFLICT: u8 = 0x18;

fn read(ini: &mut Ini) -> Reply {
    let cmd = ini.command(0, F | R, 512, read10(0, 1));
    ini.run(&cmd)
}

fn reserve(ini: &mut Ini) -> u8 {
    let mut cdb = [0; 16];
    cdb[0] = 0x56;
    let cmd = ini.command(0, F, 0, cdb);
    ini.run(&cmd).status
}

#[test]
fn a_reinstated_session_keeps_its_reservation_and_unit_attentions() {
    let bed = Bed::new(POLLERS[0]);
    let (mut holder, mut other) = (bed.login_as(2001, &[]), bed.login_as(2002, &[]));
    holder.clear_ua();
    other.clear_ua();
    assert_eq!(reserve(&mut holder), 0);
    assert_eq!(read(&mut other).status, CONFLICT);
    let dev = bed.target.tgt().default_acg().luns[&0].dev.clone();
    dev.check_set_ua(sense::MODE_PARAMETER_CHANGED, None);
    drop(dev);
    let mut again = bed.login_as(2001, &[]);
    assert!(holder.recv().is_none(), "the old session ends");
    assert_eq!(read(&mut other).status, CONFLICT, "it was never free");
    assert_eq!(read(&mut again).sense, Some((6, 0x29, 7)));
    assert_eq!(read(&mut again).sense, Some((6, 0x2a, 1)));
    assert_eq!(read(&mut again).status, 0);
    again.logout();
    while bed.target.session_count() != 1 {
        std::thread::yield_now();
    }
    let free = read(&mut other).sense;
    assert_eq!(free, Some((6, 0x2a, 1)), "without a successor");
    other.logout();
    bed.settle();
    bed.stop();
}

/// The answer to a task management request.
fn tmf(ini: &mut Ini, function: u8, lun: u8, tag: u32) -> u8 {
    let itt = ini.tmf(function, lun, tag, 0);
    loop {
        let pdu: Pdu = ini.recv().expect("an answer");
        if pdu.opcode() == TMF_RESPONSE && pdu.get(16) == itt {
            return pdu.bhs[2];
        }
    }
}

const QUERY_TASK: u8 = 9;
const QUERY_TASK_SET: u8 = 10;
const NEXUS_RESET: u8 = 11;
const COMPLETE: u8 = 0;
const NO_LUN: u8 = 2;
const SUCCEEDED: u8 = 7;
const REJECTED: u8 = 255;

#[test]
fn tasks_can_be_asked_for_and_the_nexus_reset() {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        let mut ini = bed.login_as(2011, &[("iSCSIProtocolLevel", "2"), ("InitialR2T", "Yes")]);
        ini.clear_ua();
        assert_eq!(tmf(&mut ini, QUERY_TASK_SET, 0, NO_TAG), COMPLETE);
        let held = ini.command(0, F | W, 65536, write10(0, 128));
        ini.send(&held);
        assert_eq!(ini.recv().expect("an R2T").opcode(), R2T);
        let tag = held.get(16);
        assert_eq!(tmf(&mut ini, QUERY_TASK, 0, tag), SUCCEEDED);
        assert_eq!(
            tmf(&mut ini, QUERY_TASK, 1, tag),
            COMPLETE,
            "of another LUN"
        );
        assert_eq!(tmf(&mut ini, QUERY_TASK, 0, tag + 1000), COMPLETE);
        assert_eq!(tmf(&mut ini, QUERY_TASK_SET, 0, NO_TAG), SUCCEEDED);
        assert_eq!(tmf(&mut ini, QUERY_TASK_SET, 1, NO_TAG), COMPLETE);
        assert_eq!(tmf(&mut ini, QUERY_TASK_SET, 99, NO_TAG), NO_LUN);
        assert_eq!(
            tmf(&mut ini, QUERY_TASK_SET, 0, tag),
            REJECTED,
            "it names no task"
        );
        let mut other = bed.login_as(2012, &[]);
        other.clear_ua();
        assert_eq!(reserve(&mut ini), 0);
        assert_eq!(tmf(&mut ini, NEXUS_RESET, 0, NO_TAG), COMPLETE);
        assert_eq!(tmf(&mut ini, QUERY_TASK, 0, tag), COMPLETE, "it is gone");
        assert_eq!(read(&mut ini).sense, Some((6, 0x29, 7)));
        assert_eq!(read(&mut ini).status, 0);
        assert_eq!(read(&mut other).status, 0, "and so is the reservation");
        other.logout();
        ini.logout();
        bed.settle();
        bed.stop();
    }
}

#[test]
fn functions_of_rfc_7144_need_its_protocol_level() {
    let bed = Bed::new(POLLERS[0]);
    for keys in [&[][..], &[("iSCSIProtocolLevel", "1")]] {
        let mut ini = bed.login_as(2021, keys);
        ini.clear_ua();
        for function in [QUERY_TASK, QUERY_TASK_SET, NEXUS_RESET, 12] {
            assert_eq!(tmf(&mut ini, function, 0, NO_TAG), REJECTED);
        }
        ini.logout();
        bed.settle();
    }
    bed.stop();
}
