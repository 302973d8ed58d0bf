//! Where authentication methods plug into the login.
//!
//! The login offers an exchange the text of each request of the security stage and sends what it answers; the
//! method itself (CHAP, RFC 7143 12.1.3) does not know PDUs. Accounts and hashes are the business of whoever
//! implements [`LoginEnv::start_chap`](super::LoginEnv::start_chap).
//!
//! C source: `iscsi-scst/usr/iscsid.c` (`cmnd_exec_auth`), `iscsi-scst/usr/chap.c`.

use crate::text::TextBuf;

/// How far one step brought an authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthStep {
    /// The peer must send more.
    Continue,
    /// The peer is who it says.
    Done {
        /// Its account.
        user: String,
    },
    /// The peer's text made no sense: status 0200h.
    #[doc(alias = "CHAP_INITIATOR_ERROR")]
    InitiatorError,
    /// Wrong name or secret: status 0201h.
    #[doc(alias = "CHAP_AUTH_ERROR")]
    Failed,
    /// Our own trouble: status 0300h.
    #[doc(alias = "CHAP_TARGET_ERROR")]
    TargetError,
}

/// One authentication of one login.
pub trait Authenticator: Send {
    /// Takes the text of one request of the security stage and writes the response's.
    ///
    /// Context: reactor-safe; must not block. `request` is what the peer sent: expect anything.
    fn step(&mut self, request: &[u8], answer: &mut TextBuf) -> AuthStep;
}
