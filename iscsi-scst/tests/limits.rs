//! Parameters of targets and what was negotiated, as an initiator meets them: windows, R2Ts, timeouts, events, AHS.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets, threads and clock"
)]

mod wire;

use std::io::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iscsi_scst::param::TgtParams;
use kshim::crypto::crc32c;
use wire::{
    Bed, F, IMMEDIATE, Ini, NO_TAG, NOP_IN, NOP_OUT, POLLERS, Pdu, R, R2T, REJECT, RESPONSE, Reply,
    W, read10, value_of, write10,
};

const ASYNC: u8 = 0x32;
const CRC: [(&str, &str); 2] = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];

fn each(test: impl Fn(&Bed)) {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        test(&bed);
        bed.settle();
        bed.stop();
    }
}

/// Everything that was sent before a ping is answered.
fn before_ping(ini: &mut Ini) -> Vec<Pdu> {
    let itt = ini.new_itt();
    let mut ping = ini.request(NOP_OUT | IMMEDIATE, F, itt);
    ping.set(20, NO_TAG);
    ini.send(&ping);
    let mut seen = Vec::new();
    loop {
        let pdu = ini.recv().expect("an echo");
        if pdu.opcode() == NOP_IN && pdu.get(16) == itt {
            return seen;
        }
        seen.push(pdu);
    }
}

#[test]
fn r2ts_are_numbered_and_no_more_are_outstanding_than_agreed() {
    const BURST: usize = 65536;
    const BURSTS: usize = 12;
    let data: Vec<u8> = (0..BURST * BURSTS).map(|n| (n / 512) as u8).collect();
    each(|bed| {
        for (agreed, keys) in [
            (1, [("MaxOutstandingR2T", "1"), ("InitialR2T", "Yes")]),
            (4, [("MaxOutstandingR2T", "4"), ("InitialR2T", "Yes")]),
            // The target's own limit.
            (32, [("MaxOutstandingR2T", "65535"), ("InitialR2T", "Yes")]),
        ] {
            let mut ini = bed.login_as(3001, &keys);
            ini.clear_ua();
            let blocks = (data.len() / 512) as u16;
            let write = ini.command(0, F | W, data.len() as u32, write10(0, blocks));
            ini.send(&write);
            let mut outstanding: Vec<Pdu> = before_ping(&mut ini);
            let mut sn = 0;
            for burst in 0..BURSTS {
                assert_eq!(outstanding.len(), agreed.min(BURSTS - burst), "of {agreed}");
                while (sn as usize) < burst + outstanding.len() {
                    let r2t = &outstanding[sn as usize - burst];
                    let at = sn * BURST as u32;
                    assert_eq!((r2t.opcode(), r2t.get(16)), (R2T, write.get(16)));
                    assert_eq!(
                        (r2t.get(36), r2t.get(40), r2t.get(44)),
                        (sn, at, BURST as u32)
                    );
                    sn += 1;
                }
                ini.answer_r2t(&outstanding.remove(0), &data);
                if burst + 1 < BURSTS {
                    outstanding.extend(before_ping(&mut ini));
                }
            }
            assert_eq!(ini.reply(write.get(16)).status, 0);
            assert!(ini.read(0, 128).data == data[..BURST]);
            ini.logout();
            bed.settle();
        }
    });
}

#[test]
fn the_command_window_is_as_long_as_queued_commands() {
    for queued in [1, 2, 2048] {
        let params = TgtParams {
            queued_commands: queued,
            ..TgtParams::default()
        };
        let bed = Bed::with(POLLERS[0], params);
        let mut ini = bed.login_as(3101, &[("InitialR2T", "Yes")]);
        let window = |ini: &Ini| ini.max_cmd_sn.wrapping_sub(ini.exp_cmd_sn).wrapping_add(1);
        ini.clear_ua();
        assert_eq!(window(&ini), queued);
        // One that waits for its data takes a place until it is answered.
        let held = ini.command(0, F | W, 512, write10(0, 1));
        ini.send(&held);
        let r2t = ini.recv().expect("an R2T");
        assert_eq!((r2t.opcode(), window(&ini)), (R2T, queued - 1));
        ini.answer_r2t(&r2t, &[1; 512]);
        assert_eq!(ini.reply(held.get(16)).status, 0);
        assert_eq!(window(&ini), queued);
        ini.logout();
        bed.settle();
        bed.stop();
    }
}

#[test]
fn a_change_of_queued_commands_reaches_sessions_and_takes_nothing_back() {
    let params = TgtParams {
        queued_commands: 2,
        ..TgtParams::default()
    };
    for poller in POLLERS {
        let bed = Bed::with(poller, params.clone());
        let mut ini = bed.login_as(3102, &[("InitialR2T", "Yes")]);
        let window = |ini: &Ini| ini.max_cmd_sn.wrapping_sub(ini.exp_cmd_sn).wrapping_add(1);
        let set = |n: &str| bed.target.set_param("QueuedCommands", n).expect("in range");
        ini.clear_ua();
        let mut r2ts = Vec::new();
        for _ in 0..2 {
            let write = ini.command(0, F | W, 512, write10(0, 1));
            ini.send(&write);
            r2ts.push(ini.recv().expect("an R2T"));
        }
        assert_eq!(window(&ini), 0);
        // Nothing else would tell of it.
        set("4");
        let told = ini.recv().expect("word of the places");
        assert_eq!((told.opcode(), window(&ini)), (NOP_IN, 2));
        set("1");
        let mut last = ini.max_cmd_sn;
        for r2t in &r2ts {
            ini.answer_r2t(r2t, &[1; 512]);
            assert_eq!(ini.reply(r2t.get(16)).status, 0);
            assert_eq!(ini.max_cmd_sn, last, "what was granted stays granted");
        }
        for wanted in [1, 1, 1] {
            assert_eq!(ini.test_unit_ready(0).status, 0);
            assert!(ini.max_cmd_sn.wrapping_sub(last) <= 1);
            last = ini.max_cmd_sn;
            assert_eq!(window(&ini), wanted);
        }
        ini.logout();
        bed.settle();
        bed.stop();
    }
}

#[test]
fn who_takes_no_response_for_rsp_timeout_is_closed_and_others_are_not() {
    let params = TgtParams {
        rsp_timeout: 2,
        ..TgtParams::default()
    };
    for poller in POLLERS {
        let bed = Bed::with(poller, params.clone());
        let (mut deaf, mut other) = (bed.login(), bed.login());
        deaf.clear_ua();
        other.clear_ua();
        let begin = Instant::now();
        let mut nop = deaf
            .request(NOP_OUT | IMMEDIATE, F, 7)
            .data(&vec![0; 250_000]);
        nop.set(20, NO_TAG);
        let nop = nop.encode(false, false);
        // Until it is closed: what is sent is not taken any more, as the answers are not.
        while deaf.sock.write_all(&nop).is_ok() {}
        assert!(begin.elapsed() >= Duration::from_secs(2), "too early");
        while bed.target.session_count() != 1 {
            std::thread::yield_now();
        }
        assert_eq!(other.test_unit_ready(0).status, 0);
        other.logout();
        bed.settle();
        bed.stop();
    }
}

#[test]
fn events_are_told_by_asynchronous_messages_or_unit_attentions() {
    const CHANGED: (u8, u8, u8) = (6, 0x2a, 9);
    each(|bed| {
        let (mut plain, mut digests) = (bed.login(), bed.login_as(3201, &CRC));
        let dev = bed.target.tgt().default_acg().luns[&1].dev.clone();
        for ini in [&mut plain, &mut digests] {
            ini.clear_ua();
        }
        dev.capacity_data_changed();
        for ini in [&mut plain, &mut digests] {
            let event = ini.recv().expect("an event");
            assert_eq!((event.opcode(), event.bhs[36]), (ASYNC, 0));
            assert_eq!(
                (event.get(16), event.bhs[8..16].to_vec()),
                (NO_TAG, vec![0, 1, 0, 0, 0, 0, 0, 0])
            );
            let len = usize::from(u16::from_be_bytes([event.data[0], event.data[1]]));
            let sense = &event.data[2..2 + len];
            assert_eq!((sense[2] & 15, sense[12], sense[13]), CHANGED);
            assert_eq!(ini.test_unit_ready(1).status, 0, "it was told once");
        }
        bed.target.tgt().aen_disabled.store(true, Ordering::Relaxed);
        dev.capacity_data_changed();
        for ini in [&mut plain, &mut digests] {
            assert_eq!(ini.test_unit_ready(1).sense, Some(CHANGED));
            assert_eq!(ini.test_unit_ready(1).status, 0);
        }
        drop(dev);
        plain.logout();
        digests.logout();
    });
}

/// Sends a command with additional header segments and waits for the answer.
fn run_with_ahs(ini: &mut Ini, mut cmd: Pdu, ahs: &[u8], data: &[u8]) -> Pdu {
    cmd.bhs[4] = (ahs.len() / 4) as u8;
    cmd.bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    let mut bytes = [&cmd.bhs[..], ahs].concat();
    if ini.header_digest {
        bytes.extend(crc32c(&bytes).to_le_bytes());
    }
    bytes.extend(data);
    if ini.data_digest && !data.is_empty() {
        bytes.extend(crc32c(data).to_le_bytes());
    }
    ini.send_bytes(&bytes);
    ini.recv().expect("an answer")
}

fn sense_of(response: &Pdu) -> (u8, u8, u8) {
    assert_eq!((response.opcode(), response.bhs[3]), (RESPONSE, 2));
    (response.data[4] & 15, response.data[14], response.data[15])
}

const INVALID_OPCODE: (u8, u8, u8) = (5, 0x20, 0);

/// READ(32): 16 bytes of the CDB are in an AHS.
fn read32() -> ([u8; 16], [u8; 20]) {
    let mut head = [0; 16];
    (head[0], head[7], head[9]) = (0x7f, 24, 9);
    let mut ahs = [0; 20];
    // Length, type, a reserved byte.
    (ahs[1], ahs[2]) = (17, 1);
    (head, ahs)
}

#[test]
fn extended_cdbs_and_bidirectional_lengths_are_taken_from_their_ahs() {
    each(|bed| {
        for keys in [&[][..], &CRC] {
            let mut ini = bed.login_as(3301, keys);
            ini.clear_ua();
            let (head, ahs) = read32();
            let cmd = ini.command(0, F | R, 512, head);
            let reply = run_with_ahs(&mut ini, cmd, &ahs, &[]);
            assert_eq!(sense_of(&reply), INVALID_OPCODE, "READ(32)");
            // A type that nobody knows is passed over, wherever it stands.
            let mut unknown = [0; 8];
            (unknown[1], unknown[2]) = (5, 0x3f);
            let cmd = ini.command(0, F, 0, [0; 16]);
            let reply = run_with_ahs(&mut ini, cmd, &unknown, &[]);
            assert_eq!((reply.opcode(), reply.bhs[3]), (RESPONSE, 0));
            // XDWRITEREAD(10), which reads nothing.
            let mut cdb = write10(0, 2);
            cdb[0] = 0x53;
            let mut read_len = [0, 5, 2, 0, 0, 0, 0x02, 0];
            // Both blocks came, and what was offered beyond them is left over.
            for (out, flags, left) in [(1024u32, 0x08, 0), (2048, 0x0a, 1024)] {
                let cmd = ini.command(0, F | R | W, out, cdb);
                let data = vec![1; out as usize];
                let reply = run_with_ahs(&mut ini, cmd, &read_len, &data);
                assert_eq!(sense_of(&reply), INVALID_OPCODE);
                assert_eq!(reply.bhs[1] & 0x1e, flags);
                assert_eq!((reply.get(40), reply.get(44)), (512, left));
            }
            let cmd = ini.command(0, F | R | W, 512, cdb);
            let reply = run_with_ahs(&mut ini, cmd, &[], &[]);
            assert_eq!(sense_of(&reply).0, 5, "the read length is missing");
            // Segments that contradict themselves.
            read_len[1] = 9;
            for wrong in [read_len.to_vec(), [ahs, ahs].concat(), vec![0, 1, 1, 0]] {
                let cmd = ini.command(0, F | R, 512, head);
                let reply = run_with_ahs(&mut ini, cmd, &wrong, &[]);
                assert_eq!((reply.opcode(), reply.bhs[2]), (REJECT, 9), "{wrong:?}");
            }
            assert_eq!(ini.read(0, 1).status, 0);
            ini.logout();
            bed.settle();
        }
    });
}

#[test]
fn task_reporting_and_protocol_level_are_agreed_on() {
    let bed = Bed::new(POLLERS[0]);
    let keys = [
        ("TaskReporting", "FastAbort,ResponseFence,RFC3720"),
        ("iSCSIProtocolLevel", "2"),
    ];
    let mut ini = Ini::connect(bed.addr);
    ini.send(&Ini::login_pdu(3401, 0, &keys));
    let answer = ini.recv().expect("an answer");
    assert_eq!(answer.bhs[36..38], [0, 0]);
    let value = |key: &str| value_of(&answer, key);
    assert_eq!(value("TaskReporting").as_deref(), Some("ResponseFence"));
    assert_eq!(value("iSCSIProtocolLevel").as_deref(), Some("2"));
    ini.logout();
    bed.settle();
    bed.stop();
}

#[test]
fn residuals_of_one_direction_stay_where_they_were() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        let cmd = ini.command(0, F | R, 4096, read10(0, 2));
        let Reply { residual, data, .. } = ini.run(&cmd);
        assert_eq!((residual, data.len()), ((2, 3072), 1024));
        let cmd = ini.command(0, F | R, 512, read10(0, 2));
        let Reply { residual, data, .. } = ini.run(&cmd);
        assert_eq!((residual, data.len()), ((4, 512), 512));
        ini.logout();
    });
}

#[test]
fn large_reads_in_small_segments_arrive_whole_and_in_order() {
    const MIB: u32 = 1 << 20;
    let data: Vec<u8> = (0..4 * MIB).map(|n| (n / 512 * 7) as u8).collect();
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        for (n, part) in (0..).zip(data.chunks(MIB as usize)) {
            ini.write(n * 2048, part);
        }
        ini.logout();
        for keys in [&[][..], &CRC] {
            let segment = [("MaxRecvDataSegmentLength", "1000")];
            let mut ini = bed.login_as(3501, &[&segment, keys].concat());
            ini.clear_ua();
            let all = ini.command(0, F | R, 4 * MIB, read10(0, 8192));
            let next = ini.command(0, F, 0, [0; 16]);
            let one = ini.command(0, F | R, 512, read10(8191, 1));
            for pdu in [&all, &next, &one] {
                ini.send(pdu);
            }
            let Reply {
                status, data: got, ..
            } = ini.reply(all.get(16));
            assert!(status == 0 && got == data);
            assert_eq!(ini.reply(next.get(16)).status, 0);
            assert!(ini.reply(one.get(16)).data == data[data.len() - 512..]);
            ini.logout();
            bed.settle();
        }
    });
}

#[test]
fn who_does_not_send_the_data_of_a_write_within_rsp_timeout_is_closed_and_others_are_not() {
    let params = TgtParams {
        rsp_timeout: 2,
        nop_in_interval: 0,
        ..TgtParams::default()
    };
    let bed = Bed::with(POLLERS[1], params);
    let mut silent: Vec<Ini> = [("InitialR2T", "Yes"), ("InitialR2T", "No")]
        .map(|key| bed.login_as(3401 + u32::from(key.1 == "No"), &[key]))
        .into();
    let mut other = bed.login();
    let begin = Instant::now();
    for (ini, flags) in silent.iter_mut().zip([F | W, W]) {
        ini.clear_ua();
        // One waits for the data of an R2T, one for unsolicited data.
        let write = ini.command(0, flags, 512, write10(0, 1));
        ini.send(&write);
    }
    assert_eq!(silent[0].recv().map(|p| p.opcode()), Some(R2T));
    for ini in &mut silent {
        assert!(ini.recv().is_none());
        assert!(begin.elapsed() >= Duration::from_secs(2), "too early");
    }
    while bed.target.session_count() != 1 {
        std::thread::yield_now();
    }
    other.clear_ua();
    assert_eq!(other.write(0, &[7; 512]).status, 0);
    // Nothing is held against a connection whose data has come.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(other.test_unit_ready(0).status, 0);
    other.logout();
    bed.settle();
    bed.stop();
}

#[test]
fn an_interval_of_zero_ends_pings_and_another_one_begins_them() {
    let params = TgtParams {
        nop_in_interval: 0,
        nop_in_timeout: 2,
        ..TgtParams::default()
    };
    let bed = Bed::with(POLLERS[0], params);
    let mut ini = bed.login();
    ini.clear_ua();
    let quiet = |ini: &mut Ini, time: Duration| {
        ini.sock.set_read_timeout(Some(time)).unwrap();
        let got = ini.sock.peek(&mut [0]);
        ini.sock.set_read_timeout(Some(wire::PATIENCE)).unwrap();
        got.is_err()
    };
    let pong = |ini: &mut Ini, ping: &Pdu| {
        assert_eq!((ping.opcode(), ping.get(16)), (NOP_IN, NO_TAG));
        let mut pong = ini.request(NOP_OUT | IMMEDIATE, F, NO_TAG);
        pong.set(20, ping.get(20));
        ini.send(&pong);
    };
    assert!(quiet(&mut ini, Duration::from_millis(1500)), "never asked");
    // Sessions that there are heed it.
    bed.target.set_param("NopInInterval", "1").unwrap();
    let ping = ini.recv().expect("a ping");
    pong(&mut ini, &ping);
    let ping = ini.recv().expect("another one");
    bed.target.set_param("NopInInterval", "0").unwrap();
    pong(&mut ini, &ping);
    assert!(quiet(&mut ini, Duration::from_millis(2500)), "no more");
    assert_eq!(ini.test_unit_ready(0).status, 0);
    ini.logout();
    bed.settle();
    bed.stop();
}

#[test]
fn a_command_that_another_nexus_aborts_gives_its_place_back_while_others_go_on() {
    let params = TgtParams {
        queued_commands: 2,
        ..TgtParams::default()
    };
    let bed = Bed::with(POLLERS[0], params);
    let mut ini = bed.login_as(3501, &[("InitialR2T", "Yes")]);
    let mut other = bed.login();
    let window = |ini: &Ini| ini.max_cmd_sn.wrapping_sub(ini.exp_cmd_sn).wrapping_add(1);
    ini.clear_ua();
    other.clear_ua();
    let mut r2ts = Vec::new();
    for lun in [0, 1] {
        let write = ini.command(lun, F | W, 512, write10(0, 1));
        ini.send(&write);
        r2ts.push(ini.recv().expect("an R2T"));
    }
    assert_eq!(window(&ini), 0);
    let reset = other.tmf(5, 0, NO_TAG, 0);
    let done = other.recv().expect("the reset is done");
    assert_eq!((done.get(16), done.bhs[2]), (reset, 0));
    let told = ini.recv().expect("word of the place");
    assert_eq!(
        (told.opcode(), told.get(16), told.get(20)),
        (NOP_IN, NO_TAG, NO_TAG)
    );
    assert_eq!(window(&ini), 1);
    ini.answer_r2t(&r2ts[1], &[1; 512]);
    assert_eq!(ini.reply(r2ts[1].get(16)).status, 0);
    assert_eq!(window(&ini), 2);
    ini.logout();
    other.logout();
    bed.settle();
    bed.stop();
}

#[test]
fn an_abort_that_names_another_command_is_rejected() {
    const REJECTED: u8 = 255;
    each(|bed| {
        let mut ini = bed.login_as(3601, &[("InitialR2T", "Yes")]);
        ini.clear_ua();
        let abort = |ini: &mut Ini, lun, itt, sn| {
            let tmf = ini.tmf(1, lun, itt, sn);
            let done = ini.recv().expect("an answer");
            assert_eq!(done.get(16), tmf, "{done:?}");
            done.bhs[2]
        };
        let write = ini.command(0, F | W, 512, write10(0, 1));
        ini.send(&write);
        assert_eq!(ini.recv().map(|p| p.opcode()), Some(R2T));
        let (itt, sn) = (write.get(16), write.get(24));
        for (lun, sn) in [(0, sn.wrapping_sub(1)), (0, sn.wrapping_sub(9)), (1, sn)] {
            assert_eq!(abort(&mut ini, lun, itt, sn), REJECTED, "{lun} {sn}");
        }
        assert_eq!(abort(&mut ini, 0, itt, sn), 0);
        // One ahead of its turn, too.
        let first = ini.command(0, F, 0, [0; 16]);
        let second = ini.command(0, F, 0, [0; 16]);
        ini.send(&second);
        let late = ini.tmf(1, 0, second.get(16), first.get(24));
        ini.send(&first);
        for itt in [first.get(16), second.get(16)] {
            assert_eq!(ini.reply(itt).status, 0);
        }
        let done = ini.recv().expect("an answer");
        assert_eq!((done.get(16), done.bhs[2]), (late, REJECTED));
        // An immediate command has the number of the request that aborts it (RFC 7143 11.5.5).
        let mut now = ini.command(0, F | W, 512, write10(0, 1));
        ini.cmd_sn = now.get(24);
        now.bhs[0] |= IMMEDIATE;
        ini.send(&now);
        assert_eq!(ini.recv().map(|p| p.opcode()), Some(R2T));
        assert_eq!(abort(&mut ini, 0, now.get(16), now.get(24)), 0);
        ini.logout();
    });
}

#[test]
fn a_command_with_the_tag_that_names_nothing_is_rejected() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        let mut cmd = ini.command(0, F, 0, [0; 16]);
        cmd.set(16, NO_TAG);
        ini.send(&cmd);
        let reject = ini.recv().expect("a Reject");
        assert_eq!((reject.opcode(), reject.bhs[2]), (REJECT, 4));
        assert_eq!(ini.test_unit_ready(0).status, 0);
        ini.logout();
    });
}

#[test]
fn write_same_without_its_block_changes_nothing() {
    const LENGTH_ERROR: (u8, u8, u8) = (5, 0x1a, 0);
    let same = |op: u8, len_at: usize| {
        let mut cdb = [0; 16];
        cdb[0] = op;
        cdb[len_at] = 8;
        cdb
    };
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        assert_eq!(ini.write(0, &[9; 4096]).status, 0);
        for cdb in [same(0x41, 8), same(0x93, 13)] {
            let cmd = ini.command(0, F | W, 0, cdb);
            assert_eq!(ini.run(&cmd).sense, Some(LENGTH_ERROR), "{:#x}", cdb[0]);
        }
        assert!(ini.read(0, 8).data == [9; 4096]);
        ini.logout();
    });
}
