//! Discovery sessions.

mod login_common;

use iscsi_scst::login::{Next, Response};
use iscsi_scst::pdu::hdr::{LogoutReqHdr, NopOutHdr, TextRspHdr};
use iscsi_scst::pdu::{Bhs, Header, Ttt, flags, opcode};
use login_common::{Discovery, IQN, Server, decode, encode, keys, request};

#[test]
fn send_targets_lists_names_and_portals() {
    let server = Server {
        targets: 2,
        ..Server::default()
    };
    let mut discovery = Discovery::new(&server);
    let second = format!("{IQN}-1");
    let portals = [
        ("TargetAddress", "192.0.2.1:3260,1"),
        ("TargetAddress", "[2001:db8::1]:3261,1"),
    ];
    let one = |name| [&[("TargetName", name)][..], &portals].concat();
    let all = [one(IQN), one(&second)].concat();
    assert_eq!(discovery.ask(&keys(&[("SendTargets", "All")])), keys(&all));
    assert_eq!(
        discovery.ask(&keys(&[("SendTargets", &second)])),
        keys(&one(&second))
    );
    assert_eq!(discovery.ask(&keys(&[("SendTargets", "all")])), vec![]);
    assert_eq!(
        discovery.ask(&keys(&[("Foo", "1")])),
        keys(&[("Foo", "NotUnderstood")])
    );
    assert_eq!(discovery.ask(&vec![]), vec![]);
}

#[test]
fn long_lists_go_out_in_pieces() {
    let server = Server {
        targets: 200,
        ..Server::default()
    };
    let asked = keys(&[("SendTargets", "All")]);
    let mut discovery = Discovery::with(&server, &[("MaxRecvDataSegmentLength", "512")]);
    let (list, pieces) = discovery.exchange(&asked, 512);
    assert_eq!(list.len(), 3 * 200);
    assert!(pieces > 30);
    assert_eq!(
        discovery.exchange(&asked, 512).0.len(),
        3 * 200,
        "and again"
    );
    assert_eq!(Discovery::new(&server).exchange(&asked, 8192).0, list);
}

#[test]
fn text_exchanges_keep_to_their_tag() {
    let server = Server {
        targets: 200,
        ..Server::default()
    };
    let asked = encode(&keys(&[("SendTargets", "All")]));
    let mut discovery = Discovery::new(&server);
    let reason = |response: Response| (response.bhs[0], response.bhs[2]);
    assert_eq!(
        reason(discovery.send(0x80, Ttt(99), &asked)),
        (opcode::REJECT, 9)
    );
    let first = discovery.send(0x80, Ttt::RESERVED, &asked);
    let ttt = Ttt::from(TextRspHdr::of(Bhs::of(&first.bhs)).ttt);
    assert_eq!(
        reason(discovery.send(0x80, Ttt(ttt.0 + 1), &[])),
        (opcode::REJECT, 9)
    );
    assert_eq!(
        discovery.send(0x80, ttt, &[]).bhs[0],
        opcode::TEXT_RSP,
        "goes on"
    );
    for text in [
        "SendTargets=\0",
        "SendTargets=All\0SendTargets=All\0",
        "SendTargets=All",
        "x\0",
    ] {
        let response = discovery.send(0x80, Ttt::RESERVED, text.as_bytes());
        assert_eq!(reason(response), (opcode::REJECT, 4), "{text:?}");
    }
    assert_eq!(
        discovery.ask(&keys(&[("SendTargets", "x")])),
        vec![],
        "the session lives"
    );
}

#[test]
fn requests_in_pieces_are_put_together() {
    let server = Server::default();
    let mut discovery = Discovery::new(&server);
    let first = discovery.send(flags::CONTINUE, Ttt::RESERVED, b"SendTar");
    let header = *TextRspHdr::of(Bhs::of(&first.bhs));
    assert_eq!((header.flags, first.data.len()), (0, 0));
    let ttt = Ttt::from(header.ttt);
    let second = discovery.send(flags::FINAL, ttt, b"gets=All\0");
    assert_eq!(second.bhs[1], flags::FINAL);
    assert_eq!(decode(&second.data).len(), 3);

    let mut ttt = Ttt::RESERVED;
    let mut last = 0;
    for _ in 0..10 {
        let response = discovery.send(flags::CONTINUE, ttt, &[b'x'; 8000]);
        last = response.bhs[0];
        ttt = Ttt::from(TextRspHdr::of(Bhs::of(&response.bhs)).ttt);
        if last == opcode::REJECT {
            break;
        }
    }
    assert_eq!(last, opcode::REJECT);
}

#[test]
fn discovery_answers_pings_and_logs_out() {
    let server = Server::default();
    let mut discovery = Discovery::new(&server);
    let mut nop = NopOutHdr::new();
    nop.itt = 8.into();
    let outcome = discovery.login.receive(&server, nop.as_bhs(), b"ping");
    let response = outcome.response.unwrap();
    assert_eq!(
        (response.bhs[0], response.data.as_slice()),
        (opcode::NOP_IN, &b"ping"[..])
    );
    nop.itt = u32::MAX.into();
    let outcome = discovery.login.receive(&server, nop.as_bhs(), &[]);
    assert!(outcome.response.is_none() && matches!(outcome.next, Next::Continue));

    let outcome = discovery
        .login
        .receive(&server, request(0x87).as_bhs(), &[]);
    assert_eq!(
        outcome.response.unwrap().bhs[..3],
        [opcode::REJECT, 0x80, 4]
    );
    let outcome = discovery
        .login
        .receive(&server, LogoutReqHdr::new().as_bhs(), &[]);
    assert_eq!(
        outcome.response.unwrap().bhs[..3],
        [opcode::LOGOUT_RSP, 0x80, 0]
    );
    assert!(matches!(outcome.next, Next::Close));
    let outcome = discovery.login.receive(&server, nop.as_bhs(), &[]);
    assert!(outcome.response.is_none() && matches!(outcome.next, Next::Close));
}
