//! Logins that the recordings lack: reinstatement, long texts, redirection, nonsense.

mod login_common;

use iscsi_scst::login::{
    Login, LoginResult, MAX_LOGIN_PDUS, Next, Redirect, RedirectKind, Reinstatement, Response,
    SessionState,
};
use iscsi_scst::pdu::hdr::LoginReqHdr;
use iscsi_scst::pdu::{Bhs, Cid, Header, Isid, LoginStatus, Tsih, opcode};
use iscsi_scst::sn::{CmdSn, StatSn};
use login_common::{
    Got, INITIATOR, IQN, Keys, Server, encode, keys, login_rsp, normal, request, send, status,
};
use proptest::prelude::*;

fn log_in(
    server: &Server,
    header: &LoginReqHdr,
    text: &Keys,
) -> (Got, Option<LoginResult<&'static str>>) {
    let mut login = Login::new();
    let outcome = send(&mut login, server, header, &encode(text));
    let got = status(&outcome, &[]);
    match outcome.next {
        Next::FullFeature(result) => (got, Some(*result)),
        _ => (got, None),
    }
}

fn failure(server: &Server, header: &LoginReqHdr, text: &Keys) -> (u8, u8) {
    match log_in(server, header, text) {
        (Got::Response { class, detail, .. }, None) => (class, detail),
        other => panic!("{other:?}"),
    }
}

#[test]
fn result_tells_all_about_the_login() {
    let mut text = normal();
    text.extend(keys(&[
        ("InitiatorAlias", "me"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("InitialR2T", "No"),
    ]));
    let (got, result) = log_in(&Server::default(), &request(0x87), &text);
    assert!(matches!(
        got,
        Got::Response {
            class: 0,
            flags: 0x87,
            ..
        }
    ));
    let result = result.unwrap();
    assert_eq!(result.initiator_name, INITIATOR);
    assert_eq!(result.initiator_alias.as_deref(), Some("me"));
    assert_eq!((result.tsih, result.cid), (Tsih(77), Cid(3)));
    assert_eq!(result.isid, Isid([0x80, 0, 0, 0, 0, 0x10]));
    assert_eq!(result.reinstatement, Reinstatement::None);
    assert_eq!((result.stat_sn, result.exp_stat_sn), (StatSn(1), StatSn(9)));
    assert_eq!(result.exp_cmd_sn, CmdSn(41));
    assert_eq!(result.params.max_xmit_data_segment_length, 262_144);
    assert_eq!(result.params.max_recv_data_segment_length, 1_048_576);
    assert!(!result.params.initial_r2t);
}

#[test]
fn tsih_and_cid_decide_about_reinstatement() {
    let exists = |has_connection| SessionState::Exists {
        tsih: Tsih(5),
        has_connection,
    };
    for (session, tsih, expected) in [
        (SessionState::None, 0, Ok(Reinstatement::None)),
        (SessionState::None, 5, Err((2, 10))),
        (exists(true), 0, Ok(Reinstatement::Session)),
        (exists(false), 0, Ok(Reinstatement::Session)),
        (exists(true), 5, Ok(Reinstatement::Connection)),
        (exists(false), 5, Err((2, 6))),
        (exists(true), 6, Err((2, 10))),
    ] {
        let server = Server {
            session,
            ..Server::default()
        };
        let mut header = request(0x87);
        header.tsih = tsih.into();
        match expected {
            Ok(reinstatement) => {
                let result = log_in(&server, &header, &normal()).1.unwrap();
                assert_eq!(result.reinstatement, reinstatement);
            }
            Err(status) => assert_eq!(failure(&server, &header, &normal()), status),
        }
    }
}

#[test]
fn a_full_target_takes_reinstatement_only() {
    let full = Server {
        full: true,
        ..Server::default()
    };
    assert_eq!(failure(&full, &request(0x87), &normal()), (3, 2));
    let session = SessionState::Exists {
        tsih: Tsih(5),
        has_connection: true,
    };
    let result = log_in(&Server { session, ..full }, &request(0x87), &normal()).1;
    assert_eq!(result.unwrap().reinstatement, Reinstatement::Session);
}

#[test]
fn a_session_that_cannot_be_created_fails_the_login() {
    let mut login = Login::new();
    let text = encode(&normal());
    let outcome = login.receive(&Server::default(), request(0x87).as_bhs(), &text);
    assert!(matches!(outcome.next, Next::CreateSession));
    let outcome = login.session_created(Err(LoginStatus::OutOfResources));
    assert!(matches!(outcome.next, Next::Close));
    let response = outcome.response.unwrap();
    let header = login_rsp(&response);
    assert_eq!(
        (header.status_class, header.status_detail, header.flags),
        (3, 2, 0)
    );
}

#[test]
fn targets_out_of_reach_are_not_found_or_elsewhere() {
    let server = Server {
        allowed: false,
        ..Server::default()
    };
    assert_eq!(failure(&server, &request(0x87), &normal()), (2, 3));

    let redirect = Redirect {
        address: "192.0.2.9:3260".to_owned(),
        kind: RedirectKind::Permanent,
    };
    let server = Server {
        redirect: Some(redirect),
        ..Server::default()
    };
    let (got, _) = log_in(&server, &request(0x87), &normal());
    let text = keys(&[("TargetAddress", "192.0.2.9:3260")]);
    assert_eq!(
        got,
        Got::Response {
            class: 1,
            detail: 2,
            flags: 4,
            opcode: 0x23,
            text
        }
    );

    let server = Server {
        alias: Some("disks".to_owned()),
        ..Server::default()
    };
    let Got::Response { text, .. } = log_in(&server, &request(0x87), &normal()).0 else {
        panic!()
    };
    assert_eq!(
        text,
        keys(&[("TargetAlias", "disks"), ("TargetPortalGroupTag", "1")])
    );
}

#[test]
fn names_must_be_there_and_valid() {
    let with_name = |name| {
        let mut text = normal();
        text[0].1 = name;
        failure(&Server::default(), &request(0x87), &text)
    };
    assert_eq!(with_name("IQN.Upper".to_owned()), (2, 0));
    assert_eq!(with_name("a".repeat(224)), (2, 0));
    assert_eq!(with_name(String::new()), (2, 0));
    assert_eq!(
        failure(&Server::default(), &request(0x87), &normal()[1..].to_vec()),
        (2, 7)
    );
    assert_eq!(failure(&Server::default(), &request(0x87), &vec![]), (2, 7));
}

#[test]
fn long_text_comes_in_pieces_with_the_c_bit() {
    let mut list = normal();
    list.extend((0..400).map(|i| (format!("X-{i}"), "x".repeat(20))));
    list.truncate(3 + 300);
    let mut text = encode(&list);
    text.extend(encode(&keys(&[("MaxBurstLength", "8192")])));
    let server = Server::default();
    let mut login = Login::new();
    let (last, pieces) = {
        let mut pieces: Vec<&[u8]> = text.chunks(1000).collect();
        (pieces.pop().unwrap(), pieces)
    };
    for piece in pieces {
        let outcome = send(&mut login, &server, &request(0x44), piece);
        let text = vec![];
        assert_eq!(
            status(&outcome, &[]),
            Got::Response {
                class: 0,
                detail: 0,
                flags: 4,
                opcode: 0x23,
                text
            }
        );
        assert!(matches!(outcome.next, Next::Continue));
    }
    let outcome = send(&mut login, &server, &request(0x87), last);
    let Next::FullFeature(result) = outcome.next else {
        panic!("{outcome:?}")
    };
    assert_eq!(result.params.max_burst_length, 8192);
}

#[test]
fn long_text_has_its_limits() {
    let server = Server::default();
    let end = |second: u8, first: u8| {
        let mut login = Login::new();
        let _ = send(&mut login, &server, &request(first), &encode(&normal()));
        let outcome = send(&mut login, &server, &request(second), &[]);
        let Got::Response { class, detail, .. } = status(&outcome, &[]) else {
            panic!()
        };
        (class, detail)
    };
    assert_eq!(end(0x87, 0x44), (0, 0));
    assert_eq!(end(0x81, 0x44), (2, 0), "other stage");
    let mut login = Login::new();
    let outcome = send(&mut login, &server, &request(0xc7), &encode(&normal()));
    assert!(
        matches!(
            status(&outcome, &[]),
            Got::Response {
                class: 2,
                detail: 0,
                ..
            }
        ),
        "T and C"
    );

    let mut login = Login::new();
    let filler = [b'x'; 8192];
    let statuses: Vec<Got> = (0..9)
        .map(|_| status(&send(&mut login, &server, &request(0x44), &filler), &[]))
        .collect();
    assert!(matches!(statuses[7], Got::Response { class: 0, .. }));
    assert!(matches!(
        statuses[8],
        Got::Response {
            class: 3,
            detail: 2,
            ..
        }
    ));
}

#[test]
fn a_login_has_so_many_requests_and_no_more() {
    let server = Server::default();
    let mut login = Login::new();
    let outcome = send(&mut login, &server, &request(0x04), &encode(&normal()));
    assert!(matches!(outcome.next, Next::Continue));
    for _ in 1..MAX_LOGIN_PDUS {
        let outcome = send(&mut login, &server, &request(0x04), &[]);
        assert!(matches!(outcome.next, Next::Continue));
    }
    let outcome = send(&mut login, &server, &request(0x04), &[]);
    assert!(outcome.response.is_none() && matches!(outcome.next, Next::Close));
}

#[test]
fn status_numbers_count_and_command_numbers_wait() {
    let server = Server::default();
    let mut login = Login::new();
    for i in 0..3 {
        let outcome = send(&mut login, &server, &request(0x04), &encode(&normal()));
        let response = outcome.response.unwrap();
        let header = login_rsp(&response);
        assert_eq!(StatSn::from(header.stat_sn), StatSn(i));
        assert_eq!(CmdSn::from(header.exp_cmd_sn), CmdSn(41));
        assert_eq!(CmdSn::from(header.max_cmd_sn), CmdSn(42));
        assert_eq!(header.isid, Isid([0x80, 0, 0, 0, 0, 0x10]));
    }
}

#[test]
fn security_stage_may_lead_straight_to_full_feature_phase() {
    let mut text = normal();
    text.extend(keys(&[("HeaderDigest", "None"), ("AuthMethod", "None")]));
    let (got, result) = log_in(&Server::default(), &request(0x83), &text);
    let text = keys(&[
        ("TargetPortalGroupTag", "1"),
        ("HeaderDigest", "NotUnderstood"),
        ("AuthMethod", "None"),
    ]);
    assert_eq!(
        got,
        Got::Response {
            class: 0,
            detail: 0,
            flags: 0x83,
            opcode: 0x23,
            text
        }
    );
    assert_eq!(
        result.unwrap().params,
        iscsi_scst::param::SessParams::default()
    );
}

#[test]
fn chap_opens_the_way_and_only_it() {
    let server = Server {
        chap: true,
        ..Server::default()
    };
    let mut login = Login::new();
    let mut text = normal();
    text.extend(keys(&[("AuthMethod", "CHAP")]));
    let _ = send(&mut login, &server, &request(0x81), &encode(&text));
    let outcome = send(
        &mut login,
        &server,
        &request(0x81),
        &encode(&keys(&[("CHAP_A", "5")])),
    );
    assert_eq!(
        login_rsp(outcome.response.as_ref().unwrap()).flags,
        0,
        "no way out yet"
    );
    let answer = encode(&keys(&[("CHAP_N", "joe"), ("CHAP_R", "0x010203")]));
    let outcome = send(&mut login, &server, &request(0x81), &answer);
    assert_eq!(login_rsp(outcome.response.as_ref().unwrap()).flags, 0x81);
    let outcome = send(&mut login, &server, &request(0x87), &[]);
    let Next::FullFeature(result) = outcome.next else {
        panic!("{outcome:?}")
    };
    assert_eq!(result.user.as_deref(), Some("joe"));
}

#[test]
fn malformed_text_fails_the_login() {
    let server = Server::default();
    for tail in [
        &b"MaxBurstLength=1"[..],
        b"nonsense\0",
        b"=x\0",
        b"X=\xff\0",
    ] {
        let mut text = encode(&normal());
        text.extend_from_slice(tail);
        let mut login = Login::new();
        let outcome = send(&mut login, &server, &request(0x87), &text);
        assert!(matches!(
            status(&outcome, &[]),
            Got::Response {
                class: 2,
                detail: 0,
                ..
            }
        ));
    }
    let mut text = normal();
    text.push(("K".repeat(200), "x".to_owned()));
    text.push(("MaxBurstLength".to_owned(), "1".repeat(300)));
    let Got::Response { text, .. } = log_in(&server, &request(0x87), &text).0 else {
        panic!()
    };
    assert_eq!(text[1], ("K".repeat(200), "NotUnderstood".to_owned()));
    assert_eq!(text[2], ("MaxBurstLength".to_owned(), "Reject".to_owned()));
}

#[test]
fn other_requests_are_rejected_before_login() {
    let server = Server::default();
    for (opcode, reason, closes) in [
        (opcode::LOGIN, 4, false),
        (opcode::TEXT, 4, true),
        (opcode::LOGOUT, 4, true),
        (opcode::SCSI_CMD, 5, true),
        (opcode::NOP_OUT, 5, true),
        (0x3f, 5, true),
    ] {
        let mut login: Login<&'static str> = Login::new();
        let mut header = request(0x87);
        header.opcode = opcode;
        let outcome = login.receive(&server, header.as_bhs(), &[]);
        let Response { bhs, data } = outcome.response.unwrap();
        assert_eq!((bhs[0], bhs[1], bhs[2]), (opcode::REJECT, 0x80, reason));
        assert_eq!(data, header.as_bhs().as_array());
        assert_eq!(matches!(outcome.next, Next::Close), closes);
    }
}

#[test]
fn a_pdu_beyond_the_login_limit_is_not_read() {
    let login: Login<&'static str> = Login::new();
    let mut header = request(0x87);
    header.set_data_len(8189);
    assert_eq!(login.pdu_len(header.as_bhs()), Ok(8192));
    header.set_data_len(8193);
    assert!(login.pdu_len(header.as_bhs()).is_err());
    header.set_data_len(8192);
    header.total_ahs_len = 1;
    assert!(login.pdu_len(header.as_bhs()).is_err());
}

/// Text that is often nearly right.
fn login_text() -> impl Strategy<Value = Vec<u8>> {
    let key = prop_oneof![
        Just("InitiatorName"),
        Just("TargetName"),
        Just("SessionType"),
        Just("AuthMethod"),
        Just("CHAP_A"),
        Just("CHAP_N"),
        Just("CHAP_R"),
        Just("CHAP_I"),
        Just("CHAP_C"),
        Just("MaxBurstLength"),
        Just("HeaderDigest"),
        Just("SendTargets"),
        Just("MaxRecvDataSegmentLength"),
    ];
    let value = prop_oneof![
        Just(IQN.to_owned()),
        Just(INITIATOR.to_owned()),
        Just("Discovery".to_owned()),
        Just("Normal".to_owned()),
        Just("CHAP,None".to_owned()),
        Just("5".to_owned()),
        Just("joe".to_owned()),
        Just("0x010203".to_owned()),
        Just("All".to_owned()),
        Just(String::new()),
        "\\PC{0,300}",
    ];
    let structured = proptest::collection::vec((key, value), 0..8).prop_map(|list| {
        let list: Keys = list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        encode(&list)
    });
    prop_oneof![4 => structured, 1 => proptest::collection::vec(any::<u8>(), 0..300)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn nothing_a_peer_sends_panics_or_grows(
        pdus in proptest::collection::vec((any::<[u8; 16]>(), any::<[u8; 32]>(), login_text(), 0u8..8), 1..24),
        chap: bool,
        begins_well: bool,
    ) {
        let server = Server { chap, targets: 40, ..Server::default() };
        let mut login = Login::new();
        if begins_well {
            let _ = send(&mut login, &server, &request(if chap { 0x01 } else { 0x04 }), &encode(&normal()));
        }
        for (head, tail, text, kind) in pdus {
            let mut bhs = [0u8; 48];
            bhs[..16].copy_from_slice(&head);
            bhs[16..].copy_from_slice(&tail);
            match kind {
                0 => {}
                1 => bhs[0] = opcode::TEXT,
                2 => (bhs[0], bhs[3]) = (0x43, 0),
                3 => (bhs[0], bhs[1], bhs[3]) = (0x43, 0x87, 0),
                4 => (bhs[0], bhs[1], bhs[3]) = (0x43, 0x00, 0),
                5 => (bhs[0], bhs[1], bhs[3]) = (0x43, 0x44, 0),
                6 => (bhs[0], bhs[1], bhs[3]) = (0x43, 0x81, 0),
                _ => (bhs[0], bhs[1]) = (opcode::TEXT, 0x80),
            }
            if kind > 6 {
                bhs[20..24].fill(0xff);
            }
            let bhs = Bhs::of(&bhs);
            let _ = login.pdu_len(bhs);
            let mut outcome = login.receive(&server, bhs, &text);
            if matches!(outcome.next, Next::CreateSession) {
                prop_assert!(login.result().is_some());
                outcome = login.session_created(Ok(Tsih(1)));
            }
            if let Some(response) = &outcome.response {
                prop_assert_eq!(Bhs::of(&response.bhs).data_len() as usize, response.data.len());
                prop_assert!(response.data.len() <= 1_048_576);
            }
            if !matches!(outcome.next, Next::Continue) {
                break;
            }
        }
    }
}
