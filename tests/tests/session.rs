//! A raw session: login, every way that data travels, window, several commands in flight, discovery.

use scst_tests::pdu::{self, FINAL, IMMEDIATE, op};
use scst_tests::scsi;
use scst_tests::session::{Command, Error, Outcome, Residual, Session};
use scst_tests::{OpenOptions, Pdu, Rng, Server, ServerOptions};

fn server() -> Server {
    Server::start(&ServerOptions::lun("64M"))
}

#[test]
fn data_travels_right_in_every_mode() {
    let server = server();
    let lun = server.lun(0);
    let mut rng = Rng::from_env(1);
    // InitialR2T and ImmediateData in all combinations, with small bursts, so that each transfer mixes them.
    let mut initiator = 0;
    for (r2t, immediate) in [("No", "Yes"), ("Yes", "Yes"), ("No", "No"), ("Yes", "No")] {
        for outstanding in ["1", "8"] {
            initiator += 1;
            let options = server
                .options()
                .initiator(initiator)
                .key("InitialR2T", r2t)
                .key("ImmediateData", immediate)
                .key("MaxOutstandingR2T", outstanding)
                .key("MaxRecvDataSegmentLength", "4096")
                .key("MaxBurstLength", "16384")
                .key("FirstBurstLength", "8192");
            let mut s = Session::open(server.addr, &options).unwrap();
            assert_eq!((s.params.max_burst, s.params.first_burst), (16384, 8192));
            s.clear_ua(lun).unwrap();
            for blocks in [1u32, 7, 8, 9, 16, 17, 33, 255, 1024] {
                let lba = rng.below(1000);
                let data = rng.bytes(blocks as usize * 512);
                s.write_blocks(lun, lba, &data).unwrap();
                s.expect_blocks(lun, lba, &data);
            }
            s.assert_clean();
            assert_eq!(s.close().unwrap(), 0);
        }
    }
}

#[test]
fn digests_that_were_agreed_on_protect_both_directions() {
    let server = server();
    let lun = server.lun(0);
    for (header, data) in [
        ("CRC32C", "None"),
        ("None", "CRC32C"),
        ("CRC32C,None", "CRC32C,None"),
    ] {
        let options = server
            .options()
            .key("HeaderDigest", header)
            .key("DataDigest", data);
        let mut s = Session::open(server.addr, &options).unwrap();
        // SCST answers None unless its target is configured for digests; what it agrees to must hold.
        println!(
            "{header}/{data}: {} {}",
            s.wire.header_digest, s.wire.data_digest
        );
        assert!(!s.wire.header_digest || header != "None");
        assert!(!s.wire.data_digest || data != "None");
        s.clear_ua(lun).unwrap();
        let bytes = Rng::new(7).bytes(300 * 512);
        s.write_blocks(lun, 5, &bytes).unwrap();
        s.expect_blocks(lun, 5, &bytes);
        s.assert_clean();
        s.close().unwrap();
    }
}

#[test]
fn many_commands_in_flight_each_get_their_own_data() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    let mut rng = Rng::from_env(2);
    let mut expected = Vec::new();
    for i in 0..64u64 {
        let data = rng.bytes(64 * 512);
        s.write_blocks(lun, i * 64, &data).unwrap();
        expected.push(data);
    }
    for round in 0..8 {
        let mut tags = Vec::new();
        for _ in 0..64 {
            let i = rng.below(64);
            let tag = if rng.one_in(3) {
                let data = rng.bytes(64 * 512);
                // A write waits for what was sent before it to the same place: the initiator's duty.
                for (tag, at) in tags.drain(..) {
                    check(&mut s, tag, at, &expected, round);
                }
                let write = Command::write(lun, scsi::write10((i * 64) as u32, 64), data.clone());
                let tag = s.submit(&write).unwrap();
                expected[i as usize] = data;
                assert!(s.wait_scsi(tag).unwrap().is_good());
                continue;
            } else {
                s.submit(&Command::read(lun, scsi::read16(i * 64, 64), 64 * 512))
                    .unwrap()
            };
            tags.push((tag, i));
        }
        for (tag, at) in tags {
            check(&mut s, tag, at, &expected, round);
        }
    }
    s.assert_clean();
    s.close().unwrap();
}

fn check(s: &mut Session, tag: u32, at: u64, expected: &[Vec<u8>], round: i32) {
    let data = s.wait_scsi(tag).unwrap().good();
    assert!(
        data == expected[at as usize],
        "round {round}: wrong data of extent {at}"
    );
}

#[test]
fn residuals_say_what_was_not_transferred() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    let more = s
        .scsi(&Command::read(lun, scsi::read10(0, 1), 1024))
        .unwrap();
    assert_eq!(
        (more.is_good(), more.data_in.len(), more.residual),
        (true, 512, Residual::Underflow(512))
    );
    let less = s
        .scsi(&Command::read(lun, scsi::read10(0, 2), 512))
        .unwrap();
    assert_eq!(
        (less.is_good(), less.data_in.len(), less.residual),
        (true, 512, Residual::Overflow(512))
    );
    s.assert_clean();
}

#[test]
fn nop_out_is_echoed_up_to_the_segment_limit() {
    let server = server();
    let mut s = server.session(1);
    for len in [0usize, 1, 3, 4, 512, 4096] {
        let data = Rng::new(len as u64).bytes(len);
        assert!(s.nop(&data, false).unwrap() == data, "{len}");
        assert!(s.nop(&data, true).unwrap() == data, "{len} immediate");
    }
    s.assert_clean();
}

#[test]
fn discovery_names_the_target_and_its_portal() {
    let server = server();
    let mut s = Session::open(server.addr, &OpenOptions::discovery()).unwrap();
    let all = s.text(&[("SendTargets", "All")]).unwrap();
    assert!(
        all.contains(&("TargetName".into(), server.iqn.clone())),
        "{all:?}"
    );
    let portal = format!("{},1", server.addr);
    assert!(all.contains(&("TargetAddress".into(), portal)), "{all:?}");
    let one = s.text(&[("SendTargets", server.iqn.as_str())]).unwrap();
    assert_eq!(one, all);
    s.assert_clean();
    assert_eq!(s.close().unwrap(), 0);
}

#[test]
fn login_with_the_same_name_and_isid_takes_the_old_sessions_place() {
    let server = server();
    let lun = server.lun(0);
    let mut old = server.session(1);
    let mut new = server.session(1);
    new.write_blocks(lun, 0, &[0x5a; 512]).unwrap();
    let gone = old.scsi(&Command::new(lun, scsi::test_unit_ready()));
    assert!(matches!(&gone, Err(e) if e.is_closed()), "{gone:?}");
    new.expect_blocks(lun, 0, &[0x5a; 512]);
    new.assert_clean();
}

#[test]
fn commands_are_executed_in_the_order_of_their_numbers() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    // The second command's PDU is sent before the first one's: nothing happens until the gap is filled.
    let first_sn = s.cmd_sn;
    s.cmd_sn = first_sn.wrapping_add(1);
    let second = s
        .submit(&Command::write(lun, scsi::write10(0, 1), vec![2; 512]))
        .unwrap();
    let nop = s.nop(b"still there", true).unwrap();
    assert_eq!(nop, b"still there");
    assert_eq!(
        s.in_flight(),
        1,
        "the second command must wait for the first"
    );
    let after = s.cmd_sn;
    s.cmd_sn = first_sn;
    let first = s
        .submit_now(&Command::write(lun, scsi::write10(0, 1), vec![1; 512]))
        .unwrap();
    s.cmd_sn = after;
    assert!(s.wait_scsi(first).unwrap().is_good());
    assert!(s.wait_scsi(second).unwrap().is_good());
    s.expect_blocks(lun, 0, &[2; 512]);
}

#[test]
fn a_held_burst_lets_other_commands_pass() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    let data = Rng::new(3).bytes(256 * 512);
    let held = Command::write(lun, scsi::write16(0, 256), data.clone())
        .solicited()
        .held();
    let tag = s.submit(&held).unwrap();
    for lba in 1000..1032 {
        s.write_blocks(lun, lba, &[lba as u8; 512]).unwrap();
    }
    assert_eq!(s.held(tag).len(), 1, "one R2T outstanding");
    s.answer_held(tag).unwrap();
    assert!(s.wait_scsi(tag).unwrap().is_good());
    s.expect_blocks(lun, 0, &data);
    s.assert_clean();
}

#[test]
fn a_command_for_no_lun_gets_lun_not_supported() {
    let server = server();
    let mut s = server.session(1);
    let reply = s.scsi(&Command::new(200, scsi::test_unit_ready())).unwrap();
    assert_eq!(reply.sense_code(), (5, 0x25, 0), "{reply}");
    // INQUIRY must succeed and say that there is nothing (SPC-4 6.6.1: peripheral qualifier 3).
    let data = s
        .scsi(&Command::read(200, scsi::inquiry(36), 36))
        .unwrap()
        .good();
    assert_eq!(data[0], 0x7f);
    s.assert_clean();
}

#[test]
fn logout_is_answered_and_the_connection_closed() {
    let server = server();
    let mut s = server.session(1);
    let tag = s.submit_logout(0).unwrap();
    assert!(matches!(s.wait(tag).unwrap(), Outcome::Logout(0)));
    assert_eq!(s.wire.recv_to_end().unwrap(), Vec::<Pdu>::new());
}

#[test]
fn text_in_full_feature_phase_leaves_the_session_usable() {
    let server = server();
    let lun = server.lun(0);
    let mut s = server.session(1);
    match s.text(&[("X-org.example.nonsense", "1")]) {
        Ok(answer) => {
            let unknown = (
                "X-org.example.nonsense".to_owned(),
                "NotUnderstood".to_owned(),
            );
            assert_eq!(answer, [unknown]);
        }
        Err(Error::Rejected(_)) => {}
        Err(e) => panic!("{e}"),
    }
    s.read_blocks(lun, 0, 1).unwrap();
    s.assert_clean();
}

#[test]
fn unsolicited_nop_is_not_answered() {
    let server = server();
    let mut s = server.session(1);
    let mut bhs = pdu::Bhs::new(op::NOP_OUT | IMMEDIATE, FINAL);
    bhs.set_word(16, pdu::NO_TAG).set_word(20, pdu::NO_TAG);
    s.number(&mut bhs);
    s.wire.send(&Pdu::bare(bhs)).unwrap();
    assert_eq!(s.nop(b"x", true).unwrap(), b"x");
    s.assert_clean();
}
