//! What passes over the control socket. Numbers are little-endian. See `docs/control-protocol.md`.

use crate::error::{Error, Result, code};
use crate::kobject::tree::{Entry, EntryKind};

/// Version of the protocol, in both greetings.
pub const VERSION: u8 = 1;

/// Begins both greetings.
const MAGIC: [u8; 7] = *b"KOBJCTL";

/// Length of the client's greeting: magic and version.
pub(super) const HELLO_LEN: usize = 8;
/// Length of the server's: magic, version, errno.
pub(super) const WELCOME_LEN: usize = 12;
/// Length of the head of a request: length of the body, operation, zero, tag.
pub(super) const REQUEST_HEAD: usize = 8;
/// Length of the head of a reply: as of a request, and the errno.
pub(super) const REPLY_HEAD: usize = 12;

/// The longest body of a request: a path and a value, with their lengths.
pub(super) const MAX_REQUEST: usize = 16 << 10;
/// The longest body of a reply.
pub(super) const MAX_REPLY: usize = 16 << 20;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    List = 1,
    Read = 2,
    Write = 3,
    Readlink = 4,
    Stat = 5,
    /// Serve the tree on the FUSE device that comes along.
    Fuse = 6,
}

impl Op {
    pub(super) fn from_u8(n: u8) -> Option<Op> {
        let all = [
            Op::List,
            Op::Read,
            Op::Write,
            Op::Readlink,
            Op::Stat,
            Op::Fuse,
        ];
        all.into_iter().find(|op| *op as u8 == n)
    }
}

pub(super) fn hello() -> [u8; HELLO_LEN] {
    let mut out = [0; HELLO_LEN];
    out[..7].copy_from_slice(&MAGIC);
    out[7] = VERSION;
    out
}

/// Errors: `EPROTO`: no client of this version.
pub(super) fn check_hello(bytes: [u8; HELLO_LEN]) -> Result {
    if bytes == hello() {
        Ok(())
    } else {
        Err(code::EPROTO)
    }
}

pub(super) fn welcome(result: Result) -> [u8; WELCOME_LEN] {
    let mut out = [0; WELCOME_LEN];
    out[..HELLO_LEN].copy_from_slice(&hello());
    out[HELLO_LEN..].copy_from_slice(&errno(result).to_le_bytes());
    out
}

/// Errors: `EPROTO`: no server of this version; what the server said.
pub(super) fn check_welcome(bytes: [u8; WELCOME_LEN]) -> Result {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    check_hello([a, b, c, d, e, f, g, h])?;
    from_errno(u32::from_le_bytes(rest))
}

/// 0 or the positive errno.
fn errno(result: Result) -> u32 {
    result.map_or_else(|e| e.errno().unsigned_abs(), |()| 0)
}

fn from_errno(n: u32) -> Result {
    match i32::try_from(n) {
        Ok(0) => Ok(()),
        Ok(n) if n <= crate::error::MAX_ERRNO => Err(Error::from_errno(n)),
        _ => Err(code::EPROTO),
    }
}

/// Head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) len: usize,
    pub(super) op: u8,
    pub(super) tag: u16,
}

impl RequestHead {
    /// Errors: `EMSGSIZE`: the body is too long.
    pub(super) fn parse(bytes: [u8; REQUEST_HEAD]) -> Result<RequestHead> {
        let [a, b, c, d, op, _, t0, t1] = bytes;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d]))?;
        if len > MAX_REQUEST {
            return Err(code::EMSGSIZE);
        }
        let tag = u16::from_le_bytes([t0, t1]);
        Ok(RequestHead { len, op, tag })
    }
}

/// A whole request.
pub(super) fn request(op: u8, tag: u16, body: &[u8]) -> Result<Vec<u8>> {
    if body.len() > MAX_REQUEST {
        return Err(code::E2BIG);
    }
    let mut out = Vec::with_capacity(REQUEST_HEAD + body.len());
    out.extend(u32::try_from(body.len())?.to_le_bytes());
    out.extend([op, 0]);
    out.extend(tag.to_le_bytes());
    out.extend(body);
    Ok(out)
}

/// A whole reply. A body that is too long becomes `EOVERFLOW`.
pub(super) fn reply(op: u8, tag: u16, result: Result<Vec<u8>>) -> Vec<u8> {
    let result = result.and_then(|body| {
        if body.len() > MAX_REPLY {
            return Err(code::EOVERFLOW);
        }
        Ok(body)
    });
    let (status, body) = match result {
        Ok(body) => (Ok(()), body),
        Err(e) => (Err(e), Vec::new()),
    };
    let len = u32::try_from(body.len()).unwrap_or(0);
    let mut out = Vec::with_capacity(REPLY_HEAD + body.len());
    out.extend(len.to_le_bytes());
    out.extend([op, 0]);
    out.extend(tag.to_le_bytes());
    out.extend(errno(status).to_le_bytes());
    out.extend(body);
    out
}

/// Head of a reply.
#[derive(Debug)]
pub(super) struct ReplyHead {
    pub(super) len: usize,
    pub(super) op: u8,
    pub(super) tag: u16,
    pub(super) result: Result,
}

impl ReplyHead {
    /// Errors: `EPROTO`.
    pub(super) fn parse(bytes: [u8; REPLY_HEAD]) -> Result<ReplyHead> {
        let [a, b, c, d, op, _, t0, t1, e @ ..] = bytes;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d]))?;
        if len > MAX_REPLY {
            return Err(code::EPROTO);
        }
        Ok(ReplyHead {
            len,
            op,
            tag: u16::from_le_bytes([t0, t1]),
            result: from_errno(u32::from_le_bytes(e)),
        })
    }
}

/// The body of a write: the path with its length, then the value.
pub(super) fn write_body(path: &str, value: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(path.len()).map_err(|_| code::ENAMETOOLONG)?;
    let mut out = Vec::with_capacity(2 + path.len() + value.len());
    out.extend(len.to_le_bytes());
    out.extend(path.as_bytes());
    out.extend(value);
    Ok(out)
}

/// Errors: `EPROTO`, `EINVAL`: the path is no text.
pub(super) fn parse_write(body: &[u8]) -> Result<(&str, &[u8])> {
    let (len, rest) = body.split_first_chunk::<2>().ok_or(code::EPROTO)?;
    let len = usize::from(u16::from_le_bytes(*len));
    let (path, value) = rest.split_at_checked(len).ok_or(code::EPROTO)?;
    Ok((text(path)?, value))
}

pub(super) fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| code::EINVAL)
}

/// Entries, one after the other: kind, zero, mode, length of the name, name.
pub(super) fn entries(list: &[Entry]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for e in list {
        let kind = match e.kind {
            EntryKind::Dir => b'd',
            EntryKind::File => b'-',
            EntryKind::Link => b'l',
        };
        out.extend([kind, 0]);
        out.extend(e.mode.to_le_bytes());
        out.extend(u16::try_from(e.name.len())?.to_le_bytes());
        out.extend(e.name.as_bytes());
    }
    Ok(out)
}

/// Errors: `EPROTO`.
pub(super) fn parse_entries(mut body: &[u8]) -> Result<Vec<Entry>> {
    let mut list = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_first_chunk::<6>().ok_or(code::EPROTO)?;
        let [kind, _, m0, m1, l0, l1] = *head;
        let len = usize::from(u16::from_le_bytes([l0, l1]));
        let (name, rest) = rest.split_at_checked(len).ok_or(code::EPROTO)?;
        let kind = match kind {
            b'd' => EntryKind::Dir,
            b'-' => EntryKind::File,
            b'l' => EntryKind::Link,
            _ => return Err(code::EPROTO),
        };
        list.push(Entry {
            name: text(name).map_err(|_| code::EPROTO)?.to_owned(),
            kind,
            mode: u16::from_le_bytes([m0, m1]),
        });
        body = rest;
    }
    Ok(list)
}
