//! Offsets and codes of the iSCSI PDUs that the tools here send and understand (RFC 7143), independent of the product.

/// Bytes of a basic header segment.
pub const BHS: usize = 48;
/// Bytes of a digest.
pub const DIGEST: usize = 4;
/// "No task" and "no transfer tag".
pub const RESERVED_TAG: u32 = u32::MAX;
/// Immediate-delivery bit of byte 0.
pub const IMMEDIATE: u8 = 0x40;
/// Final bit of byte 1.
pub const FINAL: u8 = 0x80;

/// Opcodes, byte 0 without the immediate bit.
pub mod op {
    /// NOP-Out.
    pub const NOP_OUT: u8 = 0x00;
    /// SCSI Command.
    pub const SCSI_CMD: u8 = 0x01;
    /// Task management request.
    pub const TMF: u8 = 0x02;
    /// Login request.
    pub const LOGIN: u8 = 0x03;
    /// Data-Out.
    pub const DATA_OUT: u8 = 0x05;
    /// Logout request.
    pub const LOGOUT: u8 = 0x06;
    /// NOP-In.
    pub const NOP_IN: u8 = 0x20;
    /// SCSI Response.
    pub const SCSI_RSP: u8 = 0x21;
    /// Task management response.
    pub const TMF_RSP: u8 = 0x22;
    /// Login response.
    pub const LOGIN_RSP: u8 = 0x23;
    /// Data-In.
    pub const DATA_IN: u8 = 0x25;
    /// Logout response.
    pub const LOGOUT_RSP: u8 = 0x26;
    /// R2T.
    pub const R2T: u8 = 0x31;
    /// Asynchronous message.
    pub const ASYNC: u8 = 0x32;
}

/// A basic header segment.
pub type Header = [u8; BHS];

/// The big-endian word at `at`; 0 beyond the end.
#[inline]
pub fn get32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_be_bytes)
}

/// The big-endian double word at `at`.
#[inline]
pub fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get32(bytes, at)) << 32 | u64::from(get32(bytes, at + 4))
}

/// Stores a big-endian word.
#[inline]
pub fn put32(bytes: &mut [u8], at: usize, v: u32) {
    bytes[at..at + 4].copy_from_slice(&v.to_be_bytes());
}

/// Stores a big-endian double word.
#[inline]
pub fn put64(bytes: &mut [u8], at: usize, v: u64) {
    bytes[at..at + 8].copy_from_slice(&v.to_be_bytes());
}

/// DataSegmentLength of a header.
#[inline]
pub fn data_len(h: &[u8]) -> usize {
    (get32(h, 4) & 0x00ff_ffff) as usize
}

/// `n` rounded up to whole words.
#[inline]
pub fn padded(n: usize) -> usize {
    (n + 3) & !3
}

/// A header with opcode, flags and data length set.
#[inline]
pub fn header(op: u8, flags: u8, len: usize) -> Header {
    let mut h = [0; BHS];
    h[0] = op;
    h[1] = flags;
    // At most 24 bits: what these tools send is far smaller.
    let len = u32::try_from(len).unwrap_or(0x00ff_ffff).to_be_bytes();
    h[5..8].copy_from_slice(&len[1..]);
    h
}

/// The key=value pairs of a text segment.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    text.split(|&b| b == 0)
        .filter_map(|s| std::str::from_utf8(s).ok())
        .filter_map(|s| s.split_once('='))
}

/// A text segment of key=value pairs.
pub fn text<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = Vec::new();
    for (k, v) in pairs {
        out.extend_from_slice(k.as_bytes());
        out.push(b'=');
        out.extend_from_slice(v.as_bytes());
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields() {
        let mut h = header(op::DATA_IN, FINAL, 0x01_0203);
        assert_eq!(data_len(&h), 0x01_0203);
        put64(&mut h, 8, 0x1122_3344_5566_7788);
        assert_eq!(get64(&h, 8), 0x1122_3344_5566_7788);
        assert_eq!(get32(&h, 12), 0x5566_7788);
        assert_eq!(get32(&h, 46), 0);
    }

    #[test]
    fn text_there_and_back() {
        let t = text([("A", "1"), ("B", "x=y")]);
        assert_eq!(pairs(&t).collect::<Vec<_>>(), [("A", "1"), ("B", "x=y")]);
    }
}
