//! RAM disks that management makes by a path: `/dev/ram/NAME?size=BYTES`, `/dev/mmap/FILE[?size=BYTES]`.
//!
//! They are there while somebody has them open: in the server, while the device is and is active.

use std::path::PathBuf;

use kshim::block::{BlkMode, BlockOps, BlockProber, QueueLimits, SubmittedBio, register_prober};
use kshim::fs;
use kshim::page::LentRange;
use kshim::prelude::*;
use kshim::sync::{Mutex, OnceLock};

use super::{Backing, RAM_PREFIX, Ram, RamConfig, check_name};
use crate::options::{parse_size, split_options};

/// Where files appear that are mapped into memory: the prefix, then the file's absolute path.
pub const MMAP_PREFIX: &str = "/dev/mmap/";

/// Makes `/dev/ram/NAME?size=BYTES` and `/dev/mmap/FILE` openable. Later calls do nothing.
///
/// Context: any. Errors: `EEXIST`: another driver has such paths.
pub fn init() -> Result {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.set(()).is_err() {
        return Ok(());
    }
    register_prober(RAM_PREFIX, Arc::new(Prober))?;
    register_prober(MMAP_PREFIX, Arc::new(Prober))
}

struct Prober;

impl BlockProber for Prober {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        let wanted = parse(path).inspect_err(|_| {
            pr_err!("{path}: want {RAM_PREFIX}NAME?size=BYTES or {MMAP_PREFIX}FILE[?size=BYTES]");
        })?;
        Ok(Arc::new(Probed {
            path: path.to_owned(),
            wanted,
            gate: Mutex::new(()),
            ram: OnceLock::new(),
        }))
    }
}

/// What a path asks for. Size 0: the file's.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    size: u64,
    backing: Backing,
}

fn parse(path: &str) -> Result<Wanted> {
    let (what, options) = split_options(path);
    let mut size = 0;
    for (key, value) in options {
        match key {
            "size" => size = parse_size(value).ok_or(EINVAL)?,
            _ => return Err(EINVAL),
        }
    }
    if let Some(name) = what.strip_prefix(RAM_PREFIX) {
        check_name(name)?;
        let backing = Backing::Anonymous;
        return (size > 0).then_some(Wanted { size, backing }).ok_or(EINVAL);
    }
    match what.strip_prefix(MMAP_PREFIX) {
        Some(file) if file.starts_with('/') && !file.contains('\0') => Ok(Wanted {
            size,
            backing: Backing::File(PathBuf::from(file)),
        }),
        _ => Err(EINVAL),
    }
}

/// A disk that is made when it is opened first.
struct Probed {
    path: String,
    wanted: Wanted,
    gate: Mutex<()>,
    ram: OnceLock<Ram>,
}

impl Probed {
    fn make(&self) -> Result<Ram> {
        let size = match (self.wanted.size, &self.wanted.backing) {
            (0, Backing::File(file)) => fs::stat(file)?.len,
            (size, _) => size,
        };
        Ram::new(
            &self.path,
            &RamConfig {
                backing: self.wanted.backing.clone(),
                ..RamConfig::new(size)
            },
        )
    }
}

impl BlockOps for Probed {
    fn submit_bio(&self, bio: SubmittedBio) {
        match self.ram.get() {
            Some(ram) => ram.submit_bio(bio),
            None => bio.complete(Err(ENODEV)),
        }
    }

    fn limits(&self) -> QueueLimits {
        self.ram.get().map(BlockOps::limits).unwrap_or_default()
    }

    fn capacity_bytes(&self) -> u64 {
        self.ram.get().map_or(0, BlockOps::capacity_bytes)
    }

    fn direct_access(&self, pos: u64, len: usize) -> Option<LentRange> {
        self.ram.get()?.direct_access(pos, len)
    }

    fn is_inline(&self) -> bool {
        self.ram.get().is_some_and(BlockOps::is_inline)
    }

    fn open(&self, mode: BlkMode) -> Result {
        if mode.contains(BlkMode::PASSTHROUGH) {
            return Err(EOPNOTSUPP);
        }
        let _gate = self.gate.lock();
        if self.ram.get().is_none() {
            let made = self.make().inspect_err(|e| pr_err!("{}: {e}", self.path))?;
            // Nobody else: the gate is shut.
            drop(self.ram.set(made));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let ram = parse("/dev/ram/a?size=1M").unwrap();
        assert_eq!((ram.size, ram.backing), (1 << 20, Backing::Anonymous));
        let file = |path: &str| Backing::File(PathBuf::from(path));
        let map = parse("/dev/mmap//srv/a b?size=4K").unwrap();
        assert_eq!((map.size, map.backing), (4096, file("/srv/a b")));
        assert_eq!(parse("/dev/mmap//x?").unwrap().backing, file("/x?"));
        for bad in [
            "/dev/ram/a",
            "/dev/ram/?size=1M",
            "/dev/ram/a/b?size=1M",
            "/dev/ram/a?size=0",
            "/dev/ram/a?size=1M&file=/x",
            "/dev/mmap/x",
            "/dev/mmap/",
            "/dev/other/x?size=1M",
        ] {
            assert_eq!(parse(bad), Err(EINVAL), "{bad}");
        }
    }
}
