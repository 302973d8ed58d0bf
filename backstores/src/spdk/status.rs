//! What a failed request is as an errno.

use kshim::error::{Error, code};

/// NVMe's status code types.
const GENERIC: i32 = 0;
const MEDIA: i32 = 2;

/// The error for what SPDK says of a failed request: the errno of a bdev on files of the host (`-EIO` when it is none), and the status
/// in NVMe's terms, which SPDK makes of all others.
pub(super) fn error(aio: i32, sct: i32, sc: i32) -> Error {
    match aio.checked_neg() {
        Some(n) if n > 0 && n != code::EIO.to_errno().abs() => return Error::from_errno(n),
        _ => {}
    }
    match (sct, sc) {
        (GENERIC, 0x01 | 0x02 | 0x0B) => code::EOPNOTSUPP, // opcode, field, name space: it cannot do this
        (GENERIC, 0x80) => code::EIO,                      // beyond the end: it has shrunk
        (GENERIC, 0x81) => code::ENOSPC,                   // capacity exceeded
        (GENERIC, 0x82) => code::EAGAIN,                   // name space not ready
        (GENERIC, 0x20) => code::EROFS,                    // write protected
        (GENERIC, 0x83) => code::EBUSY,                    // somebody else's reservation
        (MEDIA, 0x85 | 0x86) => code::EIO,                 // compare failed; access denied
        _ => code::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_says_is_kept() {
        assert_eq!(error(-28, 0, 6), code::ENOSPC);
        assert_eq!(error(-5, 0, 6), code::EIO);
        assert_eq!(error(0, 0, 6), code::EIO);
        assert_eq!(error(i32::MIN, 0, 6), code::EIO);
    }

    #[test]
    fn nvme_status_becomes_an_errno() {
        assert_eq!(error(-5, GENERIC, 0x81), code::ENOSPC);
        assert_eq!(error(-5, GENERIC, 0x01), code::EOPNOTSUPP);
        assert_eq!(error(-5, MEDIA, 0x81), code::EIO);
        assert_eq!(error(-5, GENERIC, 0x20), code::EROFS);
    }
}
