//! The PDU parsers on their own.

use iscsi_scst::pdu::ahs::{MAX_CDB_LEN, ScsiCmdAhs};
use iscsi_scst::pdu::{BHS_LEN, Bhs, Digests, Request};

/// Walks a stream of PDUs as a connection does. The first byte says which digests there are.
///
/// # Panics
///
/// If a parser contradicts itself.
pub fn pdus(data: &[u8]) {
    let Some((mode, mut stream)) = data.split_first() else {
        return;
    };
    let digests = Digests {
        header: mode & 1 != 0,
        data: mode & 2 != 0,
    };
    while let Some((bhs, _)) = Bhs::split(stream) {
        let Some(layout) = bhs.layout(digests) else {
            return;
        };
        assert!(layout.data_at >= BHS_LEN + bhs.ahs_len());
        assert!(layout.total >= layout.data_at + layout.data_len + layout.pad_len);
        let at = BHS_LEN + bhs.ahs_len();
        if let (Request::ScsiCmd(hdr), Some(ahs)) = (bhs.request(), stream.get(BHS_LEN..at)) {
            command(hdr, ahs);
        }
        touch(bhs);
        let Some(rest) = stream.get(layout.total..) else {
            return;
        };
        stream = rest;
    }
}

fn command(hdr: &iscsi_scst::pdu::hdr::ScsiCmdHdr, ahs: &[u8]) {
    if let Ok(parsed) = ScsiCmdAhs::parse(ahs) {
        let mut cdb = [0; MAX_CDB_LEN];
        let cdb = parsed.whole_cdb(hdr, &mut cdb);
        assert!((16..=MAX_CDB_LEN).contains(&cdb.len()));
        assert!(cdb.starts_with(&hdr.cdb));
    }
    let _ = (hdr.attr(), hdr.is_read(), hdr.is_write(), hdr.is_final());
}

/// Reads every field of a request that means something.
fn touch(bhs: &Bhs) {
    match bhs.request() {
        Request::Login(hdr) => {
            let flags = hdr.login_flags();
            let _ = (flags.current(), flags.next(), flags.transit());
        }
        Request::TaskMgt(hdr) => {
            let _ = (hdr.function(), hdr.referenced_task_tag(), hdr.ref_cmd_sn());
        }
        Request::NopOut(hdr) => {
            let _ = (hdr.wants_answer(), hdr.answers());
        }
        Request::Logout(hdr) => {
            let _ = hdr.reason();
        }
        Request::Text(hdr) => {
            let _ = hdr.resumes();
        }
        _ => {}
    }
}
