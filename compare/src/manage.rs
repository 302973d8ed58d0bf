//! Changing a target's configuration between the steps of a case.

use crate::transcript::Access;

/// A positive errno; 0 is success.
pub type Errno = i32;

/// The scst_tgt tree of a target. Paths are relative to its root (`targets/iscsi/...`).
///
/// A [`crate::Runner`] without one does not run cases that change the configuration, and says so.
pub trait Manage {
    /// Whether this access is there at all. A case is not run if one of its accesses is not. `$T` and `$DATA` are not
    /// replaced yet.
    fn can(&self, _access: &Access) -> bool {
        true
    }

    /// Writes an attribute. A write that is carried out later (EAGAIN in the kernel) is followed to its end.
    fn write(&mut self, path: &str, value: &str) -> Errno;

    /// Reads an attribute.
    ///
    /// # Errors
    ///
    /// The errno of the read.
    fn read(&mut self, path: &str) -> Result<String, Errno>;

    /// Names in a directory, or the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// The errno.
    fn list(&mut self, path: &str) -> Result<String, Errno>;

    /// The directory that stands for `$DATA` in values.
    fn data_dir(&self) -> String;
}
