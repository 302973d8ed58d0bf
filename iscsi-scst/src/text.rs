//! Key=value text of Login and Text PDUs.
//!
//! The data segment is a run of `key=value` strings, each ended by a NUL (RFC 7143 6.1). [`pairs`] reads them where
//! they lie, [`TextBuf`] writes them. Reading stays tolerant where SCST is (NULs between pairs, keys of any
//! characters) and reports what cannot be read as a [`TextError`]; lengths are checked separately
//! ([`Pair::check_limits`]), because an overlong unknown key still deserves its NotUnderstood.
//!
//! ```
//! use iscsi_scst::text::{TextBuf, pairs};
//!
//! let mut buf = TextBuf::with_limit(8192);
//! buf.push("MaxBurstLength", "262144")?;
//! assert_eq!(buf.as_bytes(), b"MaxBurstLength=262144\0");
//! let pair = pairs(buf.as_bytes()).next().ok_or("empty")??;
//! assert_eq!((pair.key, pair.value), ("MaxBurstLength", "262144"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! C source: `iscsi-scst/usr/iscsid.c` (`next_key`, `text_key_find`, `text_key_add`).

/// Longest key name (RFC 7143 6.1).
pub const MAX_KEY_LEN: usize = 63;

/// Longest value of a key that says nothing else (RFC 7143 6.1).
pub const MAX_VALUE_LEN: usize = 255;

/// Longest large binary value, that of CHAP_C and CHAP_R: 1,024 bytes (RFC 7143 12.1.3), as hexadecimal with 0x.
pub const MAX_BINARY_VALUE_LEN: usize = 2 + 2 * 1024;

/// The answer for a key that the receiver does not know (RFC 7143 6.2).
pub const NOT_UNDERSTOOD: &str = "NotUnderstood";

/// The answer for a value that the receiver does not take (RFC 7143 6.2).
pub const REJECT: &str = "Reject";

/// The answer for a key that has no meaning given other keys (RFC 7143 6.2).
pub const IRRELEVANT: &str = "Irrelevant";

/// What is wrong with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A string without an equals sign.
    #[error("text without '='")]
    MissingEquals,
    /// The last string has no NUL at its end.
    #[error("text not ended by NUL")]
    MissingNul,
    /// Nothing before the equals sign.
    #[error("empty key name")]
    EmptyKey,
    /// Bytes that are no UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A key name of more than [`MAX_KEY_LEN`] bytes.
    #[error("key name too long")]
    KeyTooLong,
    /// A value longer than its key allows.
    #[error("value too long")]
    ValueTooLong,
}

/// One key=value pair, borrowed from the PDU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The key as the peer spelled it.
    pub key: &'a str,
    /// The value; may be empty.
    pub value: &'a str,
}

impl Pair<'_> {
    /// Checks the lengths of key and value.
    ///
    /// # Errors
    /// [`TextError::KeyTooLong`], [`TextError::ValueTooLong`].
    pub fn check_limits(&self) -> Result<(), TextError> {
        if self.key.len() > MAX_KEY_LEN {
            return Err(TextError::KeyTooLong);
        }
        let is_binary = ["CHAP_C", "CHAP_R"].iter().any(|key| self.has_key(key));
        let limit = if is_binary {
            MAX_BINARY_VALUE_LEN
        } else {
            MAX_VALUE_LEN
        };
        if self.value.len() > limit {
            Err(TextError::ValueTooLong)
        } else {
            Ok(())
        }
    }

    /// Whether this is the pair of `key`. SCST compares names without regard to ASCII case.
    #[must_use]
    pub fn has_key(&self, key: &str) -> bool {
        self.key.eq_ignore_ascii_case(key)
    }
}

/// Iterates over the pairs of a data segment. Ends after the first error.
#[doc(alias = "next_key")]
pub fn pairs(text: &[u8]) -> Pairs<'_> {
    Pairs { rest: text }
}

/// Iterator of [`pairs`].
#[derive(Debug, Clone)]
pub struct Pairs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Result<Pair<'a>, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Some initiators count their padding into the data segment: NULs between strings mean nothing.
        let start = self.rest.iter().position(|byte| *byte != 0)?;
        let (_, rest) = self.rest.split_at_checked(start)?;
        let parsed = split_pair(rest);
        self.rest = parsed.map_or(&[], |(_, rest)| rest);
        Some(parsed.map(|(pair, _)| pair))
    }
}

fn split_pair(text: &[u8]) -> Result<(Pair<'_>, &[u8]), TextError> {
    let mut strings = text.splitn(2, |byte| *byte == 0);
    let string = strings.next().unwrap_or_default();
    let Some(rest) = strings.next() else {
        return Err(TextError::MissingNul);
    };
    let string = std::str::from_utf8(string).map_err(|_| TextError::NotUtf8)?;
    let (key, value) = string.split_once('=').ok_or(TextError::MissingEquals)?;
    if key.is_empty() {
        return Err(TextError::EmptyKey);
    }
    Ok((Pair { key, value }, rest))
}

/// The value of the first pair with `key` in `text`.
///
/// # Errors
/// What [`pairs`] found wrong before it came to the key.
#[doc(alias = "text_key_find")]
pub fn find<'a>(text: &'a [u8], key: &str) -> Result<Option<&'a str>, TextError> {
    for pair in pairs(text) {
        let pair = pair?;
        if pair.has_key(key) {
            return Ok(Some(pair.value));
        }
    }
    Ok(None)
}

/// The text does not fit into the limit of a [`TextBuf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text answer longer than {0} bytes")]
pub struct TextFull(pub usize);

/// A text being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBuf {
    bytes: Vec<u8>,
    limit: usize,
}

impl TextBuf {
    /// An empty text that may grow to `limit` bytes.
    #[must_use]
    pub const fn with_limit(limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
        }
    }

    /// Appends `key=value` and its NUL.
    ///
    /// # Errors
    /// [`TextFull`] when the limit would be passed; the text is left as it was.
    #[doc(alias = "text_key_add")]
    pub fn push(&mut self, key: &str, value: &str) -> Result<(), TextFull> {
        let grown = [self.bytes.len(), key.len(), 1, value.len(), 1]
            .into_iter()
            .try_fold(0usize, usize::checked_add)
            .filter(|len| *len <= self.limit);
        if grown.is_none() {
            return Err(TextFull(self.limit));
        }
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        Ok(())
    }

    /// What was written.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes themselves.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Vec<(String, String)>, TextError> {
        pairs(text)
            .map(|pair| pair.map(|p| (p.key.to_owned(), p.value.to_owned())))
            .collect()
    }

    #[test]
    fn reads_pairs_in_order() {
        let owned = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            read(b"A=1\0\0B=\0C==x=\0\0\0"),
            Ok(vec![owned("A", "1"), owned("B", ""), owned("C", "=x=")])
        );
        assert_eq!(read(b""), Ok(vec![]));
        assert_eq!(read(b"\0\0"), Ok(vec![]));
    }

    #[test]
    fn malformed_text_is_an_error_and_the_end() {
        let cases: &[(&[u8], TextError)] = &[
            (b"A=1", TextError::MissingNul),
            (b"A\0", TextError::MissingEquals),
            (b"=1\0", TextError::EmptyKey),
            (b"A=\xff\0", TextError::NotUtf8),
        ];
        for (text, error) in cases {
            let mut pairs = pairs(text);
            assert_eq!(pairs.next(), Some(Err(*error)), "{text:?}");
            assert_eq!(pairs.next(), None);
        }
    }

    #[test]
    fn find_takes_the_first_whatever_its_case() {
        assert_eq!(
            find(b"targetname=a\0TargetName=b\0", "TargetName"),
            Ok(Some("a"))
        );
        assert_eq!(find(b"X=a\0", "TargetName"), Ok(None));
        assert_eq!(
            find(b"X\0TargetName=a\0", "TargetName"),
            Err(TextError::MissingEquals)
        );
    }

    #[test]
    fn limits_depend_on_the_key() {
        let long = "f".repeat(256);
        let pair = |key, value| Pair { key, value };
        assert_eq!(
            pair("InitiatorAlias", &long).check_limits(),
            Err(TextError::ValueTooLong)
        );
        assert_eq!(pair("CHAP_R", &long).check_limits(), Ok(()));
        assert_eq!(pair(&long, "").check_limits(), Err(TextError::KeyTooLong));
        assert_eq!(pair("InitiatorAlias", &long[1..]).check_limits(), Ok(()));
    }

    #[test]
    fn a_full_buffer_stays_as_it_was() {
        let mut buf = TextBuf::with_limit(8);
        assert_eq!(buf.push("abc", "def"), Ok(()));
        assert_eq!(buf.push("", ""), Err(TextFull(8)));
        assert_eq!(buf.as_bytes(), b"abc=def\0");
        assert!(!buf.is_empty() && buf.len() == 8);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..256)) {
            for pair in pairs(&text) {
                let _ = pair.map(|pair| pair.check_limits());
            }
            let _ = find(&text, "InitiatorName");
        }

        #[test]
        fn what_is_written_is_read(list in proptest::collection::vec(("[a-zA-Z0-9_.@+:-]{1,63}", "[ -~]{0,40}"), 0..8)) {
            let mut buf = TextBuf::with_limit(usize::MAX);
            for (key, value) in &list {
                buf.push(key, value).unwrap();
            }
            prop_assert_eq!(read(buf.as_bytes()), Ok(list));
        }
    }
}
