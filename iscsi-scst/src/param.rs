//! Negotiable parameters: tables, values, and the answer for each key an initiator offers.
//!
//! [`SESSION_KEYS`] is SCST's table of RFC 7143 session keys: the value without negotiation, the value a target
//! starts with, the range, and the rule that combines both sides' values (RFC 7143 6.2.2, 13). [`TARGET_KEYS`] are
//! the parameters of a target that no initiator sees. [`KeyValues`] holds a target's values; one login works on a
//! copy, [`Negotiation`], and ends with [`SessParams`].
//!
//! The answers are SCST's, also where the RFC has it otherwise: a number outside its range is pulled to the nearest
//! end of the range instead of refused, and so is text that is no number (it counts as 0).
//!
//! C source: `iscsi-scst/usr/param.c`, `iscsi-scst/usr/iscsid.c` (`text_scan_login`, `text_check_params`),
//! `iscsi-scst/kernel/param.c`.

use crate::pdu::Digests;
use crate::text::{NOT_UNDERSTOOD, REJECT};
use std::borrow::Cow;

mod keys;

use keys::parse_number;
pub use keys::{
    DEFAULT_MAX_OUTSTANDING_R2T, DIGEST_ALL, DIGEST_CRC32C, DIGEST_NONE, KeyValues,
    MAX_DATA_SEG_LEN, Rule, SESSION_KEY_COUNT, SESSION_KEYS, SessionKey, SessionKeyInfo,
};

/// The negotiated parameters of a session.
#[doc(alias = "iscsi_sess_params")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessParams {
    /// Whether write data need an R2T from the first byte on.
    pub initial_r2t: bool,
    /// Whether commands may carry data.
    pub immediate_data: bool,
    /// Connections per session; 1.
    pub max_connections: u32,
    /// Largest data segment we take.
    #[doc(alias = "max_recv_data_length")]
    pub max_recv_data_segment_length: u32,
    /// Largest data segment the initiator takes.
    #[doc(alias = "max_xmit_data_length")]
    pub max_xmit_data_segment_length: u32,
    /// Largest burst of solicited data. SCST lets it be smaller than `first_burst_length`.
    pub max_burst_length: u32,
    /// Most unsolicited data per command.
    pub first_burst_length: u32,
    /// Least seconds before reconnecting.
    #[doc(alias = "default_wait_time")]
    pub default_time2wait: u32,
    /// Most seconds that tasks are kept; 0.
    #[doc(alias = "default_retain_time")]
    pub default_time2retain: u32,
    /// R2Ts outstanding per command.
    pub max_outstanding_r2t: u32,
    /// Whether the PDUs of a sequence are in order.
    #[doc(alias = "data_pdu_inorder")]
    pub data_pdu_in_order: bool,
    /// Whether the sequences of a command are in order.
    #[doc(alias = "data_sequence_inorder")]
    pub data_sequence_in_order: bool,
    /// Error recovery level; 0.
    pub error_recovery_level: u32,
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data.
    pub data_digest: bool,
    /// iSCSIProtocolLevel: 1 is RFC 7143, 2 has the task management functions of RFC 7144.
    pub protocol_level: u32,
}

impl SessParams {
    /// The digests of the full feature phase.
    #[must_use]
    pub const fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest,
            data: self.data_digest,
        }
    }
}

impl Default for SessParams {
    /// The values when nothing was negotiated.
    fn default() -> Self {
        Negotiation::new(KeyValues::default()).finish()
    }
}

impl From<&KeyValues> for SessParams {
    fn from(values: &KeyValues) -> Self {
        use SessionKey as K;
        let number = |key| values.get(key);
        let yes = |key| values.get(key) != 0;
        let crc = |key| values.get(key) & DIGEST_CRC32C != 0;
        Self {
            initial_r2t: yes(K::InitialR2T),
            immediate_data: yes(K::ImmediateData),
            max_connections: number(K::MaxConnections),
            max_recv_data_segment_length: number(K::MaxRecvDataSegmentLength),
            max_xmit_data_segment_length: number(K::MaxXmitDataSegmentLength),
            max_burst_length: number(K::MaxBurstLength),
            first_burst_length: number(K::FirstBurstLength),
            default_time2wait: number(K::DefaultTime2Wait),
            default_time2retain: number(K::DefaultTime2Retain),
            max_outstanding_r2t: number(K::MaxOutstandingR2T),
            data_pdu_in_order: yes(K::DataPDUInOrder),
            data_sequence_in_order: yes(K::DataSequenceInOrder),
            error_recovery_level: number(K::ErrorRecoveryLevel),
            header_digest: crc(K::HeaderDigest),
            data_digest: crc(K::DataDigest),
            protocol_level: PROTOCOL_LEVEL_DEFAULT,
        }
    }
}

/// iSCSIProtocolLevel of a session that did not negotiate it (RFC 7144 6.1.1).
pub const PROTOCOL_LEVEL_DEFAULT: u32 = 1;
/// The highest iSCSIProtocolLevel here.
pub const PROTOCOL_LEVEL_MAX: u32 = 2;
/// The highest iSCSIProtocolLevel that there can be.
const PROTOCOL_LEVEL_LIMIT: u32 = 31;

/// Values of TaskReporting that are done here (RFC 7143 13.23). The responses of a session have one order, that of its
/// one connection, so that each waits for those before it anyway.
const TASK_REPORTING: [&str; 2] = ["ResponseFence", "RFC3720"];

/// What to do about an offered key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send `key=` and this text.
    Reply(Cow<'static, str>),
    /// Send nothing: the key was a declaration, or was answered before.
    Silent,
}

impl Answer {
    const fn fixed(text: &'static str) -> Self {
        Self::Reply(Cow::Borrowed(text))
    }
}

/// An offer that ends the login with an initiator error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// A key that was agreed on came again with a value that is none.
    #[error("{} offered again with an invalid value", .0.info().name)]
    InvalidRepeat(SessionKey),
    /// RDMAExtensions=Yes on a TCP connection.
    #[error("RDMA extensions on a TCP connection")]
    RdmaOverTcp,
}

/// How far a key has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyState {
    /// Not offered.
    Start,
    /// Offered by the initiator, not answered: a declaration.
    #[doc(alias = "KEY_STATE_DONE")]
    Declared,
    /// Answered.
    #[doc(alias = "KEY_STATE_DONE_ADDED")]
    Answered,
}

/// The operational negotiation of one login.
///
/// ```
/// use iscsi_scst::param::{Answer, KeyValues, Negotiation};
///
/// let mut negotiation = Negotiation::new(KeyValues::default());
/// assert_eq!(negotiation.negotiate("MaxBurstLength", "16777215")?, Answer::Reply("1048576".into()));
/// assert_eq!(negotiation.finish().max_burst_length, 1048576);
/// # Ok::<(), iscsi_scst::param::NegotiationError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Negotiation {
    values: KeyValues,
    states: [KeyState; SESSION_KEY_COUNT],
    protocol_level: u32,
}

impl Negotiation {
    /// A negotiation that starts from a target's values.
    #[must_use]
    pub const fn new(local: KeyValues) -> Self {
        Self {
            values: local,
            states: [KeyState::Start; SESSION_KEY_COUNT],
            protocol_level: PROTOCOL_LEVEL_DEFAULT,
        }
    }

    fn state(&self, key: SessionKey) -> KeyState {
        self.states
            .get(key.index())
            .copied()
            .unwrap_or(KeyState::Start)
    }

    fn set_state(&mut self, key: SessionKey, state: KeyState) {
        if let Some(slot) = self.states.get_mut(key.index()) {
            *slot = state;
        }
    }

    /// Takes the initiator's offer of a key in operational negotiation. Keys that belong to login itself
    /// (InitiatorName and so on) are the caller's; an unknown key is NotUnderstood.
    ///
    /// # Errors
    /// [`NegotiationError`]: the login fails with status 0200h.
    #[doc(alias = "text_scan_login")]
    pub fn negotiate(&mut self, name: &str, value: &str) -> Result<Answer, NegotiationError> {
        let key = match SessionKey::by_name(name) {
            // MaxXmitDataSegmentLength is SCST's name for the peer's MaxRecvDataSegmentLength, never on the wire.
            None => return Ok(self.later_key(name, value)),
            Some(SessionKey::MaxXmitDataSegmentLength) => {
                return Ok(Answer::fixed(NOT_UNDERSTOOD));
            }
            Some(SessionKey::MaxRecvDataSegmentLength) => {
                self.declare_recv_len(value);
                return Ok(Answer::Silent);
            }
            Some(key) => key,
        };
        let info = key.info();
        let repeated = self.state(key) != KeyState::Start;
        let theirs = match info.parse(value) {
            Some(theirs) => theirs,
            None if repeated => return Err(NegotiationError::InvalidRepeat(key)),
            None => return Ok(Answer::fixed(REJECT)),
        };
        if key == SessionKey::RDMAExtensions && theirs != 0 {
            return Err(NegotiationError::RdmaOverTcp);
        }
        if repeated {
            // DIFFERS: SCST narrows the value once more without telling the initiator; what was answered holds.
            return Ok(Answer::Silent);
        }
        let agreed = self.values.combine(key, info.clamp(theirs));
        self.set_state(key, KeyState::Answered);
        Ok(Answer::Reply(info.format(agreed)))
    }

    /// Keys that SCST does not know. DIFFERS: it says NotUnderstood to these, too.
    fn later_key(&mut self, name: &str, value: &str) -> Answer {
        match name {
            "TaskReporting" => {
                let known = |item: &str| TASK_REPORTING.iter().find(|v| **v == item);
                let first = value.split(',').find_map(known);
                Answer::fixed(first.copied().unwrap_or(REJECT))
            }
            "iSCSIProtocolLevel" => match value.parse::<u32>() {
                Ok(level) if level <= PROTOCOL_LEVEL_LIMIT => {
                    self.protocol_level = level.min(PROTOCOL_LEVEL_MAX);
                    Answer::Reply(self.protocol_level.to_string().into())
                }
                _ => Answer::fixed(REJECT),
            },
            _ => Answer::fixed(NOT_UNDERSTOOD),
        }
    }

    /// The initiator declares the largest data segment it takes; ours is then declared in turn.
    fn declare_recv_len(&mut self, value: &str) {
        let xmit = SessionKey::MaxXmitDataSegmentLength;
        let theirs = xmit.info().clamp(parse_number(value));
        self.values.combine(xmit, theirs);
        self.set_state(xmit, KeyState::Declared);
        self.set_state(SessionKey::MaxRecvDataSegmentLength, KeyState::Declared);
    }

    /// What the target declares of its own in the response to an operational request: MaxRecvDataSegmentLength,
    /// once the initiator has declared its own, unless ours is the default. SCST repeats it in every later response
    /// of the stage, and so does this.
    #[doc(alias = "text_check_params")]
    #[must_use]
    pub fn declaration(&self) -> Option<(&'static str, Cow<'static, str>)> {
        let key = SessionKey::MaxRecvDataSegmentLength;
        let info = key.info();
        let ours = self.values.get(key);
        (self.state(key) == KeyState::Declared && ours != info.rfc_default)
            .then(|| (info.name, info.format(ours)))
    }

    /// The parameters agreed on: keys that were not negotiated have their RFC 7143 defaults.
    #[must_use]
    pub fn finish(&self) -> SessParams {
        let mut values = self.values.clone();
        for (slot, (state, info)) in values
            .0
            .iter_mut()
            .zip(self.states.iter().zip(&SESSION_KEYS))
        {
            if *state == KeyState::Start {
                *slot = info.rfc_default;
            }
        }
        SessParams {
            protocol_level: self.protocol_level,
            ..SessParams::from(&values)
        }
    }
}

/// The parameters of a target that are not negotiated.
#[doc(alias = "iscsi_tgt_params")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TgtParams {
    /// Commands that a session may have queued; 1 to 2048.
    #[doc(alias = "queued_cmnds")]
    pub queued_commands: u32,
    /// Seconds that a response may take to be sent; 2 to 65535.
    pub rsp_timeout: u32,
    /// Seconds between NOP-In pings; 0 (off) to 65535.
    pub nop_in_interval: u32,
    /// Seconds for the answer to a ping; 2 to 65535.
    pub nop_in_timeout: u32,
    /// Sessions that the target takes; 0 for any number.
    pub max_sessions: u32,
}

impl Default for TgtParams {
    fn default() -> Self {
        let [queued, rsp, interval, timeout, sessions] = TARGET_KEYS.map(|info| info.default);
        Self {
            queued_commands: queued,
            rsp_timeout: rsp,
            nop_in_interval: interval,
            nop_in_timeout: timeout,
            max_sessions: sessions,
        }
    }
}

impl TgtParams {
    /// The parameter of a name in [`TARGET_KEYS`].
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u32> {
        self.clone().field(name).copied()
    }

    /// Sets the parameter of a name in [`TARGET_KEYS`] from text; `:default:` stands for its default. False, and
    /// nothing changed, when there is no such parameter or the value is outside its range.
    pub fn set_text(&mut self, name: &str, text: &str) -> bool {
        let Some(info) = TARGET_KEYS.iter().find(|info| info.name == name) else {
            return false;
        };
        let value = match text {
            ":default:" => info.default,
            _ => parse_number(text),
        };
        match self.field(name) {
            Some(field) if (info.min..=info.max).contains(&value) => {
                *field = value;
                true
            }
            _ => false,
        }
    }

    fn field(&mut self, name: &str) -> Option<&mut u32> {
        match name {
            "QueuedCommands" => Some(&mut self.queued_commands),
            "RspTimeout" => Some(&mut self.rsp_timeout),
            "NopInInterval" => Some(&mut self.nop_in_interval),
            "NopInTimeout" => Some(&mut self.nop_in_timeout),
            "MaxSessions" => Some(&mut self.max_sessions),
            _ => None,
        }
    }
}

/// One row of [`TARGET_KEYS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetKeyInfo {
    /// Name of the attribute.
    pub name: &'static str,
    /// The value of a new target.
    pub default: u32,
    /// Smallest value.
    pub min: u32,
    /// Largest value.
    pub max: u32,
}

/// The parameters in [`TgtParams`], in its order.
#[doc(alias = "target_keys")]
pub const TARGET_KEYS: [TargetKeyInfo; 5] = [
    TargetKeyInfo {
        name: "QueuedCommands",
        default: 32,
        min: 1,
        max: 2048,
    },
    TargetKeyInfo {
        name: "RspTimeout",
        default: 90,
        min: 2,
        max: 65_535,
    },
    TargetKeyInfo {
        name: "NopInInterval",
        default: 30,
        min: 0,
        max: 65_535,
    },
    TargetKeyInfo {
        name: "NopInTimeout",
        default: 30,
        min: 2,
        max: 65_535,
    },
    TargetKeyInfo {
        name: "MaxSessions",
        default: 0,
        min: 0,
        max: 65_535,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(text: &str) -> Result<Answer, NegotiationError> {
        Ok(Answer::Reply(text.to_owned().into()))
    }

    fn offer(name: &str, value: &str) -> Result<Answer, NegotiationError> {
        Negotiation::new(KeyValues::default()).negotiate(name, value)
    }

    #[test]
    fn table_is_in_order() {
        for (i, info) in SESSION_KEYS.iter().enumerate() {
            assert_eq!(info.key.index(), i);
            assert_eq!(info.key.info().name, info.name);
            assert_eq!(
                SessionKey::by_name(&info.name.to_ascii_uppercase()),
                Some(info.key)
            );
            assert!(info.min <= info.max);
        }
    }

    #[test]
    fn numbers_are_read_as_strtol_does() {
        for (text, value) in [
            ("0", 0),
            ("65536", 65536),
            ("0x2000", 8192),
            ("0X1f", 31),
            ("0x", 0),
            ("0xg", 0),
            ("010", 8),
            ("089", 0),
            (" \t12abc", 12),
            ("+7", 7),
            ("-1", u32::MAX),
            ("x", 0),
            ("", 0),
            ("4294967296", 0),
            ("4294967297", 1),
            ("99999999999999999999999", u32::MAX),
            ("-99999999999999999999999", 1),
        ] {
            assert_eq!(parse_number(text), value, "{text:?}");
        }
    }

    #[test]
    fn answers_follow_the_rules() {
        for (name, value, answer) in [
            ("InitialR2T", "Yes", "Yes"),
            ("initialr2t", "No", "No"),
            ("InitialR2T", "yes", "Reject"),
            ("ImmediateData", "maybe", "Reject"),
            ("DefaultTime2Wait", "3601", "0"),
            ("MaxOutstandingR2T", "0", "1"),
            ("HeaderDigest", "crc32c, none", "None"),
            ("HeaderDigest", "None,SHA", "Reject"),
            ("OFMarkInt", "2048", "Reject"),
            ("OFMarker", "Yes", "No"),
            ("RDMAExtensions", "No", "No"),
            ("MaxXmitDataSegmentLength", "512", "NotUnderstood"),
            ("TargetRecvDataSegmentLength", "8192", "512"),
            ("TaskReporting", "RFC3720", "RFC3720"),
            (
                "TaskReporting",
                "FastAbort,ResponseFence,RFC3720",
                "ResponseFence",
            ),
            ("TaskReporting", "FastAbort", "Reject"),
            ("iSCSIProtocolLevel", "1", "1"),
            ("iSCSIProtocolLevel", "31", "2"),
            ("iSCSIProtocolLevel", "32", "Reject"),
            ("iSCSIProtocolLevel", "two", "Reject"),
        ] {
            assert_eq!(offer(name, value), reply(answer), "{name}={value}");
        }
        assert_eq!(
            offer("RDMAExtensions", "Yes"),
            Err(NegotiationError::RdmaOverTcp)
        );
    }

    #[test]
    fn digests_are_agreed_on_when_the_target_has_them() {
        let mut local = KeyValues::default();
        assert!(local.set_text(SessionKey::HeaderDigest, "CRC32C,None"));
        assert!(local.set_text(SessionKey::DataDigest, "CRC32C"));
        let mut negotiation = Negotiation::new(local);
        assert_eq!(
            negotiation.negotiate("HeaderDigest", "None,CRC32C"),
            reply("CRC32C")
        );
        assert_eq!(negotiation.negotiate("DataDigest", "None"), reply("None"));
        let params = negotiation.finish();
        assert_eq!(
            params.digests(),
            Digests {
                header: true,
                data: false
            }
        );
    }

    #[test]
    fn nothing_offered_gives_rfc_defaults() {
        let params = SessParams::default();
        assert!(params.initial_r2t && params.immediate_data && params.data_pdu_in_order);
        assert_eq!(params.max_recv_data_segment_length, 8192);
        assert_eq!(params.max_xmit_data_segment_length, 8192);
        assert_eq!(params.max_burst_length, 262_144);
        assert_eq!(params.max_outstanding_r2t, 1);
        assert_eq!(
            (params.default_time2wait, params.default_time2retain),
            (2, 20)
        );
        assert_eq!(params.digests(), Digests::default());
    }

    #[test]
    fn declared_segment_length_is_declared_back() {
        let mut negotiation = Negotiation::new(KeyValues::default());
        assert_eq!(negotiation.declaration(), None);
        assert_eq!(
            negotiation.negotiate("MaxRecvDataSegmentLength", "65536"),
            Ok(Answer::Silent)
        );
        assert_eq!(
            negotiation.declaration(),
            Some(("MaxRecvDataSegmentLength", Cow::Borrowed("1048576")))
        );
        let params = negotiation.finish();
        assert_eq!(params.max_xmit_data_segment_length, 65536);
        assert_eq!(params.max_recv_data_segment_length, MAX_DATA_SEG_LEN);
    }

    #[test]
    fn an_answered_key_stays_as_answered() {
        let mut negotiation = Negotiation::new(KeyValues::default());
        assert_eq!(
            negotiation.negotiate("MaxBurstLength", "65536"),
            reply("65536")
        );
        assert_eq!(
            negotiation.negotiate("MaxBurstLength", "512"),
            Ok(Answer::Silent)
        );
        assert_eq!(negotiation.finish().max_burst_length, 65536);
        assert_eq!(negotiation.negotiate("InitialR2T", "No"), reply("No"));
        assert_eq!(
            negotiation.negotiate("InitialR2T", "?"),
            Err(NegotiationError::InvalidRepeat(SessionKey::InitialR2T))
        );
    }

    #[test]
    fn management_sets_values_within_range_only() {
        let mut values = KeyValues::default();
        assert!(values.set_text(SessionKey::FirstBurstLength, "131072"));
        assert!(!values.set_text(SessionKey::FirstBurstLength, "100"));
        assert!(!values.set_text(SessionKey::InitialR2T, "1"));
        assert_eq!(values.text(SessionKey::FirstBurstLength), "131072");
        assert!(values.set_text(SessionKey::FirstBurstLength, ":default:"));
        assert_eq!(values, KeyValues::default());

        let mut params = TgtParams::default();
        for info in TARGET_KEYS {
            assert_eq!(params.get(info.name), Some(info.default));
            assert!(params.set_text(info.name, &info.max.to_string()));
            assert!(!params.set_text(info.name, &(u64::from(info.max) + 1).to_string()));
            assert_eq!(params.get(info.name), Some(info.max));
            assert!(params.set_text(info.name, ":default:"));
        }
        assert_eq!(params, TgtParams::default());
        assert!(!params.set_text("Foo", "1") && params.get("Foo").is_none());
    }

    proptest! {
        #[test]
        fn any_offer_is_answered_within_range(name in "[A-Za-z]{1,12}", index in 0..SESSION_KEY_COUNT, known: bool, value in "\\PC{0,20}") {
            let name = if known { SESSION_KEYS[index].name } else { &name };
            let mut negotiation = Negotiation::new(KeyValues::default());
            let _ = negotiation.negotiate(name, &value);
            let _ = negotiation.negotiate(name, &value);
            let _ = negotiation.declaration();
            let params = negotiation.finish();
            prop_assert!((512..=MAX_DATA_SEG_LEN).contains(&params.max_xmit_data_segment_length));
            prop_assert!((512..=MAX_DATA_SEG_LEN).contains(&params.max_burst_length));
            prop_assert!((512..=MAX_DATA_SEG_LEN).contains(&params.first_burst_length));
            prop_assert!((1..=65535).contains(&params.max_outstanding_r2t));
            prop_assert_eq!((params.max_connections, params.error_recovery_level), (1, 0));
        }
    }
}
