//! A block driver of one's own and the server that has it: the example of `docs/porting-a-driver.md`.
//! `/dev/xor/NAME?size=SIZE&key=N` is a RAM disk that keeps its bytes XORed with a key.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use kshim::block::{
    BioOp, BlockOps, BlockProber, QueueLimits, SECTOR_SIZE, SubmittedBio, register_prober,
};
use kshim::page::LentMem;
use kshim::params::Params;
use kshim::prelude::*;

const PREFIX: &str = "/dev/xor/";
/// Bytes that go through a buffer at once.
const PIECE: usize = 4096;

struct Xor {
    mem: LentMem,
    key: u8,
}

impl Xor {
    /// Copies between the bio's table and the memory, piece by piece.
    fn copy(&self, bio: &mut SubmittedBio) -> Result {
        let mut buf = [0; PIECE];
        let (mut pos, mut at) = (usize::try_from(bio.pos())?, bio.sg_at);
        let mut left = bio.len;
        while left > 0 {
            let n = left.min(PIECE);
            let buf = buf.get_mut(..n).ok_or(EIO)?;
            if bio.op == BioOp::Read {
                self.mem.copy_out(pos, buf)?;
                buf.iter_mut().for_each(|b| *b ^= self.key);
                bio.sg.copy_from_slice(at, buf)?;
            } else {
                bio.sg.copy_to_slice(at, buf)?;
                buf.iter_mut().for_each(|b| *b ^= self.key);
                self.mem.copy_in(pos, buf)?;
            }
            (pos, at, left) = (pos + n, at + n, left - n);
        }
        Ok(())
    }
}

impl BlockOps for Xor {
    fn submit_bio(&self, mut bio: SubmittedBio) {
        let status = match bio.op {
            BioOp::Read | BioOp::Write => self.copy(&mut bio),
            BioOp::Flush => Ok(()),
            BioOp::Discard | BioOp::WriteZeroes => Err(EOPNOTSUPP),
        };
        bio.complete(status);
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            write_cache: false,
            fua: true,
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.mem.len() as u64
    }

    fn is_inline(&self) -> bool {
        true
    }
}

struct Driver;

impl BlockProber for Driver {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        let (_, mut params) = Params::split_path(path)?;
        let size = params.size("size")?.unwrap_or(64 << 20);
        let key = params.number("key")?.unwrap_or(0x5a);
        params.finish()?;
        if size == 0 || size % SECTOR_SIZE != 0 {
            return Err(EINVAL);
        }
        let mem = LentMem::anonymous(usize::try_from(size)?)?;
        Ok(Arc::new(Xor { mem, key }))
    }
}

fn init() -> Result {
    register_prober(PREFIX, Arc::new(Driver))
}

fn main() -> ExitCode {
    scst_usermode::scstd(&[(PREFIX, init)])
}
