//! The login phase, one request at a time.

use std::net::SocketAddr;

use crate::pdu::{Bhs, FINAL, IMMEDIATE, Pdu, encode_text, op};
use crate::wire::{Wire, WireError};

/// Stage numbers of RFC 7143 11.12.3.
pub mod stage {
    /// SecurityNegotiation.
    pub const SECURITY: u8 = 0;
    /// LoginOperationalNegotiation.
    pub const OPERATIONAL: u8 = 1;
    /// FullFeaturePhase.
    pub const FULL_FEATURE: u8 = 3;
}

/// Bit of a login request's or response's second byte: go to the next stage.
pub const TRANSIT: u8 = FINAL;
/// Bit of the second byte: the text goes on in the next PDU.
pub const CONTINUE: u8 = 0x40;

/// Why a login did not end in full feature phase.
#[derive(Debug)]
pub enum LoginError {
    /// The target refused: status class and detail.
    Status(u8, u8),
    /// The connection failed.
    Wire(WireError),
    /// The target sent something else than a login response, or would not transit.
    Protocol(String),
}

impl std::fmt::Display for LoginError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(class, detail) => write!(f, "login refused: {class:02x}{detail:02x}"),
            Self::Wire(e) => write!(f, "login: {e}"),
            Self::Protocol(what) => write!(f, "login: {what}"),
        }
    }
}

impl std::error::Error for LoginError {}

impl From<WireError> for LoginError {
    fn from(e: WireError) -> Self {
        Self::Wire(e)
    }
}

/// What the target answered to one login request.
#[derive(Debug)]
pub struct LoginReply {
    /// Opcode (23h for a login response; a target may Reject instead).
    pub opcode: u8,
    /// T, C, CSG, NSG.
    pub flags: u8,
    /// Status-Class.
    pub class: u8,
    /// Status-Detail.
    pub detail: u8,
    /// Target session identifying handle.
    pub tsih: u16,
    /// Keys in the order they were sent.
    pub text: Vec<(String, String)>,
    /// The whole PDU.
    pub pdu: Pdu,
}

impl LoginReply {
    /// The value of the first `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.text
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }
}

/// A connection in login phase.
#[derive(Debug)]
pub struct Login {
    /// The connection.
    pub wire: Wire,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Session to reinstate or join; 0 for a new one.
    pub tsih: u16,
    /// Connection identifier.
    pub cid: u16,
    /// Initiator task tag of all login requests.
    pub itt: u32,
    /// CmdSN of the login requests.
    pub cmd_sn: u32,
    /// ExpStatSN of the next request.
    pub exp_stat_sn: u32,
    /// ExpCmdSN and MaxCmdSN of the last reply.
    pub window: (u32, u32),
}

impl Login {
    /// Connects; nothing is sent yet.
    pub fn connect(addr: SocketAddr, isid: [u8; 6]) -> Result<Self, WireError> {
        Ok(Self {
            wire: Wire::connect(addr)?,
            isid,
            tsih: 0,
            cid: 0,
            itt: 1,
            cmd_sn: 1,
            exp_stat_sn: 0,
            window: (1, 1),
        })
    }

    /// A login request; send it as it is or spoil it first.
    pub fn request<K: AsRef<str>, V: AsRef<str>>(
        &self,
        csg: u8,
        nsg: u8,
        flags: u8,
        keys: &[(K, V)],
    ) -> Pdu {
        let mut bhs = Bhs::new(op::LOGIN | IMMEDIATE, flags | csg << 2 | nsg);
        bhs.0[8..14].copy_from_slice(&self.isid);
        bhs.0[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        bhs.set_word(16, self.itt)
            .set_word(20, u32::from(self.cid) << 16);
        bhs.set_word(24, self.cmd_sn).set_word(28, self.exp_stat_sn);
        Pdu::new(bhs, Vec::new(), encode_text(keys))
    }

    /// Sends a request and takes the reply.
    pub fn exchange(&mut self, pdu: &Pdu) -> Result<LoginReply, WireError> {
        self.wire.send(pdu)?;
        let pdu = self.wire.recv()?;
        let b = &pdu.bhs;
        let is_response = b.opcode() == op::LOGIN_RESPONSE;
        if is_response {
            self.exp_stat_sn = b.stat_sn().wrapping_add(1);
            self.window = (b.exp_cmd_sn(), b.max_cmd_sn());
        }
        Ok(LoginReply {
            opcode: b.opcode(),
            flags: b.flags(),
            class: if is_response { b.0[36] } else { 0 },
            detail: if is_response { b.0[37] } else { 0 },
            tsih: u16::from_be_bytes([b.0[14], b.0[15]]),
            text: pdu.text(),
            pdu,
        })
    }

    /// Sends a request of one stage and takes a successful reply.
    pub fn stage(
        &mut self,
        csg: u8,
        nsg: u8,
        keys: &[(String, String)],
    ) -> Result<LoginReply, LoginError> {
        let request = self.request(csg, nsg, TRANSIT, keys);
        let mut reply = self.exchange(&request)?;
        // A target may want another round before it transits, or more room for its keys.
        for _ in 0..8 {
            if reply.opcode != op::LOGIN_RESPONSE {
                return Err(LoginError::Protocol(format!(
                    "answered with opcode {:02x}",
                    reply.opcode
                )));
            }
            if reply.class != 0 {
                return Err(LoginError::Status(reply.class, reply.detail));
            }
            if reply.flags & TRANSIT != 0 {
                return Ok(reply);
            }
            let none: [(&str, &str); 0] = [];
            let next = self.request(csg, nsg, TRANSIT, &none);
            let mut more = self.exchange(&next)?;
            let mut text = std::mem::take(&mut reply.text);
            text.append(&mut more.text);
            more.text = text;
            reply = more;
        }
        Err(LoginError::Protocol(
            "does not transit to the next stage".into(),
        ))
    }
}
