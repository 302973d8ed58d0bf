//! Disks that are made when they are opened, and SCSI commands to drivers that take them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use kshim::block::{
    Bio, BioOp, BlkMode, BlockDevice, BlockOps, BlockProber, QueueLimits, ScsiDirection,
    ScsiOutcome, ScsiRequest, SubmittedBio, SubmittedScsi, disks, dropped_scsi, register_disk,
    register_prober,
};
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use kshim::sync::SpinLock;

const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);
const SCSI: BlkMode = BlkMode::READ.union(BlkMode::PASSTHROUGH);

#[derive(Default)]
struct Counts {
    probes: AtomicUsize,
    opens: AtomicUsize,
    releases: AtomicUsize,
}

/// A disk whose size is known only when it is open.
struct Late {
    counts: Arc<Counts>,
    size: SpinLock<u64>,
    path: String,
}

impl BlockOps for Late {
    fn submit_bio(&self, bio: SubmittedBio) {
        bio.complete(Ok(()));
    }
    fn submit_scsi(&self, cmd: SubmittedScsi) {
        match cmd.cdb.first() {
            Some(0) => cmd.complete(ScsiOutcome::Good),
            Some(1) => drop(cmd),
            _ => cmd.complete(ScsiOutcome::Sense(vec![0x70])),
        }
    }
    fn limits(&self) -> QueueLimits {
        QueueLimits {
            // Nothing that a disk can have.
            logical_block_size: if self.path.ends_with("odd") { 100 } else { 512 },
            read_only: self.path.ends_with("ro"),
            ..QueueLimits::default()
        }
    }
    fn capacity_bytes(&self) -> u64 {
        *self.size.lock()
    }
    fn open(&self, _mode: BlkMode) -> Result {
        if self.path.ends_with("bad") {
            return Err(code::EIO);
        }
        self.counts.opens.fetch_add(1, Ordering::SeqCst);
        *self.size.lock() = 1 << 20;
        Ok(())
    }
    fn release(&self, _mode: BlkMode) {
        self.counts.releases.fetch_add(1, Ordering::SeqCst);
    }
}

struct Prober(Arc<Counts>);

impl BlockProber for Prober {
    fn probe(&self, path: &str) -> Result<Arc<dyn BlockOps>> {
        self.0.probes.fetch_add(1, Ordering::SeqCst);
        if path.ends_with("none") {
            return Err(code::ENXIO);
        }
        Ok(Arc::new(Late {
            counts: Arc::clone(&self.0),
            size: SpinLock::new(0),
            path: path.to_owned(),
        }))
    }
}

fn register(prefix: &str) -> Arc<Counts> {
    let counts = Arc::new(Counts::default());
    register_prober(prefix, Arc::new(Prober(Arc::clone(&counts)))).unwrap();
    counts
}

#[test]
fn a_disk_is_there_while_somebody_has_it_open() {
    let c = register("/dev/late1/");
    let path = "/dev/late1/a";
    let first = BlockDevice::open(path, RW | BlkMode::EXCL).unwrap();
    assert_eq!(first.capacity_bytes(), 1 << 20);
    assert!(disks().contains(&path.to_owned()));
    assert_eq!(
        BlockDevice::open(path, RW | BlkMode::EXCL).err(),
        Some(code::EBUSY)
    );
    let second = BlockDevice::open(path, BlkMode::READ).unwrap();
    assert_eq!(
        (
            c.probes.load(Ordering::SeqCst),
            c.opens.load(Ordering::SeqCst)
        ),
        (1, 2)
    );
    drop(first);
    assert!(disks().contains(&path.to_owned()));
    drop(second);
    assert!(!disks().contains(&path.to_owned()));
    assert_eq!(c.releases.load(Ordering::SeqCst), 2);
    drop(BlockDevice::open(path, RW | BlkMode::EXCL).unwrap());
    assert_eq!(c.probes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_failed_open_leaves_nothing() {
    let c = register("/dev/late2/");
    let open = |name: &str, mode| BlockDevice::open(format!("/dev/late2/{name}"), mode).err();
    assert_eq!(open("none", RW), Some(code::ENXIO));
    assert_eq!(open("bad", RW), Some(code::EIO));
    assert_eq!(open("odd", RW), Some(code::EINVAL));
    assert_eq!(open("ro", RW), Some(code::EROFS));
    assert_eq!(open("ro", BlkMode::READ), None);
    assert!(!disks().iter().any(|p| p.starts_with("/dev/late2/")));
    let (opens, releases) = (&c.opens, &c.releases);
    assert_eq!(
        opens.load(Ordering::SeqCst),
        releases.load(Ordering::SeqCst)
    );
}

#[test]
fn prefixes_do_not_overlap_and_registered_disks_come_first() {
    let c = register("/dev/late3/");
    let again = |prefix: &str| register_prober(prefix, Arc::new(Prober(Arc::default()))).err();
    assert_eq!(again("/dev/late3/"), Some(code::EEXIST));
    assert_eq!(again("/dev/late3/x/"), Some(code::EEXIST));
    assert_eq!(again("/dev/late4"), Some(code::EINVAL));
    assert_eq!(again("late4/"), Some(code::EINVAL));
    let mine = Late {
        counts: Arc::default(),
        size: SpinLock::new(0),
        path: String::new(),
    };
    let disk = register_disk("/dev/late3/mine", Arc::new(mine)).unwrap();
    drop(BlockDevice::open("/dev/late3/mine", RW).unwrap());
    assert_eq!(c.probes.load(Ordering::SeqCst), 0);
    disk.unregister().unwrap();
    assert!(BlockDevice::open("/dev/late3/mine", RW).is_ok());
    assert_eq!(c.probes.load(Ordering::SeqCst), 1);
}

#[test]
fn commands_go_to_who_takes_them() {
    register("/dev/late5/");
    let bdev = BlockDevice::open("/dev/late5/a", SCSI).unwrap();
    let run = |bdev: &BlockDevice, cdb: &[u8], len: usize| {
        let (tx, rx) = channel();
        let tx = SpinLock::new(tx);
        let end = move |req: ScsiRequest, outcome| tx.lock().send((req, outcome)).unwrap();
        let sg = SGTable::alloc(512).unwrap();
        let req = ScsiRequest::new(cdb.to_vec(), Arc::new(end));
        bdev.submit_scsi(req.with_data(ScsiDirection::FromDevice, sg, len));
        let (req, outcome) = rx.recv().unwrap();
        assert_eq!(req.sg.len(), 512);
        outcome
    };
    assert_eq!(run(&bdev, &[0; 6], 512), ScsiOutcome::Good);
    assert_eq!(run(&bdev, &[9; 6], 512), ScsiOutcome::Sense(vec![0x70]));
    assert_eq!(run(&bdev, &[], 512), ScsiOutcome::Failed(code::EINVAL));
    assert_eq!(run(&bdev, &[0; 6], 513), ScsiOutcome::Failed(code::EINVAL));
    let lost = dropped_scsi();
    assert_eq!(run(&bdev, &[1; 6], 512), ScsiOutcome::Failed(code::EIO));
    assert_eq!(dropped_scsi(), lost + 1);
    // Each way of opening has its kind of requests.
    let bio = Bio::new(BioOp::Flush, 0, 0, Arc::new(|_: Bio, _: Result| {}));
    assert_eq!(bdev.submit_bio_wait(bio).1, Err(code::EOPNOTSUPP));
    let blocks = BlockDevice::open("/dev/late5/a", RW).unwrap();
    assert_eq!(
        run(&blocks, &[0; 6], 512),
        ScsiOutcome::Failed(code::EOPNOTSUPP)
    );
    // A driver that knows nothing of commands, as that of plain files.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    assert_eq!(
        BlockDevice::open(file.path(), SCSI).err(),
        Some(code::EOPNOTSUPP)
    );
}

/// A disk whose driver looks at the list of disks when it goes.
struct Curious;

impl BlockOps for Curious {
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

impl Drop for Curious {
    fn drop(&mut self) {
        disks();
    }
}

#[test]
fn of_two_that_open_a_path_at_once_one_makes_the_disk() {
    const PATH: &str = "/dev/curious/1";
    static FIRST: SpinLock<Option<Arc<BlockDevice>>> = SpinLock::new(None);
    static PROBES: AtomicUsize = AtomicUsize::new(0);
    let probe = |path: &str| -> Result<Arc<dyn BlockOps>> {
        // While the first one is at it, another comes, and is quicker.
        if PROBES.fetch_add(1, Ordering::SeqCst) == 0 {
            let quicker = BlockDevice::open(path, RW)?;
            *FIRST.lock() = Some(quicker);
        }
        Ok(Arc::new(Curious))
    };
    register_prober("/dev/curious/", Arc::new(probe)).unwrap();
    let slower = BlockDevice::open(PATH, RW).unwrap();
    assert_eq!(PROBES.load(Ordering::SeqCst), 2);
    assert!(disks().contains(&PATH.to_owned()));
    drop(slower);
    assert!(disks().contains(&PATH.to_owned()));
    let quicker = FIRST.lock().take();
    drop(quicker);
    assert!(!disks().contains(&PATH.to_owned()));
}
