//! What a new session takes over from the one whose place it takes: session reinstatement (RFC 7143 6.3.5).
//!
//! The transport says, before it has the old session's nexus lost, that a successor waits ([`Session::retain`]). The
//! session's SPC-2 reservations then stay its own beyond its end, so that nobody else can come in between, and
//! [`unregister_session`](crate::core::Core::unregister_session) answers what is retained. Whoever registers the successor has it take that over; if
//! there is none after all, dropping it frees the reservations.
//!
//! Persistent reservations belong to the initiator port and need none of this.
//!
//! C source: `scst_reassign_retained_sess_states` of `scst/src/scst_lib.c`

use crate::device::Device;
use crate::sense::{self, Sense};
use crate::session::Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One logical unit of a session that has ended.
#[derive(Debug)]
struct RetainedLun {
    lun: u64,
    dev: Arc<Device>,
    uas: Vec<Sense>,
}

/// What a session that has ended left to its successor.
#[derive(Debug)]
pub struct RetainedStates {
    sess: u64,
    luns: Vec<RetainedLun>,
}

impl RetainedStates {
    /// What `sess` leaves, if it has a successor. Call it before its nexuses go.
    pub(crate) fn of(sess: &Session) -> Option<Self> {
        if !sess.retained.load(Ordering::Acquire) {
            return None;
        }
        let luns = sess.tgt_devs().into_iter().map(|t| RetainedLun {
            lun: t.lun,
            dev: Arc::clone(&t.dev),
            uas: t.ua.snapshot(),
        });
        Some(Self {
            sess: sess.id,
            luns: luns.collect(),
        })
    }

    /// Gives reservations and pending unit attentions to the successor, as far as it has the same logical units. What
    /// says that the nexus itself began or was lost is not passed on: the successor has its own. Context: any.
    #[doc(alias = "scst_reassign_retained_sess_states")]
    pub fn pass_to(mut self, sess: &Session) {
        for old in std::mem::take(&mut self.luns) {
            let new = sess.lookup_tgt_dev(old.lun);
            let Some(new) = new.filter(|t| Arc::ptr_eq(&t.dev, &old.dev)) else {
                old.dev.reservations.release_retained(self.sess);
                continue;
            };
            old.dev.reservations.pass(self.sess, sess);
            let own = [sense::RESET_UA, sense::NEXUS_LOSS_UA];
            for ua in old.uas.into_iter().filter(|ua| !own.contains(ua)) {
                new.check_set_ua(ua);
            }
        }
    }
}

impl Drop for RetainedStates {
    fn drop(&mut self) {
        for old in &self.luns {
            old.dev.reservations.release_retained(self.sess);
        }
    }
}

impl Session {
    /// A successor will take this session's place: its reservations outlive it. Call it before the nexus is reported lost.
    /// Context: any.
    #[doc(alias = "sess_reinst_successor")]
    pub fn retain(&self) {
        self.retained.store(true, Ordering::Release);
    }
}
