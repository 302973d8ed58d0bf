//! Text exchanges of the full feature phase.
//!
//! A Text Request may come in several PDUs and its answer go out in several, held together by the target transfer
//! tag of the last response (RFC 7143 11.10, 11.11). [`TextExchange`] keeps one such exchange of a connection and
//! knows the keys: SendTargets (RFC 7143 Appendix C) and, in a normal session, what may be declared there.
//!
//! C source: `iscsi-scst/usr/iscsid.c` (`cmnd_exec_text`), `iscsi-scst/usr/target.c` (`target_list_build`).

use super::{DiscoveredTarget, MAX_LOGIN_TEXT};
use crate::param::SessionKey;
use crate::pdu::hdr::{TextReqHdr, TextRspHdr};
use crate::pdu::{RejectReason, Ttt, flags};
use crate::text::{self, NOT_UNDERSTOOD, Pair, REJECT, TextBuf, TextFull};
use core::net::SocketAddr;
use std::collections::VecDeque;

/// The session that a text exchange belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextScope<'a> {
    /// A discovery session: SendTargets of everything.
    Discovery,
    /// A normal session: SendTargets of its own target.
    Normal {
        /// The target's name.
        target: &'a str,
    },
}

/// The text exchange of one connection.
///
/// ```
/// use iscsi_scst::login::{DiscoveredTarget, TextExchange, TextScope};
/// use iscsi_scst::pdu::hdr::TextReqHdr;
///
/// let mut exchange = TextExchange::new(8192);
/// let mine = TextScope::Normal { target: "iqn.2026-01.org.example:t" };
/// let list = |name: Option<&str>| {
///     vec![DiscoveredTarget { name: name.unwrap_or_default().to_owned(), portals: Vec::new() }]
/// };
/// let (_header, answer) = exchange
///     .receive(&TextReqHdr::new(), b"SendTargets=\0", mine, list)
///     .map_err(|reason| format!("{reason:?}"))?;
/// assert_eq!(answer, b"TargetName=iqn.2026-01.org.example:t\0");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Default)]
pub struct TextExchange {
    /// Largest data segment that the initiator takes.
    max_xmit: u32,
    /// Last target transfer tag given out.
    last_ttt: u32,
    /// Tag of the exchange that goes on.
    ttt: Option<Ttt>,
    /// Text of a request that comes in pieces.
    request: Vec<u8>,
    /// What is left of an answer that goes out in pieces.
    answer: VecDeque<u8>,
}

impl TextExchange {
    /// A connection without an exchange, to an initiator that takes data segments of up to `max_xmit` bytes.
    #[must_use]
    pub fn new(max_xmit: u32) -> Self {
        Self {
            max_xmit,
            ..Self::default()
        }
    }

    /// The initiator's MaxRecvDataSegmentLength: as negotiated, or as declared since in a text exchange of a normal
    /// session (RFC 7143 13.12), which then holds for everything sent to it.
    #[must_use]
    pub const fn max_xmit(&self) -> u32 {
        self.max_xmit
    }

    /// Takes a Text Request with its data segment (without padding) and answers it: header (opcode, flags, tags and
    /// length set; sequence numbers not) and data of a Text Response, or the reason of a Reject.
    ///
    /// `list` gives the targets that this initiator may see through this portal, or only the one named; see
    /// [`LoginEnv::list_targets`](super::LoginEnv::list_targets).
    ///
    /// Context: reactor-safe.
    ///
    /// # Errors
    /// The reason why the request is rejected. The connection lives on, and the exchange is over, unless the tag
    /// was wrong.
    #[doc(alias = "cmnd_exec_text")]
    pub fn receive(
        &mut self,
        request: &TextReqHdr,
        data: &[u8],
        scope: TextScope<'_>,
        list: impl Fn(Option<&str>) -> Vec<DiscoveredTarget>,
    ) -> Result<(TextRspHdr, Vec<u8>), RejectReason> {
        match request.resumes() {
            None => self.reset(),
            resumed if resumed == self.ttt => {}
            Some(_) => return Err(RejectReason::InvalidPduField),
        }
        let is_final = request.flags & flags::FINAL != 0;
        let continues = request.flags & flags::CONTINUE != 0;
        // While an answer goes out, a request only asks for its next piece.
        if self.answer.is_empty() {
            let taken = self.take_request(data, is_final, continues);
            let answered = taken.and_then(|text| match text {
                Some(text) => self.answer_keys(&text, scope, list),
                None => Ok(Vec::new()),
            });
            self.answer = answered.inspect_err(|_| self.reset())?.into();
        }
        Ok(self.respond(request, is_final))
    }

    /// The whole text of a request, once its last piece is there.
    fn take_request(
        &mut self,
        data: &[u8],
        is_final: bool,
        continues: bool,
    ) -> Result<Option<Vec<u8>>, RejectReason> {
        if is_final && continues {
            return Err(RejectReason::ProtocolError);
        }
        if self.request.len().saturating_add(data.len()) > MAX_LOGIN_TEXT {
            return Err(RejectReason::OutOfResources);
        }
        self.request.extend_from_slice(data);
        Ok((!continues).then(|| std::mem::take(&mut self.request)))
    }

    /// The next piece of the answer.
    fn respond(&mut self, request: &TextReqHdr, is_final: bool) -> (TextRspHdr, Vec<u8>) {
        let limit = usize::try_from(self.max_xmit).unwrap_or(MAX_LOGIN_TEXT);
        let len = self.answer.len().min(limit);
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
        let goes_on = response.flags != flags::FINAL;
        self.ttt = goes_on.then(|| self.ttt.unwrap_or_else(|| self.next_ttt()));
        response.ttt = self.ttt.unwrap_or(Ttt::RESERVED).into();
        response.set_data_len(u32::try_from(piece.len()).unwrap_or_default());
        (response, piece)
    }

    fn reset(&mut self) {
        self.ttt = None;
        self.request = Vec::new();
        self.answer = VecDeque::new();
    }

    #[doc(alias = "get_next_ttt")]
    fn next_ttt(&mut self) -> Ttt {
        self.last_ttt = self.last_ttt.wrapping_add(1);
        if Ttt(self.last_ttt) == Ttt::RESERVED {
            self.last_ttt = 0;
        }
        Ttt(self.last_ttt)
    }

    /// The answer to the keys of a request.
    #[doc(alias = "text_scan_text")]
    fn answer_keys(
        &mut self,
        request: &[u8],
        scope: TextScope<'_>,
        list: impl Fn(Option<&str>) -> Vec<DiscoveredTarget>,
    ) -> Result<Vec<u8>, RejectReason> {
        // The list is as long as the configuration makes it; `asked` keeps the initiator from multiplying it.
        let mut answer = TextBuf::with_limit(usize::MAX);
        let mut asked = false;
        for pair in text::pairs(request) {
            let pair = pair.map_err(|_| RejectReason::ProtocolError)?;
            if pair.key == "SendTargets" {
                // DIFFERS: SCST lists as often as it is asked in one request.
                if std::mem::replace(&mut asked, true) {
                    return Err(RejectReason::ProtocolError);
                }
                let targets = send_targets(pair.value, scope, &list)?;
                push_targets(&mut answer, &targets).map_err(|_| RejectReason::OutOfResources)?;
            } else if let Some(value) = self.other_key(&pair, scope) {
                answer
                    .push(pair.key, value)
                    .map_err(|_| RejectReason::OutOfResources)?;
            }
        }
        Ok(answer.into_bytes())
    }

    /// The answer to a key other than SendTargets. `None`: there is none to a declaration.
    ///
    /// DIFFERS: SCST rejects the text requests of normal sessions and loses track of the session.
    fn other_key(&mut self, pair: &Pair<'_>, scope: TextScope<'_>) -> Option<&'static str> {
        if scope == TextScope::Discovery || pair.check_limits().is_err() {
            return Some(NOT_UNDERSTOOD);
        }
        match SessionKey::by_name(pair.key) {
            Some(SessionKey::MaxRecvDataSegmentLength) => {
                let info = SessionKey::MaxXmitDataSegmentLength.info();
                self.max_xmit = info.clamp(info.parse(pair.value).unwrap_or_default());
                None
            }
            Some(SessionKey::MaxXmitDataSegmentLength) => Some(NOT_UNDERSTOOD),
            // RFC 7143 13: all others belong to login.
            Some(_) => Some(REJECT),
            None if pair.has_key("InitiatorAlias") => None,
            None => Some(NOT_UNDERSTOOD),
        }
    }
}

/// The targets that a value of SendTargets asks for (RFC 7143 Appendix C).
fn send_targets(
    value: &str,
    scope: TextScope<'_>,
    list: impl Fn(Option<&str>) -> Vec<DiscoveredTarget>,
) -> Result<Vec<DiscoveredTarget>, RejectReason> {
    match (scope, value) {
        // DIFFERS: an empty value asks for the target of a normal session and brings SCST's daemon down.
        (TextScope::Discovery, "") | (TextScope::Normal { .. }, "All") => {
            Err(RejectReason::ProtocolError)
        }
        (TextScope::Discovery, "All") => Ok(list(None)),
        (TextScope::Discovery, name) => Ok(list(Some(name))),
        (TextScope::Normal { target }, name) if name.is_empty() || name == target => {
            Ok(list(Some(target)))
        }
        (TextScope::Normal { .. }, _) => Ok(Vec::new()),
    }
}

fn push_targets(answer: &mut TextBuf, targets: &[DiscoveredTarget]) -> Result<(), TextFull> {
    for target in targets {
        answer.push("TargetName", &target.name)?;
        for portal in &target.portals {
            answer.push("TargetAddress", &target_address(portal))?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pdu::Header;

    const TARGET: &str = "iqn.2026-01.org.example:t";

    fn ask(exchange: &mut TextExchange, text: &[u8]) -> Result<String, RejectReason> {
        let list = |name: Option<&str>| {
            vec![DiscoveredTarget {
                name: name.unwrap_or("?").to_owned(),
                portals: vec![([192, 0, 2, 1], 3260).into()],
            }]
        };
        let scope = TextScope::Normal { target: TARGET };
        let (header, answer) = exchange.receive(&TextReqHdr::new(), text, scope, list)?;
        assert_eq!(header.flags, flags::FINAL);
        assert_eq!(usize::try_from(header.data_len()), Ok(answer.len()));
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    #[test]
    fn a_normal_session_learns_of_its_own_target_only() {
        let mut exchange = TextExchange::new(8192);
        let own = format!("TargetName={TARGET}\0TargetAddress=192.0.2.1:3260,1\0");
        assert_eq!(ask(&mut exchange, b"SendTargets=\0"), Ok(own.clone()));
        assert_eq!(
            ask(&mut exchange, format!("SendTargets={TARGET}\0").as_bytes()),
            Ok(own)
        );
        assert_eq!(
            ask(&mut exchange, b"SendTargets=iqn.other\0"),
            Ok(String::new())
        );
        assert_eq!(
            ask(&mut exchange, b"SendTargets=All\0"),
            Err(RejectReason::ProtocolError)
        );
    }

    #[test]
    fn a_normal_session_may_declare_its_segment_length_anew() {
        let mut exchange = TextExchange::new(8192);
        let answer = ask(
            &mut exchange,
            b"MaxRecvDataSegmentLength=65536\0X-y=1\0InitialR2T=No\0",
        );
        assert_eq!(
            answer.as_deref(),
            Ok("X-y=NotUnderstood\0InitialR2T=Reject\0")
        );
        assert_eq!(exchange.max_xmit(), 65536);
        assert_eq!(
            ask(&mut exchange, b"MaxRecvDataSegmentLength=1\0"),
            Ok(String::new())
        );
        assert_eq!(exchange.max_xmit(), 512);
    }

    #[test]
    fn scopes_of_addresses_stay_here() {
        let portal = SocketAddr::V6(core::net::SocketAddrV6::new(
            core::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            3260,
            0,
            7,
        ));
        assert_eq!(target_address(&portal), "[fe80::1]:3260,1");
    }
}
