//! The full feature phase of a discovery session: SendTargets, and how to end it.
//!
//! A discovery session knows Text with the key SendTargets, NOP-Out and Logout (RFC 7143 4.3, Appendix C). A list
//! longer than the initiator's MaxRecvDataSegmentLength goes out in pieces; the initiator asks for each with the
//! target transfer tag of the last (RFC 7143 11.10, 11.11).

use super::{DiscoveredTarget, MAX_LOGIN_TEXT};
use crate::pdu::hdr::{LogoutReqHdr, LogoutRspHdr, NopInHdr, NopOutHdr, TextReqHdr, TextRspHdr};
use crate::pdu::{LogoutResponse, RejectReason, Ttt, flags};
use crate::text::{self, NOT_UNDERSTOOD, TextBuf, TextFull};
use core::net::SocketAddr;

/// State of a discovery session.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Largest data segment that the initiator takes.
    max_xmit: usize,
    /// Last target transfer tag given out.
    last_ttt: u32,
    /// Tag of the exchange that goes on.
    ttt: Option<Ttt>,
    /// Text of a request that comes in pieces.
    request: Vec<u8>,
    /// What is left of an answer that goes out in pieces.
    answer: std::collections::VecDeque<u8>,
}

impl Discovery {
    pub(super) fn new(max_xmit: u32) -> Self {
        Self {
            max_xmit: usize::try_from(max_xmit).unwrap_or(MAX_LOGIN_TEXT),
            ..Self::default()
        }
    }

    /// Answers a Text Request: with the header (sequence numbers not yet set) and data of the response, or a
    /// Reject.
    #[doc(alias = "cmnd_exec_text")]
    pub(super) fn text(
        &mut self,
        request: &TextReqHdr,
        data: &[u8],
        list: impl Fn(Option<&str>) -> Vec<DiscoveredTarget>,
    ) -> Result<(TextRspHdr, Vec<u8>), RejectReason> {
        match request.resumes() {
            None => self.reset(),
            resumed if resumed == self.ttt => {}
            Some(_) => return Err(RejectReason::InvalidPduField),
        }
        let is_final = request.flags & flags::FINAL != 0;
        let continues = request.flags & flags::CONTINUE != 0;
        if self.answer.is_empty() {
            if is_final && continues {
                self.reset();
                return Err(RejectReason::ProtocolError);
            }
            if self.request.len().saturating_add(data.len()) > MAX_LOGIN_TEXT {
                self.reset();
                return Err(RejectReason::OutOfResources);
            }
            self.request.extend_from_slice(data);
            if !continues {
                let text = std::mem::take(&mut self.request);
                let answer = send_targets(&text, list).inspect_err(|_| self.reset())?;
                self.answer = answer.into();
            }
        }
        let len = self.answer.len().min(self.max_xmit);
        let piece: Vec<u8> = self.answer.drain(..len).collect();
        let mut response = TextRspHdr::new();
        response.itt = request.itt;
        response.flags = match (self.answer.is_empty(), is_final) {
            (true, true) => flags::FINAL,
            // RFC 7143 11.11.1: F answers F only.
            (true, false) => 0,
            // DIFFERS: SCST leaves C clear (RFC 7143 11.11.2).
            (false, _) => flags::CONTINUE,
        };
        self.ttt =
            (response.flags != flags::FINAL).then(|| self.ttt.unwrap_or_else(|| self.next_ttt()));
        response.ttt = self.ttt.unwrap_or(Ttt::RESERVED).into();
        response.set_data_len(u32::try_from(piece.len()).unwrap_or_default());
        Ok((response, piece))
    }

    fn reset(&mut self) {
        self.ttt = None;
        self.request = Vec::new();
        self.answer.clear();
    }

    #[doc(alias = "get_next_ttt")]
    fn next_ttt(&mut self) -> Ttt {
        self.last_ttt = self.last_ttt.wrapping_add(1);
        if Ttt(self.last_ttt) == Ttt::RESERVED {
            self.last_ttt = 0;
        }
        Ttt(self.last_ttt)
    }

    /// Answers a NOP-Out, unless it asks for none. DIFFERS: SCST rejects it and closes.
    pub(super) fn nop(&self, request: &NopOutHdr, data: &[u8]) -> Option<(NopInHdr, Vec<u8>)> {
        request.wants_answer()?;
        let ping = data.get(..self.max_xmit).unwrap_or(data).to_vec();
        let mut response = NopInHdr::new();
        response.itt = request.itt;
        response.lun = request.lun;
        response.set_data_len(u32::try_from(ping.len()).unwrap_or_default());
        Some((response, ping))
    }
}

/// Answers a Logout: whatever the reason, the connection is closed, and with it the session.
#[doc(alias = "cmnd_exec_logout")]
pub(super) fn logout(request: &LogoutReqHdr) -> LogoutRspHdr {
    let mut response = LogoutRspHdr::new();
    response.itt = request.itt;
    response.set_response(LogoutResponse::Success);
    response
}

/// The answer to the keys of a Text Request.
#[doc(alias = "text_scan_text")]
fn send_targets(
    request: &[u8],
    list: impl Fn(Option<&str>) -> Vec<DiscoveredTarget>,
) -> Result<Vec<u8>, RejectReason> {
    // The list is as long as the configuration makes it.
    let mut answer = TextBuf::with_limit(usize::MAX);
    let mut asked = false;
    for pair in text::pairs(request) {
        let pair = pair.map_err(|_| RejectReason::ProtocolError)?;
        let full = |_: TextFull| RejectReason::OutOfResources;
        if pair.key != "SendTargets" {
            answer.push(pair.key, NOT_UNDERSTOOD).map_err(full)?;
            continue;
        }
        // DIFFERS: an empty value asks for the target of a normal session (RFC 7143 Appendix C) and brings SCST's
        // daemon down; SendTargets more than once makes SCST list as often.
        if pair.value.is_empty() || std::mem::replace(&mut asked, true) {
            return Err(RejectReason::ProtocolError);
        }
        for target in list(Some(pair.value).filter(|name| *name != "All")) {
            answer.push("TargetName", &target.name).map_err(full)?;
            for portal in &target.portals {
                answer
                    .push("TargetAddress", &target_address(portal))
                    .map_err(full)?;
            }
        }
    }
    Ok(answer.into_bytes())
}

/// TargetAddress of a portal: address and port, and the one portal group (RFC 7143 13.8).
#[doc(alias = "target_print_addr")]
fn target_address(portal: &SocketAddr) -> String {
    // Not SocketAddr's own text: that adds the scope of a link-local address, which is ours and not the peer's.
    match portal {
        SocketAddr::V4(v4) => format!("{}:{},1", v4.ip(), v4.port()),
        SocketAddr::V6(v6) => format!("[{}]:{},1", v6.ip(), v6.port()),
    }
}
