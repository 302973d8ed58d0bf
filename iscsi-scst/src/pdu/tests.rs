use super::hdr::*;
use super::*;
use proptest::prelude::*;

#[test]
fn requests_are_told_apart_by_the_low_six_bits() {
    let of = |opcode: u8| {
        let mut bytes = [0u8; BHS_LEN];
        bytes[0] = opcode;
        format!("{:?}", Bhs::of(&bytes).request())
            .split('(')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    for (opcode, name) in [
        (0x00, "NopOut"),
        (0x40, "NopOut"),
        (0x01, "ScsiCmd"),
        (0xc1, "ScsiCmd"),
        (0x42, "TaskMgt"),
        (0x43, "Login"),
        (0x04, "Text"),
        (0x05, "DataOut"),
        (0x06, "Logout"),
        (0x10, "Snack"),
        (0x0b, "Unknown"),
        (0x21, "Unknown"),
        (0x3f, "Unknown"),
    ] {
        assert_eq!(of(opcode), name, "{opcode:#x}");
    }
}

#[test]
fn fields_lie_where_the_rfc_draws_them() {
    let mut cmd = ScsiCmdHdr::new();
    cmd.flags |= ScsiCmdHdr::FLAG_WRITE | 3;
    cmd.lun = [0, 5, 0, 0, 0, 0, 0, 0];
    cmd.itt = Itt(0x0102_0304).into();
    cmd.expected_data_transfer_length = 4096.into();
    cmd.cmd_sn = CmdSn(0x1111_1111).into();
    cmd.exp_stat_sn = StatSn(0x2222_2222).into();
    cmd.cdb[0] = 0x2a;
    cmd.set_data_len(0x01_0203);
    let mut wire = [0xffu8; BHS_LEN];
    cmd.encode(&mut wire);
    assert_eq!(wire[..8], [0x01, 0xa3, 0, 0, 0, 1, 2, 3]);
    assert_eq!(wire[8..20], [0, 5, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!(wire[20..24], [0, 0, 0x10, 0]);
    assert_eq!(wire[32..34], [0x2a, 0]);
    let bhs = Bhs::of(&wire);
    assert_eq!(bhs.cmd_sn(), CmdSn(0x1111_1111));
    assert_eq!(bhs.exp_stat_sn(), StatSn(0x2222_2222));
    assert_eq!(bhs.data_len(), 0x01_0203);
    let Request::ScsiCmd(view) = bhs.request() else {
        panic!("{bhs:?}")
    };
    assert_eq!(view.attr(), Some(TaskAttr::HeadOfQueue));
    assert!(view.is_write() && !view.is_read() && view.is_final());

    let mut rsp = LoginRspHdr::new();
    rsp.set_status(LoginStatus::SessionDoesNotExist);
    rsp.set_sns(StatSn(1), CmdSn(2), CmdSn(3));
    rsp.encode(&mut wire);
    assert_eq!(wire[24..38], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 2, 10]);

    let mut reject = RejectHdr::for_reason(RejectReason::CommandNotSupported);
    reject.set_sns(StatSn(9), CmdSn(2), CmdSn(3));
    reject.encode(&mut wire);
    assert_eq!(wire[..8], [0x3f, 0, 5, 0, 0, 0, 0, 48]);
    assert_eq!(wire[16..20], [0xff; 4]);

    let mut logout = LogoutRspHdr::new();
    logout.set_response(LogoutResponse::CidNotFound);
    logout.time2wait = 7.into();
    logout.encode(&mut wire);
    assert_eq!(wire[..4], [0x26, 0x80, 1, 0]);
    assert_eq!(wire[40..44], [0, 7, 0, 0]);
}

#[test]
fn prescribed_values_are_set() {
    assert_eq!(R2tHdr::new().flags, 0x80);
    assert_eq!(Itt::from(NopInHdr::new().itt), Itt::RESERVED);
    assert_eq!(Ttt::from(DataInHdr::new().ttt), Ttt::RESERVED);
    assert_eq!(DataInHdr::new().flags, 0);
    assert_eq!(Itt::from(AsyncMsgHdr::new().itt), Itt::RESERVED);
    assert_eq!(ScsiRspHdr::new().flags, 0x80);
    assert_eq!(
        RejectHdr::for_login(RejectReason::ProtocolError).flags,
        0x80
    );
}

#[test]
fn layout_counts_every_part() {
    let mut cmd = ScsiCmdHdr::new();
    cmd.total_ahs_len = 2;
    cmd.set_data_len(5);
    let both = Digests {
        header: true,
        data: true,
    };
    let layout = cmd.as_bhs().layout(both).unwrap();
    assert_eq!(
        layout,
        PduLayout {
            ahs_len: 8,
            data_at: 60,
            data_len: 5,
            pad_len: 3,
            data_digest_at: 68,
            total: 72
        }
    );
    cmd.set_data_len(0);
    assert_eq!(cmd.as_bhs().layout(both).unwrap().total, 60);
    let largest = Bhs::of(&[0xff; BHS_LEN]).layout(both).unwrap();
    assert_eq!(largest.total, 48 + MAX_AHS_LEN + 4 + 0xff_ffff + 1 + 4);
}

#[test]
fn login_flags_name_the_stages() {
    let flags = LoginFlags::stages(LoginStage::Operational, Some(LoginStage::FullFeature));
    assert_eq!(flags.0, 0x87);
    assert_eq!(flags.current(), Some(LoginStage::Operational));
    assert_eq!(flags.next(), Some(LoginStage::FullFeature));
    assert!(flags.transit() && !flags.continues());
    assert_eq!(LoginFlags(0x08).current(), None);
    assert_eq!(LoginFlags::stages(LoginStage::Security, None).0, 0);
}

#[test]
fn codes_survive_the_round_trip() {
    for code in 0..=u8::MAX {
        if let Some(reason) = RejectReason::from_code(code) {
            assert_eq!(reason.code(), code);
        }
        if let Some(function) = TmfFunction::from_code(code) {
            assert_eq!(function.code(), code);
        }
        if let Some(response) = TmfResponse::from_code(code) {
            assert_eq!(response.code(), code);
        }
    }
    assert_eq!(RejectReason::from_code(1), None);
    assert_eq!(
        TmfResponse::from_code(255),
        Some(TmfResponse::FunctionRejected)
    );
    assert_eq!(TaskAttr::from_code(5), None);
}

fn round_trip<H: Header + PartialEq + std::fmt::Debug>(bytes: &[u8; BHS_LEN]) {
    let header = *H::of(Bhs::of(bytes));
    let mut wire = [0u8; BHS_LEN];
    header.encode(&mut wire);
    assert_eq!(&wire, bytes);
    assert_eq!(header.data_len(), Bhs::of(bytes).data_len());
}

proptest! {
    #[test]
    fn every_header_is_its_bytes(bytes in proptest::array::uniform32(any::<u8>()), tail: [u8; 16]) {
        let mut bhs = [0u8; BHS_LEN];
        bhs[..32].copy_from_slice(&bytes);
        bhs[32..].copy_from_slice(&tail);
        round_trip::<AsyncMsgHdr>(&bhs);
        round_trip::<DataInHdr>(&bhs);
        round_trip::<DataOutHdr>(&bhs);
        round_trip::<LoginReqHdr>(&bhs);
        round_trip::<LoginRspHdr>(&bhs);
        round_trip::<LogoutReqHdr>(&bhs);
        round_trip::<LogoutRspHdr>(&bhs);
        round_trip::<NopInHdr>(&bhs);
        round_trip::<NopOutHdr>(&bhs);
        round_trip::<R2tHdr>(&bhs);
        round_trip::<RejectHdr>(&bhs);
        round_trip::<ScsiCmdHdr>(&bhs);
        round_trip::<ScsiRspHdr>(&bhs);
        round_trip::<SnackHdr>(&bhs);
        round_trip::<TaskMgtHdr>(&bhs);
        round_trip::<TaskMgtRspHdr>(&bhs);
        round_trip::<TextReqHdr>(&bhs);
        round_trip::<TextRspHdr>(&bhs);
    }

    #[test]
    fn random_headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..96), header: bool, data: bool) {
        if let Some((bhs, rest)) = Bhs::split(&bytes) {
            prop_assert_eq!(rest.len() + BHS_LEN, bytes.len());
            let _ = format!("{:?} {:?}", bhs, bhs.request());
            let layout = bhs.layout(Digests { header, data }).unwrap();
            prop_assert!(layout.total % 4 == 0 && layout.data_at <= layout.data_digest_at && layout.data_digest_at <= layout.total);
        } else {
            prop_assert!(bytes.len() < BHS_LEN);
        }
    }
}
