//! LOG SENSE: pages 00h, 0Ch, 0Dh, 0Fh, 19h and 2Fh. SCST has no log pages.

use super::reply::Fault;
use crate::cdb::bytes::{be16_at, u8_at};
use std::sync::atomic::{AtomicU64, Ordering};

/// Save parameters, in byte 1 of the CDB.
const SP: u8 = 0x01;
const PAGE_CODE: u8 = 0x3F;
/// Subpage code of "all subpages".
const ALL_SUBPAGES: u8 = 0xFF;
/// Subpage format, in the first byte of a page.
const SPF: u8 = 0x40;
/// FORMAT AND LINKING of the parameters: a binary list.
const BINARY_LIST: u8 = 0x03;
/// Parameters of the application client page, and bytes of each (SPC-4 7.3.3).
const APPLICATION_CLIENT_PARAMS: u16 = 64;
const APPLICATION_CLIENT_LEN: u8 = 0xFC;
/// A temperature that is not known.
const NO_TEMPERATURE: u8 = 0xFF;
/// SCOPE of a resource count: for this logical unit alone.
const SCOPE_LOGICAL_UNIT: u8 = 1;

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0C;
const TEMPERATURE: u8 = 0x0D;
const APPLICATION_CLIENT: u8 = 0x0F;
const STATISTICS: u8 = 0x19;
const EXCEPTIONS: u8 = 0x2F;

/// Number of slots that counters are spread over, so that threads seldom meet in one.
const SLOTS: usize = 8;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Slot {
    reads: AtomicU64,
    writes: AtomicU64,
    blocks_sent: AtomicU64,
    blocks_received: AtomicU64,
}

/// What the general statistics page tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    reads: u64,
    writes: u64,
    blocks_sent: u64,
    blocks_received: u64,
}

/// Counts reads and writes of a device. Context: any.
#[derive(Debug, Default)]
pub(super) struct IoCounters([Slot; SLOTS]);

impl IoCounters {
    #[inline]
    fn slot(&self) -> &Slot {
        let at = kshim::cpu::thread_index() & SLOTS.saturating_sub(1);
        let Self([first, ..]) = self;
        self.0.get(at).unwrap_or(first)
    }

    /// A read of so many blocks.
    #[inline]
    pub(super) fn read(&self, blocks: u64) {
        let s = self.slot();
        s.reads.fetch_add(1, Ordering::Relaxed);
        s.blocks_sent.fetch_add(blocks, Ordering::Relaxed);
    }

    /// A write of so many blocks.
    #[inline]
    pub(super) fn written(&self, blocks: u64) {
        let s = self.slot();
        s.writes.fetch_add(1, Ordering::Relaxed);
        s.blocks_received.fetch_add(blocks, Ordering::Relaxed);
    }

    fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for s in &self.0 {
            for (to, from) in [
                (&mut sum.reads, &s.reads),
                (&mut sum.writes, &s.writes),
                (&mut sum.blocks_sent, &s.blocks_sent),
                (&mut sum.blocks_received, &s.blocks_received),
            ] {
                *to = to.saturating_add(from.load(Ordering::Relaxed));
            }
        }
        sum
    }
}

/// What the pages tell.
pub(super) struct LogSource<'a> {
    /// Blocks for which there is storage; `None` for a device without logical block provisioning.
    pub(super) used_blocks: Option<u64>,
    /// Reads and writes.
    pub(super) counters: &'a IoCounters,
}

/// Builds LOG SENSE data (SPC-4 6.9) into `out`. The values are the same for every page control.
///
/// # Errors
/// INVALID FIELD IN CDB: parameters are to be saved; no such page or parameter.
pub(super) fn log_sense(src: &LogSource<'_>, cdb: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if u8_at(cdb, 1) & SP != 0 {
        return Err(Fault::cdb(1, Some(0)));
    }
    let (page, subpage) = (u8_at(cdb, 2) & PAGE_CODE, u8_at(cdb, 3));
    let pointer = be16_at(cdb, 5);
    let supported: &[u8] = if src.used_blocks.is_some() {
        &[
            SUPPORTED,
            PROVISIONING,
            TEMPERATURE,
            APPLICATION_CLIENT,
            STATISTICS,
            EXCEPTIONS,
        ]
    } else {
        &[
            SUPPORTED,
            TEMPERATURE,
            APPLICATION_CLIENT,
            STATISTICS,
            EXCEPTIONS,
        ]
    };
    if !supported.contains(&page) {
        return Err(Fault::cdb(2, Some(0)));
    }
    if subpage != 0 && (page != SUPPORTED || subpage != ALL_SUBPAGES) {
        return Err(Fault::cdb(3, None));
    }
    let mut p = Page {
        out,
        pointer,
        any: false,
    };
    let spf = if subpage == 0 { 0 } else { SPF };
    p.out.clear();
    p.out.extend_from_slice(&[page | spf, subpage, 0, 0]);
    match page {
        PROVISIONING => {
            // In units of threshold sets, which are single blocks here (THRESHOLD EXPONENT is 0).
            let used = u32::try_from(src.used_blocks.unwrap_or(0)).unwrap_or(u32::MAX);
            let [a, b, c, d] = used.to_be_bytes();
            p.param(2, &[a, b, c, d, SCOPE_LOGICAL_UNIT, 0, 0, 0]);
        }
        TEMPERATURE => {
            p.param(0, &[0, NO_TEMPERATURE]);
            p.param(1, &[0, NO_TEMPERATURE]);
        }
        APPLICATION_CLIENT => {
            for code in 0..APPLICATION_CLIENT_PARAMS {
                p.param(code, &[0; APPLICATION_CLIENT_LEN as usize]);
            }
        }
        STATISTICS => statistics(&src.counters.counts(), &mut p),
        EXCEPTIONS => p.param(0, &[0, 0, NO_TEMPERATURE, 0]),
        _ => {
            for code in supported {
                p.out.push(*code);
                if subpage != 0 {
                    p.out.push(0);
                }
            }
            if subpage != 0 {
                p.out.extend_from_slice(&[SUPPORTED, ALL_SUBPAGES]);
            }
            p.any = pointer == 0;
        }
    }
    if !p.any {
        return Err(Fault::cdb(5, None));
    }
    let len = u16::try_from(out.len().saturating_sub(4)).unwrap_or(u16::MAX);
    for (to, from) in out.iter_mut().skip(2).zip(len.to_be_bytes()) {
        *to = from;
    }
    Ok(())
}

/// Statistics and performance parameter: counts, and four intervals that are not measured.
fn statistics(c: &Counts, p: &mut Page<'_>) {
    let mut data = Vec::with_capacity(64);
    for n in [
        c.reads,
        c.writes,
        c.blocks_received,
        c.blocks_sent,
        0,
        0,
        0,
        0,
    ] {
        data.extend_from_slice(&n.to_be_bytes());
    }
    p.param(1, &data);
}

/// A page under construction: parameters from PARAMETER POINTER on.
struct Page<'a> {
    out: &'a mut Vec<u8>,
    pointer: u16,
    any: bool,
}

impl Page<'_> {
    fn param(&mut self, code: u16, data: &[u8]) {
        if code < self.pointer {
            return;
        }
        self.any = true;
        let [hi, lo] = code.to_be_bytes();
        let len = u8::try_from(data.len()).unwrap_or(u8::MAX);
        self.out.extend_from_slice(&[hi, lo, BINARY_LIST, len]);
        self.out.extend_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sense(used_blocks: Option<u64>, cdb: &[u8]) -> Result<Vec<u8>, Fault> {
        let counters = IoCounters::default();
        counters.read(8);
        counters.read(1);
        counters.written(4);
        let mut out = Vec::new();
        let src = LogSource {
            used_blocks,
            counters: &counters,
        };
        log_sense(&src, cdb, &mut out).map(|()| out)
    }

    fn page(code: u8) -> [u8; 10] {
        [0x4D, 0, 0x40 | code, 0, 0, 0, 0, 0xFF, 0xFF, 0]
    }

    #[test]
    fn pages_have_their_parameters() {
        assert_eq!(
            sense(None, &page(0)),
            Ok(vec![0, 0, 0, 5, 0, 0x0D, 0x0F, 0x19, 0x2F])
        );
        assert_eq!(
            sense(Some(1), &page(0)),
            Ok(vec![0, 0, 0, 6, 0, 0x0C, 0x0D, 0x0F, 0x19, 0x2F])
        );
        let mut all = page(0);
        all[3] = 0xFF;
        assert_eq!(
            sense(None, &all),
            Ok(vec![
                0x40, 0xFF, 0, 12, 0, 0, 0x0D, 0, 0x0F, 0, 0x19, 0, 0x2F, 0, 0, 0xFF
            ])
        );
        assert_eq!(
            sense(Some(0x0102_0304), &page(0x0C)),
            Ok(vec![0x0C, 0, 0, 12, 0, 2, 3, 8, 1, 2, 3, 4, 1, 0, 0, 0])
        );
        assert_eq!(
            sense(None, &page(0x2F)),
            Ok(vec![0x2F, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xFF, 0])
        );
        let client = sense(None, &page(0x0F)).expect("there");
        assert_eq!(client.len(), 4 + 64 * 256);
        assert_eq!(client[2..4], [0x40, 0]);
        let stats = sense(None, &page(0x19)).expect("there");
        assert_eq!(stats.len(), 4 + 4 + 64);
        let count = |at: usize| u64::from_be_bytes(stats[at..at + 8].try_into().expect("8"));
        assert_eq!((count(8), count(16), count(24), count(32)), (2, 1, 4, 9));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert_eq!(sense(None, &page(0x0C)), Err(Fault::cdb(2, Some(0))));
        assert_eq!(sense(None, &page(0x02)), Err(Fault::cdb(2, Some(0))));
        let mut sub = page(0x0D);
        sub[3] = 1;
        assert_eq!(sense(None, &sub), Err(Fault::cdb(3, None)));
        let mut save = page(0x0D);
        save[1] = 1;
        assert_eq!(sense(None, &save), Err(Fault::cdb(1, Some(0))));
        let mut pointer = page(0x0D);
        pointer[6] = 1;
        assert_eq!(
            sense(None, &pointer),
            Ok(vec![0x0D, 0, 0, 6, 0, 1, 3, 2, 0, 0xFF])
        );
        pointer[6] = 2;
        assert_eq!(sense(None, &pointer), Err(Fault::cdb(5, None)));
    }

    proptest! {
        #[test]
        fn lengths_are_right(cdb in proptest::collection::vec(any::<u8>(), 0..12), thin: bool) {
            if let Ok(data) = sense(thin.then_some(5), &cdb) {
                prop_assert_eq!(usize::from(be16_at(&data, 2)), data.len() - 4);
            }
        }
    }
}
