//! How one I/O call is to be done.

use bitflags::bitflags;

use crate::sys::linux::file::RwFlags;

bitflags! {
    /// Flags of one read or write.
    ///
    /// ```
    /// use kshim::fs::KiocbFlags;
    ///
    /// let flags = KiocbFlags::NOWAIT | KiocbFlags::DSYNC;
    /// assert!(flags.contains(KiocbFlags::DSYNC));
    /// ```
    ///
    /// C header: `include/linux/fs.h` (`IOCB_*`)
    #[doc(alias = "kiocb")]
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct KiocbFlags: u32 {
        /// Don't wait for the disk or a lock: `EAGAIN` instead, `EOPNOTSUPP` where the file system cannot tell.
        #[doc(alias = "IOCB_NOWAIT")]
        #[doc(alias = "RWF_NOWAIT")]
        const NOWAIT = 1 << 0;
        /// Written data is durable when the call returns.
        #[doc(alias = "IOCB_DSYNC")]
        #[doc(alias = "RWF_DSYNC")]
        const DSYNC = 1 << 1;
    }
}

impl KiocbFlags {
    pub(crate) fn to_sys(self) -> RwFlags {
        let mut f = RwFlags::default();
        if self.contains(KiocbFlags::NOWAIT) {
            f = f.with(RwFlags::NOWAIT);
        }
        if self.contains(KiocbFlags::DSYNC) {
            f = f.with(RwFlags::DSYNC);
        }
        f
    }
}
