//! A backstore in a hundred lines: a disk of any size whose blocks take memory when they are written.
//!
//!     cargo run -p backstores --example sparse
//!
//! A backstore implements `BlockOps` and registers a disk; whoever opens its path (in the server: vdisk_blockio, by
//! `filename /dev/sparse/NAME`) gets bios to it. The rules are few: complete each bio exactly once, do not block in
//! `submit_bio`, and say in the limits what the disk can do. Bios come checked: inside the capacity, aligned to the block size.

use std::collections::BTreeMap;
use std::sync::Arc;

use kshim::block::{
    Bio, BioOp, BlkMode, BlockDevice, BlockOps, QueueLimits, SubmittedBio, register_disk,
};
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;

/// Logical block size.
const BLOCK: usize = 4096;

/// The driver: blocks that were written, by number.
struct Sparse {
    blocks: SpinLock<BTreeMap<u64, Box<[u8]>>>,
    capacity: u64,
}

impl Sparse {
    fn transfer(&self, bio: &mut Bio) -> Result {
        let first = bio.pos() / BLOCK as u64;
        let at = bio.sg_at;
        let mut blocks = self.blocks.lock();
        for i in 0..bio.len / BLOCK {
            let (n, at) = (first + i as u64, at + i * BLOCK);
            match bio.op {
                BioOp::Read => match blocks.get(&n) {
                    Some(data) => bio.sg.copy_from_slice(at, data)?,
                    None => bio.sg.fill(at, BLOCK, 0)?,
                },
                BioOp::Write => {
                    let mut data = vec![0; BLOCK].into_boxed_slice();
                    bio.sg.copy_to_slice(at, &mut data)?;
                    blocks.insert(n, data);
                }
                BioOp::Discard | BioOp::WriteZeroes => drop(blocks.remove(&n)),
                BioOp::Flush => {}
            }
        }
        Ok(())
    }
}

impl BlockOps for Sparse {
    // A driver that has to wait hands the bio to a thread (`kshim::block::BlockWorkers`) and completes it there.
    fn submit_bio(&self, mut bio: SubmittedBio) {
        let status = self.transfer(&mut bio);
        bio.complete(status);
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            logical_block_size: BLOCK as u32,
            physical_block_size: BLOCK as u32,
            max_discard_bytes: 1 << 30,
            discard_granularity: BLOCK as u32,
            discard_zeroes_data: true,
            max_write_zeroes_bytes: 1 << 30,
            write_cache: false,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    fn is_inline(&self) -> bool {
        true
    }
}

/// Writes one block far out, and reads it back.
pub fn main() -> Result {
    let disk = Sparse {
        blocks: SpinLock::new(BTreeMap::new()),
        capacity: 1 << 40,
    };
    let disk = register_disk("/dev/sparse/example", Arc::new(disk))?;
    let bdev = BlockDevice::open("/dev/sparse/example", BlkMode::READ | BlkMode::WRITE)?;
    let mut sg = SGTable::alloc(BLOCK)?;
    sg.fill(0, BLOCK, 0x5A)?;
    let bio = |op| Bio::new(op, 1 << 30, BLOCK, Arc::new(|_: Bio, _: Result| {}));
    let (_, written) = bdev.submit_bio_wait(bio(BioOp::Write).with_sg(sg, 0));
    let (back, read) = bdev.submit_bio_wait(bio(BioOp::Read).with_sg(SGTable::alloc(BLOCK)?, 0));
    written.and(read)?;
    let mut bytes = [0; BLOCK];
    back.sg.copy_to_slice(0, &mut bytes)?;
    if bytes != [0x5A; BLOCK] {
        return Err(code::EIO);
    }
    println!(
        "{} bytes, 4096 of them written and read back",
        bdev.capacity_bytes()
    );
    drop(bdev);
    disk.unregister()
}
