//! Connections and sessions: reinstatement, floods, nonsense, silence, stopping; nothing may be left behind.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets, threads and clock"
)]

mod wire;

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use iscsi_scst::param::TgtParams;
use wire::{
    Bed, CMD, DATA_IN, F, IMMEDIATE, Ini, LOGOUT_RESPONSE, NO_TAG, NOP_IN, NOP_OUT, PATIENCE,
    POLLERS, Pdu, R, REJECT, RESPONSE, Rng, TEXT, TEXT_RESPONSE, TMF_RESPONSE, W, read10, write10,
};

fn each(test: impl Fn(&Bed)) {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        test(&bed);
        bed.settle();
        bed.stop();
    }
}

#[test]
fn a_thousand_logins() {
    each(|bed| {
        for n in 0..500 {
            let mut ini = bed.login();
            if n % 3 == 0 {
                ini.clear_ua();
            }
            match n % 4 {
                0 => drop(ini),
                _ => ini.logout(),
            }
        }
    });
}

#[test]
fn of_many_logins_of_one_initiator_one_session_is_left() {
    each(|bed| {
        let won = std::thread::scope(|s| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    s.spawn(|| {
                        let mut won = 0;
                        for _ in 0..12 {
                            let mut ini = Ini::connect(bed.addr);
                            if ini.try_login(1, 0, &[]).is_ok() {
                                won += 1;
                                let cmd = ini.command(0, F, 0, [0; 16]);
                                // The next login may have ended this session.
                                let _ = ini.sock.write_all(&cmd.encode(false, false));
                            }
                        }
                        won
                    })
                })
                .collect();
            racers
                .into_iter()
                .map(|r| r.join().expect("a racer"))
                .sum::<u32>()
        });
        assert!(won > 0);
        let mut last = bed.login_as(1, &[]);
        assert_eq!(bed.target.session_count(), 1);
        last.clear_ua();
        last.logout();
    });
}

#[test]
fn a_connection_is_reinstated_under_its_session_handle() {
    each(|bed| {
        let mut old = bed.login_as(5, &[]);
        old.clear_ua();
        let tsih = old.tsih;
        assert_ne!(tsih, 0);
        // Held by a write that waits for its data.
        let cmd = old.command(0, F | W, 4096, write10(0, 8));
        old.send(&cmd);
        assert!(old.recv().is_some());
        let mut new = Ini::connect(bed.addr);
        new.try_login(5, tsih, &[]).unwrap();
        assert_eq!(new.tsih, tsih);
        assert!(old.recv().is_none());
        new.clear_ua();
        assert_eq!(bed.target.session_count(), 1);
        assert_eq!(
            Ini::connect(bed.addr).try_login(5, tsih ^ 0x55, &[]),
            Err(Some(0x020a))
        );
        new.logout();
    });
}

#[test]
fn max_sessions_holds_for_racing_logins() {
    let params = TgtParams {
        max_sessions: 3,
        ..TgtParams::default()
    };
    let bed = Bed::with(POLLERS[0], params);
    let barrier = std::sync::Barrier::new(16);
    // The sockets are kept until all have tried.
    let tried: Vec<_> = std::thread::scope(|s| {
        let (bed, barrier) = (&bed, &barrier);
        let racers: Vec<_> = (0..16)
            .map(|n| {
                s.spawn(move || {
                    let mut ini = Ini::connect(bed.addr);
                    barrier.wait();
                    let status = ini.try_login(100 + n, 0, &[]);
                    (ini, status)
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|r| r.join().expect("a racer"))
            .collect()
    });
    let won = tried.iter().filter(|(_, s)| s.is_ok()).count();
    for (_, status) in &tried {
        assert!(status.is_ok() || *status == Err(Some(0x0302)), "{status:?}");
    }
    drop(tried);
    assert_eq!(won, 3);
    bed.settle();
    bed.stop();
}

/// Bytes of requests that are right, of every kind.
fn conversation(ini: &mut Ini, rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..1 + rng.below(8) {
        let n = 512 * (1 + rng.below(40));
        let blocks = (n / 512) as u16;
        let itt = ini.new_itt();
        let mut pdus = match rng.below(9) {
            0 => vec![ini.command(0, F | R, n as u32, read10(0, blocks))],
            1 => vec![
                ini.command(1, F | W, n as u32, write10(0, blocks))
                    .data(&vec![1; n]),
            ],
            2 | 3 => {
                let cmd = ini
                    .command(1, W, n as u32, write10(0, blocks))
                    .data(&[1; 256]);
                let itt = cmd.get(16);
                let rest = Ini::data_out(itt, NO_TAG, 256, &vec![2; n - 256], true);
                vec![cmd, rest]
            }
            4 => vec![Ini::data_out(
                itt,
                rng.next() as u32,
                0,
                &vec![3; n],
                rng.below(2) == 0,
            )],
            5 => vec![ini.request(NOP_OUT, F, itt).data(&vec![4; rng.below(2000)])],
            6 => vec![ini.request(TEXT, F, itt).data(b"SendTargets=\0X-odd=1\0")],
            7 => {
                let mut pdu = ini.request(0x42, F | (1 + rng.below(7) as u8), itt);
                pdu.set(
                    20,
                    if rng.below(2) == 0 {
                        NO_TAG
                    } else {
                        itt.wrapping_sub(1)
                    },
                );
                vec![pdu]
            }
            _ => vec![ini.command(0, F | W, n as u32, write10(0, blocks))],
        };
        if rng.below(4) == 0 {
            pdus.reverse();
        }
        out.extend(
            pdus.iter()
                .flat_map(|p| p.encode(ini.header_digest, ini.data_digest)),
        );
    }
    out
}

/// Sends bytes, closes our side, and reads to the end, which must come.
fn pour(ini: &mut Ini, bytes: &[u8], cut: usize) {
    // The server may be gone already.
    let sent = ini
        .sock
        .write_all(&bytes[..cut])
        .and_then(|()| ini.sock.write_all(&bytes[cut..]));
    if sent.is_ok() {
        let _ = ini.sock.shutdown(std::net::Shutdown::Write);
    }
    ini.drain();
}

#[test]
fn random_bytes_after_login_end_with_their_connection() {
    each(|bed| {
        let mut bystander = bed.login();
        bystander.clear_ua();
        bystander.write(9, &[9; 512]);
        for seed in 0..wire::rounds(60) {
            let mut rng = Rng::new(seed as u64);
            let mut ini = bed.login_as(2, &[]);
            let n = 1 + rng.below(60_000);
            let mut bytes = rng.bytes(n);
            if seed % 2 == 0 {
                // A plausible beginning, so that it is not over with the first header.
                bytes[0] = CMD;
                for b in bytes.iter_mut().skip(4).take(2) {
                    *b = 0;
                }
            }
            pour(&mut ini, &bytes, rng.below(n));
        }
        assert!(bystander.read(9, 1).data == [9; 512]);
        bystander.logout();
    });
}

#[test]
fn spoiled_conversations_end_with_their_connection() {
    each(|bed| {
        for seed in 0..wire::rounds(250) {
            let mut rng = Rng::new(1000 + seed as u64);
            let digests = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
            let keys = if seed % 5 == 0 { &digests[..] } else { &[][..] };
            let mut ini = bed.login_as(3, keys);
            if seed % 3 != 0 {
                ini.clear_ua();
            }
            let mut bytes = conversation(&mut ini, &mut rng);
            for _ in 0..rng.below(6) {
                let at = rng.below(bytes.len());
                bytes[at] = match rng.below(3) {
                    0 => rng.next() as u8,
                    1 => bytes[at] ^ (1 << rng.below(8)),
                    _ => [0, 0xff, 0x80, 0x7f][rng.below(4)],
                };
            }
            let cut = rng.below(bytes.len());
            pour(&mut ini, &bytes, cut);
        }
    });
}

#[test]
fn nothing_is_forgotten_while_activity_is_suspended() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        for round in 0..6 {
            let suspended = bed.core.suspend_activity().unwrap();
            // The first command is parked; what comes after it stays in buffers, first ours and then the kernel's.
            let len = if round % 2 == 0 { 512 } else { 40_960 };
            let blocks = (len / 512) as u16;
            let mut itts = Vec::new();
            let lun = if round == 2 { 9 } else { 0 };
            for n in 0..8 {
                let is_final = round != 4;
                let flags = if is_final { F | W } else { W };
                let cmd = ini.command(lun, flags, len as u32, write10(n * 100, blocks));
                let data = vec![n as u8; len];
                itts.push(cmd.get(16));
                if is_final {
                    ini.send(&cmd.data(&data));
                } else {
                    ini.send(&cmd);
                    ini.send(&Ini::data_out(cmd.get(16), NO_TAG, 0, &data, true));
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            drop(suspended);
            for itt in itts {
                assert_eq!(ini.reply(itt).status == 0, lun == 0, "round {round}");
            }
            ini.fence();
        }
        // A connection that is closed while its command is parked.
        for kind in 0..3 {
            let mut other = bed.login();
            other.clear_ua();
            let suspended = bed.core.suspend_activity().unwrap();
            let cmd = match kind {
                0 => other.command(0, F, 0, [0; 16]),
                1 => other.command(0, W, 4096, write10(0, 8)),
                _ => other.command(9, W, 4096, write10(0, 8)),
            };
            other.send(&cmd);
            std::thread::sleep(Duration::from_millis(5));
            drop(other);
            std::thread::sleep(Duration::from_millis(5));
            drop(suspended);
        }
        ini.logout();
    });
}

#[test]
fn data_whose_digest_is_wrong_stays_wrong_while_suspended() {
    each(|bed| {
        let mut ini = bed.login_as(4, &[("DataDigest", "CRC32C")]);
        ini.clear_ua();
        ini.write(0, &[1; 512]);
        let suspended = bed.core.suspend_activity().unwrap();
        let cmd = ini.command(0, F | W, 512, write10(0, 1)).data(&[2; 512]);
        let mut bytes = cmd.encode(false, true);
        bytes[100] ^= 1;
        ini.send_bytes(&bytes);
        std::thread::sleep(Duration::from_millis(10));
        drop(suspended);
        assert_eq!(ini.reply(cmd.get(16)).sense, Some((0xb, 0x47, 5)));
        assert!(ini.read(0, 1).data == [1; 512]);
        ini.logout();
    });
}

#[test]
fn a_peer_that_does_not_read_is_not_read_either() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        // 400 MiB of answers, far more than sockets hold; each takes its place of the window until it is sent.
        let total = 1600u32;
        let writer = ini.sock.try_clone().unwrap();
        let mut requests = Vec::new();
        for n in 0..total {
            let mut nop =
                Pdu::new(NOP_OUT | IMMEDIATE, F, 10_000 + n).data(&vec![n as u8; 250_000]);
            nop.set(20, NO_TAG).set(24, ini.cmd_sn);
            requests.push(nop);
        }
        let sent = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|s| {
            let sent = &sent;
            s.spawn(move || {
                let mut writer = writer;
                for nop in requests {
                    writer.write_all(&nop.encode(false, false)).expect("send");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            std::thread::sleep(Duration::from_millis(700));
            let stuck = sent.load(Ordering::Relaxed);
            assert!(
                stuck < total / 2,
                "{stuck} of {total} taken while nothing is read"
            );
            for n in 0..total {
                let echo = ini.recv().unwrap();
                assert_eq!((echo.opcode(), echo.get(16)), (NOP_IN, 10_000 + n));
                assert!(echo.data.len() == 250_000 && echo.data[0] == n as u8);
            }
        });
        ini.fence();
        ini.logout();
    });
}

#[test]
fn stopping_under_load_and_in_every_phase_leaves_nothing() {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        let stop = AtomicBool::new(false);
        let half_open: Vec<Ini> = (0..20)
            .map(|n| {
                let mut ini = Ini::connect(bed.addr);
                let login = Ini::login_pdu(300 + n, 0, &[]).encode(false, false);
                ini.send_bytes(&login[..(n as usize * 20) % login.len()]);
                ini
            })
            .collect();
        let mut waiting = bed.login();
        waiting.clear_ua();
        for n in 0..5 {
            let cmd = waiting.command(
                0,
                if n % 2 == 0 { W } else { F | W },
                65536,
                write10(0, 128),
            );
            waiting.send(&cmd);
        }
        std::thread::scope(|s| {
            for port in 0..6u32 {
                let (bed, stop) = (&bed, &stop);
                s.spawn(move || load(bed, 400 + port % 5, stop));
            }
            std::thread::sleep(Duration::from_millis(150));
            let begin = Instant::now();
            assert!(bed.driver.stop(), "connections are left");
            assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(
            (bed.driver.conn_count(), bed.target.session_count()),
            (0, 0)
        );
        drop((half_open, waiting));
        bed.stop();
    }
}

/// Logs in and works until the connection ends; then again, until told to stop.
fn load(bed: &Bed, port: u32, stop: &AtomicBool) {
    let mut rng = Rng::new(u64::from(port));
    while !stop.load(Ordering::Relaxed) {
        let Ok(sock) = std::net::TcpStream::connect(bed.addr) else {
            return;
        };
        let mut ini = Ini::over(sock);
        let login = Ini::login_pdu(port, 0, &[]).encode(false, false);
        if ini.sock.write_all(&login).is_err() {
            continue;
        }
        for _ in 0..20 {
            let bytes = conversation(&mut ini, &mut rng);
            if ini.sock.write_all(&bytes).is_err() {
                break;
            }
        }
    }
}

#[test]
fn cold_reset_ends_all_sessions_of_the_target() {
    each(|bed| {
        let (mut a, mut b) = (bed.login(), bed.login());
        a.clear_ua();
        b.clear_ua();
        // Warm: they live on.
        let itt = a.tmf(6, 0, NO_TAG, 0);
        let reply = a.recv().unwrap();
        assert_eq!(
            (reply.opcode(), reply.get(16), reply.bhs[2]),
            (TMF_RESPONSE, itt, 0)
        );
        a.clear_ua();
        b.clear_ua();
        let itt = a.tmf(7, 0, NO_TAG, 0);
        let reply = a.recv().unwrap();
        assert_eq!(
            (reply.opcode(), reply.get(16), reply.bhs[2]),
            (TMF_RESPONSE, itt, 0)
        );
        assert!(a.recv().is_none() && b.recv().is_none());
    });
}

#[test]
fn task_management_waits_for_what_comes_before_it_and_is_limited() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        // An abort of a command that was numbered and never sent: it counts as received.
        let skipped = ini.command(0, F, 0, [0; 16]);
        let itt = ini.tmf(1, 0, skipped.get(16), skipped.get(24));
        let reply = ini.recv().unwrap();
        assert_eq!(
            (reply.opcode(), reply.get(16), reply.bhs[2]),
            (TMF_RESPONSE, itt, 0)
        );
        assert_eq!(ini.test_unit_ready(0).status, 0);
        // The same for one that waits for its turn.
        let first = ini.command(0, F, 0, [0; 16]);
        let second = ini.command(0, F | W, 512, write10(0, 1)).data(&[1; 512]);
        ini.send(&second);
        let itt = ini.tmf(1, 0, second.get(16), second.get(24));
        ini.fence();
        ini.send(&first);
        assert_eq!(ini.reply(first.get(16)).status, 0);
        let reply = ini.recv().unwrap();
        assert_eq!(
            (reply.opcode(), reply.get(16), reply.bhs[2]),
            (TMF_RESPONSE, itt, 0)
        );
        assert_eq!(ini.test_unit_ready(0).status, 0);
        // Answers that would have to wait for ever are few.
        let far = ini.cmd_sn;
        ini.cmd_sn = far.wrapping_add(1000);
        for _ in 0..200 {
            ini.tmf(2, 0, NO_TAG, 0);
        }
        ini.cmd_sn = far;
        let itt = ini.new_itt();
        let mut nop = ini.request(NOP_OUT, F, itt);
        nop.set(20, NO_TAG);
        ini.send(&nop);
        let mut rejects = 0;
        loop {
            let pdu = ini.recv().unwrap();
            match pdu.opcode() {
                REJECT => {
                    assert_eq!(pdu.bhs[2], 6);
                    rejects += 1;
                }
                op => {
                    assert_eq!((op, pdu.get(16)), (NOP_IN, itt));
                    break;
                }
            }
        }
        assert!(rejects >= 100, "{rejects}");
    });
}

#[test]
fn requests_that_are_not_immediate_fill_the_window() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        // Many more than the window, at once: what is not dropped is answered, and numbers are never wrong.
        let first = ini.cmd_sn;
        let mut burst = Vec::new();
        for n in 0..200u32 {
            let itt = ini.new_itt();
            let mut pdu = ini.request(0x02, F | 2, itt);
            pdu.set(20, NO_TAG);
            if n % 3 == 0 {
                pdu = Pdu {
                    bhs: pdu.bhs,
                    data: Vec::new(),
                };
                pdu.bhs[0] = NOP_OUT;
                pdu.bhs[1] = F;
            }
            burst.extend(pdu.encode(false, false));
        }
        ini.send_bytes(&burst);
        let mut answered = 0;
        let itt = loop {
            // A ping whose turn is now: it comes when all answers have gone.
            let itt = ini.new_itt();
            let mut nop = Pdu::new(NOP_OUT | IMMEDIATE, F, itt);
            nop.set(20, NO_TAG).set(24, ini.exp_cmd_sn);
            ini.send(&nop);
            let mut more = false;
            loop {
                let pdu = ini.recv().unwrap();
                if pdu.get(16) == itt {
                    break;
                }
                assert!([TMF_RESPONSE, NOP_IN].contains(&pdu.opcode()), "{pdu:?}");
                answered += 1;
                more = true;
            }
            let open = ini.max_cmd_sn.wrapping_sub(ini.exp_cmd_sn).wrapping_add(1);
            if !more && open == wire::QUEUED {
                break itt;
            }
        };
        assert!(itt != 0 && answered > 0);
        assert_eq!(ini.exp_cmd_sn.wrapping_sub(first), answered);
        ini.cmd_sn = ini.exp_cmd_sn;
        assert_eq!(ini.test_unit_ready(0).status, 0);
        ini.logout();
    });
}

#[test]
fn text_requests_of_normal_sessions_are_answered() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        let ask = |ini: &mut Ini, text: &str| {
            let itt = ini.new_itt();
            let mut pdu = ini.request(TEXT, F, itt).data(text.as_bytes());
            pdu.set(20, NO_TAG);
            ini.send(&pdu);
            ini.recv().unwrap()
        };
        let reply = ask(&mut ini, "SendTargets=\0");
        assert_eq!((reply.opcode(), reply.bhs[1]), (TEXT_RESPONSE, F));
        let text = format!("TargetName={}\0TargetAddress={},1\0", wire::IQN, bed.addr);
        assert_eq!(String::from_utf8_lossy(&reply.data), text);
        let reply = ask(&mut ini, "SendTargets=All\0");
        assert_eq!(reply.opcode(), REJECT);
        let reply = ask(&mut ini, "MaxRecvDataSegmentLength=4096\0X-odd=1\0");
        assert_eq!(
            String::from_utf8_lossy(&reply.data),
            "X-odd=NotUnderstood\0"
        );
        // It holds from the next response on.
        ini.write(0, &[5; 16384]);
        let cmd = ini.command(0, F | R, 16384, read10(0, 32));
        ini.send(&cmd);
        for n in 0..4u32 {
            let pdu = ini.recv().unwrap();
            assert_eq!(
                (pdu.opcode(), pdu.data.len(), pdu.get(36)),
                (DATA_IN, 4096, n)
            );
        }
        // A text that continues, and one that resumes nothing.
        let itt = ini.new_itt();
        let mut pdu = ini.request(TEXT, 0x40, itt).data(b"X-a");
        pdu.set(20, NO_TAG);
        ini.send(&pdu);
        let reply = ini.recv().unwrap();
        assert_eq!((reply.opcode(), reply.bhs[1]), (TEXT_RESPONSE, 0));
        let ttt = reply.get(20);
        let mut pdu = ini.request(TEXT, F, itt).data(b"=1\0");
        pdu.set(20, ttt);
        ini.send(&pdu);
        assert_eq!(ini.recv().unwrap().data, b"X-a=NotUnderstood\0");
        let mut pdu = ini.request(TEXT, F, itt).data(b"X-b=1\0");
        pdu.set(20, ttt ^ 0x1000);
        ini.send(&pdu);
        assert_eq!(
            ini.recv().map(|p| (p.opcode(), p.bhs[2])),
            Some((REJECT, 9))
        );
        assert_eq!(ini.test_unit_ready(0).status, 0);
        ini.logout();
    });
}

#[test]
fn rejected_and_odd_requests_leave_the_session_usable() {
    each(|bed| {
        let mut ini = bed.login();
        ini.clear_ua();
        // Opcode with the immediate bit, and the reason.
        for (opcode, reason) in [
            (0x10, 5),
            (0x43, 5),
            (0x4b, 5),
            (0x5f, 5),
            (0x31, 5),
            (0x3f, 5),
        ] {
            let itt = ini.new_itt();
            let pdu = ini.request(opcode | IMMEDIATE, F, itt);
            ini.send(&pdu);
            let reply = ini.recv().unwrap();
            assert_eq!(
                (reply.opcode(), reply.bhs[2]),
                (REJECT, reason),
                "{opcode:#x}"
            );
            assert_eq!(reply.data, pdu.bhs);
        }
        // A ping that wants no answer, and data for nothing.
        let mut nop = ini.request(NOP_OUT | IMMEDIATE, F, NO_TAG);
        nop.set(20, NO_TAG);
        ini.send(&nop);
        ini.send(&Ini::data_out(77, NO_TAG, 0, &[0; 40_000], true));
        assert_eq!(ini.test_unit_ready(0).status, 0);
        // A segment beyond what we take: Reject, then the end.
        let mut pdu = ini.command(0, F | W, 1 << 23, write10(0, 8));
        pdu.bhs[5..8].copy_from_slice(&[0x7f, 0xff, 0xff]);
        ini.send_bytes(&pdu.bhs);
        assert_eq!(
            ini.recv().map(|p| (p.opcode(), p.bhs[2])),
            Some((REJECT, 4))
        );
        assert!(ini.recv().is_none());
        let mut ini = bed.login();
        let itt = ini.new_itt();
        let mut pdu = ini.request(0x46, F | 1, itt);
        pdu.set(20, 0x7777_0000);
        ini.send(&pdu);
        assert_eq!(ini.recv().map(|p| p.opcode()), Some(LOGOUT_RESPONSE));
        assert!(ini.recv().is_none());
    });
}

#[test]
fn pings_find_out_who_is_gone() {
    let params = TgtParams {
        nop_in_interval: 1,
        nop_in_timeout: 2,
        ..TgtParams::default()
    };
    let bed = Bed::with(POLLERS[1], params);
    let mut silent = bed.login();
    let mut lively = bed.login();
    silent.clear_ua();
    lively.clear_ua();
    let begin = Instant::now();
    let ping = lively.recv().unwrap();
    assert_eq!((ping.opcode(), ping.get(16)), (NOP_IN, NO_TAG));
    let mut pong = lively.request(NOP_OUT | IMMEDIATE, F, NO_TAG);
    pong.set(20, ping.get(20));
    lively.send(&pong);
    // The silent one is pinged once and then closed.
    assert_eq!(silent.recv().map(|p| p.opcode()), Some(NOP_IN));
    assert!(silent.recv().is_none());
    assert!(begin.elapsed() < PATIENCE);
    while lively.test_unit_ready(0).status != 0 {}
    // Activity is suspended for longer than the timeout: who has a command under way is BUSY, and answers pings.
    let mut waits = bed.login();
    waits.clear_ua();
    let suspended = bed.core.suspend_activity().unwrap();
    let cmd = waits.command(0, F, 0, [0; 16]);
    waits.send(&cmd);
    let (mut pings, mut status) = (0, None);
    while pings < 3 || status.is_none() {
        let pdu = waits.recv().expect("still there");
        match pdu.opcode() {
            RESPONSE => status = Some(pdu.bhs[3]),
            _ => {
                let mut pong = waits.request(NOP_OUT | IMMEDIATE, F, NO_TAG);
                pong.set(20, pdu.get(20));
                waits.send(&pong);
                pings += 1;
            }
        }
    }
    assert_eq!(status, Some(8));
    drop(suspended);
    assert_eq!(waits.test_unit_ready(0).status, 0);
    drop((lively, waits));
    bed.settle();
    bed.stop();
}

/// The data of a command that a suspension waits for may come behind one that waits for its end.
#[test]
fn a_suspension_does_not_wait_for_data_that_is_not_received() {
    each(|bed| {
        let mut ini = bed.login_as(4101, &[("InitialR2T", "Yes")]);
        ini.clear_ua();
        let write = ini.command(0, F | W, 512, write10(0, 1));
        ini.send(&write);
        let r2t = ini.recv().expect("an R2T");
        let core = Arc::clone(&bed.core);
        let suspended = std::thread::spawn(move || {
            let patience = kshim::time::Delta::from_secs(10);
            core.suspend_activity_for(patience).map(drop).is_ok()
        });
        while bed.core.suspended_since().is_none() {
            std::thread::yield_now();
        }
        let behind = ini.command(0, F, 0, [0; 16]);
        ini.send(&behind);
        ini.answer_r2t(&r2t, &[5; 512]);
        let mut status = HashMap::new();
        while status.len() < 2 {
            let pdu = ini.recv().expect("an answer");
            assert_eq!(pdu.opcode(), RESPONSE);
            status.insert(pdu.get(16), pdu.bhs[3]);
        }
        assert!(suspended.join().unwrap(), "suspended in time");
        assert_eq!(status[&write.get(16)], 0);
        // BUSY, or TASK SET FULL, which it may try again.
        assert!([8, 0x28].contains(&status[&behind.get(16)]), "{status:?}");
        assert_eq!(ini.test_unit_ready(0).status, 0);
        ini.logout();
    });
}
