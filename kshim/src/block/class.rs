//! The tree of block drivers and their disks.

use std::sync::{LazyLock, Weak};

use super::gendisk::BlockOps;
use super::limits::{QueueLimits, SECTOR_SIZE};
use crate::error::{Result, code};
use crate::kobject::{Attr, Kobject, Work};
use crate::sync::{Arc, OnceLock};
use crate::workqueue::Queue;

static ROOT: LazyLock<Arc<Kobject>> = LazyLock::new(|| {
    let queue: OnceLock<Queue> = OnceLock::new();
    Kobject::root("block", Arc::new(move |work| run_store(&queue, work)))
});

/// Runs a write on the tree's queue, which begins with the first one. Work that is dropped is told to its writer.
fn run_store(place: &OnceLock<Queue>, work: Work) {
    let queue = place.get().map_or_else(
        || {
            let new = Queue::alloc_ordered("block_sysfs")?;
            Ok(place.get_or_init(|| new))
        },
        Ok,
    );
    if let Err(e) = queue.and_then(|queue| queue.try_spawn(work)) {
        crate::pr_err!("no thread for a write to the block tree: {e}");
    }
}

/// Picks a number out of the limits.
type Limit = fn(&QueueLimits) -> u64;

/// The root of the tree of block drivers, in the place of `/sys/block`: a directory for each driver, in it one for each of
/// its disks, and what else the driver has to set. A server shows it beside its own tree.
///
/// Context: any.
#[doc(alias = "block_class")]
pub fn class() -> &'static Arc<Kobject> {
    &ROOT
}

/// The directory of a driver, made when it is asked for the first time.
///
/// Context: any. Errors: as [`Kobject::add`].
#[doc(alias = "register_blkdev")]
pub fn class_dir(driver: &str) -> Result<Arc<Kobject>> {
    match class().add(driver) {
        Err(code::EEXIST) => class().child(driver).ok_or(code::EEXIST),
        made => made,
    }
}

/// Adds what `/sys/block/DISK` has for every disk: `size` in sectors of 512 bytes, `ro`, and the limits in `queue/`.
///
/// ```
/// use std::sync::{Arc, Weak};
/// use kshim::block::{BlockOps, QueueLimits, SubmittedBio, add_disk_attrs, class, class_dir};
/// use kshim::kobject::tree::{Tree, TreeOps};
///
/// struct Disk;
/// impl BlockOps for Disk {
///     fn submit_bio(&self, bio: SubmittedBio) { bio.complete(Ok(())) }
///     fn limits(&self) -> QueueLimits { QueueLimits::default() }
///     fn capacity_bytes(&self) -> u64 { 1 << 20 }
/// }
///
/// let disk: Arc<dyn BlockOps> = Arc::new(Disk);
/// let dir = class_dir("example")?.add("d0")?;
/// add_disk_attrs(&dir, &Arc::downgrade(&disk))?;
/// assert_eq!(Tree::new(class()).read("example/d0/size")?, b"2048\n");
/// dir.del(); // when the disk goes
/// # Ok::<(), kshim::error::Error>(())
/// ```
///
/// Context: may sleep. Errors: as [`Kobject::add`].
#[doc(alias = "disk_attr_group")]
#[doc(alias = "queue_attr_group")]
pub fn add_disk_attrs(dir: &Arc<Kobject>, disk: &Weak<dyn BlockOps>) -> Result {
    let ops = Weak::clone(disk);
    let size = move || {
        let ops = ops.upgrade().ok_or(code::ENODEV)?;
        Ok(format!("{}\n", ops.capacity_bytes() / SECTOR_SIZE))
    };
    dir.add_attr(Attr::ro("size", size))?;
    dir.add_attr(limit("ro", disk, |l| u64::from(l.read_only)))?;
    let queue = dir.add("queue")?;
    let attrs: [(&str, Limit); 9] = [
        ("logical_block_size", |l| u64::from(l.logical_block_size)),
        ("physical_block_size", |l| u64::from(l.physical_block_size)),
        ("minimum_io_size", |l| u64::from(l.io_min)),
        ("optimal_io_size", |l| u64::from(l.io_opt)),
        ("discard_granularity", |l| u64::from(l.discard_granularity)),
        ("discard_max_bytes", |l| l.max_discard_bytes),
        ("write_zeroes_max_bytes", |l| l.max_write_zeroes_bytes),
        ("fua", |l| u64::from(l.fua)),
        ("rotational", |l| u64::from(l.rotational)),
    ];
    queue.add_attrs(attrs.map(|(name, get)| limit(name, disk, get)))?;
    let ops = Weak::clone(disk);
    let cache = move || {
        let cached = ops.upgrade().ok_or(code::ENODEV)?.limits().write_cache;
        let text = if cached {
            "write back\n"
        } else {
            "write through\n"
        };
        Ok(text.to_owned())
    };
    queue.add_attr(Attr::ro("write_cache", cache))
}

fn limit(name: &str, disk: &Weak<dyn BlockOps>, get: Limit) -> Attr {
    let ops = Weak::clone(disk);
    let show = move || {
        let limits = ops.upgrade().ok_or(code::ENODEV)?.limits();
        Ok(format!("{}\n", get(&limits)))
    };
    Attr::ro(name, show)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::SubmittedBio;
    use crate::kobject::tree::{Tree, TreeOps};

    struct Disk;

    impl BlockOps for Disk {
        fn submit_bio(&self, bio: SubmittedBio) {
            bio.complete(Ok(()));
        }
        fn limits(&self) -> QueueLimits {
            QueueLimits::default()
        }
        fn capacity_bytes(&self) -> u64 {
            1 << 20
        }
    }

    #[test]
    fn disks_have_their_attributes_while_they_are_there() {
        let driver = class_dir("test_class").unwrap();
        assert!(Arc::ptr_eq(&driver, &class_dir("test_class").unwrap()));
        let disk: Arc<dyn BlockOps> = Arc::new(Disk);
        let dir = driver.add("d0").unwrap();
        add_disk_attrs(&dir, &Arc::downgrade(&disk)).unwrap();
        let tree = Tree::new(class());
        let read = |name: &str| {
            let value = tree.read(&format!("test_class/d0/{name}"))?;
            String::from_utf8(value).map_err(|_| code::EINVAL)
        };
        assert_eq!(read("size").unwrap(), "2048\n");
        assert_eq!(read("queue/logical_block_size").unwrap(), "512\n");
        assert_eq!(read("queue/write_cache").unwrap(), "write back\n");
        drop(disk);
        assert_eq!(read("size"), Err(code::ENODEV));
        dir.del();
        assert!(read("ro").is_err());
    }
}
