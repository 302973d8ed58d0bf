//! Opening the backing store, and what follows from it.
//!
//! C source: `vdisk_open_fd`, `vdisk_reexamine`, `vdisk_check_tp_support` of `scst/src/dev_handlers/scst_vdisk.c`

use super::blockio::BlockStore;
use super::cdrom::CdStore;
use super::device::{FILE_PHYSICAL_BLOCK_SIZE, FILE_UNMAP_MAX, MAX_WRITE_SAME_LEN, SBC3};
use super::fileio::FileStore;
use super::store::Store;
use super::{Features, Limits, ParamError, Vdisk, VdiskError, VdiskKind, VdiskParams};
use crate::consts::{TYPE_DISK, TYPE_ROM};
use kshim::cpu;
use kshim::sync::rcu;
use std::sync::Arc;

/// What a device is with its backing store as it is now. Replaced as a whole.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    pub(super) store: Arc<Store>,
    /// `volatile_cache` is computed by [`Vdisk::features`].
    pub(super) base: Features,
    pub(super) limits: Limits,
}

impl Backing {
    /// Opens what the parameters say. Context: may sleep.
    ///
    /// # Errors
    /// See [`VdiskError`]; nothing is left open.
    pub(super) fn open(name: &str, params: &VdiskParams) -> Result<Self, VdiskError> {
        let store = open_store(name, params)?;
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
        Ok(Self {
            limits: limits(params, &store),
            base,
            store: Arc::new(store),
        })
    }
}

impl Drop for Vdisk {
    /// The file is closed when this returns, so that somebody else can have it; on a reactor, soon after.
    fn drop(&mut self) {
        if !cpu::in_atomic() && !rcu::read_lock_held() {
            self.close();
        }
    }
}

impl Vdisk {
    /// Closes the backing store for good. Context: may sleep.
    pub(super) fn close(&self) {
        let _lock = self.reopening.lock();
        self.set_backing(Backing {
            store: Arc::new(Store::Closed),
            ..self.backing()
        });
    }

    /// Whether the backing store is open. Context: any.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !matches!(*self.store(), Store::Closed)
    }

    /// Closes the backing store: commands that need it are NOT READY. The caller has suspended activity. Context: may sleep.
    #[doc(alias = "vdisk_disable_dev")]
    pub fn deactivate(&self) {
        let _lock = self.reopening.lock();
        let old = self.backing();
        if matches!(*old.store, Store::Closed) {
            return;
        }
        if let Err(e) = old.store.flush() {
            kshim::pr_err!("{}: flush before closing failed: {e}", self.name());
        }
        self.set_backing(Backing {
            store: Arc::new(Store::Closed),
            ..old
        });
        self.params.lock().active = false;
        kshim::pr_info!("{}: closed", self.name());
    }

    /// Opens the backing store again and looks at its size. Context: may sleep.
    ///
    /// # Errors
    /// [`VdiskError`]; the device stays closed.
    #[doc(alias = "vdisk_activate_dev")]
    pub fn activate(&self) -> Result<(), VdiskError> {
        let _lock = self.reopening.lock();
        let mut params = self.params.lock().clone();
        if self.is_active() {
            return Ok(());
        }
        params.active = true;
        let new = Backing::open(self.name(), &params)?;
        if let Some(size) = new.store.size() {
            self.set_size_bytes(size);
        }
        self.set_backing(new);
        self.params.lock().active = true;
        kshim::pr_info!("{}: opened", self.name());
        Ok(())
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
    if let Some(len) = p.opt_trans_len {
        lim.opt_trans_len = len;
    }
    lim
}
