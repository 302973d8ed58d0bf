//! Small commands that SCST does not have: READ DEFECT DATA, REPORT and SET TIMESTAMP, READ and WRITE BUFFER.

use super::reply::{Fault, Reply};
use crate::cdb::bytes::{be16_at, be24_at, be32_at, u8_at};
use crate::cdb::opcodes as op;
use crate::sense;
use crate::tgt_dev::TgtDev;
use kshim::time::ktime_get_real_ns;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

/// READ DEFECT DATA (SBC-3 5.17): there are no defects, in whatever list and format was asked for.
pub(super) fn read_defect_data(cdb: &[u8], out: &mut Reply) {
    // REQ_PLIST, REQ_GLIST and the format become PLISTV, GLISTV and the format.
    let (at, len) = if u8_at(cdb, 0) == op::READ_DEFECT_DATA_10 {
        (2, 4)
    } else {
        (1, 8)
    };
    out.put8(1, u8_at(cdb, at) & 0x1F);
    out.set_len(len);
}

/// Nanoseconds in a millisecond, the unit of time stamps.
const NSEC_PER_MSEC: i64 = 1_000_000;
/// Length of both parameter data.
const TIMESTAMP_LEN: usize = 12;
/// TIMESTAMP ORIGIN: set by SET TIMESTAMP; set by other means.
const ORIGIN_SET: u8 = 2;
const ORIGIN_OTHER: u8 = 3;

/// The clock of a device: the host's until an initiator sets it.
#[derive(Debug)]
pub(super) struct DeviceClock {
    /// What to add to the host's milliseconds.
    offset_ms: AtomicI64,
    origin: AtomicU8,
}

impl Default for DeviceClock {
    fn default() -> Self {
        Self {
            offset_ms: AtomicI64::new(0),
            origin: AtomicU8::new(ORIGIN_OTHER),
        }
    }
}

impl DeviceClock {
    fn host_ms() -> i64 {
        ktime_get_real_ns().checked_div(NSEC_PER_MSEC).unwrap_or(0)
    }

    /// REPORT TIMESTAMP (SPC-4 6.39).
    pub(super) fn report(&self, out: &mut Reply) {
        let ms = Self::host_ms().saturating_add(self.offset_ms.load(Ordering::Relaxed));
        let [_, _, stamp @ ..] = u64::try_from(ms).unwrap_or(0).to_be_bytes();
        out.put16(0, 10);
        out.put8(2, self.origin.load(Ordering::Relaxed));
        out.put(4, &stamp);
        out.set_len(TIMESTAMP_LEN);
    }

    /// SET TIMESTAMP (SPC-4 6.46). Answers whether it was set: an empty list is no error.
    ///
    /// # Errors
    /// PARAMETER LIST LENGTH ERROR: the list is cut off.
    pub(super) fn set(&self, list: &[u8]) -> Result<bool, Fault> {
        if list.is_empty() {
            return Ok(false);
        }
        if list.len() < TIMESTAMP_LEN {
            return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
        }
        let ms = u64::from(be16_at(list, 4)) << 32 | u64::from(be32_at(list, 6));
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        self.offset_ms
            .store(ms.saturating_sub(Self::host_ms()), Ordering::Relaxed);
        self.origin.store(ORIGIN_SET, Ordering::Relaxed);
        Ok(true)
    }
}

/// Bytes of an echo buffer.
const ECHO_LEN: u16 = 4096;
const MODE: u8 = 0x1F;
const MODE_DESCRIPTOR: u8 = 0x03;
const MODE_ECHO: u8 = 0x0A;
const MODE_ECHO_DESCRIPTOR: u8 = 0x0B;

/// What a nexus has last written to its echo buffer.
struct Echo(Vec<u8>);

/// WRITE BUFFER (SPC-4 6.50), echo mode. The buffer goes with the nexus.
///
/// # Errors
/// INVALID FIELD IN CDB: another mode, or more data than the buffer holds.
pub(super) fn write_echo(nexus: &TgtDev, cdb: &[u8], data: Vec<u8>) -> Result<(), Fault> {
    if u8_at(cdb, 1) & MODE != MODE_ECHO {
        return Err(Fault::cdb(1, Some(0)));
    }
    if be24_at(cdb, 6) > u32::from(ECHO_LEN) {
        return Err(Fault::cdb(6, None));
    }
    let old = nexus.dh_priv.lock().replace(Box::new(Echo(data)));
    drop(old);
    Ok(())
}

/// READ BUFFER (SPC-4 6.15): what the nexus has last written, or the descriptors of its echo buffer and of buffer
/// 0 (there is none).
///
/// # Errors
/// INVALID FIELD IN CDB: another mode. COMMAND SEQUENCE ERROR: nothing has been written.
pub(super) fn read_echo(nexus: &TgtDev, cdb: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    out.clear();
    match u8_at(cdb, 1) & MODE {
        MODE_DESCRIPTOR => out.extend_from_slice(&[0; 4]),
        MODE_ECHO_DESCRIPTOR => {
            let [hi, lo] = ECHO_LEN.to_be_bytes();
            out.extend_from_slice(&[0, 0, hi, lo]);
        }
        MODE_ECHO => {
            let held = nexus.dh_priv.lock();
            let echo = held.as_ref().and_then(|p| p.downcast_ref::<Echo>());
            let Echo(data) = echo.ok_or(sense::COMMAND_SEQUENCE_ERROR)?;
            out.extend_from_slice(data);
        }
        _ => return Err(Fault::cdb(1, Some(0))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_defects() {
        let mut out = Reply::new();
        read_defect_data(&[0x37, 0, 0x1D, 0, 0, 0, 0, 0, 8, 0], &mut out);
        assert_eq!(out.as_slice(), [0, 0x1D, 0, 0]);
        let mut out = Reply::new();
        read_defect_data(&[0xB7, 0x0D, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0], &mut out);
        assert_eq!(out.as_slice(), [0, 0x0D, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_clock_can_be_set() {
        let clock = DeviceClock::default();
        let read = || {
            let mut out = Reply::new();
            clock.report(&mut out);
            let b = out.as_slice();
            assert_eq!((b.len(), b[1]), (12, 10));
            (
                b[2],
                u64::from(be32_at(b, 4)) << 16 | u64::from(be16_at(b, 8)),
            )
        };
        let (origin, now) = read();
        assert_eq!(origin, 3);
        assert!(now > 1_600_000_000_000, "{now}");
        assert_eq!(clock.set(&[]), Ok(false));
        assert_eq!(
            clock.set(&[0; 11]),
            Err(sense::PARAMETER_LIST_LENGTH_INVALID.into())
        );
        assert_eq!(clock.set(&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Ok(true));
        let (origin, now) = read();
        assert_eq!(origin, 2);
        assert!((0x1_0000..0x1_0000 + 60_000).contains(&now), "{now}");
    }
}
