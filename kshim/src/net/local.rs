//! Local stream sockets.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Result, code};
use crate::sys::linux::unix as sys;

/// Bytes of the longest name of a socket.
const MAX_PATH: usize = 107;

/// A listening socket with a name in the file system. Only this user may connect. The name goes when it is dropped.
///
/// A lock file beside it, `NAME.lock`, tells a live server from a dead one; it stays.
///
/// C header: `include/net/af_unix.h`
#[derive(Debug)]
pub struct LocalListener {
    fd: OwnedFd,
    path: PathBuf,
    _lock: OwnedFd,
}

impl LocalListener {
    /// Listens at a path; its directory is made, private, if it is not there. A name that a dead process left is taken
    /// over.
    ///
    /// Context: may sleep.
    ///
    /// Errors: EADDRINUSE (a live process has it), EEXIST (the name is no socket), EACCES, ENAMETOOLONG (over 107 bytes).
    pub fn bind(path: &Path) -> Result<LocalListener> {
        // Before anything is made beside it.
        if path.as_os_str().len() > MAX_PATH {
            return Err(code::ENAMETOOLONG);
        }
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            sys::create_private_dir(dir)?;
        }
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = sys::lock_file(Path::new(&lock)).map_err(|e| {
            if e == code::EAGAIN {
                return code::EADDRINUSE;
            }
            e
        })?;
        match sys::is_socket(path) {
            // The lock is ours, so nobody listens there.
            Ok(true) => crate::fs::unlink(path)?,
            Ok(false) => return Err(code::EEXIST),
            Err(e) if e == code::ENOENT => {}
            Err(e) => return Err(e),
        }
        Ok(LocalListener {
            fd: sys::listen(path, 0o600)?,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Waits for the next connection.
    ///
    /// Context: may sleep. Errors: EINVAL after [`shutdown`](Self::shutdown), EMFILE, ENFILE.
    pub fn accept(&self) -> Result<LocalStream> {
        crate::might_sleep!();
        sys::accept(self.fd.as_fd()).map(|fd| LocalStream { fd })
    }

    /// Accepts nothing more; who sleeps in [`accept`](Self::accept) wakes up.
    ///
    /// Context: any.
    pub fn shutdown(&self) {
        sys::shutdown(self.fd.as_fd());
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        if let Err(e) = crate::fs::unlink(&self.path) {
            crate::pr_warn!("{}: cannot be removed: {e}", self.path.display());
        }
    }
}

/// A connected local stream, blocking.
///
/// ```
/// use kshim::net::{LocalListener, LocalStream};
///
/// let path = std::env::temp_dir().join(format!("kshim-local-{}", std::process::id()));
/// let listener = LocalListener::bind(&path)?;
/// let client = LocalStream::connect(listener.path())?;
/// assert!(client.peer_is_trusted()?);
/// assert!(LocalListener::bind(&path).is_err(), "the name is taken");
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalStream {
    fd: OwnedFd,
}

impl LocalStream {
    /// Connects to a listener's name.
    ///
    /// Context: may sleep. Errors: ENOENT, ECONNREFUSED (a dead process left the name), EACCES.
    pub fn connect(path: &Path) -> Result<LocalStream> {
        crate::might_sleep!();
        sys::connect(path).map(|fd| LocalStream { fd })
    }

    /// Two connected streams.
    ///
    /// Errors: EMFILE, ENFILE.
    pub fn pair() -> Result<(LocalStream, LocalStream)> {
        let (a, b) = sys::pair()?;
        Ok((LocalStream { fd: a }, LocalStream { fd: b }))
    }

    /// Whether the other end runs as this user or as root.
    ///
    /// Errors: those of `getsockopt(2)`.
    #[doc(alias = "SO_PEERCRED")]
    pub fn peer_is_trusted(&self) -> Result<bool> {
        let uid = sys::peer_uid(self.fd.as_fd())?;
        Ok(uid == 0 || uid == sys::effective_uid())
    }

    /// Sends all bytes, and a descriptor with the first of them.
    ///
    /// Context: may sleep. Errors: EPIPE, ECONNRESET.
    #[doc(alias = "SCM_RIGHTS")]
    pub fn send(&self, bytes: &[u8], pass: Option<BorrowedFd<'_>>) -> Result {
        sys::send_all(self.fd.as_fd(), bytes, pass)
    }

    /// Fills the buffer; the first descriptor that came with it is kept.
    ///
    /// Context: may sleep. Errors: ENOTCONN (the stream ended before the first byte), EIO (it ended later), ECONNRESET.
    pub fn recv_exact(&self, buf: &mut [u8]) -> Result<Option<OwnedFd>> {
        sys::recv_exact(self.fd.as_fd(), buf)
    }

    /// Ends both directions; who sleeps on the stream wakes up.
    ///
    /// Context: any.
    pub fn shutdown(&self) {
        sys::shutdown(self.fd.as_fd());
    }
}

impl AsFd for LocalStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn bytes_and_a_descriptor_pass() {
        let (a, b) = LocalStream::pair().unwrap();
        assert!(a.peer_is_trusted().unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"inside").unwrap();
        a.send(b"hello", Some(file.as_fd())).unwrap();
        let mut buf = [0; 5];
        let passed = b.recv_exact(&mut buf).unwrap().unwrap();
        assert_eq!(&buf, b"hello");
        let mut text = String::new();
        let mut same = std::fs::File::from(passed);
        std::io::Seek::rewind(&mut same).unwrap();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        a.send(b"x", None).unwrap();
        a.shutdown();
        assert_eq!(b.recv_exact(&mut buf).unwrap_err(), code::EIO);
        assert_eq!(b.recv_exact(&mut buf).unwrap_err(), code::ENOTCONN);
    }

    #[test]
    fn a_name_that_is_too_long_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let left = || std::fs::read_dir(dir.path()).unwrap().count();
        let base = dir.path().as_os_str().len() + 1;
        let longest = dir.path().join("n".repeat(MAX_PATH - base));
        drop(LocalListener::bind(&longest).unwrap());
        // The lock file stays.
        assert_eq!(left(), 1);
        let longer = dir.path().join("n".repeat(MAX_PATH - base + 1));
        let refused = LocalListener::bind(&longer).unwrap_err();
        assert_eq!((refused, left()), (code::ENAMETOOLONG, 1));
    }

    #[test]
    fn a_name_belongs_to_one_live_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        let first = LocalListener::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(LocalListener::bind(&path).unwrap_err(), code::EADDRINUSE);
        let _client = LocalStream::connect(&path).unwrap();
        first.accept().unwrap();
        drop(first);
        assert_eq!(LocalStream::connect(&path).unwrap_err(), code::ENOENT);
        // As a killed process leaves it.
        drop(sys::listen(&path, 0o600).unwrap());
        assert_eq!(LocalStream::connect(&path).unwrap_err(), code::ECONNREFUSED);
        drop(LocalListener::bind(&path).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(LocalListener::bind(&path).unwrap_err(), code::EEXIST);
    }

    #[test]
    fn a_sleeping_accept_ends() {
        let dir = tempfile::tempdir().unwrap();
        let listener = LocalListener::bind(&dir.path().join("s")).unwrap();
        std::thread::scope(|s| {
            let waits = s.spawn(|| listener.accept());
            listener.shutdown();
            assert_eq!(waits.join().unwrap().unwrap_err(), code::EINVAL);
        });
    }
}
