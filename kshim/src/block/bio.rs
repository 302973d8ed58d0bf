//! Block I/O requests.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;

use super::gendisk::Disk;
use super::limits::SECTOR_SIZE;
use crate::error::{Result, code};
use crate::scatterlist::SGTable;

/// What a bio asks for.
#[doc(alias = "req_op")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BioOp {
    /// Read `len` bytes into the table.
    #[doc(alias = "REQ_OP_READ")]
    Read,
    /// Write `len` bytes of the table.
    #[doc(alias = "REQ_OP_WRITE")]
    Write,
    /// Make all writes that were completed before durable.
    #[doc(alias = "REQ_OP_FLUSH")]
    Flush,
    /// The content of the range is not needed any more.
    #[doc(alias = "REQ_OP_DISCARD")]
    Discard,
    /// Make the range read as zeros.
    #[doc(alias = "REQ_OP_WRITE_ZEROES")]
    WriteZeroes,
}

impl BioOp {
    /// Whether the medium changes.
    #[doc(alias = "op_is_write")]
    pub fn is_write(self) -> bool {
        matches!(self, BioOp::Write | BioOp::Discard | BioOp::WriteZeroes)
    }
}

bitflags! {
    /// Modifiers of a bio.
    ///
    /// C header: `include/linux/blk_types.h` (`REQ_*`)
    #[doc(alias = "blk_opf_t")]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ReqFlags: u32 {
        /// What is written is durable when the bio completes.
        #[doc(alias = "REQ_FUA")]
        const FUA = 1 << 0;
        /// Flush before doing it.
        #[doc(alias = "REQ_PREFLUSH")]
        const PREFLUSH = 1 << 1;
        /// Fail with `EAGAIN` rather than wait.
        #[doc(alias = "REQ_NOWAIT")]
        const NOWAIT = 1 << 2;
        /// Somebody waits for it (a hint).
        #[doc(alias = "REQ_SYNC")]
        const SYNC = 1 << 3;
        /// [`BioOp::WriteZeroes`]: keep the blocks allocated.
        #[doc(alias = "REQ_NOUNMAP")]
        const NOUNMAP = 1 << 4;
        /// [`BioOp::Read`] of the whole table: rather than copy, the driver may put memory of its own in the place of what is there,
        /// [lent](crate::page::LentMem) and only to be read. It is to be let go of soon: the driver may have to wait for that.
        const LEND = 1 << 5;
    }
}

/// Who hears of the end of a bio.
pub trait BioEndIo: Send + Sync {
    /// The bio is done: it comes back with its table and private part, [`Bio::end_io`] taken out.
    ///
    /// Called exactly once per submitted bio: inside [`BlockDevice::submit_bio`](super::BlockDevice::submit_bio), or
    /// later from any thread. It must not block, and not rely on being called after the submit returned; take no
    /// lock here that is held across a submit. Nor may it submit the next bio of a long chain: there is no `current->bio_list`
    /// that would catch it, so that on a disk that ends bios inside the submit the stack grows with each. Who has such a
    /// chain loops over [`BlockDevice::submit_bio_wait`](super::BlockDevice::submit_bio_wait), or hands over to a work queue.
    #[doc(alias = "bi_end_io")]
    fn bio_done(&self, bio: Bio, status: Result);
}

impl<F: Fn(Bio, Result) + Send + Sync> BioEndIo for F {
    fn bio_done(&self, bio: Bio, status: Result) {
        self(bio, status);
    }
}

/// One request to a block device.
///
/// ```
/// use std::sync::Arc;
/// use kshim::block::{Bio, BioOp, ReqFlags};
/// use kshim::error::Result;
/// use kshim::scatterlist::SGTable;
///
/// let done = Arc::new(|bio: Bio, status: Result| println!("{bio:?}: {status:?}"));
/// let bio = Bio::new(BioOp::Write, 8, 4096, done)
///     .with_sg(SGTable::alloc_zeroed(4096)?, 0)
///     .with_flags(ReqFlags::FUA);
/// assert_eq!(bio.pos(), 4096);
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// C header: `include/linux/blk_types.h` (`struct bio`)
#[doc(alias = "bio")]
pub struct Bio {
    /// What to do.
    #[doc(alias = "bi_opf")]
    pub op: BioOp,
    /// How.
    pub flags: ReqFlags,
    /// Where, in sectors of 512 bytes.
    #[doc(alias = "bi_sector")]
    pub sector: u64,
    /// Bytes; 0 for a flush.
    #[doc(alias = "bi_size")]
    pub len: usize,
    /// The data.
    #[doc(alias = "bi_io_vec")]
    pub sg: SGTable,
    /// Where in `sg` the data begins.
    pub sg_at: usize,
    /// For the owner.
    #[doc(alias = "bi_private")]
    pub private: Option<Box<dyn Any + Send>>,
    /// Who hears of the end. `None` after completion; a bio without one cannot be submitted.
    pub end_io: Option<Arc<dyn BioEndIo>>,
}

impl Bio {
    /// A bio without data, flags or private part.
    ///
    /// Context: any.
    #[doc(alias = "bio_alloc")]
    pub fn new(op: BioOp, sector: u64, len: usize, end_io: Arc<dyn BioEndIo>) -> Bio {
        Bio {
            op,
            flags: ReqFlags::empty(),
            sector,
            len,
            sg: SGTable::new(),
            sg_at: 0,
            private: None,
            end_io: Some(end_io),
        }
    }

    /// Adds flags.
    #[must_use]
    pub fn with_flags(mut self, flags: ReqFlags) -> Bio {
        self.flags |= flags;
        self
    }

    /// Sets the data: `len` bytes of `sg` from `at` on.
    #[must_use]
    pub fn with_sg(mut self, sg: SGTable, at: usize) -> Bio {
        self.sg = sg;
        self.sg_at = at;
        self
    }

    /// Where the range begins, in bytes.
    pub fn pos(&self) -> u64 {
        self.sector.saturating_mul(SECTOR_SIZE)
    }
}

impl fmt::Debug for Bio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bio")
            .field("op", &self.op)
            .field("flags", &self.flags)
            .field("sector", &self.sector)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Bios that drivers lost.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many submitted bios drivers dropped without completing them. More than 0 is a bug, which tests look for.
///
/// Context: any.
pub fn dropped_bios() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// A bio in the hands of a driver, checked against the device's limits and size. It ends in
/// [`SubmittedBio::complete`]; one that is dropped is a bug, which is logged, counted ([`dropped_bios`]) and
/// completed with `EIO`.
#[must_use = "a submitted bio has to be completed"]
pub struct SubmittedBio {
    /// # Invariants
    ///
    /// `Some` until completed; its `end_io` is `Some`.
    bio: Option<Bio>,
    /// Counted as in flight on this disk.
    disk: Option<Arc<Disk>>,
}

impl SubmittedBio {
    pub(super) fn new(bio: Bio) -> SubmittedBio {
        SubmittedBio {
            bio: Some(bio),
            disk: None,
        }
    }

    /// Takes over a reference that `disk.enter()` made.
    pub(super) fn set_disk(&mut self, disk: Arc<Disk>) {
        self.disk = Some(disk);
    }

    /// Ends the bio.
    ///
    /// Context: any; runs the owner's [`BioEndIo::bio_done`].
    #[doc(alias = "bio_endio")]
    pub fn complete(mut self, status: Result) {
        self.end(status);
    }

    fn end(&mut self, status: Result) {
        let Some(mut bio) = self.bio.take() else {
            return;
        };
        // Before the call: the owner may close the device or remove the disk there.
        if let Some(disk) = self.disk.take() {
            disk.exit();
        }
        if let Some(end_io) = bio.end_io.take() {
            end_io.bio_done(bio, status);
        }
    }
}

impl Deref for SubmittedBio {
    type Target = Bio;
    fn deref(&self) -> &Bio {
        self.bio
            .as_ref()
            .expect("present until completed, which consumes self")
    }
}

impl DerefMut for SubmittedBio {
    fn deref_mut(&mut self) -> &mut Bio {
        self.bio
            .as_mut()
            .expect("present until completed, which consumes self")
    }
}

impl Drop for SubmittedBio {
    fn drop(&mut self) {
        if let Some(bio) = &self.bio {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            crate::pr_err!("BUG: {bio:?} dropped by its driver");
            self.end(Err(code::EIO));
        }
    }
}

impl fmt::Debug for SubmittedBio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SubmittedBio").field(&self.bio).finish()
    }
}
