//! The fixed newstyle handshake, which the kernel leaves to `nbd-client`.

use crate::proto::{self, Fields, export};
use crate::stream::{Reader, send_all};
use kshim::net::Socket;
use kshim::prelude::*;
use kshim::time::Instant;

/// What an oldstyle server has in the place of [`proto::OPT_MAGIC`].
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Answers that one option may have.
const MAX_REPLIES: usize = 64;
/// Longest answer.
const MAX_REPLY: u32 = 16 << 10;
/// Zeros after the answer to `NBD_OPT_EXPORT_NAME`, for clients that did not decline them.
const EXPORT_NAME_ZEROES: usize = 124;
/// Longest name of an export.
pub(crate) const MAX_NAME: usize = 4096;
/// What one request may carry when the server does not say.
const DEFAULT_MAX_BLOCK: u32 = 32 << 20;
/// More than this is never asked for at once.
const MAX_BLOCK: u32 = 32 << 20;

/// An export as the server describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Export {
    pub(crate) size: u64,
    /// [`export`] flags.
    pub(crate) flags: u16,
    /// The unit of requests: a power of two, 512 to 64 KiB.
    pub(crate) min_block: u32,
    pub(crate) preferred_block: u32,
    /// The most that a read or write may carry, a multiple of `min_block`.
    pub(crate) max_block: u32,
    pub(crate) structured: bool,
}

impl Export {
    pub(crate) fn can(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Checks what a server said. Errors: `EPROTO`.
    fn check(mut self) -> Result<Export> {
        let blocks = self.min_block.is_power_of_two() && self.min_block <= 64 << 10;
        if !blocks || self.max_block < self.min_block || !self.can(export::HAS_FLAGS) {
            return Err(EPROTO);
        }
        self.min_block = self.min_block.max(512);
        let max = self.max_block.clamp(self.min_block, MAX_BLOCK);
        self.max_block = max - max % self.min_block;
        self.size -= self.size % u64::from(self.min_block);
        if self.size > i64::MAX.unsigned_abs() {
            return Err(EPROTO);
        }
        Ok(self)
    }
}

/// Agrees with the server on an export.
///
/// # Errors
///
/// `EPROTO`: what it says makes no sense, or it is no NBD server of this kind. `ENOENT`: it has no such export. `EACCES`: we may
/// not have it. `EOPNOTSUPP`: it wants TLS. `ETIMEDOUT`, `ECONNRESET`.
pub(crate) fn negotiate(sock: &Socket, name: &str, deadline: Instant) -> Result<Export> {
    let mut h = Handshake {
        sock,
        rx: Reader::new(sock),
        deadline,
    };
    let greeting = h.rx.take::<18>(deadline)?;
    let mut f = Fields(&greeting);
    let magic = (f.u64()?, f.u64()?);
    let offered = f.u16()?;
    let not = match magic {
        (proto::INIT_MAGIC, proto::OPT_MAGIC) if offered & proto::FLAG_FIXED_NEWSTYLE != 0 => None,
        (proto::INIT_MAGIC, proto::OPT_MAGIC) => Some("it is newstyle, but not fixed newstyle"),
        (proto::INIT_MAGIC, OLDSTYLE_MAGIC) => Some("its handshake is oldstyle"),
        _ => Some("it is no NBD server"),
    };
    if let Some(not) = not {
        pr_warn_ratelimited!("nbd: the server cannot be used: {not}");
        return Err(EPROTO);
    }
    let flags = offered & (proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES);
    h.send(&u32::from(flags).to_be_bytes())?;
    h.option(proto::OPT_STRUCTURED_REPLY, &[])?;
    let structured = h.acknowledged(proto::OPT_STRUCTURED_REPLY)?;
    let found = match h.go(name)? {
        Some(found) => found,
        None => h.export_name(name, flags & proto::FLAG_NO_ZEROES != 0)?,
    };
    Export {
        structured,
        ..found
    }
    .check()
}

struct Handshake<'a> {
    sock: &'a Socket,
    rx: Reader<'a>,
    deadline: Instant,
}

impl Handshake<'_> {
    fn send(&self, bytes: &[u8]) -> Result {
        send_all(self.sock, bytes, self.deadline)
    }

    fn option(&self, option: u32, data: &[u8]) -> Result {
        let mut b = proto::OPT_MAGIC.to_be_bytes().to_vec();
        b.extend(option.to_be_bytes());
        b.extend(u32::try_from(data.len())?.to_be_bytes());
        b.extend(data);
        self.send(&b)
    }

    /// The next answer to an option: its type and data.
    fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
        let head = self.rx.take::<20>(self.deadline)?;
        let mut f = Fields(&head);
        if f.u64()? != proto::REP_MAGIC || f.u32()? != option {
            return Err(EPROTO);
        }
        let (kind, len) = (f.u32()?, f.u32()?);
        if len > MAX_REPLY {
            return Err(EPROTO);
        }
        let len = usize::try_from(len)?;
        let data = self.rx.peek(len, self.deadline)?.to_vec();
        self.rx.consume(len);
        Ok((kind, data))
    }

    /// Whether the server takes an option that has no data.
    fn acknowledged(&mut self, option: u32) -> Result<bool> {
        match self.reply(option)? {
            (proto::REP_ACK, _) => Ok(true),
            (kind, _) if kind & proto::REP_ERROR != 0 => Ok(false),
            _ => Err(EPROTO),
        }
    }

    /// Asks for the export. `None`: the server is too old for this question.
    fn go(&mut self, name: &str) -> Result<Option<Export>> {
        let mut data = u32::try_from(name.len())?.to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(1u16.to_be_bytes());
        data.extend(proto::INFO_BLOCK_SIZE.to_be_bytes());
        self.option(proto::OPT_GO, &data)?;
        let mut blocks = (1, 4096, DEFAULT_MAX_BLOCK);
        let mut found = None;
        for _ in 0..MAX_REPLIES {
            let (kind, data) = self.reply(proto::OPT_GO)?;
            match kind {
                proto::REP_ACK => {
                    let (size, flags) = found.ok_or(EPROTO)?;
                    return Ok(Some(described(size, flags, blocks)));
                }
                proto::REP_INFO => {
                    let mut f = Fields(&data);
                    match f.u16()? {
                        proto::INFO_EXPORT => found = Some((f.u64()?, f.u16()?)),
                        proto::INFO_BLOCK_SIZE => blocks = (f.u32()?, f.u32()?, f.u32()?),
                        _ => {}
                    }
                }
                proto::REP_ERR_UNSUP => return Ok(None),
                _ if kind & proto::REP_ERROR != 0 => return Err(refused(kind, &data)),
                _ => return Err(EPROTO),
            }
        }
        Err(EPROTO)
    }

    /// Asks for the export in the old way: a server that has none just hangs up.
    fn export_name(&mut self, name: &str, no_zeroes: bool) -> Result<Export> {
        self.option(proto::OPT_EXPORT_NAME, name.as_bytes())?;
        let head = match self.rx.take::<10>(self.deadline) {
            Err(ECONNRESET) => return Err(ENOENT),
            head => head?,
        };
        let mut f = Fields(&head);
        let (size, flags) = (f.u64()?, f.u16()?);
        if !no_zeroes {
            self.rx.take::<EXPORT_NAME_ZEROES>(self.deadline)?;
        }
        Ok(described(size, flags, (1, 4096, DEFAULT_MAX_BLOCK)))
    }
}

fn described(size: u64, flags: u16, blocks: (u32, u32, u32)) -> Export {
    let (min_block, preferred_block, max_block) = blocks;
    Export {
        size,
        flags,
        min_block,
        preferred_block,
        max_block,
        structured: false,
    }
}

/// What an error to an option means.
fn refused(kind: u32, data: &[u8]) -> Error {
    let text: String = String::from_utf8_lossy(data)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    let (e, what) = match kind & !proto::REP_ERROR {
        2 => (EACCES, "the server's policy is against it"),
        4 => (EOPNOTSUPP, "the server's platform cannot"),
        5 => (EOPNOTSUPP, "the server wants TLS"),
        6 => (ENOENT, "no such export"),
        7 => (ESHUTDOWN, "the server is shutting down"),
        _ => (EPROTO, "refused"),
    };
    pr_warn_ratelimited!("nbd: {what}: {text}");
    e
}
