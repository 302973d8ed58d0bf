//! Which commands a port group in a state that is not active lets through.
//!
//! C source: `scst_tg_accept_standby`, `scst_tg_accept_unav`, `scst_tg_accept_transitioning` of `scst/src/scst_tg.c`

use super::TgState;
use crate::cdb::bytes::u8_at;
use crate::cdb::opcodes as op;
use crate::sense::{self, Sense};

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is executed.
    Go,
    /// It ends with this sense.
    Fail(Sense),
    /// It is tried again in a while; the second time it ends with this sense.
    Delay(Sense),
}

/// Asks the filter of a nexus ([`TgState::filter`], not 0). Context: any.
#[cold]
pub(crate) fn check(filter: u8, cdb: &[u8]) -> Verdict {
    const STANDBY: u8 = TgState::Standby as u8;
    const TRANSITIONING: u8 = TgState::Transitioning as u8;
    let always = allowed_unavailable(cdb);
    match filter {
        0 => Verdict::Go,
        STANDBY if always || is_set(cdb) || allowed_standby(cdb) => Verdict::Go,
        STANDBY => Verdict::Fail(sense::ALUA_STANDBY),
        TRANSITIONING if always => Verdict::Go,
        TRANSITIONING => Verdict::Delay(sense::ALUA_TRANSITIONING),
        _ if always || is_set(cdb) => Verdict::Go,
        _ => Verdict::Fail(sense::ALUA_UNAV),
    }
}

fn service_action(cdb: &[u8]) -> u8 {
    u8_at(cdb, 1) & 0x1F
}

fn is_set(cdb: &[u8]) -> bool {
    u8_at(cdb, 0) == op::MAINTENANCE_OUT && service_action(cdb) == op::MO_SET_TARGET_PGS
}

/// Allowed in every state.
fn allowed_unavailable(cdb: &[u8]) -> bool {
    match u8_at(cdb, 0) {
        op::INQUIRY
        | op::READ_CAPACITY
        | op::REPORT_LUNS
        | op::REQUEST_SENSE
        | op::READ_BUFFER
        | op::WRITE_BUFFER => true,
        op::SERVICE_ACTION_IN_16 => service_action(cdb) == op::SAI_READ_CAPACITY_16,
        op::MAINTENANCE_IN => service_action(cdb) == op::MI_REPORT_TARGET_PGS,
        _ => false,
    }
}

/// Allowed in standby besides.
fn allowed_standby(cdb: &[u8]) -> bool {
    matches!(
        u8_at(cdb, 0),
        op::MODE_SENSE
            | op::MODE_SENSE_10
            | op::MODE_SELECT
            | op::MODE_SELECT_10
            | op::RESERVE_6
            | op::RESERVE_10
            | op::RELEASE_6
            | op::RELEASE_10
            | op::LOG_SELECT
            | op::LOG_SENSE
            | op::RECEIVE_DIAGNOSTIC
            | op::SEND_DIAGNOSTIC
            | op::PERSISTENT_RESERVE_IN
            | op::PERSISTENT_RESERVE_OUT
    )
}
