//! One leg: what is read and written outside of the data.

use crate::meta::{PAGE, Super};
use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ReqFlags, SECTOR_SIZE};
use kshim::prelude::*;
use kshim::scatterlist::SGTable;

/// Opens a leg for this array alone. Errors: those of [`BlockDevice::open`]; `EINVAL`: its blocks are too large.
pub(crate) fn open(path: &str) -> Result<Arc<BlockDevice>> {
    let leg = BlockDevice::open(path, BlkMode::READ | BlkMode::WRITE | BlkMode::EXCL)?;
    if usize::try_from(leg.limits().logical_block_size)? > PAGE {
        return Err(EINVAL);
    }
    Ok(leg)
}

/// A leg that may become one of the array.
pub(crate) struct Candidate {
    pub(crate) bdev: Arc<BlockDevice>,
    /// What stands on it.
    pub(crate) found: Option<Super>,
}

impl Candidate {
    /// Opens it and looks. Context: may sleep, for as long as the leg takes. Errors: as [`open`] and [`read_super`].
    pub(crate) fn open(path: &str) -> Result<Candidate> {
        let bdev = open(path)?;
        let found = read_super(&bdev)?;
        Ok(Candidate { bdev, found })
    }
}

/// Does one thing and waits for it; the table comes back. Context: may sleep.
pub(crate) fn run(
    leg: &BlockDevice,
    op: BioOp,
    pos: u64,
    len: usize,
    sg: SGTable,
    flags: ReqFlags,
) -> (SGTable, Result) {
    let ignored = Arc::new(|_: Bio, _: Result| {});
    let bio = Bio::new(op, pos / SECTOR_SIZE, len, ignored);
    let (bio, status) = leg.submit_bio_wait(bio.with_sg(sg, 0).with_flags(flags));
    (bio.sg, status)
}

pub(crate) fn read(leg: &BlockDevice, pos: u64, len: usize) -> Result<Vec<u8>> {
    let (sg, status) = run(
        leg,
        BioOp::Read,
        pos,
        len,
        SGTable::alloc(len)?,
        ReqFlags::empty(),
    );
    status?;
    let mut bytes = vec![0; len];
    sg.copy_to_slice(0, &mut bytes)?;
    Ok(bytes)
}

/// Writes durably.
pub(crate) fn write(leg: &BlockDevice, pos: u64, bytes: &[u8]) -> Result {
    let mut sg = SGTable::alloc(bytes.len())?;
    sg.copy_from_slice(0, bytes)?;
    run(leg, BioOp::Write, pos, bytes.len(), sg, ReqFlags::FUA).1
}

pub(crate) fn flush(leg: &BlockDevice) -> Result {
    run(leg, BioOp::Flush, 0, 0, SGTable::new(), ReqFlags::empty()).1
}

/// The newer of the two superblocks. `None`: there is none. Errors: `EUCLEAN`, `EOPNOTSUPP`: none that can be used; those of the
/// leg.
pub(crate) fn read_super(leg: &BlockDevice) -> Result<Option<Super>> {
    if leg.capacity_bytes() < 2 * PAGE as u64 {
        return Ok(None);
    }
    let both = read(leg, 0, 2 * PAGE)?;
    let (a, b) = both.split_at(PAGE);
    let newest = |a: Super, b: Super| if a.events >= b.events { a } else { b };
    match (Super::decode(a), Super::decode(b)) {
        (Ok(Some(a)), Ok(Some(b))) => Ok(Some(newest(a, b))),
        (Ok(Some(s)), _) | (_, Ok(Some(s))) => Ok(Some(s)),
        (Err(e), _) | (_, Err(e)) => Err(e),
        (Ok(None), Ok(None)) => Ok(None),
    }
}
