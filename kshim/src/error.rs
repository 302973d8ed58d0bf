//! Kernel errors.
//!
//! [`Error`] is an errno, as every call of the kernel returns it; [`code`] has the constants. Internal calls of the
//! workspace speak errno; what a user far away sees (a status on the wire) and what an operator sees (messages) are
//! other types, made from errnos at the borders.
//!
//! ```
//! use kshim::error::{code, to_result, Result};
//!
//! fn check(len: usize) -> Result {
//!     if len % 512 != 0 {
//!         return Err(code::EINVAL);
//!     }
//!     Ok(())
//! }
//! assert_eq!(check(5), Err(code::EINVAL));
//! assert_eq!(check(5).unwrap_err().to_errno(), -22);
//! assert_eq!(to_result(-2), Err(code::ENOENT));
//! assert_eq!(code::ENOSPC.to_string(), "No space left on device (ENOSPC)");
//! ```
//!
//! C header: `include/linux/err.h`, `include/uapi/asm-generic/errno.h`

use std::fmt;

/// The largest errno a call may return.
pub const MAX_ERRNO: i32 = 4095;

/// An errno.
///
/// # Invariants
///
/// The inner value is a negative errno: `-MAX_ERRNO..=-1`.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Error(std::num::NonZeroI32);

/// The result of a call that may fail with an errno.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    const fn make(errno: i32) -> Error {
        let magnitude = errno.saturating_abs();
        assert!(magnitude > 0 && magnitude <= MAX_ERRNO);
        match std::num::NonZeroI32::new(-magnitude) {
            // INVARIANT: the range was asserted above.
            Some(v) => Error(v),
            None => panic!("errno is zero"),
        }
    }

    /// Makes an error from an errno of either sign. A number that is no errno becomes `EINVAL` and a warning.
    ///
    /// Context: any.
    pub fn from_errno(errno: i32) -> Error {
        let magnitude = errno.saturating_abs();
        if magnitude == 0 || magnitude > MAX_ERRNO {
            crate::pr_warn!("errno {errno} is out of range");
            return code::EINVAL;
        }
        Error::make(magnitude)
    }

    /// The errno as kernel calls return it: negative.
    pub const fn to_errno(self) -> i32 {
        self.0.get()
    }

    /// The errno as `errno.h` has it: positive.
    pub const fn errno(self) -> i32 {
        -self.0.get()
    }

    /// The constant's name, for example `EINVAL`, when it has one.
    #[doc(alias = "errname")]
    pub fn name(self) -> Option<&'static str> {
        code::lookup(self).map(|(name, _)| name)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match code::lookup(*self) {
            Some((name, text)) => write!(f, "{text} ({name})"),
            None => write!(f, "error {}", self.errno()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Error({})", self.to_errno()),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Error {
        use std::io::ErrorKind as K;
        if let Some(errno) = e.raw_os_error() {
            return Error::from_errno(errno);
        }
        match e.kind() {
            K::NotFound => code::ENOENT,
            K::PermissionDenied => code::EACCES,
            K::AlreadyExists => code::EEXIST,
            K::WouldBlock => code::EAGAIN,
            K::InvalidInput | K::InvalidData => code::EINVAL,
            K::TimedOut => code::ETIMEDOUT,
            K::Interrupted => code::EINTR,
            K::OutOfMemory => code::ENOMEM,
            K::Unsupported => code::EOPNOTSUPP,
            _ => code::EIO,
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Error {
        Error::from_errno(e.raw_os_error())
    }
}

impl From<std::collections::TryReserveError> for Error {
    fn from(_: std::collections::TryReserveError) -> Error {
        code::ENOMEM
    }
}

impl From<std::num::TryFromIntError> for Error {
    fn from(_: std::num::TryFromIntError) -> Error {
        code::EINVAL
    }
}

/// Turns what a C-like call returned (0 or more: success, negative: errno) into a [`Result`].
///
/// Context: any.
pub fn to_result(ret: i32) -> Result {
    if ret < 0 {
        Err(Error::from_errno(ret))
    } else {
        Ok(())
    }
}

/// Errno constants.
pub mod code {
    use super::Error;

    macro_rules! errnos {
        ($($name:ident $text:literal,)*) => {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Error = Error::make(libc::$name);
            )*

            /// Name and message of an errno of this list.
            pub(super) fn lookup(e: Error) -> Option<(&'static str, &'static str)> {
                match e.errno() {
                    $(libc::$name => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        };
    }

    errnos! {
        EPERM "Operation not permitted",
        ENOENT "No such file or directory",
        ESRCH "No such process",
        EINTR "Interrupted system call",
        EIO "Input/output error",
        EBADSLT "Invalid slot",
        ENXIO "No such device or address",
        E2BIG "Argument list too long",
        ENOEXEC "Exec format error",
        EBADF "Bad file descriptor",
        ECHILD "No child processes",
        EAGAIN "Resource temporarily unavailable",
        ENOMEM "Cannot allocate memory",
        EACCES "Permission denied",
        EFAULT "Bad address",
        ENOTBLK "Block device required",
        EBUSY "Device or resource busy",
        EEXIST "File exists",
        EXDEV "Invalid cross-device link",
        ENODEV "No such device",
        ENOTDIR "Not a directory",
        EISDIR "Is a directory",
        EINVAL "Invalid argument",
        ENFILE "Too many open files in system",
        EMFILE "Too many open files",
        ENOTTY "Inappropriate ioctl for device",
        ETXTBSY "Text file busy",
        EFBIG "File too large",
        ENOSPC "No space left on device",
        ESPIPE "Illegal seek",
        EROFS "Read-only file system",
        EMLINK "Too many links",
        EPIPE "Broken pipe",
        EDOM "Numerical argument out of domain",
        ERANGE "Numerical result out of range",
        EDEADLK "Resource deadlock avoided",
        ENAMETOOLONG "File name too long",
        ENOSYS "Function not implemented",
        ENOTEMPTY "Directory not empty",
        ELOOP "Too many levels of symbolic links",
        ENODATA "No data available",
        ETIME "Timer expired",
        ENOLINK "Link has been severed",
        EPROTO "Protocol error",
        EBADMSG "Bad message",
        EOVERFLOW "Value too large for defined data type",
        EILSEQ "Invalid or incomplete multibyte or wide character",
        ENOTSOCK "Socket operation on non-socket",
        EMSGSIZE "Message too long",
        ENOPROTOOPT "Protocol not available",
        EPROTONOSUPPORT "Protocol not supported",
        EOPNOTSUPP "Operation not supported",
        EAFNOSUPPORT "Address family not supported by protocol",
        EADDRINUSE "Address already in use",
        EADDRNOTAVAIL "Cannot assign requested address",
        ENETDOWN "Network is down",
        ENETUNREACH "Network is unreachable",
        ECONNABORTED "Software caused connection abort",
        ECONNRESET "Connection reset by peer",
        ENOBUFS "No buffer space available",
        EISCONN "Transport endpoint is already connected",
        ENOTCONN "Transport endpoint is not connected",
        ESHUTDOWN "Cannot send after transport endpoint shutdown",
        ETIMEDOUT "Connection timed out",
        ECONNREFUSED "Connection refused",
        EHOSTDOWN "Host is down",
        EHOSTUNREACH "No route to host",
        EALREADY "Operation already in progress",
        EINPROGRESS "Operation now in progress",
        ESTALE "Stale file handle",
        EUCLEAN "Structure needs cleaning",
        EREMOTEIO "Remote I/O error",
        EDQUOT "Disk quota exceeded",
        ENOMEDIUM "No medium found",
        EMEDIUMTYPE "Wrong medium type",
        ECANCELED "Operation canceled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_names() {
        assert_eq!(Error::from_errno(22), code::EINVAL);
        assert_eq!(Error::from_errno(-22), code::EINVAL);
        assert_eq!(code::EINVAL.to_errno(), -22);
        assert_eq!(code::EINVAL.errno(), 22);
        assert_eq!(code::EINVAL.name(), Some("EINVAL"));
        assert_eq!(format!("{:?}", code::EIO), "EIO");
        assert_eq!(Error::from_errno(4000).to_string(), "error 4000");
        assert_eq!(size_of::<Result>(), 4);
    }

    #[test]
    fn numbers_that_are_no_errno_become_einval() {
        for n in [0, 4096, i32::MAX, i32::MIN] {
            assert_eq!(Error::from_errno(n), code::EINVAL);
        }
    }

    #[test]
    fn conversions() {
        let e = std::io::Error::from_raw_os_error(28);
        assert_eq!(Error::from(e), code::ENOSPC);
        let e = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "short");
        assert_eq!(Error::from(e), code::EIO);
        assert_eq!(Error::from(rustix::io::Errno::NODEV), code::ENODEV);
        assert_eq!(to_result(0), Ok(()));
        assert_eq!(to_result(7), Ok(()));
        assert_eq!(to_result(-5), Err(code::EIO));
    }
}
