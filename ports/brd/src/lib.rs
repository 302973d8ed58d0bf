//! RAM disks: the smallest driver that is useful.
//!
//! A path `/dev/brd/NAME?rd_size=64M` is a disk of zeros while somebody has it open. Memory is taken when it is written, and
//! given back when it is discarded.
//!
//! C source: `drivers/block/brd.c`. Not ported: the fixed number of disks (`rd_nr`) and partitions (`max_part`).
#![forbid(unsafe_code)]

use kshim::block::{BioOp, BlockOps, BlockProber, QueueLimits, SubmittedBio, register_prober};
use kshim::page::{LentMem, LentRange, PAGE_SIZE};
use kshim::params::Params;
use kshim::prelude::*;

/// All paths below it are RAM disks.
pub const PREFIX: &str = "/dev/brd/";
/// The size of a disk that does not say `rd_size`, as the kernel's (`CONFIG_BLK_DEV_RAM_SIZE`).
#[doc(alias = "CONFIG_BLK_DEV_RAM_SIZE")]
pub const DEFAULT_SIZE: u64 = 16 << 20;
/// What one discard or write of zeros may cover.
const MAX_RANGE: u64 = 1 << 30;

/// Makes the paths known to [`BlockDevice::open`](kshim::block::BlockDevice::open). Once in a process.
///
/// Context: may sleep. Errors: as [`register_prober`].
#[doc(alias = "brd_init")]
pub fn init() -> Result {
    register_prober(PREFIX, Arc::new(Driver))
}

struct Driver;

impl BlockProber for Driver {
    #[doc(alias = "brd_probe")]
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        let (name, mut params) = Params::split_path(path)?;
        let size = params.size("rd_size")?.unwrap_or(DEFAULT_SIZE);
        params.finish()?;
        if name.len() == PREFIX.len() || size == 0 || !size.is_multiple_of(PAGE_SIZE as u64) {
            return Err(EINVAL);
        }
        let pages = LentMem::anonymous(usize::try_from(size)?)?;
        Ok(Arc::new(Brd { pages }))
    }
}

struct Brd {
    pages: LentMem,
}

impl Brd {
    #[doc(alias = "brd_submit_bio")]
    fn transfer(&self, bio: &mut SubmittedBio) -> Result {
        let (pos, len, at) = (usize::try_from(bio.pos())?, bio.len, bio.sg_at);
        match bio.op {
            BioOp::Read => bio.sg.copy_from_lent(at, &self.pages, pos, len),
            BioOp::Write => bio.sg.copy_to_lent(at, &self.pages, pos, len),
            BioOp::Discard | BioOp::WriteZeroes => self.pages.discard(pos, len),
            BioOp::Flush => Ok(()),
        }
    }
}

impl BlockOps for Brd {
    fn submit_bio(&self, mut bio: SubmittedBio) {
        let status = self.transfer(&mut bio);
        bio.complete(status);
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            physical_block_size: PAGE_SIZE as u32,
            max_discard_bytes: MAX_RANGE,
            discard_granularity: PAGE_SIZE as u32,
            discard_zeroes_data: true,
            max_write_zeroes_bytes: MAX_RANGE,
            write_cache: false,
            fua: true,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.pages.len() as u64
    }

    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        self.pages.range(usize::try_from(pos).ok()?, len).ok()
    }

    fn is_inline(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kshim::block::{Bio, BlkMode, BlockDevice};
    use kshim::scatterlist::SGTable;

    #[test]
    fn a_disk_keeps_what_was_written_until_it_is_closed() {
        init().unwrap();
        for bad in [
            "/dev/brd/",
            "/dev/brd/x?rd_size=0",
            "/dev/brd/x?rd_size=513",
            "/dev/brd/x?y=1",
        ] {
            assert_eq!(
                BlockDevice::open(bad, BlkMode::READ).err(),
                Some(EINVAL),
                "{bad}"
            );
        }
        let path = "/dev/brd/test?rd_size=1M";
        let disk = BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE).unwrap();
        assert_eq!(disk.capacity_bytes(), 1 << 20);
        let run = |op, sector, len, sg| {
            let ignored = Arc::new(|_: Bio, _: Result| {});
            disk.submit_bio_wait(Bio::new(op, sector, len, ignored).with_sg(sg, 0))
        };
        let read = |sector| {
            let (bio, status) = run(BioOp::Read, sector, 512, SGTable::alloc(512).unwrap());
            status.map(|()| bio.sg.as_slice(0, 1).map(|b| b[0]))
        };
        let mut sg = SGTable::alloc(4096).unwrap();
        sg.fill(0, 4096, 7).unwrap();
        assert_eq!(run(BioOp::Write, 8, 4096, sg).1, Ok(()));
        assert_eq!(
            (read(8), read(15), read(16)),
            (Ok(Some(7)), Ok(Some(7)), Ok(Some(0)))
        );
        let mut lent = [0; 2];
        disk.direct_access(4095, 2)
            .unwrap()
            .copy_out(0, &mut lent)
            .unwrap();
        assert_eq!(lent, [0, 7]);
        assert_eq!(run(BioOp::Flush, 0, 0, SGTable::new()).1, Ok(()));
        assert_eq!(run(BioOp::Discard, 8, 4096, SGTable::new()).1, Ok(()));
        assert_eq!(read(8), Ok(Some(0)));
        assert_eq!(read(2048), Err(EIO));
    }
}
