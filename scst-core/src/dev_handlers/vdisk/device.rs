//! The device: features, limits, state, and its making.

use super::attrs;
use super::format::FormatState;
use super::inquiry::{self, PortInfo};
use super::log::IoCounters;
use super::misc::DeviceClock;
use super::mode::{self, ControlBits, ModeState};
use super::open::Backing;
use super::params::NULLIO_SIZE;
use super::reply::{Fault, Reply};
use super::saved::SavedPages;
use super::store::Store;
use super::{BIO_VENDOR, FIO_VENDOR, Identity, ParamError, VdiskKind, VdiskParams};
use crate::cmd::ThreadsPoolType;
use crate::consts::MAX_NAME;
use kshim::error::{Error, code};
use kshim::fs;
use kshim::sync::rcu::{self, Rcu};
use kshim::sync::{Mutex, SpinLock};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Version descriptor of the command set: SBC-3.
pub(super) const SBC3: u16 = 0x04C0;
/// Most bytes one WRITE SAME may cover.
#[doc(alias = "max_write_same_len")]
pub(super) const MAX_WRITE_SAME_LEN: u64 = 256 * 1024 * 1024;
/// Most bytes one UNMAP may cover on a file.
pub(super) const FILE_UNMAP_MAX: u64 = 256 * 1024 * 1024;
/// Physical block size told for files.
pub(super) const FILE_PHYSICAL_BLOCK_SIZE: u32 = 4096;

/// What the device is and can do, as INQUIRY and the mode pages tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Peripheral device type.
    pub type_code: u8,
    /// log2 of the block size.
    pub block_shift: u8,
    /// RMB.
    pub removable: bool,
    /// Nothing is connected.
    pub dummy: bool,
    /// The medium rotates.
    pub rotational: bool,
    /// Logical block provisioning.
    pub thin_provisioned: bool,
    /// LBPRZ: unmapped blocks read as zeros. DIFFERS: SCST never says so.
    pub discard_zeroes_data: bool,
    /// Writes may sit in a volatile cache, now.
    pub volatile_cache: bool,
    /// Flushes are never needed.
    pub nv_cache: bool,
    /// Version descriptor of the command set; 0 for none.
    pub command_set_version: u16,
}

impl Features {
    /// Block size in bytes.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1u32.checked_shl(u32::from(self.block_shift)).unwrap_or(0)
    }
}

/// Limits of VPD page B0h and READ CAPACITY(16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Preferred transfer length in bytes.
    pub opt_trans_len: u32,
    /// Most blocks in one UNMAP.
    pub unmap_max_lba_cnt: u32,
    /// Unit of unmapping in blocks.
    pub unmap_opt_gran: u32,
    /// First aligned block of that unit.
    pub unmap_align: u32,
    /// Most bytes in one WRITE SAME.
    pub max_write_same_len: u64,
    /// Bytes of a physical block.
    pub physical_block_size: u32,
    /// Tell the physical block size.
    pub lb_per_pb_exp: bool,
}

/// Why a virtual disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VdiskError {
    /// Wrong parameters.
    #[error("device {name}: {source}")]
    Param {
        /// The device.
        name: String,
        /// What is wrong.
        source: ParamError,
    },
    /// A name that is empty or too long.
    #[error("device name {name:?} must have 1 to {MAX_NAME} characters")]
    Name {
        /// The name.
        name: String,
    },
    /// The backing store cannot be opened.
    #[error("device {name}: cannot open {}: {source}", path.display())]
    Open {
        /// The device.
        name: String,
        /// The file or block device.
        path: PathBuf,
        /// What the host says.
        source: Error,
    },
    /// The backing store has larger or misaligned blocks.
    #[error("device {name}: block size {block_size} does not fit {}, which needs {needs}", path.display())]
    BlockSize {
        /// The device.
        name: String,
        /// The file or block device.
        path: PathBuf,
        /// Block size wanted.
        block_size: u32,
        /// Multiple of this needed.
        needs: u32,
    },
}

impl VdiskError {
    /// The errno for management interfaces.
    #[must_use]
    pub fn errno(&self) -> Error {
        match self {
            Self::Param { .. } | Self::Name { .. } | Self::BlockSize { .. } => code::EINVAL,
            Self::Open { source, .. } => *source,
        }
    }
}

/// A virtual disk: the handler of one device.
///
/// ```
/// use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
///
/// let params = VdiskParams::parse(VdiskKind::Nullio, &[("size_mb", "1024")])?;
/// let disk = Vdisk::new("null0", &params)?;
/// assert_eq!(disk.size_bytes(), 1 << 30);
/// assert_eq!(disk.identity().t10_vend_id, "SCST_FIO");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "scst_vdisk_dev")]
pub struct Vdisk {
    name: String,
    kind: VdiskKind,
    block_shift: u8,
    /// What it is now, with its file or block device.
    backing: Rcu<Backing>,
    /// What the parameters said, and what management made of them.
    pub(super) params: SpinLock<VdiskParams>,
    /// Changes of `backing`, one at a time.
    pub(super) reopening: Mutex<()>,
    /// Which parts of the identity were given by the user, and which attributes were written.
    pub(super) set: AtomicU32,
    pub(super) read_only: bool,
    pub(super) tst: u8,
    pub(super) threads_num: i32,
    pub(super) threads_pool_type: ThreadsPoolType,
    pub(super) write_through: AtomicBool,
    pub(super) write_through_saved: AtomicBool,
    /// As the parameters say.
    pub(super) write_through_start: bool,
    nblocks: AtomicU64,
    /// Guarded against changes through management; read by INQUIRY only.
    #[doc(alias = "vdisk_serial_rwlock")]
    identity: SpinLock<Identity>,
    /// Control page values at start and as saved.
    pub(super) default_control: ControlBits,
    pub(super) saved_control: SpinLock<ControlBits>,
    /// Where mode pages are saved.
    pub(super) saved: Option<SavedPages>,
    pub(super) format: FormatState,
    pub(super) counters: IoCounters,
    pub(super) clock: DeviceClock,
    pub(super) prevent_medium_removal: AtomicBool,
}

impl std::fmt::Debug for Vdisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vdisk")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("nblocks", &self.nblocks())
            .finish_non_exhaustive()
    }
}

impl Vdisk {
    /// Makes a device and opens its backing store. Context: may sleep.
    ///
    /// # Errors
    /// See [`VdiskError`]; nothing is left open.
    pub fn new(name: &str, params: &VdiskParams) -> Result<Arc<Self>, VdiskError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(VdiskError::Name {
                name: name.to_owned(),
            });
        }
        params.validate().map_err(|source| VdiskError::Param {
            name: name.to_owned(),
            source,
        })?;
        let tags = params.dif.tags_file(name, params.state_dir.as_deref());
        if let Some(path) = tags.filter(|_| params.active) {
            fs::stat(&path).map_err(|source| VdiskError::Open {
                name: name.to_owned(),
                path,
                source,
            })?;
        }
        let backing = Backing::open(name, params)?;
        let vendor = if params.kind == VdiskKind::Blockio {
            BIO_VENDOR
        } else {
            FIO_VENDOR
        };
        let mut identity = Identity::new(vendor, name, params.setup_id);
        identity.apply(&params.identity);
        let default_control = ControlBits {
            tst: params.tst,
            ..ControlBits::default()
        };
        let size = backing
            .store
            .size()
            .unwrap_or(params.size.unwrap_or(match params.kind {
                VdiskKind::Nullio => NULLIO_SIZE,
                _ => 0,
            }));
        let set = if params.identity.t10_dev_id.is_some() {
            attrs::Set::T10_DEV_ID.bits()
        } else {
            0
        };
        let disk = Self {
            name: name.to_owned(),
            kind: params.kind,
            block_shift: params.block_shift,
            backing: Rcu::new(backing),
            params: SpinLock::new(params.clone()),
            reopening: Mutex::new(()),
            set: AtomicU32::new(set),
            read_only: params.read_only,
            tst: params.tst,
            threads_num: params.threads_num,
            threads_pool_type: params.threads_pool_type,
            write_through: AtomicBool::new(params.write_through),
            write_through_saved: AtomicBool::new(params.write_through),
            write_through_start: params.write_through,
            nblocks: AtomicU64::new(size >> params.block_shift),
            identity: SpinLock::new(identity),
            default_control,
            saved_control: SpinLock::new(default_control),
            saved: params
                .state_dir
                .as_deref()
                .and_then(|dir| SavedPages::new(dir, name)),
            format: FormatState::default(),
            counters: IoCounters::default(),
            clock: DeviceClock::default(),
            prevent_medium_removal: AtomicBool::new(false),
        };
        Ok(Arc::new(disk))
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which handler it is.
    #[must_use]
    pub fn kind(&self) -> VdiskKind {
        self.kind
    }

    /// Number of blocks. Context: any.
    #[inline]
    #[must_use]
    pub fn nblocks(&self) -> u64 {
        self.nblocks.load(Ordering::Relaxed)
    }

    /// Capacity in bytes. Context: any.
    #[inline]
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.nblocks()
            .checked_shl(u32::from(self.block_shift))
            .unwrap_or(u64::MAX)
    }

    /// log2 of the block size.
    #[inline]
    #[must_use]
    pub fn block_shift(&self) -> u8 {
        self.block_shift
    }

    /// Gives a device whose size is no file's another one; the caller then tells initiators
    /// ([`crate::device::Device::capacity_data_changed`]). Context: any.
    ///
    /// # Errors
    /// `EINVAL`: another kind of device, or a size that is 0, no multiple of the block size, or more than the block device has.
    #[doc(alias = "vdev_size_process_store")]
    pub fn resize(&self, bytes: u64) -> kshim::error::Result {
        let aligned = bytes != 0 && bytes.trailing_zeros() >= u32::from(self.block_shift);
        let fits = match (self.kind, self.store().size()) {
            (VdiskKind::Nullio, _) => true,
            (VdiskKind::Blockio, Some(there)) => bytes <= there,
            (VdiskKind::Blockio, None) => true,
            _ => false,
        };
        if !aligned || !fits {
            return Err(code::EINVAL);
        }
        self.set_size_bytes(bytes);
        Ok(())
    }

    /// Changes what a limit says. Context: may sleep.
    fn change_limits(&self, params: impl FnOnce(&mut VdiskParams), f: impl FnOnce(&mut Limits)) {
        let _lock = self.reopening.lock();
        params(&mut self.params.lock());
        let mut backing = self.backing();
        f(&mut backing.limits);
        self.set_backing(backing);
    }

    /// Changes the preferred transfer length, in bytes. Context: may sleep.
    pub(super) fn set_opt_trans_len(&self, len: u32) {
        self.change_limits(|p| p.opt_trans_len = Some(len), |l| l.opt_trans_len = len);
    }

    /// Changes whether the size of physical blocks is told. Context: may sleep.
    pub(super) fn set_lb_per_pb_exp(&self, on: bool) {
        self.change_limits(|p| p.lb_per_pb_exp = on, |l| l.lb_per_pb_exp = on);
    }

    /// Whether the backing store follows the ALUA state (`bind_alua_state`). Context: any.
    #[must_use]
    pub fn binds_alua_state(&self) -> bool {
        self.params.lock().bind_alua_state
    }

    /// Another medium has another size.
    pub(super) fn set_size_bytes(&self, bytes: u64) {
        let n = bytes >> self.block_shift;
        self.nblocks.store(n, Ordering::Relaxed);
    }

    /// Looks at the size of the backing store again and says whether it has changed; the caller then raises the unit
    /// attention ([`crate::device::Device::capacity_data_changed`]). Context: may sleep.
    ///
    /// # Errors
    /// Those of asking the host.
    #[doc(alias = "vdisk_resync_size")]
    pub fn resync_size(&self) -> kshim::error::Result<bool> {
        let Some(size) = self.store().current_size()? else {
            return Ok(false);
        };
        let n = size >> self.block_shift;
        Ok(self.nblocks.swap(n, Ordering::Relaxed) != n)
    }

    /// A copy of the identity. Context: any.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    /// Changes the identity; the caller raises INQUIRY DATA HAS CHANGED. Context: any.
    pub fn update_identity(&self, f: impl FnOnce(&mut Identity)) {
        f(&mut self.identity.lock());
    }

    /// What the device can do, now. Context: any.
    #[must_use]
    pub fn features(&self) -> Features {
        Features {
            volatile_cache: self.needs_flush_report(),
            ..self.base()
        }
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.backing.read(&rcu::read_lock()).limits
    }

    fn base(&self) -> Features {
        self.backing.read(&rcu::read_lock()).base
    }

    /// What holds the data now. It stays open for the caller, whatever management does. Context: any.
    pub(super) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.backing.read(&rcu::read_lock()).store)
    }

    /// What holds the data, without a reference: for a reactor.
    #[inline]
    pub(super) fn store_under<'g>(&self, guard: &'g rcu::Guard) -> &'g Store {
        &self.backing.read(guard).store
    }

    /// Another state of the backing store. The caller holds `reopening`. Context: may sleep.
    pub(super) fn set_backing(&self, new: Backing) {
        // Closes the old one, when nobody uses it any more.
        drop(self.backing.replace_sync(new));
    }

    /// A copy of the state of the backing store.
    pub(super) fn backing(&self) -> Backing {
        self.backing.read(&rcu::read_lock()).clone()
    }

    /// Whether writes complete before they are durable, as WCE tells.
    fn needs_flush_report(&self) -> bool {
        !self.write_through.load(Ordering::Relaxed) && !self.base().nv_cache
    }

    /// Whether a flush has anything to do.
    pub(super) fn needs_flush(&self) -> bool {
        self.needs_flush_report() && self.store_under(&rcu::read_lock()).needs_flush()
    }

    /// Whether every write has to be durable when it completes.
    #[inline]
    pub(super) fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed) && !self.base().nv_cache
    }

    /// INQUIRY (SPC-4 6.6) for a command that came by `port`.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn inquiry(&self, port: &PortInfo, cdb: &[u8], out: &mut Reply) -> Result<(), Fault> {
        let id = self.identity();
        inquiry::inquiry(&self.features(), &self.limits(), &id, port, cdb, out)
    }

    /// MODE SENSE(6) and (10) (SPC-4 6.13) for a nexus that may or may not write.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn mode_sense(
        &self,
        current: ControlBits,
        read_only: bool,
        cdb: &[u8],
        out: &mut Reply,
    ) -> Result<(), Fault> {
        let state = ModeState {
            nblocks: self.nblocks(),
            read_only,
            current,
            default: self.default_control,
            can_save: self.saved.is_some(),
            saved: *self.saved_control.lock(),
            write_through: self.write_through.load(Ordering::Relaxed),
            write_through_saved: self.write_through_saved.load(Ordering::Relaxed),
        };
        mode::mode_sense(&self.features(), &state, cdb, out)
    }

    /// READ CAPACITY(10) (SBC-3 5.15).
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn read_capacity(&self, cdb: &[u8], out: &mut Reply) -> Result<(), Fault> {
        mode::read_capacity(&self.base(), self.nblocks(), cdb, out)
    }

    /// READ CAPACITY(16) (SBC-3 5.16).
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn read_capacity16(&self, cdb: &[u8], out: &mut Reply) -> Result<(), Fault> {
        mode::read_capacity16(&self.base(), &self.limits(), self.nblocks(), cdb, out)
    }
}
