//! Changing the state of a command, and how long it was in the old one.
//!
//! C source: `scst_set_cmd_state` of `scst/src/scst_priv.h`, `scst_update_latency_stats` of `scst/src/scst_lib.c`

use super::{Cmd, CmdState};
use crate::stats::{LatDirection, LatSizeClass, latency_on};
use kshim::time::Instant;

impl Cmd {
    /// From now on the command is in this state. Context: its owner.
    #[doc(alias = "scst_set_cmd_state")]
    #[inline]
    pub(crate) fn set_state(&mut self, state: CmdState) {
        if latency_on() {
            self.sample_latency();
        }
        self.state = state;
    }

    /// Counts the time in the state that is being left, if measuring was on when it began.
    #[doc(alias = "scst_update_latency_stats")]
    #[cold]
    fn sample_latency(&mut self) {
        if !self.sess.core.measures_latency() {
            return;
        }
        let now = Instant::now();
        let Some(since) = self.state_since.replace(now) else {
            return;
        };
        let ns = u64::try_from((now - since).as_nanos()).unwrap_or(0);
        let dir = LatDirection::from(self.expected_data_direction);
        let size = LatSizeClass::of(self.expected_transfer_len);
        let state = usize::from(self.state as u8);
        self.sess.lat.sample(state, dir, size, ns);
    }
}
