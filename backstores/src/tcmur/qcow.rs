//! Looks at a qcow2 image before handler_qcow opens it.
//!
//! handler_qcow of 1.5.4 gives a new cluster a place in this order: it enters the cluster into the table of level 2, then counts the
//! reference, then writes the data. A server that is killed in between leaves a cluster that is entered but not counted, and
//! the handler's next start takes it for free: it zeroes it and uses it twice. So such clusters are put right at each start: if nothing was
//! written to them yet, they are taken out of the table again, which brings back what was there before; else they are counted.
//!
//! It also takes no notice of features that an image needs its readers to know, and would spoil such an image.
//!
//! Format: `docs/interop/qcow2.txt` of QEMU.

use std::collections::HashMap;

use kshim::fs::{File, OpenOptions};
use kshim::prelude::*;

/// `QFI\xFB`
const MAGIC: u64 = 0x5146_49FB;
/// Bits 9 to 55 of a table entry: where a cluster is.
const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Bit 63: its reference count is 1.
const COPIED: u64 = 1 << 63;
/// Bit 62: it is compressed, and the entry is of another form.
const COMPRESSED: u64 = 1 << 62;
/// Of the header of version 3.
const HEADER_LEN: usize = 104;
/// Largest table of level 1, and of reference blocks, in bytes; QEMU has 32 and 8 MiB.
const MAX_TABLE: u64 = 32 << 20;

fn be(bytes: &[u8], at: usize, n: usize) -> u64 {
    let field = bytes.get(at..at + n).unwrap_or_default();
    field.iter().fold(0, |v, b| v << 8 | u64::from(*b))
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|w| be(w, 0, 8)).collect()
}

struct Image {
    file: File,
    cluster_bits: u32,
    refcount_order: u32,
    /// Where blocks of reference counts are.
    blocks: Vec<u64>,
    /// Those that were looked at, by place.
    cache: HashMap<u64, Vec<u8>>,
    /// What was put right.
    mended: usize,
}

/// Puts an image right that a killed server has left, and refuses one that the handler would spoil.
///
/// Context: may sleep. Nobody may have the image open.
///
/// # Errors
///
/// `EOPNOTSUPP`: the image has features that the handler does not know. `EUCLEAN`: it is damaged in another way. Others: reading and
/// writing it.
pub(super) fn mend(path: &str) -> Result {
    let file = File::open(path, &OpenOptions::new())?;
    let mut head = [0; HEADER_LEN];
    let n = file.read_at(&mut head, 0)?;
    let head = head.get(..n).unwrap_or_default();
    let version = be(head, 4, 4);
    // Version 1 has no reference counts, and raw files have nothing.
    if be(head, 0, 4) != MAGIC || version < 2 || n < 72 {
        return Ok(());
    }
    if version >= 3 && be(head, 72, 8) != 0 || be(head, 32, 4) != 0 {
        pr_err!(
            "{path}: the image is encrypted, or has features ({:#x}) that the handler does not know; if it is just dirty, \
             \"qemu-img check -r all\" helps",
            be(head, 72, 8)
        );
        return Err(EOPNOTSUPP);
    }
    let cluster_bits = be(head, 20, 4) as u32;
    let refcount_order = if version >= 3 {
        be(head, 96, 4) as u32
    } else {
        4
    };
    if !(9..=21).contains(&cluster_bits) || refcount_order > 6 {
        return Err(EUCLEAN);
    }
    let (l1_len, l1_at) = (be(head, 36, 4) * 8, be(head, 40, 8));
    let (blocks_at, blocks_len) = (be(head, 48, 8), be(head, 56, 4) << cluster_bits);
    let mut image = Image {
        blocks: words(&read(&file, blocks_at, blocks_len)?),
        file,
        cluster_bits,
        refcount_order,
        cache: HashMap::new(),
        mended: 0,
    };
    image.mend_blocks()?;
    image.mend_tables(l1_at, l1_len)?;
    if image.mended > 0 {
        image.file.fdatasync()?;
        pr_warn!(
            "{path}: was not closed: {} clusters put right",
            image.mended
        );
    }
    Ok(())
}

fn read(file: &File, at: u64, len: u64) -> Result<Vec<u8>> {
    if len > MAX_TABLE {
        return Err(EUCLEAN);
    }
    let mut bytes = vec![0; usize::try_from(len)?];
    // Beyond the end of the file there are zeros.
    file.read_at(&mut bytes, at)?;
    Ok(bytes)
}

impl Image {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the reference count of the cluster at `at` is: block, bit in it. `None`: no block has it.
    fn place(&self, at: u64) -> Option<(u64, usize)> {
        let per_block_bits = self.cluster_bits + 3 - self.refcount_order;
        let n = at >> self.cluster_bits;
        let block = self
            .blocks
            .get(usize::try_from(n >> per_block_bits).ok()?)?;
        let i = (n & ((1 << per_block_bits) - 1)) << self.refcount_order;
        (*block != 0).then_some((*block, i as usize))
    }

    fn block(&mut self, block: u64) -> Result<&mut Vec<u8>> {
        let len = self.cluster();
        match self.cache.entry(block) {
            std::collections::hash_map::Entry::Occupied(e) => Ok(e.into_mut()),
            std::collections::hash_map::Entry::Vacant(e) => {
                Ok(e.insert(read(&self.file, block, len)?))
            }
        }
    }

    fn is_counted(&mut self, at: u64) -> Result<bool> {
        let Some((block, bit)) = self.place(at) else {
            return Ok(false);
        };
        let order = self.refcount_order;
        let bytes = self.block(block)?;
        Ok(if order < 3 {
            let mask = (1u8 << (1 << order)) - 1;
            bytes[bit / 8] >> (bit % 8) & mask != 0
        } else {
            be(bytes, bit / 8, 1 << (order - 3)) != 0
        })
    }

    /// Sets a reference count to 1.
    fn count(&mut self, at: u64) -> Result {
        let (block, bit) = self.place(at).ok_or(EUCLEAN)?;
        let order = self.refcount_order;
        let bytes = self.block(block)?;
        let (from, n) = if order < 3 {
            bytes[bit / 8] |= 1 << (bit % 8);
            (bit / 8, 1)
        } else {
            let n = 1 << (order - 3);
            bytes[bit / 8 + n - 1] = 1;
            (bit / 8, n)
        };
        let changed = bytes[from..from + n].to_vec();
        self.mended += 1;
        self.write(&changed, block + from as u64)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result {
        let n = self.file.write_at(bytes, at)?;
        if n == bytes.len() { Ok(()) } else { Err(EIO) }
    }

    /// Blocks of reference counts are clusters too.
    fn mend_blocks(&mut self) -> Result {
        for block in self.blocks.clone() {
            if block != 0 && !self.is_counted(block)? {
                self.count(block)?;
            }
        }
        Ok(())
    }

    fn mend_tables(&mut self, l1_at: u64, l1_len: u64) -> Result {
        let l1 = words(&read(&self.file, l1_at, l1_len)?);
        for (i, entry) in (0..).zip(l1) {
            let table = entry & OFFSET;
            if table == 0 || !self.mend_entry(entry, l1_at + 8 * i)? {
                continue;
            }
            let l2 = words(&read(&self.file, table, self.cluster())?);
            for (j, entry) in (0..).zip(l2) {
                if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                    self.mend_entry(entry, table + 8 * j)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at an entry of a table, which is at `at`. Returns whether it is still there.
    fn mend_entry(&mut self, entry: u64, at: u64) -> Result<bool> {
        let cluster = entry & OFFSET;
        if self.is_counted(cluster)? {
            return Ok(true);
        }
        if entry & COPIED == 0 {
            // Not how the handler leaves things.
            return Err(EUCLEAN);
        }
        let data = read(&self.file, cluster, self.cluster())?;
        if data.iter().any(|b| *b != 0) {
            self.count(cluster)?;
            return Ok(true);
        }
        self.mended += 1;
        self.write(&[0; 8], at)?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Runs a tool of QEMU; `None`: there is none.
    fn tool(name: &str, args: &[&str]) -> Option<bool> {
        match Command::new(name).args(args).output() {
            Ok(out) => Some(out.status.success()),
            Err(_) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "{name} is missing: run tools/setup"
                );
                eprintln!("SKIPPED: {name} is missing (tools/setup installs it)");
                None
            }
        }
    }

    /// An image of 1 MiB whose first and third 64 KiB were written, and where these two are in the file.
    fn image(dir: &std::path::Path, options: &str) -> Option<(String, [u64; 2])> {
        let path = dir.join("a.qcow2").to_str().unwrap().to_owned();
        let create = ["create", "-q", "-f", "qcow2", "-o", options, &path, "1M"];
        assert!(tool("qemu-img", &create)?);
        let write = ["-c", "write -P 7 0 64k", "-c", "write -P 8 128k 64k", &path];
        assert!(tool("qemu-io", &write)?);
        let bytes = std::fs::read(&path).unwrap();
        let l1 = be(&bytes, 40, 8) as usize;
        let l2 = (be(&bytes, l1, 8) & OFFSET) as usize;
        let at = |i: usize| be(&bytes, l2 + 8 * i, 8) & OFFSET;
        Some((path, [at(0), at(2)]))
    }

    /// Sets the 16-bit reference count of a cluster to 0.
    fn forget(path: &str, cluster: u64) {
        let mut bytes = std::fs::read(path).unwrap();
        let table = be(&bytes, 48, 8) as usize;
        let block = be(&bytes, table, 8) as usize;
        let at = block + 2 * (cluster >> 16) as usize;
        bytes[at..at + 2].fill(0);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn what_was_entered_but_not_counted_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        for options in ["compat=1.1", "compat=0.10"] {
            let Some((path, [first, second])) = image(dir.path(), options) else {
                return;
            };
            let sound = std::fs::read(&path).unwrap();
            mend(&path).unwrap();
            assert!(
                std::fs::read(&path).unwrap() == sound,
                "a sound image was changed"
            );
            // One that has its data, one that has none yet.
            forget(&path, first);
            forget(&path, second);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[second as usize..second as usize + 65536].fill(0);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(tool("qemu-img", &["check", "-q", &path]), Some(false));
            mend(&path).unwrap();
            assert_eq!(tool("qemu-img", &["check", "-q", &path]), Some(true));
            let read = [
                "-r",
                "-c",
                "read -P 7 0 64k",
                "-c",
                "read -P 0 128k 64k",
                &path,
            ];
            assert_eq!(tool("qemu-io", &read), Some(true));
        }
    }

    #[test]
    fn images_that_the_handler_would_spoil_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let Some((path, _)) = image(dir.path(), "compat=1.1,extended_l2=on") else {
            return;
        };
        assert_eq!(mend(&path), Err(EOPNOTSUPP));
        let Some((path, [first, _])) = image(dir.path(), "compat=1.1") else {
            return;
        };
        // Damage of another kind: an entry that claims to be shared, of a cluster that nobody counts.
        forget(&path, first);
        let mut bytes = std::fs::read(&path).unwrap();
        let l2 = (be(&bytes, be(&bytes, 40, 8) as usize, 8) & OFFSET) as usize;
        bytes[l2] &= 0x7F;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(mend(&path), Err(EUCLEAN));
        let raw = dir.path().join("raw");
        std::fs::write(&raw, [1; 4096]).unwrap();
        assert_eq!(mend(raw.to_str().unwrap()), Ok(()));
        std::fs::write(&raw, []).unwrap();
        assert_eq!(mend(raw.to_str().unwrap()), Ok(()));
        assert_eq!(mend("/no/such/image"), Err(ENOENT));
    }
}
