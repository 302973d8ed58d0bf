//! Writes of whole clusters, for a handler that does not fill the rest of a new one.
//!
//! handler_qcow of 1.5.4 gives a cluster that was not in the image (or was marked as zeros) a place when it is written to, and
//! writes what it got; what the backing file has around that is lost. So the first write to each cluster is made to cover it: what
//! is missing is read before. It relies on the handler having one thread: nothing comes between the reads and the write.

use std::collections::BTreeMap;

use kshim::prelude::*;
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;

/// Largest cluster of a qcow image.
pub(super) const MAX_UNIT: u64 = 2 << 20;

/// Which clusters of a device were written as a whole since it was opened.
#[derive(Debug)]
pub(super) struct Whole {
    unit: u64,
    /// Bits of 64 clusters each, by the number of the first of them divided by 64.
    written: SpinLock<BTreeMap<u64, u64>>,
}

/// A write that is made larger.
#[derive(Debug)]
pub(super) struct Patch {
    /// What will be written.
    pub(super) buf: SGTable,
    /// Where, in bytes.
    pub(super) start: u64,
    /// Where clusters begin that are to be read into `buf` before.
    pub(super) fills: Vec<u64>,
    /// How long they are.
    pub(super) unit: u64,
}

impl Patch {
    /// Bytes of the cluster at `start` that are in the buffer; the last cluster of a device may be short.
    pub(super) fn fill_len(&self, start: u64) -> usize {
        let left = self.buf.len() as u64 - (start - self.start);
        self.unit.min(left) as usize
    }

    /// Takes what was read for a cluster. Errors: `EINVAL`: it does not fit.
    pub(super) fn filled(&mut self, start: u64, data: &SGTable) -> Result {
        let len = self.fill_len(start);
        let at = usize::try_from(start - self.start)?;
        self.buf.copy_from_sg(at, data, 0, len)
    }
}

impl Whole {
    /// Nothing was written yet. `None`: no such cluster size.
    pub(super) fn new(unit: u64) -> Option<Whole> {
        let sane = unit.is_power_of_two() && (512..=MAX_UNIT).contains(&unit);
        sane.then(|| Whole {
            unit,
            written: SpinLock::new(BTreeMap::new()),
        })
    }

    /// How to write `len` bytes at `off` of a device of `capacity` bytes. `None`: as they are.
    ///
    /// Errors: `ENOMEM`.
    pub(super) fn plan(&self, off: u64, len: u64, capacity: u64) -> Result<Option<Patch>> {
        let end = off.saturating_add(len);
        let (first, last) = (off / self.unit, end.saturating_sub(1) / self.unit);
        let (mut start, mut stop) = (off, end);
        let mut fills = Vec::new();
        let bounds = |n: u64| {
            let start = n * self.unit;
            (start, (start + self.unit).min(capacity))
        };
        for n in [first, last] {
            let (from, to) = bounds(n);
            let partly = off > from || end < to;
            if partly && !fills.contains(&from) && !self.is_written(n) {
                fills.push(from);
                start = start.min(from);
                stop = stop.max(to);
            }
        }
        if fills.is_empty() {
            return Ok(None);
        }
        Ok(Some(Patch {
            buf: SGTable::alloc_zeroed(usize::try_from(stop - start)?)?,
            start,
            fills,
            unit: self.unit,
        }))
    }

    fn is_written(&self, n: u64) -> bool {
        let written = self.written.lock();
        written
            .get(&(n / 64))
            .is_some_and(|w| w >> (n % 64) & 1 != 0)
    }

    /// So many bytes were written at `off`.
    pub(super) fn wrote(&self, off: u64, len: u64, capacity: u64) {
        let end = off.saturating_add(len);
        let from = off.div_ceil(self.unit);
        let to = if end >= capacity {
            end.div_ceil(self.unit)
        } else {
            end / self.unit
        };
        let mut written = self.written.lock();
        for n in from..to {
            *written.entry(n / 64).or_insert(0) |= 1 << (n % 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u64 = 10_004 * 512;

    #[test]
    fn the_first_write_to_a_cluster_covers_it() {
        let w = Whole::new(4096).unwrap();
        let p = w.plan(512, 512, CAPACITY).unwrap().unwrap();
        assert_eq!(
            (p.start, p.buf.len(), p.fills.as_slice()),
            (0, 4096, &[0][..])
        );
        let p = w.plan(4096 - 512, 8192, CAPACITY).unwrap().unwrap();
        assert_eq!((p.start, p.buf.len()), (0, 12288));
        assert_eq!(p.fills, [0, 8192]);
        let p = w.plan(4096, 4096 + 512, CAPACITY).unwrap().unwrap();
        assert_eq!(
            (p.start, p.buf.len(), p.fills.as_slice()),
            (4096, 8192, &[8192][..])
        );
        assert!(w.plan(4096, 8192, CAPACITY).unwrap().is_none());
        // The device's last cluster ends with the device.
        let last = CAPACITY - 512;
        let p = w.plan(last - 512, 512, CAPACITY).unwrap().unwrap();
        assert_eq!(p.start + p.buf.len() as u64, CAPACITY);
        assert_eq!(p.fill_len(p.start), p.buf.len());
    }

    #[test]
    fn later_writes_are_left_as_they_are() {
        let w = Whole::new(4096).unwrap();
        w.wrote(4096, 8192 + 512, CAPACITY);
        assert!(w.plan(4096 + 512, 4096, CAPACITY).unwrap().is_none());
        assert!(w.plan(12288, 512, CAPACITY).unwrap().is_some());
        assert!(w.plan(0, 4608, CAPACITY).unwrap().is_none());
        assert!(w.plan(512, 4096, CAPACITY).unwrap().is_some());
        let start = CAPACITY / 4096 * 4096;
        w.wrote(start, CAPACITY - start, CAPACITY);
        assert!(w.plan(CAPACITY - 512, 512, CAPACITY).unwrap().is_none());
        // An image may say that it has any size: what is kept is of what was written.
        let (w, capacity) = (Whole::new(512).unwrap(), 1 << 62);
        w.wrote(capacity - 1024, 1024, capacity);
        assert!(w.plan(capacity - 512, 100, capacity).unwrap().is_none());
        assert!(w.plan(capacity - 1536, 100, capacity).unwrap().is_some());
        assert!(Whole::new(1000).is_none() && Whole::new(MAX_UNIT * 2).is_none());
    }
}
