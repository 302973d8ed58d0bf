//! SCSI commands to a driver that executes them itself.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::gendisk::Disk;
use crate::error::{Error, Result, code};
use crate::scatterlist::SGTable;

/// Which way the data of a command goes.
#[doc(alias = "dma_data_direction")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScsiDirection {
    /// No data.
    None,
    /// Into the table.
    #[doc(alias = "DMA_FROM_DEVICE")]
    FromDevice,
    /// Out of the table.
    #[doc(alias = "DMA_TO_DEVICE")]
    ToDevice,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScsiOutcome {
    /// Executed.
    Good,
    /// A status without sense, as BUSY (08h).
    Status(u8),
    /// CHECK CONDITION with this sense data.
    Sense(Vec<u8>),
    /// It did not get to a device that could tell.
    Failed(Error),
}

/// Who hears of the end of a command.
pub trait ScsiEndIo: Send + Sync {
    /// The command is done: it comes back with its table and private part, [`ScsiRequest::end_io`] taken out.
    ///
    /// Called exactly once, under the rules of [`BioEndIo::bio_done`](super::BioEndIo::bio_done).
    fn scsi_done(&self, cmd: ScsiRequest, outcome: ScsiOutcome);
}

impl<F: Fn(ScsiRequest, ScsiOutcome) + Send + Sync> ScsiEndIo for F {
    fn scsi_done(&self, cmd: ScsiRequest, outcome: ScsiOutcome) {
        self(cmd, outcome);
    }
}

/// One SCSI command for a device.
///
/// ```
/// use std::sync::Arc;
/// use kshim::block::{BlkMode, BlockDevice, ScsiOutcome, ScsiRequest};
///
/// let test_unit_ready = |bdev: &BlockDevice| {
///     let done = |cmd: ScsiRequest, outcome: ScsiOutcome| println!("{cmd:?}: {outcome:?}");
///     bdev.submit_scsi(ScsiRequest::new(vec![0; 6], Arc::new(done)));
/// };
/// if let Ok(bdev) = BlockDevice::open("/dev/kind/disk", BlkMode::READ | BlkMode::PASSTHROUGH) {
///     test_unit_ready(&bdev);
/// }
/// ```
///
/// C header: `include/scsi/scsi_cmnd.h` (`struct scsi_cmnd`)
#[doc(alias = "scsi_cmnd")]
pub struct ScsiRequest {
    /// The command descriptor block.
    #[doc(alias = "cmnd")]
    pub cdb: Vec<u8>,
    /// Which way the data goes.
    #[doc(alias = "sc_data_direction")]
    pub direction: ScsiDirection,
    /// Bytes of data.
    pub len: usize,
    /// The data.
    #[doc(alias = "sdb")]
    pub sg: SGTable,
    /// Set by the driver: how many of the `len` bytes at the end were not transferred.
    #[doc(alias = "resid_len")]
    pub resid: usize,
    /// For the owner.
    #[doc(alias = "host_scribble")]
    pub private: Option<Box<dyn Any + Send>>,
    /// Who hears of the end. `None` after completion.
    pub end_io: Option<Arc<dyn ScsiEndIo>>,
}

impl ScsiRequest {
    /// A command without data or private part.
    ///
    /// Context: any.
    #[doc(alias = "scsi_alloc_request")]
    pub fn new(cdb: Vec<u8>, end_io: Arc<dyn ScsiEndIo>) -> ScsiRequest {
        ScsiRequest {
            cdb,
            direction: ScsiDirection::None,
            len: 0,
            sg: SGTable::new(),
            resid: 0,
            private: None,
            end_io: Some(end_io),
        }
    }

    /// Sets the data: the first `len` bytes of `sg`.
    #[must_use]
    pub fn with_data(mut self, direction: ScsiDirection, sg: SGTable, len: usize) -> ScsiRequest {
        self.direction = direction;
        self.sg = sg;
        self.len = len;
        self
    }

    pub(super) fn check(&self) -> Result {
        let data = self.direction != ScsiDirection::None;
        if self.cdb.is_empty() || !data && self.len != 0 || self.len > self.sg.len() {
            return Err(code::EINVAL);
        }
        Ok(())
    }
}

impl fmt::Debug for ScsiRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScsiRequest")
            .field("cdb", &self.cdb)
            .field("direction", &self.direction)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Commands that drivers lost.
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many submitted commands drivers dropped without completing them. More than 0 is a bug, which tests look for.
///
/// Context: any.
pub fn dropped_scsi() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// A command in the hands of a driver. It ends in [`SubmittedScsi::complete`]; one that is dropped is a bug, which is
/// logged, counted ([`dropped_scsi`]) and completed with `EIO`.
#[must_use = "a submitted command has to be completed"]
pub struct SubmittedScsi {
    /// # Invariants
    ///
    /// `Some` until completed.
    cmd: Option<ScsiRequest>,
    /// Counted as in flight on this disk.
    disk: Option<Arc<Disk>>,
}

impl SubmittedScsi {
    pub(super) fn new(cmd: ScsiRequest) -> SubmittedScsi {
        SubmittedScsi {
            cmd: Some(cmd),
            disk: None,
        }
    }

    /// Takes over a reference that `disk.enter()` made.
    pub(super) fn set_disk(&mut self, disk: Arc<Disk>) {
        self.disk = Some(disk);
    }

    /// Ends the command.
    ///
    /// Context: any; runs the owner's [`ScsiEndIo::scsi_done`].
    #[doc(alias = "scsi_done")]
    pub fn complete(mut self, outcome: ScsiOutcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: ScsiOutcome) {
        let Some(mut cmd) = self.cmd.take() else {
            return;
        };
        // Before the call: the owner may close the device there.
        if let Some(disk) = self.disk.take() {
            disk.exit();
        }
        match cmd.end_io.take() {
            Some(end_io) => end_io.scsi_done(cmd, outcome),
            None => crate::pr_warn!("{cmd:?} ended, nobody hears of it"),
        }
    }
}

impl Deref for SubmittedScsi {
    type Target = ScsiRequest;
    fn deref(&self) -> &ScsiRequest {
        self.cmd
            .as_ref()
            .expect("present until completed, which consumes self")
    }
}

impl DerefMut for SubmittedScsi {
    fn deref_mut(&mut self) -> &mut ScsiRequest {
        self.cmd
            .as_mut()
            .expect("present until completed, which consumes self")
    }
}

impl Drop for SubmittedScsi {
    fn drop(&mut self) {
        if let Some(cmd) = &self.cmd {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            crate::pr_err!("BUG: {cmd:?} dropped by its driver");
            self.end(ScsiOutcome::Failed(code::EIO));
        }
    }
}

impl fmt::Debug for SubmittedScsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SubmittedScsi").field(&self.cmd).finish()
    }
}
