//! Numbers and layouts of the protocol: what is put together and what is taken apart, nothing that waits.
//!
//! Specification: `doc/proto.md` of the NetworkBlockDevice/nbd project; C header: `include/uapi/linux/nbd.h`

use kshim::prelude::*;

/// "NBDMAGIC", first thing a server says.
pub(crate) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": newstyle, and before each option of the client.
pub(crate) const OPT_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each answer to an option.
pub(crate) const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
#[doc(alias = "NBD_REQUEST_MAGIC")]
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before a simple reply.
#[doc(alias = "NBD_REPLY_MAGIC")]
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Before a chunk of a structured reply.
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags of both sides.
pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const FLAG_NO_ZEROES: u16 = 2;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_ERROR: u32 = 1 << 31;
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR | 1;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

/// What an export can do.
pub(crate) mod export {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const ROTATIONAL: u16 = 1 << 4;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Flags of requests.
pub(crate) const CMD_FLAG_FUA: u16 = 1;
pub(crate) const CMD_FLAG_NO_HOLE: u16 = 2;

/// A chunk that is the last.
pub(crate) const REPLY_FLAG_DONE: u16 = 1;

pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;
/// The bit of chunks that are errors.
pub(crate) const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Length of a request.
pub(crate) const REQUEST_LEN: usize = 28;
/// Length of a simple reply, and of the part of a chunk header that is read first.
pub(crate) const SIMPLE_LEN: usize = 16;
/// Length of a chunk header.
pub(crate) const CHUNK_LEN: usize = 20;
/// Longest error chunk: number, length of a message, message.
pub(crate) const MAX_ERROR_CHUNK: u32 = 4096 + 16;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmd {
    Read,
    Write,
    Disc,
    Flush,
    Trim,
    WriteZeroes,
}

impl Cmd {
    fn number(self) -> u16 {
        match self {
            Cmd::Read => 0,
            Cmd::Write => 1,
            Cmd::Disc => 2,
            Cmd::Flush => 3,
            Cmd::Trim => 4,
            Cmd::WriteZeroes => 6,
        }
    }
}

/// A request on the wire.
#[doc(alias = "nbd_request")]
pub(crate) fn request(
    cmd: Cmd,
    flags: u16,
    cookie: u64,
    offset: u64,
    len: u32,
) -> [u8; REQUEST_LEN] {
    let mut b = [0; REQUEST_LEN];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        b[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&REQUEST_MAGIC.to_be_bytes());
    put(&flags.to_be_bytes());
    put(&cmd.number().to_be_bytes());
    put(&cookie.to_be_bytes());
    put(&offset.to_be_bytes());
    put(&len.to_be_bytes());
    b
}

/// Reads big-endian numbers one after the other.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(EPROTO)?;
        self.0 = rest;
        Ok(*head)
    }

    /// Errors, of all: `EPROTO`, no more bytes.
    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The beginning of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple {
        error: u32,
        cookie: u64,
    },
    Chunk {
        flags: u16,
        kind: u16,
        cookie: u64,
        len: u32,
    },
}

/// How long the header is that begins with these bytes. Errors: `EPROTO`: no header.
pub(crate) fn header_len(first: &[u8]) -> Result<usize> {
    match Fields(first).u32()? {
        SIMPLE_MAGIC => Ok(SIMPLE_LEN),
        CHUNK_MAGIC => Ok(CHUNK_LEN),
        _ => Err(EPROTO),
    }
}

/// Takes a header apart. Errors: `EPROTO`.
pub(crate) fn parse_reply(header: &[u8]) -> Result<Reply> {
    let mut f = Fields(header);
    match f.u32()? {
        SIMPLE_MAGIC => Ok(Reply::Simple {
            error: f.u32()?,
            cookie: f.u64()?,
        }),
        CHUNK_MAGIC => Ok(Reply::Chunk {
            flags: f.u16()?,
            kind: f.u16()?,
            cookie: f.u64()?,
            len: f.u32()?,
        }),
        _ => Err(EPROTO),
    }
}

/// What an error number of the protocol means here. `ESHUTDOWN`: the server goes away, try another connection.
#[doc(alias = "nbd_reply")]
pub(crate) fn error(number: u32) -> Error {
    match number {
        1 => EROFS,
        12 => ENOMEM,
        28 => ENOSPC,
        95 => EOPNOTSUPP,
        108 => ESHUTDOWN,
        _ => EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_has_its_fields_in_place() {
        let r = request(Cmd::WriteZeroes, CMD_FLAG_FUA, 7, 1 << 33, 512);
        let mut f = Fields(&r);
        assert_eq!(f.u32(), Ok(REQUEST_MAGIC));
        assert_eq!((f.u16(), f.u16(), f.u64()), (Ok(1), Ok(6), Ok(7)));
        assert_eq!(
            (f.u64(), f.u32(), f.u16()),
            (Ok(1 << 33), Ok(512), Err(EPROTO))
        );
        assert_eq!((error(28), error(5), error(999)), (ENOSPC, EIO, EIO));
    }

    proptest! {
        #[test]
        fn headers_are_taken_apart_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..24), magic in 0..3) {
            let magic = [None, Some(SIMPLE_MAGIC), Some(CHUNK_MAGIC)][magic as usize];
            if let (Some(m), Some(head)) = (magic, bytes.first_chunk_mut::<4>()) {
                *head = m.to_be_bytes();
            }
            if let Ok(len) = header_len(&bytes) {
                prop_assert_eq!(parse_reply(&bytes).is_ok(), bytes.len() >= len);
            } else {
                prop_assert!(parse_reply(&bytes).is_err());
            }
        }
    }
}
