//! What a handler's status means for a bio and for a SCSI command.

use std::ffi::c_int;

use kshim::block::ScsiOutcome;
use kshim::prelude::*;

use super::abi;

/// A sense buffer of a command.
pub(super) type SenseBuf = [u8; abi::TCMU_SENSE_LEN as usize];

/// SAM-5 table 41.
const BUSY: u8 = 0x08;
const TASK_SET_FULL: u8 = 0x28;

/// Puts key and additional codes into fixed-format sense data, and leaves its information fields as they are.
pub(super) fn put_sense(buf: &mut SenseBuf, key: u8, asc_ascq: u16) {
    let [asc, ascq] = asc_ascq.to_be_bytes();
    buf[0] |= 0x70;
    buf[2] = key;
    buf[7] = 10;
    buf[12] = asc;
    buf[13] = ascq;
}

/// How a bio ends.
///
/// # Errors
///
/// `EAGAIN`, `ENOMEM`: busy, try again. `EIO`: the medium failed. `EREMOTEIO`: the device failed, or it said something
/// that makes no sense. `ENOLINK`: another server has the device. Others: what the handler does not take.
pub(super) fn to_result(sts: c_int) -> Result {
    match sts {
        abi::TCMU_STS_OK => Ok(()),
        abi::TCMU_STS_NO_RESOURCE => Err(ENOMEM),
        abi::TCMU_STS_BUSY | abi::TCMU_STS_TIMEOUT | abi::TCMU_STS_TRANSITION => Err(EAGAIN),
        abi::TCMU_STS_WR_ERR | abi::TCMU_STS_RD_ERR => Err(EIO),
        abi::TCMU_STS_MISCOMPARE => Err(EILSEQ),
        abi::TCMU_STS_RANGE => Err(ENXIO),
        abi::TCMU_STS_FENCED => Err(ENOLINK),
        abi::TCMU_STS_NOT_HANDLED | abi::TCMU_STS_INVALID_CMD => Err(EOPNOTSUPP),
        abi::TCMU_STS_INVALID_CDB
        | abi::TCMU_STS_INVALID_PARAM_LIST
        | abi::TCMU_STS_INVALID_PARAM_LIST_LEN => Err(EINVAL),
        _ => Err(EREMOTEIO),
    }
}

/// Whether a handler's own sense data says that medium or device failed; none at all says that, too.
pub(super) fn tells_failure(buf: &SenseBuf) -> bool {
    own_sense(buf).is_none_or(|_| {
        let key = if buf[0] & 2 == 0 { buf[2] } else { buf[1] };
        matches!(key & 0xF, 0x3 | 0x4)
    })
}

/// Whether the number is a status at all.
pub(super) fn is_known(sts: c_int) -> bool {
    (abi::TCMU_STS_ASYNC_HANDLED..=abi::TCMU_STS_TOO_MANY_TGT_DESC).contains(&sts)
}

/// Sense key and additional codes of a status.
fn codes(sts: c_int) -> (u8, u16) {
    match sts {
        abi::TCMU_STS_WR_ERR => (0x3, 0x0C00),
        abi::TCMU_STS_RD_ERR => (0x3, 0x1100),
        abi::TCMU_STS_MISCOMPARE => (0xE, 0x1D00),
        abi::TCMU_STS_NOT_HANDLED | abi::TCMU_STS_INVALID_CMD => (0x5, 0x2000),
        abi::TCMU_STS_INVALID_CDB => (0x5, 0x2400),
        abi::TCMU_STS_INVALID_PARAM_LIST => (0x5, 0x2600),
        abi::TCMU_STS_INVALID_PARAM_LIST_LEN => (0x5, 0x1A00),
        abi::TCMU_STS_FENCED => (0x2, 0x040B),
        abi::TCMU_STS_RANGE => (0x5, 0x2100),
        abi::TCMU_STS_FRMT_IN_PROGRESS => (0x2, 0x0404),
        abi::TCMU_STS_CAPACITY_CHANGED => (0x6, 0x2A09),
        abi::TCMU_STS_NOTSUPP_SAVE_PARAMS => (0x5, 0x3900),
        abi::TCMU_STS_WR_ERR_INCOMPAT_FRMT => (0x5, 0x3005),
        abi::TCMU_STS_TRANSITION => (0x2, 0x040A),
        abi::TCMU_STS_IMPL_TRANSITION_ERR => (0x6, 0x2A07),
        abi::TCMU_STS_EXPL_TRANSITION_ERR => (0x4, 0x670A),
        abi::TCMU_STS_NOTSUPP_SEG_DESC_TYPE => (0x5, 0x2609),
        abi::TCMU_STS_NOTSUPP_TGT_DESC_TYPE => (0x5, 0x2607),
        abi::TCMU_STS_CP_TGT_DEV_NOTCONN => (0xA, 0x0D02),
        abi::TCMU_STS_INVALID_CP_TGT_DEV_TYPE => (0xA, 0x0D03),
        abi::TCMU_STS_TOO_MANY_SEG_DESC => (0x5, 0x2608),
        abi::TCMU_STS_TOO_MANY_TGT_DESC => (0x5, 0x2606),
        _ => (0x4, 0x4400),
    }
}

/// The sense data of a buffer that the handler has filled, as long as it says; `None`: it is no sense data.
fn own_sense(buf: &SenseBuf) -> Option<Vec<u8>> {
    if !matches!(buf[0] & 0x7F, 0x70..=0x73) {
        return None;
    }
    let len = (8 + usize::from(buf[7])).clamp(18, buf.len());
    buf.get(..len).map(<[u8]>::to_vec)
}

/// CHECK CONDITION with this sense.
pub(super) fn sense(key: u8, asc_ascq: u16) -> ScsiOutcome {
    let mut buf = [0; abi::TCMU_SENSE_LEN as usize];
    put_sense(&mut buf, key, asc_ascq);
    ScsiOutcome::Sense(buf[..18].to_vec())
}

/// How a SCSI command ends, with what the handler left in its sense buffer.
pub(super) fn to_outcome(sts: c_int, buf: &SenseBuf) -> ScsiOutcome {
    match sts {
        abi::TCMU_STS_OK => ScsiOutcome::Good,
        abi::TCMU_STS_NO_RESOURCE => ScsiOutcome::Status(TASK_SET_FULL),
        abi::TCMU_STS_BUSY | abi::TCMU_STS_TIMEOUT => ScsiOutcome::Status(BUSY),
        abi::TCMU_STS_PASSTHROUGH_ERR => match own_sense(buf) {
            Some(s) => ScsiOutcome::Sense(s),
            None => sense(0x4, 0x4400),
        },
        // These keep what the handler said about where, or how far.
        abi::TCMU_STS_MISCOMPARE | abi::TCMU_STS_FRMT_IN_PROGRESS => {
            let (key, asc_ascq) = codes(sts);
            let mut buf = *buf;
            put_sense(&mut buf, key, asc_ascq);
            ScsiOutcome::Sense(buf[..18].to_vec())
        }
        _ => {
            let (key, asc_ascq) = codes(sts);
            sense(key, asc_ascq)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_meaning() {
        for sts in -3..40 {
            let good = sts == abi::TCMU_STS_OK;
            assert_eq!(to_result(sts).is_ok(), good, "{sts}");
            assert_eq!(
                to_outcome(sts, &[0; 96]) == ScsiOutcome::Good,
                good,
                "{sts}"
            );
            assert_eq!(is_known(sts), (-2..=28).contains(&sts));
        }
        assert_eq!(to_result(i32::MIN), Err(EREMOTEIO));
        assert_eq!(to_outcome(0x1234, &[0; 96]), sense(4, 0x4400));
    }

    #[test]
    fn failures_in_a_handlers_own_words() {
        let mut buf = [0; 96];
        assert!(tells_failure(&buf));
        for (key, failure) in [(3, true), (4, true), (5, false), (2, false)] {
            put_sense(&mut buf, key, 0x0C00);
            assert_eq!(tells_failure(&buf), failure);
            let mut descriptors = [0; 96];
            (descriptors[0], descriptors[1]) = (0x72, key);
            assert_eq!(tells_failure(&descriptors), failure);
        }
    }

    #[test]
    fn the_handlers_own_sense_is_passed_on() {
        let mut buf = [0; 96];
        put_sense(&mut buf, 5, 0x2106);
        let ScsiOutcome::Sense(s) = to_outcome(abi::TCMU_STS_PASSTHROUGH_ERR, &buf) else {
            panic!("no sense");
        };
        assert_eq!((s.len(), s[2], s[12], s[13]), (18, 5, 0x21, 6));
        let garbage = [0xFF; 96];
        assert_eq!(to_outcome(2, &garbage), sense(4, 0x4400));
        buf = [0; 96];
        buf[0] = 0x80;
        buf[6] = 9;
        let ScsiOutcome::Sense(s) = to_outcome(abi::TCMU_STS_MISCOMPARE, &buf) else {
            panic!("no sense");
        };
        assert_eq!((s[0], s[2], s[6], s[12]), (0xF0, 0xE, 9, 0x1D));
    }
}
