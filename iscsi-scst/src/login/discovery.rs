//! What a discovery session knows besides Text: NOP-Out and Logout.

use crate::pdu::LogoutResponse;
use crate::pdu::hdr::{LogoutReqHdr, LogoutRspHdr, NopInHdr, NopOutHdr};

/// Answers a NOP-Out, unless it asks for none, with as much of its data as the initiator takes. DIFFERS: SCST
/// rejects it and closes.
pub(super) fn nop(request: &NopOutHdr, data: &[u8], max_xmit: u32) -> Option<(NopInHdr, Vec<u8>)> {
    request.wants_answer()?;
    let len = usize::try_from(max_xmit).unwrap_or(usize::MAX);
    let ping = data.get(..len).unwrap_or(data).to_vec();
    let mut response = NopInHdr::new();
    response.itt = request.itt;
    response.lun = request.lun;
    response.set_data_len(u32::try_from(ping.len()).unwrap_or_default());
    Some((response, ping))
}

/// Answers a Logout: whatever the reason, the connection is closed, and with it the session.
#[doc(alias = "cmnd_exec_logout")]
pub(super) fn logout(request: &LogoutReqHdr) -> LogoutRspHdr {
    let mut response = LogoutRspHdr::new();
    response.itt = request.itt;
    response.set_response(LogoutResponse::Success);
    response
}
