//! Nonsense from the wire: each malformed PDU ends in the RFC's answer (a reject, a login status, a response that says
//! so, silence where the RFC wants it, or a closed connection), and never in a hang or in another session's trouble.

use std::time::Duration;

use scst_tests::pdu::{Bhs, FINAL, IMMEDIATE, NO_TAG, Pdu, op};
use scst_tests::scsi;
use scst_tests::session::{CONTINUE, Error, Login, Outcome, Session, stage};
use scst_tests::{Command, Rng, Server, ServerOptions, Wire, WireError};

/// Time in which the server must have reacted.
const REACTION: Duration = Duration::from_secs(5);
/// Time in which an answer comes, if one comes.
const QUIET: Duration = Duration::from_millis(100);

/// What a PDU in full feature phase did to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The connection was closed.
    Closed,
    /// A Reject PDU with this reason came, and the session goes on.
    Rejected(u8),
    /// Nothing came, and the session goes on.
    Silence,
    /// An answer of its own kind that reports failure came, and the session goes on.
    Failed,
    /// It was answered with success.
    Succeeded,
}

/// Which of these a case permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum May {
    Close,
    Reject,
    Ignore,
    Fail,
    Succeed,
}
use May::{Close, Fail, Ignore, Reject, Succeed};

fn permits(may: &[May], seen: Seen) -> bool {
    may.contains(&match seen {
        Seen::Closed => Close,
        Seen::Rejected(_) => Reject,
        Seen::Silence => Ignore,
        Seen::Failed => Fail,
        Seen::Succeeded => Succeed,
    })
}

/// Sends bytes and finds out what they did: a NOP-Out after them must be answered, or the connection closed.
fn provoke(s: &mut Session, itt: u32, bytes: &[u8]) -> Seen {
    s.wire.timeout = REACTION;
    let rejects = s.rejects.len();
    s.expect_answer(itt);
    let result = (|| {
        s.wire.send_bytes(bytes)?;
        s.nop(b"alive?", true)?;
        s.listen(QUIET)
    })();
    if let Err(e) = result {
        assert!(e.is_closed(), "neither an answer nor an end: {e}");
        return Seen::Closed;
    }
    match (s.take_answer(itt), s.rejects.get(rejects)) {
        (Some(Outcome::Rejected(reason)), _) | (None, Some(&(reason, _))) => Seen::Rejected(reason),
        (Some(Outcome::Scsi(reply)), _) if reply.is_good() => Seen::Succeeded,
        (Some(Outcome::Tmf(0) | Outcome::Logout(0) | Outcome::Nop(_) | Outcome::Text(_)), _) => {
            Seen::Succeeded
        }
        (Some(_), _) => Seen::Failed,
        (None, None) => Seen::Silence,
    }
}

/// One malformed PDU: its name, what it may lead to, and how it is made. The maker gets a tag for the answer.
struct Case {
    name: &'static str,
    may: &'static [May],
    make: fn(&Server, &mut Session, u32) -> Vec<u8>,
}

/// A header with this opcode, tag and the session's numbers.
fn header(s: &mut Session, byte0: u8, byte1: u8, itt: u32) -> Bhs {
    let mut bhs = Bhs::new(byte0, byte1);
    bhs.set_word(16, itt);
    s.number(&mut bhs);
    bhs
}

/// A SCSI command PDU to be spoiled.
fn command(server: &Server, s: &mut Session, itt: u32, flags: u8, len: u32, cdb: &[u8]) -> Bhs {
    let mut bhs = header(s, op::SCSI_COMMAND, flags | 1, itt);
    bhs.set_lun(scsi::lun_field(server.lun(0)))
        .set_word(20, len);
    bhs.0[32..32 + cdb.len()].copy_from_slice(cdb);
    bhs
}

fn bytes(bhs: Bhs, ahs: &[u8], data: &[u8]) -> Vec<u8> {
    Pdu::new(bhs, ahs.to_vec(), data.to_vec()).encode(false, false)
}

const W: u8 = 0x20;
const R: u8 = 0x40;

/// Opcodes, lengths, numbers.
const FRAMING: &[Case] = &[
    Case {
        name: "reserved opcode",
        may: &[Close, Reject],
        make: |_, s, itt| bytes(header(s, 0x0f | IMMEDIATE, FINAL, itt), &[], &[]),
    },
    Case {
        name: "vendor opcode",
        may: &[Close, Reject],
        make: |_, s, itt| bytes(header(s, 0x1c | IMMEDIATE, FINAL, itt), &[], &[]),
    },
    Case {
        name: "SCSI response from an initiator",
        may: &[Close, Reject],
        make: |_, s, itt| {
            bytes(
                header(s, op::SCSI_RESPONSE | IMMEDIATE, FINAL, itt),
                &[],
                &[],
            )
        },
    },
    Case {
        name: "R2T from an initiator",
        may: &[Close, Reject],
        make: |_, s, itt| bytes(header(s, op::R2T | IMMEDIATE, FINAL, itt), &[], &[]),
    },
    Case {
        name: "data segment of 16 MiB announced",
        may: &[Close],
        make: |_, s, itt| {
            let mut bhs = header(s, op::NOP_OUT | IMMEDIATE, FINAL, itt);
            bhs.set_word(20, NO_TAG).set_data_len(0xff_ffff);
            bhs.0.to_vec()
        },
    },
    Case {
        name: "data segment longer than MaxRecvDataSegmentLength",
        may: &[Close, Reject],
        make: |_, s, itt| {
            let mut bhs = header(s, op::NOP_OUT | IMMEDIATE, FINAL, itt);
            bhs.set_word(20, NO_TAG);
            let len = s.params.target_max_recv + 4;
            bytes(bhs, &[], &vec![0; len])
        },
    },
    Case {
        name: "CmdSN far outside the window",
        may: &[Ignore],
        make: |server, s, itt| {
            let mut bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            s.cmd_sn = s.cmd_sn.wrapping_sub(1);
            bhs.set_word(24, s.cmd_sn.wrapping_add(100_000));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "CmdSN of an executed command",
        may: &[Ignore],
        make: |server, s, itt| {
            let mut bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            s.cmd_sn = s.cmd_sn.wrapping_sub(1);
            bhs.set_word(24, s.cmd_sn.wrapping_sub(1));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "SNACK at ErrorRecoveryLevel 0",
        may: &[Close, Reject],
        make: |_, s, itt| bytes(header(s, op::SNACK | IMMEDIATE, FINAL, itt), &[], &[]),
    },
    Case {
        name: "login in full feature phase",
        may: &[Close, Reject],
        make: |_, s, itt| {
            bytes(
                header(s, op::LOGIN | IMMEDIATE, FINAL | 1 << 2 | 3, itt),
                &[],
                b"X=1\0",
            )
        },
    },
];

/// Additional header segments and the SCSI command's fields.
const COMMANDS: &[Case] = &[
    Case {
        name: "AHS of an unknown type",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            bytes(bhs, &[0, 5, 0x3f, 0, 1, 2, 3, 4], &[])
        },
    },
    Case {
        name: "AHS longer than all of them",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            bytes(bhs, &[0xff, 0xff, 1, 0, 1, 2, 3, 4], &[])
        },
    },
    Case {
        name: "AHS of length 0",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            bytes(bhs, &[0, 0, 1, 0, 0, 0, 1, 0], &[])
        },
    },
    Case {
        name: "AHS of 1,020 bytes of nonsense",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            bytes(bhs, &Rng::new(1).bytes(1020), &[])
        },
    },
    Case {
        name: "two extended CDBs",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let mut cdb = [0; 16];
            cdb[0] = 0x7f;
            cdb[7] = 24;
            let bhs = command(server, s, itt, FINAL, 0, &cdb);
            let one = [
                0u8, 17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            bytes(bhs, &[one, one].concat(), &[])
        },
    },
    Case {
        name: "more immediate data than expected in all",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | W, 512, &scsi::write10(0, 1));
            bytes(bhs, &[], &[0; 4096])
        },
    },
    Case {
        name: "immediate data for a read",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | R, 512, &scsi::read10(0, 1));
            bytes(bhs, &[], &[0; 512])
        },
    },
    Case {
        name: "write bit on a read CDB",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | W, 512, &scsi::read10(0, 1));
            bytes(bhs, &[], &[0; 512])
        },
    },
    Case {
        name: "read bit on a write CDB",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | R, 512, &scsi::write10(0, 1));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "both directions without AHS",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | R | W, 512, &scsi::read10(0, 1));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "read of 4 GiB into nothing",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &scsi::read16(0, u32::MAX));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "expected length of 4 GiB on a read of one block",
        may: &[Close, Reject, Succeed],
        make: |server, s, itt| {
            // The session takes what it asked for and no more: it keeps no buffer of this length.
            let bhs = command(server, s, itt, FINAL | R, u32::MAX, &scsi::inquiry(0));
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "write past the end with 4 GiB expected",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let bhs = command(
                server,
                s,
                itt,
                FINAL | W,
                u32::MAX,
                &scsi::write16(u64::MAX - 1, 1),
            );
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "reserved task attribute",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL | 6, 0, &[0; 6]);
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "LUN field of ones",
        may: &[Close, Reject, Fail],
        make: |server, s, itt| {
            let mut bhs = command(server, s, itt, FINAL, 0, &[0; 6]);
            bhs.set_lun([0xff; 8]);
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "opcode without a meaning",
        may: &[Fail],
        make: |server, s, itt| {
            let bhs = command(server, s, itt, FINAL, 0, &[0xff; 16]);
            bytes(bhs, &[], &[])
        },
    },
];

/// Data-Out, NOP, text, task management, logout.
const OTHERS: &[Case] = &[
    Case {
        name: "Data-Out for an unknown transfer tag",
        may: &[Close, Reject, Ignore],
        make: |server, s, itt| {
            let mut bhs = Bhs::new(op::DATA_OUT, FINAL);
            bhs.set_lun(scsi::lun_field(server.lun(0)))
                .set_word(16, itt)
                .set_word(20, 0x1234_5678);
            bhs.set_word(28, s.exp_stat_sn);
            bytes(bhs, &[], &[0; 512])
        },
    },
    Case {
        name: "unsolicited Data-Out for no command",
        may: &[Close, Reject, Ignore],
        make: |_, s, itt| {
            let mut bhs = Bhs::new(op::DATA_OUT, FINAL);
            bhs.set_word(16, itt)
                .set_word(20, NO_TAG)
                .set_word(28, s.exp_stat_sn);
            bytes(bhs, &[], &[0; 512])
        },
    },
    Case {
        name: "NOP-Out that answers no ping",
        may: &[Close, Reject, Ignore],
        make: |_, s, _| {
            let mut bhs = header(s, op::NOP_OUT | IMMEDIATE, FINAL, NO_TAG);
            bhs.set_word(20, 0x1234_5678);
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "NOP-Out without tag that is not immediate",
        may: &[Close, Reject, Ignore],
        make: |_, s, _| {
            let mut bhs = header(s, op::NOP_OUT, FINAL, NO_TAG);
            bhs.set_word(20, NO_TAG);
            bytes(bhs, &[], &[])
        },
    },
    Case {
        name: "text that continues nothing",
        may: &[Close, Reject, Fail, Succeed],
        make: |_, s, itt| {
            let mut bhs = header(s, op::TEXT, FINAL, itt);
            bhs.set_word(20, 0x1234_5678);
            bytes(bhs, &[], b"SendTargets=All\0")
        },
    },
    Case {
        name: "text of nonsense",
        may: &[Close, Reject, Fail, Succeed],
        make: |_, s, itt| {
            let mut bhs = header(s, op::TEXT, FINAL, itt);
            bhs.set_word(20, NO_TAG);
            bytes(bhs, &[], &Rng::new(2).bytes(3000))
        },
    },
    Case {
        name: "task management function 0",
        may: &[Close, Reject, Fail],
        make: |_, s, itt| bytes(header(s, op::TASK_MGMT | IMMEDIATE, FINAL, itt), &[], &[]),
    },
    Case {
        name: "task management with data",
        may: &[Close, Reject, Fail, Succeed],
        make: |server, s, itt| {
            let mut bhs = header(s, op::TASK_MGMT | IMMEDIATE, FINAL | 2, itt);
            bhs.set_lun(scsi::lun_field(server.lun(0)));
            bytes(bhs, &[], &[1; 64])
        },
    },
    Case {
        name: "logout for recovery",
        may: &[Close, Reject, Fail],
        make: |_, s, itt| bytes(header(s, op::LOGOUT | IMMEDIATE, FINAL | 2, itt), &[], &[]),
    },
    Case {
        name: "logout with a reserved reason",
        may: &[Close, Reject, Fail],
        make: |_, s, itt| {
            bytes(
                header(s, op::LOGOUT | IMMEDIATE, FINAL | 0x55, itt),
                &[],
                &[],
            )
        },
    },
    Case {
        name: "logout of a connection that is not there",
        may: &[Close, Reject, Fail],
        make: |_, s, itt| {
            let mut bhs = header(s, op::LOGOUT | IMMEDIATE, FINAL | 1, itt);
            bhs.set_word(20, 0x7777_0000);
            bytes(bhs, &[], &[])
        },
    },
];

fn check_cases(cases: &[Case]) {
    let server = Server::start(&ServerOptions::lun("64M"));
    let lun = server.lun(0);
    let mut bystander = server.session(1);
    let mark = Rng::new(42).bytes(4096);
    bystander.write_blocks(lun, 64, &mark).unwrap();
    let mut wrong = Vec::new();
    for (n, case) in cases.iter().enumerate() {
        let mut s = server.session(100 + n as u32);
        let itt = s.new_itt();
        let pdu = (case.make)(&server, &mut s, itt);
        let seen = provoke(&mut s, itt, &pdu);
        println!("{}: {seen:?}", case.name);
        if !permits(case.may, seen) {
            wrong.push(format!(
                "{}: {seen:?}, want one of {:?}",
                case.name, case.may
            ));
        }
        if seen != Seen::Closed {
            // The session is not only alive, it works.
            s.clear_ua(lun).unwrap();
            s.expect_blocks(lun, 64, &mark);
        }
        bystander.expect_blocks(lun, 64, &mark);
    }
    bystander.assert_clean();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn wrong_framing_is_rejected_or_ends_the_connection() {
    check_cases(FRAMING);
}

#[test]
fn wrong_commands_are_refused() {
    check_cases(COMMANDS);
}

#[test]
fn wrong_other_requests_are_refused() {
    check_cases(OTHERS);
}

/// A write whose R2T was not answered.
fn write_with_r2t(server: &Server, s: &mut Session) -> (u32, scst_tests::session::R2t) {
    let write = Command::write(server.lun(0), scsi::write16(0, 64), vec![1; 32768]);
    let tag = s.submit(&write.solicited().held()).unwrap();
    while s.held(tag).is_empty() {
        s.pump(std::time::Instant::now() + REACTION).unwrap();
    }
    (tag, s.held(tag)[0])
}

#[test]
fn data_out_that_breaks_its_r2t_does_not_become_data() {
    /// Offset to add, length, transfer tag to add, tag to add.
    const BREAKS: [(&str, u32, usize, u32, u32); 6] = [
        ("offset before the burst", 0u32.wrapping_sub(512), 512, 0, 0),
        ("offset past the burst", 1 << 20, 512, 0, 0),
        ("more than was asked for", 0, 65536, 0, 0),
        ("nothing, final", 0, 0, 0, 0),
        ("another command's transfer tag", 0, 512, 7, 0),
        ("another task tag", 0, 512, 0, 7),
    ];
    let server = Server::start(&ServerOptions::lun("64M"));
    let lun = server.lun(0);
    let mut bystander = server.session(1);
    bystander.write_blocks(lun, 0, &[5; 65536]).unwrap();
    for (n, (name, offset, len, ttt, itt)) in BREAKS.into_iter().enumerate() {
        let mut s = server.session(2 + n as u32);
        let (tag, r2t) = write_with_r2t(&server, &mut s);
        let mut bhs = Bhs::new(op::DATA_OUT, FINAL);
        bhs.set_lun(r2t.lun)
            .set_word(16, r2t.itt.wrapping_add(itt))
            .set_word(20, r2t.ttt.wrapping_add(ttt));
        bhs.set_word(28, s.exp_stat_sn)
            .set_word(40, r2t.offset.wrapping_add(offset));
        let pdu = bytes(bhs, &[], &vec![0xba; len]);
        s.wire.timeout = REACTION;
        let alive = s
            .wire
            .send_bytes(&pdu)
            .map_err(Error::from)
            .and_then(|()| s.nop(b"?", true));
        match alive {
            Ok(_) => {}
            Err(e) => assert!(e.is_closed(), "{name}: {e}"),
        }
        if let Some(Outcome::Scsi(reply)) = s.take_answer(tag) {
            assert!(!reply.is_good(), "{name}: became data: {reply}");
        }
        drop(s);
        println!("{name}: the medium must be as before");
        bystander.expect_blocks(lun, 0, &[5; 65536]);
    }
    bystander.assert_clean();
}

#[test]
fn a_tag_in_use_is_refused() {
    let server = Server::start(&ServerOptions::lun("64M"));
    let mut s = server.session(1);
    let (tag, _) = write_with_r2t(&server, &mut s);
    let bhs = command(
        &server,
        &mut s,
        tag,
        FINAL | W,
        32768,
        &scsi::write16(0, 64),
    );
    s.wire.send_bytes(&bytes(bhs, &[], &[])).unwrap();
    match s.nop(b"?", false) {
        // Task in progress (RFC 7143 11.17.1), or the connection ended.
        Ok(_) => assert!(
            s.rejects.iter().any(|(reason, _)| *reason == 7),
            "{:?}",
            s.rejects
        ),
        Err(e) => assert!(e.is_closed(), "{e}"),
    }
}

#[test]
fn wrong_digests_are_noticed() {
    let server = Server::start(&ServerOptions::lun("64M"));
    let lun = server.lun(0);
    let mut bystander = server.session(1);
    bystander.write_blocks(lun, 0, &[5; 512]).unwrap();
    let options = server
        .options()
        .initiator(2)
        .key("HeaderDigest", "CRC32C")
        .key("DataDigest", "CRC32C");
    for spoil_header in [true, false] {
        let mut s = Session::open(server.addr, &options).unwrap();
        if !s.wire.header_digest || !s.wire.data_digest {
            println!("the target takes no digests (SCST's default): nothing to spoil");
            return;
        }
        s.clear_ua(lun).unwrap();
        let itt = s.new_itt();
        let bhs = command(&server, &mut s, itt, FINAL | W, 512, &scsi::write10(0, 1));
        let mut pdu = Pdu::new(bhs, Vec::new(), vec![6; 512]).encode(true, true);
        let at = if spoil_header { 48 } else { pdu.len() - 1 };
        pdu[at] ^= 1;
        let seen = provoke(&mut s, itt, &pdu);
        println!("header {spoil_header}: {seen:?}");
        // ErrorRecoveryLevel 0: a header that cannot be trusted ends the connection; data may be rejected (2) or failed.
        if spoil_header {
            assert_eq!(seen, Seen::Closed);
        } else {
            assert!(permits(&[Close, Reject, Fail], seen), "{seen:?}");
        }
        bystander.expect_blocks(lun, 0, &[5; 512]);
    }
}

/// What a malformed login led to.
#[derive(Debug, PartialEq, Eq)]
enum LoginSeen {
    Closed,
    Status(u8, u8),
    Rejected,
}

/// Sends bytes on a fresh connection; the answer, after which the connection must be closed.
fn provoke_login(server: &Server, make: fn(&Login, &Server) -> Vec<u8>) -> LoginSeen {
    let mut login = Login::connect(server.addr, [0x80, 9, 9, 9, 9, 9]).unwrap();
    login.wire.timeout = REACTION;
    let bytes = make(&login, server);
    // The target may close while we still send.
    let _ = login.wire.send_bytes(&bytes);
    let seen = match login.wire.recv() {
        Err(WireError::Closed) => return LoginSeen::Closed,
        Err(e) => panic!("neither an answer nor an end: {e}"),
        Ok(pdu) if pdu.bhs.opcode() == op::REJECT => LoginSeen::Rejected,
        Ok(pdu) => {
            assert_eq!(pdu.bhs.opcode(), op::LOGIN_RESPONSE, "{:?}", pdu.bhs);
            LoginSeen::Status(pdu.bhs.0[36], pdu.bhs.0[37])
        }
    };
    match login.wire.recv_to_end() {
        Ok(more) => assert!(more.is_empty(), "{more:?}"),
        Err(e) => panic!("after {seen:?} the connection stays open: {e}"),
    }
    seen
}

/// A login request with these keys, from security to operational negotiation.
fn first(login: &Login, keys: &[(&str, &str)]) -> Pdu {
    login.request(stage::SECURITY, stage::OPERATIONAL, FINAL, keys)
}

const NAME: (&str, &str) = ("InitiatorName", "iqn.2026-01.org.example:bad");

/// A malformed login, and the statuses that answer it (empty: any that is not success). Closing is always right.
struct LoginCase {
    name: &'static str,
    statuses: &'static [(u8, u8)],
    make: fn(&Login, &Server) -> Vec<u8>,
}

const LOGINS: &[LoginCase] = &[
    LoginCase {
        name: "no InitiatorName",
        statuses: &[(2, 7), (2, 0)],
        make: |l, server| {
            first(l, &[("TargetName", &server.iqn), ("SessionType", "Normal")]).encode(false, false)
        },
    },
    LoginCase {
        name: "no TargetName",
        statuses: &[(2, 7), (2, 0)],
        make: |l, _| first(l, &[NAME, ("SessionType", "Normal")]).encode(false, false),
    },
    LoginCase {
        name: "unknown target",
        statuses: &[(2, 3)],
        make: |l, _| {
            first(
                l,
                &[
                    NAME,
                    ("TargetName", "iqn.2026-01.org.example:no"),
                    ("SessionType", "Normal"),
                ],
            )
            .encode(false, false)
        },
    },
    LoginCase {
        name: "unknown session type",
        statuses: &[(2, 9), (2, 0)],
        make: |l, server| {
            first(
                l,
                &[NAME, ("TargetName", &server.iqn), ("SessionType", "Odd")],
            )
            .encode(false, false)
        },
    },
    LoginCase {
        name: "version 5",
        statuses: &[(2, 5)],
        make: |l, server| {
            let mut pdu = first(l, &[NAME, ("TargetName", &server.iqn)]);
            (pdu.bhs.0[2], pdu.bhs.0[3]) = (5, 5);
            pdu.encode(false, false)
        },
    },
    LoginCase {
        name: "session that does not exist",
        statuses: &[(2, 10)],
        make: |l, server| {
            let mut pdu = first(l, &[NAME, ("TargetName", &server.iqn)]);
            (pdu.bhs.0[14], pdu.bhs.0[15]) = (0x7f, 0xff);
            pdu.encode(false, false)
        },
    },
    LoginCase {
        name: "transit and continue together",
        statuses: &[],
        make: |l, server| {
            let keys = [NAME, ("TargetName", server.iqn.as_str())];
            l.request(0, 1, FINAL | CONTINUE, &keys)
                .encode(false, false)
        },
    },
    LoginCase {
        name: "reserved stage",
        statuses: &[],
        make: |l, server| {
            let keys = [NAME, ("TargetName", server.iqn.as_str())];
            l.request(2, 3, FINAL, &keys).encode(false, false)
        },
    },
    LoginCase {
        name: "back from full feature phase",
        statuses: &[],
        make: |l, server| {
            let keys = [NAME, ("TargetName", server.iqn.as_str())];
            l.request(3, 1, FINAL, &keys).encode(false, false)
        },
    },
    LoginCase {
        name: "text without '='",
        statuses: &[],
        make: |l, _| {
            let mut pdu = first(l, &[NAME]);
            pdu.data = b"InitiatorName\0TargetName\0".to_vec();
            Pdu::new(pdu.bhs, Vec::new(), pdu.data).encode(false, false)
        },
    },
    LoginCase {
        name: "binary text",
        statuses: &[],
        make: |l, _| {
            let pdu = first(l, &[NAME]);
            Pdu::new(pdu.bhs, Vec::new(), Rng::new(3).bytes(4000)).encode(false, false)
        },
    },
    LoginCase {
        name: "key of 200 bytes",
        statuses: &[],
        make: |l, _| {
            let key = "K".repeat(200);
            first(l, &[(key.as_str(), "1")]).encode(false, false)
        },
    },
    LoginCase {
        name: "value of 8,000 bytes",
        statuses: &[],
        make: |l, _| {
            let value = "v".repeat(8000);
            first(l, &[("InitiatorName", value.as_str())]).encode(false, false)
        },
    },
    LoginCase {
        name: "data segment of 16 MiB announced",
        statuses: &[],
        make: |l, _| {
            let mut pdu = first(l, &[NAME]);
            pdu.bhs.set_data_len(0xff_ffff);
            pdu.bhs.0.to_vec()
        },
    },
    LoginCase {
        name: "additional headers",
        statuses: &[],
        make: |l, _| {
            let pdu = first(l, &[("SessionType", "Normal")]);
            Pdu::new(pdu.bhs, vec![0xff; 400], pdu.data).encode(false, false)
        },
    },
    LoginCase {
        name: "SCSI command before login",
        statuses: &[],
        make: |_, _| Pdu::bare(Bhs::new(op::SCSI_COMMAND, FINAL | 1)).encode(false, false),
    },
    LoginCase {
        name: "NOP-Out before login",
        statuses: &[],
        make: |_, _| Pdu::bare(Bhs::new(op::NOP_OUT | IMMEDIATE, FINAL)).encode(false, false),
    },
    LoginCase {
        name: "text before login",
        statuses: &[],
        make: |_, _| {
            Pdu::new(
                Bhs::new(op::TEXT, FINAL),
                Vec::new(),
                b"SendTargets=All\0".to_vec(),
            )
            .encode(false, false)
        },
    },
    LoginCase {
        name: "ones",
        statuses: &[],
        make: |_, _| vec![0xff; 4096],
    },
    LoginCase {
        name: "HTTP",
        statuses: &[],
        make: |_, _| {
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: something that is longer than a header\r\n\r\n".to_vec()
        },
    },
];

#[test]
fn malformed_logins_are_refused_with_a_status_or_closed() {
    let server = Server::start(&ServerOptions::lun("64M"));
    let mut wrong = Vec::new();
    for case in LOGINS {
        let seen = provoke_login(&server, case.make);
        println!("{}: {seen:?}", case.name);
        let is_right = match seen {
            LoginSeen::Closed => true,
            LoginSeen::Rejected => case.statuses.is_empty(),
            LoginSeen::Status(0, _) => false,
            LoginSeen::Status(class, detail) => {
                case.statuses.is_empty() || case.statuses.contains(&(class, detail))
            }
        };
        if !is_right {
            wrong.push(format!("{}: {seen:?}", case.name));
        }
        server.session(1).close().unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn connections_that_never_log_in_keep_nobody_out() {
    const HALF_OPEN: usize = 200;
    let server = Server::start(&ServerOptions::lun("64M"));
    let before = server.usage();
    let idle: Vec<Wire> = (0..HALF_OPEN)
        .map(|n| {
            let mut wire = Wire::connect(server.addr).unwrap();
            // Some begin a header. Those past the server's limit are closed, which is fine too.
            let _ = wire.send_bytes(&[0x43; 47][..n % 48]);
            wire
        })
        .collect();
    server.session(1).close().unwrap();
    drop(idle);
    let deadline = std::time::Instant::now() + REACTION;
    while server.usage().fds > before.fds && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        server.usage().fds <= before.fds,
        "{before:?} {:?}",
        server.usage()
    );
}

/// Streams of valid PDUs with a few bytes changed: `SCST_FUZZ_STREAMS` of them (300).
#[test]
fn spoiled_streams_end_with_their_connection() {
    let server = Server::start(&ServerOptions::lun("64M"));
    let lun = server.lun(0);
    let mut rng = Rng::from_env(51);
    for n in 0..scst_tests::tools::env_number("SCST_FUZZ_STREAMS", 300) {
        let mut s = server.session(2);
        let mut stream = Vec::new();
        for _ in 0..1 + rng.below(6) {
            let itt = s.new_itt();
            // Reads and task management only: what is spoiled must not write over the bystander's data by chance.
            let pdu = match rng.below(5) {
                0 => bytes(
                    command(&server, &mut s, itt, FINAL | R, 4096, &scsi::read10(0, 8)),
                    &[],
                    &[],
                ),
                1 => bytes(
                    command(&server, &mut s, itt, FINAL | R, 255, &scsi::inquiry(255)),
                    &[],
                    &[],
                ),
                2 => bytes(header(&mut s, op::NOP_OUT, FINAL, itt), &[], &rng.bytes(64)),
                3 => bytes(
                    header(&mut s, op::TEXT, FINAL, itt),
                    &[],
                    b"SendTargets=All\0",
                ),
                _ => bytes(
                    header(&mut s, op::TASK_MGMT | IMMEDIATE, FINAL | 2, itt),
                    &[],
                    &[],
                ),
            };
            stream.extend_from_slice(&pdu);
        }
        for _ in 0..1 + rng.below(8) {
            let at = rng.below(stream.len() as u64) as usize;
            stream[at] = rng.next_u64() as u8;
        }
        s.wire.timeout = REACTION;
        // The server may have ended the connection already.
        let _ = s.wire.send_bytes(&stream);
        s.wire.shutdown_write();
        if let Err(e) = s.wire.recv_to_end() {
            panic!("stream {n}: the connection did not end: {e}");
        }
        if n % 10 == 0 {
            // A new session each time: a spoiled function may have been a target reset.
            let mut bystander = server.session(1);
            bystander.write_blocks(lun, n, &[n as u8; 512]).unwrap();
            bystander.expect_blocks(lun, n, &[n as u8; 512]);
            bystander.close().unwrap();
        }
    }
}
