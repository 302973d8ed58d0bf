//! iSCSI PDUs as bytes with named fields (RFC 7143, section 11).

/// Initiator opcodes.
#[expect(missing_docs, reason = "names of RFC 7143 11.2.1.2")]
pub mod op {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MGMT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MGMT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// Bit of the first byte: immediate delivery.
pub const IMMEDIATE: u8 = 0x40;
/// Bit of the second byte: final PDU of a sequence.
pub const FINAL: u8 = 0x80;
/// The reserved tag.
pub const NO_TAG: u32 = 0xffff_ffff;
/// Length of the basic header segment.
pub const BHS_LEN: usize = 48;

/// A basic header segment: 48 bytes with accessors for the fields most PDUs share.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bhs(pub [u8; BHS_LEN]);

impl Bhs {
    /// A header with this first byte (opcode and flags) and second byte, zeros elsewhere.
    pub fn new(byte0: u8, byte1: u8) -> Self {
        let mut b = [0; BHS_LEN];
        b[0] = byte0;
        b[1] = byte1;
        Self(b)
    }

    /// The opcode without the immediate bit.
    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    /// True if the immediate bit is set.
    pub fn is_immediate(&self) -> bool {
        self.0[0] & IMMEDIATE != 0
    }

    /// The second byte.
    pub fn flags(&self) -> u8 {
        self.0[1]
    }

    /// Length of all additional header segments in bytes.
    pub fn ahs_len(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// DataSegmentLength.
    pub fn data_len(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    /// Sets DataSegmentLength (24 bits).
    pub fn set_data_len(&mut self, len: usize) -> &mut Self {
        let b = (len as u32).to_be_bytes();
        self.0[5..8].copy_from_slice(&b[1..]);
        self
    }

    /// The big-endian word at `at`.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Sets the big-endian word at `at`.
    pub fn set_word(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    /// Sets the LUN field (bytes 8..16).
    pub fn set_lun(&mut self, lun: [u8; 8]) -> &mut Self {
        self.0[8..16].copy_from_slice(&lun);
        self
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.word(16)
    }

    /// Target transfer tag (bytes 20..24 where the PDU has one).
    pub fn ttt(&self) -> u32 {
        self.word(20)
    }

    /// StatSN of a target PDU.
    pub fn stat_sn(&self) -> u32 {
        self.word(24)
    }

    /// ExpCmdSN of a target PDU.
    pub fn exp_cmd_sn(&self) -> u32 {
        self.word(28)
    }

    /// MaxCmdSN of a target PDU.
    pub fn max_cmd_sn(&self) -> u32 {
        self.word(32)
    }
}

impl std::fmt::Debug for Bhs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bhs(")?;
        for (i, b) in self.0.iter().enumerate() {
            let gap = if i > 0 && i % 4 == 0 { " " } else { "" };
            write!(f, "{gap}{b:02x}")?;
        }
        write!(f, ")")
    }
}

/// A whole PDU: header, additional header segments (a multiple of 4 bytes), data segment without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// Basic header segment. Its length fields describe `ahs` and `data` only if [`Pdu::encode`] is to be right.
    pub bhs: Bhs,
    /// Additional header segments.
    pub ahs: Vec<u8>,
    /// Data segment.
    pub data: Vec<u8>,
}

impl Pdu {
    /// A PDU whose length fields are set from `ahs` and `data`.
    pub fn new(mut bhs: Bhs, ahs: Vec<u8>, data: Vec<u8>) -> Self {
        bhs.0[4] = (ahs.len() / 4) as u8;
        bhs.set_data_len(data.len());
        Self { bhs, ahs, data }
    }

    /// A PDU without data.
    pub fn bare(bhs: Bhs) -> Self {
        Self::new(bhs, Vec::new(), Vec::new())
    }

    /// The bytes on the wire, with digests where asked for. Length fields are sent as they stand in the header, so
    /// that a test can lie about them.
    pub fn encode(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut v = Vec::with_capacity(BHS_LEN + self.ahs.len() + self.data.len() + 12);
        v.extend_from_slice(&self.bhs.0);
        v.extend_from_slice(&self.ahs);
        if header_digest {
            v.extend_from_slice(&crc32c::crc32c(&v).to_le_bytes());
        }
        if !self.data.is_empty() {
            let at = v.len();
            v.extend_from_slice(&self.data);
            v.resize(at + self.data.len().next_multiple_of(4), 0);
            if data_digest {
                let crc = crc32c::crc32c(&v[at..]);
                v.extend_from_slice(&crc.to_le_bytes());
            }
        }
        v
    }

    /// The data segment as `key=value` pairs, in order (login and text PDUs).
    pub fn text(&self) -> Vec<(String, String)> {
        parse_text(&self.data)
    }
}

/// `key=value` pairs, each ended by a NUL.
pub fn encode_text<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<u8> {
    let mut v = Vec::new();
    for (key, value) in pairs {
        v.extend_from_slice(key.as_ref().as_bytes());
        v.push(b'=');
        v.extend_from_slice(value.as_ref().as_bytes());
        v.push(0);
    }
    v
}

/// The pairs of a text data segment, in order; a piece without `=` gets an empty value.
pub fn parse_text(data: &[u8]) -> Vec<(String, String)> {
    data.split(|&b| b == 0)
        .filter(|piece| !piece.is_empty())
        .map(|piece| {
            let piece = String::from_utf8_lossy(piece);
            match piece.split_once('=') {
                Some((k, v)) => (k.to_owned(), v.to_owned()),
                None => (piece.into_owned(), String::new()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_padding() {
        let pdu = Pdu::new(
            Bhs::new(op::NOP_OUT, FINAL),
            vec![0; 8],
            vec![1, 2, 3, 4, 5],
        );
        assert_eq!(pdu.bhs.ahs_len(), 8);
        assert_eq!(pdu.bhs.data_len(), 5);
        assert_eq!(pdu.encode(false, false).len(), 48 + 8 + 8);
        assert_eq!(pdu.encode(true, true).len(), 48 + 8 + 4 + 8 + 4);
    }

    #[test]
    fn text_keeps_order() {
        let pairs = [("B", "2"), ("A", "1=x")];
        let parsed = parse_text(&encode_text(&pairs));
        assert_eq!(
            parsed,
            [("B".into(), "2".into()), ("A".into(), "1=x".into())]
        );
    }
}
