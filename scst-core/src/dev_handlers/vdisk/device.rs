//! The device: features, limits, state, and its making.

use super::blockio::BlockStore;
use super::cdrom::CdStore;
use super::fileio::FileStore;
use super::format::FormatState;
use super::inquiry::{self, PortInfo};
use super::log::IoCounters;
use super::misc::{DeviceClock, EchoBuffers};
use super::mode::{self, ControlBits, ModeState};
use super::params::NULLIO_SIZE;
use super::reply::{Fault, Reply};
use super::saved::SavedPages;
use super::store::Store;
use super::{BIO_VENDOR, FIO_VENDOR, Identity, ParamError, VdiskKind, VdiskParams};
use crate::consts::{MAX_NAME, TYPE_DISK, TYPE_ROM};
use kshim::error::{Error, code};
use kshim::sync::SpinLock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Version descriptor of the command set: SBC-3.
const SBC3: u16 = 0x04C0;
/// Most bytes one WRITE SAME may cover.
#[doc(alias = "max_write_same_len")]
pub(super) const MAX_WRITE_SAME_LEN: u64 = 256 * 1024 * 1024;
/// Most bytes one UNMAP may cover on a file.
const FILE_UNMAP_MAX: u64 = 256 * 1024 * 1024;
/// Physical block size told for files.
const FILE_PHYSICAL_BLOCK_SIZE: u32 = 4096;

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
    /// `volatile_cache` is kept in `write_through` and computed by [`Vdisk::features`].
    base: Features,
    limits: Limits,
    pub(super) read_only: bool,
    pub(super) tst: u8,
    pub(super) threads_num: i32,
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
    pub(super) echo: EchoBuffers,
    pub(super) prevent_medium_removal: AtomicBool,
    pub(super) store: Store,
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
        let store = open_store(name, params)?;
        let vendor = if params.kind == VdiskKind::Blockio {
            BIO_VENDOR
        } else {
            FIO_VENDOR
        };
        let mut identity = Identity::new(vendor, name, params.setup_id);
        identity.apply(&params.identity);
        let can_discard = !params.read_only && store.can_discard();
        let thin = match params.thin_provisioned {
            Some(true) if !can_discard && !matches!(store, Store::Closed) => {
                kshim::pr_warn!("Device {name} doesn't support thin provisioning, disabling it.");
                false
            }
            Some(thin) => thin,
            None => params.kind == VdiskKind::Blockio && can_discard,
        };
        let cdrom = params.kind == VdiskKind::Vcdrom;
        let base = Features {
            type_code: if cdrom { TYPE_ROM } else { TYPE_DISK },
            block_shift: params.block_shift,
            removable: params.removable,
            dummy: params.dummy,
            rotational: params.rotational.unwrap_or(store.rotational()),
            thin_provisioned: thin,
            discard_zeroes_data: thin && store.discard_zeroes_data(),
            volatile_cache: true,
            nv_cache: params.nv_cache || store.flush_unsupported(),
            // A CD-ROM drive lacks much of MMC, and claims no version of it.
            command_set_version: if cdrom { 0 } else { SBC3 },
        };
        let default_control = ControlBits {
            tst: params.tst,
            ..ControlBits::default()
        };
        let size = store
            .size()
            .unwrap_or(params.size.unwrap_or(match params.kind {
                VdiskKind::Nullio => NULLIO_SIZE,
                _ => 0,
            }));
        let disk = Self {
            name: name.to_owned(),
            kind: params.kind,
            base,
            limits: limits(params, &store),
            read_only: params.read_only,
            tst: params.tst,
            threads_num: params.threads_num,
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
            echo: EchoBuffers::default(),
            prevent_medium_removal: AtomicBool::new(false),
            store,
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
            .checked_shl(u32::from(self.base.block_shift))
            .unwrap_or(u64::MAX)
    }

    /// log2 of the block size.
    #[inline]
    #[must_use]
    pub fn block_shift(&self) -> u8 {
        self.base.block_shift
    }

    /// Gives a null device another size; the caller then tells initiators
    /// ([`crate::device::Device::capacity_data_changed`]). Context: any.
    ///
    /// # Errors
    /// `EINVAL`: another kind of device, or a size that is 0 or no multiple of the block size.
    pub fn resize_null(&self, bytes: u64) -> kshim::error::Result {
        let aligned = bytes != 0 && bytes.trailing_zeros() >= u32::from(self.base.block_shift);
        if self.kind != VdiskKind::Nullio || !aligned {
            return Err(code::EINVAL);
        }
        self.set_size_bytes(bytes);
        Ok(())
    }

    /// Another medium has another size.
    pub(super) fn set_size_bytes(&self, bytes: u64) {
        let n = bytes >> self.base.block_shift;
        self.nblocks.store(n, Ordering::Relaxed);
    }

    /// Looks at the size of the backing store again and says whether it has changed; the caller then raises the unit
    /// attention ([`crate::device::Device::capacity_data_changed`]). Context: may sleep.
    ///
    /// # Errors
    /// Those of asking the host.
    #[doc(alias = "vdisk_resync_size")]
    pub fn resync_size(&self) -> kshim::error::Result<bool> {
        let Some(size) = self.store.current_size()? else {
            return Ok(false);
        };
        let n = size >> self.base.block_shift;
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
            ..self.base
        }
    }

    /// Its limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether writes complete before they are durable, as WCE tells.
    fn needs_flush_report(&self) -> bool {
        !self.write_through.load(Ordering::Relaxed) && !self.base.nv_cache
    }

    /// Whether a flush has anything to do.
    pub(super) fn needs_flush(&self) -> bool {
        self.needs_flush_report() && self.store.needs_flush()
    }

    /// Whether every write has to be durable when it completes.
    #[inline]
    pub(super) fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed) && !self.base.nv_cache
    }

    /// INQUIRY (SPC-4 6.6) for a command that came by `port`.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn inquiry(&self, port: &PortInfo, cdb: &[u8], out: &mut Reply) -> Result<(), Fault> {
        let id = self.identity();
        inquiry::inquiry(&self.features(), &self.limits, &id, port, cdb, out)
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
        mode::read_capacity(&self.base, self.nblocks(), cdb, out)
    }

    /// READ CAPACITY(16) (SBC-3 5.16).
    ///
    /// # Errors
    /// INVALID FIELD IN CDB.
    pub fn read_capacity16(&self, cdb: &[u8], out: &mut Reply) -> Result<(), Fault> {
        mode::read_capacity16(&self.base, &self.limits, self.nblocks(), cdb, out)
    }
}

fn open_store(name: &str, p: &VdiskParams) -> Result<Store, VdiskError> {
    let path = match (&p.filename, p.kind) {
        (_, VdiskKind::Nullio) => return Ok(Store::Null),
        (None, VdiskKind::Vcdrom) => return Ok(Store::Cd(CdStore::default())),
        (Some(path), _) => path.clone(),
        (None, _) => {
            let source = ParamError::Missing("filename");
            return Err(VdiskError::Param {
                name: name.to_owned(),
                source,
            });
        }
    };
    if !p.active {
        return Ok(Store::Closed);
    }
    let opened = match p.kind {
        VdiskKind::Fileio => FileStore::open(&path, p).map(Store::File),
        VdiskKind::Vcdrom => CdStore::open(Some(&path)).map(Store::Cd),
        _ => BlockStore::open(&path, p).map(Store::Block),
    };
    let store = opened.map_err(|source| VdiskError::Open {
        name: name.to_owned(),
        path: path.clone(),
        source,
    })?;
    let block_size = 1u32.checked_shl(u32::from(p.block_shift)).unwrap_or(0);
    let needs = store.block_align();
    if block_size.checked_rem(needs) != Some(0) {
        return Err(VdiskError::BlockSize {
            name: name.to_owned(),
            path,
            block_size,
            needs,
        });
    }
    Ok(store)
}

fn limits(p: &VdiskParams, store: &Store) -> Limits {
    let blocks = |bytes: u64| {
        let n = bytes.checked_shr(u32::from(p.block_shift)).unwrap_or(0);
        u32::try_from(n).unwrap_or(u32::MAX)
    };
    let mut lim = Limits {
        opt_trans_len: super::params::DEF_OPT_TRANS_LEN,
        unmap_max_lba_cnt: blocks(FILE_UNMAP_MAX),
        unmap_opt_gran: 1,
        unmap_align: 0,
        max_write_same_len: MAX_WRITE_SAME_LEN,
        physical_block_size: FILE_PHYSICAL_BLOCK_SIZE,
        lb_per_pb_exp: p.lb_per_pb_exp,
    };
    if let Store::Block(b) = store {
        let q = b.limits();
        if q.io_opt != 0 {
            lim.opt_trans_len = q.io_opt;
        }
        lim.unmap_max_lba_cnt = blocks(q.max_discard_bytes);
        lim.unmap_opt_gran = blocks(u64::from(q.discard_granularity));
        lim.physical_block_size = q.physical_block_size;
    }
    lim
}
