//! What makes a virtual disk a CD-ROM drive: a medium that comes and goes, and READ TOC.
//!
//! C source: `vcdrom_exec`, `vcdrom_change`, `vdisk_exec_read_toc` of `scst/src/dev_handlers/scst_vdisk.c`

use super::fileio::FileStore;
use super::reply::{Fault, Reply};
use super::store::Store;
use super::{Vdisk, VdiskKind, VdiskParams};
use crate::cdb::bytes::u8_at;
use crate::device::Device;
use crate::sense;
use kshim::error::{Result, code};
use kshim::sync::SpinLock;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Format of READ TOC, in byte 2: multi-session information instead of the tracks; the other bits ask for formats that
/// are not supported.
const TOC_SESSION_INFO: u8 = 0x01;
const TOC_OTHER_FORMATS: u8 = 0x0E;
/// Track number of the lead-out area.
const LEAD_OUT: u8 = 0xAA;
/// ADR and CONTROL of a track: position data in the Q sub-channel, data recorded uninterrupted.
const DATA_TRACK: u8 = 0x14;

/// The drive: empty, or with an image in it.
#[derive(Debug, Default)]
pub(super) struct CdStore {
    medium: SpinLock<Option<Arc<FileStore>>>,
}

impl CdStore {
    /// A drive with this image, or an empty one. Context: may sleep.
    pub(super) fn open(image: Option<&Path>) -> Result<Self> {
        Ok(Self {
            medium: SpinLock::new(image.map(open_image).transpose()?),
        })
    }

    /// The image, which stays open for whoever still reads it when it is taken out. Context: any.
    #[inline]
    pub(super) fn medium(&self) -> Option<Arc<FileStore>> {
        self.medium.lock().clone()
    }

    /// True without a medium. Context: any.
    #[doc(alias = "cdrom_empty")]
    pub(super) fn is_empty(&self) -> bool {
        self.medium.lock().is_none()
    }
}

fn open_image(path: &Path) -> Result<Arc<FileStore>> {
    let params = VdiskParams::new(VdiskKind::Vcdrom);
    FileStore::open(path, &params).map(Arc::new)
}

impl Vdisk {
    /// Puts another image into a CD-ROM drive, or takes it out. With an image, all nexuses of `dev`, which is this
    /// drive's device, get the unit attention MEDIUM MAY HAVE CHANGED. Context: may sleep.
    ///
    /// DIFFERS: SCST gives the unit attention to whoever asks first, and to nobody else.
    ///
    /// # Errors
    /// `EINVAL`: not a CD-ROM drive, or no absolute path. `EBUSY`: an initiator prevents the removal. Those of opening
    /// the image. The old medium stays in all cases.
    #[doc(alias = "vcdrom_change")]
    pub fn change_medium(&self, dev: &Device, image: Option<&Path>) -> Result {
        let store = self.store();
        let Store::Cd(cd) = &*store else {
            return Err(code::EINVAL);
        };
        if self.prevent_medium_removal.load(Ordering::Relaxed) {
            kshim::pr_err!("{}: an initiator prevents medium removal", self.name());
            return Err(code::EBUSY);
        }
        if image.is_some_and(|path| !path.is_absolute()) {
            return Err(code::EINVAL);
        }
        let new = image.map(open_image).transpose()?;
        let size = new.as_ref().map_or(0, |f| f.size_at_open());
        let inserted = new.is_some();
        let old = {
            let mut medium = cd.medium.lock();
            self.set_size_bytes(size);
            std::mem::replace(&mut *medium, new)
        };
        drop(old);
        self.params.lock().filename = image.map(Path::to_owned);
        if inserted {
            dev.check_set_ua(sense::MEDIUM_CHANGED_UA, None);
        }
        match image {
            Some(path) => {
                kshim::pr_info!("{}: medium changed to {}", self.name(), path.display());
            }
            None => kshim::pr_info!("{}: medium removed", self.name()),
        }
        Ok(())
    }
}

/// READ TOC (MMC-3 6.27): one data track, and the lead-out area.
///
/// # Errors
/// INVALID FIELD IN CDB: a format or a track that there is not.
#[doc(alias = "vdisk_exec_read_toc")]
pub(super) fn read_toc(
    nblocks: u64,
    cdb: &[u8],
    out: &mut Reply,
) -> std::result::Result<(), Fault> {
    let (format, track) = (u8_at(cdb, 2), u8_at(cdb, 6));
    if format & TOC_OTHER_FORMATS != 0 {
        return Err(Fault::cdb(2, Some(5)));
    }
    let sessions = format & TOC_SESSION_INFO != 0;
    if sessions && track != 0 || track > 1 && track != LEAD_OUT {
        return Err(Fault::cdb(6, None));
    }
    // First and last track (or session) are number 1.
    out.put(0, &[0, 0, 1, 1]);
    if track <= 1 {
        out.extend(&[0, DATA_TRACK, 1, 0, 0, 0, 0, 0]);
    }
    if !sessions {
        let start = u32::try_from(nblocks).unwrap_or(u32::MAX);
        out.extend(&[0, DATA_TRACK, LEAD_OUT, 0]);
        out.extend(&start.to_be_bytes());
    }
    let len = u16::try_from(out.len().saturating_sub(2)).unwrap_or(u16::MAX);
    out.put16(0, len);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toc(format: u8, track: u8) -> std::result::Result<Vec<u8>, Fault> {
        let mut out = Reply::new();
        let cdb = [0x43, 0, format, 0, 0, 0, track, 0, 255, 0];
        read_toc(0x400, &cdb, &mut out).map(|()| out.as_slice().to_vec())
    }

    #[test]
    fn one_data_track() {
        let track = [0, 0x14, 1, 0, 0, 0, 0, 0];
        let lead_out = [0, 0x14, 0xAA, 0, 0, 0, 4, 0];
        let both = [&[0, 18, 1, 1][..], &track, &lead_out].concat();
        assert_eq!((toc(0, 0), toc(0, 1)), (Ok(both.clone()), Ok(both)));
        assert_eq!(toc(1, 0), Ok([&[0, 10, 1, 1][..], &track].concat()));
        assert_eq!(toc(0, 0xAA), Ok([&[0, 10, 1, 1][..], &lead_out].concat()));
    }

    #[test]
    fn other_formats_and_tracks_are_refused() {
        assert_eq!(toc(2, 0), Err(Fault::cdb(2, Some(5))));
        assert_eq!(toc(0, 2), Err(Fault::cdb(6, None)));
        assert_eq!(toc(1, 1), Err(Fault::cdb(6, None)));
        assert_eq!(toc(1, 0xAA), Err(Fault::cdb(6, None)));
    }

    #[test]
    fn the_medium_comes_and_goes() {
        let dir = tempfile::tempdir().expect("directory");
        let image = dir.path().join("cd.iso");
        let file = kshim::fs::File::open(&image, &kshim::fs::OpenOptions::new().create(true));
        file.and_then(|f| f.set_size(8192)).expect("image");
        let drive = Vdisk::new("cd", &VdiskParams::new(VdiskKind::Vcdrom)).expect("drive");
        assert_eq!((drive.nblocks(), drive.block_shift()), (0, 11));
        let core = crate::core::Core::new(crate::core::CoreParams::default()).expect("core");
        let handler: Arc<dyn crate::dev_type::DevHandler> = drive.clone();
        let dev = core.register_virtual_device("cd", handler).expect("device");
        assert_eq!(drive.change_medium(&dev, Some(&image)), Ok(()));
        assert_eq!(drive.nblocks(), 4);
        assert_eq!(
            drive.change_medium(&dev, Some(Path::new("cd.iso"))),
            Err(code::EINVAL)
        );
        drive.prevent_medium_removal.store(true, Ordering::Relaxed);
        assert_eq!(drive.change_medium(&dev, None), Err(code::EBUSY));
        assert_eq!(drive.nblocks(), 4);
        drive.prevent_medium_removal.store(false, Ordering::Relaxed);
        assert_eq!(drive.change_medium(&dev, None), Ok(()));
        assert_eq!(drive.nblocks(), 0);
        core.unregister_virtual_device("cd").expect("gone");
        core.shutdown();
    }
}
