//! Queue limits.

/// The size of a sector, the unit of [`Bio::sector`](super::Bio::sector), whatever the device's block size is.
pub const SECTOR_SIZE: u64 = 512;
/// The largest logical block size.
#[doc(alias = "BLK_MAX_BLOCK_SIZE")]
pub const MAX_LOGICAL_BLOCK_SIZE: u32 = 64 << 10;

/// What a block device can do and likes.
///
/// C header: `include/linux/blkdev.h` (`struct queue_limits`)
#[doc(alias = "queue_limits")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLimits {
    /// The unit that reads and writes must be multiples of: a power of two from 512 to [`MAX_LOGICAL_BLOCK_SIZE`].
    pub logical_block_size: u32,
    /// The unit the medium writes in one go.
    pub physical_block_size: u32,
    /// Preferred minimum size of an I/O; 0: unknown.
    pub io_min: u32,
    /// Preferred size of an I/O; 0: unknown.
    pub io_opt: u32,
    /// The most that one discard may cover; 0: no discard.
    pub max_discard_bytes: u64,
    /// The unit in which discards are effective; 0: unknown.
    pub discard_granularity: u32,
    /// Discarded blocks read as zeros.
    pub discard_zeroes_data: bool,
    /// The most that one efficient write of zeros may cover; 0: zeros are written as data.
    pub max_write_zeroes_bytes: u64,
    /// There is a volatile write cache: completed writes need a flush to be durable.
    pub write_cache: bool,
    /// Single writes can be made durable without a flush ([`ReqFlags::FUA`](super::ReqFlags::FUA) is cheap).
    pub fua: bool,
    /// It seeks.
    pub rotational: bool,
    /// It cannot be written.
    pub read_only: bool,
}

impl Default for QueueLimits {
    /// A device of 512-byte blocks with a write cache and nothing else.
    fn default() -> QueueLimits {
        QueueLimits {
            logical_block_size: 512,
            physical_block_size: 512,
            io_min: 0,
            io_opt: 0,
            max_discard_bytes: 0,
            discard_granularity: 0,
            discard_zeroes_data: false,
            max_write_zeroes_bytes: 0,
            write_cache: true,
            fua: false,
            rotational: false,
            read_only: false,
        }
    }
}

/// The smallest number that is a multiple of both; 0 counts as none. The larger one where the result is too large.
fn lcm_not_zero(a: u32, b: u32) -> u32 {
    if a == 0 || b == 0 {
        return a.max(b);
    }
    let (mut gcd, mut rest) = (a, b);
    while rest != 0 {
        (gcd, rest) = (rest, gcd % rest);
    }
    (a / gcd).checked_mul(b).unwrap_or(a.max(b))
}

impl QueueLimits {
    /// What a disk made of several can do when this is so for what was stacked already, and `lower` for one more: the
    /// larger blocks, the smaller limits, and what all of them can. The preferred size is a multiple of both.
    ///
    /// Unlike the kernel's it knows no offset of the part that is used, so that nothing is misaligned; and a disk
    /// discards only if each of them does, since the whole of a bio goes to each.
    ///
    /// Context: any.
    ///
    /// ```
    /// use kshim::block::QueueLimits;
    ///
    /// let a = QueueLimits { max_discard_bytes: 1 << 20, write_cache: false, ..QueueLimits::default() };
    /// let b = QueueLimits { logical_block_size: 4096, physical_block_size: 4096, ..QueueLimits::default() };
    /// let both = a.stack(&b);
    /// assert_eq!((both.logical_block_size, both.max_discard_bytes, both.write_cache), (4096, 0, true));
    /// ```
    #[doc(alias = "blk_stack_limits")]
    #[doc(alias = "queue_limits_stack_bdev")]
    #[must_use]
    pub fn stack(&self, lower: &QueueLimits) -> QueueLimits {
        QueueLimits {
            logical_block_size: self.logical_block_size.max(lower.logical_block_size),
            physical_block_size: self.physical_block_size.max(lower.physical_block_size),
            io_min: self.io_min.max(lower.io_min),
            io_opt: lcm_not_zero(self.io_opt, lower.io_opt),
            max_discard_bytes: self.max_discard_bytes.min(lower.max_discard_bytes),
            discard_granularity: self.discard_granularity.max(lower.discard_granularity),
            discard_zeroes_data: self.discard_zeroes_data && lower.discard_zeroes_data,
            max_write_zeroes_bytes: self
                .max_write_zeroes_bytes
                .min(lower.max_write_zeroes_bytes),
            write_cache: self.write_cache || lower.write_cache,
            fua: self.fua && lower.fua,
            rotational: self.rotational || lower.rotational,
            read_only: self.read_only || lower.read_only,
        }
    }

    /// Checks what a driver announces.
    pub(crate) fn is_valid(&self) -> bool {
        let ok = |size: u32| size.is_power_of_two() && size >= SECTOR_SIZE as u32;
        ok(self.logical_block_size)
            && self.logical_block_size <= MAX_LOGICAL_BLOCK_SIZE
            && ok(self.physical_block_size)
            && self.physical_block_size >= self.logical_block_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_sizes_suit_all_of_a_stack() {
        for (a, b, both) in [
            (0, 0, 0),
            (0, 65536, 65536),
            (65536, 98304, 196_608),
            (4096, 65536, 65536),
            (u32::MAX, u32::MAX - 1, u32::MAX),
        ] {
            let with = |io_opt| QueueLimits {
                io_opt,
                ..QueueLimits::default()
            };
            assert_eq!(with(a).stack(&with(b)).io_opt, both, "{a}, {b}");
            assert_eq!(with(b).stack(&with(a)).io_opt, both, "{b}, {a}");
        }
    }

    #[test]
    fn a_stack_can_what_all_of_it_can() {
        let able = QueueLimits {
            max_discard_bytes: 1 << 20,
            discard_zeroes_data: true,
            max_write_zeroes_bytes: 1 << 20,
            write_cache: false,
            fua: true,
            ..QueueLimits::default()
        };
        assert_eq!(able.stack(&able), able);
        let plain = QueueLimits {
            logical_block_size: 4096,
            physical_block_size: 4096,
            rotational: true,
            read_only: true,
            ..QueueLimits::default()
        };
        let both = able.stack(&plain);
        assert_eq!(both, plain.stack(&able));
        assert_eq!(both, plain);
    }
}
