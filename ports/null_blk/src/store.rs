//! Memory, and a volatile cache before it.

use kshim::block::{BioOp, ReqFlags, SubmittedBio};
use kshim::page::LentMem;
use kshim::prelude::*;
use kshim::sync::SpinLock;
use std::collections::BTreeMap;

/// What a memory-backed disk remembers.
pub(crate) struct Store {
    pub(crate) mem: LentMem,
    block: usize,
    /// Bytes; 0: none.
    cache_size: usize,
    /// Blocks that were written but are not in the memory yet, by number.
    cache: SpinLock<BTreeMap<usize, Box<[u8]>>>,
}

impl Store {
    /// Errors: `ENOMEM`.
    pub(crate) fn new(size: u64, block: u32, cache_size: u64) -> Result<Store> {
        Ok(Store {
            mem: LentMem::anonymous(usize::try_from(size)?)?,
            block: usize::try_from(block)?,
            cache_size: usize::try_from(cache_size)?,
            cache: SpinLock::default(),
        })
    }

    /// Does what a bio asks for.
    pub(crate) fn transfer(&self, bio: &mut SubmittedBio) -> Result {
        let (pos, len, at) = (usize::try_from(bio.pos())?, bio.len, bio.sg_at);
        if self.cache_size == 0 {
            return match bio.op {
                BioOp::Read => bio.sg.copy_from_lent(at, &self.mem, pos, len),
                BioOp::Write => bio.sg.copy_to_lent(at, &self.mem, pos, len),
                BioOp::Discard | BioOp::WriteZeroes => self.mem.discard(pos, len),
                BioOp::Flush => Ok(()),
            };
        }
        if bio.op == BioOp::Flush || bio.flags.contains(ReqFlags::PREFLUSH) {
            self.flush()?;
        }
        let blocks = pos / self.block..(pos + len) / self.block;
        let mut cache = self.cache.lock();
        match bio.op {
            BioOp::Read => {
                bio.sg.copy_from_lent(at, &self.mem, pos, len)?;
                for (&n, data) in cache.range(blocks) {
                    bio.sg.copy_from_slice(at + n * self.block - pos, data)?;
                }
                Ok(())
            }
            BioOp::Write if bio.flags.contains(ReqFlags::FUA) => {
                bio.sg.copy_to_lent(at, &self.mem, pos, len)?;
                blocks.for_each(|n| drop(cache.remove(&n)));
                Ok(())
            }
            BioOp::Write => {
                for n in blocks {
                    let mut data = vec![0; self.block].into_boxed_slice();
                    bio.sg.copy_to_slice(at + n * self.block - pos, &mut data)?;
                    cache.insert(n, data);
                }
                while cache.len() * self.block > self.cache_size {
                    let Some((n, data)) = cache.pop_first() else {
                        break;
                    };
                    self.mem.copy_in(n * self.block, &data)?;
                }
                Ok(())
            }
            BioOp::Discard | BioOp::WriteZeroes => {
                blocks.for_each(|n| drop(cache.remove(&n)));
                self.mem.discard(pos, len)
            }
            BioOp::Flush => Ok(()),
        }
    }

    #[doc(alias = "null_handle_flush")]
    fn flush(&self) -> Result {
        let mut cache = self.cache.lock();
        for (n, data) in std::mem::take(&mut *cache) {
            self.mem.copy_in(n * self.block, &data)?;
        }
        Ok(())
    }

    /// Forgets what is in the cache.
    pub(crate) fn power_cut(&self) {
        self.cache.lock().clear();
    }
}
