//! FORMAT UNIT: its parameter list, and how far a running one is.
//!
//! C source: `vdisk_exec_format_unit` of `scst/src/dev_handlers/scst_vdisk.c`

use super::reply::Fault;
use crate::cdb::bytes::u8_at;
use crate::sense;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const FMTDATA: u8 = 0x10;
const LONGLIST: u8 = 0x20;
/// Lengths of the short and the long parameter list header.
const SHORT_HEADER: usize = 4;
const LONG_HEADER: usize = 8;
/// IMMED and IP (initialization pattern), in byte 1 of the header.
const IMMED: u8 = 0x02;
const IP: u8 = 0x08;

/// What a FORMAT UNIT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FormatRequest {
    /// Nothing: its parameter list is empty.
    Nothing,
    /// Format; answer at the end, or at once.
    Format {
        /// Answer at once.
        immed: bool,
    },
}

/// Reads the CDB and the parameter list for a device without protection information. `list` is what has been sent of it.
///
/// # Errors
/// INVALID FIELD IN CDB: protection information is asked for. INVALID FIELD IN PARAMETER LIST, PARAMETER LIST LENGTH ERROR.
pub(super) fn parse(cdb: &[u8], list: &[u8]) -> Result<FormatRequest, Fault> {
    let flags = u8_at(cdb, 1);
    let pinfo = flags >> 6;
    if flags & FMTDATA == 0 {
        // Protection information is told by the parameter list only.
        return if pinfo == 0 {
            Ok(FormatRequest::Format { immed: false })
        } else {
            Err(Fault::cdb(1, Some(6)))
        };
    }
    if list.is_empty() {
        return Ok(FormatRequest::Nothing);
    }
    if list.len() < SHORT_HEADER {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    let options = u8_at(list, 1);
    if options & IP != 0 {
        return Err(Fault::parms(1, Some(3)));
    }
    if flags & LONGLIST != 0 {
        if list.len() < LONG_HEADER {
            return Err(Fault::cdb(1, Some(5)));
        }
        // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT
        if u8_at(list, 3) != 0 {
            return Err(Fault::parms(3, Some(4)));
        }
    }
    match (pinfo, u8_at(list, 0) & 7) {
        (0, 0) => Ok(FormatRequest::Format {
            immed: options & IMMED != 0,
        }),
        // Protection types 1, 2 and 3: not what the device has.
        (2, 0) | (3, 0 | 1) => Err(Fault::cdb(1, Some(6))),
        _ => Err(Fault::parms(0, Some(0))),
    }
}

/// A format that may be running.
#[derive(Debug, Default)]
pub(super) struct FormatState {
    #[doc(alias = "format_active")]
    active: AtomicBool,
    #[doc(alias = "format_progress_done")]
    done: AtomicU64,
    #[doc(alias = "format_progress_to_do")]
    total: AtomicU64,
}

impl FormatState {
    /// Whether one is running: then most commands are refused. Context: any.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Begins one of `total` bytes; it ends when what this gives is dropped.
    pub(super) fn begin(&self, total: u64) -> FormatGuard<'_> {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.active.store(true, Ordering::Release);
        FormatGuard(self)
    }

    /// How much is done, in 65536ths; `None` when none is running. Context: any.
    pub(super) fn progress(&self) -> Option<u16> {
        if !self.is_active() {
            return None;
        }
        let total = u128::from(self.total.load(Ordering::Relaxed).max(1));
        let done = u128::from(self.done.load(Ordering::Relaxed));
        let part = done.saturating_mul(1 << 16).checked_div(total).unwrap_or(0);
        Some(u16::try_from(part).unwrap_or(u16::MAX))
    }
}

/// A running format.
#[derive(Debug)]
pub(super) struct FormatGuard<'a>(&'a FormatState);

impl FormatGuard<'_> {
    /// So many bytes are done.
    pub(super) fn set_done(&self, done: u64) {
        self.0.done.store(done, Ordering::Relaxed);
    }
}

impl Drop for FormatGuard<'_> {
    fn drop(&mut self) {
        self.0.active.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameter_lists() {
        let go = |immed| Ok(FormatRequest::Format { immed });
        type Row<'a> = (&'a [u8], &'a [u8], Result<FormatRequest, Fault>);
        let rows: &[Row<'_>] = &[
            (&[4, 0, 0, 0, 0, 0], &[], go(false)),
            (&[4, 0x80, 0, 0, 0, 0], &[], Err(Fault::cdb(1, Some(6)))),
            (&[4, 0x10, 0, 0, 0, 0], &[], Ok(FormatRequest::Nothing)),
            (
                &[4, 0x10, 0, 0, 0, 0],
                &[0; 3],
                Err(sense::PARAMETER_LIST_LENGTH_INVALID.into()),
            ),
            (&[4, 0x10, 0, 0, 0, 0], &[0; 4], go(false)),
            (&[4, 0x10, 0, 0, 0, 0], &[0, 2, 0, 0], go(true)),
            (
                &[4, 0x10, 0, 0, 0, 0],
                &[0, 8, 0, 0],
                Err(Fault::parms(1, Some(3))),
            ),
            (&[4, 0x30, 0, 0, 0, 0], &[0; 4], Err(Fault::cdb(1, Some(5)))),
            (&[4, 0x30, 0, 0, 0, 0], &[0, 2, 0, 0, 0, 0, 0, 0], go(true)),
            (
                &[4, 0x30, 0, 0, 0, 0],
                &[0, 0, 0, 1, 0, 0, 0, 0],
                Err(Fault::parms(3, Some(4))),
            ),
            (
                &[4, 0x10, 0, 0, 0, 0],
                &[1, 0, 0, 0],
                Err(Fault::parms(0, Some(0))),
            ),
            (
                &[4, 0x50, 0, 0, 0, 0],
                &[0; 4],
                Err(Fault::parms(0, Some(0))),
            ),
            (&[4, 0x90, 0, 0, 0, 0], &[0; 4], Err(Fault::cdb(1, Some(6)))),
            (
                &[4, 0xD0, 0, 0, 0, 0],
                &[1, 0, 0, 0],
                Err(Fault::cdb(1, Some(6))),
            ),
            (
                &[4, 0xD0, 0, 0, 0, 0],
                &[2, 0, 0, 0],
                Err(Fault::parms(0, Some(0))),
            ),
        ];
        for (cdb, list, want) in rows {
            assert_eq!(parse(cdb, list), *want, "{cdb:02x?} {list:02x?}");
        }
    }

    #[test]
    fn progress_is_in_65536ths() {
        let f = FormatState::default();
        assert_eq!(f.progress(), None);
        {
            let run = f.begin(1 << 40);
            assert_eq!(f.progress(), Some(0));
            run.set_done(1 << 39);
            assert_eq!(f.progress(), Some(0x8000));
            run.set_done(1 << 40);
            assert_eq!(f.progress(), Some(u16::MAX));
        }
        assert!(!f.is_active());
        let _run = f.begin(0);
        assert_eq!(f.progress(), Some(0));
    }

    proptest! {
        #[test]
        fn any_list_is_survived(cdb in proptest::collection::vec(any::<u8>(), 0..6),
                                list in proptest::collection::vec(any::<u8>(), 0..16)) {
            let _ = parse(&cdb, &list);
        }
    }
}
