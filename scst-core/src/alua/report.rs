//! REPORT TARGET PORT GROUPS (SPC-4 6.37).
//!
//! C source: `scst_report_tpgs` of `scst/src/scst_local_cmd.c`, `scst_tg_get_group_info` of `scst/src/scst_tg.c`

use super::{DgView, TgState, TgView};
use crate::cmd::Cmd;
use crate::sense;
use std::sync::atomic::Ordering;

/// PREF.
const PREFERRED: u8 = 0x80;
/// Supported states: all but LBA dependent.
const SUPPORTED_STATES: u8 = 0xCF;
/// STATUS CODE: altered implicitly. SCST says so whatever happened.
const STATUS_IMPLICIT: u8 = 2;
/// Extended header: RETURN DATA FORMAT 1, no IMPLICIT TRANSITION TIME.
const EXTENDED_HEADER: [u8; 4] = [0x10, 0, 0, 0];

/// REPORT TARGET PORT GROUPS. Context: any.
pub(crate) fn exec_report(cmd: &mut Cmd) {
    if cmd.bufflen() == 0 {
        return;
    }
    let view = cmd.device().and_then(|d| d.alua.lock().clone());
    let lost = cmd.device().is_some_and(|d| d.handler().is_lost());
    match report_target_port_groups(view.as_deref(), cmd.cdb_byte(1) >> 5, lost) {
        Some(data) => cmd.fill_response(&data),
        None => cmd.set_sense(sense::INVALID_FIELD_IN_CDB),
    }
}

/// The parameter data in a format: 0, or 1 with the extended header. `None` for another one. With `lost` another host has the device:
/// what is active here is standby.
#[doc(alias = "scst_tg_get_group_info")]
pub(super) fn report_target_port_groups(
    view: Option<&DgView>,
    format: u8,
    lost: bool,
) -> Option<Vec<u8>> {
    let mut data = vec![0; 4];
    match format {
        0 => {}
        1 => data.extend_from_slice(&EXTENDED_HEADER),
        _ => return None,
    }
    for group in view.iter().flat_map(|v| &v.groups) {
        let here = group.ports.iter().any(|port| port.tgt.is_some());
        let standby = lost && here && group.state.is_active();
        let state = if standby {
            TgState::Standby
        } else {
            group.state
        };
        put_group(group, state, &mut data);
    }
    let len = u32::try_from(data.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(head) = data.first_chunk_mut::<4>() {
        *head = len.to_be_bytes();
    }
    Some(data)
}

fn put_group(group: &TgView, state: TgState, data: &mut Vec<u8>) {
    let [id_hi, id_lo] = group.id.to_be_bytes();
    let preferred = if group.preferred { PREFERRED } else { 0 };
    // The count has one byte.
    let ports = group.ports.get(..255).unwrap_or(&group.ports);
    data.extend_from_slice(&[
        preferred | state as u8,
        SUPPORTED_STATES,
        id_hi,
        id_lo,
        0,
        STATUS_IMPLICIT,
        0,
        u8::try_from(ports.len()).unwrap_or(u8::MAX),
    ]);
    for port in ports {
        let local = port.tgt.as_ref().and_then(std::sync::Weak::upgrade);
        let rel = local.map_or(port.rel_tgt_id, |t| t.rel_tgt_id.load(Ordering::Relaxed));
        let [hi, lo] = rel.to_be_bytes();
        data.extend_from_slice(&[0, 0, hi, lo]);
    }
}
