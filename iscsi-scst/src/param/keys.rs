//! The session keys: SCST's table, how values are read and written, and the values of a target.
//!
//! C source: `iscsi-scst/usr/param.c`.

use crate::text::{IRRELEVANT, REJECT};
use std::borrow::Cow;

/// Largest data segment and burst that SCST takes: 256 pages of 4 KiB.
#[doc(alias = "ISCSI_CONN_IOV_MAX")]
pub const MAX_DATA_SEG_LEN: u32 = 256 * 4096;

/// R2Ts that SCST keeps outstanding per command unless the initiator wants fewer.
pub const DEFAULT_MAX_OUTSTANDING_R2T: u32 = 32;

/// Digest "None", as a bit of a digest key's value.
pub const DIGEST_NONE: u32 = 1;

/// Digest "CRC32C", as a bit of a digest key's value.
pub const DIGEST_CRC32C: u32 = 2;

/// Both digests.
pub const DIGEST_ALL: u32 = DIGEST_NONE | DIGEST_CRC32C;

/// The session keys, in SCST's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(
    missing_docs,
    reason = "each is the key of its name; RFC 7143 13 and RFC 7145 6 define them"
)]
pub enum SessionKey {
    InitialR2T,
    ImmediateData,
    MaxConnections,
    MaxRecvDataSegmentLength,
    MaxXmitDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPDUInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    HeaderDigest,
    DataDigest,
    OFMarker,
    IFMarker,
    OFMarkInt,
    IFMarkInt,
    RDMAExtensions,
    TargetRecvDataSegmentLength,
    InitiatorRecvDataSegmentLength,
    MaxAHSLength,
    TaggedBufferForSolicitedDataOnly,
    ISERHelloRequired,
    MaxOutstandingUnexpectedPDUs,
}

/// Number of session keys.
#[doc(alias = "session_key_last")]
pub const SESSION_KEY_COUNT: usize = 26;

/// How the values of both sides become one (RFC 7143 6.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The smaller number.
    Minimum,
    /// The larger number.
    Maximum,
    /// Yes when either side says so.
    Or,
    /// Yes when both sides say so.
    And,
    /// CRC32C when both sides have it, else None.
    Digest,
    /// A marker interval: markers are not supported, so there is none.
    Marker,
}

/// One row of [`SESSION_KEYS`].
#[doc(alias = "iscsi_key")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionKeyInfo {
    /// The key.
    pub key: SessionKey,
    /// Its name on the wire and in sysfs.
    pub name: &'static str,
    /// The value when it is not negotiated.
    pub rfc_default: u32,
    /// The value a new target starts with.
    pub local_default: u32,
    /// Smallest value taken.
    pub min: u32,
    /// Largest value taken.
    pub max: u32,
    /// Whether it is an attribute of targets and sessions.
    pub show_in_sysfs: bool,
    /// How it is negotiated.
    pub rule: Rule,
}

const fn row(
    key: SessionKey,
    name: &'static str,
    [rfc_default, local_default, min, max]: [u32; 4],
    show_in_sysfs: bool,
    rule: Rule,
) -> SessionKeyInfo {
    SessionKeyInfo {
        key,
        name,
        rfc_default,
        local_default,
        min,
        max,
        show_in_sysfs,
        rule,
    }
}

const SHOWN: bool = true;
const HIDDEN: bool = false;

/// All session keys, in the order of [`SessionKey`].
#[doc(alias = "session_keys")]
#[rustfmt::skip]
pub static SESSION_KEYS: [SessionKeyInfo; SESSION_KEY_COUNT] = {
    use Rule::{And, Digest, Marker, Maximum, Minimum, Or};
    use SessionKey as K;
    const MAX: u32 = MAX_DATA_SEG_LEN;
    [
        row(K::InitialR2T, "InitialR2T", [1, 0, 0, 1], SHOWN, Or),
        row(K::ImmediateData, "ImmediateData", [1, 1, 0, 1], SHOWN, And),
        row(K::MaxConnections, "MaxConnections", [1, 1, 1, 1], HIDDEN, Minimum),
        row(K::MaxRecvDataSegmentLength, "MaxRecvDataSegmentLength", [8192, MAX, 512, MAX], SHOWN, Minimum),
        row(K::MaxXmitDataSegmentLength, "MaxXmitDataSegmentLength", [8192, MAX, 512, MAX], SHOWN, Minimum),
        row(K::MaxBurstLength, "MaxBurstLength", [262_144, MAX, 512, MAX], SHOWN, Minimum),
        row(K::FirstBurstLength, "FirstBurstLength", [65_536, 65_536, 512, MAX], SHOWN, Minimum),
        row(K::DefaultTime2Wait, "DefaultTime2Wait", [2, 0, 0, 0], HIDDEN, Maximum),
        row(K::DefaultTime2Retain, "DefaultTime2Retain", [20, 0, 0, 0], HIDDEN, Minimum),
        row(K::MaxOutstandingR2T, "MaxOutstandingR2T", [1, DEFAULT_MAX_OUTSTANDING_R2T, 1, 65_535], SHOWN, Minimum),
        row(K::DataPDUInOrder, "DataPDUInOrder", [1, 0, 0, 1], HIDDEN, Or),
        row(K::DataSequenceInOrder, "DataSequenceInOrder", [1, 0, 0, 1], HIDDEN, Or),
        row(K::ErrorRecoveryLevel, "ErrorRecoveryLevel", [0, 0, 0, 0], HIDDEN, Minimum),
        row(K::HeaderDigest, "HeaderDigest", [DIGEST_NONE, DIGEST_NONE, DIGEST_NONE, DIGEST_ALL], SHOWN, Digest),
        row(K::DataDigest, "DataDigest", [DIGEST_NONE, DIGEST_NONE, DIGEST_NONE, DIGEST_ALL], SHOWN, Digest),
        row(K::OFMarker, "OFMarker", [0, 0, 0, 0], HIDDEN, And),
        row(K::IFMarker, "IFMarker", [0, 0, 0, 0], HIDDEN, And),
        row(K::OFMarkInt, "OFMarkInt", [2048, 2048, 1, 65_535], HIDDEN, Marker),
        row(K::IFMarkInt, "IFMarkInt", [2048, 2048, 1, 65_535], HIDDEN, Marker),
        row(K::RDMAExtensions, "RDMAExtensions", [0, 0, 0, 0], SHOWN, And),
        row(K::TargetRecvDataSegmentLength, "TargetRecvDataSegmentLength", [8192, 512, 512, u32::MAX], HIDDEN, Minimum),
        row(K::InitiatorRecvDataSegmentLength, "InitiatorRecvDataSegmentLength", [8192, u32::MAX, 512, u32::MAX], HIDDEN, Minimum),
        row(K::MaxAHSLength, "MaxAHSLength", [256, 0, 0, u32::MAX], HIDDEN, Minimum),
        row(K::TaggedBufferForSolicitedDataOnly, "TaggedBufferForSolicitedDataOnly", [0, 0, 0, 0], HIDDEN, And),
        row(K::ISERHelloRequired, "iSERHelloRequired", [0, 0, 0, 0], HIDDEN, And),
        row(K::MaxOutstandingUnexpectedPDUs, "MaxOutstandingUnexpectedPDUs", [0, 0, 0, u32::MAX], HIDDEN, Minimum),
    ]
};

impl SessionKey {
    /// The key with a name, whatever its ASCII case.
    #[doc(alias = "params_index_by_name")]
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        SESSION_KEYS
            .iter()
            .find(|info| info.name.eq_ignore_ascii_case(name))
            .map(|info| info.key)
    }

    /// The key's row of the table.
    #[must_use]
    pub fn info(self) -> &'static SessionKeyInfo {
        // The table has a row for every key, in order; `table_is_in_order` tests it.
        SESSION_KEYS.get(self.index()).unwrap_or(&SESSION_KEYS[0])
    }

    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

impl SessionKeyInfo {
    /// A value as text, as it appears on the wire and in sysfs.
    #[doc(alias = "params_val_to_str")]
    #[must_use]
    pub fn format(&self, value: u32) -> Cow<'static, str> {
        match self.rule {
            Rule::Minimum | Rule::Maximum => Cow::Owned(value.to_string()),
            Rule::Or | Rule::And => Cow::Borrowed(if value == 0 { "No" } else { "Yes" }),
            Rule::Digest => Cow::Borrowed(match value & DIGEST_ALL {
                DIGEST_ALL => "None,CRC32C",
                DIGEST_CRC32C => "CRC32C",
                _ => "None",
            }),
            Rule::Marker => Cow::Borrowed(if value == 0 { IRRELEVANT } else { REJECT }),
        }
    }

    /// The value of a text, `None` when it is not one for this key. Numbers always are: what `strtol` makes of
    /// them. `:default:`, which management writes, is the local default only in [`KeyValues::set_text`].
    #[doc(alias = "params_str_to_val")]
    #[must_use]
    pub fn parse(&self, text: &str) -> Option<u32> {
        match self.rule {
            Rule::Minimum | Rule::Maximum => Some(parse_number(text)),
            Rule::Or | Rule::And => match text {
                "Yes" => Some(1),
                "No" => Some(0),
                _ => None,
            },
            Rule::Digest => parse_digests(text),
            Rule::Marker => Some(1),
        }
    }

    /// `value` pulled into the key's range. Only numbers have one.
    #[doc(alias = "params_check_val")]
    #[must_use]
    pub fn clamp(&self, value: u32) -> u32 {
        match self.rule {
            Rule::Minimum | Rule::Maximum => value.clamp(self.min, self.max),
            _ => value,
        }
    }

    /// What both sides' values come to.
    #[doc(alias = "params_set_val")]
    #[must_use]
    pub(super) fn combine(&self, ours: u32, theirs: u32) -> u32 {
        match self.rule {
            Rule::Minimum => ours.min(theirs),
            Rule::Maximum => ours.max(theirs),
            Rule::Or => ours | theirs,
            Rule::And => ours & theirs,
            Rule::Digest if ours & theirs & DIGEST_CRC32C != 0 => DIGEST_CRC32C,
            Rule::Digest => DIGEST_NONE,
            Rule::Marker => theirs,
        }
    }
}

/// What C's `strtol` with base 0 makes of a text, cut to 32 bits as SCST stores it: leading blanks and a sign, then
/// hexadecimal after 0x, octal after 0, else decimal; nothing readable is 0.
pub(super) fn parse_number(text: &str) -> u32 {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
        .filter(|hex| hex.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (radix, digits) = match hex {
        Some(hex) => (16, hex),
        None if digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    let magnitude = digits
        .chars()
        .map_while(|c| c.to_digit(radix))
        .fold(0i64, |sum, digit| {
            sum.saturating_mul(i64::from(radix))
                .saturating_add(i64::from(digit))
        });
    let value = if negative {
        magnitude.saturating_neg()
    } else {
        magnitude
    };
    let [_, _, _, _, a, b, c, d] = value.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn parse_digests(text: &str) -> Option<u32> {
    let starts = |item: &str, name: &str| {
        item.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
    };
    text.split(',').try_fold(0, |found, item| {
        let item = item.trim_start();
        // SCST looks at the start of an item only.
        if starts(item, "None") {
            Some(found | DIGEST_NONE)
        } else if starts(item, "CRC32C") {
            Some(found | DIGEST_CRC32C)
        } else {
            None
        }
    })
}

/// The session parameters of one target, as management sets them: what its side of each negotiation starts from.
///
/// ```
/// use iscsi_scst::param::{KeyValues, SessionKey};
///
/// let mut values = KeyValues::default();
/// assert_eq!(values.get(SessionKey::FirstBurstLength), 65536);
/// assert!(values.set_text(SessionKey::HeaderDigest, "CRC32C,None"));
/// assert_eq!(values.text(SessionKey::HeaderDigest), "None,CRC32C");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValues(pub(super) [u32; SESSION_KEY_COUNT]);

impl Default for KeyValues {
    /// SCST's defaults.
    #[doc(alias = "params_set_defaults")]
    fn default() -> Self {
        Self(std::array::from_fn(|i| {
            SESSION_KEYS.get(i).map_or(0, |info| info.local_default)
        }))
    }
}

impl KeyValues {
    /// A key's value.
    #[must_use]
    pub fn get(&self, key: SessionKey) -> u32 {
        self.0.get(key.index()).copied().unwrap_or_default()
    }

    /// Sets a key's value, pulled into its range.
    pub fn set(&mut self, key: SessionKey, value: u32) {
        if let Some(slot) = self.0.get_mut(key.index()) {
            *slot = key.info().clamp(value);
        }
    }

    /// Sets a key from text; `:default:` stands for SCST's default. False, and nothing changed, when the text is no
    /// value or outside the key's range.
    pub fn set_text(&mut self, key: SessionKey, text: &str) -> bool {
        let info = key.info();
        let value = match text {
            ":default:" => Some(info.local_default),
            _ => info.parse(text),
        };
        let value = value.filter(|value| info.clamp(*value) == *value);
        if let Some(value) = value {
            self.set(key, value);
        }
        value.is_some()
    }

    /// A key's value as text.
    #[must_use]
    pub fn text(&self, key: SessionKey) -> Cow<'static, str> {
        key.info().format(self.get(key))
    }

    pub(super) fn combine(&mut self, key: SessionKey, theirs: u32) -> u32 {
        let combined = key.info().combine(self.get(key), theirs);
        if let Some(slot) = self.0.get_mut(key.index()) {
            *slot = combined;
        }
        combined
    }
}
