//! GET LBA STATUS: which blocks are mapped. SCST refuses the command.

use super::store::Store;
use kshim::error::Result;

/// Bytes before the first descriptor, and of a descriptor.
const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;
/// Most descriptors in one answer; the initiator asks again for what is behind them (SBC-3 5.6).
const MAX_DESCRIPTORS: usize = 256;
/// Most pieces of a file that one command looks at, so that it ends on a file of many small ones.
const MAX_PIECES: usize = 8192;

/// PROVISIONING STATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provisioning {
    /// There is storage for the blocks, or it is not known that there is none.
    Mapped = 0,
    /// There is no storage for the blocks.
    Deallocated = 1,
}

/// Blocks of one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    lba: u64,
    blocks: u32,
    status: Provisioning,
}

/// Builds the parameter data for the blocks from `lba` to the end of a device of `nblocks` blocks. `store` is `None` for a
/// device without logical block provisioning, where all is mapped. Context: may sleep.
///
/// # Errors
/// The host's.
pub(super) fn lba_status(
    store: Option<&Store>,
    block_shift: u8,
    nblocks: u64,
    lba: u64,
    alloc_len: usize,
) -> Result<Vec<u8>> {
    let max = alloc_len
        .saturating_sub(HEADER_LEN)
        .checked_div(DESCRIPTOR_LEN)
        .unwrap_or(0)
        .clamp(1, MAX_DESCRIPTORS);
    let mut runs: Vec<Run> = Vec::new();
    let mut at = lba;
    for _ in 0..MAX_PIECES {
        if at >= nblocks {
            break;
        }
        let (status, end) = match store {
            None => (Provisioning::Mapped, nblocks),
            Some(s) => piece(s, block_shift, nblocks, at)?,
        };
        if !push(&mut runs, at, end, status, max) {
            break;
        }
        at = end;
    }
    Ok(encode(&runs))
}

/// The status of block `at`, and the first block of which that is not known to be the status too.
fn piece(store: &Store, block_shift: u8, nblocks: u64, at: u64) -> Result<(Provisioning, u64)> {
    let shift = u32::from(block_shift);
    let pos = at.checked_shl(shift).unwrap_or(u64::MAX);
    let size = nblocks.checked_shl(shift).unwrap_or(u64::MAX);
    let (has_data, until) = store.extent(pos, size)?;
    let next = at.saturating_add(1);
    if has_data {
        // A block of which a part has data is mapped.
        let up = until.div_ceil(1u64.checked_shl(shift).unwrap_or(1));
        return Ok((Provisioning::Mapped, up.clamp(next, nblocks.max(next))));
    }
    let down = until.checked_shr(shift).unwrap_or(0);
    if down > at {
        Ok((Provisioning::Deallocated, down))
    } else {
        Ok((Provisioning::Mapped, next))
    }
}

/// Adds blocks to the list, in one descriptor with the last one if the status is the same. Answers `false` when the list
/// is full.
fn push(runs: &mut Vec<Run>, from: u64, to: u64, status: Provisioning, max: usize) -> bool {
    let mut left = to.saturating_sub(from);
    let mut lba = from;
    if let Some(last) = runs.last_mut()
        && last.status == status
    {
        let room = u64::from(u32::MAX.saturating_sub(last.blocks));
        let n = u32::try_from(left.min(room)).unwrap_or(0);
        last.blocks = last.blocks.saturating_add(n);
        left = left.saturating_sub(u64::from(n));
        lba = lba.saturating_add(u64::from(n));
    }
    while left > 0 {
        if runs.len() >= max {
            return false;
        }
        let blocks = u32::try_from(left).unwrap_or(u32::MAX);
        runs.push(Run {
            lba,
            blocks,
            status,
        });
        left = left.saturating_sub(u64::from(blocks));
        lba = lba.saturating_add(u64::from(blocks));
    }
    true
}

fn encode(runs: &[Run]) -> Vec<u8> {
    let len = runs
        .len()
        .saturating_mul(DESCRIPTOR_LEN)
        .saturating_add(HEADER_LEN);
    let mut out = Vec::with_capacity(len);
    // PARAMETER DATA LENGTH counts what follows it.
    let following = u32::try_from(len.saturating_sub(4)).unwrap_or(u32::MAX);
    out.extend_from_slice(&following.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    for r in runs {
        out.extend_from_slice(&r.lba.to_be_bytes());
        out.extend_from_slice(&r.blocks.to_be_bytes());
        out.extend_from_slice(&[r.status as u8, 0, 0, 0]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_provisioning_all_is_mapped() {
        let data = lba_status(None, 9, 1000, 10, 24).expect("no host needed");
        let mut want = vec![0, 0, 0, 20, 0, 0, 0, 0];
        want.extend_from_slice(&10u64.to_be_bytes());
        want.extend_from_slice(&990u32.to_be_bytes());
        want.extend_from_slice(&[0; 4]);
        assert_eq!(data, want);
        // One descriptor is always there, and a long run takes several.
        assert_eq!(lba_status(None, 9, 1000, 10, 0).expect("no host"), want);
        let data = lba_status(None, 9, 1 << 33, 0, 1 << 20).expect("no host");
        assert_eq!(data.len(), 8 + 3 * 16);
        assert_eq!(data[8 + 32 + 8..8 + 32 + 12], [0, 0, 0, 2]);
    }

    #[test]
    fn neighbours_are_one_descriptor() {
        let mut runs = Vec::new();
        assert!(push(&mut runs, 0, 8, Provisioning::Mapped, 2));
        assert!(push(&mut runs, 8, 16, Provisioning::Mapped, 2));
        assert!(push(&mut runs, 16, 24, Provisioning::Deallocated, 2));
        assert!(!push(&mut runs, 24, 32, Provisioning::Mapped, 2));
        assert_eq!(runs.len(), 2);
        assert_eq!(
            runs[0],
            Run {
                lba: 0,
                blocks: 16,
                status: Provisioning::Mapped
            }
        );
    }
}
