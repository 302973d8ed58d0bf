//! The client's side.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::wire::{self, Op};
use crate::error::{Result, code};
use crate::kobject::tree::{Entry, TreeOps};
use crate::net::LocalStream;
use crate::sync::Mutex;

/// A connection to a server's control socket.
///
/// ```no_run
/// use kshim::kobject::control::{Client, default_path};
/// use kshim::kobject::tree::TreeOps;
///
/// let client = Client::connect(&default_path("MY_CONTROL", "my-server"))?;
/// print!("{}", String::from_utf8_lossy(&client.read("version")?));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[derive(Debug)]
pub struct Client {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: LocalStream,
    tag: u16,
    /// After a fault of the connection nothing more can be understood.
    broken: bool,
}

impl Client {
    /// Connects and greets.
    ///
    /// Context: may sleep.
    ///
    /// Errors: `ENOENT` and `ECONNREFUSED` (no server there), `EACCES` and `EPERM` (another user's), `EAGAIN` (it has too
    /// many clients), `EPROTO` (another version, or no such server).
    pub fn connect(path: &Path) -> Result<Client> {
        let stream = connect(path)?;
        Ok(Client {
            inner: Mutex::new(Inner {
                stream,
                tag: 0,
                broken: false,
            }),
        })
    }

    /// Lets the server serve its tree on a mounted FUSE device, as long as it lives or until the device is unmounted.
    ///
    /// Context: may sleep. Errors: `EMFILE` (it serves too many), `EINVAL` (no FUSE device), `ENOTCONN`.
    pub fn serve_fuse(&self, device: BorrowedFd<'_>) -> Result {
        self.call(Op::Fuse, &[], Some(device)).map(drop)
    }

    fn call(&self, op: Op, body: &[u8], pass: Option<BorrowedFd<'_>>) -> Result<Vec<u8>> {
        let mut inner = self.inner.lock();
        if inner.broken {
            return Err(code::ENOTCONN);
        }
        inner.tag = inner.tag.wrapping_add(1);
        let request = wire::request(op as u8, inner.tag, body)?;
        // Until the whole reply is there.
        inner.broken = true;
        let (result, reply) = inner.exchange(op, &request, pass)?;
        inner.broken = false;
        result.map(|()| reply)
    }
}

/// Connects and greets.
pub(super) fn connect(path: &Path) -> Result<LocalStream> {
    let stream = LocalStream::connect(path)?;
    // A server that refuses may have closed its end already; it says why.
    let sent = stream.send(&wire::hello(), None);
    let mut welcome = [0; wire::WELCOME_LEN];
    let received = stream.recv_exact(&mut welcome);
    received.map_err(|e| sent.err().unwrap_or(e))?;
    wire::check_welcome(welcome)?;
    Ok(stream)
}

impl Inner {
    fn exchange(
        &self,
        op: Op,
        request: &[u8],
        pass: Option<BorrowedFd<'_>>,
    ) -> Result<(Result, Vec<u8>)> {
        self.stream.send(request, pass)?;
        let mut head = [0; wire::REPLY_HEAD];
        self.stream.recv_exact(&mut head)?;
        let head = wire::ReplyHead::parse(head)?;
        if head.op != op as u8 || head.tag != self.tag {
            return Err(code::EPROTO);
        }
        let mut body = vec![0; head.len];
        if head.len > 0 {
            self.stream.recv_exact(&mut body)?;
        }
        Ok((head.result, body))
    }
}

fn into_text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| code::EPROTO)
}

impl TreeOps for Client {
    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        wire::parse_entries(&self.call(Op::List, path.as_bytes(), None)?)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        self.call(Op::Read, path.as_bytes(), None)
    }

    fn write(&self, path: &str, value: &[u8]) -> Result {
        let body = wire::write_body(path, value)?;
        self.call(Op::Write, &body, None).map(drop)
    }

    fn readlink(&self, path: &str) -> Result<String> {
        into_text(self.call(Op::Readlink, path.as_bytes(), None)?)
    }

    fn stat(&self, path: &str) -> Result<Entry> {
        let list = wire::parse_entries(&self.call(Op::Stat, path.as_bytes(), None)?)?;
        list.into_iter().next().ok_or(code::EPROTO)
    }
}
