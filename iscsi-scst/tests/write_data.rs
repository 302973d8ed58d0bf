//! Write data on the wire: every way a command's data may come, and every way it may come wrong.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets and clock"
)]

mod wire;

use wire::{
    Bed, CMD, F, IMMEDIATE, Ini, NO_TAG, NOP_IN, POLLERS, Pdu, QUEUED, R, R2T, REJECT, RESPONSE,
    Rng, TMF_RESPONSE, W, write10,
};

const UNEXPECTED: Option<(u8, u8, u8)> = Some((0xb, 0x0c, 0x0c));
const WRONG_AMOUNT: Option<(u8, u8, u8)> = Some((0xb, 0x0c, 0x0d));
const BAD_CRC: Option<(u8, u8, u8)> = Some((0xb, 0x47, 0x05));
const CRC: [(&str, &str); 2] = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];

fn each(test: impl Fn(&Bed)) {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        test(&bed);
        bed.settle();
        bed.stop();
    }
}

#[test]
fn all_mixtures_of_immediate_unsolicited_and_solicited_data_arrive() {
    each(|bed| {
        let mut rng = Rng::new(1);
        for keys in [&[][..], &CRC[..]] {
            let mut ini = bed.login_as(1, keys);
            ini.clear_ua();
            for n in 0..60 {
                let blocks = 1 + rng.below(300);
                let data = rng.bytes(blocks * 512);
                let limit = data.len().min(65536);
                let immediate = rng.below(limit + 1) & !3;
                let unsolicited = immediate + (rng.below(limit - immediate + 1) & !3);
                let is_final = rng.below(2) == 0;
                let flags = if is_final { F | W } else { W };
                let cmd = ini.command(0, flags, data.len() as u32, write10(0, blocks as u16));
                let cmd = cmd.data(&data[..immediate]);
                let itt = cmd.get(16);
                ini.send(&cmd);
                if !is_final {
                    let mut at = immediate;
                    loop {
                        let len = (unsolicited - at).min(4 * (1 + rng.below(8000)));
                        let last = at + len == unsolicited;
                        ini.send(&Ini::data_out(
                            itt,
                            NO_TAG,
                            at as u32,
                            &data[at..at + len],
                            last,
                        ));
                        at += len;
                        if last {
                            break;
                        }
                    }
                }
                let reply = ini.reply_writing(itt, &data);
                assert_eq!((reply.status, reply.residual), (0, (0, 0)), "{n}");
                assert!(
                    ini.read(0, blocks as u16).data == data,
                    "{n}: {blocks} blocks differ"
                );
            }
            ini.logout();
        }
    });
}

#[test]
fn lengths_that_disagree_are_residuals() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        ini.write(8, &[9; 2048]);
        for stream in [1usize, 40] {
            // More than the CDB takes: it is swallowed.
            let (n, more) = (512 * stream, 512 * stream + 1024);
            let cmd = ini.command(0, F | W, more as u32, write10(0, stream as u16));
            let reply = ini.run(&cmd.data(&vec![1; more]));
            assert_eq!((reply.status, reply.residual), (0, (2, 1024)));
            assert!(ini.read(0, stream as u16).data == vec![1; n]);
        }
        // A write of nothing.
        let cmd = ini.command(0, F | W, 512, write10(0, 0));
        let reply = ini.run(&cmd.data(&[7; 512]));
        assert_eq!((reply.status, reply.residual), (0, (2, 512)), "{reply:?}");
        let cmd = ini.command(0, W, 512, write10(0, 0));
        let itt = cmd.get(16);
        ini.send(&cmd);
        ini.send(&Ini::data_out(itt, NO_TAG, 0, &[7; 512], true));
        assert_eq!(ini.reply(itt).residual, (2, 512));
        // Less than the CDB takes.
        let cmd = ini.command(0, F | W, 512, write10(8, 2));
        let reply = ini.run(&cmd.data(&[8; 512]));
        assert_eq!((reply.status, reply.residual), (0, (4, 512)));
        // Beyond in all: refused before it becomes data.
        let cmd = ini.command(0, F | W, 512, write10(16, 1));
        assert_eq!(ini.run(&cmd.data(&[8; 1024])).sense, WRONG_AMOUNT);
        ini.logout();
    });
}

#[test]
fn answers_wait_for_the_last_unsolicited_data() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        // No such LUN; a bad opcode; a read with an F bit too few; too much immediate data.
        let mut bad = [0; 16];
        bad[0] = 0xff;
        let cases = [
            (7, W, 4096, write10(0, 8), 512),
            (0, W, 4096, bad, 0),
            (0, R, 512, wire::read10(0, 1), 0),
            (0, W, 512, write10(0, 1), 1024),
            (0, W, 40960, write10(0, 80), 40000),
        ];
        for (lun, flags, len, cdb, immediate) in cases {
            let cmd = ini.command(lun, flags, len, cdb).data(&vec![3; immediate]);
            let itt = cmd.get(16);
            ini.send(&cmd);
            // Nothing but the echo comes.
            ini.fence();
            ini.send(&Ini::data_out(
                itt,
                NO_TAG,
                immediate as u32,
                &[4; 512],
                false,
            ));
            ini.fence();
            let rest = len.saturating_sub(immediate as u32 + 512);
            let data = vec![5; rest as usize];
            ini.send(&Ini::data_out(
                itt,
                NO_TAG,
                immediate as u32 + 512,
                &data,
                true,
            ));
            let reply = ini.reply(itt);
            assert_eq!(reply.status == 0, immediate == 40000, "{reply:?}");
            // The tag is free again.
            let again = ini.command(0, F, 0, [0; 16]);
            let mut again = again;
            again.set(16, itt);
            assert_eq!(ini.run(&again).status, 0);
        }
        ini.logout();
    });
}

#[test]
fn wrong_data_fails_its_command_when_its_bursts_are_over() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        ini.write(0, &[0x11; 4096]);
        // Offset, length and transfer tag to add; what the answer is.
        let cases = [
            (1 << 20, 512, 0, WRONG_AMOUNT),
            (0, 8192, 0, WRONG_AMOUNT),
            (0, 512, 0, WRONG_AMOUNT),
            (0, 0, 0, WRONG_AMOUNT),
            (0, 20000, 0, WRONG_AMOUNT),
        ];
        for (offset, len, ttt, sense) in cases {
            let cmd = ini.command(0, F | W, 4096, write10(0, 8));
            ini.send(&cmd);
            let r2t = ini.recv().unwrap();
            assert_eq!((r2t.opcode(), r2t.get(44)), (R2T, 4096));
            let (itt, tag) = (r2t.get(16), r2t.get(20).wrapping_add(ttt));
            ini.send(&Ini::data_out(itt, tag, offset, &vec![0xba; len], true));
            assert_eq!(ini.reply(itt).sense, sense, "{offset} {len}");
            assert!(ini.read(0, 8).data == [0x11; 4096]);
        }
        // Data for another tag is not the burst's: the command waits for that.
        let cmd = ini.command(0, F | W, 4096, write10(0, 8));
        ini.send(&cmd);
        let r2t = ini.recv().unwrap();
        let itt = r2t.get(16);
        ini.send(&Ini::data_out(
            itt,
            r2t.get(20) ^ 0x10000,
            0,
            &[0xba; 512],
            true,
        ));
        ini.fence();
        ini.send(&Ini::data_out(itt, r2t.get(20), 0, &[0xba; 4096], true));
        assert_eq!(ini.reply(itt).sense, UNEXPECTED);
        // Twice the same bytes, and a hole.
        for offsets in [[0, 0], [0, 2048]] {
            let cmd = ini.command(0, F | W, 4096, write10(0, 8));
            ini.send(&cmd);
            let r2t = ini.recv().unwrap();
            for (n, at) in offsets.into_iter().enumerate() {
                let len = if at == 0 { 1024 } else { 2048 };
                ini.send(&Ini::data_out(
                    r2t.get(16),
                    r2t.get(20),
                    at,
                    &vec![0xba; len],
                    n == 1,
                ));
            }
            assert_eq!(ini.reply(r2t.get(16)).sense, WRONG_AMOUNT, "{offsets:?}");
        }
        assert!(ini.read(0, 8).data == [0x11; 4096]);
        ini.logout();
    });
}

#[test]
fn digests_are_checked_and_made() {
    each(|bed| {
        let mut bystander = bed.login();
        bystander.clear_ua();
        bystander.write(0, &[0x22; 65536]);
        for len in [512usize, 65536] {
            let blocks = (len / 512) as u16;
            let mut ini = bed.login_as(7, &CRC);
            ini.clear_ua();
            // Immediate data.
            let cmd = ini
                .command(0, F | W, len as u32, write10(0, blocks))
                .data(&vec![1; len]);
            let mut bytes = cmd.encode(true, true);
            let at = bytes.len() - 1;
            bytes[at] ^= 1;
            ini.send_bytes(&bytes);
            assert_eq!(ini.reply(cmd.get(16)).sense, BAD_CRC);
            // Solicited: the PDU is rejected, and the command fails with the last of its bursts.
            let cmd = ini.command(0, F | W, len as u32, write10(0, blocks));
            ini.send(&cmd);
            let r2t = ini.recv().unwrap();
            let half = len / 2;
            let out = Ini::data_out(r2t.get(16), r2t.get(20), 0, &vec![1; half], false);
            let mut bytes = out.encode(true, true);
            bytes[52 + half / 2] ^= 0x80;
            ini.send_bytes(&bytes);
            let reject = ini.recv().unwrap();
            assert_eq!((reject.opcode(), reject.bhs[2]), (REJECT, 2), "{reject:?}");
            ini.fence();
            let rest = Ini::data_out(r2t.get(16), r2t.get(20), half as u32, &vec![1; half], true);
            ini.send(&rest);
            assert_eq!(ini.reply(cmd.get(16)).sense, BAD_CRC);
            // What goes beyond the CDB counts for the digest.
            let (blocks_taken, sent) = if len == 512 {
                (1u32, 1536)
            } else {
                (100, 65536)
            };
            let cdb = write10(128, blocks_taken as u16);
            let cmd = ini.command(0, F | W, sent as u32, cdb).data(&vec![6; sent]);
            let reply = ini.run(&cmd);
            let excess = sent as u32 - blocks_taken * 512;
            assert_eq!(
                (reply.status, reply.residual),
                (0, (2, excess)),
                "{reply:?}"
            );
            // An echo with bad data is rejected.
            let itt = ini.new_itt();
            let nop = ini.request(IMMEDIATE, F, itt).data(b"abcd");
            let mut bytes = nop.encode(true, true);
            bytes[53] ^= 1;
            ini.send_bytes(&bytes);
            assert_eq!(
                ini.recv().map(|p| (p.opcode(), p.bhs[2])),
                Some((REJECT, 2))
            );
            assert!(ini.read(0, blocks).data == vec![0x22; len]);
            // A header that cannot be trusted ends the connection.
            let cmd = ini.command(0, F, 0, [0; 16]);
            let mut bytes = cmd.encode(true, true);
            bytes[20] ^= 4;
            ini.send_bytes(&bytes);
            assert!(ini.recv().is_none());
        }
        assert!(bystander.read(0, 128).data == [0x22; 65536]);
        bystander.logout();
    });
}

#[test]
fn a_tag_that_waits_for_data_is_taken() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        let cmd = ini.command(0, F | W, 4096, write10(0, 8));
        ini.send(&cmd);
        let r2t = ini.recv().unwrap();
        let mut second = ini.command(0, F, 0, [0; 16]);
        second.set(16, cmd.get(16));
        ini.send(&second);
        let reject = ini.recv().unwrap();
        assert_eq!((reject.opcode(), reject.bhs[2]), (REJECT, 7));
        ini.answer_r2t(&r2t, &[1; 4096]);
        assert_eq!(ini.reply(cmd.get(16)).status, 0);
        ini.logout();
    });
}

#[test]
fn requests_ahead_of_their_turn_run_in_order_with_their_data() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        for first in [512usize, 40960] {
            // CmdSN n+2 is a ping, n+1 a write with unsolicited data, n a write with immediate data.
            let a = ini.command(0, F | W, first as u32, write10(0, (first / 512) as u16));
            let b = ini
                .command(0, W, 65536, write10(256, 128))
                .data(&[0xbb; 512]);
            let itt = ini.new_itt();
            let mut nop = ini.request(0, F, itt);
            nop.set(20, NO_TAG);
            ini.send(&nop);
            ini.send(&b);
            let b_itt = b.get(16);
            ini.send(&Ini::data_out(b_itt, NO_TAG, 512, &[0xbb; 16384], false));
            ini.send(&Ini::data_out(b_itt, NO_TAG, 16896, &[0xbb; 16384], true));
            ini.fence();
            let a = a.data(&vec![0xaa; first]);
            ini.send(&a);
            assert_eq!(ini.reply(a.get(16)).status, 0);
            // Its answers come without any further request.
            let mut seen = Vec::new();
            while seen.len() < 2 {
                let pdu = ini.recv().unwrap();
                match pdu.opcode() {
                    R2T => ini.answer_r2t(&pdu, &[0xbb; 65536]),
                    op => seen.push((op, pdu.get(16))),
                }
            }
            assert!(
                seen.contains(&(NOP_IN, itt)) && seen.contains(&(RESPONSE, b_itt)),
                "{seen:?}"
            );
            assert!(ini.read(0, (first / 512) as u16).data == vec![0xaa; first]);
            assert!(ini.read(256, 128).data == [0xbb; 65536]);
        }
        ini.logout();
    });
}

#[test]
fn what_is_beyond_the_window_is_dropped_with_its_data() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        let held: Vec<Pdu> = (0..QUEUED)
            .map(|n| ini.command(0, W, 4096, write10(n * 8, 8)))
            .collect();
        for cmd in &held {
            ini.send(cmd);
        }
        // The window is closed now; these are nothing.
        let over: Vec<Pdu> = (0..8)
            .map(|n| {
                ini.command(0, W, 4096, write10(4096 + n * 8, 8))
                    .data(&[0xee; 512])
            })
            .collect();
        for cmd in &over {
            ini.send(cmd);
            ini.send(&Ini::data_out(
                cmd.get(16),
                NO_TAG,
                512,
                &[0xee; 3584],
                true,
            ));
        }
        ini.fence();
        assert_eq!(ini.max_cmd_sn.wrapping_add(1), ini.exp_cmd_sn);
        for cmd in &held {
            ini.send(&Ini::data_out(cmd.get(16), NO_TAG, 0, &[0xdd; 4096], true));
            assert_eq!(ini.reply(cmd.get(16)).status, 0);
        }
        ini.cmd_sn = over[0].get(24);
        assert_eq!(
            ini.max_cmd_sn.wrapping_sub(ini.exp_cmd_sn).wrapping_add(1),
            QUEUED
        );
        assert!(ini.read(4096, 64).data.iter().all(|b| *b != 0xee));
        assert!(
            ini.read(0, QUEUED as u16 * 8)
                .data
                .iter()
                .all(|b| *b == 0xdd)
        );
        ini.logout();
    });
}

#[test]
fn aborted_writes_end_at_once_wherever_their_data_is() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        for case in 0..5 {
            let (flags, lun) = if case == 2 { (W, 9) } else { (F | W, 0) };
            let mut cmd = ini.command(lun, flags, 131_072, write10(0, 256));
            if case == 4 {
                cmd.bhs[1] = W | 1;
            }
            let (itt, sn) = (cmd.get(16), cmd.get(24));
            match case {
                // In the middle of its immediate data, which never comes to an end before the abort.
                3 => {
                    let bytes = cmd.data(&[1; 40960]).encode(false, false);
                    ini.send_bytes(&bytes[..30_000]);
                    ini.send_bytes(&bytes[30_000..]);
                }
                _ => ini.send(&cmd),
            }
            let mut r2ts = Vec::new();
            if [0, 1, 3].contains(&case) {
                let n = 2;
                for _ in 0..n {
                    let r2t = ini.recv().unwrap();
                    assert_eq!(r2t.opcode(), R2T);
                    r2ts.push(r2t);
                }
            }
            if case == 1 {
                // Half of a Data-Out.
                let r2t = &r2ts[0];
                let out = Ini::data_out(itt, r2t.get(20), r2t.get(40), &[2; 60_000], false);
                ini.send(&out);
            }
            let tmf = ini.tmf(1, lun, itt, sn);
            let reply = ini.recv().unwrap();
            assert_eq!(
                (reply.opcode(), reply.get(16)),
                (TMF_RESPONSE, tmf),
                "case {case}: {reply:?}"
            );
            assert_eq!(reply.bhs[2], 0, "case {case}");
            // Late data is dropped, and the tag is free.
            for r2t in &r2ts {
                let n = r2t.get(44) as usize;
                ini.send(&Ini::data_out(
                    itt,
                    r2t.get(20),
                    r2t.get(40),
                    &vec![3; n],
                    true,
                ));
            }
            let mut again = ini.command(0, F, 0, [0; 16]);
            again.set(16, itt);
            assert_eq!(ini.run(&again).status, 0, "case {case}");
        }
        ini.logout();
    });
}

#[test]
fn every_place_to_tear_a_write_leaves_nothing_behind() {
    each(|bed| {
        let step = if wire::rounds(1) > 1 { 1 } else { 61 };
        let mut bystander = bed.login();
        bystander.clear_ua();
        bystander.write(4096, &[0x33; 4096]);
        let len = 20_480;
        let mut cut = 0;
        loop {
            let mut ini = bed.login_as(99, &[]);
            let cmd = ini.command(0, W, len, write10(0, 40)).data(&[1; 512]);
            let itt = cmd.get(16);
            let mut stream = cmd.encode(false, false);
            stream.extend(Ini::data_out(itt, NO_TAG, 512, &[1; 300], false).encode(false, false));
            stream.extend(Ini::data_out(itt, NO_TAG, 812, &[1; 212], true).encode(false, false));
            let unasked = stream.len();
            ini.send_bytes(&stream[..cut.min(unasked)]);
            let mut over = false;
            if cut > unasked {
                // The first unit attention ends the command; a second one asks.
                let mut r2t = ini.recv().unwrap();
                if r2t.opcode() == RESPONSE {
                    let cmd = ini.command(0, F | W, len, write10(0, 40));
                    ini.send(&cmd);
                    r2t = ini.recv().unwrap();
                }
                assert_eq!(r2t.opcode(), R2T);
                let n = r2t.get(44) as usize;
                let out = Ini::data_out(r2t.get(16), r2t.get(20), r2t.get(40), &vec![1; n], true);
                let bytes = out.encode(false, false);
                let n = (cut - unasked).min(bytes.len());
                over = n == bytes.len();
                ini.send_bytes(&bytes[..n]);
            }
            drop(ini);
            if over {
                break;
            }
            cut += step;
        }
        assert!(bystander.read(4096, 8).data == [0x33; 4096]);
        bystander.logout();
    });
}

#[test]
fn a_byte_at_a_time_is_as_good_as_all_at_once() {
    let bed = Bed::new(POLLERS[0]);
    let mut ini = Ini::connect(bed.addr);
    let login = Ini::login_pdu(1, 0, &[]).encode(false, false);
    let trickle = |ini: &mut Ini, bytes: &[u8]| {
        for b in bytes.chunks(1) {
            ini.send_bytes(b);
        }
    };
    trickle(&mut ini, &login);
    assert_eq!(ini.recv().map(|p| p.bhs[36]), Some(0));
    ini.clear_ua();
    let data: Vec<u8> = (0..17_408u32).map(|n| (n / 3) as u8).collect();
    let cmd = ini
        .command(0, F | W, data.len() as u32, write10(3, 34))
        .data(&data);
    trickle(&mut ini, &cmd.encode(false, false));
    assert_eq!(ini.reply(cmd.get(16)).status, 0);
    assert!(ini.read(3, 34).data == data);
    assert_eq!(cmd.opcode(), CMD);
    ini.logout();
    bed.settle();
    bed.stop();
}
