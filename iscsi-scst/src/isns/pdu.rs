//! Messages of the Internet Storage Name Service (RFC 4171): framing and attributes.
//!
//! A message is one or more PDUs of a 12 byte header and up to 64 KiB; its body is a status (responses only) and a list of
//! attributes: tag, length, value, padded to four bytes.
//!
//! C source: `iscsi-scst/usr/isns_proto.h`

use kshim::error::{Result, code};

/// Bytes of a PDU's header.
pub(crate) const HEADER_LEN: usize = 12;
/// Most bytes of one PDU's body: the length field's largest multiple of four.
const BODY_MAX: usize = 0xfffc;
/// Most bytes of a message that we take.
const MESSAGE_MAX: usize = 1 << 20;
/// iSNSP version.
const VERSION: u16 = 1;
/// Bit of a function code: a response.
pub(crate) const RESPONSE: u16 = 0x8000;

/// Function codes (RFC 4171 4.1.3).
#[doc(alias = "ISNS_FUNC_DEV_ATTR_REG")]
pub(crate) mod function {
    pub(crate) const DEV_ATTR_REG: u16 = 1;
    pub(crate) const DEV_ATTR_QRY: u16 = 2;
    pub(crate) const DEV_DEREG: u16 = 4;
    pub(crate) const SCN_REG: u16 = 5;
    pub(crate) const SCN: u16 = 8;
    pub(crate) const ESI: u16 = 0xd;
}

/// Flags of a PDU (RFC 4171 5.1.4).
#[doc(alias = "ISNS_FLAG_CLIENT")]
pub(crate) mod flags {
    pub(crate) const CLIENT: u16 = 0x8000;
    pub(crate) const REPLACE: u16 = 0x1000;
    pub(crate) const LAST_PDU: u16 = 0x0800;
    pub(crate) const FIRST_PDU: u16 = 0x0400;
}

/// Tags of attributes (RFC 4171 6.1).
#[doc(alias = "ISNS_ATTR_ISCSI_NAME")]
pub(crate) mod tag {
    pub(crate) const DELIMITER: u32 = 0;
    pub(crate) const ENTITY_ID: u32 = 1;
    pub(crate) const ENTITY_PROTOCOL: u32 = 2;
    pub(crate) const REGISTRATION_PERIOD: u32 = 6;
    pub(crate) const PORTAL_ADDRESS: u32 = 16;
    pub(crate) const PORTAL_PORT: u32 = 17;
    pub(crate) const SCN_PORT: u32 = 23;
    pub(crate) const ISCSI_NAME: u32 = 32;
    pub(crate) const ISCSI_NODE_TYPE: u32 = 33;
    pub(crate) const ISCSI_ALIAS: u32 = 34;
    pub(crate) const ISCSI_SCN_BITMAP: u32 = 35;
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) function: u16,
    pub(crate) flags: u16,
    pub(crate) transaction: u16,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// The PDUs of the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len().saturating_add(HEADER_LEN));
        let pieces = self.body.len().div_ceil(BODY_MAX).max(1);
        for n in 0..pieces {
            let at = n.saturating_mul(BODY_MAX);
            let end = at.saturating_add(BODY_MAX).min(self.body.len());
            let piece = self.body.get(at..end).unwrap_or_default();
            let mut flags = self.flags;
            if n == 0 {
                flags |= flags::FIRST_PDU;
            }
            if n.saturating_add(1) == pieces {
                flags |= flags::LAST_PDU;
            }
            let len = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            let sequence = u16::try_from(n).unwrap_or(u16::MAX);
            let header = [
                VERSION,
                self.function,
                len,
                flags,
                self.transaction,
                sequence,
            ];
            out.extend(header.iter().flat_map(|field| field.to_be_bytes()));
            out.extend_from_slice(piece);
        }
        out
    }

    /// The status of a response.
    pub(crate) fn status(&self) -> Option<u32> {
        self.body.first_chunk().map(|s| u32::from_be_bytes(*s))
    }

    /// The attributes: of a response those after its status.
    pub(crate) fn attrs(&self) -> Attrs<'_> {
        let skip = if self.function & RESPONSE == 0 { 0 } else { 4 };
        Attrs(self.body.get(skip..).unwrap_or_default())
    }
}

/// Puts messages together from what a connection brings.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    input: Vec<u8>,
    message: Option<Message>,
}

impl Gather {
    /// Takes bytes. Errors: EMSGSIZE (more than a message may have).
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result {
        self.input.extend_from_slice(bytes);
        if self.input.len() > MESSAGE_MAX {
            return Err(code::EMSGSIZE);
        }
        Ok(())
    }

    /// The next message, if it is there as a whole. Errors: EPROTO (what came is no iSNS), EMSGSIZE.
    pub(crate) fn next(&mut self) -> Result<Option<Message>> {
        while let Some(header) = self.input.first_chunk::<HEADER_LEN>() {
            let field = |at: usize| {
                let bytes = [header.get(at), header.get(at.saturating_add(1))];
                u16::from_be_bytes(bytes.map(|b| b.copied().unwrap_or(0)))
            };
            let (version, len) = (field(0), usize::from(field(4)));
            if version != VERSION || len % 4 != 0 {
                return Err(code::EPROTO);
            }
            let (function, pdu_flags, transaction) = (field(2), field(6), field(8));
            let end = HEADER_LEN.saturating_add(len);
            let Some(body) = self.input.get(HEADER_LEN..end) else {
                return Ok(None);
            };
            let first = pdu_flags & flags::FIRST_PDU != 0;
            let mut message = match self.message.take() {
                None if first => Message {
                    function,
                    flags: pdu_flags & !(flags::FIRST_PDU | flags::LAST_PDU),
                    transaction,
                    body: Vec::new(),
                },
                Some(m) if !first && (m.function, m.transaction) == (function, transaction) => m,
                _ => return Err(code::EPROTO),
            };
            if message.body.len().saturating_add(len) > MESSAGE_MAX {
                return Err(code::EMSGSIZE);
            }
            message.body.extend_from_slice(body);
            self.input.drain(..end);
            if pdu_flags & flags::LAST_PDU != 0 {
                return Ok(Some(message));
            }
            self.message = Some(message);
        }
        Ok(None)
    }
}

/// The attributes of a message; ends at the first that is cut off.
#[derive(Clone, Debug)]
pub(crate) struct Attrs<'a>(&'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = self.0.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((u32::from_be_bytes(*tag), value))
    }
}

/// The text of an attribute.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    std::str::from_utf8(value.get(..end)?).ok()
}

/// The number of an attribute.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A body that is being written.
#[derive(Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    /// The body of a response.
    pub(crate) fn response(status: u32) -> Self {
        Self(status.to_be_bytes().to_vec())
    }

    /// Adds an attribute. As in SCST, and in RFC 4171, the length counts the padding.
    pub(crate) fn add(&mut self, tag: u32, value: &[u8]) -> &mut Self {
        let len = value.len().next_multiple_of(4);
        self.0.extend_from_slice(&tag.to_be_bytes());
        let announced = u32::try_from(len).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&announced.to_be_bytes());
        self.0.extend_from_slice(value);
        let pad = len.saturating_sub(value.len());
        self.0.extend(std::iter::repeat_n(0, pad));
        self
    }

    /// Adds text, with its NUL.
    pub(crate) fn text(&mut self, tag: u32, text: &str) -> &mut Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.add(tag, &value)
    }

    pub(crate) fn number(&mut self, tag: u32, number: u32) -> &mut Self {
        self.add(tag, &number.to_be_bytes())
    }

    /// Between the key and what it is about.
    pub(crate) fn delimiter(&mut self) -> &mut Self {
        self.add(tag::DELIMITER, &[])
    }

    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(len: usize) -> Message {
        Message {
            function: function::DEV_ATTR_REG,
            flags: flags::CLIENT,
            transaction: 77,
            body: (0..len)
                .map(|i| u8::try_from(i % 251).unwrap_or(0))
                .collect(),
        }
    }

    #[test]
    fn attributes_are_padded_and_read_again() {
        let mut body = Body::response(9);
        body.text(tag::ISCSI_NAME, "iqn.x")
            .delimiter()
            .number(tag::ISCSI_NODE_TYPE, 2);
        let message = Message {
            function: function::DEV_ATTR_QRY | RESPONSE,
            body: body.finish(),
            ..Message::default()
        };
        assert_eq!(message.status(), Some(9));
        let attrs: Vec<_> = message.attrs().collect();
        assert_eq!(attrs.iter().map(|a| a.0).collect::<Vec<_>>(), [32, 0, 33]);
        assert_eq!(
            attrs.iter().map(|a| a.1.len()).collect::<Vec<_>>(),
            [8, 0, 4]
        );
        let values = attrs.first().zip(attrs.last());
        assert_eq!(
            values.map(|(name, kind)| (text(name.1), number(kind.1))),
            Some((Some("iqn.x"), Some(2)))
        );
    }

    #[test]
    fn long_messages_go_in_pieces() {
        for len in [0, 4, BODY_MAX, BODY_MAX + 4, 3 * BODY_MAX] {
            let sent = message(len);
            let mut gather = Gather::default();
            let bytes = sent.encode();
            let (most, last) = bytes.split_at(bytes.len() - 1);
            gather.add(most).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(gather.next(), Ok(None));
            gather.add(last).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(gather.next(), Ok(Some(sent)));
            assert_eq!(gather.next(), Ok(None));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut other_version = message(4).encode();
        other_version.splice(0..2, [0, 2]);
        let mut never_begun = message(4).encode();
        never_begun.splice(6..8, [0x88, 0]);
        for bytes in [other_version, never_begun] {
            let mut gather = Gather::default();
            assert_eq!(gather.add(&bytes), Ok(()));
            assert_eq!(gather.next(), Err(code::EPROTO));
        }
        assert_eq!(
            Gather::default().add(&vec![0; MESSAGE_MAX + 1]),
            Err(code::EMSGSIZE)
        );
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut gather = Gather::default();
            let _ = gather.add(&bytes);
            while let Ok(Some(message)) = gather.next() {
                let _ = message.attrs().filter_map(|(_, v)| text(v)).count();
            }
            let _ = Attrs(&bytes).count();
        }
    }
}
