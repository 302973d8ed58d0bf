//! Commands that the core executes for every handler.
//!
//! C source: `scst/src/scst_local_cmd.c`, `scst_report_luns_local` and `scst_request_sense_local` of
//! `scst/src/scst_targ.c`

use crate::alua::{self, Begun, Stpg};
use crate::cdb::opcodes as op;
use crate::cmd::Cmd;
use crate::copy_mgr;
use crate::lun::{Lun, report_luns as lun_list_data};
use crate::pres::{self, exec::PrAbort};
use crate::reserve;
use crate::sense::{self, SenseExtra};
use crate::session::Session;
use std::sync::Arc;

use op::{INQUIRY, REPORT_LUNS, REQUEST_SENSE};

/// Smallest allocation length of REPORT LUNS (SPC-4 6.33).
const REPORT_LUNS_MIN_ALLOC: u32 = 16;
/// Longest REPORT LUNS data: header and all LUNs there can be.
const REPORT_LUNS_MAX: u32 = 8 + 8 * 0x4000;

/// What became of a command that the core may execute.
pub(crate) enum LocalRes {
    /// It is the handler's.
    NotLocal,
    /// It has its result.
    Completed,
    /// It would have to sleep: call again where it may.
    NeedThread,
    /// It has its result, and its answer has to wait for these.
    Aborts(Arc<PrAbort>),
    /// It waits until this is carried out.
    Stpg(Arc<Stpg>),
}

/// Executes the command if it is one of the core's.
#[doc(alias = "scst_do_local_exec")]
pub(crate) fn exec(cmd: &mut Cmd, may_sleep: bool) -> LocalRes {
    match cmd.cdb_byte(0) {
        REPORT_LUNS => report_luns(cmd),
        REQUEST_SENSE if !request_sense(cmd) => return LocalRes::NotLocal,
        REQUEST_SENSE => {}
        op::RESERVE_6 | op::RESERVE_10 | op::RELEASE_6 | op::RELEASE_10 => reserve::exec(cmd),
        op::PERSISTENT_RESERVE_IN => pres::exec::reserve_in(cmd),
        op::PERSISTENT_RESERVE_OUT if !may_sleep => return LocalRes::NeedThread,
        op::PERSISTENT_RESERVE_OUT => {
            if let Some(aborts) = pres::exec::reserve_out(cmd) {
                return LocalRes::Aborts(aborts);
            }
        }
        op::EXTENDED_COPY if cmd.copy.is_some() && !may_sleep => return LocalRes::NeedThread,
        op::EXTENDED_COPY => copy_mgr::exec(cmd),
        op::RECEIVE_COPY_RESULTS => copy_mgr::receive_copy_results(cmd),
        op::MAINTENANCE_IN if cmd.cdb_byte(1) & 0x1F == op::MI_REPORT_TARGET_PGS => {
            alua::exec_report(cmd);
        }
        op::MAINTENANCE_OUT if alua::is_stpg(cmd.cdb()) => {
            if !may_sleep {
                return LocalRes::NeedThread;
            }
            if let Begun::Waits(stpg) = alua::begin_stpg(cmd) {
                return LocalRes::Stpg(stpg);
            }
        }
        _ => return LocalRes::NotLocal,
    }
    LocalRes::Completed
}

/// Vendor identification of INQUIRY data for a LUN that does not exist.
#[doc(alias = "SCST_NOLUN_VENDOR")]
const NOLUN_VENDOR: &[u8; 8] = b"SCST    ";
const NOLUN_INQUIRY_LEN: u32 = 36;

/// Ends a command to a LUN that does not exist. INQUIRY, REQUEST SENSE and REPORT LUNS are answered all the same
/// (SAM-5 5.11): peripheral qualifier 011b, the sense data as data, the LUNs that do exist.
#[doc(alias = "scst_set_lun_not_supported_inquiry")]
pub(crate) fn lun_not_supported(cmd: &mut Cmd) {
    let cdb = |at| u32::from(cmd.cdb_byte(at));
    let (data, len) = match cmd.cdb_byte(0) {
        INQUIRY if cmd.cdb_byte(1) & 1 == 0 => {
            let alloc = cdb(3) << 8 | cdb(4);
            let len = if alloc == 0 {
                NOLUN_INQUIRY_LEN
            } else {
                alloc.min(NOLUN_INQUIRY_LEN)
            };
            let mut data = vec![0x7f, 0, 6, 0];
            data.push(u8::try_from(len.saturating_sub(4)).unwrap_or(0));
            data.extend_from_slice(&[0; 3]);
            data.extend_from_slice(NOLUN_VENDOR);
            data.resize(usize::try_from(NOLUN_INQUIRY_LEN).unwrap_or(0), 0);
            (data, len)
        }
        REQUEST_SENSE => {
            let alloc = cdb(4);
            let mut data = Vec::new();
            let descriptor = cmd.cdb_byte(1) & 1 != 0;
            sense::build(
                &mut data,
                descriptor,
                sense::LUN_NOT_SUPPORTED,
                SenseExtra::None,
            );
            (data, if alloc == 0 { 18 } else { alloc })
        }
        REPORT_LUNS => {
            if !matches!(cmd.cdb_byte(2), 0x00 | 0x02) {
                cmd.set_invalid_field_in_cdb(2, None);
                return;
            }
            let alloc = cdb(6) << 24 | cdb(7) << 16 | cdb(8) << 8 | cdb(9);
            let len = alloc.clamp(8, REPORT_LUNS_MAX);
            (
                lun_list(cmd.session(), usize::try_from(len).unwrap_or(8)),
                len,
            )
        }
        _ => {
            cmd.set_sense(sense::LUN_NOT_SUPPORTED);
            return;
        }
    };
    cmd.answer_with_data(&data, len);
}

/// REPORT LUNS (SPC-4 6.33): all LUNs of the session; select report 00h and 02h.
fn report_luns(cmd: &mut Cmd) {
    if !matches!(cmd.cdb_byte(2), 0x00 | 0x02) {
        cmd.set_invalid_field_in_cdb(2, None);
        return;
    }
    if cmd.bufflen() == 0 {
        return;
    }
    if cmd.bufflen() < REPORT_LUNS_MIN_ALLOC {
        cmd.set_invalid_field_in_cdb(6, None);
        return;
    }
    let data = lun_list(
        cmd.session(),
        usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX),
    );
    cmd.fill_response(&data);
    // The list is what REPORTED LUNS DATA HAS CHANGED announced, so the attention is no longer due (SPC-4 6.33).
    for t in cmd.session().tgt_devs() {
        t.ua.remove(sense::REPORTED_LUNS_DATA_CHANGED);
    }
}

fn lun_list(sess: &Session, alloc_len: usize) -> Vec<u8> {
    let luns = sess.tgt_devs();
    let luns = luns.iter().filter_map(|t| Lun::new(t.lun));
    lun_list_data(luns, sess.addr_method(), alloc_len)
}

/// REQUEST SENSE (SPC-4 6.39): a pending unit attention is the answer, in the format asked for. Without one the handler
/// answers.
fn request_sense(cmd: &mut Cmd) -> bool {
    let Some(tgt_dev) = cmd.tgt_dev().cloned() else {
        return false;
    };
    let sess = Arc::clone(cmd.session());
    let Some(ua) = sess.take_ua(&tgt_dev) else {
        return false;
    };
    let descriptor = cmd.cdb_byte(1) & 1 != 0;
    let mut data = Vec::new();
    sense::build(&mut data, descriptor, ua, SenseExtra::None);
    // Asked for explicitly, the descriptor format is given even where D_SENSE would not be followed.
    sense::convert(&mut data, descriptor);
    cmd.fill_response(&data);
    cmd.mark_ua(ua);
    true
}
